"""CALVIN: 34 language-conditioned tasks at a play table, and five of them in a row.

In the original simulator (PyBullet, from the user's checkout of calvin_env) or in our MuJoCo twin.
This module is what is known without starting either; `simulator.py` is what an episode is, and
`table.py` what a simulator of it must offer. Facts of calvin_env 797142c and calvin fa03f01.

World frame: z up; +x right and +y away from the viewer who faces the table. The robot's base stands
left in front of the table, unturned, so that directions in base and world frame are the same. The
end effector is the point between the fingertips, 0.14 m from the flange; its z axis points out of
the hand.

Action modes, each entry in [-1, 1], one control step of 1/30 s:

- `ee_delta` (7): +1 is 0.02 m and 0.05 rad. Deltas add to a target pose; rotations (axis-angle,
  base frame) are applied after the present one. The target is kept within 0.08 m and 0.3 rad of
  where the end effector is.
- `native` (7): upstream's relative action, the `rel_actions` of its data sets: the same scales, but
  the rotation entries add to the target's Euler angles (extrinsic xyz) one by one, and the target
  runs ahead without bounds.

The gripper is open or closed: an entry above 0 opens, any other closes, also 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_gym.contract import EEF_PROPRIO, ee_delta_entries, joints_proprio
from vla_gym.errors import InvalidOption
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
from vla_gym.suites.calvin.chains import load_chains
from vla_gym.suites.calvin.checkout import find_commit, find_pybullet_obstacle, find_root
from vla_gym.suites.calvin.control import POSITION_M, ROTATION_RAD
from vla_gym.suites.calvin.scenes import CONTROL_HZ, SCENES
from vla_gym.suites.calvin.table import ROBOT_OBS_DIM, SCENE_OBS_DIM
from vla_gym.suites.calvin.tasks import CHAIN, TASKS

__all__ = ["SUITE"]

CHAIN_SCENE = "D"
"""The protocol's initial states are given in scene D's terms; upstream evaluates nowhere else."""

_GRIPPER_NOTE = ": above 0 opens, else closes; nothing in between"

_EE_DELTA = ee_delta_entries(POSITION_M, ROTATION_RAD, _GRIPPER_NOTE)

_NATIVE = (
    *_EE_DELTA[:3],
    *(
        Entry(
            name,
            "rad",
            "world",
            ROTATION_RAD,
            "adds to an extrinsic xyz Euler angle of the target",
        )
        for name in ("d_roll", "d_pitch", "d_yaw")
    ),
    _EE_DELTA[6],
)

_LAYOUT = Layout(
    action_modes={
        name: ActionMode(
            entries,
            tuple((i, 1.0) for i in range(7)),
            native_dim=7,
            rest=(*(0.0,) * 6, 1.0),
        )
        for name, entries in (("ee_delta", _EE_DELTA), ("native", _NATIVE))
    },
    proprio={
        "eef": EEF_PROPRIO,
        "joints": joints_proprio(7),
    },
    state_dim=ROBOT_OBS_DIM + SCENE_OBS_DIM,
    cameras={
        "primary": Camera("static", note="from the right in front of the table, narrow"),
        "wrist": Camera("gripper", note="on the hand, looking along the fingers"),
    },
    robot="Panda",
)


def _get_layout(task: Task, keywords: Mapping[str, Any]) -> Layout:
    if task.native == CHAIN and keywords["scene"] != CHAIN_SCENE:
        raise InvalidOption(
            f"VLA/CALVIN-Chain is played in scene {CHAIN_SCENE!r} alone, not in "
            f"{keywords['scene']!r}: its initial states are defined there. The single tasks, such "
            f"as VLA/CALVIN-OpenDrawer, run in all of {tuple(SCENES)}"
        )
    return _LAYOUT


def _choose_protocol_options(task: Task, seed: int) -> dict[str, Any]:
    return {"chain": seed % len(load_chains())} if task.native == CHAIN else {}


def _find_sources(keywords: Mapping[str, Any]) -> dict[str, str]:
    root = find_root(keywords["calvin_env_root"])
    commit = None if root is None else find_commit(root)
    return {} if commit is None else {"calvin_env": commit}


SUITE = Suite(
    name="CALVIN",
    tasks=TASKS,
    simulators=(
        SimulatorInfo(
            "pybullet",
            "vla_gym.suites.calvin.simulator:open_original",
            distributions=("pybullet",),
            defaults={"renderer": "tiny"},
            find_sources=_find_sources,
            find_obstacle=lambda keywords: find_pybullet_obstacle(keywords["calvin_env_root"]),
        ),
        SimulatorInfo(
            "calvin-twin",
            "vla_gym.twins.calvin.simulator:open_twin",
            ("mujoco", "robosuite", "fast_simplification"),
            "calvin-twin",
            ("mujoco", "robosuite"),
            defaults={"renderer": "mujoco"},
            stand_in_for="pybullet",
            perturbs=("camera", "light"),
        ),
    ),
    control_hz=CONTROL_HZ,
    terminate_on_success=True,
    layout=_get_layout,
    reward="CALVIN's sparse reward: 1 in a step that solves a task (each of a chain), else 0",
    keywords={
        "scene": Keyword("D", tuple(SCENES), "which of CALVIN's four play tables"),
        "renderer": Keyword(
            "auto",
            ("auto", "tiny", "egl", "mujoco"),
            "'tiny', the default of 'pybullet', is PyBullet's software renderer; 'egl' its OpenGL "
            "one, with which upstream's data sets were made (one env per process); 'mujoco' the "
            "twin's",
        ),
        "calvin_env_root": Keyword(
            None,
            None,
            "of simulator='pybullet' alone: folder of a checkout of calvin_env; None takes the "
            "environment variable CALVIN_ENV_ROOT",
            recorded=False,
        ),
    },
    options={
        "chain": "of the Chain: number of the evaluation chain, 0 to 999; drawn from the seed "
        "where not given",
        "robot_obs": "start from this state of the robot, shape (15,), upstream's layout",
        "scene_obs": "and this state of the scene, shape (24,), upstream's layout; both together",
    },
    protocol_options=_choose_protocol_options,
)
