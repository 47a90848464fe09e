"""A simulator in another interpreter gives the same episodes, and its failures arrive by name."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import enum
import gc
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import MappingProxyType

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support import ROOT
from vla_gym import registration, worker_main
from vla_gym.errors import (
    BrokenDependency,
    DependencyNotInstalled,
    InvalidOption,
    ResetNeeded,
    SimulatorCrashed,
    UnknownName,
)
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import run_episode
from vla_gym.suite import Setup, SimulatorInfo
from vla_gym.suites import toy
from vla_gym.worker import RemoteSimulator, find_interpreter
from vla_gym.worker_main import Channel, pack, unpack

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

import dataclasses
import os
import signal
import sys
import time

from vla_gym import errors, register_suite
from vla_gym.deps import require
from vla_gym.suites import toy
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


class Shaky(ToySimulator):
    """Its physics diverges in the second step where a goal is given; then it is of no use."""

    broken = False

    def reset(self, seed, options):
        assert not self.broken
        self.doomed, self.steps = "goal" in options, 0
        return super().reset(seed, options)

    def step(self, action):
        self.steps += 1
        if self.doomed and self.steps == 2:
            self.broken = True
            raise errors.SimulatorCrashed("the physics diverged")
        return super().step(action)

    def close(self):
        assert not self.broken  # nothing may hang on a crashed simulator that cannot close


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


class Sleeper(ToySimulator):
    def step(self, action):
        time.sleep(float(os.environ["SLEEP_S"]))
        return super().step(action)


class Clumsy(ToySimulator):
    """Kills its process in the second step, and in a reset, as long as there are lives to lose."""

    def reset(self, seed, options):
        self.steps = 0
        self.lose_life("RESET_LIVES")
        return super().reset(seed, options)

    def step(self, action):
        self.steps += 1
        if self.steps == 2:
            self.lose_life("STEP_LIVES")
        return super().step(action)

    def lose_life(self, name):
        folder = os.environ.get(name)
        lives = sorted(os.listdir(folder)) if folder else []
        if lives:
            os.remove(os.path.join(folder, lives[0]))
            os.kill(os.getpid(), signal.SIGKILL)


class Squinting(ToySimulator):
    def render(self, camera, height, width):
        return super().render(camera, height, width - 1)


class Nosy(ToySimulator):
    """Tells what is loaded around it, and registers its suite as an outside module may."""

    def step(self, action):
        loaded = [name for name in sys.modules if name.split(".")[0] in ("gymnasium", "vla_gym")]
        return super().step(action)._replace(info={"loaded": tuple(sorted(loaded))})


register_suite(dataclasses.replace(toy.SUITE, name="Registered"))


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
    cause = rf"exit code {code}" + (r" \(SIGKILL\)" if code < 0 else "")
    text = rf"Odd{name}-Reach in .* ended during step\(\) with {cause}; its own messages"
    with pytest.raises(SimulatorCrashed, match=text):
        env.step(np.zeros(7))
    with pytest.raises(SimulatorCrashed, match=r"ended during reset\(\).*on_crash=.restart."):
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
    assert info["steps"] == (1, 2) and info["pairs"] == {"a": [True, None, math.inf]}


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
            "images": {},
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
    with pytest.raises(SimulatorCrashed, match=r"false ended during its start with exit code 1"):
        make(python=shutil.which("false")).reset(seed=0)


def test_with_another_interpreter_the_simulator_need_not_be_installed_here(odd):
    odd("Chatty", modules=("no_such_sim",)).reset(seed=0)
    with pytest.raises(DependencyNotInstalled, match="'no_such_sim', which is not installed"):
        odd("Chatty", modules=("no_such_sim",), python=None)


# The messages


def cross(message):
    """Return what arrives of a message, and check that nothing of it is left over."""
    data = pack(message)
    header_length, body_length = worker_main._LENGTHS.unpack_from(data)
    start, end = 16, 16 + header_length
    assert len(data) == end + body_length
    return unpack(data[start:end], data[end:])


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
keys = st.text() | st.sampled_from(["__array__", "__tuple__", "__map__"]) | st.integers()
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys | st.tuples(keys, keys), inner, max_size=3)
    ),
    max_leaves=8,
)


def assert_arrived(sent, arrived):
    assert type(arrived) is type(sent)
    if isinstance(sent, np.ndarray):
        assert arrived.dtype == sent.dtype and arrived.shape == sent.shape
        assert arrived.tobytes() == sent.tobytes()  # also NaNs and the sign of zero
        assert arrived.flags.writeable and arrived.flags.c_contiguous
    elif isinstance(sent, list | tuple):
        assert len(arrived) == len(sent)
        for one, other in zip(sent, arrived, strict=True):
            assert_arrived(one, other)
    elif isinstance(sent, dict):
        assert list(arrived) == list(sent)
        for key in sent:
            assert_arrived(sent[key], arrived[key])
    else:
        assert arrived == sent


@given(st.dictionaries(keys, nested, max_size=4))
def test_a_message_arrives_as_it_was_sent(message):
    assert_arrived(message, cross(message))


def test_views_and_mappings_arrive_as_plain_values():
    grid = np.arange(24).reshape(2, 3, 4)
    views = {"turned": grid.T, "thinned": grid[:, ::2], "mirrored": grid[::-1, :, ::-1]}
    arrived = cross(views)
    for name, view in views.items():
        np.testing.assert_array_equal(arrived[name], view)
    point = namedtuple("Point", "x y")(1, [2])
    assert_arrived(
        {"map": {"a": 1}, "p": (1, [2])}, cross({"map": MappingProxyType({"a": 1}), "p": point})
    )
    assert_arrived([2], cross([enum.IntEnum("Size", {"SMALL": 2}).SMALL]))


@pytest.mark.parametrize(
    "number",
    [np.float32(0.1), np.float64(0.1), np.int64(-7), np.bool_(True), np.uint8(3), np.str_("x")],
)
def test_numpy_numbers_keep_their_type(number):
    arrived = cross({"value": number, "also": [np.arange(3), number]})
    assert type(arrived["value"]) is type(arrived["also"][1]) is type(number)
    assert arrived["value"] == arrived["also"][1] == number


def test_numbers_that_are_not_finite_arrive():
    arrived = cross([math.inf, -math.inf, math.nan, np.float32("nan")])
    assert arrived[:2] == [math.inf, -math.inf]
    assert math.isnan(arrived[2]) and math.isnan(arrived[3])


@pytest.mark.parametrize(
    "stranger",
    [object(), {1, 2}, b"raw", np.array([None]), print, np.zeros(2, [("a", "f4"), ("b", "i2")])],
)
def test_what_cannot_travel_is_refused_before_a_byte_is_sent(stranger):
    with pytest.raises(TypeError, match="cannot cross to another interpreter"):
        pack({"first": np.zeros(3), "value": stranger})


@pytest.fixture
def channel():
    """Return one end of a connection, and the socket at its other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


