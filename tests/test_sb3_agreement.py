"""Stable-Baselines3's `evaluate_policy` and our loop take each other's policies and agree."""

from __future__ import annotations

import functools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import FilterObservation
from vla_gym_policies.sb3 import SB3Policy

import vla_gym  # noqa: F401  registers the ids
from tests.support import needs
from vla_gym.errors import InvalidOption
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import run_episode

pytestmark = needs("sb3", "metaworld")

REACH = "VLA/MetaWorld-Reach-v0"
SEEDS = range(3)
STEPS = 30


def make(keys, **keywords):
    """Make the env with a part of its observation: Stable-Baselines3 knows no text."""
    given = {"cameras": (), "state": True, "max_episode_steps": STEPS, **keywords}
    return FilterObservation(gym.make(REACH, **given), keys)


def score_by_theirs(policy, keys, **keywords):
    """Return the returns of one episode of each seed, as Stable-Baselines3 counts them."""
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([lambda: Monitor(make(keys, **keywords))] * len(SEEDS))
    envs.seed(SEEDS[0])  # env i gets seed i
    returns, lengths = evaluate_policy(
        policy, envs, n_eval_episodes=len(SEEDS), return_episode_rewards=True
    )
    envs.close()
    assert lengths == [STEPS] * len(SEEDS)
    return returns


def score_by_ours(policy, keys=None, goals=False, **keywords):
    env = (
        make(keys, **keywords)
        if keys
        else gym.make(REACH, state=True, cameras=(), max_episode_steps=STEPS)
    )
    returns = []
    for seed in SEEDS:  # an evaluation's episode plays the goal of its seed's remainder
        options = {"goal": seed % 50} if goals else None
        returns.append(run_episode(env, policy, seed, options=options).episode_return)
    env.close()
    return returns


@functools.cache
def model_of(algorithm):
    import stable_baselines3

    return getattr(stable_baselines3, algorithm)("MultiInputPolicy", make(["state"]), seed=0)


def test_theirs_takes_a_plug_in_of_ours():
    sheet = gym.make(REACH, state=True).unwrapped.spec_sheet
    expert = connect(make_policy("metaworld-expert"), sheet)
    keys = ["proprio", "state"]
    theirs, ours = score_by_theirs(expert, keys), score_by_ours(expert)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)  # Monitor rounds to six digits
    assert len(set(ours)) == len(SEEDS)  # different episodes, so that a mix-up would show


@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "TD3"])
def test_ours_takes_a_model_of_theirs_as_it_is_or_as_a_plug_in(algorithm):
    model = model_of(algorithm)
    theirs = score_by_theirs(model, ["state"])
    raw = score_by_ours(model, ["state"])  # where the env shows what it was trained on and no more
    np.testing.assert_allclose(theirs, raw, rtol=1e-5)
    sheet = gym.make(REACH, state=True).unwrapped.spec_sheet
    assert score_by_ours(connect(SB3Policy(model), sheet)) == raw


def wrap_policy(model):
    return functools.partial(SB3Policy, model.policy)


@pytest.mark.parametrize("source", [lambda model: model, wrap_policy], ids=["model", "policy"])
def test_the_evaluator_takes_a_model_of_theirs_or_its_policy(source, tmp_path):
    from vla_gym.evaluation.evaluate import evaluate

    model = model_of("PPO")
    found = evaluate(
        {"theirs 1.0": source(model)},
        [REACH],
        episodes=len(SEEDS),
        folder=tmp_path,
        max_steps=STEPS,
        video=False,
    )
    assert [record.length for record in found.records] == [STEPS] * len(SEEDS)  # none solved early
    returns = [record.episode_return for record in found.records]
    np.testing.assert_allclose(returns, score_by_ours(model, ["state"], goals=True), rtol=1e-5)
    assert len(set(returns)) == len(SEEDS)


def test_something_else_than_a_policy_is_refused(tmp_path):
    from vla_gym.evaluation.evaluate import evaluate

    with pytest.raises(InvalidOption, match=r"policy 'mine' is a dict; valid are a name"):
        evaluate({"mine": {}}, [REACH], episodes=1, folder=tmp_path)


@pytest.mark.parametrize("instruction", ["embedding", "bytes"])
@needs("vla")
def test_theirs_takes_our_vla_and_agrees_with_ours(instruction):
    from vla_gym_policies.vla import VLAConfig

    config = VLAConfig(cameras=("primary",), width=16, fusion_layers=1, chunk=2, vision_size=32)
    policy = make_policy("vla", config=config)
    keys = ["rgb_primary", "proprio", "instruction"]
    given = {
        "cameras": ("primary",),
        "image_size": 32,
        "render_quality": "fast",
        "instruction": instruction,
        "state": False,
    }
    theirs = score_by_theirs(policy, keys, **given)
    np.testing.assert_allclose(theirs, score_by_ours(policy, keys, **given), rtol=1e-4)
    assert len(set(theirs)) == len(SEEDS)
