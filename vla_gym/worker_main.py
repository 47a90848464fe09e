"""The worker: runs one simulator in another Python interpreter. The one file of ours over there.

`gym.make(id, python="/path/to/python")` starts this file with that interpreter, which needs Python
3.8 or later, numpy 1.17 or later and the simulator: neither vla_gym nor gymnasium. Nothing of ours
is installed there: the suite's adapter around its simulator (such as `vla_gym.suites.rlbench`)
and the few light modules that it imports are read from the package folder of the process that
started this one. `vla_gym/__init__.py`, which registers ids and imports Gymnasium, never runs here,
and no bytecode is written into that folder. A simulator of an outside package is imported as that
interpreter finds it (installed, on PYTHONPATH or in the working directory).

The two processes talk over a socket. A message is a JSON header and the raw bytes of its arrays:
nothing that can execute, no pickle. Pictures go through a block of shared memory without a name,
which ends with the last process that has it open, however those end. What the simulator prints goes
to standard error.

Both sides use this file. It imports the standard library and numpy only, and keeps to the syntax
and the library of Python 3.8.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import importlib.machinery
import json
import mmap
import os
import platform
import signal
import socket
import struct
import sys
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
else:
    try:
        import numpy as np
    except ImportError:  # the handshake says so, and the other side raises the error
        np = None

__all__ = ["MAX_PICTURE_SIZE", "PROTOCOL", "Channel", "pack", "place_pictures", "serve", "unpack"]

PROTOCOL = 4
"""Version of what the two sides say to each other; they must have the same."""

MAX_PICTURE_SIZE = 2048
"""Largest height and width of a picture [pixels]."""

TOO_OLD = 38
"""Exit code of an interpreter that is older than Python 3.8."""

BOOT = """import sys
if sys.version_info < (3, 8): sys.exit({})
file = sys.argv[1]
code = compile(open(file, "rb").read(), file, "exec")
exec(code, {{"__name__": "__main__", "__file__": file}})
""".format(TOO_OLD)  # noqa: UP032  # braces of its own
"""What the interpreter is started with (`python -c`): even Python 2 can tell that it is too old."""

_CLOSING_S = 10.0
"""How long a simulator may take to close once nobody waits for it."""

_LENGTHS = struct.Struct("<QQ")
_ALWAYS = ("proprio", "state", "reward", "success")
_SELDOM = ("terminated", "truncated", "info", "instructions")
"""Fields of a frame; the latter travel only where they say something, which saves time."""

_encode = json.JSONEncoder(check_circular=False).encode
_PLAIN = frozenset((bool, int, float, str, type(None)))


# Messages


def pack(message: Any) -> bytes:
    """Return `message` as bytes: the lengths of header and body, JSON header, bytes of the arrays.

    It may hold None, bool, int, float, str, lists, tuples, mappings, numpy arrays and numpy
    numbers, which all arrive as what they are (a mapping as a dict, a named tuple as a tuple).

    Raises:
        TypeError: it holds anything else.
    """
    bodies: list[bytes] = []
    header = _encode(_to_json(message, bodies)).encode()
    body_length = sum(map(len, bodies))
    return b"".join([_LENGTHS.pack(len(header), body_length), header, *bodies])


def unpack(header: bytes, body: bytes) -> Any:
    """Return the message that `pack` was given. Arrays are writeable and own their memory."""
    return _Reader().read(header, body)


class _Reader:
    """Reads messages; holds one JSON decoder, which takes as long to make as a message to read."""

    def __init__(self) -> None:
        # Objects are restored in the order in which they close, and an array holds no other: that
        # is the order in which their bytes were written.
        self._decode = json.JSONDecoder(object_hook=self._restore).decode
        self._body, self._start = b"", 0

    def read(self, header: bytes, body: bytes) -> Any:
        self._body, self._start = body, 0
        return self._decode(header.decode())

    def _restore(self, value: dict[str, Any]) -> Any:
        if len(value) == 1:
            ((tag, content),) = value.items()
            if tag == "__array__":
                return self._take(*content)
            if tag == "__number__":
                return self._take(content, [])[()]
            if tag == "__tuple__":
                return tuple(content)
            if tag == "__map__":
                return {key: item for key, item in content}
        return value

    def _take(self, kind: str, shape: list[int]) -> Any:
        array = np.empty(shape, kind)
        size = array.nbytes
        if size:
            data = np.frombuffer(self._body, array.dtype, array.size, self._start)
            array[...] = data.reshape(shape)
        self._start += size
        return array


def _to_json(value: Any, bodies: list[bytes]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return [_to_json(item, bodies) for item in value]
    if isinstance(value, tuple):
        return {"__tuple__": [_to_json(item, bodies) for item in value]}
    if kind is dict or isinstance(value, Mapping):
        for key in value:
            if type(key) is not str or key[:2] == "__":  # JSON has no such keys, or we use them
                pairs = value.items()
                return {"__map__": [[_to_json(k, bodies), _to_json(v, bodies)] for k, v in pairs]}
        return {
            key: item if type(item) in _PLAIN else _to_json(item, bodies)
            for key, item in value.items()
        }
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.hasobject or value.dtype.names:
            raise _stranger(value)
        bodies.append(value.tobytes())
        if isinstance(value, np.generic):
            return {"__number__": value.dtype.str}
        return {"__array__": [value.dtype.str, value.shape]}
    for plain in (int, float, str):  # an IntEnum, for example
        if isinstance(value, plain):
            return plain(value)
    raise _stranger(value)


def _stranger(value: Any) -> TypeError:
    return TypeError(f"{type(value).__name__} cannot cross to another interpreter: {value!r}")


class Channel:
    """One end of the socket between the two processes; messages of any size."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._received = bytearray()
        self._reader = _Reader()
        self._timeout_s: float | None = None
        end.settimeout(None)

    def send(self, data: bytes, timeout_s: float | None = None) -> None:
        """Send what `pack` returned.

        Raises:
            socket.timeout: the other side took nothing for `timeout_s`.
            OSError: it is gone.
        """
        self._wait_at_most(timeout_s)
        self._end.sendall(data)

    def receive(self, timeout_s: float | None = None) -> Any:
        """Return the next message. What an exception cuts short, the next call goes on with.

        Raises:
            EOFError: the other side is gone.
            socket.timeout: nothing came for `timeout_s`.
        """
        self._wait_at_most(timeout_s)
        start = _LENGTHS.size
        self._fill(start)
        header_length, body_length = _LENGTHS.unpack_from(self._received)
        middle, end = start + header_length, start + header_length + body_length
        self._fill(end)
        header, body = bytes(self._received[start:middle]), bytes(self._received[middle:end])
        del self._received[:end]
        return self._reader.read(header, body)

    def close(self) -> None:
        """Close this end; the other side finds out as it reads."""
        self._end.close()

    def _wait_at_most(self, timeout_s: float | None) -> None:
        if timeout_s != self._timeout_s:  # else no call of the system is spent on it
            self._end.settimeout(timeout_s)
            self._timeout_s = timeout_s

    def _fill(self, length: int) -> None:
        while len(self._received) < length:
            data = self._end.recv(max(65536, length - len(self._received)))
            if not data:
                raise EOFError("the other process closed the connection")
            self._received += data


