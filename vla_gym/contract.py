"""The contract that every `VLA/` env keeps: observation, action, info and spec sheet on one page.

Observation (flat Dict; arrays belong to the caller, nothing is shared between steps):

| key            | space                    | meaning                                              |
|----------------|--------------------------|------------------------------------------------------|
| `rgb_primary`  | Box uint8 (H, W, 3)      | third-person view, upright as a person would see it  |
| `rgb_wrist`    | Box uint8 (H, W, 3)      | wrist view                                           |
| `rgb_<camera>` | Box uint8 (H, W, 3)      | any further camera of the suite, on request          |
| `proprio`      | Box float32 (10,)        | per arm: end effector's xyz [m] (3), first two       |
|                |                          | columns of its rotation matrix (6), both in the      |
|                |                          | robot base frame; gripper opening in [0, 1] (1)      |
| `instruction`  | `Instruction`            | the language command                                 |
| `state`        | Box float64 (n,)         | only with `state=True`: privileged simulator state   |

Action: Box(-1, 1, float32). In `ee_delta`, the default, 7 entries per arm: dx, dy, dz (robot base
frame), drx, dry, drz (axis-angle, base frame) and the gripper. +1 is the suite's documented largest
delta per control step, which the spec sheet gives in m and rad. Gripper: +1 opens, -1 closes, on
every suite. Values outside [-1, 1] are clipped; NaN, inf and wrong shapes raise `InvalidAction`.

`info` at every reset and step: `success` (bool, at this moment), `instruction`, `suite`, `task`,
`simulator`; at reset also `episode_seed` and `instructions` (all wordings).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.errors import InvalidAction, InvalidOption
from vla_gym.suite import ActionMode, Camera, Entry

if TYPE_CHECKING:  # at run time only where a space is made: simulators need the rest of this module
    from gymnasium import spaces  # in interpreters without Gymnasium (vla_gym/worker_main.py)

__all__ = [
    "EEF_PROPRIO",
    "EE_DELTA",
    "INFO_KEYS",
    "SpecSheet",
    "action_space",
    "check_action",
    "check_index",
    "eef_proprio",
    "joints_proprio",
    "observation_space",
    "two_arms",
]

INFO_KEYS = ("success", "instruction", "suite", "task", "simulator")

_BASE = "robot base"

EEF_PROPRIO = (
    *(Entry(axis, "m", _BASE) for axis in "xyz"),
    *(
        Entry(f"r{row}{column}", "", _BASE, note="of the rotation matrix, end effector to base")
        for column in (1, 2)
        for row in (1, 2, 3)
    ),
    Entry("gripper", "", "", note="opening: 0 closed, 1 open"),
)
"""The 10 entries of `proprio="eef"` for one arm."""


def joints_proprio(joints: int, gripper: Entry = EEF_PROPRIO[-1]) -> tuple[Entry, ...]:
    """Return the entries of `proprio="joints"`: positions, then velocities, then the gripper."""
    return (
        *(Entry(f"q{i}", "rad") for i in range(joints)),
        *(Entry(f"v{i}", "rad/s") for i in range(joints)),
        gripper,
    )


EE_DELTA = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
"""Names of the 7 entries of `action_mode="ee_delta"` for one arm."""


def ee_delta_entries(
    position_m: float, rotation_rad: float | None, gripper_note: str = ""
) -> tuple[Entry, ...]:
    """Return the 7 entries of `ee_delta` for one arm.

    Args:
        position_m: largest translation per control step and axis [m].
        rotation_rad: largest rotation per control step and axis [rad]; None where the robot
            cannot turn its wrist.
        gripper_note: what the suite's gripper does with values between -1 and +1.
    """
    return (
        *(Entry(name, "m", _BASE, position_m) for name in EE_DELTA[:3]),
        *(
            Entry(name, "rad", _BASE, 0.0, "ignored: this robot cannot turn its wrist")
            if rotation_rad is None
            else Entry(name, "rad", _BASE, rotation_rad, "axis-angle")
            for name in EE_DELTA[3:6]
        ),
        Entry("gripper", "", "", 1.0, "+1 opens, -1 closes" + gripper_note),
    )


def eef_proprio(
    position: NDArray[np.float64], rotation: NDArray[np.float64], opening: float
) -> NDArray[np.float64]:
    """Assemble `proprio="eef"` of one arm.

    Args:
        position: end effector in the robot base frame [m], shape (3,).
        rotation: rotation matrix from end effector to robot base, shape (3, 3).
        opening: gripper opening in [0, 1]; values beyond are clipped.

    Returns:
        shape (10,), float64.

    The first two columns of the matrix are the continuous 6-D form of Zhou et al. 2019, "On the
    Continuity of Rotation Representations in Neural Networks", section 4.2.
    """
    proprio = np.empty(10)
    proprio[:3] = position
    proprio[3:6] = rotation[:, 0]
    proprio[6:9] = rotation[:, 1]
    proprio[9] = min(max(opening, 0.0), 1.0)
    return proprio


def two_arms(mode: ActionMode) -> ActionMode:
    """Return the mode of two equal arms from that of one: first the first arm's entries."""
    second = tuple(
        None if item is None else (item[0] + mode.native_dim, item[1]) for item in mode.native
    )
    return ActionMode(
        entries=(*prefix_entries("arm0_", mode.entries), *prefix_entries("arm1_", mode.entries)),
        native=(*mode.native, *second),
        native_dim=2 * mode.native_dim,
        rest=None if mode.rest is None else 2 * mode.rest,
    )


