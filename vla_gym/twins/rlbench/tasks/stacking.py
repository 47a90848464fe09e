"""Tasks in which blocks are put on blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_gym.suites.rlbench import BASE_POSITION_M
from vla_gym.twins.panda import Pose
from vla_gym.twins.rlbench.scene import COLOURS, TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import TwinTask, Waypoint, above, draw_place, top_grasp
from vla_gym.twins.rlbench.tasks.lift import find_cube_yaw
from vla_gym.twins.rlbench.world import Snapshot, World

BLOCK_M, SMALL_BLOCK_M = 0.05, 0.0375
GREEN = (0.25, 0.78, 0.35)
COUNTS = ("two", "three", "four")

REACH_M = 0.75
"""From the robot's base to the farthest block: the hand can point straight down there."""

FREE_M = 0.16
"""From the mark's middle to the nearest block: the hand needs the room beside what is built."""

PITCH_M = 0.0415
"""Of a pyramid's blocks in a row: gaps of 4 mm."""

CARRY_M, GRASP_M = 0.15, 0.005
"""Height above the table at which blocks travel; of the tip above the middle of a held block."""

SENSOR_M = 0.002
"""Height above the table at which the sensors begin."""


def build_blocks(
    scene: SceneBuilder, names: tuple[str, ...], size: float, mark: tuple[float, float]
) -> None:
    """Add free blocks, and `goal`: a flat green mark on the table, on which they are to stand."""
    for name in names:
        scene.body(name, free=True, graspable=True)
        scene.box(name, (size,) * 3)
    scene.body("goal", (0.3, 0, TABLE_M))
    scene.box("goal", (*mark, 0.002), (0, 0, 0.0005), rgb=GREEN, solid=False)


def place_blocks(
    world: World,
    rng: np.random.Generator,
    names: tuple[str, ...],
    size: float,
    apart: float,
    colour: int,
) -> None:
    """Place the mark near the middle and the blocks around it.

    The first half of the blocks gets the colour asked for, the others one other colour. No two are
    nearer than `apart` [m].
    """
    goal = draw_place(rng, 0.08, 0.12)
    world.place("goal", (*goal[:2], TABLE_M), yaw=rng.uniform(-np.pi, np.pi))
    points = _draw_around(rng, goal, len(names), apart)
    colours = list(COLOURS)
    other = rng.choice([name for i, name in enumerate(colours) if i != colour])
    for index, (name, point) in enumerate(zip(names, points, strict=True)):
        world.place(name, (*point[:2], TABLE_M + size / 2), yaw=rng.uniform(-np.pi, np.pi))
        own = index < len(names) // 2
        world.paint(name, COLOURS[colours[colour] if own else other])


def _draw_around(
    rng: np.random.Generator, goal: NDArray[np.float64], count: int, apart: float
) -> list[NDArray[np.float64]]:
    """Draw points on the table one after the other; start anew where no place is left."""
    base = np.array(BASE_POSITION_M)
    while True:
        points: list[NDArray[np.float64]] = []
        for _ in range(60 * count):
            point = draw_place(rng, 0.45, 0.66)
            gaps = [float(np.linalg.norm(point - each)) for each in points]
            if (
                np.linalg.norm((point - base)[:2]) < REACH_M
                and np.linalg.norm((point - goal)[:2]) > FREE_M
                and min(gaps, default=apart) >= apart
            ):
                points.append(point)
            if len(points) == count:
                return points


def carry(block: Pose, goal: NDArray[np.float64], hand: NDArray[np.float64]) -> list[Waypoint]:
    """Return waypoints that bring a block's middle to `goal`, put down with the hand so turned."""
    grasp = top_grasp(find_cube_yaw(block))
    height = max(TABLE_M + CARRY_M, goal[2] + 0.06)
    over = np.array([*goal[:2], height])
    down = np.array([*goal[:2], goal[2] + GRASP_M + 0.001])
    return [
        Waypoint(above(block, 0.10), grasp, open=True),
        Waypoint(above(block, GRASP_M), grasp, then_open=False),
        Waypoint(np.array([*block.position[:2], height]), grasp),
        Waypoint(over, hand),
        Waypoint(down, hand, slow=True, then_open=True),
        Waypoint(over, hand),
    ]


