"""`openvla`: models that write an action as text tokens, `make_policy("openvla:checkpoints/mine")`.

OpenVLA (Kim et al. 2024, "OpenVLA: An Open-Source Vision-Language-Action Model") takes a picture
and a command and generates one token for each entry of an action. The last 256 tokens of its
vocabulary stand for the bins of [-1, 1]; statistics of the data set turn these numbers into metres
and radians. Any image-text-to-text model of transformers that was trained so will do.

Source of the arithmetic: openvla's `prismatic/extern/hf/modeling_prismatic.py`, predict_action, and
`experiments/robot/openvla_utils.py`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_gym import PolicySpec
from vla_gym.deps import require
from vla_gym.errors import InvalidOption, UnknownName
from vla_gym_policies.checkpoints import declare, find_folder, refuse_missing

__all__ = ["PROMPT", "ActionTokens", "OpenVLAPolicy", "make_openvla_policy"]

PURPOSE = "a policy from an OpenVLA checkpoint"

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
"""What OpenVLA is asked; the command is in lower case."""

LLAMA_SPACE = 29871
"""Llama's token of a lone space, which OpenVLA was trained to see between `Out:` and the action."""


@dataclass(frozen=True)
class ActionTokens:
    """What the tokens of an action mean.

    Attributes:
        end: one more than the last action token, which stands for the lowest bin.
        bins: edges of the bins in [-1, 1]; there is one bin less.
        low, high: shape (A,), what -1 and 1 stand for: the 1 % and 99 % quantiles of the data set.
        mask: shape (A,), False for entries that were not normalised, such as the gripper.
    """

    end: int
    bins: int
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mask: NDArray[np.bool_]

    @staticmethod
    def of(end: int, bins: int, statistics: Mapping[str, ArrayLike]) -> ActionTokens:
        """Return those of a data set's `q01`, `q99` and, optionally, `mask`."""
        low = np.asarray(statistics["q01"], np.float64)
        high = np.asarray(statistics["q99"], np.float64)
        mask = np.asarray(statistics.get("mask", np.ones(len(low))), bool)
        return ActionTokens(end, bins, low, high, mask)

    def decode(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """Return the actions of token ids (B, A), in the data set's units, shape (B, A).

        An id that is no action token counts as the nearest one.
        """
        edges = np.linspace(-1.0, 1.0, self.bins)
        centers = (edges[:-1] + edges[1:]) / 2
        index = np.clip(self.end - 1 - np.asarray(tokens), 0, len(centers) - 1)
        normalized = centers[index]
        restored = (normalized + 1) / 2 * (self.high - self.low) + self.low
        return np.where(self.mask, restored, normalized)


def make_openvla_policy(
    path: str | Path = "",
    *,
    unnorm_key: str | None = None,
    trust_remote_code: bool = False,
    prompt: str = PROMPT,
    norm_stats: str | Path | Mapping[str, Any] | None = None,
    vocabulary: int | None = None,
    recorded_size: int | None = None,
    center_crop: bool = False,
    binary_gripper: bool = False,
    batched: bool | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    **conventions: Any,
) -> OpenVLAPolicy:
    """Load an OpenVLA-style checkpoint. Nothing is downloaded.

    Args:
        path: folder of model and processor, as `save_pretrained` of transformers writes it.
        unnorm_key: the data set whose statistics turn tokens into actions. None where the
            checkpoint knows only one.
        trust_remote_code: run the Python files of the folder. OpenVLA's own checkpoints consist of
            such code, written for transformers 4.40; look at it first.
        prompt: with `{instruction}`. Models other than OpenVLA may want a mark where the picture
            belongs, such as `<image>`.
        norm_stats: `{data set: {"action": {"q01", "q99", "mask"}}}` or a JSON file of it. None:
            `dataset_statistics.json` in the folder, else `norm_stats` of its `config.json`.
        vocabulary: number of tokens, the last of which are the actions. None: as OpenVLA counts,
            without the rows that pad its embedding, or else those of the tokenizer, without added
            ones.
        recorded_size: of the pictures of the data set [pixels], in which the env then draws them.
            They go through JPEG and are scaled by Lanczos to the model's size, as those of
            Open X-Embodiment in training. None: they are drawn in the model's size.
        center_crop: show the middle 90 % of a picture's area, for checkpoints that were fine-tuned
            with random crops.
        binary_gripper: round the gripper to open or closed, as OpenVLA does on LIBERO.
        batched: whether the model can generate for several prompts at once. None: all but OpenVLA.
        device: of torch.
        dtype: `"float32"`, or `"bfloat16"` for half the memory.
        **conventions: fields of `vla_gym.PolicySpec` that tell what the data set meant. Defaults
            are those of Open X-Embodiment: metres and radians, extrinsic xyz Euler angles, and a
            gripper with 1 open, 0 closed.

    Raises:
        InvalidOption: the folder is no such checkpoint, is incomplete or lacks statistics.
        UnknownName: the checkpoint knows no data set of that name, or `PolicySpec` no such field.
        DependencyNotInstalled: transformers, torch or Pillow is not installed.
    """
    folder = find_folder(path, "openvla")
    if "{instruction}" not in prompt:
        raise InvalidOption(f"prompt={prompt!r} lacks {{instruction}}")
    for module in ("torch", "PIL"):
        require(module, "openvla", PURPOSE)
    model, processor = _load(folder, trust_remote_code, dtype)
    statistics = _read_statistics(folder, norm_stats, model.config, unnorm_key)
    tokens = ActionTokens.of(
        vocabulary or _count_vocabulary(model.config, processor.tokenizer),
        getattr(model.config, "n_action_bins", 256),
        statistics,
    )
    image_size = _read_image_size(model.config)
    if recorded_size is not None and image_size is None:
        raise InvalidOption(
            f"recorded_size={recorded_size}, but {folder} does not say what size its model takes"
        )
    spec = declare(
        conventions,
        cameras=("primary",),
        image_size=image_size if recorded_size is None else recorded_size,
        instruction="text",
        action_mode="ee_delta",
        action_dim=len(tokens.low),
        rotation="euler xyz",
        scale=(1.0, 1.0),
        gripper="1 opens, 0 closes",
    )
    original = model.config.model_type == "openvla"
    return OpenVLAPolicy(
        model.to(device).eval(),
        processor,
        spec,
        tokens,
        prompt=prompt,
        end_token=LLAMA_SPACE if original else None,
        batched=not original if batched is None else batched,
        scale_to=None if recorded_size is None else image_size,
        center_crop=center_crop,
        binary_gripper=binary_gripper,
    )


class OpenVLAPolicy:
    """Plays a model that generates an action's tokens: greedily, or with `deterministic=False` not.

    Args:
        model: has `generate`.
        processor: takes `text` and `images`, and has a `tokenizer`.
        spec: what it sees and speaks; `cameras` are given.
        tokens: what its tokens mean.
        prompt: with `{instruction}`.
        end_token: appended to prompts that do not end with it.
        batched: whether the model can generate for several prompts at once.
        scale_to: size to which pictures are brought through JPEG and Lanczos [pixels]; None: they
            are shown as they come.
        center_crop, binary_gripper: see `make_openvla_policy`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        spec: PolicySpec,
        tokens: ActionTokens,
        *,
        prompt: str = PROMPT,
        end_token: int | None = None,
        batched: bool = True,
        scale_to: int | None = None,
        center_crop: bool = False,
        binary_gripper: bool = False,
    ) -> None:
        self.model, self.spec, self.tokens = model, spec, tokens
        self._processor, self._prompt, self._end_token = processor, prompt, end_token
        self._batched, self._binary_gripper = batched, binary_gripper
        self._scale_to, self._center_crop = scale_to, center_crop
        self._torch = require("torch", "openvla", PURPOSE)
        self._image = require("PIL.Image", "openvla", PURPOSE)
        processor.tokenizer.padding_side = "left"  # what is generated follows the prompt
        self._seeds: Any = None  # a generator; None: torch's global one goes on

    def set_random_seed(self, seed: int) -> None:
        """Seed the draws of `deterministic=False`; no global generator is touched."""
        self._seeds = self._torch.Generator().manual_seed(seed)

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return actions (B, A) in the data set's units, which the spec declares."""
        del episode_start  # each action depends on one observation alone
        if deterministic or self._seeds is None:
            tokens = self._write(observation, deterministic)
        else:
            device = self.model.device
            with self._torch.random.fork_rng([device] if device.type == "cuda" else []):
                # generate() takes no generator, so the global one stands in, seeded for each call.
                self._torch.manual_seed(int(self._torch.randint(2**31, (), generator=self._seeds)))
                tokens = self._write(observation, deterministic)
        actions = self.tokens.decode(tokens)
        if self._binary_gripper:
            closed = -1.0 if self.spec.gripper.startswith("+1") else 0.0
            actions[:, -1] = np.where(actions[:, -1] > (closed + 1) / 2, 1.0, closed)
        return actions.astype(np.float32), state

    def _write(self, observation: dict[str, Any], deterministic: bool) -> NDArray[np.int64]:
        """Return the ids of the actions' tokens, shape (B, A)."""
        texts = [self._prompt.format(instruction=t.lower()) for t in observation["instruction"]]
        views = [self._show(observation[f"rgb_{c}"]) for c in self.spec.cameras or ()]
        images = [list(pictures) for pictures in zip(*views, strict=True)]
        size = len(texts) if self._batched else 1
        return np.concatenate(
            [
                self._generate(texts[i : i + size], images[i : i + size], deterministic)
                for i in range(0, len(texts), size)
            ]
        )

    def _generate(
        self, texts: list[str], images: list[list[Any]], deterministic: bool
    ) -> NDArray[np.int64]:
        """Return them for some of the envs, in one call of the model."""
        torch, count = self._torch, len(self.tokens.low)
        inputs = self._processor(
            text=texts, images=images, padding=len(texts) > 1, return_tensors="pt"
        ).to(self.model.device, dtype=self.model.dtype)
        ids = inputs["input_ids"]
        if self._end_token is not None and not torch.all(ids[:, -1] == self._end_token):
            ends = torch.full_like(ids[:, :1], self._end_token)
            inputs["input_ids"] = torch.cat([ids, ends], dim=1)
            mask = inputs["attention_mask"]
            inputs["attention_mask"] = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        with torch.inference_mode():
            written = self.model.generate(
                **inputs,
                do_sample=not deterministic,
                min_new_tokens=count,  # the end of a text is no action
                max_new_tokens=count,
            )
        return written[:, -count:].cpu().numpy()

    def _show(self, pictures: NDArray[np.uint8]) -> list[Any]:
        """Return pictures (B, H, W, 3) as Pillow's."""
        if self._scale_to is not None:
            size = self._scale_to
            pictures = np.stack([_scale_recorded(self._image, p, size) for p in pictures])
        if self._center_crop:
            pictures = _crop_center(self._torch, pictures, area=0.9)
        return [self._image.fromarray(np.ascontiguousarray(picture)) for picture in pictures]


def _scale_recorded(image: Any, picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3), after JPEG, in another size.

    As openvla's `experiments/robot/libero/libero_utils.py`, resize_image, does it: TensorFlow's
    encode_jpeg (quality 95, 4:2:0; the bytes are the same), its decoder, and its antialiased
    lanczos3, rounded once. TensorFlow decodes with libjpeg's fast inverse transform, Pillow with
    the accurate one: 1.0 level of 255 apart on average, 16 at most, on LIBERO's pictures. Pillow's
    Lanczos is the same filter; it rounds in between, but not where levels are float.
    """
    file = io.BytesIO()
    image.fromarray(picture).save(file, "jpeg", quality=95, subsampling="4:2:0")
    bands = image.open(file).convert("RGB").split()
    way = image.Resampling.LANCZOS
    scaled = [np.asarray(band.convert("F").resize((size, size), way)) for band in bands]
    return np.clip(np.round(np.stack(scaled, axis=-1)), 0, 255).astype(np.uint8)


def _crop_center(torch: Any, pictures: NDArray[np.uint8], area: float) -> NDArray[np.uint8]:
    """Return the middle of pictures (B, H, W, 3), of that share of the area, in their full size.

    Corners map to corners and levels round down from 255.5, as in TensorFlow's crop_and_resize and
    convert_image_dtype, with which OpenVLA does it.
    """
    height, width = pictures.shape[1:3]
    side = area**0.5
    rows, columns = (torch.linspace(-side, side, n) for n in (height, width))
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    levels = torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2) / 255
    cropped = torch.nn.functional.grid_sample(
        levels, grid.expand(len(levels), -1, -1, -1), align_corners=True
    )
    return (cropped * 255.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _load(folder: Path, trust_remote_code: bool, dtype: str) -> tuple[Any, Any]:
    """Return the model and the processor of a folder."""
    transformers = require("transformers", "openvla", PURPOSE)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    remote = json.loads((folder / "config.json").read_text()).get("auto_map", {})
    if remote and not trust_remote_code:
        raise InvalidOption(
            f"{folder} brings its own code ({', '.join(sorted(set(map(str, remote.values()))))}), "
            "as OpenVLA's checkpoints do. Look at it; to run it pass trust_remote_code=True"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        processor = transformers.AutoProcessor.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise InvalidOption(
            f"transformers {transformers.__version__} cannot read {folder}: {error}"
        ) from error
    if not hasattr(processor, "tokenizer"):
        raise InvalidOption(
            f"{folder} has a {type(processor).__name__}, not a processor of texts and images"
        )
    model, report = _find_class(folder, remote, transformers).from_pretrained(
        folder,
        config=config,
        dtype=getattr(require("torch", "openvla", PURPOSE), dtype),
        output_loading_info=True,
        **options,
    )
    refuse_missing(report["missing_keys"], folder)
    if not hasattr(model, "generate"):
        raise InvalidOption(
            f"{folder} has a {type(model).__name__}, which generates no text; an OpenVLA-style "
            "model is one of transformers' image-text-to-text models"
        )
    return model, processor


def _find_class(folder: Path, remote: Mapping[str, str], transformers: Any) -> Any:
    """Return the class of the model: transformers' own, or that of the folder's code.

    OpenVLA's files name theirs under AutoModelForVision2Seq, which transformers 5 no longer has.
    """
    for name in ("AutoModelForImageTextToText", "AutoModelForVision2Seq"):
        if name in remote:
            dynamic = require("transformers.dynamic_module_utils", "openvla", PURPOSE)
            return dynamic.get_class_from_dynamic_module(
                remote[name], folder, local_files_only=True
            )
    return transformers.AutoModelForImageTextToText


def _read_statistics(
    folder: Path,
    given: str | Path | Mapping[str, Any] | None,
    config: Any,
    key: str | None,
) -> Mapping[str, ArrayLike]:
    """Return the statistics of a data set's actions."""
    file = folder / "dataset_statistics.json"
    if isinstance(given, Mapping):
        known: Any = given
    elif given is not None or file.is_file():
        known = json.loads(Path(given or file).read_text())
    else:
        known = getattr(config, "norm_stats", None)
    if not known:
        raise InvalidOption(
            f"{folder} has no statistics of actions, neither dataset_statistics.json nor "
            "norm_stats in config.json. Without them its tokens mean nothing; give them with "
            "norm_stats=..."
        )
    if key is None and len(known) == 1:
        key = next(iter(known))
    if key is None:
        raise InvalidOption(
            f"{folder} was trained on {len(known)} data sets; say with unnorm_key=... whose "
            f"actions it shall speak: {', '.join(sorted(known))}"
        )
    if key not in known:
        raise UnknownName("data set (unnorm_key)", key, sorted(known), f"{folder}")
    return known[key]["action"]


def _count_vocabulary(config: Any, tokenizer: Any) -> int:
    padding = getattr(config, "pad_to_multiple_of", None)
    if padding is not None:  # OpenVLA's own: the rows of the embedding less those that pad it
        return config.text_config.vocab_size - padding
    return tokenizer.vocab_size


def _read_image_size(config: Any) -> int | None:
    sizes = getattr(config, "image_sizes", None)
    if sizes:
        return int(sizes[0])
    size = getattr(getattr(config, "vision_config", None), "image_size", None)
    return size if isinstance(size, int) else None
