"""`report.html`: one file that needs no other, with and without scripts, on screen and on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_gym.deps import require
from vla_gym.evaluation.metrics import CHAIN_TASKS
from vla_gym.evaluation.report.content import Content
from vla_gym.evaluation.report.facts import describe_lost
from vla_gym.evaluation.report.formats import (
    COLOURS,
    DASH,
    describe_span,
    format_difference,
    format_interval,
    format_number,
    format_range,
    format_rate,
    name_task,
)
from vla_gym.evaluation.report.gallery import make_gallery
from vla_gym.evaluation.report.plots import chain_bars, plot_bars, plot_curves, rate_bars

__all__ = ["make_environment", "render_page"]

MOST_BARS = 12
"""Tasks up to which the rates are drawn once more below their table, whose cells have bars too."""

WIDE = 5
"""Policies from which the page is printed in landscape."""


def render_page(content: Content) -> str:
    """Return the page."""
    results = content.results
    colours = results.colours
    lost = [item.kind for item in content.lost for _ in item.seeds]
    gallery = make_gallery(results)
    return (
        make_environment()
        .get_template("report.html.j2")
        .render(
            content=content,
            results=results,
            facts=content.facts,
            colours=colours,
            curve_colours={
                c.label: COLOURS[i % len(COLOURS)] for i, c in enumerate(content.curves)
            },
            plot=plot_bars(rate_bars(content.rows), colours)
            if 0 < len(content.rows) <= MOST_BARS
            else "",
            chain_plots={t.id: plot_bars(chain_bars(t), colours) for t in content.chains},
            curve_plot=plot_curves(content.curves) if content.curves else "",
            gallery=gallery,
            widest=max((len(reel.films) for reel in gallery.first), default=1),
            lost_number=len(lost),
            lost_text=describe_lost(lost.count("crashed"), lost.count("timeout")) if lost else "",
            chain_tasks=CHAIN_TASKS,
            landscape=len(results.policies) >= WIDE,
            total=len(content.rows) + len(content.chains),
        )
    )


def make_environment() -> Any:
    """Return the Jinja environment of this package's templates."""
    jinja = require("jinja2", "eval", "an HTML page")
    environment = jinja.Environment(
        loader=jinja.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja.StrictUndefined,
    )
    environment.filters |= {
        "rate": format_rate,
        "interval": format_interval,
        "number": format_number,
        "range": format_range,
        "difference": format_difference,
        "span": describe_span,
        "task": name_task,
    }
    environment.globals["dash"] = DASH
    return environment
