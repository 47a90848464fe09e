"""Tasks in which something is swept together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_gym.twins.rlbench.scene import BASE_POSITION_M, TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import (
    TwinTask,
    Waypoint,
    draw_place,
    look_along,
    on_stage,
    solvable,
)
from vla_gym.twins.rlbench.world import Snapshot, World, yaw_matrix

DIRT = tuple(f"dirt{i}" for i in range(5))
DIRT_M = 0.014
"""RLBench's has 0.01 m: one pixel in a picture of 128."""

PAN_M, PAN_AT_M = (0.30, 0.15), (0.0, -0.3)
BROOM_AT_M = (0.0, 0.15)
HEAD_M = (0.26, 0.03, 0.05)
STICK_M, THICK_M = 0.6, 0.022
GRIP_M = 0.40
"""Height at which the hand takes the stick."""

PITCH_RAD = 0.68
"""Of the hand below the horizontal."""

POST_M, HOLDER_M = 0.21, 0.5
"""From the broom to the holder's post, and its height."""

NEAREST_M = 0.55
"""From the robot's foot to the broom: the hand comes down on this side of it."""

SKIM_M = 0.002
"""How far above the table the broom sweeps."""


class SweepToDustpan(TwinTask):
    """A broom at its holder, dirt before it and a dustpan; all dirt is swept into the pan.

    Geometry: five cubes of 0.014 m, a broom of 0.6 m with a head of 0.26 m, a holder 0.5 m high on
    the side away from the robot, a pan 0.3 m from the dirt. Success: all dirt is in a box of
    0.25 x 0.15 x 0.05 m in the pan.
    """

    bodies = ("broom", "dustpan", "holder", *DIRT)

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        cls._build_pan(scene)
        scene.body("holder", (0.6, 0, TABLE_M))
        metal = {"rgb": (0.45, 0.47, 0.50)}
        scene.box("holder", (0.1, 0.1, 0.015), (POST_M, 0, 0.0075), **metal)
        scene.box("holder", (0.025, 0.025, HOLDER_M), (POST_M, 0, HOLDER_M / 2), **metal)
        arm = POST_M - THICK_M
        at = (THICK_M + arm / 2, 0, HOLDER_M - 0.0125)
        scene.box("holder", (arm, 0.025, 0.025), at, solid=False, **metal)
        scene.body("broom", free=True, graspable=True)
        scene.box("broom", HEAD_M, (0, 0, HEAD_M[2] / 2), mass=0.2, rgb=(0.90, 0.72, 0.15))
        top = (*HEAD_M[:2], 0.015)
        scene.box("broom", top, (0, 0, HEAD_M[2] + 0.0075), mass=0.02, rgb=(0.75, 0.15, 0.12))
        height = STICK_M - HEAD_M[2]
        scene.cylinder(
            "broom",
            THICK_M,
            height,
            (0, 0, HEAD_M[2] + height / 2),
            mass=0.05,
            rgb=(0.75, 0.15, 0.12),
        )
        for name in DIRT:
            scene.body(name, free=True)
            scene.box(name, (DIRT_M,) * 3, rgb=(0.16, 0.10, 0.06))

    @classmethod
    def _build_pan(cls, scene: SceneBuilder) -> None:
        """Add the pan, open to its own +y."""
        width, depth = PAN_M
        blue = {"rgb": (0.10, 0.30, 0.80)}
        scene.body("dustpan", (0.3, -0.3, TABLE_M))
        scene.box("dustpan", (width, depth, 0.002), (0, 0, 0.001), solid=False, **blue)
        wall, high = 0.008, 0.04
        for side in (-1, 1):
            at = (side * (width + wall) / 2, 0, high / 2)
            scene.box("dustpan", (wall, depth, high), at, **blue)
        back = (width + 2 * wall, wall, high)
        scene.box("dustpan", back, (0, -(depth + wall) / 2, high / 2), **blue)
        end = -depth / 2 - 0.13
        scene.capsule("dustpan", 0.025, (0, -depth / 2, 0.03), (0, end, 0.03), **blue)
        scene.sensor("dustpan", "success", (0.25, 0.15, 0.05), (0, 0, 0.025))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        for _ in range(1000):
            centre, yaw = draw_place(rng, 0.45, 0.5), rng.uniform(-np.pi, np.pi)
            centre[2] = TABLE_M
            turn = yaw_matrix(yaw)
            broom = centre + turn @ (rng.uniform(-0.02, 0.02), BROOM_AT_M[1], 0.0)
            world.place("broom", broom, yaw=yaw)
            world.place("dustpan", centre + turn @ (*PAN_AT_M, 0.0), yaw=yaw)
            away = _bearing(broom)
            # The post must not stand in the broom's way, nor the broom in the hand's.
            if np.cos(away - (yaw - np.pi / 2)) > 0.25 or _reach(broom) < NEAREST_M:
                continue
            world.place("holder", broom, yaw=away)
            spots = rng.uniform((-0.09, -0.06), (0.09, 0.06), (len(DIRT), 2))
            for name, spot in zip(DIRT, spots, strict=True):
                point = centre + turn @ (*spot, DIRT_M / 2)
                world.place(name, point, yaw=rng.uniform(-np.pi, np.pi))
            gaps = np.linalg.norm(spots[:, None] - spots[None], axis=-1) + np.eye(len(DIRT))
            if (
                gaps.min() > 0.025
                and on_stage(world, "broom", "dustpan", *DIRT)
                and solvable(self, world, variation)
            ):
                return

    def succeeded(self, world: World) -> bool:
        return all(world.detects("success", name) for name in DIRT)

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        return (
            "sweep the dirt into the dustpan",
            "use the broom to sweep all dirt into the pan",
            "take the broom and brush the crumbs onto the blue dustpan",
            "sweep up the mess with the broom",
            "push every bit of dirt into the dustpan with the broom",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        broom, pan = seen.poses["broom"].position, seen.poses["dustpan"]
        up = np.array([0.0, 0.0, 1.0])
        way = -pan.rotation[:, 1]
        length = float((pan.position - broom) @ way)
        # One heading of the hand for the whole sweep: that of its middle.
        heading = yaw_matrix(_bearing(broom + 0.5 * length * way))[:, 0]
        into = np.cos(PITCH_RAD) * heading - np.sin(PITCH_RAD) * up
        hand = look_along(into, np.cross(up, heading))
        grip = broom + GRIP_M * up
        # Level with the floor's middle line of the pan, head just inside it.
        aside = (pan.position - broom) - length * way
        swept = (length - PAN_M[1] / 2 + HEAD_M[1]) * way + aside
        return [
            Waypoint(grip - 0.15 * into, hand, open=True),
            Waypoint(grip, hand, slow=True, then_open=False),
            Waypoint(grip + SKIM_M * up, hand, slow=True),
            Waypoint(grip + SKIM_M * up + aside, hand, slow=True),
            Waypoint(grip + SKIM_M * up + swept, hand, slow=True),
        ]


def _reach(point: NDArray[np.float64]) -> float:
    """Return the level distance from the robot's foot to a point [m]."""
    return float(np.hypot(*(point[:2] - BASE_POSITION_M[:2])))


def _bearing(point: NDArray[np.float64]) -> float:
    """Return the direction from the robot's foot to a point [rad]."""
    return float(np.arctan2(point[1] - BASE_POSITION_M[1], point[0] - BASE_POSITION_M[0]))
