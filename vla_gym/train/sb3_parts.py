"""What Stable-Baselines3's SAC and TD3 get from us: inputs, critics with LayerNorm, demonstrations.

Needs the extra `sb3`. `vla_gym.train.rlpd` imports it when it trains, and a file that was trained
so imports it when it is loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require

torch: Any = require("torch", "sb3", "reinforcement learning")
buffers: Any = require("stable_baselines3.common.buffers", "sb3", "reinforcement learning")
layers: Any = require("stable_baselines3.common.torch_layers", "sb3", "reinforcement learning")
sac: Any = require("stable_baselines3.sac.policies", "sb3", "reinforcement learning")
td3: Any = require("stable_baselines3.td3.policies", "sb3", "reinforcement learning")
vec_env: Any = require("stable_baselines3.common.vec_env", "sb3", "reinforcement learning")

__all__ = [
    "POLICIES",
    "Demonstrations",
    "FeatureVecEnv",
    "Inputs",
    "MixedBuffer",
    "SACPolicy",
    "TD3Policy",
    "imitate_as_well",
]

LIMIT = 10.0
"""Largest normalised input: an entry far outside the demonstrations must not drown all others."""

LEAST_SCALE = 0.05
"""Of an input's normalisation [m, rad]: what hardly moves in demonstrations may move later on."""


class Inputs(layers.BaseFeaturesExtractor):
    """The observation as one vector: numbers normalised, the instruction as what tells tasks apart.

    Shift and scale are the demonstrations' mean and deviation. They are part of the weights, so
    that a saved model is complete.

    Args:
        observation_space: a Dict of vectors.
        tasks: number of tasks that the instruction's embedding is turned into a one-hot vector of,
            the nearest wording's; 0: the embedding itself is the input.
    """

    def __init__(self, observation_space: Any, tasks: int = 0) -> None:
        lengths = {key: space.shape[0] for key, space in observation_space.spaces.items()}
        read = {**lengths, "instruction": tasks} if tasks else lengths
        super().__init__(observation_space, sum(read.values()))
        for key, length in lengths.items():
            self.register_buffer(f"{key}_shift", torch.zeros(length))
            self.register_buffer(f"{key}_scale", torch.ones(length))
        if tasks:
            self.register_buffer("task_embeddings", torch.zeros(tasks, lengths["instruction"]))
        self._keys, self._tasks = tuple(lengths), tasks

    def forward(self, observations: Mapping[str, Any]) -> Any:
        """Return (B, features_dim) of vectors (B, n)."""
        return torch.cat([self._read(key, observations[key]) for key in self._keys], -1)

    def _read(self, key: str, values: Any) -> Any:
        if key == "instruction" and self._tasks:
            nearest = (values @ self.task_embeddings.T).argmax(-1)
            return torch.nn.functional.one_hot(nearest, self._tasks).to(values)
        shift, scale = getattr(self, f"{key}_shift"), getattr(self, f"{key}_scale")
        return ((values - shift) / scale).clamp(-LIMIT, LIMIT)

    def set_numbers(self, demonstrations: Demonstrations | None, embeddings: Any) -> None:
        """Take shift and scale from demonstrations, and the tasks' embeddings (tasks, n)."""
        if "instruction" in self._keys:  # unit norm: entries of about n^-1/2 become about 1
            self.instruction_scale.fill_(len(self.instruction_scale) ** -0.5)
        if self._tasks:
            self.task_embeddings.copy_(torch.as_tensor(embeddings))
        if demonstrations is None:
            return
        for key in self._keys:
            if key != "instruction":
                values = demonstrations.observations[key].double()
                getattr(self, f"{key}_shift").copy_(values.mean(0))
                getattr(self, f"{key}_scale").copy_(
                    values.std(0, correction=0).clamp(min=LEAST_SCALE)
                )


class SACPolicy(sac.MultiInputPolicy):
    """SAC's policy with LayerNorm in its critics (RLPD, section 4.2)."""

    def make_critic(self, features_extractor: Any = None) -> Any:
        """Return the critics."""
        return _add_layer_norm(super().make_critic(features_extractor), self.critic_kwargs)


class TD3Policy(td3.MultiInputPolicy):
    """TD3's policy with LayerNorm in its critics (RLPD, section 4.2)."""

    def make_critic(self, features_extractor: Any = None) -> Any:
        """Return the critics."""
        return _add_layer_norm(super().make_critic(features_extractor), self.critic_kwargs)


POLICIES = {"SAC": SACPolicy, "TD3": TD3Policy}


def _add_layer_norm(critic: Any, settings: Mapping[str, Any]) -> Any:
    """Give each of SB3's critics a LayerNorm after every linear layer but the last."""
    for number, network in enumerate(critic.q_networks):
        parts = layers.create_mlp(
            network[0].in_features,
            1,
            settings["net_arch"],
            settings["activation_fn"],
            post_linear_modules=[torch.nn.LayerNorm],
        )
        critic.q_networks[number] = torch.nn.Sequential(*parts).to(critic.device)
        setattr(critic, f"qf{number}", critic.q_networks[number])
    return critic


