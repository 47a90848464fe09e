"""RLBench in its original simulator: CoppeliaSim through PyRep and the user's own `rlbench`.

What is upstream's: scenes, physics, planning, success and the wordings of the instructions. Arm
modes are upstream's classes as they are: `JointVelocity` (native), `JointPosition`
(joint_position), `EndEffectorPoseViaIK` with deltas in the world frame (ee_delta) and
`EndEffectorPoseViaPlanning` (keypose). The gripper mode is `Discrete`, the only one that attaches
what is grasped: with the others a task that asks for a grasp is never solved. The arm moves first,
then the gripper.

What differs from using RLBench directly, and why:

- Upstream draws from the global generators of `numpy.random` and `random` (setup_chess). Here each
  simulator has streams of its own, seeded by the episode's seed, that take their place during a
  reset or a step. An episode starts as after `numpy.random.seed(seed); random.seed(seed);
  task.set_variation(v); task.reset()`. Two things stay out of reach: the planner that tests whether
  a placement can be reached draws for itself, and push_buttons takes the colours of its other
  buttons from a Python set, so that they follow the process's hash seed.
- If upstream gives up placing a task (40 tries), the reset is repeated with seeds derived from the
  episode's seed.
- Pictures come from the scene's own cameras at any size, only from those asked for. Depth, masks
  and point clouds are never drawn.
- An action that the simulator refuses is no error: see the keyword `on_invalid_action`.

One action takes more than one 50 ms step where the gripper closes or opens (about 4 and 14) and
where the arm moves to a pose (in ee_delta until it is there or stands still); `info["sim_steps"]`
says how many it took.

A process has one CoppeliaSim with one task in it. All simulators of this module share it: a reset
takes it over, and an episode of another env that was running is lost. For several at a time use
worker processes that are spawned, not forked. All calls must come from one thread: CoppeliaSim
belongs to the one that started it.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import random
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import eef_proprio
from vla_gym.errors import BrokenDependency, DependencyNotInstalled, SimulatorCrashed, UnknownName
from vla_gym.rotations import quaternion_to_matrix, vector_to_quaternion
from vla_gym.suite import Frame, Setup
from vla_gym.suites.rlbench import (
    BASE_POSITION_M,
    CAMERAS,
    FINGER_TRAVEL_M,
    STEPS,
    TASK_STATE_DIM,
    choose_variation,
    decode_ee_delta,
    decode_joint_position,
    decode_joint_velocity,
    decode_keypose,
    find_coppeliasim_obstacle,
)

__all__ = ["CoppeliaSimulator"]

PLACEMENTS = 5
"""Resets tried, each with upstream's own 40 placements, before a task counts as not placeable."""

MAX_SIM_STEPS = 2000
"""50 ms steps in one action (100 s) after which it counts as stuck: upstream has no limit."""

_SENSORS = {
    "front": "cam_front",
    "wrist": "cam_wrist",
    "left_shoulder": "cam_over_shoulder_left",
    "right_shoulder": "cam_over_shoulder_right",
    "overhead": "cam_overhead",
}
"""Camera -> name of its sensor in the scene: rlbench/backend/scene.py, `Scene.__init__`."""


