"""The observations of all envs in one piece of memory, which processes or threads share.

Array spaces and instructions have rows of fixed size, so each env writes its own rows and nothing
is pickled. The memory has no name: it goes with the last process that maps it.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vla_gym.errors import InvalidOption
from vla_gym.instruction import Instruction, encode_bytes

__all__ = ["Batch", "count_bytes"]

ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)

ALIGNMENT = 64
"""Of the start of each array [bytes]: a cache line, which no two arrays share."""

Rows = Any
"""One array (n, ...) for each leaf of the space, in dicts as the space has them."""


class Batch:
    """Room for one observation of each env.

    Args:
        space: of one env: array spaces and `Instruction`, in Dicts.
        num_envs: how many rows.
        memory: where the rows lie, at least `count_bytes(space, num_envs)` from `start`.
        start: of the rows in `memory` [bytes].

    Raises:
        InvalidOption: the space holds one whose values have no fixed size.
    """

    def __init__(
        self, space: spaces.Space[Any], num_envs: int, memory: mmap.mmap, start: int = 0
    ) -> None:
        self._space, self._num_envs = space, num_envs

        def take(dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
            nonlocal start
            rows = np.ndarray(shape, dtype, memory, start)
            start += _round_up(rows.nbytes)
            return rows

        self._rows = _lay_out(space, num_envs, take)

    def write(self, index: int, observation: Any) -> None:
        """Write the observation of one env."""
        _write(self._space, self._rows, index, observation)

    def read(self, copy: bool) -> Any:
        """Return the observations of all envs, batched as Gymnasium does it; texts are a tuple."""
        return _read(self._space, self._rows, lambda rows: rows.copy() if copy else rows)

    def read_one(self, index: int) -> Any:
        """Return a copy of the observation of one env."""
        return _read(self._space, self._rows, lambda rows: rows[index].copy(), index)


def count_bytes(space: spaces.Space[Any], num_envs: int) -> int:
    """Return how much memory a `Batch` needs [bytes].

    Raises:
        InvalidOption: the space holds one whose values have no fixed size.
    """
    sizes = []

    def take(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        sizes.append(_round_up(dtype.itemsize * math.prod(shape)))

    _lay_out(space, num_envs, take)
    return sum(sizes)


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _lay_out(
    space: spaces.Space[Any], num_envs: int, take: Callable[[Any, tuple[int, ...]], Any]
) -> Rows:
    if isinstance(space, spaces.Dict):
        return {name: _lay_out(inner, num_envs, take) for name, inner in space.spaces.items()}
    if isinstance(space, Instruction):
        return take(np.dtype(np.uint8), (num_envs, space.max_length))
    if isinstance(space, ARRAY_SPACES):
        return take(np.dtype(space.dtype), (num_envs, *(space.shape or ())))
    raise InvalidOption(
        f"a vector env shares observations as arrays of fixed size, and {space} has none. It takes "
        "Box, Discrete, MultiBinary, MultiDiscrete, vla_gym.Instruction and Dicts of them; for "
        "others take Gymnasium's AsyncVectorEnv with shared_memory=False"
    )


def _write(space: spaces.Space[Any], rows: Rows, index: int, value: Any) -> None:
    if isinstance(space, spaces.Dict):
        for name, inner in space.spaces.items():
            _write(inner, rows[name], index, value[name])
    elif isinstance(space, Instruction):
        rows[index] = encode_bytes(value, space.max_length)
    else:
        rows[index] = value


def _read(
    space: spaces.Space[Any],
    rows: Rows,
    take: Callable[[NDArray[Any]], NDArray[Any]],
    index: int | None = None,
) -> Any:
    if isinstance(space, spaces.Dict):
        named: Mapping[str, spaces.Space[Any]] = space.spaces
        return {name: _read(inner, rows[name], take, index) for name, inner in named.items()}
    if isinstance(space, Instruction):
        return tuple(map(_decode, rows)) if index is None else _decode(rows[index])
    return take(rows)


def _decode(codes: NDArray[np.uint8]) -> str:
    return codes.tobytes().rstrip(b"\0").decode("ascii")
