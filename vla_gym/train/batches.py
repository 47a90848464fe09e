"""Batches for behaviour cloning: what is drawn, how it is balanced, and how pictures are changed.

Batch t of a run is a function of the seed, the process's rank and t alone, so that a run that goes
on from step t sees what an uninterrupted one sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.data import Dataset
from vla_gym.data.dataset import Frames
from vla_gym.errors import InvalidOption
from vla_gym.train.learner import Learner

__all__ = ["Augmentation", "Batches", "Windows", "split_episodes"]

EVERYTHING = "all tasks"


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the observations of a batch, drawn for each row and camera.

    Attributes:
        shift: pictures are moved by up to this share of their size, edges repeated, as DrQ does
            (Yarats et al. 2021, arXiv 2107.09645: 4 of 84 pixels).
        brightness, contrast: they are changed by up to this share.
        proprio_noise: standard deviation of normal noise on proprio and state, in deviations of
            their entries in the data.
    """

    shift: float = 0.05
    brightness: float = 0.1
    contrast: float = 0.1
    proprio_noise: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < 1:
                raise InvalidOption(f"{name}={value} of Augmentation must be in [0, 1)")

    def change(self, pictures: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return the pictures (B, T, H, W, 3) changed; the T frames of a row in the same way."""
        rows, size = len(pictures), pictures.shape[2]
        edge = round(self.shift * size)
        if edge:
            width = ((0, 0), (0, 0), (edge, edge), (edge, edge), (0, 0))
            padded = np.pad(pictures, width, mode="edge")
            offsets = rng.integers(0, 2 * edge + 1, (rows, 2))
            height, length = pictures.shape[2:4]
            pictures = np.stack(
                [
                    padded[i, :, y : y + height, x : x + length]
                    for i, (y, x) in enumerate(offsets.tolist())
                ]
            )
        if self.brightness or self.contrast:
            gain = 1 + self.contrast * rng.uniform(-1, 1, (rows, 1))
            lift = self.brightness * rng.uniform(-1, 1, (rows, 1))
            levels = np.arange(256) / 255  # a table of 256 levels a row is cheaper than its pixels
            tables = ((levels - 0.5) * gain + 0.5 + lift) * 255
            tables = np.clip(np.rint(tables), 0, 255).astype(np.uint8)
            pictures = np.stack([table[p] for table, p in zip(tables, pictures, strict=True)])
        return pictures

    def shake(self, values: NDArray[Any], std: NDArray[Any], rng: np.random.Generator) -> Any:
        """Return rows (B, n) with noise."""
        if not self.proprio_noise:
            return values
        noise = rng.normal(size=values.shape) * std * self.proprio_noise
        return (values + noise).astype(values.dtype)


class Windows:
    """The frames of several data sets as one, in the form that a learner takes.

    Args:
        datasets: with equal shapes.
        learner: says which pictures, how many frames and how many actions.
        episodes: of each data set, the numbers of those to be used.
        store: see `vla_gym.data.dataset.Frames`.

    Attributes:
        tasks: ids of the envs, in the order in which they appear; `EVERYTHING` alone for data of
            other programs, which name none.
        task: for each frame, the place of its task in `tasks`.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        learner: Learner,
        episodes: Sequence[Sequence[int]],
        store: str,
    ) -> None:
        self._keys = [f"rgb_{camera}" for camera in learner.spec.cameras or ()]
        names = dict.fromkeys(i or EVERYTHING for d in datasets for i in d.env_ids)
        self.tasks = list(names)
        self._numeric = ["proprio", *(["state"] if learner.spec.state else [])]
        self._parts: list[Frames] = [
            dataset.frames(
                history=learner.history,
                future=learner.chunk,
                keys=[*self._keys, *self._numeric],
                episodes=chosen,
                store=store,
                image_size=learner.image_size or None,
            )
            for dataset, chosen in zip(datasets, episodes, strict=True)
        ]
        self._first = np.cumsum([0, *map(len, self._parts)])
        self.task = np.concatenate(
            [
                np.array([self.tasks.index(i or EVERYTHING) for i in d.env_ids], int)[f.env_index]
                for d, f in zip(datasets, self._parts, strict=True)
            ]
        )
        everything = {
            key: np.concatenate([d.numbers[key] for d in datasets]) for key in self._numeric
        }
        self.deviations = {key: values.std(0) for key, values in everything.items()}

    def __len__(self) -> int:
        return len(self.task)

    def read(
        self, indices: NDArray[np.int64], change: Augmentation | None, rng: np.random.Generator
    ) -> dict[str, Any]:
        """Return a batch as a learner takes it, of the frames `indices` in this order."""
        part = np.searchsorted(self._first, indices, side="right") - 1
        order = np.argsort(part, kind="stable")
        found = [self._parts[k].batch(indices[part == k] - self._first[k]) for k in np.unique(part)]
        back = np.argsort(order)  # rows come out one part after the other

        def join(key: str) -> Any:
            if len(found) == 1:
                return found[0][key]
            if isinstance(found[0][key], list):
                rows = [text for some in found for text in some[key]]
                return [rows[i] for i in back]
            return np.concatenate([some[key] for some in found])[back]

        batch: dict[str, Any] = {
            "action": join("action"),
            "action_mask": ~join("action_is_pad"),
            "instruction": join("instruction"),
        }
        for key in self._keys:
            pictures = join(key)
            batch[key] = change.change(pictures, rng) if change else pictures
        for key in self._numeric:
            values = join(key)[:, -1].astype(np.float32)
            batch[key] = change.shake(values, self.deviations[key], rng) if change else values
        return batch


class Batches:
    """Step t -> batch t, for `torch.utils.data.DataLoader(..., batch_size=None)`.

    Args:
        windows: what is drawn from.
        weights: share of each task, in proportion; None: of each as many as it has frames.
        size: rows.
        seed, rank: of the run, and of this process.
        change: augmentation.
    """

    def __init__(
        self,
        windows: Windows,
        weights: Mapping[str, float] | None,
        size: int,
        seed: int,
        rank: int,
        change: Augmentation | None,
    ) -> None:
        self._windows, self._size, self._change = windows, size, change
        self._key = (seed, rank)
        counts = np.bincount(windows.task, minlength=len(windows.tasks)).astype(float)
        if weights is not None:
            shares = np.array([weights.get(task, 0.0) for task in windows.tasks])
            counts = np.where(counts > 0, shares, 0.0)  # a task may have no frame here
        if counts.sum() <= 0:
            raise InvalidOption(f"no task has frames and a weight above 0: {weights}")
        self._shares = counts / counts.sum()
        self._frames = [np.flatnonzero(windows.task == k) for k in range(len(windows.tasks))]

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Return the batch of a step."""
        rng = np.random.default_rng([*self._key, step])
        tasks = rng.choice(len(self._shares), size=self._size, p=self._shares)
        indices = np.array([self._frames[k][rng.integers(len(self._frames[k]))] for k in tasks])
        return self._windows.read(indices, self._change, rng)


def split_episodes(dataset: Dataset, share: float) -> tuple[list[int], list[int]]:
    """Return the numbers of the episodes to train on, and of those held out: of each task the last.

    A task with fewer than two episodes holds none out.
    """
    train, held_out = [], []
    for env_id in dataset.env_ids:
        numbers = [episode.index for episode in dataset.episodes if episode.env_id == env_id]
        count = min(round(share * len(numbers)), len(numbers) - 1)
        train += numbers[: len(numbers) - count]
        held_out += numbers[len(numbers) - count :]
    return sorted(train), sorted(held_out)
