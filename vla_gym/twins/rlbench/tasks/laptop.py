"""The task of a laptop."""

from __future__ import annotations

import numpy as np

from vla_gym.suites.rlbench import BASE_POSITION_M
from vla_gym.twins.rlbench.scene import TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import TwinTask, Waypoint, draw_place, solvable
from vla_gym.twins.rlbench.tasks.box import swing_shut
from vla_gym.twins.rlbench.world import Snapshot, World

WIDTH_M, DEPTH_M = 0.347, 0.253
BLOCK_M = (0.3, 0.4, 0.1)
BASE_M, LID_THICKNESS_M = 0.018, 0.010
SHUT_RAD, CLOSED_RAD = 1.833, 1.79

BEHIND_M, REACH_M = 0.12, 0.64
"""From the hinge back to where the hand comes down, and how far from the robot's base that may be:
beyond, the arm is stretched and jams."""


class CloseLaptopLid(TwinTask):
    """An open laptop on a block; its lid is pushed down from behind.

    Geometry: laptop 0.347 x 0.253 m on a block of 0.4 x 0.3 x 0.1 m; the hinge reads 0 where it
    stands open, 105 degrees, and 1.833 rad when shut. Success: it has turned by more than 1.79 rad.
    """

    bodies = ("laptop", "lid")
    joints = ("lid_joint",)

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        scene.body("laptop", (0.4, 0, TABLE_M))
        scene.box("laptop", BLOCK_M, (0, 0, BLOCK_M[2] / 2), rgb=(0.62, 0.28, 0.20))
        top, metal = BLOCK_M[2] + BASE_M, (0.72, 0.74, 0.77)
        scene.box("laptop", (DEPTH_M, WIDTH_M, BASE_M), (0, 0, top - BASE_M / 2), rgb=metal)
        flat = {"solid": False, "rgb": (0.12, 0.12, 0.14)}
        for row in range(4):
            scene.box("laptop", (0.022, 0.30, 0.002), (0.075 - 0.028 * row, 0, top), **flat)
        scene.box("laptop", (0.06, 0.10, 0.002), (-0.075, 0, top), solid=False, rgb=(0.5,) * 3)
        lid = scene.body("lid", (DEPTH_M / 2, 0, top + 0.002), parent="laptop")
        # `ref`: the model is drawn shut, where the hinge reads SHUT_RAD.
        scene.hinge(lid, "lid_joint", (0, -1, 0), 0.0, SHUT_RAD, ref=SHUT_RAD, damping=0.15)
        middle = -DEPTH_M / 2
        scene.box(
            lid,
            (DEPTH_M, WIDTH_M, LID_THICKNESS_M),
            (middle, 0, LID_THICKNESS_M / 2),
            mass=0.3,
            rgb=metal,
        )
        screen = {"solid": False, "rgb": (0.15, 0.55, 0.95)}
        scene.box(lid, (DEPTH_M - 0.04, WIDTH_M - 0.03, 0.002), (middle, 0, 0), **screen)

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        world.set_joint("lid_joint", 0.0)
        for _ in range(100):
            point = draw_place(rng, 0.3, 0.4, (0.03, 0.0))
            world.place("laptop", (*point[:2], TABLE_M), yaw=rng.uniform(-np.pi, np.pi))
            world.forward()
            forward = -world.pose("laptop").rotation[:, 0]
            start = world.pose("lid").position - BEHIND_M * forward
            far = np.hypot(*(start[:2] - BASE_POSITION_M[:2]))
            if far < REACH_M and solvable(self, world, variation):
                return

    def succeeded(self, world: World) -> bool:
        return world.joint("lid_joint") > CLOSED_RAD

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        return (
            "close the laptop",
            "fold the laptop shut",
            "push the screen of the laptop down",
            "lower the display onto the keyboard",
            "shut the lid of the notebook computer",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        forward = -seen.poses["laptop"].rotation[:, 0]
        hinge = seen.poses["lid"].position
        return swing_shut(hinge, forward, DEPTH_M, SHUT_RAD - seen.joints["lid_joint"])
