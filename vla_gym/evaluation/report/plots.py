"""Pictures as SVG markup whose text has the page's colour and font."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_gym.deps import require
from vla_gym.evaluation.metrics import CHAIN_TASKS, Interval
from vla_gym.evaluation.report.curves import Curve
from vla_gym.evaluation.report.formats import COLOURS, DASH
from vla_gym.evaluation.report.tables import ChainTable, Row

__all__ = ["Group", "chain_bars", "plot_bars", "plot_curves", "rate_bars"]

TASKS_PER_ROW = 6
BAR_INCHES, LABEL_INCHES = 0.36, 1.4

_INK = "#010203"
"""Becomes the page's text colour, light or dark."""


@dataclass(frozen=True)
class Group:
    """Neighbouring bars of a plot: policy -> rate and interval, for those that have data."""

    label: str
    bars: dict[str, tuple[float, Interval]]


def rate_bars(rows: Sequence[Row]) -> list[Group]:
    """Return the bars of the success rates."""
    return [
        Group(
            row.name.replace("-", "\n", 1),
            {
                cell.policy: (cell.summary.rate, cell.summary.rate_interval)
                for cell in row.cells
                if cell.summary.rate is not None and cell.summary.rate_interval is not None
            },
        )
        for row in rows
    ]


def chain_bars(table: ChainTable) -> list[Group]:
    """Return the bars of SR_1 to SR_5."""
    groups = []
    for k in range(CHAIN_TASKS):
        bars = {}
        for row in table.rows:
            rate = row.rates[k]
            if rate is not None:  # of one chain: no error bar
                bars[row.policy] = rate, row.intervals[k] or Interval(rate, rate)
        groups.append(Group(f"SR_{k + 1}", bars))
    return groups


def plot_bars(groups: Sequence[Group], colours: Mapping[str, str]) -> str:
    """Return a bar plot of success rates with their intervals."""
    chunks = [groups[i : i + TASKS_PER_ROW] for i in range(0, len(groups), TASKS_PER_ROW)]
    width = max((len(colours) + 1.2) * BAR_INCHES, LABEL_INCHES)
    widest = len(chunks[0])

    def draw(figure: Any) -> None:
        axes = figure.subplots(len(chunks), 1, squeeze=False)[:, 0]
        for axis, chunk in zip(axes, chunks, strict=True):
            _draw_bars(axis, chunk, colours, widest)
        figure.tight_layout(h_pad=2.0)

    return _plot(draw, (max(7.0, 1.0 + width * widest), 2.9 * len(chunks)))


def plot_curves(curves: Sequence[Curve]) -> str:
    """Return success over steps, one line for each run, one panel for each unit of steps."""
    units = list(dict.fromkeys(curve.unit for curve in curves))
    colours = {curve.label: COLOURS[i % len(COLOURS)] for i, curve in enumerate(curves)}

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(units), squeeze=False)[0]
        for axis, unit in zip(axes, units, strict=True):
            some = [curve for curve in curves if curve.unit == unit]
            for curve in some:
                _draw_curve(axis, curve, colours[curve.label])
            axis.set_ylim(0, 102)
            axis.set_yticks([0, 25, 50, 75, 100])
            axis.set_xlabel(unit)
            axis.set_ylabel("success rate [%]")
            _tidy(axis)
        figure.tight_layout(w_pad=3.0)

    return _plot(draw, (7.4 if len(units) == 1 else 5.0 * len(units), 3.2))


def _draw_curve(axis: Any, curve: Curve, colour: str) -> None:
    steps = [point.step for point in curve.points]
    axis.fill_between(
        steps,
        [100 * point.interval.low for point in curve.points],
        [100 * point.interval.high for point in curve.points],
        color=colour,
        alpha=0.16,
        linewidth=0,
    )
    rates = [100 * point.rate for point in curve.points]
    axis.plot(steps, rates, color=colour, marker="o", markersize=3.5, linewidth=1.8)


def _draw_bars(axis: Any, groups: Sequence[Group], colours: Mapping[str, str], widest: int) -> None:
    width = 1.0 / (len(colours) + 1.2)
    for k, (policy, colour) in enumerate(colours.items()):
        for x, group in enumerate(groups):
            place = x + (k - (len(colours) - 1) / 2) * width
            if policy not in group.bars:
                axis.text(place, 2, DASH, ha="center", va="bottom", alpha=0.7)
                continue
            share, interval = group.bars[policy]
            rate, low, high = 100 * share, 100 * interval.low, 100 * interval.high
            axis.bar(place, rate, 0.86 * width, color=colour)
            axis.errorbar(
                place,
                rate,
                [[max(rate - low, 0.0)], [max(high - rate, 0.0)]],
                color=_INK,
                elinewidth=1.1,
                capsize=2.5,
            )
            axis.text(place, high + 2, f"{rate:.0f}", ha="center", va="bottom", fontsize=8)
    axis.set_xlim(-0.5, widest - 0.5)
    axis.set_ylim(0, 112)
    axis.set_yticks([0, 25, 50, 75, 100])
    axis.set_xticks(range(len(groups)), [group.label for group in groups])
    axis.set_ylabel("success rate [%]")
    _tidy(axis)


def _tidy(axis: Any) -> None:
    axis.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _plot(draw: Callable[[Any], None], inches: tuple[float, float]) -> str:
    matplotlib = require("matplotlib", "eval", "the plot")
    figures = require("matplotlib.figure", "eval", "the plot")
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "vla-gym",  # the same data give the same file
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
        "axes.edgecolor": _INK,
    }
    with matplotlib.rc_context(settings):
        figure = figures.Figure(inches)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    return _inline(buffer.getvalue())


def _inline(svg: str) -> str:
    """Return the `<svg>` element alone, without what only a file of its own needs."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href").replace(_INK, "currentColor")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # the page's own font
    size = r'<svg ([^>]*?)width="([\d.]+)pt"([^>]*?)height="[\d.]+pt"'
    size_back = r'<svg ([^>]*?)height="[\d.]+pt"([^>]*?)width="([\d.]+)pt"'
    svg = re.sub(size, r'<svg \1style="max-width:\2pt"\3', svg, count=1)
    return re.sub(size_back, r'<svg \1style="max-width:\3pt"\2', svg, count=1)
