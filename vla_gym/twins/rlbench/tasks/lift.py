"""Tasks in which one object is taken and held up."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.rlbench.scene import COLOURS, TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import TwinTask, Waypoint, above, draw_apart, draw_place, top_grasp
from vla_gym.twins.rlbench.world import Snapshot, World

CUBE_M = 0.05


class PickAndLift(TwinTask):
    """Three cubes on the table, a ball in the air; the right cube goes up to the ball.

    Geometry: cubes of 0.05 m in a plane of 0.43 x 0.565 m; a ball of 0.08 m at 0.23 m. Success: the
    cube is held and inside a cone about the ball, here a cylinder of that height, 0.05 m wide.
    """

    bodies = ("cube", "distractor0", "distractor1", "goal")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        for name in cls.bodies[:3]:
            scene.body(name, free=True, graspable=name == "cube")
            scene.box(name, (CUBE_M,) * 3)
        scene.body("goal")
        scene.sphere("goal", 0.08, rgba=(0.9, 0.1, 0.1, 0.5), solid=False)
        scene.sensor("goal", "success", (0.05, 0.05), (0, 0, -0.007))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        names = list(COLOURS)
        others = rng.permutation([n for i, n in enumerate(names) if i != variation])[:2]
        points = draw_apart(rng, 3, 0.43, 0.565, 0.1)
        for body, point, colour in zip(
            self.bodies, points, (names[variation], *others), strict=False
        ):
            world.place(body, (*point[:2], TABLE_M + CUBE_M / 2), yaw=rng.uniform(-np.pi, np.pi))
            world.paint(body, COLOURS[colour])
        goal = draw_place(rng, 0.3, 0.4)
        world.place("goal", (*goal[:2], goal[2] + 0.23))

    def succeeded(self, world: World) -> bool:
        return world.held == "cube" and world.detects("success", "cube")

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        colour = list(COLOURS)[variation]
        return (
            f"pick up the {colour} block and lift it to the target",
            f"grasp the {colour} cube and raise it to the red ball",
            f"take the {colour} block up to the floating target",
            f"lift the cube that is {colour} into the target",
            f"bring the {colour} block to the ball in the air",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        cube, goal = seen.poses["cube"], seen.poses["goal"]
        yaw = float(np.arctan2(cube.rotation[1, 0], cube.rotation[0, 0]))
        yaw = (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4  # a cube's four sides are the same
        hand = top_grasp(yaw)
        return [
            Waypoint(above(cube, 0.10), hand, open=True),
            Waypoint(above(cube, 0.005), hand, then_open=False),
            Waypoint(above(cube, 0.15), hand),
            Waypoint(goal.position, hand),
        ]
