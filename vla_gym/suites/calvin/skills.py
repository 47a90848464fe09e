"""Scripted skills for CALVIN's 34 tasks: from what is observed to actions, on either table.

A plan is a generator: it yields where the tool centre point (TCP) shall go next and is sent what is
seen once it is there. A `Skill` steers from goal to goal with actions of the mode `ee_delta`. All
is a function of `robot_obs` and `scene_obs`; nobody tells a skill about contacts, so that whether
the gripper holds a block is inferred from where both are.

Positions and rotations are in the world frame; see `vla_gym.suites.calvin.geometry`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.errors import UnknownName
from vla_gym.rotations import rotation_vector, vector_to_matrix
from vla_gym.suites.calvin.control import POSITION_M, REACH_M, ROTATION_RAD, Pose, advance
from vla_gym.suites.calvin.geometry import (
    CLOSED_POINTS,
    FINGER_HALF_M,
    GRIPPER_POINTS,
    UP,
    Body,
    View,
    block_points,
    collides,
    extent,
    find_excess,
    hand_rotation,
    look,
    on_face,
    turn_left,
)
from vla_gym.suites.calvin.oracle import RULES
from vla_gym.suites.calvin.scenes import (
    BLOCK_DEPTH_M,
    BLOCKS,
    IN_DRAWER_Z_M,
    ON_TABLE_Z_M,
    Scene,
)

__all__ = ["Pick", "Skill", "make_skill"]

Vector = NDArray[np.float64]

HOVER_Z_M = 0.60
"""Where the TCP crosses the table, with a block in the gripper or without."""

HOVER_Y_M = -0.12
"""How near to the cabinet it crosses it: the door's handle reaches to y = -0.034."""

GRIPPED_M = 0.03
"""Opening above which closed fingers have something between them; the least block leaves 0.039."""


class Goal(NamedTuple):
    """Where the TCP shall go, in a straight line.

    Attributes:
        position, rotation: the pose.
        is_open: what the gripper shall do meanwhile.
        speed: share of the greatest speed.
        near: distance [m] at which the goal counts as reached.
        patience: control steps without coming nearer after which it counts as reached, too.
        hold: control steps to stay there; 0 for a pose that is only passed.
    """

    position: Vector
    rotation: Vector
    is_open: bool
    speed: float = 1.0
    near: float = 0.006
    patience: int = 12
    hold: int = 0


if TYPE_CHECKING:  # Python 3.8 cannot subscript collections.abc at run time
    Plan = Generator[Goal, View, Any]
    Motion = Generator[Goal, View, View]


