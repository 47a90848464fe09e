"""Turn demonstrations of one form into another: LeRobotDataset, Minari, `.npz` files, RLBench."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vla_gym.data import layout
from vla_gym.data.dataset import Dataset
from vla_gym.data.demos import SUFFIX, Demonstration, load_demonstrations, save_demonstration
from vla_gym.data.layout import InvalidDataset
from vla_gym.data.minari import is_minari, read_minari, write_minari
from vla_gym.data.rlbench import list_episodes, read_demonstrations
from vla_gym.data.writer import write_dataset
from vla_gym.errors import InvalidOption, UnknownName

__all__ = ["FORMS", "convert", "read_any"]

FORMS = ("lerobot", "minari", "npz")
"""What can be written; RLBench's own folders can be read as well."""


def read_any(source: str | os.PathLike[str], **options: Any) -> Iterator[Demonstration]:
    """Yield the demonstrations of a folder, whatever form they have.

    Args:
        source: folder of a LeRobotDataset v3 of ours, of a Minari data set, of `.npz` files, or of
            episodes that RLBench has stored.
        **options: for RLBench's, of `vla_gym.data.rlbench.to_demonstration`.

    Raises:
        InvalidDataset: it has none of these forms, or is damaged.
        InvalidOption: options were given for a form that takes none.
    """
    folder = Path(source)
    read: Callable[[], Iterator[Demonstration]]
    if (folder / layout.INFO).exists() or (folder / layout.MANIFEST).exists():
        read = Dataset(folder, verify=True).demonstrations
    elif is_minari(folder):
        read = lambda: read_minari(folder)  # noqa: E731
    elif folder.is_dir() and any(folder.rglob(f"*{SUFFIX}")):
        read = lambda: load_demonstrations(folder)  # noqa: E731
    elif folder.is_dir() and _has_rlbench(folder):
        return read_demonstrations(folder, **options)
    else:
        raise InvalidDataset(
            f"{folder} holds no demonstrations: neither a LeRobotDataset ({layout.INFO}) nor a "
            f"Minari data set (data/metadata.json), {SUFFIX} files or episodes of RLBench"
        )
    if options:
        raise InvalidOption(f"{list(options)} are for RLBench's episodes only; {folder} is none")
    return read()


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    form: str = "lerobot",
    *,
    images: str = "png",
    on_episode: Callable[[], None] | None = None,
    **options: Any,
) -> list[Path]:
    """Read demonstrations in any form and write them in another; actions stay bit for bit.

    Args:
        source: as for `read_any`.
        target: folder; a LeRobotDataset of ours that is there is added to.
        form: one of `FORMS`.
        images: for `"lerobot"`: `"png"` (exact) or `"video"` (lossy).
        on_episode: called as each episode is read.
        **options: as for `read_any`.

    Returns:
        the folders written.

    Raises:
        UnknownName: there is no such form.
        InvalidDataset: the source is damaged, or its episodes do not fit in one data set.
    """
    if form not in FORMS:
        raise UnknownName("form", form, FORMS, "vla_gym.data")
    target = Path(target)

    def read() -> Iterator[Demonstration]:
        for demonstration in read_any(source, **options):
            yield demonstration
            if on_episode is not None:
                on_episode()

    if form == "lerobot":
        return [write_dataset(read(), target, images=images)]
    if form == "minari":
        return write_minari(read(), target)
    for number, demonstration in enumerate(read()):
        save_demonstration(demonstration, target / f"{number:06d}{SUFFIX}")
    return [target]


def _has_rlbench(folder: Path) -> bool:
    try:
        return bool(list_episodes(folder))
    except ValueError:
        return False
