"""`pi0`: π0 checkpoints in transformers, `make_policy("pi0:checkpoints/mine")`.

π0 (Black et al. 2024, "π0: A Vision-Language-Action Flow Model for General Robot Control") draws a
chunk of actions by flow matching from noise. The model is transformers' own
`PI0ForConditionalGeneration`; what surrounds it (prompt, padding, statistics) follows openpi, whose
checkpoints these are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_gym import PolicySpec
from vla_gym.deps import require
from vla_gym.errors import ContractMismatch, InvalidOption
from vla_gym.policy import Chunker
from vla_gym_policies.checkpoints import declare, find_folder, refuse_missing

__all__ = ["NORMALIZATIONS", "PI0Policy", "Statistics", "make_pi0_policy"]

PURPOSE = "a policy from a π0 checkpoint"

NORMALIZATIONS = {"mean-std": ("mean", "std"), "quantile": ("q01", "q99")}
"""Form of normalisation -> the two statistics that it takes."""


@dataclass(frozen=True)
class Statistics:
    """Normalises vectors of a data set: (x - center) / spread.

    Attributes:
        center, spread: shape (n,).
    """

    center: NDArray[np.float64]
    spread: NDArray[np.float64]

    @staticmethod
    def of(kind: str, low: ArrayLike, high: ArrayLike) -> Statistics:
        """Return those of mean and standard deviation, or of the 1 % and 99 % quantiles.

        As openpi has it (`src/openpi/transforms.py`, Normalize): mean-std gives (x - mean) / (std +
        1e-6), quantile maps q01 to -1 and q99 + 1e-6 to 1.
        """
        first, second = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if kind == "mean-std":
            return Statistics(first, second + 1e-6)
        half = (second - first + 1e-6) / 2
        return Statistics(first + half, half)

    def first(self, count: int, what: str) -> Statistics:
        """Return those of the first entries; the rest must be the zeros of a padded data set.

        Raises:
            ContractMismatch: they are of vectors of another length.
        """
        if len(self.center) < count or np.any(np.abs(self.center[count:]) > 1e-5):
            raise ContractMismatch(
                f"{what} has {count} entries, its statistics have {len(self.center)}: it is not "
                "what the checkpoint was trained with. See proprio_rotation, rotation, action_dim "
                "and state of make_pi0_policy"
            )
        return Statistics(self.center[:count], self.spread[:count])

    def normalize(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Return vectors (..., n) in the model's units."""
        return (np.asarray(vectors, np.float64) - self.center) / self.spread

    def restore(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Return vectors (..., n) in the data set's units."""
        return np.asarray(vectors, np.float64) * self.spread + self.center


def make_pi0_policy(
    path: str | Path = "",
    *,
    norm_stats: str | Path | Mapping[str, Any] | None = None,
    normalization: str = "mean-std",
    tokenizer: str | Path | None = None,
    state: Callable[[dict[str, Any]], ArrayLike] | None = None,
    steps: int | None = None,
    execute: int | None = None,
    ensemble: float | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    **conventions: Any,
) -> PI0Policy:
    """Load a π0 checkpoint. Nothing is downloaded.

    Args:
        path: folder with `config.json` and the weights, as `save_pretrained` of transformers
            writes it, or as LeRobot publishes its π0 (transformers renames those weights itself).
        norm_stats: openpi's `norm_stats.json`, a folder that holds one, or its content. None: the
            one in `path` or below it (openpi keeps it in `assets/<data set>/`), else the
            statistics in transformers' `processor_config.json`.
        normalization: `"mean-std"`, with which openpi trains π0, or `"quantile"`.
        tokenizer: folder of PaliGemma's tokenizer. None: `path`.
        state: the model's state vector (B, n) from an observation, whose proprio is already in the
            declared form. None: the proprio.
        steps: of the flow's integration. None: as the checkpoint says (10).
        execute: actions taken of each chunk. None: all. openpi takes 5 of 50 on LIBERO.
        ensemble: see `vla_gym.policy.Chunker`.
        device: of torch.
        dtype: `"float32"`, or `"bfloat16"` for half the memory.
        **conventions: fields of `vla_gym.PolicySpec` that tell what the data set meant. `cameras`
            names the views in the order of training (default primary, wrist): π0 has three slots,
            and one that stays empty is masked, which is the same as leaving it out. `action_dim`
            (default 7) cuts off the padding of actions.

    Raises:
        InvalidOption: the folder is no such checkpoint, is incomplete or lacks statistics.
        ContractMismatch: the statistics are of actions of another length.
        UnknownName: a keyword that `PolicySpec` does not have.
        DependencyNotInstalled: transformers, torch or Pillow is not installed.
    """
    folder = find_folder(path, "pi0")
    if normalization not in NORMALIZATIONS:
        raise InvalidOption(
            f"normalization={normalization!r} is unknown, valid are {tuple(NORMALIZATIONS)}"
        )
    statistics = _read_statistics(folder, norm_stats, normalization)
    transformers, torch = require("transformers", "pi0", PURPOSE), require("torch", "pi0", PURPOSE)
    model, report = transformers.PI0ForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, dtype=getattr(torch, dtype), output_loading_info=True
    )
    refuse_missing(report["missing_keys"], folder)
    vision = model.config.vlm_config.vision_config
    spec = declare(
        conventions,
        cameras=("primary", "wrist"),
        image_size=vision.image_size,
        proprio="eef",
        instruction="text",
        action_mode="ee_delta",
        action_dim=7,
    )
    processor = _make_processor(Path(tokenizer or folder), vision)
    if processor.image_token_id != model.config.vlm_config.image_token_id:
        raise InvalidOption(
            f"the tokenizer in {tokenizer or folder} writes an image as token "
            f"{processor.image_token_id}, the model in {folder} reads "
            f"{model.config.vlm_config.image_token_id}: they do not belong together"
        )
    return PI0Policy(
        model.to(device).eval(),
        processor,
        spec,
        statistics,
        chunker=Chunker(execute, ensemble),
        state=state,
        steps=steps,
    )


