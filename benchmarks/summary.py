"""The benchmarks' records as a table on the terminal, tables in the docs and one plot.

python benchmarks/summary.py  # from benchmarks/results: docs/benchmarks.md, README.md, the plot
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness import FLOORS, show_spread

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results")
DOCS, README = ROOT / "docs/benchmarks.md", ROOT / "README.md"
PLOT = ROOT / "docs/images/benchmarks.svg"

BENCHMARKS = {
    "render_speed": "Steps with pictures",
    "step_overhead": "Steps without pictures",
    "reset_speed": "Resets, and making an env",
    "vector_speed": "Vector envs",
    "eval_speed": "Evaluation",
    "memory": "Memory",
    "twin_speed": "RLBench twin",
    "calvin_speed": "CALVIN twin",
    "libero_speed": "LIBERO",
    "worker_overhead": "Another interpreter",
    "import_time": "Import",
}
"""What `make bench` runs, in the tables' order: name of the script -> heading."""


class Group(NamedTuple):
    """What the plot shows together: ratios of the cases whose name begins with `prefix`."""

    benchmark: str
    prefix: str
    title: str
    names: Mapping[str, str]


COLUMNS = (
    (
        Group(
            *("render_speed", "", "Steps with pictures: speed of upstream's"),
            {"exact / upstream": "exact", "fast / upstream": "fast"},
        ),
        Group(
            *("reset_speed", "", "Resets, and making an env: speed of upstream's"),
            {"vla_gym / upstream": "vla_gym"},
        ),
    ),
    (
        Group(
            *("vector_speed", "beside: ", "Our vector env of 4: speed of"),
            {
                "ours / gymnasium AsyncVectorEnv": "AsyncVectorEnv",
                "ours / SB3 SubprocVecEnv": "SubprocVecEnv",
                "ours / ceiling": "the ceiling",
            },
        ),
        Group(
            *("vector_speed", "scaling: ", "Two worker processes: speed of"),
            {"2 workers / 1 worker": "one"},
        ),
    ),
)
"""The plot."""

TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)

Record = Mapping[str, Any]


class Row(NamedTuple):
    """One ratio: where it stands, its spread, and its entry among the floors."""

    benchmark: str
    case: str
    name: str
    found: Mapping[str, Any]
    floor: Mapping[str, Any]

    @property
    def reaches(self) -> str:
        """`yes`, `no`, or nothing where there is no target."""
        target = self.floor.get("target")
        if target is None:
            return ""
        speed = self.found["kind"] == "speed"
        return "yes" if (self.found["median"] >= target) == speed else "no"

    @property
    def target(self) -> str:
        """What was aimed at, for example `at least 2`."""
        target = self.floor.get("target")
        if target is None:
            return ""
        return f"at {'least' if self.found['kind'] == 'speed' else 'most'} {target:g}"

    @property
    def limit(self) -> str:
        """Where the gate is."""
        return ", ".join(
            f"{words} {self.floor[name]:g}"
            for name, words in (("at_least", "at least"), ("at_most", "at most"))
            if name in self.floor
        )


def read_records(folder: Path) -> list[Record]:
    """Return the records of a folder that `make bench` writes, in the tables' order."""
    found = []
    for name in BENCHMARKS:
        path = folder / f"{name}.json"
        record = json.loads(path.read_text()) if path.exists() else {}
        if "cases" in record:
            found.append(record)
    return found


def read_floors() -> dict[str, Any]:
    """Return the content of floors.json."""
    return json.loads(FLOORS.read_text())


def list_rows(records: Iterable[Record], floors: Mapping[str, Any]) -> Iterator[Row]:
    """Yield all ratios."""
    for record in records:
        limits = floors["floors"].get(record["benchmark"], {})
        for case, row in record["cases"].items():
            for name, found in row["ratios"].items():
                floor = limits.get(case, {}).get(name, {})
                yield Row(record["benchmark"], case, name, found, floor)


