"""`TwinTable`: CALVIN's play table in MuJoCo. Not calvin_env.

The same are measures, cameras, action, the robot's kinematics and speed, springs, friction of the
joints, and the rules of the lights. Another are the solver, contacts and friction of what touches,
and the look, as far as our primitives differ from upstream's meshes.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require
from vla_gym.errors import SimulatorCrashed, UnknownName
from vla_gym.rendering import Renderer
from vla_gym.rotations import euler_to_matrix, matrix_to_euler
from vla_gym.suite import AS_IS, VisualChange
from vla_gym.suites.calvin.control import POSITION_M, ROTATION_RAD
from vla_gym.suites.calvin.oracle import ROBOT, TABLE_PARTS, Block, Record
from vla_gym.suites.calvin.scenes import BLOCKS, SCENES
from vla_gym.suites.calvin.table import CAMERAS, Reading
from vla_gym.twins.calvin.scene import (
    BULB,
    COLLISION_GROUP,
    LED,
    MECHANISMS,
    MOUNT,
    SUBSTEPS,
    compile_scene,
    name_parts,
)
from vla_gym.twins.panda import FINGER_OPEN_M, Kinematics, Panda

__all__ = ["TwinTable"]

SERVO_REACH_RAD = 2.0 * MOUNT.servos.damping_s
"""The servos' error at upstream's greatest speed, 2 rad/s."""

BUTTON_ON_M, SWITCH_ON_M = 0.01, 0.044
"""Joint positions beyond which button and switch are pressed: half of their travel."""

LIGHT_RGBA = {LED: ((1, 1, 1, 1), (0, 1, 0, 1)), BULB: ((1, 1, 1, 1), (1, 1, 0, 1))}
"""Off and on."""

INSTABILITY = 1e4
"""A joint speed beyond this means that the physics has come apart."""

WORKSPACE_M = (0.0, 0.0, 0.46)
"""On the table's middle, where moved cameras look and lights turn about."""

HIDDEN_GEOM_GROUPS = (0, COLLISION_GROUP, 4, 5)

Vector = NDArray[np.float64]


