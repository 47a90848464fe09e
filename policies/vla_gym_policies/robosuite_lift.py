"""`robosuite-lift-expert`: a scripted policy for VLA/Robosuite-Lift, from the privileged state."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym import PolicySpec, SpecSheet
from vla_gym_policies.robosuite_motion import EEF, PROPRIO_DIM, check_fit, start_phases, steer

__all__ = ["RobosuiteLiftExpert"]

HOVER_M = 0.08
CLOSE_STEPS = 8
ABOVE, DOWN, CLOSE, RAISE = range(4)


class RobosuiteLiftExpert:
    """Goes above the cube, turns with it, descends, closes and raises. Made for the Panda."""

    spec = PolicySpec(
        suites=("Robosuite",),
        cameras=(),
        state=True,
        proprio="eef",
        action_mode="ee_delta",
        action_dim=7,
        keywords=(("robot", "Panda"),),
    )

    def for_env(self, sheet: SpecSheet) -> RobosuiteLiftExpert:
        """Return the policy for the env of this sheet.

        Raises:
            ContractMismatch: the env is not VLA/Robosuite-Lift with a Panda.
        """
        check_fit("robosuite-lift-expert", "Lift", sheet)
        return self

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return actions (B, 7) and the phases; see `vla_gym.Policy`."""
        del deterministic
        phases = start_phases(state, episode_start, len(observation["state"]))
        actions = [
            self._act(*each)
            for each in zip(observation["state"], observation["proprio"], phases, strict=True)
        ]
        return np.array(actions, np.float32), phases

    def _act(
        self,
        state: NDArray[np.float64],
        proprio: NDArray[np.float32],
        phase: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Return one env's action, shape (7,); `phase` (2,) moves on in place."""
        eef = state[EEF]
        cube, quaternion = state[PROPRIO_DIM : PROPRIO_DIM + 3], state[PROPRIO_DIM + 3 :][:4]
        across = _find_side(quaternion, proprio[3:6].astype(np.float64))
        offset = cube - eef
        apart = float(np.linalg.norm(offset[:2]))
        before = phase[0]
        if phase[0] == ABOVE and apart < 0.01 and abs(across @ proprio[3:6]) > 0.98:
            phase[0] = DOWN
        elif phase[0] == DOWN and abs(offset[2]) < 0.01:
            phase[0] = CLOSE
        elif phase[0] == CLOSE and phase[1] >= CLOSE_STEPS:
            phase[0] = RAISE
        elif phase[0] == RAISE and np.linalg.norm(offset) > 0.05:
            phase[0] = ABOVE  # it slipped
        phase[1] = phase[1] + 1 if phase[0] == before else 0
        if phase[0] == ABOVE:
            offset = offset + np.array([0.0, 0.0, HOVER_M])
        elif phase[0] == RAISE:
            offset = np.array([0.0, 0.0, 0.05])
        grip = 1.0 if phase[0] in (ABOVE, DOWN) else -1.0
        return np.append(steer(offset, proprio.astype(np.float64), across), grip)


def _find_side(quaternion: NDArray[np.float64], along: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cube's horizontal axis that is nearest to the fingers' (unit vector, (3,)).

    Args:
        quaternion: the cube's orientation, x, y, z, w.
        along: where the fingers close now.
    """
    x, y, z, w = quaternion
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    sides = yaw + np.pi / 2 * np.arange(4)
    axes = np.stack([np.cos(sides), np.sin(sides), np.zeros(4)], axis=1)
    return axes[int(np.argmax(axes @ along))]
