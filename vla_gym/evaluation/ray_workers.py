"""The same workers on the machines of a Ray cluster.

An actor of Ray's is one process on some machine. It has `batch` workers of that machine's own
(`vla_gym.evaluation.workers`), so that death, standstill and shared policies are handled there as
they are here; if the machine is lost, its workers are, and their episodes are begun again on
another. Records and videos come back to the process that started the evaluation, which alone
writes.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_gym.deps import require
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.stage import Answer, Died, Job, Pair
from vla_gym.evaluation.workers import LocalWorker, LocalWorkers

__all__ = ["RayWorkers"]


class RayWorkers:
    """Workers that Ray places.

    Args:
        address: of the cluster; `"auto"`: the one that this machine belongs to; `"local"`: one on
            this machine that ends with the evaluation.
        timeout, batch: as `LocalWorkers` takes them.
        gpus: for each policy, so for each `batch` workers; a fraction shares a GPU.

    Raises:
        DependencyNotInstalled: there is no Ray.
        InvalidOption: there is no cluster at this address.
    """

    def __init__(
        self, address: str, timeout: float | None = None, batch: int = 1, gpus: float = 0.0
    ) -> None:
        self._ray = ray = require("ray", "ray", "an evaluation on a Ray cluster")
        self._begun = not ray.is_initialized()
        if self._begun:
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InvalidOption(
                    f"no Ray cluster at {address!r} ({error}). Start one with `ray start --head`, "
                    'or take "local"'
                ) from error
        self._group, self._timeout = batch, timeout
        # Threads of an actor wait for its workers, each for one.
        self._make = ray.remote(
            num_cpus=batch, num_gpus=gpus, max_restarts=0, max_concurrency=batch + 1
        )(_Host)
        self._hosts: dict[int, Any] = {}

    def start(self, slot: int) -> _RayWorker:
        """Return a worker for this slot; its actor is made, or made again, where needed."""
        number = slot // self._group
        host = self._hosts.get(number)
        if host is None or not self._runs(host):
            host = self._hosts[number] = self._make.remote(self._timeout, self._group)
        return _RayWorker(self._ray, host, slot)

    def wait(self, workers: Sequence[_RayWorker]) -> list[_RayWorker]:
        """Wait until at least one of these busy workers has an answer; return those that have."""
        ready, _ = self._ray.wait([w.reference for w in workers], num_returns=1)
        return [worker for worker in workers if worker.reference in ready]

    def close(self) -> None:
        """End the actors, and the cluster where it was made here."""
        for host in self._hosts.values():
            with contextlib.suppress(Exception):  # whatever state the cluster is in
                self._ray.get(host.close.remote(), timeout=10)
            self._ray.kill(host)
        if self._begun:
            self._ray.shutdown()

    def _runs(self, host: Any) -> bool:
        try:
            self._ray.get(host.greet.remote())
        except self._ray.exceptions.RayActorError:
            return False
        return True


class _RayWorker:
    """This side of one worker of an actor."""

    def __init__(self, ray: Any, host: Any, slot: int) -> None:
        self._ray, self._host, self._slot = ray, host, slot
        self.reference: Any = None
        self.job: Job | None = None
        self.pair: Pair | None = None

    def alive(self) -> bool:
        return True  # if not, the answer to its next job says so

    def give(self, job: Job) -> None:
        self.job, self.pair = job, job.pair
        self.reference = self._host.play.remote(self._slot, job)

    def take(self) -> Answer:
        self.job = None
        try:
            return self._ray.get(self.reference)
        except self._ray.exceptions.RayError as error:
            return Died(f"the machine that played it was lost: {str(error).splitlines()[0]}")

    def stop(self) -> None:
        pass  # RayWorkers.close ends them all


class _Host:
    """What an actor is: the workers of one machine."""

    def __init__(self, timeout: float | None, batch: int) -> None:
        self._logs = Path(tempfile.mkdtemp(prefix="vla_gym-logs-"))
        self._workers = LocalWorkers(self._logs, batch, timeout, batch)
        self._slots: dict[int, LocalWorker] = {}

    def greet(self) -> None:
        """Answer, to show that the actor is there."""

    def play(self, slot: int, job: Job) -> Answer:
        """Play a job with the worker of this slot, and return its answer."""
        worker = self._slots.get(slot)
        if worker is None or not worker.alive():
            worker = self._slots[slot] = self._workers.start(slot)
        worker.give(job)
        self._workers.wait([worker])
        return worker.take()

    def close(self) -> None:
        """End the workers."""
        for worker in self._slots.values():
            worker.stop()
        self._workers.close()
        shutil.rmtree(self._logs, ignore_errors=True)
