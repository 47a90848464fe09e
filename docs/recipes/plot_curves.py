"""Draw the learning curves of training runs: success on held-out episodes, and the loss.

    python docs/recipes/plot_curves.py -o curve.svg --title "..." RUN [RUN ...]

One line for each run (its folder's name is its label), with Wilson 95 % intervals. Reads
`metrics.jsonl` of `vla-gym train` and `vla-gym finetune`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

from vla_gym.evaluation.metrics import success_interval


def read(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def count_episodes(run: Path, line: dict[str, Any]) -> int:
    """Return how many episodes a line's success rate is of."""
    if "n" in line:
        return int(line["n"])
    tasks = sum(key.startswith("success/") for key in line)
    return tasks * int(json.loads((run / "config.json").read_text())["eval_episodes"])


def draw(axis: Any, run: Path, label: str) -> None:
    """Draw the success of a run, with its interval."""
    lines = [line for line in read(run) if "success" in line]
    steps = [line["step"] for line in lines]
    rates = [line["success"] for line in lines]
    ends = []
    for line in lines:
        n = count_episodes(run, line)
        ends.append(success_interval(round(line["success"] * n), n) or (0.0, 1.0))
    (drawn,) = axis.plot(steps, rates, marker="o", markersize=3, label=label)
    low, high = zip(*ends, strict=True)
    axis.fill_between(steps, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--title", default="")
    parser.add_argument("--xlabel", default="updates")
    arguments = parser.parse_args()
    plt.rcParams.update({"svg.hashsalt": "vla_gym", "font.size": 9})
    losses = {run: [li for li in read(run) if "loss" in li] for run in arguments.runs}
    with_loss = any(losses.values())
    figure, axes = plt.subplots(
        1, 1 + with_loss, figsize=(4.5 * (1 + with_loss), 3.2), squeeze=False, layout="constrained"
    )
    for run in arguments.runs:
        draw(axes[0, 0], run, run.name)
    axes[0, 0].set(ylim=(0, 1.02), xlabel=arguments.xlabel, ylabel="success, held-out episodes")
    axes[0, 0].yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    if len(arguments.runs) > 1:
        axes[0, 0].legend(frameon=False)
    if with_loss:
        for run, lines in losses.items():
            axes[0, 1].plot(
                [li["step"] for li in lines], [li["loss"] for li in lines], label=run.name
            )
        axes[0, 1].set(yscale="log", xlabel=arguments.xlabel, ylabel="training loss")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.suptitle(arguments.title)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, metadata={"Date": None} if arguments.out.suffix == ".svg" else {})


if __name__ == "__main__":
    main()
