"""What a task sees of the running simulation: poses, joints, sensors, the grasp."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_gym.deps import require
from vla_gym.errors import InvalidOption
from vla_gym.rotations import quaternion_to_matrix
from vla_gym.suites.rlbench_twin import MAX_BODIES, MAX_JOINTS, TWIN_STATE_DIM
from vla_gym.twins.panda import FINGER_JOINTS, Panda, Pose
from vla_gym.twins.rlbench.scene import MOUNT, quat_wxyz

__all__ = ["Snapshot", "World", "read_state", "yaw_matrix"]


class Snapshot(NamedTuple):
    """The privileged state of a task as names: what a scripted expert plans from.

    Attributes:
        tip: pose of the tip.
        opening: of the gripper, 0 to 1.
        variation: number of the variation.
        poses: body -> pose.
        joints: joint -> position [rad or m].
    """

    tip: Pose
    opening: float
    variation: int
    poses: dict[str, Pose]
    joints: dict[str, float]


class World:
    """One compiled task: model, data, robot, and what conditions ask about.

    Args:
        model: the compiled model, which this world may change (places, colours).
        graspable: names of the bodies that closing the gripper attaches.
    """

    def __init__(self, model: Any, graspable: Iterable[str]) -> None:
        self._mujoco = require("mujoco", "rlbench-twin", "the RLBench twin")
        self.model = model
        self.data = self._mujoco.MjData(model)
        self.robot = Panda(model, self.data, MOUNT)
        self._graspable = {
            name: (model.body(name).id, model.equality(f"{name}_grasp").id) for name in graspable
        }
        self._hand = model.body("panda_hand").id
        self._finger_dofs = np.array([model.joint(name).dofadr[0] for name in FINGER_JOINTS])
        self._hand_sensor = model.geom("grasp_sensor").id
        self._held: str | None = None
        self._fromto = np.zeros(6)
        self._home_pos = model.body_pos.copy()
        self._home_quat = model.body_quat.copy()
        self._home_rgba = model.geom_rgba.copy()
        self._solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)

    def reset(self) -> None:
        """Put everything back to where the model has it, the robot to its home pose."""
        self.model.body_pos[:] = self._home_pos
        self.model.body_quat[:] = self._home_quat
        self.model.geom_rgba[:] = self._home_rgba
        self._mujoco.mj_resetData(self.model, self.data)
        self._held = None
        self.robot.reset()

    def forward(self) -> None:
        """Bring positions, sensors and contacts up to date after placing things."""
        self._mujoco.mj_forward(self.model, self.data)

    def place(self, body: str, position: ArrayLike, yaw: float = 0.0, rotation: Any = None) -> None:
        """Put a body somewhere: world frame for one that hangs in the world, else its parent's.

        Args:
            body: its name.
            position: [m], shape (3,).
            yaw: about z [rad], unless `rotation` gives a matrix.
            rotation: rotation matrix, shape (3, 3), or None.
        """
        matrix = yaw_matrix(yaw) if rotation is None else np.asarray(rotation)
        quat = quat_wxyz(matrix)
        index = self.model.body(body).id
        if (
            self.model.body_jntnum[index]
            and self.model.jnt_type[self.model.body_jntadr[index]] == 0
        ):
            start = self.model.jnt_qposadr[self.model.body_jntadr[index]]
            self.data.qpos[start : start + 7] = np.concatenate([np.asarray(position), quat])
            velocity = self.model.jnt_dofadr[self.model.body_jntadr[index]]
            self.data.qvel[velocity : velocity + 6] = 0.0
        else:
            self.model.body_pos[index] = position
            self.model.body_quat[index] = quat

    def paint(self, item: str, rgb: ArrayLike) -> None:
        """Give all visible geoms of a body, or the one geom of that name, a colour."""
        for index in self._geoms(item):
            self.model.geom_rgba[index, :3] = rgb

    def pose(self, body: str) -> Pose:
        """Return a body's pose, world frame."""
        index = self.model.body(body).id
        return Pose(self.data.xpos[index].copy(), self.data.xmat[index].reshape(3, 3).copy())

    def joint(self, name: str) -> float:
        """Return the position of a hinge [rad] or slide [m]."""
        return float(self.data.qpos[self.model.jnt_qposadr[self.model.joint(name).id]])

    def set_joint(self, name: str, position: float) -> None:
        """Set a hinge or slide, at rest."""
        index = self.model.joint(name).id
        self.data.qpos[self.model.jnt_qposadr[index]] = position
        self.data.qvel[self.model.jnt_dofadr[index]] = 0.0

    def detects(self, sensor: str, body: str) -> bool:
        """Return whether any part of a body is inside a sensor's volume."""
        index = self.model.geom(sensor).id
        return any(self._overlap(index, geom) for geom in self._body_geoms(body))

    def detects_tip(self, sensor: str) -> bool:
        """Return whether the tip, as a point, is inside a sensor's volume (box or cylinder)."""
        index = self.model.geom(sensor).id
        rotation = self.data.geom_xmat[index].reshape(3, 3)
        local = rotation.T @ (self.robot.tip.position - self.data.geom_xpos[index])
        size = self.model.geom_size[index]
        if self.model.geom_type[index] == self._mujoco.mjtGeom.mjGEOM_BOX:
            return bool((np.abs(local) <= size).all())
        return bool(np.hypot(local[0], local[1]) <= size[0] and abs(local[2]) <= size[1])

    @property
    def held(self) -> str | None:
        """Name of the body that the gripper holds."""
        return self._held

    def update_grasp(self, closing: bool) -> None:
        """Attach what is between closed fingers, let go what is held when they open.

        RLBench does the same: its gripper attaches a graspable object that its sensor sees when
        closing comes to rest.
        """
        if not closing:
            if self._held is not None:
                self.data.eq_active[self._graspable[self._held][1]] = 0
                self._held = None
            return
        if self._held is not None or not self._graspable:
            return
        fingers = self.data.qvel[self._finger_dofs]
        if np.abs(fingers).max() > 0.01 or self.robot.opening > 0.97:
            return
        for name, (body, weld) in self._graspable.items():
            if any(self._overlap(self._hand_sensor, geom) for geom in self._body_geoms(name)):
                self._attach(name, body, weld)
                return

    def _attach(self, name: str, body: int, weld: int) -> None:
        data = self.data
        hand = data.xmat[self._hand].reshape(3, 3)
        offset = hand.T @ (data.xpos[body] - data.xpos[self._hand])
        turn = hand.T @ data.xmat[body].reshape(3, 3)
        # anchor (in the object), position and quaternion of the object in the hand, torque scale
        self.model.eq_data[weld] = np.concatenate([np.zeros(3), offset, quat_wxyz(turn), [1.0]])
        data.eq_active[weld] = 1
        self._held = name

    def _overlap(self, one: int, other: int) -> bool:
        distance = self._mujoco.mj_geomDistance(
            self.model, self.data, one, other, 0.001, self._fromto
        )
        return distance < 0.0

    def _geoms(self, item: str) -> list[int]:
        geom = self._mujoco.mj_name2id(self.model, self._mujoco.mjtObj.mjOBJ_GEOM, item)
        if geom >= 0:
            return [geom]
        body = self.model.body(item).id
        start, count = self.model.body_geomadr[body], self.model.body_geomnum[body]
        return [i for i in range(start, start + count) if self.model.geom_group[i] == 1]

    def _body_geoms(self, body: str) -> list[int]:
        index = self.model.body(body).id
        start, count = self.model.body_geomadr[index], self.model.body_geomnum[index]
        return [i for i in range(start, start + count) if self._solid[i]]

    def write_state(
        self, variation: int, bodies: tuple[str, ...], joints: tuple[str, ...]
    ) -> NDArray[np.float64]:
        """Return the privileged state of `suites.rlbench_twin`, shape (TWIN_STATE_DIM,)."""
        state = np.zeros(TWIN_STATE_DIM)
        robot, data = self.robot, self.data
        state[:7], state[7:14], state[14] = robot.joints, robot.velocities, robot.opening
        tip = robot.tip
        state[15:18], state[18:22] = tip.position, quat_wxyz(tip.rotation)[[1, 2, 3, 0]]
        state[22] = variation
        for slot, name in enumerate(bodies):
            index = self.model.body(name).id
            start = 23 + 7 * slot
            w, x, y, z = data.xquat[index]
            state[start : start + 3] = data.xpos[index]
            state[start + 3 : start + 7] = x, y, z, w
        for slot, name in enumerate(joints):
            state[23 + 7 * MAX_BODIES + slot] = self.joint(name)
        return state


