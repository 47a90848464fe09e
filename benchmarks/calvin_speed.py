"""CALVIN's play table: upstream's in PyBullet and the twin in MuJoCo.

A step is one relative action, then the reading that tasks are judged by, then the pictures. Both
tables begin each turn in the same state and get the same random actions. CALVIN acts at 30 Hz, so
33 ms a step are real time. The original is measured only if CALVIN_ENV_ROOT names a checkout of
calvin_env; otherwise the twin stands alone.

    python benchmarks/calvin_speed.py --json benchmarks/results/calvin_speed.json
"""

from __future__ import annotations

from harness import Found, Ratio, main, need, take_turns  # first: it limits threads

# isort: split
import functools
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vla_gym.suites.calvin.scenes import HOME_ROBOT_OBS, SCENES

if TYPE_CHECKING:
    from vla_gym.suites.calvin.table import Table

SCENE = "D"
UPSTREAM_VIEWS = (("static", 200), ("gripper", 84))
"""Cameras and pixels of upstream's own set-up."""


class Setting(NamedTuple):
    """What is measured: the twin's rendering and the pictures of a step; steps of a turn."""

    quality: str
    views: tuple[tuple[str, int], ...]
    steps: dict[str, int]


SETTINGS = {
    "no camera": Setting("fast", (), {"twin": 600, "original": 150}),
    "static 200 px + gripper 84 px, exact": Setting(
        "exact", UPSTREAM_VIEWS, {"twin": 60, "original": 20}
    ),
    "static 200 px + gripper 84 px, fast": Setting(
        "fast", UPSTREAM_VIEWS, {"twin": 120, "original": 20}
    ),
}


def place_blocks() -> np.ndarray[Any, Any]:
    """Return `scene_obs` with two blocks on the table and one in the cabinet."""
    found = np.zeros(24)
    spots = [*(("table", share) for share in (0.1, 0.9)), ("slider_right", 0.5)]
    for index, (surface, share) in enumerate(spots):
        low, high = np.array(SCENES[SCENE].areas[surface])
        found[6 + 6 * index : 8 + 6 * index] = low + share * (high - low)
        found[8 + 6 * index], found[11 + 6 * index] = 0.46, 1.5
    return found


def play(table: Table, setting: Setting, steps: int, turn: int) -> float:
    """Return the time of a step over one turn [ms]."""
    rng = np.random.default_rng(turn + 1)
    table.reset(np.array(HOME_ROBOT_OBS), place_blocks())
    actions = rng.uniform(-1, 1, (steps, 7))
    actions[:, 6] = np.sign(actions[:, 6])
    started = time.perf_counter()
    for action in actions:
        table.move(action)
        table.read()
        for camera, pixels in setting.views:
            table.render(camera, pixels, pixels)
    return 1000 * (time.perf_counter() - started) / steps


@functools.cache
def open_original() -> Table | None:
    """Return upstream's table, one for all cases, or None where there is no checkout."""
    if not os.environ.get("CALVIN_ENV_ROOT"):
        return None
    from vla_gym.suites.calvin.playtable import PlayTable

    return PlayTable(SCENE, "tiny")


def compare(setting: Setting, turns: int) -> Found:
    """Compare the twin with the original, where that is at hand."""
    need("CALVIN", "calvin-twin")
    from vla_gym.twins.calvin.table import TwinTable

    tables: dict[str, Table] = {"twin": TwinTable(SCENE, setting.quality)}
    if (original := open_original()) is not None:
        tables["original"] = original
    sides = {
        name: functools.partial(play, table, setting, setting.steps[name])
        for name, table in tables.items()
    }
    values = take_turns(sides, turns)
    tables["twin"].close()
    return Found(values, "ms a step", [Ratio("twin", "original")] if original else [])


CASES = {name: functools.partial(compare, setting) for name, setting in SETTINGS.items()}


if __name__ == "__main__":
    status = main("calvin_speed", __doc__, CASES, turns=9, quick=3)
    if (table := open_original()) is not None:
        table.close()
    sys.exit(status)
