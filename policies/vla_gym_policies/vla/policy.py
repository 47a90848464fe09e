"""Plays a VLA model: keeps each env's last frames, takes actions from its chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vla_gym import PolicySpec, SpecSheet
from vla_gym.errors import ContractMismatch, InvalidOption, UnknownName
from vla_gym.policy import Chunker
from vla_gym_policies.vla.checkpoint import load_checkpoint, save_checkpoint
from vla_gym_policies.vla.config import VLAConfig
from vla_gym_policies.vla.language import SentenceTable
from vla_gym_policies.vla.model import VLAModel, make_model
from vla_gym_policies.vla.statistics import Statistics

__all__ = ["VLAPolicy", "make_policy_from"]

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}

Frames = dict[str, NDArray[np.uint8]]
"""Key of an image -> (history, H, W, 3), oldest first."""


class _Memory(NamedTuple):
    """What is kept of one env."""

    frames: Frames
    chunks: Any


class VLAPolicy:
    """A VLA model as a policy for any env with its cameras, of any suite and image size.

    `deterministic=True` starts the flow from one noise that the checkpoint holds: equal
    observations give equal actions, in any batch. It is a draw and not zero, because where the
    data has two ways to act, zero may lead between them. `deterministic=False` starts it from new
    noise for each chunk, after `set_random_seed` a function of that seed.

    Args:
        model: to play; it is put to eval mode.
        execute: actions taken of each chunk. None: as the model's config says. See
            `vla_gym.policy.Chunker`.
        ensemble: exponent of temporal ensembling, then a chunk is predicted at each step.
        device: such as `"cpu"` or `"cuda"`.
        dtype: `"float32"`, or `"bfloat16"` by autocast: the weights stay as they are.
        compile: whether torch.compile translates the model at the first prediction.

    Attributes:
        model, spec: see `VLAModel`, `vla_gym.PolicySpec`.

    Raises:
        UnknownName: a dtype that does not exist.
        InvalidOption: `execute` is more than a chunk has.
    """

    def __init__(
        self,
        model: VLAModel,
        *,
        execute: int | None = None,
        ensemble: float | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        compile: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise UnknownName("dtype", dtype, DTYPES, 'the policy "vla"')
        if execute is not None and execute > model.config.chunk:
            raise InvalidOption(
                f"execute={execute} is more than the {model.config.chunk} actions that this model "
                "predicts at once"
            )
        self.model = model.to(device).eval()
        if compile:
            self.model.compile_parts()
        if execute is None and ensemble is None:
            execute = model.config.execute
        self._chunker = Chunker(execute, ensemble)
        self._dtype = DTYPES[dtype]
        self._generator = torch.Generator()
        config = model.config
        self._keys = tuple(f"rgb_{camera}" for camera in config.cameras)
        self._read = (
            *self._keys,
            *(("proprio",) if config.proprio_dim else ()),
            *(("state",) if config.state_dim else ()),
            "instruction",
        )
        self.spec = PolicySpec(
            cameras=config.cameras,
            state=True if config.state_dim else None,
            proprio="eef" if config.proprio_dim else None,
            action_mode="ee_delta",
            action_dim=config.action_dim,
        )

    def for_env(self, sheet: SpecSheet) -> VLAPolicy:
        """Return the policy itself after a look at what the spec does not hold.

        Raises:
            ContractMismatch: proprio or state has another length, or the instruction is in a form
                that its language encoder cannot read.
        """
        config = self.model.config
        if config.proprio_dim not in (0, len(sheet.proprio)):
            raise ContractMismatch(
                f"the VLA model does not fit {sheet.id}: it reads {config.proprio_dim} entries of "
                f"proprio, the env has {len(sheet.proprio)}"
            )
        if config.state_dim not in (0, sheet.state_dim):
            raise ContractMismatch(
                f"the VLA model does not fit {sheet.id}: it reads {config.state_dim} entries of "
                f"state, the env has {sheet.state_dim}"
            )
        if sheet.instruction == "embedding" and not isinstance(self.model.language, SentenceTable):
            raise ContractMismatch(
                f"the VLA model does not fit {sheet.id}: its language encoder "
                f"{config.language!r} reads words, the env was made with "
                'instruction="embedding". Make it with instruction="text"'
            )
        return self

    def encode(self, observation: dict[str, Any]) -> NDArray[np.float32]:
        """Return the feature of each observation, (B, feature_dim); see `VLAModel.encode`.

        Args:
            observation: as `predict` takes it; of one frame of history.
        """
        with torch.inference_mode():
            feature = self.model.encode(_to_batch({key: observation[key] for key in self._read}))
        return feature.float().cpu().numpy()

    @property
    def history(self) -> int:
        """Frames of each view that it sees."""
        return self.model.config.history

    @property
    def chunk(self) -> int:
        """Actions that it predicts at once."""
        return self.model.config.chunk

    @property
    def image_size(self) -> int:
        """Pixels to which it resizes pictures, 0 where it sees none."""
        return max((encoder.size for encoder in self.model.vision.values()), default=0)

    def save(self, folder: str | Path, sheets: Sequence[SpecSheet | dict[str, Any]] = ()) -> None:
        """Write a checkpoint that `make_policy` opens; see `checkpoint.save_checkpoint`."""
        save_checkpoint(folder, self.model, sheets)

    def set_random_seed(self, seed: int) -> None:
        """Seed the draws of `deterministic=False`; no global generator is touched."""
        self._generator.manual_seed(seed)

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return actions (B, action_dim) in [-1, 1], and the state: frames and chunks of each env.

        Args: see `vla_gym.Policy`.
        """
        seen = {key: observation[key] for key in self._read}
        count = len(seen["instruction"])
        starts = np.zeros(count, bool) if episode_start is None else np.asarray(episode_start, bool)
        before: list[_Memory | None] = [None] * count
        if state is not None and len(state) == count:
            before = [
                None if start else memory for memory, start in zip(state, starts, strict=True)
            ]
        frames: list[Frames] = [{} for _ in before]
        if self.model.config.history > 1 and self._keys:
            frames = [self._remember(seen, row, memory) for row, memory in enumerate(before)]
            seen |= {key: np.stack([views[key] for views in frames]) for key in self._keys}
        actions, chunks = self._chunker.predict(
            lambda some: self._predict_chunk(some, deterministic),
            seen,
            [() if memory is None else memory.chunks for memory in before],
        )
        return actions, [_Memory(*each) for each in zip(frames, chunks, strict=True)]

    def _remember(self, seen: dict[str, Any], row: int, before: _Memory | None) -> Frames:
        """Return the last frames of an env; where an episode begins, its first one repeated."""
        frames = {}
        for key in self._keys:
            picture = np.asarray(seen[key][row])
            past = None if before is None else before.frames.get(key)
            if past is not None and past.shape[1:] == picture.shape:
                frames[key] = np.concatenate([past[1:], picture[None]])
            else:
                frames[key] = np.repeat(picture[None], self.model.config.history, axis=0)
        return frames

    def _predict_chunk(self, seen: dict[str, Any], deterministic: bool) -> NDArray[np.float32]:
        config = self.model.config
        noise = None
        if not deterministic:
            shape = (len(seen["instruction"]), config.chunk, config.action_dim)
            noise = torch.randn(shape, generator=self._generator).to(self.model.device)
        with torch.inference_mode(), self._autocast():
            chunk = self.model.sample(_to_batch(seen), noise)
        return chunk.clamp(-1, 1).cpu().numpy()

    def _autocast(self) -> Any:
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=self._dtype)


def _to_batch(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return observations as the model takes them: all but the instruction as tensors."""
    return {
        key: value if key == "instruction" else torch.from_numpy(np.ascontiguousarray(value))
        for key, value in seen.items()
    }


def make_policy_from(
    path: str | Path,
    config: VLAConfig | Mapping[str, Any] | None,
    statistics: Statistics | Mapping[str, Any] | None,
    random_weights: bool,
    **keywords: Any,
) -> VLAPolicy:
    """Return the policy of a checkpoint or of a new model; see `make_vla_policy`."""
    if bool(str(path)) == (config is not None):
        raise InvalidOption(
            'the policy "vla" needs the folder of a checkpoint, for example "vla:FOLDER", or '
            f"config=VLAConfig(...) for a new, untrained model, and not both; found path={path!r}, "
            f"config={config}"
        )
    if config is None:
        return VLAPolicy(load_checkpoint(path), **keywords)
    if isinstance(config, Mapping):
        config = VLAConfig.from_dict(config)
    if isinstance(statistics, Mapping):
        statistics = Statistics.from_dict(statistics)
    return VLAPolicy(make_model(config, statistics, random_weights=random_weights), **keywords)
