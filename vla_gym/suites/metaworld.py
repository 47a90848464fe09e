"""Meta-World v3 (metaworld 3.1.1): 50 tasks of a Sawyer arm on a table.

What is upstream's, bit for bit: `state` (the 39-D observation with the goal in it), reward, success
and pictures. An episode equals that of a freshly constructed upstream env after `set_task` and
`reset`. What is ours: the goal is drawn from the episode's seed instead of by NumPy's global
generator, the pictures stand upright, actions and proprio follow the contract.

Frames: the robot's base (body `base`) stands at the world's origin, unturned, so that base frame
and world frame are one. +y points away from the robot across the table, +x to its right, z up.
"""

from __future__ import annotations

import copy
import math
import pickle
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import (
    EEF_PROPRIO,
    check_index,
    ee_delta_entries,
    eef_proprio,
    joints_proprio,
)
from vla_gym.deps import require
from vla_gym.errors import SimulatorCrashed, UnknownName
from vla_gym.rendering import Renderer
from vla_gym.suite import (
    AS_IS,
    ActionMode,
    Camera,
    Entry,
    Frame,
    Keyword,
    Layout,
    Setup,
    SimulatorInfo,
    Suite,
    Task,
    VisualChange,
)
from vla_gym.suites.metaworld_benchmarks import BENCHMARKS
from vla_gym.suites.metaworld_goals import GOALS, SPLITS, load_goals
from vla_gym.suites.metaworld_tasks import TASKS

__all__ = ["SUITE", "MetaWorldSimulator"]

STEP_M = 0.01
"""Largest translation per control step and axis [m]: `action_scale` of sawyer_xyz_env.py."""

CONTROL_HZ = 80.0
"""5 physics steps of 0.0025 s: `frame_skip` and `render_fps` of sawyer_xyz_env.py."""

STATE_DIM = 39

WORKSPACE_M = (0.0, 0.6, 0.1)
"""Middle of what tasks use of the table, where moved cameras look and lights turn about."""

LEROBOT_CORNER2_M = (0.75, 0.075, 0.7)
"""Where LeRobot puts corner2: `model.cam_pos[2]` in lerobot 0.6.2, envs/metaworld.py."""

_JOINTS = tuple(f"right_j{i}" for i in range(7))

# Ranges of the joints r_close and l_close (assets/objects/assets/xyz_base.xml). Free fingers rest
# at r - l = -0.0003 m after 80 steps of opening and at 0.0703 m after 80 of closing (measured).
_FINGERS_TRAVEL_M = 0.07

_CAMERAS = {
    "primary": Camera("corner2", "180 degrees", "from the right, across the table"),
    "wrist": Camera("gripperPOV", note="on the hand, looking down; up is away from the robot"),
    "topview": Camera("topview", note="from above; up is away from the robot"),
    "corner": Camera("corner", "180 degrees", "from the robot's left"),
    "corner3": Camera("corner3", "180 degrees", "from the right, steeply down"),
    "corner4": Camera("corner4", "180 degrees", "from the right, near: LeRobot's corner2"),
    "behindGripper": Camera("behindGripper", note="behind the hand, moves with it"),
}
"""Upstream hangs its corner cameras upside down. A turn by 180 degrees mirrors nothing."""

# Arrays of the model that an episode may change. Meshes and textures are big and never change.
_MODEL_PREFIXES = (
    "actuator_",
    "body_",
    "cam_",
    "dof_",
    "eq_",
    "geom_",
    "jnt_",
    "light_",
    "mat_",
    "qpos",
    "site_",
    "tendon_",
)


def _layout(task: Task, keywords: Mapping[str, Any]) -> Layout:
    del task
    native = tuple(Entry(name, "m", "world = robot base", STEP_M) for name in ("dx", "dy", "dz"))
    cameras = dict(_CAMERAS)
    if keywords["camera_preset"] == "lerobot":
        cameras["primary"] = Camera("corner2", "180 degrees", f"moved to {LEROBOT_CORNER2_M} m")
    opening = EEF_PROPRIO[-1]
    return Layout(
        action_modes={
            "ee_delta": ActionMode(
                ee_delta_entries(
                    STEP_M, None, "; the value is the fingers' effort: at 0 they rest a third open"
                ),
                ((0, 1.0), (1, 1.0), (2, 1.0), None, None, None, (3, -1.0)),
                native_dim=4,
                rest=(*(0.0,) * 6, 1.0),
            ),
            "native": ActionMode(
                (*native, Entry("gripper", note="+1 closes, -1 opens: opposite to ee_delta")),
                tuple((i, 1.0) for i in range(4)),
                native_dim=4,
                rest=(0.0, 0.0, 0.0, -1.0),
            ),
        },
        proprio={
            "eef": EEF_PROPRIO,
            "joints": joints_proprio(7, opening),
        },
        state_dim=STATE_DIM,
        cameras=cameras,
        robot="Sawyer",
    )


