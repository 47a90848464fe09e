"""What both CALVIN simulators are: a play table that can be set up, moved and read.

`robot_obs`, shape (15,), and `scene_obs`, shape (24,), are upstream's own (calvin_env 797142c,
robot/robot.py `get_observation` and scene/play_table_scene.py `get_obs`), float64, world frame:

- `robot_obs`: 0-2 position of the tool centre point (TCP) [m]; 3-5 its Euler angles (extrinsic xyz,
  [rad]); 6 distance between the fingers, 0 to 0.08 [m]; 7-13 arm joints [rad]; 14 the last gripper
  command, -1 close or +1 open.
- `scene_obs`: joints of door, drawer, button and switch [m]; light bulb and LED, 0 or 1; then
  position [m] and Euler angles [rad] of each block, in the order of the scene
  (`vla_gym.suites.calvin.scenes.Scene.order`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_gym.suite import VisualChange
from vla_gym.suites.calvin.oracle import Record

__all__ = ["CAMERAS", "ROBOT_OBS_DIM", "SCENE_OBS_DIM", "Reading", "Table"]

ROBOT_OBS_DIM, SCENE_OBS_DIM = 15, 24

CAMERAS = ("static", "gripper")

Vector = NDArray[np.float64]


class Reading(NamedTuple):
    """What a table says of itself at one moment.

    Attributes:
        robot_obs: shape (15,), see the module's docstring.
        scene_obs: shape (24,).
        joint_velocities: of the arm [rad/s], shape (7,).
        record: what the oracle judges by.
    """

    robot_obs: Vector
    scene_obs: Vector
    joint_velocities: Vector
    record: Record


class Table(Protocol):
    """One play table with its robot. It knows no task, no instruction and no observation space."""

    def reset(self, robot_obs: Vector, scene_obs: Vector) -> None:
        """Put everything to where these say, at rest, bit for bit the same each time.

        Forgets all that was before. The gripper command becomes open (+1) if `robot_obs[14]` is
        positive, else close; so do the fingers' motors. Ends with at least one physics step, so
        that contacts are known.
        """
        ...

    def move(self, action: Vector) -> None:
        """Apply upstream's relative action for one control step of 1/30 s.

        Args:
            action: shape (7,), float64: dx, dy, dz in [-1, 1] times 0.02 m and the changes of the
                three Euler angles in [-1, 1] times 0.05 rad, added component by component to a
                target pose that starts at the TCP's pose at reset and is not bounded; then the
                gripper, exactly -1 (close) or +1 (open).
        """
        ...

    def move_to(self, position: Vector, quaternion_xyzw: Vector, gripper: float) -> None:
        """Drive towards an absolute pose of the TCP for one control step of 1/30 s.

        Args:
            position: [m], world frame, shape (3,).
            quaternion_xyzw: shape (4,).
            gripper: exactly -1 (close) or +1 (open).
        """
        ...

    def read(self) -> Reading:
        """Return the present state; arrays belong to the caller."""
        ...

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return the picture of one of `CAMERAS`: uint8 (height, width, 3), upright RGB."""
        ...

    def perturb(self, change: VisualChange) -> None:
        """Have pictures from now on show this change, with the names of `CAMERAS`.

        Raises:
            InvalidOption: this table cannot.
        """
        ...

    def close(self) -> None:
        """Free what it holds. Safe to call more than once."""
        ...