class Skill:
    """A plan being carried out.

    Args:
        plan: makes the plan from what is seen first.
        scene: the table.

    Attributes:
        done: whether the plan has come to its end; `act` then stays where it is.
    """

    def __init__(self, plan: Callable[[View], Plan], scene: Scene) -> None:
        self._make, self._scene = plan, scene
        self._plan: Plan | None = None
        self._goal: Goal | None = None
        self._target: Pose | None = None  # of the simulator's controller
        self._last: Pose | None = None  # the hand as it was seen before
        self.done = False

    def act(self, robot_obs: Vector, scene_obs: Vector) -> NDArray[np.float32]:
        """Return the next action of the mode `ee_delta`, shape (7,), each entry in [-1, 1]."""
        view = look(np.asarray(robot_obs, float), np.asarray(scene_obs, float), self._scene)
        if self._plan is None:
            self._plan = self._make(view)
            self._target = self._last = Pose(view.position, view.rotation)
            self._next(lambda plan: next(plan))
        elif not self.done and self._has_arrived(view):
            self._next(lambda plan: plan.send(view))
        return self._steer(view)

    def _next(self, advance: Callable[[Plan], Goal]) -> None:
        assert self._plan is not None
        try:
            self._goal = advance(self._plan)
        except StopIteration:
            self.done = True
        self._least, self._stalled, self._held = math.inf, 0, 0
        self._push = np.zeros(3)

    def _has_arrived(self, view: View) -> bool:
        goal = self._goal
        assert goal is not None
        error = float(np.linalg.norm(goal.position - view.position))
        turn = float(np.linalg.norm(rotation_vector(goal.rotation @ view.rotation.T)))
        left = error + 0.1 * turn
        if left < self._least - 1e-3:
            self._least, self._stalled = left, 0
        else:
            self._stalled += 1
        if (error < goal.near and turn < 0.1) or self._stalled > goal.patience or self._held:
            self._held += 1
            return self._held > goal.hold
        return False

    def _steer(self, view: View) -> NDArray[np.float32]:
        """Move the controller's target along the straight line to the goal.

        Inverse kinematics leave an error of millimetres, at the edge of reach of centimetres; what
        remains once the arm has come to rest is slowly added to the goal. The rotation has no such
        error, but the controller's target may be another one than the skill believes, if the arm
        was moving when it began: at rest, it is where the hand is.
        """
        action = np.zeros(7, np.float32)
        goal, target = self._goal, self._target
        assert target is not None
        if goal is None:  # a plan without goals: nothing can be done
            action[6] = -1.0 if view.is_closing else 1.0
            return action
        position, rotation = target
        position = np.clip(position, view.position - REACH_M, view.position + REACH_M)
        error = goal.position - view.position
        if self._is_at_rest(view):
            if np.linalg.norm(error) < 0.05:
                self._push = np.clip(self._push + 0.2 * error, -0.03, 0.03)
            behind = rotation_vector(view.rotation @ rotation.T)
            rotation = vector_to_matrix(0.3 * behind) @ rotation
        self._last = Pose(view.position, view.rotation)
        move = goal.position + self._push - position
        turn = rotation_vector(goal.rotation @ rotation.T)
        steps = max(np.abs(move).max() / POSITION_M, np.abs(turn).max() / ROTATION_RAD, 1e-6)
        share = min(1.0, goal.speed * self._brake(view) / steps)
        action[:3] = np.clip(share * move / POSITION_M, -1, 1)
        action[3:6] = np.clip(share * turn / ROTATION_RAD, -1, 1)
        action[6] = 1.0 if goal.is_open else -1.0
        self._target = advance(Pose(position, rotation), self._last, action.astype(float))
        return action

    def _is_at_rest(self, view: View) -> bool:
        assert self._last is not None
        position, rotation = self._last
        turned = float(np.linalg.norm(rotation_vector(view.rotation @ rotation.T)))
        return float(np.linalg.norm(view.position - position)) < 2e-3 and turned < 5e-3

    def _brake(self, view: View) -> float:
        """Return a share of the speed: less where the arm falls behind, which takes it off its way.

        At full speed it is about 0.03 m and 0.1 rad behind.
        """
        assert self._target is not None
        position, rotation = self._target
        lag = float(np.linalg.norm(position - self._push - view.position)) / 0.06
        lag = max(lag, float(np.linalg.norm(rotation_vector(rotation @ view.rotation.T))) / 0.25)
        return min(1.0, max(0.3, 2.0 - 2.0 * lag))


class Pick(Skill):
    """Pick up a block from wherever it is, to where the robot touches nothing else."""

    def __init__(self, block: str, scene: Scene) -> None:
        super().__init__(lambda view: _pick(view, block), scene)


def make_skill(task: str, scene: Scene) -> Skill:
    """Return the skill for a task.

    Args:
        task: upstream's name of it, such as `"rotate_red_block_left"`.
        scene: the table.

    Raises:
        UnknownName: there is no such task.
    """
    if task not in RULES:
        raise UnknownName("task", task, RULES, "CALVIN")
    return Skill(lambda view: _solve(view, task), scene)


ATTEMPTS = 4


def _solve(view: View, task: str) -> Plan:
    """Do what the task says until it seems to be done, a few times if need be."""
    start, to_place = view, _held(view)
    for _ in range(ATTEMPTS):
        held = _held(view)
        if task in ("place_in_slider", "place_in_drawer", "stack_block"):
            if held is None and to_place is not None:  # lost on the way
                view = yield from _pick(view, to_place)
        elif held is not None:
            view = yield from _put_down(view, held)
        view = yield from _attempt(view, task)
        if _seems_solved(start, view, task, to_place):
            break


def _attempt(view: View, task: str) -> Motion:
    words = task.split("_")
    if words[0] == "rotate":
        return _rotate(view, words[1], 1 if words[3] == "left" else -1)
    if words[0] == "push" and words[1] in BLOCKS:
        return _push(view, words[1], 1 if words[3] == "right" else -1)
    if words[0] == "lift":
        return _lift(view, words[1])
    if words[:2] == ["move", "slider"]:
        return _move_slider(view, 1 if words[2] == "left" else -1)
    return _PLANS[task](view)


