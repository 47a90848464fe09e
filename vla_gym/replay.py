"""Replay a data set: do its actions again from the stored seeds, and compare what happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from vla_gym.data.dataset import Dataset
from vla_gym.data.demos import Demonstration
from vla_gym.errors import InvalidOption

__all__ = ["Verdict", "replay"]


@dataclass(frozen=True)
class Verdict:
    """How the replay of one episode went.

    Attributes:
        episode: its number in the data set.
        id: of the env.
        seed: None where the data set has none: it cannot be replayed.
        steps: of the episode.
        same: whether all was equal; None where it cannot be replayed.
        step: the first step after which something differed, 0 is the reset; None where all is same.
        what: what differed first, `""` where nothing did.
    """

    episode: int
    id: str
    seed: int | None
    steps: int
    same: bool | None
    step: int | None = None
    what: str = ""


def replay(
    dataset: Dataset,
    episodes: Sequence[int] | None = None,
    *,
    pictures: bool = False,
    tolerance: float = 0.0,
    keywords: Mapping[str, Any] | None = None,
) -> Iterator[Verdict]:
    """Yield the verdict on each episode, step by step: proprio, state, reward, success, the end.

    What is carried out are the executed actions, those with noise where noise was added.

    Args:
        dataset: what to replay.
        episodes: their numbers; None is all.
        pictures: compare the pictures too, which must be stored exactly, and are drawn in the same
            way by the same renderer only.
        tolerance: largest difference of numbers that passes; 0 is bit for bit.
        keywords: of `gym.make`, over the stored ones (such as `python=...`).

    Raises:
        InvalidOption: there is no such episode, or videos do not hold exact pictures.
    """
    numbers = range(len(dataset)) if episodes is None else list(episodes)
    if bad := [i for i in numbers if not 0 <= i < len(dataset)]:
        raise InvalidOption(f"{dataset.folder} has {len(dataset)} episodes, none of them {bad}")
    if pictures and any(f["dtype"] == "video" for f in dataset.features.values()):
        raise InvalidOption(
            f"{dataset.folder} stores its pictures as videos, which are not exact; replay it "
            "without comparing pictures"
        )
    env, made = None, None
    try:
        for number in numbers:
            demonstration = dataset.load(number)
            about = (number, demonstration.id, demonstration.seed, len(demonstration))
            if demonstration.seed is None:
                yield Verdict(*about, same=None, what="no seed repeats it")
                continue
            wanted = {**demonstration.keywords, **(keywords or {})}
            if not pictures:
                wanted["cameras"] = ()
            if (demonstration.id, wanted) != made:
                if env is not None:
                    env.close()
                env = gym.make(demonstration.id, disable_env_checker=True, **wanted)
                made = (demonstration.id, wanted)
            assert env is not None
            difference = _play(env, demonstration, tolerance)
            if difference is None:
                yield Verdict(*about, same=True)
            else:
                yield Verdict(*about, same=False, step=difference[0], what=difference[1])
    finally:
        if env is not None:
            env.close()


def _play(
    env: gym.Env[Any, Any], demonstration: Demonstration, tolerance: float
) -> tuple[int, str] | None:
    """Return the first step that differs and what differs there, None where nothing does."""
    observation, info = env.reset(seed=demonstration.seed, options=dict(demonstration.options))
    if info["instruction"] != demonstration.instruction:
        return 0, f"the instruction is {info['instruction']!r}, not {demonstration.instruction!r}"
    if what := _compare(observation, demonstration, 0, tolerance):
        return 0, what
    last, terminated = len(demonstration), False
    for step, action in enumerate(demonstration.actions, start=1):
        observation, reward, terminated, truncated, info = env.step(action)
        if what := _compare(observation, demonstration, step, tolerance):
            return step, what
        stored = float(demonstration.rewards[step - 1])
        if abs(float(np.float32(reward)) - stored) > tolerance:
            return step, f"the reward is {reward}, not {stored}"
        if bool(info["success"]) != demonstration.successes[step - 1]:
            return step, f"success is {info['success']}"
        if (terminated or truncated) and step < last:
            return step, f"the episode ends, {last - step} steps early"
    if bool(terminated) != demonstration.terminated:
        return last, f"terminated is {bool(terminated)}, not {demonstration.terminated}"
    return None


def _compare(
    observation: Mapping[str, Any], demonstration: Demonstration, step: int, tolerance: float
) -> str:
    for key, stored in demonstration.observations.items():
        if key not in observation:  # a picture that is not drawn
            continue
        seen, known = np.asarray(observation[key]), stored[step]
        if seen.shape != known.shape:
            return f"{key} has the shape {seen.shape}, not {known.shape}"
        if np.array_equal(seen, known):
            continue
        gap = np.abs(seen.astype(np.float64) - known.astype(np.float64))
        if not gap.max() <= tolerance:
            place = int(np.nanargmax(gap))
            return f"{key} differs by up to {gap.max():.3g} (entry {place})"
    return ""
