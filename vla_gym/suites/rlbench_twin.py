"""What must be known of the RLBench twin without starting it: its tasks and its state's length."""

from __future__ import annotations

__all__ = ["MAX_BODIES", "MAX_JOINTS", "TWIN_STATE_DIM", "TWIN_TASKS"]

TWIN_TASKS = frozenset(
    {
        "BlockPyramid",
        "CloseBox",
        "CloseDrawer",
        "CloseJar",
        "CloseLaptopLid",
        "CloseMicrowave",
        "InsertOntoSquarePeg",
        "LampOff",
        "LampOn",
        "LiftNumberedBlock",
        "OpenBox",
        "OpenDrawer",
        "PickAndLift",
        "PickUpCup",
        "PressSwitch",
        "PushButton",
        "PushButtons",
        "PutItemInDrawer",
        "PutRubbishInBin",
        "ReachAndDrag",
        "ReachTarget",
        "SlideBlockToTarget",
        "StackBlocks",
        "SweepToDustpan",
        "TakeLidOffSaucepan",
    }
)
"""Names of the suite's tasks that the twin has: those whose objects primitives can stand in for."""

MAX_BODIES, MAX_JOINTS = 16, 4

TWIN_STATE_DIM = 23 + 7 * MAX_BODIES + MAX_JOINTS
"""Length of the twin's `state`, world frame: 7 joint angles, 7 velocities, opening, the tip's
position and quaternion (x, y, z, w), the variation; then position and quaternion of each body of
the task and the position of each of its joints, zeros up to `MAX_BODIES` and `MAX_JOINTS`."""