def _seems_solved(start: View, view: View, task: str, placed: str | None) -> bool:
    """Whether what is seen looks as if the task were solved; contacts are not seen."""
    words = task.split("_")
    if words[0] == "rotate":
        before, after = start.blocks[words[1]], view.blocks[words[1]]
        turn = float(rotation_vector(after.rotation @ before.rotation.T)[2])
        shift = float(np.linalg.norm(after.position - before.position))
        return (turn if words[3] == "left" else -turn) > math.radians(60) and shift <= 0.1
    if words[0] == "push" and words[1] in BLOCKS:
        way = view.blocks[words[1]].position[0] - start.blocks[words[1]].position[0]
        return (way if words[3] == "right" else -way) > 0.1
    if words[0] == "lift":
        return _held(view) == words[1]
    if words[:2] == ["move", "slider"]:
        return abs(view.slider - start.slider) > 0.15
    if words[-1] == "drawer" and words[0] in ("open", "close"):
        return abs(view.drawer - start.drawer) > 0.12
    if words[-1] in ("lightbulb", "led"):
        return (view.lightbulb if words[-1] == "lightbulb" else view.led) == (words[1] == "on")
    if task == "push_into_drawer":
        return any(
            view.blocks[name].position[2] < ON_TABLE_Z_M - 0.04 < start.blocks[name].position[2]
            for name in BLOCKS
        )
    if task == "unstack_block":
        return all(_on_top_of(view, block) is None for block in BLOCKS) and _held(view) is None
    if placed is None or _held(view) is not None:
        return False
    block = view.blocks[placed]
    if task == "stack_block":
        return any(_on_top_of(view, lower) == placed for lower in BLOCKS)
    if task == "place_in_drawer":
        return block.position[2] < ON_TABLE_Z_M - 0.04
    return block.position[1] > 0.02


INCLINED = hand_rotation(0.0, 0.8)
UPRIGHT = hand_rotation(0.0, 0.0)
TILTED = hand_rotation(0.0, 0.45)
"""Hands that approach the cabinet's face, the table from above, and both."""


def _excess(position: Vector, rotation: Vector) -> float:
    return float(np.linalg.norm(find_excess(position, rotation)))


def _held(view: View) -> str | None:
    """Return the block between the fingers, None if there is none."""
    if not view.is_closing or view.opening < GRIPPED_M:
        return None
    near = {k: float(np.linalg.norm(b.position - view.position)) for k, b in view.blocks.items()}
    name = min(near, key=lambda k: near[k])
    return name if near[name] < 0.04 else None


# Motions that plans are made of: generators, too; they return what is seen at their end.


def _retreat(view: View) -> Motion:
    """Leave the spot where the gripper is along the way it will have come, to above the table."""
    is_open = not view.is_closing
    if view.is_closing and view.opening > GRIPPED_M and _held(view) is None:
        is_open = True
        view = yield Goal(view.position, view.rotation, True, hold=4)
    approach = view.rotation[:, 2]
    at, rotation = view.position, view.rotation
    if at[1] > HOVER_Y_M - 0.02 and approach[1] > 0.2 and at[2] < HOVER_Z_M + 0.03:
        view = yield Goal(at - 0.14 * approach, rotation, is_open, near=0.03)
        at = at - 0.14 * approach
    top = np.array([at[0], min(at[1], HOVER_Y_M), max(at[2], HOVER_Z_M)])
    if at[1] <= HOVER_Y_M and at[2] < HOVER_Z_M:
        top[2] = HOVER_Z_M
    view = yield Goal(top, rotation, is_open, near=0.02)
    return view


def _travel(view: View, position: Vector, rotation: Vector, is_open: bool) -> Motion:
    """Go to a pose on a way that touches nothing."""
    far = float(np.linalg.norm(position - view.position)) > 0.03
    if far and (view.position[2] < HOVER_Z_M - 0.04 or view.position[1] > HOVER_Y_M + 0.03):
        view = yield from _retreat(view)
    over = np.array([position[0], min(position[1], HOVER_Y_M), max(position[2], HOVER_Z_M)])
    view = yield Goal(over - find_excess(over, rotation), rotation, is_open, near=0.02)
    position = position - find_excess(position, rotation)
    view = yield Goal(position, rotation, is_open, near=0.01)
    return view


DRAGGED_Y_M = -0.04
"""Where a block is drawn that cannot be grasped inside the cabinet, whose floor is as high as the
table."""


class Grasp(NamedTuple):
    """Where the gripper closes: pose of the TCP, and how much of it would touch something else."""

    position: Vector
    rotation: Vector
    hits: int = 0


