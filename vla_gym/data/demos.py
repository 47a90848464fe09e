"""Demonstrations in the contract's observations and actions: in memory and as one file each.

A file is a zip archive, readable by `numpy.load(path)` and by `unzip`, whose name ends in `.npz`:

| member                    | content                                                          |
|---------------------------|------------------------------------------------------------------|
| `header.json`             | every field that is not an array, format version and SHA-256     |
| `actions.npy`             | float32 (T, n)                                                   |
| `labels.npy`              | float32 (T, n), only where they differ from the actions          |
| `rewards.npy`             | float32 (T,)                                                     |
| `successes.npy`           | bool (T,)                                                        |
| `observations/<key>.npy`  | (T+1, ...), one member per observation key                       |

Nothing is pickled, and a file whose content differs from its checksum is refused. The same
demonstration gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import Error
from numpy.typing import NDArray

from vla_gym.instruction import MAX_LENGTH, Instruction

__all__ = [
    "SUFFIX",
    "Demonstration",
    "InvalidDemonstration",
    "load_demonstration",
    "load_demonstrations",
    "natural_key",
    "save_demonstration",
]

SUFFIX = ".npz"

_FORMAT = "vla-gym demonstration"
_FORMAT_VERSION = 1
_HEADER = "header.json"
_OBSERVATION = "observations/"
_STEP_ARRAYS = ("actions", "rewards", "successes")

_KEY = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TEXT = Instruction()


class InvalidDemonstration(Error, ValueError):
    """A demonstration breaks the format, or a file that should hold one is damaged."""


@dataclass(frozen=True, eq=False)
class Demonstration:
    """One recorded episode of T steps in the contract's units (see `vla_gym.contract`).

    Fields are checked when it is made; arrays are not copied where their type already fits.

    Attributes:
        id: of the env, for example `"VLA/RLBench-ReachTarget-v0"`.
        action_mode: of the env, for example `"ee_delta"`.
        instruction: the command, the same at every step.
        instructions: all wordings of it, with `instruction` among them.
        observations: key -> array (T+1, ...): `rgb_*` uint8 (T+1, H, W, 3), `proprio` float32,
            `state` float64, other keys of any number type. `instruction` is not among them.
        actions: float32 (T, n), each entry in [-1, 1]; action t leads from observation t to t+1.
        rewards: float32 (T,).
        successes: bool (T,): whether the task was solved after each step.
        success: whether it was solved after any step.
        labels: float32 (T, n): the actions that were meant and are to be learned, where noise was
            added to them before they were carried out (DART, Laskey et al. 2017). None: `actions`.
        terminated: whether the episode ended with the last step; False where it was cut off there.
        seed: that `env.reset(seed=seed, options=options)` repeats the episode with, None where no
            seed does.
        options: of `env.reset`.
        keywords: of `gym.make`, as far as they matter.
        source: where it comes from, in words.
        simulator: what ran it, as `info["simulator"]` says.
        versions: package -> version that ran it.
        spec_sheet: of the env, `SpecSheet.to_dict()`; empty where it is not known.

    Raises:
        InvalidDemonstration: a field has a wrong type, shape or range; the message names it.
    """

    id: str
    action_mode: str
    instruction: str
    observations: Mapping[str, NDArray[Any]]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    successes: NDArray[np.bool_]
    success: bool
    instructions: tuple[str, ...] = ()
    terminated: bool = False
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    keywords: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    simulator: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    labels: NDArray[np.float32] | None = None
    spec_sheet: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"the demonstration of {self.id!r}"
        for name in ("id", "action_mode", "source", "simulator"):
            _check(isinstance(getattr(self, name), str), f"{where}: {name} must be a str")
        _check(bool(self.id and self.action_mode), f"{where}: id and action_mode must not be empty")
        self._check_language(where)
        for name in ("success", "terminated"):
            value = getattr(self, name)
            _check(isinstance(value, bool | np.bool_), f"{where}: {name} must be a bool")
            self._set(name, bool(value))
        if self.seed is not None:
            whole = isinstance(self.seed, int | np.integer) and not isinstance(self.seed, bool)
            _check(whole, f"{where}: seed must be a whole number or None, not {self.seed!r}")
            self._set("seed", int(self.seed))
        for name in ("options", "keywords", "versions", "spec_sheet"):
            self._set(name, _plain(getattr(self, name), f"{where}: {name}"))
        steps = self._check_steps(where)
        self._set(
            "observations",
            {
                key: _check_observation(key, value, steps, where)
                for key, value in sorted(dict(self.observations).items())
            },
        )

    def __len__(self) -> int:
        """Return T, the number of steps."""
        return len(self.actions)

    def same_as(self, other: Demonstration) -> bool:
        """Return whether all fields are equal, arrays bit for bit and of the same types."""
        return _digest(_header_of(self), _pack(self)) == _digest(_header_of(other), _pack(other))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen for others

    def _check_language(self, where: str) -> None:
        texts = self.instructions
        _check(
            isinstance(texts, tuple | list), f"{where}: instructions must be a tuple, not {texts!r}"
        )
        texts = tuple(texts) or (self.instruction,)
        for text in (self.instruction, *texts):
            _check(
                isinstance(text, str) and _TEXT.contains(text),
                f"{where}: an instruction is printable ASCII of at most {MAX_LENGTH} characters, "
                f"not {text!r}",
            )
        _check(
            self.instruction in texts,
            f"{where}: instructions {texts} must contain the instruction {self.instruction!r}",
        )
        self._set("instructions", texts)

    def _check_steps(self, where: str) -> int:
        actions = _check_actions(self.actions, f"{where}: actions")
        steps = len(actions)
        _check(steps > 0, f"{where} has no action; a demonstration has at least one step")
        if self.labels is not None:
            labels = _check_actions(self.labels, f"{where}: labels")
            _check(
                labels.shape == actions.shape,
                f"{where}: labels must have the shape of the actions, {actions.shape}, not "
                f"{labels.shape}",
            )
            self._set("labels", None if np.array_equal(labels, actions) else labels)
        rewards = _cast(self.rewards, np.float32, f"{where}: rewards")
        successes = np.asarray(self.successes)
        _check(
            successes.dtype == np.bool_,
            f"{where}: successes must be of type bool, not {successes.dtype}",
        )
        for name, array in (("rewards", rewards), ("successes", successes)):
            _check(
                array.shape == (steps,),
                f"{where}: {name} must have the shape ({steps},), one per action, not "
                f"{array.shape}",
            )
        _check_finite(rewards, f"{where}: rewards")
        _check(
            self.success == bool(successes.any()),
            f"{where}: success is {self.success}, but successes are "
            f"{'not ' if self.success else ''}True after some step",
        )
        self._set("actions", actions)
        self._set("rewards", rewards)
        self._set("successes", successes)
        return steps


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InvalidDemonstration(message)


def _cast(value: Any, dtype: type, what: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
        _check(
            array.dtype.kind in "fiu",
            f"{what} must be an array of numbers, not of type {array.dtype}",
        )
        with np.errstate(over="ignore"):  # what overflows becomes inf, which is refused later
            return array.astype(dtype, copy=False)
    except (TypeError, ValueError) as error:
        raise InvalidDemonstration(f"{what} is not an array of numbers: {error}") from error


def _check_actions(value: Any, what: str) -> NDArray[np.float32]:
    actions = _cast(value, np.float32, what)
    _check(
        actions.ndim == 2 and actions.shape[1] > 0,
        f"{what} must have the shape (T, n), not {actions.shape}",
    )
    _check_finite(actions, what)
    beyond = np.argwhere(np.abs(actions) > 1.0)
    if len(beyond):
        step, entry = beyond[0]
        raise InvalidDemonstration(
            f"{what} must lie in [-1, 1]; {len(beyond)} of {actions.size} do not, the first is "
            f"entry {entry} of step {step}: {actions[step, entry]}"
        )
    return actions


def _check_finite(array: NDArray[Any], what: str) -> None:
    if array.dtype.kind != "f":
        return
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        raise InvalidDemonstration(
            f"{what} must be finite; {len(bad)} of {array.size} entries are not, the first is "
            f"entry {place}: {array[place]}"
        )


def _check_observation(key: Any, value: Any, steps: int, where: str) -> NDArray[Any]:
    _check(
        isinstance(key, str) and _KEY.fullmatch(key) is not None,
        f"{where}: an observation key has small letters, digits and underscores, not {key!r}",
    )
    _check(
        key != "instruction",
        f"{where}: the instruction is a field of its own, not an observation",
    )
    what = f"{where}: observation {key!r}"
    array = np.asarray(value)
    _check(array.dtype.kind in "fiub", f"{what} must hold numbers, not {array.dtype}")
    if key.startswith("rgb_"):
        _check(array.dtype == np.uint8, f"{what} must be of type uint8, not {array.dtype}")
        _check(
            array.ndim == 4 and array.shape[3] == 3,
            f"{what} must have the shape (T+1, H, W, 3), not {array.shape}",
        )
    elif key in ("proprio", "state"):
        array = _cast(array, np.float32 if key == "proprio" else np.float64, what)
        _check(array.ndim == 2, f"{what} must have the shape (T+1, n), not {array.shape}")
    _check(
        array.ndim > 0 and len(array) == steps + 1,
        f"{what} must have {steps + 1} rows, one more than the {steps} actions; its shape is "
        f"{array.shape}",
    )
    _check_finite(array, what)
    return array


def _plain(value: Any, what: str) -> dict[str, Any]:
    """Return a mapping as JSON gives it back, so that a demonstration equals its file."""
    try:
        plain = json.loads(json.dumps(dict(value), allow_nan=False, default=_number))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidDemonstration(f"{what} must be plain values (JSON): {error}") from error
    return plain


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__}")


def save_demonstration(demonstration: Demonstration, path: str | os.PathLike[str]) -> Path:
    """Write a demonstration as one file; a killed process leaves the old file or the new one.

    Args:
        demonstration: what to write.
        path: ends in `.npz`; missing folders are made.

    Returns:
        the path.
    """
    path = Path(path)
    _check(path.suffix == SUFFIX, f"a demonstration's file name ends in {SUFFIX!r}, not {path}")
    arrays, header = _pack(demonstration), _header_of(demonstration)
    header["sha256"] = _digest(header, arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hidden and with another ending: load_demonstrations passes over what a killed process leaves.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for name, content in {_HEADER: _dump(header, indent=1), **arrays}.items():
                    # A ZipInfo of its own has a fixed date: the same content, the same bytes.
                    member = zipfile.ZipInfo(name)
                    member.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(member, content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_demonstration(path: str | os.PathLike[str]) -> Demonstration:
    """Read a file that `save_demonstration` wrote.

    Raises:
        InvalidDemonstration: the file is damaged, of another kind or of a later version.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    packed = path.read_bytes()  # first, so that an error of the disk stays one
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            names = [info.filename for info in archive.infolist()]
            known = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            if any(info.compress_type not in known for info in archive.infolist()):
                raise zipfile.BadZipFile("a member is compressed in another way")
            members = {name: archive.read(name) for name in names}  # read() compares each CRC
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        LookupError,
        MemoryError,
        OSError,
        OverflowError,
        RuntimeError,  # a damaged flag claims that a member is encrypted
        ValueError,
    ) as error:
        raise InvalidDemonstration(
            f"{path} is damaged or no demonstration ({error}); fetch or make it again"
        ) from error
    _check(len(members) == len(names), f"{path} is damaged: it holds a member twice")
    header = _read_header(members.pop(_HEADER, None), path)
    expected = header.pop("sha256", None)
    _check(
        expected == _digest(header, members),
        f"{path} is damaged: its content differs from its SHA-256; fetch or make it again",
    )
    arrays = {name: _read_array(content, f"{path}: {name}") for name, content in members.items()}
    steps = {}
    for name in _STEP_ARRAYS:
        _check(f"{name}.npy" in arrays, f"{path} lacks {name}.npy")
        steps[name] = arrays.pop(f"{name}.npy")
    if "labels.npy" in arrays:
        steps["labels"] = arrays.pop("labels.npy")
    observations = {
        name.removeprefix(_OBSERVATION).removesuffix(".npy"): array
        for name, array in arrays.items()
    }
    fields = {field.name for field in dataclasses.fields(Demonstration)}
    header = {name: value for name, value in header.items() if name in fields}
    try:
        return Demonstration(**header, **steps, observations=observations)
    except (TypeError, InvalidDemonstration) as error:
        raise InvalidDemonstration(f"{path}: {error}") from error


