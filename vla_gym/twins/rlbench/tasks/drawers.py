"""Tasks at the chest of three drawers."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.rlbench.scene import TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import TwinTask, Waypoint, choose_roll, draw_place, look_along
from vla_gym.twins.rlbench.world import Snapshot, World

LEVELS = ("bottom", "middle", "top")
HEIGHTS_M = (0.123, 0.243, 0.363)
WIDTH_M, DEPTH_M, TRAVEL_M = 0.375, 0.375, 0.30
HANDLE_M = 0.045
"""From a drawer's front to the middle of its handle's bar."""


def build_chest(scene: SceneBuilder) -> None:
    """Add the chest as the body `chest`; its drawers open along its own -x, towards the robot."""
    wood = {"rgb": (0.55, 0.36, 0.22)}
    scene.body("chest", (0.5, 0, TABLE_M))
    height = 0.48
    half = WIDTH_M / 2
    for side in (-1, 1):
        scene.box("chest", (DEPTH_M, 0.015, height), (0, side * half, height / 2), **wood)
    scene.box("chest", (0.015, WIDTH_M, height), (DEPTH_M / 2, 0, height / 2), **wood)
    for level in (0.03, height):
        scene.box("chest", (DEPTH_M, WIDTH_M, 0.015), (0, 0, level), **wood)
    light = {"rgb": (0.80, 0.62, 0.42)}
    for name, at in zip(LEVELS, HEIGHTS_M, strict=True):
        body = scene.body(f"{name}_drawer", (0, 0, at), parent="chest")
        scene.slide(body, f"{name}_joint", (-1, 0, 0), 0.0, TRAVEL_M, damping=6.0, frictionloss=0.5)
        width, depth = WIDTH_M - 0.03, DEPTH_M - 0.03
        front = -DEPTH_M / 2
        scene.box(body, (0.015, WIDTH_M, 0.108), (front, 0, 0), mass=0.2, **light)
        scene.box(body, (depth, width, 0.008), (0, 0, -0.045), mass=0.2, **light)
        for side in (-1, 1):
            at_side = (0, side * width / 2, -0.015)
            scene.box(body, (depth, 0.008, 0.06), at_side, mass=0.05, **light)
        scene.box(body, (0.008, width, 0.06), (depth / 2, 0, -0.015), mass=0.05, **light)
        metal = {"rgb": (0.75, 0.75, 0.78), "mass": 0.02}
        for side in (-1, 1):
            start = (front, side * 0.045, 0)
            scene.capsule(body, 0.010, start, (front - HANDLE_M, side * 0.045, 0), **metal)
        bar = front - HANDLE_M
        scene.capsule(body, 0.012, (bar, -0.045, 0), (bar, 0.045, 0), **metal)


class OpenDrawer(TwinTask):
    """The chest, all drawers shut. Success: the right one is more than 0.15 m open."""

    bodies = ("chest", "bottom_drawer", "middle_drawer", "top_drawer")
    joints = ("bottom_joint", "middle_joint", "top_joint")
    yaw = np.pi / 8

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        build_chest(scene)

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        self._level = LEVELS[variation]
        point = draw_place(rng, 0.06, 0.3, (0.27, 0.0))
        world.place("chest", (*point[:2], TABLE_M), yaw=rng.uniform(-np.pi / 8, np.pi / 8))

    def succeeded(self, world: World) -> bool:
        return world.joint(f"{self._level}_joint") > 0.15

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        level = LEVELS[variation]
        return (
            f"open the {level} drawer",
            f"pull the {level} drawer out",
            f"slide the {level} drawer open",
            f"take the {level} handle and pull",
            f"open the drawer at the {level}",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        drawer = seen.poses[f"{LEVELS[seen.variation]}_drawer"]
        outwards = -drawer.rotation[:, 0]
        handle = drawer.position + (DEPTH_M / 2 + HANDLE_M) * outwards
        hand = choose_roll(handle, look_along(-outwards, np.array([0.0, 0.0, 1.0])))
        return [
            Waypoint(handle + 0.12 * outwards, hand, open=True),
            Waypoint(handle - 0.012 * outwards, hand, then_open=False, hold=2),
            Waypoint(handle + 0.20 * outwards, hand, slow=True),
        ]
