"""Play one episode of a policy in an env: the only step loop outside training."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vla_gym.errors import InvalidOption, SimulatorCrashed
from vla_gym.policy.base import Policy

__all__ = ["MAX_FRAMES", "Episode", "Trace", "add_batch_axis", "digest", "run_episode"]

MAX_FRAMES = 48
"""Most pictures that one recorded episode keeps; rendering in software costs 50 to 90 ms each."""


@dataclass(frozen=True)
class Trace:
    """What replays an episode without its policy, and shows that it was the same.

    Attributes:
        actions: float32 (length, action_dim), as the policy gave them.
        digests: uint64 (length + 1,), `digest` of the reset and of each step.
    """

    actions: NDArray[np.float32]
    digests: NDArray[np.uint64]


@dataclass(frozen=True)
class Episode:
    """What happened in one episode.

    Attributes:
        id: the env's id.
        seed: what `env.reset` and the policy were seeded with.
        episode_seed: what the simulator was seeded with, None where the env does not say.
        success: whether the task was solved after any step.
        success_at_end: whether it was solved after the last step.
        episode_return: sum of the rewards, undiscounted.
        length: control steps.
        env_seconds: wall time in `reset` and `step`.
        policy_seconds: wall time in `predict`.
        terminated, truncated: how it ended.
        instruction: the command at its start.
        simulator: what ran it.
        chain_length: instructions followed in a row at its end, for an env that plays a chain of
            them and reports `info["chain_length"]`; None for any other.
        frames: pictures of `env.render()`, the first before the first step and the last after the
            last one; empty unless asked for.
        frame_stride: control steps from one picture to the next.
        trace: what replays it; None unless asked for.
    """

    id: str
    seed: int
    episode_seed: int | None
    success: bool
    success_at_end: bool
    episode_return: float
    length: int
    env_seconds: float
    policy_seconds: float
    terminated: bool
    truncated: bool
    instruction: str
    simulator: str
    chain_length: int | None = None
    frames: tuple[NDArray[np.uint8], ...] = field(default=(), repr=False, compare=False)
    frame_stride: int = field(default=0, compare=False)
    trace: Trace | None = field(default=None, repr=False, compare=False)


def run_episode(
    env: gym.Env[Any, Any],
    policy: Policy,
    seed: int,
    *,
    options: dict[str, Any] | None = None,
    deterministic: bool = True,
    record_every: int | None = None,
    max_frames: int = MAX_FRAMES,
    trace: bool = False,
) -> Episode:
    """Play one episode from `env.reset(seed=seed)` to its end.

    Its outcome is a function of env, policy, seed and options alone, whatever ran before: the
    policy's `set_random_seed(seed)` is called first where it exists. In a chain of instructions the
    policy starts anew (`episode_start`) with each of them, as CALVIN's protocol resets its models.

    Args:
        env: with a time limit, as `gym.make` makes it.
        policy: already fitted to the env by `vla_gym.policy.connect`.
        seed: of the env and of the policy.
        options: of `env.reset`.
        deterministic: passed to the policy.
        record_every: keep `env.render()` of every so many steps. None records nothing.
        max_frames: beyond so many pictures the stride doubles.
        trace: keep what replays the episode.

    Raises:
        InvalidOption: `record_every` is less than 1, or the env was made without a render mode.
        SimulatorCrashed: the simulator crashed, whatever the env's `on_crash` is: an episode
            without an outcome is no episode.
    """
    film = None if record_every is None else _Film(env, record_every, max_frames)
    if hasattr(policy, "set_random_seed"):
        policy.set_random_seed(seed)  # type: ignore[attr-defined]  # optional by design
    started = time.perf_counter()
    observation, info = env.reset(seed=seed, options=options)
    env_seconds, policy_seconds = time.perf_counter() - started, 0.0
    instruction, simulator = str(info["instruction"]), str(info["simulator"])
    episode_seed = info.get("episode_seed")
    if film is not None:
        film.see(0)
    state, length, total, success = None, 0, 0.0, False
    starts, chain_length = True, info.get("chain_length")
    terminated = truncated = False
    taken: list[NDArray[np.float32]] = []
    digests = [digest(observation, 0.0, info)] if trace else []
    while not (terminated or truncated):
        started = time.perf_counter()
        actions, state = policy.predict(
            add_batch_axis(observation), state, np.array([starts]), deterministic
        )
        acted = time.perf_counter()
        observation, reward, terminated, truncated, info = env.step(actions[0])
        env_seconds += time.perf_counter() - acted
        policy_seconds += acted - started
        if info.get("crashed"):  # with on_crash="restart" the env ends the episode instead
            raise SimulatorCrashed(str(info["crash"]))
        length += 1
        total += float(reward)
        success = success or bool(info["success"])
        starts = info.get("chain_length") != chain_length
        chain_length = info.get("chain_length")
        if trace:
            taken.append(np.array(actions[0], dtype=np.float32))
            digests.append(digest(observation, float(reward), info))
        if film is not None:
            film.see(length, last=terminated or truncated)
    return Episode(
        id=_id_of(env),
        seed=seed,
        episode_seed=None if episode_seed is None else int(episode_seed),
        success=success,
        success_at_end=bool(info["success"]),
        episode_return=total,
        length=length,
        env_seconds=env_seconds,
        policy_seconds=policy_seconds,
        terminated=bool(terminated),
        truncated=bool(truncated),
        instruction=instruction,
        simulator=simulator,
        chain_length=None if chain_length is None else int(chain_length),
        frames=() if film is None else tuple(film.frames),
        frame_stride=0 if film is None else film.stride,
        trace=Trace(np.array(taken), np.array(digests, np.uint64)) if trace else None,
    )


def digest(observation: Mapping[str, Any], reward: float, info: Mapping[str, Any]) -> int:
    """Return 64 bits of a hash of what a step showed: all numbers, the command and the success.

    A reset shows the simulator's seed besides, which stands for the state where that is not
    observed. Pictures are left out: hashing them would cost more than a step.
    """
    found = hashlib.blake2b(digest_size=8)
    for key in sorted(observation):
        if not key.startswith("rgb_"):
            value = observation[key]
            found.update(value.encode() if isinstance(value, str) else np.asarray(value).tobytes())
    found.update(np.float64(reward).tobytes() + bytes([bool(info["success"])]))
    found.update(str(info.get("episode_seed")).encode())  # at a reset
    return int.from_bytes(found.digest(), "little")


def add_batch_axis(observation: dict[str, Any]) -> dict[str, Any]:
    """Return the observation as a batch of one: arrays (1, ...), the instruction a 1-tuple."""
    return {
        key: (value,) if isinstance(value, str) else np.asarray(value)[None]
        for key, value in observation.items()
    }


class _Film:
    """The pictures of an episode of unknown length, evenly spaced and never too many."""

    def __init__(self, env: gym.Env[Any, Any], every: int, most: int) -> None:
        if every < 1:
            raise InvalidOption(f"record_every={every} must be at least 1")
        if env.render_mode != "rgb_array":
            raise InvalidOption(
                f"recording {_id_of(env)} needs pictures, but it was made with "
                f'render_mode={env.render_mode!r}; make it with render_mode="rgb_array"'
            )
        self._env, self._most = env, most
        self.stride = every
        self.frames: list[NDArray[np.uint8]] = []

    def see(self, step: int, last: bool = False) -> None:
        if step % self.stride and not last:
            return
        if len(self.frames) == self._most:
            self.frames = self.frames[::2]
            self.stride *= 2
            if step % self.stride and not last:
                return
        self.frames.append(np.asarray(self._env.render(), dtype=np.uint8))


def _id_of(env: gym.Env[Any, Any]) -> str:
    sheet = getattr(env.unwrapped, "spec_sheet", None)
    if sheet is not None:
        return str(sheet.id)
    return env.spec.id if env.spec is not None else repr(env)
