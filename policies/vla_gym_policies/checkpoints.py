"""What the policies from checkpoint folders share: finding the folder, declaring its conventions.

No checkpoint says whether its gripper opens with +1 or in which frame it moves: that is a habit of
the data set. So each `make_..._policy` takes the fields of `vla_gym.PolicySpec` as keywords, and
`vla_gym.policy.connect` converts or refuses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vla_gym import PolicySpec
from vla_gym.errors import InvalidOption, UnknownName

__all__ = ["declare", "find_folder", "refuse_missing"]


def find_folder(path: str | Path, policy: str, needs: str = "config.json") -> Path:
    """Return the folder of a checkpoint.

    Args:
        path: as the user gave it.
        policy: the policy's name, for the error text.
        needs: a file that such a folder holds.

    Raises:
        InvalidOption: it is not there, is no folder or lacks that file.
    """
    folder = Path(path)
    if not str(path):
        raise InvalidOption(
            f'the policy "{policy}" needs the folder of a checkpoint, for example '
            f'"{policy}:checkpoints/mine"'
        )
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise InvalidOption(
            f'"{policy}" takes the folder of a checkpoint, but {folder} {what}. Nothing is '
            "downloaded: for a model of a hub give the folder that you have downloaded it to"
        )
    if not (folder / needs).is_file():
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:12]) or "nothing"
        raise InvalidOption(
            f'{folder} is no checkpoint of "{policy}": it lacks {needs}; it holds {found}'
        )
    return folder


def declare(conventions: Mapping[str, Any], **known: Any) -> PolicySpec:
    """Return the spec of what is known about a checkpoint and of what the user says about it.

    Args:
        conventions: fields of `PolicySpec` from the user, which win.
        **known: fields from the checkpoint and defaults.

    Raises:
        UnknownName: `PolicySpec` has no such field.
    """
    valid = [field.name for field in dataclasses.fields(PolicySpec)]
    for name in conventions:
        if name not in valid:
            raise UnknownName("keyword of the policy or field of PolicySpec", name, valid)
    return PolicySpec(**{**known, **conventions})


def refuse_missing(missing: Collection[str], folder: Path) -> None:
    """Refuse a model of which transformers has filled in weights at random.

    Raises:
        InvalidOption: `missing`, the names of weights that the folder lacks, is not empty.
    """
    if missing:
        names = sorted(missing)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise InvalidOption(
            f"{folder} lacks weights of its model: {', '.join(names[:5])}{more}. They would be "
            "random numbers. The folder is incomplete, or of another kind of model"
        )
