"""What `vla-gym demo` plays: chance, scripted experts and an agent that learned for a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym

from vla_gym.deps import require

__all__ = ["IDS", "TITLE", "TRAIN_ID", "policies", "train_demo_agent"]

TITLE = "vla_gym demo: one loop, four policies"
TRAIN_ID = "VLA/MetaWorld-Reach-v0"
IDS = ("MetaWorld-Reach", "MetaWorld-DrawerOpen", "MetaWorld-ButtonPress", "Robosuite-Lift")


def policies(agent: Path) -> dict[str, str | Callable[[], Any]]:
    """Return label -> policy, with the trained agent of this file."""
    return {
        "random": "random",
        "sac-reach": f"sb3:{agent}",
        "metaworld-expert": "metaworld-expert",
        "robosuite-lift-expert": "robosuite-lift-expert",
    }


def train_demo_agent(path: Path, seconds: float, seed: int = 0) -> None:
    """Train SAC on `TRAIN_ID` from its privileged state for so long, and save it.

    The time is what stops it, so the agent differs from machine to machine.

    Args:
        path: of the zip file; appears when training is done.
        seconds: wall time.
        seed: of env and agent.
    """
    sb3 = require("stable_baselines3", "sb3", "the demo's agent")
    callbacks = require("stable_baselines3.common.callbacks", "sb3", "the demo's agent")
    layers = require("stable_baselines3.common.torch_layers", "sb3", "the demo's agent")
    torch = require("torch", "sb3", "the demo's agent")
    env = gym.wrappers.FilterObservation(
        gym.make(TRAIN_ID, cameras=(), state=True, max_episode_steps=75), ["state"]
    )
    start = torch.tensor(env.reset(seed=seed)[0]["state"], dtype=torch.float32)

    class StopAfter(callbacks.BaseCallback):
        """Ends training when the time is up."""

        def _on_training_start(self) -> None:
            self.deadline = time.monotonic() + seconds

        def _on_step(self) -> bool:
            return time.monotonic() < self.deadline

    class Decimetres(layers.CombinedExtractor):
        """Shows the network decimetres from the start: in metres it takes minutes to see them."""

        def forward(self, observations: Any) -> Any:
            return 10.0 * (super().forward(observations) - start)

    model = sb3.SAC(
        "MultiInputPolicy",
        env,
        learning_rate=2e-3,
        learning_starts=500,
        gamma=0.85,  # the reward tells at every step how near the goal is
        ent_coef="auto_0.05",  # from 1.0, the default, the bonus outweighs the reward for long
        train_freq=8,
        gradient_steps=4,
        batch_size=128,
        policy_kwargs={"net_arch": [64, 64], "features_extractor_class": Decimetres},
        seed=seed,
        device="cpu",  # networks this small are slower on a GPU
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other, and for what else the machine does
    try:
        model.learn(10**9, callback=StopAfter())
    finally:
        torch.set_num_threads(threads)
        env.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.zip")
    model.save(temporary)
    temporary.replace(path)