class PI0Policy:
    """Plays a π0 model.

    Each chunk starts from noise, with `deterministic=True` as well: a flow has no mode that could
    be taken instead, and its published scores are those of samples. The noise comes from a
    generator of its own, which `set_random_seed` seeds, so that an episode can be repeated.

    Args:
        model: a `PI0ForConditionalGeneration`.
        processor: the `PI0Processor` for it.
        spec: what it sees and speaks; `cameras` and `action_dim` are given.
        statistics: of `"state"` and `"actions"`.
        chunker: how many actions of a chunk are taken.
        state: see `make_pi0_policy`.
        steps: see `make_pi0_policy`.

    Raises:
        ContractMismatch: the model or the statistics have fewer action entries than `spec`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        spec: PolicySpec,
        statistics: Mapping[str, Statistics],
        *,
        chunker: Chunker | None = None,
        state: Callable[[dict[str, Any]], ArrayLike] | None = None,
        steps: int | None = None,
    ) -> None:
        if not spec.cameras or spec.action_dim is None:
            raise InvalidOption(f"π0 needs cameras and action_dim, not {spec}")
        if spec.action_dim > model.config.max_action_dim:
            raise ContractMismatch(
                f"action_dim={spec.action_dim}, but the model has {model.config.max_action_dim}"
            )
        self.model, self.spec = model, spec
        self._processor, self._state_of, self._steps = processor, state, steps
        self._chunker = chunker or Chunker()
        self._state_statistics = statistics["state"]
        self._action_statistics = statistics["actions"].first(spec.action_dim, "an action")
        self._torch = require("torch", "pi0", PURPOSE)
        self._generator = self._torch.Generator(model.device)
        self.set_random_seed(0)

    def set_random_seed(self, seed: int) -> None:
        """Seed the noise; no global generator is touched."""
        self._generator.manual_seed(seed)

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the next actions of the envs' chunks, (B, action_dim), in the spec's units."""
        del deterministic  # see the class
        return self._chunker.predict(self._predict_chunk, observation, state, episode_start)

    def _predict_chunk(self, observation: dict[str, Any]) -> NDArray[np.float64]:
        """Return chunks, shape (b, chunk_size, action_dim)."""
        torch, model = self._torch, self.model
        inputs = self._processor(
            list(zip(*(observation[f"rgb_{c}"] for c in self.spec.cameras or ()), strict=True)),
            [_clean(text) for text in observation["instruction"]],
            padding="longest",  # the processor's 48 does not count the tokens of the images
            return_tensors="pt",
        ).to(model.device, dtype=model.dtype)
        states = self._read_states(observation)
        shape = (len(states), model.config.chunk_size, model.config.max_action_dim)
        noise = torch.randn(shape, generator=self._generator, device=model.device)
        chunks = model.sample_actions(
            state=torch.from_numpy(states).to(model.device, model.dtype),
            noise=noise.to(model.dtype),
            num_steps=self._steps,
            **inputs,
        )
        chunks = chunks[..., : self.spec.action_dim].float().cpu().numpy()
        return self._action_statistics.restore(chunks)

    def _read_states(self, observation: dict[str, Any]) -> NDArray[np.float32]:
        """Return the normalised states, padded with zeros to (b, max_state_dim)."""
        read = self._state_of or (lambda seen: seen["proprio"])
        states = np.asarray(read(observation), np.float64)
        length = self.model.config.max_state_dim
        if states.shape[1] > length:
            raise ContractMismatch(
                f"the state has {states.shape[1]} entries, the model takes at most {length}"
            )
        known = self._state_statistics.first(states.shape[1], "the state")
        padded = np.zeros((len(states), length), np.float32)
        padded[:, : states.shape[1]] = known.normalize(states)
        return padded


