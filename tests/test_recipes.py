"""Recipes name what exists: shell syntax, ids, options and settings. Running them takes hours."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess

import pytest
import typer

from tests.support import ROOT, needs
from vla_gym.cli import app
from vla_gym.evaluation.evaluate import find_ids

FOLDER = ROOT / "docs" / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.sh") if path.name != "common.sh")


def read_commands(path):
    """Return the words of each `vla-gym` and `python` command of a recipe."""
    text = re.sub(r"\\\n", " ", path.read_text())
    arrays = dict(re.findall(r"^(\w+)=\((.*?)\)", text, re.DOTALL | re.MULTILINE))
    for name, content in arrays.items():
        text = text.replace(f'"${{{name}[@]}}"', " ".join(content.split()))
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(li) for li in lines if li.startswith(("vla-gym ", "python "))]


COMMANDS = [(path.stem, words) for path in RECIPES for words in read_commands(path)]


def test_there_are_recipes_and_each_has_a_target_and_a_page():
    assert RECIPES
    index = (FOLDER / "README.md").read_text()
    for path in RECIPES:
        subprocess.run(["bash", "-n", str(path)], check=True)
        assert path.stat().st_mode & 0o100, f"{path.name} is not executable"
        assert f"make recipe-{path.stem}" in index
    assert "recipe-%:" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(("recipe", "words"), COMMANDS, ids=lambda v: v if type(v) is str else v[1])
def test_every_command_is_one(recipe, words):
    if words[0] == "python":
        assert (ROOT / words[1]).is_file()
        return
    command = typer.main.get_command(app).commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    known |= {option for parameter in command.params for option in parameter.secondary_opts}
    values = {"-e": [], "--env": [], "--test": []}
    for option, value in zip(words[2:], [*words[3:], ""], strict=True):
        if re.fullmatch(r"--?[a-z][a-z-]*", option):
            assert option in known, f"vla-gym {words[1]} has no {option}"
            values.setdefault(option, []).append(value)
    ids = values["-e"] + values["--env"] + values["--test"]
    assert not ids or find_ids(ids)


@needs("train", "vla", "sb3")
@pytest.mark.parametrize(("recipe", "words"), COMMANDS, ids=lambda v: v if type(v) is str else v[1])
def test_every_setting_is_one(recipe, words):
    import dataclasses

    from vla_gym_policies.vla import VLAConfig

    from vla_gym.train.bc import BCConfig
    from vla_gym.train.rl import FinetuneConfig
    from vla_gym.train.rlpd import RLPDConfig

    configs = {"train": BCConfig, "finetune": FinetuneConfig, "rlpd": RLPDConfig}
    if words[1] not in configs:
        pytest.skip("takes no settings")
    pairs = list(itertools.pairwise(words))
    for flag, config in (("--set", configs[words[1]]), ("-m", VLAConfig)):
        fields = {field.name for field in dataclasses.fields(config)}
        named = {
            value.partition("=")[0].partition(".")[0] for option, value in pairs if option == flag
        }
        assert named <= fields, f"{config.__name__} has no {sorted(named - fields)}"
