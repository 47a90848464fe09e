"""Vector envs of different tasks, suites and interpreters: `make_vec`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from vla_gym.errors import InvalidOption, UnknownName
from vla_gym.vector.common import find_common
from vla_gym.vector.env import KINDS, VLAVectorEnv

__all__ = ["VLAVectorEnv", "make_vec"]

Spec = str | tuple[str, Mapping[str, Any]]

GYMNASIUM = ("async", "sync")
MODES = (*KINDS, *GYMNASIUM)


def make_vec(
    specs: Sequence[Spec],
    *,
    vectorization_mode: str = "process",
    workers: int | None = None,
    autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    copy: bool = True,
    vector_kwargs: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> VectorEnv[Any, Any, Any]:
    """Make a vector env with one env per spec, which may differ in all but their spaces.

    `gym.make_vec(id, num_envs=...)` makes equal envs, and works for every id of this package. This
    one is faster, and mixes tasks and suites, and interpreters too:

        make_vec(
            ["VLA/MetaWorld-Reach-v0", ("VLA/RLBench-ReachTarget-v0", {"python": "python3.8"})],
            image_size=84,
        )

    Args:
        specs: for each env its id (as `gym.make` takes it), or the id and keywords of its own.
        vectorization_mode: `"process"` or `"thread"`: `VLAVectorEnv`; `"async"`, `"sync"`:
            Gymnasium's own, one process for each env, or one env after the other in this process.
        workers: of `VLAVectorEnv`: how many processes or threads; None follows from the cores.
        autoreset_mode: what follows the end of an episode.
        copy: whether observations are the caller's own.
        vector_kwargs: further ones of `AsyncVectorEnv` or `SyncVectorEnv`. Processes are spawned
            unless its `context` says otherwise: simulators and GL do not survive a fork.
        **keywords: of `gym.make`, for all envs; a spec's own go first.

    Raises:
        InvalidOption: there is no spec, or the spaces differ; the message says which and how.
        UnknownName: there is no such mode.
    """
    if vectorization_mode not in MODES:
        raise UnknownName("vectorization_mode", vectorization_mode, MODES)
    if isinstance(specs, str) or not specs:
        raise InvalidOption(f"specs={specs!r} must be a list of at least one id or (id, keywords)")
    pairs = [(spec, {}) if isinstance(spec, str) else spec for spec in specs]
    makers = [functools.partial(_make, env_id, {**keywords, **own}) for env_id, own in pairs]
    general = {"autoreset_mode": autoreset_mode, "copy": copy}
    if vectorization_mode in KINDS:
        if vector_kwargs:
            raise InvalidOption(
                f"vector_kwargs={dict(vector_kwargs)!r} are of vectorization_mode {GYMNASIUM}; "
                f"{vectorization_mode!r} takes workers, autoreset_mode and copy"
            )
        return VLAVectorEnv(makers, workers=workers, kind=vectorization_mode, **general)
    if workers is not None:
        raise InvalidOption(f"workers={workers!r} is of vectorization_mode {KINDS}")
    find_common(makers)
    options = {**general, **(vector_kwargs or {})}
    if vectorization_mode == "sync":
        return SyncVectorEnv(makers, **options)
    return AsyncVectorEnv(makers, **{"context": "spawn", **options})


def _make(env_id: str, keywords: dict[str, Any]) -> gym.Env[Any, Any]:
    """Make one env. A spawned process registers all ids as it imports this module."""
    return gym.make(env_id, **keywords)
