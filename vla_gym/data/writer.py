"""Write demonstrations as a LeRobotDataset v3 (see `vla_gym.data.layout`), one episode at a time.

An episode is encoded first (`encode_episode`), which takes most of the time and can be done in any
process, then added to a data set (`DatasetWriter`), which gives it its numbers. A writer that is
killed leaves the data set as it was after its last `commit`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym._version import __version__
from vla_gym.data import layout
from vla_gym.data.demos import Demonstration
from vla_gym.data.layout import InvalidDataset
from vla_gym.data.statistics import count_levels, describe, describe_images
from vla_gym.deps import require
from vla_gym.errors import InvalidOption
from vla_gym.video import write_h264

__all__ = [
    "STORAGES",
    "DatasetWriter",
    "EncodedEpisode",
    "delete_episode",
    "encode_episode",
    "load_episode",
    "save_episode",
    "write_dataset",
]

STORAGES = ("png", "video")
"""How pictures are stored: `"png"` in the data files, exact; `"video"` as H.264, lossy."""

FORMAT, FORMAT_VERSION = "vla-gym data set", 1
FILE_BYTES = 100 * 2**20
"""A data file is closed when it is larger: LeRobot's own limit."""

CRF = 18
"""Quality of H.264: hardly a difference to be seen. Colours have half the resolution (yuv420p)."""

SETTING_FIELDS = ("id", "action_mode", "keywords", "simulator", "versions", "source", "spec_sheet")
"""Fields of a demonstration that many episodes share; stored once, in the manifest."""


@dataclass(frozen=True, eq=False)
class EncodedEpisode:
    """An episode ready to be written, still without its place in a data set.

    Attributes:
        frames: pyarrow table of T rows, the columns of the data files without the five numbers of
            LeRobot's own (index, episode_index, task_index, ...).
        final: pyarrow table of one row, the observation after the last action.
        facts: plain values: `features`, `setting`, `episode`, `levels`, `task`.
        videos: feature -> mp4 file.
    """

    frames: Any
    final: Any
    facts: dict[str, Any]
    videos: Mapping[str, Path] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.frames.num_rows


def encode_episode(
    demonstration: Demonstration, *, images: str = "png", folder: Path | None = None, stem: str = ""
) -> EncodedEpisode:
    """Turn a demonstration into tables.

    `action` is what is to be learned (the demonstration's labels, where noise was added),
    `executed_action` what was carried out.

    Args:
        demonstration: the episode.
        images: one of `STORAGES`.
        folder: for the videos, with `images="video"`.
        stem: beginning of the videos' names.

    Raises:
        InvalidOption: `images` is neither of the two.
    """
    if images not in STORAGES:
        raise InvalidOption(f"images={images!r} must be one of {STORAGES}")
    pa = layout.pyarrow()
    steps = len(demonstration)
    sheet = demonstration.spec_sheet
    features: dict[str, dict[str, Any]] = {}
    frames, final, videos = {}, {}, {}
    levels: dict[str, list[list[int]]] = {}
    for key, values in demonstration.observations.items():
        column = layout.column_of(key)
        features[column] = _describe_feature(key, values, sheet, images)
        if features[column]["dtype"] in ("image", "video"):
            levels[column] = count_levels(values[:-1]).tolist()
            if images == "png":
                frames[column] = _to_pictures(values[:-1])
            else:
                assert folder is not None
                videos[column] = folder / f"{stem}.{column}.mp4"
                _write_video(videos[column], values, _fps_of(demonstration))
            final[column] = _to_pictures(values[-1:])
        else:
            frames[column] = layout.to_column(values[:-1])
            final[column] = layout.to_column(values[-1:])
    labels = demonstration.actions if demonstration.labels is None else demonstration.labels
    ends = np.arange(steps) == steps - 1
    names = [entry["name"] for entry in sheet.get("action", ())] or None
    for column, values, what in (
        ("action", labels, names),
        ("executed_action", demonstration.actions, names),
        ("next.reward", demonstration.rewards[:, None], None),
        ("next.success", demonstration.successes[:, None], None),
        ("next.done", ends[:, None], None),
    ):
        features[column] = _feature(values.dtype.name, values.shape[1:], what)
        frames[column] = layout.to_column(values)
    facts = {
        "features": features,
        "fps": _fps_of(demonstration),
        "robot": sheet.get("robot", ""),
        "task": demonstration.instruction,
        "setting": {name: getattr(demonstration, name) for name in SETTING_FIELDS},
        "episode": {
            "env_id": demonstration.id,
            "seed": demonstration.seed,
            "success": demonstration.success,
            "terminated": demonstration.terminated,
            "options": json.dumps(demonstration.options, sort_keys=True),
            "instructions": list(demonstration.instructions),
        },
        "levels": levels,
    }
    return EncodedEpisode(pa.table(frames), pa.table(final), facts, videos)


