"""Writes the table of sentence embeddings that ships: `python -m vla_gym.embedding_table`.

To be run whenever a task's wording has changed; a test says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vla_gym.embedding import TABLE, embed_with_model
from vla_gym.registration import list_suites
from vla_gym.suites.rlbench_tasks import VARIATIONS
from vla_gym.twins.rlbench.tasks import MODULES, load_task

__all__ = ["registered_texts", "write_table"]


def registered_texts() -> list[str]:
    """Return every wording of every task of the registered suites, sorted.

    Of the RLBench twin, whose tasks have up to 60 variations, the first wording of each: what is
    spoken without `paraphrase=True`.
    """
    tasks = [task for suite in list_suites() for task in suite.tasks.values()]
    texts = {text for task in tasks for text in (task.instruction, *task.paraphrases)}
    for name in MODULES:
        texts |= {load_task(name).wordings(variation)[0] for variation in range(VARIATIONS[name])}
    return sorted(texts)


def write_table(path: Path) -> int:
    """Embed all registered texts, write them to `path` and return their number."""
    texts = registered_texts()
    np.savez_compressed(path, texts=np.array(texts), embeddings=embed_with_model(texts))
    return len(texts)


if __name__ == "__main__":  # importing the package has registered the suites
    write_table(Path(__file__).with_name(TABLE))
