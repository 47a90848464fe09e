"""One policy object in one vector env with tasks of four suites, and on each of them alone."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import vla_gym
from tests.support import needs
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import add_batch_axis

pytestmark = needs("vla", "metaworld", "robosuite", "rlbench-twin", "calvin-twin")

KEYWORDS = {"image_size": 64, "render_quality": "fast"}
MIXED = [
    ("VLA/MetaWorld-DrawerOpen-v0", {}),
    ("VLA/Robosuite-Lift-v0", {}),
    ("VLA/CALVIN-OpenDrawer-v0", {"simulator": "calvin-twin"}),
    ("VLA/RLBench-ReachTarget-v0", {"simulator": "rlbench-twin"}),
    ("VLA/MetaWorld-Reach-v0", {}),
]


@pytest.fixture(scope="module")
def policy():
    from vla_gym_policies.vla import VLAConfig

    config = VLAConfig(width=32, fusion_layers=1, flow_layers=1, chunk=3, vision_size=64)
    return make_policy("vla", config=config)


def play_alone(policy, env_id, keywords, seed, steps):
    """Return instruction and actions of one env."""
    env = gym.make(env_id, **KEYWORDS, **keywords)
    fitted = connect(policy, env.unwrapped.spec_sheet)
    observation, _ = env.reset(seed=seed)
    state, actions = None, []
    for step in range(steps):
        action, state = fitted.predict(
            add_batch_axis(observation), state, np.array([step == 0]), True
        )
        actions.append(action[0])
        observation, *_ = env.step(action[0])
    env.close()
    return observation["instruction"], np.array(actions)


def test_one_policy_acts_in_a_mix_of_suites_as_in_each_alone(policy):
    steps = 5  # a chunk and a part of the next
    envs = vla_gym.make_vec(MIXED, workers=2, **KEYWORDS)
    observation, info = envs.reset(seed=3)
    assert sorted(set(info["suite"])) == ["CALVIN", "MetaWorld", "RLBench", "Robosuite"]
    state, played = None, []
    for step in range(steps):
        starts = np.full(len(MIXED), step == 0)
        actions, state = policy.predict(observation, state, starts, True)
        assert actions.shape == (len(MIXED), 7)
        played.append(actions)
        observation, *_ = envs.step(actions)
    instructions = observation["instruction"]
    envs.close()
    assert len(set(instructions)) == len(MIXED)
    for i, (env_id, keywords) in enumerate(MIXED):
        instruction, alone = play_alone(policy, env_id, keywords, 3 + i, steps)
        assert instruction == instructions[i]
        # The first action is that of the same picture; afterwards rounding in a batch may grow.
        np.testing.assert_allclose(np.array(played)[:3, i], alone[:3], atol=1e-5)
        np.testing.assert_allclose(np.array(played)[:, i], alone, atol=1e-3)
