"""Envs that take a chunk at once: they do what the same actions do one by one."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import vla_gym  # noqa: F401  registers the ids
from tests.support import needs
from tests.train.rl_support import LIFT, REACH
from vla_gym.train.chunk_env import ChunkEnv, make_chunk_envs, play


def chunk_env(execute=4, history=1, env_id=REACH, **keywords):
    env = gym.make(env_id, cameras=(), **keywords)
    return ChunkEnv(env, {"primary": 24, "wrist": 16}, history, execute)


def one_by_one(actions, seed, env_id=REACH, **keywords):
    """Return what an ordinary env with the same pictures shows and gives, step by step."""
    sizes = {"primary": 24, "wrist": 16}
    env = gym.make(env_id, cameras=tuple(sizes), image_size=sizes, **keywords)
    found = [(env.reset(seed=seed)[0], 0.0, False)]
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        found.append((observation, reward, terminated or truncated))
        if found[-1][2]:
            break
    env.close()
    return found


@pytest.mark.parametrize(
    "env_id", [REACH, pytest.param("VLA/MetaWorld-Reach-v0", marks=needs("metaworld"))]
)
def test_a_chunk_does_what_its_actions_do_one_by_one(env_id):
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (12, 7)).astype(np.float32)
    steps = one_by_one(actions, seed=3, env_id=env_id)
    env = chunk_env(execute=4, env_id=env_id)
    observation, _ = env.reset(seed=3)
    for k in range(3):
        assert observation.keys() == env.observation_space.spaces.keys()
        for key, value in steps[4 * k][0].items():
            shown = observation[key][0] if key.startswith("rgb_") else observation[key]
            assert np.array_equal(shown, value), key
        observation, reward, _, _, info = env.step(actions[4 * k : 4 * k + 4].ravel())
        assert reward == pytest.approx(sum(step[1] for step in steps[4 * k + 1 : 4 * k + 5]))
        assert info["control_steps"] == 4
        assert env.observation_space.contains(observation)
    env.close()


def test_an_episode_ends_within_a_chunk_and_the_rest_of_it_is_not_done():
    env = chunk_env(execute=4, max_episode_steps=6)
    env.reset(seed=0)
    assert env.step(np.zeros(28, np.float32))[3] is False
    _, _, terminated, truncated, info = env.step(np.zeros(28, np.float32))
    assert (terminated, truncated, info["control_steps"]) == (False, True, 2)
    env.close()


def test_the_history_is_that_of_control_steps_and_begins_with_the_first_picture():
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 7)).astype(np.float32)
    pictures = [step[0]["rgb_wrist"] for step in one_by_one(actions, seed=1)]
    env = chunk_env(execute=2, history=3)
    observation, _ = env.reset(seed=1)
    assert np.array_equal(observation["rgb_wrist"], np.stack([pictures[0]] * 3))
    observation = env.step(actions[:2].ravel())[0]
    assert np.array_equal(observation["rgb_wrist"], np.stack(pictures[:3]))
    observation = env.step(actions[2:].ravel())[0]
    assert np.array_equal(observation["rgb_wrist"], np.stack(pictures[2:5]))
    assert np.array_equal(env.reset(seed=1)[0]["rgb_wrist"], np.stack([pictures[0]] * 3))
    env.close()


def test_play_plays_each_seed_once_in_its_env_and_then_the_env_idles():
    envs = make_chunk_envs(
        [REACH, LIFT],
        4,
        cameras=(),
        image_size=32,
        history=1,
        execute=5,
        workers=2,
        max_episode_steps=10,
        state=True,
    )
    seeds = [[1, 2, 3], [4], [], [5, 5]]
    seen = []

    def act(observation):
        seen.append(observation["state"].copy())
        return np.zeros((4, 35), np.float32), [row.copy() for row in observation["state"]]

    for _ in range(2):  # it can be used again
        played = play(envs, seeds, act)
        order = sorted((e.env, e.seed) for e in played)
        assert order == [(0, 1), (0, 2), (0, 3), (1, 4), (3, 5), (3, 5)]
        assert {e.length for e in played} == {10}
        assert {len(e.trace) for e in played} == {2}
    starts = {}
    for e in played:
        env = gym.make([REACH, LIFT][e.env % 2], cameras=(), state=True)
        starts[e.env, e.seed] = env.reset(seed=e.seed)[0]["state"]
        assert np.array_equal(e.trace[0], starts[e.env, e.seed])
    assert np.array_equal(seen[-1][1], seen[-2][1])  # env 1 had but one seed: nothing moves
    envs.close()
