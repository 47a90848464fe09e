"""Processes that each step one env, and a pool that goes on when one of them dies.

An episode is a function of env, policy and seed, so it does not matter which process plays it nor
how many there are. Every episode runs in a worker, also with a single one: a simulator that takes
its process down takes one episode with it, not the evaluation.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import hashlib
import json
import logging
import math
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym

from vla_gym.contract import SpecSheet
from vla_gym.errors import ContractMismatch, DependencyNotInstalled
from vla_gym.evaluation.records import versions_of
from vla_gym.evaluation.video import write_video
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import MAX_FRAMES, Episode, run_episode

__all__ = ["Check", "Died", "Failed", "Job", "Pair", "Play", "Played", "Pool", "Stage"]

logger = logging.getLogger(__name__)

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Sums in another order round differently, so that scores would depend on the number of threads."""

VIDEO_FPS = (6.0, 15.0)
"""Slowest and fastest playback [pictures/s]: some suites act at 80 Hz, too fast to follow."""


@dataclass(frozen=True)
class Pair:
    """A policy and a task, with all that is needed to make both in another process.

    Attributes:
        policy: label in the evaluation. It stands for the source too, which is not compared: a
            `functools.partial` that has been pickled no longer equals itself.
        source: what `make_policy` takes, or a picklable function that returns a policy.
        id: as `gym.make` takes it, with its version.
        keywords: of `gym.make`; they go before what the policy's spec asks for.
        max_steps: horizon [control steps], None for the task's own.
        deterministic: passed to the policy.
    """

    policy: str
    source: str | Callable[[], Any] = field(compare=False)
    id: str
    keywords: dict[str, Any] = field(default_factory=dict, hash=False)
    max_steps: int | None = None
    deterministic: bool = True


@dataclass(frozen=True)
class Check:
    """Job: make the policy and the env, and answer with the protocol (a dict)."""

    pair: Pair

    def run(self, stage: Stage) -> dict[str, Any]:
        """Do it in a worker."""
        return stage.check(self)


@dataclass(frozen=True)
class Play:
    """Job: play one episode, reset with `options`; with `video`, record it into that file."""

    pair: Pair
    episode: int
    seed: int
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    video: Path | None = None

    def run(self, stage: Stage) -> Played:
        """Do it in a worker."""
        return stage.play(self)


@dataclass(frozen=True)
class Played:
    """Answer: the episode (without its frames), and whether there is a video."""

    episode: Episode
    video: bool


@dataclass(frozen=True)
class Failed:
    """Answer: the job raised an error."""

    error: Exception
    text: str


@dataclass(frozen=True)
class Died:
    """Answer in the place of a worker that ended before it gave one."""

    text: str


class Job(Protocol):
    """What a worker can be given: picklable, and answers with something picklable."""

    @property
    def pair(self) -> Pair:
        """The policy and the task that it is about."""
        ...

    def run(self, stage: Stage) -> Any:
        """Do it in a worker, with its policy and its env."""
        ...


Answer = Any
"""What a job's `run` returns, or `Failed` or `Died` in its place."""


class Pool:
    """Worker processes that play jobs one at a time.

    Each keeps to one policy and task as long as there is work for it.

    Args:
        workers: number of processes.
        logs: folder for what the workers write to standard output and error.
    """

    def __init__(self, workers: int, logs: Path) -> None:
        self._logs = logs
        self._slots: list[_Worker | None] = [None] * workers

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._slots:
            if worker is not None:
                worker.stop()

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Answer]]:
        """Play all jobs and yield each with its answer, in the order in which they end."""
        pending: dict[Pair, deque[Job]] = {}
        for job in jobs:
            pending.setdefault(job.pair, deque()).append(job)
        self._assign(pending)
        while any(worker is not None and worker.job is not None for worker in self._slots):
            for slot, job, answer in self._collect():
                if isinstance(answer, Died):
                    self._slots[slot] = None
                self._assign(pending)  # before yielding, so that no worker waits for the caller
                yield job, answer

    def _assign(self, pending: dict[Pair, deque[Job]]) -> None:
        for slot, worker in enumerate(self._slots):
            if worker is not None and worker.job is not None:
                continue
            pair = self._choose(worker, pending)
            if pair is None:
                continue
            if worker is None or not worker.alive():
                worker = self._slots[slot] = _Worker(self._logs / f"worker-{slot}.log")
            job = pending[pair].popleft()
            if not pending[pair]:
                del pending[pair]
            worker.give(job)

    def _choose(self, worker: _Worker | None, pending: dict[Pair, deque[Job]]) -> Pair | None:
        """Prefer the worker's own pair, then its own policy, then the most work per process."""
        if not pending:
            return None
        last = worker.pair if worker is not None else None
        if last in pending:
            return last
        busy = [w.pair for w in self._slots if w is not None and w.job is not None]
        return max(
            pending,
            key=lambda pair: (
                last is not None and pair.policy == last.policy,
                len(pending[pair]) / (1 + busy.count(pair)),
            ),
        )

    def _collect(self) -> list[tuple[int, Job, Answer]]:
        busy = {
            worker.connection: (slot, worker)
            for slot, worker in enumerate(self._slots)
            if worker is not None and worker.job is not None
        }
        answers = []
        for connection in wait(list(busy)):  # the end of a process closes its connection
            slot, worker = busy[connection]  # type: ignore[index]  # only connections are given
            job = worker.job
            assert job is not None
            answers.append((slot, job, worker.take()))
        return answers


