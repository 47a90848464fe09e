"""Action heads: from a feature to a chunk of normalised actions (B, chunk, action_dim)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vla_gym_policies.vla.fusion import mlp

__all__ = ["FlowHead", "RegressionHead"]


class RegressionHead(nn.Module):
    """The chunk at once."""

    def __init__(self, width: int, chunk: int, action_dim: int, loss: str) -> None:
        super().__init__()
        self.chunk, self.action_dim = chunk, action_dim
        self.layers = mlp(width, 2 * width, chunk * action_dim)
        self._loss = nn.functional.l1_loss if loss == "l1" else nn.functional.mse_loss

    def errors(self, feature: Tensor, actions: Tensor) -> Tensor:
        """Return the error of each entry, (B, chunk, action_dim) float32."""
        return self._loss(self.sample(feature), actions, reduction="none")

    def sample(self, feature: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the chunk of each feature; `noise` plays no part."""
        del noise
        return self.layers(feature).float().unflatten(-1, (self.chunk, self.action_dim))


class FlowHead(nn.Module):
    """The chunk by flow matching: noise is carried to an action along a learned velocity.

    On the straight path x(t) = t a + (1 - t) e from noise e to the action a, t in [0, 1], the
    velocity is a - e; the network is trained to say its mean at (x, t), and acting integrates it
    from t = 0 in Euler steps. So it represents several ways to act where a regression would give
    their mean. Source: Lipman et al. 2023, "Flow Matching for Generative Modeling", section 4.1,
    optimal transport paths with sigma_min = 0, their time as here; t is drawn uniformly.

    Attributes:
        noise: (chunk, action_dim), drawn once and kept in the checkpoint: where `sample` starts
            unless told otherwise, so that equal observations give equal actions.
    """

    noise: Tensor

    def __init__(self, width: int, chunk: int, action_dim: int, layers: int, steps: int) -> None:
        super().__init__()
        self.chunk, self.action_dim, self.steps, self.waves = chunk, action_dim, steps, width
        hidden = 2 * width
        self.enter = nn.Linear(chunk * action_dim, hidden)
        self.time = mlp(width, hidden, hidden)
        self.feature = nn.Linear(width, hidden)
        self.blocks: Any = nn.ModuleList(_Block(hidden) for _ in range(layers))
        self.leave = nn.Linear(hidden, chunk * action_dim)
        self.register_buffer("noise", torch.randn(chunk, action_dim))

    def errors(self, feature: Tensor, actions: Tensor) -> Tensor:
        """Return the squared error of each velocity, (B, chunk, action_dim) float32."""
        noise = torch.randn_like(actions)
        time = torch.rand(len(actions), device=actions.device)
        along = time[:, None, None]
        position = along * actions + (1 - along) * noise
        velocity = self.velocity(position, self.modulate(time, feature))
        return nn.functional.mse_loss(velocity, actions - noise, reduction="none")

    def sample(self, feature: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the chunk of each feature, (B, chunk, action_dim) float32.

        Args:
            feature: (B, width).
            noise: where to start, (B, chunk, action_dim). None: the same in every row.
        """
        position = self.noise.expand(len(feature), -1, -1) if noise is None else noise
        position = position.float()
        times = torch.arange(self.steps, device=feature.device)[:, None] / self.steps
        modulations = self.modulate(times, feature)  # of all steps at once: half of the work
        for step in range(self.steps):
            now = [modulation[step] for modulation in modulations]
            position = position + self.velocity(position, now) / self.steps
        return position

    def modulate(self, time: Tensor, feature: Tensor) -> list[Tensor]:
        """Return what each block is told of time (B,) or (steps, 1) and feature (B, width).

        Returns:
            of each block: scale and shift, (B, n) or (steps, B, n).
        """
        times = self.time(_waves(time, self.waves))
        condition = nn.functional.silu(self.feature(feature) + times)
        return [block.modulate(condition) for block in self.blocks]

    def velocity(self, position: Tensor, modulation: list[Tensor]) -> Tensor:
        """Return the velocity at positions (B, chunk, action_dim), float32."""
        hidden = self.enter(position.flatten(1))
        for block, told in zip(self.blocks, modulation, strict=True):
            hidden = block(hidden, told)
        return self.leave(hidden).float().unflatten(-1, (self.chunk, self.action_dim))


class _Block(nn.Module):
    """A residual block whose norm is scaled and shifted by the condition (adaptive LayerNorm)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 2 * width)
        self.layers = mlp(width, width, width)

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = modulation.chunk(2, -1)
        return hidden + self.layers(self.norm(hidden) * (1 + scale) + shift)


def _waves(time: Tensor, n: int) -> Tensor:
    """Return sines and cosines of times in [0, 1], with periods from 4 to 0.004: (..., n)."""
    exponents = torch.linspace(0, 1, n // 2, device=time.device)
    angles = time[..., None] * (0.5 * math.pi * 1000**exponents)
    return torch.cat([angles.sin(), angles.cos()], -1)
