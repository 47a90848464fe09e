"""One page that shows an evaluation: `report.html`, with `report.md` and `report.csv` beside it."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vla_gym.deps import require
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.metrics import (
    CHAIN_TASKS,
    ChainSummary,
    Interval,
    Summary,
    pool,
    summarize,
    summarize_chains,
)
from vla_gym.evaluation.records import Record, load_records, load_runs, plain_id

__all__ = [
    "DASH",
    "describe_setting",
    "format_interval",
    "format_number",
    "format_range",
    "format_rate",
    "write_report",
]

DASH = "\u2013"
"""Stands where there is no data; a 0 would be a claim."""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C8C8C", "#B8A800")
"""Told apart by colour-blind readers too. Source: Okabe and Ito 2008, Color Universal Design; the
last two are darker than theirs, to be seen on white."""

TASKS_PER_ROW = 6
BAR_INCHES, LABEL_INCHES = 0.36, 1.4

_INK = "#010203"
"""Becomes the page's text colour, light or dark."""


_COLUMNS = (
    *("policy", "id", "n", "successes", "crashed", "success_rate", "wilson95_low"),
    *("wilson95_high", "mean_return", "t95_low", "t95_high", "mean_length", "mean_seconds"),
    *("policy_ms_per_step", "simulator", "keywords"),
)
_CHAIN_COLUMNS = (
    *(f"sr_{k}{end}" for k in range(1, CHAIN_TASKS + 1) for end in ("", "_low95", "_high95")),
    *("average_length", "average_length_low95", "average_length_high95"),
)


@dataclass(frozen=True)
class Cell:
    """One policy on one task, ready to print."""

    policy: str
    colour: str
    simulator: str
    rate: str
    interval: str
    counts: str
    percent: float
    best: bool
    crashed: int
    why: str
    mean_return: str
    return_interval: str
    length: str
    seconds: str
    policy_ms: str
    video: str
    outcome: str
    verdict: str


@dataclass(frozen=True)
class Row:
    """One task, ready to print."""

    id: str
    name: str
    simulator: str
    instruction: str
    chain: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ChainRow:
    """One policy on one chain of instructions, ready to print."""

    policy: str
    colour: str
    setting: str
    n: str
    crashed: int
    why: str
    rates: tuple[str, ...]
    intervals: tuple[str, ...]
    percents: tuple[float, ...]
    length: str
    length_interval: str
    best: bool


@dataclass(frozen=True)
class Group:
    """Neighbouring bars of a plot: policy -> rate and interval, for those that have data."""

    label: str
    bars: dict[str, tuple[float, Interval]]


def write_report(
    folders: Sequence[str | Path], out: str | Path | None = None, title: str | None = None
) -> Path:
    """Write `report.html`, `report.md` and `report.csv` from the records of one or more folders.

    Where two folders hold the same policy on the same task, the later one's policy is shown under
    a label of its own.

    Args:
        folders: as `vla_gym.evaluation.evaluate.evaluate` has written them.
        out: folder of the report; None is the first of `folders`.
        title: of the page; None counts policies and tasks.

    Returns:
        The path of `report.html`.

    Raises:
        InvalidOption: the folders hold no records.
    """
    paths = [Path(folder) for folder in folders]
    records, videos = _gather(paths)
    if not records:
        raise InvalidOption(
            f"no episodes in {', '.join(map(str, paths))}; `vla-gym eval --out DIR` writes them"
        )
    runs = [run for path in paths for run in load_runs(path)]
    summaries = summarize(records)
    target = paths[0] if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    page = _Page(records, summaries, runs, videos, title)
    (target / "report.csv").write_text(page.csv(), encoding="utf-8")
    (target / "report.md").write_text(page.markdown(), encoding="utf-8")
    html = target / "report.html"
    html.write_text(page.html(), encoding="utf-8")
    return html


def format_rate(rate: float | None) -> str:
    """Return a success rate as a percentage, a dash without data."""
    return DASH if rate is None else f"{100 * rate:.0f} %"


def format_interval(interval: Interval | None) -> str:
    """Return an interval of rates in percent, a dash without data."""
    if interval is None:
        return DASH
    return f"{100 * interval.low:.0f}{DASH}{100 * interval.high:.0f} %"


