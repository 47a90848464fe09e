"""What perturbations do to each policy: rates, and the drop on the same episodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vla_gym.evaluation.comparison import Pairs, paired_interval
from vla_gym.evaluation.metrics import Interval, success_interval
from vla_gym.evaluation.records import Record
from vla_gym.evaluation.report.formats import name_task
from vla_gym.evaluation.report.gather import Results

__all__ = ["Bearing", "Robustness", "make_robustness"]


@dataclass(frozen=True)
class Bearing:
    """One policy under one perturbation, over all tasks that it has played so.

    Attributes:
        n: episodes with an outcome.
        rate, interval: success rate, each episode weighing the same, with its Wilson 95 % interval;
            None without data.
        paired: episodes that have an outcome without the perturbation too.
        change: rate under the perturbation minus rate without, on those; None without any.
        change_interval: its paired 95 % interval (Tango 1998).
    """

    n: int
    rate: float | None
    interval: Interval | None
    paired: int = 0
    change: float | None = None
    change_interval: Interval | None = None


@dataclass(frozen=True)
class Robustness:
    """The table: policy -> perturbation -> `Bearing`; `""` is none.

    Attributes:
        perturbations: names, without `""`.
        tasks: that were played under some perturbation. What is unperturbed is of these alone.
        rows: policy -> perturbation -> numbers.
    """

    perturbations: tuple[str, ...]
    tasks: tuple[str, ...]
    rows: dict[str, dict[str, Bearing]]


def make_robustness(results: Results) -> Robustness | None:
    """Return the table, None where no episode was perturbed."""
    perturbed = [record for record in results.records if record.perturbation]
    if not perturbed:
        return None
    names = tuple(dict.fromkeys(record.perturbation for record in perturbed))
    ids = {record.id for record in perturbed}
    outcomes: dict[tuple[str, str], dict[tuple[str, int], bool]] = {}
    for record in results.records:
        if record.id in ids and record.counts:
            group = outcomes.setdefault((record.policy, record.perturbation), {})
            group[record.id, record.seed] = record.outcome == "success"
    rows = {}
    for policy in _policies(results, perturbed):
        without = outcomes.get((policy, ""), {})
        rows[policy] = {
            name: _bear(outcomes.get((policy, name), {}), without if name else {})
            for name in ("", *names)
        }
    tasks = tuple(name_task(env_id) for env_id in results.ids if env_id in ids)
    return Robustness(names, tasks, rows)


def _policies(results: Results, perturbed: Iterable[Record]) -> list[str]:
    present = {record.policy for record in perturbed}
    return [policy for policy in results.policies if policy in present]


def _bear(under: dict[tuple[str, int], bool], without: dict[tuple[str, int], bool]) -> Bearing:
    n, successes = len(under), sum(under.values())
    rate = successes / n if n else None
    both = [(solved, without[key]) for key, solved in under.items() if key in without]
    if not both:
        return Bearing(n, rate, success_interval(successes, n))
    pairs = Pairs(*(both.count(pair) for pair in ((True, True), (True, False), (False, True))),
                  neither=both.count((False, False)))  # fmt: skip
    return Bearing(
        n=n,
        rate=rate,
        interval=success_interval(successes, n),
        paired=pairs.n,
        change=(pairs.only_first - pairs.only_second) / pairs.n,
        change_interval=paired_interval(pairs),
    )
