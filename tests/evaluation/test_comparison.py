"""Paired comparisons: known values, laws, and what the intervals and tests promise."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import needs
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.comparison import (
    Pairs,
    compare,
    describe,
    episodes_for,
    episodes_needed,
    mcnemar_p_value,
    paired_interval,
)
from vla_gym.evaluation.metrics import success_interval
from vla_gym.evaluation.records import Record

pytestmark = needs("eval")

REACH, PUSH, CHAIN = "VLA/Toy-Reach-v0", "VLA/Toy-Push-v0", "VLA/CALVIN-Chain-v0"


def record(policy, seed, outcome, env_id=REACH, length=None, perturbation="", **protocol):
    return Record(
        policy=policy,
        id=env_id,
        episode=seed,
        seed=seed,
        outcome=outcome,
        protocol={"simulator": "toy", "horizon": 50, "policy_source": policy, **protocol},
        perturbation=perturbation,
        chain_length=length,
    )


def played(pairs, env_id=REACH, perturbation=""):
    """Return records of a and b with these counts of (both, only a, only b, neither)."""
    kinds = [(True, True), (True, False), (False, True), (False, False)]
    outcomes = [kind for kind, count in zip(kinds, pairs, strict=True) for _ in range(count)]
    return [
        record(policy, seed, "success" if solved else "failure", env_id, perturbation=perturbation)
        for seed, kind in enumerate(outcomes)
        for policy, solved in zip("ab", kind, strict=True)
    ]


def chained(lengths, env_id=CHAIN):
    """Return records of a and b with these lengths of chains."""
    return [
        record(policy, seed, "success" if length == 5 else "failure", env_id, length)
        for seed, pair in enumerate(lengths)
        for policy, length in zip("ab", pair, strict=True)
    ]


tables = st.tuples(*[st.integers(0, 12)] * 4).filter(lambda pairs: sum(pairs) > 0)
several = st.lists(tables, min_size=1, max_size=4).map(
    lambda found: [r for i, pairs in enumerate(found) for r in played(pairs, f"VLA/T{i}-v0")]
)
lengths = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20)
evaluations = st.one_of(several, lengths.map(chained))


# The test and the interval of one task.


def test_the_worked_example_of_airway_hyper_responsiveness():
    # Fagerland, Lydersen and Laake 2013 (table 1, 21 children; mid-p 0.0391) and, of the same data,
    # Tango's interval in their Statistics in Medicine 33:2850 (2014): -0.517 to -0.026.
    pairs = Pairs(both=1, only_first=1, only_second=7, neither=12)
    assert mcnemar_p_value(1, 7) == pytest.approx(0.0391, abs=5e-5)
    assert paired_interval(pairs) == pytest.approx((-0.517, -0.026), abs=5e-4)
    found = compare(played(pairs), "a", "b")
    assert (found.p_value, found.interval) == (mcnemar_p_value(1, 7), paired_interval(pairs))
    assert (found.pairs, found.test, found.verdict) == (pairs, "McNemar", "second is better")
    assert (found.first_score, found.second_score) == pytest.approx((2 / 21, 8 / 21))


@pytest.mark.parametrize(("b", "c"), [(3, 3), (0, 0), (0, 5), (4, 9)])
def test_the_mid_p_value_counts_the_observed_table_half(b, c):
    weights = [math.comb(b + c, k) / 2 ** (b + c) for k in range(b + c + 1)]
    farther = sum(w for k, w in enumerate(weights) if abs(2 * k - b - c) > abs(b - c))
    equal = sum(w for k, w in enumerate(weights) if abs(2 * k - b - c) == abs(b - c))
    assert mcnemar_p_value(b, c) == pytest.approx(farther + equal / 2 if b + c else 1)


def test_the_interval_is_that_of_the_score_test():
    # Without concordant pairs the variance under `delta` is 1 - delta**2, and the limits of
    # 7 of 10 are those of Wilson's interval for a share, stretched from 0..1 to -1..1.
    wilson = success_interval(7, 10)
    found = paired_interval(Pairs(0, 7, 3, 0))
    assert found == pytest.approx((2 * wilson.low - 1, 2 * wilson.high - 1), abs=1e-9)
    # Where no pair is discordant, delta**2 n**2 = z**2 n delta (1 - delta) at the limit.
    assert paired_interval(Pairs(20, 0, 0, 16)).high == pytest.approx(3.841459 / (36 + 3.841459))


def tables_of(n):
    return [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]


def multinomial(n, p10, p01):
    """Return the probability of each table of `tables_of(n)`."""
    from scipy import stats

    counts = np.array([(b, c, n - b - c) for b, c in tables_of(n)])
    return stats.multinomial.pmf(counts, n, [p10, p01, 1 - p10 - p01])


@pytest.mark.parametrize(("n", "least", "mean"), [(20, 0.92, 0.95), (50, 0.93, 0.945)])
def test_the_interval_covers_the_truth_as_often_as_it_says(n, least, mean):
    # Exact, by summing over all tables, instead of simulated.
    intervals = np.array([paired_interval(Pairs(0, b, c, n - b - c)) for b, c in tables_of(n)])
    coverage = []
    for discordant in (0.1, 0.2, 0.4, 0.7):
        for share in (0.5, 0.6, 0.75, 0.9):
            p10, p01 = discordant * share, discordant * (1 - share)
            inside = (intervals[:, 0] <= p10 - p01) & (p10 - p01 <= intervals[:, 1])
            coverage.append(multinomial(n, p10, p01)[inside].sum())
    assert min(coverage) > least
    assert mean < np.mean(coverage) < 0.975


@pytest.mark.parametrize("n", [10, 30, 60])
def test_equal_policies_are_told_apart_no_more_often_than_the_level(n):
    rejected = np.array([mcnemar_p_value(b, c) < 0.05 for b, c in tables_of(n)])
    for discordant in (0.1, 0.3, 0.6, 0.9):
        rate = multinomial(n, discordant / 2, discordant / 2)[rejected].sum()
        assert rate < 0.05


def test_a_settled_verdict_never_has_an_interval_over_0():
    for n in range(1, 41):
        for b in range(n + 1):
            if mcnemar_p_value(b, n - b) < 0.05:
                for concordant in (0, 3, 1000):
                    low, high = paired_interval(Pairs(concordant, b, n - b, 0))
                    assert low > 0 or high < 0


# Several tasks, chains.


def test_tasks_of_as_many_pairs_are_tested_by_the_exact_test_of_all():
    records = played((10, 8, 2, 5), REACH) + played((5, 7, 4, 9), PUSH)
    found = compare(records, "a", "b")
    assert found.pairs == (15, 15, 6, 14)
    assert (found.test, found.p_value) == ("McNemar", mcnemar_p_value(15, 6))
    assert found.difference == pytest.approx((6 / 25 + 3 / 25) / 2)
    assert [task.id for task in found.tasks] == [PUSH, REACH]


def test_every_task_weighs_the_same():
    records = played((0, 15, 1, 84), REACH) + played((0, 0, 9, 1), PUSH)
    found = compare(records, "a", "b")
    assert found.difference == pytest.approx((14 / 100 - 9 / 10) / 2)
    assert found.verdict == "second is better"  # though 15 episodes were won and 10 lost
    assert found.test == "permutation"


def test_random_exchanges_agree_with_all_of_them():
    from scipy import stats

    pairs = [(5, 1), (3, 3), (2, 0), (4, 5), (5, 2), (1, 0), (3, 1), (5, 5), (2, 4), (4, 1)]
    found = compare(chained(pairs), "a", "b")
    differences = np.array([a - b for a, b in pairs], float)
    exact = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    observed = differences.sum()
    equal = float(np.mean(np.isclose(np.abs(exact.null_distribution), observed)))
    assert (found.measure, found.test) == ("average length", "permutation")
    assert found.difference == pytest.approx(1.2)
    assert found.p_value == pytest.approx(exact.pvalue - equal / 2, abs=0.004)


def test_the_interval_of_lengths_is_the_paired_bootstrap():
    from scipy import stats

    generator = np.random.default_rng(3)
    pairs = [tuple(int(x) for x in generator.integers(0, 6, 2)) for _ in range(60)]
    differences = np.array([a - b for a, b in pairs], float)
    expected = stats.bootstrap(
        (differences,), np.mean, method="percentile", n_resamples=20_000, random_state=generator
    ).confidence_interval
    assert compare(chained(pairs), "a", "b").interval == pytest.approx(tuple(expected), abs=0.03)


def test_the_interval_over_tasks_resamples_within_each():
    from scipy import stats

    tables = [(10, 8, 2, 5), (5, 7, 4, 30), (0, 3, 6, 20)]
    records = [r for i, table in enumerate(tables) for r in played(table, f"VLA/T{i}-v0")]
    samples = [np.repeat([0.0, 1.0, -1.0, 0.0], table) for table in tables]
    expected = stats.bootstrap(
        samples,
        lambda *found, axis: np.mean([x.mean(axis=axis) for x in found], axis=0),
        method="percentile",
        n_resamples=20_000,
        random_state=np.random.default_rng(1),
    ).confidence_interval
    assert compare(records, "a", "b").interval == pytest.approx(tuple(expected), abs=0.01)


def test_the_interval_over_tasks_covers_the_truth():
    generator = np.random.default_rng(0)
    shares = np.array([[0.3, 0.1], [0.15, 0.15], [0.05, 0.2], [0.4, 0.05]])
    truth = float(np.mean(shares[:, 0] - shares[:, 1]))
    hits = 0
    for _ in range(150):
        records = []
        for i, (p10, p01) in enumerate(shares):
            b, c, rest = generator.multinomial(30, [p10, p01, 1 - p10 - p01])
            records += played((0, b, c, rest), f"VLA/T{i}-v0")
        low, high = compare(records, "a", "b").interval
        hits += low <= truth <= high
    assert 0.90 <= hits / 150 <= 0.99  # 0.95 give or take 3 standard errors


def test_p_values_of_tasks_are_corrected_by_holm():
    tables = {"VLA/A-v0": (0, 10, 1, 9), "VLA/B-v0": (0, 7, 1, 12), "VLA/C-v0": (5, 3, 3, 9)}
    found = compare([r for i, t in tables.items() for r in played(t, i)], "a", "b")
    p = [task.p_value for task in found.tasks]
    assert p == [mcnemar_p_value(10, 1), mcnemar_p_value(7, 1), mcnemar_p_value(3, 3)]
    assert [task.holm_p_value for task in found.tasks] == [3 * p[0], 2 * p[1], p[2]]
    assert [t.verdict for t in found.tasks] == ["first is better", "not settled", "not settled"]


def test_a_corrected_p_value_is_no_smaller_than_that_of_a_clearer_task():
    tables = {"VLA/A-v0": (0, 7, 1, 12), "VLA/B-v0": (3, 7, 1, 9)}
    found = compare([r for i, t in tables.items() for r in played(t, i)], "a", "b")
    assert [task.holm_p_value for task in found.tasks] == [2 * mcnemar_p_value(7, 1)] * 2


def test_one_seed_under_several_perturbations_is_one_draw():
    # The same episodes four times over are no more evidence than once.
    table = (4, 9, 2, 5)
    names = ("", "camera", "light", "table")
    once = compare(played(table), "a", "b")
    again = compare([r for n in names for r in played(table, perturbation=n)], "a", "b")
    assert len(again.tasks) == 4 and again.pairs.n == 80
    assert again.p_value == pytest.approx(once.p_value)
    assert again.standard_error == pytest.approx(once.standard_error)
    low, high = once.interval
    assert again.interval == pytest.approx((low, high), abs=0.05)


def test_chains_beside_other_tasks_are_compared_by_success_and_the_note_says_so():
    found = compare(chained([(5, 2), (3, 1)]) + played((1, 1, 0, 0)), "a", "b")
    assert found.measure == "success rate"
    assert found.difference == pytest.approx((0.5 + 0.5) / 2)
    assert "chains count as solved where all instructions were followed" in found.notes


# Laws.


@settings(max_examples=60)
@given(evaluations)
def test_exchanging_the_policies_turns_the_signs(records):
    one, other = compare(records, "a", "b"), compare(records, "b", "a")
    assert other.difference == -one.difference
    assert other.p_value == one.p_value
    assert (other.first_score, other.second_score) == (one.second_score, one.first_score)
    turned = {"first is better": "second is better", "second is better": "first is better"}
    assert other.verdict == turned.get(one.verdict, "not settled")
    if one.interval is None:
        assert other.interval is None
    else:
        assert other.interval == pytest.approx((-one.interval.high, -one.interval.low), abs=1e-9)
    assert episodes_needed(one) == episodes_needed(other)
    if one.difference:
        assert describe(one).split(" Task by task")[0] == describe(other).split(" Task by task")[0]


@settings(max_examples=40)
@given(evaluations, st.randoms(use_true_random=False))
def test_the_order_of_the_records_does_not_matter(records, order: random.Random):
    mixed = list(records)
    order.shuffle(mixed)
    assert compare(mixed, "a", "b") == dataclasses.replace(
        compare(records, "a", "b"), notes=compare(mixed, "a", "b").notes
    )


@settings(max_examples=60)
@given(evaluations)
def test_numbers_stay_where_they_belong(records):
    found = compare(records, "a", "b")
    assert found.difference == pytest.approx(found.first_score - found.second_score)
    assert sum(task.pairs.n for task in found.tasks) == found.pairs.n == len(records) // 2
    for part in (found, *found.tasks):
        assert 0 <= part.p_value <= 1
        if part.interval is not None:
            low, high = part.interval
            assert low - 1e-9 <= part.difference <= high + 1e-9
            assert found.measure == "average length" or (low >= -1 and high <= 1)
    assert all(task.p_value <= task.holm_p_value <= 1 for task in found.tasks)
    assert found.standard_error <= found.null_standard_error + 1e-12


@settings(max_examples=40)
@given(several, st.data())
def test_episodes_without_an_outcome_never_count(records, data):
    kept = compare(records, "a", "b")
    lost = [
        record(data.draw(st.sampled_from("ab")), 1000 + seed, outcome, records[0].id)
        for seed, outcome in enumerate(
            data.draw(st.lists(st.sampled_from(["crashed", "timeout"]), max_size=5))
        )
    ]
    single = record("a", 2000, "success", records[0].id)
    partner = record("b", 2000, "timeout", records[0].id)
    found = compare([*lost, *records, single, partner], "a", "b")
    assert found == dataclasses.replace(kept, unpaired=1)


# How many episodes.


def find_power(n, p10, p01):
    """Return how likely n pairs settle that the first is better, summed over all tables."""
    from scipy import stats

    power, rejected = 0.0, 0  # with `discordant` pairs, fewer than so many for the second
    for discordant in range(n + 1):
        while 2 * rejected < discordant and mcnemar_p_value(discordant - rejected, rejected) < 0.05:
            rejected += 1
        settled = stats.binom.cdf(rejected - 1, discordant, p01 / (p10 + p01))
        power += stats.binom.pmf(discordant, n, p10 + p01) * settled
    return power


@pytest.mark.parametrize(
    "table", [(0, 45, 5, 50), (40, 20, 10, 30), (0, 10, 4, 86), (2, 12, 0, 86)]
)
def test_as_many_pairs_as_are_needed_reach_the_power(table):
    # Exact, by summing over all tables of that many pairs, instead of simulated.
    n = episodes_needed(compare(played(table), "a", "b"))
    assert (
        0.79 < find_power(n, table[1] / 100, table[2] / 100) < 0.92
    )  # more where one policy wins every discordant pair


def test_the_number_of_pairs_is_that_of_a_published_example():
    # Connor's formula at shares of 0.45 and 0.05, level 5 %, power 80 %: 23 pairs.
    assert episodes_needed(compare(played((0, 45, 5, 50)), "a", "b")) == 23


@pytest.mark.slow  # 200 comparisons with 50 000 exchanges each, twice
def test_as_many_chains_as_are_needed_reach_the_power():
    generator = np.random.default_rng(0)
    pairs = [(int(a), int(b)) for a, b in generator.integers(0, 6, (40, 2))]
    pairs = [(min(a + 1, 5), b) for a, b in pairs]
    n = episodes_needed(compare(chained(pairs), "a", "b"))
    found = 0
    for _ in range(200):
        drawn = [pairs[i] for i in generator.integers(len(pairs), size=n)]
        found += compare(chained(drawn), "a", "b").verdict == "first is better"
    assert 0.7 <= found / 200 <= 0.9  # 0.8 give or take 3.5 standard errors


def test_no_number_of_pairs_settles_no_difference():
    found = compare(played((3, 2, 2, 3)), "a", "b")
    assert episodes_needed(found) is None
    assert "no telling" in describe(found)


@given(st.floats(0.01, 0.4), st.floats(0, 1))
def test_episodes_for_is_the_smallest_number_that_is_enough(half_width, rate):
    z2 = 1.959963984540054**2

    def reach(n):
        return math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)

    n = episodes_for(half_width, rate)
    assert reach(n) <= half_width + 1e-12
    assert n == 1 or reach(n - 1) > half_width - 1e-12


def test_episodes_for_gives_that_wilson_interval():
    n = episodes_for(0.05)
    assert n == 381
    low, high = success_interval(round(n / 2), n)
    assert (high - low) / 2 == pytest.approx(0.05, abs=1e-4)


# In words.


def test_a_verdict_in_words():
    found = compare(played((90, 40, 16, 54)), "a", "b")
    assert describe(found) == (
        "a solves 12 points more than b [4.8, 19.3] on the same 200 episodes "
        f"(McNemar p = {found.p_value:.2g}): a is better."
    )
    found = compare(played((90, 16, 20, 74)), "a", "b")
    needed = episodes_needed(found)
    assert describe(found).startswith("b solves 2 points more than a [-4")
    assert "not settled at the 5 % level; about " in describe(found)
    (more,) = [int(word) for word in describe(found).split("about ")[1].split() if word.isdigit()][
        :1
    ]
    assert needed - 200 <= more <= 1.1 * (needed - 200)


def test_several_tasks_and_chains_in_words():
    found = compare(played((0, 20, 0, 5), REACH) + played((5, 1, 1, 18), PUSH), "a", "b")
    assert "on the same 50 episodes of 2 tasks of equal weight (McNemar p < 0.001)" in describe(
        found
    )
    assert describe(found).endswith("Task by task (Holm): a is better on 1, b on 0, 1 not settled.")
    found = compare(chained([(3, 1), (4, 2), (5, 2), (2, 1)] * 5), "a", "b")
    assert "a follows 2.00 instructions more than b [1.70, 2.30] on the same 20 chains" in describe(
        found
    )


# What is refused.


def test_unknown_labels_and_levels_are_refused():
    records = played((1, 1, 1, 1))
    with pytest.raises(InvalidOption, match=r"no record is of a policy 'c'. Valid: 'a', 'b'"):
        compare(records, "a", "c")
    with pytest.raises(InvalidOption, match=r"'a' .* compared with itself. Others: 'b'"):
        compare(records, "a", "a")
    with pytest.raises(InvalidOption, match="level=5"):
        compare(records, "a", "b", level=5)
    with pytest.raises(InvalidOption, match="power=1"):
        episodes_needed(compare(records, "a", "b"), power=1)
    with pytest.raises(InvalidOption, match=r"half_width=0\.5"):
        episodes_for(0.5)


def test_episodes_that_are_not_the_same_are_refused():
    records = [record("a", 0, "success"), record("b", 1, "success"), record("b", 0, "crashed")]
    with pytest.raises(InvalidOption, match=r"'a' has 1 episodes .* 'b' 1, but none of the same"):
        compare(records, "a", "b")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"horizon": 100}, "horizon: 50 for a, 100 for b"),
        ({"simulator": "other"}, "simulator: toy for a, other for b"),
        ({"versions": {"mujoco": "3.4"}}, "versions mujoco: None for a, 3.4 for b"),
        ({"robot": "sawyer"}, "robot: None for a, sawyer for b"),
    ],
)
def test_policies_that_did_not_face_the_same_are_not_compared(change, text):
    records = [record("a", 3, "success"), record("b", 3, "success", **change)]
    with pytest.raises(InvalidOption, match=f"VLA/Toy-Reach-v0, seed 3: {text}"):
        compare(records, "a", "b")


def test_other_reset_options_and_other_draws_are_not_compared():
    one = record("a", 3, "success")
    other = dataclasses.replace(one, policy="b", options={"goal": 1})
    with pytest.raises(InvalidOption, match="reset options goal: None for a, 1 for b"):
        compare([one, other], "a", "b")
    other = dataclasses.replace(one, policy="b", episode_seed=9)
    with pytest.raises(InvalidOption, match="episode_seed: None for a, 9 for b"):
        compare([one, other], "a", "b")


def test_what_a_policy_needs_may_differ_and_is_noted():
    one = record("a", 0, "success", image_size=128, cameras=["primary"], state=False)
    other = record("b", 0, "failure", image_size=224, cameras=["primary"], state=True)
    found = compare([one, other], "a", "b")
    assert found.notes == (
        "policy_source: a for a, b for b",
        "image_size: 128 for a, 224 for b",
        "state: False for a, True for b",
    )
