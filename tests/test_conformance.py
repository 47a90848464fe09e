"""Every id keeps the contract; and `check_contract` finds each way of breaking it."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.support import needs
from vla_gym import VLAEnv, check_contract, list_ids, registration
from vla_gym.errors import ContractViolation, InvalidOption
from vla_gym.suite import SimulatorInfo
from vla_gym.suites.rlbench_twin import TWIN_TASKS
from vla_gym.suites.toy import SUITE, ToySimulator

QUICK_ROBOSUITE = ("Lift", "TwoArmPegInHole", "Wipe")
"""A reset of robosuite takes about a second: the others are in `make test-all`."""

QUICK_LIBERO = ("Goal0",)

PICTURED = ("VLA/Toy-Lift-v0", "VLA/MetaWorld-DoorLock-v0", "VLA/Robosuite-Door-v0")


def mark(env_id, slow=False):
    suite, task = split(env_id)
    able = [info for info in suite.simulators if info.tasks is None or task in info.tasks]
    marks = [needs(info.extra) for info in able if info.extra]
    return pytest.param(env_id, marks=[*marks, pytest.mark.slow] if slow else marks)


def split(env_id):
    name, task, _ = env_id.removeprefix("VLA/").rsplit("-", 2)
    return registration.get_suite(name), task


def is_quick(env_id):
    suite, task = split(env_id)
    quick = {"Robosuite": QUICK_ROBOSUITE, "LIBERO": QUICK_LIBERO}
    return task in quick.get(suite.name, (task,))


def is_tested(env_id):
    """Of RLBench's 109 tasks 84 are CoppeliaSim's alone; 84 skips a test would hide the others."""
    suite, task = split(env_id)
    return suite.name != "RLBench" or task in TWIN_TASKS


def is_first_of_scene(env_id):
    """Of LIBERO's 130 tasks 23: others' checkers ask for spaces and types, which a scene fixes."""
    suite, task = split(env_id)
    if suite.name != "LIBERO":
        return True
    scene = suite.tasks[task].tags[-1]
    return task == next(t.name for t in suite.tasks.values() if t.tags[-1] == scene)


EVERY_ID = [mark(i, slow=not is_quick(i)) for i in list_ids() if is_tested(i)]
EVERY_SCENE = [
    mark(i, slow=not is_quick(i)) for i in list_ids() if is_tested(i) and is_first_of_scene(i)
]


@pytest.mark.parametrize("env_id", EVERY_ID)
def test_every_id_keeps_the_contract(env_id):
    env = gym.make(env_id, cameras=(), state=True)
    check_contract(env)
    env.close()


@pytest.mark.parametrize("env_id", [mark(env_id, slow="Toy" not in env_id) for env_id in PICTURED])
def test_the_contract_holds_with_pictures(env_id):
    env = gym.make(env_id, image_size=32, render_mode="rgb_array", render_size=48)
    check_contract(env, steps=2)
    env.close()


@pytest.mark.filterwarnings("ignore:.*A Box observation space")  # proprio and state have no bounds
@pytest.mark.parametrize("env_id", EVERY_SCENE)
def test_ids_pass_gymnasiums_checker(env_id):
    env = gym.make(env_id, cameras=(), state=True)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("env_id", EVERY_SCENE)
@needs("sb3", "embedding")
def test_ids_pass_stable_baselines3s_checker(env_id):
    from stable_baselines3.common.env_checker import check_env as check_for_sb3

    env = gym.make(env_id, cameras=(), instruction="embedding")
    check_for_sb3(env, warn=False)
    env.close()


# ---------------------------------------------------------------- what check_contract finds


class GripperTurned(ToySimulator):
    def step(self, action):
        return super().step(action * np.array([1, 1, 1, -1], np.float32))


class AxesSwapped(ToySimulator):
    def step(self, action):
        return super().step(action[[1, 0, 2, 3]])


class AxisMirrored(ToySimulator):
    def step(self, action):
        return super().step(action * np.array([-1, 1, 1, 1], np.float32))


class Unseeded(ToySimulator):
    def reset(self, seed, options):
        del seed
        return super().reset(int(np.random.default_rng().integers(2**31)), options)


class Remembering(ToySimulator):
    """Its second episode differs from its first."""

    episodes = 0

    def reset(self, seed, options):
        self.episodes += 1
        return super().reset(seed + min(self.episodes, 2), options)


class SharedPicture(ToySimulator):
    buffer = None

    def render(self, camera, height, width):
        picture = super().render(camera, height, width)
        if self.buffer is None:
            self.buffer = picture
        self.buffer[...] = picture
        return self.buffer


class Blank(ToySimulator):
    def render(self, camera, height, width):
        return np.zeros((height, width, 3), np.uint8)


class FloatPicture(ToySimulator):
    def render(self, camera, height, width):
        return super().render(camera, height, width) / np.float32(255)


class NotANumber(ToySimulator):
    def step(self, action):
        frame = super().step(action)
        return frame._replace(proprio=frame.proprio * np.nan)


class NotARotation(ToySimulator):
    def reset(self, seed, options):
        frame = super().reset(seed, options)
        return frame._replace(proprio=frame.proprio * 1.5)


class InfiniteReward(ToySimulator):
    def step(self, action):
        return super().step(action)._replace(reward=float("inf"))


class TooShort(ToySimulator):
    def reset(self, seed, options):
        frame = super().reset(seed, options)
        return frame._replace(proprio=frame.proprio[:9])


class NotAscii(ToySimulator):
    def reset(self, seed, options):
        return super().reset(seed, options)._replace(instructions=("put the caf\u00e9 away",))


FAULTS = [
    (GripperTurned, r"gripper=\+1 leaves the opening at 0\.00, -1 then at 1\.00"),
    (AxesSwapped, r"dx=\+0\.5 instead of -0\.5 moved the end effector by \[0\. "),
    (AxisMirrored, r"dx=\+0\.5 instead of -0\.5 moved the end effector by \[-0"),
    (Unseeded, "the same seed gave another .* played again after another episode"),
    (Remembering, "the same seed gave another"),
    (Blank, "rgb_primary is of one colour"),
    (FloatPicture, r"'rgb_primary' is an array float32 \(32, 32, 3\), which is not in Box"),
    (NotANumber, "'proprio' has entries that are not finite"),
    (NotARotation, "its two columns are not orthonormal"),
    (InfiniteReward, "the reward inf, wanted a finite float"),
    (TooShort, r"'proprio' is an array float32 \(9,\), which is not in Box"),
    (NotAscii, "printable ASCII"),
]


@pytest.fixture
def broken_suite():
    """Register a suite whose simulator is a faulty one, and take it away afterwards."""
    ids = []

    def register(fault):
        info = SimulatorInfo("toy", f"{__name__}:{fault.__name__}")
        suite = dataclasses.replace(SUITE, name="Broken", simulators=(info,))
        registration.register_suite(suite)
        ids.extend(suite.id(task) for task in suite.tasks)
        return ids[0]

    yield register
    registration._suites.pop("Broken", None)
    for env_id in ids:
        gym.registry.pop(env_id, None)


@pytest.mark.parametrize(("fault", "text"), FAULTS)
def test_a_broken_simulator_is_found_and_named(fault, text, broken_suite):
    env = gym.make(broken_suite(fault), cameras=("primary",), image_size=32)
    with pytest.raises(ContractViolation, match=text) as found:
        check_contract(env)
    assert "VLA/Broken-Reach-v0 breaks the contract in" in str(found.value)


def test_a_simulator_may_draw_into_one_buffer_for_ever(broken_suite):
    env = gym.make(broken_suite(SharedPicture), cameras=("primary",), image_size=32)
    check_contract(env)


def test_the_suite_of_the_faults_is_sound_without_them(broken_suite):
    env = gym.make(broken_suite(ToySimulator), cameras=("primary",), image_size=32)
    check_contract(env)


def test_a_space_that_is_not_the_contracts_is_found():
    env = gym.make("VLA/Toy-Reach-v0", cameras=())
    env.unwrapped.action_space = gym.spaces.Box(-2, 2, (7,), np.float32)
    with pytest.raises(ContractViolation, match=r"action_space is Box\(-2"):
        check_contract(env)


def test_an_action_that_nobody_checks_is_found(monkeypatch):
    monkeypatch.setattr("vla_gym.env.check_action", lambda action, *_: np.ravel(action)[:7])
    env = gym.make("VLA/Toy-Reach-v0", cameras=())
    with pytest.raises(ContractViolation, match=r"NaN went through.*inf went through.*shape"):
        check_contract(env)


def test_an_env_of_others_is_refused_with_what_to_do():
    with pytest.raises(InvalidOption, match="register a Suite"):
        check_contract(gym.make("CartPole-v1"))


def test_a_bare_env_without_a_spec_can_be_checked():
    env = VLAEnv("Toy", "Reach", cameras=())
    assert env.spec is None
    check_contract(env)
