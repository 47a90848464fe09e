"""GRPO on success: no critic, but a group of rollouts from the same start as each other's baseline.

Source: Shao et al. 2024, "DeepSeekMath", arXiv 2402.03300, section 4.1, with outcome supervision;
for VLAs, Li et al. 2025, "SimpleVLA-RL", arXiv 2509.09674. A chunk of actions is here what a token
is there. Unlike there, the divergence from the first policy is exact and not estimated: both are
normal.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_gym.train.actor import Actor, Seen
from vla_gym.train.chunk_env import SEEDS, Played, play
from vla_gym.vector import VLAVectorEnv

__all__ = ["GRPOTrainer", "find_advantages"]


class _Chunk(NamedTuple):
    """One decision: what was seen, what was drawn, and how likely it was."""

    seen: Seen
    action: Tensor
    log_prob: Tensor


def find_advantages(groups: Sequence[int], successes: Sequence[bool]) -> NDArray[np.float64]:
    """Return (success - mean) / standard deviation within each group, 0 where all are alike.

    Args:
        groups: of each episode, its group.
        successes: of each episode.
    """
    names, rewards = np.asarray(groups), np.asarray(successes, np.float64)
    found = np.zeros(len(rewards))
    for name in np.unique(names):
        members = names == name
        if (spread := rewards[members].std()) > 0:
            found[members] = (rewards[members] - rewards[members].mean()) / spread
    return found


class GRPOTrainer:
    """Improves an actor by GRPO, an iteration of groups at a time.

    Args:
        actor: to train.
        envs: of `make_chunk_envs`; env i has the task `i % tasks`.
        config: `FinetuneConfig`.
        seed: of starts and exploration.
        tasks: how many there are.
    """

    def __init__(
        self, actor: Actor, envs: VLAVectorEnv, config: Any, seed: int, tasks: int = 1
    ) -> None:
        self._actor, self._envs, self._config, self._tasks = actor, envs, config, tasks
        self._rng = np.random.default_rng(seed)
        self._noise = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(actor.trained, lr=config.learning_rate, eps=1e-5)

    def update(self) -> dict[str, Any]:
        """Play groups and learn from them; return numbers to log, `control_steps` among them."""
        played = play(self._envs, self._draw_seeds(), self._act)
        groups = [episode.seed * self._tasks + episode.env % self._tasks for episode in played]
        advantages = find_advantages(groups, [episode.success for episode in played])
        numbers: dict[str, Any] = {
            "control_steps": sum(episode.length for episode in played),
            "episodes": len(played),
            "rollout_success": float(np.mean([e.success for e in played])) if played else None,
            "groups_of_both": len({g for g, a in zip(groups, advantages, strict=True) if a}),
        }
        chosen = [(e, a) for e, a in zip(played, advantages, strict=True) if a]
        if chosen:
            numbers |= self._learn(chosen)
        return numbers | {"std": float(self._actor.log_std.detach().exp().mean())}

    def interrupt(self) -> None:
        """Do nothing: each update begins new episodes."""

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on."""
        return {
            "policy": self._actor.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "noise": self._noise.get_state(),
            "rng": repr(self._rng.bit_generator.state),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._actor.load_state_dict(state["policy"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._noise.set_state(state["noise"])
        self._rng.bit_generator.state = ast.literal_eval(state["rng"])

    def _draw_seeds(self) -> list[list[int]]:
        """Return the seeds of each env: those of its task's groups, spread over its envs."""
        config, plans = self._config, [[] for _ in range(self._envs.num_envs)]
        for task in range(self._tasks):
            mine = plans[task :: self._tasks]
            starts = self._rng.integers(*SEEDS, -(-config.groups // self._tasks)).tolist()
            for n, seed in enumerate(seed for seed in starts for _ in range(config.group)):
                mine[n % len(mine)].append(seed)
        return plans

    def _act(self, observation: dict[str, Any]) -> tuple[NDArray[np.float32], list[_Chunk]]:
        seen = self._actor.see(observation)
        with torch.no_grad():
            distribution = self._actor.distribution(self._actor.feature(seen))
            mean, std = distribution.mean, distribution.stddev
            noise = torch.randn(mean.shape, generator=self._noise).to(mean.device)
            actions = mean + std * noise
            log_probs = distribution.log_prob(actions)
        rows = [
            _Chunk({key: value[i] for key, value in seen.items()}, actions[i], log_probs[i])
            for i in range(len(actions))
        ]
        return self._actor.expand(actions.cpu().numpy()), rows

    def _learn(self, chosen: Iterable[tuple[Played, float]]) -> dict[str, float]:
        """Take the epochs over the chunks of episodes with an advantage; return numbers to log."""
        config = self._config
        # Each episode weighs the same, whatever its length: the mean over a response's tokens.
        pairs = [
            (chunk, advantage / len(episode.trace))
            for episode, advantage in chosen
            for chunk in episode.trace
        ]
        chunks = [chunk for chunk, _ in pairs]
        weights = torch.tensor([weight for _, weight in pairs], dtype=torch.float32)
        weights *= len(chunks) / sum(len(episode.trace) > 0 for episode, _ in chosen)
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(config.epochs):
            order = self._rng.permutation(len(chunks))
            for rows in np.array_split(order, -(-len(chunks) // config.batch)):
                numbers, moved = self._step([chunks[i] for i in rows], weights[rows])
                for key, value in numbers.items():
                    found[key].append(value)
                if not moved:
                    return {key: float(np.mean(values)) for key, values in found.items()}
        return {key: float(np.mean(values)) for key, values in found.items()}

    def _step(self, chunks: Sequence[_Chunk], weights: Tensor) -> tuple[dict[str, float], bool]:
        """Take one step of the optimiser, unless the policy has moved too far already.

        Returns:
            numbers to log, and whether it was taken.
        """
        config, actor = self._config, self._actor
        seen = {key: torch.stack([c.seen[key] for c in chunks]) for key in chunks[0].seen}
        actions = torch.stack([c.action for c in chunks])
        before = torch.stack([c.log_prob for c in chunks])
        distribution = actor.distribution(actor.feature(seen))
        log_ratio = distribution.log_prob(actions) - before
        ratio, weights = log_ratio.exp(), weights.to(before)
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        loss = -torch.min(ratio * weights, clipped * weights).mean()
        numbers = {
            "kl_of_update": float((ratio - 1 - log_ratio).detach().mean()),
            "clipped": float((clipped != ratio).float().mean()),
        }
        if "reference" in seen:
            divergence = actor.divergence(distribution, seen).mean()
            numbers["kl_to_start"] = float(divergence.detach())
            loss = loss + config.kl * divergence
        if config.target_kl is not None and numbers["kl_of_update"] > 1.5 * config.target_kl:
            return numbers, False
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(actor.trained, config.max_grad_norm)
        self._optimizer.step()
        return numbers, True
