"""RLBench: 109 tasks of a Franka Panda on a table, in CoppeliaSim or in our MuJoCo twin.

106 tasks are those of RLBench 1.2.0 (stepjam/RLBench 02720bba, 2025-01-25), 3 exist only in the
fork that PerAct uses. This page holds what the two simulators share: the tasks, the numbers of the
scene, the action modes and their meaning as pure functions. Neither RLBench's code nor its scenes
are part of this package: its licence forbids to pass them on. The numbers are measurements and
facts of its public sources.

World frame: z up; +x points from the robot over the table, +y to its left. The robot's base stands
at `BASE_POSITION_M`, unturned, so that directions in base and world frame are the same. The end
effector is the point between the fingertips (upstream's `Panda_tip`), 0.110 m below the flange; its
z axis points out of the hand.

Action modes, each entry in [-1, 1]:

- `ee_delta` (7): +1 is `POSITION_M` and `ROTATION_RAD`. The deltas count from where the end
  effector is; the rotation (axis-angle, base frame) is applied after the present one.
- `native` (8): joint velocities for one 50 ms step, +1 is `JOINT_VELOCITY`, and RLBench's gripper
  command, whose range [0, 1] is stretched to [-1, 1].
- `joint_position` (8): joint angles to drive towards for one step; -1 and +1 are `JOINT_LIMITS`.
- `keypose` (8): a pose in the world frame that a planner drives to, over as many steps as it needs:
  position within the workspace and a quaternion (x, y, z, w), normalised here. An episode has 25 of
  them. `on_invalid_action="terminate"` with it is PerAct's protocol: there an episode ends with
  reward 0 at the first pose that cannot be reached.

The gripper is open or closed, nothing in between: an entry above 0 opens, any other closes, also 0.

Joint angles are RLBench's: its fourth joint reads 0.0698 rad (4 degrees) less than Franka's.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_gym.contract import EEF_PROPRIO, check_index, ee_delta_entries, joints_proprio
from vla_gym.errors import InvalidAction
from vla_gym.suite import (
    ActionMode,
    Camera,
    Entry,
    Keyword,
    Layout,
    SimulatorInfo,
    Suite,
    Task,
)
from vla_gym.suites.rlbench_tasks import TASKS, VARIATIONS
from vla_gym.suites.rlbench_twin import TWIN_STATE_DIM, TWIN_TASKS

__all__ = [
    "SUITE",
    "EeDelta",
    "JointCommand",
    "Keypose",
    "choose_variation",
    "decode_ee_delta",
    "decode_joint_position",
    "decode_joint_velocity",
    "decode_keypose",
    "encode_ee_delta",
    "encode_joint_position",
    "encode_joint_velocity",
    "encode_keypose",
    "find_coppeliasim_obstacle",
]

CONTROL_HZ = 20.0
"""One step of RLBench's scene is 0.05 s."""

BASE_POSITION_M = (-0.268, -0.007, 0.750)
"""The robot's base in the world; it is not turned. Forward kinematics of 251 recorded poses of
upstream's tests agree with it to 0.2 mm (rms)."""

WORKSPACE_LOW = (-0.275, -0.655, 0.752)
WORKSPACE_HIGH = (0.775, 0.655, 1.752)
"""Where a `keypose` may be [m, world]: rlbench/backend/scene.py, `check_target_in_workspace`, with
the workspace plane's centre (0.25, 0, 0.752) and size 0.65 x 0.91 m. Upstream's check is strict."""

WORKSPACE_MARGIN_M = 1e-5
"""`decode_keypose` keeps this far inside, so that -1 and +1 pass upstream's strict check."""

HOME_JOINTS = (0.0, 0.1745, 0.0, -0.8727, 0.0, 1.2217, 0.7854)
"""Joint angles at the start of every episode [rad]."""

JOINT_LIMITS = (
    (-2.8973, 2.8973),
    (-1.7628, 1.7628),
    (-2.8973, 2.8973),
    (-3.0718, -0.0698),
    (-2.8973, 2.8973),
    (-0.0175, 3.7525),
    (-2.8973, 2.8973),
)
"""Range of each joint [rad]."""

FINGER_TRAVEL_M = 0.04
"""Each of the two fingers slides from 0 (closed) to this."""

POSITION_M = 0.025
ROTATION_RAD = 0.1
"""What +1 means in `ee_delta`, per axis: 0.5 m/s and 2 rad/s if held for 50 ms. Ours; upstream has
no bounds. Its inverse kinematics refuse targets much farther from where the arm is."""

JOINT_VELOCITY = 1.0
"""What +1 means in `native` [rad/s]: upstream's planner keeps to it, its demonstrations to 0.84."""

