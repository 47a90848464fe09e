"""robosuite 1.5.2: 19 manipulation tasks with one or two arms, seven robots.

What differs from using robosuite directly, and why:

- `reset(seed)` means something: the episode is a function of the seed alone. It is bit-equal to
  `env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state; env.reset()` on
  an upstream env with `hard_reset=True` and `has_offscreen_renderer=True` (its samplers keep the
  Generator object of their first episode: replacing `env.rng` would not reach them). One exception:
  NutAssemblySingle and PickPlaceSingle upstream draw their object from a Python set of names, whose
  order changes from process to process; here the names are sorted before the draw.
- No GL of robosuite's: pictures come from `vla_gym.rendering` and equal upstream's own pixels.
- Gripper +1 opens in `ee_delta`; natively +1 closes, for every robot here.
- The controller's frame: OSC_POSE takes deltas in the frame of the site `robot0_right_center`
  (controllers/composite/composite_controller.py, `get_controller_base_pose`). It is fixed to the
  robot's base for five robots. For IIWA and XArm7 it sits on the first moving link and turns with
  the first joint; there `ee_delta` is turned into that frame before each step. In two-arm tasks
  each arm has its own base frame; the two face each other. Deltas count from where the end
  effector is, not from the last goal.
- An episode goes on after success, except in Wipe, which upstream ends on success, on contact of
  the arm with the table and near a joint limit.
- Wipe's reward is scaled by the horizon: upstream's env is made with ours, 500.

`state` is in the world frame, where the robot's base stands at about x = -0.56 m, z = 0.91 m.
Positions in `proprio` and `state` are upstream's: those of the last physics step's kinematics,
2 ms before the joint positions beside them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import (
    EE_DELTA,
    EEF_PROPRIO,
    ee_delta_entries,
    eef_proprio,
    joints_proprio,
    prefix_entries,
    two_arms,
)
from vla_gym.deps import require
from vla_gym.errors import InvalidOption, SimulatorCrashed, UnknownName
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
from vla_gym.suites.robosuite_models import KeptModel
from vla_gym.suites.robosuite_steps import speed_up
from vla_gym.suites.robosuite_tasks import DRAWN_TARGETS, TASKS, wordings
from vla_gym.suites.upstream import keep_gl_choice, quiet

CONTROL_HZ = 20.0
POSITION_M = 0.05
ROTATION_RAD = 0.5
"""OSC_POSE `output_max` of controllers/config/robots/default_*.json and of basic.json."""

WORKSPACE_M = (0.0, 0.0, 0.85)
"""Where moved cameras look and lights turn about: above the table's middle, in the world."""

HIDDEN_GEOM_GROUPS = (0,)
"""Collision geoms; environments/base.py `_reset_internal` hides group 0 and shows group 1."""


@dataclass(frozen=True)
class _Robot:
    """What must be known of a robot without starting it.

    Attributes:
        joints: number of arm joints.
        gripper_joints: number of joints of its default gripper.
        opening: (index of a gripper joint, position closed on nothing, position open) [rad or m];
            the opening is the mean over them. Measured: each gripper driven to both ends in Lift.
        turning_origin: whether the controller's frame turns with the first joint.
    """

    joints: int
    gripper_joints: int
    opening: tuple[tuple[int, float, float], ...]
    turning_origin: bool = False


_ROBOTIQ_85 = ((0, 0.51, -0.027), (3, 0.51, -0.027))

ROBOTS = {
    "Panda": _Robot(7, 2, ((0, 0.0, 0.04), (1, 0.0, -0.04))),
    "Sawyer": _Robot(7, 2, ((0, -0.0115, 0.0115), (1, 0.0115, -0.0115))),
    "IIWA": _Robot(7, 6, ((0, 0.49, 0.014), (3, -0.47, -0.012)), turning_origin=True),
    "UR5e": _Robot(6, 6, _ROBOTIQ_85),
    "Kinova3": _Robot(7, 6, _ROBOTIQ_85),
    "Jaco": _Robot(7, 6, ((0, 0.0, 1.51), (2, 0.0, 1.51), (4, 0.0, 1.51))),
    "XArm7": _Robot(7, 6, ((0, 0.85, 0.0), (3, 0.85, 0.0)), turning_origin=True),
}
"""Robot -> its numbers, from models/robots/manipulators and models/grippers of robosuite 1.5.2."""

REFUSED = {
    ("TwoArmHandover", "XArm7"): "robosuite 1.5.2 names finger pads for its gripper that its model "
    "does not have (models/grippers/xarm7_gripper.py), so that no grasp, and with it no handover, "
    "is ever seen",
    ("Wipe", "Sawyer"): "in its initial pose the arm touches something, so that robosuite 1.5.2 "
    "ends every episode after its first step",
}
"""(task, robot) -> why the two cannot be combined."""

