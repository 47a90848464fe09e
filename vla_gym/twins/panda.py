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
from vla_gym.rotations import rotation_vector, vector_to_matrix
from vla_gym.twins.meshes import find_robosuite_assets, load_panda_parts

__all__ = [
    "ARM_JOINTS",
    "FINGER_JOINTS",
    "FINGER_OPEN_M",
    "LONG_FINGERS",
    "SHORT_FINGERS",
    "Fingers",
    "Kinematics",
    "Mount",
    "Panda",
    "Pose",
    "Servos",
    "add_panda",
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

_EYE = np.eye(6)

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
class Servos:
    """How the arm's joints are driven, from the base to the hand.

    Attributes:
        stiffness: [Nm/rad].
        damping_s: per stiffness: the joints' speed is their error divided by this.
        torque: at most [Nm]. Three and more times a real Panda's: a control step may begin with a
            jump of the speed, which a simulated position servo is expected to follow.
        armature: [kg m2].
        drag: of the joints themselves [Nms/rad].
    """

    stiffness: tuple[float, ...] = (6000.0, 6000.0, 6000.0, 6000.0, 2000.0, 2000.0, 2000.0)
    damping_s: float = 0.04
    torque: tuple[float, ...] = (300.0, 300.0, 300.0, 300.0, 80.0, 80.0, 80.0)
    armature: tuple[float, ...] = (0.05,) * 7
    drag: float = 1.0


class Box(NamedTuple):
    """A box: its centre and half of its edges [m]."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]


@dataclass(frozen=True)
class Fingers:
    """What the hand grips with. A finger's frame has +z to its end and +y away from the other one.

    Attributes:
        back: by which the finger is held.
        pad: what touches what is gripped.
        blade: what is between them, if it can touch anything.
        outline: the finger's look: cross-sections (z, least y, greatest y, half of the width) from
            back to end [m]; empty where upstream's meshes are shown.
        force_n: most that each finger presses with.
        stiffness: of its servo [N/m].
        damping: of its servo [Ns/m].
        drag: of its joint [Ns/m].
        armature_kg: of its joint.
    """

    back: Box
    pad: Box
    blade: Box | None = None
    outline: tuple[tuple[float, float, float, float], ...] = ()
    force_n: float = 20.0
    stiffness: float = 1000.0
    damping: float = 50.0
    drag: float = 20.0
    armature_kg: float = 0.1


SHORT_FINGERS = Fingers(
    back=Box((0.0, 0.0165, 0.012), (0.0085, 0.0095, 0.012)),
    pad=Box((0.0, 0.0065, 0.0385), (0.0085, 0.0065, 0.0155)),
)
"""Franka's own."""

LONG_FINGERS = Fingers(
    back=Box((0.0, 0.0156, 0.010), (0.0100, 0.0130, 0.010)),
    pad=Box((0.0009, 0.0039, 0.08355), (0.0092, 0.0030, 0.01285)),
    blade=Box((0.0009, 0.00825, 0.04535), (0.0092, 0.00475, 0.02535)),
    outline=(
        (0.0, 0.0026, 0.0286, 0.0100),
        (0.018, 0.0120, 0.0267, 0.0100),
        (0.036, 0.0035, 0.0162, 0.0095),
        (0.054, 0.0035, 0.0147, 0.0095),
        (0.071, 0.0030, 0.0100, 0.0090),
        (0.0964, 0.0030, 0.0052, 0.0090),
    ),
    force_n=200.0,
    stiffness=3000.0,
    damping=0.0,
    drag=120.0,
    armature_kg=1.0,
)
"""CALVIN's, 0.0964 m long. Source: calvin_env 797142c, data/franka_panda, measured."""


@dataclass(frozen=True)
class Mount:
    """Where the robot stands, where its tip is and how it starts.

    Attributes:
        position: of link 0 in the world [m].
        yaw: about the world's z axis [rad].
        tip_offset_m: from the flange to the tip.
        home: joint positions at the start of an episode [rad], in the zero of upstream's model.
        fingers: what it grips with.
        servos: how its joints are driven.
        tip_quat: of the tip in the hand's frame, w first. Half a turn about z for RLBench's
            Panda_tip, as its recorded poses say; none for CALVIN.
    """

    position: tuple[float, float, float]
    home: tuple[float, ...]
    yaw: float = 0.0
    tip_offset_m: float = 0.1034
    fingers: Fingers = SHORT_FINGERS
    servos: Servos = Servos()
    tip_quat: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)


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
    spec.attach(_make_panda(mount, visuals), prefix="panda_", frame=frame)


