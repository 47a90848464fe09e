"""`libero-expert`: a scripted pick-and-place policy for LIBERO, from the privileged state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym import PolicySpec, SpecSheet
from vla_gym.errors import ContractMismatch
from vla_gym.rotations import quaternion_to_matrix
from vla_gym_policies.robosuite_motion import steer

__all__ = ["TASKS", "LiberoExpert"]

Vector = NDArray[np.float64]

EEF = slice(28, 31)
HAND = slice(31, 35)
"""End effector's position [m] and quaternion (x, y, z, w) of the body `right_hand`, world frame,
within `robot0_proprio-state`."""

PROPRIO_DIM = 39
OBJECT_DIM = 14
"""Of each movable object: position, quaternion (x, y, z, w), and both relative to the hand."""


class Shape(NamedTuple):
    """A movable object: the box around its collision geometry, in its own frame [m].

    Measured once with MuJoCo 3.3.0 on the models of `rpent-libero` 0.2.0 (`geom_aabb` of every
    geometry with a contact mask).

    Attributes:
        low, high: corners, (3,).
        rim_m: radius at which a bowl's wall is taken; None for what is taken around its middle.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    rim_m: float | None = None


SHAPES = {
    "alphabet_soup": Shape((-0.031, -0.039, -0.035), (0.031, 0.038, 0.028)),
    "bbq_sauce": Shape((-0.023, -0.015, -0.055), (0.023, 0.015, 0.052)),
    "bowl": Shape((-0.054, -0.054, 0.002), (0.053, 0.053, 0.052), rim_m=0.048),
    "butter": Shape((-0.038, -0.020, -0.009), (0.038, 0.020, 0.009)),
    "chocolate_pudding": Shape((-0.041, -0.023, -0.013), (0.040, 0.023, 0.014)),
    "cream_cheese": Shape((-0.041, -0.021, -0.009), (0.041, 0.021, 0.009)),
    "ketchup": Shape((-0.028, -0.072, -0.018), (0.029, 0.073, 0.019)),
    "milk": Shape((-0.026, -0.070, -0.026), (0.027, 0.061, 0.026)),
    "orange_juice": Shape((-0.027, -0.070, -0.026), (0.026, 0.061, 0.026)),
    "salad_dressing": Shape((-0.027, -0.073, -0.018), (0.025, 0.073, 0.018)),
    "tomato_sauce": Shape((-0.031, -0.039, -0.034), (0.031, 0.038, 0.028)),
    "wine_bottle": Shape((-0.021, -0.022, 0.001), (0.022, 0.022, 0.158)),
}


class Place(NamedTuple):
    """Where an object goes: a thing in `state`, and where on it the object's bottom is let go.

    Attributes:
        at: index in `state` of the thing's position; its quaternion follows.
        offset: from there to where the bottom is when the fingers open, in its own frame [m].
        rim_m: height above its position over which everything is carried [m].
    """

    at: int
    offset: tuple[float, float, float]
    rim_m: float


class Pick(NamedTuple):
    """One object's way: what, and where to.

    Attributes:
        shape: which of `SHAPES`.
        at: index in `state` of its position; its quaternion follows.
        place: where it goes.
        others: index in `state` of each position that the hand keeps away from -> how much farther
            than from a movable object [m].
    """

    shape: str
    at: int
    place: Place
    others: dict[int, float]


def _slot(index: int) -> int:
    """Return where the position of movable object `index` of the scene stands in `state`."""
    return PROPRIO_DIM + OBJECT_DIM * index


def _pick(shape: str, index: int, place: Place, count: int, *walls: int) -> Pick:
    """Return the way of object `index` of `count`; `walls` are positions of cabinets."""
    others = {_slot(i): 0.0 for i in range(count) if i != index} | dict.fromkeys(walls, 0.08)
    return Pick(shape, _slot(index), place, others)


