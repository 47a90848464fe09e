"""LIBERO's steps with two cameras and its resets, against upstream's own path.

"Upstream" is `OffScreenRenderEnv` of rpent-libero with its own two camera observations, on the same
robosuite and MuJoCo, as the tests of equality use it (tests/suites/libero_upstream.py). Ours is
`gym.make` of the same task and cameras, exact and fast. Both play the same random actions. The
first step of a block does not count: it finds the processor's caches full of the other side's. The
tasks are of six scenes: three suites, a living room, a kitchen and a study; their medians are cases
too.

A reset is what comes before an episode's first observation: upstream's `reset`, `set_init_state`
and ten settling steps; here `reset`, which does the same. How far the pictures of fast are from
those of exact stands in the notes: mean absolute difference, of 255.

    python benchmarks/libero_speed.py --json benchmarks/results/libero_speed.json
"""

from __future__ import annotations

from harness import (
    Case,
    Found,
    Ratio,
    find_median,
    main,
    need,
    take_turns,
)  # first: it limits threads

# isort: split
import functools
import gc
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import vla_gym  # noqa: F401  registers the ids
from vla_gym.registration import get_suite
from vla_gym.rendering import choose_backend

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "suites"))

SIZE = 128
STEPS = 6
"""Of a block that count."""

TASKS = ("Spatial0", "Object0", "Goal0", "Long0", "Long3", "Long5")
QUALITIES = ("exact", "fast")
CAMERAS = ("primary", "wrist")


def make_upstream(task: str) -> tuple[Any, Any]:
    """Return upstream's env and the task's initial states."""
    import libero_upstream

    native = get_suite("LIBERO").tasks[task].native
    env = libero_upstream.make(native, SIZE)
    return env, libero_upstream.load_init_states(native)


def start_upstream(env: Any, states: Any, turn: int) -> None:
    """Start an episode by the usual protocol."""
    env.reset()
    env.set_init_state(states[turn % len(states)])
    for _ in range(10):
        env.step([0.0] * 6 + [-1.0])


def make_ours(task: str, quality: str) -> gym.Env[Any, Any]:
    """Return our env, in its first episode."""
    env = gym.make(
        f"VLA/LIBERO-{task}-v0",
        max_episode_steps=10**9,
        terminate_on_success=False,
        image_size=SIZE,
        render_quality=quality,
        action_mode="native",
        disable_env_checker=True,
    )
    env.reset(seed=0)
    return env


def compare(measure: Callable[..., Found], task: str, turns: int) -> Found:
    """Make both sides, measure them, and close them."""
    need("LIBERO")
    os.environ["MUJOCO_GL"] = choose_backend()  # upstream would try a window first
    envs = {quality: make_ours(task, quality) for quality in QUALITIES}
    upstream, states = make_upstream(task)
    start_upstream(upstream, states, 0)
    found = measure(envs, upstream, states, turns)
    upstream.close()
    for env in envs.values():
        env.close()
    gc.collect()  # upstream frees its GL context only when it is collected
    return found


def measure_steps(
    envs: dict[str, gym.Env[Any, Any]], upstream: Any, states: Any, turns: int
) -> Found:
    """Measure steps of the three sides."""
    del states
    seen: dict[str, list[Any]] = {quality: [] for quality in QUALITIES}

    def play(step: Callable[[Any], Any], turn: int) -> tuple[float, list[Any]]:
        actions = np.random.default_rng(turn + 1).uniform(-1, 1, (STEPS + 1, 7)).astype(np.float32)
        results, started = [step(actions[0])], time.perf_counter()
        for action in actions[1:]:
            results.append(step(action))
        return 1000 * (time.perf_counter() - started) / STEPS, results

    def play_ours(quality: str, turn: int) -> float:
        spent, results = play(envs[quality].step, turn)
        seen[quality] += [[result[0][f"rgb_{name}"] for name in CAMERAS] for result in results]
        return spent

    sides = {"upstream": lambda turn: play(upstream.step, turn)[0]}
    sides |= {quality: functools.partial(play_ours, quality) for quality in QUALITIES}
    values = take_turns(sides, turns)
    exact, fast = (np.asarray(seen[quality], float) for quality in QUALITIES)
    notes = {"fast_pixel_difference": round(float(np.abs(exact - fast).mean()), 2)}
    return Found(values, "ms a step", [Ratio(name, "upstream") for name in QUALITIES], notes)


def measure_resets(
    envs: dict[str, gym.Env[Any, Any]], upstream: Any, states: Any, turns: int
) -> Found:
    """Measure resets of the three sides."""

    def spend(function: Callable[[], Any]) -> float:
        gc.collect()
        started = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - started)

    sides = {"upstream": lambda turn: spend(lambda: start_upstream(upstream, states, turn))}
    for name in QUALITIES:
        sides[name] = lambda turn, env=envs[name]: spend(lambda: env.reset(seed=turn + 9))
    values = take_turns(sides, max(3, turns // 3))
    return Found(values, "ms", [Ratio(name, "upstream") for name in QUALITIES])


def combine(found: dict[str, Found]) -> dict[str, Found]:
    """Return the medians over all tasks, in parts of upstream's time."""
    combined = {}
    for kind in ("step", "reset"):
        rows = [row.values for case, row in found.items() if case.endswith(kind)]
        if len(rows) < len(TASKS):
            continue
        combined[f"median of {len(TASKS)} tasks: {kind}"] = find_median(rows, QUALITIES)
    return combined


CASES: dict[str, Case] = {}
for name in TASKS:
    CASES[f"{name}: step"] = functools.partial(compare, measure_steps, name)
    CASES[f"{name}: reset"] = functools.partial(compare, measure_resets, name)
QUICK = ("Spatial0: step", "Spatial0: reset")


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # robosuite has much to say at each make
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBERO_CONFIG_PATH"] = folder  # where importing upstream's package writes
        status = main("libero_speed", __doc__, CASES, 9, 3, combine=combine, in_quick=QUICK)
    sys.stdout.flush()
    os._exit(status)  # robosuite and MuJoCo both end EGL, and the second one prints an error
