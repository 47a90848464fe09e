"""Black pictures: what a policy still solves without its eyes, it does not solve by looking.

A score says nothing about vision where this one is as high: the start states of a task may be so
much alike that proprio and the command are enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from vla_gym.perturbations.base import AnyEnv, Perturbation, Perturbed

__all__ = ["BLACK"]


def _find_pictures(env: AnyEnv) -> list[str]:
    space = env.observation_space
    keys = space if isinstance(space, spaces.Dict) else ()
    return [key for key in keys if key.startswith("rgb_")]


def _find_obstacle(env: AnyEnv) -> str | None:
    if not _find_pictures(env):
        return (
            "the observations have no picture (cameras=[], or a wrapper hides them; perturb the "
            "env of gym.make before other wrappers are put around it)"
        )
    return None


class _BlackPictures(Perturbed):
    def __init__(self, env: AnyEnv, strength: float) -> None:
        del strength
        super().__init__(env, BLACK.name)
        self._pictures = _find_pictures(env)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode, see `VLAEnv.reset`; what comes out is black."""
        observation, info = super().reset(**options)
        return self._blacken(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Do a step, see `VLAEnv.step`; what comes out is black."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._blacken(observation), float(reward), terminated, truncated, info

    def _blacken(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {
            key: np.zeros_like(value) if key in self._pictures else value
            for key, value in observation.items()
        }


BLACK = Perturbation(
    name="black",
    doc="every picture is black: what is solved without looking",
    strength=1.0,
    unit="",
    low=1.0,
    high=1.0,
    wrap=_BlackPictures,
    find_obstacle=_find_obstacle,
)
