"""The command line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tests.support import needs
from vla_gym.cli import app
from vla_gym.cli.options import read_keywords, read_policies
from vla_gym.errors import InvalidOption
from vla_gym.suites.rlbench import find_coppeliasim_obstacle

pytestmark = needs("eval")


def run(*arguments):
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return found.exit_code, " ".join(found.output.split())


def test_eval_prints_a_table_and_the_path_of_the_report(tmp_path):
    arguments = ("-p", "zero", "-p", "z=zero", "-e", "Toy-Reach", "-n", "2", "-o", tmp_path)
    code, output = run("eval", *arguments)
    assert code == 0, output
    assert "Wilson 95 % intervals" in output and "0\u201366 %" in output  # Wilson of 0 of 2
    assert "report.html" in output
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "report.md").exists() and (tmp_path / "report.csv").exists()
    code, output = run("eval", *arguments)
    assert code == 0 and "4 of 4 episodes were finished before" in output


def test_eval_without_a_folder_makes_one_named_by_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = run("eval", "-p", "zero", "-e", "Toy-Reach", "-n", "1", "--no-video")
    assert code == 0, output
    (folder,) = (tmp_path / "results").iterdir()
    assert (folder / "records.sqlite").exists()
    assert f"results/{folder.name}/report.html" in output


@needs("calvin-twin")
def test_eval_of_a_chain_prints_success_rates_and_average_length(tmp_path):
    code, output = run(
        *("eval", "--env", "VLA/CALVIN-Chain-v0", "--policy", "calvin-expert"),
        *("--episodes", "2", "--no-video", "-k", "simulator=calvin-twin", "-o", tmp_path),
    )
    assert code == 0, output
    for text in ("SR_1", "SR_5", "average", "calvin-twin", "scene=D", "renderer=mujoco"):
        assert text in output


def test_a_crashed_episode_makes_the_exit_code_1_and_a_column_of_its_own(tmp_path, monkeypatch):
    from tests.evaluation import stand_ins

    policies = {"p": stand_ins.RaisesOnSeed2}
    monkeypatch.setattr("vla_gym.cli.evaluate.read_policies", lambda _: policies)
    code, output = run("eval", "-p", "p", "-e", "Toy-Reach", "-n", "3", "-o", tmp_path)
    assert code == 1
    assert "crashed" in output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-p", "zeros", "-e", "Toy-Reach"), "Did you mean 'zero'?"),
        (("-p", "zero", "-e", "Toy-Reech"), "Nearest: Toy-Reach"),
        (("-p", "zero", "-e", "Toy-Reach", "-k", "image_size"), "is not key=value"),
        (("-p", "zero", "-e", "Toy-Reach", "-k", "action_mode=fast"), "no action_mode 'fast'"),
        (("-p", "zero", "-e", "Toy-Reach", "-k", "render_mode=human"), "the evaluator's own"),
        (("-p", "zero", "-p", "zero", "-e", "Toy-Reach"), "two policies are called 'zero'"),
    ],
)
def test_a_mistake_is_one_paragraph_and_exit_code_2(arguments, text, tmp_path):
    code, output = run("eval", *arguments, "-o", tmp_path)
    assert code == 2
    assert text in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("eval", "-p", "zero"), "or a published evaluation with --protocol"),
        (("eval", "-p", "zero", "--protocol", "metaworld"), "Did you mean 'metaworld-mt50'?"),
        (
            ("eval", "-p", "zero", "--protocol", "metaworld-mt50", "-e", "Toy-Reach"),
            "VLA/Toy-Reach-v0: not of the protocol metaworld-mt50",
        ),
        (
            ("eval", "-p", "zero", "--protocol", "metaworld-mt50", "--max-steps", "3"),
            "the protocol metaworld-mt50 fixes max_steps=3 (it has 500)",
        ),
        (("eval", "-p", "zero", "-e", "Toy-Reach", "--perturb", "fog"), "no perturbation 'fog'"),
        (("eval", "-p", "zero", "-e", "Toy-Reach", "--perturb", "latency=x"), "is not a number"),
        (("eval", "-p", "zero", "-e", "Toy-Reach", "--perturb", "camera"), "cannot be perturbed"),
        (("eval", "-p", "zero", "-e", "Toy-Reach", "--shard", "3/2"), "must be K/N"),
        (("eval", "-p", "zero", "-e", "Toy-Reach", "--shard", "0/2"), "must be K/N"),
        (("eval", "-p", "zero", "-e", "Toy-Reach", "--shard", "half"), "must be K/N"),
        (("eval", "-p", "zero", "-e", "Toy-Reach", "--success", "often"), "('any', 'last')"),
        (("eval", "-p", "zero", "-e", "Toy-Reach", "--gpus", "1"), "gpus=1.0 is for ray"),
        (("eval", "-p", "zero", "-e", "Toy-Reach", "--batch", "0"), "'--batch'"),
        (("eval", "-p", "zero", "-e", "Toy-Reach", "--timeout", "-1"), "'--timeout'"),
        (("eval", "-p", "zero", "-e", "Toy-Reach", "--retries", "-1"), "'--retries'"),
        (("compare", "nowhere"), "it takes two to compare"),
        (("merge", "nowhere", "-o", "all"), "nowhere holds no records"),
        (("leaderboard", "nowhere"), "no run below nowhere"),
        (("replay", "nowhere", "--video", "films"), "nowhere has no records.sqlite"),
    ],
)
def test_a_mistake_in_any_command_is_one_paragraph_and_exit_code_2(
    arguments, text, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, output = run(*arguments)
    assert code == 2, output
    assert text in output
    assert "Traceback" not in output


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The folder of a run with two policies, played in two shards with a shared policy."""
    folder = tmp_path_factory.mktemp("played")
    for k in (1, 2):
        code, output = run(
            *("eval", "-p", "zero", "-p", "other=random", "-e", "Toy-Reach", "-n", "3"),
            *("--max-steps", "8", "--success", "last", "--perturb", "latency=3,action-noise"),
            *("--batch", "2", "--workers", "2", "--timeout", "60", "--retries", "0"),
            *("--failures", "1", "--no-video", "--shard", f"{k}/2", "-o", folder / f"part{k}"),
        )
        assert code == 0, output
    code, output = run("merge", folder / "part1", folder / "part2", "-o", folder / "all")
    assert code == 0 and "all holds 18 episodes" in output
    return folder


