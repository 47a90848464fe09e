"""`vla-gym`: list, show, evaluate, report. The only module of this package that prints."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vla_gym import registration
from vla_gym.deps import require
from vla_gym.errors import InvalidOption, UnknownName

if TYPE_CHECKING:
    from vla_gym.contract import SpecSheet
    from vla_gym.doctor import Diagnosis
    from vla_gym.evaluation.evaluate import PolicySource
    from vla_gym.evaluation.metrics import ChainSummary, Summary
    from vla_gym.evaluation.records import Record
    from vla_gym.suite import Entry, SimulatorInfo, Suite, Task
    from vla_gym.train.rl import Evaluated

__all__ = ["app"]

app = typer.Typer(
    help="Robot-manipulation benchmarks as Gymnasium envs, and honest scores for policies on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

EXIT_CRASHED, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 130
CORES = os.cpu_count() or 1

Keywords = Annotated[
    list[str] | None,
    typer.Option(
        "--keyword",
        "-k",
        metavar="KEY=VALUE",
        help="A keyword of gym.make, e.g. image_size=224 or cameras=primary,wrist. Repeatable.",
    ),
]
Workers = Annotated[int, typer.Option("--workers", "-w", min=1, help="Processes.")]


def _set_option(config: str, example: str) -> Any:
    """Return the option for the fields of a config that have none of their own."""
    return typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help=f"Any other field of {config}, e.g. {example}. Repeatable.",
    )


def _plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show an error that a user can act on as one red paragraph, without a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **keywords: Any) -> None:
        try:
            command(*args, **keywords)
        except (gym.error.Error, OSError) as error:
            errors.print(f"[bold red]Error:[/] [red]{escape(str(error))}[/]", highlight=False)
            raise typer.Exit(EXIT_ERROR) from error

    return run


@app.command("eval")
@_plain_errors
def evaluate_command(
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy", "-p", help="Name, name:file, or label=name. Repeatable.", metavar="POLICY"
        ),
    ],
    env: Annotated[
        list[str],
        typer.Option("--env", "-e", help="Id or glob, e.g. 'MetaWorld-*'. Repeatable."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="An old one is continued. Default: results/DATE-TIME."),
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", "-n", min=1, help="Per pair.")] = 10,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, help="Of the first episode.")] = 0,
    workers: Workers = 1,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Horizon of every task.")] = None,
    keyword: Keywords = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Sample actions instead of the policies' modes.")
    ] = False,
    video: Annotated[bool, typer.Option(help="Film the first episode of each pair.")] = True,
    skip_mismatches: Annotated[
        bool, typer.Option("--skip-mismatches", help="Leave out pairs that do not fit.")
    ] = False,
) -> None:
    """Evaluate policies side by side: every policy plays the same seeded episodes of every task.

    The exit code is 0, 1 if an episode crashed, 2 if something asked for is not possible.
    """
    crashed = run_evaluation(
        read_policies(policy),
        env,
        out or Path("results", datetime.now().strftime("%Y-%m-%d-%H%M%S")),
        episodes=episodes,
        seed=seed,
        workers=workers,
        max_steps=max_steps,
        keywords=read_keywords(keyword or []),
        deterministic=not sample,
        video=video,
        skip_mismatches=skip_mismatches,
    )
    if crashed:
        raise typer.Exit(EXIT_CRASHED)


@app.command("list")
@_plain_errors
def list_command(
    pattern: Annotated[list[str] | None, typer.Argument(help="Ids or globs; all if none.")] = None,
) -> None:
    """List every id, what it asks for, its simulator, and whether that is installed here."""
    from vla_gym.evaluation.evaluate import find_ids

    wanted = set(find_ids(pattern)) if pattern else None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "simulator", "here"):
        table.add_column(name, no_wrap=True)
    table.add_column("instruction", overflow="fold")
    ways: dict[str, str] = {}
    for suite in registration.list_suites():
        for task in suite.tasks.values():
            env_id = suite.id(task.name)
            if wanted is None or env_id in wanted:
                info, runs = _choose(suite, task)
                status = "[green]yes[/]" if runs else "no"
                table.add_row(env_id, info.name, status, escape(task.instruction))
                if not runs:
                    how = f"pip install 'vla-gym[{info.extra}]'"
                    ways[info.name] = how if info.extra else f"vla-gym show {env_id} says how"
    console.print(table)
    for simulator, how in ways.items():
        console.print(f"to get {simulator}: {how}", highlight=False, markup=False)


@app.command("show")
@_plain_errors
def show_command(
    env_id: Annotated[str, typer.Argument(metavar="ID")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("."),
    seed: Annotated[int, typer.Option("--seed", "-s", min=0)] = 0,
    keyword: Keywords = None,
) -> None:
    """Write a picture of every camera and a contact sheet, and print what the numbers mean."""
    from vla_gym.evaluation.evaluate import find_ids

    (first, *more) = find_ids([env_id])
    if more:
        raise InvalidOption(f"{env_id!r} names {1 + len(more)} ids; show takes one, e.g. {first}")
    keywords = read_keywords(keyword or [])
    env = gym.make(first, **{"cameras": (), **keywords})
    try:
        _, info = env.reset(seed=seed)
        sheet: SpecSheet = env.unwrapped.spec_sheet  # type: ignore[attr-defined]  # ours
        _print_sheet(sheet, info["instruction"])
        for path in _save_pictures(env.unwrapped, sheet, out):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    finally:
        env.close()


@app.command("report")
@_plain_errors
def report_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: the first DIR.")] = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
) -> None:
    """Write report.html, report.md and report.csv from one or more evaluations."""
    from vla_gym.evaluation.report import write_report

    _print_report(write_report(folders, out, title))


@app.command("serve")
@_plain_errors
def serve_command(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="Name, or name:file.")],
    host: Annotated[str, typer.Option(help="The default: this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    env: Annotated[
        str | None,
        typer.Option("--env", "-e", help="Id in whose convention it acts, for one that needs it."),
    ] = None,
    dialect: Annotated[
        str, typer.Option(help="Keys and forms of the clients: vla_gym or libero.")
    ] = "vla_gym",
    keyword: Keywords = None,
) -> None:
    """Serve a policy to others' programs in the openpi protocol, until Ctrl-C."""
    from vla_gym.policy import make_policy
    from vla_gym.serving import serve

    made = make_policy(policy)
    sheet = None if env is None else _sheet_for(made, env, read_keywords(keyword or []))
    if keyword and env is None:
        raise InvalidOption(f"--keyword {keyword[0]} is of an env: name it with --env")
    with contextlib.suppress(KeyboardInterrupt):
        serve(
            made,
            host=host,
            port=port,
            sheet=sheet,
            dialect=dialect,
            label=policy,
            on_ready=lambda address: console.print(
                f"serving {policy} at {address}", highlight=False, markup=False, soft_wrap=True
            ),
        )


