"""CALVIN's 34 tasks and the chain of five: instructions, paraphrases and success rules.

The instructions are upstream's, word for word: the one per task that it evaluates with (calvin
fa03f01, calvin_models/conf/annotations/new_playtable_validation.yaml). The paraphrases were written
for vla_gym; none is among the sentences of upstream's training data. The rules in words are those
of `vla_gym.suites.calvin.oracle`.
"""

from __future__ import annotations

from vla_gym.suite import Task
from vla_gym.suites.calvin.scenes import BLOCKS

__all__ = ["CHAIN", "CHAIN_LENGTH", "SUBTASK_STEPS", "TASKS", "find_task"]

CHAIN = "chain"
"""`Task.native` of the long-horizon task, which upstream has no name for."""

CHAIN_LENGTH = 5

SUBTASK_STEPS = 360
"""Control steps for each task (12 s): calvin fa03f01, evaluation/evaluate_policy.py, `EP_LEN`."""


def _task(
    native: str, tag: str, instruction: str, paraphrases: tuple[str, ...], success: str
) -> Task:
    name = native.title().replace("_", "")
    return Task(name, native, instruction, paraphrases, success, SUBTASK_STEPS, (tag,))


def _rotate(color: str, side: str, sense: str) -> Task:
    return _task(
        f"rotate_{color}_block_{side}",
        "rotate",
        f"take the {color} block and rotate it to the {side}",
        (
            f"turn the {color} block {sense}, as seen from above",
            f"spin the {color} block on the spot to the {side}",
            f"get hold of the {color} block and twist it to the {side}",
            f"give the {color} block a quarter turn to the {side}",
        ),
        f"the {color} block has turned by more than 60 degrees {sense} (from above), has tilted by "
        "less than 30 degrees and moved by at most 0.1 m, and touches more than the robot",
    )


def _push(color: str, side: str) -> Task:
    return _task(
        f"push_{color}_block_{side}",
        "push",
        f"go push the {color} block {side}",
        (
            f"shove the {color} block over to the {side}",
            f"make the {color} block slide {side}wards",
            f"shift the {color} block {side} without lifting it",
            f"nudge the {color} block a good way to the {side}",
        ),
        f"the {color} block has moved by more than 0.1 m to the {side} and touches all that it "
        "touched at the start (the robot aside)",
    )


def _move_slider(side: str, other_side: str) -> Task:
    return _task(
        f"move_slider_{side}",
        "slider",
        f"push the sliding door to the {side} side",
        (
            f"draw the cabinet door across to the {side}",
            f"uncover the {other_side} half of the cabinet by moving its door {side}",
            f"use the handle to bring the sliding door over to the {side}",
            f"shift the sliding door {side}wards",
        ),
        f"the sliding door has moved by more than 0.15 m to the {side}",
    )


_DRAWER = (
    _task(
        "open_drawer",
        "drawer",
        "pull the handle to open the drawer",
        (
            "pull the drawer out by its handle",
            "slide the drawer out until it is open",
            "open up the drawer under the table top",
            "bring the closed drawer out of the table",
        ),
        "the drawer has moved out by more than 0.12 m",
    ),
    _task(
        "close_drawer",
        "drawer",
        "push the handle to close the drawer",
        (
            "push the drawer in by its handle",
            "slide the drawer in until it is closed",
            "shut the drawer under the table top",
            "move the open drawer back into the table",
        ),
        "the drawer has moved in by more than 0.12 m",
    ),
)


def _lift(color: str) -> tuple[Task, ...]:
    rule = f"the robot alone holds the {color} block, {{}} m higher than where it touched the {{}}"
    return (
        _task(
            f"lift_{color}_block_table",
            "lift",
            f"grasp and lift the {color} block",
            (
                f"take the {color} block off the table",
                f"raise the {color} block from the table top",
                f"get hold of the {color} block on the table and hold it up",
                f"pick the {color} block up so that it no longer touches the table",
            ),
            rule.format("more than 0.05", "table at the start"),
        ),
        _task(
            f"lift_{color}_block_slider",
            "lift",
            f"lift the {color} block from the sliding cabinet",
            (
                f"take the {color} block out of the sliding cabinet",
                f"raise the {color} block off the cabinet floor",
                f"reach into the cabinet and pick up the {color} block",
                f"fetch the {color} block from the open side of the cabinet",
            ),
            rule.format("more than 0.03", "floor of the cabinet at the start"),
        ),
        _task(
            f"lift_{color}_block_drawer",
            "lift",
            f"Take the {color} block from the drawer",
            (
                f"lift the {color} block out of the drawer",
                f"reach into the drawer and pick up the {color} block",
                f"fetch the {color} block from the open drawer",
                f"raise the {color} block that lies in the drawer",
            ),
            rule.format("more than 0.05", "drawer at the start"),
        ),
    )


