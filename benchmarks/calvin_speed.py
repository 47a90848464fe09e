"""Control steps per second of CALVIN's play table: upstream's in PyBullet and the twin in MuJoCo.

A step is one relative action, then the reading that tasks are judged by, then the pictures. Both
tables begin each round in the same state and get the same random actions. Rounds take turns, so
that a busy machine slows both; a ratio is the median over rounds of one round's two rates. The
original is measured only if CALVIN_ENV_ROOT names a checkout of calvin_env.

    python benchmarks/calvin_speed.py --json benchmarks/results/calvin_speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # as vla-gym eval does in its workers

import numpy as np

from vla_gym.evaluation.records import describe_machine, versions_of
from vla_gym.suites.calvin.scenes import CONTROL_HZ, HOME_ROBOT_OBS, SCENES
from vla_gym.suites.calvin.table import Table
from vla_gym.twins.calvin.table import TwinTable

UPSTREAM_VIEWS = (("static", 200), ("gripper", 84))
"""Cameras and pixels of upstream's own set-up."""


class Setting(NamedTuple):
    """What is measured: the twin's rendering and the pictures of a step; steps of a round."""

    name: str
    quality: str
    views: tuple[tuple[str, int], ...]
    steps: int
    original_steps: int


SETTINGS = (
    Setting("no cameras", "fast", (), 600, 150),
    Setting("static 200 px + gripper 84 px, exact", "exact", UPSTREAM_VIEWS, 60, 20),
    Setting("static 200 px + gripper 84 px, fast", "fast", UPSTREAM_VIEWS, 120, 20),
)


def place_blocks(scene: str) -> np.ndarray[Any, Any]:
    """Return `scene_obs` with two blocks on the table and one in the cabinet."""
    found = np.zeros(24)
    spots = [*(("table", share) for share in (0.1, 0.9)), ("slider_right", 0.5)]
    for index, (surface, share) in enumerate(spots):
        low, high = np.array(SCENES[scene].areas[surface])
        found[6 + 6 * index : 8 + 6 * index] = low + share * (high - low)
        found[8 + 6 * index], found[11 + 6 * index] = 0.46, 1.5
    return found


def measure(table: Table, setting: Setting, steps: int, scene: str, seed: int) -> float:
    """Return steps per second over one round."""
    rng = np.random.default_rng(seed)
    table.reset(np.array(HOME_ROBOT_OBS), place_blocks(scene))
    actions = rng.uniform(-1, 1, (steps, 7))
    actions[:, 6] = np.sign(actions[:, 6])
    started = time.perf_counter()
    for action in actions:
        table.move(action)
        table.read()
        for camera, pixels in setting.views:
            table.render(camera, pixels, pixels)
    return steps / (time.perf_counter() - started)


def open_original(scene: str) -> Table | None:
    """Return upstream's table, or None where there is no checkout."""
    if not os.environ.get("CALVIN_ENV_ROOT"):
        return None
    from vla_gym.suites.calvin.playtable import PlayTable

    return PlayTable(scene, "tiny")


def describe(rates: list[float]) -> dict[str, Any]:
    """Return median and range of steps per second."""
    return {
        "steps_per_second": round(statistics.median(rates), 1),
        "range": [round(min(rates), 1), round(max(rates), 1)],
        "times_real_time": round(statistics.median(rates) / CONTROL_HZ, 2),
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scene", default="D", choices=sorted(SCENES))
    parser.add_argument("--repetitions", type=int, default=9, help="rounds of each setting")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()

    scene = arguments.scene
    twins = {quality: TwinTable(scene, quality) for quality in ("exact", "fast")}
    original = open_original(scene)
    rows = []
    for setting in SETTINGS:
        rates: dict[str, list[float]] = {"twin": [], "original": []}
        for repetition in range(-1, arguments.repetitions):  # the first one warms up
            seed = repetition + 1
            found = {"twin": measure(twins[setting.quality], setting, setting.steps, scene, seed)}
            if original is not None:
                steps = setting.original_steps
                found["original"] = measure(original, setting, steps, scene, seed)
            if repetition >= 0:
                for name, rate in found.items():
                    rates[name].append(rate)
        row: dict[str, Any] = {"setting": setting.name, "twin": describe(rates["twin"])}
        text = f"{setting.name:<40}twin {row['twin']['steps_per_second']:>8} steps/s"
        if original is not None:
            row["original"] = describe(rates["original"])
            ratios = [a / b for a, b in zip(rates["twin"], rates["original"], strict=True)]
            row["ratio"] = round(statistics.median(ratios), 2)
            row["ratio_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
            text += (
                f", original {row['original']['steps_per_second']:>7} steps/s, ratio "
                f"{row['ratio']} ({row['ratio_range'][0]} to {row['ratio_range'][1]})"
            )
        rows.append(row)
        print(text)
    for table in (*twins.values(), original):
        if table is not None:
            table.close()
    machine = describe_machine()
    print(machine)
    if arguments.json:
        record = {
            "benchmark": "calvin_speed",
            "command": shlex.join(["python", *sys.argv]),
            "scene": scene,
            "repetitions": arguments.repetitions,
            "rows": rows,
            "versions": versions_of(("vla-gym", "mujoco", "pybullet", "robosuite", "numpy")),
            "machine": machine,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
