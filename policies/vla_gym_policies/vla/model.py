"""The VLA model: views, an instruction and proprio in; a chunk of actions, or a feature, out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vla_gym.errors import ContractMismatch
from vla_gym_policies.vla.config import VLAConfig
from vla_gym_policies.vla.fusion import (
    LIMIT,
    MLPFusion,
    Normalizer,
    Readout,
    TemporalPool,
    TransformerFusion,
    mlp,
)
from vla_gym_policies.vla.heads import FlowHead, RegressionHead
from vla_gym_policies.vla.language import load_language, read_instructions
from vla_gym_policies.vla.statistics import Statistics
from vla_gym_policies.vla.vision import VisionEncoder, load_vision

__all__ = ["VLAModel", "make_model"]

Batch = Mapping[str, Any]
"""A batch of B steps:

| key | value |
|---|---|
| `rgb_<camera>` | uint8, or float in [0, 1]: (B, H, W, 3) or (B, 3, H, W); with a history of T frames, oldest first, (B, T, ...) |
| `proprio`, `state` | float (B, proprio_dim) and (B, state_dim), as the env gives them |
| `instruction` | B str, or uint8 (B, 256) ASCII, or float (B, 384) embeddings |
| `action` | float (B, chunk, action_dim), as the env takes it: for `loss` alone |
| `action_mask` | bool (B, chunk), False where a chunk reaches beyond its episode: optional |
"""  # noqa: E501


def make_model(
    config: VLAConfig, statistics: Statistics | None = None, *, random_weights: bool = False
) -> VLAModel:
    """Return a new model with pretrained encoders; its fusion and head are random.

    Args:
        config: its shape.
        statistics: of the data that it will be trained on. None: proprio and actions stay as they
            are.
        random_weights: whether its encoders shall be random too, from their configs alone.

    Raises:
        DependencyNotInstalled: a package or the weights of an encoder are not on this machine.
        InvalidOption: they are incomplete.
    """

    def vision() -> VisionEncoder:
        return load_vision(config.vision, config.vision_size, config.train_vision, random_weights)

    language = load_language(config.language, config.train_language, random_weights)
    return VLAModel(config, vision, language, statistics)


class VLAModel(nn.Module):
    """Views, instruction and proprio become tokens, which a fusion makes one feature.

    Its weights are float32; for bfloat16, call it within `torch.autocast`.

    `encode` returns that feature, for a value head or any other; `sample` a chunk of actions;
    `loss` what to minimise. All take a batch of observations with a leading axis B, see `Batch`.

    Args:
        config: its shape.
        make_vision: returns a vision encoder; called once, or for each camera.
        language: see `language.load_language`.
        statistics: to normalise by. None: nothing is normalised.

    Attributes:
        feature_dim: entries of the feature.
        vision: camera -> its encoder, or `"shared"` -> the one of all.
        language: the language encoder.
    """

    def __init__(
        self,
        config: VLAConfig,
        make_vision: Callable[[], VisionEncoder],
        language: Any,
        statistics: Statistics | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dims = (config.proprio_dim, config.action_dim, config.state_dim)
        self.statistics = statistics or Statistics.identity(*dims)
        _check_lengths(self.statistics, config)
        self.feature_dim = width = config.width
        names = ("shared",) if config.share_vision and config.cameras else config.cameras
        self.vision: Any = nn.ModuleDict({name: make_vision() for name in names})
        self.language = language
        channels = self.vision[names[0]].channels if names else 0
        readouts = {
            camera: Readout(config.readout, channels, width, config.grid_size)
            for camera in config.cameras
        }
        self.readouts: Any = nn.ModuleDict(readouts)
        self.pool = TemporalPool(config.temporal, config.history, width)
        self.text = mlp(language.dim, width, width)
        self.proprio = mlp(config.proprio_dim, width, width) if config.proprio_dim else None
        self.state = mlp(config.state_dim, width, width) if config.state_dim else None
        tokens = sum(readout.tokens for readout in readouts.values()) + 1
        tokens += (self.proprio is not None) + (self.state is not None)
        self.fusion = (
            TransformerFusion(width, config.fusion_layers, config.attention_heads, config.dropout)
            if config.fusion == "transformer"
            else MLPFusion(tokens, width, config.fusion_layers, config.dropout)
        )
        shape = (width, config.chunk, config.action_dim)
        self.head = (
            FlowHead(*shape, config.flow_layers, config.flow_steps)
            if config.head == "flow"
            else RegressionHead(*shape, config.regression_loss)
        )
        self.proprio_norm, self.action_norm = (
            Normalizer(*summary.shift_and_scale(config.normalize))
            for summary in (self.statistics.proprio, self.statistics.action)
        )
        if self.state is not None:
            assert self.statistics.state is not None  # checked above
            self.state_norm = Normalizer(*self.statistics.state.shift_and_scale(config.normalize))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Return what to minimise, a float32 scalar, and numbers to log.

        Args:
            batch: with `action`; see `Batch`.

        Returns:
            the mean error over all valid entries: of normalised actions, L1 or squared; or of
            their flow's velocity, squared.
        """
        actions = torch.as_tensor(batch["action"]).to(self.device)
        wanted = (len(actions), self.config.chunk, self.config.action_dim)
        if actions.shape != wanted:
            raise ContractMismatch(
                f"action has shape {tuple(actions.shape)}, this model takes (B, chunk, action_dim) "
                f"= (B, {wanted[1]}, {wanted[2]})"
            )
        errors = self.head.errors(self.encode(batch), self.action_norm(actions))
        mask = batch.get("action_mask")
        if mask is None:
            loss = errors.mean()
        else:
            valid = torch.as_tensor(mask).to(errors)[..., None]
            loss = (errors * valid).sum() / (valid.sum() * errors.shape[-1]).clamp(min=1)
        return loss, {"loss": float(loss.detach())}

    def sample(self, batch: Batch, noise: Tensor | None = None) -> Tensor:
        """Return a chunk of actions for each row, (B, chunk, action_dim) float32, not clipped.

        Args:
            batch: see `Batch`.
            noise: where the flow starts, (B, chunk, action_dim), standard normal. None: the
                model's own, the same in each row. A regression takes no notice.
        """
        return self.act(self.encode(batch), noise)

    def encode(self, batch: Batch) -> Tensor:
        """Return the feature of each row, (B, feature_dim)."""
        return self.fuse(self.look(batch), self.read(batch), batch)

    def look(self, batch: Batch) -> dict[str, Tensor]:
        """Return each view's features, camera -> (B, T, channels, h, w): the costly part."""
        views = {camera: self._pictures(batch, camera) for camera in self.config.cameras}
        if not views:
            return {}
        if not self.config.share_vision:
            return {
                camera: self.vision[camera](view.flatten(0, 1)).unflatten(0, view.shape[:2])
                for camera, view in views.items()
            }
        maps = self._see_together([view.flatten(0, 1) for view in views.values()])
        return {
            camera: features.unflatten(0, view.shape[:2])
            for (camera, view), features in zip(views.items(), maps, strict=True)
        }

    def read(self, batch: Batch) -> Tensor:
        """Return the instructions' embeddings, (B, language.dim)."""
        instruction = read_instructions(batch["instruction"])
        if isinstance(instruction, Tensor):
            if instruction.shape[-1] != self.language.dim:
                raise ContractMismatch(
                    f"the instruction is an embedding of {instruction.shape[-1]} numbers, "
                    f"{self.config.language!r} makes {self.language.dim}. Make the env with "
                    'instruction="text"'
                )
            return instruction.to(self.device)
        return self.language(instruction)

    def fuse(self, maps: dict[str, Tensor], text: Tensor, batch: Batch) -> Tensor:
        """Return the feature (B, feature_dim) of what `look` and `read` returned."""
        tokens = []
        for camera, features in maps.items():
            frames = self.readouts[camera](features.flatten(0, 1))
            tokens.append(self.pool(frames.unflatten(0, features.shape[:2])))
        # Unit-norm embeddings have entries of about dim^-1/2; this brings them to about 1.
        tokens.append(self.text(text * self.language.dim**0.5)[:, None])
        if self.proprio is not None:
            tokens.append(self.proprio(self._normalize("proprio", batch))[:, None])
        if self.state is not None:
            tokens.append(self.state(self._normalize("state", batch))[:, None])
        return self.fusion(torch.cat(tokens, 1))

    def act(self, feature: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the chunk of each feature; see `sample`."""
        return self.action_norm.undo(self.head.sample(feature, noise))

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return self.action_norm.scale.device

    def parameter_groups(
        self, learning_rate: float, encoder_learning_rate: float | None = None
    ) -> list[dict[str, Any]]:
        """Return groups for an optimiser: pretrained encoders that are trained, and all the rest.

        Args:
            learning_rate: of the rest.
            encoder_learning_rate: of vision and language. None: a tenth of the other.
        """
        pretrained = [encoder for encoder in self.vision.values() if encoder.pretrained]
        encoders = [p for encoder in (*pretrained, self.language) for p in encoder.parameters()]
        known = {id(parameter) for parameter in encoders}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in known]
        slow = learning_rate / 10 if encoder_learning_rate is None else encoder_learning_rate
        groups = (("rest", rest, learning_rate), ("encoder", encoders, slow))
        trained = [(name, [p for p in some if p.requires_grad], lr) for name, some, lr in groups]
        return [{"name": name, "params": some, "lr": lr} for name, some, lr in trained if some]

    def compile_parts(self) -> None:
        """Let torch.compile translate encoders, fusion and velocity; texts stay outside."""
        for encoder in self.vision.values():
            encoder.net.compile()
        self.fusion.compile()
        if isinstance(self.head, FlowHead):
            self.head.velocity = torch.compile(self.head.velocity)

    def _normalize(self, key: str, batch: Batch) -> Tensor:
        norm = self.proprio_norm if key == "proprio" else self.state_norm
        return norm(torch.as_tensor(batch[key]).to(self.device)).clamp(-LIMIT, LIMIT)

    def _see_together(self, views: list[Tensor]) -> list[Tensor]:
        """Return the shared encoder's maps of several views, in one batch if sizes allow it."""
        encoder = self.vision["shared"]
        if len({view.shape[1:] for view in views}) == 1:
            return list(encoder(torch.cat(views)).split([len(view) for view in views]))
        return [encoder(view) for view in views]

    def _pictures(self, batch: Batch, camera: str) -> Tensor:
        """Return a view as (B, T, 3, H, W) in [0, 1]."""
        key, frames = f"rgb_{camera}", self.config.history
        if key not in batch:
            raise ContractMismatch(
                f"the batch has no {key!r}; this model sees the cameras {self.config.cameras}, the "
                f"batch has {sorted(batch)}"
            )
        view = torch.as_tensor(batch[key]).to(self.device)
        if view.ndim == 4 and frames == 1:
            view = view[:, None]
        if view.ndim == 5 and view.shape[-1] == 3:
            view = view.movedim(-1, 2)
        if view.ndim != 5 or view.shape[2] != 3 or view.shape[1] != frames:
            raise ContractMismatch(
                f"{key} has shape {tuple(batch[key].shape)}, this model takes (B, {frames}, H, W, "
                f"3) or (B, {frames}, 3, H, W)" + (", also without the 1" if frames == 1 else "")
            )
        return view / 255 if view.dtype == torch.uint8 else view.float()


def _check_lengths(statistics: Statistics, config: VLAConfig) -> None:
    found = {"proprio": statistics.proprio, "action": statistics.action, "state": statistics.state}
    for name, summary in found.items():
        wanted, length = getattr(config, f"{name}_dim"), len(summary.mean) if summary else 0
        if wanted and wanted != length:
            raise ContractMismatch(
                f"{name}_dim={wanted} of VLAConfig, but the statistics are of {length} entries of "
                f"{name}: both must be of the same data"
            )
