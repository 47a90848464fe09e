"""The language command as an observation: text that survives vector envs, or numbers."""

from __future__ import annotations

import multiprocessing
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils.shared_memory import (
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)
from numpy.typing import NDArray

from vla_gym.errors import UnknownName

__all__ = ["INSTRUCTION_FORMS", "MAX_LENGTH", "Instruction", "encode", "instruction_space"]

MAX_LENGTH = 256
"""Most characters that an instruction may have."""

EMBEDDING_DIM = 384
"""Length of a sentence embedding of all-MiniLM-L6-v2."""

INSTRUCTION_FORMS = ("text", "embedding", "bytes")

_CHARSET = "".join(c for c in string.printable if c.isprintable())  # ASCII 32 to 126


class Instruction(spaces.Text):
    """A language command: printable ASCII, 0 to 256 characters, spaces included.

    Why not plain `Text`: its default character set has no space, and Gymnasium's `AsyncVectorEnv`
    reads a `Text` from shared memory only once, at construction, so that every later instruction
    would arrive blank. The handlers below, registered with Gymnasium's own single-dispatch
    functions, give it a live view instead.
    """

    def __init__(self, max_length: int = MAX_LENGTH, *, seed: int | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=_CHARSET, seed=seed)

    def __repr__(self) -> str:
        return f"Instruction({self.max_length})"


class _LiveTexts(Sequence):
    """The instructions of all envs of an `AsyncVectorEnv`, read from shared memory when looked at.

    A deepcopy, which `AsyncVectorEnv` makes of its observations (`copy=True`), is the plain tuple
    of str of that moment, as `SyncVectorEnv` returns it.
    """

    def __init__(self, raw: NDArray[np.uint8]) -> None:
        self._raw = raw  # (n, max_length), zero-padded ASCII

    def _read(self) -> tuple[str, ...]:
        return tuple(bytes(row).rstrip(b"\0").decode("ascii") for row in self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, index: Any) -> Any:
        return self._read()[index]

    def __eq__(self, other: object) -> bool:
        return self._read() == (other._read() if isinstance(other, _LiveTexts) else other)

    def __hash__(self) -> int:
        return hash(self._read())

    def __repr__(self) -> str:
        return repr(self._read())

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return self._read()

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self._read(),)


@create_shared_memory.register(Instruction)
def _create(space: Instruction, n: int = 1, ctx: Any = None) -> Any:
    return (ctx or multiprocessing).Array("c", n * space.max_length)


@read_from_shared_memory.register(Instruction)  # pyright: ignore[reportArgumentType]  # a live view
def _read(space: Instruction, shared_memory: Any, n: int = 1) -> _LiveTexts:
    raw = np.frombuffer(shared_memory.get_obj(), dtype=np.uint8).reshape(n, space.max_length)
    return _LiveTexts(raw)


@write_to_shared_memory.register(Instruction)
def _write(space: Instruction, index: int, value: str, shared_memory: Any) -> None:
    raw = np.frombuffer(shared_memory.get_obj(), dtype=np.uint8)
    row = raw[index * space.max_length : (index + 1) * space.max_length]
    row[:] = encode_bytes(value, space.max_length)


def encode_bytes(text: str, length: int = MAX_LENGTH) -> NDArray[np.uint8]:
    """Return `text` as ASCII codes, zero-padded: shape (length,), uint8."""
    codes = np.zeros(length, dtype=np.uint8)
    encoded = text.encode("ascii")
    codes[: len(encoded)] = np.frombuffer(encoded, dtype=np.uint8)
    return codes


def instruction_space(form: str) -> spaces.Space:
    """Return the space of the observation key `instruction` in one of its forms.

    `"text"`: `Instruction`; `"bytes"`: Box uint8 (256,), zero-padded ASCII; `"embedding"`: Box
    float32 (384,), unit-norm sentence embedding (see `vla_gym.embedding`).
    """
    if form == "text":
        return Instruction()
    if form == "bytes":
        return spaces.Box(0, 255, (MAX_LENGTH,), np.uint8)
    if form == "embedding":
        return spaces.Box(-1.0, 1.0, (EMBEDDING_DIM,), np.float32)
    raise UnknownName("instruction form", form, INSTRUCTION_FORMS)


def encode(text: str, form: str) -> str | NDArray[Any]:
    """Return `text` in the given form: the value that belongs to `instruction_space(form)`."""
    if form == "text":
        return text
    if form == "bytes":
        return encode_bytes(text)
    if form == "embedding":
        from vla_gym.embedding import embed

        return embed(text)
    raise UnknownName("instruction form", form, INSTRUCTION_FORMS)
