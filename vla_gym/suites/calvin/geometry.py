"""Where things are at the play table: what is seen, what is solid, where the hand can be.

Frames: world. The hand's own axes are x to its front, y along which the fingers open, z out of the
hand. The TCP, the tool centre point, is between the fingertips.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.rotations import euler_to_matrix, vector_to_matrix
from vla_gym.suites.calvin.scenes import BASE_POSITION_M, BLOCK_DEPTH_M, BLOCKS, Scene

__all__ = [
    "CLOSED_POINTS",
    "FINGER_HALF_M",
    "GRIPPER_POINTS",
    "OUTWARD",
    "UP",
    "Body",
    "View",
    "block_points",
    "collides",
    "extent",
    "find_excess",
    "hand_rotation",
    "look",
    "on_face",
    "turn_left",
]

Vector = NDArray[np.float64]

UP = np.array([0.0, 0.0, 1.0])

SLOPE = np.array([0.0, 0.5, math.sqrt(0.75)])
OUTWARD = np.array([0.0, -math.sqrt(0.75), 0.5])
SILL = np.array([0.0, 0.02, 0.44])
"""The cabinet's face: it starts at the sill and leans back by 30 degrees."""

FINGER_HALF_M = 0.0105
"""Half the thickness of a finger, across and, where both are closed, also along the closing."""


class Body(NamedTuple):
    """A block: position of its centre [m], rotation matrix, half sizes along its own axes [m]."""

    position: Vector
    rotation: Vector
    half: Vector


class View(NamedTuple):
    """What a plan sees: the TCP's pose, the fingers, the joints of the table, the blocks."""

    position: Vector
    rotation: Vector
    opening: float
    is_closing: bool
    slider: float
    drawer: float
    switch: float
    lightbulb: bool
    led: bool
    blocks: Mapping[str, Body]
    scene: Scene


def look(robot_obs: Vector, scene_obs: Vector, scene: Scene) -> View:
    """Return what `robot_obs` and `scene_obs` say."""
    poses = scene_obs[6:].reshape(len(BLOCKS), 6)
    blocks = {}
    for name, pose in zip(scene.order, poses):  # noqa: B905  Python 3.8 has no strict=
        half = np.array([scene.length(name), BLOCK_DEPTH_M, BLOCK_DEPTH_M]) / 2
        blocks[name] = Body(pose[:3].copy(), euler_to_matrix(pose[3:]), half)
    return View(
        position=robot_obs[:3].copy(),
        rotation=euler_to_matrix(robot_obs[3:6]),
        opening=float(robot_obs[6]),
        is_closing=bool(robot_obs[14] < 0),
        slider=float(scene_obs[0]),
        drawer=float(scene_obs[1]),
        switch=float(scene_obs[3]),
        lightbulb=bool(scene_obs[4] > 0.5),
        led=bool(scene_obs[5] > 0.5),
        blocks=blocks,
        scene=scene,
    )


def turn_left(angle: float) -> Vector:
    """Return the rotation about the vertical, to the left as seen from above, by an angle [rad]."""
    return vector_to_matrix(np.array([0.0, 0.0, angle]))


def hand_rotation(angle: float, tilt: float) -> Vector:
    """Return the hand's rotation: fingers close along `angle`, turned to the front by `tilt`.

    Args:
        angle: of the closing direction against the world's x axis [rad].
        tilt: of the hand's z axis against straight down [rad].
    """
    across = np.array([math.cos(angle), math.sin(angle), 0.0])
    ahead = np.array([-math.sin(angle), math.cos(angle), 0.0])
    up = np.array([0.0, 0.0, 1.0])
    front = math.cos(tilt) * ahead + math.sin(tilt) * up
    return np.stack([front, across, math.sin(tilt) * ahead - math.cos(tilt) * up], 1)


SHOULDER = np.array([*BASE_POSITION_M[:2], 0.573])
WRIST_M, ARM_M = 0.247, 0.78
"""From the wrist to the TCP, and how far the wrist comes from the shoulder. Measured on both
tables: the error is below 0.01 m up to there, and 0.02 m at 0.8 m."""


def find_excess(position: Vector, rotation: Vector) -> Vector:
    """Return by which vector the wrist of this pose is out of reach: zero where it is not."""
    arm = position - WRIST_M * rotation[:, 2] - SHOULDER
    length = float(np.linalg.norm(arm))
    return arm * max(0.0, 1.0 - ARM_M / length)