OBJECT_STATE_DIM = {
    "Lift": 10,
    "Stack": 23,
    "Door": 14,
    "NutAssembly": 28,
    "NutAssemblySingle": 15,
    "NutAssemblySquare": 14,
    "NutAssemblyRound": 14,
    "PickPlace": 56,
    "PickPlaceSingle": 15,
    "PickPlaceMilk": 14,
    "PickPlaceBread": 14,
    "PickPlaceCereal": 14,
    "PickPlaceCan": 14,
    "Wipe": 8,
    "ToolHang": 44,
    "TwoArmLift": 19,
    "TwoArmPegInHole": 17,
    "TwoArmHandover": 16,
    "TwoArmTransport": 41,
}
"""Length of upstream's `object-state`; it does not depend on the robot."""

_NO_GRIPPER = ("Wipe", "TwoArmPegInHole")

_FIRST_BUILD_DIFFERS = ("Wipe",)
"""Tasks whose first model build makes a draw that later ones do not (Wipe's table height), so that
the first episode needs a second build to equal all later ones of its seed."""


def count_arms(task: str) -> int:
    """Return how many arms a task has: 1 or 2."""
    return 2 if task.startswith("TwoArm") else 1


def compute_state_dim(task: str, robot: str) -> int:
    """Return the length of `state`: each arm's `proprio-state`, then `object-state`.

    Per arm: joint positions, cosines, sines, velocities and accelerations, end-effector position
    and two quaternions, gripper positions and velocities; Wipe adds one contact flag.
    """
    parts = ROBOTS[robot]
    gripper = 0 if task in _NO_GRIPPER else 2 * parts.gripper_joints
    per_arm = 5 * parts.joints + 11 + gripper + (task == "Wipe")
    return count_arms(task) * per_arm + OBJECT_STATE_DIM[task]


def _make_cameras(task: str) -> dict[str, Camera]:
    cameras = {
        "primary": Camera("agentview", note="from the front, towards the robot"),
        "wrist": Camera("robot0_eye_in_hand", note="on the (first) arm's hand"),
    }
    if count_arms(task) == 2:
        cameras["primary"] = Camera("agentview", note="from the side, first arm on the left")
        cameras["wrist1"] = Camera("robot1_eye_in_hand", note="on the second arm's hand")
    names = ["frontview", "birdview"]
    if not task.startswith("PickPlace"):
        names.append("sideview")
    if task == "TwoArmTransport":
        names += ["shouldercamera0", "shouldercamera1"]
    names += [f"robot{arm}_robotview" for arm in range(count_arms(task))]
    return cameras | {name: Camera(name) for name in names}


def _layout(task: Task, keywords: Mapping[str, Any]) -> Layout:
    robot = keywords["robot"]
    reason = REFUSED.get((task.native, robot))
    if reason is not None:
        valid = [name for name in ROBOTS if (task.native, name) not in REFUSED]
        raise InvalidOption(
            f"robot={robot!r} cannot do {SUITE.id(task.name)}: {reason}. Valid: {', '.join(valid)}"
        )
    joints = ROBOTS[robot].joints
    gripper = task.native not in _NO_GRIPPER
    # models/grippers/*.py, format_action: the sign, times a speed, moves the fingers' command.
    # Panda and most others take 10 steps from shut to open, Jaco 200.
    note = "; the sign alone counts, 0 holds the fingers where they are"
    entries = ee_delta_entries(POSITION_M, ROTATION_RAD, note)
    native = tuple(
        Entry(name, unit, "controller base", scale)
        for name, unit, scale in zip(
            EE_DELTA[:6],
            ("m",) * 3 + ("rad",) * 3,
            (POSITION_M,) * 3 + (ROTATION_RAD,) * 3,
            strict=True,
        )
    )
    proprio_joints = joints_proprio(joints)
    if gripper:
        native += (Entry("gripper", note="+1 closes, -1 opens: opposite to ee_delta"),)
        gripper_target: tuple[int, float] | None = (6, -1.0)
    else:
        entries = (*entries[:-1], Entry("gripper", note="ignored: the tool is fixed to the hand"))
        gripper_target = None
    modes = {
        "ee_delta": ActionMode(
            entries,
            (*((i, 1.0) for i in range(6)), gripper_target),
            native_dim=len(native),
            rest=(0.0,) * len(entries),
        ),
        "native": ActionMode(
            native,
            tuple((i, 1.0) for i in range(len(native))),
            native_dim=len(native),
            rest=(0.0,) * len(native),
        ),
    }
    proprio: dict[str, tuple[Entry, ...]] = {"eef": EEF_PROPRIO, "joints": proprio_joints}
    if count_arms(task.native) == 2:
        modes = {name: two_arms(mode) for name, mode in modes.items()}
        proprio = {
            form: (*prefix_entries("arm0_", parts), *prefix_entries("arm1_", parts))
            for form, parts in proprio.items()
        }
    return Layout(
        action_modes=modes,
        proprio=proprio,
        state_dim=compute_state_dim(task.native, robot),
        cameras=_make_cameras(task.native),
        robot=robot,
    )


