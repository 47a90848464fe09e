"""Aggregates over tasks and runs: the numbers of rliable, laws, and what is refused."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import needs
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.aggregate import (
    aggregate,
    improvement,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    probability_of_improvement,
)
from vla_gym.evaluation.metrics import success_interval
from vla_gym.evaluation.records import Record

pytestmark = needs("eval")

EPISODES = 20
A = [
    [18, 12, 3, 20, 9, 15],
    [16, 14, 5, 19, 7, 15],
    [19, 11, 2, 20, 12, 13],
    [17, 15, 6, 18, 10, 16],
    [18, 9, 4, 20, 8, 11],
]
B = [[15, 12, 1, 20, 6, 14], [14, 10, 2, 17, 8, 12], [17, 11, 0, 19, 5, 16], [16, 8, 3, 20, 9, 10]]
"""Solved episodes, of 20, of each run (row) on each task (column)."""


def play(method, solved, episodes=EPISODES):
    """Return records of the runs `<method>-0`, ... on the tasks `t0`, ..."""
    return [
        Record(f"{method}-{run}", f"t{task}", seed, seed, outcome, {"policy_source": f"{run}"})
        for run, row in enumerate(solved)
        for task, count in enumerate(row)
        for seed in range(episodes)
        for outcome in ["success" if seed < count else "failure"]
    ]


def name_runs(**methods):
    return {name: [f"{name}-{run}" for run in range(len(rows))] for name, rows in methods.items()}


RECORDS, RUNS = play("a", A) + play("b", B), name_runs(a=A, b=B)

GOLDEN = {
    "a": {
        "iqm": (0.665625, 0.618750, 0.706250),
        "mean": (0.636667, 0.608333, 0.663333),
        "median": (0.655000, 0.595000, 0.715000),
        "optimality_gap": (0.363333, 0.336667, 0.391667),
    },
    "b": {
        "iqm": (0.579167, 0.529167, 0.625000),
        "mean": (0.552083, 0.520833, 0.581250),
        "median": (0.581250, 0.512500, 0.643750),
        "optimality_gap": (0.447917, 0.418750, 0.479167),
    },
}
"""Value, low and high of rliable 1.2.0: `library.get_interval_estimates` of `metrics.aggregate_*`
with 50 000 repetitions, on A / 20 and B / 20."""


@pytest.mark.parametrize("method", ["a", "b"])
def test_aggregates_are_those_of_rliable(method):
    found = {one.method: one for one in aggregate(RECORDS, RUNS)}[method]
    assert (found.resampled, found.episodes) == ("runs", 20 * 6 * len(RUNS[method]))
    assert found.tasks == ("t0", "t1", "t2", "t3", "t4", "t5")
    for name, (value, low, high) in GOLDEN[method].items():
        estimate = getattr(found, name)
        assert estimate.value == pytest.approx(value, abs=1e-6)
        assert estimate.interval == pytest.approx((low, high), abs=0.005)  # one random step each


def test_the_probability_of_improvement_is_that_of_rliable():
    # rliable 1.2.0, `metrics.probability_of_improvement`, 20 000 repetitions.
    found = probability_of_improvement(RECORDS, RUNS, "a", "b")
    assert found.probability.value == pytest.approx(0.758333, abs=1e-6)
    assert found.probability.interval == pytest.approx((0.629167, 0.870833), abs=0.009)
    assert found.resampled == ("runs", "runs")


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end():
    assert interquartile_mean(np.array([[0.0, 0.5], [0.7, 1.0]])) == pytest.approx(0.6)
    assert optimality_gap(np.array([[0.5, 1.5]])) == pytest.approx(0.25)  # 1.5 makes up for nothing
    assert median(np.array([[0.0, 0.2, 1.0], [0.2, 0.4, 1.0]])) == pytest.approx(0.3)


def test_one_run_has_its_episodes_resampled():
    # On one task the resampled mean is Binomial(400, 0.75) / 400, near Wilson's interval.
    (found,) = aggregate(play("a", [[300]], episodes=400), {"a": ["a-0"]})
    assert found.resampled == "episodes"
    assert found.mean.interval == pytest.approx(success_interval(300, 400), abs=0.006)
    # Over several tasks, each with its own episodes, the variance of the mean is that of the sum.
    (found,) = aggregate(play("a", A[:1]), {"a": ["a-0"]})
    rates = np.array(A[0]) / EPISODES
    error = np.sqrt(np.sum(rates * (1 - rates) / EPISODES)) / len(rates)
    low, high = found.mean.interval
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert found.mean.value == pytest.approx(rates.mean())


matrices = st.integers(1, 4).flatmap(
    lambda tasks: st.lists(
        st.lists(st.integers(0, 4), min_size=tasks, max_size=tasks), min_size=1, max_size=4
    )
)


@settings(max_examples=25)
@given(matrices)
def test_aggregates_obey_the_laws_of_their_numbers(solved):
    runs = name_runs(a=solved)
    (found,) = aggregate(play("a", solved, 4), runs)
    assert found.optimality_gap.value == pytest.approx(1 - found.mean.value)
    for estimate in (found.iqm, found.mean, found.median, found.optimality_gap):
        low, high = estimate.interval
        assert -1e-9 <= low <= high <= 1 + 1e-9
        assert -1e-9 <= estimate.value <= 1 + 1e-9
    for estimate in (found.mean, found.optimality_gap):
        assert estimate.interval.low - 1e-9 <= estimate.value <= estimate.interval.high + 1e-9


@settings(max_examples=25)
@given(matrices, st.randoms(use_true_random=False), st.data())
def test_order_and_episodes_without_an_outcome_change_nothing(solved, order: random.Random, data):
    records, (labels,) = play("a", solved, 4), name_runs(a=solved).values()
    (expected,) = aggregate(records, {"a": labels})
    lost = data.draw(st.lists(st.sampled_from(["crashed", "timeout"]), max_size=4))
    mixed = [
        *records,
        *(Record("a-0", "t0", 100 + i, 100 + i, outcome, {}) for i, outcome in enumerate(lost)),
    ]
    turned = list(labels)
    order.shuffle(mixed)
    order.shuffle(turned)
    (found,) = aggregate(mixed, {"a": turned})
    assert found == dataclasses.replace(expected, runs=tuple(turned))


def test_the_order_of_the_runs_draws_nothing_else():
    turned = {name: labels[::-1] for name, labels in RUNS.items()}
    for one, other in zip(aggregate(RECORDS, RUNS), aggregate(RECORDS, turned), strict=True):
        assert other == dataclasses.replace(one, runs=one.runs[::-1])
    args = "a", "b"
    assert probability_of_improvement(RECORDS, turned, *args) == probability_of_improvement(
        RECORDS, RUNS, *args
    )


@given(matrices)
def test_improvement_one_way_is_what_the_other_way_lacks(solved):
    scores = np.array(solved, float)
    other = scores[:1] + 0.5
    assert improvement(scores, other) == pytest.approx(1 - improvement(other, scores))
    assert improvement(scores, scores) == pytest.approx(0.5)
    assert improvement(scores + 9, other) == 1
    stacked = improvement(np.stack([scores, scores + 9]), np.stack([other, other]))
    assert stacked == pytest.approx([improvement(scores, other), 1])
    assert mean(np.stack([scores, scores + 9])) == pytest.approx([scores.mean(), scores.mean() + 9])


def test_each_perturbation_is_a_task():
    records = play("a", [[4]], 4)
    dark = [dataclasses.replace(r, perturbation="dark", outcome="failure") for r in records]
    (found,) = aggregate([*dark, *records], {"a": ["a-0"]})
    assert found.tasks == ("t0", "t0, dark")
    assert found.mean.value == 0.5


def test_what_cannot_be_aggregated_is_refused():
    records = play("a", [[1, 2], [2, 3]], 4)
    with pytest.raises(InvalidOption, match=r"no record is of 'c', a run of 'm'\. Valid: 'a-0'"):
        aggregate(records, {"m": ["a-0", "c"]})
    with pytest.raises(InvalidOption, match="each once"):
        aggregate(records, {"m": ["a-0", "a-0"]})
    with pytest.raises(InvalidOption, match="valid is a list of labels"):
        aggregate(records, {"m": "a-0"})
    with pytest.raises(InvalidOption, match="valid is method -> labels"):
        aggregate(records, {})
    with pytest.raises(InvalidOption, match=r"no method is named 'x'\. Valid: 'm'"):
        probability_of_improvement(records, {"m": ["a-0"]}, "m", "x")
    part = [r for r in records if (r.policy, r.id) != ("a-1", "t1")]
    with pytest.raises(InvalidOption, match="a-1 have no outcome on t1"):
        aggregate(part, {"m": ["a-0", "a-1"]})
    lost = [dataclasses.replace(r, outcome="crashed") for r in records]
    with pytest.raises(InvalidOption, match="no episode of a-0, a-1 has an outcome"):
        aggregate(lost, {"m": ["a-0", "a-1"]})


def test_runs_under_other_conditions_are_refused():
    records = play("a", [[1], [2]], 4)
    mixed = [
        dataclasses.replace(r, protocol={"horizon": 9}) if r.policy == "a-1" else r for r in records
    ]
    with pytest.raises(InvalidOption, match=r"t0 .* horizon: None for a-0, 9 for a-1"):
        aggregate(mixed, {"m": ["a-0", "a-1"]})