def on_face(x: float, outward: float, along: float) -> Vector:
    """Return the point `outward` from the cabinet's face and `along` it from the sill."""
    return np.array([x, 0.0, 0.0]) + SILL + outward * OUTWARD + along * SLOPE


def _box(low: Iterable[float], high: Iterable[float], points: Vector) -> NDArray[np.bool_]:
    return np.all((points > np.array(list(low))) & (points < np.array(list(high))), axis=1)


def collides(points: Vector, view: View, but: Iterable[str] = ()) -> NDArray[np.bool_]:
    """Return which points are inside the table, its parts or a block.

    Args:
        points: shape (N, 3).
        view: what is where.
        but: blocks that do not count.
    """
    scene, margin = view.scene, 0.003
    x, y, z = points.T
    face = points - SILL
    outward, along = face @ OUTWARD, face @ SLOPE
    on_face: Any = np.stack([x, outward, along], 1)
    hit = (z < 0.438) & (np.abs(x) < 0.44) & (np.abs(y) < 0.183)
    inside = (np.abs(x - scene.cabinet_x) < 0.26 - margin) & (y < 0.16 - margin)
    inside &= z < 0.628 - margin
    hit |= (outward < margin) & (z < 0.65) & (z > 0.4) & (y < 0.18) & (y > 0.02) & ~inside
    door = scene.slider_x - view.slider
    hit |= _box((door, 0, -0.01), (door + 0.28, 0.022 + margin, 0.23), on_face)
    hit |= _box((door + 0.115, 0, 0.025), (door + 0.165, 0.083, 0.195), on_face)
    lever = 0.068 + view.switch
    hit |= _box(
        (scene.switch_x - 0.063, 0, lever - 0.027),
        (scene.switch_x + 0.063, 0.067, lever + 0.011),
        on_face,
    )
    hit |= (np.hypot(x - scene.button_x, y + 0.12) < 0.04 + margin) & (z < 0.487)
    hit |= _box(
        (scene.button_x - 0.083, 0.137, 0.64), (scene.button_x + 0.083, 0.19, 0.667), points
    )
    hit |= _box((scene.switch_x - 0.03, 0.13, 0.64), (scene.switch_x + 0.03, 0.19, 0.7), points)
    hit |= _hits_drawer(points, view)
    for name, block in view.blocks.items():
        if name not in but:
            own = (points - block.position) @ block.rotation
            hit |= np.all(np.abs(own) < block.half + margin, axis=1)
    return hit


def _hits_drawer(points: Vector, view: View) -> NDArray[np.bool_]:
    x, q = view.scene.drawer_x, view.drawer
    whole = _box((x - 0.203, -0.185 - q, 0.30), (x + 0.203, 0.061 - q, 0.404), points)
    hollow = _box((x - 0.174, -0.157 - q, 0.338), (x + 0.174, 0.035 - q, 0.5), points)
    bar = _box((x - 0.124, -0.264 - q, 0.337), (x + 0.124, -0.235 - q, 0.383), points)
    return (whole & ~hollow) | bar


def _sample_gripper(opening: float) -> Vector:
    """Return points of the gripper, in the hand's frame with its origin at the TCP.

    Args:
        opening: of each finger [m].
    """
    fingers = [
        (x, side * (opening + y), z)
        for side in (-1, 1)
        for z, outer in ((0.0148, 0.009), (-0.01, 0.012), (-0.045, 0.02))
        for x in (-FINGER_HALF_M, 0.0, FINGER_HALF_M)
        for y in (0.005, outer)
    ]
    hand = [
        (x, y, z)
        for z in (-0.074, -0.107, -0.14)
        for y in np.linspace(-0.104, 0.104, 7)
        for x in (-0.032, 0.032)
    ]
    wrist = [(x, y, -0.22) for x in (-0.05, 0.05) for y in (-0.05, 0.05)]
    return np.array(fingers + hand + wrist)


GRIPPER_POINTS, CLOSED_POINTS = _sample_gripper(0.04), _sample_gripper(0.0)


def block_points(body: Body, scale: float = 1.0) -> Vector:
    """Return corners, middles of edges and faces, and centre of a block, shape (27, 3)."""
    grid = np.array(list(itertools.product((-1, 0, 1), repeat=3)), float)
    return body.position + (grid * body.half * scale) @ body.rotation.T


def extent(body: Body, axis: Vector) -> float:
    """Return how far a block reaches from its centre along a unit vector."""
    return float(np.abs(body.rotation.T @ axis) @ body.half)