def format_number(value: float | None, digits: int = 1) -> str:
    """Return a number with so many decimals, a dash without data."""
    return DASH if value is None else f"{value:.{digits}f}"


def format_range(interval: Interval | None, digits: int = 1) -> str:
    """Return an interval of numbers with so many decimals, a dash without data."""
    if interval is None:
        return DASH
    return f"{interval.low:.{digits}f}{DASH}{interval.high:.{digits}f}"


def describe_setting(protocol: Mapping[str, Any]) -> str:
    """Return the simulator and the suite's keywords of a record's protocol, to stand by a score."""
    keywords = [f"{k}={v}" for k, v in protocol["keywords"].items() if v is not None]
    quality = protocol["render_quality"]
    fast = [] if quality == "exact" else [f"{quality} rendering"]
    return ", ".join([protocol["simulator"], *keywords, *fast])


def _gather(folders: list[Path]) -> tuple[list[Record], dict[tuple[str, str], Path]]:
    """Return the records of all folders, and the video of each policy and id."""
    records: list[Record] = []
    videos: dict[tuple[str, str], Path] = {}
    for folder in folders:
        taken = {(record.policy, record.id) for record in records}
        for record in load_records(folder):
            if (record.policy, record.id) in taken:
                record = replace(record, policy=f"{record.policy} ({folder.name})")
            records.append(record)
            if record.video and (folder / record.video).is_file():
                videos[record.policy, record.id] = folder / record.video
    return records, videos


