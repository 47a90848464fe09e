"""Collect demonstrations: experts play tasks in worker processes, what succeeds becomes a data set.

An episode is a function of env, expert, noise and seed, so neither the number of workers nor an
interruption changes what is collected: of each task the first n solved seeds, in order.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import SpecSheet
from vla_gym.data import layout
from vla_gym.data.dataset import Dataset
from vla_gym.data.demos import Demonstration
from vla_gym.data.writer import (
    STORAGES,
    DatasetWriter,
    delete_episode,
    encode_episode,
    load_episode,
    save_episode,
)
from vla_gym.errors import InvalidOption, SimulatorCrashed
from vla_gym.evaluation.evaluate import TIMEOUT_S, find_ids
from vla_gym.evaluation.pool import Finished, Pool
from vla_gym.evaluation.records import (
    Key,
    Record,
    describe_differences,
    describe_episode,
    now,
    plain_id,
)
from vla_gym.evaluation.stage import Check, Died, Failed, Pair, Stage, TimedOut
from vla_gym.evaluation.store import Store, load_records
from vla_gym.evaluation.workers import LocalWorkers
from vla_gym.rollout import Episode, run_episode

__all__ = ["EXPERTS", "Collection", "Demonstrate", "TaskCount", "collect", "find_expert"]

logger = logging.getLogger(__name__)

EXPERTS = {
    "MetaWorld": "metaworld-expert",
    "CALVIN": "calvin-expert",
    "RLBench": "rlbench-expert",
    "LIBERO": "libero-expert",
    "Robosuite-Lift": "robosuite-lift-expert",
    "Robosuite-Door": "robosuite-door-expert",
}
"""Suite, or suite and task -> the policy that solves it."""

WORK = "work"
"""Folder, in that of the data set, of episodes that are not in it yet."""

ATTEMPTS = 3
"""So many episodes are played at most for one that is wanted."""

_NOISE_SALT = 0xDA27
_OWN_KEYWORDS = ("render_mode", "max_episode_steps", "disable_env_checker", "instruction")


@dataclass(frozen=True)
class TaskCount:
    """What was collected of one task: episodes in the data set, and those played for it.

    `crashed` of them had no outcome; they are played again when `collect` is called again.
    """

    kept: int
    played: int
    crashed: int


@dataclass(frozen=True)
class Collection:
    """The result of one call of `collect`.

    Attributes:
        folder: of the data set.
        counts: id -> what was collected of it, earlier calls included.
        wanted: episodes asked for of each task.
    """

    folder: Path
    counts: Mapping[str, TaskCount]
    wanted: int

    @property
    def complete(self) -> bool:
        """Whether every task has as many episodes as were asked for."""
        return all(count.kept >= self.wanted for count in self.counts.values())


def find_expert(env_id: str) -> str:
    """Return the name of the policy that solves a task.

    Raises:
        InvalidOption: none is known.
    """
    name = re.sub(r"-v\d+$", "", env_id.rpartition("/")[2])
    found = EXPERTS.get(name) or EXPERTS.get(name.partition("-")[0])
    if found is None:
        raise InvalidOption(
            f"no expert is known for {env_id}; known are those of {', '.join(EXPERTS)}. Name a "
            "policy that solves it (--expert)"
        )
    return found


def collect(
    ids: Sequence[str],
    *,
    episodes: int,
    folder: str | Path,
    expert: str | Callable[[], Any] | None = None,
    seed: int = 0,
    workers: int = 1,
    noise: float = 0.0,
    images: str = "png",
    keep_failures: bool = False,
    attempts: int | None = None,
    keywords: Mapping[str, Any] | None = None,
    max_steps: int | None = None,
    on_start: Callable[[int, int], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> Collection:
    """Collect `episodes` demonstrations of every task into the data set of a folder.

    The seeds `seed`, `seed + 1`, ... are played until so many are solved. Called again with the
    same folder, it plays only what is missing; more tasks and a larger number may be asked for. A
    run that is killed loses the episodes that were in work.

    Besides the data set the folder holds a record of every episode played, kept or not, which
    `vla-gym report` reads.

    Args:
        ids: as `find_ids` takes them.
        episodes: to be kept of each task.
        folder: of the data set; see `vla_gym.data.layout`.
        expert: a name that `make_policy` takes, or a picklable function that returns a policy; None
            is `find_expert`'s for each task.
        seed: of the first episode of each task.
        workers: processes; each plays and encodes one episode at a time.
        noise: standard deviation of normal noise that is added to the motion entries of each action
            (not to the gripper's), in units of the action, as in DART (Laskey et al. 2017). The
            noisy action is carried out; the expert's own is the label. Both are stored.
        images: `"png"` (exact) or `"video"` (H.264, lossy).
        keep_failures: keep unsolved episodes too: the first `episodes` seeds.
        attempts: most episodes played of each task; None is 3 for each one wanted.
        keywords: of `gym.make`. `state=True` stores the privileged state, which is otherwise shown
            to the expert alone.
        max_steps: horizon of every task [control steps], None for its own.
        on_start: called once with the number of episodes wanted and of those already there.
        on_record: called with the record of each episode as it ends.

    Raises:
        InvalidOption: an argument is not valid, or the folder's episodes were played otherwise.
        InvalidDataset: the folder's data set is damaged, or has other features.
        ContractMismatch: an expert does not fit a task.
        SimulatorCrashed: a worker died before its first episode.
    """
    if episodes < 1 or workers < 1 or seed < 0 or not 0 <= noise < np.inf:
        raise InvalidOption(
            f"episodes={episodes} and workers={workers} must be at least 1, seed={seed} and "
            f"noise={noise} at least 0"
        )
    if images not in STORAGES:
        raise InvalidOption(f"images={images!r} must be one of {STORAGES}")
    layout.pyarrow()  # before an hour of episodes, not after
    folder = Path(folder)
    pairs = _pair_up(find_ids(ids), expert, dict(keywords or {}), max_steps)
    crew = LocalWorkers(folder / "logs", workers, TIMEOUT_S)
    with Store(folder) as store, Pool(crew, workers, retries=1) as pool:
        protocols = _check_all(pool, pairs, noise)
        stock = _Stock(folder, pairs, protocols, keep_failures)
        store.add_run(ids=[p.id for p in pairs], episodes=episodes, seed=seed, workers=workers)
        if on_start is not None:
            there = sum(min(stock.count(pair).kept, episodes) for pair in pairs)
            on_start(episodes * len(pairs), there)
        limit = ATTEMPTS * episodes if attempts is None else attempts
        tried: set[tuple[Pair, int]] = set()
        try:
            while wave := stock.plan(episodes, range(seed, seed + limit), tried):
                tried.update(wave)
                jobs = [
                    Demonstrate(p, s, noise, images, keep_failures, stock.path(p, s))
                    for p, s in wave
                ]
                for found in pool.run(jobs):
                    record = _to_record(found, protocols[found.job.pair], seed)
                    store.append(record)
                    stock.note(record)
                    logger.info("%s, seed %d: %s", record.id, record.seed, record.outcome)
                    if on_record is not None:
                        on_record(record)
        finally:  # also after Ctrl-C: what was played is in the data set
            stock.pack()
    return Collection(folder, {plain_id(pair.id): stock.count(pair) for pair in pairs}, episodes)


@dataclass(frozen=True)
class Demonstrate:
    """Job: play one episode and leave it, encoded, at `path` if it is to be kept."""

    pair: Pair
    seed: int
    noise: float
    images: str
    keep_failures: bool
    path: Path

    def run(self, stage: Stage) -> Episode:
        """Do it in a worker; return what happened."""
        env, expert = stage.open(self.pair)
        recorder = _Recorder(env, self.noise)
        episode = run_episode(recorder, expert, self.seed)
        if episode.success or self.keep_failures:
            demonstration = recorder.make_demonstration(self, Check(self.pair).run(stage))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            encoded = encode_episode(
                demonstration, images=self.images, folder=self.path.parent, stem=self.path.stem
            )
            save_episode(encoded, self.path)
        return episode


class _Recorder(gym.Wrapper):
    """Remembers an episode, and adds noise to its actions before they reach the env."""

    def __init__(self, env: gym.Env[Any, Any], noise: float) -> None:
        super().__init__(env)
        self._sheet: SpecSheet = env.unwrapped.spec_sheet  # type: ignore[attr-defined]  # ours
        self._deviation = _find_deviation(self._sheet, noise)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode and forget the last one."""
        observation, info = self.env.reset(**options)
        self._rng = np.random.default_rng([options["seed"], _NOISE_SALT])
        self._instruction, self._wordings = info["instruction"], info["instructions"]
        self._seen: list[dict[str, Any]] = [observation]
        self._labels: list[NDArray[np.float32]] = []
        self._actions: list[NDArray[np.float32]] = []
        self._rewards: list[float] = []
        self._successes: list[bool] = []
        self._terminated = False
        return observation, info

    def step(self, action: NDArray[np.float32]) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act, with noise, and remember what was meant, what was done and what came of it."""
        label = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        executed = label
        if self._deviation.any():
            drawn = self._rng.normal(size=label.shape) * self._deviation
            executed = np.clip(label + drawn, -1.0, 1.0).astype(np.float32)
        result = self.env.step(executed)
        observation, reward, terminated, _, info = result
        if info["instruction"] != self._instruction:
            raise InvalidOption(
                f"{self._sheet.id} changes its command within an episode (a chain); a "
                "demonstration has one command. Collect the single tasks"
            )
        self._seen.append(observation)
        self._labels.append(label)
        self._actions.append(executed)
        self._rewards.append(float(reward))
        self._successes.append(bool(info["success"]))
        self._terminated = bool(terminated)
        return result

    def make_demonstration(self, job: Demonstrate, protocol: Mapping[str, Any]) -> Demonstration:
        """Return the episode since the last reset."""
        state = bool(job.pair.keywords.get("state", False))
        keys = [key for key in self._seen[0] if key != "instruction" and (state or key != "state")]
        noise = f", action noise {job.noise}" if job.noise else ""
        successes = np.array(self._successes)
        return Demonstration(
            id=self._sheet.id,
            action_mode=self._sheet.action_mode,
            instruction=self._instruction,
            instructions=self._wordings,
            observations={key: np.stack([seen[key] for seen in self._seen]) for key in keys},
            actions=np.stack(self._actions),
            labels=np.stack(self._labels),
            rewards=np.array(self._rewards, np.float32),
            successes=successes,
            success=bool(successes.any()),
            terminated=self._terminated,
            seed=job.seed,
            keywords=_name_keywords(self._sheet, job.pair, state, protocol),
            source=f"{job.pair.policy}{noise}",
            simulator=self._sheet.simulator,
            versions=protocol["versions"],
            spec_sheet=self._sheet.to_dict(),
        )


def _find_deviation(sheet: SpecSheet, noise: float) -> NDArray[np.float64]:
    """Return the standard deviation of each entry: none of the gripper and of what is ignored."""
    if noise and sheet.action_mode != "ee_delta":
        raise InvalidOption(
            f"noise={noise}: only action_mode='ee_delta' says which entries are motion, "
            f"{sheet.id} was made with {sheet.action_mode!r}"
        )
    moves = [not e.name.endswith("gripper") and e.scale != 0.0 for e in sheet.action]
    return np.where(moves, noise, 0.0)


def _name_keywords(
    sheet: SpecSheet, pair: Pair, state: bool, protocol: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keywords with which `gym.make` makes this env again, wherever it runs."""
    keywords = {
        **sheet.keywords,
        "cameras": list(sheet.cameras),
        "image_size": sheet.image_size,
        "state": state,
        "action_mode": sheet.action_mode,
        "proprio": sheet.proprio_form,
        "paraphrase": bool(protocol["paraphrase"]),
        "reward": "sparse" if pair.keywords.get("reward") == "sparse" else "native",
        "terminate_on_success": sheet.terminate_on_success,
        "render_quality": sheet.render_quality,
        "simulator": sheet.simulator,
    }
    if pair.max_steps is not None:
        keywords["max_episode_steps"] = pair.max_steps
    return keywords


class _Stock:
    """What of a collection is there: in the data set, or encoded and waiting for its place."""

    def __init__(
        self,
        folder: Path,
        pairs: list[Pair],
        protocols: Mapping[Pair, dict[str, Any]],
        keep_failures: bool,
    ) -> None:
        self._folder, self._pairs, self._keep_failures = folder, pairs, keep_failures
        self._records = {record.key: record for record in load_records(folder)}
        _refuse_other_protocols(folder, self._records.values(), pairs, protocols)
        self._writer = DatasetWriter(folder)
        self._stored: set[tuple[str, int]] = set()
        if self._writer.episodes:
            for episode in Dataset(folder).episodes:
                self._stored.add((episode.env_id, episode.seed if episode.seed is not None else -1))
        for pair in pairs:  # a run that ended after a commit and before it tidied up
            for env_id, seed in self._stored:
                if env_id == plain_id(pair.id):
                    delete_episode(self.path(pair, seed))
        layout.delete_unfinished(folder / WORK)

    def path(self, pair: Pair, seed: int) -> Path:
        """Return where the encoded episode waits."""
        name = re.sub(r"[^\w-]+", "_", plain_id(pair.id).removeprefix("VLA/"))
        return self._folder / WORK / f"{name}-{seed}.parquet"

    def note(self, record: Record) -> None:
        """Take note of an episode that has ended."""
        self._records[record.key] = record

    def count(self, pair: Pair) -> TaskCount:
        """Return what is there of a task."""
        records = [r for r in self._records.values() if r.id == plain_id(pair.id)]
        kept = sum(env_id == plain_id(pair.id) for env_id, _ in self._stored)
        kept += sum(self._waits(pair, r.seed) for r in records)
        return TaskCount(kept, len(records), sum(not r.counts for r in records))

    def plan(
        self, wanted: int, seeds: range, tried: set[tuple[Pair, int]]
    ) -> list[tuple[Pair, int]]:
        """Return the next episodes to play: of each task no more than it still lacks."""
        found = []
        for pair in self._pairs:
            lacks = wanted - self.count(pair).kept
            open_seeds = (s for s in seeds if (pair, s) not in tried and not self._settled(pair, s))
            found += [(pair, s) for s, _ in zip(open_seeds, range(lacks), strict=False)]
        return found

    def pack(self) -> None:
        """Move the waiting episodes into the data set, in the order of tasks and seeds."""
        waiting: list[tuple[Pair, int]] = [
            (pair, seed)
            for pair in self._pairs
            for seed in sorted(r.seed for r in self._records.values() if r.id == plain_id(pair.id))
            if self._waits(pair, seed)
        ]
        moved: list[tuple[Pair, int]] = []

        def tidy() -> None:
            for pair, seed in moved:
                self._stored.add((plain_id(pair.id), seed))
                delete_episode(self.path(pair, seed))
            moved.clear()

        for pair, seed in waiting:
            moved.append((pair, seed))
            if self._writer.add(load_episode(self.path(pair, seed))):
                tidy()
        self._writer.commit()
        tidy()
        with contextlib.suppress(OSError):
            (self._folder / WORK).rmdir()

    def _waits(self, pair: Pair, seed: int) -> bool:
        record = self._records.get(Key(pair.policy, plain_id(pair.id), seed, ""))
        good = ("success", "failure") if self._keep_failures else ("success",)
        return record is not None and record.outcome in good and self.path(pair, seed).exists()

    def _settled(self, pair: Pair, seed: int) -> bool:
        """Return whether a seed need not be played: it is there, or it is known to fail."""
        if (plain_id(pair.id), seed) in self._stored or self._waits(pair, seed):
            return True
        record = self._records.get(Key(pair.policy, plain_id(pair.id), seed, ""))
        return record is not None and record.outcome == "failure" and not self._keep_failures


def _pair_up(
    ids: Sequence[str],
    expert: str | Callable[[], Any] | None,
    keywords: dict[str, Any],
    max_steps: int | None,
) -> list[Pair]:
    for name in _OWN_KEYWORDS:
        if name in keywords:
            raise InvalidOption(
                f"keyword {name!r} is the collector's own: a data set stores the text of the "
                "command, and max_steps sets the horizon"
            )
    keywords = {"cameras": ("primary", "wrist"), **keywords}
    pairs = []
    for env_id in ids:
        source = find_expert(plain_id(env_id)) if expert is None else expert
        label = source if isinstance(source, str) else getattr(source, "__name__", repr(source))
        pairs.append(Pair(label, source, env_id, keywords, max_steps))
    return pairs


def _check_all(pool: Pool, pairs: list[Pair], noise: float) -> dict[Pair, dict[str, Any]]:
    """Return the protocol that each pair plays under.

    Raises:
        Exception: what a worker met when it made an expert or an env.
    """
    protocols = {}
    for job, answer, _ in pool.run([Check(pair) for pair in pairs]):
        if isinstance(answer, Failed):
            raise answer.error
        if isinstance(answer, Died | TimedOut):
            raise SimulatorCrashed(f"making {job.pair.id} failed: {answer.text}")
        protocols[job.pair] = {**answer, "action_noise": noise}
    return protocols


def _refuse_other_protocols(
    folder: Path,
    records: Any,
    pairs: list[Pair],
    protocols: Mapping[Pair, dict[str, Any]],
) -> None:
    wanted = {plain_id(pair.id): (pair.policy, protocols[pair]) for pair in pairs}
    for record in records:
        if record.id not in wanted:
            continue
        policy, protocol = wanted[record.id]
        now_asked = {**protocol, "expert": policy}
        then = {**record.protocol, "expert": record.policy}
        if now_asked != then:
            raise InvalidOption(
                f"{folder} holds episodes of {record.id} that were played otherwise "
                f"({describe_differences(then, now_asked)}). Choose another folder"
            )


def _to_record(found: Finished, protocol: dict[str, Any], first: int) -> Record:
    job, answer, attempts = found
    assert isinstance(job, Demonstrate)
    common: dict[str, Any] = {
        "policy": job.pair.policy,
        "id": plain_id(job.pair.id),
        "episode": job.seed - first,
        "seed": job.seed,
        "protocol": protocol,
        "attempts": attempts,
        "date": now(),
    }
    if isinstance(answer, Failed) and isinstance(answer.error, InvalidOption):
        raise answer.error  # the caller's, not the simulator's
    if isinstance(answer, Died | Failed | TimedOut):
        return Record(outcome=answer.outcome, error=answer.text, **common)
    assert isinstance(answer, Episode)
    return Record(**describe_episode(answer), **common)
