"""The evaluator: paired, repeatable, and not stopped by what breaks in an episode."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from tests.evaluation import stand_ins
from tests.support import ROOT, needs
from vla_gym.errors import ContractMismatch, InvalidOption, UnknownName
from vla_gym.evaluation.evaluate import evaluate, find_ids
from vla_gym.evaluation.records import TIME_FIELDS
from vla_gym.evaluation.store import load_records, load_runs, merge

pytestmark = needs("eval")

REACH = "VLA/Toy-Reach-v0"


def plain(records):
    """What must repeat: every field but the times, and whether there is a video."""
    left_out = (*TIME_FIELDS, "video")
    rows = (dataclasses.asdict(record) for record in records)
    return [{k: v for k, v in row.items() if k not in left_out} for row in rows]


def by_key(records):
    """They are stored in the order in which they ended."""
    return sorted(records, key=lambda record: record.key)


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    policies = {"random": "random", "expert": stand_ins.ReachBall}
    return evaluate(policies, ["Toy-*"], episodes=3, seed=5, folder=folder)


def test_the_records_do_not_depend_on_the_number_of_workers_or_on_videos(one_worker, tmp_path):
    policies = {"random": "random", "expert": stand_ins.ReachBall}
    two = evaluate(policies, ["Toy-*"], episodes=3, seed=5, folder=tmp_path, workers=2, video=False)
    assert len(two.records) == 2 * 2 * 3
    assert plain(two.records) == plain(one_worker.records)


def test_every_policy_meets_the_same_episodes(one_worker):
    draws = {}
    for record in one_worker.records:
        draws.setdefault((record.id, record.seed), set()).add(record.episode_seed)
    assert sorted({seed for _, seed in draws}) == [5, 6, 7]
    assert all(len(episode_seeds) == 1 for episode_seeds in draws.values())


def test_success_at_any_step_ends_an_episode(one_worker):
    solved = [r for r in one_worker.records if r.policy == "expert" and r.id == REACH]
    assert [record.outcome for record in solved] == ["success"] * 3
    assert all(record.terminated and record.length < 50 for record in solved)
    assert all(record.protocol["terminate_on_success"] for record in solved)


def test_a_record_says_what_its_score_depends_on(one_worker):
    protocol = one_worker.records[0].protocol
    wanted = "simulator versions horizon success_rule action_mode cameras image_size reward "
    wanted += "terminate_on_success render_quality keywords policy_source"
    assert set(wanted.split()) <= set(protocol)
    assert protocol["horizon"] == 50
    assert protocol["success_rule"] == "at any step: the gripper is within 0.05 m of the ball"


def test_an_episode_that_raises_is_recorded_as_crashed_and_the_rest_goes_on(tmp_path):
    found = evaluate({"p": stand_ins.RaisesOnSeed2}, [REACH], episodes=4, folder=tmp_path)
    assert [r.outcome for r in found.records] == ["failure", "failure", "crashed", "failure"]
    assert found.records[2].error == "RuntimeError: the cat walked over the keyboard"
    assert [r.attempts for r in found.records] == [1, 1, 2, 1]
    assert found.records[2].length is None
    assert "Traceback" in (tmp_path / "logs" / "worker-0.log").read_text()


def test_a_killed_worker_costs_its_episode_and_a_new_one_goes_on(tmp_path):
    found = evaluate(
        {"p": stand_ins.DiesOnSeed2, "q": stand_ins.Zero},
        [REACH],
        episodes=4,
        folder=tmp_path,
        workers=2,
    )
    outcomes = {(r.policy, r.seed): r.outcome for r in found.records}
    assert outcomes.pop(("p", 2)) == "crashed"
    assert set(outcomes.values()) == {"failure"}
    assert len(outcomes) == 7
    (crash,) = (r for r in found.records if r.outcome == "crashed")
    assert "killed by SIGKILL" in crash.error


@pytest.mark.parametrize("on_crash", ["raise", "restart"])
def test_a_killed_simulator_costs_its_episode_alone(on_crash, tmp_path):
    found = evaluate(
        {"p": stand_ins.KillsSimulatorOnSeed2},
        [REACH],
        episodes=4,
        folder=tmp_path,
        keywords={"python": sys.executable, "on_crash": on_crash},
        video=False,
    )
    assert [r.outcome for r in found.records] == ["failure", "failure", "crashed", "failure"]
    assert "ended during step() with exit code -9 (SIGKILL)" in found.records[2].error
    assert by_key(load_records(tmp_path)) == by_key(found.records)
    alone = evaluate({"p": stand_ins.Zero}, [REACH], episodes=4, folder=tmp_path / "b", video=False)
    returns = [record.episode_return for record in alone.records]
    assert [r.episode_return for r in found.records] == [*returns[:2], None, returns[3]]


def test_what_dies_once_is_begun_again_and_comes_out_as_if_nothing_had_been(tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_GYM_TEST_MARKER", str(tmp_path / "marker"))
    options = {"episodes": 4, "video": False}
    found = evaluate({"p": stand_ins.DiesOnce}, [REACH], folder=tmp_path / "a", **options)
    assert [r.attempts for r in found.records] == [1, 1, 2, 1]
    again = evaluate({"p": stand_ins.DiesOnce}, [REACH], folder=tmp_path / "b", **options)
    assert plain(found.records) == plain(again.records)


def test_a_worker_that_stands_still_is_killed_and_its_episode_timed_out(tmp_path):
    policies = {"p": stand_ins.SleepsOnSeed2, "q": stand_ins.Zero}
    options = {"episodes": 4, "workers": 2, "timeout": 2.0, "retries": 0, "video": False}
    found = evaluate(policies, [REACH], folder=tmp_path, **options)
    outcomes = {(r.policy, r.seed): r.outcome for r in found.records}
    assert outcomes.pop(("p", 2)) == "timeout"
    assert set(outcomes.values()) == {"failure"} and len(outcomes) == 7
    (record,) = (r for r in found.records if r.outcome == "timeout")
    assert "no step for 2 s" in record.error and not record.counts


def test_success_may_be_that_of_the_last_step(tmp_path):
    policies = {"expert": stand_ins.ReachBall, "leaves": stand_ins.ReachesAndLeaves}
    options = {"episodes": 2, "video": False}
    some = evaluate(policies, [REACH], folder=tmp_path / "any", **options)
    assert [r.outcome for r in some.records] == ["success"] * 4
    last = evaluate(policies, [REACH], folder=tmp_path / "last", success="last", **options)
    assert [r.outcome for r in last.records] == ["success"] * 2 + ["failure"] * 2
    assert all(r.length == 50 for r in last.records)
    assert last.records[0].protocol["success_rule"].startswith("at the last step: ")
    with pytest.raises(InvalidOption, match=r"another protocol .*at any step.*at the last step"):
        evaluate(policies, [REACH], folder=tmp_path / "any", success="last", **options)


def test_shards_are_the_whole(tmp_path, one_worker):
    policies = {"random": "random", "expert": stand_ins.ReachBall}
    for k in range(3):
        evaluate(policies, ["Toy-*"], episodes=3, seed=5, folder=tmp_path / str(k), shard=(k, 3))
    assert merge([tmp_path / str(k) for k in range(3)], tmp_path / "all") == 12
    found = {record.key: record for record in load_records(tmp_path / "all")}
    assert plain(found[record.key] for record in one_worker.records) == plain(one_worker.records)


def test_failures_are_filmed_afterwards_from_what_was_recorded(tmp_path):
    found = evaluate(["random"], ["Toy-*"], episodes=4, folder=tmp_path, failures=2)
    filmed = {(r.id, r.episode) for r in found.records if r.video}
    assert filmed == {(env_id, i) for env_id in {r.id for r in found.records} for i in (0, 1)}
    assert all((tmp_path / r.video).stat().st_size > 1000 for r in found.records if r.video)
    assert by_key(load_records(tmp_path)) == by_key(found.records)
    more = evaluate(["random"], ["Toy-*"], episodes=4, folder=tmp_path, failures=3)
    assert sum(bool(r.video) for r in more.records) == 6


def test_the_same_command_plays_only_what_is_missing_or_crashed(tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_GYM_TEST_MARKER", str(tmp_path / "marker"))
    folder = tmp_path / "out"

    def run(episodes):
        played = []
        found = evaluate(
            {"p": stand_ins.DiesOnce},
            [REACH],
            episodes=episodes,
            folder=folder,
            retries=0,
            on_record=lambda record: played.append(record.seed),
        )
        return played, [record.outcome for record in found.records]

    assert run(3) == ([0, 1, 2], ["failure", "failure", "crashed"])
    assert run(4) == ([2, 3], ["failure"] * 4)
    assert run(4) == ([], ["failure"] * 4)
    assert len(load_records(folder)) == 4


def test_episodes_of_another_protocol_are_not_mixed(tmp_path):
    evaluate(["zero"], [REACH], episodes=1, folder=tmp_path, video=False)
    with pytest.raises(InvalidOption, match="horizon: 50 then, 7 now"):
        evaluate(["zero"], [REACH], episodes=1, folder=tmp_path, video=False, max_steps=7)


def test_pairs_that_do_not_fit_are_listed_or_left_out(tmp_path):
    policies = {"zero": "zero", "other": stand_ins.OtherSuite, "large": stand_ins.WantsState}
    with pytest.raises(ContractMismatch, match=r"2 of 3 pairs .*other on .*large on .*entries"):
        evaluate(policies, [REACH], episodes=1, folder=tmp_path)
    assert not load_records(tmp_path)
    found = evaluate(policies, [REACH], episodes=1, folder=tmp_path, skip_mismatches=True)
    assert [record.policy for record in found.records] == ["zero"]
    assert set(found.mismatches) == {("other", REACH), ("large", REACH)}
    (run,) = load_runs(tmp_path)
    assert {item["policy"] for item in run["mismatches"]} == {"other", "large"}


def test_an_unknown_policy_stops_before_the_first_episode(tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'zero'"):
        evaluate(["zeros"], [REACH], episodes=1, folder=tmp_path)


def test_ids_may_be_short_or_globs():
    assert find_ids(["Toy-Reach"]) == [REACH]
    assert find_ids(["VLA/Toy-Reach", "toy-*"]) == [REACH, "VLA/Toy-Lift-v0"]
    with pytest.raises(InvalidOption, match="Nearest: Toy-Reach"):
        find_ids(["Toy-Reech"])


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"workers": 0}, {"seed": -1}])
def test_numbers_that_make_no_sense_are_refused(wrong, tmp_path):
    with pytest.raises(InvalidOption, match="must be at least"):
        evaluate(["zero"], [REACH], **{"episodes": 1, "folder": tmp_path, **wrong})


def test_what_a_program_defines_itself_is_evaluated_without_a_guard_for_main(tmp_path):
    program = """
import numpy as np
import vla_gym
from tests.evaluation.errands import SUITE
from vla_gym.evaluation.evaluate import evaluate
from vla_gym.registration import register_suite
import dataclasses

register_suite(dataclasses.replace(SUITE, name="Own"))

class Mine:
    spec = vla_gym.PolicySpec(cameras=())

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.full((len(observation["proprio"]), 7), 0.1, np.float32), state

for batch in (1, 2):
    found = evaluate(
        {"mine": Mine, "too": lambda: Mine()}, ["Toy-Reach", "Own-Chain"], episodes=2,
        folder=f"out{batch}", video=False, workers=2, batch=batch,
    )
    print([record.outcome for record in found.records])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-"],
        input=program,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    outcomes = str(["failure"] * 4 + ["success"] * 4)
    assert found.stdout.splitlines() == [outcomes] * 2, found.stderr