class _Page:
    """What the templates show, computed once for both."""

    def __init__(
        self,
        records: list[Record],
        summaries: list[Summary],
        runs: list[dict[str, Any]],
        videos: dict[tuple[str, str], Path],
        title: str | None,
    ) -> None:
        self._by_key = {(s.policy, s.id): s for s in summaries}
        self._chains = {(s.policy, s.id): s for s in summarize_chains(records)}
        self._first = {}
        for record in records:
            self._first.setdefault((record.policy, record.id), record)
            if (record.policy, record.id) in videos and record.video:
                self._first[record.policy, record.id] = record
        mismatches = [item for run in runs for item in run.get("mismatches", [])]
        self._why = {(item["policy"], item["id"]): item["why"] for item in mismatches}
        ordered = [name for run in runs for name in run.get("policies", {})]
        present = {s.policy for s in summaries}
        self.policies = [name for name in dict.fromkeys(ordered) if name in present]
        self.policies += [s.policy for s in summaries if s.policy not in self.policies]
        self.policies = list(dict.fromkeys(self.policies))
        played = dict.fromkeys(s.id for s in summaries)  # in the order in which they ended
        asked = [plain_id(env_id) for run in runs for env_id in run.get("ids", [])]
        self.ids = list(dict.fromkeys([*(i for i in asked if i in played), *played]))
        self._records, self._runs, self._videos = records, runs, videos
        self.colours = {p: COLOURS[i % len(COLOURS)] for i, p in enumerate(self.policies)}
        self._chain_ids = [i for i in self.ids if any(i == key[1] for key in self._chains)]
        self.title = title or (
            f"{_count(len(self.policies), 'policy', 'policies')} on "
            f"{_count(len(self.ids), 'task', 'tasks')}"
        )
        self.rows = [self._row(env_id) for env_id in self.ids]
        self.tasks = [row for row in self.rows if not row.chain]

    def html(self) -> str:
        """Return the page: one file that needs nothing else."""
        jinja = require("jinja2", "eval", "report.html")
        environment = jinja.Environment(
            loader=jinja.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja.StrictUndefined,
        )
        rates = [self._rate_bars(row) for row in self.tasks]
        return environment.get_template("report.html.j2").render(
            **self._facts(),
            plot=_plot(rates, self.colours) if rates else "",
            chain_plots={
                env_id: _plot(self._chain_bars(env_id), self.colours) for env_id in self._chain_ids
            },
            colours=self.colours,
        )

    def markdown(self) -> str:
        """Return the same without pictures, to paste into an issue or a paper's notes."""
        facts = self._facts()
        lines = [f"# {self.title}", "", facts["lead"], ""]
        lines += [f"- **{name}**: {value}" for name, value in facts["protocol"]]
        if self.tasks:
            lines += ["", *self._rate_table(facts)]
        for chain in facts["chains"]:
            lines += ["", f"## {chain['name']}: instructions followed in a row", ""]
            lines += _chain_table(chain["rows"])
        lines += ["", f"Intervals: {facts['interval_note']}"]
        for crash in facts["crashes"]:
            lines += ["", f"Crashed: {crash['policy']} on {crash['name']}: {crash['error']}"]
        lines += ["", "| package | version |", "|---|---|"]
        lines += [f"| {name} | {version} |" for name, version in facts["versions"].items()]
        lines += ["", f"Machine: {facts['machine']}", ""]
        lines += [f"    {command}" for command in facts["commands"]]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Return one row per policy and id; an empty field is a number that does not exist."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*_COLUMNS, *(_CHAIN_COLUMNS if self._chains else ())])
        for key, s in self._by_key.items():
            protocol = self._first[key].protocol
            keywords = " ".join(f"{k}={v}" for k, v in protocol["keywords"].items())
            fields = [s.policy, s.id, s.n, s.successes, s.crashed, *_numbers(s)]
            fields += [protocol["simulator"], keywords]
            if key in self._chains:
                fields += _chain_numbers(self._chains[key])
            elif self._chains:
                fields += [""] * len(_CHAIN_COLUMNS)
            writer.writerow(fields)
        return buffer.getvalue()

    def _rate_table(self, facts: Mapping[str, Any]) -> list[str]:
        lines = ["| task | simulator | " + " | ".join(self.policies) + " |"]
        lines += ["|---|---|" + "---|" * len(self.policies)]
        for row in self.tasks:
            cells = []
            for c in row.cells:
                found = f"{c.rate} [{c.interval}], {c.counts}" if c.counts else c.rate
                cells.append(f"{found}, {c.simulator}" if c.simulator else found)
            lines.append(f"| {row.name} | {row.simulator} | " + " | ".join(cells) + " |")
        if facts["pooled"]:
            cells = [f"{c['rate']} [{c['interval']}], {c['counts']}" for c in facts["pooled"]]
            simulators = facts["pooled_simulators"]
            lines.append(f"| all episodes | {simulators} | " + " | ".join(cells) + " |")
        return lines

    def _facts(self) -> dict[str, Any]:
        crashed = [record for record in self._records if record.outcome == "crashed"]
        names = {row.id: row.name for row in self.rows}
        return {
            "title": self.title,
            "lead": self._lead(len(crashed)),
            "policies": self.policies,
            "rows": self.rows,
            "tasks": self.tasks,
            "chains": [
                {"id": i, "name": names[i], "rows": self._chain_rows(i)} for i in self._chain_ids
            ],
            "chain_tasks": CHAIN_TASKS,
            "protocol": self._protocol(),
            "per_task": self._per_task(),
            "per_pair": self._per_pair(),
            "pooled": self._pooled(),
            "pooled_simulators": ", ".join(self._simulators(row.id for row in self.tasks)),
            "interval_note": self._interval_note(),
            "crashes": [
                {"policy": r.policy, "name": _name(r.id), "seed": r.seed, "error": r.error}
                for r in crashed
            ],
            "versions": self._versions(),
            "machine": _machine(self._runs[-1]["machine"]) if self._runs else DASH,
            "commands": list(dict.fromkeys(run["command"] for run in self._runs)),
            "date": max((record.date for record in self._records), default="")[:10],
            "has_videos": bool(self._videos),
            "widest": max(sum(bool(cell.video) for cell in row.cells) for row in self.rows),
            "dash": DASH,
        }

    def _lead(self, crashed: int) -> str:
        done = len(self._records) - crashed
        sizes = sorted({s.n + s.crashed for s in self._by_key.values()})
        each = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        text = f"{done} episodes, {each} for each policy and task"
        if crashed:
            text += f"; a further {crashed} crashed and have no outcome"
        return text + "."

    def _interval_note(self) -> str:
        text = "success rates have Wilson score 95 % intervals, mean returns Student's t 95 % "
        text += "intervals"
        if self._chains:
            text += ", SR_k and average lengths bootstrap percentile 95 % intervals over chains"
        return f"{text}. Crashed episodes have no outcome: they are counted, and not in n."

    def _protocol(self) -> list[tuple[str, str]]:
        """Return what all policies and tasks have in common; the rest is in two further tables."""
        span = _span({record.seed for record in self._records})
        first = self._records[0].protocol
        ends = {record.protocol["terminate_on_success"] for record in self._records}
        sampled = {record.protocol["deterministic"] for record in self._records} != {True}
        facts = []
        if self.tasks:
            rule = "the task is solved after any step of the episode (not only the last)"
            facts.append(("Success", rule))
        if self._chains:
            rule = f"{CHAIN_TASKS} instructions in a row; the first one not followed ends the chain"
            facts.append(("Chains", rule))
        if options := self._options():
            facts.append(("Reset options", options))
        facts += [
            ("Seeds", f"{span}, the same for every policy: episodes are paired"),
            ("Simulator", ", ".join(self._simulators(self.ids))),
            ("Episode ends", "at success or at the horizon" if ends == {True} else "see below"),
            ("Actions", "sampled" if sampled else "deterministic (a policy's mode)"),
            ("Intervals", self._interval_methods()),
        ]
        shared = {
            "render_quality": "Rendering",
            "instruction": "Instruction as",
            "paraphrase": "Paraphrases",
        }
        for key, label in shared.items():
            values = {str(record.protocol.get(key)) for record in self._records}
            if len(values) == 1:
                facts.append((label, _plain(first.get(key))))
        return facts

    def _simulators(self, ids: Iterable[str]) -> list[str]:
        wanted = set(ids)
        found = (r.protocol["simulator"] for r in self._records if r.id in wanted)
        return list(dict.fromkeys(found))

    def _interval_methods(self) -> str:
        methods = ["Wilson for success rates"] if self.tasks else []
        methods += ["bootstrap for SR_k and average lengths"] if self._chains else []
        return "95 %; " + ", ".join([*methods, "Student's t for mean returns"])

    def _options(self) -> str:
        """Return the reset options that a suite's protocol has set, all episodes together."""
        values: dict[str, set[Any]] = {}
        for record in self._records:
            for name, value in record.options.items():
                values.setdefault(name, set()).add(value if isinstance(value, int) else str(value))
        return "; ".join(f"{name} {_span(found)}" for name, found in values.items())

    def _per_task(self) -> list[dict[str, str]]:
        rows = []
        for env_id in self.ids:
            found = [record.protocol for record in self._records if record.id == env_id]
            horizons = sorted({str(protocol["horizon"]) for protocol in found})
            rows.append(
                {
                    "id": env_id,
                    "success": str(found[0]["success_rule"]),
                    "horizon": ", ".join(horizons),
                    "control_hz": f"{found[0]['control_hz']:g}",
                    "reward": ", ".join(dict.fromkeys(str(p["reward"]) for p in found)),
                    "robot": str(found[0]["robot"]),
                }
            )
        return rows

    def _per_pair(self) -> list[dict[str, str]]:
        """Return what each policy sees and speaks, tasks with the same in one row."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for (policy, env_id), record in self._first.items():
            p = record.protocol
            sees = ["proprio (" + p["proprio"] + ")"]
            sees += _pictures(p["cameras"], p["image_size"])
            sees += ["privileged state"] if p["state"] else []
            keywords = ", ".join(f"{k}={v}" for k, v in p["keywords"].items()) or DASH
            key = (policy, p["policy_source"], ", ".join(sees), p["action_mode"], keywords)
            groups.setdefault(key, []).append(_name(env_id))
        names = ("policy", "source", "sees", "action_mode", "keywords")
        return [
            dict(zip(names, key, strict=True)) | {"tasks": ", ".join(tasks)}
            for key, tasks in groups.items()
        ]

    def _pooled(self) -> list[dict[str, str]]:
        """Return each policy's rate over all tasks, a dash where it has not played all of them."""
        ids = [row.id for row in self.tasks]
        if len(ids) < 2:
            return []
        cells = []
        for policy in self.policies:
            found = [self._by_key.get((policy, env_id)) for env_id in ids]
            present = [summary for summary in found if summary is not None and summary.n]
            complete = len(present) == len(ids)
            successes, n, rate, interval = pool(present) if complete else (0, 0, None, None)
            cells.append(
                {
                    "rate": format_rate(rate),
                    "interval": format_interval(interval),
                    "counts": f"{successes}/{n}" if n else "not on all tasks",
                }
            )
        return cells

    def _versions(self) -> dict[str, str]:
        found: dict[str, dict[str, None]] = {}
        for record in self._records:
            for name, version in record.protocol["versions"].items():
                found.setdefault(name, {})[version] = None
        return {name: ", ".join(versions) for name, versions in found.items()}

    def _row(self, env_id: str) -> Row:
        found = [record for record in self._records if record.id == env_id]
        spoken = next((record.instruction for record in found if record.instruction), "")
        best = max((self._by_key[k].rate or 0.0 for k in self._by_key if k[1] == env_id), default=0)
        simulators = self._simulators([env_id])
        mixed = len(simulators) > 1
        return Row(
            id=env_id,
            name=_name(env_id),
            simulator=", ".join(simulators),
            instruction=spoken,
            chain=env_id in self._chain_ids,
            cells=tuple(self._cell(policy, env_id, best, mixed) for policy in self.policies),
        )

    def _cell(self, policy: str, env_id: str, best: float, mixed: bool) -> Cell:
        s = self._by_key.get((policy, env_id))
        if s is None:
            s = Summary(policy, env_id, 0, 0, 0, None, None, None, None, None, None, None)
        why = self._why.get((policy, env_id), "" if s.n or s.crashed else "not evaluated")
        video = self._videos.get((policy, env_id))
        returns = DASH
        if s.return_interval is not None:
            returns = f"{s.return_interval.low:.1f} to {s.return_interval.high:.1f}"
        first = self._first.get((policy, env_id))
        verdict = "" if first is None else first.outcome
        if first is not None and first.chain_length is not None:
            verdict = f"{first.chain_length} of {CHAIN_TASKS}"
        return Cell(
            policy=policy,
            colour=self.colours[policy],
            simulator=first.protocol["simulator"] if mixed and first is not None else "",
            rate=format_rate(s.rate),
            interval=format_interval(s.rate_interval),
            counts=f"{s.successes}/{s.n}" if s.n else "",
            percent=100 * (s.rate or 0.0),
            best=s.rate is not None and s.rate == best > 0 and not mixed,
            crashed=s.crashed,
            why=why,
            mean_return=format_number(s.mean_return),
            return_interval=returns,
            length=format_number(s.mean_length, 0),
            seconds=format_number(s.mean_seconds, 2),
            policy_ms=format_number(s.policy_ms, 2),
            video="" if video is None else base64.b64encode(video.read_bytes()).decode("ascii"),
            outcome="" if first is None else first.outcome,
            verdict=verdict,
        )

    def _chain_rows(self, env_id: str) -> list[ChainRow]:
        found = [self._chains.get((policy, env_id)) for policy in self.policies]
        best = max(s.mean_length or 0.0 for s in found if s is not None)
        settings = {describe_setting(r.protocol) for r in self._records if r.id == env_id}
        if len(settings) > 1:  # these are scores of different things
            best = 0.0
        return [
            self._chain_row(s or ChainSummary(policy, env_id, 0, 0, (), (), None, None), best)
            for policy, s in zip(self.policies, found, strict=True)
        ]

    def _chain_row(self, s: ChainSummary, best: float) -> ChainRow:
        first = self._first.get((s.policy, s.id))
        missing = (None,) * CHAIN_TASKS
        return ChainRow(
            policy=s.policy,
            colour=self.colours[s.policy],
            setting=DASH if first is None else describe_setting(first.protocol),
            n=str(s.n) if s.n else DASH,
            crashed=s.crashed,
            why=self._why.get((s.policy, s.id), "" if s.n or s.crashed else "not evaluated"),
            rates=tuple(format_rate(rate) for rate in s.rates or missing),
            intervals=tuple(format_interval(i) for i in s.rate_intervals or missing),
            percents=tuple(100 * rate for rate in s.rates or (0.0,) * CHAIN_TASKS),
            length=format_number(s.mean_length, 2),
            length_interval=format_range(s.length_interval, 2),
            best=s.mean_length is not None and s.mean_length == best > 0,
        )

    def _rate_bars(self, row: Row) -> Group:
        bars = {}
        for policy in self.policies:
            s = self._by_key.get((policy, row.id))
            if s is not None and s.rate is not None and s.rate_interval is not None:
                bars[policy] = s.rate, s.rate_interval
        return Group(row.name.replace("-", "\n", 1), bars)

    def _chain_bars(self, env_id: str) -> list[Group]:
        groups = []
        for k in range(CHAIN_TASKS):
            bars = {}
            for policy in self.policies:
                s = self._chains.get((policy, env_id))
                if s is not None and s.rates:
                    alone = (Interval(s.rates[k], s.rates[k]),)  # of one chain: no error bar
                    bars[policy] = s.rates[k], (s.rate_intervals[k : k + 1] or alone)[0]
            groups.append(Group(f"SR_{k + 1}", bars))
        return groups


