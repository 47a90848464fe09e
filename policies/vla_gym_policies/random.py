"""`random`: uniform actions, the floor of every table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym import PolicySpec, SpecSheet

__all__ = ["RandomPolicy"]


class RandomPolicy:
    """Draws each action entry uniformly from [-1, 1], whatever it sees.

    Args:
        action_dim: number of entries; `for_env` sets it from the env's spec sheet.
        seed: of the first draws; `set_random_seed` starts them anew.
    """

    spec = PolicySpec(cameras=())  # it sees nothing, so nothing need be rendered for it

    def __init__(self, action_dim: int | None = None, seed: int = 0) -> None:
        self._action_dim = action_dim
        self._rng = np.random.default_rng(seed)

    def for_env(self, sheet: SpecSheet) -> RandomPolicy:
        """Return the policy for the env of this sheet."""
        return RandomPolicy(len(sheet.action))

    def set_random_seed(self, seed: int) -> None:
        """Start the draws anew."""
        self._rng = np.random.default_rng(seed)

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return (B, action_dim) uniform draws; `deterministic` does not change a random policy."""
        del episode_start, deterministic
        if self._action_dim is None:
            raise ValueError("RandomPolicy needs action_dim=..., or for_env(spec_sheet)")
        shape = (len(observation["proprio"]), self._action_dim)
        return self._rng.uniform(-1.0, 1.0, shape).astype(np.float32), state
