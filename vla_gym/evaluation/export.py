"""Records for other programs: CSV, JSON lines, TensorBoard, Weights & Biases.

| form | one | holds |
|---|---|---|
| CSV | row per episode | every field of the record, those of its protocol under dotted names |
| JSON lines | line per episode | the record, as `Record.from_json` reads it |
| TensorBoard | run per policy | curves of each task's numbers over its episodes, and two texts |
| Weights & Biases | run per policy | each task's numbers, a table of the episodes, the videos |

The numbers are those of `vla_gym.evaluation.metrics`, with their 95 % intervals. Their names:
`METRIC/TASK` or `METRIC/TASK/PERTURBATION`, such as `success_rate/MetaWorld-Reach-v0`, and
`METRIC_low95`, `METRIC_high95` for the ends of its interval.
"""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_gym.deps import require
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.metrics import Interval, summarize, summarize_chains
from vla_gym.evaluation.records import Record
from vla_gym.evaluation.store import load_runs

__all__ = ["flatten", "send_to_wandb", "write_csv", "write_jsonl", "write_tensorboard"]

CURVE_POINTS = 100
"""Of a curve at most; one of fewer episodes has a point for each."""

EVENTS_SUFFIX = ".vla_gym"
"""Ends the names of our event files, so that a new export replaces the last one and no other."""

HEADLINES = ("success_rate", "average_length")
"""What TensorBoard's table of policies and tasks shows; of a task it is one of the two."""


def flatten(record: Record) -> dict[str, Any]:
    """Return field -> value of a record; a field of a field is called `protocol.keywords.split`."""
    return dict(_flatten(json.loads(record.to_json())))


