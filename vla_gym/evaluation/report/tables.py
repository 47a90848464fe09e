"""The tables of scores: rows and cells, for the page and for Markdown alike."""

from __future__ import annotations

from dataclasses import dataclass

from vla_gym.evaluation.metrics import CHAIN_TASKS, ChainSummary, Interval, Summary, pool
from vla_gym.evaluation.protocols import MEAN_LENGTH, Protocol, Score, score_by_group
from vla_gym.evaluation.records import Record
from vla_gym.evaluation.report.formats import DASH, describe_setting, name_task
from vla_gym.evaluation.report.gather import Results

__all__ = [
    "ALL_EPISODES",
    "Board",
    "Cell",
    "ChainRow",
    "ChainTable",
    "Lost",
    "Row",
    "find_lost",
    "make_board",
    "make_chains",
    "make_rows",
    "pool_tasks",
]

ALL_EPISODES = "all episodes"


@dataclass(frozen=True)
class Cell:
    """One policy on one task.

    Attributes:
        policy: its label.
        summary: its numbers; with n = 0 there are none.
        simulator: its name where the row's policies ran in several, else "".
        best: whether its rate is the highest of the row.
        why: why there are no numbers, else "".
    """

    policy: str
    summary: Summary
    simulator: str
    best: bool
    why: str


@dataclass(frozen=True)
class Row:
    """One task, with a cell for each policy. `group` is that of a named protocol, or ""."""

    id: str
    name: str
    suite: str
    group: str
    simulator: str
    instruction: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Board:
    """The scores over all tasks: a row for each policy.

    Attributes:
        title: of the protocol that the scores follow, or "".
        source: where the protocol was published, or "".
        differs: how it differs from what was published.
        names: of the scores.
        rows: policy -> its scores by name.
    """

    title: str
    source: str
    differs: tuple[str, ...]
    names: tuple[str, ...]
    rows: dict[str, dict[str, Score]]

    def is_headline(self, name: str) -> bool:
        """Return whether this is the figure that the protocol publishes."""
        return any(name in scores and scores[name].headline for scores in self.rows.values())

    def count_tasks(self, name: str) -> int:
        """Return how many tasks the score is over."""
        return max(scores[name].of for scores in self.rows.values() if name in scores)


@dataclass(frozen=True)
class ChainRow:
    """One policy on one chain of instructions; `summary` with n = 0 where it has not played."""

    policy: str
    setting: str
    summary: ChainSummary
    rates: tuple[float | None, ...]
    intervals: tuple[Interval | None, ...]
    best: bool
    why: str


@dataclass(frozen=True)
class ChainTable:
    """One long-horizon task."""

    id: str
    name: str
    rows: tuple[ChainRow, ...]


@dataclass(frozen=True)
class Lost:
    """Episodes of one policy on one task that have no outcome for the same reason.

    Attributes:
        kind: `"crashed"` or `"timeout"`.
        policy, name, perturbation: whose, and of what.
        seeds: of the episodes, sorted.
        attempts: how often one was begun, at most.
        error: the reason.
    """

    kind: str
    policy: str
    name: str
    perturbation: str
    seeds: tuple[int, ...]
    attempts: int
    error: str


def make_rows(results: Results, protocol: Protocol | None = None) -> list[Row]:
    """Return the table of success rates: a row for each task that plays no chain."""
    groups = protocol.groups if protocol is not None else {}
    group_of = {env_id: name for name, ids in groups.items() for env_id in ids}
    return [_make_row(results, env_id, group_of.get(env_id, "")) for env_id in results.tasks]


def _make_row(results: Results, env_id: str, group: str) -> Row:
    found = results.by_id[env_id]
    simulators = results.simulators([env_id])
    mixed = len(simulators) > 1
    summaries = [results.summaries.get((policy, env_id)) for policy in results.policies]
    best = max((s.rate for s in summaries if s is not None and s.rate is not None), default=0.0)
    cells = []
    for policy, s in zip(results.policies, summaries, strict=True):
        first = results.first.get((policy, env_id))
        cells.append(
            Cell(
                policy=policy,
                summary=s or _nothing(policy, env_id),
                simulator=first.protocol["simulator"] if mixed and first is not None else "",
                best=s is not None and s.rate == best > 0 and not mixed,
                why=_why(results, policy, env_id, s),
            )
        )
    return Row(
        id=env_id,
        name=name_task(env_id),
        suite=name_task(env_id).partition("-")[0],
        group=group,
        simulator=", ".join(simulators),
        instruction=next((record.instruction for record in found if record.instruction), ""),
        cells=tuple(cells),
    )


