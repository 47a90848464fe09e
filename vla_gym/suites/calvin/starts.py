"""Random states of the play table in which a given one of CALVIN's tasks can be solved.

Upstream has states for its chains only. These are drawn as it draws blocks at random (calvin_env
797142c, scene/play_table_scene.py: surface, position and yaw uniform), then made to fit the task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.suites.calvin.geometry import block_points, collides, look
from vla_gym.suites.calvin.scenes import (
    BLOCK_DEPTH_M,
    BLOCKS,
    DRAWER_OPEN_M,
    HOME_ROBOT_OBS,
    IN_DRAWER_Z_M,
    ON_TABLE_Z_M,
    SURFACES,
    SWITCH_ON_M,
    Scene,
)

__all__ = ["Start", "sample_start"]

CLEARANCE_M = 0.01
"""Least distance between two blocks."""

PUSH_M = 0.12
"""Way that a block which is to be pushed must have free: 0.1 m and a little."""

TABLE_EDGE_X_M = 0.40
"""How far to either side a pushed block may come: the table ends at 0.44."""

ATTEMPTS = 10_000


class Start(NamedTuple):
    """A state to start from.

    Attributes:
        robot_obs: shape (15,).
        scene_obs: shape (24,).
        grasp: the block that the robot shall hold before the episode begins, or None.
    """

    robot_obs: NDArray[np.float64]
    scene_obs: NDArray[np.float64]
    grasp: str | None


class _Spot(NamedTuple):
    """Where one block lies: surface, position [m], yaw [rad]."""

    surface: str
    x: float
    y: float
    z: float
    yaw: float


def sample_start(task: str, scene: Scene, rng: np.random.Generator) -> Start:
    """Return a random state in which a task can be solved.

    Args:
        task: upstream's name of it, such as `"lift_red_block_slider"`.
        scene: the table.
        rng: where chance comes from.
    """
    words = task.split("_")
    slider, drawer = float(rng.integers(2)), float(rng.integers(2))
    lightbulb, led = float(rng.integers(2)), float(rng.integers(2))
    if words[:2] == ["move", "slider"]:
        slider = float(words[2] == "right")
    if task in ("open_drawer", "close_drawer"):
        drawer = float(task == "close_drawer")
    if task in ("place_in_drawer", "push_into_drawer") or words[-1] == "drawer":
        drawer = float(task != "open_drawer")
    if task.endswith("lightbulb"):
        lightbulb = float(words[1] == "off")
    if task.endswith("led"):
        led = float(words[1] == "off")
    grasp = None
    if task in ("place_in_slider", "place_in_drawer", "stack_block"):
        grasp = str(rng.choice(BLOCKS))
    for _ in range(ATTEMPTS):
        spots = _sample_spots(task, scene, slider, grasp, rng)
        scene_obs = np.zeros(24)
        scene_obs[0] = slider * scene.slider_range
        scene_obs[1] = drawer * DRAWER_OPEN_M
        scene_obs[3] = lightbulb * SWITCH_ON_M
        scene_obs[4:6] = lightbulb, led
        for index, block in enumerate(scene.order):
            spot = spots[block]
            scene_obs[6 + 6 * index : 12 + 6 * index] = spot.x, spot.y, spot.z, 0.0, 0.0, spot.yaw
        if _is_apart(spots, scene) and _is_free(task, spots, scene) and _fits(scene_obs, scene):
            return Start(np.array(HOME_ROBOT_OBS), scene_obs, grasp)
    raise RuntimeError(f"no state found for {task!r} in scene {scene.name!r}")


def _fits(scene_obs: NDArray[np.float64], scene: Scene) -> bool:
    """Whether no block touches walls, door or levers: upstream's areas reach into them."""
    view = look(np.array(HOME_ROBOT_OBS), scene_obs, scene)
    wider = np.array([0.006, 0.006, -0.001])  # aside: what it lies on does not count
    blocks = [block._replace(half=block.half + wider) for block in view.blocks.values()]
    points = np.concatenate([block_points(block) for block in blocks])
    return not collides(points, view, but=BLOCKS).any()


