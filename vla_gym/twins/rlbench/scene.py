"""The stage on which every task of the RLBench twin plays: table, robot, cameras, lights.

Everything is made of primitives. The measures are those of RLBench's own scene as far as its public
sources and its recorded tests tell them; the look is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_gym.deps import require
from vla_gym.suites.rlbench import BASE_POSITION_M, HOME_JOINTS
from vla_gym.twins.panda import Mount, add_panda

__all__ = [
    "COLOURS",
    "JOINT4_OFFSET",
    "MOUNT",
    "TABLE_M",
    "TASK_CENTRE_M",
    "TIMESTEP_S",
    "SceneBuilder",
    "quat_wxyz",
]

TIMESTEP_S = 0.005
"""Of the physics; ten steps are one control step of 50 ms."""

TABLE_M = 0.75
"""Height of the table's top."""

TASK_CENTRE_M = (0.25, 0.0, 0.752)
"""Centre of RLBench's workspace plane, the origin of its task positions."""

JOINT4_OFFSET = 0.0698
"""RLBench's fourth joint reads this much less than the robot model's [rad]."""

MOUNT = Mount(
    position=BASE_POSITION_M,
    home=tuple(q + (JOINT4_OFFSET if i == 3 else 0.0) for i, q in enumerate(HOME_JOINTS)),
    tip_offset_m=0.110,
)

COLOURS = {
    "red": (0.85, 0.10, 0.10),
    "maroon": (0.50, 0.05, 0.08),
    "lime": (0.40, 0.95, 0.15),
    "green": (0.05, 0.50, 0.12),
    "blue": (0.10, 0.20, 0.90),
    "navy": (0.04, 0.06, 0.42),
    "yellow": (0.98, 0.88, 0.10),
    "cyan": (0.10, 0.90, 0.95),
    "magenta": (0.95, 0.10, 0.85),
    "silver": (0.76, 0.76, 0.78),
    "gray": (0.45, 0.45, 0.46),
    "orange": (1.00, 0.52, 0.05),
    "olive": (0.50, 0.50, 0.08),
    "purple": (0.45, 0.08, 0.52),
    "teal": (0.05, 0.48, 0.50),
    "azure": (0.20, 0.58, 1.00),
    "violet": (0.62, 0.38, 0.95),
    "rose": (1.00, 0.25, 0.52),
    "black": (0.06, 0.06, 0.06),
    "white": (0.97, 0.97, 0.97),
}
"""The 20 names that RLBench draws colours from, in its order; the values are ours."""

_FIXED_CAMERAS = {
    "front": ((1.35, 0.0, 1.58), (-0.906, 0.0, -0.423)),
    "left_shoulder": ((-0.175, 0.2, 1.98), (0.416, -0.073, -0.906)),
    "right_shoulder": ((-0.175, -0.2, 1.98), (0.416, 0.073, -0.906)),
    "overhead": ((-0.175, 0.0, 2.43), (0.423, 0.0, -0.906)),
}
"""Name -> position and direction of view, world frame: the scene's stored camera matrices."""

FOV_DEG, WRIST_FOV_DEG = 40.0, 60.0
WRIST_CAMERA_M = (-0.05, 0.002, -0.092)
WRIST_TILT_RAD = np.deg2rad(5.0)
"""The wrist camera in the tip's frame."""

SENSOR_GROUP = 4
"""Geoms that only detect: never drawn, never touched."""

COLLISION_GROUP = 3
"""Geoms that only collide: never drawn."""


