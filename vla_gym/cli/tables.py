"""Tables of what policies reached."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from vla_gym.cli.console import console

if TYPE_CHECKING:
    from vla_gym.evaluation.metrics import ChainSummary, Summary
    from vla_gym.evaluation.protocols import Protocol, Score
    from vla_gym.evaluation.records import Record

__all__ = [
    "print_chains",
    "print_comparisons",
    "print_protocols",
    "print_scores",
    "print_summaries",
]

MOST_COMPARED = 4
"""With more policies than these, so many pairs that only `vla-gym compare` prints them."""


def print_scores(records: Sequence[Record]) -> None:
    """Print all that an evaluation has found: tasks, protocol, perturbations, comparisons."""
    from vla_gym.evaluation.metrics import summarize, summarize_chains
    from vla_gym.evaluation.protocols import PROTOCOLS, score_by_group

    plain = [record for record in records if not record.perturbation]
    chains = summarize_chains(plain)
    chain_ids = {s.id for s in chains}
    if summaries := [s for s in summarize(plain) if s.id not in chain_ids]:
        print_summaries(summaries)
        rules = {record.protocol["success_rule"].partition(":")[0] for record in plain}
        console.print(
            f"success {' or '.join(sorted(rules))}; Wilson 95 % intervals; the same seeds for "
            "every policy"
        )
    if chains:
        settings = {(r.policy, r.id): r.protocol for r in plain}
        print_chains(chains, settings)
    for name in dict.fromkeys(record.protocol["protocol"] for record in plain):
        if name in PROTOCOLS:
            some = [record for record in plain if record.protocol["protocol"] == name]
            _print_protocol_scores(PROTOCOLS[name], score_by_group(some, PROTOCOLS[name]))
    if len(plain) < len(records):
        _print_perturbations(records)
    labels = list(dict.fromkeys(record.policy for record in plain))
    if 1 < len(labels) <= MOST_COMPARED:
        print_comparisons(plain, labels, reasons=False)


def print_comparisons(
    records: Sequence[Record], labels: Sequence[str], level: float = 0.05, reasons: bool = True
) -> None:
    """Print the verdict on every two of these policies; with `reasons`, also why there is none."""
    from vla_gym.errors import InvalidOption
    from vla_gym.evaluation.comparison import compare, describe

    for first, second in itertools.combinations(labels, 2):
        try:
            text = describe(compare(records, first, second, level=level))
        except InvalidOption as error:
            if not reasons:
                continue
            text = f"{first} and {second}: {error}"
        console.print(text, highlight=False, markup=False)


def print_protocols(protocols: Sequence[Protocol]) -> None:
    """Print what each protocol asks for."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("protocol", no_wrap=True)
    for name in ("tasks", "episodes"):
        table.add_column(name, justify="right")
    for name in ("score", "what it is"):
        table.add_column(name, overflow="fold")
    for protocol in protocols:
        numbers = str(len(protocol.ids)), str(protocol.episodes)
        table.add_row(protocol.name, *numbers, protocol.score, escape(protocol.title))
    console.print(table)


def _print_protocol_scores(protocol: Protocol, scores: Sequence[Score]) -> None:
    """Print groups and means; the published figure is bold."""
    from vla_gym.evaluation.protocols import MEAN_LENGTH
    from vla_gym.evaluation.report import format_interval, format_number, format_range, format_rate

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (f"protocol {protocol.name}", "", "95 %", "tasks", "episodes"):
        table.add_column(name, justify="left" if name.startswith("protocol") else "right")
    last = None
    for score in scores:
        if score.policy != last:
            table.add_row(f"[bold]{escape(score.policy)}[/]")
            last = score.policy
        if score.name == MEAN_LENGTH:
            value, interval = format_number(score.value, 2), format_range(score.interval, 2)
        else:
            value, interval = format_rate(score.value), format_interval(score.interval)
        tasks = f"{score.tasks} of {score.of}"
        episodes = f"{score.n} of {score.planned}"
        style = "bold" if score.headline else None
        table.add_row(f"  {score.name}", value, interval, tasks, episodes, style=style)
    console.print(table)
    if any(s.headline and (s.tasks < s.of or s.n < s.planned) for s in scores):
        console.print(f"not the whole of {protocol.name}: no score of it", style="yellow")