def _describe_feature(
    key: str, values: NDArray[Any], sheet: Mapping[str, Any], images: str
) -> dict[str, Any]:
    if key.startswith("rgb_"):
        kind = "image" if images == "png" else "video"
        return _feature(kind, values.shape[1:], ["height", "width", "channels"])
    names = None
    if key == "proprio":
        names = [entry["name"] for entry in sheet.get("proprio", ())] or None
    return _feature(values.dtype.name, values.shape[1:] or (1,), names)


def _feature(dtype: str, shape: tuple[int, ...], names: list[str] | None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "names": names}


def _to_pictures(pictures: NDArray[np.uint8]) -> Any:
    """Return pictures as the column type of Hugging Face's `Image`: bytes and path of each."""
    pa = layout.pyarrow()
    packed = layout.encode_png(pictures)
    nothing = pa.nulls(len(packed), pa.string())
    return pa.StructArray.from_arrays([pa.array(packed, pa.binary()), nothing], ["bytes", "path"])


def _fps_of(demonstration: Demonstration) -> int:
    return max(1, round(float(demonstration.spec_sheet.get("control_hz", 20))))


def _write_video(path: Path, pictures: NDArray[np.uint8], fps: int) -> None:
    """Write H.264 in which every second picture can be sought, as LeRobot's own videos.

    The picture after the last action is in it too, so that sizes and times have a reserve.
    """
    ffmpeg = require("imageio_ffmpeg", "data", "a data set with videos")
    height, width = pictures.shape[1:3]
    if height % 2 or width % 2:
        raise InvalidOption(
            f"pictures of {height} x {width} pixels: a video needs even numbers; take images='png'"
        )
    options = ["-crf", str(CRF), "-g", "2", "-bf", "0"]
    write_h264(ffmpeg, path, pictures, (height, width), fps, options)


# An encoded episode on disk, between the process that played it and the data set


def save_episode(episode: EncodedEpisode, path: Path) -> None:
    """Write an encoded episode; `path` (.parquet) appears last, when all of it is there.

    Its videos must lie beside it.
    """
    layout.write_table(episode.final, _final_of(path))
    facts = {**episode.facts, "videos": {key: p.name for key, p in episode.videos.items()}}
    table = episode.frames.replace_schema_metadata({b"vla_gym": json.dumps(facts).encode()})
    layout.write_table(table, path)


def load_episode(path: Path) -> EncodedEpisode:
    """Read what `save_episode` wrote.

    Raises:
        InvalidDataset: a file of it is missing or damaged.
    """
    frames = layout.read_table(path)
    try:
        facts = json.loads(frames.schema.metadata[b"vla_gym"])
        videos = {key: path.with_name(name) for key, name in facts.pop("videos").items()}
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidDataset(f"{path} is no encoded episode ({error})") from error
    frames = frames.replace_schema_metadata(None)
    return EncodedEpisode(frames, layout.read_table(_final_of(path)), facts, videos)


def delete_episode(path: Path) -> None:
    """Delete an encoded episode, its main file first."""
    path.unlink(missing_ok=True)
    for other in path.parent.glob(f"{path.stem}.*"):
        other.unlink(missing_ok=True)


