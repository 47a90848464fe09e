"""Our vector env beside Gymnasium's, Stable-Baselines3's and a ceiling; two workers against one.

"beside": all sides have the same four envs. The ceiling is what the machine gives without a vector
layer: one process for each core that steps its share of the envs with actions it has from the
start, waits for nobody and hands nothing over. "scaling": one worker process against two, the same
number of envs to each.

A cost is the time of a step of one env. Sides with different numbers of processes get different
shares of a busy machine, so before each block it waits for a quiet one, though not for long, and
the notes say how many cores other programs took all the same. They also have the processor time
that all processes of a side used for a step of one env, which a busy machine changes little, the
cores that it kept busy, and its memory.

Mesa draws with one thread a core of its own. So a process that draws exact pictures keeps more than
one core busy, and two of them cannot be twice as fast. "driver's threads off" (LP_NUM_THREADS=0)
shows what processes gain from cores where each has one.

    python benchmarks/vector_speed.py --json benchmarks/results/vector_speed.json
"""

from __future__ import annotations

from harness import Found, Ratio, main, need, take_turns  # first: it limits threads

# isort: split
import contextlib
import functools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from processes import (
    QUIET,
    find_descendants,
    read_machine,
    read_memory,
    read_processor,
    wait_for_quiet,
)

from vla_gym.registration import get_suite

PATIENCE_S = 4.0
"""For a quiet machine: so long for each turn of a case, in all."""

ENVS = 4
"""Of a vector env; with "scaling", of each worker."""

CORES = len(os.sched_getaffinity(0))

Make = Callable[[], Any]


class Setting(NamedTuple):
    """What is stepped: suite, task, keywords of `gym.make`, steps of a block."""

    suite: str
    task: str
    keywords: dict[str, Any]
    steps: int


PICTURE = {"cameras": ("primary",), "image_size": 128}
PICTURES = {"cameras": ("primary", "wrist"), "image_size": 128}
FAST = {"render_quality": "fast"}
RLBENCH, CALVIN = {"simulator": "rlbench-twin"}, {"simulator": "calvin-twin"}
SETTINGS = {
    "Toy, no camera": Setting("Toy", "Reach", {"cameras": ()}, 400),
    "Toy, 2 x 128 px": Setting("Toy", "Reach", PICTURES, 100),
    "Meta-World, no camera": Setting("MetaWorld", "Reach", {"cameras": ()}, 100),
    "Meta-World, 1 x 128 px, exact": Setting("MetaWorld", "Reach", PICTURE, 3),
    "Meta-World, 1 x 128 px, fast": Setting("MetaWorld", "Reach", {**PICTURE, **FAST}, 20),
    "Meta-World, 2 x 128 px, fast": Setting("MetaWorld", "Reach", {**PICTURES, **FAST}, 12),
    "robosuite, 2 x 128 px, exact": Setting("Robosuite", "Lift", PICTURES, 3),
    "robosuite, 2 x 128 px, fast": Setting("Robosuite", "Lift", {**PICTURES, **FAST}, 8),
    "RLBench twin, 2 x 128 px, fast": Setting(
        "RLBench", "ReachTarget", {**PICTURES, **FAST, **RLBENCH}, 8
    ),
    "CALVIN twin, 2 x 128 px, fast": Setting(
        "CALVIN", "OpenDrawer", {**PICTURES, **FAST, **CALVIN}, 8
    ),
}


class Unlayered:
    """Processes that step their envs as fast as they can: what no vector layer can exceed.

    Args:
        makers: of the envs, dealt out to one process for each core.
    """

    def __init__(self, makers: list[Make]) -> None:
        self.num_envs = len(makers)
        self._shares = [range(self.num_envs)[i::CORES] for i in range(min(CORES, len(makers)))]
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for share in self._shares:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=step_alone, args=(theirs, [makers[i] for i in share]), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        self._wait()

    def play(self, actions: np.ndarray) -> None:
        """Take steps, actions (steps, envs, 7)."""
        for pipe, share in zip(self._pipes, self._shares, strict=True):
            pipe.send(actions[:, list(share)])
        self._wait()

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join()

    def _wait(self) -> None:
        for pipe in self._pipes:
            pipe.recv()


def step_alone(pipe: Any, makers: list[Make]) -> None:
    """Step envs of this process with all actions that come through the pipe, until None comes."""
    envs = [make() for make in makers]
    for env in envs:
        env.reset()
    pipe.send(True)
    while (actions := pipe.recv()) is not None:
        for row in actions:
            for env, action in zip(envs, row, strict=True):
                env.step(action)
        pipe.send(True)
    for env in envs:
        env.close()