class MetaWorldSimulator:
    """One Meta-World task. See the module's docstring.

    Upstream's envs carry things from one episode into the next: `reset` simulates 50 steps of the
    hand with the model as the last goal has left it before it clears the simulation, and tasks keep
    fields from then (in push-v3 and push-back-v3 the height of the goal's marker differs). So each
    reset first puts model, simulation and fields back to where the constructor has left them.

    Upstream's first observation and picture are kept as they are, though some tasks set joints
    after their last `mj_forward`: window-close-v3 shows its window closed until the first step, and
    seven other tasks show parts up to 0.5 mm from where the first step begins.
    """

    def __init__(self, setup: Setup) -> None:
        metaworld = require("metaworld", "metaworld", "the Meta-World suite")
        self._mujoco = require("mujoco", "metaworld", "the Meta-World suite")
        self._task_class = require("metaworld.types", "metaworld", "the Meta-World suite").Task
        self._setup = setup
        self._goals = load_goals(setup.native_task, setup.keywords["split"])
        self._env: Any = metaworld.ALL_V3_ENVIRONMENTS[setup.native_task]()
        # Upstream refuses to step beyond 500; how long an episode lasts is gym.make's business.
        self._env.max_path_length = sys.maxsize
        model, data = self._env.model, self._env.data
        if setup.keywords["camera_preset"] == "lerobot":
            model.camera("corner2").pos = LEROBOT_CORNER2_M
        self._start_model = {
            name: value.copy()
            for name in dir(model)
            if name.startswith(_MODEL_PREFIXES)
            and isinstance(value := getattr(model, name), np.ndarray)
        }
        fields = vars(self._env)
        # Views of the simulation's memory (init_left_pad, init_right_pad) must stay views of it.
        self._shared = [
            value
            for value in fields.values()
            if not isinstance(value, np.ndarray | list | dict)
            or (isinstance(value, np.ndarray) and value.base is not None)
        ]
        self._start_fields = self._copy_fields(fields)
        self._goal = 0
        self._renderer: Renderer | None = None
        self._change = AS_IS
        # Views of the simulation's memory, which stays where it is.
        hand = data.body("hand")
        self._hand_position, self._hand_rotation = hand.xpos, hand.xmat.reshape(3, 3)
        self._positions, self._velocities = data.qpos, data.qvel
        self._qpos = np.array([model.joint(name).qposadr[0] for name in _JOINTS])
        self._qvel = np.array([model.joint(name).dofadr[0] for name in _JOINTS])
        self._right, self._left = (model.joint(f"{side}_close").qposadr[0] for side in "rl")

    def reset(self, seed: int, options: Mapping[str, Any]) -> Frame:
        """Start the episode of `options["goal"]`, else of a goal drawn from `seed`.

        `success` is False: upstream judges steps only.
        """
        if "goal" in options:
            self._goal = check_index(options["goal"], GOALS, "options['goal']")
        else:
            self._goal = int(np.random.default_rng(seed).integers(GOALS))
        self._restore()
        chosen = {
            "rand_vec": self._goals[self._goal].copy(),
            "env_cls": type(self._env),
            "partially_observable": False,
        }
        self._env.set_task(self._task_class(self._setup.native_task, pickle.dumps(chosen)))
        state, _ = self._env.reset()
        return self._frame(state, 0.0, False, {})

    def step(self, action: NDArray[np.float32]) -> Frame:
        """Apply dx, dy, dz, gripper in upstream's sign, each in [-1, 1]."""
        state, reward, _, _, info = self._env.step(action)
        if not math.isfinite(reward):
            raise SimulatorCrashed(
                f"Meta-World {self._setup.native_task} returned the reward {reward}: its "
                "simulation has become unstable; reset to go on"
            )
        measures = {name: float(value) for name, value in info.items() if name != "success"}
        return self._frame(state, float(reward), bool(info["success"]), measures)

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return a camera's picture: uint8 (height, width, 3), upright."""
        if camera not in _CAMERAS:
            raise UnknownName("camera", camera, _CAMERAS, self._setup.native_task)
        return self._render_all({camera: (height, width)})[camera]

    def _render_all(self, sizes: Mapping[str, tuple[int, int]]) -> dict[str, NDArray[np.uint8]]:
        """Return pictures: camera -> uint8 (height, width, 3)."""
        if not sizes:
            return {}
        if self._renderer is None:
            self._renderer = Renderer(
                self._env.model, self._env.data, self._setup.render_quality, focus_m=WORKSPACE_M
            )
        shots = [(_CAMERAS[camera].native, *size) for camera, size in sizes.items()]
        pictures = self._renderer.render_all(shots, self._change)
        return {
            camera: np.ascontiguousarray(pixels[::-1, ::-1]) if _CAMERAS[camera].turned else pixels
            for camera, pixels in zip(sizes, pictures, strict=True)
        }

    def perturb(self, change: VisualChange) -> None:
        """See `vla_gym.suite.PerturbableSimulator`."""
        self._change = change.rename(_CAMERAS)

    def close(self) -> None:
        """Free the model, its data and the GL buffers."""
        renderer, self._renderer = self._renderer, None
        if renderer is not None:
            renderer.close()
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _copy_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Copy the env's fields, all but those of `_shared`, keeping which of them are the same."""
        return copy.deepcopy(dict(fields), {id(value): value for value in self._shared})

    def _restore(self) -> None:
        """Put model, simulation and fields back to where the constructor has left them."""
        env = self._env
        for name, value in self._start_model.items():
            getattr(env.model, name)[...] = value
        fields = vars(env)
        fields.clear()
        fields.update(self._copy_fields(self._start_fields))
        self._mujoco.mj_resetData(env.model, env.data)
        self._mujoco.mj_forward(env.model, env.data)  # as the constructor does

    def _frame(
        self, state: NDArray[np.float64], reward: float, success: bool, measures: dict[str, float]
    ) -> Frame:
        sizes = {camera: (size, size) for camera, size in self._setup.images.items()}
        return Frame(
            self._render_all(sizes),
            self._read_proprio(),
            state if self._setup.state else None,
            reward,
            success,
            info={"goal": self._goal, **measures},
        )

    def _read_proprio(self) -> NDArray[np.float64]:
        """Return the proprio of the chosen form.

        The end effector is the body `hand`, whose position upstream observes and the action moves;
        the fingertips are 0.045 m below it.
        """
        spread = self._positions[self._right] - self._positions[self._left]
        opening = min(max(1.0 - float(spread) / _FINGERS_TRAVEL_M, 0.0), 1.0)
        if self._setup.proprio == "joints":
            joints = self._positions[self._qpos], self._velocities[self._qvel]
            return np.concatenate([*joints, [opening]])
        return eef_proprio(self._hand_position, self._hand_rotation, opening)


SUITE = Suite(
    name="MetaWorld",
    tasks=TASKS,
    simulators=(
        SimulatorInfo(
            "metaworld",
            "vla_gym.suites.metaworld:MetaWorldSimulator",
            ("metaworld", "mujoco"),
            "metaworld",
            ("metaworld", "mujoco"),
            perturbs=("camera", "light"),
        ),
    ),
    control_hz=CONTROL_HZ,
    terminate_on_success=False,
    layout=_layout,
    reward="metaworld 3.1.1, reward_function_version 'v2': dense, in [0, 10], 10 when solved",
    keywords={
        "split": Keyword(
            "train",
            SPLITS,
            "the 50 goals: MT1(seed=42).train_tasks or ML1(seed=42).test_tasks",
        ),
        "camera_preset": Keyword(
            "standard",
            ("standard", "lerobot"),
            "'lerobot': corner2 at (0.75, 0.075, 0.7) m, as in LeRobot's Meta-World images",
        ),
    },
    benchmarks=BENCHMARKS,
    # An evaluation of 50 episodes plays each goal of the split once, as published ones do.
    protocol_options=lambda task, seed: {"goal": seed % GOALS},
    options={"goal": f"number of the goal within the split, 0 to {GOALS - 1}"},
)
