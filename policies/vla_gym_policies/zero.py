"""`zero`: does nothing, which no task should reward."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym import PolicySpec, SpecSheet

__all__ = ["ZeroPolicy"]


class ZeroPolicy:
    """Returns zeros: no motion; the gripper entry 0 is each suite's own middle.

    Args:
        action_dim: number of entries; `for_env` sets it from the env's spec sheet.
    """

    spec = PolicySpec(cameras=())  # it sees nothing, so nothing need be rendered for it

    def __init__(self, action_dim: int | None = None) -> None:
        self._action_dim = action_dim

    def for_env(self, sheet: SpecSheet) -> ZeroPolicy:
        """Return the policy for the env of this sheet."""
        return ZeroPolicy(len(sheet.action))

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return zeros, shape (B, action_dim)."""
        del episode_start, deterministic
        if self._action_dim is None:
            raise ValueError("ZeroPolicy needs action_dim=..., or for_env(spec_sheet)")
        return np.zeros((len(observation["proprio"]), self._action_dim), np.float32), state