def _clean(text: str) -> str:
    """Return a command as openpi tokenizes it (`src/openpi/models/tokenizer.py`)."""
    return text.strip().replace("_", " ").replace("\n", " ")


def _make_processor(folder: Path, vision: Any) -> Any:
    """Return transformers' processor of prompts and images for this model.

    Its own image processor needs torchvision, to shrink pictures and to pad them to squares. Ours
    come as squares of the right size; what is left is SigLIP's scaling to [-1, 1].
    """
    transformers = require("transformers", "pi0", PURPOSE)
    require("PIL", "pi0", PURPOSE)
    pil = require("transformers.models.siglip.image_processing_pil_siglip", "pi0", PURPOSE)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidOption(
            f"{folder} holds no tokenizer ({str(error).splitlines()[0]}). π0 reads with that of "
            "PaliGemma: give its folder with tokenizer=..."
        ) from error
    images = pil.SiglipImageProcessorPil(
        size={"height": vision.image_size, "width": vision.image_size}
    )
    images.image_seq_length = (vision.image_size // vision.patch_size) ** 2
    return transformers.PI0Processor(image_processor=images, tokenizer=tokenizer)


def _read_statistics(
    folder: Path, given: str | Path | Mapping[str, Any] | None, normalization: str
) -> dict[str, Statistics]:
    """Return the statistics of `"state"` and `"actions"`."""
    if isinstance(given, Mapping):
        content, where = given, "norm_stats"
    else:
        where = _find_statistics(folder if given is None else Path(given))
        if where is None:
            return _read_processor(folder, given, normalization)
        content = json.loads(where.read_text())
    content = content.get("norm_stats", content)
    names = NORMALIZATIONS[normalization]
    try:
        return {
            key: Statistics.of(normalization, *(content[key][name] for name in names))
            for key in ("state", "actions")
        }
    except (KeyError, TypeError) as error:
        raise InvalidOption(
            f"{where} lacks {error}: normalization={normalization!r} needs "
            f"{' and '.join(names)} of state and actions"
        ) from error


def _find_statistics(place: Path) -> Path | None:
    if place.is_file():
        return place
    found = sorted(place.rglob("norm_stats.json"))
    top = place / "norm_stats.json"
    if len(found) > 1 and top not in found:
        raise InvalidOption(
            f"{place} holds statistics of several data sets: "
            f"{', '.join(str(file.relative_to(place)) for file in found)}. Choose with norm_stats="
        )
    return top if top in found else next(iter(found), None)


def _read_processor(folder: Path, given: Any, normalization: str) -> dict[str, Statistics]:
    """Return the statistics that transformers' processor has saved."""
    file = folder / "processor_config.json"
    saved = json.loads(file.read_text()) if file.is_file() else {}
    keys = [f"{key}_{name}" for key in ("state", "actions") for name in ("mean", "std")]
    if given is not None or normalization != "mean-std" or any(not saved.get(k) for k in keys):
        raise InvalidOption(
            f"there are no statistics for normalization={normalization!r} in {given or folder}: "
            "neither norm_stats.json, as openpi writes it, nor state_mean, state_std, actions_mean "
            "and actions_std in processor_config.json. Without them π0's numbers mean nothing; "
            "give the file with norm_stats=..."
        )
    return {
        key: Statistics.of("mean-std", saved[f"{key}_mean"], saved[f"{key}_std"])
        for key in ("state", "actions")
    }
