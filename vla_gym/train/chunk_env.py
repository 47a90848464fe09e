"""Envs whose one action is a chunk of actions, and seeded episodes played in many of them at once.

To an RL algorithm a chunk is one macro action: what lies within it is done open-loop, so pictures
are drawn only where the policy looks again.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from vla_gym.vector import VLAVectorEnv

__all__ = ["SEEDS", "ChunkEnv", "Played", "make_chunk_envs", "play"]

SEEDS = 2**24, 2**31
"""Of training episodes: never one of the small numbers that evaluations have."""

Act = Callable[[dict[str, Any]], tuple[NDArray[np.float32], Sequence[Any]]]
"""Observation of B envs -> actions (B, execute * n), and what of each row is to be remembered."""


class ChunkEnv(gym.Wrapper[Any, Any, Any, Any]):
    """An env that takes several actions at once and stops where the episode ends.

    Its reward is the sum of theirs; `info["control_steps"]` says how many of them were taken.

    Args:
        env: of this package, made with `cameras=()`: pictures are drawn here.
        pictures: camera -> size [pixels].
        history: pictures of each camera that are shown, the last ones: uint8 (history, size, size,
            3). Where the episode has not so many yet its first one is repeated.
        execute: actions of a chunk.

    Attributes:
        seeds: of the episodes to come, taken one by one. None: the env's own random stream. Once
            they are used up nothing happens any more: the env idles, and its steps take no time.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        pictures: Mapping[str, int],
        history: int,
        execute: int,
    ) -> None:
        super().__init__(env)
        self.seeds: list[int] | None = None
        self._idle = False
        self._execute, self._history, self._sizes = execute, history, dict(pictures)
        self._frames = {camera: deque(maxlen=history) for camera in pictures}
        self._last: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        assert isinstance(env.observation_space, spaces.Dict)
        views = {
            f"rgb_{camera}": spaces.Box(0, 255, (history, size, size, 3), np.uint8)
            for camera, size in pictures.items()
        }
        self.observation_space = spaces.Dict({**views, **env.observation_space.spaces})
        count = execute * env.action_space.shape[0]  # type: ignore[index]  # a Box (n,)
        self.action_space = spaces.Box(-1.0, 1.0, (count,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; without a seed, that of the next of `seeds`."""
        self._idle = False
        if seed is None and self.seeds is not None:
            self._idle = not self.seeds and bool(self._last[0])
            if self._idle:
                return self._last
            seed = self.seeds.pop(0) if self.seeds else None
        observation, info = self.env.reset(seed=seed, options=options)
        for frames in self._frames.values():
            frames.clear()
        self._draw()
        return self._remember(observation, {**info, "control_steps": 0})

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take the actions of a chunk, (execute * n,), one after the other."""
        if self._idle:
            observation, info = self._last
            return observation, 0.0, False, False, {**info, "control_steps": 0}
        total, taken, ended = 0.0, 0, False
        observation, terminated, truncated, info = None, False, False, {}
        for one in np.reshape(action, (self._execute, -1)):
            observation, reward, terminated, truncated, info = self.env.step(one)
            total, taken = total + float(reward), taken + 1
            ended = bool(terminated or truncated)
            if self._history > 1 or ended or taken == self._execute:
                self._draw()
            if ended:
                break
        observation, info = self._remember(observation, {**info, "control_steps": taken})
        return observation, total, bool(terminated), bool(truncated), info

    def _draw(self) -> None:
        for camera, frames in self._frames.items():
            picture = self.env.unwrapped.render_camera(camera, self._sizes[camera])  # type: ignore[attr-defined]  # ours
            frames.extend([picture] * (1 if frames else self._history))

    def _remember(
        self, observation: Any, info: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        views = {f"rgb_{camera}": np.stack(frames) for camera, frames in self._frames.items()}
        self._last = ({**views, **observation}, info)
        return self._last


def make_chunk_envs(
    ids: Sequence[str],
    count: int,
    *,
    cameras: Sequence[str],
    image_size: int | Mapping[str, int],
    history: int,
    execute: int,
    workers: int | None = None,
    **keywords: Any,
) -> VLAVectorEnv:
    """Return `count` envs of `ChunkEnv`; env i has the id `ids[i % len(ids)]`.

    An episode's end resets its env in the same step (`AutoresetMode.SAME_STEP`).

    Args:
        ids: as `gym.make` takes them.
        count: of envs.
        cameras: that are shown.
        image_size: of their pictures [pixels]; or a size for each.
        history: pictures of each camera, see `ChunkEnv`.
        execute: actions of a chunk.
        workers: processes; None follows from the cores.
        **keywords: of `gym.make`.

    Raises:
        InvalidOption: the spaces of the ids differ.
    """
    sizes = image_size if isinstance(image_size, Mapping) else dict.fromkeys(cameras, image_size)
    pictures = {camera: int(sizes[camera]) for camera in cameras}
    makers = [
        functools.partial(_make, ids[i % len(ids)], pictures, history, execute, keywords)
        for i in range(count)
    ]
    return VLAVectorEnv(makers, workers=workers, autoreset_mode=AutoresetMode.SAME_STEP)


def _make(
    env_id: str,
    pictures: Mapping[str, int],
    history: int,
    execute: int,
    keywords: Mapping[str, Any],
) -> ChunkEnv:
    return ChunkEnv(gym.make(env_id, cameras=(), **keywords), pictures, history, execute)


@dataclass(frozen=True)
class Played:
    """An episode that was played.

    Attributes:
        env: number of its env.
        seed: that it was reset with.
        success: whether it was solved at its end.
        length: control steps.
        trace: what `act` gave to remember, one entry for each chunk.
    """

    env: int
    seed: int
    success: bool
    length: int
    trace: list[Any] = field(default_factory=list, repr=False)


def play(envs: VLAVectorEnv, seeds: Sequence[Sequence[int]], act: Act) -> list[Played]:
    """Play an episode of each seed in each env.

    Args:
        envs: of `make_chunk_envs`; their episodes are cut off, and they idle afterwards.
        seeds: of the episodes of each env.
        act: see `Act`.

    Returns:
        the episodes in the order in which they ended. One whose simulator crashed is left out.
    """
    plans = [list(some) for some in seeds]
    envs.set_attr("seeds", [list(plan) for plan in plans])
    observation, _ = envs.reset()
    found: list[Played] = []
    traces: list[list[Any]] = [[] for _ in plans]
    lengths = [0] * len(plans)
    left = [len(plan) for plan in plans]
    done = [0] * len(plans)
    while any(left):
        actions, rows = act(observation)
        observation, _, terminated, truncated, infos = envs.step(actions)
        ended = terminated | truncated
        for i in np.flatnonzero(left).tolist():
            info = infos["final_info"] if ended[i] else infos
            traces[i].append(rows[i])
            lengths[i] += int(info["control_steps"][i])
            if not ended[i]:
                continue
            if not ("crashed" in info and info["crashed"][i]):
                success = bool(info["success"][i])
                found.append(Played(i, plans[i][done[i]], success, lengths[i], traces[i]))
            traces[i], lengths[i] = [], 0
            done[i], left[i] = done[i] + 1, left[i] - 1
    return found
