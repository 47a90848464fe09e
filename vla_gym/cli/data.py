"""Demonstrations: `vla-gym collect`, `replay` and `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vla_gym.cli.console import EXIT_CRASHED, EXIT_INTERRUPTED, console
from vla_gym.cli.options import CORES, Keywords, Workers, read_keywords
from vla_gym.cli.progress import EpisodeProgress
from vla_gym.errors import InvalidOption

if TYPE_CHECKING:
    from vla_gym.evaluation.records import Record

__all__ = ["collect_command", "convert_command", "replay_command"]


def collect_command(
    env: Annotated[
        list[str],
        typer.Option("--env", "-e", help="Id or glob, e.g. 'MetaWorld-*'. Repeatable."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Data set; an old one is continued.")],
    episodes: Annotated[int, typer.Option("--episodes", "-n", min=1, help="Kept per task.")] = 50,
    expert: Annotated[
        str | None,
        typer.Option(metavar="POLICY", help="Who plays. Default: the expert of each task."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, help="Of the first episode.")] = 0,
    workers: Workers = CORES,
    noise: Annotated[
        float, typer.Option(min=0.0, help="Deviation of noise on the motion; the label stays.")
    ] = 0.0,
    images: Annotated[str, typer.Option(help="png (exact) or video (H.264, lossy).")] = "png",
    keep_failures: Annotated[
        bool, typer.Option("--keep-failures", help="Keep unsolved episodes too.")
    ] = False,
    attempts: Annotated[
        int | None, typer.Option(min=1, help="Most episodes played per task. Default: 3 n.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Horizon of every task.")] = None,
    keyword: Keywords = None,
) -> None:
    """Let experts play and keep what succeeds, as a LeRobotDataset. Again: only what is missing.

    The exit code is 0, 1 if a task has fewer episodes than asked for, 2 if something asked for is
    not possible.
    """
    from vla_gym.collect import collect

    with EpisodeProgress() as progress:

        def advance(record: Record) -> None:
            if record.outcome == "success" or keep_failures:
                progress.advance(record)

        try:
            found = collect(
                env,
                episodes=episodes,
                folder=out,
                expert=expert,
                seed=seed,
                workers=workers,
                noise=noise,
                images=images,
                keep_failures=keep_failures,
                attempts=attempts,
                keywords=read_keywords(keyword or []),
                max_steps=max_steps,
                on_start=progress.start,
                on_record=advance,
            )
        except KeyboardInterrupt:
            progress.stop()
            console.print("interrupted; the same command goes on from here")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task", no_wrap=True)
    for name in ("kept", "played", "crashed"):
        table.add_column(name, justify="right")
    for env_id, count in found.counts.items():
        lacks = count.kept < episodes
        kept = f"[red]{count.kept}[/]" if lacks else str(count.kept)
        table.add_row(env_id, kept, str(count.played), str(count.crashed or ""))
    console.print(table)
    console.print(f"data set: {out}", highlight=False, soft_wrap=True)
    if not found.complete:
        raise typer.Exit(EXIT_CRASHED)


def replay_command(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Data set, or evaluation.")],
    episodes: Annotated[
        list[int] | None,
        typer.Option("--episode", "--episodes", "-n", min=0, help="Number. Repeatable."),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Data set: compare pictures too.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Data set: largest difference; 0 is bit for bit.")
    ] = 0.0,
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", help="Evaluation: of this policy alone.")
    ] = None,
    env: Annotated[
        str | None, typer.Option("--env", "-e", help="Evaluation: on these tasks alone.")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="Evaluation: folder for a video of each episode.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=16, help="Of the videos [pixels].")] = None,
    keyword: Keywords = None,
) -> None:
    """Do recorded actions again from their seeds and compare what happens, step by step.

    Of a data set or of an evaluation. The exit code is 0, 1 if an episode differs, 2 if none can be
    replayed.
    """
    from vla_gym.data import Dataset
    from vla_gym.data.layout import INFO
    from vla_gym.evaluation.store import RECORDS
    from vla_gym.replay import replay

    keywords = read_keywords(keyword or [])
    if (source / RECORDS).exists() and not (source / INFO).exists():
        if pictures or tolerance:
            raise InvalidOption(
                f"--pictures and --tolerance are for a data set; {source} is an evaluation, whose "
                "steps are compared bit for bit by their numbers"
            )
        _replay_evaluation(source, episodes, policy, env, video, size, keywords)
        return
    if policy or env or video or size:
        found = "is a data set" if (source / INFO).exists() else f"has no {RECORDS}"
        raise InvalidOption(
            f"--policy, --env, --video and --size are for an evaluation; {source} {found}"
        )
    opened, verdicts = Dataset(source, verify=True), []
    for verdict in replay(
        opened, episodes, pictures=pictures, tolerance=tolerance, keywords=keywords
    ):
        verdicts.append(verdict)
        seed = "no seed" if verdict.seed is None else f"seed {verdict.seed}"
        line = f"{verdict.episode:6d}  {verdict.id}, {seed}, {verdict.steps} steps: "
        if verdict.same:
            line += "same"
        elif verdict.same is None:
            line += f"not replayed, {verdict.what}"
        else:
            line += f"differs at step {verdict.step}: {verdict.what}"
        _print_verdict(line, verdict.same)
    played = [verdict for verdict in verdicts if verdict.same is not None]
    if not played:
        raise InvalidOption(f"no episode of {source} has a seed: there is nothing to replay")
    _finish_replay([bool(verdict.same) for verdict in played])


def _replay_evaluation(
    folder: Path,
    episodes: list[int] | None,
    policy: str | None,
    env: str | None,
    video: Path | None,
    size: int | None,
    keywords: dict[str, Any],
) -> None:
    from vla_gym.evaluation.evaluate import find_ids
    from vla_gym.evaluation.records import name_video
    from vla_gym.evaluation.reenactment import replay_record
    from vla_gym.evaluation.store import load_records

    if size is not None and video is None:
        raise InvalidOption(f"--size {size} is of a video: name its folder with --video")
    wanted = None if env is None else {name.rpartition(":")[2] for name in find_ids([env])}
    records = [
        record
        for record in load_records(folder)
        if record.counts
        and policy in (None, record.policy)
        and (wanted is None or record.id in wanted)
        and (episodes is None or record.episode in episodes)
    ]
    if not records:
        raise InvalidOption(f"{folder} has no such episode that was played to its end")
    same = []
    for record in records:
        path = None if video is None else video / name_video(record)
        found = replay_record(folder, record, video=path, size=size, keywords=keywords)
        line = f"{record.episode:6d}  {record.policy} on {record.id}, seed {record.seed}"
        line += f", {record.perturbation}" if record.perturbation else ""
        line += f", {record.length} steps: "
        line += "same" if found.step is None else f"differs at step {found.step}"
        _print_verdict(line + (f", {path}" if path else ""), found.step is None)
        same.append(found.step is None)
    _finish_replay(same)


def _print_verdict(line: str, same: bool | None) -> None:
    style = {True: None, None: "yellow", False: "red"}[same]
    console.print(line, highlight=False, markup=False, soft_wrap=True, style=style)


def _finish_replay(same: list[bool]) -> None:
    console.print(f"{sum(same)} of {len(same)} episodes are the same")
    if not all(same):
        raise typer.Exit(EXIT_CRASHED)


def convert_command(
    source: Annotated[Path, typer.Argument(help="Data set, or RLBench's stored episodes.")],
    target: Annotated[Path, typer.Argument(help="Folder; a LeRobotDataset there is added to.")],
    to: Annotated[str, typer.Option(help="lerobot, minari or npz.")] = "lerobot",
    images: Annotated[str, typer.Option(help="png (exact) or video (H.264, lossy).")] = "png",
    keyword: Annotated[
        list[str] | None,
        typer.Option(
            "--keyword",
            "-k",
            metavar="KEY=VALUE",
            help="For RLBench's episodes: beyond=split, cameras=primary, ... Repeatable.",
        ),
    ] = None,
) -> None:
    """Turn demonstrations into another form; actions stay bit for bit."""
    from vla_gym.data import convert

    count = 0

    def see() -> None:
        nonlocal count
        count += 1

    written = convert(
        source, target, to, images=images, on_episode=see, **read_keywords(keyword or [])
    )
    for path in written:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    console.print(f"{count} episodes")
