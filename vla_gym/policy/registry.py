"""Policies by name: entry points of the group `vla_gym.policies`, of this and of any package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_gym.errors import BrokenDependency, InvalidOption, UnknownName
from vla_gym.policy.base import Policy

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["list_policies", "make_policy", "register_policy"]

GROUP = "vla_gym.policies"

_registered: dict[str, Callable[..., Any]] = {}


def register_policy(name: str, factory: Callable[..., Any]) -> None:
    """Make `factory` available under `name` in this process; packages use the entry-point group."""
    if ":" in name:
        raise ValueError(f"a policy's name must not hold a colon: {name!r}")
    _registered[name] = factory


def list_policies() -> list[str]:
    """Return the names that `make_policy` takes, without importing any policy."""
    return sorted({*_registered, *_entry_points()})


def make_policy(name: str, **keywords: Any) -> Policy:
    """Return a policy by its name, for example `"random"` or `"sb3:agent.zip"`.

    Args:
        name: a name of `list_policies()`; behind a colon, what that policy is made from (a file).
            Or a folder whose `config.json` says which policy it is a checkpoint of (`"policy"`).
        **keywords: of the policy.

    Raises:
        UnknownName: there is no policy of that name.
        InvalidOption: a folder is no checkpoint.
        BrokenDependency: its module cannot be imported, or two packages offer it.
    """
    key, colon, argument = name.partition(":")
    if key not in _registered and Path(name).is_dir() and key not in _entry_points():
        key, colon, argument = _read_kind(Path(name)), ":", name
    factory = _registered.get(key)
    if factory is None:
        found = _entry_points()
        if key not in found:
            raise UnknownName(
                "policy",
                key,
                list_policies(),
                "this environment (after adding an entry point, repeat `pip install`)",
            )
        factory = _load(found[key])
    return factory(argument, **keywords) if colon else factory(**keywords)


def _read_kind(folder: Path) -> str:
    """Return the name of the policy that a folder is a checkpoint of."""
    config = folder / "config.json"
    try:
        kind = json.loads(config.read_text())["policy"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidOption(
            f"the folder {str(folder)!r} is no checkpoint of a policy: its config.json must name "
            f'one as "policy" ({type(error).__name__}: {error}). For a checkpoint of another '
            f"program, name the policy that reads it: pi0:{folder}, for example"
        ) from None
    if not isinstance(kind, str) or kind not in list_policies():
        raise UnknownName("policy", str(kind), list_policies(), str(config))
    return kind


def _entry_points() -> dict[str, list[EntryPoint]]:
    """Return name -> entry points: more than one where packages offer different things under it."""
    from importlib.metadata import (
        entry_points,
    )  # here: it costs as much as all else of this package

    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        known = found.setdefault(point.name, [])
        if point.value not in [other.value for other in known]:
            known.append(point)
    return found


def _load(points: list[EntryPoint]) -> Callable[..., Any]:
    if len(points) > 1:
        values = " and ".join(point.value for point in points)
        raise BrokenDependency(
            f"several packages offer a policy named {points[0].name!r}: {values}. Uninstall or "
            "rename one"
        )
    (point,) = points
    try:
        return point.load()
    except Exception as error:  # an import may run any code
        raise BrokenDependency(
            f"the policy {point.name!r} ({point.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
