"""Tasks in which something is thrown away."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.rlbench.scene import TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import (
    DOWN,
    TwinTask,
    Waypoint,
    above,
    draw_place,
    on_stage,
    solvable,
)
from vla_gym.twins.rlbench.world import Snapshot, World, yaw_matrix

BIN_M, BIN_HEIGHT_M, WALL_M = 0.2, 0.19, 0.006
BIN_AT_M = (0.087, -0.28)
"""The bin from the middle of the other things."""

PAPER_M, CRUMPLED_M = 0.062, 0.074
"""Of the paper: the ball that collides, and its look with all corners."""

TOMATO_M = 0.06
ROLLING = {"condim": 6, "friction": [1.0, 0.005, 0.002]}
"""What is round comes to rest."""


class PutRubbishInBin(TwinTask):
    """A ball of paper, two tomatoes and a bin; the paper goes into the bin.

    Geometry: a ball of 0.06 to 0.075 m, tomatoes of 0.06 m about it, a bin of 0.2 x 0.2 x 0.19 m,
    0.29 m away. Success: the paper is in a cylinder of radius 0.07 and height 0.06 m at the bin's
    bottom.
    """

    bodies = ("rubbish", "tomato0", "tomato1", "bin")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        cls._build_bin(scene)
        scene.body("rubbish", free=True, graspable=True)
        paper = {"rgb": (0.96, 0.96, 0.94)}
        scene.sphere("rubbish", PAPER_M, mass=0.02, **ROLLING, **paper)
        rng = np.random.default_rng(5)  # the folds: always the same
        edge = CRUMPLED_M / np.sqrt(3.0)
        for shade in (0.96, 0.90, 0.84, 0.93, 0.88):
            turn = rng.normal(size=4)
            turn /= np.linalg.norm(turn)
            scene.box("rubbish", (edge,) * 3, quat=turn, rgb=(shade,) * 3, solid=False)
        for name in ("tomato0", "tomato1"):
            scene.body(name, free=True)
            scene.sphere(name, TOMATO_M, rgb=(0.86, 0.12, 0.08), **ROLLING)
            top = (0, 0, TOMATO_M / 2)
            scene.cylinder(name, 0.02, 0.004, top, rgb=(0.15, 0.45, 0.12), solid=False)

    @classmethod
    def _build_bin(cls, scene: SceneBuilder) -> None:
        scene.body("bin", (0.4, -0.3, TABLE_M))
        grey = {"rgb": (0.30, 0.34, 0.40)}
        scene.box("bin", (BIN_M, BIN_M, WALL_M), (0, 0, WALL_M / 2), **grey)
        middle, side = BIN_HEIGHT_M / 2, (BIN_M - WALL_M) / 2
        for sign in (-1, 1):
            scene.box("bin", (WALL_M, BIN_M, BIN_HEIGHT_M), (sign * side, 0, middle), **grey)
            inside = BIN_M - 2 * WALL_M
            scene.box("bin", (inside, WALL_M, BIN_HEIGHT_M), (0, sign * side, middle), **grey)
        scene.sensor("bin", "success", (0.14, 0.06), (0, 0, 0.03))

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        for _ in range(1000):
            centre, yaw = draw_place(rng, 0.45, 0.7), rng.uniform(-np.pi, np.pi)
            turn = yaw_matrix(yaw)
            shift = rng.uniform(-0.02, 0.02, (3, 3))
            for name, x, shifted in zip(self.bodies, (0.0, -0.12, 0.12), shift, strict=False):
                size = PAPER_M if name == "rubbish" else TOMATO_M
                point = (centre + turn @ (shifted + np.array([x, 0.0, 0.0])))[:2]
                world.place(name, (*point, TABLE_M + size / 2), yaw=rng.uniform(-np.pi, np.pi))
            world.place("bin", (*(centre + turn @ (*BIN_AT_M, 0.0))[:2], TABLE_M), yaw=yaw)
            if on_stage(world, "rubbish", "bin") and solvable(self, world, variation):
                return

    def succeeded(self, world: World) -> bool:
        return world.detects("success", "rubbish")

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        return (
            "put the rubbish in the bin",
            "throw the paper ball in the bin",
            "drop the crumpled paper into the trash can",
            "clear the waste paper away into the bin, leave the tomatoes",
            "pick up the white paper and bin it",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        paper, waste = seen.poses["rubbish"], seen.poses["bin"]
        # Fingers to either side of the row, where no tomato is.
        row = seen.poses["tomato1"].position - seen.poses["tomato0"].position
        across = np.arctan2(row[1], row[0])
        turn = (across + np.pi / 2) % np.pi - np.pi / 2
        hand = yaw_matrix(turn) @ DOWN
        high = BIN_HEIGHT_M + 0.10
        return [
            Waypoint(above(paper, 0.12), hand, open=True),
            Waypoint(above(paper, 0.0), hand, slow=True, then_open=False),
            Waypoint(above(paper, high), hand),
            Waypoint(above(waste, high), hand),
            Waypoint(above(waste, BIN_HEIGHT_M), hand, then_open=True, hold=15),
        ]
