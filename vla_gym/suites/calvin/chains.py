"""CALVIN's long-horizon evaluation: 1000 chains of five tasks and the states where they start.

A chain is drawn by symbols alone: a state says where each block is, which way door and drawer stand
and which lights are on; a task needs some of this and changes some of it. The same random draws as
upstream's (calvin fa03f01, calvin_models/calvin_agent/evaluation/multistep_sequences.py and
utils.py), so that scores are of the very chains on which CALVIN's published ones are. They are
shipped in `chains.json`, because drawing them takes long (15 s); `python -m` this module draws and
writes them anew.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.errors import UnknownName
from vla_gym.suite import Task
from vla_gym.suites.calvin.oracle import RULES
from vla_gym.suites.calvin.scenes import (
    BLOCKS,
    DRAWER_OPEN_M,
    HOME_ROBOT_OBS,
    SCENES,
    SWITCH_ON_M,
)
from vla_gym.suites.calvin.tasks import CHAIN, CHAIN_LENGTH, TASKS

__all__ = [
    "KINDS",
    "STATE_KEYS",
    "Chain",
    "apply",
    "generate_chains",
    "initial_observations",
    "list_initial_states",
    "load_chains",
]

STATE_KEYS = (
    *("led", "lightbulb", "slider", "drawer"),
    *(f"{color}_block" for color in BLOCKS),
    "grasped",
)
"""Of a symbolic state, in the order on which the seeds of `initial_observations` depend.

