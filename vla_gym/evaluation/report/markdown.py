"""`report.md`: the report without pictures, to paste into an issue or a paper's notes."""

from __future__ import annotations

from collections.abc import Sequence

from vla_gym.evaluation.metrics import CHAIN_TASKS
from vla_gym.evaluation.protocols import Score
from vla_gym.evaluation.report.content import Content
from vla_gym.evaluation.report.curves import Curve
from vla_gym.evaluation.report.formats import (
    DASH,
    describe_span,
    format_difference,
    format_interval,
    format_range,
    format_rate,
)
from vla_gym.evaluation.report.robustness import Bearing, Robustness
from vla_gym.evaluation.report.tables import Board, Cell, ChainTable, Lost, Row, pool_tasks

__all__ = ["escape_cell", "render_markdown", "table"]


def render_markdown(content: Content) -> str:
    """Return the report in GitHub's Markdown."""
    facts = content.facts
    lines = [f"# {content.title}", ""]
    if content.protocol:
        lines += [f"Protocol: {content.protocol}", ""]
    lines += [facts.lead, ""]
    lines += [f"- **{name}**: {value}" for name, value in facts.protocol]
    if content.board is not None and content.board.title:
        lines += ["", *_board(content.board)]
    if content.rows:
        lines += ["", *_rates(content)]
    for chain in content.chains:
        lines += ["", f"## {chain.name}: instructions followed in a row", "", *_chain(chain)]
    if content.duels:
        lines += ["", "## Policies compared", "", *(f"- {duel.text}" for duel in content.duels)]
    if content.robustness is not None:
        lines += ["", "## Under perturbations", "", *_robustness(content.robustness)]
    if content.curves:
        lines += ["", "## Learning curves", "", *_curves(content.curves)]
    lines += ["", f"Intervals: {content.intervals}"]
    for item in content.lost:
        kind = "Timed out" if item.kind == "timeout" else "Crashed"
        under = f", {item.perturbation}" if item.perturbation else ""
        lines += [
            "",
            f"{kind}: {item.policy} on {item.name}{under}, {_seeds(item)}: {item.error}",
        ]
    lines += ["", *table(["package", "version"], list(map(list, facts.versions.items())))]
    lines += ["", f"Machine: {'; '.join(facts.machines) or DASH}", ""]
    lines += [f"    {command}" for command in facts.commands]
    return "\n".join(lines) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = ["| " + " | ".join(map(escape_cell, columns)) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(map(escape_cell, row)) + " |" for row in rows]


def escape_cell(text: str) -> str:
    """Return text that stays within its cell."""
    return " ".join(text.replace("|", "\\|").split())


def _seeds(item: Lost) -> str:
    return f"seed{'s' if len(item.seeds) > 1 else ''} {describe_span(item.seeds)}"


def _board(board: Board) -> list[str]:
    heads = [f"**{name}**" if board.is_headline(name) else name for name in board.names]
    rows = [
        [policy, *(_score(scores.get(name)) for name in board.names)]
        for policy, scores in board.rows.items()
    ]
    lines = [f"## {board.title}", "", *table(["policy", *heads], rows), ""]
    lines += [f"In bold: the published figure. Source: {board.source}."]
    return lines + [f"- {sentence}" for sentence in board.differs]


def _score(score: Score | None) -> str:
    if score is None or score.value is None:
        return DASH
    part = f", {score.tasks} of {score.of} tasks" if score.tasks < score.of else ""
    return f"{format_rate(score.value)} [{format_interval(score.interval)}], n {score.n}{part}"


def _rates(content: Content) -> list[str]:
    policies = content.results.policies
    rows = [[row.name, row.simulator, *(_cell(cell) for cell in row.cells)] for row in content.rows]
    if len(content.rows) > 1:
        rows.append(_pooled(content, content.rows))
    return table(["task", "simulator", *policies], rows)


def _pooled(content: Content, rows: Sequence[Row]) -> list[str]:
    cells = []
    for policy in content.results.policies:
        score = pool_tasks(content.results, policy)
        found = f"{format_rate(score.value)} [{format_interval(score.interval)}]"
        if score.value is None:
            cells.append(f"{found}, not on all tasks")
            continue
        cells.append(f"{found}, {round(score.value * score.n)}/{score.n}")
    return ["all episodes", ", ".join(content.results.simulators([r.id for r in rows])), *cells]


def _cell(cell: Cell) -> str:
    s = cell.summary
    if not s.n:
        return f"{DASH}, {cell.simulator}" if cell.simulator else DASH
    found = f"{format_rate(s.rate)} [{format_interval(s.rate_interval)}], {s.successes}/{s.n}"
    return f"{found}, {cell.simulator}" if cell.simulator else found


def _chain(chain: ChainTable) -> list[str]:
    columns = ["policy", "simulator", "n", *(f"SR_{k}" for k in range(1, CHAIN_TASKS + 1))]
    rows = []
    for row in chain.rows:
        s = row.summary
        lost = [f"{s.crashed} crashed"] if s.crashed else []
        lost += [f"{s.timeouts} timed out"] if s.timeouts else []
        n = str(s.n) if s.n else DASH
        cells = [
            DASH if rate is None else f"{format_rate(rate)} [{format_interval(interval)}]"
            for rate, interval in zip(row.rates, row.intervals, strict=True)
        ]
        length = DASH
        if s.mean_length is not None:
            length = f"{s.mean_length:.2f} [{format_range(s.length_interval, 2)}]"
        n += f" ({', '.join(lost)})" if lost else ""
        rows.append([row.policy, row.setting, n, *cells, length])
    return table([*columns, "average length"], rows)


def _robustness(robustness: Robustness) -> list[str]:
    rows = [
        [policy, *(_bearing(bearing) for bearing in found.values())]
        for policy, found in robustness.rows.items()
    ]
    lines = table(["policy", "none", *robustness.perturbations], rows)
    return [
        *lines,
        "",
        "Success rate over all tasks below, each episode weighing the same, and in points the "
        "change against the same episodes without the perturbation, both with 95 % intervals. "
        f"Tasks: {', '.join(robustness.tasks)}.",
    ]


def _bearing(bearing: Bearing) -> str:
    if bearing.rate is None:
        return DASH
    text = f"{format_rate(bearing.rate)} [{format_interval(bearing.interval)}], n {bearing.n}"
    if bearing.change is None or bearing.change_interval is None:
        return text
    low, high = map(format_difference, bearing.change_interval)
    return f"{text}, {format_difference(bearing.change)} [{low} to {high}] on {bearing.paired}"


def _curves(curves: Sequence[Curve]) -> list[str]:
    rows = []
    for curve in curves:
        best = max(curve.points, key=lambda point: point.rate)
        cells = [
            f"{format_rate(p.rate)} [{format_interval(p.interval)}], n {p.n}, step {p.step}"
            for p in (best, curve.points[-1])
        ]
        rows.append([curve.label, curve.unit, *cells])
    return table(["run", "steps are", "best", "last"], rows)
