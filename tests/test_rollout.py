"""The one step loop."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import vla_gym
from vla_gym.errors import InvalidOption
from vla_gym.policy import connect
from vla_gym.rollout import MAX_FRAMES, run_episode


def make(task="Reach", **keywords):
    return gym.make(f"VLA/Toy-{task}-v0", **{"cameras": (), **keywords})


class Watcher:
    """Remembers what it is given."""

    def __init__(self):
        self.calls, self.seeds = [], []

    def set_random_seed(self, seed):
        self.seeds.append(seed)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.calls.append((observation, state, episode_start.copy(), deterministic))
        return np.zeros((1, 7), np.float32), (state or 0) + 1


def test_a_policy_gets_a_batch_of_one_its_own_state_and_the_start_flag():
    env, watcher = make(cameras=("wrist",), image_size=32), Watcher()
    episode = run_episode(env, watcher, seed=3, deterministic=False)
    assert episode.length == len(watcher.calls) == 50
    observation, _, _, deterministic = watcher.calls[0]
    assert observation["rgb_wrist"].shape == (1, 32, 32, 3)
    assert observation["proprio"].shape == (1, 10)
    assert observation["instruction"] == ("move the gripper to the green ball",)
    assert deterministic is False
    assert [state for _, state, _, _ in watcher.calls] == [None, *range(1, 50)]
    assert [bool(start[0]) for _, _, start, _ in watcher.calls] == [True] + [False] * 49
    assert watcher.seeds == [3]


def test_an_episode_repeats_whatever_ran_before():
    env = make()
    policy = connect(vla_gym.make_policy("random"), env.unwrapped.spec_sheet)
    first = run_episode(env, policy, seed=1)
    run_episode(env, policy, seed=2)
    again = run_episode(env, policy, seed=1)
    times = ("env_seconds", "policy_seconds")
    for name in (field for field in first.__dataclass_fields__ if field not in times):
        assert getattr(first, name) == getattr(again, name), name


def test_return_and_success_add_up_over_the_steps():
    env = make(terminate_on_success=False)
    goal = np.array([0.0, 0.0, 0.45])  # three steps of 0.05 m above home
    up = np.array([[0, 0, 1, 0, 0, 0, 0]], np.float32)

    class UpAndOn(Watcher):
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return up, state

    episode = run_episode(env, UpAndOn(), seed=0, options={"goal": goal})
    # Heights 0.35, 0.40, 0.45, 0.50, 0.55, then 0.60 for the other 45 of 50 steps.
    assert episode.episode_return == pytest.approx(-(0.10 + 0.05 + 0 + 0.05 + 0.10 + 45 * 0.15))
    assert episode.success and not episode.success_at_end
    assert episode.truncated and not episode.terminated
    assert episode.id == "VLA/Toy-Reach-v0" and episode.simulator == "toy"


def test_recording_changes_nothing_and_keeps_few_evenly_spaced_pictures():
    plain, filmed = make("Lift"), make("Lift", render_mode="rgb_array", render_size=32)
    policy = connect(vla_gym.make_policy("random"), plain.unwrapped.spec_sheet)
    without = run_episode(plain, policy, seed=4)
    recorded = run_episode(filmed, policy, seed=4, record_every=1)
    assert recorded.episode_return == without.episode_return
    assert without.frames == () and without.frame_stride == 0
    # 101 pictures are too many: stride 2 holds steps 0 to 94 in 48, so it ends at stride 4.
    assert recorded.frame_stride == 4
    assert len(recorded.frames) == 26 <= MAX_FRAMES
    assert recorded.frames[0].shape == (32, 32, 3)
    np.testing.assert_array_equal(recorded.frames[-1], filmed.render())


def test_recording_needs_a_render_mode_and_a_positive_stride():
    with pytest.raises(InvalidOption, match='make it with render_mode="rgb_array"'):
        run_episode(make(), Watcher(), seed=0, record_every=1)
    with pytest.raises(InvalidOption, match="record_every=0"):
        run_episode(make(render_mode="rgb_array"), Watcher(), seed=0, record_every=0)