def _choose_grasp(
    view: View, name: str, turns: tuple[float, ...] = (0.0,), tilt: float = 0.45
) -> Grasp:
    """Return the grasp of a block that touches least and twists the wrist least.

    Args:
        view: what is seen.
        name: of the block.
        turns: angles by which the hand will be turned about the vertical while it holds the block;
            0 for the grasp itself.
        tilt: of the hand, where nothing is in the way.
    """
    block = view.blocks[name]
    best, least = None, math.inf
    for cost, grasp in sorted(_list_grasps(block, turns, tilt), key=lambda pair: pair[0]):
        if cost >= least:  # all that follow are worse even if they touch nothing
            break
        position, rotation, _ = grasp
        gripper = GRIPPER_POINTS @ rotation.T
        way = [position - back * rotation[:, 2] + gripper for back in (0.0, 0.05, 0.1)]
        hits = int(collides(np.concatenate(way), view).sum())
        for turn in turns:
            if turn:
                held = turn_left(turn) @ rotation
                points = position + GRIPPER_POINTS @ held.T
                hits += int(collides(points, view, (name,)).sum())
                cost += REACH_COST * _excess(position, held)
        if cost + HIT_COST * hits < least:
            best, least = grasp._replace(hits=hits), cost + HIT_COST * hits
    if best is None:  # it lies on an edge: from above, as it comes
        best = Grasp(block.position + 0.01 * UP, UPRIGHT)
    return best


HIT_COST, REACH_COST = 2.0, 100.0
"""Of one of `GRIPPER_POINTS` in something solid, and of a metre that the arm is too short; a turn
of the wrist costs 0.5 per radian."""


def _list_grasps(
    block: Body, turns: tuple[float, ...], tilt: float
) -> Iterator[tuple[float, Grasp]]:
    """Yield grasps of a block with what they cost where nothing is in the way.

    Fingers that close askew on a block turn it until it fits; ones that close beside its middle
    move it there.
    """
    for index in range(3):
        axis, half = block.rotation[:, index], block.half[index]
        if abs(axis[2]) > 0.5 or half > 0.03:
            continue
        main = math.atan2(axis[1], axis[0])
        long = max((i for i in range(3) if i != index), key=lambda i: block.half[i])
        along = (block.half[long] - BLOCK_DEPTH_M / 2) * block.rotation[:, long]
        for half_turns, skew, shift, aside, tilted in itertools.product(
            (-1, 0, 1),
            (0.0, -0.25, 0.25, -0.5, 0.5, -0.75, 0.75),
            (0.0, -1.0, 1.0) if np.abs(along).max() > 0.005 else (0.0,),
            (0.0, -0.5, 0.5, -1.0, 1.0),
            (0.0, 0.2, 0.45, 0.7),
        ):
            angle = math.remainder(main, 2 * math.pi) + half_turns * math.pi + skew
            wrist = max(abs(angle + turn) for turn in turns)
            if wrist > 2.0:
                continue
            rotation = hand_rotation(angle, tilted)
            room = max(0.0, 0.038 - half - 0.02 * abs(skew))
            centre = block.position + shift * along + aside * room * rotation[:, 1]
            low = _floor(block.position) + 0.021 + 0.01 * math.sin(tilted)
            position = np.array([centre[0], centre[1], max(centre[2], low)])
            cost = 0.5 * wrist + abs(skew) + 0.3 * (abs(shift) + abs(aside))
            cost += 0.6 * abs(tilted - tilt) + 50.0 * max(0.0, half - 0.0201)
            cost += REACH_COST * _excess(position, rotation)
            yield cost, Grasp(position, rotation)


def _floor(position: Vector) -> float:
    """Return the height of what a block at this position rests on or would fall to."""
    on_table = position[1] > -0.185 or position[2] > ON_TABLE_Z_M + 0.02
    return ON_TABLE_Z_M - 0.02 if on_table else IN_DRAWER_Z_M - 0.0205


def _close_on(view: View, grasp: Grasp) -> Motion:
    """Go to a grasp and close the fingers."""
    position, rotation, _ = grasp
    approach = rotation[:, 2]
    view = yield from _travel(view, position - 0.1 * approach, rotation, True)
    view = yield Goal(position - 0.04 * approach, rotation, True, near=0.012)
    view = yield Goal(position, rotation, True, speed=0.5, near=0.004)
    view = yield Goal(position, rotation, False, near=1.0, hold=7)
    return view


