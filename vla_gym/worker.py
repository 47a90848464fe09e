"""A simulator in another Python interpreter, behind the same methods as one in this process.

`RemoteSimulator` starts `vla_gym/worker_main.py` with the other interpreter and calls the simulator
there. That file's docstring says what the interpreter needs and what crosses the boundary. This
side adds the watchdog: a worker that dies, or that does not answer in time and is then killed, is a
`SimulatorCrashed` that says which.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym import errors, worker_main
from vla_gym.suite import Frame, Setup, VisualChange
from vla_gym.worker_main import MAX_PICTURE_SIZE, Channel, pack, place_pictures

__all__ = ["DEFAULT_TIMEOUT_S", "RemoteSimulator", "find_interpreter"]

DEFAULT_TIMEOUT_S = 600.0
"""How long one call may take. Generous: a first reset may start a simulator and load its scenes."""

_CLOSING_S = 10.0
"""How long a worker may take to close its simulator and to end."""


_WAY_OUT = '. Make a new env to go on; with on_crash="restart" the next reset starts a fresh one'


def find_interpreter(python: str) -> str:
    """Return the path of a Python interpreter given by path or by name.

    Raises:
        InvalidOption: there is no such program.
    """
    found = shutil.which(python)
    if found is None:
        raise errors.InvalidOption(
            f"python={python!r} is not a program that can be run here; give the path of a Python "
            "interpreter that has the simulator installed"
        )
    return found


class RemoteSimulator:
    """A `Simulator` that runs in a process of another interpreter.

    The images of a frame and the picture of `render()` are read-only views of shared memory, which
    the next call overwrites.

    Args:
        python: path of the interpreter, or its name on PATH.
        entry_point: `"module:Class"` of the simulator, imported over there.
        setup: what it is made with.
        distributions: packages whose versions `versions` shall hold.
        timeout_s: how long one call may take, the start included.

    Attributes:
        versions: of Python, numpy and those of `distributions` that are installed over there.

    Raises:
        InvalidOption: the interpreter is older than Python 3.8, or speaks another protocol.
        DependencyNotInstalled: it lacks numpy.
        SimulatorCrashed: the process ended, did not answer in time, or the simulator raised an
            error that is not ours.
    """

    def __init__(
        self,
        python: str,
        entry_point: str,
        setup: Setup,
        distributions: tuple[str, ...] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._python = find_interpreter(python)
        self._name = f"the simulator of {setup.suite}-{setup.task} in {python}"
        self._timeout_s = timeout_s
        self._calls = 0
        self._owner = os.getpid()
        memory_size = 3 * (sum(n**2 for n in setup.images.values()) + MAX_PICTURE_SIZE**2)
        memory_fd = _make_nameless_file(memory_size)
        try:
            memory = mmap.mmap(memory_fd, memory_size, prot=mmap.PROT_READ)
            self._images, self._rest = place_pictures(memory, setup.images)
            self._channel, self._process = self._start(memory_fd, memory_size)
        finally:
            os.close(memory_fd)  # the mapping stays
        try:
            self.versions = self._shake_hands(distributions)
            self._call(
                "open",
                folder=str(Path(__file__).parent),
                entry_point=entry_point,
                # not asdict(): it copies deeply, and rebuilds mappings of other types
                setup={f.name: getattr(setup, f.name) for f in dataclasses.fields(setup)},
            )
        except BaseException:
            self.close()  # no process stays behind where no simulator came to be
            raise

    def reset(self, seed: int, options: Mapping[str, Any]) -> Frame:
        """See `vla_gym.suite.Simulator`."""
        return Frame(images=self._images, **self._call("reset", seed=seed, options=options))

    def step(self, action: NDArray[np.float32]) -> Frame:
        """See `vla_gym.suite.Simulator`."""
        return Frame(images=self._images, **self._call("step", action=action))

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """See `vla_gym.suite.Simulator`; height and width at most MAX_PICTURE_SIZE."""
        self._call("render", camera=camera, height=height, width=width)
        return self._rest[: height * width * 3].reshape(height, width, 3)

    def perturb(self, change: VisualChange) -> None:
        """See `vla_gym.suite.PerturbableSimulator`.

        Raises:
            InvalidOption: the simulator over there is none.
        """
        self._call("perturb", cameras=change.cameras, light=change.light)

    def close(self) -> None:
        """Ask the simulator to close and end its process. Safe to call more than once."""
        if self._process.poll() is None and os.getpid() == self._owner:
            # A simulator that cannot close is at its end all the same.
            with contextlib.suppress(errors.Error):
                self._call("close", timeout_s=min(_CLOSING_S, self._timeout_s))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_CLOSING_S)
        self._kill()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self._kill()

    def _start(self, memory_fd: int, memory_size: int) -> tuple[Channel, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = (worker_main.__file__, theirs.fileno(), memory_fd, memory_size)
            try:
                process = subprocess.Popen(
                    [self._python, "-c", worker_main.BOOT, *map(str, arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # what the simulator prints is no output of this program
                    pass_fds=(theirs.fileno(), memory_fd),
                    # A group of its own, so that Ctrl-C is left to this process, and so that a
                    # shell script in the place of the interpreter is killed with its children.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return Channel(ours), process

    def _shake_hands(self, distributions: tuple[str, ...]) -> dict[str, str]:
        """Return the versions over there, after having checked that they will do."""
        hello = self._call("hello", distributions=distributions)
        if hello["protocol"] != worker_main.PROTOCOL:
            raise errors.InvalidOption(
                f"{self._python} speaks version {hello['protocol']} of the worker's protocol and "
                f"this process version {worker_main.PROTOCOL}: use the worker_main.py of this "
                "version of vla_gym on both sides"
            )
        versions = hello["versions"]
        if "numpy" not in versions:
            raise errors.DependencyNotInstalled(
                f"{self._name} needs numpy, which that interpreter (Python {versions['python']}) "
                f"does not have. Run: {self._python} -m pip install numpy"
            )
        return versions

    def _call(self, method: str, timeout_s: float | None = None, **arguments: Any) -> Any:
        if os.getpid() != self._owner:
            raise errors.SimulatorCrashed(
                f"{self._name} belongs to the process that started it, not to a fork of that: make "
                "the env after the fork"
            )
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        self._calls += 1
        request = {
            "call": self._calls,
            "method": method,
            "timeout_s": timeout_s,
            "arguments": arguments,
        }
        data = pack(request)
        try:
            self._channel.send(data, timeout_s)
            answer = self._channel.receive(timeout_s)
            while answer["call"] != self._calls:  # of a call that Ctrl-C cut short
                answer = self._channel.receive(max(deadline - time.monotonic(), 0.001))
        except TimeoutError as error:
            self._kill()
            raise errors.SimulatorCrashed(
                f"{self._name} did not finish {_doing(method)} within {timeout_s:g} s and was "
                "killed. If it is only slow, make the env with a larger timeout_s" + _WAY_OUT
            ) from error
        except (OSError, EOFError) as error:
            raise self._describe_end(method) from error
        if "error" not in answer:
            return answer["result"]
        if "unknown_name" in answer:
            raise errors.UnknownName(*answer["unknown_name"])
        name = answer["error"]
        kind = getattr(errors, name) if name in errors.__all__ else errors.SimulatorCrashed
        raise kind(f"{answer['message']} (in {self._name})")

    def _describe_end(self, method: str) -> errors.Error:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSING_S)
        self._kill()
        code = self._process.returncode
        if code == worker_main.TOO_OLD and method == "hello":
            return errors.InvalidOption(
                f"{self._python} is older than Python 3.8, which a simulator's worker needs"
            )
        cause = f"exit code {code}"
        with contextlib.suppress(ValueError):
            cause += f" ({signal.Signals(-code).name})"
        return errors.SimulatorCrashed(
            f"{self._name} ended during {_doing(method)} with {cause}; its own messages are above"
            + _WAY_OUT
        )

    def _kill(self) -> None:
        """End the process and all that it started, now."""
        self._channel.close()
        if os.getpid() != self._owner:
            return
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _doing(method: str) -> str:
    return "its start" if method in ("hello", "open") else f"{method}()"


def _make_nameless_file(size: int) -> int:
    """Return the descriptor of `size` bytes of memory that have no name to be left behind."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("vla_gym")
    else:  # not Linux
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, size)
    return file
