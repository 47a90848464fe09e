"""CALVIN's play tables, A to D, as MuJoCo models made of primitives.

The measures are those of calvin_env 797142c (see `vla_gym.suites.calvin.scenes`); meshes, pictures
of wood and colours are ours. World frame: +x right, +y into the cabinet, +z up.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_gym.deps import require
from vla_gym.suites.calvin.scenes import (
    BASE_POSITION_M,
    BLOCK_DEPTH_M,
    CONTROL_HZ,
    HOME_ROBOT_OBS,
    SCENES,
    Scene,
)
from vla_gym.twins.panda import LONG_FINGERS, Mount, Servos, add_panda

__all__ = [
    "BULB",
    "COLLISION_GROUP",
    "LED",
    "MECHANISMS",
    "MOUNT",
    "SUBSTEPS",
    "compile_scene",
    "name_parts",
]

SUBSTEPS = 8
"""Physics steps of a control step."""

MOUNT = Mount(
    position=BASE_POSITION_M,
    home=HOME_ROBOT_OBS[7:14],
    tip_offset_m=0.14,
    fingers=LONG_FINGERS,
    # Soft, with much armature: the integrator damps servos after contacts have been solved, so that
    # stiff ones would tear off what the hand holds. Torque is stiffness times upstream's greatest
    # error, 200 Nm as there.
    servos=Servos(
        stiffness=(2000.0,) * 4 + (800.0,) * 3,
        damping_s=0.05,
        torque=(300.0,) * 4 + (150.0,) * 3,
        armature=(0.3,) * 4 + (0.4,) * 3,
        drag=0.0,
    ),
    tip_quat=(1.0, 0.0, 0.0, 0.0),
)

MECHANISMS = ("slide", "drawer", "button", "switch")
"""Joints, in the order of `scene_obs`."""

LED, BULB = "led_link:led", "light_link:bulb"
"""Geoms that change their colour."""

COLLISION_GROUP = 3
"""Geoms that only collide: never drawn."""

TABLE_TOP_M = 0.44
PLANK_TOP_M, DRAWER_FLOOR_M = 0.441, 0.0224
"""What carries blocks in the cabinet, in the world's frame, and in the drawer, in its own: a little
above what is seen. Upstream's blocks come to rest at heights of 0.46099 and 0.36235."""

ROOF_M = 0.6478
_SLOT = ((0.0479, 0.4893), (0.1076, 0.5927))
"""Ends (y, z) of the switch's slots, a millimetre before the cabinet's front."""

FORCE_N = 4.0
"""Friction of door, drawer and switch, and the button's spring at most."""

FRICTION = (0.5, 0.005, 0.0001)

AMBIENT, SUN, SUN_DIRECTION = 0.6, 0.39, (0.43, -0.26, -0.86)
WHITE, GRAY, BLACK = (1.0, 1.0, 1.0, 1.0), (0.392, 0.392, 0.392, 1.0), (0.0, 0.0, 0.0, 1.0)
BLOCK_RGBA = {
    "red": (1.0, 0.0, 0.0, 1.0),
    "blue": (0.0, 0.0, 1.0, 1.0),
    "pink": (1.0, 0.0, 1.0, 1.0),
}

WOODS = {
    "A": ("mahogany", "mahogany"),
    "B": ("pine", "pine"),
    "C": ("oak", "mahogany"),
    "D": ("walnut", "walnut"),
}
"""Scene -> wood of the table, and of door and drawer. A's dark wood is another than D's."""

WOOD_LOOKS = {
    "mahogany": ((0.46, 0.264, 0.176), 0.12, 60.0),
    "pine": ((0.94, 0.75, 0.53), 0.04, 40.0),
    "oak": ((0.63, 0.43, 0.25), 0.06, 40.0),
    "walnut": ((0.62, 0.465, 0.305), 0.11, 30.0),
}
"""Wood -> colour, contrast of its grain, fine lines in `TEXTURE_M`."""

WOOD_ALONG_X = {"pine": False, "oak": False}
"""Woods whose grain does not run along the table."""