# Pictures in shared memory


def place_pictures(memory: mmap.mmap, images: Mapping[str, int]) -> tuple[dict[str, Any], Any]:
    """Lay out the block: return the arrays of the cameras, and the rest, for `render()`.

    Args:
        memory: the block.
        images: camera -> height and width of its picture.

    Returns:
        camera -> uint8 (size, size, 3); uint8 (MAX_PICTURE_SIZE**2 * 3,). All are views of the
        block, and only what is written of it takes memory.
    """
    block = np.frombuffer(memory, np.uint8)
    pictures, start = {}, 0
    for camera, size in images.items():
        end = start + 3 * size * size
        pictures[camera] = block[start:end].reshape(size, size, 3)
        start = end
    return pictures, block[start:]


# The simulator's side


def find_versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of Python, numpy and these packages, without those not installed."""
    from importlib import metadata  # here: it takes as long as all else of this module

    found = {"python": platform.python_version()}
    if np is not None:
        found["numpy"] = np.__version__
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def serve(channel: Channel, memory: mmap.mmap | None) -> None:
    """Answer calls until the other side says close or is gone."""
    host = _Host(memory)
    while True:
        try:
            request = channel.receive()
        except (EOFError, OSError):  # its process is gone
            _end_after(_CLOSING_S)
            host.close()
            return
        method = request["method"]
        # Ended by the kernel where the other side, whose watchdog comes first, is gone itself and
        # the simulator hangs in code of its own that lets no Python thread run.
        _end_after(request["timeout_s"] + _CLOSING_S)
        try:
            result = getattr(host, method)(**request["arguments"])
            data = pack({"call": request["call"], "result": result})
        except Exception as error:  # the boundary: whatever went wrong is reported
            data = pack({"call": request["call"], **_describe(error)})
        _end_after(0.0)
        try:
            channel.send(data)
        except OSError:
            continue  # receive() will find out
        if method == "close":
            _end_after(_CLOSING_S)
            return


class _Host:
    """What the other side may call."""

    def __init__(self, memory: mmap.mmap | None) -> None:
        self._memory = memory
        self._simulator: Any = None
        self._pictures: dict[str, Any] = {}
        self._rest: Any = None

    def hello(self, distributions: tuple[str, ...]) -> dict[str, Any]:
        """Return all versions that are known before a simulator is imported."""
        return {"protocol": PROTOCOL, "versions": find_versions(distributions)}

    def open(self, folder: str, entry_point: str, setup: dict[str, Any]) -> None:
        """Import the simulator and make it."""
        _provide_package(folder)
        _complete_library()
        if self._memory is not None:
            self._pictures, self._rest = place_pictures(self._memory, setup["images"])
        module, _, name = entry_point.partition(":")
        make = getattr(importlib.import_module(module), name)
        self._simulator = make(importlib.import_module("vla_gym.suite").Setup(**setup))

    def reset(self, seed: int, options: dict[str, Any]) -> dict[str, Any]:
        return self._report(self._simulator.reset(seed, options))

    def step(self, action: Any) -> dict[str, Any]:
        return self._report(self._simulator.step(action))

    def render(self, camera: str, height: int, width: int) -> None:
        target = self._rest[: height * width * 3].reshape(height, width, 3)
        _write(target, self._simulator.render(camera, height, width), camera)

    def perturb(self, cameras: dict[str, Any], light: Any) -> None:
        if not hasattr(self._simulator, "perturb"):
            errors = importlib.import_module("vla_gym.errors")
            raise errors.InvalidOption("this simulator can change neither cameras nor light")
        suite = importlib.import_module("vla_gym.suite")
        moves = {name: suite.CameraMove(*move) for name, move in cameras.items()}
        light = None if light is None else suite.LightChange(*light)
        self._simulator.perturb(suite.VisualChange(moves, light))

    def close(self) -> None:
        simulator, self._simulator = self._simulator, None
        if simulator is not None:
            simulator.close()

    def _report(self, frame: Any) -> dict[str, Any]:
        for camera, target in self._pictures.items():
            _write(target, frame.images[camera], camera)
        fields = {name: getattr(frame, name) for name in _ALWAYS}
        for name in _SELDOM:
            if getattr(frame, name):
                fields[name] = getattr(frame, name)
        return fields


def _write(target: Any, picture: Any, camera: str) -> None:
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.shape != target.shape:
        raise ValueError(
            f"the simulator's picture of camera {camera!r} is {picture.dtype} {picture.shape}, "
            f"not uint8 {target.shape}"
        )
    target[...] = picture


def _end_after(seconds: float) -> None:
    """Let the kernel end this process after so long; 0 takes that back."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _describe(error: Any) -> dict[str, Any]:
    kind = type(error).__name__
    answer: dict[str, Any] = {"error": kind, "message": f"{kind}: {error}"}
    if kind == "UnknownName" and hasattr(error, "valid"):
        asked = error.asked if isinstance(error.asked, str) else repr(error.asked)
        answer["unknown_name"] = [error.kind, asked, [str(v) for v in error.valid], error.where]
    return answer


