"""The task at the saucepan."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.rlbench.scene import (
    COLLISION_GROUP,
    TABLE_M,
    TASK_CENTRE_M,
    SceneBuilder,
)
from vla_gym.twins.rlbench.task import DOWN, TwinTask, Waypoint, above, draw_place
from vla_gym.twins.rlbench.world import Snapshot, World

PAN_M, RIM_M, WALL_M = 0.225, 0.082, 0.006
"""Diameter of the pan, height of its rim, thickness of its wall."""

LID_M, PLATE_M = 0.23, 0.006
KNOB_M, KNOB_HEIGHT_M = 0.06, 0.02
KNOB_ABOVE_M = 0.017
"""From the lid's underside to the middle of its knob."""

STEEL, DARK = (0.62, 0.64, 0.67), (0.08, 0.08, 0.09)


class TakeLidOffSaucepan(TwinTask):
    """A saucepan with a lid on it, which has a knob.

    Geometry: a pan of 0.225 m, 0.09 m high, which stands fast; a lid of 0.23 m with a knob of 0.06
    x 0.02 m at 0.1 m. Success: the knob is held and inside a box of 0.1 x 0.1 x 0.05 m that begins
    0.216 m above the pan's bottom.
    """

    bodies = ("pan", "lid", "knob")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        scene.body("pan", (0.3, 0, TABLE_M))
        scene.cylinder("pan", PAN_M - 0.004, 0.006, (0, 0, 0.003), rgb=DARK)
        # The lid lies on this, boxes on a box, and not on the round wall.
        inner = (PAN_M - 2 * WALL_M) / 2**0.5
        scene.box("pan", (inner, inner, RIM_M), (0, 0, RIM_M / 2), group=COLLISION_GROUP)
        height = RIM_M - 0.0005
        scene.ring("pan", PAN_M - 2 * WALL_M, PAN_M, height, (0, 0, height / 2), 24, rgb=STEEL)
        start, end = (PAN_M / 2 - 0.005, 0, 0.062), (PAN_M / 2 + 0.16, 0, 0.072)
        scene.capsule("pan", 0.022, start, end, rgb=DARK)

        scene.body("lid", (0.3, 0, TABLE_M + RIM_M), free=True)
        plate = (0, 0, PLATE_M / 2)
        scene.cylinder("lid", LID_M, PLATE_M - 0.0004, (0, 0, 0.0032), rgb=STEEL, mass=0.10)
        scene.box("lid", (inner, inner, PLATE_M), plate, group=COLLISION_GROUP, mass=0.10)
        scene.cylinder(
            "lid", 0.16, 0.002, (0, 0, PLATE_M + 0.0005), rgb=(0.72, 0.74, 0.77), solid=False
        )
        scene.cylinder("lid", 0.022, 0.006, (0, 0, PLATE_M + 0.002), rgb=STEEL, solid=False)
        scene.body("knob", (0, 0, KNOB_ABOVE_M), parent="lid", graspable=True)
        scene.cylinder("knob", KNOB_M, KNOB_HEIGHT_M, rgb=DARK, mass=0.03)

        scene.body("goal")
        scene.sensor("goal", "success", (0.1, 0.1, 0.05), (0, 0, 0.216 + 0.025))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        x, y, _ = draw_place(rng, 0.3, 0.5)
        yaw = rng.uniform(-np.pi, np.pi)
        world.place("pan", (x, y, TABLE_M), yaw)
        world.place("lid", (x, y, TABLE_M + RIM_M), rng.uniform(-np.pi, np.pi))
        world.place("goal", (x, y, TASK_CENTRE_M[2]))

    def succeeded(self, world: World) -> bool:
        return world.held == "knob" and world.detects("success", "knob")

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        return (
            "lift the lid from the pan",
            "get the lid off the pan",
            "grasp the knob and raise the lid",
            "remove the lid of the pan",
            "take the cover of the saucepan up by its knob",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        knob = seen.poses["knob"]
        return [
            Waypoint(above(knob, 0.10), DOWN, open=True),
            Waypoint(above(knob, 0.0), DOWN, then_open=False),
            Waypoint(above(knob, 0.16), DOWN),
        ]
