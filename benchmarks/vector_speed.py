"""Steps per second of our vector env beside Gymnasium's and Stable-Baselines3's, on the same envs.

All vector envs of a case are made first, then take turns in blocks of steps; the ratio of two is a
median over the turns of the ratio within a turn. Vector envs with different numbers of processes
get different shares of a busy machine, so before each block it waits for a quiet one, and a turn in
which other programs took more than a tenth of a core all the same does not count; where too few are
left, the result says "busy" and is of all turns. With each goes the processor time that all its
processes used for a step of one env, which a busy machine changes little. `--scaling` compares one
worker with two instead, on the same number of envs for each worker.

    python benchmarks/vector_speed.py --json benchmarks/results/vector_speed.json
    python benchmarks/vector_speed.py --scaling --json benchmarks/results/vector_scaling.json

Cases whose simulator is missing are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.vec_env import SubprocVecEnv

from vla_gym.env import find_obstacle
from vla_gym.evaluation.records import describe_machine, versions_of
from vla_gym.registration import get_suite
from vla_gym.vector import VLAVectorEnv, make_vec

PICTURE = {"cameras": ("primary",), "image_size": 128}
PICTURES = {"cameras": ("primary", "wrist"), "image_size": 128}
FAST = {"render_quality": "fast"}

CASES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "Toy, no camera": ("Toy", "Reach", {"cameras": ()}, 400),
    "Toy, 2 x 128 px": ("Toy", "Reach", PICTURES, 100),
    "Meta-World, no camera": ("MetaWorld", "Reach", {"cameras": ()}, 100),
    "Meta-World, 1 x 128 px, exact": ("MetaWorld", "Reach", PICTURE, 3),
    "Meta-World, 1 x 128 px, fast": ("MetaWorld", "Reach", {**PICTURE, **FAST}, 20),
    "Meta-World, 2 x 128 px, fast": ("MetaWorld", "Reach", {**PICTURES, **FAST}, 12),
    "robosuite, 2 x 128 px, exact": ("Robosuite", "Lift", PICTURES, 3),
    "robosuite, 2 x 128 px, fast": ("Robosuite", "Lift", {**PICTURES, **FAST}, 8),
    "RLBench twin, 2 x 128 px, fast": (
        "RLBench", "ReachTarget", {**PICTURES, **FAST, "simulator": "rlbench-twin"}, 8,
    ),
    "CALVIN twin, 2 x 128 px, fast": (
        "CALVIN", "OpenDrawer", {**PICTURES, **FAST, "simulator": "calvin-twin"}, 8,
    ),
}  # fmt: skip
"""Name -> suite, task, keywords, steps in a block."""

QUIET = 0.1
"""Most that other programs may take of the machine in a turn that counts [cores]."""

FEWEST = 5
"""Turns that must count."""


class Turn(NamedTuple):
    """One block of steps of one side: seconds, processor seconds, cores that others took."""

    seconds: float
    busy: float
    others: float


class Side:
    """One vector env: how it steps, and the processor time of its processes.

    Args:
        make: makes and resets it.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        before = find_descendants()
        self.envs = make()
        self._processes = find_descendants() - before
        self.memory = sum(_read_pss(process) for process in self._processes)

    def run(self, actions: np.ndarray) -> Turn:
        """Take steps, actions (steps, envs, 7)."""
        everything, busy, started = read_machine(), self._read_processor(), time.perf_counter()
        for action in actions:
            self.envs.step(action)
        seconds = time.perf_counter() - started
        busy = self._read_processor() - busy
        return Turn(seconds, busy, (read_machine() - everything - busy) / seconds)

    def _read_processor(self) -> float:
        return time.process_time() + sum(map(_read_times, self._processes))


def read_machine() -> float:
    """Return the processor time of all programs since the machine started [s]."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    idle = int(fields[3]) + int(fields[4])  # and waiting for disks
    return (sum(map(int, fields[:8])) - idle) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(limit_s: float) -> None:
    """Return when other programs leave the machine alone, or after `limit_s`."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        before = read_machine()
        time.sleep(0.3)
        if (read_machine() - before) / 0.3 < QUIET:
            return


def find_descendants() -> set[int]:
    """Return the processes that this one has started, and those have started, as Linux shows."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(_read_stat(stat)[1])
    found, new = set(), {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new}
        found |= new
    return found


def _read_stat(stat: Path) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on: state, parent, ..."""
    return stat.read_text().rpartition(")")[2].split()


