"""tianshou: a vector of envs in one line, collectors, and PPO.

pip install 'vla-gym[tianshou,metaworld]'
python docs/examples/tianshou_ppo.py --env-id VLA/MetaWorld-Reach-v0
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import FilterObservation, FlattenObservation
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from torch.distributions import Independent, Normal

import vla_gym  # noqa: F401  # registers the ids


def make_env(env_id: str) -> gym.Env:
    """Return the env with a flat observation, the privileged state."""
    env = gym.make(env_id, cameras=(), state=True)
    return FlattenObservation(FilterObservation(env, ["state"]))


def main() -> None:
    """Train; print the best return of a test episode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env-id", default="VLA/Toy-Reach-v0")
    parser.add_argument("--total-timesteps", type=int, default=20_000)
    parser.add_argument("--steps-per-collect", type=int, default=1_000)
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002  # tianshou draws from the global generator
    envs = DummyVectorEnv([lambda: make_env(args.env_id)] * args.num_envs)
    envs.seed(args.seed)
    tests = DummyVectorEnv([lambda: make_env(args.env_id)])
    tests.seed(args.seed + args.num_envs)
    one = make_env(args.env_id)  # the vector would tell the spaces of the envs without wrappers
    observation, action = one.observation_space, one.action_space

    def body() -> Net:
        return Net(state_shape=observation.shape, hidden_sizes=(64, 64))

    actor = ContinuousActorProbabilistic(
        preprocess_net=body(), action_shape=action.shape, unbounded=True
    )
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=lambda loc_scale: Independent(Normal(*loc_scale), 1),
        action_space=action,
        action_scaling=False,
        action_bound_method=None,  # the env clips
    )
    algorithm = PPO(
        policy=policy,
        critic=ContinuousCritic(preprocess_net=body()),
        optim=AdamOptimizerFactory(lr=3e-4),
    )
    buffer = VectorReplayBuffer(max(args.steps_per_collect, args.num_envs), args.num_envs)
    found = algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=Collector(algorithm, envs, buffer),
            test_collector=Collector(algorithm, tests),
            max_epochs=max(1, args.total_timesteps // args.steps_per_collect),
            epoch_num_steps=args.steps_per_collect,
            collection_step_num_env_steps=args.steps_per_collect,
            test_step_num_episodes=1,
            batch_size=64,
            update_step_num_repetitions=4,
            show_progress=False,
        )
    )
    print(f"best return {found.best_score:.2f} after {found.train_step} steps")


if __name__ == "__main__":
    main()
