"""A simulator in another Python interpreter, behind the same five methods.

`RemoteSimulator` starts `python` with the loop below and talks to it over its standard streams.
A message is a JSON header and the raw bytes of its arrays; nothing that can execute, no pickle,
crosses the boundary. The other interpreter needs numpy, gymnasium and the simulator; this package
is loaded there from its own folder, without exposing anything else that is installed here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vla_gym import errors
from vla_gym.suite import Frame, Setup

__all__ = ["RemoteSimulator", "find_interpreter", "serve"]

_LENGTH = struct.Struct("<Q")

_BOOT = """
import importlib.util, sys
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location(
    "vla_gym", folder + "/__init__.py", submodule_search_locations=[folder])
package = importlib.util.module_from_spec(spec)
sys.modules["vla_gym"] = package
spec.loader.exec_module(package)
from vla_gym.worker import serve
serve()
"""


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

    Args:
        python: path of the interpreter.
        entry_point: `"module:Class"` of the simulator, imported over there.
        setup: what it is made with.

    Raises:
        SimulatorCrashed: the process ended, or the simulator raised an error that is not ours.
    """

    def __init__(self, python: str, entry_point: str, setup: Setup) -> None:
        self._name = f"the simulator of {setup.suite}-{setup.task} in {python}"
        self._process = subprocess.Popen(
            [find_interpreter(python), "-c", _BOOT, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self._call("open", entry_point=entry_point, setup=dataclasses.asdict(setup))
        except BaseException:
            self.close()  # no process stays behind where no simulator came to be
            raise

    def reset(self, seed: int, options: Mapping[str, Any]) -> Frame:
        """See `vla_gym.suite.Simulator`."""
        return _frame(self._call("reset", seed=seed, options=dict(options)))

    def step(self, action: NDArray[np.float32]) -> Frame:
        """See `vla_gym.suite.Simulator`."""
        return _frame(self._call("step", action=action))

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """See `vla_gym.suite.Simulator`."""
        return self._call("render", camera=camera, height=height, width=width)

    def close(self) -> None:
        """Ask the simulator to close and end its process. Safe to call more than once."""
        process = self._process
        if process.poll() is None:
            try:
                self._call("close")
                process.wait(timeout=10)
            except (errors.SimulatorCrashed, subprocess.TimeoutExpired):
                process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # unsent bytes for a process that died
                    stream.close()

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()

    def _call(self, method: str, **arguments: Any) -> Any:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            _send(process.stdin, {"method": method, "arguments": arguments})
            answer = _receive(process.stdout)
        except (BrokenPipeError, EOFError) as error:
            code = process.wait()
            raise errors.SimulatorCrashed(
                f"{self._name} ended during {method}() with exit code {code}; its own messages are "
                "above. Make a new env to go on"
            ) from error
        if "error" not in answer:
            return answer["result"]
        if "unknown_name" in answer:
            raise errors.UnknownName(*answer["unknown_name"])
        kind = getattr(errors, answer["error"], errors.SimulatorCrashed)
        raise kind(f"{answer['message']} (in {self._name})")


def serve() -> None:
    """Run one simulator for the process at the other end of the standard streams, until it ends."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the simulator prints goes to stderr, not into the protocol
    simulator: Any = None
    while True:
        try:
            request = _receive(requests)
        except EOFError:  # the parent is gone
            break
        method, arguments = request["method"], request["arguments"]
        try:
            if method == "open":
                module, _, name = arguments["entry_point"].partition(":")
                setup = arguments["setup"]
                setup["cameras"] = tuple(setup["cameras"])
                simulator = getattr(importlib.import_module(module), name)(Setup(**setup))
                result = None
            else:
                result = getattr(simulator, method)(**arguments)
            if isinstance(result, Frame):
                result = result._asdict()
            answer = {"result": result}
        except Exception as error:  # the boundary: whatever went wrong is reported to the parent
            answer = _describe(error)
        try:
            _send(answers, answer)
        except TypeError as error:  # it holds something that cannot travel; nothing was sent yet
            _send(answers, _describe(error))
        if method == "close":
            break


def _describe(error: Exception) -> dict[str, Any]:
    kind = type(error).__name__
    answer: dict[str, Any] = {"error": kind, "message": f"{kind}: {error}"}
    if isinstance(error, errors.UnknownName):
        asked = error.asked if isinstance(error.asked, str) else repr(error.asked)
        answer["unknown_name"] = [error.kind, asked, list(map(str, error.valid)), error.where]
    return answer


def _frame(fields: dict[str, Any]) -> Frame:
    return Frame(**{**fields, "instructions": tuple(fields["instructions"])})


def _send(stream: BinaryIO | Any, message: dict[str, Any]) -> None:
    arrays: list[NDArray[Any]] = []

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            arrays.append(np.ascontiguousarray(value))
            return {"__array__": [value.dtype.str, list(value.shape)]}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"{type(value).__name__} cannot cross to another interpreter: {value!r}")

    header = json.dumps(message, default=plain).encode()
    stream.write(_LENGTH.pack(len(header)) + header)
    for array in arrays:
        stream.write(array.tobytes())
    stream.flush()


def _receive(stream: BinaryIO | Any) -> Any:
    header = _read(stream, _LENGTH.unpack(_read(stream, _LENGTH.size))[0])

    def restore(value: dict[str, Any]) -> Any:
        if "__array__" not in value:
            return value
        kind, shape = value["__array__"]
        dtype = np.dtype(kind)
        data = _read(stream, dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
        return np.frombuffer(data, dtype).reshape(shape).copy()

    # Objects are restored in the order in which they close, which is the order they were written.
    return json.loads(header, object_hook=restore)


def _read(stream: BinaryIO | Any, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError("the other process closed the connection")
    return data


if __name__ == "__main__":
    sys.exit("vla_gym.worker is started by gym.make(..., python=...)")
