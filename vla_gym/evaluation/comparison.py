"""Is one policy better than another? Paired statistics of the same episodes. Pure functions.

Two policies that have played the same seeded episodes are compared episode by episode, which takes
out how hard an episode is: only those that one solves and the other does not tell them apart.
docs/statistics.md says how to read the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.metrics import Interval
from vla_gym.evaluation.records import Key, Record

__all__ = [
    "POLICY_NEEDS",
    "Comparison",
    "Pairs",
    "TaskComparison",
    "compare",
    "describe",
    "episodes_for",
    "episodes_needed",
    "find_differences",
    "mcnemar_p_value",
    "paired_interval",
]

POLICY_NEEDS = (
    "policy_source",
    "deterministic",
    "batch",
    "cameras",
    "image_size",
    "action_mode",
    "proprio",
    "state",
    "instruction",
    "render_quality",
)
"""Entries of a record's protocol that say what the policy sees and does, not what it faces. All
others must agree in a comparison."""

RESAMPLES = 10_000
EXCHANGES = 50_000
MANY = 10_000  # more further episodes than this are not counted out in words
TIE = 1e-6  # sums of differences, in units of the smallest one, that differ by less are equal


class Pairs(NamedTuple):
    """How many episodes both policies solved, only one of them, or neither."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def n(self) -> int:
        """Episodes that both played to an outcome."""
        return sum(self)


