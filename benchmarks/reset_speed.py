"""What a reset costs here and upstream: robosuite's hard reset, Meta-World's make and first reset.

robosuite: both sides start episodes of the same distribution. Upstream's hard reset compiles the
model and, where it shows pictures, makes a render context anew; here both are kept. The sides take
turns, so that a busy machine slows both, and what they start is compared once per seed.

"make" is the time from nothing to the first observation, in a process that has imported the
packages: here `gym.make` and a first reset; upstream robosuite's `make` and `reset`, or `MT1`, one
env of it, `set_task` and `reset`. "make another" is the same while the process has such an env.

    python benchmarks/reset_speed.py --json benchmarks/results/reset_speed.json
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # as vla-gym eval does in its workers

import gymnasium as gym
import numpy as np

import vla_gym  # noqa: F401  registers the ids
from vla_gym.evaluation.records import describe_machine, versions_of

SIZE = 128
VIEWS = ("agentview", "robot0_eye_in_hand")
TASKS = ("Lift", "Stack", "Door", "NutAssemblySquare", "PickPlaceCan", "Wipe", "TwoArmHandover")
SIDES = ("upstream", "vla_gym")


class OurRobosuite:
    """An env of ours, as one uses it."""

    def __init__(self, task: str, pictures: bool) -> None:
        cameras = ("primary", "wrist") if pictures else ()
        self.env: Any = gym.make(
            f"VLA/Robosuite-{task}-v0",
            cameras=cameras,
            image_size=SIZE,
            state=True,
            disable_env_checker=True,
        )

    def reset(self, seed: int) -> Any:
        """Start an episode and return its observation."""
        return self.env.reset(seed=seed)[0]

    def read(self) -> Any:
        """Return time, joint positions and velocities."""
        return self.env.unwrapped._simulator._env.sim.get_state().flatten()


class UpstreamRobosuite:
    """The same through robosuite itself, with the settings that ours has."""

    def __init__(self, task: str, pictures: bool) -> None:
        import robosuite

        self.env = robosuite.make(
            task,
            robots=["Panda"] * (2 if task.startswith("TwoArm") else 1),
            has_renderer=False,
            has_offscreen_renderer=pictures,
            use_camera_obs=pictures,
            camera_names=list(VIEWS),
            camera_heights=SIZE,
            camera_widths=SIZE,
            reward_shaping=True,
            control_freq=20,
            horizon=500,
            ignore_done=True,
            hard_reset=True,
            renderer="mujoco",
            seed=0,
        )

    def reset(self, seed: int) -> Any:
        """Start the episode that ours has under this seed."""
        number = int(np.random.Generator(np.random.PCG64(seed)).integers(2**31))
        self.env.rng.bit_generator.state = np.random.default_rng(number).bit_generator.state
        return self.env.reset()

    def read(self) -> Any:
        """Return time, joint positions and velocities."""
        return self.env.sim.get_state().flatten()


class OurMetaWorld:
    """An env of ours."""

    def __init__(self) -> None:
        self.env: Any = gym.make("VLA/MetaWorld-Reach-v0", cameras=(), disable_env_checker=True)

    def reset(self, seed: int) -> Any:
        """Start an episode."""
        return self.env.reset(seed=seed)


class UpstreamMetaWorld:
    """The way of Meta-World's own documentation."""

    def __init__(self) -> None:
        import metaworld

        self.benchmark = metaworld.MT1("reach-v3", seed=42)
        self.env = self.benchmark.train_classes["reach-v3"]()

    def reset(self, seed: int) -> Any:
        """Start an episode."""
        self.env.set_task(self.benchmark.train_tasks[seed % 50])
        return self.env.reset()


