"""Noisy actions: the robot does not do exactly what it is told."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_gym.contract import check_action
from vla_gym.perturbations.base import AnyEnv, Perturbation, Perturbed, find_grippers, get_env

__all__ = ["ACTION_NOISE"]


def _find_obstacle(env: AnyEnv) -> str | None:
    sheet = get_env(env).spec_sheet
    if sheet.action_mode == "ee_delta" or sheet.rest is not None:
        return None
    return (
        f"in action_mode={sheet.action_mode!r} an action is not known to be a motion, of which "
        "noise could be a share; take 'ee_delta'"
    )


class _NoisyActions(Perturbed):
    def __init__(self, env: AnyEnv, strength: float) -> None:
        super().__init__(env, ACTION_NOISE.name)
        self._sheet = sheet = get_env(env).spec_sheet
        self._deviation = np.full(len(sheet.action), strength)
        self._deviation[find_grippers(sheet.action)] = 0.0
        self._rng = np.random.default_rng()

    def begin(self, stream: np.random.SeedSequence) -> None:
        self._rng = np.random.default_rng(stream)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Apply an action with noise, clipped to [-1, 1] before and after."""
        meant = check_action(action, self._sheet.action, self._sheet.id)
        noise = self._deviation * self._rng.normal(size=len(meant))
        return self.env.step(np.clip(meant + noise, -1.0, 1.0).astype(np.float32))


ACTION_NOISE = Perturbation(
    name="action-noise",
    doc="normal noise on every entry of every action but the gripper's; the sum is clipped to "
    "[-1, 1]",
    strength=0.1,
    unit="of full scale (standard deviation)",
    low=0.0,
    high=1.0,
    wrap=_NoisyActions,
    find_obstacle=_find_obstacle,
)