def _pick(view: View, name: str, tilt: float = 0.45) -> Motion:
    """Pick up a block and hold it above the table; try again where it slips."""
    for _ in range(3):
        grasp = _choose_grasp(view, name, tilt=tilt)
        if grasp.hits and view.blocks[name].position[1] > 0.03:
            view = yield from _drag_out(view, name)
            grasp = _choose_grasp(view, name, tilt=tilt)
        view = yield from _close_on(view, grasp)
        approach = grasp.rotation[:, 2]
        back = 0.15 if grasp.position[1] > 0.0 else 0.08
        away = grasp.position - back * approach
        view = yield Goal(away, grasp.rotation, False, speed=0.7, near=0.02)
        top = np.array([away[0], min(away[1], HOVER_Y_M), max(away[2], HOVER_Z_M)])
        view = yield Goal(top, grasp.rotation, False, near=0.02)
        if _held(view) == name:
            break
        view = yield Goal(view.position, view.rotation, True, hold=4)
    return view


def _drag_out(view: View, name: str) -> Motion:
    """Press on a block in the cabinet from above and draw it out onto the table."""
    block = view.blocks[name]
    top = block.position + (extent(block, UP) + 0.013) * UP
    approach = TILTED[:, 2]
    view = yield from _travel(view, top - 0.1 * approach, TILTED, False)
    view = yield Goal(top + 0.01 * UP, TILTED, False, speed=0.6)
    pressing = top - 0.012 * UP
    view = yield Goal(pressing, TILTED, False, speed=0.3, patience=4)
    pressing[1] = DRAGGED_Y_M
    view = yield Goal(pressing, TILTED, False, speed=0.3, patience=8)
    view = yield from _retreat(view)
    return view


def _level(view: View, name: str) -> Vector:
    """Return the turn after which the held block stands flat on its lower side."""
    rotation = view.blocks[name].rotation
    column = int(np.argmax(np.abs(rotation[2])))
    axis = rotation[:, column] * np.sign(rotation[2, column])
    cross = np.cross(axis, [0.0, 0.0, 1.0])
    sine = float(np.linalg.norm(cross))
    return vector_to_matrix(cross / sine * math.atan2(sine, axis[2])) if sine > 1e-6 else np.eye(3)


def _release_at(
    view: View, name: str, spots: Iterable[Vector], turns: Iterable[float], drop: float = 0.003
) -> Motion:
    """Put the held block down at the free spot that needs the least turning, and let it go.

    Args:
        view: what is seen.
        name: of the held block.
        spots: where its lower side may come to stand, best first.
        turns: angles [rad] between the closing direction and the world's x axis to choose from.
        drop: height above the spot at which the fingers open.
    """
    block = view.blocks[name]
    level = _level(view, name)
    flat = Body(block.position, level @ block.rotation, block.half)
    offset = level @ (view.position - block.position)
    hand = level @ view.rotation
    present = math.atan2(hand[1, 1], hand[0, 1])
    height = extent(flat, UP)
    best, least = None, math.inf
    for (rank, spot), wanted in itertools.product(enumerate(spots), turns):
        turn = turn_left(wanted - present)
        centre = spot + np.array([0.0, 0.0, height + drop])
        rotation = turn @ hand
        position = centre + turn @ offset
        body = Body(centre, turn @ flat.rotation, block.half)
        points = np.concatenate(
            [position + GRIPPER_POINTS @ rotation.T, block_points(body), block_points(body, 1.2)]
        )
        cost = int(collides(points, view, (name,)).sum()) + 0.1 * rank
        cost += 0.3 * abs(wanted - present) + REACH_COST * _excess(position, rotation)
        if cost < least:
            best, least = (position, rotation), cost
    assert best is not None
    position, rotation = best
    approach = rotation[:, 2]
    view = yield from _travel(view, position - 0.12 * approach, rotation, False)
    view = yield Goal(position - 0.03 * approach, rotation, False, near=0.012)
    view = yield Goal(position, rotation, False, speed=0.4, near=0.004, hold=2)
    view = yield Goal(position, rotation, True, near=1.0, hold=4)
    view = yield Goal(position - 0.12 * approach, rotation, True, near=0.03)
    return view


def _table_spots(view: View) -> list[Vector]:
    x_low, x_high = view.scene.areas["table"][0]
    near = sorted(
        (np.array([x, y, 0.44]) for x in np.linspace(x_low, x_high, 12) for y in (-0.12, -0.08)),
        key=lambda spot: float(np.linalg.norm(spot[:2] - view.position[:2])),
    )
    return near


def _put_down(view: View, name: str) -> Motion:
    view = yield from _release_at(view, name, _table_spots(view), (0.0, 0.4, -0.4, 0.8, -0.8))
    return view


# Plans, one per kind of task