@app.command("doctor")
@_plain_errors
def doctor_command(
    policy: Annotated[str, typer.Option("--policy", "-p", help="Name, or name:file.")],
    env: Annotated[str, typer.Option("--env", "-e", help="Id.")],
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            "-r",
            help="A policy that acts rightly there; expert: the task's own; none: no comparison.",
        ),
    ] = "expert",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="For JSON and pictures.")] = None,
    steps: Annotated[int, typer.Option(min=50, help="To look at; fewer for a slow policy.")] = 300,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0)] = 0,
    keyword: Keywords = None,
) -> None:
    """Probe a policy and an env for conventions that do not fit: signs, frames, pictures, units.

    The exit code is 0, 1 if a probe failed, 2 if something asked for is not possible.
    """
    from vla_gym.doctor import diagnose, save_diagnosis
    from vla_gym.evaluation.evaluate import find_ids

    (env_id, *more) = find_ids([env])
    if more:
        raise InvalidOption(f"{env!r} names {1 + len(more)} ids; doctor takes one, e.g. {env_id}")
    with console.status(f"examining {policy} in {env_id}"):
        diagnosis = diagnose(
            policy,
            env_id,
            reference=None if reference == "none" else reference,
            keywords=read_keywords(keyword or []),
            steps=steps,
            seed=seed,
        )
    _print_diagnosis(diagnosis)
    if out is not None:
        for path in save_diagnosis(diagnosis, out):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if diagnosis.failed:
        raise typer.Exit(EXIT_CRASHED)


@app.command("collect")
@_plain_errors
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

    with _Progress() as progress:

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