@pytest.mark.parametrize("kept", [0, 5, 8, 20, -1])
def test_a_message_that_is_cut_off_says_that_the_other_side_is_gone(kept, channel):
    end, other = channel
    other.sendall(pack({"picture": np.zeros((4, 4, 3), np.uint8)})[:kept])
    other.close()
    with pytest.raises(EOFError, match="closed the connection"):
        end.receive(1.0)


def test_messages_arrive_in_order_whatever_pieces_they_come_in(channel):
    end, other = channel
    data = pack({"a": np.arange(5)}) + pack([1]) + pack({"b": (2,)})
    other.sendall(data[:30])
    with pytest.raises(TimeoutError):
        end.receive(0.01)
    other.sendall(data[30:-3])
    np.testing.assert_array_equal(end.receive(1.0)["a"], np.arange(5))
    assert end.receive(1.0) == [1]
    other.sendall(data[-3:])
    assert end.receive(1.0) == {"b": (2,)}


# What the other interpreter needs


NEEDED = (
    "contract.py",
    "deps.py",
    "errors.py",
    "rendering.py",
    "suite.py",
    "suites/**/*.py",
    "twins/**/*.py",
)
"""What a simulator's module may import of ours."""

NOT_IN_3_8 = {"vla_gym.suites.metaworld", "vla_gym.suites.metaworld_tasks"}
"""Adapters of simulators that need a later Python themselves (metaworld 3.1.1: 3.10)."""

OLD_PYTHONS = list(filter(None, os.environ.get("VLA_GYM_OLD_PYTHONS", "").split(os.pathsep)))
"""Interpreters with numpy and without Gymnasium, to be tried in earnest."""


def find_needed():
    package = ROOT / "vla_gym"
    return sorted(path for pattern in NEEDED for path in package.glob(pattern))


