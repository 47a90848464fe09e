"""One number for a method over many tasks and several training runs, after rliable.

Success rates of a few training runs on a few tasks are a matrix of scores. The functions on it,
and the resampling that gives their intervals, are those of Agarwal et al. 2021, Deep Reinforcement
Learning at the Edge of the Statistical Precipice, NeurIPS, section 4, and of their package rliable.
docs/statistics.md says when to read which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.comparison import find_differences
from vla_gym.evaluation.metrics import Interval
from vla_gym.evaluation.records import Record

__all__ = [
    "Aggregate",
    "Estimate",
    "Improvement",
    "aggregate",
    "improvement",
    "interquartile_mean",
    "mean",
    "median",
    "optimality_gap",
    "probability_of_improvement",
]

RESAMPLES = 10_000
BATCH = 1000  # resamples held in memory at once: 40 MB for 10 runs on 500 tasks

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and its stratified bootstrap percentile 95 % interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Aggregate:
    """A method over all tasks.

    Attributes:
        method: its name.
        runs: labels of its training runs.
        tasks: ids of the tasks, with the perturbation where there is one.
        episodes: with an outcome, of all runs and tasks.
        resampled: `"runs"`: the intervals say what other training runs on the same tasks might
            give. `"episodes"`: there is one run only, so they say what other episodes of that run
            might give; how much training varies is not in them.
        iqm, mean, median, optimality_gap: of the success rates, 0 to 1.
    """

    method: str
    runs: tuple[str, ...]
    tasks: tuple[str, ...]
    episodes: int
    resampled: str
    iqm: Estimate
    mean: Estimate
    median: Estimate
    optimality_gap: Estimate


@dataclass(frozen=True)
class Improvement:
    """How likely a run of one method is to beat a run of another on a task.

    Attributes:
        first, second: names of the methods.
        probability: that of `improvement`; 0.5 where neither is better.
        resampled: for the first and the second, as in `Aggregate`.
    """

    first: str
    second: str
    probability: Estimate
    resampled: tuple[str, str]


def aggregate(records: Iterable[Record], runs: Mapping[str, Sequence[str]]) -> list[Aggregate]:
    """Return aggregates of methods over all their tasks, in the order of `runs`.

    A run's score on a task is its success rate there; each perturbation of a task is a task.
    Episodes without an outcome do not count. The order of the records, and of the runs of a method,
    does not matter, except that of one key the last record counts.

    Args:
        records: of these runs, and of any others.
        runs: method -> labels of the policies that are its training runs, such as
            `{"bc": ["bc-0", "bc-1", "bc-2"]}`.

    Raises:
        InvalidOption: a label is not in the records or twice in a method, a method has no runs, a
            run has no outcome on a task that others have played, or a task was not played under
            the same conditions by all (`find_differences`).
    """
    return [_aggregate(name, found) for name, found in _read(records, runs).items()]


def probability_of_improvement(
    records: Iterable[Record], runs: Mapping[str, Sequence[str]], first: str, second: str
) -> Improvement:
    """Return how likely a run of the method `first` beats one of `second` on a task.

    The interval resamples the runs of each method within each task on their own. Where it lies
    above 0.5 the first is better, however little.

    Args:
        records: as in `aggregate`.
        runs: as in `aggregate`.
        first: a method of `runs`.
        second: another.

    Raises:
        InvalidOption: as `aggregate`, or a method is not in `runs`.
    """
    for name in (first, second):
        if name not in runs:
            raise InvalidOption(f"no method is named {name!r}. Valid: {', '.join(map(repr, runs))}")
    found = _read(records, {name: runs[name] for name in (first, second)})
    one, other = found[first], found[second]
    probability = _estimate(improvement, one, other)
    return Improvement(first, second, probability, (one.resampled, other.resampled))


def interquartile_mean(scores: Scores) -> NDArray[np.float64]:
    """Return the mean of the middle half of all scores, of all runs and tasks together.

    Args:
        scores: shape (..., runs, tasks); the leading axes stay. So in all functions below.
    """
    trim_mean = require("scipy.stats", "eval", "an interquartile mean").trim_mean
    return trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def mean(scores: Scores) -> NDArray[np.float64]:
    """Return the mean of the tasks' mean scores."""
    return scores.mean(axis=(-2, -1))


def median(scores: Scores) -> NDArray[np.float64]:
    """Return the median of the tasks' mean scores."""
    return np.median(scores.mean(axis=-2), axis=-1)


def optimality_gap(scores: Scores) -> NDArray[np.float64]:
    """Return how far the scores fall short of 1 on average; what exceeds 1 makes up for nothing."""
    return 1 - np.minimum(scores, 1).mean(axis=(-2, -1))


