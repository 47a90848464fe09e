"""The envs of one worker: they act one after the other and write into the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from vla_gym.errors import ResetNeeded
from vla_gym.vector.batch import Batch

__all__ = ["EnvGroup", "Maker", "Outcome"]

Maker = Callable[[], gym.Env[Any, Any]]
Info = Mapping[str, Any]


class Outcome(NamedTuple):
    """What a step of one env returns besides its observation.

    Attributes:
        reward, terminated, truncated: of the step.
        info: of the observation in the batch.
        final_info: of the episode's last step, where its env was reset in this same step; its last
            observation is in the batch of these.
    """

    reward: float
    terminated: bool
    truncated: bool
    info: Info
    final_info: Info | None = None


class EnvGroup:
    """Several envs, and how each goes on after the end of its episode.

    Args:
        makers: one for each env.
        first: number of the first of them in the vector env.
        batch: takes the observations of all envs of the vector env.
        finals: takes the last observations of episodes, in `AutoresetMode.SAME_STEP`.
        autoreset_mode: Gymnasium's.

    Attributes:
        at: number of the env that acted last, which is the one that raised an error.
    """

    def __init__(
        self,
        makers: Sequence[Maker],
        first: int,
        batch: Batch,
        finals: Batch,
        autoreset_mode: AutoresetMode,
    ) -> None:
        self.at = self._first = first
        self._makers, self._mode = makers, autoreset_mode
        self._batch, self._finals = batch, finals
        self._envs: list[gym.Env[Any, Any]] = []
        self._ended = [False] * len(makers)

    def open(self) -> None:
        """Make the envs."""
        for index, maker in enumerate(self._makers):
            self.at = self._first + index
            self._envs.append(maker())

    def reset(
        self, seeds: Sequence[int | None], options: dict[str, Any] | None, mask: Sequence[bool]
    ) -> list[Info]:
        """Reset the envs of the mask; return the info of each, empty for the others."""
        return [
            self._reset(env, seed=seed, options=options) if chosen else {}
            for env, seed, chosen in zip(self._count(), seeds, mask, strict=True)
        ]

    def step(self, actions: Iterable[Any]) -> list[Outcome]:
        """Let each env take its action."""
        return [self._step(env, action) for env, action in zip(self._count(), actions, strict=True)]

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return an attribute of each env, or what it returns where it can be called."""
        found = []
        for env in self._count():
            attribute = env.get_wrapper_attr(name)
            found.append(attribute(*args, **kwargs) if callable(attribute) else attribute)
        return found

    def set_attr(self, name: str, values: Sequence[Any]) -> None:
        """Set an attribute of each env."""
        for env, value in zip(self._count(), values, strict=True):
            env.set_wrapper_attr(name, value)

    def close(self) -> None:
        """Close all envs, also where one of them cannot."""
        with contextlib.ExitStack() as stack:
            for env in self._envs:
                stack.callback(env.close)

    def _count(self) -> Iterable[gym.Env[Any, Any]]:
        for index, env in enumerate(self._envs):
            self.at = self._first + index
            yield env

    def _reset(self, env: gym.Env[Any, Any], **keywords: Any) -> Info:
        observation, info = env.reset(**keywords)
        self._batch.write(self.at, observation)
        self._ended[self.at - self._first] = False
        return info

    def _step(self, env: gym.Env[Any, Any], action: Any) -> Outcome:
        if self._ended[self.at - self._first]:
            if self._mode is AutoresetMode.DISABLED:
                raise ResetNeeded(
                    "its episode has ended and autoreset is disabled; call "
                    "reset(options={'reset_mask': terminated | truncated}) before the next step"
                )
            return Outcome(0.0, False, False, self._reset(env))
        observation, reward, terminated, truncated, info = env.step(action)
        terminated, truncated = bool(terminated), bool(truncated)
        outcome = Outcome(float(reward), terminated, truncated, info)
        if not (terminated or truncated):
            self._batch.write(self.at, observation)
        elif self._mode is AutoresetMode.SAME_STEP:
            self._finals.write(self.at, observation)
            return outcome._replace(info=self._reset(env), final_info=info)
        else:
            self._batch.write(self.at, observation)
            self._ended[self.at - self._first] = True
        return outcome