KEYPOSES = 25
"""Actions of a `keypose` episode: PerAct's limit."""

TASK_STATE_DIM = 1024
COPPELIASIM_STATE_DIM = 7 + 7 + 7 + 1 + 7 + TASK_STATE_DIM
"""Length of `state` in CoppeliaSim: joint angles, velocities and forces, whether the gripper is
open, the tip's pose (xyz, quaternion xyzw, world), then upstream's `task_low_dim_state` (7 numbers
for each object of the task, in most tasks) and zeros up to `TASK_STATE_DIM`."""

_LOW = np.array(WORKSPACE_LOW)
_HIGH = np.array(WORKSPACE_HIGH)
_JOINT_LOW, _JOINT_HIGH = np.array(JOINT_LIMITS).T

Vector = NDArray[np.float64]


class EeDelta(NamedTuple):
    """A decoded `ee_delta`.

    Attributes:
        translation_m: shape (3,), base (= world) frame.
        rotation_rad: rotation vector, shape (3,), base frame: R_new = exp(rotation) R_old.
        open: whether the gripper is to be open.
    """

    translation_m: Vector
    rotation_rad: Vector
    open: bool


class JointCommand(NamedTuple):
    """A decoded `native` (rad/s) or `joint_position` (rad) action: shape (7,) and the gripper."""

    joints: Vector
    open: bool


class Keypose(NamedTuple):
    """A decoded `keypose`: position [m, world], unit quaternion (x, y, z, w) and the gripper."""

    position_m: Vector
    quaternion_xyzw: Vector
    open: bool


def decode_ee_delta(action: ArrayLike) -> EeDelta:
    """Map an `ee_delta` action, shape (7,), each in [-1, 1], to metres and radians."""
    vector = _check(action, 7)
    return EeDelta(POSITION_M * vector[:3], ROTATION_RAD * vector[3:6], bool(vector[6] > 0))


def encode_ee_delta(
    translation_m: ArrayLike, rotation_rad: ArrayLike, open: bool
) -> NDArray[np.float32]:
    """Return the `ee_delta` action of a motion; beyond [-1, 1] where one step cannot do it."""
    return _join(
        _check(translation_m, 3) / POSITION_M, _check(rotation_rad, 3) / ROTATION_RAD, open
    )


def decode_joint_velocity(action: ArrayLike) -> JointCommand:
    """Map a `native` action, shape (8,), each in [-1, 1], to rad/s."""
    vector = _check(action, 8)
    return JointCommand(JOINT_VELOCITY * vector[:7], bool(vector[7] > 0))


def encode_joint_velocity(velocities: ArrayLike, open: bool) -> NDArray[np.float32]:
    """Return the `native` action of joint velocities [rad/s], shape (7,)."""
    return _join(_check(velocities, 7) / JOINT_VELOCITY, (), open)


def decode_joint_position(action: ArrayLike) -> JointCommand:
    """Map a `joint_position` action, shape (8,), each in [-1, 1], to joint angles [rad]."""
    vector = _check(action, 8)
    return JointCommand(_stretch(vector[:7], _JOINT_LOW, _JOINT_HIGH), bool(vector[7] > 0))


def encode_joint_position(joints: ArrayLike, open: bool) -> NDArray[np.float32]:
    """Return the `joint_position` action of joint angles [rad], shape (7,)."""
    return _join(_shrink(_check(joints, 7), _JOINT_LOW, _JOINT_HIGH), (), open)


def decode_keypose(action: ArrayLike) -> Keypose:
    """Map a `keypose` action, shape (8,), each in [-1, 1], to a pose in the world.

    Raises:
        InvalidAction: the quaternion is zero and says no orientation.
    """
    vector = _check(action, 8)
    norm = float(np.linalg.norm(vector[3:7]))
    if norm < 1e-6:
        raise InvalidAction(
            f"the quaternion of a keypose (entries qx, qy, qz, qw) is {vector[3:7].tolist()}; zero "
            "says no orientation. Pointing straight down is (1, 0, 0, 0)"
        )
    position = np.clip(
        _stretch(vector[:3], _LOW, _HIGH), _LOW + WORKSPACE_MARGIN_M, _HIGH - WORKSPACE_MARGIN_M
    )
    return Keypose(position, vector[3:7] / norm, bool(vector[7] > 0))