class _Finder:
    """Finds the modules of vla_gym for an interpreter in which it is not installed."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith("vla_gym."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def set_data(self, path: Any, data: Any, **keywords: Any) -> None:
        """Write no bytecode: the folder is another interpreter's."""

    def exec_module(self, module: types.ModuleType) -> None:
        if sys.version_info < (3, 10):  # noqa: UP036  # this file runs where the package does not
            module.zip = _strict_zip  # type: ignore[attr-defined]  # before its own names
        super().exec_module(module)


def _strict_zip(*iterables: Any, strict: bool = False) -> Any:
    """Stand in for zip(strict=...), which came with Python 3.10, in modules of ours."""
    if strict:
        iterables = tuple(list(iterable) for iterable in iterables)
        if len({len(items) for items in iterables}) > 1:
            raise ValueError("zip() arguments have different lengths")
    return zip(*iterables)  # noqa: B905  # see above


def _provide_package(folder: str) -> None:
    """Make `vla_gym.<module>` importable from `folder`, without the package's own start."""
    package = types.ModuleType("vla_gym", "The sources of vla_gym, read by a worker.")
    package.__path__ = [folder]
    package.__spec__ = importlib.machinery.ModuleSpec("vla_gym", None, is_package=True)
    package.__spec__.submodule_search_locations = [folder]
    # An outside module may register its suite where it is imported; here there is no registry.
    for name in ("register_suite", "register_env"):
        setattr(package, name, lambda *arguments, **keywords: None)
    sys.modules["vla_gym"] = package
    sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]  # a finder needs find_spec alone


def _complete_library() -> None:
    """Add what modules of ours import from newer libraries: functools.cache, numpy.typing."""
    if not hasattr(functools, "cache"):  # Python 3.8
        functools.cache = functools.lru_cache(maxsize=None)  # that is what it is
    try:
        typing = importlib.import_module("numpy.typing")
    except ImportError:  # numpy before 1.20
        typing = sys.modules["numpy.typing"] = types.ModuleType("numpy.typing")
    for name in ("ArrayLike", "DTypeLike", "NDArray"):
        if not hasattr(typing, name):
            setattr(typing, name, _Anything)


class _Anything:
    """Stands in for a type of numpy.typing; nothing looks at it."""

    def __class_getitem__(cls, item: Any) -> Any:
        return cls


def _main() -> None:
    faulthandler.enable()
    _, socket_fd, memory_fd, memory_size = sys.argv[1:]
    end = socket.socket(fileno=int(socket_fd))
    end.set_inheritable(False)  # the end of this process must be the end of the connection
    memory = None
    if int(memory_fd) >= 0:
        memory = mmap.mmap(int(memory_fd), int(memory_size))
        os.close(int(memory_fd))
    sys.argv = [sys.argv[1]]
    serve(Channel(end), memory)


if __name__ == "__main__":
    _main()
