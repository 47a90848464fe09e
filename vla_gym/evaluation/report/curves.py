"""The learning curves of training runs: success on held-out episodes over steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_gym.errors import InvalidOption
from vla_gym.evaluation.metrics import Interval, success_interval

__all__ = ["Curve", "Point", "is_training_run", "read_curve", "read_curves"]

CONFIG, METRICS = "config.json", "metrics.jsonl"
"""Of a training run's folder, see `vla_gym.train.runs`."""


@dataclass(frozen=True)
class Point:
    """One evaluation: success rate over `n` episodes, with its Wilson 95 % interval."""

    step: int
    rate: float
    n: int
    interval: Interval


@dataclass(frozen=True)
class Curve:
    """One training run.

    Attributes:
        label: its name.
        unit: what its steps are: `"updates"` or `"control steps"`.
        points: its evaluations, in order.
    """

    label: str
    unit: str
    points: tuple[Point, ...]


def is_training_run(folder: Path) -> bool:
    """Return whether the folder is that of a training run."""
    return (folder / CONFIG).is_file() and (folder / METRICS).is_file()


def read_curves(folders: Sequence[Path]) -> list[Curve]:
    """Return the curves of these training runs, each under a label of its own.

    Raises:
        InvalidOption: a folder is no training run, or its files are damaged.
    """
    names = [folder.resolve().name for folder in folders]
    labels = [
        name if names.count(name) == 1 else str(folder)
        for name, folder in zip(names, folders, strict=True)
    ]
    return [read_curve(folder, label) for folder, label in zip(folders, labels, strict=True)]


def read_curve(folder: Path, label: str) -> Curve:
    """Return the curve of a training run; without evaluations in envs it has no points.

    Raises:
        InvalidOption: the folder is no training run, or its files are damaged.
    """
    if not is_training_run(folder):
        raise InvalidOption(
            f"{folder} is no training run: it has no {CONFIG} and {METRICS}, which `vla-gym train` "
            "and `vla-gym finetune` write"
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        # What follows the last line feed is being written just now.
        lines = (folder / METRICS).read_text(encoding="utf-8").split("\n")[:-1]
        points = [
            _to_point(found, config) for found in map(json.loads, lines) if "success" in found
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidOption(f"{folder}: {CONFIG} or {METRICS} is damaged ({error})") from error
    # Behaviour cloning counts updates and is the one that learns from data sets alone.
    return Curve(label, "updates" if "data" in config else "control steps", tuple(points))


def _to_point(line: dict[str, Any], config: dict[str, Any]) -> Point:
    n = line.get("n")
    if n is None:
        n = sum(name.startswith("success/") for name in line) * int(config["eval_episodes"])
    interval = success_interval(round(line["success"] * n), n)
    assert interval is not None
    return Point(int(line["step"]), float(line["success"]), int(n), interval)
