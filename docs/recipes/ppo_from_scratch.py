"""PPO from scratch, for the recipes: Stable-Baselines3's, on one 64-pixel picture and proprio.

    python docs/recipes/ppo_from_scratch.py -e MetaWorld-Reach --camera wrist --horizon 60 \
        --steps 120000 -o ppo.zip

The reward is the suite's own. The settings were not tuned.
"""

from __future__ import annotations

import argparse

import torch
from gymnasium.wrappers import FilterObservation
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import vla_gym  # noqa: F401  # registers the ids

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-e", "--env", required=True, help="without VLA/ and version")
    parser.add_argument("--camera", required=True)
    parser.add_argument("--horizon", type=int, required=True, help="[control steps]")
    parser.add_argument("--steps", type=int, required=True, help="[control steps]")
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()

    torch.set_num_threads(1)
    envs = make_vec_env(
        f"VLA/{options.env}-v0",
        n_envs=16,
        seed=0,
        env_kwargs={
            "cameras": (options.camera,),
            "image_size": 64,
            "render_quality": "fast",
            "max_episode_steps": options.horizon,
        },
        wrapper_class=FilterObservation,
        wrapper_kwargs={"filter_keys": [f"rgb_{options.camera}", "proprio"]},
    )
    envs = VecNormalize(envs, norm_obs=False, gamma=0.98)
    settings = {"n_steps": 128, "batch_size": 64, "n_epochs": 4, "gamma": 0.98}
    model = PPO("MultiInputPolicy", envs, seed=0, device="cpu", verbose=1, **settings)
    model.learn(options.steps)
    model.save(options.out)
