"""The LeRobotDataset v3 layout: paths, features, tables. Written and read without lerobot.

    meta/info.json                              features, counts, path patterns
    meta/stats.json                             statistics of every feature
    meta/tasks.parquet                          wording of a command -> task_index
    meta/episodes/chunk-000/file-000.parquet    one row per episode
    data/chunk-000/file-000.parquet             one row per frame
    videos/<key>/chunk-000/file-000.mp4         pictures, where they are not in the data files

What LeRobot has no place for lies in files that it passes over:

    meta/vla_gym.json                           envs, keywords, versions; size and SHA-256 of files
    meta/final/chunk-000/file-000.parquet       one row per episode: what is seen after the end

Source: lerobot 0.4.4, `datasets/lerobot_dataset.py` and `datasets/utils.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium.error import Error
from numpy.typing import NDArray

from vla_gym.deps import require

__all__ = [
    "CHUNK",
    "INFO",
    "MANIFEST",
    "STATS",
    "TASKS",
    "InvalidDataset",
    "column_of",
    "data_path",
    "decode_png",
    "delete_unfinished",
    "encode_png",
    "episodes_path",
    "final_path",
    "find_digest",
    "key_of",
    "pyarrow",
    "read_column",
    "read_json",
    "read_table",
    "replace_file",
    "to_column",
    "video_path",
    "write_json",
    "write_table",
]

INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
MANIFEST = "meta/vla_gym.json"
CHUNK = 1000
"""Files of one kind in a chunk's folder."""

PICTURES = "observation.images."
COLUMNS = {"proprio": "observation.state", "state": "observation.environment_state"}
"""Observation key -> LeRobot's name of its column."""
KEYS = {column: key for key, column in COLUMNS.items()}

DATA_PATTERN = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATTERN = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


class InvalidDataset(Error, ValueError):
    """A data set, or a file of it, is damaged, incomplete or of another kind."""


def data_path(number: int) -> str:
    """Return the path of the data file with this number, below the data set's folder."""
    return f"data/{_place(number)}.parquet"


def episodes_path(number: int) -> str:
    """Return the path of the file of episode rows with this number."""
    return f"meta/episodes/{_place(number)}.parquet"


def final_path(number: int) -> str:
    """Return the path of the file of last observations with this number."""
    return f"meta/final/{_place(number)}.parquet"


def video_path(key: str, number: int) -> str:
    """Return the path of the video of a feature with this number."""
    return f"videos/{key}/{_place(number)}.mp4"


def _place(number: int) -> str:
    return f"chunk-{number // CHUNK:03d}/file-{number % CHUNK:03d}"


def column_of(key: str) -> str:
    """Return LeRobot's name for an observation key: `rgb_wrist` -> `observation.images.wrist`."""
    if key.startswith("rgb_"):
        return PICTURES + key.removeprefix("rgb_")
    return COLUMNS.get(key, f"observation.{key}")


def key_of(column: str) -> str:
    """Return the observation key of a column; the inverse of `column_of`."""
    if column.startswith(PICTURES):
        return "rgb_" + column.removeprefix(PICTURES)
    return KEYS.get(column, column.removeprefix("observation."))


def pyarrow() -> ModuleType:
    """Return the package pyarrow.

    Raises:
        DependencyNotInstalled: it is missing; the message has the command.
    """
    return require("pyarrow", "data", "a data set")


# Tables


def to_column(values: Any) -> Any:
    """Return an array (N, ...) as a pyarrow array: numbers, lists of fixed length, or nested."""
    pa = pyarrow()
    array = np.ascontiguousarray(values)
    found = pa.array(array.reshape(-1))
    shape = array.shape[1:]
    if shape == (1,):  # LeRobot writes a feature of shape (1,) as a plain number
        return found
    for size in reversed(shape):
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found


def read_column(column: Any, shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """Return a column of a table as an array (N, *shape); shape (1,) gives (N, 1)."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False).astype(dtype, copy=False).reshape(-1, *shape)


def write_table(table: Any, path: Path) -> None:
    """Write a parquet file that appears when it is complete; one row group for each of its chunks.

    Pictures are PNG already, so that nothing else is compressed twice.
    """
    parquet = require("pyarrow.parquet", "data", "a data set")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        pictures = [name for name in table.column_names if name.startswith(PICTURES)]
        others = [name for name in table.column_names if name not in pictures]
        compression = {name: "snappy" for name in others}
        compression |= {f"{name}.{part}": "none" for name in pictures for part in ("bytes", "path")}
        parquet.write_table(
            table, temporary, compression=compression, use_dictionary=False, row_group_size=256
        )
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Return a parquet file as a table.

    Raises:
        InvalidDataset: it is missing, damaged or lacks a column; the message names it.
    """
    pa = pyarrow()
    parquet = require("pyarrow.parquet", "data", "a data set")
    try:
        return parquet.ParquetFile(path).read(columns=None if columns is None else list(columns))
    except FileNotFoundError as error:
        raise InvalidDataset(f"{path} is missing; fetch or make the data set again") from error
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InvalidDataset(
            f"{path} is damaged or no parquet file ({_first_line(error)}); fetch or make it again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# Pictures


def encode_png(pictures: NDArray[np.uint8]) -> list[bytes]:
    """Return each picture (H, W, 3) as PNG: exact, and fast rather than small."""
    image = require("PIL.Image", "data", "pictures of a data set")
    found = []
    for picture in pictures:
        buffer = io.BytesIO()
        image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG", compress_level=1)
        found.append(buffer.getvalue())
    return found


def decode_png(content: bytes, where: str) -> NDArray[np.uint8]:
    """Return the picture (H, W, 3) of a PNG (or another format that Pillow reads).

    Raises:
        InvalidDataset: it is no whole picture; the message has `where`.
    """
    image = require("PIL.Image", "data", "pictures of a data set")
    try:
        with image.open(io.BytesIO(content)) as opened:
            return np.array(opened if opened.mode == "RGB" else opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        raise InvalidDataset(f"{where}: a picture is damaged ({error})") from error


# Files


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file that appears when it is complete."""
    replace_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InvalidDataset: it is missing or holds no object; the message names it.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InvalidDataset(
            f"{path} is missing: {path.parent.parent} is no LeRobotDataset of version 3, or it is "
            "incomplete"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidDataset(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InvalidDataset(f"{path} is damaged: it holds no JSON object")
    return value


def replace_file(path: Path, content: bytes) -> None:
    """Write a file; a killed process leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def delete_unfinished(folder: Path) -> None:
    """Delete what processes that were killed have half written there; nobody else may write."""
    for temporary in folder.glob(".*.part"):
        temporary.unlink(missing_ok=True)


def find_digest(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file, as the manifest has them.

    Raises:
        InvalidDataset: the file is missing.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    except FileNotFoundError as error:
        raise InvalidDataset(f"{path} is missing; fetch or make the data set again") from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
