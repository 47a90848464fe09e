"""Evaluate policies on tasks: every policy plays the same seeded episodes of every task."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_gym import registration
from vla_gym.errors import ContractMismatch, InvalidOption, SimulatorCrashed
from vla_gym.evaluation.records import (
    Record,
    RecordFile,
    add_run,
    describe_differences,
    describe_episode,
    load_records,
    now,
    plain_id,
)
from vla_gym.evaluation.workers import Answer, Check, Died, Failed, Pair, Play, Played, Pool

__all__ = ["Evaluation", "evaluate", "find_ids"]

logger = logging.getLogger(__name__)

PolicySource = str | Callable[[], Any] | Any
"""A name, a picklable function that returns a policy, or a model of Stable-Baselines3."""


@dataclass(frozen=True)
class Evaluation:
    """The result of one call of `evaluate`.

    Attributes:
        folder: where the records are.
        records: all of this call's episodes, also those that an earlier call had finished.
        mismatches: (policy, id) -> why the policy does not fit the task; not evaluated.
    """

    folder: Path
    records: tuple[Record, ...]
    mismatches: Mapping[tuple[str, str], str]


def evaluate(
    policies: Sequence[str] | Mapping[str, PolicySource],
    ids: Sequence[str],
    *,
    episodes: int,
    folder: str | Path,
    seed: int = 0,
    workers: int = 1,
    keywords: Mapping[str, Any] | None = None,
    max_steps: int | None = None,
    deterministic: bool = True,
    video: bool = True,
    skip_mismatches: bool = False,
    on_start: Callable[[int, int], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> Evaluation:
    """Play `episodes` episodes of every policy on every task and record each at once.

    Episode i has the seed `seed + i` for every policy, so policies meet the same episodes; a suite
    with a fixed list of episodes (`Suite.protocol_options`) plays those of these seeds. Success at
    any step ends an episode. Neither the number of workers nor videos nor what the folder
    already holds change a result. Called again with the same folder, it plays only what is missing
    or crashed. Ctrl-C keeps all finished episodes.

    Args:
        policies: names that `make_policy` takes, or label -> name, picklable function that returns
            a policy, or model of Stable-Baselines3, which is saved into the folder.
        ids: as `find_ids` takes them.
        episodes: of each policy on each task.
        folder: for `records.jsonl`, `run.json`, `videos/` and the workers' logs.
        seed: of the first episode.
        workers: processes; each steps one env.
        keywords: of `gym.make`, before those that a policy's spec asks for.
        max_steps: horizon of every task [control steps], None for its own.
        deterministic: passed to the policies.
        video: record the first episode of each policy and task.
        skip_mismatches: leave out pairs of policy and task that do not fit, instead of raising.
        on_start: called once with the number of episodes in all and of those already finished.
        on_record: called with each record as it is written.

    Raises:
        ContractMismatch: a policy does not fit a task; the message lists all such pairs.
        InvalidOption: an argument is not valid, or the folder holds episodes of another protocol.
        SimulatorCrashed: a worker process died before its first episode.
    """
    if episodes < 1 or workers < 1 or seed < 0 or (max_steps is not None and max_steps < 1):
        raise InvalidOption(
            f"episodes={episodes}, workers={workers} and max_steps={max_steps} must be at least 1, "
            f"seed={seed} at least 0"
        )
    folder = Path(folder)
    policies = _save_models(policies, folder)
    pairs = _pair_up(policies, find_ids(ids), dict(keywords or {}), max_steps, deterministic)
    with RecordFile(folder) as file, Pool(workers, folder / "logs") as pool:
        protocols, mismatches = _check_all(pool, pairs)
        if mismatches and (not skip_mismatches or not protocols):
            raise ContractMismatch(
                f"{len(mismatches)} of {len(pairs)} pairs of policy and task do not fit: "
                + "; ".join(f"{p} on {i}: {why}" for (p, i), why in mismatches.items())
                + ". Leave them out, or skip such pairs (--skip-mismatches)"
            )
        pairs = [pair for pair in pairs if pair in protocols]
        known = {record.key: record for record in load_records(folder)}
        _refuse_other_protocols(folder, known.values(), pairs, protocols)
        jobs = [
            Play(
                pair,
                i,
                seed + i,
                _protocol_options(protocols[pair], seed + i),
                _video_path(folder, pair) if video and i == 0 else None,
            )
            for pair in pairs
            for i in range(episodes)
        ]
        finished = {key for key, record in known.items() if record.outcome != "crashed"}
        keys = [_key(job) for job in jobs]
        open_jobs = [job for job, key in zip(jobs, keys, strict=True) if key not in finished]
        add_run(
            folder,
            policies={pair.policy: protocols[pair]["policy_source"] for pair in pairs},
            ids=list(dict.fromkeys(pair.id for pair in pairs)),
            episodes=episodes,
            seed=seed,
            workers=workers,
            mismatches=[{"policy": p, "id": i, "why": w} for (p, i), w in mismatches.items()],
        )
        if on_start is not None:
            on_start(len(jobs), len(jobs) - len(open_jobs))
        for job, answer in pool.run(open_jobs):
            assert isinstance(job, Play)
            record = _to_record(job, answer, protocols[job.pair], folder)
            file.append(record)
            known[record.key] = record
            logger.info("%s on %s, seed %d: %s", record.policy, record.id, job.seed, record.outcome)
            if on_record is not None:
                on_record(record)
    return Evaluation(folder, tuple(known[key] for key in keys), mismatches)


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


def _save_models(
    policies: Sequence[str] | Mapping[str, PolicySource], folder: Path
) -> Sequence[str] | Mapping[str, str | Callable[[], Any]]:
    """Put models of Stable-Baselines3 into files: they hold their env, and cannot be pickled.

    Raises:
        InvalidOption: something else that is no name and cannot be called.
    """
    if not isinstance(policies, Mapping):
        return policies
    sources: dict[str, str | Callable[[], Any]] = {}
    for label, source in policies.items():
        if isinstance(source, str) or callable(source):
            sources[label] = source
            continue
        if not (hasattr(source, "predict") and hasattr(source, "save")):
            raise InvalidOption(
                f"policy {label!r} is a {type(source).__name__}; valid are a name, a function "
                "without arguments that returns a policy, and a model of Stable-Baselines3"
            )
        path = (folder / "policies" / f"{_slug(label)}.zip").resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        source.save(path)
        sources[label] = f"sb3:{path}"
    return sources


def _pair_up(
    policies: Sequence[str] | Mapping[str, str | Callable[[], Any]],
    ids: list[str],
    keywords: dict[str, Any],
    max_steps: int | None,
    deterministic: bool,
) -> list[Pair]:
    if isinstance(policies, str) or not policies or not ids:
        raise InvalidOption(
            f"policies={policies!r} and ids={ids!r}: both must be lists of at least one name"
        )
    for name in ("render_mode", "max_episode_steps", "disable_env_checker"):
        if name in keywords:
            raise InvalidOption(f"keyword {name!r} is the evaluator's own; see max_steps and video")
    sources = policies if isinstance(policies, Mapping) else {name: name for name in policies}
    return [
        Pair(label, source, env_id, keywords, max_steps, deterministic)
        for env_id in ids
        for label, source in sources.items()
    ]


def _check_all(
    pool: Pool, pairs: list[Pair]
) -> tuple[dict[Pair, dict[str, Any]], dict[tuple[str, str], str]]:
    """Return the protocol of each pair that fits, and why the others do not."""
    protocols: dict[Pair, dict[str, Any]] = {}
    reasons: dict[Pair, str] = {}
    for job, answer in pool.run([Check(pair) for pair in pairs]):
        if isinstance(answer, dict):
            protocols[job.pair] = answer
        elif isinstance(answer, Failed):
            if not isinstance(answer.error, ContractMismatch):
                raise answer.error
            reasons[job.pair] = str(answer.error)
        else:
            assert isinstance(answer, Died)
            raise SimulatorCrashed(
                f"making {job.pair.policy} and {job.pair.id} failed before the first episode: "
                f"{answer.text}"
            )
    in_order = {(p.policy, p.id): reasons[p] for p in pairs if p in reasons}
    return protocols, in_order


def _refuse_other_protocols(
    folder: Path,
    known: Iterable[Record],
    pairs: list[Pair],
    protocols: dict[Pair, dict[str, Any]],
) -> None:
    wanted = {(pair.policy, plain_id(pair.id)): protocols[pair] for pair in pairs}
    for record in known:
        protocol = wanted.get((record.policy, record.id))
        if protocol is None:
            continue
        options = _protocol_options(protocol, record.seed)
        if protocol == record.protocol and options == record.options:
            continue
        then = {**record.protocol, "reset options": record.options}
        asked = {**protocol, "reset options": options}
        raise InvalidOption(
            f"{folder} holds episodes of {record.policy} on {record.id} under another protocol "
            f"({describe_differences(then, asked)}). Scores of two protocols do not mix: choose "
            "another folder"
        )


def _protocol_options(protocol: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the reset options that the suite's published protocol has for this seed.

    Raises:
        InvalidOption: they cannot be recorded.
    """
    suite = registration.get_suite(protocol["suite"])
    if suite.protocol_options is None:
        return {}
    options = dict(suite.protocol_options(registration.get_task(suite, protocol["task"]), seed))
    try:
        recordable = json.loads(json.dumps(options)) == options
    except TypeError:
        recordable = False
    if not recordable:
        raise InvalidOption(
            f"protocol_options of the suite {suite.name} gives {options!r} for seed {seed}, which "
            f"a record cannot hold; plain JSON values can (text, int, float, bool, None, list, "
            f"dict with text keys)"
        )
    return options


def _to_record(job: Play, answer: Answer, protocol: dict[str, Any], folder: Path) -> Record:
    common: dict[str, Any] = {
        "policy": job.pair.policy,
        "id": plain_id(job.pair.id),
        "episode": job.episode,
        "seed": job.seed,
        "protocol": protocol,
        "options": job.options,
        "date": now(),
    }
    if isinstance(answer, Died | Failed):
        return Record(outcome="crashed", error=answer.text, **common)
    assert isinstance(answer, Played)
    video = ""
    if answer.video and job.video is not None:
        video = job.video.relative_to(folder).as_posix()
    return Record(**describe_episode(answer.episode), video=video, **common)


def _key(job: Play) -> tuple[str, str, int]:
    return job.pair.policy, plain_id(job.pair.id), job.seed


def _video_path(folder: Path, pair: Pair) -> Path:
    return folder / "videos" / f"{_slug(pair.policy)}--{_slug(_short(pair.id))}.mp4"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _short(env_id: str) -> str:
    return plain_id(env_id).removeprefix("VLA/")
