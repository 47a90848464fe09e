"""The task of a microwave oven."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_gym.suites.rlbench import BASE_POSITION_M
from vla_gym.twins.panda import Pose
from vla_gym.twins.rlbench.scene import TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import TwinTask, Waypoint, draw_place, solvable, top_grasp
from vla_gym.twins.rlbench.world import Snapshot, World

DEPTH_M, WIDTH_M, HEIGHT_M = 0.32, 0.57, 0.30
YAW_RAD = np.pi / 8
DOOR_M, DOOR_THICKNESS_M = 0.42, 0.02
START_RAD = 0.74
"""How wide the door stands open: 0.698 in RLBench, which is short of its own rule by a hair."""

CLOSED_TURN_RAD = np.deg2rad(40)
TOP_M = 0.29
"""Height of the door's upper edge."""

REACH_M = 0.70
"""From the robot's base to where it first goes: short of where its arm is stretched and jams."""


def touch(oven: Pose, angle: float, gap: float) -> NDArray[np.float64]:
    """Return a point outside of the door, near its upper free corner, when it is so far open."""
    hinge = np.array([-DEPTH_M / 2, WIDTH_M / 2, TOP_M - 0.028])
    along = np.array([-np.sin(angle), -np.cos(angle), 0.0])
    outwards = np.array([-np.cos(angle), np.sin(angle), 0.0])
    point = hinge + 0.33 * along + (DOOR_THICKNESS_M + gap) * outwards
    return oven.position + oven.rotation @ point


class CloseMicrowave(TwinTask):
    """A microwave oven whose door stands open; it is pushed shut.

    Geometry: 0.57 x 0.32 x 0.30 m; its front faces the robot's left, where the cameras see the
    door, turned by up to pi / 8. Success: the door has turned by more than 40 degrees, and not the
    wrong way.
    """

    bodies = ("microwave", "door")
    joints = ("door_joint",)

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        shell = {"rgb": (0.86, 0.87, 0.88)}
        edge = 0.015
        panel = WIDTH_M - DOOR_M
        scene.body("microwave", (0.4, 0, TABLE_M))
        for height in (edge / 2, HEIGHT_M - edge / 2):
            scene.box("microwave", (DEPTH_M, WIDTH_M, edge), (0, 0, height), **shell)
        # Between the two plates and beside each other: faces that coincide flicker.
        side, beside = (WIDTH_M - edge) / 2, (panel - WIDTH_M) / 2
        inner = (beside + panel / 2 + side - edge / 2) / 2
        tall, middle = HEIGHT_M - 2 * edge, HEIGHT_M / 2
        scene.box("microwave", (DEPTH_M, edge, tall), (0, side, middle), **shell)
        scene.box("microwave", (DEPTH_M, panel, tall), (0, beside, middle), **shell)
        back = (edge, DOOR_M - edge, tall)
        scene.box("microwave", back, ((DEPTH_M - edge) / 2, inner, middle), **shell)
        front = -DEPTH_M / 2
        flat = {"solid": False}
        scene.box(
            "microwave", (0.004, 0.11, 0.05), (front, beside, 0.23), rgb=(0.1, 0.6, 0.3), **flat
        )
        for row in range(3):
            for column in (-1, 0, 1):
                at = (front, beside + 0.036 * column, 0.07 + 0.045 * row)
                scene.box("microwave", (0.004, 0.026, 0.03), at, rgb=(0.3,) * 3, **flat)
        scene.cylinder("microwave", 0.26, 0.008, (0, inner, 0.02), rgb=(0.6, 0.75, 0.85), **flat)
        door = scene.body("door", (front, WIDTH_M / 2, 0), parent="microwave")
        scene.hinge(door, "door_joint", (0, 0, -1), 0.0, np.pi / 2, damping=0.5)
        height = TOP_M - 0.01
        middle = -DOOR_M / 2
        scene.box(
            door,
            (DOOR_THICKNESS_M, DOOR_M, height),
            (-DOOR_THICKNESS_M / 2, middle, 0.01 + height / 2),
            mass=0.8,
            rgb=(0.20, 0.21, 0.24),
        )
        for x in (-DOOR_THICKNESS_M, 0):
            scene.box(
                door,
                (0.003, DOOR_M - 0.12, height - 0.09),
                (x, middle + 0.02, 0.01 + height / 2),
                rgb=(0.35, 0.45, 0.55),
                **flat,
            )
        metal = {"rgb": (0.9, 0.9, 0.92), "mass": 0.02}
        bar, at = -DOOR_THICKNESS_M - 0.03, -DOOR_M + 0.03
        scene.capsule(door, 0.014, (bar, at, 0.06), (bar, at, 0.21), **metal)
        for z in (0.06, 0.21):
            scene.capsule(door, 0.010, (0, at, z), (bar, at, z), **metal)

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        world.set_joint("door_joint", START_RAD)
        for _ in range(100):
            point = draw_place(rng, 0.1, 0.16, (-0.02, -0.17))
            turn = -np.pi / 2 + rng.uniform(-YAW_RAD, YAW_RAD)
            world.place("microwave", (*point[:2], TABLE_M), yaw=turn)
            world.forward()
            far = touch(world.pose("microwave"), START_RAD, 0.07)[:2] - BASE_POSITION_M[:2]
            if np.hypot(*far) < REACH_M and solvable(self, world, variation):
                return

    def succeeded(self, world: World) -> bool:
        return START_RAD - world.joint("door_joint") > CLOSED_TURN_RAD

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        return (
            "close the microwave",
            "push the door of the microwave shut",
            "swing the microwave oven closed",
            "the microwave stands open; close it",
            "shut the microwave oven",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        oven, start = seen.poses["microwave"], seen.joints["door_joint"]
        outwards = oven.rotation @ np.array([-np.cos(start / 2), np.sin(start / 2), 0.0])
        hand = top_grasp(float(np.arctan2(outwards[1], outwards[0])))
        up = np.array([0.0, 0.0, 1.0])
        return [
            Waypoint(touch(oven, start, 0.07) + 0.1 * up, hand, open=False),
            Waypoint(touch(oven, start, 0.06), hand),
            *(Waypoint(touch(oven, part * start, 0.006), hand) for part in (0.75, 0.5, 0.25)),
            Waypoint(touch(oven, 0.0, 0.0), hand, slow=True, hold=5),
        ]
