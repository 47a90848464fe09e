"""The Panda of the twins: its model, its inverse kinematics and its control.

The kinematics, masses and joint ranges are those of the robosuite wheel's `robots/panda/robot.xml`;
visuals are simplified (`vla_gym.twins.meshes`); hand and fingers collide as boxes, the arm not at
all. Gravity does not act on the robot, as if a real arm's controller had made up for it.

Frames: the tip is `tip_offset_m` beyond the flange, with +z out of the hand and the fingers opening
along +-y. Poses given to and by this module are in the world frame; quaternions are x, y, z, w.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require
from vla_gym.twins.meshes import find_robosuite_assets, load_panda_parts

__all__ = [
    "ARM_JOINTS",
    "FINGER_JOINTS",
    "FINGER_OPEN_M",
    "Kinematics",
    "Mount",
    "Panda",
    "Pose",
    "add_panda",
    "rotation_vector",
    "vector_to_matrix",
]

ARM_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("panda_finger_joint1", "panda_finger_joint2")
TIP = "panda_tip"
HAND = "panda_hand"

FINGER_OPEN_M = 0.04
"""Travel of each finger."""

FLANGE_M = 0.107
"""From the last joint's frame to the flange (Franka Emika, Denavit-Hartenberg table)."""

FINGER_BASE_M = 0.0584
"""From the flange to the fingers' own frame (franka_description, hand.xacro)."""

STIFFNESS = (6000.0, 6000.0, 6000.0, 6000.0, 2000.0, 2000.0, 2000.0)
"""Of the joints' position servos [Nm/rad]."""

DAMPING_PER_STIFFNESS_S = 0.04
TORQUE_NM = (300.0, 300.0, 300.0, 300.0, 80.0, 80.0, 80.0)
"""Three and more times a real Panda's: a control step may begin with a jump of the speed, which a
simulated position servo is expected to follow."""

ARMATURE = 0.05
FINGER_FORCE_N = 20.0
FINGER_STIFFNESS = 1000.0


STUCK = 2e-3
"""Error [m + rad] above which inverse kinematics try once more from a more bent arm."""


class Pose(NamedTuple):
    """A pose in the world frame.

    Attributes:
        position: [m], shape (3,).
        rotation: rotation matrix, body to world, shape (3, 3).
    """

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]


@dataclass(frozen=True)
class Mount:
    """Where the robot stands, where its tip is and how it starts.

    Attributes:
        position: of link 0 in the world [m].
        yaw: about the world's z axis [rad].
        tip_offset_m: from the flange to the tip.
        home: joint positions at the start of an episode [rad], in the zero of upstream's model.
    """

    position: tuple[float, float, float]
    home: tuple[float, ...]
    yaw: float = 0.0
    tip_offset_m: float = 0.1034


def add_panda(spec: Any, mount: Mount) -> None:
    """Add the robot to a `mujoco.MjSpec`: bodies, joints, servos, the site of the tip.

    The spec must count angles in radians (`spec.compiler.degree = False`), as the robot does.
    """
    _attach(spec, mount, visuals=True)


def _attach(spec: Any, mount: Mount, visuals: bool) -> None:
    if spec.compiler.degree:
        raise ValueError("the spec counts in degrees; set spec.compiler.degree = False first")
    frame = spec.worldbody.add_frame(
        pos=mount.position, quat=[np.cos(mount.yaw / 2), 0, 0, np.sin(mount.yaw / 2)]
    )
    spec.attach(_make_panda(mount.tip_offset_m, visuals), prefix="panda_", frame=frame)


