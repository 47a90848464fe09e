"""What an evaluation costs beyond the loop that it replaces, and what processes and batches gain.

- "beside the bare loop": Meta-World's own env as its authors give it (MT1, reach-v3, corner2, 480 x
  480), in a loop of `reset`, `step` and `render`, beside `evaluate` on the same task, goals and
  pictures, with one process and with two. Actions are zeros.
- "one policy for 16 envs": a policy that sleeps for 50 ms and 2 ms more for each observation, asked
  by 16 workers and answering together, beside the same policy asked by one.
- "record keeping": `evaluate` beside `run_episode` alone, in long episodes, where steps count, and
  in episodes of one step, where episodes do.

Timed is `evaluate` itself from `on_start`, when it has checked what fits, to its last `on_record`,
when the last record is on the disk: resets, steps, pictures, policy, traces, the ways between the
processes, SQLite. Left out are what comes once per evaluation: starting processes, importing,
making envs, opening simulators. For that the workers stay from one turn to the next, and have
played an episode before. The bare loop is timed from its first `reset` to its last picture, in a
process that stays and has played before as well. Both draw one picture after each reset and each
step. The notes say whether both played the same episodes. No video is recorded.

Mesa draws with one thread a core of its own; "driver's threads off" (LP_NUM_THREADS=0) shows what
processes gain where each has one core, see vector_speed.py. The notes have, for each side, the
processor time of all its processes for a step, and how many cores other programs took; also the
ratios of the processor times, which a busy machine changes little. They include what comes once per
evaluation.

    python benchmarks/eval_speed.py --json benchmarks/results/eval_speed.json
"""

from __future__ import annotations

from harness import Found, Ratio, main, need, summarise, take_turns  # first: it limits threads

# isort: split
import contextlib
import functools
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from unittest import mock

import gymnasium as gym
import numpy as np
from processes import QUIET, find_descendants, read_machine, read_processor, wait_for_quiet
from vector_speed import set_variable

import vla_gym.evaluation.evaluate as evaluation
from vla_gym.evaluation.pool import Pool
from vla_gym.evaluation.records import Record
from vla_gym.evaluation.workers import LocalWorkers
from vla_gym.policy import connect
from vla_gym.registration import get_suite
from vla_gym.rendering import choose_backend
from vla_gym.rollout import run_episode

PATIENCE_S = 4.0
"""For a quiet machine: so long for each turn of a case, in all."""

SIZE = 480
"""Of Meta-World's pictures [pixels]."""

ENVS = 16
"""That share a policy."""

CALL_S, ITEM_S = 0.050, 0.002
"""What the shared policy takes for a call, and for each observation in it."""


class Work(NamedTuple):
    """What is played: suite, task, keywords of `gym.make`, control steps of an episode."""

    suite: str
    task: str
    keywords: dict[str, Any]
    steps: int

    @property
    def id(self) -> str:
        """Of the env."""
        return get_suite(self.suite).id(self.task)

    @property
    def all_keywords(self) -> dict[str, Any]:
        """With one that gives all episodes the same length."""
        return {**self.keywords, "terminate_on_success": False}


REACH = Work("MetaWorld", "Reach", {"cameras": ("primary",), "image_size": SIZE}, 100)
NO_CAMERA: dict[str, Any] = {"cameras": ()}
PICTURES = {"cameras": ("primary", "wrist"), "image_size": 128}


class Still:
    """A policy that does nothing, and takes `call_s` and `item_s` for each observation for it."""

    def __init__(self, call_s: float = 0.0, item_s: float = 0.0) -> None:
        self._call_s, self._item_s = call_s, item_s

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, None]:
        """Return zeros."""
        count = len(observation["proprio"])
        if self._call_s:
            time.sleep(self._call_s + self._item_s * count)
        return np.zeros((count, 7), np.float32), None


class Block(NamedTuple):
    """What was played in a turn: how long it took [s], and the return of each episode."""

    seconds: float
    returns: list[float | None]


