"""Numbers from records: rates, means and chains, each with its 95 % interval. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require
from vla_gym.evaluation.records import Record

__all__ = [
    "CHAIN_TASKS",
    "ChainSummary",
    "Interval",
    "Summary",
    "bootstrap_intervals",
    "mean_interval",
    "pool",
    "success_interval",
    "summarize",
    "summarize_chains",
]

CHAIN_TASKS = 5
"""Instructions of one chain in CALVIN's long-horizon protocol. Source: Mees et al. 2022, CALVIN,
IEEE RA-L 7:7327-7334."""

RESAMPLES = 10_000
BATCH = 500  # resamples held in memory at once: 24 MB for 1000 chains


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """The episodes of one policy on one task, under one perturbation or none.

    Attributes:
        policy, id: names.
        n: episodes with an outcome, success or failure; one that crashed or timed out has none.
        successes: of those, how many were solved, by the protocol's rule.
        crashed: episodes that ended in an error; not in `n`.
        rate, rate_interval: success rate and its Wilson 95 % interval; None without data.
        mean_return, return_interval: undiscounted, with Student's t 95 % interval; None without
            data, and the interval also with less than two episodes.
        mean_length: control steps.
        mean_seconds: wall time of an episode, env and policy together.
        policy_ms: wall time of the policy per control step [ms].
        timeouts: episodes that stood still and were given up; not in `n`.
        perturbation: of these episodes, `""`: none.
    """

    policy: str
    id: str
    n: int
    successes: int
    crashed: int
    rate: float | None
    rate_interval: Interval | None
    mean_return: float | None
    return_interval: Interval | None
    mean_length: float | None
    mean_seconds: float | None
    policy_ms: float | None
    timeouts: int = 0
    perturbation: str = ""


@dataclass(frozen=True)
class ChainSummary:
    """The chains of instructions that one policy has played on one long-horizon task.

    Attributes:
        policy, id: names.
        n: chains with an outcome; one that crashed or timed out has none.
        crashed: chains that ended in an error; not in `n`.
        rates: SR_1 to SR_5, where SR_k is the share of chains of which at least the first k
            instructions were followed in a row; empty without data.
        rate_intervals: of each; empty with less than two chains.
        mean_length: instructions followed in a row per chain, 0 to 5; None without data. It is
            SR_1 + ... + SR_5, for a chain of length L counts once in each of SR_1 to SR_L: not the
            sum of k * SR_k, which circulates too and would reach 15.
        length_interval: of `mean_length`; None with less than two chains.
        timeouts: chains that stood still and were given up; not in `n`.
        perturbation: of these chains, `""`: none.
    """

    policy: str
    id: str
    n: int
    crashed: int
    rates: tuple[float, ...]
    rate_intervals: tuple[Interval, ...]
    mean_length: float | None
    length_interval: Interval | None
    timeouts: int = 0
    perturbation: str = ""


def success_interval(successes: int, n: int, confidence: float = 0.95) -> Interval | None:
    """Return the Wilson score interval of a success rate, None where there are no episodes.

    Source: Wilson 1927, JASA 22:209-212, as `scipy.stats.binomtest` computes it.
    """
    if n == 0:
        return None
    stats = require("scipy.stats", "eval", "a confidence interval")
    found = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Return Student's t interval of a mean, None with less than two values.

    It takes the values as independent draws from a normal distribution; returns of a few episodes
    are rarely normal, so read it as a scale of the uncertainty.
    """
    if len(values) < 2:
        return None
    stats = require("scipy.stats", "eval", "a confidence interval")
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    error = float(array.std(ddof=1)) / len(array) ** 0.5
    reach = float(stats.t.ppf(0.5 + confidence / 2, len(array) - 1)) * error
    return Interval(mean - reach, mean + reach)