def _rotate(view: View, name: str, sense: int) -> Motion:
    """Turn a block by 75 degrees between the fingers, a little above the table."""
    angle = sense * math.radians(78)
    grasp = _choose_grasp(view, name, (0.0, angle / 2, angle), tilt=0.0)
    view = yield from _close_on(view, grasp)
    if _held(view) != name:
        return (yield from _retreat(view))
    start = view.blocks[name].position
    shift = min(0.0, max(-0.05, -0.08 - start[1]))
    above = grasp.position + np.array([0.0, shift, 0.012])
    view = yield Goal(above, grasp.rotation, False, near=0.01)
    turned = turn_left(angle) @ grasp.rotation
    view = yield Goal(above, turned, False, near=0.01)
    view = yield Goal(view.position, turned, True, near=1.0, hold=8)
    view = yield from _retreat(view)
    return view


def _push(view: View, name: str, side: int) -> Motion:
    """Push a block along x with closed fingers; where that cannot be, carry it."""
    block = view.blocks[name]
    begin = block.position
    axis = np.array([1.0, 0.0, 0.0])
    gap = extent(block, axis) + FINGER_HALF_M
    height = ON_TABLE_Z_M + 0.006
    beside = np.array([begin[0] - side * (gap + 0.02), begin[1], height])
    moved = Body(begin + side * 0.12 * axis, block.rotation, block.half)
    shaft = beside + CLOSED_POINTS @ TILTED.T
    if collides(shaft, view).any() or collides(block_points(moved), view, (name,)).any():
        return (yield from _carry_sideways(view, name, side))
    view = yield from _travel(view, beside - 0.1 * TILTED[:, 2], TILTED, False)
    view = yield Goal(beside, TILTED, False, speed=0.6)
    while view.position[2] < ON_TABLE_Z_M + 0.04:
        block = view.blocks[name]
        moved = side * (block.position[0] - begin[0])
        if moved > FLICK_M or side * (view.position[0] - begin[0]) > 0.12:
            break
        ahead = np.array([view.position[0] + side * 0.06, block.position[1], height])
        view = yield Goal(ahead, TILTED, False, near=np.inf)
    back = view.position - side * 0.05 * axis
    view = yield Goal(back, TILTED, False, near=0.03, hold=6)
    return (yield from _retreat(view))


DROP_M = 0.012
"""Height from which a block is let go that shall not touch table and gripper at once."""

FLICK_M = 0.075
"""Way after which a pushed block is left to slide on by itself. It comes to rest away from the
gripper: what follows may need a block that the robot does not touch."""


def _carry_sideways(view: View, name: str, side: int) -> Motion:
    begin = view.blocks[name].position
    grasp = _choose_grasp(view, name)
    view = yield from _close_on(view, grasp)
    view = yield Goal(grasp.position + 0.03 * UP, grasp.rotation, False, near=0.02)
    spots = [
        np.array([begin[0] + side * dx, y, 0.44])
        for dx in (0.12, 0.14)
        for y in sorted(np.linspace(-0.14, -0.03, 6), key=lambda y: abs(y - begin[1]))
    ]
    present = math.atan2(grasp.rotation[1, 1], grasp.rotation[0, 1])
    angles = (present, present + 0.4, present - 0.4)
    return (yield from _release_at(view, name, spots, angles, drop=DROP_M))


def _lift(view: View, name: str) -> Motion:
    block = view.blocks[name]
    if block.position[1] > 0.02 and block.position[2] > 0.43:
        view = yield from _uncover(view, block)
    return (yield from _pick(view, name))


def _uncover(view: View, block: Body) -> Motion:
    """Move the door away from a block in the cabinet, if it is in front of it."""
    scene = view.scene
    left, right = scene.slider_x - view.slider, scene.slider_x - view.slider + 0.28
    if left - 0.07 < block.position[0] < right + 0.07:
        middle = scene.slider_x - scene.slider_range / 2 + 0.14
        view = yield from _move_slider(view, 1 if block.position[0] > middle else -1)
    return view


def _move_slider(view: View, side: int) -> Motion:
    """Push the door's handle from its side, to the left (+1) or right (-1), to the stop."""
    scene = view.scene
    handle = scene.slider_x - view.slider + 0.14
    gap = 0.021 + FINGER_HALF_M
    end = scene.slider_x + 0.14 - (scene.slider_range if side > 0 else 0.0)
    start = on_face(handle + side * (gap + 0.025), 0.035, 0.11)
    stop = on_face(end + side * (gap - 0.008), 0.035, 0.11)
    view = yield from _travel(view, start - 0.1 * INCLINED[:, 2], INCLINED, False)
    view = yield Goal(start, INCLINED, False, speed=0.6, near=0.01)
    view = yield Goal(stop, INCLINED, False, speed=0.5)
    view = yield from _retreat(view)
    return view


