"""How often `rlbench-expert` solves each task of the RLBench twin: 50 seeds, every variation.

Episode i has seed i and variation i modulo the number of variations; tasks with more than 50 play
each variation once. An episode ends at success or at the task's horizon.

    python benchmarks/twin_experts.py --json benchmarks/results/twin_experts.json

Exit status 1 where a task is solved in less than 95 % of its episodes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

SEEDS = 50
TARGET = 0.95


def play_task(task: str) -> dict[str, Any]:
    """Return task, episodes, solved, seeds that failed, mean and largest length."""
    import gymnasium as gym

    import vla_gym
    from vla_gym.policy import connect
    from vla_gym.rollout import run_episode
    from vla_gym.suites.rlbench_tasks import VARIATIONS

    env = gym.make(f"VLA/RLBench-{task}-v0", simulator="rlbench-twin", cameras=(), state=True)
    expert = connect(vla_gym.make_policy("rlbench-expert"), env.unwrapped.spec_sheet)
    episodes = [
        run_episode(env, expert, seed=seed, options={"variation": seed % VARIATIONS[task]})
        for seed in range(max(SEEDS, VARIATIONS[task]))
    ]
    env.close()
    lengths = [episode.length for episode in episodes]
    return {
        "task": task,
        "variations": VARIATIONS[task],
        "episodes": len(episodes),
        "solved": sum(episode.success for episode in episodes),
        "failed_seeds": [episode.seed for episode in episodes if not episode.success],
        "mean_length": round(sum(lengths) / len(lengths), 1),
        "longest": max(lengths),
    }


def main() -> int:
    """Run the benchmark from the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="*", help="names such as OpenDrawer; all without it")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()

    from harness import write_record  # here, since tests load this file alone

    from vla_gym.evaluation.metrics import success_interval
    from vla_gym.suites.rlbench_twin import TWIN_TASKS

    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # the processes share the cores, not the threads
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        rows = pool.map(play_task, arguments.tasks or sorted(TWIN_TASKS), chunksize=1)
    for row in rows:
        interval = success_interval(row["solved"], row["episodes"])
        assert interval is not None
        row["wilson95"] = [round(interval.low, 4), round(interval.high, 4)]
        print(
            f"{row['task']:<22}{row['solved']:>4} of {row['episodes']:<4} "
            f"[{100 * interval.low:.0f}, {100 * interval.high:.0f}] %   {row['variations']:>3} "
            f"variations   {row['mean_length']:>6} steps, at most {row['longest']}"
        )
    solved, episodes = sum(r["solved"] for r in rows), sum(r["episodes"] for r in rows)
    print(f"{solved} of {episodes} episodes solved")
    content = {
        "solved": solved,
        "episodes": episodes,
        "tasks": rows,
    }
    write_record(arguments.json, "twin_experts", content)
    return 0 if all(r["solved"] >= TARGET * r["episodes"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
