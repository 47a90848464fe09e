"""Minari data sets (HDF5), written and read without minari: it wants NumPy 2, robosuite 1.

A Minari data set has one env, so each id becomes one of its own. Its `actions` are those that were
carried out; those to be learned, where noise was added, are `infos/label`. Pictures are stored
exactly (`jpeg_encoding` false, which minari reads from 0.5.4 on).

Source: minari 0.5.4, `dataset/minari_storage.py`, `dataset/_storages/hdf5_storage.py`,
`serialization.py`.
"""

from __future__ import annotations

import copy
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vla_gym.data import layout
from vla_gym.data.demos import Demonstration, InvalidDemonstration
from vla_gym.data.layout import InvalidDataset
from vla_gym.deps import require
from vla_gym.errors import InvalidOption
from vla_gym.instruction import Instruction

__all__ = ["is_minari", "read_minari", "write_minari"]

MAIN, METADATA = "main_data.hdf5", "metadata.json"
MINARI_VERSION = "0.5.4"
_NAME = re.compile(r"[\w.-]+")
_HEADER = (
    *("id", "action_mode", "instructions", "keywords", "source", "simulator"),
    *("versions", "spec_sheet", "seed", "options"),
)


def is_minari(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder is a Minari data set, or the `data` folder of one."""
    return _find_data(Path(path)) is not None


def write_minari(
    demonstrations: Iterable[Demonstration], root: str | os.PathLike[str], name: str = "expert-v0"
) -> list[Path]:
    """Write demonstrations as Minari data sets, one for each env: `<root>/<Suite>-<Task>/<name>`.

    With MINARI_DATASETS_PATH set to the root, `minari.load_dataset("<Suite>-<Task>/<name>")` finds
    them.

    Args:
        demonstrations: one in memory at a time.
        root: Minari's folder of data sets.
        name: of each data set, with its version.

    Returns:
        the folders, in the order of their first episodes.

    Raises:
        InvalidOption: a data set of that name exists, or the name is not valid.
        InvalidDataset: demonstrations of one env differ in their spaces.
    """
    if _NAME.fullmatch(name) is None or re.search(r"-v\d+$", name) is None:
        raise InvalidOption(f"name={name!r} must be a name with a version, such as 'expert-v0'")
    files: dict[str, _File] = {}
    try:
        for demonstration in demonstrations:
            if demonstration.id not in files:
                task = re.sub(r"-v\d+$", "", demonstration.id.rpartition("/")[2])
                folder = Path(root, task, name)
                files[demonstration.id] = _File(folder, f"{task}/{name}", demonstration)
            files[demonstration.id].add(demonstration)
    finally:
        for file in files.values():
            file.close()
    return [file.folder for file in files.values()]


class _File:
    """One Minari data set in the making."""

    def __init__(self, folder: Path, name: str, first: Demonstration) -> None:
        h5py = require("h5py", "data", "a Minari data set")
        if (folder / "data" / METADATA).exists():
            raise InvalidOption(f"{folder} holds a data set; remove it or take another name")
        (folder / "data").mkdir(parents=True, exist_ok=True)
        self.folder, self._name, self._first = folder, name, first
        self._file = h5py.File(folder / "data" / MAIN, "w", track_order=True)
        self._text = h5py.string_dtype(encoding="utf-8")
        self._spaces = _make_spaces(first)
        self._episodes = self._steps = 0

    def add(self, demonstration: Demonstration) -> None:
        if _make_spaces(demonstration) != self._spaces:
            raise InvalidDataset(
                f"{self.folder}: an episode of {demonstration.id} has other spaces than the first "
                "one; a Minari data set has one observation space"
            )
        steps = len(demonstration)
        group = self._file.create_group(f"episode_{self._episodes}")
        group.attrs["id"] = self._episodes
        group.attrs["total_steps"] = steps
        if demonstration.seed is not None:
            group.attrs["seed"] = demonstration.seed
        header = {name: getattr(demonstration, name) for name in _HEADER}
        group.attrs["vla_gym"] = json.dumps(header)
        for key, values in demonstration.observations.items():
            group.create_dataset(f"observations/{key}", data=values)
        texts = [demonstration.instruction] * (steps + 1)
        group.create_dataset("observations/instruction", data=texts, dtype=self._text)
        ends = np.arange(steps) == steps - 1
        group["actions"] = demonstration.actions
        group["rewards"] = demonstration.rewards
        group["terminations"] = ends & demonstration.terminated
        group["truncations"] = ends & (not demonstration.terminated)
        labels = demonstration.labels
        group["infos/label"] = demonstration.actions if labels is None else labels
        group["infos/success"] = np.array([False, *demonstration.successes])
        self._episodes += 1
        self._steps += steps

    def close(self) -> None:
        self._file.close()
        metadata = {
            "total_episodes": self._episodes,
            "total_steps": self._steps,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "observation_space": json.dumps(self._spaces["observation"]),
            "action_space": json.dumps(self._spaces["action"]),
            "dataset_id": self._name,
            "minari_version": MINARI_VERSION,
            "algorithm_name": self._first.source,
            "dataset_size": round((self.folder / "data" / MAIN).stat().st_size / 1e6, 1),  # [MB]
            "requirements": [f"{k}=={v}" for k, v in self._first.versions.items() if " " not in k],
        }
        if (spec := _make_spec(self._first)) is not None:
            metadata["env_spec"] = spec
        # Last: a folder without it holds no data set.
        layout.replace_file(self.folder / "data" / METADATA, json.dumps(metadata).encode())


def _make_spec(demonstration: Demonstration) -> str | None:
    """Return the env's spec as JSON, from which Minari makes it again; None for an unknown id."""
    if demonstration.id not in gym.registry:
        return None
    spec = copy.deepcopy(gym.spec(demonstration.id))
    keywords = dict(demonstration.keywords)
    spec.max_episode_steps = keywords.pop("max_episode_steps", spec.max_episode_steps)
    spec.kwargs.update(keywords)
    return spec.to_json()


def _make_spaces(demonstration: Demonstration) -> dict[str, Any]:
    """Return observation and action space as Minari writes spaces down."""
    text = Instruction()
    observation: dict[str, Any] = {
        "instruction": {
            "type": "Text",
            "max_length": text.max_length,
            "min_length": text.min_length,
            "charset": text.characters,
        }
    }
    for key, values in demonstration.observations.items():
        shape, dtype = values.shape[1:], values.dtype
        low, high = (0, 255) if key.startswith("rgb_") else (-np.inf, np.inf)
        if dtype.kind in "iu" and not key.startswith("rgb_"):
            low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        if dtype.kind == "b":
            low, high, dtype = 0, 1, np.dtype(np.int8)
        observation[key] = _to_box(spaces.Box(low, high, shape, dtype.type))
    action = spaces.Box(-1.0, 1.0, demonstration.actions.shape[1:], np.float32)
    return {"observation": {"type": "Dict", "subspaces": observation}, "action": _to_box(action)}


def _to_box(space: spaces.Box) -> dict[str, Any]:
    return {
        "type": "Box",
        "dtype": str(space.dtype),
        "shape": list(space.shape),
        "low": space.low.tolist(),
        "high": space.high.tolist(),
    }


def read_minari(path: str | os.PathLike[str]) -> Iterator[Demonstration]:
    """Yield the episodes of a Minari data set of one of our envs, whoever has recorded it.

    Pictures that minari has stored as JPEG come as what JPEG has kept of them.

    Args:
        path: of the data set's folder, or of its `data` folder.

    Raises:
        InvalidDataset: it is damaged, in another format than HDF5, or of a foreign env.
    """
    data = _find_data(Path(path))
    if data is None:
        raise InvalidDataset(f"{path} is no Minari data set: it has no {METADATA}")
    metadata = layout.read_json(data / METADATA)
    if metadata.get("data_format", "hdf5") != "hdf5":
        raise InvalidDataset(f"{data} is stored as {metadata['data_format']}; only HDF5 is read")
    return _read_episodes(data / MAIN, metadata)


def _read_episodes(path: Path, metadata: Mapping[str, Any]) -> Iterator[Demonstration]:
    h5py = require("h5py", "data", "a Minari data set")
    try:
        with h5py.File(path, "r") as file:
            for number in range(int(metadata["total_episodes"])):
                group = file[f"episode_{number}"]
                try:
                    yield _read_episode(group, metadata)
                except InvalidDemonstration as error:
                    raise InvalidDataset(f"{path}, episode {number}: {error}") from error
    except FileNotFoundError as error:
        raise InvalidDataset(f"{path} is missing; fetch or make the data set again") from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, InvalidDataset):
            raise
        raise InvalidDataset(f"{path} is damaged or incomplete ({error})") from error


