"""All perturbations by name, and how a name becomes an env."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vla_gym.errors import InvalidOption, UnknownName
from vla_gym.perturbations.action_noise import ACTION_NOISE
from vla_gym.perturbations.base import AnyEnv, Perturbation, Perturbed, Setting, get_env
from vla_gym.perturbations.black import BLACK
from vla_gym.perturbations.camera import CAMERA
from vla_gym.perturbations.instruction import INSTRUCTION
from vla_gym.perturbations.latency import LATENCY
from vla_gym.perturbations.light import LIGHT

__all__ = ["PERTURBATIONS", "make_keywords", "parse_perturbation", "perturb"]

PERTURBATIONS: Mapping[str, Perturbation] = MappingProxyType(
    {kind.name: kind for kind in (CAMERA, LIGHT, BLACK, INSTRUCTION, ACTION_NOISE, LATENCY)}
)


def parse_perturbation(text: str) -> Setting:
    """Return the setting of `"camera"`, at its default strength, or of `"camera=0.1"`.

    `str` of it is the canonical text, which names the default strength no more.

    Raises:
        UnknownName: there is no such perturbation.
        InvalidOption: the strength is no number or not in the range.
    """
    name, given, number = text.strip().partition("=")
    if name not in PERTURBATIONS:
        raise UnknownName("perturbation", name, PERTURBATIONS)
    kind = PERTURBATIONS[name]
    if not given:
        return Setting(kind, kind.strength)
    try:
        strength = float(number)
    except ValueError:
        raise InvalidOption(
            f"the strength {number!r} of the perturbation {name!r} is not a number; the default "
            f"is {name}={kind.strength:g}"
        ) from None
    return Setting(kind, strength)


def make_keywords(setting: Setting) -> dict[str, Any]:
    """Return the keywords of `gym.make` that an env needs to be perturbed so."""
    return dict(setting.perturbation.keywords)


def perturb(env: AnyEnv, setting: Setting) -> Perturbed:
    """Return the env with every episode perturbed, as a function of the reset's seed alone.

    Seeds keep their start states, and the env itself is left as it is: its next own reset is
    unperturbed. Wrappers may be put around each other.

    Args:
        env: from `gym.make("VLA/...", **make_keywords(setting))`.
        setting: from `parse_perturbation`.

    Raises:
        InvalidOption: the env cannot have this, or is none of vla_gym's.
    """
    kind = setting.perturbation
    obstacle = kind.find_obstacle(env)
    if obstacle is not None:
        valid = [name for name, one in PERTURBATIONS.items() if one.find_obstacle(env) is None]
        raise InvalidOption(
            f"{get_env(env).spec_sheet.id} cannot be perturbed by {kind.name!r}: {obstacle}. "
            f"Valid here: {', '.join(valid) or 'none'}"
        )
    return kind.wrap(env, setting.strength)
