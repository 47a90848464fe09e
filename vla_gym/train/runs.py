"""The folder of a training run: its config, its numbers, and states from which it goes on.

| file | holds |
|---|---|
| `config.json` | the config; the same command in the same folder goes on |
| `metrics.jsonl` | a line for each logged step and each evaluation |
| `tensorboard/` | the same for TensorBoard |
| `best/`, `last/` | checkpoints of the policy, which `make_policy` opens |
| `state/` | the two latest states of the trainer |
| `evaluations/` | records of each evaluation in the envs |
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_gym.errors import InvalidOption

__all__ = ["Run", "write_whole"]

CONFIG, METRICS, STATE = "config.json", "metrics.jsonl", "state"
KEPT = 2
"""States kept: the latest, and the one before it should that be damaged."""

_STATE_NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt$")


class Run:
    """A run's folder; see the module.

    Args:
        folder: of the run; made if it is absent.
        config: of the run, plain JSON.
        free: keys of the config that may differ from those of the run that is continued.

    Attributes:
        folder, best, last: paths of the run and of its checkpoints.

    Raises:
        InvalidOption: the folder holds something else, or a run with another config.
    """

    def __init__(
        self, folder: str | Path, config: Mapping[str, Any], free: tuple[str, ...] = ()
    ) -> None:
        self.folder = Path(folder)
        self.best, self.last = self.folder / "best", self.folder / "last"
        self._metrics = self.folder / METRICS
        path = self.folder / CONFIG
        config = json.loads(json.dumps(config))  # tuples become lists, as they will be read
        if path.exists():
            _refuse_other(path, config, free)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise InvalidOption(
                f"{self.folder} is not empty and holds no run ({CONFIG} is missing): choose "
                "another folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        content = (json.dumps(config, indent=1) + "\n").encode()
        if not path.exists() or path.read_bytes() != content:
            write_whole(path, content)

    def log(self, **numbers: Any) -> None:
        """Append a line to `metrics.jsonl`."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(numbers) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl`; half a line at the end is left out."""
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def rewind(self, step: int) -> None:
        """Drop what `metrics.jsonl` has of later steps: they will be done again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        if self._metrics.exists():
            write_whole(self._metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def save_state(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the trainer's state of a step; older ones but one are deleted.

        Args:
            step: after which it was taken.
            state: what `torch.save` takes and `torch.load(weights_only=True)` returns.
        """
        import torch

        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getvalue()
        folder = self.folder / STATE
        folder.mkdir(exist_ok=True)
        new = folder / f"step-{step:08d}-{_digest(content)}.pt"
        write_whole(new, content)
        stale = [p for old, p in self._states() if old >= step and p != new]  # done again
        kept = [p for _, p in self._states() if p not in stale]
        for path in [*stale, *kept[KEPT:]]:
            path.unlink(missing_ok=True)

    def load_state(self) -> dict[str, Any] | None:
        """Return the latest state, None where there is none.

        Raises:
            InvalidOption: it is damaged.
        """
        import torch

        states = self._states()
        if not states:
            return None
        _, path = states[0]
        content = path.read_bytes()
        if _digest(content) != path.stem.rpartition("-")[2]:
            older = f"step {states[1][0]}" if len(states) > 1 else "the beginning"
            raise InvalidOption(
                f"{path} is damaged: its content ({len(content)} bytes) is not what its name says. "
                f"Delete it, and the run goes on from {older}"
            )
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def _states(self) -> list[tuple[int, Path]]:
        """Return step and path of each state, the latest first."""
        folder = self.folder / STATE
        found = []
        for path in folder.glob("step-*.pt") if folder.is_dir() else ():
            if match := _STATE_NAME.match(path.name):
                found.append((int(match[1]), path))
        return sorted(found, reverse=True)


def _refuse_other(path: Path, config: Mapping[str, Any], free: tuple[str, ...]) -> None:
    try:
        before = json.loads(path.read_text())
        keys = sorted({*before, *config} - set(free))
    except (ValueError, TypeError) as error:
        raise InvalidOption(f"{path} is damaged ({error}): choose another folder") from error
    differing = [
        f"{key}={config.get(key)!r} now, {before.get(key)!r} then"
        for key in keys
        if config.get(key) != before.get(key)
    ]
    if differing:
        raise InvalidOption(
            f"{path.parent} holds a run with another config ({'; '.join(differing)}). Go on with "
            "the same one, or choose another folder"
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, whenever the process is killed."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
