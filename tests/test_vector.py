"""Vector envs that mix tasks, suites and interpreters."""

from __future__ import annotations

import os
import signal
import sys

import gymnasium as gym
import numpy as np
import pytest

import vla_gym
from tests.evaluation.stand_ins import find_simulators
from tests.support import needs
from vla_gym import make_vec
from vla_gym.errors import InvalidOption, UnknownName

REACH, LIFT = "VLA/Toy-Reach-v0", "VLA/Toy-Lift-v0"
SMALL = {"cameras": ("primary",), "image_size": 8}


@pytest.fixture(params=["async", "sync"])
def mixed(request):
    """Two tasks, one of them in another interpreter as well."""
    specs = [REACH, (LIFT, {"reward": "sparse"}), (LIFT, {"python": sys.executable})]
    envs = make_vec(specs, vectorization_mode=request.param, **SMALL)
    yield envs
    envs.close()


def test_each_env_is_the_one_that_was_asked_for(mixed):
    observation, info = mixed.reset(seed=[3, 4, 5])
    assert mixed.num_envs == 3
    assert observation["rgb_primary"].shape == (3, 8, 8, 3)
    assert list(info["task"]) == ["Reach", "Lift", "Lift"]
    assert (
        observation["instruction"]
        == ("move the gripper to the green ball",) + ("lift the red cube",) * 2
    )
    actions = np.zeros((3, 7), np.float32)
    stepped, rewards, *_ = mixed.step(actions)
    for i, (env_id, keywords) in enumerate([(REACH, {}), (LIFT, {"reward": "sparse"}), (LIFT, {})]):
        env = gym.make(env_id, **SMALL, **keywords)
        env.reset(seed=3 + i)
        one, reward, *_ = env.step(actions[i])
        assert rewards[i] == reward
        np.testing.assert_array_equal(stepped["rgb_primary"][i], one["rgb_primary"])
        np.testing.assert_array_equal(stepped["proprio"][i], one["proprio"])


def test_a_killed_simulator_ends_one_episode_of_a_vector_env():
    envs = make_vec(
        [REACH, (LIFT, {"python": sys.executable, "on_crash": "restart"})],
        vectorization_mode="sync",
        **SMALL,
    )
    envs.reset(seed=0)
    actions = np.zeros((2, 7), np.float32)
    envs.step(actions)
    (simulator,) = find_simulators(os.getpid())
    os.kill(simulator, signal.SIGKILL)
    _, rewards, terminated, truncated, info = envs.step(actions)
    assert list(truncated) == [False, True] and not terminated.any() and rewards[1] == 0.0
    assert list(info["crashed"]) == [False, True]
    for _ in range(3):  # the first of them is the reset of the second env
        *_, truncated, info = envs.step(actions)
        assert not truncated.any() and "crashed" not in info
    envs.close()
    assert find_simulators(os.getpid()) == []


@needs("metaworld")
@pytest.mark.slow
def test_suites_may_be_mixed():
    envs = make_vec(["VLA/MetaWorld-Reach-v0", REACH], cameras=(), instruction="bytes")
    _, info = envs.reset(seed=0)
    assert list(info["suite"]) == ["MetaWorld", "Toy"]
    envs.step(np.zeros((2, 7), np.float32))
    envs.close()


def test_spaces_that_differ_are_named_with_their_envs():
    with pytest.raises(InvalidOption) as caught:
        make_vec([REACH, LIFT, (LIFT, {"state": True, "action_mode": "native"})], **SMALL)
    text = str(caught.value)
    assert f"{REACH} (number 0) and {LIFT} (number 2) differ in action: Box(-1.0, 1.0, (7,)" in text
    assert "observation 'state': none and Box(-inf, inf, (10,), float64)" in text
    assert "proprio'" not in text


@pytest.mark.parametrize("specs", [[], REACH])
def test_it_takes_a_list_of_at_least_one(specs):
    with pytest.raises(InvalidOption, match="must be a list of at least one id"):
        make_vec(specs)


def test_an_unknown_mode_or_option_is_refused():
    with pytest.raises(UnknownName, match=r"no vectorization_mode 'asinc'.*'async'"):
        make_vec([REACH], vectorization_mode="asinc")
    with pytest.raises(UnknownName, match="camera 'primry'"):
        make_vec([REACH], cameras=("primry",))


def test_what_the_vector_env_takes_is_passed_on():
    envs = make_vec([REACH], vector_kwargs={"context": "fork", "shared_memory": False}, **SMALL)
    observation, _ = envs.reset(seed=0)
    assert observation["instruction"] == ("move the gripper to the green ball",)
    envs.close()
    assert "make_vec" in vla_gym.__all__
