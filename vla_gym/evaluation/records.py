"""What is known of an episode: a `Record`, and the facts that stand beside a score."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from vla_gym._version import __version__
from vla_gym.rollout import Episode

__all__ = [
    "OUTCOMES",
    "TIME_FIELDS",
    "Key",
    "Record",
    "describe_differences",
    "describe_episode",
    "describe_machine",
    "name_video",
    "now",
    "plain_id",
    "slug",
    "versions_of",
]

OUTCOMES = ("success", "failure")
"""Of an episode that was played to its end. `"crashed"` and `"timeout"` say that there is none."""

TIME_FIELDS = ("env_seconds", "policy_seconds", "date", "attempts")
"""Fields of a record that differ from run to run; all others repeat."""


class Key(NamedTuple):
    """What names an episode in its folder."""

    policy: str
    id: str
    seed: int
    perturbation: str


@dataclass(frozen=True)
class Record:
    """One episode.

    Attributes:
        policy: the policy's label in this evaluation.
        id: the env's id, with its version.
        episode: its number i; its seed is the evaluation's seed + i for every policy (paired).
        seed, episode_seed: of the env, and of the simulator's draws.
        outcome: `"success"` (as the protocol's rule says), `"failure"`, or that there is none:
            `"crashed"` (an error, or its process ended) or `"timeout"` (it stood still).
        perturbation: what was changed to see whether the policy bears it, `""`: nothing.
        options: of `env.reset`, as the suite's protocol wants them for this seed.
        made_with: keywords of `gym.make` that make its env again; empty where there is no outcome.
        success_at_end, episode_return, length, env_seconds, policy_seconds, terminated, truncated,
            instruction, chain_length: as in `vla_gym.rollout.Episode`; None where the episode
            crashed.
        attempts: how often it was begun: once, and once more for each crash that was tried again.
        error: why there is no outcome, else "".
        video: file name of its video below the folder, else "".
        protocol: all that a score depends on besides policy and seed: simulator, versions, horizon,
            success rule, action mode, cameras, image size, reward, render quality, keywords.
        date: when it ended, UTC.
    """

    policy: str
    id: str
    episode: int
    seed: int
    outcome: str
    protocol: dict[str, Any]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    made_with: dict[str, Any] = dataclasses.field(default_factory=dict)
    perturbation: str = ""
    episode_seed: int | None = None
    success_at_end: bool | None = None
    episode_return: float | None = None
    length: int | None = None
    env_seconds: float | None = None
    policy_seconds: float | None = None
    terminated: bool | None = None
    truncated: bool | None = None
    instruction: str = ""
    chain_length: int | None = None
    attempts: int = 1
    error: str = ""
    video: str = ""
    date: str = ""

    @property
    def key(self) -> Key:
        """What names this episode in its folder; a later record of the same key replaces it."""
        return Key(self.policy, self.id, self.seed, self.perturbation)

    @property
    def counts(self) -> bool:
        """Whether the episode has an outcome, and so counts in a rate."""
        return self.outcome in OUTCOMES

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Return the record of one line; fields of a later version are dropped."""
        found = json.loads(line)
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in found.items() if name in names})


def describe_episode(episode: Episode, success: str = "any") -> dict[str, Any]:
    """Return the fields of a `Record` that an episode played to its end fills.

    Args:
        episode: what happened.
        success: `"any"`: solved after any step; `"last"`: solved after the last one.
    """
    solved = episode.success_at_end if success == "last" else episode.success
    return {
        "outcome": "success" if solved else "failure",
        "episode_seed": episode.episode_seed,
        "success_at_end": episode.success_at_end,
        "episode_return": episode.episode_return,
        "length": episode.length,
        "env_seconds": round(episode.env_seconds, 6),
        "policy_seconds": round(episode.policy_seconds, 6),
        "terminated": episode.terminated,
        "truncated": episode.truncated,
        "instruction": episode.instruction,
        "chain_length": episode.chain_length,
    }


def describe_differences(then: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return in words what of a protocol is asked for and was played otherwise."""
    return "; ".join(
        f"{name}: {then.get(name)} then, {value} now"
        for name, value in asked.items()
        if value != then.get(name)
    )


def name_video(record: Record) -> str:
    """Return the name of the file of an episode's video."""
    parts = [record.policy, record.id.removeprefix("VLA/"), str(record.seed), record.perturbation]
    return slug("--".join(filter(None, parts))) + ".mp4"


def slug(name: str) -> str:
    """Return a name as part of the name of a file."""
    return re.sub(r"[^\w.=-]+", "_", name)


def plain_id(env_id: str) -> str:
    """Return an id without the module that registers it (`"vla_gym:VLA/..."`)."""
    return env_id.rpartition(":")[2]


def now() -> str:
    """Return the date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions_of(distributions: tuple[str, ...]) -> dict[str, str]:
    """Return the installed versions of these packages; those not installed are left out."""
    versions = {}
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = __version__ if name == "vla-gym" else metadata.version(name)
    return versions


def describe_machine() -> dict[str, Any]:
    """Return processor, usable cores, memory, system and Python version."""
    return {
        "processor": _processor(),
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):  # Linux: those that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _processor() -> str:
    with contextlib.suppress(OSError):  # Linux only
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