def _make_panda(tip_offset_m: float, visuals: bool) -> Any:
    """Return the robot as a `mujoco.MjSpec` of its own, names without prefix."""
    mujoco = require("mujoco", "rlbench-twin", "the Panda of the twins")
    geom = mujoco.mjtGeom
    spec = mujoco.MjSpec.from_file(str(find_robosuite_assets() / "robots/panda/robot.xml"))
    for body in spec.bodies:
        for old in [*body.geoms, *body.sites, *body.cameras]:
            old.delete()
        body.gravcomp = 1.0
    for old in [*spec.meshes, *spec.materials, *spec.actuators]:
        old.delete()
    spec.detach_body(spec.body("right_hand"))
    for index in range(7):
        joint = spec.joint(f"joint{index + 1}")
        joint.armature, joint.damping = ARMATURE, 1.0
        _add_servo(
            spec, f"joint{index + 1}", STIFFNESS[index], TORQUE_NM[index], DAMPING_PER_STIFFNESS_S
        )

    # The hand is turned against the flange by -45 degrees, its tip's frame by 180 more, as
    # RLBench's Panda_tip (its recorded poses say so) and CALVIN's.
    hand = spec.body("link7").add_body(
        name="hand",
        pos=[0, 0, FLANGE_M],
        quat=[np.cos(np.pi / 8), 0, 0, -np.sin(np.pi / 8)],
        gravcomp=1.0,
        mass=0.7,
        ipos=[0, 0, 0.03],
        inertia=[0.001, 0.0025, 0.0017],
        explicitinertial=True,
    )
    hand.add_site(
        name="tip", pos=[0, 0, tip_offset_m], quat=[0, 0, 0, 1], size=[0.005] * 3, group=5
    )
    solid = {"group": 3, "friction": [1.0, 0.005, 0.0001]}
    hand.add_geom(
        name="hand", type=geom.mjGEOM_BOX, pos=[0, 0, 0.03], size=[0.03, 0.1, 0.035], **solid
    )
    for name, turn in (("finger1", 0.0), ("finger2", np.pi)):
        finger = hand.add_body(
            name=name,
            pos=[0, 0, FINGER_BASE_M],
            quat=[np.cos(turn / 2), 0, 0, np.sin(turn / 2)],
            gravcomp=1.0,
            mass=0.05,
            ipos=[0, 0.015, 0.03],
            inertia=[2e-5, 2e-5, 1e-5],
            explicitinertial=True,
        )
        finger.add_joint(
            name=f"finger_joint{name[-1]}",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[0, 1, 0],
            range=[0.0, FINGER_OPEN_M],
            limited=1,
            damping=20.0,
            armature=0.1,
        )
        finger.add_geom(
            name=f"{name}_back",
            type=geom.mjGEOM_BOX,
            pos=[0, 0.0165, 0.012],
            size=[0.0085, 0.0095, 0.012],
            **solid,
        )
        finger.add_geom(
            name=f"{name}_pad",
            type=geom.mjGEOM_BOX,
            pos=[0, 0.0065, 0.0385],
            size=[0.0085, 0.0065, 0.0155],
            group=3,
            friction=[2.0, 0.05, 0.0001],
            condim=4,
            # Contacts give way the more, the lighter what touches: firm ones, or the pads would
            # sink into small objects by a centimetre.
            priority=1,
            solref=[0.01, 1.0],
            solimp=[0.99, 0.999, 0.001, 0.5, 2],
        )
        _add_servo(spec, f"finger_joint{name[-1]}", FINGER_STIFFNESS, FINGER_FORCE_N, 0.05)
    spec.add_equality(
        name="fingers",
        type=mujoco.mjtEq.mjEQ_JOINT,
        name1="finger_joint1",
        name2="finger_joint2",
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        data=[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    )
    if visuals:
        _add_visuals(spec)
    return spec


def _add_servo(spec: Any, joint: str, stiffness: float, limit: float, damping_s: float) -> None:
    mujoco = require("mujoco", "rlbench-twin", "the Panda of the twins")
    damping = stiffness * damping_s
    actuator = spec.add_actuator(
        name=joint,
        target=joint,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        gaintype=mujoco.mjtGain.mjGAIN_FIXED,
        biastype=mujoco.mjtBias.mjBIAS_AFFINE,
        forcelimited=1,
        forcerange=[-limit, limit],
    )
    actuator.gainprm[0] = stiffness
    actuator.biasprm[1], actuator.biasprm[2] = -stiffness, -damping


_HOLDERS = {"right_gripper": "hand", "leftfinger": "finger1", "rightfinger": "finger2"}
"""Upstream's gripper bodies -> ours. Upstream's hand visual lies turned by 90 degrees."""


def _add_visuals(spec: Any) -> None:
    mujoco = require("mujoco", "rlbench-twin", "the Panda of the twins")
    for index, part in enumerate(load_panda_parts()):
        name = f"visual{index}"
        spec.add_mesh(
            name=name,
            uservert=part.vertices.astype(np.float64).ravel(),
            userface=part.faces.ravel(),
        )
        body = spec.body(_HOLDERS.get(part.body, part.body))
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_MESH,
            meshname=name,
            rgba=[*part.rgb, 1.0],
            contype=0,
            conaffinity=0,
            group=1,
            mass=0,
        )