def test_options_of_eval_reach_the_records(played):
    from vla_gym.evaluation.store import load_records, load_runs

    parts = [load_records(played / f"part{k}") for k in (1, 2)]
    assert [len(part) for part in parts] == [9, 9]
    records = load_records(played / "all")
    assert {r.perturbation for r in records} == {"", "latency=3", "action-noise"}
    assert {r.length for r in records} == {8} and {r.attempts for r in records} == {1}
    assert {r.protocol["success_rule"].split(":")[0] for r in records} == {"at the last step"}
    assert {r.protocol["batch"] for r in records} == {2}
    assert not any(r.video for r in records)  # --no-video, whatever --failures says
    assert [one["shard"] for one in load_runs(played / "all")] == [[0, 2], [1, 2]]


def test_eval_goes_on_from_merged_shards_and_prints_each_perturbation(played):
    code, output = run(
        *("eval", "-p", "zero", "-p", "other=random", "-e", "Toy-Reach", "-n", "3"),
        *("--max-steps", "8", "--success", "last", "--perturb", "latency=3,action-noise"),
        *("--batch", "2", "--no-video", "-o", played / "all"),
    )
    assert code == 0, output
    assert "18 of 18 episodes were finished before" in output
    for text in ("perturbation", "latency=3", "action-noise", "success at the last step"):
        assert text in output


def test_failures_are_filmed(tmp_path):
    options = ("-n", "3", "--max-steps", "4", "--failures", "2", "-o", tmp_path)
    code, output = run("eval", "-p", "zero", "-e", "Toy-Reach", *options)
    assert code == 0, output
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 2


def test_protocols_are_listed_and_played_in_part(tmp_path):
    code, output = run("protocols")
    assert code == 0 and "metaworld-mt50 50" in output and "calvin-chain-D" in output


@needs("metaworld")
def test_a_part_of_a_protocol_is_said_to_be_no_score_of_it(tmp_path):
    code, output = run(
        *("eval", "-p", "zero", "--protocol", "metaworld-mt50", "-e", "MetaWorld-Reach"),
        *("-n", "1", "--no-video", "-o", tmp_path),
    )
    assert code == 0, output
    assert "not the whole of metaworld-mt50: no score of it" in output
    assert "1 of 50" in output


