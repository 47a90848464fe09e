"""Which tasks a trainer draws from, by their success so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vla_gym.errors import UnknownName

__all__ = ["ORDERS", "Curriculum"]

ORDERS = ("none", "success", "horizon", "failures")


@dataclass(frozen=True)
class Curriculum:
    """How the tasks of a batch are weighted.

    Attributes:
        order: `"none"`: all tasks alike. `"success"`: a third of the tasks first, those with the
            most success so far; one more whenever the mean success of those in use has reached
            `threshold`, or has not for `patience` evaluations. `"horizon"`: the same, those with
            the shortest demonstrations first. `"failures"`: all tasks, each in proportion to its
            failures so far (and 0.1).
        threshold: success rate in [0, 1].
        patience: evaluations.
    """

    order: str = "none"
    threshold: float = 0.5
    patience: int = 2

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise UnknownName("curriculum", self.order, ORDERS, "the trainer")

    def weights(
        self,
        tasks: Sequence[str],
        lengths: Mapping[str, float],
        history: Sequence[Mapping[str, float]],
    ) -> dict[str, float]:
        """Return the weight of each task.

        Args:
            tasks: all of them.
            lengths: task -> mean length of its demonstrations [control steps].
            history: task -> success rate, of each evaluation so far, the oldest first.
        """
        if self.order == "none":
            return dict.fromkeys(tasks, 1.0)
        latest = history[-1] if history else {}
        if self.order == "failures":
            return {task: 1.1 - latest.get(task, 0.0) for task in tasks}
        used = self._count_used(tasks, lengths, history)
        ranked = self._rank(tasks, lengths, latest)
        return {task: float(task in ranked[:used]) for task in tasks}

    def _rank(
        self, tasks: Sequence[str], lengths: Mapping[str, float], success: Mapping[str, float]
    ) -> list[str]:
        if self.order == "horizon":
            return sorted(tasks, key=lambda task: lengths[task])
        return sorted(tasks, key=lambda task: -success.get(task, 0.0))

    def _count_used(
        self,
        tasks: Sequence[str],
        lengths: Mapping[str, float],
        history: Sequence[Mapping[str, float]],
    ) -> int:
        """Return how many tasks are in use: the evaluations so far, played through again."""
        used, waited = -(-len(tasks) // 3), 0
        before: Mapping[str, float] = {}
        for success in history:
            inside = self._rank(tasks, lengths, before)[:used]
            waited += 1
            if (
                np.mean([success.get(task, 0.0) for task in inside]) >= self.threshold
                or waited >= self.patience
            ):
                used, waited = min(used + 1, len(tasks)), 0
            before = success
        return used