class TwinTable:
    """A `vla_gym.suites.calvin.table.Table`; see there. Not for two threads at once.

    Args:
        scene: `"A"` to `"D"`.
        render_quality: `"exact"` or `"fast"`, see `vla_gym.rendering.Renderer`.

    Raises:
        UnknownName: there is no such scene.
    """

    def __init__(self, scene: str, render_quality: str = "exact") -> None:
        if scene not in SCENES:
            raise UnknownName("scene", scene, SCENES, "CALVIN")
        self._mujoco = mujoco = require("mujoco", "calvin-twin", "the CALVIN twin")
        self._scene, self._quality = SCENES[scene], render_quality
        self._model = model = copy.copy(compile_scene(scene))
        self._data = mujoco.MjData(model)
        self._robot = Panda(model, self._data, MOUNT)
        self._kinematics = Kinematics(MOUNT)
        self._renderer: Renderer | None = None
        self._change = AS_IS
        self._slides = np.array([model.joint(name).qposadr[0] for name in MECHANISMS])
        self._blocks = {name: _find_freejoint(model, name) for name in self._scene.order}
        self._names = (ROBOT, *TABLE_PARTS, *BLOCKS, "floor")
        self._parts = name_parts(model, self._names)
        self._lights = {name: False for name in (BULB, LED)}
        self._light_geoms = {
            LED: model.geom(LED).id,
            BULB: model.geom(BULB).id,
        }
        self._button_down = self._switch_on = False
        self._gripper = 1.0
        self._target = np.zeros(6)

    def reset(self, robot_obs: Vector, scene_obs: Vector) -> None:
        """See `Table.reset`."""
        data = self._data
        self._mujoco.mj_resetData(self._model, data)
        self._gripper = 1.0 if robot_obs[14] > 0 else -1.0
        finger = min(max(robot_obs[6] / 2, 0.0), FINGER_OPEN_M)
        self._robot.reset(robot_obs[7:14], finger)
        self._robot.command_fingers(float(self._gripper > 0))
        data.qpos[self._slides] = scene_obs[:4]
        for index, (start, _) in enumerate(self._blocks.values()):
            place = scene_obs[6 + 6 * index : 12 + 6 * index]
            data.qpos[start : start + 3] = place[:3]
            data.qpos[start + 3 : start + 7] = self._quaternion(place[3:])
        self._button_down = bool(scene_obs[2] > BUTTON_ON_M)
        self._switch_on = False
        self._set_light(BULB, bool(scene_obs[4] > 0.5))
        self._set_light(LED, bool(scene_obs[5] > 0.5))
        self._mujoco.mj_kinematics(self._model, data)
        tip = self._robot.tip
        self._target = np.concatenate([tip.position, matrix_to_euler(tip.rotation)])
        self._mujoco.mj_step(self._model, data)
        self._mujoco.mj_kinematics(self._model, data)

    def move(self, action: Vector) -> None:
        """See `Table.move`."""
        self._target[:3] += POSITION_M * action[:3]
        self._target[3:] += ROTATION_RAD * action[3:6]
        self._drive(self._target[:3], self._quaternion(self._target[3:]), action[6])

    def move_to(self, position: Vector, quaternion_xyzw: Vector, gripper: float) -> None:
        """See `Table.move_to`."""
        x, y, z, w = quaternion_xyzw
        quaternion = np.array([w, x, y, z])
        self._drive(np.asarray(position), quaternion / np.linalg.norm(quaternion), gripper)

    def _drive(self, position: Vector, quaternion_wxyz: Vector, gripper: float) -> None:
        robot = self._robot
        robot.target = self._kinematics.approach(position, quaternion_wxyz, robot.target)
        self._gripper = float(gripper)
        robot.command_fingers(float(gripper > 0))
        for _ in range(SUBSTEPS):
            robot.pull(SERVO_REACH_RAD)
            self._mujoco.mj_step(self._model, self._data)
        self._mujoco.mj_kinematics(self._model, self._data)
        if not np.abs(self._data.qvel).max() < INSTABILITY:
            raise SimulatorCrashed(
                f"the physics of CALVIN's twin, scene {self._scene.name}, has become unstable; "
                "reset to go on, and please report the actions"
            )
        self._update_lights()

    def _update_lights(self) -> None:
        """Apply the rules of calvin_env's scene/objects/button.py and switch.py, once a step."""
        _, _, button, switch = self._data.qpos[self._slides].tolist()
        if button > BUTTON_ON_M and not self._button_down:
            self._set_light(LED, not self._lights[LED])
        self._button_down = button > BUTTON_ON_M
        if (switch > SWITCH_ON_M) != self._switch_on:
            self._switch_on = not self._switch_on
            self._set_light(BULB, self._switch_on)

    def _set_light(self, name: str, on: bool) -> None:
        self._lights[name] = on
        self._model.geom_rgba[self._light_geoms[name]] = LIGHT_RGBA[name][on]

    def read(self) -> Reading:
        """See `Table.read`."""
        robot, tip = self._robot, self._robot.tip
        robot_obs = np.empty(15)
        robot_obs[:3], robot_obs[3:6] = tip.position, matrix_to_euler(tip.rotation)
        robot_obs[6] = 2 * FINGER_OPEN_M * robot.opening
        robot_obs[7:14] = robot.joints
        robot_obs[14] = self._gripper
        scene_obs = np.empty(24)
        scene_obs[:4] = self._data.qpos[self._slides]
        scene_obs[4:6] = self._lights[BULB], self._lights[LED]
        contacts = self._read_contacts()
        blocks = {}
        for index, name in enumerate(self._scene.order):
            place = scene_obs[6 + 6 * index : 12 + 6 * index]
            blocks[name] = self._read_block(name, place, contacts[name])
        record = Record(
            blocks=blocks,
            robot_contacts=frozenset(contacts[ROBOT]),
            slider=float(scene_obs[0]),
            drawer=float(scene_obs[1]),
            lightbulb=self._lights[BULB],
            led=self._lights[LED],
        )
        return Reading(robot_obs, scene_obs, robot.velocities, record)

    def _read_block(self, name: str, place: Vector, contacts: set[str]) -> Block:
        """Return a block and write its position and Euler angles into `place`, shape (6,)."""
        qpos, dof = self._blocks[name]
        pose = self._data.qpos[qpos : qpos + 7].copy()
        speed = self._data.qvel[dof : dof + 6].copy()
        matrix = np.empty(9)
        self._mujoco.mju_quat2Mat(matrix, pose[3:])
        rotation = matrix.reshape(3, 3)
        place[:3], place[3:] = pose[:3], matrix_to_euler(rotation)
        return Block(
            position=pose[:3],
            quaternion_xyzw=pose[[4, 5, 6, 3]],
            linear_velocity=speed[:3],
            angular_velocity=rotation @ speed[3:],  # MuJoCo's is in the block's frame
            contacts=frozenset(contacts),
        )

    def _read_contacts(self) -> dict[str, set[str]]:
        """Return what touches what: part -> parts, both ways."""
        found: dict[str, set[str]] = {name: set() for name in self._names}
        for one, other in set(map(tuple, self._parts[self._data.contact.geom].tolist())):
            if one != other:
                found[self._names[one]].add(self._names[other])
                found[self._names[other]].add(self._names[one])
        return found

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """See `Table.render`."""
        if camera not in CAMERAS:
            raise UnknownName("camera", camera, CAMERAS, "CALVIN")
        if self._renderer is None:
            self._renderer = Renderer(
                self._model, self._data, self._quality, HIDDEN_GEOM_GROUPS, focus_m=WORKSPACE_M
            )
        self._mujoco.mj_comPos(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)
        return self._renderer.render(camera, height, width, self._change)

    def perturb(self, change: VisualChange) -> None:
        """See `Table.perturb`."""
        self._change = change

    def _quaternion(self, euler: Vector) -> Vector:
        """Return the quaternion, w first, of Euler angles."""
        quaternion = np.empty(4)
        self._mujoco.mju_mat2Quat(quaternion, euler_to_matrix(euler).ravel())
        return quaternion

    def close(self) -> None:
        """See `Table.close`."""
        renderer, self._renderer = self._renderer, None
        if renderer is not None:
            renderer.close()


def _find_freejoint(model: Any, name: str) -> tuple[int, int]:
    """Return where a free joint's position and velocity begin in qpos and qvel."""
    joint = model.joint(name)
    return int(joint.qposadr[0]), int(joint.dofadr[0])