@app.command("train")
@_plain_errors
def train_command(
    data: Annotated[
        list[Path], typer.Option("--data", "-d", help="Data set (vla-gym collect). Repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run; an old one is continued.")],
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="What is trained: a name, or a checkpoint.")
    ] = "vla",
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 10_000,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr")] = 5e-4,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0)] = 0,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="KEY=VALUE",
            help="Of a new policy's config, e.g. vision=cnn or chunk=8. Repeatable.",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None, _set_option("BCConfig", "ema=0.999, augmentation.shift=0.1")
    ] = None,
    eval_every: Annotated[int, typer.Option(min=0, help="Steps; 0: at the end alone.")] = 0,
    eval_episodes: Annotated[int, typer.Option(min=0, help="Per task; 0: none.")] = 20,
    workers: Annotated[
        int, typer.Option("--workers", "-w", min=1, help="Processes of the evaluation.")
    ] = CORES,
    keyword: Keywords = None,
) -> None:
    """Behaviour cloning: train a policy on demonstrations. Again: go on with the run.

    On several GPUs: accelerate launch -m vla_gym.cli train ... The exit code is 0, or 2 if
    something asked for is not possible.
    """
    from vla_gym.train.bc import BCConfig, train

    settings = read_settings(setting or [])
    fields: dict[str, Any] = {
        "data": tuple(map(str, data)),
        "out": str(out),
        "policy": policy,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "model": read_keywords(model or []),
        "eval_every": eval_every,
        "eval_episodes": eval_episodes,
        "eval_workers": workers,
        "eval_keywords": read_keywords(keyword or []),
    }
    config = make_config(BCConfig, {**fields, **settings})
    with _TrainingProgress(config.steps) as progress:
        try:
            result = train(config, progress.advance)
        except KeyboardInterrupt:
            progress.stop()
            console.print("interrupted; the same command goes on from the last state")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    ending = "stopped early" if result.stopped_early else "finished"
    if not _is_first_process():
        return
    console.print(
        f"{ending} after {result.steps} steps, best score {result.score:.3f}: {out / 'best'}",
        highlight=False,
        soft_wrap=True,
    )


@app.command("replay")
@_plain_errors
def replay_command(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET")],
    episodes: Annotated[
        list[int] | None, typer.Option("--episodes", "-n", min=0, help="Number. Repeatable.")
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Compare pictures too.")] = False,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Largest difference of numbers; 0 is bit for bit.")
    ] = 0.0,
    keyword: Keywords = None,
) -> None:
    """Do a data set's actions again from the stored seeds and compare what happens, step by step.

    The exit code is 0, 1 if an episode differs, 2 if none can be replayed.
    """
    from vla_gym.data import Dataset
    from vla_gym.replay import replay

    opened, verdicts = Dataset(dataset, verify=True), []
    keywords = read_keywords(keyword or [])
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
        style = {True: None, None: "yellow", False: "red"}[verdict.same]
        console.print(line, highlight=False, markup=False, soft_wrap=True, style=style)
    played = [verdict for verdict in verdicts if verdict.same is not None]
    if not played:
        raise InvalidOption(f"no episode of {dataset} has a seed: there is nothing to replay")
    same = sum(bool(verdict.same) for verdict in played)
    console.print(f"{same} of {len(played)} episodes are the same")
    if same < len(played):
        raise typer.Exit(EXIT_CRASHED)


@app.command("convert")
@_plain_errors
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


@app.command("check-rendering")
@_plain_errors
def check_rendering_command() -> None:
    """Check that pictures can be drawn without a screen; else name the system package."""
    from vla_gym.rendering import check_rendering

    console.print(check_rendering(), highlight=False)


@app.command("demo")
@_plain_errors
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


@app.command("rlpd")
@_plain_errors
def rlpd_command(
    env: Annotated[
        list[str],
        typer.Option("--env", "-e", help="Id, glob or benchmark, e.g. ML10-train. Repeatable."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run; an old one is continued.")],
    demonstrations: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="Data set (vla-gym collect -k state=true)."),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option("--test", help="Tasks reported apart, e.g. ML10-test. Repeatable."),
    ] = None,
    encoder: Annotated[
        str, typer.Option(metavar="POLICY", help="See its features, e.g. vla:RUN/best.")
    ] = "",
    algorithm: Annotated[str, typer.Option(help="SAC or TD3.")] = "SAC",
    reward: Annotated[str, typer.Option(help="sparse (1 where solved) or native.")] = "sparse",
    steps: Annotated[int, typer.Option(min=1, help="Of the envs, all together.")] = 30_000,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0)] = 0,
    setting: Annotated[list[str] | None, _set_option("RLPDConfig", "updates_per_step=4")] = None,
    keyword: Keywords = None,
) -> None:
    """SAC or TD3 from demonstrations, which are half of every batch. Again: go on with the run.

    Evaluate with: vla-gym eval -p sb3:OUT/best.zip. The exit code is 0, or 2 if something asked
    for is not possible.
    """
    from vla_gym.train.rlpd import RLPDConfig, train_rlpd

    fields: dict[str, Any] = {
        "ids": tuple(env),
        "demonstrations": str(demonstrations or ""),
        "test_ids": tuple(test or ()),
        "encoder": encoder,
        "algorithm": algorithm,
        "reward": reward,
        "steps": steps,
        "seed": seed,
        "keywords": read_keywords(keyword or []),
    }
    config = make_config(RLPDConfig, {**fields, **read_settings(setting or [])})
    try:
        result = train_rlpd(config, out, _print_evaluation)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from the last evaluation")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    console.print(f"wrote {result.best}", highlight=False, soft_wrap=True)


