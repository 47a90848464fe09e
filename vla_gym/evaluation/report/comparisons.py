"""Every two policies of a report, on the episodes that both have played."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from vla_gym.errors import InvalidOption
from vla_gym.evaluation.comparison import Comparison, compare, describe, episodes_needed
from vla_gym.evaluation.report.gather import Results

__all__ = ["Duel", "make_duels"]


@dataclass(frozen=True)
class Duel:
    """Two policies, the one that is ahead first.

    Attributes:
        first, second: labels.
        found: the comparison, None where there can be none.
        needed: episodes in all that would settle a difference of this size, None where it is
            settled or 0.
        text: the verdict in sentences, or why there is none.
    """

    first: str
    second: str
    found: Comparison | None
    needed: int | None
    text: str

    @property
    def task_verdicts(self) -> tuple[int, int, int]:
        """On how many tasks the first is better, the second is, and neither is settled."""
        verdicts = [task.verdict for task in self.found.tasks] if self.found is not None else []
        kinds = ("first is better", "second is better", "not settled")
        return tuple(verdicts.count(kind) for kind in kinds)  # type: ignore[return-value]


def make_duels(results: Results) -> list[Duel]:
    """Return all pairs of policies, in the order of the policies."""
    return [_make_duel(results, *pair) for pair in itertools.combinations(results.policies, 2)]


def _make_duel(results: Results, first: str, second: str) -> Duel:
    try:
        found = compare(results.plain, first, second)
        if found.difference < 0:
            first, second = second, first
            found = compare(results.plain, first, second)
    except InvalidOption as error:
        return Duel(first, second, None, None, str(error))
    needed = episodes_needed(found) if found.verdict == "not settled" else None
    return Duel(first, second, found, needed, describe(found))
