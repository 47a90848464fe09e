"""CALVIN's task oracle: 34 rules that compare the state at a task's start with the present one.

The rules are those of calvin_env 797142c (calvin_env/envs/tasks.py, with the numbers of
conf/tasks/new_playtable_tasks.yaml), comparisons as strict as there. There some rules ask which
bodies touch and others which links of them do. Only the table has links that matter, and no rule
about bodies tells one of its links from another, so that one set of names serves both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_gym.errors import UnknownName

__all__ = ["ROBOT", "RULES", "TABLE_PARTS", "Block", "Record", "Rule", "achieved", "solved"]

ROBOT = "robot"
TABLE_PARTS = (
    *("base_link", "plank_link", "drawer_link", "slide_link", "button_link", "switch_link"),
    *("led_link", "light_link"),
)
"""Links of the play table; all of them together are one body."""


class Block(NamedTuple):
    """One block at one moment, world frame.

    Attributes:
        position: of its centre [m], shape (3,).
        quaternion_xyzw: its rotation, shape (4,).
        linear_velocity: [m/s], shape (3,).
        angular_velocity: [rad/s], shape (3,).
        contacts: what it touches: `"robot"`, parts of the table (`TABLE_PARTS`), other blocks by
            their colour, or anything else by a name of its own such as `"floor"`.
    """

    position: NDArray[np.float64]
    quaternion_xyzw: NDArray[np.float64]
    linear_velocity: NDArray[np.float64]
    angular_velocity: NDArray[np.float64]
    contacts: frozenset[str]


class Record(NamedTuple):
    """What the oracle knows of one moment.

    Attributes:
        blocks: colour -> Block.
        robot_contacts: what the robot touches, named as in `Block.contacts`.
        slider: the door's joint [m], growing to the left.
        drawer: the drawer's joint [m], growing towards the viewer.
        lightbulb, led: whether they are on.
    """

    blocks: Mapping[str, Block]
    robot_contacts: frozenset[str]
    slider: float
    drawer: float
    lightbulb: bool
    led: bool


class Rule(Protocol):
    """Whether a task that began at `start` is solved at `end`."""

    def __call__(self, start: Record, end: Record) -> bool:
        """Return whether it is, given the states at both moments."""
        ...


MAX_TILT_DEG = 30.0
MAX_SHIFT_M = 0.1
"""A block that turns may tilt less than this and move no further than this."""

MAX_STACK_SPEED = 1.0
"""Each component of a stacked block's velocities [m/s], [rad/s] is below this."""


def _rotate(color: str, degrees: float, start: Record, end: Record) -> bool:
    """Turn about the vertical by more than `degrees`, positive to the left (anticlockwise)."""
    before, after = start.blocks[color], end.blocks[color]
    if not after.contacts - {ROBOT}:  # held in the air
        return False
    x, y, z = _euler_between(before.quaternion_xyzw, after.quaternion_xyzw)
    turn = z if degrees > 0 else -z
    return (
        abs(degrees) < turn < 180
        and abs(x) < MAX_TILT_DEG
        and abs(y) < MAX_TILT_DEG
        and math.dist(after.position, before.position) <= MAX_SHIFT_M
    )


def _push(color: str, distance: float, start: Record, end: Record) -> bool:
    """Move a block along x by more than `distance` [m], positive to the right.

    Whatever it touched at the start, apart from the robot, it must touch at the end too.
    """
    before, after = start.blocks[color], end.blocks[color]
    support = before.contacts - {ROBOT}
    moved = float(after.position[0] - before.position[0])
    return bool(support) and support <= after.contacts and _exceeds(moved, distance)


def _move_joint(joint: str, travel: float, start: Record, end: Record) -> bool:
    """Move `"slider"` or `"drawer"` by more than `travel` [m], in the direction of its sign."""
    return _exceeds(getattr(end, joint) - getattr(start, joint), travel)


def _lift(color: str, height: float, part: str, start: Record, end: Record) -> bool:
    """Raise a block that touched `part` by more than `height` [m], held by the robot alone."""
    before, after = start.blocks[color], end.blocks[color]
    return (
        after.contacts == {ROBOT}
        and part in before.contacts
        and float(after.position[2] - before.position[2]) > height
    )


def _place(part: str, start: Record, end: Record) -> bool:
    """Let go of the block that robot and block alone held between them, so that it touches `part`.

    The robot must have touched nothing else at the start, not even the table.
    """
    if len(start.robot_contacts) != 1:
        return False
    (held,) = start.robot_contacts
    return (
        held in start.blocks
        and start.blocks[held].contacts == {ROBOT}
        and held not in end.robot_contacts
        and part in end.blocks[held].contacts
    )


def _stack(start: Record, end: Record) -> bool:
    """Bring a block that touched no block to rest on blocks alone."""
    return any(
        _is_apart(before, start) and _is_stacked(end.blocks[color], start)
        for color, before in start.blocks.items()
    )


def _unstack(start: Record, end: Record) -> bool:
    """Take a block that rested on blocks alone away from all of them."""
    return any(
        _is_stacked(before, start) and _is_apart(end.blocks[color], start)
        for color, before in start.blocks.items()
    )


def _switch(light: str, on: bool, start: Record, end: Record) -> bool:
    """Turn `"lightbulb"` or `"led"` on or off."""
    return bool(getattr(start, light)) != on and bool(getattr(end, light)) == on


