"""Control steps with cameras, against the simulators' own path.

"Upstream" is the raw env with its own camera observations, no wrapper around it: robosuite with
agentview and robot0_eye_in_hand, Meta-World with `render()` of corner2 after each step. Ours is
`gym.make` of the same task and cameras, exact and fast. All play random actions. A block's first
step does not count: it finds the processor's caches full of the other side's. How far the pictures
of fast are from those of exact stands in the notes: mean absolute difference, of 255.

    python benchmarks/render_speed.py --json benchmarks/results/render_speed.json
"""

from __future__ import annotations

from harness import Found, Ratio, find_median, main, need, take_turns  # first: it limits threads

# isort: split
import functools
import gc
import logging
import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

import vla_gym  # noqa: F401  registers the ids
from vla_gym.registration import get_suite
from vla_gym.rendering import choose_backend
from vla_gym.suites.metaworld_goals import load_goals

SIZE = 128
STEPS = 6
"""Of a block that count."""

QUALITIES = ("exact", "fast")
ROBOSUITE = (
    *("Lift", "Stack", "Door", "NutAssembly", "PickPlace", "ToolHang", "TwoArmLift"),
    "TwoArmPegInHole",
)
METAWORLD = ("Reach", "DoorOpen", "PegInsertSide")

Step = Callable[[], Any]


def make_robosuite(task: str) -> tuple[Step, Callable[[], None]]:
    """Return upstream's step, which returns its pictures, and what closes it."""
    import robosuite

    native = get_suite("Robosuite").tasks[task].native
    env: Any = robosuite.make(
        native,
        robots=["Panda", "Panda"] if native.startswith("TwoArm") else "Panda",
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=True,
        camera_names=["agentview", "robot0_eye_in_hand"],
        camera_heights=SIZE,
        camera_widths=SIZE,
        reward_shaping=True,
        control_freq=20,
        ignore_done=True,
    )
    env.reset()
    # Its constructor has left a renderer behind. Collected while another context is current, that
    # would delete this one's objects of the same numbers, and the pictures would stand still.
    gc.freeze()
    rng = np.random.default_rng(0)

    def close() -> None:
        env.close()
        gc.unfreeze()

    return lambda: env.step(rng.uniform(-1, 1, env.action_dim)), close


def make_metaworld(task: str) -> tuple[Step, Callable[[], None]]:
    """Return upstream's step, which returns its picture, and what closes it."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.types import Task

    native = get_suite("MetaWorld").tasks[task].native
    task_class: Any = ALL_V3_ENVIRONMENTS[native]
    env = task_class(render_mode="rgb_array", camera_name="corner2", width=SIZE, height=SIZE)
    chosen = {"rand_vec": load_goals(native, "train")[0].copy(), "env_cls": task_class}
    env.set_task(Task(native, pickle.dumps({**chosen, "partially_observable": False})))
    env.max_path_length = sys.maxsize
    env.reset()
    rng = np.random.default_rng(0)

    def step() -> Any:
        # Its renderer leaves it to us to make its GL context current among those of others.
        viewer = env.mujoco_renderer._get_viewer("rgb_array")
        viewer.make_context_current()
        env.step(rng.uniform(-1, 1, 4).astype(np.float32))
        return env.render()

    return step, env.close


def make_ours(env_id: str, cameras: tuple[str, ...], quality: str) -> gym.Env[Any, Any]:
    """Return our env, in its first episode."""
    env = gym.make(
        env_id,
        max_episode_steps=10**9,
        cameras=cameras,
        image_size=SIZE,
        render_quality=quality,
        disable_env_checker=True,
    )
    env.reset(seed=0)
    return env


def compare(suite: str, task: str, turns: int) -> Found:
    """Compare exact, fast and upstream on one task."""
    need(suite)
    found = measure(suite, task, turns)
    gc.collect()  # upstream frees its GL context only when it is collected
    return found


def measure(suite: str, task: str, turns: int) -> Found:
    """Measure the three sides on one task."""
    os.environ["MUJOCO_GL"] = choose_backend()  # upstream would try a window first
    cameras = ("primary", "wrist") if suite == "Robosuite" else ("primary",)
    envs = {quality: make_ours(f"VLA/{suite}-{task}-v0", cameras, quality) for quality in QUALITIES}
    upstream, close = (make_robosuite if suite == "Robosuite" else make_metaworld)(task)
    seen: dict[str, list[Any]] = {quality: [] for quality in QUALITIES}

    def play(step: Callable[[Any], Any], turn: int) -> tuple[float, list[Any]]:
        shape = (STEPS + 1, *(envs["exact"].action_space.shape or ()))
        actions = np.random.default_rng(turn + 1).uniform(-1, 1, shape).astype(np.float32)
        results, started = [step(actions[0])], time.perf_counter()
        for action in actions[1:]:
            results.append(step(action))
        return 1000 * (time.perf_counter() - started) / STEPS, results

    def play_ours(quality: str, turn: int) -> float:
        spent, results = play(envs[quality].step, turn)
        seen[quality] += [[result[0][f"rgb_{name}"] for name in cameras] for result in results]
        return spent

    sides = {"upstream": lambda turn: play(lambda _: upstream(), turn)[0]}
    sides |= {quality: functools.partial(play_ours, quality) for quality in QUALITIES}
    values = take_turns(sides, turns)
    close()
    for env in envs.values():
        env.close()
    exact, fast = (np.asarray(seen[quality], float) for quality in QUALITIES)
    notes = {"fast_pixel_difference": round(float(np.abs(exact - fast).mean()), 2)}
    ratios = [Ratio(quality, "upstream") for quality in QUALITIES]
    return Found(values, "ms a step", ratios, notes)


def combine(found: dict[str, Found]) -> dict[str, Found]:
    """Return the median over robosuite's tasks, in parts of upstream's time."""
    rows = [row.values for case, row in found.items() if case.startswith("robosuite")]
    if len(rows) < len(ROBOSUITE):
        return {}
    return {"robosuite, median of 8 tasks": find_median(rows, QUALITIES)}


CASES = {f"robosuite {t}": functools.partial(compare, "Robosuite", t) for t in ROBOSUITE}
CASES |= {f"Meta-World {t}": functools.partial(compare, "MetaWorld", t) for t in METAWORLD}
QUICK = ("robosuite Lift", "robosuite Stack", "Meta-World Reach")


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # robosuite has much to say at each make
    status = main("render_speed", __doc__, CASES, 11, 5, combine=combine, in_quick=QUICK)
    sys.stdout.flush()
    os._exit(status)  # robosuite and MuJoCo both end EGL, and the second one prints an error