def _open_drawer(view: View) -> Motion:
    """Reach behind the handle's bar from above and pull."""
    x = view.scene.drawer_x
    start = np.array([x, -0.222 - view.drawer, 0.362])
    view = yield from _travel(view, start + 0.1 * UP, UPRIGHT, False)
    view = yield Goal(start, UPRIGHT, False, speed=0.6)
    view = yield Goal(np.array([x, -0.222 - 0.235, 0.362]), UPRIGHT, False, speed=0.5)
    return (yield from _retreat(view))


def _close_drawer(view: View) -> Motion:
    """Push the handle's bar from the front."""
    x = view.scene.drawer_x
    start = np.array([x, -0.261 - view.drawer - FINGER_HALF_M - 0.025, 0.362])
    view = yield from _travel(view, start + 0.1 * UP, UPRIGHT, False)
    view = yield Goal(start, UPRIGHT, False, speed=0.6, near=0.012)
    view = yield Goal(np.array([x, -0.261, 0.362]), UPRIGHT, False, speed=0.5)
    return (yield from _retreat(view))


def _turn_on_lightbulb(view: View) -> Motion:
    """Push the lever up along the cabinet's face, from below its bar."""
    bar = 0.068 - 0.024 - FINGER_HALF_M
    return _move_lever(view, bar + view.switch - 0.018, bar + 0.09)


def _turn_off_lightbulb(view: View) -> Motion:
    """Push the lever down along the cabinet's face, from above its bar."""
    bar = 0.068 + 0.008 + FINGER_HALF_M
    return _move_lever(view, bar + view.switch + 0.02, bar)


def _move_lever(view: View, start: float, end: float) -> Motion:
    """Push the lever along the face, from a side where nothing is in the way."""
    best, least = None, math.inf
    for aside, angle in itertools.product((0.0, -0.02, 0.02), (0.0, -0.4, 0.4, -0.8, 0.8)):
        rotation = hand_rotation(angle, math.pi / 3)
        position = on_face(view.scene.switch_x + aside, 0.035, start)
        gripper = CLOSED_POINTS @ rotation.T
        way = [position - back * rotation[:, 2] + gripper for back in (0.0, 0.05, 0.1)]
        cost = float(collides(np.concatenate(way), view).sum()) + abs(angle) + 5 * abs(aside)
        if cost < least:
            best, least = (position, rotation), cost
    assert best is not None
    position, rotation = best
    view = yield from _travel(view, position - 0.1 * rotation[:, 2], rotation, False)
    view = yield Goal(position, rotation, False, speed=0.6)
    stop = on_face(position[0], 0.035, end)
    view = yield Goal(stop, rotation, False, speed=0.4)
    return (yield from _retreat(view))


def _press_button(view: View) -> Motion:
    over = np.array([view.scene.button_x, -0.12, 0.53])
    view = yield from _travel(view, over, UPRIGHT, False)
    view = yield Goal(over - 0.055 * UP, UPRIGHT, False, speed=0.3, hold=1)
    return (yield from _retreat(view))


def _place_in_slider(view: View) -> Motion:
    name = _held(view)
    if name is None:
        return view
    scene = view.scene
    low, high = scene.cabinet_x - 0.26, scene.cabinet_x + 0.26
    door = scene.slider_x - view.slider
    if door + 0.14 > scene.cabinet_x:
        high = door
    else:
        low = door + 0.28
    xs = sorted(np.linspace(low + 0.07, high - 0.05, 8), key=lambda x: abs(x - (low + high) / 2))
    spots = [np.array([x, y, 0.44]) for y in (0.075, 0.06, 0.09) for x in xs]
    return (yield from _release_at(view, name, spots, (0.0, 0.35, -0.35, 0.7, -0.7)))


def _place_in_drawer(view: View) -> Motion:
    name = _held(view)
    if name is None:
        return view
    x, y = view.scene.drawer_x, -0.157 - view.drawer + 0.0975
    spots = [np.array([x + dx, y, 0.3415]) for dx in (0.0, -0.06, 0.06, -0.1, 0.1)]
    return (yield from _release_at(view, name, spots, (0.0, 0.4, -0.4, 0.8, -0.8), drop=0.01))


def _stack_block(view: View) -> Motion:
    name = _held(view)
    if name is None:
        return view
    free = [
        block
        for other, block in view.blocks.items()
        if other != name
        and block.position[1] < 0.02
        and 0.44 < block.position[2] < 0.49
        and _on_top_of(view, other, name) is None
    ]
    if not free:
        return view
    tops = [block.position + extent(block, UP) * UP for block in free]
    return (yield from _release_at(view, name, tops, tuple(np.linspace(-1.5, 1.5, 13))))