@pytest.mark.parametrize("path", [ROOT / "vla_gym/worker_main.py", *find_needed()], ids=str)
def test_what_the_other_interpreter_reads_has_the_syntax_of_python_3_8(path):
    source = path.read_text()
    ast.parse(source, feature_version=(3, 8))
    if path.name != "__init__.py" or ast.parse(source).body[1:]:
        assert "from __future__ import annotations" in source  # so that none is evaluated


def test_the_worker_itself_imports_the_standard_library_and_numpy_alone():
    found = set()
    for node in ast.walk(ast.parse((ROOT / "vla_gym/worker_main.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    assert found - sys.stdlib_module_names == {"numpy"}


def test_the_other_interpreter_needs_no_gymnasium_and_registers_nothing(odd, tmp_path):
    (tmp_path / "gymnasium.py").write_text("raise ImportError('not in this interpreter')")
    env = odd("Nosy")
    env.reset(seed=0)
    loaded = env.step(np.zeros(7))[-1]["loaded"]
    assert "vla_gym.suites.toy" in loaded and "vla_gym.contract" in loaded
    assert not {"gymnasium", "vla_gym.env", "vla_gym.registration"} & set(loaded)
    with pytest.raises(InvalidOption, match=r"options\['goal'\]"):
        env.reset(options={"goal": [9, 9, 9]})


@pytest.mark.skipif(not OLD_PYTHONS, reason="VLA_GYM_OLD_PYTHONS names no old interpreter")
@pytest.mark.parametrize("python", OLD_PYTHONS)
def test_an_old_interpreter_plays_the_same_episode(python):
    here, there = make(), make(python=python)
    try:
        assert here.reset(seed=3)[1] == there.reset(seed=3)[1]
        for action in np.random.default_rng(0).uniform(-1.2, 1.2, (8, 7)):
            one, other = here.step(action), there.step(action)
            np.testing.assert_array_equal(one[0]["rgb_primary"], other[0]["rgb_primary"])
            # numpy 2 keeps float32 where numpy 1 went on in float64
            np.testing.assert_allclose(one[0]["state"], other[0]["state"], rtol=1e-6)
            assert one[1:] == other[1:]
        with pytest.raises(InvalidOption, match=r"options\['goal'\]"):
            there.reset(options={"goal": [9, 9, 9]})
    finally:
        there.close()


@pytest.mark.skipif(not OLD_PYTHONS, reason="VLA_GYM_OLD_PYTHONS names no old interpreter")
@pytest.mark.parametrize("python", OLD_PYTHONS)
def test_every_adapter_can_be_imported_in_an_old_interpreter(python):
    parts = (path.relative_to(ROOT).with_suffix("").parts for path in find_needed())
    names = sorted(".".join(part for part in p if part != "__init__") for p in parts)
    code = (
        "import importlib, sys\n"
        "file, folder, *names = sys.argv[1:]\n"
        "worker = {'__name__': 'worker'}\n"
        "exec(compile(open(file).read(), file, 'exec'), worker)\n"
        "worker['_provide_package'](folder)\n"
        "worker['_complete_library']()\n"
        "if sys.version_info < (3, 9):\n"
        f"    names = [name for name in names if name not in {NOT_IN_3_8!r}]\n"
        "for name in names:\n"
        "    importlib.import_module(name)\n"
        "assert 'gymnasium' not in sys.modules\n"
    )
    package = ROOT / "vla_gym"
    arguments = [worker_main.__file__, str(package), *names]
    done = subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def write_script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_an_interpreter_may_be_a_script_on_path(tmp_path, monkeypatch):
    write_script(tmp_path / "python3.9", f'echo chatter; "{sys.executable}" "$@"; exit $?')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    env = make(python="python3.9")
    env.reset(seed=0)
    (python,) = find_children(process_of(env).pid)
    env.close()
    assert process_of_is_gone(python)


def test_an_interpreter_that_is_too_old_is_refused(tmp_path):
    old = write_script(tmp_path / "python3.7", f"exit {worker_main.TOO_OLD}")
    with pytest.raises(InvalidOption, match=r"python3\.7 is older than Python 3\.8"):
        make(python=old).reset(seed=0)


def test_an_interpreter_without_numpy_is_refused_with_the_command(tmp_path):
    bare = write_script(tmp_path / "bare", f'exec "{sys.executable}" -I -S "$@"')
    with pytest.raises(DependencyNotInstalled, match="bare -m pip install numpy"):
        make(python=bare).reset(seed=0)


def test_another_version_of_the_protocol_is_refused(monkeypatch):
    monkeypatch.setattr(worker_main, "PROTOCOL", 99)
    text = r"speaks version \d+ of the worker's protocol and this process version 99"
    with pytest.raises(InvalidOption, match=text):
        make(python=sys.executable).reset(seed=0)


def test_the_versions_over_there_are_known(odd):
    there, here = odd("Chatty"), make()
    assert there.simulator_versions == here.simulator_versions
    assert set(here.simulator_versions) == {"python", "numpy"}
    assert there.simulator_versions["numpy"] == np.__version__
    simulator = RemoteSimulator(
        sys.executable, "vla_gym.suites.toy:ToySimulator", setup(), ("gymnasium", "no-such-thing")
    )
    assert simulator.versions["gymnasium"] == gym.__version__
    assert set(simulator.versions) == {"python", "numpy", "gymnasium"}
    simulator.close()


# Crashes and hangs


def find_children(pid):
    """Return the ids of a process's children that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def process_of_is_gone(pid, wait_s=5.0):
    deadline = time.monotonic() + wait_s
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def test_a_simulator_that_hangs_is_killed_and_an_error(odd, monkeypatch):
    monkeypatch.setenv("SLEEP_S", "1000")
    env = odd("Sleeper", timeout_s=1.5)
    env.reset(seed=0)
    process = process_of(env)
    started = time.monotonic()
    text = r"OddSleeper-Reach in .* did not finish step\(\) within 1\.5 s and was killed"
    with pytest.raises(SimulatorCrashed, match=text):
        env.step(np.zeros(7))
    assert 1.4 < time.monotonic() - started < 5
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_hanging_worker_ends_even_if_its_parent_was_killed(tmp_path, odd, monkeypatch):
    monkeypatch.setenv("SLEEP_S", "1000")
    code = (
        "import dataclasses, os, sys\n"
        "import vla_gym\n"
        "from vla_gym.suite import Setup\n"
        "from vla_gym.worker import RemoteSimulator\n"
        f"setup = Setup(**{dataclasses.asdict(setup())!r})\n"
        "s = RemoteSimulator(sys.executable, 'odd_simulators:Sleeper', setup, timeout_s=1)\n"
        "s._channel.send(vla_gym.worker_main.pack({'call': 9, 'method': 'step', 'timeout_s': 1,\n"
        "    'arguments': {'action': (0, 0, 0, 0)}}))\n"
        "print(s._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    pid = int(done.stdout)
    assert is_running(pid)
    assert process_of_is_gone(pid, wait_s=20)


def test_a_crash_with_restart_ends_the_episode_and_a_reset_goes_on(odd, tmp_path, monkeypatch):
    lives = tmp_path / "lives"
    lives.mkdir()
    (lives / "1").touch()
    monkeypatch.setenv("STEP_LIVES", str(lives))
    env = odd("Clumsy", on_crash="restart", cameras=("primary",), image_size=8, state=True)
    env.reset(seed=4)
    first = process_of(env)
    before, *_ = env.step(np.ones(7))
    kept = {key: np.array(value) for key, value in before.items()}
    before["rgb_primary"][:] = 0  # the caller's own: the env must not need it again
    observation, reward, terminated, truncated, info = env.step(np.ones(7))
    assert_same({key: np.array(value) for key, value in observation.items()}, kept)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["crashed"] is True and info["success"] is False
    assert "ended during step() with exit code -9 (SIGKILL)" in info["crash"]
    assert {"instruction", "suite", "task", "simulator"} <= set(info)
    assert first.returncode == -signal.SIGKILL
    assert not env.render_camera("primary", 5).any()
    with pytest.raises(ResetNeeded, match="its simulator crashed"):
        env.step(np.ones(7))
    twin = make(cameras=("primary",), image_size=8)
    (one, one_info), (other, other_info) = env.reset(seed=9), twin.reset(seed=9)
    assert_same(one, other)
    assert one_info["episode_seed"] == other_info["episode_seed"]
    assert process_of(env).pid != first.pid
    for _ in range(3):
        assert "crashed" not in env.step(np.ones(7))[-1]


def test_a_hang_with_restart_ends_the_episode_too(odd, monkeypatch):
    monkeypatch.setenv("SLEEP_S", "1000")
    env = odd("Sleeper", timeout_s=1.5, on_crash="restart")
    env.reset(seed=0)
    *_, truncated, info = env.step(np.zeros(7))
    assert truncated and "did not finish step() within 1.5 s" in info["crash"]
    env.reset(seed=0)


@pytest.mark.parametrize(("lives", "works"), [(1, True), (2, False)])
def test_a_reset_that_crashes_is_tried_once_more(lives, works, odd, tmp_path, monkeypatch):
    folder = tmp_path / "lives"
    folder.mkdir()
    for number in range(lives):
        (folder / str(number)).touch()
    monkeypatch.setenv("RESET_LIVES", str(folder))
    env = odd("Clumsy", on_crash="restart")
    if works:
        observation, info = env.reset(seed=7)
        twin, twin_info = make(cameras=(), state=False).reset(seed=7)
        assert_same(observation, twin)
        assert info["episode_seed"] == twin_info["episode_seed"]
    else:
        with pytest.raises(SimulatorCrashed, match=r"ended during reset\(\)"):
            env.reset(seed=7)
        env.reset(seed=7)  # no lives are left to lose


@pytest.mark.parametrize("python", [None, sys.executable])
def test_a_simulator_that_says_it_crashed_is_opened_anew(python, odd, monkeypatch):
    if python is None:
        monkeypatch.syspath_prepend(os.environ["PYTHONPATH"])
    env = odd("Shaky", on_crash="restart", python=python)
    for options, crashes in (({}, False), ({"goal": [0, 0, 0]}, True), ({}, False)):
        env.reset(seed=0, options=options)
        env.step(np.zeros(7))
        *_, truncated, info = env.step(np.zeros(7))
        assert truncated is info.get("crashed", False) is crashes
        if crashes:
            assert "the physics diverged" in info["crash"]


def test_an_episode_that_crashed_is_no_episode_for_a_rollout(odd):
    for on_crash in ("raise", "restart"):
        env = odd("Unstable", on_crash=on_crash)
        with pytest.raises(SimulatorCrashed, match="the physics diverged"):
            run_episode(env, connect(make_policy("zero"), env.spec_sheet), seed=0)


def test_the_keywords_for_crashes_are_checked():
    with pytest.raises(InvalidOption, match=r"timeout_s=3 of VLA/Toy-Reach-v0 needs python="):
        make(timeout_s=3)
    for wrong in (0, -1, math.inf, math.nan, "soon", True):
        with pytest.raises(InvalidOption, match="must be a number of seconds above 0"):
            make(timeout_s=wrong, python=sys.executable)
    with pytest.raises(UnknownName, match=r"there is no on_crash 'restert'.*'restart'"):
        make(on_crash="restert")


def test_an_answer_to_a_call_that_was_cut_short_is_not_taken_for_another(odd, monkeypatch):
    monkeypatch.setenv("SLEEP_S", "0.6")
    env, twin = odd("Sleeper"), make(cameras=(), state=False)
    env.reset(seed=0)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            env.step(np.ones(7))
    finally:
        signal.signal(signal.SIGALRM, before)
    observation, info = env.reset(seed=5)
    expected, expected_info = twin.reset(seed=5)
    assert_same(observation, expected)
    assert info["episode_seed"] == expected_info["episode_seed"]


def test_a_fork_does_not_use_the_simulator_of_its_parent():
    env = make(python=sys.executable)
    env.reset(seed=0)
    simulator = env._simulator
    simulator._owner = -1  # as in a fork
    with pytest.raises(SimulatorCrashed, match="make the env after the fork"):
        env.step(np.zeros(7))
    simulator._owner = os.getpid()
    env.step(np.zeros(7))
    env.close()


def test_a_picture_of_another_shape_is_an_error(odd):
    env = odd("Squinting", cameras=("wrist",), image_size=8)
    text = r"picture of camera 'wrist' is uint8 \(8, 7, 3\), not uint8 \(8, 8, 3\)"
    with pytest.raises(SimulatorCrashed, match=text):
        env.reset(seed=0)


@pytest.mark.parametrize("end", ["close", "kill", "drop"])
def test_nothing_stays_behind_a_worker(end):
    def look():
        gc.collect()
        return (
            sorted(os.listdir("/dev/shm")),
            len(os.listdir("/proc/self/fd")),
            sorted(find_children(os.getpid())),
        )

    before = look()
    for _ in range(3):
        env = make(python=sys.executable, image_size=128)
        env.reset(seed=0)
        env.step(np.ones(7))
        pid = process_of(env).pid
        if end == "kill":
            os.kill(pid, signal.SIGKILL)
        if end != "drop":
            env.close()
        del env
        gc.collect()
        assert process_of_is_gone(pid)
    assert look() == before
