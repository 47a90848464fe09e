"""What a policy answers to, and how soon: something that it is shown is changed in some steps only.

No reference is needed here. A policy that looks at its proprio answers, in some of the steps in
which the proprio is changed, in that very step; one that looks at a stale one never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.doctor.trajectories import Change, Trajectory, add_rows, replay
from vla_gym.policy.base import Policy

__all__ = ["Response", "alter_key", "measure_lag", "measure_response"]

Array = NDArray[np.float64]

SPACING = 6
"""Steps from one alteration to the next in one replay."""
SMALL = 1e-3
"""Less than that of an action's range is no answer."""


@dataclass(frozen=True)
class Response:
    """How a policy answers to alterations.

    Attributes:
        share: of the steps altered, those with an answer before the next alteration.
        lag: steps from an alteration to the earliest answer ever seen; None without any.
        size: largest change of an action entry.
        looked: of each trajectory, whether it answered in the step of the alteration itself.
    """

    share: float
    lag: int | None
    size: float
    looked: list[NDArray[np.bool_]]


def alter_key(key: str) -> Any:
    """Return a function that gives something clearly different for a batch of one key."""
    if key.startswith("rgb_"):
        return lambda value: 255 - value
    return _move


def _move(proprio: Any) -> Any:
    """Move the hand by 5 cm along each axis, and open what is closed."""
    moved = np.array(proprio)
    moved[:, :3] += 0.05
    moved[:, -1] = 1 - moved[:, -1]
    return moved


def alter(keys: tuple[str, ...], when: Any) -> Change:
    """Return the change that alters some keys of the observation in the steps where `when`."""

    def change(batch: dict[str, Any], step: int) -> dict[str, Any]:
        if not when(step):
            return batch
        return {k: alter_key(k)(v) if k in keys else v for k, v in batch.items()}

    return change


def measure_response(clean: list[Array], altered: list[Array]) -> float:
    """Return by how much a change of what is seen moves the actions, in their own spreads."""
    rows, others = (np.clip(add_rows(said), -1, 1) for said in (clean, altered))
    spread = max(float(np.sqrt(rows.var(axis=0).mean())), 0.05)
    return float(np.sqrt(np.mean((others - rows) ** 2)) / spread)


def measure_lag(
    policy: Policy,
    trajectories: list[Trajectory],
    clean: list[Array],
    keys: tuple[str, ...],
) -> Response:
    """Return how soon a policy answers to a change of some keys that lasts one step.

    Every step but the first of an episode is altered once, each sixth in one replay, so that a
    policy that predicts several actions at once is also caught in the steps in which it looks.
    """
    earliest: int | None = None
    answers = altered = 0
    size = 0.0
    looked = [np.zeros(len(t), bool) for t in trajectories]
    for offset in range(1, SPACING + 1):
        said = replay(
            policy,
            trajectories,
            alter(keys, lambda step, o=offset: step >= o and (step - o) % SPACING == 0),
        )
        for one, other, looks in zip(said, clean, looked, strict=True):
            moved = np.abs(one - other).max(axis=1)
            for start in range(offset, len(moved), SPACING):
                late = np.flatnonzero(moved[start : start + SPACING] > SMALL)
                altered += 1
                size = max(size, float(moved[start : start + SPACING].max()))
                if len(late):
                    answers += 1
                    looks[start] = late[0] == 0
                    earliest = late[0] if earliest is None else min(earliest, late[0])
    lag = None if earliest is None else int(earliest)
    return Response(answers / max(altered, 1), lag, size, looked)
