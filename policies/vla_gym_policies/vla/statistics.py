"""What is known of the numbers in a data set, to bring proprio and actions to a common scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vla_gym.errors import InvalidOption

__all__ = ["Statistics", "Summary"]

CONSTANT = 1e-4
"""An entry that varies by less is taken as constant and not scaled: it would be noise."""


@dataclass(frozen=True)
class Summary:
    """Of each entry of a vector: mean, standard deviation, extremes, 1 % and 99 % quantiles."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]

    @classmethod
    def of(cls, rows: ArrayLike) -> Summary:
        """Return the summary of rows (N, n).

        Raises:
            InvalidOption: there are none, or one of the numbers is not finite.
        """
        array = np.asarray(rows, dtype=np.float64)
        if array.ndim != 2 or not len(array) or not np.isfinite(array).all():
            raise InvalidOption(
                f"statistics need finite rows (N, n) with N at least 1, found shape {array.shape}"
                + ("" if np.isfinite(array).all() else " with entries that are not finite")
            )
        low, high = np.quantile(array, [0.01, 0.99], axis=0)
        columns = (array.mean(0), array.std(0), array.min(0), array.max(0), low, high)
        return cls(*(tuple(column.tolist()) for column in columns))

    @classmethod
    def identity(cls, n: int) -> Summary:
        """Return the summary by which nothing changes, whatever the mode."""
        zeros, ones, minus = (0.0,) * n, (1.0,) * n, (-1.0,) * n
        return cls(zeros, ones, minus, ones, minus, ones)

    def shift_and_scale(self, mode: str) -> tuple[list[float], list[float]]:
        """Return shift and scale (n,), so that (x - shift) / scale is normalised.

        Args:
            mode: `"mean_std"`, `"min_max"`, `"quantile"` or `"none"`.
        """
        if mode == "none":
            return [0.0] * len(self.mean), [1.0] * len(self.mean)
        if mode == "mean_std":
            shift, scale = np.array(self.mean), np.array(self.std)
        else:
            ends = (self.min, self.max) if mode == "min_max" else (self.q01, self.q99)
            low, high = np.array(ends)
            shift, scale = (low + high) / 2, (high - low) / 2
        return shift.tolist(), np.where(scale < CONSTANT, 1.0, scale).tolist()


@dataclass(frozen=True)
class Statistics:
    """Of a data set: its proprio and actions, and of how many steps.

    Attributes:
        proprio, action: summaries.
        count: steps that they were taken from, 0 for `identity`.
        state: summary of the privileged state, for a model that reads it.
    """

    proprio: Summary
    action: Summary
    count: int
    state: Summary | None = None

    @classmethod
    def of(
        cls, proprio: ArrayLike, action: ArrayLike, state: ArrayLike | None = None
    ) -> Statistics:
        """Return the statistics of steps: proprio (N, n), actions (N, action_dim), state (N, m)."""
        action = np.asarray(action)
        privileged = None if state is None else Summary.of(state)
        return cls(Summary.of(proprio), Summary.of(action), len(action), privileged)

    @classmethod
    def identity(cls, proprio_dim: int, action_dim: int, state_dim: int = 0) -> Statistics:
        """Return the statistics by which nothing changes."""
        state = Summary.identity(state_dim) if state_dim else None
        return cls(Summary.identity(proprio_dim), Summary.identity(action_dim), 0, state)

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Statistics:
        """Return the statistics of `to_dict`; KeyError or TypeError where it is none."""

        def read(key: str) -> Summary:
            return Summary(**{name: tuple(column) for name, column in values[key].items()})

        state = read("state") if values.get("state") else None
        return cls(read("proprio"), read("action"), int(values["count"]), state)
