"""Processes of our own: each imports vla_gym, and nothing of the program that started it.

So that program needs no `if __name__ == "__main__"`, and may be a notebook. What it defines itself,
classes and suites, travels by value.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from mmap import mmap
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from vla_gym.registration import SUITE_MODULES, list_suites, register_suite

__all__ = [
    "START_S",
    "Process",
    "Pulse",
    "count_cores",
    "find_foreign_suites",
    "run",
    "share_threads",
]

START_S = 60.0
"""How long a process may take to import what it needs, before its first sign of life."""

_BOOT = """
import sys
sys.path[:] = {path!r}
from vla_gym.processes import run
run({connection}, {pulse}, {parent})
"""


class Pulse:
    """When a process last said that it goes on; in memory that both sides see.

    Args:
        descriptor: of that memory; None: new memory.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            with tempfile.TemporaryFile() as file:
                os.ftruncate(file.fileno(), 8)
                descriptor = os.dup(file.fileno())
        self.descriptor = descriptor
        self._time = np.frombuffer(mmap(descriptor, 8), np.float64)

    def start(self) -> None:
        """Say that there will be something to hear from `START_S` on."""
        self._time[0] = time.monotonic() + START_S  # of the machine, the same in all processes

    def beat(self) -> None:
        """Say so now."""
        self._time[0] = time.monotonic()

    def silent_s(self) -> float:
        """Return for how long nothing was said [s]."""
        return time.monotonic() - float(self._time[0])

    def close(self) -> None:
        """Let go of the memory's descriptor."""
        os.close(self.descriptor)


class Process:
    """A process that runs a function, and ends with this one, however that ends.

    Ctrl-C does not reach it: this process ends it.

    Args:
        function: called with its end of the connection, its pulse and the arguments.
        *arguments: picklable, or defined by the program itself (cloudpickle).
        log: file to which it adds what it, and what it starts, writes to standard output and error.
        environment: variables over this process's.

    Attributes:
        connection: this end.
        pulse: of the process.
    """

    def __init__(
        self,
        function: Callable[..., None],
        *arguments: Any,
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.pulse = Pulse()
        self.pulse.start()
        self.connection, theirs = Pipe()
        with theirs, log.open("ab") as file:  # the end of the process is that of the connection
            boot = _BOOT.format(
                path=sys.path,
                connection=theirs.fileno(),
                pulse=self.pulse.descriptor,
                parent=os.getpid(),
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", boot],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                pass_fds=(theirs.fileno(), self.pulse.descriptor),
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.send((find_foreign_suites(), function, arguments))

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    def send(self, value: Any) -> None:
        """Send something that is picklable, or defined by the program itself."""
        with contextlib.suppress(OSError):  # it has ended, which who waits for an answer finds out
            self.connection.send_bytes(cloudpickle.dumps(value))

    def alive(self) -> bool:
        """Return whether it runs."""
        return self._process.poll() is None

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()

    def close(self, patience_s: float = 0.0) -> None:
        """Hang up, which ends an idle process; kill it if it is there after `patience_s`."""
        self.connection.close()
        self.wait(patience_s)
        self.kill()
        self.pulse.close()

    def describe_end(self) -> str:
        """Return how it ended, in words."""
        code = self._process.poll()
        if code is None:
            return "it closed its connection"
        if code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def run(connection: int, pulse: int, parent: int) -> None:
    """Do what a `Process` has asked for: all that such a process does."""
    _end_with(parent)
    faulthandler.enable()
    with Connection(connection) as ours:
        suites, function, arguments = pickle.loads(ours.recv_bytes())
        for suite in suites:
            register_suite(suite)
        function(ours, Pulse(pulse), *arguments)


def find_foreign_suites() -> list[Any]:
    """Return the suites that a fresh process does not have."""
    here = [importlib.import_module(module).SUITE for module in SUITE_MODULES]
    return [suite for suite in list_suites() if all(suite is not own for own in here)]


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_threads(processes: int) -> dict[str, str]:
    """Return the variable that says with how many threads each of so many processes draws.

    Mesa's software renderer starts a thread for each core of the machine; here each process has its
    share of the cores, and 0 draws in the calling thread. Pixels do not depend on it.
    """
    threads = count_cores() // processes
    return {"LP_NUM_THREADS": os.environ.get("LP_NUM_THREADS", str(threads if threads > 1 else 0))}


def _end_with(parent: int) -> None:
    """Have this process killed when its parent is: one that hangs would stay for ever."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere a pipe's end does it
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)
