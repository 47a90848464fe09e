"""What a task of the twin is: a scene, wordings, a success rule and a plan that solves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vla_gym.rotations import rotation_vector, vector_to_matrix
from vla_gym.suites.rlbench import POSITION_M, ROTATION_RAD
from vla_gym.twins.panda import Kinematics, Pose
from vla_gym.twins.rlbench.scene import FOV_DEG, MOUNT, TASK_CENTRE_M, SceneBuilder
from vla_gym.twins.rlbench.world import Snapshot, World, yaw_matrix

__all__ = [
    "DOWN",
    "TwinTask",
    "Waypoint",
    "above",
    "choose_roll",
    "draw_apart",
    "draw_place",
    "look_along",
    "on_stage",
    "solvable",
    "top_grasp",
]

DOWN = np.diag([-1.0, 1.0, -1.0])
"""Rotation of a tip that points straight down as at home: fingers open along the world's y."""

BASE = "task"
"""Body of a task whose parts are placed as one."""


NEAR_M, NEAR_RAD = 0.004, 0.04
"""A waypoint is reached within these."""

GAIN = 0.6
"""Of the way that is left, per control step: the arm lags by about one."""

SLOW = 0.3
"""Largest entry of a slow stride."""


@dataclass(frozen=True)
class Waypoint:
    """A pose for the tip to go to, and what the gripper does when it is there.

    Attributes:
        position: [m], world frame.
        rotation: tip to world.
        open: the gripper on the way there; None leaves it as it is.
        then_open: what the gripper does after arriving; None leaves it.
        slow: whether to move at `SLOW` of the speed, where precision or force matters.
        hold: control steps to stay after arriving.
    """

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]
    open: bool | None = None
    then_open: bool | None = None
    slow: bool = False
    hold: int = 0

    def is_near(self, tip: Pose) -> bool:
        """Return whether the tip has come close enough."""
        turn = rotation_vector(self.rotation @ tip.rotation.T)
        way = np.linalg.norm(self.position - tip.position)
        return bool(way < NEAR_M and np.linalg.norm(turn) < NEAR_RAD)

    def stride(self, tip: Pose, scale: tuple[float, float]) -> NDArray[np.float64]:
        """Return the six motion entries of `ee_delta` for one control step towards the waypoint.

        Args:
            tip: where it is.
            scale: what +1 means [m], [rad].
        """
        turn = rotation_vector(self.rotation @ tip.rotation.T)
        motion = np.concatenate([(self.position - tip.position) / scale[0], turn / scale[1]])
        motion *= GAIN
        limit = SLOW if self.slow else 1.0
        return motion * min(1.0, limit / max(1e-9, float(np.abs(motion).max())))


class TwinTask:
    """One task. Subclasses say what is in the scene; an object of it plays one simulator.

    Class attributes:
        bodies: names whose poses the privileged state holds, at most `MAX_BODIES`.
        joints: names of its hinges and slides in the state, at most `MAX_JOINTS`.
    """

    bodies: ClassVar[tuple[str, ...]] = ()
    joints: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        """Add bodies, joints and sensors: the same for every variation and episode."""
        raise NotImplementedError

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        """Start an episode: place and paint everything. `world` is at rest in its home pose."""
        raise NotImplementedError

    def observe(self, world: World) -> None:
        """See the world after each control step, for rules that remember (an order, a path)."""
        del world

    def succeeded(self, world: World) -> bool:
        """Return whether the task is solved at this moment."""
        raise NotImplementedError

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        """Return the instruction of a variation and its paraphrases, canonical first."""
        raise NotImplementedError

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        """Return waypoints that solve the task from how it stands at the start."""
        raise NotImplementedError


def draw_place(
    rng: np.random.Generator, x: float, y: float, centre: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float64]:
    """Draw a point on the table: full extents `x` and `y` about `TASK_CENTRE_M` plus `centre`."""
    offset = rng.uniform([-x / 2, -y / 2], [x / 2, y / 2]) + centre
    return np.array([TASK_CENTRE_M[0] + offset[0], TASK_CENTRE_M[1] + offset[1], TASK_CENTRE_M[2]])


def draw_apart(
    rng: np.random.Generator, count: int, x: float, y: float, apart: float, tries: int = 2000
) -> NDArray[np.float64]:
    """Draw `count` points as `draw_place` does, each at least `apart` from all others: (count, 3).

    Falls back to the best of its tries, so that a reset always ends.
    """
    best, widest = np.zeros((count, 3)), -1.0
    for _ in range(tries):
        points = np.array([draw_place(rng, x, y) for _ in range(count)])
        gaps = np.linalg.norm(points[:, None, :2] - points[None, :, :2], axis=-1)
        gap = float((gaps + np.eye(count) * 9).min())
        if gap > widest:
            best, widest = points, gap
        if widest >= apart:
            break
    return best


