"""Codebases for reinforcement learning run on our ids as they are: Stable-Baselines3 and CleanRL.

Nothing is learned in so few steps. What is looked at: no adapter is needed, episodes end and are
counted, losses are finite and parameters change.
"""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest

import vla_gym  # noqa: F401  registers the ids
from tests.support import needs

pytestmark = needs("sb3", "metaworld")

REACH = "VLA/MetaWorld-Reach-v0"
STATE = {"state": True, "cameras": ()}
PIXELS = {"cameras": ("primary",), "instruction": "embedding", "image_size": 36}  # least for SB3
VIEWS = [pytest.param(STATE, id="state"), pytest.param(PIXELS, id="pixels")]


def parameters_of(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def changed(module, before):
    import torch

    pairs = zip(module.parameters(), before, strict=True)
    return any(not torch.equal(now, then) for now, then in pairs)


def losses_of(model):
    found = {k: v for k, v in model.logger.name_to_value.items() if k.endswith("loss")}
    assert found
    return found


def check_episodes(model, length):
    assert model.ep_info_buffer
    for episode in model.ep_info_buffer:
        assert episode["l"] == length
        assert 0 < episode["r"] <= 10 * length  # Meta-World's reward lies in [0, 10]


def for_sb3(view, **keywords):
    """Stable-Baselines3 knows no text: a state-based agent takes it as an embedding or drops it."""
    return gym.make(REACH, **{"instruction": "embedding", **view, **keywords})


@pytest.mark.parametrize("view", VIEWS)
def test_ppo_of_stable_baselines3_runs(view):
    from stable_baselines3 import PPO

    env = for_sb3(view, max_episode_steps=8)
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=8, n_epochs=2, seed=0)
    before = parameters_of(model.policy)
    model.learn(16)
    assert model.num_timesteps == 16
    assert changed(model.policy, before)
    assert all(np.isfinite(value) for value in losses_of(model).values())
    check_episodes(model, 8)
    env.close()


@pytest.mark.parametrize("view", VIEWS)
def test_sac_of_stable_baselines3_runs(view):
    from stable_baselines3 import SAC

    env = for_sb3(view, max_episode_steps=8)
    model = SAC(
        "MultiInputPolicy",
        env,
        learning_starts=8,
        buffer_size=64,
        batch_size=8,
        train_freq=4,
        seed=0,
    )
    actor, critic = parameters_of(model.actor), parameters_of(model.critic)
    model.learn(24)
    assert model.num_timesteps == 24
    assert changed(model.actor, actor) and changed(model.critic, critic)
    assert all(np.isfinite(value) for value in losses_of(model).values())
    check_episodes(model, 8)
    env.close()


def test_a_vector_of_envs_behind_a_filter_runs_in_stable_baselines3():
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    envs = make_vec_env(
        REACH,
        n_envs=2,
        seed=0,
        env_kwargs={**STATE, "max_episode_steps": 8},
        wrapper_class=gym.wrappers.FilterObservation,
        wrapper_kwargs={"filter_keys": ["state"]},
        monitor_kwargs={"info_keywords": ("success",)},
    )
    model = PPO("MultiInputPolicy", envs, n_steps=8, batch_size=8, n_epochs=1).learn(32)
    assert envs.observation_space["state"].shape == (39,)
    check_episodes(model, 8)
    assert {episode["success"] for episode in model.ep_info_buffer} == {False}  # 8 steps: too few
    envs.close()


def test_an_env_with_an_embedded_instruction_needs_nothing_else():
    from stable_baselines3 import PPO

    env = gym.make(REACH, instruction="embedding")  # both cameras, 128 pixels
    model = PPO("MultiInputPolicy", env, n_steps=4, batch_size=4, n_epochs=1).learn(4)
    assert model.observation_space["rgb_wrist"].shape == (3, 128, 128)
    assert all(np.isfinite(value) for value in losses_of(model).values())
    env.close()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("env_id", ["VLA/Toy-Lift-v0", REACH])
def test_the_checker_of_stable_baselines3_has_nothing_to_say(env_id, view):
    from stable_baselines3.common.env_checker import check_env

    env = gym.make(env_id, **{"instruction": "embedding", **view})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
    env.close()


def make_cleanrl_env(view, length, gamma):
    """The `make_env` of ppo_continuous_action.py, with the arguments of `gym.make` added."""

    def thunk():
        env = gym.make(REACH, max_episode_steps=length, **view)
        env = gym.wrappers.FlattenObservation(env)
        env = gym.wrappers.RecordEpisodeStatistics(env)
        env = gym.wrappers.ClipAction(env)
        env = gym.wrappers.NormalizeObservation(env)
        env = gym.wrappers.TransformObservation(
            env, lambda obs: np.clip(obs, -10, 10), env.observation_space
        )
        env = gym.wrappers.NormalizeReward(env, gamma=gamma)
        env = gym.wrappers.TransformReward(env, lambda reward: np.clip(reward, -10, 10))
        return env

    return thunk


def make_cleanrl_agent(envs):
    import torch
    from torch import nn
    from torch.distributions.normal import Normal

    def layer(n_in, n_out, std=2**0.5):
        linear = nn.Linear(n_in, n_out)
        nn.init.orthogonal_(linear.weight, std)
        nn.init.constant_(linear.bias, 0.0)
        return linear

    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            n_obs = int(np.prod(envs.single_observation_space.shape))
            n_act = int(np.prod(envs.single_action_space.shape))
            self.critic = nn.Sequential(layer(n_obs, 64), nn.Tanh(), layer(64, 1, std=1.0))
            self.actor_mean = nn.Sequential(layer(n_obs, 64), nn.Tanh(), layer(64, n_act, std=0.01))
            self.actor_logstd = nn.Parameter(torch.zeros(1, n_act))

        def get_value(self, x):
            return self.critic(x)

        def get_action_and_value(self, x, action=None):
            mean = self.actor_mean(x)
            dist = Normal(mean, torch.exp(self.actor_logstd.expand_as(mean)))
            if action is None:
                action = dist.sample()
            return action, dist.log_prob(action).sum(1), dist.entropy().sum(1), self.critic(x)

    return Agent()


