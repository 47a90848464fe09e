"""All that a report says, computed once for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_gym.errors import UnknownName
from vla_gym.evaluation.protocols import Protocol, get_protocol
from vla_gym.evaluation.report.comparisons import Duel, make_duels
from vla_gym.evaluation.report.curves import Curve, read_curves
from vla_gym.evaluation.report.facts import Facts, describe_intervals, find_facts
from vla_gym.evaluation.report.formats import count
from vla_gym.evaluation.report.gather import Results
from vla_gym.evaluation.report.robustness import Robustness, make_robustness
from vla_gym.evaluation.report.tables import (
    Board,
    ChainTable,
    Lost,
    Row,
    find_lost,
    make_board,
    make_chains,
    make_rows,
)

__all__ = ["Content", "gather_content"]


@dataclass(frozen=True)
class Content:
    """A report without its form.

    Attributes:
        title: of the page.
        protocol: name of the protocol that the episodes were played by; several are listed.
        results: the episodes.
        facts: what stands beside the scores.
        intervals: a sentence on them.
        board: scores over all tasks, None where there are none.
        rows: of the table of success rates.
        chains: tables of the long-horizon tasks.
        duels: every two policies.
        group_names: of the protocol.
        robustness: what perturbations do; None without any.
        curves: of training runs.
        lost: episodes without an outcome.
    """

    title: str
    protocol: str
    results: Results
    facts: Facts
    intervals: str
    board: Board | None
    rows: list[Row]
    chains: list[ChainTable]
    duels: list[Duel]
    group_names: tuple[str, ...]
    robustness: Robustness | None
    curves: list[Curve]
    lost: list[Lost]

    @property
    def groups(self) -> list[str]:
        """The protocol's groups of the rows, in its order."""
        present = {row.group for row in self.rows} - {""}
        return [name for name in self.group_names if name in present]


def gather_content(results: Results, runs: Sequence[Path], title: str | None) -> Content:
    """Return what the report says of these episodes and training runs.

    Raises:
        InvalidOption: a training run's files are damaged.
    """
    protocol = _find_protocol(results)
    counted = (
        f"{count(len(results.policies), 'policy', 'policies')} on "
        f"{count(len(results.ids), 'task', 'tasks')}"
    )
    return Content(
        title=title or counted,
        protocol=", ".join(results.protocols),
        results=results,
        facts=find_facts(results),
        intervals=describe_intervals(results),
        board=make_board(results, protocol),
        rows=make_rows(results, protocol),
        chains=make_chains(results),
        duels=make_duels(results),
        group_names=tuple(protocol.groups) if protocol is not None else (),
        robustness=make_robustness(results),
        curves=[curve for curve in read_curves(runs) if curve.points],
        lost=find_lost(results),
    )


def _find_protocol(results: Results) -> Protocol | None:
    """Return the protocol by which all episodes were played, None where that is not one.

    None too where it is not known here: another version, or another package, has registered it.
    """
    if len({record.protocol.get("protocol") or "" for record in results.records}) != 1:
        return None
    try:
        return get_protocol(results.protocols[0]) if results.protocols else None
    except UnknownName:
        return None