def _read_times(pid: int) -> float:
    """Return the processor time of a process, of the user and of the system [s]."""
    fields = _read_stat(Path(f"/proc/{pid}/stat"))
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _read_pss(pid: int) -> float:
    """Return the memory of a process [MB], with its part of what it shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def list_makers(env_id: str, keywords: dict[str, Any], num_envs: int) -> dict[str, Any]:
    """Return vector env -> function that makes and resets it."""
    keywords = {**keywords, "instruction": "bytes", "max_episode_steps": 10**6}  # SB3 takes no text
    makers = [functools.partial(gym.make, f"vla_gym:{env_id}", **keywords)] * num_envs

    def reset(make: Callable[[], Any]) -> Any:
        envs = make()
        envs.reset()
        return envs

    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: VLAVectorEnv(makers),
        "gymnasium AsyncVectorEnv": lambda: AsyncVectorEnv(makers, context="spawn"),
        "SB3 SubprocVecEnv": lambda: SubprocVecEnv(makers, start_method="spawn"),  # pyright: ignore[reportArgumentType]
        "ours, threads": lambda: VLAVectorEnv(makers, kind="thread"),
    }
    return {name: functools.partial(reset, make) for name, make in sides.items()}


def list_scaled(env_id: str, keywords: dict[str, Any], num_envs: int) -> dict[str, Any]:
    """Return one and two workers of `num_envs` envs each."""
    keywords = {**keywords, "max_episode_steps": 10**6}

    def make(workers: int) -> Any:
        envs = make_vec([env_id] * num_envs * workers, workers=workers, **keywords)
        envs.reset()
        return envs

    return {f"{n} worker{'s' * (n > 1)}": functools.partial(make, n) for n in (1, 2)}


def measure(
    makers: dict[str, Any], steps: int, blocks: int, warm_up: int, patience_s: float
) -> dict[str, Any]:
    """Return side -> its turns and what follows from them."""
    sides = {name: Side(make) for name, make in makers.items()}
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    random = np.random.default_rng(0)
    end = time.monotonic() + patience_s
    for block in range(-warm_up, blocks):
        order = list(sides)
        random.shuffle(order)
        for name in order:
            envs = sides[name].envs
            actions = random.uniform(-1, 1, (steps, envs.num_envs, 7)).astype(np.float32)
            if block >= 0:
                wait_for_quiet(end - time.monotonic())
            turn = sides[name].run(actions)
            if block >= 0:
                turns[name].append(turn)
    quiet = [i for i in range(blocks) if all(t[i].others < QUIET for t in turns.values())]
    counted = quiet if len(quiet) >= FEWEST else range(blocks)
    result = {}
    for name, side in sides.items():
        total = steps * side.envs.num_envs
        own = [turns[name][i] for i in counted]
        result[name] = {
            "envs": side.envs.num_envs,
            "steps_per_second": [round(total / turn.seconds, 2) for turn in own],
            "processor_ms": round(1000 * statistics.median(t.busy for t in own) / total, 4),
            "cores": round(statistics.median(t.busy / t.seconds for t in own), 3),
            "others": round(statistics.median(t.others for t in own), 3),
            "memory_mb": round(side.memory, 1),
            "busy": counted is not quiet,
        }
        side.envs.close()
    return result


def compare(rows: dict[str, Any], name: str, base: str) -> dict[str, float]:
    """Return the ratio of the steps per second of two sides: median and quartiles over turns.

    `processor` is the ratio of the steps per processor second: what is left of it where both keep
    all cores busy.
    """
    pairs = zip(rows[name]["steps_per_second"], rows[base]["steps_per_second"], strict=True)
    ratios = [a / b for a, b in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    figures = {"median": middle, "q1": low, "q3": high}
    figures["processor"] = rows[base]["processor_ms"] / rows[name]["processor_ms"]
    return {"n": len(ratios), **{name: round(value, 3) for name, value in figures.items()}}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--envs", type=int, default=4, help="envs; with --scaling, of each worker")
    parser.add_argument("--blocks", type=int, default=15, help="turns of each side")
    parser.add_argument("--warm-up", type=int, default=2, help="turns before")
    parser.add_argument("--patience", type=float, default=120, help="for quiet, each case [s]")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--scaling", action="store_true", help="one worker against two")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()

    command = shlex.join(["python", *sys.argv])
    names = ("vla-gym", "gymnasium", "stable-baselines3", "numpy", "mujoco", "metaworld")
    versions, machine, load = versions_of(names), describe_machine(), os.getloadavg()[0]
    print(f"{command}\n{machine}, load {load:.1f} before\n{versions}")
    record: dict[str, Any] = {
        "benchmark": "vector_scaling" if arguments.scaling else "vector_speed",
        "command": command,
        "blocks": arguments.blocks,
        "results": {},
        "versions": versions,
        "machine": machine,
        "load": [round(load, 2), 0.0],
    }
    results = record["results"]
    for case, (suite, task, keywords, steps) in CASES.items():
        if arguments.only not in case:
            continue
        simulators = {info.name: info for info in get_suite(suite).simulators}
        asked = keywords.get("simulator", next(iter(simulators)))
        obstacle = find_obstacle(get_suite(suite), simulators[asked])
        if obstacle is not None:
            print(f"{case}: left out, {obstacle}")
            continue
        list_them = list_scaled if arguments.scaling else list_makers
        makers = list_them(get_suite(suite).id(task), keywords, arguments.envs)
        before = os.getloadavg()[0]
        rows = measure(makers, steps, arguments.blocks, arguments.warm_up, arguments.patience)
        base = "1 worker" if arguments.scaling else "ours"
        ratios = {
            other: compare(rows, *((other, base) if arguments.scaling else (base, other)))
            for other in rows
            if other != base
        }
        load_now = [round(before, 2), round(os.getloadavg()[0], 2)]
        for name, row in rows.items():
            print(
                f"{case}, {row['envs']} envs, {name:<25} "
                f"{statistics.median(row['steps_per_second']):9.1f} steps/s, "
                f"{row['processor_ms']:8.3f} ms of processor a step, {row['cores']:.2f} cores, "
                f"others {row['others']:.2f}, {row['memory_mb']:6.0f} MB"
            )
        for name, ratio in ratios.items():
            words = f"{name} against {base}" if arguments.scaling else f"{base} against {name}"
            print(
                f"{case}: {words}: {ratio['median']} ({ratio['q1']} to {ratio['q3']}), "
                f"{ratio['n']} turns; a processor second: {ratio['processor']}"
                + ("; busy" if rows[base]["busy"] else "")
            )
        results[case] = {"rows": rows, "ratios": ratios, "load": load_now}
        if arguments.json:  # after each case: an interruption loses one
            record["load"][1] = round(os.getloadavg()[0], 2)
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
