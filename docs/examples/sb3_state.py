"""Stable-Baselines3 on the privileged state: PPO, SAC or TD3 on any id.

pip install 'vla-gym[sb3,metaworld]'
python docs/examples/sb3_state.py --algorithm SAC --env-id VLA/Toy-Reach-v0 --out reach.zip
vla-gym eval -p sb3:reach.zip -p random -e Toy-Reach -n 20 -o results/reach
"""

from __future__ import annotations

import argparse

import stable_baselines3
from gymnasium.wrappers import FilterObservation
from stable_baselines3.common.env_util import make_vec_env

import vla_gym  # noqa: F401  # registers the ids

PRESETS = {
    "PPO": {"n_steps": 512, "batch_size": 128, "gamma": 0.98, "ent_coef": 0.001},
    "SAC": {"learning_starts": 500, "gamma": 0.98, "buffer_size": 200_000},
    "TD3": {"learning_starts": 500, "gamma": 0.98, "buffer_size": 200_000},
}
"""What differs from Stable-Baselines3's defaults: starting points, tuned for no task."""


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", choices=PRESETS, default="SAC")
    parser.add_argument("--env-id", default="VLA/Toy-Reach-v0")
    parser.add_argument("--total-timesteps", type=int, default=5_000)
    parser.add_argument("--n-envs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", help="go on from this file")
    parser.add_argument("--out", default="agent.zip")
    args = parser.parse_args()

    envs = make_vec_env(
        args.env_id,
        n_envs=args.n_envs,
        seed=args.seed,
        env_kwargs={"cameras": (), "state": True},
        wrapper_class=FilterObservation,  # the names stay, so that `sb3:FILE` knows what it reads
        wrapper_kwargs={"filter_keys": ["state"]},
    )
    algorithm = getattr(stable_baselines3, args.algorithm)
    if args.resume:
        model = algorithm.load(args.resume, env=envs)
    else:
        model = algorithm(
            "MultiInputPolicy", envs, seed=args.seed, verbose=1, **PRESETS[args.algorithm]
        )
    model.learn(args.total_timesteps, reset_num_timesteps=not args.resume)
    model.save(args.out)
    envs.close()


if __name__ == "__main__":
    main()
