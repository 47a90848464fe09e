"""The statistics of an evaluation."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import needs
from vla_gym.evaluation.metrics import (
    CHAIN_TASKS,
    bootstrap_intervals,
    mean_interval,
    pool,
    success_interval,
    summarize,
    summarize_chains,
)
from vla_gym.evaluation.records import Record

pytestmark = needs("eval")

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
values = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40)


@given(counts)
def test_a_success_interval_holds_its_estimate_and_stays_in_0_to_1(count):
    successes, n = count
    interval = success_interval(successes, n)
    assert -1e-12 <= interval.low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= interval.high <= 1 + 1e-12


@given(counts)
def test_a_success_interval_shrinks_as_episodes_are_added_at_the_same_rate(count):
    successes, n = count
    few, many = success_interval(successes, n), success_interval(4 * successes, 4 * n)
    assert many.high - many.low < few.high - few.low


@given(counts)
def test_failures_have_the_mirrored_interval(count):
    successes, n = count
    one, other = success_interval(successes, n), success_interval(n - successes, n)
    assert one.low == pytest.approx(1 - other.high, abs=1e-9)


def test_a_success_interval_has_the_value_of_the_formula():
    # p = 8/10, z = 1.959964, z2 = 3.841459; centre (0.8 + z2/20) / (1 + z2/10) = 0.716740,
    # reach z / (1 + z2/10) * sqrt(0.16/10 + z2/400) = 0.226578
    assert success_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)


def test_no_episodes_have_no_interval():
    assert success_interval(0, 0) is None
    assert mean_interval([]) is None
    assert mean_interval([3.0]) is None


@given(values)
def test_a_mean_interval_holds_the_mean_in_its_middle_in_any_order(returns):
    interval, backwards = mean_interval(returns), mean_interval(returns[::-1])
    mean = sum(returns) / len(returns)
    assert (interval.low + interval.high) / 2 == pytest.approx(mean, rel=1e-6, abs=1e-6)
    assert interval == pytest.approx(backwards, rel=1e-6, abs=1e-6)


def test_a_mean_interval_has_the_value_of_the_table():
    # 1, 2, 3: s = 1, t(0.975, 2) = 4.302653, reach = 4.302653 / sqrt(3) = 2.484138
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((-0.484138, 4.484138), abs=1e-5)


def record(outcome, seed=0, episode_return=1.0, length=10, policy="p", env_id="VLA/Toy-Reach-v0"):
    crashed = outcome in ("crashed", "timeout")
    return Record(
        policy=policy,
        id=env_id,
        episode=seed,
        seed=seed,
        outcome=outcome,
        protocol={},
        episode_return=None if crashed else episode_return,
        length=None if crashed else length,
        env_seconds=None if crashed else 0.5,
        policy_seconds=None if crashed else 0.1,
    )


def test_a_crashed_episode_is_counted_and_is_not_a_failure():
    (found,) = summarize([record("success", 0), record("failure", 1), record("crashed", 2)])
    assert (found.n, found.successes, found.crashed, found.rate) == (2, 1, 1, 0.5)
    assert found.mean_length == 10
    assert found.mean_seconds == pytest.approx(0.6)
    assert found.policy_ms == pytest.approx(10.0)  # 0.1 s over 10 steps


def test_a_policy_that_only_crashed_has_no_rate_instead_of_zero():
    (found,) = summarize([record("crashed")])
    assert found.n == 0
    assert found.rate is found.rate_interval is found.mean_return is found.mean_length is None


def test_a_timeout_is_counted_apart_from_crashes_and_is_not_a_failure():
    outcomes = ["success", "timeout", "crashed", "timeout"]
    (found,) = summarize([record(outcome, seed) for seed, outcome in enumerate(outcomes)])
    assert (found.n, found.successes, found.crashed, found.timeouts) == (1, 1, 1, 2)


def test_perturbed_episodes_have_a_summary_of_their_own():
    perturbed = dataclasses.replace(record("failure"), perturbation="camera")
    found = summarize([record("success"), perturbed, record("success", 1)])
    assert [(s.perturbation, s.n, s.rate) for s in found] == [("", 2, 1.0), ("camera", 1, 0.0)]


def test_pooling_weighs_every_episode_the_same():
    parts = summarize(
        [record("success", 0), record("failure", 0, env_id="b"), record("failure", 1, env_id="b")]
    )
    assert pool(parts)[:3] == (1, 3, pytest.approx(1 / 3))
    assert pool([])[2] is None


def chain(length, seed=0, **fields):
    outcome = "crashed" if length is None else "success" if length == CHAIN_TASKS else "failure"
    return dataclasses.replace(record(outcome, seed, **fields), chain_length=length)


def play(lengths):
    (found,) = summarize_chains([chain(length, i) for i, length in enumerate(lengths)])
    return found


chain_lengths = st.lists(st.integers(0, CHAIN_TASKS), min_size=2, max_size=60)


def test_chains_have_the_numbers_of_a_hand_calculation():
    # Of 0 1 1 3 5 5 at least 1, 2, 3, 4, 5 were reached by 5, 3, 3, 2, 2 of 6; 15 in all.
    found = play([5, 0, 1, 3, 1, 5])
    assert found.rates == pytest.approx((5 / 6, 3 / 6, 3 / 6, 2 / 6, 2 / 6))
    assert found.mean_length == pytest.approx(15 / 6)
    wrong = sum(k * rate for k, rate in enumerate(found.rates, start=1))
    assert wrong == pytest.approx(38 / 6)  # more than five of five: what circulates is no mean


@settings(max_examples=40)
@given(chain_lengths)
def test_chains_obey_the_laws_of_their_numbers(lengths):
    found = play(lengths)
    assert found.mean_length == pytest.approx(sum(found.rates))
    assert list(found.rates) == sorted(found.rates, reverse=True)
    for rate, interval in zip(found.rates, found.rate_intervals, strict=True):
        assert -1e-9 <= interval.low <= rate + 1e-9
        assert rate - 1e-9 <= interval.high <= 1 + 1e-9
    low, high = found.length_interval
    assert -1e-9 <= low <= found.mean_length + 1e-9
    assert found.mean_length - 1e-9 <= high <= CHAIN_TASKS + 1e-9
    assert play(sorted(lengths)) == found  # workers end in any order


def test_a_bootstrap_interval_is_that_of_the_exact_distribution():
    # A mean of 0.6 of 100 resampled is Binomial(100, 0.6) / 100, whose quantiles at 2.5 and 97.5 %
    # are 0.50 and 0.69 or 0.70 (P(X <= 69) = 0.9752).
    (interval,) = bootstrap_intervals(np.array([[1.0] * 60 + [0.0] * 40]))
    assert interval.low == pytest.approx(0.50, abs=0.0101)
    assert interval.high == pytest.approx(0.695, abs=0.0101)


def test_a_bootstrap_interval_shrinks_as_chains_are_added():
    few, many = play([0, 1, 2, 3, 4, 5] * 2), play([0, 1, 2, 3, 4, 5] * 50)
    ratio = (few.length_interval[1] - few.length_interval[0]) / (
        many.length_interval[1] - many.length_interval[0]
    )
    assert ratio == pytest.approx(5, rel=0.1)  # the root of 25


def test_chains_that_agree_have_intervals_without_width_and_a_single_one_has_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same, one = play([3, 3, 3, 3]), play([2])
    assert same.rate_intervals == ((1, 1), (1, 1), (1, 1), (0, 0), (0, 0))
    assert same.length_interval == (3, 3)
    assert one.mean_length == 2 and one.rates == (1, 1, 0, 0, 0)
    assert one.rate_intervals == () and one.length_interval is None


def test_crashed_chains_are_counted_apart_and_other_tasks_left_out():
    other = [record("success", 0, env_id="b"), record("crashed", 1, env_id="b")]
    records = [chain(4), chain(None, 1), chain(None, policy="q"), *other]
    found, crashed = summarize_chains(records)
    assert (found.policy, found.n, found.crashed, found.mean_length) == ("p", 1, 1, 4)
    assert (crashed.policy, crashed.n, crashed.crashed, crashed.rates) == ("q", 0, 1, ())
    assert crashed.mean_length is None
    assert summarize_chains(other) == []
