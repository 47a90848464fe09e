"""The records of an evaluation on disk: one SQLite database in the folder of the run.

An episode is on the disk as soon as it has ended, whatever happens next: each record is a
transaction of its own in a write-ahead log, which a killed process or a full disk leaves whole. A
folder can be continued, and what is finished is not played again; so a record also holds the
protocol that it was made under, and a folder takes one protocol per policy and task only.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shlex
import shutil
import sqlite3
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vla_gym.errors import InvalidOption
from vla_gym.evaluation.records import (
    TIME_FIELDS,
    Key,
    Record,
    describe_differences,
    describe_machine,
    now,
    versions_of,
)
from vla_gym.rollout import Trace

__all__ = ["RECORDS", "Store", "load_records", "load_runs", "load_trace", "merge"]

logger = logging.getLogger(__name__)

RECORDS = "records.sqlite"
LOCK = "records.lock"
FORMAT = 1
"""Of the database, as its `user_version`."""

_TABLES = f"""
BEGIN;
CREATE TABLE IF NOT EXISTS episodes (
    number INTEGER PRIMARY KEY,
    policy TEXT NOT NULL,
    id TEXT NOT NULL,
    seed INTEGER NOT NULL,
    perturbation TEXT NOT NULL,
    outcome TEXT NOT NULL,
    record TEXT NOT NULL,  -- JSON: all fields, these five too
    trace BLOB,            -- npz: what replays it
    UNIQUE (policy, id, seed, perturbation)
);
CREATE TABLE IF NOT EXISTS runs (
    number INTEGER PRIMARY KEY,
    facts TEXT NOT NULL    -- JSON: command, machine, versions, date
);
PRAGMA user_version = {FORMAT};
COMMIT;
"""


class Store:
    """The database of one folder, open for writing by one process at a time.

    Raises:
        InvalidOption: another process has it open, or a later version has made it.
        OSError: the disk is full, or cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = _lock(folder)
        try:
            self._database, _ = _connect(folder / RECORDS)
            with self._writing() as database:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")  # on the disk, not in its cache
                database.executescript(_TABLES)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(sqlite3.Error):  # somebody reads: the log stays beside it
            self._database.execute("PRAGMA journal_mode = DELETE")  # one file, to be copied
        self._database.close()
        self._lock.close()

    def append(self, record: Record, trace: Trace | None = None) -> None:
        """Write one record, over the one of the same key, and wait until it is on the disk."""
        with self._writing() as database:
            database.execute(
                "INSERT OR REPLACE INTO episodes VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
                (*record.key, record.outcome, record.to_json(), _pack(trace)),
            )

    def add_video(self, record: Record, video: str) -> Record:
        """Note the file of an episode's video, relative to the folder; return the new record."""
        record = replace(record, video=video)
        with self._writing() as database:
            database.execute(
                f"UPDATE episodes SET record = ? WHERE {_WHERE}", (record.to_json(), *record.key)
            )
        return record

    def add_run(self, **facts: Any) -> None:
        """Note a run: the given facts, the command line, the machine and the date."""
        run = {
            "date": now(),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "machine": describe_machine(),
            "versions": versions_of(("vla-gym", "gymnasium", "numpy")),
            **facts,
        }
        self.copy_run(run)

    def copy_run(self, run: dict[str, Any]) -> None:
        """Note a run that another folder has noted."""
        with self._writing() as database:
            text = json.dumps(run, ensure_ascii=False)
            database.execute("INSERT INTO runs (facts) VALUES (?)", (text,))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database:  # one transaction
                yield self._database
        except sqlite3.OperationalError as error:
            raise OSError(
                f"{self.folder / RECORDS} cannot be written: {error}. What it holds is whole; make "
                "room on the disk, and the same command goes on from there"
            ) from error


_WHERE = "policy = ? AND id = ? AND seed = ? AND perturbation = ?"


def load_records(folder: Path) -> list[Record]:
    """Return the records of a folder, also of one in work, in the order in which they came.

    Raises:
        InvalidOption: the database is damaged, or a later version has made it.
    """
    with _reading(folder) as ask:
        return [
            Record.from_json(text) for (text,) in ask("SELECT record FROM episodes ORDER BY number")
        ]


def load_runs(folder: Path) -> list[dict[str, Any]]:
    """Return what is known of each command that wrote into this folder, oldest first.

    Raises:
        InvalidOption: as `load_records`.
    """
    with _reading(folder) as ask:
        return [json.loads(text) for (text,) in ask("SELECT facts FROM runs ORDER BY number")]