TEXTURE_PIXELS, TEXTURE_M = 256, 0.5

BLOCK_GROWTH_M = 1e-5
"""Of a block's faces: what is put exactly onto something must touch it from the first step on."""

# Table, mechanisms and floor touch blocks and hand, but nothing of their own kind, so that what
# slides does not rub. Fingers touch all but the hand.
_FIXED = {"contype": 1, "conaffinity": 0}
_BLOCK = {"contype": 2, "conaffinity": 3}
_HAND = {"contype": 4, "conaffinity": 3}


@functools.lru_cache(maxsize=4)
def compile_scene(name: str) -> Any:
    """Return the compiled `mujoco.MjModel` of a scene; copy it before changing it."""
    return _Builder(SCENES[name]).spec.compile()


def name_parts(model: Any, names: tuple[str, ...]) -> NDArray[np.int64]:
    """Return for every geom the index in `names` of what it belongs to, else `len(names)`.

    Geoms are named "part:something".
    """
    found = np.full(model.ngeom, len(names), dtype=np.int64)
    for geom in range(model.ngeom):
        part = model.geom(geom).name.partition(":")[0]
        if part.startswith("panda_"):
            part = "robot"
        if part in names:
            found[geom] = names.index(part)
    return found


class _Builder:
    def __init__(self, scene: Scene) -> None:
        self._mujoco = require("mujoco", "calvin-twin", "the CALVIN twin")
        self._scene = scene
        self.spec: Any = self._mujoco.MjSpec()
        self._count = 0
        self._looks: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
        self._set_options()
        self._add_stage()
        self._add_table()
        self._add_cabinet()
        self._add_lights()
        self._add_door()
        self._add_drawer()
        self._add_button()
        self._add_switch()
        self._add_looks()
        for block in scene.order:
            self._add_block(block)
        add_panda(self.spec, MOUNT)
        self._finish_hand()

    # ------------------------------------------------------------ stage

    def _set_options(self) -> None:
        mujoco, spec = self._mujoco, self.spec
        spec.compiler.degree = False
        spec.option.timestep = 1.0 / (CONTROL_HZ * SUBSTEPS)
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        spec.option.gravity = [0, 0, -9.8]
        spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        spec.option.impratio = 10.0
        spec.option.disableflags = mujoco.mjtDisableBit.mjDSBL_AUTORESET
        spec.stat.extent, spec.stat.center = 1.0, [0.0, 0.0, 0.4]
        spec.visual.map.znear, spec.visual.map.zfar = 0.01, 20.0
        spec.visual.headlight.ambient = [AMBIENT] * 3
        spec.visual.headlight.diffuse = spec.visual.headlight.specular = [0.0] * 3

    def _add_stage(self) -> None:
        mujoco, spec, world = self._mujoco, self.spec, self.spec.worldbody
        world.add_light(
            name="sun",
            directional=True,
            pos=[-1.3, 0.8, 2.6],
            dir=SUN_DIRECTION,
            ambient=[0.0] * 3,
            diffuse=[SUN] * 3,
            specular=[0.0] * 3,
            castshadow=False,
        )
        spec.add_texture(
            name="sky",
            type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
            builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
            rgb1=[1.0] * 3,
            width=8,
            height=48,
        )
        spec.add_texture(
            name="tiles",
            type=mujoco.mjtTexture.mjTEXTURE_2D,
            builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
            rgb1=[1.0] * 3,
            rgb2=[0.87] * 3,
            width=64,
            height=64,
        )
        _add_material(spec, "tiles", texuniform=True, texrepeat=[2, 2])
        for kind in sorted(set(WOODS[self._scene.name])):
            texture = spec.add_texture(
                name=kind,
                type=mujoco.mjtTexture.mjTEXTURE_2D,
                width=TEXTURE_PIXELS,
                height=TEXTURE_PIXELS,
                nchannel=3,
            )
            texture.data = paint_wood(kind).tobytes()
            _add_material(spec, kind)
        world.add_geom(
            name="floor:plane",
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=[10, 10, 0.1],
            material="tiles",
            group=1,
            **_FIXED,
        )
        # The pedestal is only seen. Its top, shaded in upstream's pictures, lies below the robot.
        x, y, height = BASE_POSITION_M
        for middle, half, shade in ((height / 2 - 2e-3, height / 2, 1.0), (height, 1e-3, 0.8)):
            world.add_geom(
                type=mujoco.mjtGeom.mjGEOM_CYLINDER,
                pos=[x - 0.05, y, middle],
                size=[0.13, half, 0],
                rgba=[shade, shade, shade, 1.0],
                group=1,
                contype=0,
                conaffinity=0,
            )
        world.add_camera(
            name="static",
            pos=[2.871459, -2.166602, 2.555160],
            quat=_quat([0.7232, 0.5141, -0.4611], [-0.0303, 0.6906, 0.7226]),
            fovy=10.0,
        )

    # ------------------------------------------------------------ table

    def _add_table(self) -> None:
        """Add what stands still, but for the cabinet."""
        scene, world, wood = self._scene, self.spec.worldbody, self._wood
        low, high = scene.drawer_x - 0.20, scene.drawer_x + 0.20
        boxes = [
            ((-0.44, -0.18, 0.40), (0.44, 0.02, TABLE_TOP_M)),
            ((-0.42, -0.16, 0.30), (low, 0.16, 0.40)),
            ((high, -0.16, 0.30), (0.42, 0.16, 0.40)),
            ((low, 0.06, 0.30), (high, 0.16, 0.40)),
            ((low, -0.16, 0.30), (high, 0.06, 0.32)),
        ]
        for x in (-0.44, 0.40):
            for y in (-0.18, 0.148):
                boxes.append(((x, y, 0.0), (x + 0.04, y + 0.032, 0.40)))
        for box in boxes:
            self._box(world, "base_link", *box, look=wood)
        self._box(world, "base_link", (-0.44, 0.02, 0.40), (0.44, 0.18, 0.42), look=wood)
        self._cylinder(world, "base_link", (scene.button_x, -0.12, 0.45), 0.04, 0.02, WHITE, wood)

    def _add_cabinet(self) -> None:
        scene, world, wood = self._scene, self.spec.worldbody, self._wood
        left, right = scene.cabinet_x - 0.26, scene.cabinet_x + 0.26
        self._box(world, "base_link", (-0.44, 0.16, 0.42), (0.44, 0.18, ROOF_M), look=wood)
        self._box(world, "base_link", (left, 0.14, 0.628), (right, 0.16, ROOF_M))
        slope = ((0.1285, 0.628), (0.16, 0.628), (0.16, ROOF_M), (0.14, ROOF_M))
        self._look(world, wood, _extrude(left, right, slope))
        self._box(world, "plank_link", (left, 0.02, 0.42), (right, 0.16, PLANK_TOP_M), look=wood)
        for low, high in ((-0.44, left), (right, 0.44)):
            self._wedge(low, high)
        # The slots that the switch's lever runs in.
        for x in (scene.switch_x - 0.05, scene.switch_x + 0.05):
            corners = [(x + dx, y, z) for dx in (-0.005, 0.005) for y, z in _SLOT]
            self._look(world, "slot", np.array(corners)[[0, 2, 3, 1]][None])

    def _wedge(self, low: float, high: float) -> None:
        """Add a part of the cabinet with its sloped front, between two x."""
        outline = ((0.02, TABLE_TOP_M), (0.16, TABLE_TOP_M), (0.16, ROOF_M), (0.14, ROOF_M))
        quads = _extrude(low, high, outline)
        self._look(self.spec.worldbody, self._wood, quads)
        name = f"wedge{low:.2f}"
        self.spec.add_mesh(name=name, uservert=np.unique(quads.reshape(-1, 3), axis=0).ravel())
        self.spec.worldbody.add_geom(
            name=f"base_link:{name}",
            type=self._mujoco.mjtGeom.mjGEOM_MESH,
            meshname=name,
            group=COLLISION_GROUP,
            friction=FRICTION,
            **_FIXED,
        )

    def _add_lights(self) -> None:
        x, world = self._scene.button_x, self.spec.worldbody
        self._box(
            world,
            "led_link",
            (x - 0.08, 0.14, ROOF_M),
            (x + 0.08, 0.18, 0.6638),
            rgba=WHITE,
            name=LED,
        )
        world.add_geom(
            name=BULB,
            type=self._mujoco.mjtGeom.mjGEOM_SPHERE,
            pos=[self._scene.switch_x, 0.16, 0.6697],
            size=[0.028, 0, 0],
            rgba=WHITE,
            group=1,
            **_FIXED,
        )

    # ------------------------------------------------------------ what moves

    def _slider(
        self, name: str, position: ArrayLike, turn: float, axis: ArrayLike, high: float, mass: float
    ) -> Any:
        """Add a body on a slide from 0 to `high`, its frame turned by `turn` about x."""
        body = self.spec.worldbody.add_body(
            name=name,
            pos=position,
            quat=[np.cos(turn / 2), np.sin(turn / 2), 0, 0],
            gravcomp=1.0,
            mass=mass,
            ipos=[0, 0, 0],
            inertia=[0.01] * 3,
            explicitinertial=True,
        )
        springs = name == "button"
        body.add_joint(
            name=name,
            type=self._mujoco.mjtJoint.mjJNT_SLIDE,
            axis=axis,
            range=[0.0, high],
            limited=1,
            frictionloss=0.0 if springs else FORCE_N,
            damping=10.0 if springs else 0.5,
        )
        return body

    def _add_door(self) -> None:
        scene, wood = self._scene, self._door_wood
        place = (scene.slider_x, 0.075, 0.53526)
        body = self._slider("slide", place, np.pi / 3, (-1, 0, 0), scene.slider_range, 1.543)
        self._box(body, "slide_link", (0, -0.11, 0), (0.28, 0.11, 0.02), look=wood)
        for low, high in (
            ((0.12, 0.056, 0.02), (0.16, 0.08, 0.08)),
            ((0.12, -0.08, 0.02), (0.16, -0.056, 0.08)),
            ((0.12, -0.056, 0.056), (0.16, 0.056, 0.08)),
        ):
            self._box(body, "slide_link", low, high, rgba=GRAY)

    def _add_drawer(self) -> None:
        wood, place = self._door_wood, (self._scene.drawer_x, 0, 0.32)
        body = self._slider("drawer", place, 0.0, (0, -1, 0), 0.22, 4.231)
        for low, high in (
            ((-0.20, -0.16, 0.0), (0.20, 0.06, DRAWER_FLOOR_M)),
            ((-0.20, -0.16, DRAWER_FLOOR_M), (-0.18, 0.06, 0.08)),
            ((0.18, -0.16, DRAWER_FLOOR_M), (0.20, 0.06, 0.08)),
            ((-0.18, 0.04, DRAWER_FLOOR_M), (0.18, 0.06, 0.08)),
            ((-0.22, -0.18, -0.02), (0.22, -0.16, 0.08)),
        ):
            self._box(body, "drawer_link", low, high, look=wood)
        for low, high in (
            ((-0.12, -0.26, 0.02), (-0.10, -0.18, 0.06)),
            ((0.10, -0.26, 0.02), (0.12, -0.18, 0.06)),
            ((-0.10, -0.26, 0.02), (0.10, -0.236, 0.06)),
        ):
            self._box(body, "drawer_link", low, high, rgba=GRAY)

    def _add_button(self) -> None:
        mujoco, place = self._mujoco, (self._scene.button_x, -0.12, 0.46)
        body = self._slider("button", place, 0.0, (0, 0, -1), 0.02, 0.154)
        self._cylinder(body, "button_link", (0, 0, 0.012), 0.032, 0.024, BLACK)
        spring = self.spec.add_actuator(
            name="button",
            target="button",
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
            gaintype=mujoco.mjtGain.mjGAIN_FIXED,
            biastype=mujoco.mjtBias.mjBIAS_AFFINE,
            forcelimited=1,
            forcerange=[-FORCE_N, FORCE_N],
        )
        spring.gainprm[0], spring.biasprm[1] = 1000.0, -1000.0

    def _add_switch(self) -> None:
        place = (self._scene.switch_x, 0.0609, 0.4949)
        body = self._slider("switch", place, 5 * np.pi / 6, (0, 0, -1), 0.088, 0.239)
        for low, high in (
            ((-0.06, 0, -0.024), (-0.04, 0.064, 0.008)),
            ((0.04, 0, -0.024), (0.06, 0.064, 0.008)),
            ((-0.04, 0.044, -0.024), (0.04, 0.064, 0.008)),
        ):
            self._box(body, "switch_link", low, high, rgba=GRAY)

    def _add_block(self, name: str) -> None:
        body = self.spec.worldbody.add_body(name=name)
        body.add_freejoint(name=name)
        body.add_geom(
            name=f"{name}:box",
            type=self._mujoco.mjtGeom.mjGEOM_BOX,
            size=np.array([self._scene.length(name), BLOCK_DEPTH_M, BLOCK_DEPTH_M]) / 2
            + BLOCK_GROWTH_M,
            mass=1.0,
            rgba=BLOCK_RGBA[name],
            group=1,
            friction=FRICTION,
            **_BLOCK,
        )

    # ------------------------------------------------------------ pieces

    def _box(
        self,
        body: Any,
        part: str,
        low: ArrayLike,
        high: ArrayLike,
        rgba: Any = None,
        look: str = "",
        name: str = "",
    ) -> None:
        """Add a box between two corners: seen in a colour, or as wood, or not at all."""
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        body.add_geom(
            name=name or self._name(part),
            type=self._mujoco.mjtGeom.mjGEOM_BOX,
            pos=(low + high) / 2,
            size=(high - low) / 2,
            group=COLLISION_GROUP if rgba is None else 1,
            rgba=WHITE if rgba is None else rgba,
            friction=FRICTION,
            **_FIXED,
        )
        if look:
            (_, y, z), (_, top_y, top_z) = low, high
            outline = ((y, z), (top_y, z), (top_y, top_z), (y, top_z))
            self._look(body, look, _extrude(low[0], high[0], outline))

    def _cylinder(
        self,
        body: Any,
        part: str,
        centre: ArrayLike,
        radius: float,
        height: float,
        rgba: Any,
        material: str = "",
    ) -> None:
        body.add_geom(
            name=self._name(part),
            type=self._mujoco.mjtGeom.mjGEOM_CYLINDER,
            pos=centre,
            size=[radius, height / 2, 0],
            rgba=rgba,
            material=material,
            group=1,
            friction=FRICTION,
            **_FIXED,
        )

    def _name(self, part: str) -> str:
        self._count += 1
        return f"{part}:{self._count}"

    @property
    def _wood(self) -> str:
        return WOODS[self._scene.name][0]

    @property
    def _door_wood(self) -> str:
        return WOODS[self._scene.name][1]

    def _look(self, body: Any, material: str, quads: NDArray[np.float64]) -> None:
        """Have a body show quads, shape (n, 4, 3), in its frame, counter-clockwise from outside."""
        self._looks.setdefault((body.name, material), []).append(quads)

    def _add_looks(self) -> None:
        """Add one mesh for each body and material: fewer meshes are drawn faster."""
        for (body, material), pieces in self._looks.items():
            quads = np.concatenate(pieces)
            corners = 4 * np.arange(len(quads))[:, None]
            faces = np.concatenate([corners + np.array([0, 1, 2]), corners + np.array([0, 2, 3])])
            name = f"look_{body}_{material}"
            self.spec.add_mesh(
                name=name,
                uservert=quads.ravel(),
                userface=faces.ravel(),
                usertexcoord=_map_texture(quads, WOOD_ALONG_X.get(material, True)).ravel(),
                userfacetexcoord=faces.ravel(),
                inertia=self._mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
            )
            shade = [*np.multiply(WOOD_LOOKS[self._wood][0], 0.75), 1.0]
            paint = {"rgba": shade} if material == "slot" else {"material": material}
            self.spec.body(body).add_geom(
                type=self._mujoco.mjtGeom.mjGEOM_MESH,
                meshname=name,
                contype=0,
                conaffinity=0,
                group=1,
                mass=0,
                **paint,
            )

    def _finish_hand(self) -> None:
        for name in ("hand", "finger1", "finger2"):
            for geom in self.spec.body(f"panda_{name}").geoms:
                if geom.contype:
                    geom.contype, geom.conaffinity = _HAND["contype"], _HAND["conaffinity"]
        hand, right, up = self.spec.body("panda_hand"), [-0.0008, 1, 0], [0.9636, 0.0008, -0.2675]
        place = {"pos": [-0.1, 0, 0], "quat": _quat(right, up)}
        hand.add_camera(name="gripper", fovy=75.0, **place)
        hand.add_geom(
            type=self._mujoco.mjtGeom.mjGEOM_BOX,
            size=[0.04, 0.005, 0.0125],
            rgba=WHITE,
            group=1,
            contype=0,
            conaffinity=0,
            mass=0,
            **place,
        )