`led`, `lightbulb` and `grasped` (whether the robot holds a block) are 0 or 1, `slider` is
`"right"` or `"left"`, `drawer` is `"closed"` or `"open"`; a block is on the `"table"`, in
`"slider_right"` or `"slider_left"` (the halves of the cabinet; the door hides the half of its own
name), in the `"drawer"`, `"grasped"`, `"stacked_top"` or `"stacked_bottom"`.
"""

_FILE = Path(__file__).with_name("chains.json")


class Chain(NamedTuple):
    """Five tasks in a row.

    Attributes:
        initial: the symbolic state at the start, read-only; keys `STATE_KEYS` in that order.
        tasks: upstream's names of the tasks.
    """

    initial: Mapping[str, int | str]
    tasks: tuple[str, ...]


class _Way(NamedTuple):
    """One way in which a task can be done: what it needs of a state and what it makes of it."""

    needs: Mapping[str, int | str]
    makes: Mapping[str, int | str]


def _list_ways_with_a_block(color: str) -> dict[str, list[_Way]]:
    """Return the ways of the tasks that are about one block by name."""
    block = f"{color}_block"
    free = {"grasped": 0}
    held = {block: "grasped", "grasped": 1}
    moves = [
        f"{verb}_{color}_block_{side}" for verb in ("rotate", "push") for side in ("right", "left")
    ]
    ways = {move: [_Way({block: "table", **free}, {})] for move in moves}
    ways[f"lift_{color}_block_table"] = [_Way({block: "table", **free}, held)]
    ways[f"lift_{color}_block_slider"] = [
        _Way({block: f"slider_{half}", "slider": door, **free}, held)
        for half, door in (("left", "right"), ("right", "left"))
    ]
    ways[f"lift_{color}_block_drawer"] = [_Way({block: "drawer", "drawer": "open", **free}, held)]
    return ways


def _list_ways_with_any_block() -> dict[str, list[_Way]]:
    """Return the ways of the tasks that leave open which block they are about."""
    ways: dict[str, list[_Way]] = {
        "place_in_slider": [],
        "place_in_drawer": [],
        "stack_block": [],
        "unstack_block": [],
        "push_into_drawer": [],
    }
    free = {"grasped": 0}
    halves = ("slider_right", "slider_left")
    for block in (f"{color}_block" for color in BLOCKS):
        others = [f"{color}_block" for color in BLOCKS if f"{color}_block" != block]
        held = {block: "grasped", "grasped": 1}
        ways["place_in_slider"] += [
            _Way({**held, "slider": door}, {block: f"slider_{door}", **free})
            for door in ("right", "left")
        ]
        ways["place_in_drawer"] += [_Way({**held, "drawer": "open"}, {block: "drawer", **free})]
        for other in others:
            tower = {block: "stacked_top", other: "stacked_bottom"}
            ways["stack_block"] += [_Way({**held, other: "table"}, {**tower, **free})]
            ways["unstack_block"] += [_Way({**tower, **free}, {block: "table", other: "table"})]
        ways["push_into_drawer"] += [
            _Way(
                {block: "table", others[0]: first, others[1]: second, "drawer": "open", **free},
                {block: "drawer"},
            )
            for first, second in product(halves, halves)
        ]
    return ways


def _list_ways_of_switching() -> dict[str, list[_Way]]:
    """Return the ways of the tasks that are about door, drawer or a light."""
    changes = {
        "move_slider_left": ("slider", "right", "left"),
        "move_slider_right": ("slider", "left", "right"),
        "open_drawer": ("drawer", "closed", "open"),
        "close_drawer": ("drawer", "open", "closed"),
        "turn_on_lightbulb": ("lightbulb", 0, 1),
        "turn_off_lightbulb": ("lightbulb", 1, 0),
        "turn_on_led": ("led", 0, 1),
        "turn_off_led": ("led", 1, 0),
    }
    return {
        task: [_Way({key: before, "grasped": 0}, {key: after})]
        for task, (key, before, after) in changes.items()
    }


_WAYS: dict[str, list[_Way]] = {
    **{task: ways for color in BLOCKS for task, ways in _list_ways_with_a_block(color).items()},
    **_list_ways_with_any_block(),
    **_list_ways_of_switching(),
}


def _name_kind(task: Task) -> str:
    (tag,) = task.tags
    if tag in ("rotate", "push"):
        return "move_block"
    if tag == "lift":
        return f"lift_from_{task.native.split('_')[-1]}"
    return task.native if tag == "stack" else tag


KINDS: Mapping[str, str] = MappingProxyType(
    {task.native: _name_kind(task) for task in TASKS.values() if task.native != CHAIN}
)
"""Task -> its kind, one of eleven; the five tasks of a chain are of five kinds."""


def apply(task: str, state: Mapping[str, int | str]) -> dict[str, int | str] | None:
    """Return the symbolic state after a task.

    Args:
        task: upstream's name of one of the 34.
        state: the state before, see `STATE_KEYS`.

    Returns:
        The state after it, keys in the order of `state`; None where the task cannot be done, or
        in more than one way (two blocks on which to stack).

    Raises:
        UnknownName: there is no such task.
    """
    if task not in _WAYS:
        raise UnknownName("task", task, RULES, "CALVIN")
    ways = [way for way in _WAYS[task] if way.needs.items() <= state.items()]
    return {**state, **ways[0].makes} if len(ways) == 1 else None


def list_initial_states() -> list[Mapping[str, int | str]]:
    """Return the 192 states in which chains start.

    One or two blocks are on the table, the others in the cabinet, no two in the same half.
    """
    places = [
        blocks
        for blocks in product(("table", "slider_right", "slider_left"), repeat=len(BLOCKS))
        if blocks.count("table") in (1, 2)
        and blocks.count("slider_right") < 2
        and blocks.count("slider_left") < 2
    ]
    return [
        _name_values((led, lightbulb, slider, drawer, *blocks, 0))
        for led, lightbulb, slider, drawer, blocks in product(
            (0, 1), (0, 1), ("right", "left"), ("closed", "open"), places
        )
    ]


def generate_chains(n: int = 1000) -> list[Chain]:
    """Draw upstream's evaluation chains.

    Args:
        n: how many. Another number gives other chains, not the first or more of the same.

    Returns:
        The chains, spread evenly over the initial states, in the order in which upstream plays
        them.
    """
    states = list_initial_states()
    base, more = divmod(n, len(states))
    chains = [
        Chain(state, tasks)
        for number, state in enumerate(states)
        for tasks in _draw_tasks(state, base + (number < more), seed=number)
    ]
    return [chains[i] for i in np.random.RandomState(0).permutation(n)]


@functools.cache
def load_chains() -> tuple[Chain, ...]:
    """Return the 1000 chains of the protocol, as shipped."""
    data = json.loads(_FILE.read_text(encoding="ascii"))
    states = [_name_values(tuple(values)) for values in data["states"]]
    return tuple(
        Chain(states[state], tuple(data["tasks"][task] for task in tasks))
        for state, *tasks in data["chains"]
    )


def dump_chains(chains: list[Chain]) -> str:
    """Return what `chains.json` holds: a row per chain, numbers of its state and of its tasks."""
    states, tasks = list_initial_states(), list(RULES)
    rows = [[states.index(c.initial), *(tasks.index(task) for task in c.tasks)] for c in chains]
    data = {
        "source": "the draws of calvin fa03f01, by vla_gym.suites.calvin.chains.generate_chains",
        "keys": STATE_KEYS,
        "tasks": tasks,
        "states": [list(state.values()) for state in states],
        "chains": rows,
    }
    parts = [f'"{key}":{json.dumps(value, separators=(",", ":"))}' for key, value in data.items()]
    return "{" + ",\n".join(parts) + "}\n"


YAW_RANGE = (np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)
IN_CABINET_M = {
    "slider_left": (-2.40851662e-01, 9.24044687e-02, 4.60990009e-01),
    "slider_right": (7.03416330e-02, 9.24044687e-02, 4.60990009e-01),
}
ON_TABLE_M = (
    (5.00000896e-02, -1.20000177e-01, 4.59990009e-01),
    (2.29995412e-01, -1.19995140e-01, 4.59990010e-01),
)
"""Where blocks start in scene D: calvin fa03f01, evaluation/utils.py,
`get_env_state_for_initial_condition`."""


def initial_observations(chain: Chain) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the state of robot and scene D in which a chain starts.

    Blocks on the table swap their places and every block turns at random, always alike for the same
    symbolic state.

    Returns:
        `robot_obs`, shape (15,), and `scene_obs`, shape (24,), as in
        `vla_gym.suites.calvin.table`.
    """
    state = chain.initial
    seed = _fnv1_32(str(state.values()).encode())
    rng = np.random.RandomState(seed)  # the legacy generator: upstream's draws
    spots = list(ON_TABLE_M)
    rng.shuffle(spots)
    scene_obs = np.zeros(24)
    scene_obs[0] = SCENES["D"].slider_range if state["slider"] == "left" else 0.0
    scene_obs[1] = DRAWER_OPEN_M if state["drawer"] == "open" else 0.0
    scene_obs[3] = SWITCH_ON_M if state["lightbulb"] else 0.0
    scene_obs[4:6] = state["lightbulb"], state["led"]
    for color, pose in zip(BLOCKS, scene_obs[6:].reshape(3, 6)):  # noqa: B905  Python 3.8
        place = state[f"{color}_block"]
        if place == "table":
            # Red takes the first spot, pink the last, blue the first that red leaves.
            is_last = color == "pink" or (color == "blue" and state["red_block"] == "table")
            pose[:3] = spots[is_last]
        else:
            pose[:3] = IN_CABINET_M[str(place)]
        pose[5] = rng.uniform(*YAW_RANGE)
    return np.array(HOME_ROBOT_OBS), scene_obs