def _import(module: str) -> Any:
    """Import a module of RLBench or PyRep."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # loading CoppeliaSim's library may raise anything
        obstacle = find_coppeliasim_obstacle()
        if obstacle is not None:
            raise DependencyNotInstalled(obstacle) from error
        raise BrokenDependency(
            f"RLBench is installed, but {module!r} cannot be imported ({type(error).__name__}: "
            f"{error}). LD_LIBRARY_PATH must hold COPPELIASIM_ROOT before Python starts.\n{STEPS}"
        ) from error


def _import_task(setup: Setup) -> Any:
    """Import the class of a task."""
    module = f"rlbench.tasks.{setup.native_task}"
    try:
        return getattr(importlib.import_module(module), setup.task)
    except (ModuleNotFoundError, AttributeError) as error:
        raise DependencyNotInstalled(
            f"the installed RLBench has no task {setup.native_task!r}. 106 tasks are in "
            "git+https://github.com/stepjam/RLBench.git; place_wine_at_rack_location, "
            "slide_block_to_color_target and sweep_to_dustpan_of_size only in "
            "git+https://github.com/MohitShridhar/RLBench.git@peract"
        ) from error


class _ActionMode:
    """Arm, then gripper: upstream's `MoveArmThenGripper` with an arm mode that can be exchanged.

    Upstream's `Environment` needs of an action mode what this class has. It also counts the steps.
    """

    def __init__(self, arm: Any, gripper: Any) -> None:
        self.arm_action_mode, self.gripper_action_mode = arm, gripper
        self.sim_steps = 0

    def action(self, scene: Any, action: NDArray[np.float64]) -> None:
        """Apply the action and count the 50 ms steps that it takes."""
        arm, gripper = self.arm_action_mode, self.gripper_action_mode
        keywords = {}
        if "ignore_collisions" in inspect.signature(arm.action).parameters:  # PerAct's fork
            keywords["ignore_collisions"] = not arm._collision_checking
        self.sim_steps = 0
        with self._counting(scene.pyrep):
            arm.action(scene, action[:-1], **keywords)
            gripper.action(scene, action[-1:])

    def action_shape(self, scene: Any) -> int:
        """Return the length of an action."""
        return int(np.prod(self.arm_action_mode.action_shape(scene))) + 1

    @contextlib.contextmanager
    def _counting(self, pyrep: Any) -> Iterator[None]:
        step = pyrep.step

        def count_and_step() -> None:
            if self.sim_steps >= MAX_SIM_STEPS:
                raise SimulatorCrashed(
                    f"an action did not end within {MAX_SIM_STEPS} steps of 50 ms: the arm neither "
                    "reaches its target nor stands still. Reset to go on"
                )
            self.sim_steps += 1
            step()

        pyrep.step = count_and_step  # on the object, in front of the class's method
        try:
            yield
        finally:
            del pyrep.step


class _Process:
    """The one CoppeliaSim of this process, started when needed, closed with its last user."""

    def __init__(self) -> None:
        self._environment: Any = None
        self._users: set[CoppeliaSimulator] = set()
        self._owner: CoppeliaSimulator | None = None
        self._broken = False
        self._started_by = (0, 0)  # process, thread
        self._velocity = False
        self._render_mode: Any = None
        self._sensors: dict[str, Any] = {}
        self._mode: Any = None
        self._config: Any = None

    @property
    def sim_steps(self) -> int:
        """Steps that the last action took, also one that was refused in its course."""
        return self._mode.sim_steps

    def load(self, user: CoppeliaSimulator, setup: Setup) -> Any:
        """Give CoppeliaSim to `user` and return upstream's task environment for its task.

        It is started anew where the arm's motors change between velocity and position control:
        upstream sets that up once, before the first episode, and partly cannot undo it.
        """
        self._check_thread()
        arm, task_class = _make_arm_mode(setup), _import_task(setup)
        velocity = setup.action_mode == "native"
        if self._broken or velocity != self._velocity:
            self._shut_down()
        if self._environment is None:
            # The size with which the sensors start; a picture of another size changes it.
            self._launch(arm, max(setup.images.values(), default=128), velocity)
        self._users.add(user)
        self._owner = None
        environment: Any = self._environment
        self._mode.arm_action_mode = arm
        self._config.task_low_dim_state = setup.state
        self._set_render_mode(setup.render_quality)
        task = environment.get_task(task_class)
        self._owner = user
        return task

    def check(self, user: CoppeliaSimulator, setup: Setup) -> None:
        """Raise unless CoppeliaSim is with `user` and the call comes from the right thread."""
        self._check_thread()
        if self._owner is not user:
            raise SimulatorCrashed(
                f"CoppeliaSim no longer holds this episode of {setup.task}: a process has one, and "
                "another env was reset since, or it failed. reset() takes it back. For several "
                'envs at a time: gym.make_vec(..., vectorization_mode="async", '
                'vector_kwargs={"context": "spawn"})'
            )

    def owns(self, user: CoppeliaSimulator) -> bool:
        """Return whether `user`'s task is the one that is loaded, in good order."""
        return self._owner is user and not self._broken

    def mark_broken(self) -> None:
        """Have CoppeliaSim started anew before it is used again."""
        self._broken, self._owner = True, None

    def leave(self, user: CoppeliaSimulator) -> None:
        """Take `user` off the list; the last one stops CoppeliaSim."""
        if user not in self._users:
            return
        self._check_thread()
        self._users.discard(user)
        if self._owner is user:
            self._owner = None
        if not self._users:
            self._shut_down()

    def get_sensor(self, camera: str) -> Any:
        """Return a camera of the scene."""
        return self._sensors[camera]

    def _check_thread(self) -> None:
        if self._environment is None:
            return
        process, thread = self._started_by
        if process != os.getpid():
            raise SimulatorCrashed(
                "CoppeliaSim was started in another process and does not survive a fork; make the "
                'env in the worker, with the start method "spawn"'
            )
        if thread != threading.get_ident():
            raise SimulatorCrashed(
                "CoppeliaSim was started by another thread and may be used by that one only; make, "
                "reset, step, render and close all RLBench envs of a process in one thread"
            )

    def _launch(self, arm: Any, image_size: int, velocity: bool) -> None:
        obstacle = find_coppeliasim_obstacle()
        if obstacle is not None:
            raise DependencyNotInstalled(obstacle)
        environments = _import("rlbench.environment")
        configs = _import("rlbench.observation_config")
        grippers = _import("rlbench.action_modes.gripper_action_modes")
        sensors = _import("pyrep.objects.vision_sensor")
        config = configs.ObservationConfig()
        config.set_all(False)
        cameras = [getattr(config, f"{camera}_camera") for camera in _SENSORS]
        for camera in cameras:
            camera.rgb = True  # the scene removes for good what is off when it is made
            camera.image_size = (image_size, image_size)
        for name in _LOW_DIM:
            setattr(config, name, True)
        mode = _ActionMode(arm, grippers.Discrete())
        folder = os.getcwd()
        environment = None
        try:
            environment = environments.Environment(
                action_mode=mode, obs_config=config, headless=True
            )
            environment.launch()
            self._sensors = {
                camera: sensors.VisionSensor(name) for camera, name in _SENSORS.items()
            }
        except Exception as error:  # RuntimeError, PyRepError and whatever the library raises
            if environment is not None:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    environment.shutdown()
            raise SimulatorCrashed(
                f"CoppeliaSim did not start ({type(error).__name__}: {error}). Look whether the X "
                "server of DISPLAY has GLX (glxinfo) and whether CoppeliaSim starts by itself "
                "($COPPELIASIM_ROOT/coppeliaSim.sh -h)"
            ) from error
        finally:
            os.chdir(folder)  # PyRep changes it and forgets to return if it fails
        for camera in cameras:
            camera.rgb = False  # from here on pictures are taken on demand
        self._environment, self._mode, self._config = environment, mode, config
        self._started_by = (os.getpid(), threading.get_ident())
        self._velocity, self._broken, self._render_mode = velocity, False, "exact"

    def _set_render_mode(self, quality: str) -> None:
        if quality == self._render_mode:
            return
        modes = _import("pyrep.const").RenderMode
        for sensor in self._sensors.values():
            sensor.set_render_mode(modes.OPENGL if quality == "fast" else modes.OPENGL3)
        self._render_mode = quality

    def _shut_down(self) -> None:
        environment, self._environment = self._environment, None
        self._owner, self._sensors = None, {}
        if environment is None:
            return
        broken, self._broken = self._broken, False
        try:
            environment.shutdown()
        except Exception as error:
            if not broken:  # else the fault has been told already
                raise SimulatorCrashed(f"CoppeliaSim did not stop cleanly: {error}") from error


