"""Tasks at the chest of three drawers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_gym.twins.panda import Pose
from vla_gym.twins.rlbench.scene import TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import TwinTask, Waypoint, draw_place, look_along, solvable
from vla_gym.twins.rlbench.world import Snapshot, World

LEVELS = ("bottom", "middle", "top")
HEIGHTS_M = (0.123, 0.243, 0.363)
WIDTH_M, DEPTH_M, TRAVEL_M, HEIGHT_M = 0.375, 0.375, 0.30, 0.48
BOARD_M = 0.015
HANDLE_M = 0.045
"""From a drawer's front to the middle of its handle's bar."""

OPENED_M, CLOSED_M, AJAR_M = 0.15, 0.06, 0.10
"""How far a drawer must be opened or closed, and how far open the one to close stands."""

CUBE_M = 0.04
UP = np.array([0.0, 0.0, 1.0])

LEAN_RAD = np.pi / 6
"""Of the hand against the vertical, towards the chest: it hooks a handle from above and reaches the
top of the chest without stretching the arm."""

HIGH_M = 1.36
"""Height of a tip that passes over the chest."""


def build_chest(scene: SceneBuilder) -> None:
    """Add the chest as the body `chest`; its drawers open along its own -x, towards the robot."""
    wood = {"rgb": (0.55, 0.36, 0.22)}
    scene.body("chest", (0.5, 0, TABLE_M))
    half = WIDTH_M / 2
    for side in (-1, 1):
        at = (0, side * half, HEIGHT_M / 2)
        scene.box("chest", (DEPTH_M, BOARD_M, HEIGHT_M), at, **wood)
    back = (BOARD_M, WIDTH_M - BOARD_M, HEIGHT_M)
    scene.box("chest", back, ((DEPTH_M - BOARD_M) / 2, 0, HEIGHT_M / 2), **wood)
    scene.box("chest", (DEPTH_M - 0.03, WIDTH_M, BOARD_M), (0, 0, 0.03), **wood)
    top = (DEPTH_M + 0.004, WIDTH_M + BOARD_M + 0.004, BOARD_M)
    scene.box("chest", top, (0, 0, HEIGHT_M), **wood)
    light = {"rgb": (0.80, 0.62, 0.42)}
    for name, at in zip(LEVELS, HEIGHTS_M, strict=True):
        body = scene.body(f"{name}_drawer", (0, 0, at), parent="chest")
        scene.slide(body, f"{name}_joint", (-1, 0, 0), 0.0, TRAVEL_M, damping=6.0, frictionloss=0.5)
        width, depth = WIDTH_M - 0.03, DEPTH_M - 0.03
        front = -DEPTH_M / 2
        scene.box(body, (BOARD_M, WIDTH_M, 0.108), (front, 0, 0), mass=0.2, **light)
        scene.box(body, (depth, width, 0.008), (0, 0, -0.045), mass=0.2, **light)
        for side in (-1, 1):
            at_side = (0, side * width / 2, -0.015)
            scene.box(body, (depth, 0.008, 0.06), at_side, mass=0.05, **light)
        scene.box(body, (0.008, width, 0.06), (depth / 2, 0, -0.015), mass=0.05, **light)
        metal = {"rgb": (0.75, 0.75, 0.78), "mass": 0.02}
        for side in (-1, 1):
            start = (front, side * 0.045, 0)
            scene.capsule(body, 0.010, start, (front - HANDLE_M, side * 0.045, 0), **metal)
        bar = front - HANDLE_M
        scene.capsule(body, 0.012, (bar, -0.045, 0), (bar, 0.045, 0), **metal)


def draw_chest(task: TwinTask, world: World, rng: np.random.Generator, variation: int) -> None:
    """Place the chest where the arm can do the task."""
    for _ in range(100):
        point = draw_place(rng, 0.14, 0.5, (0.27, 0.0))
        world.place("chest", (*point[:2], TABLE_M), yaw=rng.uniform(-np.pi / 8, np.pi / 8))
        if solvable(task, world, variation):
            return


def lean(forward: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation of a tip that points down and somewhat along the level `forward`."""
    direction = np.sin(LEAN_RAD) * forward - np.cos(LEAN_RAD) * UP
    return look_along(direction, np.cross(UP, forward))


def hook(drawer: Pose, distance: float) -> list[Waypoint]:
    """Return waypoints that pull a drawer out: closed fingers reach behind its bar from above."""
    outwards = -drawer.rotation[:, 0]
    hand = lean(-outwards)
    bar = drawer.position + (DEPTH_M / 2 + HANDLE_M) * outwards
    into, across = hand[:, 2], -hand[:, 0]
    behind = bar + 0.019 * across + 0.012 * into
    before = behind - 0.08 * into
    high = before + 0.10 * outwards
    high[2] = HIGH_M
    return [
        Waypoint(high, hand, open=False),
        Waypoint(before, hand),
        Waypoint(behind, hand, slow=True),
        Waypoint(behind + distance * outwards, hand, slow=True),
    ]


