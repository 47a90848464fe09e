"""Records on disk."""

from __future__ import annotations

import dataclasses

import pytest

from vla_gym.errors import InvalidOption
from vla_gym.evaluation.records import Record, RecordFile, add_run, load_records, load_runs


def make(seed=0, outcome="failure", **fields):
    return Record("p", "VLA/Toy-Reach-v0", seed, seed, outcome, {"horizon": 50}, **fields)


def test_a_record_survives_its_line():
    record = make(3, "success", instruction='say "hé"', episode_return=-1.5)
    record = dataclasses.replace(record, options={"chain": 3}, chain_length=4)
    assert Record.from_json(record.to_json()) == record
    assert "\n" not in record.to_json()


def test_a_record_of_an_earlier_version_can_be_read():
    line = (
        '{"policy": "p", "id": "VLA/Toy-Reach-v0", "episode": 0, "seed": 3, "outcome": "success", '
        '"protocol": {"horizon": 50}, "episode_seed": 9, "success_at_end": true, '
        '"episode_return": -1.5, "length": 7, "env_seconds": 0.5, "policy_seconds": 0.1, '
        '"terminated": true, "truncated": false, "instruction": "go", "error": "", "video": "", '
        '"date": "2026-11-01T00:00:00+00:00"}'
    )
    record = Record.from_json(line)
    assert record.length == 7
    assert record.options == {} and record.chain_length is None


def test_a_half_written_last_line_is_left_out_and_cut_off_before_the_next(tmp_path):
    with RecordFile(tmp_path) as file:
        file.append(make(0))
        file.append(make(1))
    path = tmp_path / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert [record.seed for record in load_records(tmp_path)] == [0]
    with RecordFile(tmp_path) as file:
        file.append(make(2))
    assert [record.seed for record in load_records(tmp_path)] == [0, 2]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(make(0).to_json() + "\n{oops\n" + make(1).to_json() + "\n")
    with pytest.raises(InvalidOption, match=r"line 2 of .*records\.jsonl is not a record"):
        load_records(tmp_path)


def test_a_later_line_replaces_the_crashed_one_of_the_same_episode(tmp_path):
    with RecordFile(tmp_path) as file:
        file.append(make(0, "crashed", error="boom"))
        file.append(make(0, "success"))
    assert [record.outcome for record in load_records(tmp_path)] == ["success"]


def test_two_evaluations_cannot_write_into_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    with RecordFile(tmp_path), pytest.raises(InvalidOption, match="another evaluation is writing"):
        RecordFile(tmp_path)


def test_every_run_is_kept(tmp_path):
    add_run(tmp_path, episodes=1)
    add_run(tmp_path, episodes=2)
    runs = load_runs(tmp_path)
    assert [run["episodes"] for run in runs] == [1, 2]
    assert {"date", "command", "machine", "versions"} <= set(runs[0])
    assert load_runs(tmp_path / "elsewhere") == []