class StackBlocks(TwinTask):
    """Eight blocks, four of each of two colours, and a green square on the table.

    Geometry: blocks of 0.05 m, a square of 0.075 m. Success: two, three or four blocks of the right
    colour, as asked for, are in a column of 0.01 x 0.01 x 0.2 m over the square; nothing is held.
    """

    bodies = (*(f"block{i}" for i in range(4)), *(f"distractor{i}" for i in range(4)), "goal")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        build_blocks(scene, cls.bodies[:-1], BLOCK_M, (0.075, 0.075))
        scene.sensor("goal", "column", (0.01, 0.01, 0.2), (0, 0, SENSOR_M + 0.1))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        colour, self._count = _read_variation(variation)
        place_blocks(world, rng, self.bodies[:-1], BLOCK_M, 0.10, colour)

    def succeeded(self, world: World) -> bool:
        if world.held is not None:
            return False
        return sum(world.detects("column", name) for name in self.bodies[:4]) >= self._count

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        index, count = _read_variation(variation)
        colour, word = list(COLOURS)[index], COUNTS[count - 2]
        return (
            f"make a tower of {word} {colour} blocks",
            f"pile up {count} {colour} cubes at the marked place",
            f"build a stack from {word} of the {colour} blocks",
            f"stack {word} blocks on the green square, all of them {colour}",
            f"put {count} {colour} blocks on top of each other",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        goal = seen.poses["goal"]
        hand = top_grasp(find_cube_yaw(goal))
        plan = []
        for level in range(_read_variation(seen.variation)[1]):
            height = BLOCK_M * (level + 0.5)
            plan += carry(seen.poses[f"block{level}"], above(goal, height), hand)
        return plan


class BlockPyramid(TwinTask):
    """Twelve blocks, six of each of two colours, and a green strip on the table.

    Geometry: blocks of 0.0375 m, a strip of 0.135 x 0.05 m. Success: three, two and one blocks of
    the right colour are in three boxes over the strip, which begin at the blocks' levels: 0.002,
    0.038 and 0.076 m; nothing is held.
    """

    bodies = (*(f"block{i}" for i in range(6)), *(f"distractor{i}" for i in range(6)), "goal")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        build_blocks(scene, cls.bodies[:-1], SMALL_BLOCK_M, (0.135, 0.05))
        for level, (length, height) in enumerate(((0.10, 0.002), (0.06, 0.038), (0.02, 0.076))):
            middle = height + 0.01
            scene.sensor("goal", f"level{level}", (length, 0.02, 0.02), (0, 0, middle))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        place_blocks(world, rng, self.bodies[:-1], SMALL_BLOCK_M, 0.085, variation)

    def succeeded(self, world: World) -> bool:
        if world.held is not None:
            return False
        return all(
            sum(world.detects(f"level{level}", name) for name in self.bodies[:6]) >= 3 - level
            for level in range(3)
        )

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        colour = list(COLOURS)[variation]
        return (
            f"build a pyramid from the {colour} blocks",
            f"make a pyramid of six {colour} blocks",
            f"put three {colour} blocks in a row, two on top of them and one at the top",
            f"pile the {colour} blocks up to a pyramid",
            f"arrange the {colour} cubes as a small pyramid and leave the others",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        goal = seen.poses["goal"]
        row = goal.rotation[:, 0]
        hand = top_grasp(float(np.arctan2(row[1], row[0])))  # its fingers open across the row
        places = [(0, x) for x in (-PITCH_M, 0.0, PITCH_M)]
        places += [(1, -PITCH_M / 2), (1, PITCH_M / 2), (2, 0.0)]
        plan = []
        for index, (level, along) in enumerate(places):
            point = above(goal, SMALL_BLOCK_M * (level + 0.5)) + along * row
            plan += carry(seen.poses[f"block{index}"], point, hand)
        return plan


def _read_variation(variation: int) -> tuple[int, int]:
    """Return the number of the colour and how many blocks are to be stacked."""
    return variation // len(COUNTS), 2 + variation % len(COUNTS)
