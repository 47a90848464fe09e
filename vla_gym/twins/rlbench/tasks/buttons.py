"""Tasks in which something is pressed."""

from __future__ import annotations

import numpy as np

from vla_gym.twins.rlbench.scene import COLOURS, TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import (
    DOWN,
    TwinTask,
    Waypoint,
    above,
    draw_apart,
    draw_place,
    solvable,
)
from vla_gym.twins.rlbench.world import Snapshot, World

BUTTON_COLOURS = tuple(name for name in COLOURS if name not in ("red", "lime"))
"""RLBench's buttons have 18 of the 20 colours."""

PRESSED_M = 0.003


def build_button(
    scene: SceneBuilder,
    name: str,
    base_m: tuple[float, float, float] = (0.1, 0.1, 0.02),
    plunger_m: float = 0.056,
    parent: str | None = None,
    at: tuple[float, float, float] = (0.3, 0.0, TABLE_M),
) -> None:
    """Add a base with a round plunger that springs back: the joint `<name>_joint`, down is +."""
    scene.body(name, at, parent=parent)
    scene.box(name, base_m, (0, 0, base_m[2] / 2))
    plunger = scene.body(f"{name}_plunger", (0, 0, base_m[2] + 0.005), parent=name)
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
    scene.cylinder(plunger, plunger_m, 0.014, mass=0.02, rgb=(0.85, 0.85, 0.85))


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
        world.paint("button", COLOURS[BUTTON_COLOURS[variation]])
        for _ in range(100):
            point = draw_place(rng, 0.45, 0.7)
            world.place("button", (*point[:2], TABLE_M), yaw=rng.uniform(-np.pi, np.pi))
            if solvable(self, world, variation):
                return

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


def choose_sequence(variation: int) -> tuple[str, ...]:
    """Return the colours to push in order: 1 + variation % 3 of them, no sequence twice."""
    steps = (0, 5, 11)[: 1 + variation % 3]
    return tuple(BUTTON_COLOURS[(variation // 3 + step) % len(BUTTON_COLOURS)] for step in steps)


class PushButtons(TwinTask):
    """Three buttons on the table; one, two or three of them are pushed in a given order.

    Geometry: as `PushButton`, in a plane of 0.516 x 0.678 m, at least 0.16 m apart, so that no two
    bases overlap. The first of the bodies are those to push, in their order. Success: each in turn
    has been pressed by more than 0.003 m.
    """

    bodies = ("button0", "button1", "button2")
    joints = ("button0_joint", "button1_joint", "button2_joint")

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        for name in cls.bodies:
            build_button(scene, name)

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        wanted = choose_sequence(variation)
        self._goals = self.joints[: len(wanted)]
        self._pushed = 0
        others = rng.permutation([name for name in BUTTON_COLOURS if name not in wanted])
        for body, colour in zip(self.bodies, (*wanted, *others), strict=False):
            world.paint(body, COLOURS[colour])
        for _ in range(100):
            points = draw_apart(rng, 3, 0.516, 0.678, 0.16)
            for body, point in zip(self.bodies, points, strict=True):
                world.place(body, (*point[:2], TABLE_M), yaw=rng.uniform(-np.pi, np.pi))
            if solvable(self, world, variation):
                return

    def observe(self, world: World) -> None:
        if self._pushed < len(self._goals) and world.joint(self._goals[self._pushed]) > PRESSED_M:
            self._pushed += 1

    def succeeded(self, world: World) -> bool:
        return self._pushed == len(self._goals)

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        first, *rest = choose_sequence(variation)
        if not rest:
            return (
                f"push the {first} button and leave the others",
                f"press the button with the {first} base",
                f"of the three buttons, push the {first} one",
                f"find the {first} button and press it down",
                f"only push the button that is {first}",
            )
        listed = ", ".join([first, *rest[:-1]]) + f" and {rest[-1]}"
        return (
            f"push the {first} button" + "".join(f", then the {colour} one" for colour in rest),
            f"press the {first} button first" + "".join(f", next the {c} button" for c in rest),
            f"push these buttons in order: {', '.join((first, *rest))}",
            f"press the {listed} buttons one after the other, in this order",
            f"start with the {first} button" + "".join(f", go on with the {c} one" for c in rest),
        )

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        count = len(choose_sequence(seen.variation))
        return [
            waypoint
            for name in cls.bodies[:count]
            for waypoint in press(above(seen.poses[name], 0.032))
        ]
