"""Records on disk: durable, continued, merged."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import signal
import sqlite3
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_gym.errors import InvalidOption
from vla_gym.evaluation.records import Record
from vla_gym.evaluation.store import RECORDS, Store, load_records, load_runs, load_trace, merge
from vla_gym.rollout import Trace


def make(seed=0, outcome="failure", policy="p", **fields):
    return Record(policy, "VLA/Toy-Reach-v0", seed, seed, outcome, {"horizon": 50}, **fields)


def test_a_record_survives_the_database(tmp_path):
    record = make(3, "success", instruction='say "hé"\n', episode_return=-1.5)
    record = dataclasses.replace(record, options={"chain": 3}, chain_length=4, attempts=2)
    with Store(tmp_path) as store:
        store.append(record)
        assert load_records(tmp_path) == [record]  # also while it is open
    assert load_records(tmp_path) == [record]
    assert {path.name for path in tmp_path.iterdir()} == {RECORDS, "records.lock"}  # no log left


def test_a_later_record_replaces_the_crashed_one_of_the_same_episode(tmp_path):
    with Store(tmp_path) as store:
        store.append(make(0, "crashed", error="boom"))
        store.append(make(0, "success"))
        store.append(make(0, "failure", perturbation="camera"))
    assert [record.outcome for record in load_records(tmp_path)] == ["success", "failure"]


def test_two_evaluations_cannot_write_into_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    with Store(tmp_path), pytest.raises(InvalidOption, match="another evaluation is writing"):
        Store(tmp_path)
    Store(tmp_path).__exit__(None, None, None)


def test_every_run_is_kept(tmp_path):
    for episodes in (1, 2):
        with Store(tmp_path) as store:
            store.add_run(episodes=episodes)
    runs = load_runs(tmp_path)
    assert [run["episodes"] for run in runs] == [1, 2]
    assert {"date", "command", "machine", "versions"} <= set(runs[0])
    assert load_runs(tmp_path / "elsewhere") == load_records(tmp_path / "elsewhere") == []


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.integers(1, 14), st.integers(0, 2**32))
def test_a_trace_survives_the_database(tmp_path_factory, length, entries, seed):
    rng = np.random.default_rng(seed)
    actions = rng.normal(size=(length, entries)).astype(np.float32)
    digests = rng.integers(2**63, size=length + 1).astype(np.uint64)
    folder = tmp_path_factory.mktemp("run")
    with Store(folder) as store:
        store.append(make(), Trace(actions, digests))
        store.append(make(1))
    found = load_trace(folder, make().key)
    assert found is not None
    assert np.array_equal(found.actions, actions) and np.array_equal(found.digests, digests)
    assert load_trace(folder, make(1).key) is None


def write_until_killed(folder, pipe):
    with Store(folder) as store:
        for seed in range(100_000):
            store.append(make(seed))
            pipe.send(seed)  # only now does anybody know of it


def test_what_was_reported_before_a_kill_is_there(tmp_path):
    context = multiprocessing.get_context("spawn")
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=write_until_killed, args=(folder, theirs))
        process.start()
        theirs.close()
        reported = [ours.recv()]
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            reported.append(ours.recv())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        while ours.poll():
            try:
                reported.append(ours.recv())
            except EOFError:
                break
        seeds = [record.seed for record in load_records(folder)]
        assert seeds[: len(reported)] == reported
        assert len(set(seeds)) == len(seeds) <= len(reported) + 1


def fill(folder, limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Store(folder) as store:
        store.append(make(0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # a real error
        try:
            for seed in range(1, 10_000):
                store.append(make(seed))
        except OSError as error:
            os.write(2, str(error).encode())
            os._exit(7)
    os._exit(0)


def test_a_full_disk_stops_with_a_message_and_keeps_what_was_there(tmp_path, capfd):
    process = multiprocessing.get_context("spawn").Process(target=fill, args=(tmp_path, 300_000))
    process.start()
    process.join()
    assert process.exitcode == 7
    assert "make room on the disk, and the same command goes on" in capfd.readouterr().err
    seeds = [record.seed for record in load_records(tmp_path)]
    assert seeds == list(range(len(seeds))) and len(seeds) > 10
    with Store(tmp_path) as store:
        store.append(make(len(seeds)))
    assert len(load_records(tmp_path)) == len(seeds) + 1


def test_a_damaged_or_later_database_is_named(tmp_path):
    (tmp_path / RECORDS).write_bytes(b"this is no database, but it is long enough" * 100)
    for read in (load_records, Store):
        with pytest.raises(InvalidOption, match=r"records\.sqlite cannot be read"):
            read(tmp_path)
    with Store(tmp_path / "b") as store:
        store.append(make())
    database = sqlite3.connect(tmp_path / "b" / RECORDS)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(InvalidOption, match="format 99, this version of vla_gym reads up to"):
        load_records(tmp_path / "b")


def test_shards_merge(tmp_path):
    trace = Trace(np.ones((2, 7), np.float32), np.arange(3, dtype=np.uint64))
    for shard in range(2):
        with Store(tmp_path / str(shard)) as store:
            for seed in range(shard, 6, 2):
                store.append(make(seed, date=f"day {shard}"), trace)
            store.append(make(99, "failure" if shard else "crashed"))
            store.add_run(shard=shard)
    (tmp_path / "0" / "videos").mkdir()
    (tmp_path / "0" / "videos" / "v.mp4").write_bytes(b"film")
    with Store(tmp_path / "0") as store:
        store.add_video(make(0), "videos/v.mp4")
    out = tmp_path / "both"
    for _ in range(2):  # the second time changes nothing
        assert merge([tmp_path / "0", tmp_path / "1"], out) == 7
        records = load_records(out)
        assert sorted(record.seed for record in records) == [0, 1, 2, 3, 4, 5, 99]
        assert all(record.outcome == "failure" for record in records)
        assert len(load_runs(out)) == 2
        assert load_trace(out, make(3).key) is not None
        assert (out / "videos" / "v.mp4").read_bytes() == b"film"


def test_what_contradicts_does_not_merge(tmp_path):
    with Store(tmp_path / "a") as store:
        store.append(make(0, length=3))
    with Store(tmp_path / "b") as store:
        store.append(make(0, length=4))
    with pytest.raises(InvalidOption, match="failure after 4 steps; another folder: failure after"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with Store(tmp_path / "c") as store:
        store.append(dataclasses.replace(make(5), protocol={"horizon": 9}))
    with pytest.raises(InvalidOption, match="horizon: 50 then, 9 now"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "out2")
    with pytest.raises(InvalidOption, match="holds no records"):
        merge([tmp_path / "nowhere"], tmp_path / "out3")
