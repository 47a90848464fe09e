"""Meta-World's benchmark goals, frozen in `metaworld_goals.npz`.

`MT1(task, seed=42).train_tasks` and `ML1(task, seed=42).test_tasks` of metaworld 3.1.1, 50 random
vectors each. Upstream draws them with NumPy's global generator, by building the env and resetting
it 50 times: seconds per task, which is too much for a `gym.make`. MT1 is the split `"train"`, ML1's
test tasks are the split `"test"` (its goals differ from all of `"train"`).

`python -m vla_gym.suites.metaworld_goals` draws them again and rewrites the file.
"""

from __future__ import annotations

import functools
import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["GOALS", "SPLITS", "draw_goals", "load_goals"]

GOALS = 50
"""Goals per task and split: `metaworld._N_GOALS`."""

SPLITS = ("train", "test")
SEED = 42
"""Of the goals in the file; Meta-World's customary choice."""

_FILE = Path(__file__).with_name("metaworld_goals.npz")


@functools.lru_cache(maxsize=16)
def load_goals(native_task: str, split: str) -> NDArray[np.float64]:
    """Return a task's goals, shape (50, k), read-only.

    Each row is a random vector of upstream: k is 3 or 6, positions of object, goal or both in the
    world frame [m], as the task's `reset_model` reads them.

    Args:
        native_task: upstream's name, for example `"drawer-open-v3"`.
        split: `"train"` or `"test"`.
    """
    with np.load(_FILE, allow_pickle=False) as table:
        goals = table[f"{native_task}/{split}"]
    goals.flags.writeable = False
    return goals


def draw_goals(native_task: str, split: str) -> NDArray[np.float64]:
    """Return the goals as upstream draws them, shape (50, k). Needs metaworld; takes seconds."""
    import metaworld

    if split == "train":
        tasks = metaworld.MT1(native_task, seed=SEED).train_tasks
    else:
        tasks = metaworld.ML1(native_task, seed=SEED).test_tasks
    return np.array([pickle.loads(task.data)["rand_vec"] for task in tasks])


def _main() -> None:
    from vla_gym.suites.metaworld_tasks import TASKS

    table = {}
    for task in TASKS.values():
        for split in SPLITS:
            table[f"{task.native}/{split}"] = draw_goals(task.native, split)
        print(task.native)
    np.savez_compressed(_FILE, **table)


if __name__ == "__main__":
    _main()
