"""TorchRL: an id as a TorchRL env in one line, a collector, and PPO.

    pip install 'vla-gym[torchrl,metaworld]'
    python docs/examples/torchrl_ppo.py --env-id VLA/MetaWorld-Reach-v0

TorchRL calls the entry `state` of an observation `observation`.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import torch
from tensordict.nn import TensorDictModule
from tensordict.nn.distributions import NormalParamExtractor
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import Compose, DoubleToFloat, GymWrapper, InitTracker, RewardSum, TransformedEnv
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import vla_gym  # noqa: F401  # registers the ids


def make_env(env_id: str) -> TransformedEnv:
    """Return the env, its privileged state as a float32 vector."""
    # The one line. Pictures and words: gym.make(env_id, instruction="embedding").
    env = GymWrapper(gym.make(env_id, cameras=(), state=True))
    as_float = DoubleToFloat(in_keys=["observation"])
    return TransformedEnv(env, Compose(as_float, InitTracker(), RewardSum()))


def main() -> None:
    """Train; print the mean return of the episodes that ended in each batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env-id", default="VLA/Toy-Reach-v0")
    parser.add_argument("--total-timesteps", type=int, default=20_000)
    parser.add_argument("--frames-per-batch", type=int, default=1_000)
    parser.add_argument("--update-epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    env = make_env(args.env_id)
    env.set_seed(args.seed)
    n_act = env.action_spec.shape[-1]
    body = nn.Sequential(
        MLP(out_features=2 * n_act, num_cells=[64, 64], activation_class=nn.Tanh),
        NormalParamExtractor(),
    )
    actor = ProbabilisticActor(
        TensorDictModule(body, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=env.action_spec,
        distribution_class=TanhNormal,
        return_log_prob=True,
    )
    critic = ValueOperator(
        MLP(out_features=1, num_cells=[64, 64], activation_class=nn.Tanh), in_keys=["observation"]
    )
    first = env.reset()
    actor(first.clone()), critic(first.clone())  # sizes the lazy layers
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic, average_gae=True)
    ppo = ClipPPOLoss(actor, critic, entropy_coeff=0.001)
    optimizer = torch.optim.Adam(ppo.parameters(), lr=3e-4)
    collector = Collector(
        env, actor, frames_per_batch=args.frames_per_batch, total_frames=args.total_timesteps
    )
    steps = 0
    for batch in collector:
        steps += batch.numel()
        for _ in range(args.update_epochs):
            advantage(batch)
            losses = ppo(batch)
            loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(ppo.parameters(), 1.0)
            optimizer.step()
        done = batch["next", "done"].squeeze(-1)
        returns = batch["next", "episode_reward"][done]
        mean = f"{returns.mean():.2f}" if len(returns) else "none ended"
        print(f"steps {steps}, return {mean}, loss {loss.item():.4f}")
    collector.shutdown()


if __name__ == "__main__":
    main()
