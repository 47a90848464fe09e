"""How other programs write an observation down: their bytes, names, pictures and units.

The bytes are openpi's: msgpack, arrays as dicts with byte-string keys (openpi-client 0.1.2,
`msgpack_numpy.py`). No pickle crosses the wire.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require
from vla_gym.errors import ContractMismatch, UnknownName
from vla_gym.rotations import rotation_vector, vector_to_matrix

__all__ = [
    "DIALECTS",
    "LIBERO",
    "LIBERO_NATIVE",
    "VLA_GYM",
    "Dialect",
    "get_dialect",
    "pack",
    "unpack",
]

KINDS = "biufU"
"""Kinds of dtypes that are read: numbers and text, neither objects nor records."""

FINGER_M = 0.04
"""How far each finger of the Panda's gripper opens [m]: robosuite's `robot0_gripper_qpos`."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Return a message of plain values and arrays as openpi's bytes."""
    return require("msgpack", "serve").packb(message, default=_pack_array)


def unpack(data: bytes) -> Any:
    """Return the message of openpi's bytes; its arrays are its own.

    Raises:
        ValueError: the bytes are no message, or an array is of a kind that is not read.
    """
    return require("msgpack", "serve").unpackb(data, object_hook=_unpack_array)


def _pack_array(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in KINDS:
        raise ValueError(f"an array of {value.dtype} cannot be sent; numbers and text can")
    if isinstance(value, np.ndarray):
        head = {b"dtype": value.dtype.str, b"shape": value.shape}
        return {b"__ndarray__": True, b"data": value.tobytes(), **head}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} cannot be sent; plain values and arrays can")