def _name_values(values: tuple[int | str, ...]) -> Mapping[str, int | str]:
    return MappingProxyType(dict(zip(STATE_KEYS, values)))  # noqa: B905  Python 3.8


def _draw_tasks(state: Mapping[str, int | str], count: int, seed: int) -> list[tuple[str, ...]]:
    """Draw five different tasks again and again; return the first `count` that can be a chain."""
    rng = np.random.RandomState(seed)  # the legacy generator: upstream's draws
    names, numbers = list(RULES), np.arange(len(RULES))  # their order decides what is drawn
    order = numbers.copy()
    start = tuple(state.values())
    found: list[tuple[str, ...]] = []
    while len(found) < count:
        # What RandomState.choice(34, 5, replace=False) does, without its overhead.
        order[:] = numbers
        rng.shuffle(order)
        drawn = order[:CHAIN_LENGTH].tolist()
        if _is_chain(start, drawn):
            found.append(tuple(names[number] for number in drawn))
    return found


def _is_chain(values: tuple[int | str, ...], tasks: list[int]) -> bool:
    """Return whether tasks, by number, can be done one after another and are of different kinds."""
    for task in tasks:
        after = _list_successors(values).get(task)
        if after is None:
            return False
        values = after
    return len({_KIND_OF_NUMBER[task] for task in tasks}) == len(tasks)


_KIND_OF_NUMBER = list(KINDS.values())


@functools.cache
def _list_successors(values: tuple[int | str, ...]) -> dict[int, tuple[int | str, ...]]:
    """Return number of each task that can be done -> values of the state after it."""
    state = _name_values(values)
    after = {number: apply(task, state) for number, task in enumerate(RULES)}
    return {number: tuple(made.values()) for number, made in after.items() if made is not None}


def _fnv1_32(data: bytes) -> int:
    """Return the 32-bit FNV-1 hash that starts at 0, as `pyhash.fnv1_32()` does."""
    value = 0
    for byte in data:
        value = (value * 0x01000193 & 0xFFFFFFFF) ^ byte
    return value


if __name__ == "__main__":
    _FILE.write_text(dump_chains(generate_chains()), encoding="ascii")
