"""`vla-gym export`: an evaluation for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_gym.cli.console import console
from vla_gym.errors import InvalidOption

__all__ = ["export_command"]


def export_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Finished, or still running.")],
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="One row per episode.")
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option("--jsonl", metavar="FILE", help="One record per line.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", metavar="OUT", help="One run per policy.")
    ] = None,
    wandb: Annotated[
        str | None,
        typer.Option(
            "--wandb",
            metavar="PROJECT",
            help="One run per policy; WANDB_MODE=offline keeps them on this machine.",
        ),
    ] = None,
) -> None:
    """Write an evaluation's episodes as CSV, JSON lines, for TensorBoard or Weights & Biases."""
    from vla_gym.evaluation import export
    from vla_gym.evaluation.store import load_records

    if csv is None and jsonl is None and tensorboard is None and wandb is None:
        raise InvalidOption(
            "nothing to write: choose --csv FILE, --jsonl FILE, --tensorboard OUT or "
            "--wandb PROJECT, one or more of them"
        )
    records = load_records(folder)
    if not records:
        raise InvalidOption(f"no episodes in {folder}; `vla-gym eval --out DIR` writes them")
    written: list[str | Path] = []
    if csv is not None:
        export.write_csv(records, csv)
        written.append(csv)
    if jsonl is not None:
        export.write_jsonl(records, jsonl)
        written.append(jsonl)
    if tensorboard is not None:
        written += export.write_tensorboard(records, tensorboard)
    if wandb is not None:
        written += export.send_to_wandb(records, wandb, folder)
    for place in written:
        console.print(f"wrote {place}", highlight=False, markup=False, soft_wrap=True)
