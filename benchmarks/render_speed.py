"""Control steps per second with cameras, against the simulators' own path.

"Upstream" is the raw env with its own camera observations, no wrapper around it: robosuite with
agentview and robot0_eye_in_hand, Meta-World with `render()` of corner2 after each step. Ours is
`gym.make` of the same task and cameras, exact and fast. All play random actions and take turns in
blocks of steps, so that a busy machine slows all. A block's first step does not count: it finds the
processor's caches full of the other side's. Ratios are those of the same block, their median and
quartiles are shown. How far the pictures of fast are from those of exact is measured as well:
mean absolute difference, of 255.

    python benchmarks/render_speed.py --json benchmarks/results/render_speed.json

Exit status 1 where a ratio is below its target.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
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
from vla_gym.registration import get_suite
from vla_gym.rendering import choose_backend
from vla_gym.suites.metaworld_goals import load_goals

SIZE = 128
ROBOSUITE = (
    *("Lift", "Stack", "Door", "NutAssembly", "PickPlace", "ToolHang", "TwoArmLift"),
    "TwoArmPegInHole",
)
METAWORLD = ("Reach", "DoorOpen", "PegInsertSide")

TARGETS = {
    "Robosuite-Lift": {"exact": 2.0, "fast": 8.0},
    "Robosuite, median": {"exact": 1.5, "fast": 6.0},
    "MetaWorld-Reach": {"exact": 1.0, "fast": 10.0},
}
"""Least ratio of steps per second to upstream's."""

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
    rng = np.random.default_rng(0)
    return lambda: env.step(rng.uniform(-1, 1, env.action_dim)), env.close


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


def measure(suite: str, task: str, blocks: int, steps: int) -> dict[str, Any]:
    """Return the rates of the three sides, and how far fast is from exact."""
    env_id = f"VLA/{suite}-{task}-v0"
    cameras = ("primary", "wrist") if suite == "Robosuite" else ("primary",)
    envs = {quality: make_ours(env_id, cameras, quality) for quality in ("exact", "fast")}
    maker = make_robosuite if suite == "Robosuite" else make_metaworld
    upstream, close = maker(task)
    seconds: dict[str, list[float]] = {side: [] for side in ("upstream", *envs)}
    distances = []
    for block in range(-1, blocks):  # the first one warms up
        actions = np.random.default_rng(block + 1).uniform(
            -1, 1, (steps + 1, *(envs["exact"].action_space.shape or ()))
        )
        pictures: dict[str, list[Any]] = {}
        for side in seconds:
            seen, started = [], 0.0
            for number, action in enumerate(actions):
                if number == 1:
                    started = time.perf_counter()
                if side == "upstream":
                    upstream()
                else:
                    seen.append(envs[side].step(action.astype(np.float32))[0])
            spent = (time.perf_counter() - started) / steps
            pictures[side] = [[frame[f"rgb_{name}"] for name in cameras] for frame in seen]
            if block >= 0:
                seconds[side].append(spent)
        difference = np.asarray(pictures["exact"], float) - np.asarray(pictures["fast"], float)
        distances.append(float(np.abs(difference).mean()))
    close()
    del upstream, close
    gc.collect()  # upstream frees its GL context only when it is collected
    for env in envs.values():
        env.close()
    row: dict[str, Any] = {
        "task": f"{suite}-{task}",
        "cameras": len(cameras),
        "step_ms": {k: round(1000 * statistics.median(v), 2) for k, v in seconds.items()},
        "fast_pixel_difference": round(statistics.mean(distances), 2),
    }
    for side in envs:
        ratios = np.array(seconds["upstream"]) / np.array(seconds[side])
        row[side] = {
            "ratio": round(float(np.median(ratios)), 2),
            "quartiles": [round(float(q), 2) for q in np.percentile(ratios, (25, 75))],
        }
    return row


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--robosuite", nargs="*", default=list(ROBOSUITE), metavar="TASK")
    parser.add_argument("--metaworld", nargs="*", default=list(METAWORLD), metavar="TASK")
    parser.add_argument("--blocks", type=int, default=11, help="blocks of each side")
    parser.add_argument("--steps", type=int, default=8, help="steps of a block")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()

    os.environ["MUJOCO_GL"] = choose_backend()  # upstream would try a window first
    load = os.getloadavg()[0]
    print(f"{'task':<28}{'upstream':>10}{'exact':>9}{'fast':>9}   exact (quartiles)      fast")
    rows = []
    for suite, tasks in (("Robosuite", arguments.robosuite), ("MetaWorld", arguments.metaworld)):
        for task in tasks:
            row = measure(suite, task, arguments.blocks, arguments.steps)
            rows.append(row)
            print(f"{row['task']:<28}", end="")
            print("".join(f"{ms:>6.1f} ms" for ms in row["step_ms"].values()), end="   ")
            for side in ("exact", "fast"):
                low, high = row[side]["quartiles"]
                print(f"{row[side]['ratio']:>6.2f}x ({low} to {high})", end="  ")
            print(f"differs by {row['fast_pixel_difference']}", flush=True)
    found = {row["task"]: {side: row[side]["ratio"] for side in ("exact", "fast")} for row in rows}
    robosuite = [ratios for task, ratios in found.items() if task.startswith("Robosuite")]
    if robosuite:
        found["Robosuite, median"] = {
            side: statistics.median(ratios[side] for ratios in robosuite)
            for side in ("exact", "fast")
        }
    missed = [
        f"{name}, {side}: {found[name][side]} < {least}"
        for name, targets in TARGETS.items()
        if name in found
        for side, least in targets.items()
        if found[name][side] < least
    ]
    machine = describe_machine()
    print(found.get("Robosuite, median"), machine, f"load {load:.1f} to {os.getloadavg()[0]:.1f}")
    if arguments.json:
        record = {
            "benchmark": "render_speed",
            "command": shlex.join(["python", *sys.argv]),
            "blocks": arguments.blocks,
            "steps_of_a_block": arguments.steps,
            "size": SIZE,
            "rows": rows,
            "robosuite_median": found.get("Robosuite, median"),
            "missed": missed,
            "back_end": choose_backend(),
            "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
            "versions": versions_of(("vla-gym", "mujoco", "robosuite", "metaworld", "numpy")),
            "machine": machine,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    if missed:
        sys.exit("below target: " + "; ".join(missed))


if __name__ == "__main__":
    main()
