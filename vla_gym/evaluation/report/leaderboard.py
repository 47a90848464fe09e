"""`leaderboard.html` and `leaderboard.md`: many runs, ranked where they played the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vla_gym.errors import InvalidOption, UnknownName
from vla_gym.evaluation.comparison import compare
from vla_gym.evaluation.metrics import Interval, pool, summarize, summarize_chains
from vla_gym.evaluation.protocols import get_protocol, score_by_group
from vla_gym.evaluation.records import Record
from vla_gym.evaluation.report.curves import is_training_run
from vla_gym.evaluation.report.formats import (
    DASH,
    count,
    format_interval,
    format_number,
    format_range,
    format_rate,
    name_task,
)
from vla_gym.evaluation.report.markdown import escape_cell, table
from vla_gym.evaluation.report.page import make_environment
from vla_gym.evaluation.store import RECORDS, load_records

__all__ = ["Entry", "Leaderboard", "Standing", "Standings", "rank_runs", "write_leaderboard"]

CONDITIONS = (
    *("protocol", "suite", "task", "simulator", "robot", "horizon", "control_hz", "success_rule"),
    *("terminate_on_success", "keywords", "paraphrase", "render_quality"),
)
"""Entries of a record's protocol that must be equal for two scores to stand in one table, besides
the versions of the simulator's packages. The others say what the policy sees and speaks."""

OUR_VERSIONS = ("vla-gym", "gymnasium", "numpy")
"""Packages whose versions are shown, and part no tables."""

OLD_RECORDS = "records.jsonl"


@dataclass(frozen=True)
class Entry:
    """One policy of one run.

    Attributes:
        policy: its label in the run.
        run: the run's folder, relative to the folder of runs.
        report: relative address of its report, "" where there is none.
        records: its episodes without a perturbation.
        score: mean success, 0 to 1, or instructions followed in a row, 0 to 5.
        interval: its 95 % interval.
        n, planned: episodes with an outcome, and those that the protocol asks for.
        lost: episodes without.
        date: of the last episode, YYYY-MM-DD.
        version: of vla_gym.
    """

    policy: str
    run: str
    report: str
    records: tuple[Record, ...]
    score: float
    interval: Interval | None
    n: int
    planned: int
    lost: int
    date: str
    version: str


@dataclass(frozen=True)
class Standing:
    """An entry with its rank; `shared` where another entry has the same."""

    rank: int
    shared: bool
    entry: Entry


@dataclass(frozen=True)
class Standings:
    """One table: entries that played the same tasks under the same conditions, the best first.

    Attributes:
        title: of the protocol, or what was played.
        conditions: in words.
        tasks: names.
        measure: of the score.
        rows: ranked.
    """

    title: str
    conditions: str
    tasks: tuple[str, ...]
    measure: str
    rows: tuple[Standing, ...]

    def format_score(self, entry: Entry) -> str:
        """Return an entry's score as text."""
        if self.measure == "average length":
            return format_number(entry.score, 2)
        return format_rate(entry.score)

    def format_interval(self, entry: Entry) -> str:
        """Return its interval as text."""
        if self.measure == "average length":
            return format_range(entry.interval, 2)
        return format_interval(entry.interval)


@dataclass(frozen=True)
class Leaderboard:
    """All tables, and folder -> why it is in none."""

    tables: tuple[Standings, ...]
    left_out: Mapping[str, str]


