"""What an action of `ee_delta` does: it moves a target pose that may run ahead of the hand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.rotations import rotation_vector, vector_to_matrix

__all__ = ["POSITION_M", "REACH_M", "REACH_RAD", "ROTATION_RAD", "Pose", "advance"]

POSITION_M, ROTATION_RAD = 0.02, 0.05
"""What +1 means per axis and control step: calvin_env 797142c, robot/robot.py, `max_rel_pos`,
`max_rel_orn`."""

REACH_M, REACH_RAD = 0.08, 0.3
"""How far the target may be from where the hand is. Enough for the arm's lag at full speed and for
a firm push; what cannot be reached is not stored up. Upstream stores it up."""


class Pose(NamedTuple):
    """A pose of the tool centre point, world frame: position [m], (3,), and rotation, (3, 3)."""

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]


def advance(target: Pose, hand: Pose, action: NDArray[np.float64]) -> Pose:
    """Return where the target is after an action.

    Args:
        target: where it was.
        hand: where the tool centre point is.
        action: shape (7,) or (6,), each in [-1, 1].
    """
    position = np.minimum(
        np.maximum(target.position + POSITION_M * action[:3], hand.position - REACH_M),
        hand.position + REACH_M,
    )
    rotation = vector_to_matrix(ROTATION_RAD * action[3:6]) @ target.rotation
    ahead = rotation_vector(rotation @ hand.rotation.T)
    angle = float(np.linalg.norm(ahead))
    if angle > REACH_RAD:
        rotation = vector_to_matrix(ahead * (REACH_RAD / angle)) @ hand.rotation
    return Pose(position, rotation)
