"""What an evaluation has found, to be read: pages, tables and PDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vla_gym.errors import InvalidOption
from vla_gym.evaluation.report.content import gather_content
from vla_gym.evaluation.report.curves import is_training_run
from vla_gym.evaluation.report.formats import (
    DASH,
    describe_setting,
    format_interval,
    format_number,
    format_range,
    format_rate,
)
from vla_gym.evaluation.report.gather import gather
from vla_gym.evaluation.report.leaderboard import write_leaderboard
from vla_gym.evaluation.report.markdown import render_markdown
from vla_gym.evaluation.report.page import render_page
from vla_gym.evaluation.report.pdf import find_browser, write_pdf
from vla_gym.evaluation.report.sheets import list_episodes, list_summaries

__all__ = [
    "DASH",
    "describe_setting",
    "find_browser",
    "format_interval",
    "format_number",
    "format_range",
    "format_rate",
    "write_leaderboard",
    "write_pdf",
    "write_report",
]


def write_report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    title: str | None = None,
    curves: Sequence[str | Path] = (),
) -> Path:
    """Write the report of the episodes in one or more folders.

    It is `report.html`, one file that needs no other and no network; `report.md`; `report.csv`, one
    row per policy, id and perturbation; and `episodes.csv`, one row per episode. `write_pdf` prints
    the page.

    Episodes of one policy are pooled over folders where they were played under one protocol and
    none twice. Else the later folder's policy is shown under a label of its own.

    Args:
        folders: as `vla_gym.evaluation.evaluate.evaluate` has written them. Those that hold a
            training run show its learning curve.
        out: folder of the report; None is the first of `folders`.
        title: of the page; None counts policies and tasks.
        curves: folders of further training runs whose learning curves are shown.

    Returns:
        The path of `report.html`.

    Raises:
        InvalidOption: the folders hold no episodes, or what they hold is damaged.
    """
    paths = [Path(folder) for folder in folders]
    results = gather(paths)
    if not results.records:
        raise InvalidOption(
            f"no episodes in {', '.join(map(str, paths))}; `vla-gym eval --out DIR` writes them"
        )
    runs = dict.fromkeys([*filter(is_training_run, paths), *map(Path, curves)])
    content = gather_content(results, list(runs), title)
    target = paths[0] if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    (target / "report.csv").write_text(list_summaries(results), encoding="utf-8")
    (target / "episodes.csv").write_text(list_episodes(results), encoding="utf-8")
    (target / "report.md").write_text(render_markdown(content), encoding="utf-8")
    html = target / "report.html"
    html.write_text(render_page(content), encoding="utf-8")
    return html