def _unpack_array(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in found and b"__npgeneric__" not in found:
        return found
    dtype = np.dtype(found[b"dtype"])
    if dtype.kind not in KINDS:
        raise ValueError(f"an array of {dtype} is not read; numbers and text are")
    if b"__npgeneric__" in found:
        return dtype.type(found[b"data"])
    return np.frombuffer(found[b"data"], dtype).reshape(found[b"shape"]).copy()


@dataclass(frozen=True)
class Dialect:
    """How a program names and forms what it observes, and which way its gripper closes.

    Attributes:
        name: of the dialect.
        keys: our key -> theirs; what is not named is not sent. None: all under its own name.
        mirrored: whether their pictures are ours with left and right exchanged.
        state: what they have in the place of `proprio`: `"eef"`, `"joints"` or `"native"`, ours as
            it is, or `"eef vector fingers"`, float32 (8,): LIBERO's `proprio="native"` as far as it
            can be had from `"eef"` in any suite. Position [m]; axis-angle [rad] of robosuite's
            `right_hand`, with x >= 0; joint positions of both fingers [m], as if they were alike.
        base: where the robot's base is in the frame of their positions [m].
        gripper: `"+1 opens"` or `"+1 closes"`.
    """

    name: str
    keys: Mapping[str, str] | None = None
    mirrored: bool = False
    state: Literal["eef", "joints", "native", "eef vector fingers"] = "eef"
    base: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gripper: str = "+1 opens"

    @property
    def cameras(self) -> tuple[str, ...] | None:
        """The cameras whose pictures are sent; None: all that there are."""
        if self.keys is None:
            return None
        return tuple(key.removeprefix("rgb_") for key in self.keys if key.startswith("rgb_"))

    @property
    def proprio(self) -> str:
        """The form of `proprio` from which their state is made."""
        return "eef" if self.state == "eef vector fingers" else self.state

    def write(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Return the observation of one env, without batch axis, in their words.

        Raises:
            ContractMismatch: a key is missing, or `proprio` is not of the form that they read.
        """
        keys = self._keys(observation)
        lacking = [key for key in keys if key not in observation]
        if lacking:
            raise ContractMismatch(
                f"the dialect {self.name!r} sends {', '.join(lacking)}, which the observation "
                f"lacks; it has {', '.join(observation)}"
            )
        return {theirs: self._write(key, observation[key]) for key, theirs in keys.items()}

    def read(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of our observation is in a message of theirs; the inverse of `write`."""
        return {
            key: self._read(key, message[theirs])
            for key, theirs in self._keys(message).items()
            if theirs in message
        }

    def _keys(self, found: Mapping[str, Any]) -> Mapping[str, str]:
        return dict(zip(found, found, strict=True)) if self.keys is None else self.keys

    def _write(self, key: str, value: Any) -> Any:
        if key.startswith("rgb_"):
            return np.ascontiguousarray(value[:, ::-1] if self.mirrored else value)
        if key == "proprio" and self.state == "eef vector fingers":
            return _to_vector_fingers(np.asarray(value), np.array(self.base))
        return value if isinstance(value, str) else np.asarray(value)

    def _read(self, key: str, value: Any) -> Any:
        if key.startswith("rgb_") and self.mirrored:
            return np.ascontiguousarray(np.asarray(value)[:, ::-1])
        if key == "proprio" and self.state == "eef vector fingers":
            return _from_vector_fingers(np.asarray(value), np.array(self.base))
        return value


def _to_vector_fingers(
    proprio: NDArray[np.floating], base: NDArray[np.float64]
) -> NDArray[np.float32]:
    if proprio.shape != (10,):
        raise ContractMismatch(
            f"the state of position, rotation vector and fingers is made from proprio='eef' of one "
            f"arm, shape (10,); found shape {proprio.shape}"
        )
    x, y = proprio[3:6].astype(np.float64), proprio[6:9].astype(np.float64)
    hand = np.stack([y, -x, np.cross(x, y)], axis=1)
    fingers = FINGER_M * proprio[9] * np.array([1.0, -1.0])
    position = proprio[:3] + base
    return np.concatenate([position, _to_vector(hand), fingers]).astype(np.float32)


def _to_vector(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the axis-angle [rad] whose x is not negative; its angle goes up to 2 pi.

    A hand that points down is turned by about pi. The shortest vector jumps there from one side to
    the other, this one does not: robosuite makes it from a quaternion that does not jump either.
    """
    vector = rotation_vector(matrix)
    angle = float(np.linalg.norm(vector))
    return vector if vector[0] >= 0 else vector * (1 - 2 * np.pi / angle)


def _from_vector_fingers(
    state: NDArray[np.floating], base: NDArray[np.float64]
) -> NDArray[np.float32]:
    if state.shape != (8,):
        raise ContractMismatch(
            f"the state must be position (3), rotation vector (3) and fingers (2), shape (8,); "
            f"found shape {state.shape}"
        )
    hand = vector_to_matrix(state[3:6].astype(np.float64))
    opening = np.clip((state[6] - state[7]) / (2 * FINGER_M), 0.0, 1.0)
    position = state[:3] - base
    return np.concatenate([position, -hand[:, 1], hand[:, 0], [opening]]).astype(np.float32)


VLA_GYM = Dialect("vla_gym")
"""Our own names: every key of the observation under its own."""

LIBERO = Dialect(
    "libero",
    {
        "rgb_primary": "observation/image",
        "rgb_wrist": "observation/wrist_image",
        "proprio": "observation/state",
        "instruction": "prompt",
    },
    mirrored=True,
    state="eef vector fingers",
    gripper="+1 closes",
)
"""What openpi's LIBERO models read (openpi, `examples/libero/main.py`).

Their pictures are LIBERO's turned by half a turn. LIBERO's own stand on their heads, so that theirs
are upright and mirrored. Positions are in the world frame there: see `Dialect.base`.
"""

LIBERO_NATIVE = dataclasses.replace(LIBERO, name="libero-native", state="native")
"""The same in LIBERO itself, where `proprio="native"` is their state, bit for bit."""

DIALECTS = {dialect.name: dialect for dialect in (VLA_GYM, LIBERO, LIBERO_NATIVE)}


def get_dialect(dialect: str | Dialect, keys: Mapping[str, str | None] | None = None) -> Dialect:
    """Return a dialect by its name, with other keys.

    Args:
        dialect: a name of `DIALECTS`, or a dialect.
        keys: our key -> theirs, None to send it no longer; the others stay.

    Raises:
        UnknownName: there is no dialect of that name.
    """
    if isinstance(dialect, str):
        if dialect not in DIALECTS:
            raise UnknownName("dialect", dialect, DIALECTS, "vla_gym.wire")
        dialect = DIALECTS[dialect]
    if not keys:
        return dialect
    merged = {**(dialect.keys or {}), **keys}
    return dataclasses.replace(dialect, keys={k: v for k, v in merged.items() if v is not None})
