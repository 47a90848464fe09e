"""Tasks in which one object is taken and held up."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.panda import Pose
from vla_gym.twins.rlbench.scene import COLOURS, TABLE_M, TASK_CENTRE_M, SceneBuilder
from vla_gym.twins.rlbench.task import TwinTask, Waypoint, above, draw_apart, draw_place, top_grasp
from vla_gym.twins.rlbench.world import Snapshot, World

CUBE_M = 0.05

NUMBERS = ("one", "two", "three")
PIPS_M = (
    (0.024, ((0.0, 0.0),)),
    (0.018, ((-0.0135, -0.0135), (0.0135, 0.0135))),
    (0.0135, ((-0.0175, -0.0175), (0.0, 0.0), (0.0175, 0.0175))),
)
"""Of each number: the diameter of its pips and where they are on a face, as on a die."""


def find_cube_yaw(cube: Pose) -> float:
    """Return the turn about z of an upright cube, of its four equal ones the nearest to 0 [rad]."""
    yaw = float(np.arctan2(cube.rotation[1, 0], cube.rotation[0, 0]))
    return (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4


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
        hand = top_grasp(find_cube_yaw(cube))
        return [
            Waypoint(above(cube, 0.10), hand, open=True),
            Waypoint(above(cube, 0.005), hand, then_open=False),
            Waypoint(above(cube, 0.15), hand),
            Waypoint(goal.position, hand),
        ]


class LiftNumberedBlock(TwinTask):
    """Three white cubes with 1, 2 and 3 pips on each face, as on dice; the right one goes up.

    Geometry: cubes of 0.05 m in a plane of 0.43 x 0.565 m, at least 0.2 m apart. Success: the cube
    is held and inside a box of 0.05 x 0.05 x 0.1 m that begins 0.198 m above where it stood.
    """

    bodies = ("block1", "block2", "block3")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        for body, (diameter, places) in zip(cls.bodies, PIPS_M, strict=True):
            scene.body(body, free=True, graspable=True)
            scene.box(body, (CUBE_M,) * 3, rgb=(0.95, 0.95, 0.92))
            for normal in ((0, 0, 1), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)):
                _add_pips(scene, body, np.array(normal, dtype=np.float64), diameter, places)
        scene.body("goal")
        scene.sensor("goal", "success", (0.05, 0.05, 0.1), (0, 0, 0.05))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        self._block = self.bodies[variation]
        points = draw_apart(rng, 3, 0.43, 0.565, 0.2)
        for body, point in zip(self.bodies, points, strict=True):
            world.place(body, (*point[:2], TABLE_M + CUBE_M / 2), yaw=rng.uniform(-np.pi, np.pi))
        world.place("goal", (*points[variation][:2], TASK_CENTRE_M[2] + 0.198))

    def succeeded(self, world: World) -> bool:
        return world.held == self._block and world.detects("success", self._block)

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        digit, word = variation + 1, NUMBERS[variation]
        return (
            f"lift block number {digit}",
            f"raise the cube that carries the number {word}",
            f"take block {digit} and hold it up",
            f"grasp the block showing a {digit} and lift it off the table",
            f"the block labelled {word} is to go up",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        cube = seen.poses[cls.bodies[seen.variation]]
        hand = top_grasp(find_cube_yaw(cube))
        return [
            Waypoint(above(cube, 0.10), hand, open=True),
            Waypoint(above(cube, 0.005), hand, then_open=False),
            Waypoint(above(cube, 0.23), hand),
        ]


def _add_pips(
    scene: SceneBuilder,
    body: str,
    normal: np.ndarray,
    diameter: float,
    places: tuple[tuple[float, float], ...],
) -> None:
    """Add flat cylinders on the face of a cube that looks along `normal`."""
    side = np.roll(normal, 1)
    other = np.cross(normal, side)
    upright = abs(normal[2]) > 0.5
    turn = np.array([0.0, -normal[1], normal[0], 0.0])  # half of that from z to the normal
    for u, v in places:
        scene.cylinder(
            body,
            diameter,
            0.001,
            CUBE_M / 2 * normal + u * side + v * other,
            quat=(1, 0, 0, 0) if upright else (np.array([1.0, 0, 0, 0]) + turn) / np.sqrt(2),
            rgb=(0.05, 0.05, 0.05),
            solid=False,
        )