def _on_top_of(view: View, lower: str, but: str = "") -> str | None:
    base = view.blocks[lower].position
    for name, block in view.blocks.items():
        if name in (lower, but):
            continue
        gap = block.position - base
        if 0.03 < gap[2] < 0.07 and np.linalg.norm(gap[:2]) < 0.05:
            return name
    return None


def _unstack_block(view: View) -> Motion:
    """Push the upper block off the lower one to the side; where that cannot be, lift it off.

    A block that slides off comes to lie on the table without being held, as tasks that follow need.
    """
    stacks = [(top, low) for low in BLOCKS for top in [_on_top_of(view, low)] if top is not None]
    if not stacks:
        return view
    upper, lower = stacks[0]
    block = view.blocks[upper]
    for side in (1, -1) if block.position[0] < 0.1 else (-1, 1):
        axis = np.array([side, 0.0, 0.0])
        beside = block.position - (extent(block, axis) + FINGER_HALF_M + 0.02) * axis + 0.008 * UP
        landing = block.position + 0.06 * axis - BLOCK_DEPTH_M * UP
        fallen = Body(landing, block.rotation, block.half)
        gripper = np.concatenate([beside + CLOSED_POINTS @ TILTED.T, block_points(fallen)])
        if collides(gripper, view, (upper, lower)).any() or abs(landing[0]) > 0.38:
            continue
        view = yield from _travel(view, beside - 0.1 * TILTED[:, 2], TILTED, False)
        view = yield Goal(beside, TILTED, False, speed=0.6)
        while _on_top_of(view, lower) == upper and side * (view.position[0] - landing[0]) < 0.04:
            ahead = beside + (side * (view.position[0] - beside[0]) + 0.03) * axis
            view = yield Goal(ahead, TILTED, False, speed=0.1, near=np.inf)
        for _ in range(20):
            ahead = beside + (side * (view.position[0] - beside[0]) + 0.03) * axis
            view = yield Goal(ahead, TILTED, False, speed=0.1, near=np.inf)
        return (yield from _retreat(view))
    view = yield from _pick(view, upper)
    return (yield from _put_down(view, upper))


def _push_into_drawer(view: View) -> Motion:
    """Push a block over the table's edge, from behind; first bring it to where that can be."""
    scene = view.scene
    on_table = [
        name
        for name, block in view.blocks.items()
        if -0.18 < block.position[1] < 0.02 and block.position[2] > 0.44
    ]
    if not on_table:
        return view
    name = min(on_table, key=lambda k: abs(view.blocks[k].position[0] - scene.drawer_x))
    block = view.blocks[name]
    axis = np.array([0.0, 1.0, 0.0])
    x = float(np.clip(block.position[0], scene.drawer_x - 0.11, scene.drawer_x + 0.11))
    behind = block.position[1] + extent(block, axis) + FINGER_HALF_M + 0.015
    if x != block.position[0] or behind > -0.02:
        view = yield from _pick(view, name)
        spots = [np.array([x + dx, -0.14, 0.44]) for dx in (0.0, -0.05, 0.05)]
        view = yield from _release_at(view, name, spots, (0.0, 0.4, -0.4, 0.8, -0.8))
    block = view.blocks[name]
    behind = block.position[1] + extent(block, axis) + FINGER_HALF_M + 0.015
    start = np.array([block.position[0], behind, ON_TABLE_Z_M + 0.006])
    view = yield from _travel(view, start - 0.1 * TILTED[:, 2], TILTED, False)
    view = yield Goal(start, TILTED, False, speed=0.6)
    while view.blocks[name].position[2] > 0.45 and view.position[1] > -0.23:
        ahead = np.array([view.blocks[name].position[0], view.position[1] - 0.03, start[2]])
        view = yield Goal(ahead, TILTED, False, speed=0.4, near=0.02, patience=20)
    return (yield from _retreat(view))


_PLANS: Mapping[str, Callable[[View], Plan]] = {
    "open_drawer": _open_drawer,
    "close_drawer": _close_drawer,
    "turn_on_lightbulb": _turn_on_lightbulb,
    "turn_off_lightbulb": _turn_off_lightbulb,
    "turn_on_led": _press_button,
    "turn_off_led": _press_button,
    "place_in_slider": _place_in_slider,
    "place_in_drawer": _place_in_drawer,
    "stack_block": _stack_block,
    "unstack_block": _unstack_block,
    "push_into_drawer": _push_into_drawer,
}