def _make_panda(mount: Mount, visuals: bool) -> Any:
    """Return the robot as a `mujoco.MjSpec` of its own, names without prefix."""
    mujoco = require("mujoco", "rlbench-twin", "the Panda of the twins")
    geom, fingers = mujoco.mjtGeom, mount.fingers
    spec = mujoco.MjSpec.from_file(str(find_robosuite_assets() / "robots/panda/robot.xml"))
    for body in spec.bodies:
        for old in [*body.geoms, *body.sites, *body.cameras]:
            old.delete()
        body.gravcomp = 1.0
    for old in [*spec.meshes, *spec.materials, *spec.actuators]:
        old.delete()
    spec.detach_body(spec.body("right_hand"))
    servos = mount.servos
    for index in range(7):
        name = f"joint{index + 1}"
        joint = spec.joint(name)
        joint.armature, joint.damping = servos.armature[index], servos.drag
        stiffness, torque = servos.stiffness[index], servos.torque[index]
        _add_servo(spec, name, stiffness, torque, servos.damping_s)

    # The hand is turned against the flange by -45 degrees.
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
        name="tip", pos=[0, 0, mount.tip_offset_m], quat=mount.tip_quat, size=[0.005] * 3, group=5
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
            damping=fingers.drag,
            armature=fingers.armature_kg,
        )
        finger.add_geom(
            name=f"{name}_back",
            type=geom.mjGEOM_BOX,
            pos=fingers.back.centre,
            size=fingers.back.half,
            **solid,
        )
        if fingers.blade is not None:
            finger.add_geom(
                name=f"{name}_blade",
                type=geom.mjGEOM_BOX,
                pos=fingers.blade.centre,
                size=fingers.blade.half,
                **solid,
            )
        finger.add_geom(
            name=f"{name}_pad",
            type=geom.mjGEOM_BOX,
            pos=fingers.pad.centre,
            size=fingers.pad.half,
            group=3,
            friction=[2.0, 0.05, 0.0001],
            condim=4,
            # Contacts give way the more, the lighter what touches: firm ones, or the pads would
            # sink into small objects by a centimetre.
            priority=1,
            solref=[0.01, 1.0],
            solimp=[0.99, 0.999, 0.001, 0.5, 2],
        )
        _add_servo(
            spec,
            f"finger_joint{name[-1]}",
            fingers.stiffness,
            fingers.force_n,
            fingers.damping / fingers.stiffness,
        )
    spec.add_equality(
        name="fingers",
        type=mujoco.mjtEq.mjEQ_JOINT,
        name1="finger_joint1",
        name2="finger_joint2",
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        data=[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    )
    if visuals:
        _add_visuals(spec, fingers)
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


def _add_visuals(spec: Any, fingers: Fingers) -> None:
    mujoco = require("mujoco", "rlbench-twin", "the Panda of the twins")
    for index, part in enumerate(load_panda_parts()):
        if fingers.outline and "finger" in part.body:
            continue
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
    if fingers.outline:
        _add_finger_visuals(spec, fingers)


def _add_finger_visuals(spec: Any, fingers: Fingers) -> None:
    mujoco = require("mujoco", "rlbench-twin", "the Panda of the twins")
    vertices, faces = _loft(fingers.outline)
    spec.add_mesh(name="finger", uservert=vertices.ravel(), userface=faces.ravel())
    look = {"rgba": [1.0, 1.0, 1.0, 1.0], "contype": 0, "conaffinity": 0, "group": 1, "mass": 0}
    for name in ("finger1", "finger2"):
        body = spec.body(name)
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="finger", **look)
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX, pos=fingers.pad.centre, size=fingers.pad.half, **look
        )