@pytest.mark.parametrize(
    ("view", "length", "num_steps", "size"),
    [
        # proprio 10, state 39; the text as 256 numbers, since FlattenObservation knows texts
        pytest.param(STATE, 12, 128, 10 + 39 + 256, id="state"),
        # proprio 10, one image, the embedding
        pytest.param(PIXELS, 6, 8, 10 + 3 * 36 * 36 + 384, id="pixels"),
    ],
)
def test_ppo_of_cleanrl_runs(view, length, num_steps, size):
    """The loop of ppo_continuous_action.py, as its users write it for Gymnasium 1.x."""
    import torch
    from torch import nn

    num_envs, num_iterations, num_minibatches, update_epochs = 2, 2, 4, 2
    gamma, gae_lambda, clip_coef, ent_coef, vf_coef, max_grad_norm = 0.99, 0.95, 0.2, 0.0, 0.5, 0.5
    batch_size = num_envs * num_steps
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    envs = gym.vector.SyncVectorEnv(
        [make_cleanrl_env(view, length, gamma) for _ in range(num_envs)]
    )
    assert isinstance(envs.single_action_space, gym.spaces.Box)
    assert envs.single_observation_space.shape == (size,)
    agent = make_cleanrl_agent(envs)
    before = parameters_of(agent)
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-4, eps=1e-5)

    obs = torch.zeros((num_steps, num_envs, *envs.single_observation_space.shape))
    actions = torch.zeros((num_steps, num_envs, *envs.single_action_space.shape))
    logprobs = torch.zeros((num_steps, num_envs))
    rewards = torch.zeros((num_steps, num_envs))
    dones = torch.zeros((num_steps, num_envs))
    values = torch.zeros((num_steps, num_envs))

    returns_of_episodes, lengths_of_episodes, losses = [], [], []
    next_obs, _ = envs.reset(seed=1)
    next_obs = torch.Tensor(next_obs)
    next_done = torch.zeros(num_envs)
    for _ in range(num_iterations):
        for step in range(num_steps):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                action, logprob, _, value = agent.get_action_and_value(next_obs)
                values[step] = value.flatten()
            actions[step], logprobs[step] = action, logprob
            next_obs, reward, terminations, truncations, infos = envs.step(action.cpu().numpy())
            rewards[step] = torch.tensor(reward).view(-1)
            next_obs = torch.Tensor(next_obs)
            next_done = torch.Tensor(np.logical_or(terminations, truncations))
            if "episode" in infos:
                ended = infos["_episode"]
                returns_of_episodes += infos["episode"]["r"][ended].tolist()
                lengths_of_episodes += infos["episode"]["l"][ended].tolist()

        with torch.no_grad():
            next_value = agent.get_value(next_obs).reshape(1, -1)
            advantages = torch.zeros_like(rewards)
            lastgaelam = 0
            for t in reversed(range(num_steps)):
                last = t == num_steps - 1
                nextnonterminal = 1.0 - (next_done if last else dones[t + 1])
                nextvalues = next_value if last else values[t + 1]
                delta = rewards[t] + gamma * nextvalues * nextnonterminal - values[t]
                lastgaelam = delta + gamma * gae_lambda * nextnonterminal * lastgaelam
                advantages[t] = lastgaelam
            returns = advantages + values

        b_obs = obs.reshape((-1, *envs.single_observation_space.shape))
        b_actions = actions.reshape((-1, *envs.single_action_space.shape))
        b_logprobs, b_values = logprobs.reshape(-1), values.reshape(-1)
        b_advantages, b_returns = advantages.reshape(-1), returns.reshape(-1)
        for _ in range(update_epochs):
            for inds in np.split(rng.permutation(batch_size), num_minibatches):
                _, newlogprob, entropy, newvalue = agent.get_action_and_value(
                    b_obs[inds], b_actions[inds]
                )
                ratio = (newlogprob - b_logprobs[inds]).exp()
                advantage = b_advantages[inds]
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                pg_loss = torch.max(
                    -advantage * ratio,
                    -advantage * torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef),
                ).mean()
                newvalue = newvalue.view(-1)
                v_clipped = b_values[inds] + torch.clamp(
                    newvalue - b_values[inds], -clip_coef, clip_coef
                )
                v_loss = torch.max(
                    (newvalue - b_returns[inds]) ** 2, (v_clipped - b_returns[inds]) ** 2
                )
                loss = pg_loss - ent_coef * entropy.mean() + vf_coef * 0.5 * v_loss.mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), max_grad_norm)
                optimizer.step()
                losses.append(loss.item())
    envs.close()

    assert changed(agent, before)
    assert len(losses) == num_iterations * update_epochs * num_minibatches
    assert np.isfinite(losses).all()
    # Gymnasium resets in the step after the last, unless told otherwise: one step more an episode.
    n_episodes = num_envs * (num_iterations * num_steps // (length + 1))
    assert len(returns_of_episodes) == n_episodes and set(lengths_of_episodes) == {length}
    assert all(0 < total <= 10 * length for total in returns_of_episodes)  # not the normalised ones
    assert torch.isfinite(obs).all() and obs.abs().max() <= 10
    # The parts of the observation differ from step to step, so the envs do move.
    assert (obs[1:] != obs[:-1]).any(dim=2).all()