@app.command("finetune")
@_plain_errors
def finetune_command(
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", "-c", help="What to begin from, e.g. vla:RUN/best.")
    ],
    env: Annotated[
        list[str], typer.Option("--env", "-e", help="Id, glob or benchmark. Repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run; an old one is continued.")],
    algorithm: Annotated[str, typer.Option(help="ppo or grpo.")] = "ppo",
    steps: Annotated[int, typer.Option(min=1, help="Control steps, of all envs.")] = 300_000,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0)] = 0,
    envs: Annotated[int, typer.Option(min=1, help="How many there are.")] = 16,
    setting: Annotated[list[str] | None, _set_option("FinetuneConfig", "train=lora")] = None,
    keyword: Keywords = None,
) -> None:
    """Reinforcement learning of a VLA, from a checkpoint. Again: go on with the run.

    Evaluate with: vla-gym eval -p OUT/best. The exit code is 0, or 2 if something asked for is not
    possible.
    """
    from vla_gym.train.rl import FinetuneConfig, Progress, finetune

    fields: dict[str, Any] = {
        "checkpoint": checkpoint,
        "ids": tuple(env),
        "out": str(out),
        "algorithm": algorithm,
        "steps": steps,
        "seed": seed,
        "envs": envs,
        "keywords": read_keywords(keyword or []),
    }
    config = make_config(FinetuneConfig, {**fields, **read_settings(setting or [])})
    with console.status("making envs") as status:

        def advance(progress: Progress) -> None:
            status.update(f"step {progress.step:,} of {progress.steps:,}")
            if progress.evaluated is not None:
                _print_evaluated(progress.evaluated)

        try:
            result = finetune(config, advance)
        except KeyboardInterrupt:
            status.stop()
            console.print("interrupted; the same command goes on from the last evaluation")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    console.print(f"wrote {result.folder / 'best'}", highlight=False, soft_wrap=True)


def _print_evaluated(found: Evaluated) -> None:
    from vla_gym.evaluation.report import format_interval, format_rate

    line = (
        f"step {found.step:,}: {format_rate(found.rate)} solved, "
        f"{format_interval(found.interval)}, n = {found.n}"
    )
    if len(found.rates) > 1:
        tasks = (f"{i.removeprefix('VLA/')} {format_rate(r)}" for i, r in found.rates.items())
        line += f" ({', '.join(tasks)})"
    console.print(line, highlight=False)


