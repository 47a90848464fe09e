"""Moved cameras: the rig is set up again, and not quite as it was."""

from __future__ import annotations

import math
import zlib

import numpy as np

from vla_gym.perturbations.base import (
    AnyEnv,
    Perturbation,
    Perturbed,
    find_visual_obstacle,
    get_env,
)
from vla_gym.suite import CameraMove, VisualChange

__all__ = ["CAMERA", "draw_move"]

DEFAULT_M = 0.05
FOV_SHARE = 1 / 15
"""Of the vertical field of view: largest tilt and pan at the default strength, 3 degrees at 45."""

ROLL_RAD = math.radians(3.0)
"""Largest roll at the default strength."""


def draw_move(rng: np.random.Generator, strength_m: float) -> CameraMove:
    """Draw a camera's move: offset uniform in a ball of this radius, turns in proportion to it."""
    direction = rng.normal(size=3)
    radius = strength_m * rng.uniform() ** (1 / 3)
    x, y, z = (radius * direction / np.linalg.norm(direction)).tolist()
    tilt, pan, roll = (strength_m / DEFAULT_M * rng.uniform(-1, 1, 3)).tolist()
    return CameraMove((x, y, z), (FOV_SHARE * tilt, FOV_SHARE * pan, ROLL_RAD * roll))


def _find_obstacle(env: AnyEnv) -> str | None:
    return find_visual_obstacle(env, "camera")


class _MovedCameras(Perturbed):
    def __init__(self, env: AnyEnv, strength_m: float) -> None:
        super().__init__(env, CAMERA.name)
        self._strength_m = strength_m

    def begin(self, stream: np.random.SeedSequence) -> None:
        """Draw for all cameras, each from a stream of its own: `cameras=` changes no draw."""
        inner = get_env(self)
        entropy = stream.entropy
        assert isinstance(entropy, list)
        moves = {}
        for camera in inner.spec_sheet.all_cameras:
            rng = np.random.default_rng([*entropy, zlib.crc32(camera.encode())])
            moves[camera] = draw_move(rng, self._strength_m)
        inner.perturb(VisualChange(moves))


CAMERA = Perturbation(
    name="camera",
    doc="every camera moves: up to so far from its place, looking at the same point but for a "
    "tilt and pan of up to 1/15 of the field of view (3 degrees of 45) and a roll of up to 3 "
    "degrees at the default strength, in proportion at others; a camera on the hand moves a fifth "
    "as far and turns as much",
    strength=DEFAULT_M,
    unit="m",
    low=0.0,
    high=0.3,
    wrap=_MovedCameras,
    find_obstacle=_find_obstacle,
)