class SortedGenerator(np.random.Generator):
    """A Generator that sorts names before it draws one of them, and is otherwise the same.

    Upstream calls `rng.choice(list(set_of_names))` (environments/manipulation/nut_assembly.py and
    pick_place.py, `_reset_internal`); a set's order follows the process's hash seed.
    """

    def choice(self, a: Any, *args: Any, **keywords: Any) -> Any:
        """Draw from `a`, sorted first if it is a list of strings."""
        if isinstance(a, list) and all(isinstance(item, str) for item in a):
            a = sorted(a)
        return super().choice(a, *args, **keywords)


def _make_state(seed: int) -> Mapping[str, Any]:
    return np.random.default_rng(seed).bit_generator.state


LOGGER = "robosuite_logs"
"""Says notices: private macros, optional packages, joint limits."""


def _import_robosuite() -> Any:
    """Import robosuite and undo what it does to the environment.

    utils/binding_utils.py sets MUJOCO_GL=egl on Linux whenever it is not osmesa or glx. That would
    overrule the user's choice and keep `vla_gym.rendering` from trying OSMesa where EGL fails.
    """
    with keep_gl_choice(), quiet(LOGGER):
        return require("robosuite", "robosuite", "the robosuite suite")


_kept: WeakValueDictionary[tuple[str, str], KeptModel] = WeakValueDictionary()
"""(task, robot) -> model of one env of this process, as long as an env keeps it."""

_ROBOTS_LOCK = threading.Lock()


@contextlib.contextmanager
def _uncompiled_robots() -> Iterator[None]:
    """Keep this thread's robots from being compiled alone, beside the scene that they are part of.

    Upstream does so in every reset (models/robots/robot_model.py, `set_mujoco_model`), for
    controllers of whole bodies only.
    """
    from robosuite.models.robots.robot_model import RobotModel

    with _ROBOTS_LOCK:
        compile_robot, thread = RobotModel.set_mujoco_model, threading.get_ident()

        def skip(self: RobotModel, mujoco_model: Any = None) -> None:
            if threading.get_ident() != thread:
                compile_robot(self, mujoco_model)

        RobotModel.set_mujoco_model = skip
        try:
            yield
        finally:
            RobotModel.set_mujoco_model = compile_robot


@contextlib.contextmanager
def skip(env: Any, *names: str) -> Iterator[None]:
    """Have these methods of one env do nothing inside."""
    own = {name: vars(env)[name] for name in names if name in vars(env)}
    vars(env).update({name: lambda: None for name in names})
    try:
        yield
    finally:
        for name in names:
            del vars(env)[name]
        vars(env).update(own)


