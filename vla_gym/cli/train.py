"""Training: `vla-gym train`, `finetune` and `rlpd`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla_gym.cli.console import EXIT_INTERRUPTED, console
from vla_gym.cli.options import (
    CORES,
    Keywords,
    make_config,
    read_keywords,
    read_settings,
    set_option,
)
from vla_gym.cli.progress import TrainingProgress, is_first_process

if TYPE_CHECKING:
    from vla_gym.train.rl import Evaluated

__all__ = ["finetune_command", "rlpd_command", "train_command"]


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
        list[str] | None, set_option("BCConfig", "ema=0.999, augmentation.shift=0.1")
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
    with TrainingProgress(config.steps) as progress:
        try:
            result = train(config, progress.advance)
        except KeyboardInterrupt:
            progress.stop()
            console.print("interrupted; the same command goes on from the last state")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    ending = "stopped early" if result.stopped_early else "finished"
    if not is_first_process():
        return
    console.print(
        f"{ending} after {result.steps} steps, best score {result.score:.3f}: {out / 'best'}",
        highlight=False,
        soft_wrap=True,
    )


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
    setting: Annotated[list[str] | None, set_option("FinetuneConfig", "train=lora")] = None,
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
    setting: Annotated[list[str] | None, set_option("RLPDConfig", "updates_per_step=4")] = None,
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