def measure(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call took [s] and what it returned."""
    gc.collect()
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def start(make: Callable[[], Any]) -> Any:
    """Make an env and start its first episode."""
    env = make()
    env.reset(0)
    return env


def compare_makes(makers: dict[str, Callable[[], Any]], count: int) -> dict[str, Any]:
    """Time makes in turns, each without and then beside another env of its side."""
    alone: dict[str, list[float]] = {side: [] for side in makers}
    beside: dict[str, list[float]] = {side: [] for side in makers}
    for repetition in range(-1, count):
        for side, make in makers.items():
            for times in (alone, beside):
                seconds, env = measure(lambda make=make: start(make))
                if repetition >= 0:
                    times[side].append(seconds)
                if times is alone:
                    first = env
                else:
                    env.env.close()
            first.env.close()
            del env, first
    return {"make": alone, "make another": beside}


def compare_resets(makers: dict[str, Callable[[], Any]], count: int, check: bool) -> dict[str, Any]:
    """Time resets of one env of each side, in turns."""
    sides = {side: start(make) for side, make in makers.items()}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for seed in range(1, count + 1):
        for side, env in sides.items():
            times[side].append(measure(lambda env=env, seed=seed: env.reset(seed))[0])
        if check:
            states = [env.read() for env in sides.values()]
            if not np.allclose(*states, atol=1e-9):  # without pictures upstream runs forward less
                raise RuntimeError(f"the two sides start other episodes under seed {seed}")
    for env in sides.values():
        env.env.close()
    return {"reset": times}


def summarise(name: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """Print and return medians, ranges and the ratio of one comparison."""
    ratios = sorted(there / here for there, here in zip(*times.values(), strict=True))
    row: dict[str, Any] = {"what": name, "n": len(ratios)}
    for side, seconds in times.items():
        row[f"{side}_ms"] = round(1000 * statistics.median(seconds), 2)
        row[f"{side}_range_ms"] = [round(1000 * f(seconds), 2) for f in (min, max)]
    row["times_faster"] = round(statistics.median(ratios), 1)
    row["times_faster_range"] = [round(ratios[0], 1), round(ratios[-1], 1)]
    print(
        f"{name:<44}{row['upstream_ms']:>9} ms {row['vla_gym_ms']:>9} ms "
        f"{row['times_faster']:>6}x ({ratios[0]:.1f} to {ratios[-1]:.1f}), n={row['n']}",
        flush=True,
    )
    return row


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), help="of robosuite")
    parser.add_argument("--resets", type=int, default=7, help="of each side")
    parser.add_argument("--makes", type=int, default=3, help="of each side")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # robosuite has much to say at each make
    machine, load = describe_machine(), os.getloadavg()[0]
    print(f"{machine}, load {load:.1f} before")
    print(f"{'':<44}{SIDES[0]:>12} {SIDES[1]:>12}  faster")

    rows = []
    for task in arguments.tasks:
        for pictures in (False, True):
            makers = {
                "upstream": lambda t=task, p=pictures: UpstreamRobosuite(t, p),
                "vla_gym": lambda t=task, p=pictures: OurRobosuite(t, p),
            }
            name = f"robosuite {task}, {f'2 x {SIZE} px' if pictures else 'no camera'}"
            found = compare_resets(makers, arguments.resets, check=True)
            if task == arguments.tasks[0]:
                found |= compare_makes(makers, arguments.makes)
            rows += [summarise(f"{name}: {what}", times) for what, times in found.items()]
    makers = {"upstream": UpstreamMetaWorld, "vla_gym": OurMetaWorld}
    found = compare_resets(makers, 3 * arguments.resets, check=False)
    found |= compare_makes(makers, 3 * arguments.makes)
    rows += [summarise(f"Meta-World Reach: {what}", times) for what, times in found.items()]

    if arguments.json:
        record = {
            "benchmark": "reset_speed",
            "command": shlex.join(["python", *sys.argv]),
            "rows": rows,
            "versions": versions_of(("vla-gym", "robosuite", "metaworld", "mujoco", "numpy")),
            "machine": machine,
            "load_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
