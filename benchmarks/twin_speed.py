"""Control steps per second of the RLBench twin in one process: without cameras, and with two.

An env acts at 20 Hz, so 20 steps per second are real time. Random actions; every episode of 100
steps begins with a reset, which is timed apart. The settings take turns, so that a busy machine
slows all.

    python benchmarks/twin_speed.py --json benchmarks/results/twin_speed.json
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

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # as vla-gym eval does in its workers

import gymnasium as gym
import numpy as np

import vla_gym  # noqa: F401  registers the ids
from vla_gym.evaluation.records import describe_machine, versions_of

REAL_TIME_HZ = 20.0
TWO_VIEWS = {"cameras": ("primary", "wrist"), "image_size": 128}
SETTINGS: dict[str, dict[str, Any]] = {
    "no cameras": {"cameras": ()},
    "front + wrist, 128 px, fast": {**TWO_VIEWS, "render_quality": "fast"},
    "front + wrist, 128 px, exact": {**TWO_VIEWS, "render_quality": "exact"},
}


def play(env: gym.Env[Any, Any], steps: int, seed: int) -> tuple[float, float]:
    """Return the seconds of a reset and those of a step."""
    rng = np.random.default_rng(seed)
    started = time.perf_counter()
    env.reset(seed=seed)
    reset = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(steps):
        env.step(rng.uniform(-1, 1, 7).astype(np.float32))
    return reset, (time.perf_counter() - started) / steps


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=["ReachTarget", "OpenDrawer", "StackBlocks"])
    parser.add_argument("--repetitions", type=int, default=7, help="episodes of each setting")
    parser.add_argument("--steps", type=int, default=100, help="of an episode")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()

    rows = []
    for task in arguments.tasks:
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
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in envs}
        for repetition in range(-1, arguments.repetitions):  # the first one warms up
            for name, env in envs.items():
                found = play(env, arguments.steps, repetition + 1)
                if repetition >= 0:
                    times[name].append(found)
        for name, env in envs.items():
            env.close()
            resets, steps = zip(*times[name], strict=True)
            hz = sorted(1 / seconds for seconds in steps)
            row = {
                "task": task,
                "setting": name,
                "steps_per_second": round(statistics.median(hz), 1),
                "range": [round(hz[0], 1), round(hz[-1], 1)],
                "times_real_time": round(statistics.median(hz) / REAL_TIME_HZ, 2),
                "reset_ms": round(1000 * statistics.median(resets), 2),
            }
            rows.append(row)
            print(
                f"{task:<16}{name:<30}{row['steps_per_second']:>8} steps/s "
                f"({row['range'][0]} to {row['range'][1]}), {row['times_real_time']:>6} x real "
                f"time, reset {row['reset_ms']} ms"
            )
    machine = describe_machine()
    print(machine)
    if arguments.json:
        record = {
            "benchmark": "twin_speed",
            "command": shlex.join(["python", *sys.argv]),
            "repetitions": arguments.repetitions,
            "steps": arguments.steps,
            "rows": rows,
            "versions": versions_of(("vla-gym", "mujoco", "robosuite", "numpy")),
            "machine": machine,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
