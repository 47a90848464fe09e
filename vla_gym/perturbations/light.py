"""Another light: from elsewhere, brighter or darker, warmer or colder."""

from __future__ import annotations

import math

import numpy as np

from vla_gym.perturbations.base import (
    AnyEnv,
    Perturbation,
    Perturbed,
    find_visual_obstacle,
    get_env,
)
from vla_gym.rotations import rotation_vector, vector_to_matrix
from vla_gym.suite import LightChange, VisualChange

__all__ = ["LIGHT", "draw_light"]

AZIMUTH_RAD, TILT_RAD = math.radians(90.0), math.radians(20.0)
LIGHTS, AMBIENT = (0.4, 1.5), (0.55, 1.3)
"""Least and greatest factor of the brightness of lights, and of the light that is everywhere."""

MIREDS = 60.0
"""Greatest shift of the colour temperature [1/MK]: from daylight, 6500 K, to 4680 K or 10 600 K."""

WAVELENGTHS_M = (610e-9, 550e-9, 465e-9)
"""About where red, green and blue of a screen are strongest."""

SECOND_RADIATION_M_K = 1.4388e-2
"""Planck's law has exp(this / (wavelength * temperature))."""


def draw_light(rng: np.random.Generator, strength: float) -> LightChange:
    """Draw a light.

    All lights turn together about the vertical and then towards the horizon in any direction.
    Factors are uniform on a logarithmic scale. Colours follow Wien's approximation of a black
    body's, green held fixed.

    Args:
        rng: of the draws.
        strength: in [0, 1]; a share of all ranges.
    """
    azimuth, heading = rng.uniform(-1, 1), rng.uniform(0, 2 * math.pi)
    tilt, warmth = rng.uniform(), rng.uniform(-1, 1)
    axis = np.array([math.cos(heading), math.sin(heading), 0.0])
    rotation = vector_to_matrix(strength * TILT_RAD * tilt * axis) @ vector_to_matrix(
        np.array([0.0, 0.0, strength * AZIMUTH_RAD * azimuth])
    )
    lights, ambient = (
        math.exp(strength * rng.uniform(math.log(low), math.log(high)))
        for low, high in (LIGHTS, AMBIENT)
    )
    green = 1 / WAVELENGTHS_M[1]
    shift = 1e-6 * strength * MIREDS * warmth
    colour = [math.exp(SECOND_RADIATION_M_K * shift * (green - 1 / w)) for w in WAVELENGTHS_M]
    x, y, z = rotation_vector(rotation).tolist()
    red, _, blue = colour
    return LightChange(
        (x, y, z),
        (lights * red, lights, lights * blue),
        (ambient * red, ambient, ambient * blue),
    )


def _find_obstacle(env: AnyEnv) -> str | None:
    return find_visual_obstacle(env, "light")


class _OtherLight(Perturbed):
    def __init__(self, env: AnyEnv, strength: float) -> None:
        super().__init__(env, LIGHT.name)
        self._strength = strength

    def begin(self, stream: np.random.SeedSequence) -> None:
        light = draw_light(np.random.default_rng(stream), self._strength)
        get_env(self).perturb(VisualChange(light=light))


LIGHT = Perturbation(
    name="light",
    doc="all lights turn about the workspace, up to 90 degrees about the vertical and 20 towards "
    "the horizon; lamps have 0.4 to 1.5 of their brightness, the light that is everywhere 0.55 to "
    "1.3; the colour temperature is 4680 K to 10 600 K where it was 6500 K. The strength is a "
    "share of these",
    strength=1.0,
    unit="",
    low=0.0,
    high=1.0,
    wrap=_OtherLight,
    find_obstacle=_find_obstacle,
)