def bootstrap_intervals(values: NDArray[np.float64]) -> tuple[Interval, ...]:
    """Return the bootstrap percentile 95 % intervals of several means over the same episodes.

    The same values give the same intervals, in whatever order the episodes stand: the seed is
    fixed. Where all episodes agree an interval has no width, which says nothing of others.

    Args:
        values: shape (means, n), one column per episode; columns are drawn with replacement.

    Returns:
        One interval per row; none with less than two episodes.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    if values.shape[1] < 2:
        return ()
    stats = require("scipy.stats", "eval", "a confidence interval")
    found = stats.bootstrap(
        (values[:, np.lexsort(values)],),
        np.mean,
        axis=-1,
        n_resamples=RESAMPLES,
        batch=BATCH,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return tuple(Interval(float(a), float(b)) for a, b in zip(found.low, found.high, strict=True))


def summarize(records: Iterable[Record]) -> list[Summary]:
    """Return one summary per policy, id and perturbation, in the order of their first records."""
    return [_summarize(*names, group) for names, group in _group(records)]


def summarize_chains(records: Iterable[Record]) -> list[ChainSummary]:
    """Return one summary per policy, id and perturbation, of the ids whose env plays chains.

    An env that plays chains is one of which some record has a `chain_length`.
    """
    records = list(records)
    chains = {record.id for record in records if record.chain_length is not None}
    return [
        _summarize_chains(*names, group) for names, group in _group(records) if names[1] in chains
    ]


def pool(summaries: Sequence[Summary]) -> tuple[int, int, float | None, Interval | None]:
    """Return successes, n, rate and Wilson interval of all these tasks taken together.

    Every episode weighs the same. For a fixed set of tasks the interval is wider than needed.
    """
    successes, n = sum(s.successes for s in summaries), sum(s.n for s in summaries)
    return successes, n, successes / n if n else None, success_interval(successes, n)


def _group(records: Iterable[Record]) -> Iterable[tuple[tuple[str, str, str], list[Record]]]:
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.policy, record.id, record.perturbation), []).append(record)
    return groups.items()


def _summarize_chains(
    policy: str, env_id: str, perturbation: str, records: list[Record]
) -> ChainSummary:
    lengths = np.array([r.chain_length for r in records if r.chain_length is not None], np.float64)
    goals = np.arange(1, CHAIN_TASKS + 1)[:, None]
    followed = (lengths >= goals).astype(np.float64)  # (CHAIN_TASKS, n)
    intervals = bootstrap_intervals(np.vstack([followed, lengths]))
    n = len(lengths)
    return ChainSummary(
        policy=policy,
        id=env_id,
        n=n,
        crashed=sum(record.outcome == "crashed" for record in records),
        rates=tuple(float(share) for share in followed.mean(axis=1)) if n else (),
        rate_intervals=intervals[:-1],
        mean_length=float(lengths.mean()) if n else None,
        length_interval=intervals[-1] if intervals else None,
        timeouts=sum(record.outcome == "timeout" for record in records),
        perturbation=perturbation,
    )


def _summarize(policy: str, env_id: str, perturbation: str, records: list[Record]) -> Summary:
    done = [record for record in records if record.counts]
    successes = sum(record.outcome == "success" for record in done)
    returns = [record.episode_return for record in done if record.episode_return is not None]
    steps = sum(record.length or 0 for record in done)
    seconds = [(record.env_seconds or 0.0) + (record.policy_seconds or 0.0) for record in done]
    policy_seconds = sum(record.policy_seconds or 0.0 for record in done)
    n = len(done)
    return Summary(
        policy=policy,
        id=env_id,
        n=n,
        successes=successes,
        crashed=sum(record.outcome == "crashed" for record in records),
        rate=successes / n if n else None,
        rate_interval=success_interval(successes, n),
        mean_return=float(np.mean(returns)) if returns else None,
        return_interval=mean_interval(returns),
        mean_length=steps / n if n else None,
        mean_seconds=sum(seconds) / n if n else None,
        policy_ms=1000 * policy_seconds / steps if steps else None,
        timeouts=sum(record.outcome == "timeout" for record in records),
        perturbation=perturbation,
    )