_BASKET = Place(_slot(1), (0.0, 0.0, 0.07), 0.15)
_SPATIAL_PLATE = Place(_slot(4), (0.0, 0.0, 0.012), 0.06)
_GOAL_BOWL = Place(_slot(0), (0.0, 0.0, 0.04), 0.08)
_GOAL_PLATE = Place(_slot(3), (0.0, 0.0, 0.012), 0.06)
_GOAL_CABINET = Place(_slot(4), (0.0, 0.0, 0.23), 0.25)
_GOAL_STOVE = Place(_slot(4) + 10, (0.15, 0.0, 0.06), 0.08)

TASKS: dict[str, Pick] = {
    # Order of a scene's things in `state`: `:objects`, then `:fixtures` of its BDDL file.
    **{
        f"Object{i}": _pick(shape, 0, _BASKET, 7)
        for i, shape in enumerate(
            (
                "alphabet_soup",
                "cream_cheese",
                "salad_dressing",
                "bbq_sauce",
                "ketchup",
                "tomato_sauce",
                "butter",
                "milk",
                "chocolate_pudding",
                "orange_juice",
            )
        )
    },
    **{f"Spatial{i}": _pick("bowl", 0, _SPATIAL_PLATE, 5, _slot(5)) for i in (0, 1, 2, 3, 5, 7, 8)},
    "Goal1": _pick("bowl", 0, _GOAL_STOVE, 4),
    "Goal2": _pick("wine_bottle", 2, _GOAL_CABINET, 4),
    "Goal4": _pick("bowl", 0, _GOAL_CABINET, 4),
    "Goal6": _pick("cream_cheese", 1, _GOAL_BOWL, 4),
    "Goal8": _pick("bowl", 0, _GOAL_PLATE, 4),
}
"""Task -> what is picked up and where it goes, for those that the expert does.

Left out are Spatial4 and Spatial9, whose bowl stands in and on the cabinet and slips too often for
the horizon; Spatial6, whose bowl stands so near to the cabinet that the hand is caught at its side;
and what is not one pick-and-place: drawers, knobs, pushing.
"""

FINGER_M = 0.03
"""How far below an object's top the fingers' tips meet: as deep as the palm allows."""

RIM_DEPTH_M = 0.012
"""As much for a bowl's wall."""

HAND_M = 0.1
"""Half of the width of a Panda's hand."""

ROOM_M = 0.07
"""From the hand's middle line to another object's middle: they do not touch."""

ALIKE_M = 1e-6
"""Rooms that differ by less are equal. Opposite sides of a bowl have equal room above what it
stands on, and rounding must not choose between them."""

WIDEST_M = 0.07
"""What the fingers take: they open to 0.08 m."""

HOVER_M = 0.08
"""Height above the grasp at which the hand has come over it and turned."""

CARRY_M = 0.17
"""Height of a carried object's bottom over the table: above the tallest of LIBERO's bottles."""

NEAR_M = 0.01
CLOSE_STEPS = 10
OPEN_STEPS = 6
PATIENCE = 40
"""Control steps in a descent after which it counts as done: the hand rests on something."""

ABOVE, DOWN, CLOSE, RAISE, CARRY, LOWER, OPEN, LEAVE = range(8)


class Progress(NamedTuple):
    """How far one env's episode is.

    Attributes:
        phase: one of the eight above.
        steps: control steps spent in it.
        across: along which the fingers close, a horizontal unit vector.
        offset: from the object's middle to where it is taken [m], horizontal.
        floor: world height on which the object stood when the episode began [m].
    """

    phase: int
    steps: int
    across: Vector
    offset: Vector
    floor: float


