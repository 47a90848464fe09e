"""Scores: `vla-gym eval`, `report`, `compare`, `leaderboard`, `merge`, `protocols` and `demo`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla_gym.cli.console import EXIT_CRASHED, EXIT_INTERRUPTED, console
from vla_gym.cli.options import CORES, Keywords, Workers, read_keywords, read_policies
from vla_gym.cli.progress import EpisodeProgress
from vla_gym.cli.tables import print_comparisons, print_protocols, print_scores
from vla_gym.deps import require
from vla_gym.errors import InvalidOption, UnknownName

if TYPE_CHECKING:
    from vla_gym.evaluation.evaluate import PolicySource
    from vla_gym.evaluation.records import Record

__all__ = [
    "compare_command",
    "demo_command",
    "evaluate_command",
    "leaderboard_command",
    "merge_command",
    "protocols_command",
    "report_command",
    "run_evaluation",
]


def evaluate_command(
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy", "-p", help="Name, name:file, or label=name. Repeatable.", metavar="POLICY"
        ),
    ],
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", help="Id or glob, e.g. 'MetaWorld-*'. Repeatable."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="A published evaluation, e.g. metaworld-mt50 (vla-gym protocols)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="An old one is continued. Default: results/DATE-TIME."),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option("--episodes", "-n", min=1, help="Per pair. Default: the protocol's, or 10."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", "-s", min=0, help="Of the first episode. Default: 0.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Horizon of every task.")] = None,
    success: Annotated[
        str | None, typer.Option(help="any: solved after any step (default); last: after the last.")
    ] = None,
    keyword: Keywords = None,
    perturbations: Annotated[
        list[str] | None,
        typer.Option(
            "--perturb",
            metavar="NAME[=STRENGTH],...",
            help="Again under each: camera, light, black, instruction, action-noise, latency.",
        ),
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Sample actions instead of the policies' modes.")
    ] = False,
    video: Annotated[bool, typer.Option(help="Film the first episode of each pair.")] = True,
    failures: Annotated[int, typer.Option(min=0, help="Of each pair, failures filmed.")] = 2,
    workers: Workers = 1,
    batch: Annotated[
        int, typer.Option(min=1, help="Most envs that one call of a shared policy serves.")
    ] = 1,
    timeout: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds without a step: it is killed. 0: never."),
    ] = 600.0,
    retries: Annotated[
        int, typer.Option(min=0, help="How often an episode that crashed is begun again.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Spread the workers over a Ray cluster; auto, local."),
    ] = None,
    gpus: Annotated[float, typer.Option(min=0.0, help="With --ray: for each policy.")] = 0.0,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="Play one of N parts, 1/N to N/N.")
    ] = None,
    skip_mismatches: Annotated[
        bool, typer.Option("--skip-mismatches", help="Leave out pairs that do not fit.")
    ] = False,
) -> None:
    """Evaluate policies side by side: every policy plays the same seeded episodes of every task.

    The same command on the same --out goes on where it was interrupted. The exit code is 0, 1 if an
    episode crashed or hung, 2 if something asked for is not possible.
    """
    if env is None and protocol is None:
        raise InvalidOption(
            "what to play: name tasks with --env, such as -e 'MetaWorld-*' (`vla-gym list` has all "
            "ids), or a published evaluation with --protocol (`vla-gym protocols`)"
        )
    lacking = run_evaluation(
        read_policies(policy),
        env,
        out or Path("results", datetime.now().strftime("%Y-%m-%d-%H%M%S")),
        protocol=protocol,
        episodes=10 if episodes is None and protocol is None else episodes,
        seed=seed,
        max_steps=max_steps,
        success=success,
        keywords=read_keywords(keyword or []),
        perturbations=[name for item in perturbations or () for name in item.split(",")],
        deterministic=not sample,
        video=video,
        failures=failures if video else 0,
        workers=workers,
        batch=batch,
        timeout=timeout or None,
        retries=retries,
        ray=ray,
        gpus=gpus,
        shard=None if shard is None else _read_shard(shard),
        skip_mismatches=skip_mismatches,
    )
    if lacking:
        raise typer.Exit(EXIT_CRASHED)


def report_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: the first DIR.")] = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    curves: Annotated[
        list[Path] | None,
        typer.Option("--curve", help="Training run whose learning curve is shown. Repeatable."),
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="And report.pdf, by a browser.")] = False,
) -> None:
    """Write report.html, report.md, report.csv and episodes.csv from one or more evaluations."""
    from vla_gym.evaluation.report import write_pdf, write_report

    page = write_report(folders, out, title, curves or ())
    _print_report(page)
    if pdf:
        _print_report(write_pdf(page, page.with_suffix(".pdf")))


def leaderboard_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="With runs in it, at any depth.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: DIR.")] = None,
) -> None:
    """Rank the policies of all runs below a folder: leaderboard.html and leaderboard.md."""
    from vla_gym.evaluation.report import write_leaderboard

    path = write_leaderboard(folder, out)
    console.print(f"leaderboard: {path}", highlight=False, soft_wrap=True)


def merge_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the whole.")],
) -> None:
    """Unite the shards of an evaluation; the result can be continued and reported."""
    from vla_gym.evaluation.store import merge

    number = merge(folders, out)
    console.print(f"{out} holds {number} episodes", highlight=False, soft_wrap=True)


def compare_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...")],
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", "-p", help="Two labels; every two of all by default."),
    ] = None,
    level: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the verdict.")] = 0.05,
) -> None:
    """Compare policies on the episodes that both have played: difference, test, verdict."""
    from vla_gym.evaluation.store import load_records

    found = (record for folder in folders for record in load_records(folder))
    records = [record for record in found if not record.perturbation]
    labels = policies or list(dict.fromkeys(record.policy for record in records))
    if len(labels) < 2:
        raise InvalidOption(
            f"{', '.join(map(str, folders))}: policies {labels}; it takes two to compare"
        )
    known = {record.policy for record in records}
    if unknown := [label for label in labels if label not in known]:
        raise UnknownName("policy", unknown[0], known, ", ".join(map(str, folders)))
    print_comparisons(records, labels, level)


def protocols_command() -> None:
    """List the published evaluations that `vla-gym eval --protocol` plays."""
    from vla_gym.evaluation.protocols import list_protocols

    print_protocols(list_protocols())


def demo_command(
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("results/demo"),
    episodes: Annotated[int, typer.Option("--episodes", "-n", min=1)] = 10,
    train_seconds: Annotated[int, typer.Option(min=1, help="For the SAC agent.")] = 60,
    workers: Workers = CORES,
) -> None:
    """Train a small agent, evaluate it beside experts and chance, and leave a report."""
    from vla_gym import demo

    agent = out / "sac-reach.zip"
    if agent.exists():
        console.print(f"using the agent in {agent}", highlight=False)
    else:
        with console.status(f"training SAC on {demo.TRAIN_ID} for {train_seconds} s"):
            demo.train_demo_agent(agent, train_seconds)
    run_evaluation(
        demo.policies(agent),
        demo.IDS,
        out,
        episodes=episodes,
        workers=workers,
        skip_mismatches=True,
        title=demo.TITLE,
    )


def run_evaluation(
    policies: dict[str, PolicySource],
    ids: Sequence[str] | None,
    out: Path,
    *,
    title: str | None = None,
    **options: Any,
) -> int:
    """Evaluate with a progress bar, print the summary, write the report.

    Returns:
        How many episodes have no outcome.
    """
    for module in ("scipy", "matplotlib", "jinja2", "imageio_ffmpeg"):
        require(module, "eval", "vla-gym eval")  # before an hour of episodes, not after
    from vla_gym.evaluation.evaluate import evaluate
    from vla_gym.evaluation.store import load_records

    with EpisodeProgress() as progress:
        try:
            found = evaluate(
                policies,
                ids,
                folder=out,
                on_start=progress.start,
                on_record=progress.advance,
                **options,
            )
        except KeyboardInterrupt:
            progress.stop()
            console.print("interrupted; the same command goes on from here")
            if records := load_records(out):
                _finish(records, out, title)
            raise typer.Exit(EXIT_INTERRUPTED) from None
    _finish(found.records, out, title)
    for policy, env_id in found.mismatches:
        console.print(f"left out: {policy} does not fit {env_id}", highlight=False)
    return sum(not record.counts for record in found.records)


def _read_shard(text: str) -> tuple[int, int]:
    """Return (k, n) as `evaluate` takes it, counted from 0, of `"K/N"`, counted from 1."""
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise InvalidOption(f"--shard {text!r} must be K/N, such as 2/8: the second of eight parts")
    return int(k) - 1, int(n)


def _finish(records: Iterable[Record], out: Path, title: str | None) -> None:
    from vla_gym.evaluation.report import write_report

    print_scores(list(records))
    _print_report(write_report([out], title=title))


def _print_report(path: Path) -> None:
    console.print(f"report: {path}", highlight=False, soft_wrap=True)
