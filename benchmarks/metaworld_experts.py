"""How often Meta-World's scripted experts solve its 50 tasks through our envs: 50 x 50 episodes.

Each expert plays its task's 50 training goals for up to 500 steps; an episode counts as solved if
it is solved at any step. The counts must equal those of the same experts in upstream's own envs,
task by task: `tests/golden/metaworld_scripted_counts.json`.

    python benchmarks/metaworld_experts.py --json benchmarks/results/metaworld_experts.json

Exit status 1 where a count differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

EXPECTED = Path(__file__).resolve().parent.parent / "tests/golden/metaworld_scripted_counts.json"
GOALS = 50
STEPS = 500


def play_task(name: str, goals: int) -> dict[str, Any]:
    """Play the first `goals` training goals of one task.

    Returns:
        native (upstream's name), solved, goals, steps, seconds (wall clock of this process).
    """
    warnings.filterwarnings("ignore", message="Constant.s. may be too high")  # upstream's experts
    import gymnasium as gym
    import numpy as np

    import vla_gym
    from vla_gym.policy import connect
    from vla_gym.registration import get_suite, get_task

    native = get_task(get_suite("MetaWorld"), name).native
    env = gym.make(f"VLA/MetaWorld-{name}-v0", state=True, cameras=(), max_episode_steps=STEPS)
    expert = connect(vla_gym.make_policy("metaworld-expert"), env.unwrapped.spec_sheet)
    solved = steps = 0
    started = time.perf_counter()
    for goal in range(goals):
        observation, _ = env.reset(options={"goal": goal})
        memory, first, truncated, success = None, True, False, False
        while not (truncated or success):
            batch = {"state": observation["state"][None]}
            actions, memory = expert.predict(batch, memory, np.array([first]))
            observation, _, _, truncated, info = env.step(actions[0])
            first, success = False, info["success"]
            steps += 1
        solved += success
    seconds = time.perf_counter() - started
    env.close()
    return {
        "native": native,
        "solved": solved,
        "goals": goals,
        "steps": steps,
        "seconds": round(seconds, 2),
    }


def main() -> int:
    """Run the benchmark from the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="*", help="names such as DrawerOpen; all without it")
    parser.add_argument("--goals", type=int, default=GOALS, help="of each task, from the first")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--expected", type=Path, default=EXPECTED, help="JSON of the counts")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()

    from harness import write_record  # here, since tests load this file alone

    from vla_gym.registration import get_suite, get_task

    suite = get_suite("MetaWorld")
    names = [get_task(suite, name).name for name in arguments.tasks or suite.tasks]
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # the processes share the cores, not the threads
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        jobs = [pool.apply_async(play_task, (name, arguments.goals)) for name in names]
        results = [job.get() for job in jobs]
    seconds = time.perf_counter() - started

    expected = json.loads(arguments.expected.read_text())["counts"]
    whole = arguments.goals == GOALS
    print(f"{'task':<30}{'solved':>8}{'expected':>10}{'steps':>9}")
    for row in results:
        row["expected"] = expected[row["native"]] if whole else None
        mark = "" if not whole or row["solved"] == row["expected"] else "  DIFFERS"
        wanted = row["expected"] if whole else "-"
        print(f"{row['native']:<30}{row['solved']:>8}{wanted:>10}{row['steps']:>9}{mark}")
    solved, episodes = sum(r["solved"] for r in results), sum(r["goals"] for r in results)
    differing = [r["native"] for r in results if whole and r["solved"] != r["expected"]]
    print(
        f"{solved} of {episodes} episodes solved in {seconds:.0f} s, {arguments.workers} processes"
    )
    if whole:
        print("differing: " + ", ".join(differing) if differing else "every count as expected")
    content = {
        "protocol": f"{arguments.goals} MT1(seed=42) training goals per task, {STEPS} steps, "
        "success at any step",
        "solved": solved,
        "episodes": episodes,
        "differing": differing,
        "seconds": round(seconds, 1),
        "processes": arguments.workers,
        "tasks": results,
    }
    write_record(arguments.json, "metaworld_experts", content)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
