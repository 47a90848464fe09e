"""Read a LeRobotDataset v3: its episodes as demonstrations, its frames as windows for training."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.data import layout
from vla_gym.data.demos import Demonstration, InvalidDemonstration
from vla_gym.data.layout import InvalidDataset
from vla_gym.data.writer import FORMAT, FORMAT_VERSION
from vla_gym.deps import require
from vla_gym.errors import InvalidOption

__all__ = ["Dataset", "EpisodeRow", "Frames"]

STORES = ("packed", "unpacked", "memory")


@dataclass(frozen=True)
class EpisodeRow:
    """One episode of a data set, without its arrays.

    Attributes:
        index: its number in the data set.
        env_id: of its env, `""` in another program's data set.
        seed: of `env.reset`, None where none is known.
        options: of `env.reset`.
        success: whether the task was solved after any step, None where it is not known.
        instruction: the command.
        start, stop: its frames among those of the data set.
        row: all columns of LeRobot's table, statistics left out.
    """

    index: int
    env_id: str
    seed: int | None
    options: Mapping[str, Any]
    success: bool | None
    instruction: str
    start: int
    stop: int
    row: Mapping[str, Any]

    def __len__(self) -> int:
        return self.stop - self.start


class Dataset:
    """A LeRobotDataset v3 on disk, opened for reading: ours, or another program's.

    Opening one reads its tables but no frame. `verify` compares every file with its checksum.

    Args:
        folder: of the data set, with `meta/info.json` in it.
        verify: compare the content of all files with their SHA-256, not only their sizes.

    Attributes:
        folder: as given.
        info: content of `meta/info.json`.
        features: LeRobot's features, column -> dtype, shape, names.
        settings: for each setting that episodes were recorded under (see `EpisodeRow.row`):
            id, action_mode, keywords, simulator, versions, source, spec_sheet. Empty in another
            program's data set.
        tasks: wordings of the commands; `task_index` counts them.
        episodes: one `EpisodeRow` each.

    Raises:
        InvalidDataset: a file is missing, truncated or damaged; the message names it.
    """

    def __init__(self, folder: str | os.PathLike[str], *, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.info = layout.read_json(self.folder / layout.INFO)
        manifest = self.folder / layout.MANIFEST
        self._manifest = _read_manifest(manifest) if manifest.exists() else {}
        try:
            version, self.features = self.info["codebase_version"], dict(self.info["features"])
            self.fps = float(self.info["fps"])
            counts = self.info["total_episodes"], self.info["total_frames"]
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidDataset(
                f"{self.folder / layout.INFO} is no LeRobotDataset's: {error!r}"
            ) from error
        if not str(version).startswith("v3."):
            raise InvalidDataset(
                f"{self.folder} is a LeRobotDataset {version}; this reads v3.x. LeRobot's own "
                "converter makes one of an older one"
            )
        self._check_files(verify)
        self.settings: list[dict[str, Any]] = self._manifest.get("settings", [])
        self.tasks = _read_tasks(self.folder / layout.TASKS)
        self.episodes = self._read_episodes()
        found = len(self.episodes), sum(map(len, self.episodes))
        if found != counts:
            raise InvalidDataset(
                f"{self.folder / layout.INFO} says {counts[0]} episodes with {counts[1]} frames, "
                f"meta/episodes has {found[0]} with {found[1]}; the data set is incomplete"
            )

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.episodes)

    @property
    def frames_count(self) -> int:
        """Number of frames of all episodes."""
        return sum(map(len, self.episodes))

    @property
    def env_ids(self) -> list[str]:
        """Ids of the envs, each once, in the order in which they appear."""
        return list(dict.fromkeys(episode.env_id for episode in self.episodes))

    @cached_property
    def statistics(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Statistics of every feature by our names: `proprio`, `rgb_primary`, `action`, ...

        Each has min, max, mean, std, count, q01, q10, q50, q90 and q99; pictures in [0, 1] with
        the shape (3, 1, 1).
        """
        stats = layout.read_json(self.folder / layout.STATS)
        return {
            layout.key_of(key): {name: np.asarray(v, np.float64) for name, v in found.items()}
            for key, found in stats.items()
        }

    @property
    def picture_keys(self) -> list[str]:
        """Observation keys of the pictures, such as `rgb_primary`."""
        return [
            layout.key_of(key)
            for key, feature in self.features.items()
            if feature["dtype"] in ("image", "video")
        ]

    @cached_property
    def numbers(self) -> dict[str, NDArray[Any]]:
        """All that is no picture, by our names: key -> array (frames, ...), read once.

        Observations have their keys (`proprio`), the rest LeRobot's (`action`, `next.reward`,
        `task_index`). `action` is what is to be learned, `executed_action` what was carried out.
        """
        names = {
            key: feature
            for key, feature in self.features.items()
            if feature["dtype"] not in ("image", "video", "string")
        }
        parts: dict[str, list[NDArray[Any]]] = {key: [] for key in names}
        for path in self._data_files():
            table = layout.read_table(path, [*names])
            for key, feature in names.items():
                parts[key].append(_get(table, key, feature, path))
        found = {layout.key_of(key): np.concatenate(arrays) for key, arrays in parts.items()}
        if len(found["index"]) != self.frames_count:
            raise InvalidDataset(
                f"{self.folder / 'data'} holds {len(found['index'])} frames, {layout.INFO} says "
                f"{self.frames_count}; the data set is incomplete"
            )
        return found

    def load(self, number: int) -> Demonstration:
        """Return an episode as it was recorded; of videos, what they have kept of the pictures.

        Raises:
            IndexError: there is no such episode.
            InvalidDataset: a file is damaged, or another program has written the data set: an
                episode of it has no env and no last observation. `frames()` reads those.
        """
        episode = self.episodes[number]
        if not self.settings:
            raise InvalidDataset(
                f"{self.folder} has no {layout.MANIFEST}: its episodes have no env and no last "
                "observation, so they are no demonstrations; Dataset.frames reads them"
            )
        path = self._data_file(episode)
        table = layout.read_table(path)
        first = int(layout.read_column(table["index"], (), "int64")[0])
        table = table.slice(episode.start - first, len(episode))
        final_path = self.folder / layout.final_path(self._file_number(episode))
        final = layout.read_table(final_path).slice(episode.index - self._first_of(episode), 1)
        observations = {}
        for column, feature in self.features.items():
            if not column.startswith("observation."):
                continue
            last = _get(final, column, feature, final_path)
            if feature["dtype"] == "video":
                values = self._read_video(episode, column)
            else:
                values = _get(table, column, feature, path)
            key = layout.key_of(column)
            observations[key] = np.concatenate([values, last])

        def get(column: str) -> NDArray[Any]:
            return _get(table, column, self.features[column], path)

        row = episode.row
        try:
            return Demonstration(
                observations=observations,
                actions=get("executed_action"),
                labels=get("action"),
                rewards=get("next.reward")[:, 0],
                successes=get("next.success")[:, 0],
                success=row["success"],
                terminated=row["terminated"],
                instruction=episode.instruction,
                instructions=tuple(row["instructions"]),
                seed=episode.seed,
                options=episode.options,
                **self.settings[row["setting"]],
            )
        except (InvalidDemonstration, KeyError, IndexError, TypeError) as error:
            raise InvalidDataset(f"{path}, episode {number}: {error}") from error

    def demonstrations(self) -> Iterator[Demonstration]:
        """Yield all episodes, one in memory at a time."""
        return map(self.load, range(len(self)))

    def frames(self, **options: Any) -> Frames:
        """Return the frames as windows for training; see `Frames`."""
        return Frames(self, **options)

    def _data_files(self) -> list[Path]:
        """Return the paths of the data files in the order of their frames."""
        return list(dict.fromkeys(map(self._data_file, self.episodes)))

    def _data_file(self, episode: EpisodeRow) -> Path:
        pattern = self.info.get("data_path", layout.DATA_PATTERN)
        row = episode.row
        return self.folder / pattern.format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )

    def _file_number(self, episode: EpisodeRow) -> int:
        row = episode.row
        return row["data/chunk_index"] * layout.CHUNK + row["data/file_index"]

    def _first_of(self, episode: EpisodeRow) -> int:
        """Return the number of the first episode in the file of this one."""
        number = self._file_number(episode)
        return next(e.index for e in self.episodes if self._file_number(e) == number)

    def _read_pictures(self, episode: EpisodeRow, column: str) -> NDArray[np.uint8]:
        """Return the pictures of an episode, uint8 (T, H, W, 3)."""
        feature = self.features[column]
        if feature["dtype"] == "video":
            return self._read_video(episode, column)
        path = self._data_file(episode)
        table = layout.read_table(path, [column, "index"])
        first = int(layout.read_column(table["index"], (), "int64")[0])
        return _get(table.slice(episode.start - first, len(episode)), column, feature, path)

    def _read_video(self, episode: EpisodeRow, column: str) -> NDArray[np.uint8]:
        row = episode.row
        pattern = self.info.get("video_path") or layout.VIDEO_PATTERN
        path = self.folder / pattern.format(
            video_key=column,
            chunk_index=row[f"videos/{column}/chunk_index"],
            file_index=row[f"videos/{column}/file_index"],
        )
        first = round(float(row[f"videos/{column}/from_timestamp"]) * self.fps)
        return _read_video(path, first, len(episode), self.features[column]["shape"])

    def _check_files(self, verify: bool) -> None:
        """Compare the files with the manifest: their sizes, or their contents."""
        for name, known in self._manifest.get("files", {}).items():
            path = self.folder / name
            if not path.is_file():
                raise InvalidDataset(f"{path} is missing; fetch or make the data set again")
            size = path.stat().st_size
            if size != known["bytes"]:
                raise InvalidDataset(
                    f"{path} is damaged: {size} bytes instead of {known['bytes']}. Fetch it again; "
                    "if a collection was cut off just now, the same command repairs it"
                )
            if verify and layout.find_digest(path) != known:
                raise InvalidDataset(
                    f"{path} is damaged: its content differs from its SHA-256; fetch it again"
                )

    def _read_episodes(self) -> list[EpisodeRow]:
        files = sorted((self.folder / "meta/episodes").glob("*/*.parquet"))
        if self._manifest:
            known = self._manifest["files"]
            files = [f for f in files if f.relative_to(self.folder).as_posix() in known]
        found = []
        for path in files:
            table = layout.read_table(path)
            table = table.select([n for n in table.column_names if not n.startswith("stats/")])
            try:
                found += [_to_episode(row) for row in table.to_pylist()]
            except (KeyError, TypeError, ValueError) as error:
                raise InvalidDataset(f"{path} is no table of episodes: {error!r}") from error
        found.sort(key=lambda episode: episode.index)
        return found