def top_grasp(yaw: float) -> NDArray[np.float64]:
    """Return the rotation of a tip that points down with its fingers along `yaw` + 90 degrees.

    Of the two that are the same to the fingers, the one nearer to the home pose.
    """
    turn = (yaw + np.pi / 2) % np.pi - np.pi / 2
    return yaw_matrix(turn) @ DOWN


def look_along(direction: NDArray[np.float64], fingers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation of a tip that points along `direction` and opens along `fingers`.

    The fingers' direction is made perpendicular to the other.
    """
    z = np.asarray(direction, dtype=np.float64) / np.linalg.norm(direction)
    y = np.asarray(fingers, dtype=np.float64)
    y = y - z * (z @ y)
    y /= np.linalg.norm(y)
    return np.stack([np.cross(y, z), y, z], axis=1)


def choose_roll(
    position: NDArray[np.float64], rotation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the rotation, or it turned by half a turn about the hand's axis: the same grasp.

    Of the two, the one that the arm reaches from its home pose with the smaller turn of a joint.
    """
    home = np.array(MOUNT.home)
    arm = Kinematics(MOUNT)  # of this call alone: resets may run in several threads
    best, least = rotation, np.inf
    for candidate in (rotation, rotation @ np.diag([-1.0, -1.0, 1.0])):
        joints, error = arm.solve(Pose(position, candidate), home, 60)
        cost = float(np.abs(joints - home).max()) + 100 * error
        if cost < least:
            best, least = candidate, cost
    return best


FOOT_X_M, EDGE_Y_M, FRAME_M = -0.10, 0.50, 0.03
"""Of `on_stage`: where the robot's foot needs room, how far to the sides the table is used, and how
far from the picture's edge the middle of a body must be."""


def on_stage(world: World, *bodies: str) -> bool:
    """Return whether bodies are on the table, clear of the robot, and seen by the front camera."""
    world.forward()
    points = np.array([world.pose(name).position for name in bodies])
    camera = world.data.camera("front")
    local = (points - camera.xpos) @ camera.xmat.reshape(3, 3)  # x right, y up, z backwards
    half = -local[:, 2:] * np.tan(np.deg2rad(FOV_DEG / 2))
    seen = np.abs(local[:, :2]) + FRAME_M < half
    there = (points[:, 0] > FOOT_X_M) & (np.abs(points[:, 1]) < EDGE_Y_M)
    return bool(seen.all() and there.all())


REACH_ERROR = 5e-3
"""Metres plus radians by which a pose may be missed."""

ELBOW = 3
SPARE_RAD, BENT_RAD = 0.1, 0.65
"""How far every joint stays from its limits, where the arm gets stuck on its way, and how far the
elbow stays bent: the arm is at full stretch, and may come back the wrong way, at 0.46 rad."""


def solvable(task: TwinTask, world: World, variation: int) -> bool:
    """Return whether the arm can follow the task's plan, in straight lines, from how it stands now.

    For `place`: draw until this is true, then every episode has a solution. It takes the strides of
    `rlbench-expert`: with others the arm would come to the same place with its elbow elsewhere. It
    looks at the arm's joints alone, not at what may be in the way.
    """
    world.forward()
    robot = world.robot
    seen = Snapshot(
        tip=robot.tip,
        opening=robot.opening,
        variation=variation,
        poses={name: world.pose(name) for name in task.bodies},
        joints={name: world.joint(name) for name in task.joints},
    )
    joints, here = robot.joints.copy(), seen.tip
    for waypoint in task.plan(seen):
        while not waypoint.is_near(here):
            motion = waypoint.stride(here, (POSITION_M, ROTATION_RAD))
            here = Pose(
                here.position + POSITION_M * motion[:3],
                vector_to_matrix(ROTATION_RAD * motion[3:]) @ here.rotation,
            )
            joints, error = robot.solve(here, joints)
            spare = np.minimum(joints - robot.low, robot.high - joints).min()
            if error > REACH_ERROR or spare < SPARE_RAD or joints[ELBOW] > -BENT_RAD:
                return False
    return True


def above(pose: Pose, height: float) -> NDArray[np.float64]:
    """Return the point so far above a pose."""
    return pose.position + np.array([0.0, 0.0, height])