def improvement(first: Scores, second: Scores) -> NDArray[np.float64]:
    """Return how often a run of the first beats one of the second on a task; a tie counts half.

    The mean over tasks of the Mann-Whitney statistic divided by the number of pairs of runs.
    """
    ahead = np.sign(first[..., :, None, :] - second[..., None, :, :])
    return (1 + ahead.mean(axis=(-3, -2, -1))) / 2


@dataclass(frozen=True)
class _Method:
    """The runs of a method: success rates and counts of episodes, each shape (runs, tasks)."""

    runs: tuple[str, ...]
    tasks: tuple[str, ...]
    rates: Scores
    counts: NDArray[np.int64]

    @property
    def resampled(self) -> str:
        return "runs" if len(self.runs) > 1 else "episodes"

    def resample(self, generator: np.random.Generator) -> Scores:
        """Return matrices of scores as other draws might have given, (BATCH, runs, tasks)."""
        size = (BATCH, *self.rates.shape)
        if self.resampled == "episodes":
            return generator.binomial(self.counts, self.rates, size) / self.counts
        drawn = generator.integers(len(self.runs), size=size)  # in each task on its own: stratified
        return self.rates[drawn, np.arange(len(self.tasks))]


def _aggregate(name: str, method: _Method) -> Aggregate:
    return Aggregate(
        method=name,
        runs=method.runs,
        tasks=method.tasks,
        episodes=int(method.counts.sum()),
        resampled=method.resampled,
        iqm=_estimate(interquartile_mean, method),
        mean=_estimate(mean, method),
        median=_estimate(median, method),
        optimality_gap=_estimate(optimality_gap, method),
    )


def _estimate(function: Callable[..., NDArray[np.float64]], *methods: _Method) -> Estimate:
    generator = np.random.default_rng(0)
    drawn = [
        function(*(method.resample(generator) for method in methods))
        for _ in range(RESAMPLES // BATCH)
    ]
    low, high = np.percentile(drawn, (2.5, 97.5))
    value = function(*(method.rates for method in methods))
    return Estimate(float(value), Interval(float(low), float(high)))


def _read(records: Iterable[Record], runs: Mapping[str, Sequence[str]]) -> dict[str, _Method]:
    records = list({record.key: record for record in records}.values())
    _refuse_labels(sorted({record.policy for record in records}), runs)
    wanted = {label for labels in runs.values() for label in labels}
    played: dict[tuple[str, str], dict[str, list[Record]]] = {}  # (id, perturbation) -> label ->
    for record in records:
        if record.counts and record.policy in wanted:
            of_run = played.setdefault((record.id, record.perturbation), {})
            of_run.setdefault(record.policy, []).append(record)
    if not played:
        raise InvalidOption(f"no episode of {', '.join(sorted(wanted))} has an outcome")
    columns = sorted(played)
    for env_id, perturbation in columns:
        _refuse_column(_name(env_id, perturbation), played[env_id, perturbation], sorted(wanted))
    found = {}
    for name, labels in runs.items():
        cells = [[played[column][label] for column in columns] for label in labels]
        counts = np.array([[len(cell) for cell in row] for row in cells])
        solved = np.array(
            [[sum(r.outcome == "success" for r in cell) for cell in row] for row in cells]
        )
        tasks = tuple(_name(*column) for column in columns)
        # Sorted, for the order of the runs says nothing and must not change what is drawn.
        rates = np.sort(solved / counts, axis=0)
        found[name] = _Method(tuple(labels), tasks, rates, counts)
    return found


def _name(env_id: str, perturbation: str) -> str:
    return f"{env_id}, {perturbation}" if perturbation else env_id


def _refuse_labels(known: Sequence[str], runs: Mapping[str, Sequence[str]]) -> None:
    if not runs:
        raise InvalidOption("runs is empty: valid is method -> labels of its runs")
    for name, labels in runs.items():
        if isinstance(labels, str) or not labels or len(set(labels)) != len(labels):
            raise InvalidOption(
                f"runs of {name!r} are {labels!r}: valid is a list of labels, each once"
            )
        for label in labels:
            if label not in known:
                valid = ", ".join(map(repr, known)) or "none"
                raise InvalidOption(f"no record is of {label!r}, a run of {name!r}. Valid: {valid}")


def _refuse_column(
    task: str, played: Mapping[str, Sequence[Record]], wanted: Sequence[str]
) -> None:
    lacking = [label for label in wanted if label not in played]
    if lacking:
        raise InvalidOption(
            f"{', '.join(lacking)} have no outcome on {task}, which other runs have played: a mean "
            "over tasks needs all. Evaluate them there, or leave that task or those runs out"
        )
    one, *others = [record for records in played.values() for record in records]
    for other in others:
        differing = find_differences(one, other)
        if differing:
            raise InvalidOption(
                f"{task} was not played under the same conditions by all: {'; '.join(differing)}. "
                "Scores of two protocols do not mix: evaluate all under one"
            )