def _print_perturbations(records: Sequence[Record]) -> None:
    """Print one table: below each policy, success as it is and under each perturbation.

    Over all tasks that were played under perturbations.
    """
    from vla_gym.evaluation.metrics import success_interval
    from vla_gym.evaluation.report import format_interval, format_rate

    ids = {record.id for record in records if record.perturbation}
    counted = [record for record in records if record.counts and record.id in ids]
    names = dict.fromkeys(["", *(record.perturbation for record in records)])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("perturbation", overflow="fold")
    for name in ("success", "95 %", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for policy in dict.fromkeys(record.policy for record in records):
        table.add_row(f"[bold]{escape(policy)}[/]")
        for name in names:
            some = [r for r in counted if (r.policy, r.perturbation) == (policy, name)]
            solved = sum(record.outcome == "success" for record in some)
            rate = format_rate(solved / len(some) if some else None)
            interval = format_interval(success_interval(solved, len(some)))
            table.add_row(f"  {name or 'none'}", f"[bold]{rate}[/]", interval, str(len(some)))
    console.print(table)


def print_summaries(summaries: Sequence[Summary]) -> None:
    """Print one table: below each task, a row for each policy."""
    from vla_gym.evaluation.report import format_interval, format_number, format_rate

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy", overflow="fold")
    for name in ("success", "95 %", "n", "return", "steps", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    lacking = any(s.crashed or s.timeouts for s in summaries)
    if lacking:
        table.add_column("crashed or hung", justify="right", style="red")
    for s in summaries:
        if s.id != last:
            table.add_row(f"[bold]{s.id.removeprefix('VLA/')}[/]")
            last = s.id
        table.add_row(
            f"  {escape(s.policy)}",
            f"[bold]{format_rate(s.rate)}[/]",
            format_interval(s.rate_interval),
            str(s.n),
            format_number(s.mean_return),
            format_number(s.mean_length, 0),
            format_number(s.mean_seconds, 2),
            *([str(s.crashed + s.timeouts)] if s.crashed + s.timeouts else []),
        )
    console.print(table)


def print_chains(
    chains: Sequence[ChainSummary], protocols: Mapping[tuple[str, str], Mapping[str, Any]]
) -> None:
    """Print one table per task and setting, narrow enough for 80 columns."""
    from vla_gym.evaluation.report import describe_setting

    groups: dict[tuple[str, str], list[ChainSummary]] = {}
    for s in chains:
        setting = describe_setting(protocols[s.policy, s.id])
        groups.setdefault((s.id.removeprefix("VLA/"), setting), []).append(s)
    for (name, setting), group in groups.items():
        console.print(f"[bold]{name}[/]: {escape(setting)}", highlight=False)
        console.print(_chain_table(group))
    console.print(
        "SR_k: share of chains with at least k instructions followed in a row; their sum is the "
        "average length; below, bootstrap 95 % intervals over chains; the same chains for every "
        "policy"
    )


def _chain_table(chains: Sequence[ChainSummary]) -> Table:
    from vla_gym.evaluation.metrics import CHAIN_TASKS
    from vla_gym.evaluation.report import format_interval, format_number, format_range, format_rate

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy", overflow="fold")
    for name in ("n", *(f"SR_{k}" for k in range(1, CHAIN_TASKS + 1)), "length"):
        table.add_column(name, justify="right", no_wrap=True)
    if any(s.crashed for s in chains):
        table.add_column("crashed", justify="right", style="red")
    for s in chains:
        rates = s.rates or (None,) * CHAIN_TASKS
        intervals = s.rate_intervals or (None,) * CHAIN_TASKS
        table.add_row(
            f"  {escape(s.policy)}",
            str(s.n),
            *(
                f"[bold]{format_rate(rate)}[/]\n{format_interval(interval).removesuffix(' %')}"
                for rate, interval in zip(rates, intervals, strict=True)
            ),
            f"[bold]{format_number(s.mean_length, 2)}[/]\n{format_range(s.length_interval, 2)}",
            *([str(s.crashed)] if s.crashed else []),
        )
    return table