def make_board(results: Results, protocol: Protocol | None = None) -> Board | None:
    """Return the scores over all tasks: a protocol's, else those of all episodes together.

    None where there is nothing to put together: a single task, or chains alone.
    """
    if protocol is not None and protocol.score != MEAN_LENGTH:
        rows: dict[str, dict[str, Score]] = {}
        for score in score_by_group(results.plain, protocol):
            rows.setdefault(score.policy, {})[score.name] = score
        names = tuple(dict.fromkeys(name for row in rows.values() for name in row))
        rows = {policy: rows[policy] for policy in results.policies if policy in rows}
        return Board(protocol.title, protocol.source, protocol.differs, names, rows)
    if len(results.tasks) < 2:
        return None
    rows = {policy: {ALL_EPISODES: pool_tasks(results, policy)} for policy in results.policies}
    return Board("", "", (), (ALL_EPISODES,), rows)


def pool_tasks(results: Results, policy: str) -> Score:
    """Return a policy's rate over the episodes of all tasks, None where some task has none."""
    found = [results.summaries.get((policy, env_id)) for env_id in results.tasks]
    present = [summary for summary in found if summary is not None and summary.n]
    _, n, rate, interval = pool(present)
    if len(present) < len(found):
        rate = interval = None
    planned = sum(s.n + s.crashed + s.timeouts for s in found if s is not None)
    return Score(
        policy, ALL_EPISODES, rate, interval, n, planned, len(present), len(found), headline=True
    )


def make_chains(results: Results) -> list[ChainTable]:
    """Return a table for each long-horizon task."""
    return [
        ChainTable(env_id, name_task(env_id), _make_chain_rows(results, env_id))
        for env_id in results.chain_ids
    ]


def _make_chain_rows(results: Results, env_id: str) -> tuple[ChainRow, ...]:
    found = [results.chains.get((policy, env_id)) for policy in results.policies]
    best = max((s.mean_length or 0.0 for s in found if s is not None), default=0.0)
    if len({describe_setting(record.protocol) for record in results.by_id[env_id]}) > 1:
        best = 0.0  # these are scores of different things
    missing = (None,) * CHAIN_TASKS
    rows = []
    for policy, s in zip(results.policies, found, strict=True):
        first = results.first.get((policy, env_id))
        rows.append(
            ChainRow(
                policy=policy,
                setting=DASH if first is None else describe_setting(first.protocol),
                summary=s or ChainSummary(policy, env_id, 0, 0, (), (), None, None),
                rates=s.rates if s is not None and s.rates else missing,
                intervals=s.rate_intervals if s is not None and s.rate_intervals else missing,
                best=s is not None and s.mean_length == best > 0,
                why=_why(results, policy, env_id, s),
            )
        )
    return tuple(rows)


def find_lost(results: Results) -> list[Lost]:
    """Return the episodes that crashed or timed out, also those under a perturbation."""
    groups: dict[tuple[str, str, str, str, str], list[Record]] = {}
    for r in results.records:
        if not r.counts:
            key = r.outcome, r.policy, name_task(r.id), r.perturbation, r.error
            groups.setdefault(key, []).append(r)
    return [
        Lost(
            *names,
            seeds=tuple(sorted(record.seed for record in found)),
            attempts=max(record.attempts for record in found),
            error=error,
        )
        for (*names, error), found in groups.items()
    ]


def _why(results: Results, policy: str, env_id: str, s: Summary | ChainSummary | None) -> str:
    known = "" if s is not None and (s.n or s.crashed or s.timeouts) else "not evaluated"
    return results.mismatches.get((policy, env_id), known)


def _nothing(policy: str, env_id: str) -> Summary:
    return Summary(policy, env_id, 0, 0, 0, None, None, None, None, None, None, None)