def write_csv(records: Sequence[Record], path: Path) -> None:
    """Write one row per episode, with a column for every field that some record has.

    What is missing or None is an empty field; lists and truth values are JSON.
    """
    names, rows = _table(records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(map(_field, row) for row in rows)


def write_jsonl(records: Sequence[Record], path: Path) -> None:
    """Write one line of JSON per episode, with the nested fields as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(record.to_json() + "\n" for record in records)


def write_tensorboard(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write one TensorBoard run per policy; needs neither torch nor TensorFlow.

    Step n of a curve is the score of a task's first n episodes in the order of their seeds, so the
    last one is the score. Episodes without an outcome are counted at that last step (`crashed`,
    `timeouts`). A chain of instructions has the last step alone. The tab HParams shows policies as
    rows and tasks as columns. What an earlier export wrote for the same policies is replaced.

    Args:
        records: of one evaluation.
        folder: log folder of TensorBoard; each policy has a folder in it.

    Returns:
        The folders of the runs.

    Raises:
        DependencyNotInstalled: there is no tensorboard.
    """
    hparams = require("tensorboard.plugins.hparams.summary_v2", "train", "an export to TensorBoard")
    policies = _by_policy(records)
    scores = {
        label: {task: _curve(group) for task, group in tasks.items()}
        for label, tasks in policies.items()
    }
    columns = {
        f"{metric}/{task}": f"{task}: {metric.replace('_', ' ')}"
        for tasks in scores.values()
        for task, curve in tasks.items()
        for metric in HEADLINES
        if metric in curve[-1][1]
    }
    with _EventFile(folder) as file:
        file.add(
            0,
            hparams.hparams_config_pb(
                hparams=[hparams.HParam("policy", hparams.Discrete(list(policies)))],
                metrics=[hparams.Metric(tag, display_name=name) for tag, name in columns.items()],
            ),
        )
    runs = [folder / name for name in _folder_names(policies)]
    for run, label in zip(runs, policies, strict=True):
        with _EventFile(run) as file:
            file.add(0, hparams.hparams_pb({"policy": label}, trial_id=label))
            file.add_text("scores", _score_table(scores[label]))
            for task, group in policies[label].items():
                file.add_text(f"protocol/{task}", _protocol_table(group[0].protocol))
                for step, numbers in scores[label][task]:
                    file.add_scalars(step, {f"{name}/{task}": x for name, x in numbers.items()})
    return runs


def send_to_wandb(records: Sequence[Record], project: str, folder: Path) -> list[str]:
    """Send one run per policy to Weights & Biases, all of them in a group named after the folder.

    A run has the score of each task with its interval in its summary, protocols and commands in its
    config, a table `episodes` with the columns of `write_csv`, and the videos as `video/TASK`.
    Wandb's own variables hold: `WANDB_MODE=offline` writes the runs below `wandb/`, to be sent
    later by `wandb sync`; `WANDB_ENTITY`, `WANDB_DIR` and so on. Another call makes other runs.

    Args:
        records: of one evaluation.
        project: the runs' project there.
        folder: of the evaluation, for its commands and videos.

    Returns:
        The address of each run, or its folder if it is offline.

    Raises:
        DependencyNotInstalled: there is no wandb.
        InvalidOption: wandb refuses, for instance because nobody is logged in.
    """
    wandb = require("wandb", "wandb", "an export to Weights & Biases")
    commands = load_runs(folder)
    places = []
    for label, tasks in _by_policy(records).items():
        columns, rows = _table(record for group in tasks.values() for record in group)
        try:
            with wandb.init(
                project=project,
                name=label,
                group=folder.resolve().name,
                job_type="evaluation",
                config={
                    "policy": label,
                    "protocol": {task: group[0].protocol for task, group in tasks.items()},
                    "commands": commands,
                },
                settings=wandb.Settings(silent=True, console="off"),
            ) as run:
                table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
                run.log({"episodes": table, **_videos(wandb, tasks, folder)})
                run.summary.update(
                    {
                        f"{metric}/{task}": value
                        for task, group in tasks.items()
                        for metric, value in _numbers(group).items()
                    }
                )
                places.append(str(Path(run.dir).parent) if run.offline else run.url)
        except wandb.errors.Error as error:
            raise InvalidOption(
                f"Weights & Biases does not take the run of {label!r} ({error}). Log in with "
                "`wandb login`, or keep the runs on this machine with WANDB_MODE=offline"
            ) from error
    return places


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flatten(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _table(records: Iterable[Record]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of flat records; what is within a field stands to the right."""
    rows = [flatten(record) for record in records]
    names = sorted(
        dict.fromkeys(name for row in rows for name in row), key=lambda name: "." in name
    )
    return names, [[row.get(name) for name in names] for row in rows]


def _field(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, bool | list) else value


def _by_policy(records: Iterable[Record]) -> dict[str, dict[str, list[Record]]]:
    """Return policy -> task, with its perturbation -> episodes in the order of their seeds."""
    found: dict[str, dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        task = record.id.removeprefix("VLA/")
        if record.perturbation:
            task += f"/{record.perturbation}"
        found.setdefault(record.policy, {}).setdefault(task, []).append(record)
    return {label: dict(sorted(tasks.items())) for label, tasks in sorted(found.items())}


def _numbers(records: Sequence[Record]) -> dict[str, float]:
    """Return metric -> value of one policy's episodes of one task; without data it has no entry."""
    measured: dict[str, tuple[float | None, Interval | None]]
    if chains := summarize_chains(records):
        (found,) = chains
        intervals = found.rate_intervals or (None,) * len(found.rates)
        pairs = zip(found.rates, intervals, strict=True)
        measured = {f"sr_{k}": pair for k, pair in enumerate(pairs, 1)}
        measured["average_length"] = (found.mean_length, found.length_interval)
    else:
        (found,) = summarize(records)
        measured = {
            "success_rate": (found.rate, found.rate_interval),
            "mean_return": (found.mean_return, found.return_interval),
            "mean_steps": (found.mean_length, None),
            "mean_seconds": (found.mean_seconds, None),
            "policy_ms_per_step": (found.policy_ms, None),
        }
    numbers: dict[str, float] = {}
    for name, (value, interval) in measured.items():
        if value is not None:
            numbers[name] = value
        if interval is not None:
            numbers |= {f"{name}_low95": interval.low, f"{name}_high95": interval.high}
    return numbers | {"n": found.n, "crashed": found.crashed, "timeouts": found.timeouts}


def _curve(records: Sequence[Record]) -> list[tuple[int, dict[str, float]]]:
    """Return number of episodes -> metrics of so many; at the end of all, also without outcome."""
    done = [record for record in records if record.counts]
    points = min(len(done), CURVE_POINTS)
    counts = [len(done) * (k + 1) // points for k in range(points)][:-1]
    if any(record.chain_length is not None for record in done):
        counts = []  # bootstrap intervals take long
    return [*((n, _numbers(done[:n])) for n in counts), (len(done), _numbers(records))]


def _folder_names(labels: Iterable[str]) -> list[str]:
    """Return a folder's name for each label; no two are the same where case does not count."""
    names: list[str] = []
    for label in labels:
        base = re.sub(r"[^\w.-]+", "_", label).lstrip(".") or "policy"
        name, number = base, 2
        while name.lower() in map(str.lower, names):
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names


class _EventFile:
    """TensorBoard's events of one folder, in the place of those that we wrote there before."""

    def __init__(self, folder: Path) -> None:
        writer, self._event, self._summary, self._tensor, self._text = (
            require(f"tensorboard.{module}", "train", "an export to TensorBoard")
            for module in (
                "summary.writer.event_file_writer",
                "compat.proto.event_pb2",
                "compat.proto.summary_pb2",
                "compat.proto.tensor_pb2",
                "plugins.text.metadata",
            )
        )
        self._former = list(folder.glob(f"events.out.tfevents.*{EVENTS_SUFFIX}"))
        self._writer = writer.EventFileWriter(str(folder), filename_suffix=EVENTS_SUFFIX)

    def __enter__(self) -> _EventFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()
        for path in self._former:
            path.unlink()

    def add(self, step: int, summary: Any) -> None:
        self._writer.add_event(self._event.Event(wall_time=time.time(), step=step, summary=summary))

    def add_scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        make = self._summary.Summary.Value
        values = [make(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self.add(step, self._summary.Summary(value=values))

    def add_text(self, tag: str, markdown: str) -> None:
        value = self._summary.Summary.Value(
            tag=tag,
            metadata=self._text.create_summary_metadata(display_name=tag, description=""),
            tensor=self._tensor.TensorProto(dtype="DT_STRING", string_val=[markdown.encode()]),
        )
        self.add(0, self._summary.Summary(value=[value]))


def _score_table(tasks: Mapping[str, Sequence[tuple[int, Mapping[str, float]]]]) -> str:
    """Return a Markdown table of a policy's tasks; a cell without data is empty."""
    lines = ["| task | metric | value | 95 % | n | crashed | timeouts |", "|---" * 7 + "|"]
    for task, curve in tasks.items():
        _, numbers = curve[-1]
        metric = next((name for name in HEADLINES if name in numbers), "")
        value = f"{numbers[metric]:.3f}" if metric else ""
        ends = (numbers.get(f"{metric}_{end}95") for end in ("low", "high"))
        interval = " to ".join(f"{end:.3f}" for end in ends if end is not None)
        counts = (str(numbers[name]) for name in ("n", "crashed", "timeouts"))
        lines.append(f"| {' | '.join((task, metric, value, interval, *counts))} |")
    return "\n".join(lines)


def _protocol_table(protocol: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in _flatten(protocol)]
    return "\n".join(["| protocol | |", "|---|---|", *rows])


def _videos(wandb: Any, tasks: Mapping[str, Sequence[Record]], folder: Path) -> dict[str, Any]:
    """Return `video/TASK` -> the first film of the task that is there."""
    found = {}
    for task, group in tasks.items():
        films = [r for r in group if r.video and (folder / r.video).exists()]
        if films:
            caption = f"seed {films[0].seed}: {films[0].outcome}"
            path = str(folder / films[0].video)
            found[f"video/{task}"] = wandb.Video(path, caption=caption, format="mp4")
    return found
