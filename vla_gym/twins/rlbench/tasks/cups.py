"""Tasks with cups."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.rlbench.scene import COLLISION_GROUP, COLOURS, TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import DOWN, TwinTask, Waypoint, above, draw_apart
from vla_gym.twins.rlbench.world import Snapshot, World

HEIGHT_M, WALL_M = 0.14, 0.004
FOOT_M, RIM_M = 0.054, 0.064
"""Outer diameters of the cup at its bottom and at its top."""

BODY_M = 0.06
"""Diameter of the cylinder as which a cup collides."""

STAVES = 14


def build_cup(scene: SceneBuilder, name: str) -> None:
    """Add a cup that widens towards its rim: hollow to the eye, a full cylinder to the touch.

    The body's origin is in the middle of its bottom.
    """
    scene.body(name, free=True, graspable=True)
    tilt = np.arctan2((RIM_M - FOOT_M) / 2, HEIGHT_M)
    radius = (FOOT_M + RIM_M) / 4 - WALL_M / 2
    width = RIM_M * np.tan(np.pi / STAVES)
    for index in range(STAVES):
        angle = 2 * np.pi * index / STAVES
        turn, lean = np.array([angle, tilt]) / 2
        scene.box(
            name,
            (WALL_M, width, HEIGHT_M),
            (radius * np.cos(angle), radius * np.sin(angle), HEIGHT_M / 2),
            # about z by the angle, then about the new y by the tilt
            quat=(
                np.cos(turn) * np.cos(lean),
                -np.sin(turn) * np.sin(lean),
                np.cos(turn) * np.sin(lean),
                np.sin(turn) * np.cos(lean),
            ),
            solid=False,
        )
    scene.cylinder(name, FOOT_M - WALL_M, 0.006, (0, 0, 0.004), solid=False)
    hidden = {"group": COLLISION_GROUP, "mass": 0.06}
    # It stands on a box: a box's corners make a firm contact, a cylinder's edge does not.
    scene.box(name, (BODY_M / 2**0.5, BODY_M / 2**0.5, HEIGHT_M), (0, 0, HEIGHT_M / 2), **hidden)
    scene.cylinder(name, BODY_M, HEIGHT_M - 0.001, (0, 0, HEIGHT_M / 2 + 0.0005), **hidden)


class PickUpCup(TwinTask):
    """Two cups on the table, the right one by its colour.

    Geometry: cups of 0.14 m, 0.06 m wide, in a plane of 0.4 x 0.6 m. Success: the cup is held and
    no part of it is left in a box of 0.05 x 0.05 x 0.025 m where it stood.
    """

    bodies = ("cup", "distractor")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        for name in cls.bodies:
            build_cup(scene, name)
        scene.body("start")
        scene.sensor("start", "start", (0.05, 0.05, 0.025), (0, 0, 0.0125))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        names = list(COLOURS)
        other = rng.choice([name for i, name in enumerate(names) if i != variation])
        points = draw_apart(rng, 2, 0.4, 0.6, 0.16)
        for body, point, colour in zip(self.bodies, points, (names[variation], other), strict=True):
            world.place(body, (*point[:2], TABLE_M), yaw=rng.uniform(-np.pi, np.pi))
            world.paint(body, COLOURS[colour])
        world.place("start", (*points[0][:2], TABLE_M))

    def succeeded(self, world: World) -> bool:
        return world.held == "cup" and not world.detects("start", "cup")

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        colour = list(COLOURS)[variation]
        return (
            f"take hold of the {colour} cup and lift it",
            f"take the {colour} cup off the table",
            f"grasp the {colour} mug and raise it",
            f"hold the cup that is {colour} above the table",
            f"get the {colour} cup",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        cup = seen.poses["cup"]
        return [
            Waypoint(above(cup, HEIGHT_M + 0.06), DOWN, open=True),
            Waypoint(above(cup, HEIGHT_M - 0.025), DOWN, then_open=False),
            Waypoint(above(cup, HEIGHT_M + 0.08), DOWN),
        ]
