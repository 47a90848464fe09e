"""Meta-World's multi-task and meta-learning benchmarks: which tasks each has. Data only.

MT10 and MT50 train and test on the same tasks, ML10 and ML45 test on tasks that were never trained
on. Order and content are those of metaworld 3.1.1, env_dict.py: `MT10_V3`, `MT50_V3`, `ML10_V3`,
`ML45_V3`. The goals are another matter, the keyword `split` of the suite.
"""

from __future__ import annotations

from vla_gym.suites.metaworld_tasks import TASKS

__all__ = ["BENCHMARKS"]

_ML10_TEST = ("DrawerOpen", "DoorClose", "ShelfPlace", "SweepInto", "LeverPull")
_ML45_TEST = ("BinPicking", "BoxClose", "HandInsert", "DoorLock", "DoorUnlock")

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "MT10": (
        *("Reach", "Push", "PickPlace", "DoorOpen", "DrawerOpen", "DrawerClose"),
        *("ButtonPressTopdown", "PegInsertSide", "WindowOpen", "WindowClose"),
    ),
    "MT50": tuple(TASKS),
    "ML10-train": (
        *("Reach", "Push", "PickPlace", "DoorOpen", "DrawerClose"),
        *("ButtonPressTopdown", "PegInsertSide", "WindowOpen", "Sweep", "Basketball"),
    ),
    "ML10-test": _ML10_TEST,
    "ML45-train": tuple(name for name in TASKS if name not in _ML45_TEST),
    "ML45-test": _ML45_TEST,
}
"""Name -> names of its tasks."""