class Panda:
    """Reads and commands the robot of one compiled model.

    Args:
        model: `mujoco.MjModel` with a robot from `add_panda`.
        data: its `mujoco.MjData`.
        mount: as it was added.
    """

    def __init__(self, model: Any, data: Any, mount: Mount) -> None:
        self._mujoco = require("mujoco", "rlbench-twin", "the Panda of the twins")
        self._model, self._data, self._mount = model, data, mount
        self._qpos = np.array([model.joint(name).qposadr[0] for name in ARM_JOINTS])
        self._qvel = np.array([model.joint(name).dofadr[0] for name in ARM_JOINTS])
        self._ctrl = np.array([model.actuator(name).id for name in ARM_JOINTS])
        self._fingers = np.array([model.joint(name).qposadr[0] for name in FINGER_JOINTS])
        self._finger_ctrl = np.array([model.actuator(name).id for name in FINGER_JOINTS])
        self._tip = model.site(TIP).id
        self._solver = Kinematics(mount)
        self.low, self.high = model.jnt_range[[model.joint(n).id for n in ARM_JOINTS]].T.copy()
        self.target = np.array(mount.home)

    def reset(self) -> None:
        """Put the robot into its home pose with the gripper open; `mj_forward` is the caller's."""
        self._data.qpos[self._qpos] = self.target = np.array(self._mount.home)
        self._data.qpos[self._fingers] = FINGER_OPEN_M
        self._data.ctrl[self._ctrl] = self.target
        self._data.ctrl[self._finger_ctrl] = FINGER_OPEN_M

    @property
    def joints(self) -> NDArray[np.float64]:
        """Joint positions [rad], shape (7,)."""
        return self._data.qpos[self._qpos]

    @property
    def velocities(self) -> NDArray[np.float64]:
        """Joint velocities [rad/s], shape (7,)."""
        return self._data.qvel[self._qvel]

    @property
    def opening(self) -> float:
        """How far the fingers are apart: 0 closed, 1 open."""
        return float(np.clip(self._data.qpos[self._fingers].mean() / FINGER_OPEN_M, 0.0, 1.0))

    @property
    def tip(self) -> Pose:
        """The tip's pose as the last physics step's kinematics have it."""
        return Pose(
            self._data.site_xpos[self._tip].copy(),
            self._data.site_xmat[self._tip].reshape(3, 3).copy(),
        )

    def find_tip(self, joints: NDArray[np.float64]) -> Pose:
        """Return the pose that the tip has at these joint positions."""
        return self._solver.forward(joints)

    def solve(
        self, pose: Pose, start: NDArray[np.float64], iterations: int = 8
    ) -> tuple[NDArray[np.float64], float]:
        """Return joint positions that bring the tip to `pose`, and the error that is left.

        Damped least squares from `start`, within the joint limits, drawn weakly towards home.

        Returns:
            joints [rad], shape (7,), and the error: metres plus radians.
        """
        return self._solver.solve(pose, start, iterations)

    def search(
        self, pose: Pose, start: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float64] | None:
        """Return the nearest of several solutions for a pose far away, or None if there is none."""
        starts = [start, np.array(self._mount.home)]
        starts += [rng.uniform(self.low, self.high) for _ in range(12)]
        found = [self._solver.solve(pose, each, 60) for each in starts]
        good = [joints for joints, error in found if error < 2e-3]
        if not good:
            return None
        return min(good, key=lambda joints: float(np.abs(joints - start).max()))

    def trace_line(
        self, pose: Pose, start: NDArray[np.float64], spacing: float = 0.02
    ) -> list[NDArray[np.float64]] | None:
        """Return joint positions along the straight line from `start`'s tip to `pose`.

        Args:
            pose: where the line ends; the rotation turns evenly on the way.
            start: joint positions at its beginning.
            spacing: of the points [m or rad].

        Returns:
            The points after the start, or None where the arm cannot follow the line.
        """
        begin = self._solver.forward(start)
        turn = rotation_vector(pose.rotation @ begin.rotation.T)
        offset = pose.position - begin.position
        count = max(1, int(np.ceil(max(np.linalg.norm(offset), np.linalg.norm(turn)) / spacing)))
        joints, line = start, []
        for share in np.arange(1, count + 1) / count:
            goal = Pose(
                begin.position + share * offset, vector_to_matrix(share * turn) @ begin.rotation
            )
            found, error = self._solver.solve(goal, joints, 20)
            if error > 2e-3 or np.abs(found - joints).max() > 0.3:
                return None
            joints = found
            line.append(joints)
        return line

    def command(
        self, joints: NDArray[np.float64], velocities: NDArray[np.float64] | float = 0.0
    ) -> None:
        """Set the servos' targets; the velocities are fed forward, so that the arm does not lag."""
        self._data.ctrl[self._ctrl] = joints + DAMPING_PER_STIFFNESS_S * np.asarray(velocities)

    def command_fingers(self, opening: float) -> None:
        """Set the fingers' target, 0 closed to 1 open."""
        self._data.ctrl[self._finger_ctrl] = opening * FINGER_OPEN_M