class RobosuiteSimulator:
    """One robosuite task. See the module's docstring.

    The XML is built anew at every reset, as upstream does by default: sizes are drawn at that time.
    It is compiled once, see `vla_gym.suites.robosuite_models`. At the first reset upstream would
    build it twice (in its constructor and in `reset`); here the constructor's build is the first
    episode's.
    """

    _renderer_class = Renderer

    def __init__(self, setup: Setup) -> None:
        self._robosuite = _import_robosuite()
        self._setup = setup
        self._workspace_m = WORKSPACE_M
        self._arms = count_arms(setup.native_task)
        self._robot = ROBOTS[setup.keywords["robot"]]
        self._cameras = _make_cameras(setup.native_task)
        self._turn = setup.action_mode == "ee_delta" and self._robot.turning_origin
        self._rng = SortedGenerator(np.random.PCG64(0))
        self._env: Any = None
        self._sim: Any = None  # upstream's MjSim, which outlives its episodes here
        self._model: Any = None  # KeptModel
        self._renderer: Renderer | None = None
        self._change = AS_IS

    def reset(self, seed: int, options: Mapping[str, Any]) -> Frame:
        """Start the episode of `seed`; see the module's docstring for what it equals upstream."""
        del options  # the suite has none; VLAEnv has refused any
        self._rng.bit_generator.state = _make_state(seed)
        with quiet(LOGGER):
            observation = self._start() if self._env is None else self._restart()
        speed_up(self._env)
        return self._frame(observation, 0.0, False)

    def step(self, action: NDArray[np.float32]) -> Frame:
        """Apply one action in upstream's layout, each entry in [-1, 1]."""
        vector = action.astype(np.float64)
        if self._turn:
            vector = self._to_controller_frame(vector)
        with quiet(LOGGER):
            observation, reward, done, _ = self._env.step(vector)
        if not np.isfinite(reward):
            raise SimulatorCrashed(
                f"robosuite {self._setup.native_task} returned the reward {reward}: its simulation "
                "has become unstable; reset to go on"
            )
        return self._frame(observation, float(reward), bool(done))

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return a camera's picture: uint8 (height, width, 3), upright."""
        if camera not in self._cameras:
            raise UnknownName("camera", camera, self._cameras, self._setup.native_task)
        return self._render_all({camera: (height, width)})[camera]

    def _render_all(self, sizes: Mapping[str, tuple[int, int]]) -> dict[str, NDArray[np.uint8]]:
        """Return pictures: camera -> uint8 (height, width, 3)."""
        if not sizes:
            return {}
        if self._renderer is None:
            sim = self._env.sim
            self._renderer = self._renderer_class(
                sim.model._model,
                sim.data._data,
                self._setup.render_quality,
                HIDDEN_GEOM_GROUPS,
                focus_m=self._workspace_m,
            )
        shots = [(self._cameras[camera].native, *size) for camera, size in sizes.items()]
        return dict(zip(sizes, self._renderer.render_all(shots, self._change), strict=True))

    def perturb(self, change: VisualChange) -> None:
        """See `vla_gym.suite.PerturbableSimulator`."""
        self._change = change.rename(self._cameras)

    def close(self) -> None:
        """Free the model, its data and the GL buffers."""
        self._drop_renderer()
        env, self._env, self._sim, self._model = self._env, None, None, None
        if env is not None:
            env.close()

    def _start(self) -> Any:
        """Build upstream's env with the seeded generator and return its first observation."""
        start = self._rng.bit_generator.state
        keywords: dict[str, Any] = {}
        robot = self._setup.keywords["robot"]
        if self._turn:
            keywords["controller_configs"] = self._make_wide_config(robot)
        env = self._build(
            robots=[robot] * self._arms if self._arms > 1 else robot,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=True,
            reward_shaping=True,
            control_freq=CONTROL_HZ,
            horizon=TASKS[self._setup.task].horizon,
            ignore_done=True,
            hard_reset=True,
            renderer="mujoco",  # the other choice opens mujoco.viewer
            seed=self._rng,  # default_rng() returns a Generator as it is
            **keywords,
        )
        self._env = env
        if self._setup.native_task in _FIRST_BUILD_DIFFERS:
            self._rng.bit_generator.state = start
            return self._restart()
        # The constructor has just loaded the model and drawn the initial state.
        with skip(env, "_load_model", "_initialize_sim", "_reset_internal", "_destroy_sim"):
            return env.reset()

    def _restart(self) -> Any:
        """Return the first observation of upstream's hard reset, which keeps its compiled model."""
        with skip(self._env, "_destroy_sim"):
            return self._env.reset()

    def _build(self, **keywords: Any) -> Any:
        """Return upstream's env, each of whose models is run forward twice before an episode.

        Upstream's own off-screen renderer does so (utils/binding_utils.py, `MjRenderContext`). The
        solver starts from what the last run found, so that the number of runs shows in the last
        bits of all that follows; with the second run an episode here, with pictures or without, is
        the episode of an upstream env that can render.
        """
        task = self._find_class()
        env = task.__new__(task)
        load_robots, compile_model = env._load_robots, env._initialize_sim

        def load_uncompiled_robots() -> None:
            with _uncompiled_robots():
                load_robots()

        def initialize() -> None:
            if self._model is None:
                self._copy_model()
            if self._model is not None and self._model.become(env.model.root, self._sim.data._data):
                env.sim = self._sim
                env.sim.forward()
                env.initialize_time(env.control_freq)
            else:
                self._drop_renderer()
                compile_model()
                self._sim = env.sim
                self._model = KeptModel(env.model.root, env.sim.model._model)
                _kept[self._setup.native_task, self._setup.keywords["robot"]] = self._model
            env.sim.forward()

        env._load_robots, env._initialize_sim = load_uncompiled_robots, initialize
        self._choose_observables(env)
        env.__init__(**keywords)
        return env

    def _choose_observables(self, env: Any) -> None:
        """Keep upstream's env, not initialised yet, from computing what nobody reads."""
        if not self._setup.state:  # in every physics step
            env._setup_observables = dict

    def _find_class(self) -> Any:
        """Return the class of upstream's env."""
        return self._robosuite.environments.REGISTERED_ENVS[self._setup.native_task]

    def _copy_model(self) -> None:
        """Take a copy of the model that another env of this process keeps for the same task."""
        from robosuite.utils.binding_utils import MjSim

        other = _kept.get((self._setup.native_task, self._setup.keywords["robot"]))
        if other is not None:
            self._model = other.copy()
            self._sim = MjSim(self._model.model)

    def _make_wide_config(self, robot: str) -> Any:
        """Return the default controller with its range doubled at the same scale.

        A delta that is turned into another frame can have an entry beyond 1, which the default
        would clip, changing its direction.
        """
        config = self._robosuite.load_composite_controller_config(robot=robot)
        arm = config["body_parts"]["right"]
        for bound in ("input_max", "input_min"):
            arm[bound] = 2 * arm[bound]
        for bound in ("output_max", "output_min"):
            arm[bound] = [2 * value for value in arm[bound]]
        return [config] * self._arms if self._arms > 1 else config

    def _to_controller_frame(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn deltas from each robot's base frame to its controller's."""
        vector = vector.copy()
        size = len(vector) // self._arms
        for index, robot in enumerate(self._env.robots):
            _, origin = robot.composite_controller.get_controller_base_pose("right")
            turn = origin.T @ robot.base_ori
            for start in (size * index, size * index + 3):
                vector[start : start + 3] = turn @ vector[start : start + 3]
        return vector

    def _frame(self, observation: Mapping[str, Any], reward: float, terminated: bool) -> Frame:
        setup = self._setup
        proprio = np.concatenate([self._read_arm(robot) for robot in self._env.robots])
        state = None
        if setup.state:
            names = [f"robot{i}_proprio-state" for i in range(self._arms)] + ["object-state"]
            state = np.concatenate([observation[name] for name in names])
        images = self._render_all({name: (size, size) for name, size in setup.images.items()})
        target = DRAWN_TARGETS.get(setup.task)
        return Frame(
            images,
            proprio,
            state,
            reward,
            bool(self._env._check_success()),
            terminated,
            instructions=wordings(target[str(self._env.obj_to_use)]) if target else (),
        )

    def _read_arm(self, robot: Any) -> NDArray[np.float64]:
        """Return one arm's proprio.

        The end effector is the gripper's `grip_site`, the point that OSC_POSE moves, in the frame
        of the robot's root body (`robot0_base`).
        """
        data = self._env.sim.data
        opening = 0.0
        if robot.has_gripper["right"] and robot.gripper["right"].dof > 0:
            fingers = data.qpos[robot._ref_gripper_joint_pos_indexes["right"]]
            shares = [(fingers[i] - shut) / (wide - shut) for i, shut, wide in self._robot.opening]
            opening = min(max(float(np.mean(shares)), 0.0), 1.0)
        if self._setup.proprio == "joints":
            return np.concatenate([robot._joint_positions, robot._joint_velocities, [opening]])
        site = robot.eef_site_id["right"]
        base = robot.base_ori
        position = base.T @ (data.site_xpos[site] - robot.base_pos)
        rotation = base.T @ data.site_xmat[site].reshape(3, 3)
        return eef_proprio(position, rotation, opening)

    def _drop_renderer(self) -> None:
        renderer, self._renderer = self._renderer, None
        if renderer is not None:
            renderer.close()


SUITE = Suite(
    name="Robosuite",
    tasks=TASKS,
    simulators=(
        SimulatorInfo(
            "robosuite",
            "vla_gym.suites.robosuite:RobosuiteSimulator",
            ("robosuite", "mujoco"),
            "robosuite",
            ("robosuite", "mujoco"),
            perturbs=("camera", "light"),
        ),
    ),
    control_hz=CONTROL_HZ,
    terminate_on_success=False,
    layout=_layout,
    reward="robosuite 1.5.2 shaped reward (reward_shaping=True, reward_scale=1): in [0, 1], 1 when "
    "solved; Wipe's may be negative; ToolHang and TwoArmTransport have no shaping upstream: 0 or 1",
    keywords={
        "robot": Keyword(
            "Panda",
            tuple(ROBOTS),
            "the arm; two-arm tasks have two of them. XArm7: upstream never sees its grasps, so "
            "that the rewards for grasping stay 0",
        )
    },
)