def _loft(sections: tuple[tuple[float, float, float, float], ...]) -> tuple[Any, Any]:
    """Return vertices and triangles, flat shaded, of a finger's outline."""
    rings = [[(-w, lo, z), (w, lo, z), (w, hi, z), (-w, hi, z)] for z, lo, hi, w in sections]
    quads = [rings[0][::-1], rings[-1]]
    for k in range(len(rings) - 1):
        near, far = rings[k], rings[k + 1]
        quads += [[near[i], near[i - 3], far[i - 3], far[i]] for i in range(4)]
    vertices = np.array(quads, dtype=np.float64).reshape(-1, 3)
    corners = 4 * np.arange(len(quads))[:, None]
    return vertices, np.concatenate([corners + np.array([0, 1, 2]), corners + np.array([0, 2, 3])])


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
        # Views of the physics' own memory, for what is read and written in every physics step.
        arm = slice(int(self._qpos[0]), int(self._qpos[0]) + 7)
        self._arm_qpos, self._arm_ctrl = data.qpos[arm], data.ctrl[self._ctrl[0] :][:7]
        self._lag = np.zeros(7)
        self._tip = model.site(TIP).id
        self._lead_s = mount.servos.damping_s
        self._solver = Kinematics(mount)
        self.low, self.high = model.jnt_range[[model.joint(n).id for n in ARM_JOINTS]].T.copy()
        self.target = np.array(mount.home)

    def reset(
        self, joints: NDArray[np.float64] | None = None, finger_m: float = FINGER_OPEN_M
    ) -> None:
        """Put the robot into a pose, by default home, and its fingers `finger_m` from the middle.

        All servos hold what is there. `mj_forward` is the caller's.
        """
        self.target = np.array(self._mount.home if joints is None else joints, dtype=np.float64)
        self._data.qpos[self._qpos] = self.target
        self._data.qpos[self._fingers] = finger_m
        self._data.ctrl[self._ctrl] = self.target
        self._data.ctrl[self._finger_ctrl] = finger_m

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
        one, other = self._data.qpos[self._fingers].tolist()
        return min(max((one + other) / 2 / FINGER_OPEN_M, 0.0), 1.0)

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
        self._data.ctrl[self._ctrl] = joints + self._lead_s * np.asarray(velocities)

    def pull(self, reach: float) -> None:
        """Set the servos' targets to `target`, but at most `reach` [rad] from each joint."""
        lag = np.subtract(self.target, self._arm_qpos, out=self._lag)
        np.maximum(lag, -reach, out=lag)
        np.minimum(lag, reach, out=lag)
        np.add(self._arm_qpos, lag, out=self._arm_ctrl)

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

    def approach(
        self,
        position: NDArray[np.float64],
        quaternion_wxyz: NDArray[np.float64],
        start: NDArray[np.float64],
        iterations: int = 3,
        tolerance: float = 1e-4,
    ) -> NDArray[np.float64]:
        """Return joint positions that bring the tip to a pose, or nearer to it than `start` does.

        For poses that change little from call to call: a few steps of damped least squares, drawn
        towards home where that leaves the tip alone. A step that does not bring the tip nearer is
        taken back and damped more, so that the arm comes to rest also where it cannot reach.

        Args:
            position: [m], world frame.
            quaternion_wxyz: of the tip.
            start: joint positions to begin from, such as those of the last call.
            iterations: most steps.
            tolerance: error [m + rad] that may be left.
        """
        mujoco, model, data, jacobian = self._mujoco, self._model, self._data, self._jacobian
        tip, found, turn = self._site, np.empty(4), np.empty(3)
        best = joints = start
        least, caution = np.inf, 1.0
        delta, arm = np.empty(6), jacobian[:, :7]
        for iteration in range(iterations + 1):
            data.qpos[:7] = joints
            mujoco.mj_kinematics(model, data)
            matrix = data.site_xmat[tip]
            mujoco.mju_mat2Quat(found, matrix)
            mujoco.mju_subQuat(turn, quaternion_wxyz, found)
            offset, turned = position - data.site_xpos[tip], matrix.reshape(3, 3) @ turn
            error = float(offset @ offset + turned @ turned)
            if error < least:
                best, least, caution = joints, error, 1.0
                delta[:3], delta[3:] = offset, turned
                mujoco.mj_comPos(model, data)
                mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], tip)
            else:
                caution *= 10.0
            if least < tolerance * tolerance or iteration == iterations:
                break
            damping = (caution * (least + 1e-5)) * _EYE
            drift = 0.02 * (self._home - best)
            step = drift + arm.T @ self._solve_linear(arm @ arm.T + damping, delta - arm @ drift)
            joints = best + step
            if ((joints < self._low) | (joints > self._high)).any():
                joints = best + self._step(best, delta, arm, damping, 0.02)
        return best

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
            joints = joints + self._step(joints, delta, arm, damping, 0.01)
        return best, least

    def _solve_linear(self, matrix: NDArray[np.float64], vector: NDArray[np.float64]) -> Any:
        """Return x of matrix x = vector, shape (6,); the matrix, positive definite, is used up."""
        found = np.empty(6)
        self._mujoco.mju_cholFactor(matrix, 0.0)  # a quarter of the time of numpy.linalg.solve
        self._mujoco.mju_cholSolve(found, matrix, vector)
        return found

    def _step(
        self,
        joints: NDArray[np.float64],
        delta: NDArray[np.float64],
        jacobian: NDArray[np.float64],
        damping: NDArray[np.float64],
        homing: float,
    ) -> NDArray[np.float64]:
        """Return a step of damped least squares within the joint limits, drawn towards home."""
        step = homing * (self._home - joints)
        free = np.ones(7, dtype=bool)
        held = step
        for _ in range(3):  # joints that would pass their limits stop there; the others do more
            part = jacobian * free
            left = delta - jacobian @ step
            step = step + part.T @ self._solve_linear(part @ part.T + damping, left)
            held = np.clip(joints + step, self._low, self._high) - joints
            beyond = np.abs(held - step) > 1e-9
            if not beyond.any():
                break
            step, free = held, free & ~beyond
        return held


@functools.lru_cache(maxsize=8)
def _compile_kinematics(mount: Mount) -> Any:
    mujoco = require("mujoco", "rlbench-twin", "the Panda of the twins")
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    _attach(spec, mount, visuals=False)
    return spec.compile()