def _sample_spots(
    task: str, scene: Scene, slider: float, grasp: str | None, rng: np.random.Generator
) -> dict[str, _Spot]:
    """Return a spot for each block; the ones that the task is about are where it needs them."""
    words = task.split("_")
    surfaces = {block: str(rng.choice(SURFACES)) for block in BLOCKS}
    others = list(rng.permutation(list(BLOCKS)))
    if len(words) > 2 and words[1] in BLOCKS:
        surfaces[words[1]] = "table"
        if words[3] == "slider":
            surfaces[words[1]] = "slider_right" if slider else "slider_left"
        elif words[3] == "drawer":
            surfaces[words[1]] = "drawer"
    elif grasp is not None:
        surfaces[grasp] = "table"
        others.remove(grasp)
        if task == "stack_block":
            surfaces[others[0]] = "table"
    elif task in ("push_into_drawer", "unstack_block"):
        surfaces[others[0]] = "table"
    spots = {block: _sample_spot(surfaces[block], block, scene, rng) for block in BLOCKS}
    if task == "push_into_drawer":
        x = scene.drawer_x + rng.uniform(-0.13, 0.13)
        low, high = scene.areas["table"][0][0], scene.areas["table"][1][0]
        spots[others[0]] = spots[others[0]]._replace(x=float(np.clip(x, low, high)))
    if task == "unstack_block":
        below = spots[others[0]]
        dx, dy = rng.uniform(-0.005, 0.005, 2)
        spots[others[1]] = _Spot(
            "stack", below.x + dx, below.y + dy, below.z + BLOCK_DEPTH_M, rng.uniform(-np.pi, np.pi)
        )
    return spots


def _sample_spot(surface: str, block: str, scene: Scene, rng: np.random.Generator) -> _Spot:
    yaw = float(rng.uniform(-math.pi, math.pi))
    if surface != "drawer":
        (x_low, y_low), (x_high, y_high) = scene.areas[surface]
        x, y = float(rng.uniform(x_low, x_high)), float(rng.uniform(y_low, y_high))
        return _Spot(surface, x, y, ON_TABLE_Z_M, yaw)
    # The open drawer's floor, with 1 cm to its walls: half 0.174 by 0.096 around its middle.
    reach_x, reach_y = _reach(scene.length(block), yaw)
    middle = -0.0595 - DRAWER_OPEN_M
    x = scene.drawer_x + rng.uniform(-1, 1) * (0.164 - reach_x)
    y = middle + rng.uniform(-1, 1) * (0.086 - reach_y)
    return _Spot(surface, float(x), float(y), IN_DRAWER_Z_M, yaw)


def _reach(length: float, yaw: float) -> tuple[float, float]:
    """Return how far a block reaches from its centre in x and in y."""
    cosine, sine, half = abs(math.cos(yaw)), abs(math.sin(yaw)), BLOCK_DEPTH_M / 2
    return length / 2 * cosine + half * sine, length / 2 * sine + half * cosine


def _is_apart(spots: Mapping[str, _Spot], scene: Scene) -> bool:
    """Whether no block is nearer to another than the clearance; one may lie on another."""
    lying = [block for block in BLOCKS if spots[block].surface != "stack"]
    pairs = ((a, b) for i, a in enumerate(lying) for b in lying[:i])
    return not any(
        _are_near(_outline(spots[a], scene, a), _outline(spots[b], scene, b))
        for a, b in pairs
        if abs(spots[a].z - spots[b].z) < BLOCK_DEPTH_M
    )


def _outline(spot: _Spot, scene: Scene, block: str) -> NDArray[np.float64]:
    """Return the corners of a block seen from above, (4, 2), in turn."""
    half = np.array([scene.length(block), BLOCK_DEPTH_M]) / 2
    corners = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * half
    cosine, sine = math.cos(spot.yaw), math.sin(spot.yaw)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    return corners @ turn.T + (spot.x, spot.y)


def _are_near(one: NDArray[np.float64], two: NDArray[np.float64]) -> bool:
    """Whether two rectangles are nearer than the clearance along each of their four axes."""
    for corners in (one, two):
        for side in (corners[1] - corners[0], corners[2] - corners[1]):
            axis = side / np.linalg.norm(side)
            a, b = one @ axis, two @ axis
            if a.max() + CLEARANCE_M < b.min() or b.max() + CLEARANCE_M < a.min():
                return False
    return True


def _is_free(task: str, spots: Mapping[str, _Spot], scene: Scene) -> bool:
    """Whether a block that is to be pushed along x can be."""
    words = task.split("_")
    if words[0] != "push" or words[1] not in BLOCKS:
        return True
    spot = spots[words[1]]
    side = 1 if words[3] == "right" else -1
    reach_x, reach_y = _reach(scene.length(words[1]), spot.yaw)
    end = spot.x + side * PUSH_M
    if abs(end) + reach_x > TABLE_EDGE_X_M:
        return False
    low, high = sorted((spot.x, end))
    obstacles = [(scene.button_x, -0.12, 0.04, 0.04), (scene.switch_x, 0.02, 0.065, 0.03)]
    for block in BLOCKS:
        if block != words[1] and spots[block].surface == "table":
            obstacles.append(
                (spots[block].x, spots[block].y, *_reach(scene.length(block), spots[block].yaw))
            )
    return not any(
        low - reach_x - half_x - CLEARANCE_M < x < high + reach_x + half_x + CLEARANCE_M
        and abs(y - spot.y) < reach_y + half_y + CLEARANCE_M
        for x, y, half_x, half_y in obstacles
    )