def test_compare_gives_a_verdict_on_every_two_policies(played):
    code, output = run("compare", played / "all")
    assert code == 0, output
    assert "zero" in output and "other" in output and "3 " in output
    same = run("compare", played / "part1", played / "part2")
    assert same == (0, output)
    code, output = run("compare", played / "all", "-p", "zero", "-p", "nobody")
    assert code == 2 and "nobody" in output


def test_leaderboard_ranks_the_runs_below_a_folder(played, tmp_path):
    code, output = run("leaderboard", played, "-o", tmp_path)
    assert code == 0 and "leaderboard.html" in output, output
    assert (tmp_path / "leaderboard.html").stat().st_size > 5_000
    assert "other" in (tmp_path / "leaderboard.md").read_text()


def test_episodes_of_an_evaluation_are_replayed(played, tmp_path):
    code, output = run(
        *("replay", played / "all", "--episode", "1", "--policy", "zero"),
        *("--video", tmp_path, "--size", "64"),
    )
    assert code == 0, output
    assert "1 zero on VLA/Toy-Reach-v0, seed 1, latency=3, 8 steps: same" in output
    assert "3 of 3 episodes are the same" in output
    assert len(list(tmp_path.glob("zero--Toy-Reach-v0--1*.mp4"))) == 3
    code, output = run("replay", played / "all", "--env", "Toy-Reach", "-n", "0", "-n", "2")
    assert code == 0 and "12 of 12 episodes are the same" in output


def test_a_replay_that_differs_makes_the_exit_code_1(played):
    code, output = run("replay", played / "all", "-n", "0", "-p", "zero", "-k", "reward=sparse")
    assert code == 1 and "zero on VLA/Toy-Reach-v0, seed 0, 8 steps: differs at step" in output
    assert "0 of 3 episodes are the same" in output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--episode", "7"), "has no such episode"),
        (("--policy", "nobody"), "has no such episode"),
        (("--env", "Toy-Reech"), "Nearest: Toy-Reach"),
        (("--size", "64"), "name its folder with --video"),
        (("--video", "films", "--size", "65"), "take an even number"),
        (("--pictures",), "--pictures"),
        (("--tolerance", "0.1"), "--tolerance"),
    ],
)
def test_mistakes_in_replaying_an_evaluation(arguments, text, played, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = run("replay", played / "all", *arguments)
    assert code == 2, output
    assert text in output and "Traceback" not in output


def test_list_shows_ids_and_whether_they_can_run():
    code, output = run("list", "Toy-*")
    assert code == 0
    assert "VLA/Toy-Reach-v0" in output and "toy yes" in output
    assert "MetaWorld" not in output
    if find_coppeliasim_obstacle() is None:
        return  # a machine that has it
    code, output = run("list", "RLBench-SetupChess")
    assert code == 0 and "coppeliasim no" in output
    assert "to get coppeliasim: vla-gym show VLA/RLBench-SetupChess-v0 says how" in output


def test_show_writes_every_camera_and_the_spec_sheet(tmp_path):
    code, output = run("show", "Toy-Lift", "--out", tmp_path)
    assert code == 0, output
    assert "+1 opens, -1 closes" in output and "lift the red cube" in output
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"Toy-Lift-v0-{name}.png" for name in ("primary", "wrist", "top", "all")}
    code, output = run("show", "Toy-*", "--out", tmp_path)
    assert code == 2 and "names 2 ids" in output


def test_report_of_nothing_is_an_error(tmp_path):
    code, output = run("report", tmp_path)
    assert code == 2 and "no episodes in" in output


def test_keywords_are_literals_words_or_lists():
    items = ["a=1", "b=0.5", "c=true", "d=none", "e=primary,wrist", "f=()", "g=exact", "h='1'"]
    assert read_keywords(items) == {
        **{"a": 1, "b": 0.5, "c": True, "d": None, "e": ("primary", "wrist")},
        **{"f": (), "g": "exact", "h": "1"},
    }
    with pytest.raises(InvalidOption, match="is not key=value"):
        read_keywords(["=3"])


def test_policies_may_have_a_label():
    items = ["zero", "mine=sb3:runs/a=b.zip", "sb3:c=d.zip"]
    assert read_policies(items) == {
        "zero": "zero",
        "mine": "sb3:runs/a=b.zip",
        "sb3:c=d.zip": "sb3:c=d.zip",
    }


def test_help_loads_no_simulator_and_nothing_heavy():
    heavy = "{'torch', 'scipy', 'matplotlib', 'jinja2', 'mujoco', 'imageio_ffmpeg', 'PIL'}"
    code = f"import sys, vla_gym.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