def _extrude(
    low: float, high: float, outline: tuple[tuple[float, float], ...]
) -> NDArray[np.float64]:
    """Return the faces, shape (6, 4, 3), of a four-sided outline in (y, z) from x to x.

    The outline runs counter-clockwise as seen from +x.
    """
    near = [(low, y, z) for y, z in outline]
    far = [(high, y, z) for y, z in outline]
    sides = [[near[i - 1], near[i], far[i], far[i - 1]] for i in range(4)]
    return np.array([near[::-1], far, *sides])


def _map_texture(quads: NDArray[np.float64], along_x: bool) -> NDArray[np.float64]:
    """Return texture coordinates, shape (n, 4, 2), by the axis that each quad faces most."""
    normals = np.cross(quads[:, 1] - quads[:, 0], quads[:, 2] - quads[:, 0])
    facing = np.abs(normals).argmax(axis=1)
    axes = np.array([[1, 2], [0, 2], [0, 1]])[facing]
    flat = np.take_along_axis(quads, axes[:, None, :], axis=2)
    return (flat if along_x else flat[..., ::-1]) / TEXTURE_M


@functools.lru_cache(maxsize=8)
def paint_wood(kind: str) -> NDArray[np.uint8]:
    """Return a picture of wood that can be tiled, grain along its rows, uint8 (n, n, 3)."""
    rgb, contrast, fine = WOOD_LOOKS[kind]
    n = TEXTURE_PIXELS
    noise = np.fft.fft2(np.random.default_rng(len(kind)).standard_normal((n, n)))
    across, along = np.abs(np.fft.fftfreq(n) * n)[:, None], np.abs(np.fft.fftfreq(n) * n)[None]
    grain = np.zeros((n, n))
    for rings, length, share in ((9.0, 1.5, 0.7), (fine, 5.0, 1.0), (100.0, 20.0, 0.5)):
        band = np.exp(-(((across - rings) / (0.4 * rings)) ** 2) - (along / length) ** 2)
        layer = np.fft.ifft2(noise * band).real
        grain += share * layer / layer.std()
    shade = 1.0 + contrast * np.clip(grain / grain.std(), -2.5, 2.0)
    return np.clip(255 * shade[..., None] * np.array(rgb), 0, 255).astype(np.uint8)


def _add_material(spec: Any, texture: str, **options: Any) -> None:
    mujoco = require("mujoco", "calvin-twin", "the CALVIN twin")
    material = spec.add_material(name=texture, specular=0.0, shininess=0.0, **options)
    textures = [""] * mujoco.mjtTextureRole.mjNTEXROLE
    textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture
    material.textures = textures


def _quat(right: ArrayLike, up: ArrayLike) -> NDArray[np.float64]:
    """Return the quaternion (w first) of a camera that has these axes."""
    mujoco = require("mujoco", "calvin-twin", "the CALVIN twin")
    right = np.asarray(right) / np.linalg.norm(right)
    back = np.cross(right, np.asarray(up))
    back /= np.linalg.norm(back)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.stack([right, np.cross(back, right), back], axis=1).ravel())
    return quat
