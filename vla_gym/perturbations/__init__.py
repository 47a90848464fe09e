"""Robustness: the same episodes with one thing otherwise, to see what a policy's success rests on.

    setting = parse_perturbation("camera")  # or "camera=0.1": with another strength than the usual
    env = gym.make("VLA/MetaWorld-DrawerOpen-v0", **make_keywords(setting))
    env = perturb(env, setting)

One file a perturbation: what it does, how strong it is and which envs cannot have it.
"""

from vla_gym.perturbations.base import Perturbation, Perturbed, Setting
from vla_gym.perturbations.table import (
    PERTURBATIONS,
    make_keywords,
    parse_perturbation,
    perturb,
)

__all__ = [
    "PERTURBATIONS",
    "Perturbation",
    "Perturbed",
    "Setting",
    "make_keywords",
    "parse_perturbation",
    "perturb",
]