def _print_evaluation(numbers: Mapping[str, Any]) -> None:
    """Print a line of metrics if it has an evaluation in it."""
    from vla_gym.evaluation.report import format_rate

    rates = [
        f"{name} {format_rate(numbers[f'{prefix}success'])}"
        for name, prefix in (("eval", ""), ("test", "test/"))
        if f"{prefix}success" in numbers
    ]
    if rates:
        console.print(
            f"step {numbers['step']}, {numbers['time']:.0f} s: {', '.join(rates)} solved",
            highlight=False,
        )


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("probe", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("evidence", overflow="fold")
    colours = {"pass": "green", "fail": "bold red", "unknown": "yellow"}
    for f in diagnosis.findings:
        verdict = f"[{colours.get(f.verdict, 'dim')}]{f.verdict}[/]"
        text = escape(f.evidence)
        if f.fault is not None:
            text += f"\n[bold]{escape(f.fault)}[/]: {escape(f.remedy or '')}"
        table.add_row(f.probe, verdict, text)
    console.print(table)
    against = diagnosis.reference or "no reference"
    console.print(
        f"{diagnosis.policy} in {diagnosis.env_id}, against {against}: "
        f"{', '.join(diagnosis.faults) or 'no fault found'} "
        f"({diagnosis.steps} steps, {diagnosis.seconds:.0f} s)",
        highlight=False,
        markup=False,
    )


def run_evaluation(
    policies: dict[str, PolicySource],
    ids: Sequence[str],
    out: Path,
    *,
    title: str | None = None,
    **options: Any,
) -> int:
    """Evaluate with a progress bar, print the summary, write the report; return the crashes."""
    for module in ("scipy", "matplotlib", "jinja2", "imageio_ffmpeg"):
        require(module, "eval", "vla-gym eval")  # before an hour of episodes, not after
    from vla_gym.evaluation.evaluate import evaluate
    from vla_gym.evaluation.records import load_records

    with _Progress() as progress:
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
    return sum(record.outcome == "crashed" for record in found.records)


def read_policies(items: Sequence[str]) -> dict[str, PolicySource]:
    """Return label -> name of each `name`, `name:file` or `label=name`."""
    found: dict[str, PolicySource] = {}
    for item in items:
        match = re.fullmatch(r"([^=:/]+)=(.+)", item)
        label, name = match.groups() if match else (item, item)
        if label in found:
            raise InvalidOption(
                f"two policies are called {label!r}; give one a label: --policy label={name}"
            )
        found[label] = name
    return found


def read_keywords(items: Sequence[str]) -> dict[str, Any]:
    """Return the keywords of `key=value` items; values are Python literals, else text.

    `true`, `false` and `none` count as literals, `a,b` as a tuple.
    """
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise InvalidOption(f"{item!r} is not key=value, e.g. image_size=224")
        found[key] = _read_value(value)
    return found


def read_settings(items: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a config that KEY=VALUE and GROUP.KEY=VALUE name."""
    found: dict[str, Any] = {}
    for key, value in read_keywords(items).items():
        group, dot, name = key.partition(".")
        if dot:
            found.setdefault(group, {})[name] = value
        else:
            found[key] = value
    return found


def make_config(cls: Any, values: Mapping[str, Any]) -> Any:
    """Return a config dataclass of plain values; its own dataclasses are made of mappings.

    Raises:
        UnknownName: a field that it does not have.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    found = {}
    for name, value in values.items():
        if name not in known:
            raise UnknownName("setting", name, sorted(known), cls.__name__)
        inner = known[name].default_factory
        if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            value = make_config(inner, value)
        if isinstance(value, str) and isinstance(known[name].default, tuple):
            value = (value,)  # one of what may be several
        found[name] = tuple(value) if isinstance(value, list) else value
    return cls(**found)


def _read_value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(filter(None, text.split(","))) if "," in text else text


def _sheet_for(policy: Any, pattern: str, keywords: dict[str, Any]) -> SpecSheet:
    """Return the spec sheet of an env made for the policy; no simulator starts."""
    from vla_gym.evaluation.evaluate import find_ids

    (first, *more) = find_ids([pattern])
    if more:
        raise InvalidOption(f"{pattern!r} names {1 + len(more)} ids; choose one, such as {first}")
    spec = getattr(policy, "spec", None)
    env = gym.make(first, **{**(spec.env_keywords() if spec else {}), **keywords})
    try:
        return env.unwrapped.spec_sheet  # type: ignore[attr-defined]  # ours
    finally:
        env.close()


class _Progress:
    """A progress bar with rate and remaining time, and the outcomes so far."""

    def __init__(self) -> None:
        from rich import progress as bars

        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(),
            bars.TextColumn("[red]{task.fields[crashes]}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("making envs", total=None, rate="", crashes="")
        self._crashed = self._done = 0

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def stop(self) -> None:
        self._bar.stop()

    def start(self, total: int, finished: int) -> None:
        if finished:
            self._bar.console.print(f"{finished} of {total} episodes were finished before")
        self._bar.reset(
            self._task, total=total - finished, description="episodes", rate="", crashes=""
        )

    def advance(self, record: Record) -> None:
        self._done += 1
        self._crashed += record.outcome == "crashed"
        elapsed = self._bar.tasks[0].elapsed or 0.0
        self._bar.update(
            self._task,
            advance=1,
            rate=f"{self._done / elapsed:.1f}/s" if elapsed else "",
            crashes=f"{self._crashed} crashed" if self._crashed else "",
        )


class _TrainingProgress:
    """A progress bar of updates, with the loss; of several processes, the first one's."""

    def __init__(self, steps: int) -> None:
        from rich import progress as bars

        self._bar = bars.Progress(
            bars.TextColumn("training"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[numbers]}"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not _is_first_process(),
        )
        self._task = self._bar.add_task("", total=steps, numbers="")

    def __enter__(self) -> _TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def stop(self) -> None:
        self._bar.stop()

    def advance(self, step: int, numbers: Mapping[str, Any]) -> None:
        self._bar.update(self._task, completed=step)
        if "loss" in numbers:
            self._bar.update(self._task, numbers=f"loss {numbers['loss']:.4g}")


def _is_first_process() -> bool:
    """Return whether this is the first of the processes that `accelerate launch` has started."""
    return os.environ.get("RANK", "0") == "0"


def _finish(records: Iterable[Record], out: Path, title: str | None) -> None:
    from vla_gym.evaluation.metrics import summarize, summarize_chains
    from vla_gym.evaluation.report import write_report

    records = list(records)
    chains = summarize_chains(records)
    chain_ids = {s.id for s in chains}
    if summaries := [s for s in summarize(records) if s.id not in chain_ids]:
        _print_summaries(summaries)
    if chains:
        settings = {(r.policy, r.id): r.protocol for r in records}
        _print_chains(chains, settings)
    _print_report(write_report([out], title=title))


def _print_summaries(summaries: Sequence[Summary]) -> None:
    from vla_gym.evaluation.report import format_interval, format_number, format_rate

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy", overflow="fold")
    for name in ("success", "95 %", "n", "return", "steps", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    if any(s.crashed for s in summaries):
        table.add_column("crashed", justify="right", style="red")
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
            *([str(s.crashed)] if s.crashed else []),
        )
    console.print(table)
    console.print("success at any step; Wilson 95 % intervals; the same seeds for every policy")


def _print_chains(
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


def _print_report(path: Path) -> None:
    console.print(f"report: {path}", highlight=False, soft_wrap=True)


def _choose(suite: Suite, task: Task) -> tuple[SimulatorInfo, bool]:
    """Return the simulator that would run the task here, else the last that could; and whether."""
    from vla_gym.env import find_obstacle

    able = [info for info in suite.simulators if info.tasks is None or task.name in info.tasks]
    for info in able:
        if find_obstacle(suite, info) is None:
            return info, True
    return able[-1], False


def _print_sheet(sheet: SpecSheet, instruction: str) -> None:
    console.print(f"[bold]{sheet.id}[/]  {escape(instruction)}", highlight=False)
    facts = Table(box=None, pad_edge=False, show_header=False)
    for name in ("simulator", "robot", "control_hz", "horizon", "success", "reward"):
        facts.add_row(name, escape(str(getattr(sheet, name))))
    facts.add_row("terminates", "on success" if sheet.terminate_on_success else "at the horizon")
    facts.add_row("gripper", sheet.gripper)
    facts.add_row("cameras", ", ".join(sheet.all_cameras))
    for name, value in sheet.keywords.items():
        facts.add_row(name, escape(str(value)))
    console.print(facts)
    _print_entries(f"action ({sheet.action_mode})", sheet.action, "+1 means")
    _print_entries(f"proprio ({sheet.proprio_form})", sheet.proprio, "scale")


def _print_entries(title: str, entries: Sequence[Entry], scale: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for name in ("#", "entry", scale, "unit", "frame", "note"):
        table.add_column(name)
    for index, entry in enumerate(entries):
        values = (str(index), entry.name, f"{entry.scale:g}", entry.unit, entry.frame, entry.note)
        table.add_row(*map(escape, values))
    console.print(table)


def _save_pictures(env: Any, sheet: SpecSheet, out: Path) -> list[Path]:
    """Write one PNG a camera, and all of them side by side with their names."""
    image = require("PIL.Image", "eval", "vla-gym show")
    draw = require("PIL.ImageDraw", "eval", "vla-gym show")
    out.mkdir(parents=True, exist_ok=True)
    stem = sheet.id.removeprefix("VLA/")
    size, strip = 256, 18
    contact = image.new("RGB", (size * len(sheet.all_cameras), size + strip), "white")
    paths = []
    for column, camera in enumerate(sheet.all_cameras):
        picture = image.fromarray(env.render_camera(camera, size))
        paths.append(out / f"{stem}-{camera}.png")
        picture.save(paths[-1])
        contact.paste(picture, (column * size, strip))
        draw.Draw(contact).text((column * size + 5, 3), camera, fill="black")
    paths.append(out / f"{stem}-all.png")
    contact.save(paths[-1])
    return paths


if __name__ == "__main__":
    sys.exit(app())
