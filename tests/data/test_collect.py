"""Collecting demonstrations and replaying them."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.data.toy_expert import DiesOnSeed1, RandomMotion, SolvesEvenSeeds
from tests.evaluation.stand_ins import ReachBall
from tests.support import ROOT, needs
from vla_gym.cli import app
from vla_gym.collect import EXPERTS, collect, find_expert
from vla_gym.data import Dataset, write_dataset
from vla_gym.errors import ContractMismatch, InvalidOption
from vla_gym.evaluation.store import load_records
from vla_gym.policy import list_policies
from vla_gym.registration import list_ids
from vla_gym.replay import replay

pytestmark = needs("data")

REACH, LIFT = "VLA/Toy-Reach-v0", "VLA/Toy-Lift-v0"
SMALL = {"image_size": 32}


def play(folder, ids=("Toy-Reach",), **options):
    options = {"expert": ReachBall, "episodes": 3, "keywords": SMALL, "folder": folder} | options
    return collect(list(ids), **options)


def seeds_of(folder, env_id=REACH):
    return [e.seed for e in Dataset(folder, verify=True).episodes if e.env_id == env_id]


def contents(folder):
    """Return the demonstrations of a data set."""
    return list(Dataset(folder, verify=True).demonstrations())


# Collecting


def test_only_successes_are_kept_and_both_are_counted(tmp_path):
    found = play(tmp_path, expert=SolvesEvenSeeds, max_steps=20)
    # Waves of what is missing: seeds 0 1 2, then 3, then 4.
    assert (found.counts[REACH].kept, found.counts[REACH].played) == (3, 5)
    assert found.complete
    assert seeds_of(tmp_path) == [0, 2, 4]
    assert all(demo.success for demo in contents(tmp_path))


def test_failures_are_kept_when_asked_for(tmp_path):
    found = play(tmp_path, expert=SolvesEvenSeeds, max_steps=20, keep_failures=True)
    assert found.counts[REACH].played == 3
    assert [demo.success for demo in contents(tmp_path)] == [True, False, True]


def test_attempts_are_limited(tmp_path):
    found = play(tmp_path, expert=SolvesEvenSeeds, max_steps=20, attempts=4)
    assert not found.complete
    assert (found.counts[REACH].kept, found.counts[REACH].played) == (2, 4)


def test_neither_workers_nor_interruptions_change_what_is_collected(tmp_path):
    options = {"expert": SolvesEvenSeeds, "max_steps": 20, "noise": 0.05}
    play(tmp_path / "one", episodes=4, workers=1, **options)

    class StopError(Exception):
        pass

    def stop(record):
        if record.seed == 2:
            raise StopError

    with pytest.raises(StopError):
        play(tmp_path / "two", episodes=4, workers=2, on_record=stop, **options)
    played = []
    play(tmp_path / "two", episodes=4, workers=2, on_record=played.append, **options)
    assert 0 not in [record.seed for record in played]
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    key = lambda demo: demo.seed  # noqa: E731
    assert all(
        a.same_as(b) for a, b in zip(sorted(one, key=key), sorted(two, key=key), strict=True)
    )


SCRIPT = """
import sys

from tests.evaluation.stand_ins import ReachBall
from vla_gym.collect import collect

if __name__ == "__main__":
    collect(["Toy-Reach"], episodes=40, folder=sys.argv[1], expert=ReachBall, noise=0.05,
            keywords={"image_size": 32})