class _Worker:
    """The parent's side of one process."""

    def __init__(self, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")  # GL and simulators do not survive a fork
        self.connection, theirs = context.Pipe()
        self._log = log
        self._process = context.Process(target=_serve, args=(theirs, str(log)), daemon=True)
        with _one_thread():
            self._process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        self.job: Job | None = None
        self.pair: Pair | None = None

    def alive(self) -> bool:
        return self._process.is_alive()

    def give(self, job: Job) -> None:
        self.job, self.pair = job, job.pair
        with contextlib.suppress(OSError):  # it has died: take() finds that out
            self.connection.send(job)

    def take(self) -> Answer:
        self.job = None
        try:
            return self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._process.join(timeout=10)
            self.stop()
            return Died(f"the process that played it ended: {self._cause()} (see {self._log.name})")

    def stop(self) -> None:
        self.connection.close()  # an idle one ends by itself and closes its env
        self._process.join(timeout=2 if self.job is None else 0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(timeout=10)

    def _cause(self) -> str:
        code = self._process.exitcode
        if code is None:
            return "it closed its connection"
        if code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let a process that is started inside use one thread; libraries read this as they load."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, log: str) -> None:
    """Answer jobs until the parent closes the connection: all that a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    _write_into(log)
    faulthandler.enable()
    stage = Stage()
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            break
        try:
            answer: Answer = job.run(stage)
        except Exception as error:  # the episode boundary: recorded, counted, shown
            traceback.print_exc()
            stage.clear()  # what is left of the env cannot be trusted
            answer = Failed(_portable(error), f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        try:
            connection.send(answer)
        except OSError:
            break
    stage.clear()


def _write_into(log: str) -> None:
    """Send standard output and error of this process, also of C libraries, into a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever the error's own pickling raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class Stage:
    """The one policy and the one env that a worker has open."""

    def __init__(self) -> None:
        self._label: str | None = None
        self._policy: Any = None
        self._pair: Pair | None = None
        self._env: gym.Env[Any, Any] | None = None
        self._actor: Any = None
        self._pictures = True

    def check(self, job: Check) -> dict[str, Any]:
        """Return the protocol that the job's pair plays under."""
        env, _ = self.open(job.pair)
        sheet: SpecSheet = env.unwrapped.spec_sheet  # type: ignore[attr-defined]  # all ids are ours
        return _protocol(sheet, env, job.pair)

    def play(self, job: Play) -> Played:
        """Play the job's episode, and film it if it says so."""
        env, actor = self.open(job.pair)
        play = functools.partial(
            run_episode,
            env,
            actor,
            job.seed,
            options=job.options,
            deterministic=job.pair.deterministic,
        )
        if job.video is None or not self._pictures:
            episode = play(record_every=None)
            return Played(episode, video=False)
        control_hz = float(env.metadata["render_fps"])
        horizon = env.spec.max_episode_steps if env.spec is not None else None
        try:
            episode = play(record_every=math.ceil((horizon or 1) / (3 * MAX_FRAMES)))
            slowest, fastest = VIDEO_FPS
            fps = min(max(control_hz / episode.frame_stride, slowest), fastest)
            write_video(job.video, episode.frames, fps)
        except DependencyNotInstalled as error:  # no GL, no ffmpeg: the score does not need them
            logger.warning("no video: %s", error)
            self._pictures = False
            return self.play(job)
        return Played(replace(episode, frames=()), video=True)

    def clear(self) -> None:
        """Close the env and forget the policy."""
        if self._env is not None:
            with contextlib.suppress(Exception):  # a crashed simulator may fail to close
                self._env.close()
        self._env = self._actor = self._pair = self._policy = self._label = None

    def open(self, pair: Pair) -> tuple[gym.Env[Any, Any], Any]:
        """Return the env of a pair, and its policy fitted to it; those of the last one are kept."""
        if self._env is not None and pair == self._pair:
            return self._env, self._actor
        if self._label != pair.policy:
            self.clear()
            source = pair.source
            self._policy = make_policy(source) if isinstance(source, str) else source()
            self._label = pair.policy
            _limit_torch()
        if self._env is not None:
            self._env.close()
            self._env = None
        spec = getattr(self._policy, "spec", None)
        _refuse_other_suites(spec, pair)
        wanted = spec.env_keywords() if spec is not None else {}
        self._env = gym.make(
            pair.id,
            max_episode_steps=pair.max_steps,
            disable_env_checker=True,
            render_mode="rgb_array",
            **{"terminate_on_success": True, **wanted, **pair.keywords},
        )
        self._actor = connect(self._policy, self._env.unwrapped.spec_sheet)  # type: ignore[attr-defined]
        self._pair = pair
        return self._env, self._actor


def _refuse_other_suites(spec: Any, pair: Pair) -> None:
    """Raise before `gym.make`, which would complain of the policy's keywords in a foreign suite."""
    suite = pair.id.rpartition("/")[2].partition("-")[0]
    if spec is not None and spec.suites is not None and suite not in spec.suites:
        raise ContractMismatch(
            f"{pair.policy} does not fit {pair.id}: it acts in {', '.join(spec.suites)} only"
        )


def _limit_torch() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


def _protocol(sheet: SpecSheet, env: gym.Env[Any, Any], pair: Pair) -> dict[str, Any]:
    """Return all that a score depends on besides the seed, as plain JSON values."""
    made_with = env.spec.kwargs if env.spec is not None else {}
    theirs = dict(env.unwrapped.simulator_versions)  # type: ignore[attr-defined]  # all ids are ours
    interpreter = {f"simulator's {name}": theirs.pop(name) for name in ("python", "numpy")}
    versions = versions_of(("vla-gym", "gymnasium", "numpy")) | theirs
    if made_with.get("python") is not None:
        versions |= interpreter
    protocol = {
        "suite": sheet.suite,
        "task": sheet.task,
        "simulator": sheet.simulator,
        "robot": sheet.robot,
        "versions": versions,
        "horizon": env.spec.max_episode_steps if env.spec is not None else sheet.horizon,
        "control_hz": sheet.control_hz,
        "success_rule": f"at any step: {sheet.success}" if sheet.success else "at any step",
        "action_mode": sheet.action_mode,
        "cameras": list(sheet.cameras),
        "image_size": sheet.image_size,
        "proprio": sheet.proprio_form,
        "state": sheet.state_dim is not None,
        "instruction": sheet.instruction,
        "reward": sheet.reward,
        "terminate_on_success": sheet.terminate_on_success,
        "render_quality": sheet.render_quality,
        "keywords": sheet.keywords,
        "paraphrase": made_with.get("paraphrase", False),
        "policy_source": _name_of(pair.source),
        "deterministic": pair.deterministic,
    }
    return json.loads(json.dumps(protocol, default=str))  # as a record gives it back: no tuples


def _name_of(source: str | Callable[[], Any]) -> str:
    """Return what a policy was made from; a file is told apart by its content, not by its place."""
    if isinstance(source, functools.partial):
        given = [_name_of(x) if isinstance(x, str) else repr(x) for x in source.args]
        given += [f"{key}={value!r}" for key, value in source.keywords.items()]
        return f"{_name_of(source.func)}({', '.join(given)})"
    if not isinstance(source, str):
        return f"{source.__module__}.{source.__qualname__}"
    key, _, argument = source.partition(":")
    for path in (Path(argument), Path(argument + ".zip")):  # SB3's files may be named without it
        if argument and path.is_file():
            return f"{key}:{path.name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return source