def load_trace(folder: Path, key: Key) -> Trace | None:
    """Return what replays an episode, None where the folder has none of it.

    Raises:
        InvalidOption: as `load_records`.
    """
    with _reading(folder) as ask:
        found = ask(f"SELECT trace FROM episodes WHERE {_WHERE}", key)
        return _unpack(found[0][0]) if found and found[0][0] is not None else None


def merge(folders: Sequence[Path], out: Path) -> int:
    """Copy the episodes of several folders, such as the shards of one evaluation, into one.

    Where two hold the same episode, one with an outcome goes before one without. Merging again
    changes nothing.

    Returns:
        How many episodes `out` holds.

    Raises:
        InvalidOption: a folder has no records, or two tell different things of one episode, or
            have played one policy and task under different protocols.
    """
    found = {folder: load_records(folder) for folder in folders}
    for folder, records in found.items():
        if not records:
            raise InvalidOption(f"{folder} holds no records of an evaluation")
    with Store(out) as store:
        known = {record.key: record for record in load_records(out)}
        protocols = {_group(record): (record.protocol, out) for record in known.values()}
        runs = load_runs(out)
        for folder, records in found.items():
            for record in records:
                protocol, there = protocols.setdefault(_group(record), (record.protocol, folder))
                if protocol != record.protocol:
                    raise InvalidOption(
                        f"{folder} and {there} have played {record.policy} on {record.id} under "
                        f"different protocols "
                        f"({describe_differences(protocol, record.protocol)}); they do not merge"
                    )
                other = known.get(record.key)
                if other is not None and (other.counts or not record.counts):
                    _refuse_contradiction(other, record, folder)
                    continue
                if record.video:
                    (out / record.video).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / record.video, out / record.video)
                store.append(record, load_trace(folder, record.key))
                known[record.key] = record
            for run in load_runs(folder):
                if run not in runs:
                    store.copy_run(run)
                    runs.append(run)
    return len(known)


def _group(record: Record) -> tuple[str, str, str]:
    return record.policy, record.id, record.perturbation


def _refuse_contradiction(known: Record, record: Record, folder: Path) -> None:
    free = (*TIME_FIELDS, "video", "episode")
    blank = {name: getattr(known, name) for name in free}
    if record.counts and replace(record, **blank) != known:
        raise InvalidOption(
            f"{folder} tells of {record.policy} on {record.id}, seed {record.seed}: "
            f"{record.outcome} after {record.length} steps; another folder: {known.outcome} after "
            f"{known.length}. One protocol and one seed make one episode: one of the two is wrong"
        )


def _lock(folder: Path) -> io.TextIOWrapper:
    file = (folder / LOCK).open("a")
    try:
        import fcntl
    except ImportError:  # Windows has none; two evaluations into one folder go undetected there
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InvalidOption(
            f"another evaluation is writing into {folder}; wait for it or choose another folder"
        ) from error
    return file


def _connect(path: Path) -> tuple[sqlite3.Connection, int]:
    """Return the database and its format, 0 where nothing is in it yet."""
    try:
        database = sqlite3.connect(path, timeout=30.0)
        (found,) = database.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise InvalidOption(
            f"{path} cannot be read ({error}); choose another folder, or remove the file"
        ) from error
    if found > FORMAT:
        database.close()
        raise InvalidOption(
            f"{path} is of format {found}, this version of vla_gym reads up to {FORMAT}: update it"
        )
    return database, found


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[Callable[..., list[Any]]]:
    """Give a function that answers a query with rows: none where there is no database yet."""
    if not (folder / RECORDS).exists():
        yield lambda *query: []
        return
    database, version = _connect(folder / RECORDS)

    def ask(query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        return database.execute(query, values).fetchall() if version else []

    try:
        yield ask
    except (sqlite3.DatabaseError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise InvalidOption(f"{folder / RECORDS} is damaged ({error})") from error
    finally:
        database.close()


def _pack(trace: Trace | None) -> bytes | None:
    if trace is None:
        return None
    file = io.BytesIO()
    np.savez_compressed(file, actions=trace.actions, digests=trace.digests)
    return file.getvalue()


def _unpack(blob: bytes) -> Trace:
    with np.load(io.BytesIO(blob), allow_pickle=False) as found:
        return Trace(found["actions"], found["digests"])
