"""What there is, and what runs here: `vla-gym list`, `show` and `check-rendering`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import typer
from rich.markup import escape
from rich.table import Table

from vla_gym import registration
from vla_gym.cli.console import console
from vla_gym.cli.options import Keywords, read_keywords
from vla_gym.deps import require
from vla_gym.errors import InvalidOption

if TYPE_CHECKING:
    from vla_gym.contract import SpecSheet
    from vla_gym.suite import Entry, SimulatorInfo, Suite, Task

__all__ = ["check_rendering_command", "list_command", "show_command"]


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


def check_rendering_command() -> None:
    """Check that pictures can be drawn without a screen; else name the system package."""
    from vla_gym.rendering import check_rendering

    console.print(check_rendering(), highlight=False)


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