_process = _Process()

_LOW_DIM = (
    "joint_positions",
    "joint_velocities",
    "joint_forces",
    "gripper_open",
    "gripper_pose",
    "gripper_joint_positions",
)
"""What every observation of upstream's holds; `task_low_dim_state` only where `state` is asked."""


def _make_arm_mode(setup: Setup) -> Any:
    arms = _import("rlbench.action_modes.arm_action_modes")
    if setup.action_mode == "native":
        return arms.JointVelocity()
    if setup.action_mode == "joint_position":
        return arms.JointPosition(absolute_mode=True)
    if setup.action_mode == "ee_delta":
        return arms.EndEffectorPoseViaIK(absolute_mode=False)
    return arms.EndEffectorPoseViaPlanning(
        absolute_mode=True, collision_checking=setup.keywords["collision_checking"]
    )


class _RandomStreams:
    """States of `numpy.random` and `random` that take the place of the global ones for a while."""

    def __init__(self, seed: int) -> None:
        self._numpy: Any = np.random.RandomState(seed).get_state()
        self._python = random.Random(seed).getstate()

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let global draws come from these streams, which go on where they stopped."""
        numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002  upstream's own
        np.random.set_state(self._numpy)  # noqa: NPY002
        random.setstate(self._python)
        try:
            yield
        finally:
            self._numpy, self._python = np.random.get_state(), random.getstate()  # noqa: NPY002
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)


class CoppeliaSimulator:
    """One RLBench task in CoppeliaSim. See the module's docstring."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._task: Any = None
        self._last: Frame | None = None
        self._streams = _RandomStreams(0)

    def reset(self, seed: int, options: Mapping[str, Any]) -> Frame:
        """Start the episode of `seed` in `options["variation"]`, else in one drawn from the seed.

        Raises:
            InvalidOption: the task has no such variation.
            DependencyNotInstalled: RLBench, PyRep, CoppeliaSim or the task is missing.
            SimulatorCrashed: CoppeliaSim does not start, the task cannot be placed, or another
                thread started it.
        """
        variation = choose_variation(self._setup.task, seed, options)
        self._last = None
        errors = _import("rlbench.backend.exceptions")
        if _process.owns(self):
            _process.check(self, self._setup)
        else:
            self._task = self._load()
        task: Any = self._task
        count = task.variation_count()
        if variation >= count:
            raise SimulatorCrashed(
                f"the installed RLBench has {count} variations of {self._setup.native_task}, not "
                f"{variation + 1} or more: it is not the version that vla_gym knows. Take "
                "options={'variation': ...} below that, or install stepjam/RLBench at 02720bba"
            )
        failure: Exception | None = None
        for attempt in range(PLACEMENTS):
            drawn = seed if attempt == 0 else _derive(seed, attempt)
            self._streams = _RandomStreams(drawn)
            try:
                with self._streams.in_place():
                    task.set_variation(variation)
                    descriptions, observation = task.reset()
            except errors.TaskEnvironmentError as error:
                failure = error
                continue
            except Exception as error:
                raise self._crash("reset", error) from error
            info = {"variation": variation, "placements": attempt + 1}
            return self._frame(observation, 0.0, False, info, instructions=clean(descriptions))
        raise SimulatorCrashed(
            f"RLBench could not place {self._setup.native_task} (variation {variation}, seed "
            f"{seed}) in {PLACEMENTS} resets: {failure}. Reset with another seed"
        ) from failure

    def step(self, action: NDArray[np.float32]) -> Frame:
        """Apply one action of the mode, each entry in [-1, 1]; see the suite's module.

        Raises:
            InvalidAction: a keypose whose quaternion is zero.
            SimulatorCrashed: no episode of this simulator is loaded, or CoppeliaSim failed.
        """
        _process.check(self, self._setup)
        last = self._last
        if last is None:
            raise SimulatorCrashed(f"no episode of {self._setup.task} is running; call reset()")
        vector = self._to_upstream(action)
        errors = _import("rlbench.backend.exceptions")
        motion = _import("pyrep.errors")
        refusals = (errors.InvalidActionError, motion.IKError, motion.ConfigurationPathError)
        try:
            with self._streams.in_place():
                observation, reward, terminate = self._task.step(vector)
        except refusals as error:
            return self._refuse(last, error)
        except SimulatorCrashed:  # of the step counter
            self._last = None
            raise
        except Exception as error:
            raise self._crash("step", error) from error
        success = bool(terminate) and reward >= 1
        info = {"variation": last.info["variation"], "sim_steps": _process.sim_steps}
        return self._frame(
            observation, float(reward), success, info, terminated=bool(terminate) and not success
        )

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return a camera's picture: uint8 (height, width, 3), upright.

        The scene's sensor is set to that resolution and read, as upstream does for observations.
        """
        if camera not in CAMERAS:
            raise UnknownName("camera", camera, CAMERAS, self._setup.native_task)
        _process.check(self, self._setup)
        sensor = _process.get_sensor(CAMERAS[camera].native)
        try:
            if list(sensor.get_resolution()) != [width, height]:
                sensor.set_resolution([width, height])
            sensor.handle_explicitly()
            picture = sensor.capture_rgb()
        except Exception as error:
            raise self._crash("render", error) from error
        return np.clip(picture * 255.0, 0, 255).astype(np.uint8)  # cut off, as upstream does

    def close(self) -> None:
        """Give CoppeliaSim up; the last simulator of the process stops it."""
        self._task, self._last = None, None
        _process.leave(self)

    def _load(self) -> Any:
        try:
            return _process.load(self, self._setup)
        except (DependencyNotInstalled, SimulatorCrashed):
            raise
        except Exception as error:
            raise self._crash("loading the task", error) from error

    def _crash(self, doing: str, error: Exception) -> SimulatorCrashed:
        """Return the error to raise after an unforeseen one."""
        self._task, self._last = None, None
        _process.mark_broken()
        return SimulatorCrashed(
            f"RLBench {self._setup.native_task} failed during {doing} ({type(error).__name__}: "
            f"{error}). The next reset starts CoppeliaSim anew"
        )

    def _refuse(self, last: Frame, error: Exception) -> Frame:
        """Return the frame after an action that the simulator refused: nothing has changed."""
        info = {
            "variation": last.info["variation"],
            "sim_steps": _process.sim_steps,
            "action_failed": True,
            "action_error": f"{type(error).__name__}: {error}",
        }
        ends = self._setup.keywords["on_invalid_action"] == "terminate"
        self._last = last._replace(reward=0.0, terminated=ends, info=info, instructions=())
        return self._last

    def _to_upstream(self, action: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return upstream's vector: the arm mode's entries, then 1 to open and 0 to close."""
        mode = self._setup.action_mode
        if mode == "ee_delta":
            delta = decode_ee_delta(action)
            turn = vector_to_quaternion(delta.rotation_rad)
            parts = (delta.translation_m, turn, [float(delta.open)])
        elif mode == "keypose":
            pose = decode_keypose(action)
            parts = (pose.position_m, pose.quaternion_xyzw, [float(pose.open)])
        else:
            decode = decode_joint_velocity if mode == "native" else decode_joint_position
            command = decode(action)
            parts = (command.joints, [float(command.open)])
        return np.concatenate(parts)

    def _frame(
        self,
        observation: Any,
        reward: float,
        success: bool,
        info: dict[str, Any],
        terminated: bool = False,
        instructions: tuple[str, ...] = (),
    ) -> Frame:
        setup = self._setup
        common = {"sim_steps": 0, "action_failed": False, "action_error": ""}
        self._last = Frame(
            {camera: self.render(camera, size, size) for camera, size in setup.images.items()},
            self._read_proprio(observation),
            self._read_state(observation) if setup.state else None,
            reward,
            success,
            terminated,
            {**common, **info},
            instructions,
        )
        return self._last

    def _read_proprio(self, observation: Any) -> NDArray[np.float64]:
        opening = float(np.mean(observation.gripper_joint_positions)) / FINGER_TRAVEL_M
        opening = min(max(opening, 0.0), 1.0)
        if self._setup.proprio == "joints":
            return np.concatenate(
                [observation.joint_positions, observation.joint_velocities, [opening]]
            )
        pose = np.asarray(observation.gripper_pose, dtype=np.float64)
        return eef_proprio(
            pose[:3] - np.array(BASE_POSITION_M), quaternion_to_matrix(pose[3:]), opening
        )

    def _read_state(self, observation: Any) -> NDArray[np.float64]:
        task = np.asarray(observation.task_low_dim_state, dtype=np.float64).ravel()
        if len(task) > TASK_STATE_DIM:
            raise SimulatorCrashed(
                f"the state of RLBench {self._setup.native_task} has {len(task)} numbers, more "
                f"than the {TASK_STATE_DIM} that `state` has room for; make the env with "
                "state=False, and tell us"
            )
        return np.concatenate(
            [
                observation.joint_positions,
                observation.joint_velocities,
                observation.joint_forces,
                [observation.gripper_open],
                observation.gripper_pose,
                task,
                np.zeros(TASK_STATE_DIM - len(task)),
            ]
        )


def _derive(seed: int, attempt: int) -> int:
    return int(np.random.SeedSequence([seed, attempt]).generate_state(1)[0])


def clean(descriptions: Any) -> tuple[str, ...]:
    """Return wordings as printable ASCII of at most 256 characters, in order, each once."""
    texts = []
    for description in descriptions:
        plain = unicodedata.normalize("NFKD", str(description)).encode("ascii", "ignore").decode()
        words = " ".join(plain.split())
        texts.append("".join(letter for letter in words if letter.isprintable())[:256].strip())
    return tuple(dict.fromkeys(text for text in texts if text))