class LiberoExpert:
    """Goes above an object, takes it across its narrow side or by its rim, and puts it down.

    Args:
        task: the task's name; `for_env` sets it from the env's spec sheet.
    """

    spec = PolicySpec(
        suites=("LIBERO",),
        cameras=(),
        state=True,
        action_mode="ee_delta",
        action_dim=7,
    )

    def __init__(self, task: str | None = None) -> None:
        self._task = task

    def for_env(self, sheet: SpecSheet) -> LiberoExpert:
        """Return the expert for the env of this sheet.

        Raises:
            ContractMismatch: it cannot do the task.
        """
        if sheet.task not in TASKS:
            raise ContractMismatch(
                f"libero-expert cannot do {sheet.id}; it does LIBERO's {', '.join(TASKS)}. "
                "Choose one of these, or another policy"
            )
        return LiberoExpert(sheet.task)

    def predict(
        self,
        observation: dict[str, Any],
        state: Sequence[Progress | None] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], list[Progress]]:
        """Return actions (B, 7) and, as the state, each env's progress; see `vla_gym.Policy`.

        Raises:
            ValueError: no task is known.
        """
        del deterministic
        if self._task is None:
            raise ValueError("LiberoExpert needs task=..., or for_env(spec_sheet)")
        pick = TASKS[self._task]
        size = len(observation["state"])
        starts = np.zeros(size, bool) if episode_start is None else episode_start
        before = [None] * size if state is None else state
        actions, after = np.zeros((size, 7), np.float32), []
        for row, seen in enumerate(observation["state"]):
            seen = np.asarray(seen, np.float64)
            hand = _read_hand(seen)
            progress = before[row]
            if progress is None or starts[row]:
                progress = _start(pick, seen, hand)
            actions[row], progress = _act(pick, progress, seen, hand)
            after.append(progress)
        return actions, after


class _Box(NamedTuple):
    """An object where it is: its box's middle, lowest and highest point, its upright axis."""

    position: Vector
    rotation: NDArray[np.float64]
    middle: Vector
    bottom: float
    top: float


def _read_hand(state: Vector) -> Vector:
    """Return position and axes of the hand, (9,), in the order of `proprio="eef"`, world frame.

    The fingers' frame is that of the body, turned by -90 degrees about where the hand points.
    """
    body = quaternion_to_matrix(state[HAND])
    return np.concatenate([state[EEF], -body[:, 1], body[:, 0]])


def _look(shape: Shape, at: int, state: Vector) -> _Box:
    position, rotation = state[at : at + 3], quaternion_to_matrix(state[at + 3 : at + 7])
    low, high = np.array(shape.low), np.array(shape.high)
    middle = position + rotation @ (low + high) / 2
    half = np.abs(rotation[2]) @ (high - low) / 2
    return _Box(position, rotation, middle, middle[2] - half, middle[2] + half)


def _start(pick: Pick, state: Vector, hand: Vector) -> Progress:
    """Choose the grasp from the first observation: of those possible the first with enough room."""
    shape = SHAPES[pick.shape]
    box = _look(shape, pick.at, state)
    if shape.rim_m is not None:
        angles = np.arctan2(hand[4], hand[3]) + np.pi * np.array([0, 1, 0.25, 1.25, 0.75, 1.75])
        sides = np.stack([np.cos(angles), np.sin(angles), np.zeros(6)], axis=1)
        grasps = [(side, shape.rim_m * side) for side in sides]
    else:
        size = np.array(shape.high) - np.array(shape.low)
        upright = int(np.argmax(np.abs(box.rotation[2])))
        narrow, wide = sorted({0, 1, 2} - {upright}, key=lambda axis: size[axis])
        across, along = _level(box.rotation[:, narrow]), _level(box.rotation[:, wide])
        shift = size[wide] / 4 * along
        grasps = [(across, 0 * shift), (across, shift), (across, -shift)]
        if size[wide] < WIDEST_M:
            grasps.insert(1, (along, 0 * shift))
    others = np.array([state[at : at + 2] for at in pick.others])
    margins = np.array(list(pick.others.values()))

    def find_room(grasp: tuple[Vector, Vector]) -> float:
        """Return the distance from the hand, a line along its fingers, to what is nearest [m]."""
        across, offset = grasp
        apart = others - (box.middle + offset)[:2]
        beside = np.clip(apart @ across[:2], -HAND_M, HAND_M)
        rooms = np.linalg.norm(apart - np.outer(beside, across[:2]), axis=1) - margins
        return min(ROOM_M, float(rooms.min()))

    rooms = [find_room(grasp) for grasp in grasps]
    enough = max(rooms) - ALIKE_M
    across, offset = next(g for g, room in zip(grasps, rooms, strict=True) if room >= enough)
    return Progress(ABOVE, 0, across, offset, box.bottom)