class Frames:
    """The frames of a data set as windows: a map-style data set for `torch.utils.data.DataLoader`.

    Item i belongs to frame i of the chosen episodes and holds

    - for each observation key, `history` frames, the last of them frame i itself. Where the episode
      has not so many yet its first one is repeated. `history_is_pad` (history,) bool says where.
    - `action` (future, n) and, if asked for, other columns of the steps from frame i on. Beyond the
      episode's end the last one is repeated; `action_is_pad` (future,) bool says where.
    - `instruction` (str), `task_index`, `env_index` (place of the env's id in `Dataset.env_ids`),
      `episode_index`, `frame_index`.

    It can be pickled (worker processes open the files anew) and reads from the disk what it needs:

    - `store="packed"`: PNGs as they are, memory-mapped from a copy in an uncompressed file that is
      made once in `cache`. A video's frames are unpacked all the same.
    - `store="unpacked"`: plain pixels, memory-mapped. Largest on disk, fastest: nothing is decoded.
    - `store="memory"`: plain pixels in memory.

    Args:
        dataset: what to read.
        history: frames of observation.
        future: steps of action.
        keys: observation keys; None is all of them.
        columns: further columns that go with the actions, such as `"next.reward"`.
        episodes: numbers of the episodes; None is all of them.
        store: as above.
        cache: folder of the copies; default `.cache` in the data set's folder. A copy belongs to
            the content of its data set; that of an older one is deleted.
        image_size: of the pictures, which are resized (bilinear, averaged where they shrink): once
            for `"unpacked"` and `"memory"`, whenever they are read for `"packed"`. None: as they
            were recorded.

    Raises:
        InvalidOption: an argument is not valid.
        InvalidDataset: a file is damaged.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        history: int = 1,
        future: int = 1,
        keys: Sequence[str] | None = None,
        columns: Sequence[str] = (),
        episodes: Sequence[int] | None = None,
        store: str = "packed",
        cache: str | os.PathLike[str] | None = None,
        image_size: int | None = None,
    ) -> None:
        if history < 1 or future < 1:
            raise InvalidOption(f"history={history} and future={future} must be at least 1")
        if image_size is not None and image_size < 1:
            raise InvalidOption(f"image_size={image_size} must be at least 1")
        if store not in STORES:
            raise InvalidOption(f"store={store!r} must be one of {STORES}")
        known = [layout.key_of(key) for key in dataset.features if key.startswith("observation.")]
        keys = known if keys is None else list(keys)
        for name, valid in ((keys, known), (columns, dataset.features)):
            if unknown := [key for key in name if key not in valid]:
                raise InvalidOption(f"{dataset.folder} has no {unknown}; it has {list(valid)}")
        chosen = range(len(dataset)) if episodes is None else [int(i) for i in episodes]
        if bad := [i for i in chosen if not 0 <= i < len(dataset)]:
            raise InvalidOption(f"{dataset.folder} has {len(dataset)} episodes, none of them {bad}")
        self.dataset, self.history, self.future = dataset, history, future
        self.keys, self.columns = keys, list(columns)
        self.episodes = list(chosen)
        self._pictures = {
            key: _PictureStore(dataset, layout.column_of(key), store, cache, image_size)
            for key in keys
            if key in dataset.picture_keys
        }
        rows = [dataset.episodes[i] for i in self.episodes]
        starts, stops = [row.start for row in rows], [row.stop for row in rows]
        lengths = [len(row) for row in rows]
        nothing = np.zeros(0, np.int64)
        self._frame = np.concatenate([nothing, *map(np.arange, starts, stops)])
        self._start = np.repeat(starts, lengths).astype(np.int64)
        self._stop = np.repeat(stops, lengths).astype(np.int64)
        ids = dataset.env_ids
        self.env_index = np.repeat([ids.index(row.env_id) for row in rows], lengths).astype(
            np.int64
        )
        """The env of each item, for sampling with balance."""

    def __len__(self) -> int:
        return len(self._frame)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one item."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no frame {index} among {len(self)}")
        return {key: value[0] for key, value in self.batch([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several items; PyTorch's loaders call this."""
        batch = self.batch(indices)
        return [{key: value[i] for key, value in batch.items()} for i in range(len(indices))]

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> dict[str, Any]:
        """Return several items as one: arrays with a leading axis, `instruction` a list of str."""
        chosen = np.asarray(indices, np.int64)
        frame, start, stop = self._frame[chosen], self._start[chosen], self._stop[chosen]
        past = frame[:, None] + np.arange(1 - self.history, 1)
        ahead = frame[:, None] + np.arange(self.future)
        numbers, dataset = self.dataset.numbers, self.dataset
        seen = np.maximum(past, start[:, None])  # (B, history)
        done = np.minimum(ahead, stop[:, None] - 1)  # (B, future)
        found: dict[str, Any] = {}
        for key in self.keys:
            store = self._pictures.get(key)
            found[key] = numbers[key][seen] if store is None else store.read(seen)
        found["history_is_pad"] = past < start[:, None]
        for key in ("action", *self.columns):
            found[key] = numbers[layout.key_of(key)][done]
        found["action_is_pad"] = ahead >= stop[:, None]
        for key in ("task_index", "episode_index", "frame_index"):
            found[key] = numbers[key][frame, 0]
        found["env_index"] = self.env_index[chosen]
        found["instruction"] = [dataset.tasks[i] for i in found["task_index"]]
        return found


