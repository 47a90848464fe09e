"""What a reset and a make cost here and upstream, and how long a suite without upstream takes.

robosuite: both sides start episodes of the same distribution. Upstream's hard reset compiles the
model and, where it shows pictures, makes a render context anew; here both are kept. What the two
start is compared once per seed.

"make" is the time from nothing to the first observation, in a process that has imported the
packages: here `gym.make` and a first reset; upstream robosuite's `make` and `reset`, or `MT1`, one
env of it, `set_task` and `reset`. "make another" is the same while the process has such an env.

    python benchmarks/reset_speed.py --json benchmarks/results/reset_speed.json
"""

from __future__ import annotations

from harness import Found, Ratio, main, need, take_turns  # first: it limits threads

# isort: split
import functools
import gc
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

import vla_gym  # noqa: F401  registers the ids

SIZE = 128
VIEWS = ("agentview", "robot0_eye_in_hand")
RATIOS = [Ratio("vla_gym", "upstream")]


class Ours:
    """An env of ours, as one uses it."""

    def __init__(self, suite: str, task: str, pictures: bool, **keywords: Any) -> None:
        self.env: Any = gym.make(
            f"VLA/{suite}-{task}-v0",
            cameras=("primary", "wrist") if pictures else (),
            image_size=SIZE,
            state=True,
            disable_env_checker=True,
            **keywords,
        )

    def reset(self, seed: int) -> Any:
        """Start an episode and return its observation."""
        return self.env.reset(seed=seed)[0]


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


Makers = Mapping[str, Callable[[], Any]]


def measure(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call took [ms] and what it returned."""
    gc.collect()
    started = time.perf_counter()
    result = function()
    return 1000 * (time.perf_counter() - started), result


def start(make: Callable[[], Any]) -> Any:
    """Make an env and start its first episode."""
    env = make()
    env.reset(0)
    return env


def compare_makes(suite: str, makers: Makers, beside: bool, turns: int) -> Found:
    """Compare makes, each without or beside another env of its side."""
    need(suite)

    def make(side: str, _: int) -> float:
        other = start(makers[side]) if beside else None
        spent, env = measure(lambda: start(makers[side]))
        env.env.close()
        if other is not None:
            other.env.close()
        return spent

    sides = {side: functools.partial(make, side) for side in makers}
    values = take_turns(sides, max(3, turns // 2))
    return Found(values, "ms", RATIOS if len(makers) > 1 else [])


def compare_resets(suite: str, makers: Makers, turns: int) -> Found:
    """Compare resets of one env of each side, and what they start."""
    need(suite)
    envs = {side: start(make) for side, make in makers.items()}
    started: dict[str, list[Any]] = {side: [] for side in envs}

    def reset(side: str, turn: int) -> float:
        spent, _ = measure(lambda: envs[side].reset(turn + 1))
        if suite == "Robosuite":
            started[side].append(read_robosuite(envs[side]))
        return spent

    values = take_turns({side: functools.partial(reset, side) for side in envs}, turns)
    for seed, states in enumerate(zip(*started.values(), strict=True)):
        if not np.allclose(*states, atol=1e-9):  # without pictures upstream runs forward less
            raise RuntimeError(f"the two sides start other episodes under seed {seed}")
    for env in envs.values():
        env.env.close()
    return Found(values, "ms", RATIOS)


def read_robosuite(side: Ours | UpstreamRobosuite) -> Any:
    """Return time, joint positions and velocities of an env of either side."""
    bare = side.env.unwrapped._simulator._env if isinstance(side, Ours) else side.env
    return bare.sim.get_state().flatten()


def list_robosuite(task: str, pictures: bool) -> Makers:
    """Return the two sides of a task of robosuite."""
    return {
        "upstream": functools.partial(UpstreamRobosuite, task, pictures),
        "vla_gym": functools.partial(Ours, "Robosuite", task, pictures),
    }


def list_cases() -> dict[str, Callable[[int], Found]]:
    """Return all cases."""
    cases: dict[str, Callable[[int], Found]] = {}
    tasks = ("Lift", "Stack", "Door", "NutAssemblySquare", "PickPlaceCan", "Wipe", "TwoArmHandover")
    for task in tasks:
        for pictures in (False, True):
            name = f"robosuite {task}, {f'2 x {SIZE} px' if pictures else 'no camera'}"
            makers = list_robosuite(task, pictures)
            cases[f"{name}: reset"] = functools.partial(compare_resets, "Robosuite", makers)
            if task == tasks[0]:
                cases |= list_makes(name, "Robosuite", makers)
    makers = {
        "upstream": UpstreamMetaWorld,
        "vla_gym": functools.partial(Ours, "MetaWorld", "Reach", False),
    }
    cases["Meta-World Reach: reset"] = functools.partial(compare_resets, "MetaWorld", makers)
    cases |= list_makes("Meta-World Reach", "MetaWorld", makers)
    for name, suite, task, keywords in (
        ("RLBench twin ReachTarget", "RLBench", "ReachTarget", {"simulator": "rlbench-twin"}),
        ("CALVIN twin OpenDrawer", "CALVIN", "OpenDrawer", {"simulator": "calvin-twin"}),
        ("Toy Reach", "Toy", "Reach", {}),
    ):
        ours = {"vla_gym": functools.partial(Ours, suite, task, True, **keywords)}
        cases |= list_makes(f"{name}, 2 x {SIZE} px", suite, ours)
    return cases


def list_makes(name: str, suite: str, makers: Makers) -> dict[str, Callable[[int], Found]]:
    """Return the two cases that time how an env is made."""
    return {
        f"{name}: {what}": functools.partial(compare_makes, suite, makers, what == "make another")
        for what in ("make", "make another")
    }


QUICK = (
    "robosuite Lift, no camera: reset",
    "robosuite Lift, 2 x 128 px: reset",
    "Meta-World Reach: reset",
    "Meta-World Reach: make",
)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # robosuite has much to say at each make
    sys.exit(main("reset_speed", __doc__, list_cases(), turns=7, quick=3, in_quick=QUICK))
