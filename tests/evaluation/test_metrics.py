"""The statistics of an evaluation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import needs
from vla_gym.evaluation.metrics import mean_interval, pool, success_interval, summarize
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
    crashed = outcome == "crashed"
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


def test_pooling_weighs_every_episode_the_same():
    parts = summarize(
        [record("success", 0), record("failure", 0, env_id="b"), record("failure", 1, env_id="b")]
    )
    assert pool(parts)[:3] == (1, 3, pytest.approx(1 / 3))
    assert pool([])[2] is None