@dataclass(frozen=True)
class Demonstrations:
    """Transitions of demonstrations, as tensors with a leading axis N.

    Attributes:
        observations, next_observations: key -> float32 (N, n).
        actions, labels: float32 (N, n), as they were carried out, and as they were meant.
        rewards, dones: float32 (N, 1); `dones` is 1 where the episode ends and no value follows,
            0 where it was only cut off.
        tasks: int64 (N,): number of the task.
    """

    observations: Mapping[str, Any]
    next_observations: Mapping[str, Any]
    actions: Any
    labels: Any
    rewards: Any
    dones: Any
    tasks: Any

    def __len__(self) -> int:
        return len(self.actions)

    def sample(self, n: int) -> Any:
        """Return n transitions as SB3's DictReplayBufferSamples, of each task equally many."""
        chosen = self._choose(n)
        return buffers.DictReplayBufferSamples(
            observations={key: value[chosen] for key, value in self.observations.items()},
            actions=self.actions[chosen],
            next_observations={key: v[chosen] for key, v in self.next_observations.items()},
            dones=self.dones[chosen],
            rewards=self.rewards[chosen],
        )

    def sample_labels(self, n: int) -> tuple[dict[str, Any], Any]:
        """Return observations and labels of n steps, of each task equally many."""
        chosen = self._choose(n)
        return {key: value[chosen] for key, value in self.observations.items()}, self.labels[chosen]

    def _choose(self, n: int) -> Any:
        return torch.multinomial(self._weights, n, replacement=True)

    @functools.cached_property
    def _weights(self) -> Any:
        return (1.0 / torch.bincount(self.tasks).clamp(min=1))[self.tasks]


class MixedBuffer:
    """A replay buffer of which each batch holds a fixed share of demonstrations.

    "Symmetric sampling" at a share of one half: Ball et al. 2023, "Efficient Online Reinforcement
    Learning with Offline Data", section 4.1. Experience is added to, and all else is that of,
    SB3's own buffer.

    Args:
        online: SB3's buffer of the agent's own experience.
        demonstrations: the rest of each batch.
        share: of demonstrations in each batch, in (0, 1).
    """

    def __init__(self, online: Any, demonstrations: Demonstrations, share: float = 0.5) -> None:
        self.online, self.demonstrations, self.share = online, demonstrations, share

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "online":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.online, name)

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Return a batch: the agent's own transitions first, then demonstrations.

        As long as it has none of its own, all are demonstrations.
        """
        if not self.online.size():
            return self.demonstrations.sample(batch_size)
        shown = round(self.share * batch_size)
        own = self.online.sample(batch_size - shown, env=env)
        theirs = self.demonstrations.sample(shown)
        return buffers.DictReplayBufferSamples(
            observations=_join(own.observations, theirs.observations),
            actions=_join(own.actions, theirs.actions),
            next_observations=_join(own.next_observations, theirs.next_observations),
            dones=_join(own.dones, theirs.dones),
            rewards=_join(own.rewards, theirs.rewards),
        )


def imitate_as_well(model: Any, demonstrations: Demonstrations, weight: float, batch: int) -> None:
    """Add to the actor's loss that of behaviour cloning: weight times the mean squared error.

    As TD3+BC has it (Fujimoto, Gu 2021, "A Minimalist Approach to Offline Reinforcement Learning",
    arXiv 2106.06860), on demonstrations alone: elsewhere the critics decide. The gradient is added
    just before the actor's optimiser steps, so that the loop stays Stable-Baselines3's.
    """

    def add_gradient(*_: Any) -> None:
        observations, labels = demonstrations.sample_labels(batch)
        seen = {key: values.to(model.device) for key, values in observations.items()}
        predicted = model.policy._predict(seen, deterministic=True)
        loss = torch.nn.functional.mse_loss(predicted, labels.to(model.device))
        (weight * loss).backward()
        model.logger.record("train/imitation_loss", loss.item())

    model.actor.optimizer.register_step_pre_hook(add_gradient)


def _join(first: Any, second: Any) -> Any:
    """Return two tensors, or two of each key, as one."""
    if isinstance(first, Mapping):
        return {key: _join(value, second[key]) for key, value in first.items()}
    return torch.cat([first.float(), second.to(first.device)])


class FeatureVecEnv(vec_env.VecEnvWrapper):
    """Shows `feature`, what a frozen model makes of each observation, in the observation's place.

    Args:
        envs: SB3's vector env, whose observations the model reads.
        encode: batch of observations -> float32 (B, n).
        length: n.
    """

    def __init__(self, envs: Any, encode: Callable[[Any], Any], length: int) -> None:
        from gymnasium import spaces

        space = spaces.Box(-np.inf, np.inf, (length,), np.float32)
        super().__init__(envs, observation_space=spaces.Dict({"feature": space}))
        self._encode = encode

    def reset(self) -> dict[str, NDArray[np.float32]]:
        """Start all episodes."""
        return {"feature": self._encode(self.venv.reset())}

    def step_wait(self) -> tuple[Any, Any, Any, Any]:
        """Return what `step` returns, with each episode's last observation encoded too."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for index in np.flatnonzero(dones):
            last = infos[index]["terminal_observation"]
            batch = {key: np.asarray(value)[None] for key, value in last.items()}
            infos[index]["terminal_observation"] = {"feature": self._encode(batch)[0]}
        return {"feature": self._encode(observations)}, rewards, dones, infos
