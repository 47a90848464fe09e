"""The twin's tasks by name. A new task is one class in one of these modules, and one line here."""

from __future__ import annotations

import importlib

from vla_gym.errors import UnknownName
from vla_gym.twins.rlbench.task import TwinTask

__all__ = ["MODULES", "load_task"]

MODULES = {
    "ReachTarget": "reach",
    "PushButton": "buttons",
    "PushButtons": "buttons",
    "LampOn": "lamps",
    "LampOff": "lamps",
    "PressSwitch": "switch",
    "CloseBox": "box",
    "OpenBox": "box",
    "CloseLaptopLid": "laptop",
    "CloseMicrowave": "microwave",
    "OpenDrawer": "drawers",
    "CloseDrawer": "drawers",
    "PutItemInDrawer": "drawers",
    "PickAndLift": "lift",
    "LiftNumberedBlock": "lift",
    "TakeLidOffSaucepan": "saucepan",
    "PickUpCup": "cups",
    "StackBlocks": "stacking",
    "BlockPyramid": "stacking",
    "SlideBlockToTarget": "slide",
    "InsertOntoSquarePeg": "peg",
    "ReachAndDrag": "drag",
    "SweepToDustpan": "sweep",
    "CloseJar": "jar",
    "PutRubbishInBin": "rubbish",
}
"""Task -> module of this package that has a class of the same name."""


def load_task(name: str) -> type[TwinTask]:
    """Return the class of a task.

    Raises:
        UnknownName: the twin does not have it.
    """
    if name not in MODULES:
        raise UnknownName("task", name, MODULES, "the RLBench twin")
    return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
