"""The RLBench twin in one process: without cameras, and with two, exact and fast; and its reset.

Random actions; every turn is an episode of 50 steps that begins with a reset, which is timed apart.
An env acts at 20 Hz, so 50 ms a step are real time. The twin has no upstream; the original,
CoppeliaSim, is not measured.

    python benchmarks/twin_speed.py --json benchmarks/results/twin_speed.json
"""

from __future__ import annotations

from harness import Found, Ratio, main, need, spread, take_turns  # first: it limits threads

# isort: split
import functools
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np

import vla_gym  # noqa: F401  registers the ids

TASKS = ("ReachTarget", "OpenDrawer", "StackBlocks")
STEPS = 50
TWO_VIEWS = {"cameras": ("primary", "wrist"), "image_size": 128}
SETTINGS: dict[str, dict[str, Any]] = {
    "no camera": {"cameras": ()},
    "fast": {**TWO_VIEWS, "render_quality": "fast"},
    "exact": {**TWO_VIEWS, "render_quality": "exact"},
}


def compare(task: str, turns: int) -> Found:
    """Compare the settings on one task."""
    need("RLBench", "rlbench-twin")
    envs = {
        name: gym.make(
            f"VLA/RLBench-{task}-v0",
            simulator="rlbench-twin",
            terminate_on_success=False,
            disable_env_checker=True,
            **keywords,
        ).unwrapped
        for name, keywords in SETTINGS.items()
    }
    resets: dict[str, list[float]] = {name: [] for name in envs}

    def play(name: str, turn: int) -> float:
        rng = np.random.default_rng(turn + 1)
        started = time.perf_counter()
        envs[name].reset(seed=turn + 1)
        if turn >= 0:
            resets[name].append(1000 * (time.perf_counter() - started))
        started = time.perf_counter()
        for _ in range(STEPS):
            envs[name].step(rng.uniform(-1, 1, 7).astype(np.float32))
        return 1000 * (time.perf_counter() - started) / STEPS

    values = take_turns({name: functools.partial(play, name) for name in envs}, turns)
    for env in envs.values():
        env.close()
    notes = {"reset_ms": {name: spread(times) for name, times in resets.items()}}
    return Found(values, "ms a step", [Ratio("fast", "exact")], notes)


CASES = {task: functools.partial(compare, task) for task in TASKS}


if __name__ == "__main__":
    sys.exit(main("twin_speed", __doc__, CASES, turns=9, quick=3))