def encode_keypose(
    position_m: ArrayLike, quaternion_xyzw: ArrayLike, open: bool
) -> NDArray[np.float32]:
    """Return the `keypose` action of a pose in the world; beyond [-1, 1] outside the workspace.

    The quaternion is normalised; of the two signs that mean the same it gets w >= 0.
    """
    quaternion = _check(quaternion_xyzw, 4)
    quaternion = quaternion / np.linalg.norm(quaternion)
    if quaternion[3] < 0:
        quaternion = -quaternion
    return _join(_shrink(_check(position_m, 3), _LOW, _HIGH), quaternion, open)


def choose_variation(task: str, seed: int, options: Mapping[str, Any]) -> int:
    """Return `options["variation"]`, else a variation drawn from the episode's seed.

    Both simulators call this, so that a seed gives the same variation in both.

    Args:
        task: the task's name, for example `"ReachTarget"`.
        seed: of the episode.
        options: of `reset`.

    Raises:
        InvalidOption: the variation is not a whole number that the task has.
    """
    count = VARIATIONS[task]
    if "variation" not in options:
        # A stream of its own: the placement of objects is drawn from `seed` itself.
        return int(np.random.default_rng([seed, 1]).integers(count))
    return check_index(options["variation"], count, f"options['variation'] of {SUITE.id(task)}")


def _check(values: ArrayLike, size: int) -> Vector:
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (size,):
        raise ValueError(f"expected {size} numbers, found shape {vector.shape}")
    return vector


def _stretch(values: Vector, low: Vector, high: Vector) -> Vector:
    return low + (values + 1) / 2 * (high - low)


def _shrink(values: Vector, low: Vector, high: Vector) -> Vector:
    return 2 * (values - low) / (high - low) - 1


def _join(first: Vector, second: ArrayLike, open: bool) -> NDArray[np.float32]:
    gripper = 1.0 if open else -1.0
    return np.concatenate([first, np.asarray(second, np.float64), [gripper]]).astype(np.float32)


_GRIPPER_NOTE = ": above 0 opens, else closes; nothing in between"

_EE_DELTA = ee_delta_entries(POSITION_M, ROTATION_RAD, _GRIPPER_NOTE)

_MODES = {
    "ee_delta": _EE_DELTA,
    "native": (
        *(Entry(f"v{i}", "rad/s", "", JOINT_VELOCITY, "for one 50 ms step") for i in range(7)),
        Entry("gripper", note="RLBench's [0, 1] stretched to [-1, 1]" + _GRIPPER_NOTE),
    ),
    "joint_position": (
        *(
            Entry(f"q{i}", "rad", "", high, f"target: -1 is {low}, +1 is {high}")
            for i, (low, high) in enumerate(JOINT_LIMITS)
        ),
        _EE_DELTA[-1],
    ),
    "keypose": (
        *(
            Entry(axis, "m", "world", high, f"absolute: -1 is {low}, +1 is {high}")
            for axis, low, high in zip("xyz", WORKSPACE_LOW, WORKSPACE_HIGH, strict=True)
        ),
        *(
            Entry(name, "", "world", 1.0, "of the quaternion, which is normalised")
            for name in ("qx", "qy", "qz", "qw")
        ),
        _EE_DELTA[-1],
    ),
}

_ACTION_MODES = {
    name: ActionMode(
        entries,
        tuple((i, 1.0) for i in range(len(entries))),
        native_dim=len(entries),
        horizon=KEYPOSES if name == "keypose" else None,
        rest=(*(0.0,) * (len(entries) - 1), 1.0) if name in ("ee_delta", "native") else None,
    )
    for name, entries in _MODES.items()
}

_PROPRIO = {
    "eef": EEF_PROPRIO,
    "joints": joints_proprio(7),
}

CAMERAS = {
    "primary": Camera("front", note="from beyond the table, towards the robot"),
    "wrist": Camera("wrist", note="on the hand, looking along the fingers"),
    "left_shoulder": Camera("left_shoulder", note="above the robot's left shoulder"),
    "right_shoulder": Camera("right_shoulder", note="above the robot's right shoulder"),
    "overhead": Camera("overhead", note="high above the robot"),
}


def make_layout(state_dim: int) -> Callable[[Task, Mapping[str, Any]], Layout]:
    """Return the `layout` of a simulator whose `state` has `state_dim` numbers."""
    layout = Layout(_ACTION_MODES, _PROPRIO, state_dim, CAMERAS, "Panda")

    def get_layout(task: Task, keywords: Mapping[str, Any]) -> Layout:
        del task, keywords  # the same for all
        return layout

    return get_layout