class _PictureStore:
    """The pictures of one column, by frame, in one of `STORES`; opened at the first use."""

    def __init__(
        self,
        dataset: Dataset,
        column: str,
        store: str,
        cache: str | os.PathLike[str] | None,
        size: int | None,
    ) -> None:
        self._dataset, self._column = dataset, column
        self._recorded = tuple(dataset.features[column]["shape"])
        self._shape = self._recorded if size is None else (size, size, 3)
        packed = store == "packed" and dataset.features[column]["dtype"] == "image"
        self._store = "packed" if packed else "unpacked" if store == "packed" else store
        folder = dataset.folder / ".cache" if cache is None else Path(cache)
        resized = "" if packed or self._shape == self._recorded else f"{size}."
        self._name = f"{dataset.folder.name}.{column}.{resized}"
        ending = "arrow" if packed else "npy"
        content = _name_content(dataset)
        self._path = folder / f"{self._name}{content}.{ending}"
        self._others = f"{self._name}{'[0-9a-f]' * len(content)}.{ending}"
        self._opened: Any = None

    def __getstate__(self) -> dict[str, Any]:
        keep = self._store == "memory"  # pixels in memory are shared by a fork, copied by a spawn
        return {**self.__dict__, "_opened": self._opened if keep else None}

    def read(self, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures of these frames, uint8 (*frames.shape, H, W, 3)."""
        if self._opened is None:
            self._opened = self._open()
        flat = frames.reshape(-1)
        if self._store == "packed":
            where = f"{self._dataset.folder} ({self._column})"
            found = np.empty((len(flat), *self._shape), np.uint8)
            for place, frame in enumerate(flat):
                picture = layout.decode_png(self._opened[int(frame)].as_py(), where)
                if picture.shape != self._recorded:
                    raise InvalidDataset(
                        f"{where}: frame {frame} has the shape {picture.shape}, not "
                        f"{self._recorded}"
                    )
                found[place] = _resize(picture, self._shape)
        else:
            found = np.asarray(self._opened[flat])
        return found.reshape(*frames.shape, *self._shape)

    def _open(self) -> Any:
        if self._store == "memory":
            return np.concatenate([self._read_episode(e) for e in self._dataset.episodes])
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            for old in self._path.parent.glob(self._others):
                old.unlink(missing_ok=True)
            temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.part")
            try:
                (self._pack if self._store == "packed" else self._unpack)(temporary)
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
        if self._store == "packed":
            pa = layout.pyarrow()
            with pa.memory_map(str(self._path)) as file:
                return pa.ipc.open_file(file).read_all()["bytes"]
        return np.load(self._path, mmap_mode="r")

    def _pack(self, path: Path) -> None:
        pa = layout.pyarrow()
        schema = pa.schema([("bytes", pa.large_binary())])
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for source in self._dataset._data_files():
                column = layout.read_table(source, [self._column])[self._column]
                content = column.combine_chunks().field("bytes").cast(pa.large_binary())
                writer.write_table(pa.table({"bytes": content}))

    def _unpack(self, path: Path) -> None:
        count = self._dataset.frames_count
        pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *self._shape))
        for episode in self._dataset.episodes:
            pixels[episode.start : episode.stop] = self._read_episode(episode)
        pixels.flush()

    def _read_episode(self, episode: EpisodeRow) -> NDArray[np.uint8]:
        pictures = self._dataset._read_pictures(episode, self._column)
        if self._shape == self._recorded:
            return pictures
        return np.stack([_resize(picture, self._shape) for picture in pictures])


def _resize(picture: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if picture.shape == shape:
        return picture
    image = require("PIL.Image", "data", "pictures of another size")
    height, width = shape[:2]
    return np.asarray(image.fromarray(picture).resize((width, height), image.Resampling.BILINEAR))


def _name_content(dataset: Dataset) -> str:
    """Return a name for what a data set holds: its table files say it."""
    return layout.find_digest(dataset.folder / layout.INFO)["sha256"][:8] + (
        layout.find_digest(dataset.folder / layout.STATS)["sha256"][:8]
        if (dataset.folder / layout.STATS).exists()
        else ""
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = layout.read_json(path)
    try:
        valid = manifest["format"] == FORMAT and isinstance(manifest["files"], dict)
        version = manifest["format_version"]
    except KeyError as error:
        raise InvalidDataset(f"{path} is damaged: it lacks {error}") from error
    if not valid:
        raise InvalidDataset(f"{path} is damaged: it does not say format={FORMAT!r}")
    if version != FORMAT_VERSION:
        raise InvalidDataset(
            f"{path} has format version {version!r}; this vla_gym reads {FORMAT_VERSION}. "
            "Install a later one"
        )
    return manifest


def _read_tasks(path: Path) -> list[str]:
    table = layout.read_table(path)
    texts = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(texts) != 1:
        raise InvalidDataset(f"{path} is no table of tasks: its columns are {table.column_names}")
    pairs = zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True)
    tasks = [text for _, text in sorted(pairs)]
    return tasks


def _to_episode(row: dict[str, Any]) -> EpisodeRow:
    return EpisodeRow(
        index=row["episode_index"],
        env_id=row.get("env_id", ""),
        seed=row.get("seed"),
        options=json.loads(row.get("options", "{}")),
        success=row.get("success"),
        instruction=row["tasks"][0],
        start=row["dataset_from_index"],
        stop=row["dataset_to_index"],
        row=row,
    )


def _get(table: Any, column: str, feature: Mapping[str, Any], path: Path) -> NDArray[Any]:
    """Return a column as an array (N, *shape), pictures decoded.

    Raises:
        InvalidDataset: it is absent or has another shape or type.
    """
    if column not in table.column_names:
        raise InvalidDataset(f"{path} has no column {column}; it has {table.column_names}")
    where = f"{path}, column {column}"
    shape = tuple(feature["shape"])
    if feature["dtype"] in ("image", "video"):
        packed = [cell["bytes"] for cell in table[column].to_pylist()]
        pictures = [layout.decode_png(content, where) for content in packed]
        if any(picture.shape != shape for picture in pictures):
            raise InvalidDataset(f"{where}: a picture has another shape than {shape}")
        return np.stack(pictures) if pictures else np.zeros((0, *shape), np.uint8)
    try:
        return layout.read_column(table[column], shape, feature["dtype"])
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InvalidDataset(f"{where} has not the shape {shape}: {error}") from error


def _read_video(path: Path, first: int, count: int, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return pictures of a video, uint8 (count, H, W, 3), from number `first` on."""
    ffmpeg = require("imageio_ffmpeg", "data", "a data set with videos").get_ffmpeg_exe()
    if not path.is_file():
        raise InvalidDataset(f"{path} is missing; fetch or make the data set again")
    needed = first + count
    command = [ffmpeg, "-v", "error", "-threads", "1", "-i", str(path), "-frames:v", str(needed)]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    pixels = np.frombuffer(done.stdout, np.uint8)
    if done.returncode or pixels.size != needed * math.prod(shape):
        why = done.stderr.decode(errors="replace").strip().splitlines()
        raise InvalidDataset(
            f"{path} is damaged, too short or of another size: {needed} pictures of the shape "
            f"{tuple(shape)} are needed, it gives {pixels.size} bytes"
            + (f" ({why[-1]})" if why else "")
        )
    return pixels.reshape(needed, *shape)[first:]
