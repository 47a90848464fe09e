"""Processes of this machine that each play one job at a time, watched for death and standstill.

An episode is a function of env, policy and seed, so it does not matter which process plays it nor
how many there are. Every episode runs in a worker, also with a single one: a simulator that takes
its process down takes one episode with it, not the evaluation.
"""

from __future__ import annotations

import functools
import pickle
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vla_gym.evaluation.batching import BatchedPolicy, PolicyProcess
from vla_gym.evaluation.stage import (
    Answer,
    Died,
    Failed,
    Job,
    Pair,
    PolicyMaker,
    Stage,
    TimedOut,
    portable,
)
from vla_gym.processes import Process, Pulse, share_threads

__all__ = ["LocalWorker", "LocalWorkers"]

ONE_THREAD: dict[str, str] = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")
}
"""Sums in another order round differently, so that scores would depend on the number of threads."""

WATCH_S = 0.5
"""How often those that stand still are looked for."""

CLOSING_S = 2.0
"""How long an idle process may take to close its env before it is killed."""


class LocalWorkers:
    """The processes of this machine, and the one that runs the policies where they are shared.

    Args:
        logs: folder for what the processes write to standard output and error.
        number: how many there will be; they share the cores.
        timeout: a worker without a step for so long [s] is taken as hung, and killed; None: never.
        batch: most envs that one call of a policy serves; 1: each worker has policies of its own.
    """

    def __init__(
        self, logs: Path, number: int, timeout: float | None = None, batch: int = 1
    ) -> None:
        self._logs, self._timeout = logs, timeout
        self._environment = {**ONE_THREAD, **share_threads(number)}
        self._policies = None
        if batch > 1:
            start = functools.partial(
                Process, log=logs / "policies.log", environment=self._environment
            )
            self._policies = PolicyProcess(start, batch, timeout)

    def start(self, slot: int) -> LocalWorker:
        """Return a new process, the successor of any other of this slot."""
        address = None if self._policies is None else self._policies.address
        return LocalWorker(self._logs / f"worker-{slot}.log", self._environment, address)

    def wait(self, workers: Sequence[LocalWorker]) -> list[LocalWorker]:
        """Wait until at least one of these busy workers has an answer, and return those that have.

        Kills those that stand still; their answer is `TimedOut`.
        """
        by_connection: dict[Any, LocalWorker] = {w.process.connection: w for w in workers}
        while True:
            found = [by_connection[c] for c in wait(list(by_connection), timeout=WATCH_S)]
            if self._policies is not None:
                self._policies.watch()
            if self._timeout is not None:
                for worker in workers:
                    if worker not in found and worker.process.pulse.silent_s() > self._timeout:
                        worker.give_up(self._timeout)
                        found.append(worker)
            if found:
                return found

    def close(self) -> None:
        """End what the workers share; the workers must have been stopped."""
        if self._policies is not None:
            self._policies.close()


class LocalWorker:
    """This side of one process."""

    def __init__(
        self, log: Path, environment: dict[str, str] | None = None, policies: str | None = None
    ) -> None:
        self._log = log
        self.process = Process(_serve, policies, log=log, environment=environment or ONE_THREAD)
        self._given_up: TimedOut | None = None
        self.job: Job | None = None
        self.pair: Pair | None = None

    def alive(self) -> bool:
        """Return whether the process runs."""
        return self.process.alive()

    def give(self, job: Job) -> None:
        """Begin a job; one at a time."""
        self.job, self.pair = job, job.pair
        if self.process.pulse.silent_s() > 0:  # not where it has only just been started
            self.process.pulse.beat()
        self.process.send(job)

    def take(self) -> Answer:
        """Return the answer, for which `LocalWorkers.wait` has waited."""
        self.job = None
        if self._given_up is not None:
            return self._given_up
        try:
            return self.process.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self.process.wait(10)
            cause = self.process.describe_end()
            self.stop()
            return Died(f"the process that played it ended: {cause} (see {self._log.name})")

    def give_up(self, timeout: float) -> None:
        """Kill the process, which has stood still for `timeout` seconds."""
        self.process.close()
        self._given_up = TimedOut(
            f"no step for {timeout:g} s: its process was killed (see {self._log.name}); a longer "
            "--timeout waits longer"
        )

    def stop(self) -> None:
        """End the process, at once if it is busy; an idle one closes its env."""
        self.process.close(CLOSING_S if self.job is None else 0.0)


def _serve(connection: Connection, pulse: Pulse, policies: str | None) -> None:
    """Answer jobs until the parent closes the connection: all that a worker process does."""
    make: PolicyMaker | None = None
    if policies is not None:
        make = functools.partial(BatchedPolicy, policies, pulse.beat)
    stage = Stage(make, pulse.beat)
    while True:
        try:
            job = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            break
        pulse.beat()
        try:
            answer: Answer = job.run(stage)
        except Exception as error:  # the episode boundary: recorded, counted, shown
            traceback.print_exc()
            stage.clear()  # what is left of the env cannot be trusted
            answer = Failed(portable(error), f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        try:
            connection.send(answer)
        except OSError:
            break
    stage.clear()