def read_state(
    state: NDArray[np.float64], bodies: tuple[str, ...], joints: tuple[str, ...]
) -> Snapshot:
    """Return the names behind the numbers of `World.write_state`.

    Raises:
        InvalidOption: the state has another length, or the task more bodies than fit.
    """
    if state.shape != (TWIN_STATE_DIM,) or len(bodies) > MAX_BODIES or len(joints) > MAX_JOINTS:
        raise InvalidOption(
            f"a twin's state has shape ({TWIN_STATE_DIM},) with up to {MAX_BODIES} bodies and "
            f"{MAX_JOINTS} joints, not shape {state.shape}, {len(bodies)} and {len(joints)}"
        )

    def pose(start: int) -> Pose:
        quat = state[start + 3 : start + 7]
        return Pose(state[start : start + 3].copy(), quaternion_to_matrix(quat))

    return Snapshot(
        tip=pose(15),
        opening=float(state[14]),
        variation=int(state[22]),
        poses={name: pose(23 + 7 * slot) for slot, name in enumerate(bodies)},
        joints={name: float(state[23 + 7 * MAX_BODIES + slot]) for slot, name in enumerate(joints)},
    )


def yaw_matrix(yaw: float) -> NDArray[np.float64]:
    """Return the rotation matrix of a turn about z [rad]."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
