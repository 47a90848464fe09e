"""What an evaluation plays: the caller's own rules, or those of a published protocol."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_gym import registration
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.protocols import Protocol, get_protocol, list_protocols
from vla_gym.evaluation.records import plain_id

__all__ = ["Rules", "check_least", "find_ids", "make_rules"]

SUCCESS_RULES = ("any", "last")


@dataclass(frozen=True)
class Rules:
    """What is played: of a published protocol, of the caller, or both.

    Attributes:
        max_steps: each id -> its horizon, None for the task's own.
        protocol: the published one's name, `""` for none.
    """

    max_steps: dict[str, int | None]
    episodes: int
    seed: int
    keywords: dict[str, Any]
    success: str
    protocol: str = ""


def make_rules(
    protocol: str | None,
    ids: Sequence[str] | None,
    episodes: int | None,
    seed: int | None,
    keywords: Mapping[str, Any],
    max_steps: int | None,
    success: str | None,
) -> Rules:
    """Return the rules of a protocol, or of the arguments, as `evaluate` takes them.

    Raises:
        InvalidOption: an argument is not valid, or says something else than the protocol.
        UnknownName: there is no such protocol.
        DependencyNotInstalled: no task of the protocol can be played here.
    """
    for name in ("render_mode", "max_episode_steps", "disable_env_checker"):
        if name in keywords:
            raise InvalidOption(f"keyword {name!r} is the evaluator's own; see max_steps and video")
    if success not in (None, *SUCCESS_RULES):
        raise InvalidOption(f"success={success!r} must be one of {SUCCESS_RULES}")
    if isinstance(ids, str):
        raise InvalidOption(f"ids={ids!r} must be a list of names")
    found = None if ids is None else find_ids(ids)
    if protocol is None:
        if not found or episodes is None:
            raise InvalidOption(
                f"ids={ids} and episodes={episodes}: both must be given, or a protocol; there are "
                + ", ".join(known.name for known in list_protocols())
            )
        horizons = dict.fromkeys(found, max_steps)
        rules = Rules(horizons, episodes, seed or 0, dict(keywords), success or "any")
    else:
        published = get_protocol(protocol)
        _refuse_changes(published, keywords, max_steps, success)
        if found is None:
            found, _ = published.find_playable(keywords)
        elif foreign := [env_id for env_id in found if plain_id(env_id) not in published.ids]:
            raise InvalidOption(f"{', '.join(foreign)}: not of the protocol {published.name}")
        rules = Rules(
            {env_id: published.horizon(plain_id(env_id)) for env_id in found},
            published.episodes if episodes is None else episodes,
            published.seed if seed is None else seed,
            {**keywords, **published.keywords},
            published.success,
            published.name,
        )
    check_least(episodes=rules.episodes, seed=rules.seed, max_steps=max_steps)
    return rules


def _refuse_changes(
    protocol: Protocol, keywords: Mapping[str, Any], max_steps: int | None, success: str | None
) -> None:
    """Raise where something is asked for that would make another protocol of it."""
    asked = {"max_steps": max_steps, "success": success, **keywords}
    fixed = {"max_steps": protocol.max_steps, "success": protocol.success, **protocol.keywords}
    changed = [
        f"{name}={asked[name]!r} (it has {value!r})"
        for name, value in fixed.items()
        if asked.get(name) is not None and asked[name] != value
    ]
    if changed:
        raise InvalidOption(
            f"the protocol {protocol.name} fixes {', '.join(changed)}. Leave that out, or evaluate "
            "without a protocol"
        )


def check_least(**numbers: int | None) -> None:
    """Raise `InvalidOption` where a number is below its least value; None is none."""
    for name, value in numbers.items():
        least = 0 if name in ("seed", "retries", "failures") else 1
        if value is not None and value < least:
            raise InvalidOption(f"{name}={value} must be at least {least}")


def find_ids(patterns: Iterable[str]) -> list[str]:
    """Return the registered ids that the patterns name, each once, in the order of the patterns.

    A pattern is an id, with or without `VLA/` and its version, or a glob such as `"MetaWorld-*"`;
    `"module:id"` imports the module first, as `gym.make` does. The name of a benchmark, such as
    `"MT10"` or `"ML10-train"` (`Suite.benchmarks`), stands for its tasks.

    Raises:
        InvalidOption: a pattern names nothing; the message has the nearest ids.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        module, colon, name = pattern.rpartition(":")
        if colon:
            importlib.import_module(module)
        ids = registration.list_ids()
        benchmarks = {key.upper(): some for key, some in registration.list_benchmarks().items()}
        matches = benchmarks.get(name.upper()) or [i for i in ids if _names(name, i)]
        if not matches:
            raise InvalidOption(_unknown_id(name, ids, benchmarks))
        found.update(dict.fromkeys(module + colon + env_id for env_id in matches))
    return list(found)


def _names(pattern: str, env_id: str) -> bool:
    short = env_id.removeprefix("VLA/")
    forms = (env_id, short, _unversioned(env_id), _unversioned(short))
    return any(fnmatch.fnmatchcase(form.lower(), pattern.lower()) for form in forms)


def _unversioned(name: str) -> str:
    return re.sub(r"-v\d+$", "", name)


def _unknown_id(name: str, ids: list[str], benchmarks: Iterable[str]) -> str:
    short = {_unversioned(env_id.removeprefix("VLA/")): env_id for env_id in ids}
    folded = {key.lower(): key for key in short}
    asked = _unversioned(name.removeprefix("VLA/")).lower().replace("_", "")
    near = [folded[key] for key in difflib.get_close_matches(asked, folded, n=3, cutoff=0.5)]
    near += [known for known in benchmarks if known.startswith(name.upper())]
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return f"no id is named {name!r}.{hint} `vla-gym list` shows all {len(ids)} ids."