def _plot(groups: Sequence[Group], colours: Mapping[str, str]) -> str:
    """Return the bar plot as SVG markup whose text has the page's colour and font."""
    matplotlib = require("matplotlib", "eval", "the plot")
    figures = require("matplotlib.figure", "eval", "the plot")
    chunks = [groups[i : i + TASKS_PER_ROW] for i in range(0, len(groups), TASKS_PER_ROW)]
    width = max((len(colours) + 1.2) * BAR_INCHES, LABEL_INCHES)
    widest = len(chunks[0])
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "vla-gym",  # the same data give the same file
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
        "axes.edgecolor": _INK,
    }
    with matplotlib.rc_context(settings):
        figure = figures.Figure((max(7.0, 1.0 + width * widest), 2.9 * len(chunks)))
        axes = figure.subplots(len(chunks), 1, squeeze=False)[:, 0]
        for axis, chunk in zip(axes, chunks, strict=True):
            _draw_bars(axis, chunk, colours, widest)
        figure.tight_layout(h_pad=2.0)
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    return _inline(buffer.getvalue())


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
    axis.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


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


def _chain_table(rows: Sequence[ChainRow]) -> list[str]:
    """Return the Markdown table of one chain of instructions."""
    rates = [f"SR_{k}" for k in range(1, CHAIN_TASKS + 1)]
    lines = ["| policy | simulator | n | " + " | ".join([*rates, "average length"]) + " |"]
    lines += ["|---|---|---|" + "---|" * (CHAIN_TASKS + 1)]
    for row in rows:
        pairs = zip((*row.rates, row.length), (*row.intervals, row.length_interval), strict=True)
        cells = [DASH if value == DASH else f"{value} [{interval}]" for value, interval in pairs]
        n = f"{row.n} ({row.crashed} crashed)" if row.crashed else row.n
        lines.append(f"| {row.policy} | {row.setting} | {n} | " + " | ".join(cells) + " |")
    return lines


