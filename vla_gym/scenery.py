"""Cameras elsewhere and another light, while one picture of a MuJoCo model is drawn.

What is changed is what MuJoCo draws from: poses of cameras and lights in `MjData`, colours of
lights in `MjModel`. The picture is the one that a model with these cameras and lights would give.
Afterwards all is as it was, bit for bit: neither the physics nor a reset that copies or restores
the model ever meets a change.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_gym.rotations import vector_to_matrix
from vla_gym.suite import CameraMove, LightChange

__all__ = ["MOUNTED_SHARE", "move_camera", "shown"]

Array = NDArray[np.float64]

MOUNTED_SHARE = 0.2
"""How far a camera on a moving body goes, as a share of one that stands still: what a wrist camera
sees is near."""

MIN_DEPTH_M = 0.3
"""The point that a camera goes on looking at is at least so far away."""

ORTHOGRAPHIC_FOV_DEG = 45.0
"""A camera without perspective has no angle of view; its turns are those of an ordinary one."""


def move_camera(
    eye: Array, axes: Array, move: CameraMove, fov_rad: float, focus: Array | None
) -> tuple[Array, Array]:
    """Return where a camera is after a move.

    Args:
        eye: (3,) [m], world frame.
        axes: (3, 3), columns: right, up, back.
        move: offset and turn.
        fov_rad: vertical field of view.
        focus: (3,) [m], world frame: the camera goes on looking at the point of its axis that is
            as deep as this; None for one that is mounted on a moving body.

    Returns:
        eye and axes.
    """
    offset = np.array(move.offset_m, dtype=np.float64)
    aim = np.eye(3)
    if focus is None:
        offset = MOUNTED_SHARE * offset
    else:
        depth = max(float((eye - focus) @ axes[:, 2]), MIN_DEPTH_M)
        aim = _turn_between(np.array([0.0, 0.0, -1.0]), np.array([0.0, 0.0, -depth]) - offset)
    tilt, pan, roll = move.turn
    turn = vector_to_matrix(np.array([tilt * fov_rad, pan * fov_rad, roll]))
    return eye + axes @ offset, axes @ aim @ turn


def _turn_between(one: Array, other: Array) -> Array:
    """Return the smallest rotation that takes a unit vector to another vector's direction."""
    axis = np.cross(one, other)
    sine = float(np.linalg.norm(axis))
    if sine == 0.0:
        return np.eye(3)
    return vector_to_matrix(axis * (math.atan2(sine, float(one @ other)) / sine))


@contextlib.contextmanager
def shown(
    model: Any,
    data: Any,
    camera: int,
    move: CameraMove | None,
    light: LightChange | None,
    focus_m: ArrayLike,
) -> Iterator[None]:
    """Have a camera elsewhere and the light otherwise, inside.

    Args:
        model: `mujoco.MjModel`.
        data: `mujoco.MjData`, with up-to-date poses of cameras and lights.
        camera: index of the camera that draws.
        move: of this camera; None leaves it.
        light: None leaves it.
        focus_m: (3,) middle of the workspace, world frame.
    """
    focus = np.asarray(focus_m, dtype=np.float64)
    before: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def put(array: NDArray[Any], value: ArrayLike) -> None:
        before.append((array, array.copy()))
        array[...] = value

    try:
        if move is not None:
            eye, axes = data.cam_xpos[camera], data.cam_xmat[camera]
            mounted = model.body_weldid[model.cam_bodyid[camera]] != 0
            fov = ORTHOGRAPHIC_FOV_DEG if model.cam_orthographic[camera] else model.cam_fovy[camera]
            place, turned = move_camera(
                eye, axes.reshape(3, 3), move, math.radians(fov), None if mounted else focus
            )
            put(eye, place)
            put(axes, turned.ravel())
        if light is not None:
            turn = vector_to_matrix(np.array(light.rotation, dtype=np.float64))
            # Their places turn too: a sun's shadows are drawn of what is around the line through
            # its place.
            put(data.light_xpos, focus + (data.light_xpos - focus) @ turn.T)
            put(data.light_xdir, data.light_xdir @ turn.T)
            headlight = model.vis.headlight
            for kind in ("ambient", "diffuse", "specular"):
                colours = getattr(model, f"light_{kind}")
                put(colours, colours * np.array(light.lights, np.float32))
                colour = getattr(headlight, kind)
                put(colour, colour * np.array(light.ambient, np.float32))
        yield
    finally:
        for array, value in before:
            array[...] = value