STEPS = """\
To run RLBench in its original simulator (Linux only; RLBench is licensed for non-commercial \
academic use and CoppeliaSim Edu for education, so read both licences first):
1. Download https://downloads.coppeliarobotics.com/V4_1_0/\
CoppeliaSim_Edu_V4_1_0_Ubuntu20_04.tar.xz and unpack it (PyRep fails with 4.5 and up).
2. In the shell, before Python starts:
   export COPPELIASIM_ROOT=/absolute/path/of/CoppeliaSim_Edu_V4_1_0_Ubuntu20_04
   export LD_LIBRARY_PATH=$COPPELIASIM_ROOT:$LD_LIBRARY_PATH
   export QT_QPA_PLATFORM_PLUGIN_PATH=$COPPELIASIM_ROOT
   echo 'allowOldEduRelease=7501' >> $COPPELIASIM_ROOT/system/usrset.txt
3. pip uninstall pyrep; pip install git+https://github.com/stepjam/PyRep.git \
git+https://github.com/stepjam/RLBench.git (the `pyrep` of PyPI is another package)
4. It draws through an X server with GLX, also off-screen. Without a display:
   Xvfb :99 -screen 0 1280x1024x24 +extension GLX & export DISPLAY=:99
They may also be installed for another Python: gym.make(..., simulator="coppeliasim", \
python="/path/of/that/python")."""


def find_coppeliasim_obstacle() -> str | None:
    """Return what RLBench in CoppeliaSim lacks here and the steps to get it, or None.

    Imports nothing: importing RLBench takes seconds and loads CoppeliaSim's library.
    """
    lacks = [*_find_lacking_packages(), *_find_lacking_settings()]
    if not lacks:
        return None
    return f"the simulator 'coppeliasim' needs {'; '.join(lacks)}.\n{STEPS}"


def _find_lacking_packages() -> list[str]:
    lacks = []
    if _find_folders("rlbench") is None:
        lacks.append("the package 'rlbench', which is not installed")
    folders = _find_folders("pyrep")
    if folders is None:
        lacks.append("the package 'pyrep' (PyRep), which is not installed")
    elif not any((folder / "backend" / "sim.py").is_file() for folder in folders):
        where = ", ".join(str(folder) for folder in folders) or "a single file"
        lacks.append(f"the package 'pyrep' that is PyRep, not the other of that name ({where})")
    return lacks


def _find_folders(package: str) -> list[Path] | None:
    """Return the folders of a package without importing it, None where it is not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a half-removed module
        return None
    if spec is None:
        return None
    return [Path(folder) for folder in spec.submodule_search_locations or ()]


def _find_lacking_settings() -> list[str]:
    lacks = []
    root = os.environ.get("COPPELIASIM_ROOT")
    if not root:
        lacks.append("the environment variable COPPELIASIM_ROOT, which is not set")
    elif not os.path.isabs(root):
        lacks.append(f"an absolute path in COPPELIASIM_ROOT, which is {root!r}")
    elif not any(Path(root).glob("libcoppeliaSim.so*")):
        lacks.append(f"libcoppeliaSim.so in COPPELIASIM_ROOT, and {root!r} does not hold it")
    if not os.environ.get("DISPLAY"):
        lacks.append("an X display, and the environment variable DISPLAY is not set")
    return lacks


SUITE = Suite(
    name="RLBench",
    tasks=TASKS,
    simulators=(
        SimulatorInfo(
            "coppeliasim",
            "vla_gym.suites.coppeliasim:CoppeliaSimulator",
            distributions=("rlbench", "pyrep"),
            find_obstacle=lambda keywords: find_coppeliasim_obstacle(),
            layout=make_layout(COPPELIASIM_STATE_DIM),
        ),
        SimulatorInfo(
            "rlbench-twin",
            "vla_gym.twins.rlbench.simulator:RLBenchTwin",
            ("mujoco", "robosuite", "fast_simplification"),
            "rlbench-twin",
            ("mujoco", "robosuite"),
            tasks=TWIN_TASKS,
            layout=make_layout(TWIN_STATE_DIM),
            stand_in_for="coppeliasim",
            perturbs=("camera", "light"),
        ),
    ),
    control_hz=CONTROL_HZ,
    terminate_on_success=True,
    layout=make_layout(COPPELIASIM_STATE_DIM),
    reward="RLBench's sparse reward: 1 in a step that ends with the task solved, else 0",
    keywords={
        "on_invalid_action": Keyword(
            "continue",
            ("continue", "terminate"),
            "what an action does that the simulator refuses (no inverse kinematics, no path, "
            "outside the workspace): 'continue' leaves everything as it is, 'terminate' ends the "
            "episode, as in PerAct's protocol; both give reward 0 and info['action_failed']",
        ),
        "collision_checking": Keyword(
            False,
            (False, True),
            "whether the planner of keypose avoids collisions; other modes have none",
        ),
    },
    options={"variation": "number of the task's variation; drawn from the seed where not given"},
)
