"""PPO of Stable-Baselines3 with a VLA as the actor.

Source: Schulman et al. 2017, arXiv 1707.06347, as Stable-Baselines3 has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from vla_gym.deps import require
from vla_gym.train.actor import Actor, Critic, Seen, to_numpy
from vla_gym.train.chunk_env import SEEDS
from vla_gym.vector import VLAVectorEnv

require("stable_baselines3", "train", "fine-tuning by PPO")

from stable_baselines3 import PPO  # noqa: E402  after the error that says how to install it
from stable_baselines3.common.logger import Logger  # noqa: E402
from stable_baselines3.common.policies import BasePolicy  # noqa: E402
from stable_baselines3.common.vec_env import VecEnv, VecNormalize  # noqa: E402

__all__ = ["PPOTrainer", "SeenEnvs", "VLAActorCritic"]


class SeenEnvs(VecEnv):
    """Chunk envs for Stable-Baselines3: it gets what the actor sees instead of observations.

    So it needs no text, and nothing that is frozen is computed again in each epoch.

    Args:
        envs: of `vla_gym.train.chunk_env.make_chunk_envs`.
        actor: looks at them.
        seed: of the episodes.
        success_bonus: added to the reward of a chunk that ends in success.

    Attributes:
        control_steps: taken so far.
        ended: success of each episode that has ended since this list was emptied.
    """

    def __init__(
        self, envs: VLAVectorEnv, actor: Actor, seed: int, success_bonus: float = 0.0
    ) -> None:
        self._envs, self._actor, self._bonus = envs, actor, success_bonus
        self.control_steps = 0
        self.ended: list[bool] = []
        self._rng = np.random.default_rng(seed)
        self.restart()
        space: dict[str, spaces.Space[Any]] = {
            key: spaces.Box(*_bounds(value.dtype), value.shape[1:], value.dtype.type)
            for key, value in self._seen.items()
        }
        actions = spaces.Box(-1e3, 1e3, (actor.size,), np.float32)  # `expand` clips
        super().__init__(envs.num_envs, spaces.Dict(space), actions)

    def restart(self) -> None:
        """Start new episodes.

        They are seeded anew: an evaluation leaves the envs' random streams where its last episodes
        did, each time in the same place.
        """
        self._envs.set_attr("seeds", None)
        seeds = self._rng.integers(*SEEDS, self._envs.num_envs).tolist()
        self._seen = self._see(self._envs.reset(seed=seeds)[0])

    def reset(self) -> dict[str, NDArray[Any]]:
        """Return what is seen now; `restart` has begun the episodes."""
        return self._seen

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Start a step."""
        self._envs.step_async(self._actor.expand(actions))

    def step_wait(self) -> Any:
        """Return the step."""
        observation, rewards, terminated, truncated, infos = self._envs.step_wait()
        ended = terminated | truncated
        self._seen = self._see(observation)
        found: list[dict[str, Any]] = [{} for _ in ended]
        for i in np.flatnonzero(ended).tolist():
            final = infos["final_info"]
            self.control_steps += int(final["control_steps"][i])
            self.ended.append(bool(final["success"][i]))
            rewards[i] += self._bonus * self.ended[-1]
            if truncated[i] and not terminated[i]:
                last = {key: _row(value) for key, value in infos["final_obs"][i].items()}
                seen = {key: value[0] for key, value in self._see(last).items()}
                found[i] = {"TimeLimit.truncated": True, "terminal_observation": seen}
        self.control_steps += int(infos["control_steps"][~ended].sum())
        return self._seen, rewards.astype(np.float32), ended, found

    def _see(self, observation: dict[str, Any]) -> dict[str, NDArray[Any]]:
        return to_numpy(self._actor.see(observation))

    def close(self) -> None:
        """Leave the envs to who made them."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of this vector env for each env: SB3 asks for `render_mode`."""
        return [getattr(self._envs, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Do nothing."""

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """Do nothing."""

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False for each env."""
        return [False] * self.num_envs


class VLAActorCritic(BasePolicy):
    """What Stable-Baselines3's PPO needs of a policy, from an actor and a critic.

    `evaluate_actions` returns minus the divergence from the first policy in the place of the
    entropy: entropy is minus the divergence from uniform, up to a constant. So PPO's `ent_coef` is
    the weight of the divergence in its loss.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        *,
        actor: Actor,
        critic: Critic,
        learning_rates: tuple[float, float],
        use_sde: bool = False,
    ) -> None:
        super().__init__(observation_space, action_space)
        del lr_schedule, use_sde
        self.actor, self.critic = actor, critic
        groups = zip((actor.trained, list(critic.parameters())), learning_rates, strict=True)
        self.optimizer = torch.optim.Adam(
            [{"params": parameters, "lr": rate} for parameters, rate in groups], eps=1e-5
        )

    def set_training_mode(self, mode: bool) -> None:
        """Stay as it is: dropout would make the old and the new policy differ by chance."""

    def forward(self, obs: Seen, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions (B, n), values (B, 1) and log-probabilities (B,)."""
        feature = self.actor.feature(obs)
        distribution = self.actor.distribution(feature)
        actions = distribution.mean if deterministic else distribution.sample()
        return actions, self.critic(obs, feature)[:, None], distribution.log_prob(actions)

    def evaluate_actions(self, obs: Seen, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values (B, 1), log-probabilities (B,), and minus the divergence (B,)."""
        feature = self.actor.feature(obs)
        distribution = self.actor.distribution(feature)
        log_prob = distribution.log_prob(actions)
        divergence = torch.zeros_like(log_prob)
        if "reference" in obs:
            divergence = self.actor.divergence(distribution, obs)
        return self.critic(obs, feature)[:, None], log_prob, -divergence

    def predict_values(self, obs: Seen) -> Tensor:
        """Return values (B, 1)."""
        feature = None if self.critic.kind == "state" else self.actor.feature(obs)
        return self.critic(obs, feature)[:, None]

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.forward(observation, deterministic)[0]


class _PPO(PPO):
    """PPO whose actor and critic have learning rates of their own, which stay."""

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Leave the optimiser's rates."""


class PPOTrainer:
    """Improves an actor by PPO, a rollout and its epochs at a time.

    Args:
        actor: to train.
        envs: of `make_chunk_envs`.
        config: `FinetuneConfig`.
        seed: of the episodes and of the exploration.
    """

    def __init__(self, actor: Actor, envs: VLAVectorEnv, config: Any, seed: int) -> None:
        self._actor = actor
        self._envs = SeenEnvs(envs, actor, seed, config.success_bonus)
        space = self._envs.observation_space
        assert isinstance(space, spaces.Dict)
        state = config.critic == "state"
        gamma = config.gamma**actor.execute  # of a chunk
        self._normalized = VecNormalize(
            self._envs,
            norm_obs=state,
            norm_obs_keys=["privileged"] if state else None,
            norm_reward=config.reward == "native",
            gamma=gamma,
        )
        inputs = space["privileged"].shape[0] if state else actor.model.feature_dim  # type: ignore[index]
        n_steps = max(1, config.rollout // envs.num_envs)
        self.algorithm = _PPO(
            VLAActorCritic,  # type: ignore[arg-type]  # all that PPO asks of an ActorCriticPolicy
            self._normalized,
            n_steps=n_steps,
            batch_size=min(config.batch, n_steps * envs.num_envs),
            n_epochs=config.epochs,
            gamma=gamma,
            gae_lambda=config.gae_lambda,
            clip_range=config.clip,
            ent_coef=config.kl,
            vf_coef=1.0,
            max_grad_norm=config.max_grad_norm,
            target_kl=config.target_kl,
            policy_kwargs={
                "actor": actor,
                "critic": Critic(config.critic, inputs),
                "learning_rates": (config.learning_rate, config.critic_learning_rate),
            },
            seed=seed,
            device=config.device,
        )
        self.algorithm.set_logger(Logger(None, []))
        self._warmup, self._updates = config.warmup, 0

    def update(self) -> dict[str, Any]:
        """Play a rollout and learn from it; return numbers to log, `control_steps` among them."""
        self._actor.hold(self._updates < self._warmup)
        before = self._envs.control_steps
        algorithm = self.algorithm
        count = algorithm.n_steps * algorithm.n_envs
        never: Any = None
        algorithm.learn(count, reset_num_timesteps=False, log_interval=never)
        self._actor.hold(False)
        self._updates += 1
        logged = algorithm.logger.name_to_value
        ended, self._envs.ended = self._envs.ended, []
        return {
            "control_steps": self._envs.control_steps - before,
            "episodes": len(ended),
            "rollout_success": float(np.mean(ended)) if ended else None,
            "kl_to_start": float(logged["train/entropy_loss"]),  # see VLAActorCritic
            "kl_of_update": float(logged["train/approx_kl"]),
            "clipped": float(logged["train/clip_fraction"]),
            "value_loss": float(logged["train/value_loss"]),
            "explained_variance": float(logged["train/explained_variance"]),
            "std": float(self._actor.log_std.detach().exp().mean()),
        }

    def interrupt(self) -> None:
        """Begin new episodes: others have used the envs."""
        self._envs.restart()
        self.algorithm.set_env(self._normalized, force_reset=True)

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on."""
        found: dict[str, Any] = {
            "policy": self.algorithm.policy.state_dict(),
            "optimizer": self.algorithm.policy.optimizer.state_dict(),
            "updates": self._updates,
        }
        for name, moments in self._moments().items():
            values = (moments.mean, moments.var, moments.count)
            found[name] = [torch.as_tensor(np.asarray(value)) for value in values]
        return found

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.algorithm.policy.load_state_dict(state["policy"])
        self.algorithm.policy.optimizer.load_state_dict(state["optimizer"])
        self._updates = state["updates"]
        for name, moments in self._moments().items():
            moments.mean, moments.var, moments.count = (value.numpy() for value in state[name])

    def _moments(self) -> dict[str, Any]:
        """Return the running means and variances that the critic's numbers are normalised by."""
        found = {"returns": self._normalized.ret_rms}
        if self._normalized.norm_obs:
            found["privileged"] = self._normalized.obs_rms["privileged"]  # type: ignore[index]
        return found


def _bounds(dtype: np.dtype[Any]) -> tuple[float, float]:
    return (0, 255) if dtype == np.uint8 else (-np.inf, np.inf)


def _row(value: Any) -> Any:
    return (value,) if isinstance(value, str) else np.asarray(value)[None]
