"""Optional packages: missing and broken are told apart, and the message says what to type."""

from __future__ import annotations

import dataclasses
import sys

import gymnasium as gym
import pytest
from gymnasium.error import DependencyNotInstalled

from vla_gym import registration
from vla_gym.deps import find_missing, require
from vla_gym.errors import BrokenDependency
from vla_gym.suite import SimulatorInfo
from vla_gym.suites import toy


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that puts a real package of the given source on the import path."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write(name, source="", **modules):
        folder = tmp_path / name
        folder.mkdir()
        made.append(name)
        (folder / "__init__.py").write_text(source)
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(text)
        return name

    yield write
    for name in [m for m in sys.modules if m.split(".")[0] in made]:
        del sys.modules[name]


def test_an_installed_package_is_returned(package):
    package("fake_sim", "answer = 42", arms="left = 1")
    assert require("fake_sim", "metaworld").answer == 42
    assert require("fake_sim.arms", "metaworld").left == 1


def test_a_missing_package_is_named_with_the_line_that_installs_it():
    with pytest.raises(DependencyNotInstalled) as caught:
        require("no_such_sim.robots", "robosuite", "VLA/Robosuite-Lift-v0")
    assert str(caught.value) == (
        "VLA/Robosuite-Lift-v0 needs the package 'no_such_sim', which is not installed. "
        "Run: pip install 'vla-gym[robosuite]'"
    )
    assert not isinstance(caught.value, BrokenDependency)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(
        DependencyNotInstalled, match=r"^this needs the package 'no_such_sim', which"
    ):
        require("no_such_sim", "robosuite")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import no_such_part", r"which is installed but cannot be imported \(No module named 'no"),
        ("raise ImportError('libGL.so.1: no such file')", r"cannot be imported \(libGL\.so\.1: no"),
        # Python names the package itself in this one, as it does for a module that is missing.
        ("from fake_sim import gone", r"cannot be imported \(cannot import name 'gone' from"),
        ("raise RuntimeError('no GPU')", r"fails while it is imported \(RuntimeError: no GPU\)"),
        ("1 / 0", r"fails while it is imported \(ZeroDivisionError: division by zero\)"),
        ("def broken(:", r"fails while it is imported \(SyntaxError: "),
    ],
)
def test_a_broken_package_is_not_called_missing(package, source, why):
    package("fake_sim", source)
    with pytest.raises(BrokenDependency, match=why) as caught:
        require("fake_sim", "metaworld", "VLA/MetaWorld-Reach-v0")
    text = str(caught.value)
    assert text.startswith("VLA/MetaWorld-Reach-v0 needs the package 'fake_sim', which is")
    assert "not installed" not in text
    assert text.endswith("Repair it with: pip install 'vla-gym[metaworld]' --force-reinstall")
    assert isinstance(caught.value, DependencyNotInstalled)  # one except clause for both
    assert caught.value.__cause__ is not None


def test_a_package_without_the_wanted_module_is_broken_not_missing(package):
    package("fake_sim")
    with pytest.raises(BrokenDependency, match=r"'fake_sim\.arms', which is installed but cannot"):
        require("fake_sim.arms", "metaworld")


def test_find_missing_returns_the_first_that_is_not_there(package):
    package("fake_sim")
    assert find_missing(()) is None
    assert find_missing(("fake_sim", "numpy")) is None
    assert find_missing(("fake_sim", "no_such_a", "no_such_b")) == "no_such_a"
    assert find_missing(("no_such_a.deep.down",)) == "no_such_a.deep.down"


def test_find_missing_imports_nothing(package):
    package("fake_sim", "raise RuntimeError('imported')")
    assert find_missing(("fake_sim",)) is None
    assert "fake_sim" not in sys.modules


def test_find_missing_counts_a_module_that_python_forbids_as_missing(package, monkeypatch):
    package("fake_sim")
    monkeypatch.setitem(sys.modules, "fake_sim", None)
    assert find_missing(("fake_sim",)) == "fake_sim"


@pytest.fixture
def register(monkeypatch):
    """Return `register_suite`; what it registers is gone after the test."""
    monkeypatch.setattr(registration, "_suites", dict(registration._suites))
    before = dict(gym.registry)
    yield registration.register_suite
    gym.registry.clear()
    gym.registry.update(before)


SIMULATOR = """
from vla_gym.deps import require
from vla_gym.suites.toy import ToySimulator


class Simulator(ToySimulator):
    def __init__(self, setup):
        require("fake_sim", "metaworld", f"{setup.suite}-{setup.task}")
        super().__init__(setup)
"""


def test_a_simulator_that_is_installed_but_broken_says_so_at_the_first_reset(package, register):
    package("fake_sim", "raise RuntimeError('built for another Python')")
    package("fake_suite", SIMULATOR)
    info = SimulatorInfo("fake", "fake_suite:Simulator", ("fake_sim",), "metaworld")
    register(dataclasses.replace(toy.SUITE, name="Fake", simulators=(info,)))
    env = gym.make("VLA/Fake-Reach-v0", cameras=())  # spaces need no simulator
    with pytest.raises(BrokenDependency, match=r"Fake-Reach needs .* built for another Python"):
        env.reset(seed=0)
    env.close()
