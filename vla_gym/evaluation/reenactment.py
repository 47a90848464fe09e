"""A recorded episode played again from its actions, without its policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vla_gym.errors import InvalidOption
from vla_gym.evaluation.records import Record
from vla_gym.evaluation.store import load_trace
from vla_gym.evaluation.video import write_video
from vla_gym.perturbations import parse_perturbation, perturb
from vla_gym.rollout import Trace, run_episode

__all__ = ["Reenactment", "Replayed", "find_difference", "replay_record"]


class Reenactment:
    """A policy that takes the actions of a recorded episode, whatever it sees."""

    def __init__(self, trace: Trace) -> None:
        self._actions = trace.actions

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the next action of the one env.

        Raises:
            InvalidOption: the recorded episode had ended here.
        """
        step = 0 if state is None else state[0]
        if step == len(self._actions):
            raise InvalidOption(f"the recorded episode ended after {step} steps, this one goes on")
        return self._actions[step][None], [step + 1]


@dataclass(frozen=True)
class Replayed:
    """How a replay went.

    Attributes:
        record: of the episode.
        step: the first step that showed something else than was recorded, 0 is the reset; None
            where all was the same, bit for bit.
        video: its file, or None.
    """

    record: Record
    step: int | None
    video: Path | None = None


def find_difference(one: Trace, other: Trace) -> int | None:
    """Return the first step at which two episodes showed different things, 0 is the reset."""
    length = min(len(one.digests), len(other.digests))
    different = np.flatnonzero(one.digests[:length] != other.digests[:length])
    if len(different):
        return int(different[0])
    return None if len(one.digests) == len(other.digests) else length


def replay_record(
    folder: Path,
    record: Record,
    *,
    video: Path | None = None,
    size: int | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> Replayed:
    """Play a recorded episode again, and compare what every step shows.

    Args:
        folder: of the evaluation.
        record: one of its records.
        video: file for a video of all steps, at the control rate; None makes none.
        size: height and width of the video [pixels], even; None is what reports have.
        keywords: of `gym.make`, over those of then (such as `python=...`).

    Raises:
        InvalidOption: the folder has no actions of the episode, for it crashed, or the video's
            size is odd.
    """
    trace = load_trace(folder, record.key)
    if trace is None:
        raise InvalidOption(
            f"{folder} has no actions of {record.policy} on {record.id}, seed {record.seed} "
            f"({record.outcome}): only an episode that was played to its end can be replayed"
        )
    if size is not None and size % 2:
        raise InvalidOption(f"a video of {size} pixels cannot be encoded; take an even number")
    more = {} if size is None else {"render_size": size}
    env = _make(record, len(trace.actions), more, keywords or {})
    try:
        episode = run_episode(
            env,
            Reenactment(trace),
            record.seed,
            options=dict(record.options),
            record_every=None if video is None else 1,
            max_frames=len(trace.digests),
            trace=True,
        )
    finally:
        env.close()
    if video is not None:
        video.parent.mkdir(parents=True, exist_ok=True)
        write_video(video, episode.frames, float(env.metadata["render_fps"]))
    assert episode.trace is not None
    step = find_difference(trace, episode.trace)
    if step is None and episode.terminated != record.terminated:  # it would have gone on, or not
        step = episode.length
    return Replayed(record, step, video)


def _make(
    record: Record, length: int, more: Mapping[str, Any], keywords: Mapping[str, Any]
) -> gym.Env[Any, Any]:
    env = gym.make(
        record.id,
        max_episode_steps=length,  # no action is left for a step more, should it not end by itself
        disable_env_checker=True,
        **{
            **record.made_with,
            "simulator": record.protocol["simulator"],  # of then, whatever "auto" is today
            "render_mode": "rgb_array",
            **more,
            **keywords,
        },
    )
    if not record.perturbation:
        return env
    return perturb(env, parse_perturbation(record.perturbation))