def _final_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.final.parquet")


# The data set


def write_dataset(
    demonstrations: Iterable[Demonstration], folder: str | Path, *, images: str = "png"
) -> Path:
    """Write demonstrations as a new data set, or add them to the one that is in the folder.

    Args:
        demonstrations: one in memory at a time; all with the same spaces.
        folder: of the data set.
        images: one of `STORAGES`.

    Returns:
        the folder.

    Raises:
        InvalidDataset: the folder's data set is damaged, or an episode has other features.
    """
    with tempfile.TemporaryDirectory() as work, DatasetWriter(folder) as writer:
        for number, demonstration in enumerate(demonstrations):
            writer.add(
                encode_episode(demonstration, images=images, folder=Path(work), stem=str(number))
            )
    return Path(folder)


class DatasetWriter:
    """Adds episodes to the data set of a folder, a new one where there is none.

    Files that an interrupted commit has left are deleted when it is opened. One process at a time
    may have a data set open for writing; readers are not disturbed.

    Raises:
        InvalidDataset: what is in the folder is damaged, or is no data set of vla_gym.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = self.folder / layout.MANIFEST
        if manifest.exists():
            self._manifest = layout.read_json(manifest)
            _check_version(self._manifest, manifest)
            self._clean()
        else:
            if (self.folder / layout.INFO).exists() and _has_rows(self.folder / layout.INFO):
                raise InvalidDataset(
                    f"{self.folder} holds a LeRobotDataset without {layout.MANIFEST}: another "
                    "program's, to which vla_gym does not add. Choose another folder"
                )
            self._manifest = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "vla_gym": __version__,
                "features": {},
                "fps": 0,
                "robot": "",
                "tasks": [],
                "settings": [],
                "levels": {},
                "episodes": 0,
                "frames": 0,
                "data_files": 0,
                "video_files": 0,
                "files": {},
            }
        self._open: list[EncodedEpisode] = []
        self._open_bytes = 0

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.commit()

    @property
    def episodes(self) -> int:
        """Number of episodes, those included that are not committed yet."""
        return self._manifest["episodes"] + len(self._open)

    def add(self, episode: EncodedEpisode) -> bool:
        """Add an episode, and return whether this has committed what was added so far.

        Raises:
            InvalidDataset: its features differ from those of the data set.
        """
        self._check_features(episode)
        self._open.append(episode)
        self._open_bytes += episode.frames.nbytes
        if self._open_bytes < FILE_BYTES:
            return False
        self.commit()
        return True

    def commit(self) -> None:
        """Write what was added: data files first, then the tables about them, the manifest last."""
        if not self._open:
            return
        state = json.loads(json.dumps(self._manifest))  # changed as a whole or not at all
        number = state["data_files"]
        rows, tables = [], []
        for episode in self._open:
            row, table = self._place(episode, state, number)
            rows.append(row)
            tables.append(table)
        pa = layout.pyarrow()
        written = {
            layout.data_path(number): pa.concat_tables(tables),
            layout.episodes_path(number): _to_rows(rows),
            layout.final_path(number): pa.concat_tables([e.final for e in self._open]),
        }
        for path, table in written.items():
            layout.write_table(table, self.folder / path)
            state["files"][path] = layout.find_digest(self.folder / path)
        state["data_files"] += 1
        self._manifest = state
        self._write_derived()
        self._open, self._open_bytes = [], 0

    def _check_features(self, episode: EncodedEpisode) -> None:
        new = episode.facts["features"]
        known = self._manifest["features"]
        if not known:
            self._manifest["features"] = new
            self._manifest["fps"] = episode.facts["fps"]
            self._manifest["robot"] = episode.facts["robot"]
            return

        def shapes(features: Mapping[str, Any]) -> dict[str, Any]:
            return {key: (f["dtype"], tuple(f["shape"])) for key, f in features.items()}

        old, asked = shapes(known), shapes(new)
        if old != asked:
            differences = "; ".join(
                f"{key}: {old.get(key, 'absent')} there, {asked.get(key, 'absent')} here"
                for key in sorted({*old, *asked})
                if old.get(key) != asked.get(key)
            )
            raise InvalidDataset(
                f"an episode of {episode.facts['setting']['id']} does not fit the data set in "
                f"{self.folder}: {differences}. All episodes of a data set have the same features: "
                "make another one, or leave out what differs (cameras, image_size, state, proprio)"
            )
        if self._manifest["robot"] != episode.facts["robot"]:
            self._manifest["robot"] = "several"

    def _place(
        self, episode: EncodedEpisode, state: dict[str, Any], number: int
    ) -> tuple[dict[str, Any], Any]:
        """Give an episode its numbers; return its row and its frames as the files hold them."""
        steps, first = len(episode), state["frames"]
        index = state["episodes"]
        task, setting = episode.facts["task"], episode.facts["setting"]
        for known, new in (("tasks", task), ("settings", setting)):
            if new not in state[known]:
                state[known].append(new)
        task_index = state["tasks"].index(task)
        columns = {
            "timestamp": (np.arange(steps) / state["fps"]).astype(np.float32),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, index),
            "index": np.arange(first, first + steps),
            "task_index": np.full(steps, task_index),
        }
        table = episode.frames
        for name, values in columns.items():
            table = table.append_column(name, layout.to_column(values))
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [task],
            "length": steps,
            "data/chunk_index": number // layout.CHUNK,
            "data/file_index": number % layout.CHUNK,
            "dataset_from_index": first,
            "dataset_to_index": first + steps,
            "meta/episodes/chunk_index": number // layout.CHUNK,
            "meta/episodes/file_index": number % layout.CHUNK,
            **episode.facts["episode"],
            "setting": state["settings"].index(setting),
        }
        for key, source in episode.videos.items():
            self._place_video(key, source, row, steps, state)
        state["video_files"] += bool(episode.videos)
        for key, levels in episode.facts["levels"].items():
            counts = np.array(levels)
            total = np.array(state["levels"].get(key, np.zeros((3, 256), int))) + counts
            state["levels"][key] = total.tolist()
            row |= _flatten(key, describe_images(counts, steps))
        for key in table.column_names:
            if key not in episode.facts["levels"]:
                row |= _flatten(key, describe(_read(table, key, state["features"])))
        state["episodes"] += 1
        state["frames"] += steps
        return row, table

    def _place_video(
        self, key: str, source: Path, row: dict[str, Any], steps: int, state: dict[str, Any]
    ) -> None:
        number = state["video_files"]  # a file for each episode: nothing is encoded twice
        target = self.folder / layout.video_path(key, number)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        state["files"][layout.video_path(key, number)] = layout.find_digest(target)
        row |= {
            f"videos/{key}/chunk_index": number // layout.CHUNK,
            f"videos/{key}/file_index": number % layout.CHUNK,
            f"videos/{key}/from_timestamp": 0.0,
            f"videos/{key}/to_timestamp": steps / state["fps"],
        }

    def _write_derived(self) -> None:
        """Write what follows from the manifest and the data files; the manifest comes last."""
        state = self._manifest
        _write_tasks(state["tasks"], self.folder / layout.TASKS)
        layout.write_json(self._make_stats(), self.folder / layout.STATS)
        layout.write_json(_make_info(state), self.folder / layout.INFO)
        for path in (layout.TASKS, layout.STATS, layout.INFO):
            state["files"][path] = layout.find_digest(self.folder / path)
        layout.write_json(state, self.folder / layout.MANIFEST)

    def _make_stats(self) -> dict[str, Any]:
        state = self._manifest
        features = _all_features(state["features"])
        numbers = [key for key, f in features.items() if f["dtype"] not in ("image", "video")]
        paths = [self.folder / layout.data_path(i) for i in range(state["data_files"])]
        tables = [layout.read_table(path, numbers) for path in paths]
        stats = {
            key: describe(np.concatenate([_read(table, key, features) for table in tables]))
            for key in numbers
        }
        for key, levels in state["levels"].items():
            stats[key] = describe_images(np.array(levels), state["frames"])
        return {
            key: {name: value.tolist() for name, value in found.items()}
            for key, found in sorted(stats.items())
        }

    def _clean(self) -> None:
        """Delete what an interrupted commit has left; write anew what it may have written."""
        known = self._manifest["files"]
        for kind in ("data", "meta/episodes", "meta/final", "videos"):
            for path in (self.folder / kind).rglob("*"):
                if path.is_file() and path.relative_to(self.folder).as_posix() not in known:
                    path.unlink()
        derived = (layout.TASKS, layout.STATS, layout.INFO)
        whole = [(self.folder / path).exists() for path in derived]
        if not all(whole) or any(
            layout.find_digest(self.folder / path) != known[path] for path in derived
        ):
            self._write_derived()


def _has_rows(info: Path) -> bool:
    return bool(layout.read_json(info).get("total_episodes"))


def _check_version(manifest: Mapping[str, Any], path: Path) -> None:
    if manifest.get("format") != FORMAT:
        raise InvalidDataset(f"{path} is damaged: it does not say format={FORMAT!r}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise InvalidDataset(
            f"{path} has format version {manifest.get('format_version')!r}; this vla_gym reads "
            f"{FORMAT_VERSION}. Install a later one"
        )


def _read(table: Any, key: str, features: Mapping[str, Any]) -> NDArray[Any]:
    feature = _all_features(features)[key]
    return layout.read_column(table[key], feature["shape"], feature["dtype"])


def _flatten(key: str, statistics: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return {f"stats/{key}/{name}": value.tolist() for name, value in statistics.items()}


def _to_rows(rows: list[dict[str, Any]]) -> Any:
    pa = layout.pyarrow()
    table = pa.Table.from_pylist(rows)
    for name, kind in (("seed", pa.int64()), ("instructions", pa.list_(pa.string()))):
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].cast(kind))
    return table


def _all_features(features: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **features,
        "timestamp": _feature("float32", (1,), None),
        **{
            name: _feature("int64", (1,), None)
            for name in ("frame_index", "episode_index", "index", "task_index")
        },
    }


def _make_info(state: Mapping[str, Any]) -> dict[str, Any]:
    features = _all_features(state["features"])
    videos = [key for key, feature in features.items() if feature["dtype"] == "video"]
    for key in videos:
        height, width, channels = features[key]["shape"]
        features[key] = features[key] | {
            "info": {
                "video.height": height,
                "video.width": width,
                "video.channels": channels,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": state["fps"],
                "has_audio": False,
            }
        }
    return {
        "codebase_version": "v3.0",
        "robot_type": state["robot"] or None,
        "total_episodes": state["episodes"],
        "total_frames": state["frames"],
        "total_tasks": len(state["tasks"]),
        "chunks_size": layout.CHUNK,
        "data_files_size_in_mb": FILE_BYTES // 2**20,
        "video_files_size_in_mb": 200,
        "fps": state["fps"],
        "splits": {"train": f"0:{state['episodes']}"},
        "data_path": layout.DATA_PATTERN,
        "video_path": layout.VIDEO_PATTERN if videos else None,
        "features": features,
    }


def _write_tasks(tasks: list[str], path: Path) -> None:
    """Write the tasks as pandas would: LeRobot looks a task up in the index of this table."""
    pa = layout.pyarrow()
    index = "__index_level_0__"
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), index: tasks})

    def column(name: str | None, field: str, kind: str, numpy: str) -> dict[str, Any]:
        return {
            "name": name,
            "field_name": field,
            "pandas_type": kind,
            "numpy_type": numpy,
            "metadata": None,
        }

    about = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [
            column("task_index", "task_index", "int64", "int64"),
            column(None, index, "unicode", "object"),
        ],
        "pandas_version": "2.2.0",
    }
    layout.write_table(table.replace_schema_metadata({b"pandas": json.dumps(about).encode()}), path)
