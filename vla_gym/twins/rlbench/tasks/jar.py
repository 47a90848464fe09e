"""The task at the jars."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.rlbench.scene import COLLISION_GROUP, COLOURS, TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import DOWN, TwinTask, Waypoint, above, draw_apart
from vla_gym.twins.rlbench.world import Snapshot, World

JAR_M, JAR_HEIGHT_M, SHOULDER_M = 0.09, 0.11, 0.092
"""Diameter and height of a jar, and the height at which its neck begins."""

LID_M, LID_HEIGHT_M = 0.074, 0.021
NECK_M = 0.066

YAW_RAD = 0.6 * np.pi


class CloseJar(TwinTask):
    """Two open jars, which stand fast, and a grey lid on the table; it goes on the right jar.

    Geometry: jars of 0.09 m, 0.11 m high; a lid of 0.074 x 0.021 m. Success: the lid is inside a
    box of 0.05 x 0.05 x 0.02 m on top of the jar and nothing is held.
    """

    bodies = ("jar", "distractor", "lid")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        for name in cls.bodies[:2]:
            scene.body(name, (0.3, 0, TABLE_M))
            scene.cylinder(name, JAR_M, SHOULDER_M, (0, 0, SHOULDER_M / 2))
            neck = JAR_HEIGHT_M - SHOULDER_M
            middle = SHOULDER_M + neck / 2
            # The lid lies on a hidden box, which bears it more firmly than a round edge.
            side = NECK_M / 2**0.5
            scene.box(name, (side, side, neck), (0, 0, middle), group=COLLISION_GROUP)
            scene.cylinder(name, NECK_M, neck - 0.001, (0, 0, middle - 0.0005))
            scene.cylinder(
                name,
                NECK_M - 0.012,
                0.001,
                (0, 0, JAR_HEIGHT_M - 0.0005),
                solid=False,
                name=f"{name}_mouth",
            )
        scene.sensor("jar", "success", (0.05, 0.05, 0.02), (0, 0, JAR_HEIGHT_M + 0.01))

        scene.body("lid", free=True, graspable=True)
        side = LID_M / 2**0.5 - 0.001
        scene.box("lid", (side, side, LID_HEIGHT_M), group=COLLISION_GROUP, mass=0.02)
        scene.cylinder("lid", LID_M, LID_HEIGHT_M - 0.0006, rgb=(0.42, 0.42, 0.44), mass=0.03)
        scene.cylinder(
            "lid",
            LID_M - 0.012,
            0.001,
            (0, 0, LID_HEIGHT_M / 2),
            rgb=(0.60, 0.60, 0.62),
            solid=False,
        )

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        names = list(COLOURS)
        other = rng.choice([name for i, name in enumerate(names) if i != variation])
        points = draw_apart(rng, 3, 0.4, 0.55, 0.18)
        for body, point, colour in zip(
            self.bodies, points, (names[variation], other), strict=False
        ):
            world.place(body, (*point[:2], TABLE_M), yaw=rng.uniform(-YAW_RAD, YAW_RAD))
            world.paint(body, COLOURS[colour])
            world.paint(f"{body}_mouth", (0.03, 0.03, 0.03))
        yaw = rng.uniform(-YAW_RAD, YAW_RAD)
        world.place("lid", (*points[2][:2], TABLE_M + LID_HEIGHT_M / 2), yaw)

    def succeeded(self, world: World) -> bool:
        return world.held is None and world.detects("success", "lid")

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        colour = list(COLOURS)[variation]
        return (
            f"put the lid on the {colour} jar",
            f"screw the lid onto the {colour} jar",
            f"take the lid and close the jar that is {colour}",
            f"cover the {colour} jar with the grey lid",
            f"pick the lid up and place it on top of the {colour} jar",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        lid, jar = seen.poses["lid"], seen.poses["jar"]
        top = JAR_HEIGHT_M + LID_HEIGHT_M / 2
        return [
            Waypoint(above(lid, 0.10), DOWN, open=True),
            Waypoint(above(lid, 0.03), DOWN),
            Waypoint(above(lid, 0.0), DOWN, slow=True, then_open=False),
            Waypoint(above(lid, JAR_HEIGHT_M + 0.08), DOWN),
            Waypoint(above(jar, top + 0.07), DOWN),
            Waypoint(above(jar, top + 0.002), DOWN, slow=True, then_open=True),
            Waypoint(above(jar, top + 0.10), DOWN),
        ]
