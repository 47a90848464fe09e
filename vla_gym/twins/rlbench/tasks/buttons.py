"""Tasks in which something is pressed."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.rlbench.scene import COLOURS, TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import DOWN, TwinTask, Waypoint, above, draw_place
from vla_gym.twins.rlbench.world import Snapshot, World

BUTTON_COLOURS = tuple(name for name in COLOURS if name not in ("red", "lime"))
"""RLBench's buttons have 18 of the 20 colours."""

PRESSED_M = 0.003


def build_button(scene: SceneBuilder, name: str) -> None:
    """Add a base of 0.1 x 0.1 x 0.02 m with a plunger of 0.056 m that springs back."""
    scene.body(name, (0.3, 0, TABLE_M))
    scene.box(name, (0.1, 0.1, 0.02), (0, 0, 0.01))
    plunger = scene.body(f"{name}_plunger", (0, 0, 0.025), parent=name)
    scene.spec.body(plunger).gravcomp = 1.0  # at rest it is neither pressed nor pulled
    scene.slide(
        plunger,
        f"{name}_joint",
        (0, 0, -1),
        -0.003,
        0.007,
        stiffness=60.0,
        springref=0.0,
        damping=2.0,
        frictionloss=0.0,
    )
    scene.cylinder(plunger, 0.056, 0.014, mass=0.02, rgb=(0.85, 0.85, 0.85))


def press(position: np.ndarray) -> list[Waypoint]:
    """Return waypoints that press what lies at a point from above with closed fingers."""
    up = np.array([0.0, 0.0, 1.0])
    return [
        Waypoint(position + 0.08 * up, DOWN, open=False),
        Waypoint(position - 0.008 * up, DOWN, slow=True, hold=3),
        Waypoint(position + 0.08 * up, DOWN),
    ]


class PushButton(TwinTask):
    """One button on the table. Success: its plunger is pressed by more than 0.003 m."""

    bodies = ("button",)
    joints = ("button_joint",)

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        build_button(scene, "button")

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        point = draw_place(rng, 0.45, 0.7)
        world.place("button", (*point[:2], TABLE_M), yaw=rng.uniform(-np.pi, np.pi))
        world.paint("button", COLOURS[BUTTON_COLOURS[variation]])

    def succeeded(self, world: World) -> bool:
        return world.joint("button_joint") > PRESSED_M

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        colour = BUTTON_COLOURS[variation]
        return (
            f"push the {colour} button",
            f"press the button with the {colour} base",
            f"push down on the {colour} button",
            f"press the {colour} button once",
            f"use the gripper to push the {colour} button",
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        return press(above(seen.poses["button"], 0.032))
