"""The wheel, as a user installs it: what is in it, and that it works away from the checkout.

An editable install hides missing files and shadowed packages, so nothing here imports from it.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support import EXTRAS, ROOT, needs
from vla_gym import __version__
from vla_gym.evaluation.store import load_records
from vla_gym.registration import SUITE_MODULES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = ("vla_gym", "policies", "tests", "benchmarks")


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, so that neither an old build/ folder gets in nor a new one."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("source")
    for folder in SOURCES:
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    out = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", out)
    run(sys.executable, "-m", "pip", "wheel", *options, copy, cwd=out)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_both_packages_with_their_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = f"vla_gym-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"vla_gym", "vla_gym_policies", info}
    for folder, package in (("vla_gym", "vla_gym"), ("policies/vla_gym_policies",) * 2):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                inside = f"{Path(package).name}/{path.relative_to(ROOT / folder).as_posix()}"
                assert inside in names, f"{inside} is missing; see package-data in pyproject.toml"
    for ending in (
        ".npz",
        ".j2",
        "style.css",
        "page.js",
        "vla_gym/py.typed",
        "vla_gym_policies/py.typed",
    ):
        assert any(name.endswith(ending) for name in names), ending
    assert f"{info}/licenses/LICENSE" in names


def test_the_wheel_offers_the_command_and_every_policy(wheel):
    archive = zipfile.ZipFile(wheel)
    parser = configparser.ConfigParser()
    parser.read_string(archive.read(f"vla_gym-{__version__}.dist-info/entry_points.txt").decode())
    assert dict(parser["console_scripts"]) == {"vla-gym": "vla_gym.cli:app"}
    assert dict(parser["vla_gym.policies"]) == PROJECT["entry-points"]["vla_gym.policies"]
    for value in parser["vla_gym.policies"].values():
        module, _, attribute = value.partition(":")
        path = module.replace(".", "/")
        name = next(n for n in (f"{path}.py", f"{path}/__init__.py") if n in archive.namelist())
        text = archive.read(name).decode()
        assert re.search(rf"^(?:class|def) {attribute}\b", text, re.MULTILINE), value
    metadata = archive.read(f"vla_gym-{__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return the bin folder of a new virtual environment that has the wheel.

    It sees this environment's other packages through a .pth line, behind its own: the editable
    install stays out, since .pth files of a folder that was added so are not read.
    """
    venv = tmp_path_factory.mktemp("user") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    python = venv / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(run(python, "-c", where, cwd=venv).strip())
    (own / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--force-reinstall", *options, wheel, cwd=venv)
    return venv / "bin"


@pytest.fixture
def elsewhere(tmp_path):
    """Return a folder away from the checkout, with packages of a user that must shadow nothing."""
    for name in ("policies", "tests", "benchmarks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the decoy was imported')")
    return tmp_path


LOOP = """
import pathlib, sys
import gymnasium as gym
import vla_gym, vla_gym_policies

venv = pathlib.Path(sys.prefix).resolve()
for module in (vla_gym, vla_gym_policies):
    assert pathlib.Path(module.__file__).resolve().is_relative_to(venv), module.__file__
env = gym.make("VLA/Toy-Reach-v0", instruction="embedding")
observation, info = env.reset(seed=0)
steps, done = 0, False
while not done:
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    steps, done = steps + 1, terminated or truncated
policy = vla_gym.make_policy("random", action_dim=7)
action, _ = policy.predict({"proprio": observation["proprio"][None]})
assert action.shape == (1, 7)
print(steps, observation["instruction"].shape, sorted(vla_gym.list_policies()))
"""


def test_an_installed_wheel_plays_a_loop_elsewhere(installed, elsewhere):
    (elsewhere / "loop.py").write_text(LOOP)
    output = run(installed / "python", "loop.py", cwd=elsewhere)
    policies = sorted(PROJECT["entry-points"]["vla_gym.policies"])
    assert output.strip() == f"50 (384,) {policies}"


def test_the_goal_tables_are_found_in_an_installed_wheel(installed, elsewhere):
    code = """
from vla_gym.suites.metaworld_goals import load_goals
print(load_goals("reach-v3", "test").shape)
"""
    assert run(installed / "python", "-c", code, cwd=elsewhere).strip() == "(50, 6)"


@needs("eval")
def test_the_command_evaluates_and_reports_elsewhere(installed, elsewhere):
    command = installed / "vla-gym"
    listed = run(command, "list", "Toy-*", cwd=elsewhere)
    assert "VLA/Toy-Reach-v0" in listed and "VLA/Toy-Lift-v0" in listed
    wanted = ("-p", "random", "-p", "zero", "-e", "Toy-Reach", "-n", "2", "-o", "out")
    run(command, "eval", *wanted, cwd=elsewhere)
    assert (elsewhere / "out" / "report.html").stat().st_size > 10_000
    assert len(load_records(elsewhere / "out")) == 4


def read_pins() -> dict[str, Version]:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line:
            found = re.fullmatch(r"([\w.-]+)==([\w.!+-]+)", line)
            assert found, f"constraints.txt: {line!r} is not name==version"
            name = canonicalize_name(found.group(1))
            assert name not in pins, f"constraints.txt pins {name} twice"
            pins[name] = Version(found.group(2))
    return pins


def test_constraints_are_versions_without_addresses():
    text = (ROOT / "constraints.txt").read_text()
    pins = read_pins()
    assert "://" not in text and " @ " not in text
    assert not re.search(r"^\s*-", text, re.MULTILINE), "an option such as --index-url"
    assert pins["torch"] == Version("2.13.0") and pins["mujoco"] == Version("3.3.0")
    assert all(version.local is None for version in pins.values()), "+cpu and such are not on PyPI"


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_requirement_has_a_pin_that_satisfies_it(extra):
    pins = read_pins()
    for line in EXTRAS[extra] if extra else PROJECT["dependencies"]:
        wanted = Requirement(line)
        if wanted.name == "vla-gym":  # an extra made of extras
            assert wanted.extras <= set(EXTRAS), line
            continue
        pin = pins.get(canonicalize_name(wanted.name))
        assert pin is not None, f"constraints.txt does not pin {wanted.name} of [{extra}]"
        assert pin in wanted.specifier, f"[{extra}] wants {line}, constraints.txt has {pin}"


def test_all_extras_but_the_developers_are_in_all():
    (line,) = EXTRAS["all"]
    assert Requirement(line).extras == set(EXTRAS) - {"all", "dev"}


def test_every_extra_that_brings_mujoco_pins_the_same():
    found = {r for lines in EXTRAS.values() for r in lines if Requirement(r).name == "mujoco"}
    assert found == {"mujoco==3.3.0"}
    for extra in ("metaworld", "robosuite"):
        assert "mujoco==3.3.0" in EXTRAS[extra]


def test_every_simulator_names_an_extra_that_exists():
    for module in SUITE_MODULES:
        for info in importlib.import_module(module).SUITE.simulators:
            assert info.extra in EXTRAS or not (info.modules or info.extra), info


def test_every_require_names_an_extra_that_exists():
    checked = 0
    for path in (*ROOT.glob("vla_gym/**/*.py"), *ROOT.glob("policies/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
                named = [k.value for k in node.keywords if k.arg == "extra"]
                extra = node.args[1] if len(node.args) > 1 else named[0]
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert isinstance(extra, ast.Constant), f"{place}: write the extra out"
                assert extra.value in EXTRAS, f"{place}: no extra {extra.value!r}"
                checked += 1
    assert checked > 10


def test_the_changelog_begins_with_what_comes_next_or_with_this_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in ("Unreleased", __version__)
    released = [Version(heading) for heading in headings if heading != "Unreleased"]
    assert released == sorted(released, reverse=True)
    assert all(version <= Version(__version__) for version in released)
