"""The task of a switch on a wall."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.rlbench.scene import TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import TwinTask, Waypoint, draw_place, look_along, solvable
from vla_gym.twins.rlbench.world import Snapshot, World

WALL_M = 0.5
YAW_RAD = np.pi / 3
TURN_RAD = 1.047
PRESSED_RAD = 1.0
PIVOT_M = (-0.024, 0.0, 0.25)
"""The rocker's hinge, in the wall's frame; the wall's front is its -x side."""

ROCKER_M = (0.02, 0.04, 0.05)
LEAN_RAD = np.pi / 4
"""The hand points so far below the horizontal: level, it is beyond the arm's sixth joint."""

UP = np.array([0.0, 0.0, 1.0])


class PressSwitch(TwinTask):
    """A rocker on a wall whose upper half stands out; it is pressed over.

    Geometry: a wall of 0.5 x 0.5 m, here a pane of glass, so that the cameras beyond it see the
    rocker, which is 0.02 x 0.04 x 0.05 m and turns by 1.047 rad about its middle. The wall faces
    the robot, turned by up to 60 degrees. Success: the rocker has turned by more than 1.0 rad.
    """

    bodies = ("wall", "rocker")
    joints = ("rocker_joint",)

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        scene.body("wall", (0.4, 0, TABLE_M))
        frame = {"rgb": (0.25, 0.33, 0.45)}
        half = WALL_M / 2
        scene.box("wall", (0.010, WALL_M, WALL_M), (0.005, 0, half), rgba=(0.75, 0.88, 1.0, 0.28))
        for side in (-1, 1):
            scene.box("wall", (0.02, 0.014, WALL_M), (0.005, side * half, half), **frame)
        for height in (0.007, WALL_M - 0.007):
            scene.box("wall", (0.02, WALL_M, 0.014), (0.005, 0, height), **frame)
        white = {"rgb": (0.95, 0.95, 0.93), "solid": False}
        x, _, z = PIVOT_M
        for side in (-1, 1):
            scene.box("wall", (-x, 0.018, 0.11), (x / 2, side * 0.033, z), **white)
            scene.box("wall", (-x, 0.048, 0.018), (x / 2, 0, z + side * 0.046), **white)
        rocker = scene.body("rocker", PIVOT_M, parent="wall")
        scene.hinge(rocker, "rocker_joint", (0, 1, 0), 0.0, TURN_RAD, damping=0.02)
        half_turn = -TURN_RAD / 4
        tilt = [np.cos(half_turn), 0, np.sin(half_turn), 0]
        scene.box(rocker, ROCKER_M, quat=tilt, mass=0.05, rgb=(0.90, 0.12, 0.10))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        for _ in range(100):
            point = draw_place(rng, 0.25, 0.4, (0.13, 0.0))
            world.place("wall", (*point[:2], TABLE_M), yaw=rng.uniform(-YAW_RAD, YAW_RAD))
            if solvable(self, world, variation):
                return

    def succeeded(self, world: World) -> bool:
        return world.joint("rocker_joint") > PRESSED_RAD

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        return (
            "press the switch on the wall",
            "flip the red switch",
            "toggle the switch with the fingertips",
            "push the red rocker over",
            "operate the wall switch",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        inwards = seen.poses["wall"].rotation[:, 0]
        hand = look_along(np.cos(LEAN_RAD) * inwards - np.sin(LEAN_RAD) * UP, np.cross(UP, inwards))
        upper = seen.poses["rocker"].position + 0.012 * UP
        return [
            Waypoint(upper - 0.10 * inwards + 0.08 * UP, hand, open=False),
            Waypoint(upper - 0.05 * inwards, hand),
            Waypoint(upper + 0.002 * inwards, hand, slow=True, hold=3),
        ]