def prefix_entries(prefix: str, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Return the entries with `prefix` before each name."""
    return tuple(dataclasses.replace(entry, name=prefix + entry.name) for entry in entries)


def observation_space(
    images: Mapping[str, int],
    proprio: tuple[Entry, ...],
    instruction: str,
    state_dim: int | None,
) -> spaces.Dict:
    """Return the observation space.

    Args:
        images: camera -> height and width of its picture [pixels].
        proprio: entries of `proprio`.
        instruction: `"text"`, `"embedding"` or `"bytes"`.
        state_dim: length of `state`; None leaves it out.
    """
    from gymnasium import spaces

    from vla_gym.instruction import instruction_space

    keys: dict[str, spaces.Space] = {
        f"rgb_{camera}": spaces.Box(0, 255, (size, size, 3), np.uint8)
        for camera, size in images.items()
    }
    keys["proprio"] = spaces.Box(-np.inf, np.inf, (len(proprio),), np.float32)
    keys["instruction"] = instruction_space(instruction)
    if state_dim is not None:
        keys["state"] = spaces.Box(-np.inf, np.inf, (state_dim,), np.float64)
    return spaces.Dict(keys)


def action_space(mode: ActionMode) -> spaces.Space[NDArray[np.float32]]:
    """Return the action space: Box(-1, 1, (len(mode.entries),), float32)."""
    from gymnasium import spaces

    return spaces.Box(-1.0, 1.0, (len(mode.entries),), np.float32)


def check_index(value: Any, count: int, what: str) -> int:
    """Return a whole number in [0, count - 1].

    Args:
        value: as the caller gave it.
        count: how many there are to choose from.
        what: names it in the error, such as `"options['goal']"`.

    Raises:
        InvalidOption: it is something else.
    """
    # A tuple of types: Python 3.8, which may run a simulator, has no int | np.integer.
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not 0 <= value < count:
        raise InvalidOption(f"{what} must be a whole number in [0, {count - 1}], not {value!r}")
    return int(value)


def check_action(action: Any, entries: tuple[Entry, ...], where: str) -> NDArray[np.float32]:
    """Return `action` as float32, clipped to [-1, 1].

    Raises:
        InvalidAction: its shape is not (len(entries),), or an entry is not a finite number.
    """
    try:
        # float64 first: a finite number beyond float32 is to be clipped, not to overflow.
        array = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        names = ", ".join(entry.name for entry in entries)
        raise InvalidAction(
            f"the action for {where} is not an array of numbers ({error}); it takes {len(entries)} "
            f"numbers in [-1, 1]: {names}"
        ) from error
    if array.shape != (len(entries),):
        names = ", ".join(entry.name for entry in entries)
        raise InvalidAction(
            f"the action for {where} has shape {array.shape}; it takes shape ({len(entries)},): "
            + names
        )
    if all(-1.0 <= value <= 1.0 for value in array.tolist()):  # a NaN is not; the usual, fast case
        return array.astype(np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        bad = ", ".join(
            f"{entries[i].name} (entry {i}) is {array[i]}" for i in np.flatnonzero(~finite)
        )
        raise InvalidAction(
            f"the action for {where} must be finite: {bad}. Nothing was sent to the simulator; "
            "look for a division by zero or an overflow in the policy"
        )
    return np.clip(array, -1.0, 1.0).astype(np.float32)


@dataclass(frozen=True)
class SpecSheet:
    """What an env observes and does, with units, frames, signs and scales, as one record.

    Attributes:
        id, suite, task, simulator, robot: names.
        action_mode, action: the mode and its entries in order.
        proprio_form, proprio: the form and its entries in order.
        cameras: contract name -> camera, of those observed.
        all_cameras: names of every camera that can be asked for.
        image_size: height and width of the images [pixels]; camera -> size where they differ.
        instruction: `"text"`, `"embedding"` or `"bytes"`.
        state_dim: length of `state`, None where it is not observed.
        control_hz: control steps per second.
        horizon: control steps after which an episode is truncated.
        success: the suite's success rule.
        reward: which reward, with its version.
        terminate_on_success: whether success ends the episode.
        render_quality: `"exact"` or `"fast"`.
        keywords: the suite's own keywords, those on which an episode may depend.
        gripper: `"+1 opens"` in every action mode but `native`, which has the suite's own sign.
        rotation: form of the rotation entries of the action.
        rest: the action that leaves everything as it is at the start of an episode with open
            fingers, see `ActionMode`; None where the mode has none.
    """

    id: str
    suite: str
    task: str
    simulator: str
    robot: str
    action_mode: str
    action: tuple[Entry, ...]
    proprio_form: str
    proprio: tuple[Entry, ...]
    cameras: dict[str, Camera]
    all_cameras: tuple[str, ...]
    image_size: int | dict[str, int]
    instruction: str
    state_dim: int | None
    control_hz: float
    horizon: int
    success: str
    reward: str
    terminate_on_success: bool
    render_quality: str
    keywords: dict[str, Any]
    gripper: str
    rotation: str
    rest: tuple[float, ...] | None = None

    @property
    def images(self) -> dict[str, int]:
        """Height and width of each camera's picture [pixels]."""
        size = self.image_size
        return dict(size) if isinstance(size, dict) else dict.fromkeys(self.cameras, size)

    def to_dict(self) -> dict[str, Any]:
        """Return the sheet as plain dicts, lists, strings and numbers, ready for JSON."""
        return dataclasses.asdict(self)
