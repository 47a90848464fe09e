"""What a record says of an episode."""

from __future__ import annotations

import dataclasses

from vla_gym.evaluation.records import Record


def make(seed=0, outcome="failure", **fields):
    return Record("p", "VLA/Toy-Reach-v0", seed, seed, outcome, {"horizon": 50}, **fields)


def test_a_record_survives_its_json():
    record = make(3, "success", instruction='say "hé"', episode_return=-1.5)
    record = dataclasses.replace(record, options={"chain": 3}, chain_length=4)
    assert Record.from_json(record.to_json()) == record
    assert "\n" not in record.to_json()


def test_a_record_of_a_later_version_can_be_read():
    line = make(3, "success").to_json().replace("{", '{"mood": "cheerful", ', 1)
    assert Record.from_json(line) == make(3, "success")


def test_only_an_episode_with_an_outcome_counts():
    counting = {outcome: make(0, outcome).counts for outcome in ["success", "failure"]}
    assert counting == {"success": True, "failure": True}
    assert not make(0, "crashed").counts and not make(0, "timeout").counts