def _push_into(source: str, part: str, start: Record, end: Record) -> bool:
    """Bring a block that touched nothing but `source` into contact with `part`.

    Upstream says that the robot must not touch the block at the end either, but compares a body
    with pairs of body and link there, which is never equal: it may.
    """
    return any(
        before.contacts == {source} and part in end.blocks[color].contacts
        for color, before in start.blocks.items()
    )


def _exceeds(change: float, threshold: float) -> bool:
    """Return whether a change is beyond a threshold, both of the same sign."""
    return change > threshold if threshold > 0 else change < threshold


def _is_apart(block: Block, record: Record) -> bool:
    return block.contacts.isdisjoint(record.blocks)


def _is_stacked(block: Block, record: Record) -> bool:
    return (
        bool(block.contacts)
        and block.contacts <= record.blocks.keys()
        and all(abs(v) < MAX_STACK_SPEED for v in block.linear_velocity)
        and all(abs(v) < MAX_STACK_SPEED for v in block.angular_velocity)
    )


def _euler_between(
    start: NDArray[np.float64], end: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Return the extrinsic xyz Euler angles [deg] of the rotation from `start` to `end`.

    Both are quaternions xyzw of any length but zero: arc tangents need no unit length and no
    clipping. In plain floats, which for four numbers are quicker than arrays.
    """
    ax, ay, az, aw = (float(value) for value in start)
    bx, by, bz, bw = (float(value) for value in end)
    # (x, y, z, w) = end * conjugate(start)
    x = bx * aw - bw * ax - by * az + bz * ay
    y = by * aw - bw * ay - bz * ax + bx * az
    z = bz * aw - bw * az - bx * ay + by * ax
    w = bw * aw + bx * ax + by * ay + bz * az
    # Of its rotation matrix R, times a common factor.
    r00, r10 = w * w + x * x - y * y - z * z, 2 * (x * y + w * z)
    r20 = 2 * (x * z - w * y)
    r21, r22 = 2 * (y * z + w * x), w * w - x * x - y * y + z * z
    return (
        math.degrees(math.atan2(r21, r22)),
        math.degrees(math.atan2(-r20, math.hypot(r00, r10))),
        math.degrees(math.atan2(r10, r00)),
    )


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "rotate_red_block_right": partial(_rotate, "red", -60.0),
        "rotate_red_block_left": partial(_rotate, "red", 60.0),
        "rotate_blue_block_right": partial(_rotate, "blue", -60.0),
        "rotate_blue_block_left": partial(_rotate, "blue", 60.0),
        "rotate_pink_block_right": partial(_rotate, "pink", -60.0),
        "rotate_pink_block_left": partial(_rotate, "pink", 60.0),
        "push_red_block_right": partial(_push, "red", 0.1),
        "push_red_block_left": partial(_push, "red", -0.1),
        "push_blue_block_right": partial(_push, "blue", 0.1),
        "push_blue_block_left": partial(_push, "blue", -0.1),
        "push_pink_block_right": partial(_push, "pink", 0.1),
        "push_pink_block_left": partial(_push, "pink", -0.1),
        "move_slider_left": partial(_move_joint, "slider", 0.15),
        "move_slider_right": partial(_move_joint, "slider", -0.15),
        "open_drawer": partial(_move_joint, "drawer", 0.12),
        "close_drawer": partial(_move_joint, "drawer", -0.12),
        "lift_red_block_table": partial(_lift, "red", 0.05, "base_link"),
        "lift_red_block_slider": partial(_lift, "red", 0.03, "plank_link"),
        "lift_red_block_drawer": partial(_lift, "red", 0.05, "drawer_link"),
        "lift_blue_block_table": partial(_lift, "blue", 0.05, "base_link"),
        "lift_blue_block_slider": partial(_lift, "blue", 0.03, "plank_link"),
        "lift_blue_block_drawer": partial(_lift, "blue", 0.05, "drawer_link"),
        "lift_pink_block_table": partial(_lift, "pink", 0.05, "base_link"),
        "lift_pink_block_slider": partial(_lift, "pink", 0.03, "plank_link"),
        "lift_pink_block_drawer": partial(_lift, "pink", 0.05, "drawer_link"),
        "place_in_slider": partial(_place, "plank_link"),
        "place_in_drawer": partial(_place, "drawer_link"),
        "stack_block": _stack,
        "unstack_block": _unstack,
        "turn_on_lightbulb": partial(_switch, "lightbulb", True),
        "turn_off_lightbulb": partial(_switch, "lightbulb", False),
        "turn_on_led": partial(_switch, "led", True),
        "turn_off_led": partial(_switch, "led", False),
        "push_into_drawer": partial(_push_into, "base_link", "drawer_link"),
    }
)
"""Upstream's name of each task -> its rule, in upstream's order."""


def solved(task: str, start: Record, end: Record) -> bool:
    """Return whether a task is solved.

    Args:
        task: upstream's name, one of `RULES`.
        start: the state when the task began.
        end: the state now.

    Raises:
        UnknownName: there is no such task.
    """
    try:
        rule = RULES[task]
    except KeyError:
        raise UnknownName("task", task, RULES, "CALVIN") from None
    return rule(start, end)


def achieved(start: Record, end: Record) -> frozenset[str]:
    """Return the names of all tasks that lead from `start` to `end`."""
    return frozenset(task for task, rule in RULES.items() if rule(start, end))