class SceneBuilder:
    """Adds a task's objects to the stage. All lengths in metres, all sizes are full, not half.

    Attributes:
        spec: the `mujoco.MjSpec`, for what the methods do not offer.
        graspable: names of the bodies that the gripper can take hold of.
    """

    def __init__(self) -> None:
        self._mujoco = require("mujoco", "rlbench-twin", "the RLBench twin")
        self.spec = self._mujoco.MjSpec()
        self.graspable: list[str] = []
        self._build_stage()

    def body(
        self,
        name: str,
        position: ArrayLike = (0, 0, 0),
        *,
        free: bool = False,
        graspable: bool = False,
        parent: str | None = None,
        yaw: float = 0.0,
    ) -> str:
        """Add a body and return its name.

        Args:
            name: unique in the task.
            position: in its parent's frame, or the world.
            free: whether it can fall and be moved; else it stands where it is placed.
            graspable: whether closing the gripper around it attaches it, as RLBench does.
            parent: body to which it belongs.
            yaw: about z [rad].
        """
        holder = self.spec.worldbody if parent is None else self.spec.body(parent)
        body = holder.add_body(
            name=name, pos=position, quat=[np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        )
        if free:
            body.add_freejoint(name=f"{name}_free")
        if graspable:
            self.graspable.append(name)
            self.spec.add_equality(
                name=f"{name}_grasp",
                type=self._mujoco.mjtEq.mjEQ_WELD,
                objtype=self._mujoco.mjtObj.mjOBJ_BODY,
                name1="panda_hand",
                name2=name,
                active=False,
                solref=[0.01, 1.0],
                solimp=[0.95, 0.99, 0.001, 0.5, 2],
            )
        return name

    def hinge(
        self, body: str, name: str, axis: ArrayLike, low: float, high: float, **options: Any
    ) -> str:
        """Add a hinge to a body [rad]; `pos` and further MuJoCo joint fields as options."""
        return self._joint(body, name, self._mujoco.mjtJoint.mjJNT_HINGE, axis, low, high, options)

    def slide(
        self, body: str, name: str, axis: ArrayLike, low: float, high: float, **options: Any
    ) -> str:
        """Add a slide to a body [m]; `stiffness`, `springref`, `damping`, ... as options."""
        return self._joint(body, name, self._mujoco.mjtJoint.mjJNT_SLIDE, axis, low, high, options)

    def box(
        self, body: str, size: ArrayLike, position: ArrayLike = (0, 0, 0), **options: Any
    ) -> Any:
        """Add a box of full edge lengths `size`; options: see `_geom`."""
        return self._geom(
            body, self._mujoco.mjtGeom.mjGEOM_BOX, np.asarray(size) / 2, position, options
        )

    def cylinder(
        self,
        body: str,
        diameter: float,
        height: float,
        position: ArrayLike = (0, 0, 0),
        **options: Any,
    ) -> Any:
        """Add a cylinder along z; options: see `_geom`."""
        size = (diameter / 2, height / 2, 0)
        return self._geom(body, self._mujoco.mjtGeom.mjGEOM_CYLINDER, size, position, options)

    def sphere(
        self, body: str, diameter: float, position: ArrayLike = (0, 0, 0), **options: Any
    ) -> Any:
        """Add a sphere; options: see `_geom`."""
        size = (diameter / 2, 0, 0)
        return self._geom(body, self._mujoco.mjtGeom.mjGEOM_SPHERE, size, position, options)

    def capsule(
        self,
        body: str,
        diameter: float,
        start: Sequence[float],
        end: Sequence[float],
        **options: Any,
    ) -> Any:
        """Add a capsule from one point to another; options: see `_geom`."""
        return self._geom(
            body,
            self._mujoco.mjtGeom.mjGEOM_CAPSULE,
            (diameter / 2, 0, 0),
            None,
            {**options, "fromto": [*start, *end]},
        )

    def ring(
        self,
        body: str,
        inner: float,
        outer: float,
        height: float,
        position: ArrayLike = (0, 0, 0),
        pieces: int = 12,
        **options: Any,
    ) -> None:
        """Add a wall around the z axis, of `pieces` boxes: what cups, pots and bins are made of."""
        thickness = (outer - inner) / 2
        radius = (outer + inner) / 4
        length = 2 * (outer / 2) * np.tan(np.pi / pieces)
        for index in range(pieces):
            angle = 2 * np.pi * index / pieces
            offset = np.asarray(position) + radius * np.array([np.cos(angle), np.sin(angle), 0])
            turn = [np.cos(angle / 2), 0, 0, np.sin(angle / 2)]
            self.box(body, (thickness, length, height), offset, quat=turn, **options)

    def sensor(
        self, body: str, name: str, size: ArrayLike, position: ArrayLike, **options: Any
    ) -> str:
        """Add a volume that detects bodies (`World.detects`): a box, or a cylinder of (d, h)."""
        hidden = {"name": name, "group": SENSOR_GROUP, "rgb": (0, 1, 0), "solid": False, **options}
        if np.size(size) == 2:
            diameter, height = np.ravel(size)
            self.cylinder(body, diameter, height, position, **hidden)
        else:
            self.box(body, size, position, **hidden)
        return name

    def compile(self) -> Any:
        """Return the compiled `mujoco.MjModel`."""
        return self.spec.compile()

    def _joint(
        self, body: str, name: str, kind: Any, axis: Any, low: float, high: float, options: Any
    ) -> str:
        fields = {"damping": 0.5, "frictionloss": 0.05, "armature": 0.005, **options}
        parent = self.spec.body(body).parent
        if parent.name != "world":  # what slides in a frame must not rub against it
            self.spec.add_exclude(bodyname1=parent.name, bodyname2=body)
        self.spec.body(body).add_joint(
            name=name, type=kind, axis=axis, range=[low, high], limited=1, **fields
        )
        return name

    def _geom(self, body: str, kind: Any, size: Any, position: Any, options: dict[str, Any]) -> Any:
        """Add a geom.

        Options: `rgb` or `rgba`; `name`; `mass` [kg] (default by a density of 300 kg/m3); `solid`
        (False: drawn, touches nothing); `group`; `quat` (w, x, y, z); further MuJoCo geom fields.
        """
        fields = dict(options)
        rgba = fields.pop("rgba", None) or (*fields.pop("rgb", (0.7, 0.7, 0.7)), 1.0)
        fields.pop("rgb", None)
        if not fields.pop("solid", True):
            fields |= {"contype": 0, "conaffinity": 0, "mass": 1e-6}
        if "mass" not in fields:
            fields["density"] = 300.0
        fields.setdefault("group", 1)
        fields.setdefault("friction", [1.0, 0.005, 0.0001])
        if position is not None:
            fields["pos"] = position
        return self.spec.body(body).add_geom(
            type=kind, size=[*np.ravel(size), 0, 0][:3], rgba=rgba, **fields
        )

    def _build_stage(self) -> None:
        mujoco, spec = self._mujoco, self.spec
        geom = mujoco.mjtGeom
        spec.compiler.degree = False
        spec.option.timestep = TIMESTEP_S
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        spec.visual.headlight.ambient = [0.36, 0.36, 0.37]
        spec.visual.headlight.diffuse = [0.26, 0.26, 0.26]
        spec.visual.headlight.specular = [0.05, 0.05, 0.05]
        spec.visual.quality.shadowsize = 1024
        spec.visual.map.shadowclip = 2.2  # the shadow map spans the whole table
        spec.visual.map.znear, spec.visual.map.zfar = 0.01, 20.0
        spec.stat.extent, spec.stat.center = 1.0, [0.3, 0.0, 0.9]
        spec.add_texture(
            name="sky",
            type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
            builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
            rgb1=[0.80, 0.85, 0.90],
            rgb2=[0.62, 0.66, 0.72],
            width=64,
            height=384,
        )
        spec.add_material(name="plain")  # without any material MuJoCo draws the sky white
        world = spec.worldbody
        world.add_light(
            name="sun",
            directional=True,
            pos=[0.8, 0.9, 3.0],
            dir=[-0.30, -0.38, -1.0],
            diffuse=[0.42, 0.42, 0.40],
            specular=[0.1, 0.1, 0.1],
            castshadow=True,
        )
        floor = {"rgba": [0.58, 0.60, 0.63, 1.0], "group": 1}
        world.add_geom(name="floor", type=geom.mjGEOM_PLANE, size=[6, 6, 0.1], **floor)
        wood = {"rgba": [0.80, 0.70, 0.56, 1.0], "group": 1, "friction": [1.0, 0.005, 0.0001]}
        middle = (-0.505 + 1.107) / 2
        half = [(0.505 + 1.107) / 2, 0.557, 0.02]
        world.add_geom(
            name="table",
            type=geom.mjGEOM_BOX,
            pos=[middle, 0, TABLE_M - half[2]],
            size=half,
            **wood,
        )
        legs = {"rgba": [0.55, 0.46, 0.36, 1.0], "group": 1, "contype": 0, "conaffinity": 0}
        for x in (-0.45, 1.05):
            for y in (-0.5, 0.5):
                size = [0.03, 0.03, (TABLE_M - 0.04) / 2]
                world.add_geom(type=geom.mjGEOM_BOX, pos=[x, y, size[2]], size=size, **legs)
        for name, (position, forward) in _FIXED_CAMERAS.items():
            self._camera(world, name, position, forward, (0, 0, 1), FOV_DEG)
        add_panda(spec, MOUNT)
        hand = spec.body("panda_hand")
        # The tip's frame is the hand's, turned by half a turn about z and moved along it.
        x, y, z = WRIST_CAMERA_M
        self._camera(
            hand,
            "wrist",
            (-x, -y, MOUNT.tip_offset_m + z),
            (-np.sin(WRIST_TILT_RAD), 0.0, np.cos(WRIST_TILT_RAD)),
            (1, 0, 0),
            WRIST_FOV_DEG,
        )
        self._hand_sensor(hand)

    def _hand_sensor(self, hand: Any) -> None:
        """Add the volume between the fingers in which a graspable object is attached."""
        hand.add_geom(
            name="grasp_sensor",
            type=self._mujoco.mjtGeom.mjGEOM_BOX,
            pos=[0, 0, MOUNT.tip_offset_m - 0.012],
            size=[0.006, 0.03, 0.012],
            group=SENSOR_GROUP,
            contype=0,
            conaffinity=0,
            mass=0,
        )

    def _camera(
        self, body: Any, name: str, position: Any, forward: Any, up: Any, fov: float
    ) -> None:
        back = -np.asarray(forward, dtype=np.float64)
        back /= np.linalg.norm(back)
        right = np.cross(up, back)
        right /= np.linalg.norm(right)
        axes = np.stack([right, np.cross(back, right), back], axis=1)
        body.add_camera(name=name, pos=position, quat=quat_wxyz(axes), fovy=fov)


def quat_wxyz(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the quaternion of a rotation matrix in MuJoCo's order, w first."""
    mujoco = require("mujoco", "rlbench-twin", "the RLBench twin")
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, matrix.ravel())
    return quat
