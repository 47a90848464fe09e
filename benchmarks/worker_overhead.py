"""What a step costs more in a worker process (`python=...`) than in this process.

Both envs play the same episodes; `python=sys.executable` runs the worker in the same interpreter,
so that only the boundary differs. What both return is compared as well. A turn's cost is the median
of its steps. The notes have the difference of the medians, which should be at most 0.3 ms and one
copy per image, and the time of such a copy, into memory that no cache holds.

    python benchmarks/worker_overhead.py --json benchmarks/results/worker_overhead.json
"""

from __future__ import annotations

from harness import Found, Ratio, main, need, take_turns  # first: it limits threads

# isort: split
import functools
import statistics
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np

from vla_gym.registration import get_suite

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Toy, no camera": ("Toy", "Reach", {"cameras": ()}),
    "Toy, 2 x 128 px": ("Toy", "Reach", {"cameras": ("primary", "wrist"), "image_size": 128}),
    "Meta-World, state only": ("MetaWorld", "Reach", {"cameras": (), "state": True}),
}

STEPS = 25
"""Of a turn."""

HERE, THERE = "in this process", "in a worker"


def play(env: gym.Env[Any, Any], seed: int, actions: Any) -> tuple[float, Any]:
    """Return the median time of a step [ms], and what the last one returned."""
    result: Any = env.reset(seed=seed)
    times = []
    for action in actions:
        started = time.perf_counter()
        result = env.step(action)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times), result


def compare(suite: str, task: str, keywords: dict[str, Any], turns: int) -> Found:
    """Compare the two sides of the boundary."""
    need(suite)
    env_id = get_suite(suite).id(task)
    make = functools.partial(gym.make, env_id, disable_env_checker=True, **keywords)
    envs: dict[str, Any] = {HERE: make(), THERE: make(python=sys.executable)}
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, 7)).astype(np.float32)
    warm_up, last = max(2, turns // 6), {}

    def run(side: str, turn: int) -> float:
        spent, last[turn, side] = play(envs[side], warm_up + turn, actions)
        return spent

    sides = {side: functools.partial(run, side) for side in envs}
    values = take_turns(sides, turns, warm_up)
    for turn in range(turns):
        check_same(env_id, last[turn, HERE], last[turn, THERE])
    for env in envs.values():
        env.close()
    more = statistics.median(values[THERE]) - statistics.median(values[HERE])
    copies = len(keywords["cameras"]) * 1000 * time_copy(keywords.get("image_size", 1))
    notes = {"more_ms": round(more, 4), "copies_ms": round(copies, 4)}
    return Found(values, "ms a step", [Ratio(THERE, HERE, "cost")], notes)


def check_same(env_id: str, one: Any, other: Any) -> None:
    """Raise unless two steps returned the same."""
    for key, value in one[0].items():
        if not np.array_equal(value, other[0][key]):
            raise RuntimeError(f"{env_id}: {key} differs between the two processes")
    if one[1] != other[1]:
        raise RuntimeError(f"{env_id}: rewards differ: {one[1]} and {other[1]}")


def time_copy(size: int, repetitions: int = 500) -> float:
    """Return the median time [s] of copying a picture of size x size pixels."""
    pictures = [np.full((size, size, 3), i % 256, np.uint8) for i in range(repetitions)]
    targets = np.zeros((repetitions, size, size, 3), np.uint8)
    seconds = []
    for picture, target in zip(pictures, targets, strict=True):
        started = time.perf_counter()
        target[...] = picture
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    cases = {name: functools.partial(compare, *what) for name, what in CASES.items()}
    sys.exit(main("worker_overhead", __doc__, cases, turns=120, quick=30))
