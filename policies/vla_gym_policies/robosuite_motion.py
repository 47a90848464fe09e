"""What the scripted robosuite experts share: steering the hand, phases, which env they fit.

A Panda on its table stands unturned, so that directions in the robot base frame are directions in
the world, in which `state` is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_gym import SpecSheet
from vla_gym.errors import ContractMismatch

PROPRIO_DIM = 50
"""Length of upstream's `robot0_proprio-state` for a Panda; the task's `object-state` follows."""

EEF = slice(35, 38)
"""End-effector position [m], world frame, within it."""

POSITION_GAIN = 10.0
"""Commanded entry per metre of error; +1 is 0.05 m, so that half of an error is made up a step."""

ROTATION_GAIN = 1.0
"""Commanded entry per radian of error; +1 is 0.5 rad."""

DOWNWARDS = np.array([0.0, 0.0, -1.0])


def check_fit(name: str, task: str, sheet: SpecSheet) -> None:
    """Raise unless the env is `task` with a Panda, observed with `state=True`.

    Raises:
        ContractMismatch: it is not; the message says how to make one that is.
    """
    found = (sheet.suite, sheet.task, sheet.robot, sheet.action_mode)
    if found != ("Robosuite", task, "Panda", "ee_delta") or sheet.state_dim is None:
        raise ContractMismatch(
            f"{name} solves VLA/Robosuite-{task} with a Panda, action_mode='ee_delta' and "
            f"state=True; this env is {sheet.id} with robot={sheet.robot!r}, action_mode="
            f"{sheet.action_mode!r} and state={sheet.state_dim is not None}. Make it with "
            f'gym.make("VLA/Robosuite-{task}", cameras=(), state=True), or choose another policy'
        )


def steer(
    offset: NDArray[np.float64],
    proprio: NDArray[np.float64],
    across: NDArray[np.float64],
    approach: NDArray[np.float64] = DOWNWARDS,
) -> NDArray[np.float64]:
    """Return the 6 motion entries that move by `offset` and turn the hand.

    Args:
        offset: from the end effector to where it should go [m], shape (3,).
        proprio: `proprio="eef"` of the arm, shape (10,).
        across: along which the fingers should close, either way round; a unit vector at right
            angles to `approach`, shape (3,).
        approach: unit vector in which the hand should point, shape (3,).

    Returns:
        shape (6,), each in [-1, 1].
    """
    x_axis, y_axis = proprio[3:6], proprio[6:9]  # the fingers close along x
    z_axis = np.cross(x_axis, y_axis)  # out of the hand
    if x_axis @ across < 0:
        across = -across
    wanted = (across, np.cross(approach, across), approach)
    axes = (x_axis, y_axis, z_axis)
    # For small angles half of this sum is the rotation vector that brings the axes to the wanted.
    turn = sum(np.cross(one, other) for one, other in zip(axes, wanted, strict=True)) / 2
    return np.clip(np.concatenate([POSITION_GAIN * offset, ROTATION_GAIN * turn]), -1.0, 1.0)


def start_phases(
    state: Sequence[NDArray[np.int64] | None] | None,
    episode_start: NDArray[np.bool_] | None,
    size: int,
) -> list[NDArray[np.int64]]:
    """Return copies of the B phases, (2,): phase and steps spent in it; zero where one starts."""
    starts = np.zeros(size, bool) if episode_start is None else episode_start
    before = [None] * size if state is None else state
    return [
        np.zeros(2, np.int64) if start or phase is None else phase.copy()
        for phase, start in zip(before, starts, strict=True)
    ]