def write_leaderboard(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write `leaderboard.html` and `leaderboard.md` of the runs below a folder.

    Scores of two protocols or two simulators never share a table. Runs that cannot be read are
    listed with the reason. Links lead to the `report.html` of each run that has one.

    Args:
        folder: searched for runs at any depth; a training run's own evaluations are no entries.
        out: folder of the two files; None is `folder`.

    Returns:
        The path of `leaderboard.html`.

    Raises:
        InvalidOption: there is no run below the folder.
    """
    folder = Path(folder)
    target = folder if out is None else Path(out)
    board = rank_runs(folder, target)
    target.mkdir(parents=True, exist_ok=True)
    (target / "leaderboard.md").write_text(_render_markdown(board), encoding="utf-8")
    html = target / "leaderboard.html"
    template = make_environment().get_template("leaderboard.html.j2")
    html.write_text(template.render(board=board), encoding="utf-8")
    return html


def rank_runs(folder: Path, target: Path) -> Leaderboard:
    """Return the tables of the runs below a folder, with links relative to `target`.

    Raises:
        InvalidOption: there is no run.
    """
    groups: dict[str, list[Entry]] = {}
    left_out: dict[str, str] = {}
    for run in _find_runs(folder):
        name = run.relative_to(folder).as_posix()
        try:
            entries = _read_entries(run, name, target)
        except (InvalidOption, OSError, KeyError, TypeError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            left_out[name] = what
            continue
        if not entries:
            left_out[name] = "no episode with an outcome, or perturbed ones alone"
        for conditions, entry in entries:
            groups.setdefault(conditions, []).append(entry)
    if not groups and not left_out:
        raise InvalidOption(
            f"no run below {folder}; `vla-gym eval --out {folder}/NAME` makes one, with {RECORDS}"
        )
    tables = sorted((_rank(entries) for entries in groups.values()), key=_by_size)
    return Leaderboard(tuple(tables), left_out)


def _by_size(standings: Standings) -> tuple[int, str, str]:
    return -len(standings.rows), standings.title, standings.conditions


def _find_runs(folder: Path) -> list[Path]:
    found = []
    for place, inner, files in os.walk(folder):
        here = Path(place)
        if RECORDS in files or OLD_RECORDS in files:
            found.append(here)
            inner.clear()
        elif is_training_run(here):
            inner.clear()
        inner.sort()
    return found


def _read_entries(run: Path, name: str, target: Path) -> list[tuple[str, Entry]]:
    """Return the entries of a run, each with what names its table."""
    if not (run / RECORDS).exists():
        raise InvalidOption(f"{OLD_RECORDS} is of an older version of vla_gym: evaluate again")
    by_policy: dict[str, list[Record]] = {}
    for record in load_records(run):
        if not record.perturbation:
            by_policy.setdefault(record.policy, []).append(record)
    page = run / "report.html"
    report = Path(os.path.relpath(page, target)).as_posix() if page.exists() else ""
    entries = []
    for policy, records in by_policy.items():
        score, interval, n, planned = _score(records)
        if score is None:
            continue
        entry = Entry(
            policy=policy,
            run=name,
            report=report,
            records=tuple(records),
            score=score,
            interval=interval,
            n=n,
            planned=planned,
            lost=sum(not record.counts for record in records),
            date=max(record.date for record in records)[:10],
            version=records[0].protocol["versions"].get("vla-gym", DASH),
        )
        entries.append((_name_conditions(records), entry))
    return entries


def _name_conditions(records: Iterable[Record]) -> str:
    """Return what was played, the same text for the same conditions."""
    protocols = {record.id: record.protocol for record in records}
    return json.dumps({i: _conditions(p) for i, p in protocols.items()}, sort_keys=True)


def _conditions(protocol: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: protocol.get(name) for name in CONDITIONS}
    versions = protocol["versions"]
    return found | {"versions": {k: v for k, v in versions.items() if k not in OUR_VERSIONS}}


def _score(records: Sequence[Record]) -> tuple[float | None, Interval | None, int, int]:
    """Return a protocol's own score where it is known here, else the mean over all episodes.

    With it n, and the number of episodes that there should be.
    """
    name = records[0].protocol.get("protocol")
    if name:
        try:
            scores = score_by_group(records, get_protocol(name))
        except UnknownName:
            scores = []
        for score in scores:
            if score.headline:
                return score.value, score.interval, score.n, score.planned
    chains = summarize_chains(records)
    if len(chains) == 1 and len({record.id for record in records}) == 1:
        return chains[0].mean_length, chains[0].length_interval, chains[0].n, len(records)
    _, n, rate, interval = pool(summarize(records))
    return rate, interval, n, len(records)


def _rank(entries: Sequence[Entry]) -> Standings:
    """Return the table of entries that played the same.

    An entry's rank is one more than the number of entries that are better beyond chance: their
    intervals lie apart, or the paired test on the same episodes settles it. Ranks are shared
    otherwise. Source: Chiang et al. 2024, Chatbot Arena, arXiv:2403.04132, approximate ranking.
    """
    entries = sorted(entries, key=lambda entry: (-entry.score, entry.policy, entry.run))
    ranks = [
        1 + sum(_is_better(other, entry) for other in entries if other.score > entry.score)
        for entry in entries
    ]
    order = sorted(range(len(entries)), key=lambda k: (ranks[k], k))
    protocols = {record.id: record.protocol for record in entries[0].records}
    chains = any(r.chain_length is not None for e in entries for r in e.records)
    return Standings(
        title=_title(protocols),
        conditions=_describe_conditions(list(protocols.values())),
        tasks=tuple(sorted(map(name_task, protocols))),
        measure="average length" if chains and len(protocols) == 1 else "mean success",
        rows=tuple(Standing(ranks[k], ranks.count(ranks[k]) > 1, entries[k]) for k in order),
    )


def _is_better(one: Entry, other: Entry) -> bool:
    if one.interval and other.interval and one.interval.low > other.interval.high:
        return True
    records = [replace(record, policy="one") for record in one.records]
    records += [replace(record, policy="other") for record in other.records]
    try:
        return compare(records, "one", "other").verdict == "first is better"
    except InvalidOption:  # not the same episodes, or of another version of vla_gym
        return False


def _title(protocols: Mapping[str, Mapping[str, Any]]) -> str:
    name = next(iter(protocols.values())).get("protocol")
    if name:
        try:
            return f"{get_protocol(name).title} ({name})"
        except UnknownName:
            return name
    if len(protocols) == 1:
        return name_task(next(iter(protocols)))
    suites = dict.fromkeys(str(protocol["suite"]) for protocol in protocols.values())
    return f"{', '.join(suites)}: {count(len(protocols), 'task', 'tasks')}"


def _describe_conditions(protocols: Sequence[Mapping[str, Any]]) -> str:
    """Return the conditions in words, those that differ from task to task as such."""

    def one(values: Iterable[Any]) -> str:
        found = list(dict.fromkeys(map(str, values)))
        return " and ".join(found) if len(found) <= 2 else "by task"

    words = [
        f"Simulator {one(p['simulator'] for p in protocols)}",
        f"horizon {one(p['horizon'] for p in protocols)}",
        f"success {one(str(p['success_rule']).partition(':')[0] for p in protocols)}",
    ]
    keywords = [f"{k}={v}" for p in protocols for k, v in p["keywords"].items() if v is not None]
    words += [", ".join(dict.fromkeys(keywords))] if keywords else []
    if any(p["render_quality"] != "exact" for p in protocols):
        words.append(f"{one(p['render_quality'] for p in protocols)} rendering")
    versions = [
        f"{k} {v}" for p in protocols for k, v in p["versions"].items() if k not in OUR_VERSIONS
    ]
    return "; ".join([*words, *dict.fromkeys(versions)])


def _render_markdown(board: Leaderboard) -> str:
    lines = ["# Leaderboard", ""]
    for standings in board.tables:
        columns = ["rank", "policy", standings.measure, "95 % interval", "n"]
        rows = []
        for standing in standings.rows:
            e = standing.entry
            run = f"[{escape_cell(e.run)}](<{e.report}>)" if e.report else e.run
            rank = f"{standing.rank}{'=' if standing.shared else ''}"
            n = f"{e.n} of {e.planned}" if e.n < e.planned else str(e.n)
            score = [standings.format_score(e), standings.format_interval(e)]
            rows.append([rank, e.policy, *score, n, e.date, e.version, run])
        lines += [f"## {standings.title}", "", f"{standings.conditions}.", ""]
        lines += [*table([*columns, "date", "version", "run"], rows), ""]
    lines += [
        "`=`: a rank that is shared, for the episodes do not settle who is better. Only scores of "
        "the same tasks, rules and simulator stand in one table.",
    ]
    if board.left_out:
        lines += ["", "## Left out", ""]
        lines += [f"- `{run}`: {' '.join(why.split())}" for run, why in board.left_out.items()]
    return "\n".join(lines) + "\n"
