"""Vector envs of different tasks, suites and interpreters: `make_vec`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from vla_gym.errors import InvalidOption, UnknownName

__all__ = ["make_vec"]

Spec = str | tuple[str, Mapping[str, Any]]

MODES = ("async", "sync")


def make_vec(
    specs: Sequence[Spec],
    *,
    vectorization_mode: str = "async",
    vector_kwargs: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> VectorEnv[Any, Any, Any]:
    """Make a vector env with one env per spec, which may differ in all but their spaces.

    `gym.make_vec(id, num_envs=...)` makes equal envs, and works for every id of this package. This
    one mixes tasks and suites, and interpreters too:

        make_vec(
            ["VLA/MetaWorld-Reach-v0", ("VLA/RLBench-ReachTarget-v0", {"python": "python3.8"})],
            image_size=84,
        )

    Args:
        specs: for each env its id (as `gym.make` takes it), or the id and keywords of its own.
        vectorization_mode: `"async"`: each env in a process of its own; `"sync"`: one after the
            other in this one.
        vector_kwargs: of `AsyncVectorEnv` or `SyncVectorEnv`. Processes are spawned unless its
            `context` says otherwise: simulators and GL do not survive a fork.
        **keywords: of `gym.make`, for all envs; a spec's own go first.

    Raises:
        InvalidOption: there is no spec, or the spaces differ; the message says which and how.
        UnknownName: there is no such mode.
    """
    if vectorization_mode not in MODES:
        raise UnknownName("vectorization_mode", vectorization_mode, MODES)
    pairs = [(spec, {}) if isinstance(spec, str) else (spec[0], dict(spec[1])) for spec in specs]
    if isinstance(specs, str) or not pairs:
        raise InvalidOption(f"specs={specs!r} must be a list of at least one id or (id, keywords)")
    makers = [functools.partial(_make, env_id, {**keywords, **own}) for env_id, own in pairs]
    _refuse_other_spaces(makers)
    options = dict(vector_kwargs or {})
    if vectorization_mode == "sync":
        return SyncVectorEnv(makers, **options)
    return AsyncVectorEnv(makers, **{"context": "spawn", **options})


def _make(env_id: str, keywords: dict[str, Any]) -> gym.Env[Any, Any]:
    """Make one env. A spawned process registers all ids as it imports this module."""
    return gym.make(env_id, **keywords)


def _refuse_other_spaces(makers: list[functools.partial[gym.Env[Any, Any]]]) -> None:
    """Compare the spaces of all envs. Making one is cheap: its simulator starts at a reset."""
    found: dict[str, dict[str, spaces.Space[Any]]] = {}
    for number, maker in enumerate(makers):
        env = maker()
        found[f"{maker.args[0]} (number {number})"] = _list_spaces(env)
        env.close()
    (first, expected), *others = found.items()
    for other, actual in others:
        differences = [
            f"{name}: {expected.get(name, 'none')} and {actual.get(name, 'none')}"
            for name in dict.fromkeys([*expected, *actual])
            if expected.get(name) != actual.get(name)
        ]
        if differences:
            raise InvalidOption(
                f"a vector env needs equal spaces, but {first} and {other} differ in "
                + "; ".join(differences)
                + ". Choose keywords that make them equal (cameras, image_size, state, proprio, "
                "action_mode), or make two vector envs"
            )


def _list_spaces(env: gym.Env[Any, Any]) -> dict[str, spaces.Space[Any]]:
    found: dict[str, spaces.Space[Any]] = {"action": env.action_space}
    if isinstance(env.observation_space, spaces.Dict):
        named = env.observation_space.spaces.items()
        return found | {f"observation {name!r}": space for name, space in named}
    return found | {"observation": env.observation_space}