class Side:
    """One vector env, and the processor time of its processes.

    Args:
        make: makes and resets it.
        steps: of a block.
        end: when to wait for a quiet machine no more, as `time.monotonic` tells it.
    """

    def __init__(self, make: Make, steps: int, end: float) -> None:
        before = find_descendants()
        self.envs = make()
        self._processes = find_descendants() - before
        self._steps, self._end = steps, end
        self._memory = sum(map(read_memory, self._processes))
        self._turns: list[tuple[float, float, float]] = []

    def run(self, turn: int) -> float:
        """Play a block; return the time of a step of one env [ms]."""
        shape = (self._steps, self.envs.num_envs, 7)
        actions = np.random.default_rng(turn + 9).uniform(-1, 1, shape).astype(np.float32)
        if turn >= 0:
            wait_for_quiet(self._end - time.monotonic())
        everything, busy, started = read_machine(), self._read_processor(), time.perf_counter()
        if isinstance(self.envs, Unlayered):
            self.envs.play(actions)
        else:
            for action in actions:
                self.envs.step(action)
        seconds = time.perf_counter() - started
        busy = self._read_processor() - busy
        others = (read_machine() - everything - busy) / seconds
        count = self._steps * self.envs.num_envs
        if turn >= 0:
            self._turns.append((1000 * busy / count, busy / seconds, others))
        return 1000 * seconds / count

    def describe(self) -> dict[str, float]:
        """Return medians over the turns, and memory."""
        processor, cores, others = (statistics.median(x) for x in zip(*self._turns, strict=True))
        return {
            "envs": self.envs.num_envs,
            "processor_ms": round(processor, 4),
            "cores": round(cores, 3),
            "cores_of_others": round(others, 3),
            "memory_mb": round(self._memory, 1),
        }

    def _read_processor(self) -> float:
        return time.process_time() + sum(map(read_processor, self._processes))


def list_makers(setting: Setting) -> dict[str, Make]:
    """Return vector env -> function that makes and resets it."""
    from gymnasium.vector import AsyncVectorEnv
    from stable_baselines3.common.vec_env import SubprocVecEnv

    from vla_gym.vector import VLAVectorEnv

    keywords = {"instruction": "bytes", "max_episode_steps": 10**6}  # SB3 takes no text
    env_id = f"vla_gym:{get_suite(setting.suite).id(setting.task)}"
    makers: list[Make]
    makers = [functools.partial(gym.make, env_id, **setting.keywords, **keywords)] * ENVS

    def reset(make: Make) -> Any:
        envs = make()
        envs.reset()
        return envs

    sides: dict[str, Make] = {
        "ours": lambda: VLAVectorEnv(makers),
        "gymnasium AsyncVectorEnv": lambda: AsyncVectorEnv(makers, context="spawn"),
        "SB3 SubprocVecEnv": lambda: SubprocVecEnv(makers, start_method="spawn"),
        "ours, threads": lambda: VLAVectorEnv(makers, kind="thread"),
    }
    started = {name: functools.partial(reset, make) for name, make in sides.items()}
    return {"ceiling": lambda: Unlayered(makers), **started}


def list_workers(setting: Setting) -> dict[str, Make]:
    """Return one and two workers of as many envs each."""
    from vla_gym.vector import make_vec

    def make(workers: int) -> Any:
        ids = [get_suite(setting.suite).id(setting.task)] * ENVS * workers
        envs = make_vec(ids, workers=workers, max_episode_steps=10**6, **setting.keywords)
        envs.reset()
        return envs

    return {"1 worker": lambda: make(1), "2 workers": lambda: make(2)}


@contextlib.contextmanager
def set_variable(name: str, value: str) -> Iterator[None]:
    """Have an environment variable set, for the processes started inside."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def compare(setting: Setting, makers: dict[str, Make], turns: int) -> Found:
    """Compare vector envs."""
    end = time.monotonic() + PATIENCE_S * turns
    sides = {name: Side(make, setting.steps, end) for name, make in makers.items()}
    values = take_turns({name: side.run for name, side in sides.items()}, turns, warm_up=2)
    notes = {name: side.describe() for name, side in sides.items()}
    for side in sides.values():
        side.envs.close()
    if "2 workers" in sides:
        ratios = [Ratio("2 workers", "1 worker")]
    else:
        layers = [name for name in sides if name not in ("ours", "ceiling")]
        ratios = [Ratio("ours", name) for name in layers]
        ratios += [Ratio(name, "ceiling") for name in ("ours", *layers)]
    fair = all(note["cores_of_others"] < 2 * QUIET for note in notes.values())
    return Found(values, "ms a step", ratios, notes, fair)


def compare_layers(setting: Setting, turns: int) -> Found:
    """Compare our vector env with others and the ceiling."""
    need(setting.suite, setting.keywords.get("simulator"))
    return compare(setting, list_makers(setting), turns)


def compare_workers(setting: Setting, driver_threads: bool, turns: int) -> Found:
    """Compare two workers with one."""
    need(setting.suite, setting.keywords.get("simulator"))
    variable = contextlib.nullcontext() if driver_threads else set_variable("LP_NUM_THREADS", "0")
    with variable:
        return compare(setting, list_workers(setting), turns)


def list_cases() -> dict[str, Callable[[int], Found]]:
    """Return all cases."""
    cases: dict[str, Callable[[int], Found]] = {}
    for name, setting in SETTINGS.items():
        cases[f"beside: {name}"] = functools.partial(compare_layers, setting)
    for name, setting in SETTINGS.items():
        cases[f"scaling: {name}"] = functools.partial(compare_workers, setting, True)
        if "px" in name and not name.startswith("Toy"):
            without = functools.partial(compare_workers, setting, False)
            cases[f"scaling: {name}, driver's threads off"] = without
    return cases


QUICK = (
    "beside: Meta-World, 1 x 128 px, fast",
    "scaling: Meta-World, 1 x 128 px, exact",
    "scaling: Meta-World, 1 x 128 px, exact, driver's threads off",
    "scaling: Meta-World, 1 x 128 px, fast",
)


if __name__ == "__main__":
    sys.exit(main("vector_speed", __doc__, list_cases(), turns=9, quick=3, in_quick=QUICK))
