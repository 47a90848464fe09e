"""Which worker plays what next, and again where one was lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import gymnasium as gym

from vla_gym.errors import SimulatorCrashed
from vla_gym.evaluation.stage import Answer, Died, Failed, Job, Pair, TimedOut

__all__ = ["Finished", "Pool", "Worker", "Workers"]


class Worker(Protocol):
    """Something elsewhere that plays one job at a time."""

    job: Job | None
    """What it is busy with."""
    pair: Pair | None
    """What it has open."""

    def alive(self) -> bool:
        """Return whether it can be given a job."""
        ...

    def give(self, job: Job) -> None:
        """Begin a job."""
        ...

    def take(self) -> Answer:
        """Return the answer, which is there."""
        ...

    def stop(self) -> None:
        """End it."""
        ...


class Workers(Protocol):
    """Where workers come from."""

    def start(self, slot: int) -> Any:
        """Return a new worker for this slot, whose last one, if any, has ended."""
        ...

    def wait(self, workers: Any) -> list[Any]:
        """Wait until at least one of these has an answer; return those that have."""
        ...

    def close(self) -> None:
        """End what the workers share."""
        ...


class Finished(NamedTuple):
    """A job, its last answer, and how often it was begun."""

    job: Job
    answer: Answer
    attempts: int


class Pool:
    """Plays jobs with a number of workers.

    Each worker keeps to one policy and task as long as there is work for it.

    Args:
        workers: where they come from.
        number: of workers.
        retries: how often a job is begun again after it failed, or after its worker died or stood
            still. What the caller got wrong (any other error of Gymnasium's and ours) is not tried
            again.
    """

    def __init__(self, workers: Workers, number: int, retries: int = 0) -> None:
        self._workers, self._retries = workers, retries
        self._slots: list[Worker | None] = [None] * number

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._slots:
            if worker is not None:
                worker.stop()
        self._workers.close()

    def run(self, jobs: Iterable[Job]) -> Iterator[Finished]:
        """Play all jobs and yield each with its answer, in the order in which they end."""
        pending: dict[Pair, deque[tuple[Job, int]]] = {}  # with how often it was begun
        begun: dict[int, int] = {}  # slot -> the same of the job that it is busy with
        for job in jobs:
            pending.setdefault(job.pair, deque()).append((job, 0))
        self._assign(pending, begun)
        while any(worker is not None and worker.job is not None for worker in self._slots):
            finished = []
            for slot, job, answer in self._collect():
                if isinstance(answer, Died | TimedOut):
                    self._slots[slot] = None
                if begun[slot] <= self._retries and _is_worth_a_retry(answer):
                    pending.setdefault(job.pair, deque()).append((job, begun[slot]))
                else:
                    finished.append(Finished(job, answer, begun[slot]))
            self._assign(pending, begun)  # before yielding: no worker waits for the caller
            yield from finished

    def _assign(self, pending: dict[Pair, deque[tuple[Job, int]]], begun: dict[int, int]) -> None:
        for slot, worker in enumerate(self._slots):
            if worker is not None and worker.job is not None:
                continue
            pair = self._choose(worker, pending)
            if pair is None:
                continue
            if worker is None or not worker.alive():
                worker = self._slots[slot] = self._workers.start(slot)
            job, times = pending[pair].popleft()
            if not pending[pair]:
                del pending[pair]
            begun[slot] = times + 1
            worker.give(job)

    def _choose(
        self, worker: Worker | None, pending: dict[Pair, deque[tuple[Job, int]]]
    ) -> Pair | None:
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
            id(worker): slot
            for slot, worker in enumerate(self._slots)
            if worker is not None and worker.job is not None
        }
        answers = []
        for worker in self._workers.wait([self._slots[slot] for slot in busy.values()]):
            job = worker.job
            answers.append((busy[id(worker)], job, worker.take()))
        return answers


def _is_worth_a_retry(answer: Answer) -> bool:
    if isinstance(answer, Failed):
        asked_wrongly = isinstance(answer.error, gym.error.Error)
        return not asked_wrongly or isinstance(answer.error, SimulatorCrashed)
    return isinstance(answer, Died | TimedOut)
