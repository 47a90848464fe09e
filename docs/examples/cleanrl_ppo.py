"""PPO in one file, in the manner of CleanRL: nothing of vla_gym but the id and two wrappers.

    pip install 'vla-gym[metaworld]' torch
    python docs/examples/cleanrl_ppo.py --env-id vla_gym:VLA/MetaWorld-Reach-v0

`module:id` makes Gymnasium import the module first, so that the file needs no `import vla_gym`. In
a script of CleanRL's own, put the three lines of `make_env` in the place of its `gym.make`.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Normal


def make_env(env_id: str):
    """Return a function that makes the env with a flat observation, the privileged state."""

    def thunk() -> gym.Env:
        env = gym.make(env_id, cameras=(), state=True)
        env = gym.wrappers.FilterObservation(env, ["state"])
        env = gym.wrappers.FlattenObservation(env)
        env = gym.wrappers.RecordEpisodeStatistics(env)
        env = gym.wrappers.NormalizeObservation(env)
        return gym.wrappers.NormalizeReward(env, gamma=0.99)

    return thunk


def layer(n_in: int, n_out: int, gain: float = 2**0.5) -> nn.Linear:
    """Return a linear layer that begins orthogonal, without bias."""
    linear = nn.Linear(n_in, n_out)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


class Agent(nn.Module):
    """A Gaussian over actions and a value, each from a network of its own."""

    def __init__(self, envs: gym.vector.VectorEnv) -> None:
        super().__init__()
        n_seen = int(np.prod(envs.single_observation_space.shape))
        n_act = int(np.prod(envs.single_action_space.shape))
        trunk = [layer(n_seen, 64), nn.Tanh(), layer(64, 64), nn.Tanh()]
        self.critic = nn.Sequential(*trunk, layer(64, 1, 1.0))
        trunk = [layer(n_seen, 64), nn.Tanh(), layer(64, 64), nn.Tanh()]
        self.actor = nn.Sequential(*trunk, layer(64, n_act, 0.01))
        self.log_std = nn.Parameter(torch.zeros(n_act))

    def forward(self, seen, action=None):
        """Return actions, their log-probability, the entropy and the value."""
        chances = Normal(self.actor(seen), self.log_std.exp())
        action = chances.sample() if action is None else action
        total = chances.log_prob(action).sum(-1), chances.entropy().sum(-1)
        return action, *total, self.critic(seen).squeeze(-1)


def estimate_advantages(rewards, values, terminated, ended, last_value, gamma, gae_lambda):
    """Return generalised advantage estimates (T, N); step t has ended an episode where `ended[t]`.

    The observation after such a step is the episode's last, so that `values[t + 1]` is the value to
    go on with where the episode was only cut off.
    """
    advantages, running, following = torch.zeros_like(rewards), 0.0, last_value
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * (1 - terminated[t]) * following - values[t]
        advantages[t] = running = delta + gamma * gae_lambda * (1 - ended[t]) * running
        following = values[t]
    return advantages


def main() -> None:
    """Train; print the mean return of the episodes that ended in each iteration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env-id", default="vla_gym:VLA/Toy-Reach-v0")
    parser.add_argument("--total-timesteps", type=int, default=100_000)
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=256)
    parser.add_argument("--num-minibatches", type=int, default=8)
    parser.add_argument("--update-epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--clip-coef", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    envs = gym.vector.SyncVectorEnv([make_env(args.env_id)] * args.num_envs)
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    shape = (args.num_steps, args.num_envs)
    seen = torch.zeros((*shape, *envs.single_observation_space.shape))
    actions = torch.zeros((*shape, *envs.single_action_space.shape))
    log_probs, rewards, values, died, ended, valid = (torch.zeros(shape) for _ in range(6))

    now, _ = envs.reset(seed=args.seed)
    over = np.zeros(args.num_envs, bool)
    for iteration in range(max(1, args.total_timesteps // (args.num_steps * args.num_envs))):
        returns = []
        for t in range(args.num_steps):
            seen[t] = torch.as_tensor(now, dtype=torch.float32)
            with torch.no_grad():
                actions[t], log_probs[t], _, values[t] = agent(seen[t])
            valid[t] = torch.as_tensor(~over)  # the step after an episode's end only resets
            now, reward, terminated, truncated, infos = envs.step(actions[t].numpy())
            over = terminated | truncated
            rewards[t], ended[t] = torch.as_tensor(reward), torch.as_tensor(over)
            died[t] = torch.as_tensor(terminated)
            if "episode" in infos:
                returns += infos["episode"]["r"][infos["_episode"]].tolist()
        with torch.no_grad():
            last_value = agent(torch.as_tensor(now, dtype=torch.float32))[3]
            advantages = estimate_advantages(
                rewards, values, died, ended, last_value, args.gamma, args.gae_lambda
            )
        rows = torch.nonzero(valid.flatten()).squeeze(-1).numpy()
        flat = [x.flatten(0, 1) for x in (seen, actions, log_probs, advantages, values)]
        for _ in range(args.update_epochs):
            for batch in np.array_split(rng.permutation(rows), args.num_minibatches):
                s, a, old, advantage, value = (x[batch] for x in flat)
                _, new, entropy, estimate = agent(s, a)
                ratio = (new - old).exp()
                scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.min(ratio * scaled, clipped * scaled).mean()
                value_loss = 0.5 * (estimate - (advantage + value)).square().mean()
                loss = policy_loss + 0.5 * value_loss - 0.001 * entropy.mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        steps = (iteration + 1) * args.num_steps * args.num_envs
        mean = f"{np.mean(returns):.2f}" if returns else "none ended"
        print(f"steps {steps}, return {mean}, loss {loss.item():.4f}")
    envs.close()


if __name__ == "__main__":
    main()
