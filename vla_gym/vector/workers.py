"""Where the envs of a vector env run: in processes of their own, or in threads of this one.

Both kinds hold an `EnvGroup` and take one call at a time: `send` starts it, `receive` waits for its
end. Observations go through the batch. What else there is (actions, rewards, infos) is small and
goes through a pipe.

A process is started by `subprocess`, not by `multiprocessing`: it imports vla_gym and nothing of
the program that started it, so that program needs no `if __name__ == "__main__"`. It ends when its
pipe does, so it never outlives the program.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from vla_gym.errors import SimulatorCrashed, StandInWarning
from vla_gym.processes import find_foreign_suites, share_threads
from vla_gym.registration import register_suite
from vla_gym.vector.batch import Batch, count_bytes
from vla_gym.vector.group import EnvGroup, Maker

__all__ = ["Answer", "Plan", "ProcessWorker", "ThreadWorker"]

CLOSING_S = 10.0
"""How long the envs of a process may take to close before it is killed."""

_BOOT = """
import sys
sys.path[:] = {path!r}
from vla_gym.vector.workers import serve
serve({connection}, {memory})
"""


@dataclass(frozen=True)
class Plan:
    """What all workers of a vector env share.

    Attributes:
        space: of the observations of one env.
        num_envs: in all workers together.
        autoreset_mode: Gymnasium's.
        workers: how many there are.
    """

    space: spaces.Space[Any]
    num_envs: int
    autoreset_mode: AutoresetMode
    workers: int

    @property
    def memory_size(self) -> int:
        """Of the batch and the last observations of episodes [bytes]."""
        return max(1, 2 * count_bytes(self.space, self.num_envs))

    def place(self, memory: mmap.mmap) -> tuple[Batch, Batch]:
        """Return the batch and the last observations of episodes, in their memory."""
        middle = count_bytes(self.space, self.num_envs)
        finals = Batch(self.space, self.num_envs, memory, middle)
        return Batch(self.space, self.num_envs, memory), finals


@dataclass(frozen=True)
class Answer:
    """What a call came to.

    Attributes:
        result: what it returned.
        error: what it raised, or None.
        env: number of the env that raised it, or None where that is not known.
        trace: the traceback over there.
    """

    result: Any = None
    error: Exception | None = None
    env: int | None = None
    trace: str = ""


class ProcessWorker:
    """Envs in a process of their own.

    Args:
        makers: one for each env.
        first: number of the first of them in the vector env.
        plan: of the vector env.
        memory_fd: descriptor of the memory of `plan.place`.
    """

    def __init__(self, makers: Sequence[Maker], first: int, plan: Plan, memory_fd: int) -> None:
        self._names = _name_envs(first, len(makers))
        self._owner = os.getpid()
        self._pending = 0
        self._connection, theirs = Pipe()
        with theirs:
            boot = _BOOT.format(path=sys.path, connection=theirs.fileno(), memory=memory_fd)
            self._process = subprocess.Popen(
                [sys.executable, "-c", boot],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory_fd),
                env=_make_environment(plan.workers),
                start_new_session=True,  # Ctrl-C is left to this process, which ends that one
            )
        self._put(cloudpickle.dumps((find_foreign_suites(), tuple(makers), first, plan)))
        self.send("open")

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._process.poll() is None

    def send(self, method: str, *arguments: Any) -> None:
        """Start a method of the `EnvGroup`."""
        self._pending += 1
        # cloudpickle also takes what the program itself defines, but is slower.
        dump = pickle.dumps if method == "step" else cloudpickle.dumps
        self._put(dump((method, arguments)))

    def receive(self) -> Answer:
        """Wait for the end of the last call. Those before it, cut short by Ctrl-C, are skipped."""
        try:
            data = b""
            while self._pending:
                data = self._connection.recv_bytes()
                self._pending -= 1
        except (EOFError, OSError):
            self._pending = 0
            return Answer(error=SimulatorCrashed(self._describe_end()))
        return pickle.loads(data)

    def stop(self) -> None:
        """Close the envs and end the process; kill it where that takes long."""
        if os.getpid() != self._owner:  # a fork of ours: not its process
            return
        if self.alive():
            with contextlib.suppress(OSError):
                self._connection.send_bytes(b"")
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSING_S)
        self._process.kill()
        self._process.wait()

    def _put(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # it has ended: receive() says so
            self._connection.send_bytes(data)

    def _describe_end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSING_S)
        code = self._process.poll()
        cause = "closed its pipe" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            cause = f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return (
            f"the worker process of {self._names} {cause}: these episodes have no outcome. "
            "reset() starts a fresh process. To lose one episode instead of all of a worker's, "
            'give the env a process of its own: python=sys.executable, on_crash="restart"'
        )


class ThreadWorker:
    """Envs in a thread of this process.

    Args:
        makers: one for each env.
        first: number of the first of them in the vector env.
        plan: of the vector env.
        memory: of `plan.place`.
    """

    def __init__(self, makers: Sequence[Maker], first: int, plan: Plan, memory: mmap.mmap) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=_name_envs(first, len(makers)))
        self._group = EnvGroup(makers, first, *plan.place(memory), plan.autoreset_mode)
        self.send("open")

    def alive(self) -> bool:
        """Return True: a thread cannot die alone."""
        return True

    def send(self, method: str, *arguments: Any) -> None:
        """Start a method of the `EnvGroup`."""
        self._pending = self._thread.submit(_answer, self._group, method, arguments)

    def receive(self) -> Answer:
        """Wait for the end of the last call."""
        return self._pending.result()

    def stop(self) -> None:
        """Close the envs and end the thread."""
        self._thread.submit(self._group.close)
        self._thread.shutdown()


def serve(connection_fd: int, memory_fd: int) -> None:
    """Answer calls until the other end says no more: all that a worker process does."""
    with Connection(connection_fd) as connection:
        warnings.simplefilter("ignore", StandInWarning)  # the program has seen it
        suites, makers, first, plan = cloudpickle.loads(connection.recv_bytes())
        for suite in suites:
            register_suite(suite)
        memory = mmap.mmap(memory_fd, plan.memory_size)
        os.close(memory_fd)
        batch, finals = plan.place(memory)
        group = EnvGroup(makers, first, batch, finals, plan.autoreset_mode)
        with contextlib.suppress(EOFError, OSError):
            while data := connection.recv_bytes():
                method, arguments = pickle.loads(data)
                connection.send_bytes(_dump(_answer(group, method, arguments)))
        group.close()


def _answer(group: EnvGroup, method: str, arguments: tuple[Any, ...]) -> Answer:
    try:
        return Answer(getattr(group, method)(*arguments))
    except Exception as error:  # the caller raises it
        return Answer(None, error, group.at, traceback.format_exc())


def _dump(answer: Answer) -> bytes:
    """Pickle an answer; where that cannot be done, the answer is an error that says so."""
    try:
        data = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
        if answer.error is not None:
            pickle.loads(data)  # errors with arguments of their own may fail only here
    except Exception as error:  # whatever its own pickling raises
        text = f"what it returned cannot be sent to another process: {error}"
        if answer.error is not None:
            text = f"{type(answer.error).__name__}: {answer.error}"
        return _dump(Answer(None, RuntimeError(text), answer.env, answer.trace))
    return data


def _make_environment(workers: int) -> dict[str, str]:
    """Return the variables of a worker process: this one's, and how many threads draw.

    The threads of linear algebra are left as they are: sums in another order round differently,
    and a vector env shall return what its envs return in this process.
    """
    return {**os.environ, **share_threads(workers)}


def _name_envs(first: int, count: int) -> str:
    return f"env {first}" if count == 1 else f"envs {first} to {first + count - 1}"
