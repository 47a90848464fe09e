"""Tasks of the bare hand: bring the tip somewhere."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.rlbench.scene import COLOURS, TASK_CENTRE_M, SceneBuilder
from vla_gym.twins.rlbench.task import DOWN, TwinTask, Waypoint
from vla_gym.twins.rlbench.world import Snapshot, World


class ReachTarget(TwinTask):
    """Three spheres hang in the air; the tip goes to the one of the right colour.

    Geometry: spheres of 0.05 m in a box of 0.5 x 0.7 x 0.5 m about 0.25 m above the table, at least
    0.2 m apart. Success: the tip is within a cylinder of radius 0.05 m and height 0.08 m about it.
    """

    bodies = ("target", "distractor0", "distractor1")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        for name in cls.bodies:
            scene.body(name, (0.3, 0, 1.0))
            scene.sphere(name, 0.05, solid=False)
        scene.sensor("target", "success", (0.10, 0.08), (0, 0, 0))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        centre = np.array(TASK_CENTRE_M) + np.array([0.0, 0.0, 0.25])
        while True:
            points = centre + rng.uniform(-0.5, 0.5, (3, 3)) * (0.5, 0.7, 0.5)
            gaps = [np.linalg.norm(points[i] - points[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
            if min(gaps) >= 0.2:
                break
        names = list(COLOURS)
        others = rng.permutation([n for i, n in enumerate(names) if i != variation])[:2]
        for body, point, colour in zip(
            self.bodies, points, (names[variation], *others), strict=True
        ):
            world.place(body, point)
            world.paint(body, COLOURS[colour])

    def succeeded(self, world: World) -> bool:
        return world.detects_tip("success")

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        colour = list(COLOURS)[variation]
        return (
            f"reach the {colour} target",
            f"touch the {colour} ball with the gripper",
            f"move the hand to the {colour} sphere",
            f"go to the ball that is {colour}",
            f"bring the fingertips to the {colour} target",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        return [Waypoint(seen.poses["target"].position, DOWN)]
