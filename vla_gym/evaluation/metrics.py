"""Numbers from records: success rates and means, each with its 95 % interval. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vla_gym.deps import require
from vla_gym.evaluation.records import Record

__all__ = ["Interval", "Summary", "mean_interval", "pool", "success_interval", "summarize"]


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """The episodes of one policy on one task.

    Attributes:
        policy, id: names.
        n: episodes with an outcome, success or failure; a crashed one has none.
        successes: of those, how many were solved after any step.
        crashed: episodes that ended in an error; not in `n`.
        rate, rate_interval: success rate and its Wilson 95 % interval; None without data.
        mean_return, return_interval: undiscounted, with Student's t 95 % interval; None without
            data, and the interval also with less than two episodes.
        mean_length: control steps.
        mean_seconds: wall time of an episode, env and policy together.
        policy_ms: wall time of the policy per control step [ms].
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


def summarize(records: Iterable[Record]) -> list[Summary]:
    """Return one summary per policy and id, in the order in which they first appear."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.policy, record.id), []).append(record)
    return [_summarize(policy, env_id, group) for (policy, env_id), group in groups.items()]


def pool(summaries: Sequence[Summary]) -> tuple[int, int, float | None, Interval | None]:
    """Return successes, n, rate and Wilson interval of all these tasks taken together.

    Every episode weighs the same. For a fixed set of tasks the interval is wider than needed.
    """
    successes, n = sum(s.successes for s in summaries), sum(s.n for s in summaries)
    return successes, n, successes / n if n else None, success_interval(successes, n)


def _summarize(policy: str, env_id: str, records: list[Record]) -> Summary:
    done = [record for record in records if record.outcome != "crashed"]
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
        crashed=len(records) - n,
        rate=successes / n if n else None,
        rate_interval=success_interval(successes, n),
        mean_return=float(np.mean(returns)) if returns else None,
        return_interval=mean_interval(returns),
        mean_length=steps / n if n else None,
        mean_seconds=sum(seconds) / n if n else None,
        policy_ms=1000 * policy_seconds / steps if steps else None,
    )
