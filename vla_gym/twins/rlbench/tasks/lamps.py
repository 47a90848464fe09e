"""Tasks of switching a lamp."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from vla_gym.suites.rlbench import BASE_POSITION_M
from vla_gym.twins.rlbench.scene import TABLE_M, SceneBuilder
from vla_gym.twins.rlbench.task import TwinTask, Waypoint, above, draw_place, solvable
from vla_gym.twins.rlbench.tasks.buttons import PRESSED_M, build_button, press
from vla_gym.twins.rlbench.world import Snapshot, World

SWITCH_AT_M = (-0.004, 0.229, 0.0)
"""From the lamp's foot to its button."""

SWITCH_HEIGHT_M = 0.027
GLOBE_M = 0.15
HEIGHT_M = 0.46
CLEAR_M = 0.17
"""How far the lamp stays away from the vertical plane in which the arm reaches for the button."""

REACH_M = 0.65
"""From the robot's base to the button: beyond, the arm is stretched above the lamp and jams."""

DARK_RGB, LIT_RGB = (0.40, 0.42, 0.46), (1.0, 0.88, 0.30)
GLOW = 0.7


def build_lamp(scene: SceneBuilder) -> None:
    """Add a lamp with a globe, and its button at the end of a cable."""
    metal = {"rgb": (0.16, 0.17, 0.20)}
    centre = HEIGHT_M - GLOBE_M / 2
    scene.body("lamp", (0.3, 0, TABLE_M))
    scene.cylinder("lamp", 0.14, 0.02, (0, 0, 0.01), **metal)
    scene.cylinder("lamp", 0.02, centre, (0, 0, centre / 2), **metal)
    scene.cylinder("lamp", 0.07, 0.03, (0, 0, centre - GLOBE_M / 2 + 0.005), **metal)
    scene.spec.add_material(name="glow")
    scene.sphere("lamp", GLOBE_M, (0, 0, centre), name="globe", material="glow")
    x, y, _ = SWITCH_AT_M
    scene.capsule("lamp", 0.008, (0, 0, 0.004), (x, y, 0.004), solid=False, **metal)
    build_button(scene, "switch", (0.035, 0.035, 0.015), 0.033, parent="lamp", at=SWITCH_AT_M)


def draw_lamp(task: TwinTask, world: World, rng: np.random.Generator, variation: int) -> None:
    """Place the lamp with its button so that the arm can press it and does not cross the lamp."""
    world.paint("switch", (0.95, 0.95, 0.95))
    world.paint("switch_plunger", (0.85, 0.10, 0.10))
    base = np.array(BASE_POSITION_M[:2])
    for _ in range(500):
        yaw = rng.uniform(-np.pi, np.pi)
        turn = np.array([np.cos(yaw), np.sin(yaw)])
        across = np.array([-turn[1], turn[0]])
        middle = draw_place(rng, 0.3, 0.5, (-0.03, 0.0))[:2]
        to_button = SWITCH_AT_M[0] * turn + SWITCH_AT_M[1] * across
        lamp, button = middle - to_button / 2, middle + to_button / 2
        reach = button - base
        along = np.clip(reach @ (lamp - base) / (reach @ reach), 0.0, 1.0)
        crossed = np.linalg.norm(lamp - base - along * reach) < CLEAR_M
        if crossed or lamp[0] < -0.05 or np.linalg.norm(reach) > REACH_M:
            continue
        world.place("lamp", (*lamp, TABLE_M), yaw=yaw)
        if solvable(task, world, variation):
            return


def shine(world: World, lit: bool) -> None:
    """Make the lamp bright or dark."""
    world.paint("globe", LIT_RGB if lit else DARK_RGB)
    world.model.mat_emission[world.model.material("glow").id] = GLOW if lit else 0.0


def press_switch(seen: Snapshot) -> list[Waypoint]:
    """Return waypoints that come down on the button from above the lamp's height."""
    down = press(above(seen.poses["switch"], SWITCH_HEIGHT_M))
    high = down[0].position + np.array([0.0, 0.0, HEIGHT_M - 0.06])
    return [Waypoint(high, down[0].rotation, open=False), *down]


class _Lamp(TwinTask):
    """A lamp with a button beside it. Success: the button is pressed by more than 0.003 m."""

    bodies = ("lamp", "switch")
    joints = ("switch_joint",)
    lights: ClassVar[bool]
    """Whether the button lights the lamp; else it puts it out."""

    @classmethod
    def build(cls, scene: SceneBuilder) -> None:
        build_lamp(scene)

    def place(self, world: World, rng: np.random.Generator, variation: int) -> None:
        shine(world, not self.lights)
        draw_lamp(self, world, rng, variation)

    def observe(self, world: World) -> None:
        if self.succeeded(world):
            shine(world, self.lights)

    def succeeded(self, world: World) -> bool:
        return world.joint("switch_joint") > PRESSED_M

    @classmethod
    def plan(cls, seen: Snapshot) -> list[Waypoint]:
        return press_switch(seen)


class LampOn(_Lamp):
    """A dark lamp with a button beside it, which lights it.

    Geometry: a lamp 0.46 m high; a button of 0.033 m on a base of 0.035 m, 0.23 m from its foot.
    Success: the button is pressed by more than 0.003 m.
    """

    lights = True

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        return (
            "switch the lamp on",
            "press the red button to light the lamp",
            "make the lamp shine",
            "push the button beside the lamp so that it lights up",
            "give us some light with the lamp",
        )


class LampOff(_Lamp):
    """A shining lamp with a button beside it. Success: the button is pressed, as in `LampOn`."""

    lights = False

    @classmethod
    def wordings(cls, variation: int) -> tuple[str, ...]:
        return (
            "switch the lamp off",
            "press the red button to put the lamp out",
            "make the lamp go dark",
            "push the button beside the lamp so that its light goes out",
            "stop the lamp from shining",
        )
