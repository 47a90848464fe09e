"""`robosuite-door-expert`: a scripted policy for VLA/Robosuite-Door, from the privileged state."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym import PolicySpec, SpecSheet
from vla_gym_policies.robosuite_motion import (
    DOWNWARDS,
    EEF,
    PROPRIO_DIM,
    check_fit,
    start_phases,
    steer,
)

__all__ = ["RobosuiteDoorExpert"]

HOVER_M = 0.08
TILT_RAD = 0.5
"""The hand leans back by this much: upright, its palm would hit the panel."""
CLOSE_STEPS = 8
PUSH_M = 0.05
PULL_M = 0.06
UNLATCHED_RAD = 1.4
AJAR_RAD = 0.05
ABOVE, DOWN, CLOSE, TURN, PULL = range(5)

HANDLE_OUT_M = 0.100
PIVOT_M = 0.175
LEVER_M = 0.126
"""The handle from the door's centre: out from the panel, the lever's pivot along it, the lever's
length (measured in robosuite 1.5.2, models/assets/objects/door_lock.xml)."""

HINGE_M = 0.256
"""From the hinge to the door's centre along the panel."""


class RobosuiteDoorExpert:
    """Takes the handle from above, turns it down and pulls the door open. Made for the Panda."""

    spec = PolicySpec(
        suites=("Robosuite",),
        cameras=(),
        state=True,
        proprio="eef",
        action_mode="ee_delta",
        action_dim=7,
        keywords=(("robot", "Panda"),),
    )

    def for_env(self, sheet: SpecSheet) -> RobosuiteDoorExpert:
        """Return the policy for the env of this sheet.

        Raises:
            ContractMismatch: the env is not VLA/Robosuite-Door with a Panda.
        """
        check_fit("robosuite-door-expert", "Door", sheet)
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
        objects = state[PROPRIO_DIM:]
        door, handle, hinge_angle = objects[0:3], objects[3:6], objects[6]
        handle_angle = objects[13]
        along, out = _find_panel(handle - door, handle_angle)
        offset = handle - eef
        before = phase[0]
        approach = -np.sin(TILT_RAD) * out + np.cos(TILT_RAD) * DOWNWARDS
        across = np.cos(TILT_RAD) * out + np.sin(TILT_RAD) * DOWNWARDS
        hover = offset - HOVER_M * approach
        ready = abs(across @ proprio[3:6]) > 0.98
        if phase[0] == ABOVE and np.linalg.norm(hover) < 0.015 and ready:
            phase[0] = DOWN
        elif phase[0] == DOWN and (np.linalg.norm(offset) < 0.012 or phase[1] > 30):
            phase[0] = CLOSE
        elif phase[0] == CLOSE and phase[1] >= CLOSE_STEPS:
            phase[0] = TURN
        elif phase[0] == TURN and handle_angle > UNLATCHED_RAD:
            phase[0] = PULL
        elif phase[0] >= TURN and np.linalg.norm(offset) > 0.06:
            phase[0] = ABOVE  # it slipped
        elif phase[0] == PULL and hinge_angle < AJAR_RAD and phase[1] > 40:
            phase[0] = TURN
        phase[1] = phase[1] + 1 if phase[0] == before else 0
        # The lever swings about its pivot: down, and towards the pivot once it points down.
        turning = np.sin(handle_angle) * along - np.cos(handle_angle) * np.array([0.0, 0.0, 1.0])
        radius = handle - (door - HINGE_M * along)
        opening = np.cross([0.0, 0.0, 1.0], radius * [1.0, 1.0, 0.0])
        opening /= np.linalg.norm(opening)
        if phase[0] == ABOVE:
            offset = hover
        elif phase[0] == TURN:
            offset = offset * [1.0, 1.0, 0.0] + PUSH_M * turning
        elif phase[0] == PULL:
            offset = PULL_M * opening + (0.02 * turning if hinge_angle < AJAR_RAD else 0.0)
        grip = 1.0 if phase[0] in (ABOVE, DOWN) else -1.0
        return np.append(steer(offset, proprio.astype(np.float64), across, approach), grip)


def _find_panel(
    handle: NDArray[np.float64], angle: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the panel's horizontal directions: from its hinge outwards, and out of its front.

    Args:
        handle: from the door's centre to the handle [m], world frame, shape (3,).
        angle: by which the handle is turned [rad].
    """
    bearing = np.arctan2(HANDLE_OUT_M, PIVOT_M - LEVER_M * np.cos(angle))
    yaw = np.arctan2(handle[1], handle[0]) - bearing
    along = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    return along, np.array([-along[1], along[0], 0.0])
