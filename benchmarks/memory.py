"""Memory of an env: what the first one adds to a process, and what each further one adds.

Every side runs in a process of its own that first imports its packages, then makes envs and plays
three steps in each, pictures included. Memory is what the process holds in RAM (RSS). The notes
have what the first env adds, GL included. Upstream is as in `render_speed.py`, and without cameras
as in `step_overhead.py`.

    python benchmarks/memory.py --json benchmarks/results/memory.json
"""

from __future__ import annotations

from harness import Found, Ratio, main, need, spread, take_turns  # first: it limits threads

# isort: split
import functools
import gc
import importlib
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from processes import read_resident

from vla_gym.registration import get_suite
from vla_gym.rendering import choose_backend

MORE = 4
"""Further envs."""

STEPS = 3
QUALITIES = ("exact", "fast")
UPSTREAM = {"MetaWorld": "metaworld", "Robosuite": "robosuite"}
"""Suite -> package of its own envs."""

ACTION_DIM = {"MetaWorld": 4, "Robosuite": 7}
CONTEXT = multiprocessing.get_context("spawn")

Step = Callable[[], Any]


def start_ours(env_id: str, **keywords: Any) -> Step:
    """Return a step of a new env of ours."""
    env = gym.make(env_id, disable_env_checker=True, **keywords)
    env.reset(seed=0)
    return lambda: env.step(env.action_space.sample())


def start_upstream(suite: str, task: str, pictures: bool) -> Step:
    """Return a step of a new env of upstream's."""
    import render_speed
    import step_overhead

    if pictures:
        makers = {
            "MetaWorld": render_speed.make_metaworld,
            "Robosuite": render_speed.make_robosuite,
        }
        return makers[suite](task)[0]
    bare = {"MetaWorld": step_overhead.make_metaworld, "Robosuite": step_overhead.make_robosuite}
    layer, _ = bare[suite](get_suite(suite).tasks[task].native)
    layer.start(0)
    return lambda: layer.step(np.zeros(ACTION_DIM[suite], np.float32))


def grow(modules: tuple[str, ...], start: Callable[[], Step], pipe: Any) -> None:
    """Make envs in this process; send what the first one and a further one added [MB]."""
    logging.disable(logging.WARNING)  # robosuite has much to say at each make
    for module in modules:
        importlib.import_module(module)
    steps, memory = [], [read_resident()]
    for count in (1, MORE):
        for _ in range(count):
            steps.append(start())
            for _ in range(STEPS):
                steps[-1]()
        gc.collect()
        memory.append(read_resident())
    pipe.send((memory[1] - memory[0], (memory[2] - memory[1]) / MORE))
    pipe.recv()
    os._exit(0)  # nothing to tidy up, and much that would


def compare(suite: str, task: str, pictures: bool, simulator: str | None, turns: int) -> Found:
    """Compare our envs with upstream's, where there is one."""
    need(suite, simulator)
    os.environ["MUJOCO_GL"] = choose_backend()  # upstream would try a window first
    keywords = {} if simulator is None else {"simulator": simulator}
    ours = functools.partial(start_ours, f"vla_gym:VLA/{suite}-{task}-v0", **keywords)
    cameras = ("primary",) if suite == "MetaWorld" else ("primary", "wrist")
    starts: dict[str, Callable[[], Step]] = {"vla_gym": functools.partial(ours, cameras=())}
    if pictures:
        drawn = functools.partial(ours, cameras=cameras, image_size=128)
        starts = {
            quality: functools.partial(drawn, render_quality=quality) for quality in QUALITIES
        }
    mine = list(starts)
    if suite in UPSTREAM:
        starts["upstream"] = functools.partial(start_upstream, suite, task, pictures)
    first: dict[str, list[float]] = {side: [] for side in starts}

    def run(side: str, _: int) -> float:
        here, there = CONTEXT.Pipe()
        modules = ("vla_gym", *([UPSTREAM[suite]] if suite in UPSTREAM else []))
        process = CONTEXT.Process(target=grow, args=(modules, starts[side], there))
        process.start()
        there.close()
        once, again = here.recv()
        here.send(None)
        process.join()
        first[side].append(once)
        return max(again, 0.1)  # it is a quotient's divisor

    values = take_turns({side: functools.partial(run, side) for side in starts}, turns, warm_up=0)
    notes = {"first_mb": {side: spread(found) for side, found in first.items()}}
    ratios = [Ratio(side, "upstream", "cost") for side in mine if "upstream" in starts]
    return Found(values, "MB an env more", ratios, notes)


def list_cases() -> dict[str, Callable[[int], Found]]:
    """Return all cases: every suite, with and without pictures."""
    cases: dict[str, Callable[[int], Found]] = {}
    for name, suite, task, simulator in (
        ("Meta-World Reach", "MetaWorld", "Reach", None),
        ("robosuite Lift", "Robosuite", "Lift", None),
        ("RLBench twin ReachTarget", "RLBench", "ReachTarget", "rlbench-twin"),
        ("CALVIN twin OpenDrawer", "CALVIN", "OpenDrawer", "calvin-twin"),
        ("Toy Reach", "Toy", "Reach", None),
    ):
        for pictures in (False, True):
            count = 1 if suite == "MetaWorld" else 2
            views = f"{count} x 128 px" if pictures else "no camera"
            cases[f"{name}, {views}"] = functools.partial(compare, suite, task, pictures, simulator)
    return cases


if __name__ == "__main__":
    sys.exit(main("memory", __doc__, list_cases(), turns=3, quick=1))
