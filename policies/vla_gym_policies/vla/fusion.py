"""From maps of features to one vector: readouts of views, pooling over time, fusion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MLPFusion", "Normalizer", "Readout", "TemporalPool", "TransformerFusion", "mlp"]

KEYPOINTS = 32
LIMIT = 10.0
"""Largest normalised proprio: an entry far outside the data must not drown all others."""


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return two linear layers with a GELU between them."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class Normalizer(nn.Module):
    """(x - shift) / scale and back, in float32. Its numbers are in statistics.json."""

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: list[float], scale: list[float]) -> None:
        super().__init__()
        for name, values in (("shift", shift), ("scale", scale)):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Return normalised values."""
        return (values.float() - self.shift) / self.scale

    def undo(self, values: Tensor) -> Tensor:
        """Return values as they were before `forward`."""
        return values.float() * self.scale + self.shift


class Readout(nn.Module):
    """A view's map (N, channels, h, w) to tokens (N, tokens, width); see `VLAConfig.readout`."""

    def __init__(self, form: str, channels: int, width: int, grid_size: int) -> None:
        super().__init__()
        self.tokens = grid_size**2 if form == "grid" else 1
        self._form, self._grid_size = form, grid_size
        self.norm = nn.LayerNorm(channels)
        extra = 0
        if form == "keypoints":
            self.keypoints, extra = nn.Conv2d(channels, KEYPOINTS, 1), 2 * KEYPOINTS
        self.project = nn.Linear(channels + extra, width)
        self.position = nn.Parameter(0.02 * torch.randn(self.tokens, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return the tokens; the position says which view and where in it."""
        if self._form == "grid":
            features = nn.functional.adaptive_avg_pool2d(features, self._grid_size)
        features = self.norm(features.movedim(1, -1))  # (N, h, w, channels)
        read = features.flatten(1, 2) if self._form == "grid" else features.mean((1, 2))[:, None]
        if self._form == "keypoints":
            places = _expected_places(self.keypoints(features.movedim(-1, 1)))
            read = torch.cat([read, places[:, None]], -1)
        return self.project(read) + self.position


def _expected_places(scores: Tensor) -> Tensor:
    """Return where each channel is large: (N, K, h, w) to (N, 2 K), x and y in [-1, 1].

    Spatial softmax, Levine et al. 2016, "End-to-End Training of Deep Visuomotor Policies".
    """
    height, width = scores.shape[-2:]
    weights = scores.float().flatten(2).softmax(-1).unflatten(2, (height, width))
    x, y = (torch.linspace(-1, 1, n, device=scores.device) for n in (width, height))
    return torch.cat([(weights.sum(2) * x).sum(-1), (weights.sum(3) * y).sum(-1)], -1)


class TemporalPool(nn.Module):
    """Tokens of T frames (B, T, tokens, width), oldest first, to those of one."""

    def __init__(self, form: str, frames: int, width: int) -> None:
        super().__init__()
        self._form = form
        if form == "conv":  # over time, its kernel as long as the history
            self.project = nn.Linear(frames * width, width)
        elif form == "attention":
            self.age = nn.Parameter(0.02 * torch.randn(frames, 1, width))
            self.score = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, tokens, width)."""
        if self._form == "conv":
            return self.project(tokens.movedim(1, 2).flatten(2))
        if self._form == "attention":
            tokens = tokens + self.age
            return (self.score(tokens).softmax(1) * tokens).sum(1)
        return tokens.mean(1)


class TransformerFusion(nn.Module):
    """Self-attention over all tokens and one more, whose outcome is the feature."""

    def __init__(self, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        layer: Any = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, nn.functional.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the feature (B, width) of tokens (B, n, width)."""
        query = self.query.expand(len(tokens), -1, -1)
        return self.norm(self.layers(torch.cat([query, tokens], 1))[:, 0])


class MLPFusion(nn.Module):
    """Two layers or more over all tokens, one behind the other."""

    def __init__(self, tokens: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.LayerNorm(tokens * width)]
        inputs = tokens * width
        for _ in range(layers):
            parts += [nn.Linear(inputs, 2 * width), nn.GELU(), nn.Dropout(dropout)]
            inputs = 2 * width
        self.layers = nn.Sequential(*parts, nn.Linear(inputs, width), nn.LayerNorm(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the feature (B, width) of tokens (B, n, width)."""
        return self.layers(tokens.flatten(1))
