"""Tasks in which something is put over a peg."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.rlbench.scene import COLOURS, TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import (
    TwinTask,
    Waypoint,
    above,
    draw_place,
    on_stage,
    solvable,
    top_grasp,
)
from vla_gym.twins.rlbench.world import Snapshot, World, yaw_matrix

BASE_M = (0.4, 0.1, 0.02)
PEG_M, PEG_HEIGHT_M = 0.025, 0.12
PEGS_AT_M = (-0.125, 0.0, 0.125)
RING_M, BAR_M = 0.06, 0.01
"""Outer edge of the ring, and how thick its bars are."""

SIDES = ("success0", "success1", "success2", "success3")

CLEAR_M = 0.13
"""From the ring to the nearest side of the base: the open hand comes down there."""


class InsertOntoSquarePeg(TwinTask):
    """Three square pegs on a base and a square ring; the ring goes over the right colour's peg.

    Geometry: base 0.4 x 0.1 x 0.02 m, pegs of 0.025 x 0.025 x 0.12 m at -0.125, 0 and 0.125 m, a
    ring of four bars 0.01 m thick, 0.04 m wide inside. Success: the ring reaches into all four
    boxes of 0.04 x 0.01 x 0.05 m about the peg's foot.
    """

    bodies = ("base", "ring", "peg", "distractor0", "distractor1")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        scene.body("base", (0.4, 0, TABLE_M))
        scene.box("base", BASE_M, (0, 0, BASE_M[2] / 2), rgb=(0.62, 0.45, 0.28))
        for name, x in zip(cls.bodies[2:], PEGS_AT_M, strict=True):
            scene.body(name, (x, 0, BASE_M[2]), parent="base")
            scene.box(name, (PEG_M, PEG_M, PEG_HEIGHT_M), (0, 0, PEG_HEIGHT_M / 2))
        for side, turn in zip(SIDES, np.pi / 2 * np.arange(4), strict=True):
            at = 0.025 * np.array([np.cos(turn), np.sin(turn), 1.0])
            quat = [np.cos(turn / 2), 0, 0, np.sin(turn / 2)]
            scene.sensor("peg", side, (0.01, 0.04, 0.05), at, quat=quat)
        scene.body("ring", free=True, graspable=True)
        middle = (RING_M - BAR_M) / 2
        bars = {"rgb": (0.25, 0.27, 0.30), "mass": 0.01}
        for sign in (-1, 1):
            scene.box("ring", (RING_M, BAR_M, BAR_M), (0, sign * middle, 0), **bars)
            inside = RING_M - 2 * BAR_M
            scene.box("ring", (BAR_M, inside, BAR_M), (sign * middle, 0, 0), **bars)

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        names = list(COLOURS)
        others = rng.permutation([n for i, n in enumerate(names) if i != variation])[:2]
        places = rng.permutation(PEGS_AT_M)
        for peg, x, colour in zip(
            self.bodies[2:], places, (names[variation], *others), strict=True
        ):
            world.place(peg, (x, 0.0, BASE_M[2]))
            world.paint(peg, COLOURS[colour])
        while True:
            centre, yaw = draw_place(rng, 0.45, 0.7), rng.uniform(-np.pi, np.pi)
            ring = draw_place(rng, 0.5, 0.7)
            local = yaw_matrix(yaw).T @ (ring - centre)
            outside = np.maximum(np.abs(local[:2]) - np.array(BASE_M[:2]) / 2, 0.0)
            if np.linalg.norm(outside) < CLEAR_M:
                continue
            world.place("base", (*centre[:2], TABLE_M), yaw=yaw)
            turned = rng.uniform(-np.pi, np.pi)
            world.place("ring", (*ring[:2], TABLE_M + BAR_M / 2), yaw=turned)
            if on_stage(world, *self.bodies) and solvable(self, world, variation):
                return

    def succeeded(self, world: World) -> bool:
        return all(world.detects(side, "ring") for side in SIDES)

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        colour = list(COLOURS)[variation]
        return (
            f"put the ring on the {colour} peg",
            f"place the square ring over the {colour} peg",
            f"slip the ring onto the {colour} post",
            f"drop the ring around the peg that is {colour}",
            f"fit the dark ring on the {colour} spoke",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        ring, peg = seen.poses["ring"], seen.poses["peg"]
        quarter = np.pi / 2
        # A square's four sides are the same: take the ring, and put it down, with little turning.
        take = (_yaw(ring.rotation) + quarter / 2) % quarter - quarter / 2
        turn = (_yaw(peg.rotation) - take + quarter / 2) % quarter - quarter / 2
        grasp, put = top_grasp(take), yaw_matrix(turn) @ top_grasp(take)
        return [
            Waypoint(above(ring, 0.10), grasp, open=True),
            Waypoint(above(ring, 0.0), grasp, slow=True, then_open=False),
            Waypoint(above(ring, PEG_HEIGHT_M + 0.10), grasp),
            Waypoint(above(peg, PEG_HEIGHT_M + 0.07), put),
            Waypoint(above(peg, PEG_HEIGHT_M - 0.02), put, slow=True, then_open=True, hold=10),
            Waypoint(above(peg, PEG_HEIGHT_M + 0.07), put),
        ]


def _yaw(rotation: np.ndarray) -> float:
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))