"""


def test_a_killed_collection_loses_only_the_episode_in_work(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "set")], env=environment
    )
    deadline = time.monotonic() + 60
    while len(load_records(tmp_path / "set")) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    ended = len(load_records(tmp_path / "set"))
    assert 3 <= ended < 40
    half = tmp_path / "set" / "work" / f".Toy-Reach-{ended}.parquet.1.part"  # killed while writing
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"PAR1")
    played = []
    play(tmp_path / "set", episodes=40, noise=0.05, on_record=played.append)
    assert [record.seed for record in played] == list(range(ended, 40))
    assert seeds_of(tmp_path / "set") == list(range(40))
    play(tmp_path / "whole", episodes=40, noise=0.05)
    pairs = zip(contents(tmp_path / "set"), contents(tmp_path / "whole"), strict=True)
    assert all(a.same_as(b) for a, b in pairs)
    assert not (tmp_path / "set" / "work").exists()


def test_called_again_it_plays_only_what_is_missing(tmp_path):
    play(tmp_path, episodes=2)
    before = contents(tmp_path)
    played = []
    play(tmp_path, episodes=2, on_record=played.append)
    assert played == []
    play(tmp_path, episodes=3, on_record=played.append)
    assert [record.seed for record in played] == [2]
    after = contents(tmp_path)
    assert len(after) == 3
    assert all(a.same_as(b) for a, b in zip(before, after, strict=False))


def test_a_dead_worker_costs_its_episode_and_is_made_up_for(tmp_path):
    found = play(tmp_path, expert=DiesOnSeed1, episodes=3)
    assert (found.counts[REACH].kept, found.counts[REACH].crashed) == (3, 1)
    assert seeds_of(tmp_path) == [0, 2, 3]


def test_another_protocol_in_the_same_folder_is_refused(tmp_path):
    play(tmp_path, episodes=1)
    with pytest.raises(InvalidOption, match=r"image_size: 32 then, 16 now"):
        play(tmp_path, episodes=2, keywords={"image_size": 16})
    with pytest.raises(InvalidOption, match=r"action_noise: 0\.0 then, 0\.1 now"):
        play(tmp_path, episodes=2, noise=0.1)


def test_several_tasks_share_a_data_set(tmp_path):
    play(tmp_path, ["Toy-*"], expert=RandomMotion, episodes=2, keep_failures=True, max_steps=5)
    dataset = Dataset(tmp_path)
    assert dataset.env_ids == [REACH, LIFT]
    assert len(dataset.tasks) == 2
    assert dataset.frames().env_index.tolist() == [0] * 10 + [1] * 10


def test_the_state_is_for_the_expert_alone_unless_it_is_asked_for(tmp_path):
    play(tmp_path / "without", episodes=1)
    play(tmp_path / "with", episodes=1, keywords=SMALL | {"state": True})
    without, with_state = contents(tmp_path / "without")[0], contents(tmp_path / "with")[0]
    assert set(without.observations) == {"rgb_primary", "rgb_wrist", "proprio"}
    assert with_state.observations["state"].shape == (len(with_state) + 1, 10)
    np.testing.assert_array_equal(without.actions, with_state.actions)


def test_an_episode_says_where_it_comes_from(tmp_path):
    play(tmp_path, episodes=1, noise=0.1)
    demo = contents(tmp_path)[0]
    assert demo.source == "ReachBall, action noise 0.1"
    assert demo.spec_sheet["control_hz"] == 10.0
    assert demo.keywords["image_size"] == 32
    assert "vla-gym" in demo.versions
    assert demo.instruction == "move the gripper to the green ball"
    assert len(demo.instructions) == 5


def test_noise_moves_the_hand_and_neither_the_label_nor_the_gripper(tmp_path):
    options = {"expert": RandomMotion, "keep_failures": True, "episodes": 2, "max_steps": 40}
    play(tmp_path / "clean", **options)
    play(tmp_path / "noisy", noise=0.2, **options)
    for clean, noisy in zip(
        contents(tmp_path / "clean"), contents(tmp_path / "noisy"), strict=True
    ):
        assert clean.labels is None
        steps = min(len(clean), len(noisy))  # RandomMotion does not look at what it sees
        np.testing.assert_array_equal(noisy.labels[:steps], clean.actions[:steps])
        drawn = noisy.actions - noisy.labels
        np.testing.assert_array_equal(drawn[:, 3:], 0.0)  # rotation is ignored there, and gripper
        assert 0.1 < drawn[:, :3].std() < 0.3
        assert (drawn[:, :3] != 0).all()


def test_noise_needs_an_action_mode_that_names_the_motion(tmp_path):
    options = {"expert": "zero", "noise": 0.1, "keywords": SMALL | {"action_mode": "native"}}
    with pytest.raises(InvalidOption, match="only action_mode='ee_delta'"):
        play(tmp_path, **options)


def test_wrong_options_are_refused(tmp_path):
    for options, text in (
        ({"episodes": 0}, "episodes=0"),
        ({"noise": float("nan")}, "noise=nan"),
        ({"images": "gif"}, "images='gif'"),
        ({"keywords": {"instruction": "bytes"}}, "'instruction' is the collector's own"),
        ({"expert": None}, "no expert is known for VLA/Toy-Reach-v0"),
    ):
        with pytest.raises(InvalidOption, match=text):
            play(tmp_path, **options)
    with pytest.raises(ContractMismatch, match="acts in MetaWorld only"):
        play(tmp_path, expert="metaworld-expert")


def test_known_experts_exist_and_play_their_tasks():
    assert set(EXPERTS.values()) <= set(list_policies())
    found = {}
    for env_id in list_ids():
        try:
            found[env_id] = find_expert(env_id)
        except InvalidOption:
            continue
    assert sum(name == "metaworld-expert" for name in found.values()) == 50
    assert found["VLA/Robosuite-Lift-v0"] == "robosuite-lift-expert"
    assert "VLA/Robosuite-Stack-v0" not in found


# Replaying


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toy"
    play(folder, episodes=3, noise=0.1, keywords=SMALL | {"state": True, "paraphrase": True})
    return folder


def test_a_replay_is_the_same_bit_for_bit(collected):
    verdicts = list(replay(Dataset(collected), pictures=True))
    assert [v.same for v in verdicts] == [True] * 3
    assert [v.seed for v in verdicts] == [0, 1, 2]


def change(collected, tmp_path, **changes):
    """Return a data set whose second episode differs."""
    demos = contents(collected)
    changes = {name: value(demos[1]) for name, value in changes.items()}
    demos[1] = dataclasses.replace(demos[1], **changes)
    return Dataset(write_dataset(demos, tmp_path / "changed"))


def bump(array, place, by):
    array = np.array(array)
    array[place] += by
    return array


@pytest.mark.parametrize(
    ("changes", "step", "what"),
    [
        ({"rewards": lambda d: bump(d.rewards, 1, 1e-6)}, 2, "the reward is"),
        ({"seed": lambda d: 77}, 0, "the instruction|differs by up to"),
        ({"actions": lambda d: -d.actions}, 1, "proprio differs by up to"),
        ({"terminated": lambda d: False}, None, "terminated is True, not False"),
        (
            {
                "observations": lambda d: {
                    **d.observations,
                    "state": bump(d.observations["state"], (3, 4), 1e-9),
                }
            },
            3,
            r"state differs by up to 1e-09 \(entry 4\)",
        ),
    ],
)
def test_a_difference_is_found_at_its_step(collected, tmp_path, changes, step, what):
    dataset = change(collected, tmp_path, **changes)
    verdicts = list(replay(dataset))
    assert [v.same for v in verdicts] == [True, False, True]
    assert verdicts[1].step == (len(dataset.episodes[1]) if step is None else step)
    assert re.search(what, verdicts[1].what)


def test_a_tolerance_forgives_small_differences(collected, tmp_path):
    dataset = change(collected, tmp_path, rewards=lambda d: bump(d.rewards, 1, 1e-6))
    assert all(v.same for v in replay(dataset, tolerance=1e-5))


def test_the_commands_collect_and_replay(collected, tmp_path):
    runner = CliRunner()
    done = runner.invoke(app, ["replay", str(collected), "-n", "0", "-n", "2"])
    assert done.exit_code == 0, done.output
    assert "2 of 2 episodes are the same" in done.output
    changed = change(collected, tmp_path, rewards=lambda d: bump(d.rewards, 1, 1.0))
    done = runner.invoke(app, ["replay", str(changed.folder)])
    assert done.exit_code == 1
    assert "differs at step 2: the reward is" in done.output
    unseeded = change(collected, tmp_path / "b", seed=lambda d: None)
    done = runner.invoke(app, ["replay", str(unseeded.folder), "-n", "1"])
    assert done.exit_code == 2
    shutil.rmtree(unseeded.folder / "data")
    done = runner.invoke(app, ["replay", str(unseeded.folder)])
    assert (done.exit_code, "file-000.parquet is missing" in done.stderr.replace("\n", "")) == (
        2,
        True,
    )
    arguments = ["collect", "-e", "Toy-Reach", "--expert", "random", "-n", "1", "-w", "1"]
    arguments += [
        "--attempts",
        "1",
        "--max-steps",
        "2",
        "-k",
        "cameras=()",
        "-o",
        str(tmp_path / "c"),
    ]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 1, done.output  # chance does not solve it in two steps
    assert REACH in done.output


@needs("metaworld")
def test_metaworlds_expert_is_collected_and_replays_bit_for_bit(tmp_path):
    keywords = {"image_size": 64, "cameras": ("primary",), "render_quality": "fast"}
    found = collect(["MetaWorld-Reach"], episodes=2, folder=tmp_path, keywords=keywords)
    assert found.counts["VLA/MetaWorld-Reach-v0"].kept == 2
    dataset = Dataset(tmp_path, verify=True)
    assert all(verdict.same for verdict in replay(dataset, pictures=True))
    assert dataset.settings[0]["source"] == "metaworld-expert"