def load_demonstrations(folder: str | os.PathLike[str]) -> Iterator[Demonstration]:
    """Yield the demonstrations of a folder and of the folders in it, one in memory at a time.

    Their order is that of their paths, numbers in names by value: `2.npz` before `10.npz`.

    Raises:
        InvalidDemonstration: a file is damaged; it is not passed over in silence.
        FileNotFoundError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():  # now, not when the first one is asked for
        raise FileNotFoundError(f"there is no folder {folder}")
    paths = [path for path in folder.rglob(f"*{SUFFIX}") if not path.name.startswith(".")]
    paths.sort(key=lambda path: natural_key(path.relative_to(folder).as_posix()))
    return map(load_demonstration, paths)


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a sorting key under which `episode2` stands before `episode10`."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return [(0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in parts], text


def _header_of(demonstration: Demonstration) -> dict[str, Any]:
    header: dict[str, Any] = {"format": _FORMAT, "format_version": _FORMAT_VERSION}
    for entry in dataclasses.fields(demonstration):
        if entry.name not in (*_STEP_ARRAYS, "labels", "observations"):
            value = getattr(demonstration, entry.name)
            header[entry.name] = list(value) if isinstance(value, tuple) else value
    return header


def _pack(demonstration: Demonstration) -> dict[str, bytes]:
    """Return the members of the file that hold arrays: name -> content."""
    arrays = {f"{name}.npy": getattr(demonstration, name) for name in _STEP_ARRAYS}
    if demonstration.labels is not None:
        arrays["labels.npy"] = demonstration.labels
    for key, value in demonstration.observations.items():
        arrays[f"{_OBSERVATION}{key}.npy"] = value
    packed = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        np.lib.format.write_array(buffer, np.ascontiguousarray(little), allow_pickle=False)
        packed[name] = buffer.getvalue()
    return packed


def _dump(header: Mapping[str, Any], indent: int | None = None) -> bytes:
    return json.dumps(header, sort_keys=True, allow_nan=False, indent=indent).encode("ascii")


def _digest(header: Mapping[str, Any], members: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256(_dump(header))
    for name in sorted(members):
        digest.update(f"\n{name} {len(members[name])}\n".encode())
        digest.update(members[name])
    return digest.hexdigest()


def _read_header(content: bytes | None, path: Path) -> dict[str, Any]:
    _check(content is not None, f"{path} is no demonstration: it has no {_HEADER}")
    assert content is not None
    try:
        header = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidDemonstration(f"{path}: {_HEADER} is not JSON: {error}") from error
    _check(
        isinstance(header, dict) and header.get("format") == _FORMAT,
        f"{path} is no demonstration: {_HEADER} does not say format={_FORMAT!r}",
    )
    version = header.get("format_version")
    _check(
        version == _FORMAT_VERSION,
        f"{path} has format version {version!r}; this vla_gym reads {_FORMAT_VERSION}. "
        "Install a later one",
    )
    return header


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _read_array(content: bytes, what: str) -> NDArray[Any]:
    buffer = io.BytesIO(content)
    try:
        array = np.lib.format.read_array(buffer, allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, OverflowError) as error:
        raise InvalidDemonstration(f"{what} is not an array without objects: {error}") from error
    _check(not buffer.read(1), f"{what} is longer than its array")
    return array
