"""Evaluation records on disk: one JSON line per episode, written at once, and `run.json`.

A folder can be continued: what is finished is not run again. So each line also holds the protocol
that it was made under, and a folder takes lines of one protocol per policy and task only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from vla_gym._version import __version__
from vla_gym.errors import InvalidOption
from vla_gym.rollout import Episode

__all__ = [
    "TIME_FIELDS",
    "Record",
    "RecordFile",
    "add_run",
    "describe_differences",
    "describe_episode",
    "describe_machine",
    "load_records",
    "load_runs",
    "plain_id",
    "versions_of",
]

logger = logging.getLogger(__name__)

RECORDS = "records.jsonl"
RUN = "run.json"

TIME_FIELDS = ("env_seconds", "policy_seconds", "date")
"""Fields of a record that differ from run to run; all others repeat."""


@dataclass(frozen=True)
class Record:
    """One episode as one line of `records.jsonl`.

    Attributes:
        policy: the policy's label in this evaluation.
        id: the env's id, with its version.
        episode: its number i; its seed is the evaluation's seed + i for every policy (paired).
        seed, episode_seed: of the env, and of the simulator's draws.
        outcome: `"success"` (solved after any step), `"failure"` or `"crashed"` (no valid outcome).
        options: of `env.reset`, as the suite's protocol wants them for this seed.
        success_at_end, episode_return, length, env_seconds, policy_seconds, terminated, truncated,
            instruction, chain_length: as in `vla_gym.rollout.Episode`; None where the episode
            crashed.
        error: why it crashed, else "".
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
    error: str = ""
    video: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What names this episode in its folder; a later line of the same key replaces it."""
        return self.policy, self.id, self.seed

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Return the record of one line; fields of a later version are dropped."""
        found = json.loads(line)
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in found.items() if name in names})


class RecordFile:
    """`records.jsonl` of one folder, open for appending by one process at a time.

    Opening it cuts off a half-written last line, which a killed process leaves.

    Raises:
        InvalidOption: another process has it open.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RECORDS
        self._file = path.open("ab")
        self._lock(folder)
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            logger.warning("%s: cut off a half-written last line", path)
            self._file.truncate(whole)

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, record: Record) -> None:
        """Write one record and wait until it is on the disk."""
        self._file.write(record.to_json().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _lock(self, folder: Path) -> None:
        try:
            import fcntl
        except ImportError:  # Windows has none; two evaluations into one folder go undetected there
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise InvalidOption(
                f"another evaluation is writing into {folder}; wait for it or choose another folder"
            ) from error


def load_records(folder: Path) -> list[Record]:
    """Return the records of a folder, the last one of each key.

    A half-written last line is left out.

    Raises:
        InvalidOption: a line before the last is not a record.
    """
    path = folder / RECORDS
    if not path.exists():
        return []
    found: dict[tuple[str, str, int], Record] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):  # the last item is "" or half a line
        try:
            record = Record.from_json(line)
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidOption(
                f"line {number} of {path} is not a record ({error}); repair or remove that line"
            ) from error
        found[record.key] = record
    return list(found.values())


def load_runs(folder: Path) -> list[dict[str, Any]]:
    """Return what `run.json` says of each command that wrote into this folder, oldest first."""
    path = folder / RUN
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidOption(f"{path} cannot be read ({error}); repair or remove it") from error


def add_run(folder: Path, **facts: Any) -> None:
    """Add a run to `run.json`: the given facts, the command line, the machine and the date."""
    folder.mkdir(parents=True, exist_ok=True)
    run = {
        "date": now(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": describe_machine(),
        "versions": versions_of(("vla-gym", "gymnasium", "numpy")),
        **facts,
    }
    path = folder / RUN
    text = json.dumps({"runs": [*load_runs(folder), run]}, indent=2, ensure_ascii=False)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)  # a killed process leaves the old file or the new one


def describe_episode(episode: Episode) -> dict[str, Any]:
    """Return the fields of a `Record` that an episode played to its end fills."""
    return {
        "outcome": "success" if episode.success else "failure",
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