class Kinematics:
    """The robot alone, without meshes, for inverse kinematics. Not for two threads at once."""

    def __init__(self, mount: Mount) -> None:
        self._mujoco = require("mujoco", "rlbench-twin", "the Panda of the twins")
        self._model = _compile_kinematics(mount)
        self._data = self._mujoco.MjData(self._model)
        self._site = self._model.site(TIP).id
        self._home = np.array(mount.home)
        self._low, self._high = self._model.jnt_range[:7].T.copy()
        self._jacobian = np.zeros((6, self._model.nv))

    def forward(self, joints: NDArray[np.float64]) -> Pose:
        """Return the tip's pose at these joint positions."""
        self._data.qpos[:7] = joints
        self._mujoco.mj_kinematics(self._model, self._data)
        return Pose(
            self._data.site_xpos[self._site].copy(),
            self._data.site_xmat[self._site].reshape(3, 3).copy(),
        )

    def solve(
        self, pose: Pose, start: NDArray[np.float64], iterations: int
    ) -> tuple[NDArray[np.float64], float]:
        """See `Panda.solve`."""
        found, error = self._descend(pose, start, iterations)
        if error > STUCK:
            # A stretched arm, or one at its limits, has no way down from where it is.
            bent = start + 0.2 * (self._home - start)
            other, least = self._descend(pose, bent, iterations)
            if least < error:
                return other, least
        return found, error

    def _descend(
        self, pose: Pose, start: NDArray[np.float64], iterations: int
    ) -> tuple[NDArray[np.float64], float]:
        mujoco, model, data, jacobian = self._mujoco, self._model, self._data, self._jacobian
        joints = np.clip(start, self._low, self._high)
        best, least = joints, np.inf
        for iteration in range(iterations + 1):
            data.qpos[:7] = joints
            mujoco.mj_kinematics(model, data)
            rotation = data.site_xmat[self._site].reshape(3, 3)
            delta = np.concatenate(
                [
                    pose.position - data.site_xpos[self._site],
                    rotation_vector(pose.rotation @ rotation.T),
                ]
            )
            error = float(np.linalg.norm(delta[:3]) + np.linalg.norm(delta[3:]))
            if error < least:
                best, least = joints, error
            if error < 1e-5 or iteration == iterations:
                break
            mujoco.mj_comPos(model, data)
            mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], self._site)
            arm = jacobian[:, :7]
            # Damping by the error itself keeps it calm where the pose is out of reach. Source:
            # Sugihara 2011, "Solvability-Unconcerned Inverse Kinematics by the Levenberg-Marquardt
            # Method", IEEE T-RO 27(5), eq. 15.
            damping = (0.5 * float(delta @ delta) + 1e-5) * np.eye(6)
            step = 0.01 * (self._home - joints)
            free = np.ones(7, dtype=bool)
            held = step
            for _ in range(3):  # joints that would pass their limits stop there; the others do more
                part = arm * free
                left = delta - arm @ step
                step = step + part.T @ np.linalg.solve(part @ part.T + damping, left)
                held = np.clip(joints + step, self._low, self._high) - joints
                beyond = np.abs(held - step) > 1e-9
                if not beyond.any():
                    break
                step, free = held, free & ~beyond
            joints = joints + held
        return best, least


@functools.lru_cache(maxsize=8)
def _compile_kinematics(mount: Mount) -> Any:
    mujoco = require("mujoco", "rlbench-twin", "the Panda of the twins")
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    _attach(spec, mount, visuals=False)
    return spec.compile()


def rotation_vector(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return axis times angle [rad] of a rotation matrix, shape (3,)."""
    skew = np.array(
        [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]
    )
    sine = np.linalg.norm(skew) / 2
    angle = np.arctan2(sine, (np.trace(matrix) - 1) / 2)
    if sine > 1e-6:
        return skew * (angle / (2 * sine))
    if angle < 1.0:
        return skew / 2
    # Near half a turn the axis is the column of matrix + 1 that is longest.
    columns = matrix + np.eye(3)
    axis = columns[:, int(np.argmax(np.diag(columns)))]
    return axis / np.linalg.norm(axis) * angle


def vector_to_matrix(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation matrix of axis times angle [rad]."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
