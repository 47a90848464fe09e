"""How often `calvin-expert` solves each of CALVIN's 34 tasks, and how far it comes in the chains.

Episode i has seed i; chain i is the i-th of the published 1000. An episode ends at success or after
360 steps for each instruction. The original needs CALVIN_ENV_ROOT.

    python benchmarks/calvin_experts.py --json benchmarks/results/calvin_experts.json
    python benchmarks/calvin_experts.py --simulator pybullet --json benchmarks/results/...

Exit status 1 where a task is solved in less than 95 % of its episodes, or where the average length
of the chains is below 4.5.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TARGET, CHAIN_TARGET = 0.95, 4.5

CHUNK = 10
"""Episodes that a process plays at a time, so that all are busy to the end."""

Job = tuple[str, str, str, int, int]


def play(job: Job) -> dict[str, Any]:
    """Play seeds `first` to `last - 1` of a task; return how each went."""
    simulator, scene, task, first, last = job
    import gymnasium as gym

    import vla_gym
    from vla_gym.policy import connect
    from vla_gym.registration import get_suite
    from vla_gym.rollout import run_episode

    suite = get_suite("CALVIN")
    env = gym.make(suite.id(task), simulator=simulator, scene=scene, cameras=(), state=True)
    expert = connect(vla_gym.make_policy("calvin-expert"), env.unwrapped.spec_sheet)
    assert suite.protocol_options is not None
    episodes = [
        run_episode(
            env, expert, seed=seed, options=dict(suite.protocol_options(suite.tasks[task], seed))
        )
        for seed in range(first, last)
    ]
    env.close()
    return {
        "task": task,
        "solved": [episode.success for episode in episodes],
        "lengths": [episode.length for episode in episodes],
        "chain_lengths": [episode.chain_length for episode in episodes],
        "failed_seeds": [episode.seed for episode in episodes if not episode.success],
    }


def merge(task: str, parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the parts of one task as one row."""
    mine = [part for part in parts if part["task"] == task]
    return {"task": task} | {
        name: [value for part in mine for value in part[name]]
        for name in ("solved", "lengths", "chain_lengths", "failed_seeds")
    }


def report_task(row: dict[str, Any]) -> dict[str, Any]:
    """Print and return the success rate of one task with its interval."""
    from vla_gym.evaluation.metrics import success_interval

    n, solved = len(row["solved"]), sum(row["solved"])
    interval = success_interval(solved, n)
    assert interval is not None
    low, high = interval
    mean = sum(row["lengths"]) / n
    print(
        f"{row['task']:<24}{solved:>4} of {n:<4} [{100 * low:.0f}, {100 * high:.0f}] %   "
        f"{mean:>6.1f} steps, at most {max(row['lengths'])}"
    )
    return {
        "task": row["task"],
        "episodes": n,
        "solved": solved,
        "wilson95": [round(low, 4), round(high, 4)],
        "failed_seeds": row["failed_seeds"],
        "mean_length": round(mean, 1),
        "longest": max(row["lengths"]),
    }


def report_chains(row: dict[str, Any]) -> dict[str, Any]:
    """Print and return SR_1 to SR_5 and the average length, with bootstrap intervals."""
    import numpy as np

    from vla_gym.evaluation.metrics import CHAIN_TASKS, bootstrap_intervals

    lengths = np.array(row["chain_lengths"])
    reached = (lengths[:, None] > np.arange(CHAIN_TASKS)).astype(float)
    columns = [*reached.T, lengths.astype(float)]
    intervals = bootstrap_intervals(np.stack(columns)) or [None] * len(columns)
    names = [*(f"sr_{k}" for k in range(1, CHAIN_TASKS + 1)), "average_length"]
    result: dict[str, Any] = {"chains": len(lengths), "lengths": lengths.tolist()}
    for name, values, interval in zip(names, columns, intervals, strict=True):
        result[name] = round(float(values.mean()), 4)
        result[f"{name}_bootstrap95"] = None if interval is None else np.round(interval, 4).tolist()
        print(f"{name:<16}{result[name]:.3f}  {result[f'{name}_bootstrap95']}")
    return result


def main() -> int:
    """Run the benchmark from the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulator", default="calvin-twin", choices=("calvin-twin", "pybullet"))
    parser.add_argument("--scene", default="D", choices=tuple("ABCD"), help="of the single tasks")
    parser.add_argument("--tasks", nargs="*", help="names such as OpenDrawer; all without it")
    parser.add_argument("--seeds", type=int, default=50, help="episodes of each task")
    parser.add_argument("--chains", type=int, default=100, help="0 for none")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()

    from harness import write_record  # here, since tests load this file alone

    from vla_gym.suites.calvin.checkout import find_commit, find_root
    from vla_gym.suites.calvin.tasks import TASKS

    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # the processes share the cores, not the threads
    names = [name for name in TASKS if name != "Chain"]
    names = names if arguments.tasks is None else arguments.tasks
    wanted = [(name, arguments.scene, arguments.seeds) for name in names]
    wanted += [("Chain", "D", arguments.chains)] if arguments.chains else []
    jobs: list[Job] = [
        (arguments.simulator, scene, name, first, min(first + CHUNK, count))
        for name, scene, count in wanted
        for first in range(0, count, CHUNK)
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        parts = pool.map(play, jobs, chunksize=1)
    rows = [report_task(merge(name, parts)) for name in names]
    solved, episodes = sum(r["solved"] for r in rows), sum(r["episodes"] for r in rows)
    print(f"{arguments.simulator}, scene {arguments.scene}: {solved} of {episodes} episodes solved")
    chains = report_chains(merge("Chain", parts)) if arguments.chains else None
    root = find_root() if arguments.simulator == "pybullet" else None
    content = {
        "simulator": arguments.simulator,
        "scene": arguments.scene,
        "calvin_env": None if root is None else find_commit(root),
        "solved": solved,
        "episodes": episodes,
        "tasks": rows,
        "chain": chains,
    }
    write_record(arguments.json, "calvin_experts", content)
    enough = all(r["solved"] >= TARGET * r["episodes"] for r in rows)
    far = chains is None or chains["average_length"] >= CHAIN_TARGET
    return 0 if enough and far else 1


if __name__ == "__main__":
    sys.exit(main())