_PLACE_RULE = (
    "the block that the robot alone held at the start, touching nothing else, is free of the robot "
    "and touches the {}"
)

_PLACE_AND_STACK = (
    _task(
        "place_in_slider",
        "place",
        "store the grasped block in the sliding cabinet",
        (
            "set the block you are holding down in the sliding cabinet",
            "let go of the held block inside the cabinet with the sliding door",
            "put what the gripper holds into the open side of the cabinet",
            "leave the block from the gripper on the cabinet floor",
        ),
        _PLACE_RULE.format("floor of the cabinet"),
    ),
    _task(
        "place_in_drawer",
        "place",
        "store the grasped block in the drawer",
        (
            "set the block you are holding down in the drawer",
            "let go of the held block inside the open drawer",
            "put what the gripper holds into the drawer",
            "leave the block from the gripper on the drawer floor",
        ),
        _PLACE_RULE.format("drawer"),
    ),
    _task(
        "stack_block",
        "stack",
        "stack the grasped block",
        (
            "set the block you are holding down on another block",
            "let go of the held block on top of a different one",
            "put what the gripper holds on one of the other blocks",
            "make a tower with the block from the gripper as its top",
        ),
        "a block that touched no other rests on blocks alone, slower than 1 m/s and 1 rad/s",
    ),
    _task(
        "unstack_block",
        "stack",
        "remove the stacked block",
        (
            "take the upper block of the tower away",
            "separate the two blocks that form a tower",
            "take the tower of blocks apart",
            "lift the top block off the one below it",
        ),
        "a block that rested on blocks alone touches none",
    ),
)

_LIGHTS = (
    _task(
        "turn_on_lightbulb",
        "light",
        "use the switch to turn on the light bulb",
        (
            "switch the light bulb on",
            "slide the lever up so that the bulb lights up",
            "make the bulb shine yellow with the switch",
            "raise the switch until the light bulb is lit",
        ),
        "the light bulb was off and is on",
    ),
    _task(
        "turn_off_lightbulb",
        "light",
        "use the switch to turn off the light bulb",
        (
            "switch the light bulb off",
            "slide the lever down so that the bulb goes dark",
            "put the yellow bulb out with the switch",
            "lower the switch until the light bulb is dark",
        ),
        "the light bulb was on and is off",
    ),
    _task(
        "turn_on_led",
        "light",
        "press the button to turn on the led light",
        (
            "switch the green LED on",
            "press the button so that the LED lights up",
            "make the LED shine green with the button",
            "light the green lamp with a press of the button",
        ),
        "the LED was off and is on",
    ),
    _task(
        "turn_off_led",
        "light",
        "press the button to turn off the led light",
        (
            "switch the green LED off",
            "press the button so that the LED goes dark",
            "put the green LED out with the button",
            "darken the green lamp with a press of the button",
        ),
        "the LED was on and is off",
    ),
)

_PUSH_INTO_DRAWER = _task(
    "push_into_drawer",
    "push_into",
    "slide the block that it falls into the drawer",
    (
        "push a block over the edge so that it drops into the drawer",
        "let a block fall into the open drawer by sliding it off the table",
        "sweep a block from the table top into the drawer",
        "shove a block off the table and into the open drawer",
    ),
    "a block that touched nothing but the table touches the drawer",
)

_CHAIN = Task(
    "Chain",
    CHAIN,
    "follow five instructions one after another",
    (
        "carry out five commands in a row",
        "do what each of five instructions says, one by one",
        "solve five tasks in turn without a break",
        "complete a sequence of five instructions",
    ),
    "all five instructions are followed in a row",
    CHAIN_LENGTH * SUBTASK_STEPS,
    ("chain",),
)

_SIDES = (("right", "clockwise"), ("left", "counterclockwise"))

_SINGLE_TASKS = (
    *(_rotate(color, side, sense) for color in BLOCKS for side, sense in _SIDES),
    *(_push(color, side) for color in BLOCKS for side, _ in _SIDES),
    _move_slider("left", "right"),
    _move_slider("right", "left"),
    *_DRAWER,
    *(task for color in BLOCKS for task in _lift(color)),
    *_PLACE_AND_STACK,
    *_LIGHTS,
    _PUSH_INTO_DRAWER,
)

TASKS = {task.name: task for task in (*_SINGLE_TASKS, _CHAIN)}
"""Name -> Task: the 34 in the oracle's order, then the chain."""

_BY_WORDING = {
    wording: task.native
    for task in _SINGLE_TASKS
    for wording in (task.instruction, *task.paraphrases)
}


def find_task(instruction: str) -> str | None:
    """Return upstream's name of the task that has this wording, or None where none of 34 has."""
    return _BY_WORDING.get(instruction)