class OpenDrawer(TwinTask):
    """The chest, all drawers shut. Success: the right one is more than 0.15 m open."""

    bodies = ("chest", "bottom_drawer", "middle_drawer", "top_drawer")
    joints = ("bottom_joint", "middle_joint", "top_joint")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        build_chest(scene)

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        self._level = LEVELS[variation]
        draw_chest(self, world, rng, variation)

    def succeeded(self, world: World) -> bool:
        return world.joint(f"{self._level}_joint") > OPENED_M

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        level = LEVELS[variation]
        return (
            f"open the {level} drawer",
            f"pull the {level} drawer out",
            f"slide the {level} drawer open",
            f"take the {level} handle and pull",
            f"open the drawer at the {level}",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        return hook(seen.poses[f"{LEVELS[seen.variation]}_drawer"], 0.20)


class CloseDrawer(TwinTask):
    """The chest, one drawer 0.1 m open. Success: that one is pushed in by more than 0.06 m."""

    bodies = OpenDrawer.bodies
    joints = OpenDrawer.joints

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        build_chest(scene)

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        self._level = LEVELS[variation]
        world.set_joint(f"{self._level}_joint", AJAR_M)
        draw_chest(self, world, rng, variation)

    def succeeded(self, world: World) -> bool:
        return world.joint(f"{self._level}_joint") < AJAR_M - CLOSED_M

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        level = LEVELS[variation]
        return (
            f"close the {level} drawer",
            f"push the {level} drawer shut",
            f"slide the {level} drawer back in",
            f"shut the drawer at the {level}",
            f"push in the open {level} drawer",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        drawer = seen.poses[f"{LEVELS[seen.variation]}_drawer"]
        outwards = -drawer.rotation[:, 0]
        hand = lean(-outwards)
        bar = drawer.position + (DEPTH_M / 2 + HANDLE_M) * outwards
        before = bar + 0.05 * outwards - 0.015 * UP
        high = before + 0.05 * outwards
        high[2] = HIGH_M
        return [
            Waypoint(high, hand, open=False),
            Waypoint(before, hand),
            Waypoint(before - (AJAR_M + 0.035) * outwards, hand, slow=True),
        ]


class PutItemInDrawer(TwinTask):
    """The chest, all drawers shut, with a cube on its top; the cube goes into the right drawer.

    Geometry: a cube of 0.04 m on the front part of the chest's top, turned by up to 0.3 rad against
    the chest. Success: the cube is in a box of 0.3 x 0.3 x 0.075 m inside that drawer.
    """

    bodies = (*OpenDrawer.bodies, "cube")
    joints = OpenDrawer.joints

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        build_chest(scene)
        for level in LEVELS:
            scene.sensor(f"{level}_drawer", f"{level}_success", (0.3, 0.3, 0.075), (0, 0, 0))
        scene.body("cube", free=True, graspable=True)
        scene.box("cube", (CUBE_M,) * 3, rgb=(0.15, 0.35, 0.90))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        self._level = LEVELS[variation]
        top = HEIGHT_M + BOARD_M / 2 + CUBE_M / 2
        for _ in range(100):
            point = draw_place(rng, 0.08, 0.5, (0.30, 0.0))
            yaw = rng.uniform(-np.pi / 8, np.pi / 8)
            world.place("chest", (*point[:2], TABLE_M), yaw=yaw)
            world.forward()
            chest = world.pose("chest")
            spot = chest.rotation @ np.array(
                [rng.uniform(-0.15, -0.08), rng.uniform(-0.1, 0.1), top]
            )
            world.place("cube", chest.position + spot, yaw=yaw + rng.uniform(-0.3, 0.3))
            if solvable(self, world, variation):
                return

    def succeeded(self, world: World) -> bool:
        return world.detects(f"{self._level}_success", "cube")

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        level = LEVELS[variation]
        return (
            f"put the cube in the {level} drawer",
            f"open the {level} drawer and put the block inside",
            f"take the cube from the top and drop it in the {level} drawer",
            f"store the blue block in the {level} drawer",
            f"the cube on the chest belongs in the {level} drawer",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        drawer, cube = seen.poses[f"{LEVELS[seen.variation]}_drawer"], seen.poses["cube"]
        outwards = -drawer.rotation[:, 0]
        opening = hook(drawer, 0.21)
        pulled = opening[-1]
        out = Waypoint(pulled.position - 0.10 * pulled.rotation[:, 2], pulled.rotation)
        over = np.append(out.position[:2], HIGH_M)
        hand = lean(cube.rotation[:, 0])
        drop = drawer.position + (DEPTH_M / 2 + 0.09) * outwards + 0.075 * UP
        high = np.append(drop[:2], HIGH_M)
        return [
            *opening,
            out,
            Waypoint(over, pulled.rotation, open=True),
            Waypoint(cube.position + 0.07 * UP, hand),
            Waypoint(cube.position, hand, slow=True, then_open=False),
            Waypoint(cube.position + 0.07 * UP, hand),
            Waypoint(high, pulled.rotation),
            Waypoint(drop, pulled.rotation, then_open=True),
        ]
