"""Progress bars: of episodes, and of updates."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vla_gym.cli.console import console

if TYPE_CHECKING:
    from vla_gym.evaluation.records import Record

__all__ = ["EpisodeProgress", "TrainingProgress", "is_first_process"]


class EpisodeProgress:
    """A progress bar with rate and remaining time, and the outcomes so far."""

    def __init__(self) -> None:
        from rich import progress as bars

        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(),
            bars.TextColumn("[red]{task.fields[crashes]}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("making envs", total=None, rate="", crashes="")
        self._crashed = self._done = 0

    def __enter__(self) -> EpisodeProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def stop(self) -> None:
        """Take the bar away, before something is printed below it."""
        self._bar.stop()

    def start(self, total: int, finished: int) -> None:
        """Begin to count: of `total` episodes, `finished` were played by an earlier call."""
        if finished:
            self._bar.console.print(f"{finished} of {total} episodes were finished before")
        self._bar.reset(
            self._task, total=total - finished, description="episodes", rate="", crashes=""
        )

    def advance(self, record: Record) -> None:
        """Count an episode."""
        self._done += 1
        self._crashed += not record.counts
        elapsed = self._bar.tasks[0].elapsed or 0.0
        self._bar.update(
            self._task,
            advance=1,
            rate=f"{self._done / elapsed:.1f}/s" if elapsed else "",
            crashes=f"{self._crashed} crashed or hung" if self._crashed else "",
        )


class TrainingProgress:
    """A progress bar of updates, with the loss; of several processes, the first one's."""

    def __init__(self, steps: int) -> None:
        from rich import progress as bars

        self._bar = bars.Progress(
            bars.TextColumn("training"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[numbers]}"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not is_first_process(),
        )
        self._task = self._bar.add_task("", total=steps, numbers="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def stop(self) -> None:
        """Take the bar away, before something is printed below it."""
        self._bar.stop()

    def advance(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Show how many updates are done, and their loss."""
        self._bar.update(self._task, completed=step)
        if "loss" in numbers:
            self._bar.update(self._task, numbers=f"loss {numbers['loss']:.4g}")


def is_first_process() -> bool:
    """Return whether this is the first of the processes that `accelerate launch` has started."""
    return os.environ.get("RANK", "0") == "0"
