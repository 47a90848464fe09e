"""Pretrained models of transformers from this machine alone: complete, or an error that helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_gym.errors import DependencyNotInstalled, InvalidOption

__all__ = ["config_from", "explain_missing", "load_pretrained", "read_config"]

UNUSED = ("pooler.", "head.", "mask_token", "vision_model.head.")
"""Weights that no encoder here uses and that may therefore be missing."""


def read_config(name: str, kind: str) -> Any:
    """Return the transformers config of a local folder, or of a name in the local hub cache.

    Args:
        name: path or hub name.
        kind: `"vision"` or `"language"`, the setting of VLAConfig that holds the name.

    Raises:
        DependencyNotInstalled: it is not there.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:  # ValueError: a config.json without a model_type
        raise explain_missing(name, kind, "config.json", error) from error


def load_pretrained(
    name: str, kind: str, config: Any, random_weights: bool, cls: Any = None, **keywords: Any
) -> Any:
    """Return a model of transformers with its weights, in float32 and eval mode.

    Args:
        name: path or hub name.
        kind: `"vision"` or `"language"`.
        config: its config.
        random_weights: whether the config alone shall be used.
        cls: class of the model. None: AutoModel.
        **keywords: of the model's constructor.

    Raises:
        DependencyNotInstalled: its weights are not on this machine.
        InvalidOption: they are incomplete or of another shape: transformers would fill the rest
            with random numbers.
    """
    import torch
    from transformers import AutoModel

    if random_weights:
        made = AutoModel.from_config(config, **keywords) if cls is None else cls(config, **keywords)
        return made.float().eval()
    try:
        with _quietly():
            model, info = (cls or AutoModel).from_pretrained(
                name,
                config=config,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                **keywords,
            )
    except RuntimeError as error:
        raise InvalidOption(f"the weights of {kind}={name!r} do not fit: {error}") from error
    except OSError as error:
        raise explain_missing(name, kind, "weights (model.safetensors)", error) from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(UNUSED))
    wrong = [*missing, *(str(key) for key in info["mismatched_keys"])]
    if wrong:
        raise InvalidOption(
            f"the weights of {kind}={name!r} are incomplete: {len(wrong)} are missing or of "
            f"another shape, the first is {wrong[0]!r}. transformers would make them random. Take "
            "the whole checkpoint of that model, or ask for random weights with "
            "random_weights=True"
        )
    return model.eval()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from reporting weights that no encoder here uses, and from drawing bars."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def explain_missing(name: str, kind: str, what: str, error: Exception) -> DependencyNotInstalled:
    """Return the error for a model that is not on this machine."""
    folder = Path(name)
    if folder.is_dir():
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        found = f"the folder {name} has no usable {what}; it holds {there}"
        do = "Copy the whole folder of the model, as save_pretrained or the hub has it"
    else:
        found = f"{name!r} is neither a folder nor in the local hub cache ({what} not found)"
        do = (
            f"Where the network allows, run `hf download {name} --local-dir DIR` (the files "
            f"config.json, model.safetensors and preprocessor or tokenizer files), copy DIR here "
            f"and pass {kind}='DIR'"
        )
    default = "efficientnet-lite0" if kind == "vision" else "all-MiniLM-L6-v2"
    return DependencyNotInstalled(
        f"the {kind} encoder cannot be loaded: {found}. {do}. {kind}={default!r} needs no "
        f"download; random_weights=True, for tests, needs no weights ({type(error).__name__})"
    )


def config_from(values: dict[str, Any]) -> Any:
    """Return the transformers config of `config.to_dict()`."""
    from transformers import AutoConfig

    values = dict(values)
    return AutoConfig.for_model(values.pop("model_type"), **values)