@dataclass(frozen=True)
class TaskComparison:
    """Two policies on the same episodes of one task.

    Attributes:
        id, perturbation: the task, and under which perturbation it was played (`""`: none).
        pairs: counts of episodes.
        first_score, second_score: of `Comparison.measure`.
        difference: first minus second.
        interval: 95 %; of success rates by `paired_interval`, of average lengths by the paired
            bootstrap, there None with less than two pairs.
        p_value: two-sided, of no difference, as in `Comparison`.
        holm_p_value: `p_value` corrected for the number of tasks of this comparison. Source: Holm
            1979, Scandinavian Journal of Statistics 6:65-70.
        verdict: as in `Comparison`, of `holm_p_value`.
    """

    id: str
    perturbation: str
    pairs: Pairs
    first_score: float
    second_score: float
    difference: float
    interval: Interval | None
    p_value: float
    holm_p_value: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Two policies on the same episodes.

    Attributes:
        first, second: their labels.
        measure: `"success rate"` (0 to 1), or `"average length"` (instructions followed in a row,
            0 to 5) where every task plays chains.
        tasks: one entry per task and perturbation, sorted by name.
        pairs: counts of episodes of all tasks.
        unpaired: episodes with an outcome of one policy that the other has no outcome of; left out.
        first_score, second_score: means over the tasks, each task with the same weight.
        difference: first minus second, which is the mean of the tasks' differences.
        interval: 95 %, of `difference` for this fixed set of tasks. For one task its own; else the
            stratified paired bootstrap (percentile): pairs are resampled within each task. None
            where a task has less than two episodes.
        p_value: two-sided, of no difference: how often random exchanges of the two policies within
            their episodes give so large a difference, equal ones counted half (mid-p). For the
            success rates of one task, or of several with as many pairs each, that is the exact
            McNemar test (`mcnemar_p_value`); else 50 000 random exchanges from a fixed seed.
        test: `"McNemar"` or `"permutation"`, the name of that test.
        level: that the verdict is given at.
        verdict: `"first is better"`, `"second is better"` or `"not settled"` (`p_value` is at least
            `level`).
        standard_error: of `difference`, from the pairs' spread within each task.
        null_standard_error: the same if the policies were equal: from their squared differences.
        notes: in which of `POLICY_NEEDS` the two differ, in words, and what else to know.
    """

    first: str
    second: str
    measure: str
    tasks: tuple[TaskComparison, ...]
    pairs: Pairs
    unpaired: int
    first_score: float
    second_score: float
    difference: float
    interval: Interval | None
    p_value: float
    test: str
    level: float
    verdict: str
    standard_error: float
    null_standard_error: float
    notes: tuple[str, ...]


def compare(
    records: Iterable[Record], first: str, second: str, *, level: float = 0.05
) -> Comparison:
    """Compare two policies on the episodes that both have played to an outcome.

    Episodes are paired by id, seed and perturbation. Those of one seed under several perturbations
    show the same scene, so tests and resampling keep them together. Success rates are compared,
    or average lengths where every paired task plays chains. The order of the records does not
    matter, except that of one key the last counts; exchanging `first` and `second` turns the signs.

    Args:
        records: of these policies, and of any others.
        first: label of a policy.
        second: label of the other.
        level: of the tests: how often equal policies may be told apart by chance.

    Raises:
        InvalidOption: a label is not in the records, both are the same, no episode is paired, two
            paired episodes were not played under the same conditions (their protocols differ in
            more than `POLICY_NEEDS`), or `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise InvalidOption(f"level={level}: valid is a number between 0 and 1, such as 0.05")
    last = {record.key: record for record in records}
    _refuse_labels(sorted({key.policy for key in last}), first, second)
    played = {
        key: record
        for key, record in last.items()
        if record.counts and record.policy in (first, second)
    }
    strata = _pair_up(played, first, second)
    pairs = [pair for stratum in strata for pair in stratum.pairs]
    notes = _compare_conditions(pairs)
    with_length = [record.chain_length is not None for pair in pairs for record in pair]
    chains = all(with_length)
    if any(with_length) and not chains:
        notes += ("chains count as solved where all instructions were followed",)
    # The same policies the other way round draw the same random numbers, with turned signs.
    sign = 1 if first < second else -1
    tasks = _compare_tasks(strata, chains, sign, level)
    units = _weigh(strata, chains)
    values = np.concatenate(units)
    difference = round(float(np.sum(values)), 12)  # tasks that cancel out give 0
    p_value, exact = _exchange_p_value(values)
    return Comparison(
        first=first,
        second=second,
        measure="average length" if chains else "success rate",
        tasks=tasks,
        pairs=Pairs(*map(sum, zip(*(task.pairs for task in tasks), strict=True))),
        unpaired=len(played) - 2 * len(pairs),
        first_score=float(np.mean([task.first_score for task in tasks])),
        second_score=float(np.mean([task.second_score for task in tasks])),
        difference=difference,
        interval=tasks[0].interval if len(tasks) == 1 else _bootstrap(units, sign),
        p_value=p_value,
        test="McNemar" if exact and not chains else "permutation",
        level=level,
        verdict=_verdict(difference, p_value, level),
        standard_error=math.sqrt(sum(len(unit) * float(np.var(unit)) for unit in units)),
        null_standard_error=math.sqrt(float(np.sum(values**2))),
        notes=notes,
    )


def describe(comparison: Comparison) -> str:
    """Return the verdict in a few plain sentences, the policy that is ahead first."""
    c = comparison
    ahead, behind = (c.first, c.second) if c.difference >= 0 else (c.second, c.first)
    shown = f"the same {c.pairs.n} {'chains' if c.measure == 'average length' else 'episodes'}"
    if len(c.tasks) > 1:
        shown += f" of {len(c.tasks)} tasks of equal weight"
    interval = _format_interval(c)
    p_value = f"{c.test} p {'< 0.001' if c.p_value < 0.001 else f'= {c.p_value:.2g}'}"
    if c.difference == 0:
        text = f"{ahead} and {behind} score the same{interval} on {shown} ({p_value}): "
    elif c.measure == "average length":
        size = f"{abs(c.difference):.2f}"
        text = f"{ahead} follows {size} instructions more than {behind}{interval} on {shown}"
        text += f" ({p_value}): "
    else:
        size = _format_points(abs(c.difference))
        text = f"{ahead} solves {size} points more than {behind}{interval} on {shown} ({p_value}): "
    if c.verdict != "not settled":
        text += f"{ahead} is better."
    else:
        text += f"not settled at the {100 * c.level:g} % level; {_format_more(c)}."
    if len(c.tasks) > 1:
        verdicts = [task.verdict for task in c.tasks]
        text += (
            f" Task by task (Holm): {c.first} is better on {verdicts.count('first is better')}, "
            f"{c.second} on {verdicts.count('second is better')}, "
            f"{verdicts.count('not settled')} not settled."
        )
    return text


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the two-sided mid-p value of McNemar's exact test, 1 without discordant pairs.

    The mid-p counts the observed outcome half. The plain exact test is far too cautious with the
    few discordant pairs of an evaluation; the mid-p kept the nominal level in all 9595 scenarios of
    Fagerland et al. and has nearly the power of the asymptotic test.

    Source: Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    stats = require("scipy.stats", "eval", "a test")
    observed = stats.binom.pmf(fewer, n, 0.5)
    as_unlikely = observed if 2 * fewer == n else 2 * observed  # on both sides
    return float(stats.binomtest(fewer, n).pvalue - as_unlikely / 2)


def paired_interval(pairs: Pairs, confidence: float = 0.95) -> Interval:
    """Return the score interval of the difference of two paired success rates, first minus second.

    It holds the differences that a score test does not reject; the one of no difference is
    McNemar's without correction. With a handful of discordant pairs it may leave out 0 where the
    slightly more cautious mid-p test does not settle the matter; never the other way round.

    Args:
        pairs: counts of episodes, at least one.
        confidence: level of the interval.

    Source: Tango 1998, Statistics in Medicine 17:891-908.
    """
    optimize = require("scipy.optimize", "eval", "a confidence interval")
    stats = require("scipy.stats", "eval", "a confidence interval")
    n, b, c = pairs.n, pairs.only_first, pairs.only_second
    z2 = float(stats.norm.ppf(0.5 + confidence / 2)) ** 2
    difference = (b - c) / n

    def excess(delta: float) -> float:
        # The squared score statistic over z squared, multiplied out; `only` is the share of pairs
        # that only the second solves, estimated under the hypothesis that `delta` is true.
        half = b + c - (2 * n - b + c) * delta
        root = math.sqrt(max(half**2 + 8 * n * c * delta * (1 - delta), 0.0))
        only = (half + root) / (4 * n)
        return (b - c - n * delta) ** 2 - z2 * n * (2 * only + delta * (1 - delta))

    near = 1e-9  # the estimate itself is a root where no pair, or every pair, is discordant
    low = -1.0 if c == n else optimize.brentq(excess, -1.0, difference - near)
    high = 1.0 if b == n else optimize.brentq(excess, difference + near, 1.0)
    return Interval(float(low), float(high))


def episodes_needed(comparison: Comparison, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Return how many pairs in all would settle a difference of the observed size.

    That is: if the true shares of discordant pairs were those observed, and the tasks kept their
    shares of the episodes, a test at level `alpha` on that many pairs would find the difference
    with probability `power`. The observed shares are uncertain themselves, those of a small sample
    greatly, so this is a scale for a plan and no promise. For success rates of one task it is at
    most `((z(1 - alpha/2) + z(power)) / difference)**2`, however the policies disagree.

    Returns:
        None where the observed difference is 0.

    Raises:
        InvalidOption: `power` or `alpha` is not between 0 and 1.

    Source: Connor 1987, Biometrics 43:207-211, for the success rates of one task, there
    `(z(1 - alpha/2) sqrt(s) + z(power) sqrt(s - d**2))**2 / d**2` with discordant share s and
    difference d. Its two roots are standard errors, without and with the difference; those of
    several tasks and of lengths take their place here.
    """
    for name, value in (("power", power), ("alpha", alpha)):
        if not 0 < value < 1:
            raise InvalidOption(f"{name}={value}: valid is a number between 0 and 1")
    if comparison.difference == 0:
        return None
    quantile = require("scipy.stats", "eval", "a number of episodes").norm.ppf
    null, spread = comparison.null_standard_error, comparison.standard_error
    reach = float(quantile(1 - alpha / 2)) * null + float(quantile(power)) * spread
    return math.ceil(comparison.pairs.n * (reach / comparison.difference) ** 2)


def episodes_for(half_width: float, rate: float = 0.5, confidence: float = 0.95) -> int:
    """Return how many episodes give a success rate a Wilson interval of this half width.

    Args:
        half_width: half the distance of the interval's ends, between 0 and 0.5 (0.05: 5 points).
        rate: expected success rate; 0.5 needs the most episodes.
        confidence: level of the interval.

    Raises:
        InvalidOption: an argument is out of its range.

    Source: the interval of `success_interval` (Wilson 1927), solved for n.
    """
    if not (0 < half_width < 0.5 and 0 <= rate <= 1 and 0 < confidence < 1):
        raise InvalidOption(
            f"half_width={half_width}, rate={rate}, confidence={confidence}: valid are half widths "
            "between 0 and 0.5, rates from 0 to 1 and a confidence between 0 and 1"
        )
    quantile = require("scipy.stats", "eval", "a number of episodes").norm.ppf
    z2 = float(quantile(0.5 + confidence / 2)) ** 2
    square = half_width**2
    # half_width = z sqrt(rate (1 - rate) / n + z2 / (4 n**2)) / (1 + z2 / n) is a quadratic in n.
    middle = rate * (1 - rate) - 2 * square
    root = math.sqrt(middle**2 + 4 * square * (0.25 - square))
    return max(1, math.ceil(z2 * (middle + root) / (2 * square)))


def find_differences(one: Record, other: Record) -> list[str]:
    """Return in words how the conditions of two episodes of a task differ, besides their policies.

    Scores compare where this is empty: where the protocols agree in all but `POLICY_NEEDS`, and
    episodes of the same seed in reset options and simulator's seed too.
    """
    ones, others = (
        {name: value for name, value in record.protocol.items() if name not in POLICY_NEEDS}
        for record in (one, other)
    )
    if one.seed == other.seed:
        ones |= {"reset options": one.options, "episode_seed": one.episode_seed}
        others |= {"reset options": other.options, "episode_seed": other.episode_seed}
    return _describe(one, other, ones, others)


def _refuse_labels(labels: Sequence[str], first: str, second: str) -> None:
    for label in (first, second):
        if label not in labels:
            valid = ", ".join(map(repr, labels)) or "none"
            raise InvalidOption(f"no record is of a policy {label!r}. Valid: {valid}")
    if first == second:
        others = ", ".join(repr(label) for label in labels if label != first) or "no other"
        raise InvalidOption(f"{first!r} was asked to be compared with itself. Others: {others}")


@dataclass(frozen=True)
class _Stratum:
    """The paired episodes of one task under one perturbation, sorted by seed."""

    id: str
    perturbation: str
    pairs: tuple[tuple[Record, Record], ...]

    def count(self) -> Pairs:
        solved = [
            (one.outcome == "success", other.outcome == "success") for one, other in self.pairs
        ]
        kinds = ((True, True), (True, False), (False, True), (False, False))
        return Pairs(*(solved.count(kind) for kind in kinds))

    def scores(self, chains: bool) -> NDArray[np.float64]:
        """Return the scores of both, shape (2, n): 0 or 1, or the lengths of chains."""
        found = [
            [r.chain_length if chains else r.outcome == "success" for r in p] for p in self.pairs
        ]
        return np.array(found, np.float64).T


def _pair_up(played: Mapping[Key, Record], first: str, second: str) -> list[_Stratum]:
    """Return the strata, sorted by name.

    Raises:
        InvalidOption: no episode is paired.
    """
    found: dict[tuple[str, str], list[tuple[Record, Record]]] = {}
    for key in sorted(key for key in played if key.policy == first):
        other = played.get(key._replace(policy=second))
        if other is not None:
            found.setdefault((key.id, key.perturbation), []).append((played[key], other))
    if found:
        return [_Stratum(*key, tuple(pairs)) for key, pairs in sorted(found.items())]
    counts = [sum(key.policy == label for key in played) for label in (first, second)]
    raise InvalidOption(
        f"{first!r} has {counts[0]} episodes with an outcome and {second!r} {counts[1]}, but none "
        "of the same id, seed and perturbation. Evaluate both with the same ids, --seed and "
        "number of episodes"
    )


def _compare_conditions(pairs: Iterable[tuple[Record, Record]]) -> tuple[str, ...]:
    """Return in which of `POLICY_NEEDS` the policies differ.

    Raises:
        InvalidOption: they differ in more.
    """
    notes: dict[str, None] = {}
    for one, other in pairs:
        differing = find_differences(one, other)
        if differing:
            raise InvalidOption(
                f"{one.policy!r} and {other.policy!r} did not face the same on {one.id}, seed "
                f"{one.seed}: {'; '.join(differing)}. Only what a policy needs may differ "
                f"({', '.join(POLICY_NEEDS)}): evaluate both under one protocol"
            )
        needs = [{k: r.protocol[k] for k in POLICY_NEEDS if k in r.protocol} for r in (one, other)]
        notes |= dict.fromkeys(_describe(one, other, *needs))
    return tuple(notes)


def _describe(
    one: Record, other: Record, ones: Mapping[str, Any], others: Mapping[str, Any]
) -> list[str]:
    ones, others = dict(_flatten(ones)), dict(_flatten(others))
    return [
        f"{name}: {ones.get(name)} for {one.policy}, {others.get(name)} for {other.policy}"
        for name in dict.fromkeys([*ones, *others])
        if ones.get(name) != others.get(name)
    ]


def _flatten(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name} ")
        elif value not in ({}, None):  # as good as absent
            yield prefix + name, value


def _compare_tasks(
    strata: Sequence[_Stratum], chains: bool, sign: int, level: float
) -> tuple[TaskComparison, ...]:
    scores = [stratum.scores(chains) for stratum in strata]
    p_values = [_exchange_p_value(one - other)[0] for one, other in scores]
    tasks = []
    for stratum, (one, other), p_value, holm in zip(
        strata, scores, p_values, _correct(p_values), strict=True
    ):
        pairs, difference = stratum.count(), float(np.mean(one - other))
        shares = (one - other) / len(one)
        task = TaskComparison(
            id=stratum.id,
            perturbation=stratum.perturbation,
            pairs=pairs,
            first_score=float(one.mean()),
            second_score=float(other.mean()),
            difference=difference,
            interval=_bootstrap([shares], sign) if chains else paired_interval(pairs),
            p_value=p_value,
            holm_p_value=holm,
            verdict=_verdict(difference, holm, level),
        )
        tasks.append(task)
    return tuple(tasks)


def _weigh(strata: Sequence[_Stratum], chains: bool) -> list[NDArray[np.float64]]:
    """Return what each seed of each id adds to the mean of the tasks' differences.

    One array per id; a seed that was played under several perturbations is one entry.
    """
    shares: dict[str, dict[int, float]] = {}
    for stratum in strata:
        of_seed = shares.setdefault(stratum.id, {})
        one, other = stratum.scores(chains)
        values = (one - other) / len(one) / len(strata)
        for (record, _), value in zip(stratum.pairs, values, strict=True):
            of_seed[record.seed] = of_seed.get(record.seed, 0.0) + float(value)
    return [np.array(list(of_seed.values())) for of_seed in shares.values()]


def _exchange_p_value(values: NDArray[np.float64]) -> tuple[float, bool]:
    """Return the two-sided mid-p value of exchanges within pairs, and whether it is exact.

    Args:
        values: what each pair adds to the difference, shape (n,). An exchange turns its sign.

    Source: Fisher 1935, The Design of Experiments, section 21.
    """
    values = values[np.abs(values) > 0]
    if not len(values):
        return 1.0, True
    values = (values / np.abs(values).min()).round(9)  # so that equal ones are equal
    sizes, counts = np.unique(np.abs(values), return_counts=True)
    if len(sizes) == 1:
        positive = int(np.sum(values > 0))
        return mcnemar_p_value(positive, len(values) - positive), True
    # So many of the pairs of one size keep their sign: a binomial draw stands for all of them.
    kept = np.random.default_rng(0).binomial(counts, 0.5, (EXCHANGES, len(counts)))
    excess = np.abs((2 * kept - counts) @ sizes) - abs(float(values.sum()))
    hits = float(np.sum(excess > TIE)) + 0.5 * float(np.sum(np.abs(excess) <= TIE))
    return min(1.0, (hits + 1) / (EXCHANGES + 1)), False  # what was observed is one of them


def _bootstrap(strata: Sequence[NDArray[np.float64]], sign: int) -> Interval | None:
    """Return the percentile 95 % interval of the sum of all values, resampled within each stratum.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 8.3 and 13.3.
    """
    if any(len(values) < 2 for values in strata):
        return None
    generator = np.random.default_rng(0)
    sums = np.zeros(RESAMPLES)
    for values in strata:
        # How often each distinct value is drawn is multinomial: no need to draw pair by pair.
        distinct, counts = np.unique(sign * values, return_counts=True)
        drawn = generator.multinomial(len(values), counts / len(values), RESAMPLES)
        sums += drawn @ distinct
    low, high = sorted(sign * np.percentile(sums, (2.5, 97.5)))
    return Interval(float(low), float(high))


def _correct(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down correction of p-values, in their order."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _verdict(difference: float, p_value: float, level: float) -> str:
    if p_value >= level:
        return "not settled"
    return "first is better" if difference > 0 else "second is better"


def _format_points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:g}"  # no -0


def _format_interval(c: Comparison) -> str:
    """Return the interval in the direction of the words: ahead minus behind."""
    if c.interval is None:
        return ""
    low, high = c.interval if c.difference >= 0 else (-c.interval.high, -c.interval.low)
    if c.measure == "average length":
        return f" [{low:.2f}, {high:.2f}]"
    return f" [{_format_points(low)}, {_format_points(high)}]"


def _format_more(c: Comparison) -> str:
    needed = episodes_needed(c, alpha=c.level)
    if needed is None:
        return "without a difference there is no telling how many more pairs would settle one"
    more = max(1, needed - c.pairs.n)
    digits = 10 ** max(0, len(str(more)) - 2)
    about = f"more than {MANY}" if more > MANY else f"about {math.ceil(more / digits) * digits}"
    return f"{about} more pairs would settle a difference of this size (power 80 %)"