def _level(axis: Vector) -> Vector:
    """Return the horizontal unit vector nearest to an axis."""
    flat = axis * (1, 1, 0)
    return flat / np.linalg.norm(flat)


def _share(apart: float) -> float:
    """Return at which part of its speed the hand goes down that is so far off to the side [m]."""
    return float(np.clip(1.5 - apart / NEAR_M, 0.1, 1.0))


def _act(pick: Pick, progress: Progress, state: Vector, hand: Vector) -> tuple[Vector, Progress]:
    """Return one env's action, shape (7,), and its progress after it."""
    shape, eef = SHAPES[pick.shape], hand[:3]
    box = _look(shape, pick.at, state)
    phase, steps, across, offset, floor = progress
    depth = FINGER_M if shape.rim_m is None else RIM_DEPTH_M
    grasp = np.append((box.middle + offset)[:2], max(box.middle[2], box.top - depth))
    thing = state[pick.place.at : pick.place.at + 3]
    turned = quaternion_to_matrix(state[pick.place.at + 3 : pick.place.at + 7])
    goal = thing + turned @ np.array(pick.place.offset)
    held = np.append(box.middle[:2], box.bottom)  # this point of the object is to be at the goal
    over = max(min(floor, thing[2]) + CARRY_M, floor + 0.05, thing[2] + pick.place.rim_m + 0.03)

    to_grasp, to_goal = grasp - eef, goal - held
    apart = float(np.linalg.norm(to_grasp[:2]))
    left = float(np.linalg.norm(to_goal[:2]))
    turn = abs(float(across @ hand[3:6]))
    after = phase
    if phase == ABOVE and apart < NEAR_M and turn > 0.99 and to_grasp[2] < -HOVER_M / 2:
        after = DOWN
    elif phase == DOWN and (abs(to_grasp[2]) < NEAR_M / 2 or steps > PATIENCE):
        after = CLOSE
    elif phase == CLOSE and steps >= CLOSE_STEPS:
        after = RAISE
    elif phase in (RAISE, CARRY) and np.linalg.norm(to_grasp) > 0.06:
        after = ABOVE  # it slipped
    elif phase == RAISE and box.bottom > over - 0.02:
        after = CARRY
    elif phase == CARRY and left < NEAR_M:
        after = LOWER
    elif phase == LOWER and (to_goal[2] > -NEAR_M / 2 or steps > PATIENCE):
        after = OPEN
    elif phase == OPEN and steps >= OPEN_STEPS:
        after = LEAVE
    elif phase == LEAVE and steps > PATIENCE:
        after = ABOVE  # it is not where it should be: the episode would have ended
    steps = steps + 1 if after == phase else 0

    if after == ABOVE:
        # Comes down within a cone, so that it passes over what stands around.
        move = to_grasp + np.array([0.0, 0.0, HOVER_M + min(0.1, apart)])
    elif after == DOWN:
        move = to_grasp * (1.0, 1.0, _share(apart))
    elif after == RAISE:
        move = np.array([0.0, 0.0, over - box.bottom])
    elif after == CARRY:
        move = np.append(to_goal[:2], over - box.bottom)
    elif after == LOWER:
        move = to_goal * (1.0, 1.0, _share(left))
    elif after == LEAVE:
        move = np.array([0.0, 0.0, 0.05])
    else:
        move = np.zeros(3)
    grip = -1.0 if after in (CLOSE, RAISE, CARRY, LOWER) else 1.0
    action = np.append(steer(move, hand, across), grip)
    return action, Progress(after, steps, across, offset, floor)
