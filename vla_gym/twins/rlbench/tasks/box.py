"""Tasks at a box with a hinged lid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_gym.twins.rlbench.scene import TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import (
    TwinTask,
    Waypoint,
    draw_place,
    look_along,
    solvable,
    top_grasp,
)
from vla_gym.twins.rlbench.world import Snapshot, World

DEPTH_M, WIDTH_M, HEIGHT_M = 0.25, 0.35, 0.15
LID_M, LID_THICKNESS_M = 0.268, 0.010
SHUT_RAD, WIDE_RAD = -0.253, 2.365
"""The lid's hinge where the box is shut, and 150 degrees wider."""

CLOSED_TURN_RAD, OPENED_TURN_RAD = 2.6, np.pi / 2
YAW_RAD = np.pi / 8
LEAN_RAD = np.deg2rad(68)
"""Of the hand below the horizontal where it lifts the lid; flatter, the arm's sixth joint ends."""

UP = np.array([0.0, 0.0, 1.0])


def build_box(scene: SceneBuilder) -> None:
    """Add an open box and its lid, whose hinge is at the box's own +x side."""
    card, edge = {"rgb": (0.16, 0.36, 0.62)}, 0.01
    scene.body("box", (0.4, 0, TABLE_M))
    scene.box("box", (DEPTH_M, WIDTH_M, edge), (0, 0, edge / 2), rgb=(0.10, 0.22, 0.40))
    for side in (-1, 1):
        x, y = side * (DEPTH_M - edge) / 2, side * (WIDTH_M - edge) / 2
        scene.box("box", (edge, WIDTH_M, HEIGHT_M), (x, 0, HEIGHT_M / 2), **card)
        scene.box("box", (DEPTH_M, edge, HEIGHT_M), (0, y, HEIGHT_M / 2), **card)
    lid = scene.body("lid", (DEPTH_M / 2, 0, HEIGHT_M + 0.001), parent="box")
    # `ref`: the model is drawn shut, where the hinge reads SHUT_RAD.
    scene.hinge(lid, "lid_joint", (0, 1, 0), SHUT_RAD, WIDE_RAD, ref=SHUT_RAD, damping=0.2)
    scene.box(
        lid,
        (LID_M, WIDTH_M, LID_THICKNESS_M),
        (-LID_M / 2, 0, LID_THICKNESS_M / 2),
        mass=0.3,
        rgb=(0.95, 0.55, 0.12),
    )


def draw_box(
    task: TwinTask, world: World, rng: np.random.Generator, variation: int, yaw: float
) -> None:
    """Place the box, turned by about `yaw`, where the arm can do the task."""
    for _ in range(100):
        point = draw_place(rng, 0.09, 0.3, (0.125, 0.0))
        turn = yaw + rng.uniform(-YAW_RAD, YAW_RAD)
        world.place("box", (*point[:2], TABLE_M), yaw=turn)
        if solvable(task, world, variation):
            return


def swing_shut(
    hinge: NDArray[np.float64], forward: NDArray[np.float64], length: float, start: float
) -> list[Waypoint]:
    """Return waypoints that push a lid over from behind until it lies shut.

    The hand points down. As long as the lid leans back it pushes at the lid's edge, then follows
    its back on an arc.

    Args:
        hinge: middle of the hinge [m].
        forward: level unit vector from the hinge to where the lid's edge comes to lie.
        length: of the lid, from hinge to edge [m].
        start: angle between the lid now and the lid when shut [rad].
    """
    gap, dip = 0.012, 0.035  # outside of the lid's back; below its edge

    def touch(angle: float) -> NDArray[np.float64]:
        along = np.cos(angle) * forward + np.sin(angle) * UP
        if angle > np.pi / 2:
            return hinge + length * along - gap * forward - dip * UP
        back = np.cos(angle) * UP - np.sin(angle) * forward
        return hinge + (length - dip) * along + gap * back

    hand = top_grasp(float(np.arctan2(forward[1], forward[0])))
    behind = touch(start) - 0.04 * forward
    angles = np.linspace(start, -0.06, int(np.ceil(start / 0.3)) + 1)
    return [
        Waypoint(behind + 0.12 * UP, hand, open=False),
        Waypoint(behind, hand),
        *(Waypoint(touch(float(angle)), hand) for angle in angles[:-1]),
        Waypoint(touch(float(angles[-1])), hand, slow=True, hold=10),
    ]


class CloseBox(TwinTask):
    """A box whose lid leans far back, towards the robot; it is pushed over until it is shut.

    Geometry: box 0.25 x 0.35 x 0.15 m, lid 0.268 x 0.35 x 0.01 m, hinge of 2.618 rad. Success: the
    lid has turned by more than 2.6 rad.
    """

    bodies = ("box", "lid")
    joints = ("lid_joint",)

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        build_box(scene)

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        world.set_joint("lid_joint", WIDE_RAD)
        draw_box(self, world, rng, variation, np.pi)

    def succeeded(self, world: World) -> bool:
        return WIDE_RAD - world.joint("lid_joint") > CLOSED_TURN_RAD

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        return (
            "close the box",
            "swing the orange lid over and shut the box",
            "fold the lid down onto the box",
            "push the lid until the box is closed",
            "shut the open box",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        forward = -seen.poses["box"].rotation[:, 0]
        hinge = seen.poses["lid"].position
        return swing_shut(hinge, forward, LID_M, seen.joints["lid_joint"] - SHUT_RAD)


class OpenBox(TwinTask):
    """The same box, shut, with the lid's hinge away from the robot. Its edge is lifted.

    Success: the lid has turned by more than pi / 2.
    """

    bodies = ("box", "lid")
    joints = ("lid_joint",)

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        build_box(scene)

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        world.set_joint("lid_joint", SHUT_RAD)
        draw_box(self, world, rng, variation, 0.0)

    def succeeded(self, world: World) -> bool:
        return world.joint("lid_joint") - SHUT_RAD > OPENED_TURN_RAD

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        return (
            "open the box",
            "lift the orange lid off the blue box",
            "fold the lid back so that the box is open",
            "raise the lid of the closed box",
            "swing the lid of the box up",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        away, hinge = seen.poses["box"].rotation[:, 0], seen.poses["lid"].position
        along = np.cos(LEAN_RAD) * away - np.sin(LEAN_RAD) * UP
        across = np.sin(LEAN_RAD) * away + np.cos(LEAN_RAD) * UP
        hand = look_along(along, np.cross(UP, away))

        def touch(angle: float) -> NDArray[np.float64]:
            """The lid's edge lies on the fingers; once it is steeper than they, they push it."""
            out = np.sin(angle) * UP - np.cos(angle) * away
            if angle < LEAN_RAD:
                return hinge + LID_M * out - 0.0085 * across + 0.012 * along
            return hinge + (LID_M - 0.02) * out + 0.002 * away

        start = touch(0.0)
        angles = np.linspace(0.0, OPENED_TURN_RAD + 0.15, 8)[1:]
        return [
            Waypoint(start - 0.07 * away + 0.15 * UP, hand, open=False),
            Waypoint(start - 0.06 * away - 0.01 * UP, hand),
            Waypoint(start, hand, slow=True),
            *(Waypoint(touch(float(angle)), hand) for angle in angles),
        ]
