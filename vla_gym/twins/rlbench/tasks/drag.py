"""Tasks in which one object is moved with another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_gym.twins.rlbench.scene import (
    BASE_POSITION_M,
    COLOURS,
    TABLE_M,
    TASK_CENTRE_M,
    SceneBuilder,
)
from vla_gym.twins.rlbench.task import TwinTask, Waypoint, draw_place, on_stage, solvable, top_grasp
from vla_gym.twins.rlbench.world import Snapshot, World, yaw_matrix

CUBE_M, PLANE_M = 0.08, 0.13
WAY_M = 0.20
"""From the cube to the middle of each of the four targets about it."""

STICK_M, THICK_M = 0.36, 0.0128
GRIP_M = 0.15
"""From the stick's middle to where the hand takes it."""

TOUCH_M = 0.26
"""From the hand to where the stick touches the cube."""

LOW_M, HIGH_M = 0.03, 0.16
"""Height of the stick above the table while it drags, and while it is carried."""


class ReachAndDrag(TwinTask):
    """A cube between four coloured targets and a stick; the cube is dragged to the right target.

    Geometry: cube of 0.08 m, targets of 0.13 x 0.13 m, 0.2 m from it, a stick of 0.36 m that lies
    apart from them. Success: the cube reaches into a box of 0.1 x 0.1 x 0.01 m at the target.
    """

    bodies = ("cube", "stick", "target", "distractor0", "distractor1", "distractor2")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        for name in cls.bodies[2:]:
            scene.body(name, (0.4, 0, TABLE_M))
            scene.box(name, (PLANE_M, PLANE_M, 0.002), (0, 0, 0.001), solid=False)
        scene.sensor("target", "success", (0.1, 0.1, 0.01), (0, 0, 0.005))
        scene.body("cube", free=True)
        scene.box("cube", (CUBE_M,) * 3, rgb=(0.55, 0.36, 0.22))
        scene.body("stick", free=True, graspable=True)
        scene.box("stick", (STICK_M, THICK_M, THICK_M), rgb=(0.15, 0.15, 0.17), mass=0.06)

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        names = list(COLOURS)
        others = rng.permutation([n for i, n in enumerate(names) if i != variation])[:3]
        for body, colour in zip(self.bodies[2:], (names[variation], *others), strict=True):
            world.paint(body, COLOURS[colour])
        for _ in range(1000):
            centre, yaw = draw_place(rng, 0.4, 0.5, (0.05, 0.0)), rng.uniform(-np.pi, np.pi)
            turn = yaw_matrix(yaw)
            stick, lies = draw_place(rng, 0.55, 0.8), rng.uniform(-np.pi, np.pi)
            line = stick + np.outer(np.linspace(-0.5, 0.5, 9), yaw_matrix(lies)[:, 0]) * STICK_M
            local = np.abs((line - centre) @ turn)[:, :2]
            if (local.max(axis=1) < WAY_M + 0.1).any() and (local.min(axis=1) < 0.1).any():
                continue
            world.place("cube", (*centre[:2], TABLE_M + CUBE_M / 2), yaw=yaw)
            world.place("stick", (*stick[:2], TABLE_M + THICK_M / 2), yaw=lies)
            for body, side in zip(self.bodies[2:], rng.permutation(4), strict=True):
                out = yaw_matrix(yaw + side * np.pi / 2)[:, 0]
                world.place(body, (*(centre + WAY_M * out)[:2], TABLE_M), yaw=yaw)
            if on_stage(world, *self.bodies) and solvable(self, world, variation):
                return

    def succeeded(self, world: World) -> bool:
        return world.detects("success", "cube")

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        colour = list(COLOURS)[variation]
        return (
            f"drag the cube to the {colour} target with the stick",
            f"use the stick to move the cube onto the {colour} square",
            f"take the stick and pull the block to the {colour} patch",
            f"with the stick, bring the cube to the target that is {colour}",
            f"grasp the stick and push the cube onto the {colour} target",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        cube, stick = seen.poses["cube"], seen.poses["stick"]
        way = (seen.poses["target"].position - cube.position) * (1, 1, 0)
        way /= np.linalg.norm(way)
        behind = cube.position - (CUBE_M / 2 + THICK_M / 2 + 0.02) * way
        # The hand is beside the cube, on the side where the arm is more at ease.
        beside = np.array([-way[1], way[0], 0.0])
        side = min((beside, -beside), key=lambda s: _strain(behind + TOUCH_M * s + 0.1 * way))
        # It takes the end of the stick from which it turns less until the stick points to the cube.
        along = stick.rotation[:, 0] * (1, 1, 0)
        grasp = top_grasp(float(np.arctan2(along[1], along[0])))
        turns = [_angle(sign * along, -side) for sign in (1, -1)]
        now = _angle(np.array([-1.0, 0.0, 0.0]), grasp[:, 0])
        sign, turn = min(zip((1, -1), turns, strict=True), key=lambda pair: abs(now + pair[1]))
        end = stick.position - sign * GRIP_M * along
        hand = yaw_matrix(turn) @ grasp
        start = behind + TOUCH_M * side
        start[2] = TABLE_M
        up = np.array([0.0, 0.0, 1.0])
        return [
            Waypoint(end + 0.10 * up, grasp, open=True),
            Waypoint(end, grasp, slow=True, then_open=False),
            Waypoint(end + HIGH_M * up, grasp),
            Waypoint(start + HIGH_M * up, hand),
            Waypoint(start + LOW_M * up, hand),
            Waypoint(start + LOW_M * up + (WAY_M + 0.02) * way, hand, slow=True),
        ]


def _strain(point: NDArray[np.float64]) -> float:
    """Return how far a point of the table is from where the arm reaches best [m]."""
    reach = float(np.hypot(*(point[:2] - BASE_POSITION_M[:2])))
    return abs(reach - (TASK_CENTRE_M[0] - BASE_POSITION_M[0]))


def _angle(start: NDArray[np.float64], end: NDArray[np.float64]) -> float:
    """Return the turn about z from one direction to another [rad], within +-pi."""
    cross = start[0] * end[1] - start[1] * end[0]
    return float(np.arctan2(cross, start[:2] @ end[:2]))
