"""Stable-Baselines3 on pictures, proprioception and the instruction: PPO, SAC or TD3 on any id.

pip install 'vla-gym[sb3,metaworld]'
python docs/examples/sb3_pixels.py --env-id VLA/MetaWorld-Reach-v0 --out pixels.zip
vla-gym eval -p sb3:pixels.zip -p random -e MetaWorld-Reach -n 20 -o results/pixels
"""

from __future__ import annotations

import argparse

import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env

import vla_gym  # noqa: F401  # registers the ids

PRESETS = {
    "PPO": {"n_steps": 256, "batch_size": 64, "n_epochs": 4, "gamma": 0.98},
    # A replay buffer of pictures: 20,000 of two 64-pixel views are about 1 GB.
    "SAC": {"learning_starts": 500, "gamma": 0.98, "buffer_size": 20_000},
    "TD3": {"learning_starts": 500, "gamma": 0.98, "buffer_size": 20_000},
}
"""What differs from Stable-Baselines3's defaults: starting points, tuned for no task."""


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", choices=PRESETS, default="PPO")
    parser.add_argument("--env-id", default="VLA/Toy-Reach-v0")
    parser.add_argument("--total-timesteps", type=int, default=5_000)
    parser.add_argument("--image-size", type=int, default=64, help="at least 36")
    parser.add_argument("--n-envs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", help="go on from this file")
    parser.add_argument("--out", default="agent.zip")
    args = parser.parse_args()

    envs = make_vec_env(
        args.env_id,
        n_envs=args.n_envs,
        seed=args.seed,
        # Stable-Baselines3 knows no text: the instruction comes as a sentence embedding.
        env_kwargs={"instruction": "embedding", "image_size": args.image_size},
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