def _read_episode(group: Any, metadata: Mapping[str, Any]) -> Demonstration:
    observations = {
        key: _read_values(values)
        for key, values in group["observations"].items()
        if key != "instruction"
    }
    texts = group["observations/instruction"][()] if "instruction" in group["observations"] else []
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in texts]
    if len(set(texts)) > 1:
        raise InvalidDemonstration("its command changes within an episode")
    actions = group["actions"][()]
    infos = group.get("infos", {})
    if "success" in infos:
        successes = np.asarray(infos["success"][()], bool)[-len(actions) :]
    else:
        successes = np.zeros(len(actions), bool)
    header = json.loads(group.attrs["vla_gym"]) if "vla_gym" in group.attrs else None
    if header is None:
        header = _read_spec(metadata) | {
            "seed": int(group.attrs["seed"]) if "seed" in group.attrs else None,
            "options": {
                key.removeprefix("options/"): value
                for key, value in group.attrs.items()
                if key.startswith("options/")
            },
        }
    return Demonstration(
        **header,
        instruction=texts[0] if texts else "",
        observations=observations,
        actions=actions,
        labels=infos["label"][()] if "label" in infos else None,
        rewards=group["rewards"][()],
        successes=successes,
        success=bool(successes.any()),
        terminated=bool(group["terminations"][-1]),
    )


def _read_values(values: Any) -> NDArray[Any]:
    """Return an array as stored, JPEG decoded: minari keeps each picture's bytes as a row."""
    array = values[()]
    jpeg = array.dtype == object or (array.dtype == np.uint8 and array.ndim == 2)
    if not jpeg:
        return array
    image = require("PIL.Image", "data", "a Minari data set's pictures")
    return np.stack([np.array(image.open(io.BytesIO(row.tobytes()))) for row in array])


def _read_spec(metadata: Mapping[str, Any]) -> dict[str, Any]:
    if "env_spec" not in metadata:
        raise InvalidDemonstration("the data set does not say of which env it is (env_spec)")
    spec = json.loads(metadata["env_spec"])
    keywords = dict(spec.get("kwargs", {}))
    for name in ("suite", "task"):
        keywords.pop(name, None)
    return {
        "id": spec["id"],
        "action_mode": keywords.get("action_mode", "ee_delta"),
        "keywords": keywords,
        "source": f"Minari: {metadata.get('dataset_id', '')}",
    }


def _find_data(path: Path) -> Path | None:
    return next((p for p in (path, path / "data") if (p / METADATA).is_file()), None)
