"""`vla-gym doctor`: does a policy fit an env?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vla_gym.cli.console import EXIT_CRASHED, console
from vla_gym.cli.options import Keywords, read_keywords
from vla_gym.errors import InvalidOption

if TYPE_CHECKING:
    from vla_gym.doctor import Diagnosis

__all__ = ["doctor_command"]


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
