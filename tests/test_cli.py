"""The command line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tests.support import needs
from vla_gym.cli import app, read_keywords, read_policies
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
    assert (folder / "records.jsonl").exists()
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

    monkeypatch.setattr("vla_gym.cli.read_policies", lambda _: {"p": stand_ins.RaisesOnSeed2})
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
