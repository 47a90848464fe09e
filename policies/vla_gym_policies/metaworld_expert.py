"""`metaworld-expert`: the scripted experts that the metaworld package brings, one per task."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym import SpecSheet
from vla_gym.deps import require
from vla_gym.policy import PolicySpec

__all__ = ["MetaWorldExpert"]


class MetaWorldExpert:
    """Plays upstream's policy for the env's task from the privileged state.

    Each episode has an upstream policy object of its own, since some of them remember things.

    Args:
        native_task: upstream's name of the task; `for_env` sets it from the env's spec sheet.
    """

    spec = PolicySpec(
        suites=("MetaWorld",), cameras=(), state=True, action_mode="ee_delta", action_dim=7
    )

    def __init__(self, native_task: str | None = None) -> None:
        self._make: Any = None
        if native_task is not None:
            policies = require("metaworld.policies", "metaworld", "metaworld-expert")
            self._make = policies.ENV_POLICY_MAP[native_task]

    def for_env(self, sheet: SpecSheet) -> MetaWorldExpert:
        """Return the expert for the env of this sheet."""
        from vla_gym.registration import get_suite, get_task

        return MetaWorldExpert(get_task(get_suite(sheet.suite), sheet.task).native)

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return actions (B, 7) for `observation["state"]`, float64 (B, 39).

        The state returned is a list of B upstream policies. Upstream's action is clipped to [-1, 1]
        in float32, as the env would; its gripper entry changes sign (upstream's +1 closes).
        """
        del deterministic
        if self._make is None:
            raise ValueError("MetaWorldExpert needs native_task=..., or for_env(spec_sheet)")
        batch = observation["state"]
        experts: list[Any] = [None] * len(batch) if state is None else list(state)
        actions = np.zeros((len(batch), 7), dtype=np.float32)
        for row, seen in enumerate(batch):
            if experts[row] is None or (episode_start is not None and episode_start[row]):
                experts[row] = self._make()
            # A copy: nothing that an expert does to it may reach the caller's observation.
            native = np.asarray(experts[row].get_action(np.array(seen)), dtype=np.float32)
            native = np.clip(native, -1.0, 1.0)
            actions[row, :3] = native[:3]
            actions[row, 6] = -native[3]
        return actions, experts
