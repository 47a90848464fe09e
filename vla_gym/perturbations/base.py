"""What a perturbation is: a record of what it does, a strength, and a wrapper around an env."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vla_gym.env import VLAEnv
from vla_gym.errors import InvalidOption
from vla_gym.suite import Entry

__all__ = [
    "Perturbation",
    "Perturbed",
    "Setting",
    "find_grippers",
    "find_visual_obstacle",
    "get_env",
]

AnyEnv = gym.Env[Any, Any]


@dataclass(frozen=True)
class Perturbation:
    """One way in which an evaluation may differ from training.

    Attributes:
        name: as in `"camera=0.1"`.
        doc: what changes.
        strength: the default.
        unit: of the strength, `""` for a number without unit.
        low, high: the least and the greatest strength. 0 changes nothing.
        whole: whether the strength is a whole number.
        wrap: takes an env and a strength and returns the perturbed env.
        find_obstacle: takes an env and returns why it cannot have this, or None where it can;
            starts nothing.
        keywords: what `gym.make` must be asked for.
    """

    name: str
    doc: str
    strength: float
    unit: str
    low: float
    high: float
    wrap: Callable[[AnyEnv, float], Perturbed]
    find_obstacle: Callable[[AnyEnv], str | None]
    whole: bool = False
    keywords: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.low <= self.strength <= self.high:
            raise ValueError(f"{self.name}: {self.strength} is not in [{self.low}, {self.high}]")


@dataclass(frozen=True)
class Setting:
    """A perturbation with its strength. Its text, `str(setting)`, says all of it.

    Attributes:
        perturbation: which.
        strength: in the perturbation's unit.

    Raises:
        InvalidOption: the strength is not valid.
    """

    perturbation: Perturbation
    strength: float

    def __post_init__(self) -> None:
        kind = self.perturbation
        inside = kind.low <= self.strength <= kind.high  # a NaN is not
        if inside and (not kind.whole or float(self.strength).is_integer()):
            return
        number = "a whole number" if kind.whole else "a number"
        unit = f" {kind.unit}" if kind.unit else ""
        valid = (
            f"{number} in [{kind.low:g}, {kind.high:g}]{unit}"
            if kind.low < kind.high
            else f"{kind.high:g}: it has no strength to choose"
        )
        raise InvalidOption(
            f"the strength {self.strength:g} of the perturbation {kind.name!r} is not valid. "
            f"Valid: {valid}"
        )

    def __str__(self) -> str:
        if self.strength == self.perturbation.strength:
            return self.perturbation.name
        short = f"{self.strength:g}"
        exact = short if float(short) == self.strength else repr(float(self.strength))
        return f"{self.perturbation.name}={exact}"


class Perturbed(gym.Wrapper[Any, Any, Any, Any]):
    """Plays each episode with something changed that the episode's seed decides.

    The draws are those of a stream of its own, a function of the reset's seed and `name`: the env
    and its simulator draw what they draw without it. Episode n after a reset with a seed, without
    seeds in between, has the n-th stream of that seed.

    Args:
        env: from `gym.make`.
        name: of the perturbation.
    """

    def __init__(self, env: AnyEnv, name: str) -> None:
        super().__init__(env)
        self._salt = zlib.crc32(name.encode())
        self._seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        self._episodes = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, see `VLAEnv.reset`."""
        if seed is not None:
            self._seed, self._episodes = int(seed), 0
        stream = np.random.SeedSequence([abs(self._seed), self._salt, self._episodes])
        self._episodes += 1
        self.begin(stream)
        observation, info = self.env.reset(seed=seed, options=options)
        self.began(observation)
        return observation, info

    def begin(self, stream: np.random.SeedSequence) -> None:
        """Draw what the coming episode has; called before the env's own reset."""

    def began(self, observation: Any) -> None:
        """Take note of the first observation; called after the env's own reset."""


def get_env(env: AnyEnv) -> VLAEnv:
    """Return the env inside all wrappers.

    Raises:
        InvalidOption: it is none of vla_gym's.
    """
    inner = env.unwrapped
    if not isinstance(inner, VLAEnv):
        raise InvalidOption(
            f"{inner!r} is no env of vla_gym, of which alone it is known what its actions and "
            "cameras are; make one with gym.make('VLA/...')"
        )
    return inner


def find_visual_obstacle(env: AnyEnv, kind: str) -> str | None:
    """Return why a simulator cannot change `"camera"` or `"light"`, or None where it can."""
    inner = get_env(env)
    if kind in inner.perturbs:
        return None
    return f"the simulator {inner.spec_sheet.simulator!r} cannot change it"


def find_grippers(entries: tuple[Entry, ...]) -> NDArray[np.intp]:
    """Return which entries of an action or of proprio are a gripper's, in the arms' order."""
    return np.flatnonzero([entry.name.endswith(("gripper", "grip")) for entry in entries])
