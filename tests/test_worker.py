"""A simulator in another interpreter gives the same episodes, and its failures arrive by name."""

from __future__ import annotations

import dataclasses
import gc
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vla_gym import registration
from vla_gym.errors import (
    BrokenDependency,
    DependencyNotInstalled,
    InvalidOption,
    SimulatorCrashed,
    UnknownName,
)
from vla_gym.suite import Setup, SimulatorInfo
from vla_gym.suites import toy
from vla_gym.worker import RemoteSimulator, _receive, _send, find_interpreter

KEYWORDS = {"cameras": ("primary", "wrist"), "image_size": 16, "state": True}


def make(task="Reach", **keywords):
    return gym.make(f"VLA/Toy-{task}-v0", **{**KEYWORDS, **keywords}).unwrapped


def process_of(env):
    return env._simulator._process


def assert_same(one, other):
    """Raise unless two observations are equal bit for bit."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, str):
            assert value == other[key]
        else:
            assert value.dtype == other[key].dtype
            np.testing.assert_array_equal(value, other[key])


ODD = r'''
"""Simulators that misbehave, each in its own way."""

import os
import signal
import sys

from vla_gym import errors
from vla_gym.deps import require
from vla_gym.suites.toy import ToySimulator


class Talker(ToySimulator):
    """Prints all the time, from Python and from below it."""

    def __init__(self, setup):
        print("hello from the simulator")
        super().__init__(setup)

    def step(self, action):
        print("a step" * 100)
        sys.stdout.flush()
        os.write(1, b"written by a C library\n")
        return super().step(action)


class Killed(ToySimulator):
    def step(self, action):
        os.kill(os.getpid(), signal.SIGKILL)


class Quitter(ToySimulator):
    def step(self, action):
        sys.stderr.write("out of ideas\n")
        sys.stderr.flush()
        os._exit(3)


class Thrower(ToySimulator):
    def step(self, action):
        raise RuntimeError("the joints are tangled")


class Unstable(ToySimulator):
    def step(self, action):
        raise errors.SimulatorCrashed("the physics diverged")


class Picky(ToySimulator):
    def reset(self, seed, options):
        raise errors.UnknownName("mood", "sulen", ("sullen", "sunny"), "Picky")


class Missing(ToySimulator):
    def __init__(self, setup):
        require("no_such_sim", "metaworld", "Missing")


class Broken(ToySimulator):
    def __init__(self, setup):
        raise errors.BrokenDependency("half of it is there")


class Vague(ToySimulator):
    def step(self, action):
        return super().step(action)._replace(info={"thing": object()})


class Chatty(ToySimulator):
    def step(self, action):
        frame = super().step(action)
        info = {"steps": (1, 2), "pose": self._gripper, "pairs": {"a": [True, None, float("inf")]}}
        return frame._replace(info=info, instructions=("go on", "carry on"))


class Slow(ToySimulator):
    def close(self):
        with open(os.environ["CLOSED_MARK"], "a") as file:
            file.write("closed\n")
'''


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """Return a function that makes an env on one of the simulators above, in another process."""
    (tmp_path / "odd_simulators.py").write_text(ODD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(registration, "_suites", dict(registration._suites))
    before = dict(gym.registry)
    envs = []

    def make_odd(name, modules=(), **keywords):
        info = SimulatorInfo(name.lower(), f"odd_simulators:{name}", modules, "metaworld")
        registration.register_suite(
            dataclasses.replace(toy.SUITE, name=f"Odd{name}", simulators=(info,))
        )
        keywords = {"cameras": (), "python": sys.executable, **keywords}
        envs.append(gym.make(f"VLA/Odd{name}-Reach-v0", **keywords).unwrapped)
        return envs[-1]

    yield make_odd
    for env in envs:
        env.close()
    gym.registry.clear()
    gym.registry.update(before)


@pytest.mark.parametrize("task", ["Reach", "Lift"])
def test_an_episode_is_the_same_bit_for_bit_in_another_interpreter(task):
    here, there = make(task), make(task, python=sys.executable)
    assert there.spec_sheet == here.spec_sheet and there.observation_space == here.observation_space
    actions = np.random.default_rng(0).uniform(-1.2, 1.2, (8, 7))
    try:
        for reset in ({"seed": 3}, {}, {"options": {"goal": np.array([0.1, 0.1, 0.2])}}):
            (one, one_info), (other, other_info) = here.reset(**reset), there.reset(**reset)
            assert_same(one, other)
            assert one_info == other_info
            for action in actions:
                one, other = here.step(action), there.step(action)
                assert_same(one[0], other[0])
                assert one[1:] == other[1:]
        for camera, size in (("top", 21), ("primary", 256)):
            picture = there.render_camera(camera, size)
            np.testing.assert_array_equal(picture, here.render_camera(camera, size))
        assert process_of(there).pid != os.getpid()
    finally:
        there.close()


def test_observations_of_another_interpreter_belong_to_the_caller():
    env = make(python=sys.executable)
    try:
        observations = [env.reset(seed=0)[0], env.step(np.ones(7))[0]]
        for key in ("rgb_primary", "proprio", "state"):
            first, second = (observation[key] for observation in observations)
            assert first.flags.writeable and not np.shares_memory(first, second)
    finally:
        env.close()


def test_an_invalid_option_is_the_same_error_and_the_simulator_goes_on():
    env = make(python=sys.executable)
    try:
        env.reset(seed=0)
        with pytest.raises(InvalidOption, match=r"options\['goal'\]=\[9, 9, 9\] must lie in") as e:
            env.reset(options={"goal": [9, 9, 9]})
        assert f"(in the simulator of Toy-Reach in {sys.executable})" in str(e.value)
        env.reset(seed=0)
        assert process_of(env).poll() is None
    finally:
        env.close()


def test_an_option_that_cannot_travel_is_refused_and_the_simulator_goes_on():
    env = make(python=sys.executable)
    try:
        env.reset(seed=0)
        for stranger in (object(), np.array([object()])):
            with pytest.raises(TypeError, match="cannot cross to another interpreter"):
                env.reset(options={"goal": stranger})
        env.reset(seed=0)
    finally:
        env.close()


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        (
            "Missing",
            DependencyNotInstalled,
            r"'no_such_sim', .* pip install 'vla-gym\[metaworld\]'",
        ),
        ("Broken", BrokenDependency, "half of it is there"),
        ("Picky", UnknownName, r"no mood 'sulen' in Picky\. Did you mean 'sullen'\? Valid: "),
    ],
)
def test_our_own_errors_cross_with_their_type(odd, name, kind, text):
    with pytest.raises(kind, match=text) as caught:
        odd(name).reset(seed=0)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Thrower", r"RuntimeError: the joints are tangled \(in the simulator of OddThrower-Reach"),
        ("Unstable", "the physics diverged"),
    ],
)
def test_other_errors_of_a_simulator_are_crashes_with_their_text(odd, name, text):
    env = odd(name)
    env.reset(seed=0)
    with pytest.raises(SimulatorCrashed, match=text):
        env.step(np.zeros(7))
    env.reset(seed=0)  # the process itself lives on


@pytest.mark.parametrize(("name", "code"), [("Killed", -signal.SIGKILL), ("Quitter", 3)])
def test_a_simulator_that_dies_is_a_crash_with_its_exit_code(odd, name, code, capfd):
    env = odd(name)
    env.reset(seed=0)
    text = rf"Odd{name}-Reach in .* ended during step\(\) with exit code {code}; its own messages"
    with pytest.raises(SimulatorCrashed, match=text):
        env.step(np.zeros(7))
    with pytest.raises(SimulatorCrashed, match=r"ended during reset\(\)"):
        env.reset()
    env.close()
    env.close()
    if name == "Quitter":
        assert "out of ideas" in capfd.readouterr().err  # as the message says


def test_a_process_that_someone_kills_between_two_steps_is_a_crash():
    env = make(python=sys.executable)
    env.reset(seed=0)
    os.kill(process_of(env).pid, signal.SIGKILL)
    with pytest.raises(SimulatorCrashed, match=r"ended during step\(\) with exit code -9"):
        env.step(np.zeros(7))
    env.close()


def test_an_answer_that_cannot_travel_is_an_error_of_the_simulator(odd):
    env = odd("Vague")
    env.reset(seed=0)
    with pytest.raises(SimulatorCrashed, match="object cannot cross to another interpreter"):
        env.step(np.zeros(7))


def test_what_a_simulator_prints_goes_to_stderr_and_not_into_the_protocol(odd, capfd):
    env, twin = odd("Talker"), make(cameras=())
    twin.reset(seed=5)
    env.reset(seed=5)
    for _ in range(3):
        assert env.step(np.ones(7))[1] == twin.step(np.ones(7))[1]
    env.close()
    out, err = capfd.readouterr()
    assert out == ""
    assert "hello from the simulator" in err and "a step" in err
    assert err.count("written by a C library") == 3


def test_info_and_new_instructions_cross(odd):
    env = odd("Chatty")
    env.reset(seed=0)
    observation, *_, info = env.step([0, 0, 1, 0, 0, 0, 0])
    assert observation["instruction"] == info["instruction"] == "go on"
    np.testing.assert_allclose(info.pop("pose"), [0, 0, 0.35])
    assert info["steps"] == [1, 2] and info["pairs"] == {"a": [True, None, math.inf]}


def test_closing_ends_the_process_and_lets_the_simulator_close(odd, tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    monkeypatch.setenv("CLOSED_MARK", str(mark))
    env = odd("Slow")
    env.reset(seed=0)
    process = process_of(env)
    env.close()
    env.close()
    assert process.returncode == 0
    assert mark.read_text() == "closed\n"


def test_an_env_that_is_dropped_leaves_no_process():
    simulator = RemoteSimulator(sys.executable, "vla_gym.suites.toy:ToySimulator", setup())
    process = simulator._process
    assert process.poll() is None
    del simulator
    gc.collect()
    assert process.poll() is not None


def test_a_worker_ends_with_its_parent(tmp_path):
    code = (
        "import gymnasium as gym, os, sys, vla_gym\n"
        "env = gym.make('VLA/Toy-Reach-v0', cameras=(), python=sys.executable).unwrapped\n"
        "env.reset(seed=0)\n"
        "print(env._simulator._process.pid, flush=True)\n"
        "os._exit(0)\n"  # no clean-up runs
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(found.stdout)
    for _ in range(100):
        if not is_running(pid):
            break
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def setup(**changes):
    return Setup(
        **{
            "suite": "Toy",
            "task": "Reach",
            "native_task": "reach",
            "action_mode": "native",
            "cameras": (),
            "image_size": 8,
            "proprio": "eef",
            "state": False,
            "render_quality": "exact",
            "keywords": {},
            **changes,
        }
    )


def test_a_simulator_that_does_not_exist_over_there_is_named():
    with pytest.raises(SimulatorCrashed, match="ModuleNotFoundError: No module named 'nowhere'"):
        RemoteSimulator(sys.executable, "nowhere:Simulator", setup())


def test_an_unknown_interpreter_is_refused_when_the_env_is_made(tmp_path):
    lost = str(tmp_path / "python")
    with pytest.raises(InvalidOption, match=f"python='{lost}' is not a program that can be run"):
        make(python=lost)
    with pytest.raises(InvalidOption, match="python='no-such-python' is not a program"):
        make(python="no-such-python")
    assert find_interpreter(sys.executable) == sys.executable


def test_a_program_that_is_no_python_is_a_crash_and_not_a_hang():
    with pytest.raises(SimulatorCrashed, match=r"in .*false ended during open\(\) with exit c"):
        make(python=shutil.which("false")).reset(seed=0)


def test_with_another_interpreter_the_simulator_need_not_be_installed_here(odd):
    odd("Chatty", modules=("no_such_sim",)).reset(seed=0)
    with pytest.raises(DependencyNotInstalled, match="'no_such_sim', which is not installed"):
        odd("Chatty", modules=("no_such_sim",), python=None)


# The messages


def cross(message):
    """Return what arrives of a message, and check that nothing of it is left over."""
    stream = io.BytesIO()
    _send(stream, message)
    _send(stream, {"next": 1})
    stream.seek(0)
    arrived = _receive(stream)
    assert _receive(stream) == {"next": 1}
    return arrived


kinds = (
    st.sampled_from(["?", "u1", "i4", "i8", "u8", "f2", "f4", "f8", "c8", "c16", ">f4", "U3", "S2"])
    .map(np.dtype)
)  # fmt: skip
any_array = kinds.flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0))
)
plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | any_array
)  # fmt: skip
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text().filter(lambda key: key != "__array__"), inner, max_size=3)
    ),
    max_leaves=8,
)


def assert_arrived(sent, arrived):
    assert type(arrived) is type(sent)
    if isinstance(sent, np.ndarray):
        assert arrived.dtype == sent.dtype and arrived.shape == sent.shape
        assert arrived.tobytes() == sent.tobytes()  # also NaNs and the sign of zero
        assert arrived.flags.writeable and arrived.flags.c_contiguous
    elif isinstance(sent, list):
        assert len(arrived) == len(sent)
        for one, other in zip(sent, arrived, strict=True):
            assert_arrived(one, other)
    elif isinstance(sent, dict):
        assert list(arrived) == list(sent)
        for key in sent:
            assert_arrived(sent[key], arrived[key])
    else:
        assert arrived == sent


@given(st.dictionaries(st.text().filter(lambda key: key != "__array__"), nested, max_size=4))
def test_a_message_arrives_as_it_was_sent(message):
    assert_arrived(message, cross(message))


def test_views_numpy_numbers_and_mappings_arrive_as_plain_values():
    grid = np.arange(24).reshape(2, 3, 4)
    views = {"turned": grid.T, "thinned": grid[:, ::2], "mirrored": grid[::-1, :, ::-1]}
    arrived = cross(views)
    for name, view in views.items():
        np.testing.assert_array_equal(arrived[name], view)
    numbers = {"a": np.float32(0.1), "b": np.int64(-7), "c": np.bool_(True)}
    assert cross(numbers) == {"a": float(np.float32(0.1)), "b": -7, "c": True}
    assert cross({"map": setup().keywords, "pair": (1, 2)}) == {"map": {}, "pair": [1, 2]}


@pytest.mark.parametrize("stranger", [object(), {1, 2}, b"raw", np.array([None]), print])
def test_what_cannot_travel_is_refused_before_a_byte_is_sent(stranger):
    stream = io.BytesIO()
    with pytest.raises(TypeError, match="cannot cross to another interpreter"):
        _send(stream, {"first": np.zeros(3), "value": stranger})
    assert stream.getvalue() == b""


@pytest.mark.parametrize("kept", [0, 5, 8, 20, -1])
def test_a_message_that_is_cut_off_says_that_the_other_side_is_gone(kept):
    stream = io.BytesIO()
    _send(stream, {"picture": np.zeros((4, 4, 3), np.uint8)})
    with pytest.raises(EOFError, match="closed the connection"):
        _receive(io.BytesIO(stream.getvalue()[:kept]))