def print_table(records: Iterable[Record], floors: Mapping[str, Any]) -> None:
    """Print all ratios."""
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "ratio", "median (quartiles)", "of", "target", "reached", "gate")
    last = None
    for row in list_rows(records, floors):
        if row.benchmark != last:
            table.add_section()
            table.add_row(f"[bold]{BENCHMARKS[row.benchmark]}")
        last = row.benchmark
        table.add_row(
            *(row.case, row.name, show_spread(row.found), row.found["kind"]),
            *(row.target, row.reaches, row.limit),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def write_markdown(records: Iterable[Record], floors: Mapping[str, Any]) -> str:
    """Return all that was measured: one table for each benchmark."""
    records = list(records)
    lines = [show_plot(DOCS), ""] if records else []
    for record in records:
        machine = record["machine"]
        lines += [
            f"### {BENCHMARKS[record['benchmark']]}",
            "",
            f"`{record['command']}`: {machine['processor']}, {machine['cores']} cores, "
            f"{record['renderer']}; load {record['load'][0]:.1f} before, "
            f"{record['load'][1]:.1f} after.",
            "",
            "| case | side | median (quartiles) | compared | target |",
            "|---|---|---|---|---|",
        ]
        rows = list(list_rows([record], floors))
        for case, found in record["cases"].items():
            lines += write_case(case, found, [row for row in rows if row.case == case])
        lines += [f"\nLeft out: {case} ({why})" for case, why in record["left_out"].items()]
        lines.append("")
    return "\n".join(lines)


def write_case(case: str, found: Mapping[str, Any], rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a case: one for each side, with the ratios that have it on the left."""
    for number, (side, figures) in enumerate(found["sides"].items()):
        mine = [row for row in rows if row.name.startswith(f"{side} / ")]
        compared = "; ".join(
            f"{show_spread(row.found)}x the {row.found['kind']} of {row.name.split(' / ')[1]}"
            for row in mine
        )
        targets = "; ".join(f"{row.target}: {row.reaches}" for row in mine if row.target)
        cost = f"{show_spread(figures)} {found['unit']}"
        yield f"| {'' if number else case} | {side} | {cost} | {compared} | {targets} |"


def write_short(records: Iterable[Record], floors: Mapping[str, Any]) -> str:
    """Return the ratios whose floor has a label, for the README."""
    rows = [row for row in list_rows(records, floors) if "label" in row.floor]
    if not rows:
        return ""
    lines = [show_plot(README), "", "| what | median (quartiles) | target |", "|---|---|---|"]
    lines += [
        f"| {row.floor['label']} | {show_spread(row.found)} | {row.target}"
        f"{', missed' if row.reaches == 'no' else ''} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def show_plot(page: Path) -> str:
    """Return the plot as Markdown in a page."""
    return f"![Ratios with quartiles and targets]({PLOT.relative_to(page.parent)})"


def put_between(page: str, name: str, text: str) -> str:
    """Return a page with `text` between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = page.partition(begin)
    if not found or end not in rest:
        return page
    inside = f"\n\n{text.strip()}\n\n" if text.strip() else "\n"
    return f"{before}{begin}{inside}{end}{rest.partition(end)[2]}"


def draw(records: Iterable[Record], floors: Mapping[str, Any], path: Path) -> None:
    """Draw the ratios of COLUMNS: median, quartiles and target."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows = list(list_rows(records, floors))
    columns = [[(group, find_cases(group, rows)) for group in column] for column in COLUMNS]
    columns = [[(group, cases) for group, cases in column if cases] for column in columns]
    columns = [column for column in columns if column]
    if not columns:
        return
    heights = [sum(len(cases) + 4 for _, cases in column) for column in columns]
    with plt.rc_context({"svg.hashsalt": "vla_gym", "svg.fonttype": "none", "font.size": 8}):
        figure = plt.figure(figsize=(5.6 * len(columns), 0.2 * max(heights)), layout="constrained")
        parts = figure.subfigures(1, len(columns), squeeze=False)[0]
        for part, column in zip(parts, columns, strict=True):
            ratios = [len(cases) + 1 for _, cases in column]
            axes = part.subplots(len(column), height_ratios=ratios, squeeze=False)
            for axis, (group, cases) in zip(axes[:, 0], column, strict=True):
                draw_group(axis, group, cases)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def find_cases(group: Group, rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return case -> the rows of it that a group shows."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        mine = row.benchmark == group.benchmark and row.case.startswith(group.prefix)
        if mine and row.name in group.names:
            cases.setdefault(row.case.removeprefix(group.prefix), []).append(row)
    return cases


def draw_group(axis: Any, group: Group, cases: Mapping[str, list[Row]]) -> None:
    """Draw one line for each case, the first at the top, on a logarithmic axis."""
    names = list(group.names)
    for place, rows in enumerate(cases.values()):
        for row in rows:
            number = names.index(row.name)
            y = place + 0.22 * (number - (len(names) - 1) / 2)
            found, colour = row.found, f"C{number}"
            axis.plot([found["q1"], found["q3"]], [y, y], color=colour, linewidth=2, alpha=0.5)
            axis.plot(found["median"], y, "o", color=colour, markersize=3.5)
            if "target" in row.floor:
                axis.plot(row.floor["target"], y, "|", color=colour, markersize=7)
    for number, label in enumerate(group.names.values()):
        axis.plot([], [], "o", color=f"C{number}", markersize=3.5, label=label)
    axis.plot([], [], "|", color="0.3", markersize=7, linestyle="none", label="target")
    axis.legend(loc="lower right", ncols=4, fontsize=7, frameon=False, bbox_to_anchor=(1, 1))
    axis.set_title(group.title, loc="left", fontsize=9, x=-0.6, y=1 + 1.3 / (len(cases) + 1))
    axis.set_yticks(range(len(cases)), list(cases))
    axis.set_ylim(len(cases) - 0.4, -0.6)
    axis.set_xscale("log")
    found = [row.found for rows in cases.values() for row in rows]
    low, high = min(0.8, *(f["q1"] for f in found)) * 0.85, max(f["q3"] for f in found) * 1.3
    ticks = [tick for tick in TICKS if low < tick < high]
    axis.set_xlim(low, high)
    axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axis.minorticks_off()
    axis.axvline(1, color="0.6", linewidth=0.8, zorder=0)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)


def publish(folder: Path = RESULTS) -> None:
    """Write tables and plot from the records of a folder, and the references of floors.json."""
    records, floors = read_records(folder), read_floors()
    for row in list_rows(records, floors):
        if row.floor:
            floors["floors"][row.benchmark][row.case][row.name]["reference"] = row.found["median"]
    FLOORS.write_text(json.dumps(floors, indent=1) + "\n")
    for page, name, text in (
        (DOCS, "tables", write_markdown(records, floors)),
        (README, "speed", write_short(records, floors)),
    ):
        page.write_text(put_between(page.read_text(), f"benchmarks, {name}", text))
    draw(records, floors, PLOT)


if __name__ == "__main__":
    publish()
