"""What a step costs more in a worker process (`python=...`) than in this process.

Both envs play the same episodes and take turns in blocks of steps, so that a busy machine slows
both; `python=sys.executable` runs the worker in the same interpreter, so that only the boundary
differs. What both return is compared as well. The target is at most 0.3 ms and one copy per image;
that copy is timed here too, into memory that no cache holds. Meta-World is left out where it is
missing.

    python benchmarks/worker_overhead.py --json benchmarks/results/worker_overhead.json

Exit status 1 where the difference of the medians is above the target.
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
from typing import Any

import gymnasium as gym
import numpy as np

from vla_gym.env import find_obstacle
from vla_gym.evaluation.records import describe_machine, versions_of
from vla_gym.registration import get_suite

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Toy, no camera": ("Toy", "Reach", {"cameras": ()}),
    "Toy, 2 x 128 px": ("Toy", "Reach", {"cameras": ("primary", "wrist"), "image_size": 128}),
    "Meta-World, state only": ("MetaWorld", "Reach", {"cameras": (), "state": True}),
}

BLOCK = 25
"""Steps of one env before the other takes its turn."""

TARGET_MS = 0.3
"""Most that a step may cost more, besides one copy per image."""


def measure(env_id: str, keywords: dict[str, Any], blocks: int, warm_up: int) -> dict[str, Any]:
    """Return the times of single steps on both sides of the boundary [s]."""
    sides = {"in this process": {}, "in a worker": {"python": sys.executable}}
    envs = {
        side: gym.make(env_id, disable_env_checker=True, **keywords, **where)
        for side, where in sides.items()
    }
    actions = np.random.default_rng(0).uniform(-1, 1, (BLOCK, 7)).astype(np.float32)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for block in range(-warm_up, blocks):
        last = []
        for side in sides if block % 2 else reversed(sides):
            env = envs[side]
            result = env.reset(seed=warm_up + block)
            for action in actions:
                started = time.perf_counter()
                result = env.step(action)
                seconds = time.perf_counter() - started
                if block >= 0:
                    times[side].append(seconds)
            last.append(result)
        check_same(env_id, *last)
    for env in envs.values():
        env.close()
    return times


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


def describe(seconds: list[float]) -> dict[str, float]:
    """Return median, quartiles and minimum of some times, in ms."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    summary = {"median": middle, "q1": low, "q3": high, "min": min(seconds)}
    return {name: round(1000 * value, 4) for name, value in summary.items()}


def main() -> int:
    """Run the benchmark from the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=120, help=f"of {BLOCK} steps, of each side")
    parser.add_argument("--warm-up", type=int, default=20, help="blocks before")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()

    command = shlex.join(["python", *sys.argv])
    machine, load = describe_machine(), os.getloadavg()[0]
    versions = versions_of(("vla-gym", "gymnasium", "numpy", "metaworld", "mujoco"))
    print(f"{command}\n{machine}, load {load:.1f} before\n{versions}")
    print(f"{arguments.warm_up} warm-up and {arguments.blocks} blocks of {BLOCK} steps, in turns")
    results, good = {}, True
    for name, (suite, task, keywords) in CASES.items():
        obstacle = find_obstacle(get_suite(suite), get_suite(suite).simulators[0])
        if obstacle is not None:
            print(f"{name}: left out, {obstacle}")
            continue
        env_id = get_suite(suite).id(task)
        times = measure(env_id, keywords, arguments.blocks, arguments.warm_up)
        rows = {side: describe(seconds) for side, seconds in times.items()}
        here, there = rows.values()
        images = len(keywords["cameras"])
        copies = images * 1000 * time_copy(keywords.get("image_size", 1))
        difference = there["median"] - here["median"]
        allowed = TARGET_MS + copies
        good = good and difference <= allowed
        for side, row in rows.items():
            print(
                f"{name}, {side:<15} median {row['median']:.3f} ms a step, quartiles "
                f"{row['q1']:.3f} to {row['q3']:.3f}, min {row['min']:.3f}"
            )
        print(f"{name}: {difference:.3f} ms more (target: at most {allowed:.3f})")
        results[name] = {
            "id": env_id,
            "keywords": keywords,
            "milliseconds": rows,
            "difference": round(difference, 4),
            "copies": round(copies, 4),
            "allowed": round(allowed, 4),
        }
    if arguments.json:
        record = {
            "benchmark": "worker_overhead",
            "command": command,
            "steps": arguments.blocks * BLOCK,
            "warm_up": arguments.warm_up * BLOCK,
            "results": results,
            "versions": versions,
            "machine": machine,
            "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
