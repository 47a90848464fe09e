"""Tasks in which an object is pushed over the table."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.rlbench.scene import TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import TwinTask, Waypoint, draw_place, on_stage, solvable, top_grasp
from vla_gym.twins.rlbench.world import Snapshot, World, yaw_matrix

BLOCK_M = 0.0563
WAY_M = 0.175
"""From the block to the target, both centres."""

FINGER_M = 0.0085
"""From the tip to the flat side of a closed finger."""


class SlideBlockToTarget(TwinTask):
    """A block and a square on the table; the block is pushed onto the square.

    Geometry: a cube of 0.0563 m, a square of 0.1 m, 0.175 m away along one of the cube's sides.
    Success: the cube reaches into a box of 0.01 m at the middle of the square.
    """

    bodies = ("block", "target")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        scene.body("target", (0.4, 0, TABLE_M))
        scene.box("target", (0.1, 0.1, 0.002), (0, 0, 0.001), rgb=(0.10, 0.65, 0.20), solid=False)
        scene.sensor("target", "success", (0.01,) * 3, (0, 0, 0.005))
        scene.body("block", free=True)
        scene.box("block", (BLOCK_M,) * 3, rgb=(0.85, 0.10, 0.10))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        for _ in range(1000):
            yaw = rng.uniform(-np.pi, np.pi)
            start = draw_place(rng, 0.45, 0.7)
            end = start + yaw_matrix(yaw) @ np.array([WAY_M, 0.0, 0.0])
            world.place("block", (*start[:2], TABLE_M + BLOCK_M / 2), yaw=yaw)
            world.place("target", (*end[:2], TABLE_M), yaw=yaw)
            if on_stage(world, "block", "target") and solvable(self, world, variation):
                return

    def succeeded(self, world: World) -> bool:
        return world.detects("success", "block")

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        return (
            "slide the block to the target",
            "push the red block onto the green square",
            "move the cube over the table to the square",
            "shove the block until it is on the target",
            "push the red cube to the green patch",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        block, target = seen.poses["block"], seen.poses["target"]
        way = (target.position - block.position) * (1, 1, 0)
        way /= np.linalg.norm(way)
        hand = top_grasp(float(np.arctan2(way[1], way[0])))
        low = np.array([0.0, 0.0, 0.018 + TABLE_M])
        behind = block.position * (1, 1, 0) - (BLOCK_M / 2 + FINGER_M + 0.03) * way + low
        end = target.position * (1, 1, 0) - (BLOCK_M / 2 + FINGER_M) * way + low
        return [
            Waypoint(behind + np.array([0.0, 0.0, 0.12]), hand, open=False),
            Waypoint(behind, hand),
            Waypoint(end, hand, slow=True),
        ]