def _numbers(s: Summary) -> list[str]:
    rate, returns = s.rate_interval or (None, None), s.return_interval or (None, None)
    values = (s.rate, *rate, s.mean_return, *returns, s.mean_length, s.mean_seconds, s.policy_ms)
    return list(map(_field, values))


def _chain_numbers(s: ChainSummary) -> list[str]:
    nothing = (None, None)
    values: list[float | None] = []
    for k, rate in enumerate(s.rates or (None,) * CHAIN_TASKS):
        values += [rate, *(s.rate_intervals[k] if s.rate_intervals else nothing)]
    values += [s.mean_length, *(s.length_interval or nothing)]
    return list(map(_field, values))


def _field(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _span(values: Collection[Any]) -> str:
    """Return numbers without a gap as `first to last`, anything else as a list."""
    if not all(isinstance(value, int) for value in values):
        return ", ".join(sorted(map(str, values)))
    numbers = sorted(values)
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _pictures(cameras: Sequence[str], size: int | dict[str, int]) -> list[str]:
    if isinstance(size, dict):
        return [f"{camera} at {size[camera]} px" for camera in cameras]
    return [f"{', '.join(cameras)} at {size} px"] if cameras else []


def _machine(machine: dict[str, Any]) -> str:
    memory = f", {machine['memory_gib']} GiB memory" if machine.get("memory_gib") else ""
    return (
        f"{machine['processor']}, {_count(machine['cores'], 'core', 'cores')}{memory}, "
        f"{machine['system']}, Python {machine['python']}"
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _name(env_id: str) -> str:
    return re.sub(r"-v\d+$", "", env_id.removeprefix("VLA/"))