class Player(Protocol):
    """Plays the episodes of the seeds 0, 1, ..."""

    def play(self, episodes: int) -> Block:
        """Play so many."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


class Evaluator:
    """`evaluate`, each time into a folder of its own, with worker processes that stay.

    Args:
        work: what it plays.
        make_policy: picklable.
        workers, batch: as `evaluate` takes them.
    """

    def __init__(
        self, work: Work, make_policy: Callable[[], Any] = Still, workers: int = 1, batch: int = 1
    ) -> None:
        self._work, self._policies = work, {"policy": make_policy}
        self._workers, self._batch = workers, batch
        self._folder = tempfile.TemporaryDirectory()
        self._turns = 0
        logs = Path(self._folder.name, "logs")
        crew = LocalWorkers(logs, workers, evaluation.TIMEOUT_S, batch)
        self._pool = Pool(crew, workers)
        self.play(workers)  # each worker has opened its simulator then

    def play(self, episodes: int) -> Block:
        """See `Player`."""
        self._turns += 1
        records: list[Record] = []
        started = ended = 0.0

        def start(count: int, finished: int) -> None:
            nonlocal started
            started = time.perf_counter()

        def end(record: Record) -> None:
            nonlocal ended
            ended = time.perf_counter()
            records.append(record)

        ours = {
            "_find_workers": lambda *arguments: None,
            "Pool": lambda *arguments: contextlib.nullcontext(self._pool),
        }
        with mock.patch.multiple(evaluation, **ours):
            evaluation.evaluate(
                self._policies,
                [self._work.id],
                folder=Path(self._folder.name, str(self._turns)),
                episodes=episodes,
                keywords=self._work.all_keywords,
                max_steps=self._work.steps,
                workers=self._workers,
                batch=self._batch,
                video=False,
                on_start=start,
                on_record=end,
            )
        found = {record.seed: record.episode_return for record in records}
        returns = [found[seed] for seed in range(episodes)]
        if lost := [record.error for record in records if not record.counts]:
            raise RuntimeError(f"{len(lost)} of {episodes} episodes have no outcome: {lost[0]}")
        return Block(ended - started, returns)

    def close(self) -> None:
        """See `Player`."""
        self._pool.__exit__()
        self._folder.cleanup()


class Apart:
    """A loop in a process of its own.

    Args:
        make: picklable; makes there what plays a number of episodes.
    """

    def __init__(self, make: Callable[[], Callable[[int], Block]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, make), daemon=True)
        self._process.start()
        self.play(1)

    def play(self, episodes: int) -> Block:
        """See `Player`."""
        self._pipe.send(episodes)
        return self._pipe.recv()

    def close(self) -> None:
        """See `Player`."""
        self._pipe.send(0)
        self._process.join()


def serve(pipe: Any, make: Callable[[], Callable[[int], Block]]) -> None:
    """Play as many episodes as come through the pipe, until it is none."""
    play = make()
    while episodes := pipe.recv():
        pipe.send(play(episodes))


class MetaWorldAlone:
    """Upstream's env in the loop that its users write, `steps` control steps an episode."""

    def __init__(self, steps: int) -> None:
        import metaworld

        benchmark = metaworld.MT1("reach-v3", seed=42)
        self._env: Any = benchmark.train_classes["reach-v3"](
            render_mode="rgb_array", camera_name="corner2", width=SIZE, height=SIZE
        )
        self._tasks, self._steps = benchmark.train_tasks, steps

    def __call__(self, episodes: int) -> Block:
        """Play episodes."""
        env, action = self._env, np.zeros(4, np.float32)
        returns: list[float | None] = []
        started = time.perf_counter()
        for number in range(episodes):
            env.set_task(self._tasks[number])
            env.reset()
            env.render()
            total = 0.0
            for _ in range(self._steps):
                _, reward, _, _, _ = env.step(action)
                env.render()
                total += float(reward)
            returns.append(total)
        return Block(time.perf_counter() - started, returns)


class Unrecorded:
    """`run_episode`, and nothing else."""

    def __init__(self, work: Work, trace: bool) -> None:
        self._trace = trace
        self._env = gym.make(
            work.id, max_episode_steps=work.steps, disable_env_checker=True, **work.all_keywords
        )
        sheet = self._env.unwrapped.spec_sheet  # type: ignore[attr-defined]  # all ids are ours
        self._policy = connect(Still(), sheet)

    def __call__(self, episodes: int) -> Block:
        """Play episodes."""
        started = time.perf_counter()
        played = [
            run_episode(self._env, self._policy, seed, trace=self._trace)
            for seed in range(episodes)
        ]
        seconds = time.perf_counter() - started
        return Block(seconds, [episode.episode_return for episode in played])


class Side:
    """One way to play, and what the processor did meanwhile.

    Args:
        player: has started its processes since `before`.
        before: the processes that there were.
        episodes: of a turn.
        steps: of an episode.
        end: when to wait for a quiet machine no more, as `time.monotonic` tells it.
    """

    def __init__(
        self, player: Player, before: set[int], episodes: int, steps: int, end: float
    ) -> None:
        self.player = player
        self._processes = find_descendants() - before
        self._episodes, self._steps, self._end = episodes, steps, end
        self._turns: list[tuple[float, ...]] = []
        self.returns: list[float | None] = []

    @property
    def processor_ms(self) -> list[float]:
        """What all processes took of the processor for a step, in each turn."""
        return [turn[0] for turn in self._turns]

    def run(self, turn: int) -> float:
        """Play a block; return the time for each step of an env [ms]."""
        wait_for_quiet(self._end - time.monotonic())
        everything, busy, started = read_machine(), self._read_processor(), time.perf_counter()
        block = self.player.play(self._episodes)
        seconds = time.perf_counter() - started
        busy = self._read_processor() - busy
        others = (read_machine() - everything - busy) / seconds
        count = self._episodes * self._steps
        self._turns.append((1000 * busy / count, busy / seconds, others))
        self.returns = block.returns
        return 1000 * block.seconds / count

    def describe(self) -> dict[str, float]:
        """Return medians over the turns."""
        processor, cores, others = (statistics.median(x) for x in zip(*self._turns, strict=True))
        return {
            "episodes": self._episodes,
            "processor_ms": round(processor, 4),
            "cores": round(cores, 3),
            "cores_of_others": round(others, 3),
        }

    def _read_processor(self) -> float:
        return time.process_time() + sum(map(read_processor, self._processes))


