"""Evaluate policies on tasks: every policy plays the same seeded episodes of every task."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vla_gym import registration
from vla_gym.errors import ContractMismatch, InvalidOption, SimulatorCrashed
from vla_gym.evaluation.pool import Finished, Pool, Workers
from vla_gym.evaluation.records import (
    Key,
    Record,
    describe_differences,
    describe_episode,
    name_video,
    now,
    plain_id,
    slug,
)
from vla_gym.evaluation.rules import check_least, find_ids, make_rules
from vla_gym.evaluation.stage import Check, Died, Failed, Film, Pair, Play, Played, TimedOut
from vla_gym.evaluation.store import Store, load_records, load_trace
from vla_gym.evaluation.workers import LocalWorkers
from vla_gym.perturbations import parse_perturbation

__all__ = ["Evaluation", "evaluate", "find_ids"]

logger = logging.getLogger(__name__)

PolicySource = str | Callable[[], Any] | Any
"""A name, a picklable function that returns a policy, or a model of Stable-Baselines3."""

TIMEOUT_S = 600.0
"""Loading a large policy is the longest that a worker is silent."""


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
    ids: Sequence[str] | None = None,
    *,
    folder: str | Path,
    protocol: str | None = None,
    episodes: int | None = None,
    seed: int | None = None,
    keywords: Mapping[str, Any] | None = None,
    max_steps: int | None = None,
    success: str | None = None,
    deterministic: bool = True,
    perturbations: Sequence[str] = (),
    workers: int = 1,
    batch: int = 1,
    ray: str | None = None,
    gpus: float = 0.0,
    timeout: float | None = TIMEOUT_S,
    retries: int = 1,
    shard: tuple[int, int] | None = None,
    video: bool = True,
    failures: int = 0,
    skip_mismatches: bool = False,
    on_start: Callable[[int, int], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> Evaluation:
    """Play `episodes` episodes of every policy on every task and record each at once.

    Episode i has the seed `seed + i` for every policy, so policies meet the same episodes; a suite
    with a fixed list of episodes (`Suite.protocol_options`) plays those of these seeds. Neither
    the number of workers and where they run, nor crashes and videos, nor what the folder already
    holds change a result. Called again with the same folder, it plays only what is missing or has
    no outcome. Ctrl-C, a kill, a full disk: what has been finished is kept.

    Args:
        policies: names that `make_policy` takes, or label -> name, picklable function that returns
            a policy, or model of Stable-Baselines3, which is saved into the folder.
        ids: as `find_ids` takes them; None: those of the protocol that can be played here.
        folder: for the records (`vla_gym.evaluation.store`), `videos/` and the workers' logs.
        protocol: name of a published one (`vla_gym.evaluation.protocols`). It sets all that
            follows up to `success`, and refuses other values; fewer episodes, other seeds and some
            of its ids may be asked for, and `score_by_group` says how much of it there is.
        episodes: of each policy on each task.
        seed: of the first episode, 0 by default.
        keywords: of `gym.make`, before those that a policy's spec asks for.
        max_steps: horizon of every task [control steps], None for its own.
        success: `"any"`, the default: solved after any step, which ends the episode; `"last"`:
            solved after the last step, at the horizon.
        deterministic: passed to the policies.
        perturbations: play everything under each of these too (`vla_gym.perturbations`), with the
            same seeds.
        workers: processes; each steps one env.
        batch: most envs that one call of a policy serves. 1: each worker has a policy of its own.
            More: one process has the policy, and answers all that wait for it together; its last
            bits then depend on who waits, see `vla_gym.evaluation.batching`.
        ray: address of a Ray cluster, `"auto"` or `"local"`: the workers are spread over it.
        gpus: with `ray`, those that each policy takes (a fraction shares one).
        timeout: a worker without a step for so long [s] is taken as hung, and killed; None: never.
        retries: how often an episode is begun again after it crashed or hung.
        shard: (k, n): only every n-th episode, from the k-th on, 0 <= k < n; `merge` unites them.
        video: record the first episode of each policy and task.
        failures: of each policy and task, record so many failures: they are played again.
        skip_mismatches: leave out pairs of policy and task that do not fit, instead of raising.
        on_start: called once with the number of episodes in all and of those already finished.
        on_record: called with each record as it is written.

    Raises:
        ContractMismatch: a policy does not fit a task; the message lists all such pairs.
        InvalidOption: an argument is not valid, or the folder holds episodes of another protocol.
        SimulatorCrashed: a worker process died before its first episode.
        OSError: the disk is full.
    """
    rules = make_rules(protocol, ids, episodes, seed, keywords or {}, max_steps, success)
    check_least(workers=workers, batch=batch, retries=retries, failures=failures)
    _check_choices(timeout, shard, ray, gpus)
    episodes, seed, folder = rules.episodes, rules.seed, Path(folder)
    policies = _save_models(policies, folder)
    if isinstance(perturbations, str):
        raise InvalidOption(f"perturbations={perturbations!r} must be a list of names")
    settings = [str(parse_perturbation(name)) for name in perturbations]
    pairs = [
        Pair(
            policy=label,
            source=source,
            id=env_id,
            keywords=rules.keywords,
            max_steps=rules.max_steps[env_id],
            deterministic=deterministic,
            success=rules.success,
            perturbation=perturbation,
            batch=batch,
            protocol=rules.protocol,
        )
        for env_id in rules.max_steps
        for label, source in policies.items()
        for perturbation in ("", *dict.fromkeys(settings))
    ]
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store(folder))  # first: it may refuse the folder
        crew = _find_workers(folder / "logs", workers, timeout, batch, ray, gpus)
        pool = stack.enter_context(Pool(crew, workers, retries))
        protocols, mismatches = _check_all(pool, pairs)
        if mismatches and (not skip_mismatches or not protocols):
            raise ContractMismatch(
                f"{len(mismatches)} of {len(pairs)} pairs of policy and task do not fit: "
                + "; ".join(f"{p} on {i}: {why}" for (p, i), why in mismatches.items())
                + ". Leave them out, or skip such pairs (--skip-mismatches)"
            )
        pairs = [pair for pair in pairs if pair in protocols]
        known = {record.key: record for record in load_records(folder)}
        jobs = [
            Play(
                pair,
                i,
                seed + i,
                _reset_options(protocols[pair], seed + i),
                film=video and i == 0,
            )
            for pair in pairs
            for i in range(episodes)
        ]
        jobs = jobs if shard is None else jobs[shard[0] :: shard[1]]
        _refuse_other_protocols(folder, known.values(), jobs, protocols)
        finished = {key for key, record in known.items() if record.counts}
        open_jobs = [job for job in jobs if _key(job) not in finished]
        store.add_run(
            policies={pair.policy: protocols[pair]["policy_source"] for pair in pairs},
            ids=list(dict.fromkeys(plain_id(pair.id) for pair in pairs)),
            episodes=episodes,
            seed=seed,
            protocol=rules.protocol,
            perturbations=settings,
            workers=workers,
            batch=batch,
            ray=ray,
            shard=shard,
            mismatches=[{"policy": p, "id": i, "why": w} for (p, i), w in mismatches.items()],
        )
        if on_start is not None:
            on_start(len(jobs), len(jobs) - len(open_jobs))
        for found in pool.run(open_jobs):
            record = _to_record(found, protocols[found.job.pair])
            trace = None
            if isinstance(found.answer, Played):
                trace = found.answer.episode.trace
                record = _save_video(folder, record, found.answer.video)
            store.append(record, trace)
            known[record.key] = record
            logger.info("%s on %s, seed %d: %s", *record.key[:3], record.outcome)
            if on_record is not None:
                on_record(record)
        for record in _film_failures(store, pool, jobs, known, failures):
            known[record.key] = record
    return Evaluation(folder, tuple(known[_key(job)] for job in jobs), mismatches)


def _save_models(
    policies: Sequence[str] | Mapping[str, PolicySource], folder: Path
) -> dict[str, str | Callable[[], Any]]:
    """Return label -> source, with models of Stable-Baselines3 put into files.

    They hold their env, and cannot be pickled.

    Raises:
        InvalidOption: there is none, or something that is no name and cannot be called.
    """
    if isinstance(policies, str) or not policies:
        raise InvalidOption(f"policies={policies!r} must be a list of at least one name")
    if not isinstance(policies, Mapping):
        return {name: name for name in policies}
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
        path = (folder / "policies" / f"{slug(label)}.zip").resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        source.save(path)
        sources[label] = f"sb3:{path}"
    return sources


def _check_choices(
    timeout: float | None, shard: tuple[int, int] | None, ray: str | None, gpus: float
) -> None:
    if timeout is not None and not timeout > 0:
        raise InvalidOption(f"timeout={timeout} must be a number of seconds above 0, or None")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise InvalidOption(
            f"shard={shard} must be (k, n) with 0 <= k < n: of n shards, which one this is"
        )
    if gpus and ray is None:
        raise InvalidOption(f"gpus={gpus} is for ray: without it every process sees all GPUs")
    if gpus < 0:
        raise InvalidOption(f"gpus={gpus} must be at least 0")


def _find_workers(
    logs: Path, workers: int, timeout: float | None, batch: int, ray: str | None, gpus: float
) -> Workers:
    if ray is None:
        return LocalWorkers(logs, workers, timeout, batch)
    from vla_gym.evaluation.ray_workers import RayWorkers

    return RayWorkers(ray, timeout, batch, gpus)


def _check_all(
    pool: Pool, pairs: list[Pair]
) -> tuple[dict[Pair, dict[str, Any]], dict[tuple[str, str], str]]:
    """Return the protocol of each pair that fits, and why the others do not."""
    protocols: dict[Pair, dict[str, Any]] = {}
    reasons: dict[Pair, str] = {}
    for job, answer, _ in pool.run([Check(pair) for pair in pairs]):
        if isinstance(answer, dict):
            protocols[job.pair] = answer
        elif isinstance(answer, Failed):
            if not isinstance(answer.error, ContractMismatch):
                raise answer.error
            reasons[job.pair] = str(answer.error)
        else:
            assert isinstance(answer, Died | TimedOut)
            raise SimulatorCrashed(
                f"making {job.pair.policy} and {job.pair.id} failed before the first episode: "
                f"{answer.text}"
            )
    in_order = {(p.policy, p.id): reasons[p] for p in pairs if p in reasons}
    return protocols, in_order


def _refuse_other_protocols(
    folder: Path,
    known: Iterable[Record],
    jobs: list[Play],
    protocols: dict[Pair, dict[str, Any]],
) -> None:
    groups = {(p.policy, plain_id(p.id), p.perturbation): protocols[p] for p in protocols}
    wanted = {_key(job): job.options for job in jobs}
    for record in known:
        protocol = groups.get((record.policy, record.id, record.perturbation))
        if protocol is None:
            continue
        options = wanted.get(record.key, record.options)
        if protocol == record.protocol and options == record.options:
            continue
        then = {**record.protocol, "reset options": record.options}
        asked = {**protocol, "reset options": options}
        raise InvalidOption(
            f"{folder} holds episodes of {record.policy} on {record.id} under another protocol "
            f"({describe_differences(then, asked)}). Scores of two protocols do not mix: choose "
            "another folder"
        )


def _reset_options(protocol: Mapping[str, Any], seed: int) -> dict[str, Any]:
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


def _to_record(found: Finished, protocol: dict[str, Any]) -> Record:
    job, answer, attempts = found
    assert isinstance(job, Play)
    common: dict[str, Any] = {
        "policy": job.pair.policy,
        "id": plain_id(job.pair.id),
        "episode": job.episode,
        "seed": job.seed,
        "protocol": protocol,
        "options": job.options,
        "perturbation": job.pair.perturbation,
        "attempts": attempts,
        "date": now(),
    }
    if isinstance(answer, Played):
        played = describe_episode(answer.episode, job.pair.success)
        return Record(**played, made_with=answer.keywords, **common)
    assert isinstance(answer, Died | Failed | TimedOut)
    return Record(outcome=answer.outcome, error=answer.text, **common)


def _film_failures(
    store: Store, pool: Pool, jobs: list[Play], known: Mapping[Key, Record], number: int
) -> Iterator[Record]:
    """Play the first failures of each pair again, for their videos; yield the new records."""
    chosen: dict[Pair, int] = {}
    films = []
    for job in jobs:
        record = known[_key(job)]
        if record.outcome != "failure" or chosen.get(job.pair, 0) == number:
            continue
        trace = None if record.video else load_trace(store.folder, record.key)
        if trace is not None:
            films.append(Film(job, trace))
        if trace is not None or record.video:
            chosen[job.pair] = chosen.get(job.pair, 0) + 1
    for job, answer, _ in pool.run(films):
        assert isinstance(job, Film)
        if isinstance(answer, Played):
            record = _save_video(store.folder, known[_key(job.play)], answer.video)
            yield store.add_video(record, record.video)
        else:
            logger.warning("no video of %s: %s", _key(job.play), answer.text)


def _save_video(folder: Path, record: Record, video: bytes | None) -> Record:
    """Write a video, if there is one, and return the record that names it."""
    if video is None:
        return record
    path = folder / "videos" / name_video(record)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_bytes(video)
    temporary.replace(path)  # a killed process leaves the whole file or none
    return replace(record, video=path.relative_to(folder).as_posix())


def _key(job: Play) -> Key:
    return Key(job.pair.policy, plain_id(job.pair.id), job.seed, job.pair.perturbation)
