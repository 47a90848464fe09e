"""What the envs of a vector env must have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium import spaces

from vla_gym.errors import InvalidOption
from vla_gym.vector.group import Maker

__all__ = ["Common", "find_common"]


class Common(NamedTuple):
    """What all envs have in common; metadata and render mode are the first one's."""

    observation: spaces.Space[Any]
    action: spaces.Space[Any]
    metadata: dict[str, Any]
    render_mode: str | None


def find_common(makers: Sequence[Maker]) -> Common:
    """Make each env and compare the spaces. That is cheap: its simulator starts at a reset.

    Raises:
        InvalidOption: there is no env, or the spaces differ; the message says which and how.
    """
    if not makers:
        raise InvalidOption("a vector env needs at least one env")
    found: dict[str, dict[str, spaces.Space[Any]]] = {}
    common = None
    for number, maker in enumerate(makers):
        env = maker()
        name = env.spec.id if env.spec is not None else str(env)
        found[f"{name} (number {number})"] = _list_spaces(env)
        if common is None:
            common = Common(
                env.observation_space, env.action_space, dict(env.metadata), env.render_mode
            )
        env.close()
    assert common is not None
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
    return common


def _list_spaces(env: gym.Env[Any, Any]) -> dict[str, spaces.Space[Any]]:
    found: dict[str, spaces.Space[Any]] = {"action": env.action_space}
    if isinstance(env.observation_space, spaces.Dict):
        named = env.observation_space.spaces.items()
        return found | {f"observation {name!r}": space for name, space in named}
    return found | {"observation": env.observation_space}