Start = tuple[Callable[[], Player], int]
"""What starts a side, and its episodes of a turn."""


def compare(starts: dict[str, Start], work: Work, ratios: list[Ratio], turns: int) -> Found:
    """Compare ways to play."""
    end = time.monotonic() + PATIENCE_S * turns
    sides: dict[str, Side] = {}
    with contextlib.ExitStack() as players:
        for name, (start, episodes) in starts.items():
            before = find_descendants()
            player = start()
            players.callback(player.close)
            sides[name] = Side(player, before, episodes, work.steps, end)
        values = take_turns({n: side.run for n, side in sides.items()}, turns, warm_up=0)
        notes: dict[str, Any] = {name: side.describe() for name, side in sides.items()}
    processor = {name: side.processor_ms for name, side in sides.items()}
    fair = all(note["cores_of_others"] < 2 * QUIET for note in notes.values())
    pairs = zip(*(side.returns for side in sides.values()), strict=False)
    notes["same_episodes"] = all(len(set(returns)) == 1 for returns in pairs)
    notes["processor"] = summarise(Found(processor, "ms a step", ratios))["ratios"]
    return Found(values, "ms a step", ratios, notes, fair)


def compare_metaworld(driver_threads: bool, turns: int) -> Found:
    """Compare the evaluator, with one process and with two, and Meta-World's own loop."""
    need("MetaWorld")
    os.environ["MUJOCO_GL"] = choose_backend()  # upstream would try a window first
    sides: dict[str, Start] = {
        "bare loop": (lambda: Apart(functools.partial(MetaWorldAlone, REACH.steps)), 2),
        "evaluate": (lambda: Evaluator(REACH), 2),
        "evaluate, 2 processes": (lambda: Evaluator(REACH, workers=2), 4),
    }
    ratios = [
        Ratio("evaluate", "bare loop", "cost"),
        Ratio("evaluate, 2 processes", "evaluate"),
    ]
    variable = contextlib.nullcontext() if driver_threads else set_variable("LP_NUM_THREADS", "0")
    with variable:
        return compare(sides, REACH, ratios, turns)


def compare_batch(keywords: dict[str, Any], turns: int) -> Found:
    """Compare a policy that answers many envs together and one that answers one."""
    work = Work("Toy", "Reach", keywords, 50)
    sleep = functools.partial(Still, CALL_S, ITEM_S)
    sides: dict[str, Start] = {
        "one env": (lambda: Evaluator(work, sleep), 2),
        "16 envs": (lambda: Evaluator(work, sleep, ENVS, ENVS), 2 * ENVS),
    }
    found = compare(sides, work, [Ratio("16 envs", "one env")], turns)
    ideal = ENVS * (CALL_S + ITEM_S) / (CALL_S + ENVS * ITEM_S)
    return found._replace(notes={**found.notes, "ideal": round(ideal, 2)})


def compare_records(steps: int, episodes: int, turns: int) -> Found:
    """Compare the evaluator with episodes that nobody records."""
    work = Work("Toy", "Reach", NO_CAMERA, steps)
    sides: dict[str, Start] = {
        "run_episode": (lambda: Apart(functools.partial(Unrecorded, work, False)), episodes),
        "run_episode, trace": (lambda: Apart(functools.partial(Unrecorded, work, True)), episodes),
        "evaluate": (lambda: Evaluator(work), episodes),
    }
    ratios = [Ratio(name, "run_episode", "cost") for name in ("run_episode, trace", "evaluate")]
    return compare(sides, work, ratios, turns)


CASES: dict[str, Callable[[int], Found]] = {
    "beside the bare loop: Meta-World, 480 px": functools.partial(compare_metaworld, True),
    "beside the bare loop: Meta-World, 480 px, driver's threads off": functools.partial(
        compare_metaworld, False
    ),
    "one policy for 16 envs: Toy, no camera": functools.partial(compare_batch, NO_CAMERA),
    "one policy for 16 envs: Toy, 2 x 128 px": functools.partial(compare_batch, PICTURES),
    "record keeping: Toy, episodes of 1000 steps": functools.partial(compare_records, 1000, 4),
    "record keeping: Toy, episodes of one step": functools.partial(compare_records, 1, 200),
}
QUICK = (
    "beside the bare loop: Meta-World, 480 px",
    "one policy for 16 envs: Toy, no camera",
    "record keeping: Toy, episodes of 1000 steps",
)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main("eval_speed", __doc__, CASES, turns=5, quick=2, in_quick=QUICK))
