"""A strict stand-in for `rlbench` and `pyrep`, written from facts about their interface.

It has the names, signatures and errors that `vla_gym.suites.coppeliasim` meets at stepjam/RLBench
02720bba, and refuses what the real ones refuse. What would crash or quietly spoil the real
simulator raises `Misuse`, which no `except Exception` catches: a call from another thread, a second
simulator in the process, a task that is no longer loaded, a motor in the wrong control mode.

The robot is a point: joints 1 to 3 move the tip along x, y, z (0.5 m/rad), joints 4 to 6 turn it
(rotation vector), joint 7 does nothing.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import random
import sys
import threading
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from vla_gym import registration
from vla_gym.rotations import quaternion_to_vector, vector_to_quaternion
from vla_gym.suites.rlbench import (
    HOME_JOINTS,
    SUITE,
    WORKSPACE_HIGH,
    WORKSPACE_LOW,
)
from vla_gym.suites.rlbench_tasks import TASKS, VARIATIONS

DT = 0.05
HOME = np.array(HOME_JOINTS)
HOME_TIP = np.array([0.2785, -0.0082, 1.4719])
HOME_QUATERNION = np.array([0.0, 0.9927, 0.0, 0.1209])
HOME_QUATERNION /= np.linalg.norm(HOME_QUATERNION)
METRES_PER_RAD = 0.5
MAX_RAD_PER_STEP = 0.1
IK_REACH_M = 0.3
FINGER_M = 0.04
SENSORS = {
    "cam_over_shoulder_left": "left_shoulder_camera",
    "cam_over_shoulder_right": "right_shoulder_camera",
    "cam_overhead": "overhead_camera",
    "cam_wrist": "wrist_camera",
    "cam_front": "front_camera",
}
OLD_FORK = (
    "place_wine_at_rack_location",
    "slide_block_to_color_target",
    "sweep_to_dustpan_of_size",
)


class Misuse(BaseException):
    """The real simulator would crash, hang or be wrong without a word."""


class RenderMode(Enum):
    OPENGL = 0
    OPENGL3 = 7


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Have the suite registered, and no longer than that if it was not before."""
    if SUITE.name in {suite.name for suite in registration.list_suites()}:
        yield
        return
    registration.register_suite(SUITE)
    yield
    del registration._suites[SUITE.name]
    for task in TASKS:
        del gym.registry[SUITE.id(task)]


def multiply(a, b):
    """Return the product of two quaternions (x, y, z, w)."""
    x, y, z, w = a
    matrix = np.array([[w, -z, y, x], [z, w, -x, y], [-y, x, w, z], [-x, -y, -z, w]])
    return matrix @ b


def make_errors(*names: str) -> dict[str, type[Exception]]:
    return {name: type(name, (Exception,), {}) for name in names}


class Fake:
    """What the process-global simulator is, what tests may tell it and what they may ask.

    Attributes:
        failures: place -> errors to raise there, one a visit: "launch", "get_task", "reset",
            "step", "capture", "shutdown".
        fails: whether the task's fail condition is met from the next step on.
        stuck: whether the arm never arrives.
        counts: how often each of launch, shutdown, get_task, capture, step and reset happened.
    """

    def __init__(self, fork: bool = False) -> None:
        self.fork = fork
        self.failures: dict[str, list[Exception]] = {}
        self.fails = self.stuck = False
        self.counts: dict[str, int] = {}
        self.pyrep_errors = make_errors(
            "PyRepError", "ConfigurationError", "ConfigurationPathError", "IKError"
        )
        self.rlbench_errors = make_errors(
            "BoundaryError", "InvalidActionError", "TaskEnvironmentError", "DemoError"
        )
        self.InvalidActionError = self.rlbench_errors["InvalidActionError"]
        self.TaskEnvironmentError = self.rlbench_errors["TaskEnvironmentError"]
        self.low_dim_length = 3
        self.variations = dict(VARIATIONS)
        self.thread: int | None = None  # of the live simulator
        self.sensors: dict[str, Sensor] = {}
        self.robot: Any = None
        self.targets: list[np.ndarray] = []  # targets of all episodes so far
        self.descriptions: list[str] | None = None

    @property
    def live(self) -> bool:
        return self.thread is not None

    def visit(self, place: str) -> None:
        """Count, and raise what was ordered for this place."""
        if place not in ("launch",):
            self.check_thread()
        self.counts[place] = self.counts.get(place, 0) + 1
        if self.failures.get(place):
            raise self.failures[place].pop(0)

    def check_thread(self) -> None:
        if self.thread is None:
            raise Misuse("the simulator is not running")
        if self.thread != threading.get_ident():
            raise Misuse("called from another thread")


class Sensor:
    """The picture-taking part in the scene; `VisionSensor` objects are handles to it."""

    def __init__(self, config: Any) -> None:
        self.resolution = list(config.image_size)
        self.render_mode = config.render_mode
        self.picture: np.ndarray | None = None


class Strict:
    """Refuses attributes that the class does not have."""

    _allowed: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self._allowed:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        super().__setattr__(name, value)


class CameraConfig(Strict):
    _allowed = ("rgb", "depth", "point_cloud", "mask", "image_size", "render_mode")

    def __init__(
        self,
        rgb=True,
        depth=True,
        point_cloud=True,
        mask=True,
        image_size=(128, 128),
        render_mode=RenderMode.OPENGL3,
    ):
        self.rgb, self.depth, self.point_cloud, self.mask = rgb, depth, point_cloud, mask
        self.image_size, self.render_mode = image_size, render_mode

    def set_all(self, value: bool) -> None:
        self.rgb = self.depth = self.point_cloud = self.mask = value


class ObservationConfig(Strict):
    _low_dim = (
        "joint_velocities",
        "joint_positions",
        "joint_forces",
        "gripper_open",
        "gripper_pose",
        "gripper_matrix",
        "gripper_joint_positions",
        "gripper_touch_forces",
        "wrist_camera_matrix",
        "task_low_dim_state",
    )
    _allowed = (*SENSORS.values(), *_low_dim, "record_gripper_closing")

    def __init__(self):
        for name in SENSORS.values():
            setattr(self, name, CameraConfig())
        for name in self._low_dim:
            setattr(self, name, name in self._low_dim[:5])
        self.record_gripper_closing = False

    def set_all(self, value: bool) -> None:
        for name in SENSORS.values():
            getattr(self, name).set_all(value)
        for name in self._low_dim:
            setattr(self, name, value)


class PyRep:
    """Steps the point robot."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.robot: Any = None
        self.running = False

    def step(self) -> None:
        self.fake.visit("step")
        if self.running:
            self.robot.move()


class Arm:
    """The joints. `control_loop` and `locked` are what `set_control_mode` of the arm modes sets."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.control_loop: bool | None = None
        self.locked = False
        self.put_home()

    def put_home(self) -> None:
        self.q, self.target = HOME.copy(), HOME.copy()
        self.velocity = np.zeros(7)  # commanded
        self.moved = np.zeros(7)  # in the last step

    def set_control_loop_enabled(self, value: bool) -> None:
        self.fake.check_thread()
        self.control_loop = value

    def set_motor_locked_at_zero_velocity(self, value: bool) -> None:
        self.fake.check_thread()
        self.locked = value

    def get_pose(self) -> np.ndarray:
        """Return the tip's pose (7,), world."""
        turn = vector_to_quaternion((self.q - HOME)[3:6])
        position = HOME_TIP + METRES_PER_RAD * (self.q - HOME)[:3]
        return np.concatenate([position, multiply(turn, HOME_QUATERNION)])

    def solve(self, pose: np.ndarray) -> np.ndarray:
        """Return the joints of a pose."""
        inverse = HOME_QUATERNION * np.array([-1, -1, -1, 1])
        q = self.q.copy()
        q[:3] = HOME[:3] + (pose[:3] - HOME_TIP) / METRES_PER_RAD
        q[3:6] = HOME[3:6] + quaternion_to_vector(multiply(pose[3:], inverse))
        return q

    def set_joint_target_positions(self, q) -> None:
        if not self.control_loop or self.locked:
            raise Misuse("position targets need motors that are set up for position control")
        self.target = np.array(q, dtype=np.float64)

    def set_joint_target_velocities(self, v) -> None:
        if np.any(v) and (self.control_loop or not self.locked):
            raise Misuse("velocities need motors that are set up for velocity control")
        self.velocity = np.array(v, dtype=np.float64)


class Robot:
    def __init__(self, fake: Fake) -> None:
        self.arm = Arm(fake)
        self.fake = fake
        self.fingers = np.full(2, FINGER_M)

    def move(self) -> None:
        before = self.arm.q
        if self.arm.control_loop:
            step = np.clip(self.arm.target - before, -MAX_RAD_PER_STEP, MAX_RAD_PER_STEP)
            if self.fake.stuck:
                step = np.full(7, 0.002) * (-1) ** self.fake.counts["step"]
        else:
            step = self.arm.velocity * DT
        self.arm.q = before + step
        self.arm.moved = step / DT


class Scene:
    def __init__(self, fake: Fake, pyrep: PyRep, robot: Robot, config: Any) -> None:
        self.fake, self.pyrep, self.robot, self.config = fake, pyrep, robot, config
        self.robot_setup = "panda"
        self.task: Any = None
        fake.sensors = {
            name: Sensor(camera)
            for name, attribute in SENSORS.items()
            if (camera := getattr(config, attribute)).rgb or camera.depth or camera.point_cloud
        }

    def step(self) -> None:
        self.pyrep.step()
        self.task.step()

    def check_target_in_workspace(self, position) -> bool:
        return bool((position > WORKSPACE_LOW).all() and (position < WORKSPACE_HIGH).all())

    def get_observation(self) -> Any:
        self.fake.check_thread()
        robot, config = self.robot, self.config
        for attribute in SENSORS.values():
            camera = getattr(config, attribute)
            if camera.rgb or camera.depth or camera.point_cloud or camera.mask:
                raise Misuse(f"{attribute} is drawn with every observation")
        values = {
            "joint_velocities": robot.arm.moved.copy(),
            "joint_positions": robot.arm.q.copy(),
            "joint_forces": np.full(7, 0.5),
            "gripper_open": 1.0 if robot.fingers[0] / FINGER_M > 0.9 else 0.0,
            "gripper_pose": robot.arm.get_pose(),
            "gripper_joint_positions": robot.fingers.copy(),
            "task_low_dim_state": self.task.get_low_dim_state(),
            "gripper_matrix": np.eye(4),
            "gripper_touch_forces": np.zeros(6),
        }
        observation = types.SimpleNamespace(misc={"variation_index": self.task.variation})
        for name, value in values.items():
            setattr(observation, name, value if getattr(config, name) else None)
        return observation


class Task:
    """Any task: solved while the tip is within 0.05 m of the target, as reach_target."""

    native = ""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.variation = 0
        self.target = np.zeros(3)
        self.steps = 0

    def step(self) -> None:
        self.steps += 1

    def init_episode(self, variation: int) -> list[str]:
        self.variation = variation
        low, high = np.array([0.1, -0.3, 0.8]), np.array([0.5, 0.3, 1.2])
        self.target = low + (high - low) * np.random.rand(3)  # noqa: NPY002  as upstream
        self.target[0] += 0.001 * random.random()
        self.fake.targets.append(self.target.copy())
        if self.fake.descriptions is not None:
            return self.fake.descriptions
        return [f"fake {self.native} {variation}", f"another wording of {variation}"]

    def get_low_dim_state(self) -> np.ndarray:
        return np.resize(self.target, self.fake.low_dim_length)

    def success(self, tip: np.ndarray) -> tuple[bool, bool]:
        if self.fake.fails:
            return False, True
        solved = bool(np.linalg.norm(tip[:3] - self.target) < 0.05)
        return solved, solved


class TaskEnvironment:
    def __init__(self, fake: Fake, environment: Any, task: Task) -> None:
        self._fake, self._environment, self._task = fake, environment, task
        self._variation = 0
        self._reset_called = False

    def _check(self) -> None:
        self._fake.check_thread()
        if self._environment._scene is None or self._environment._scene.task is not self._task:
            raise Misuse("this task is no longer loaded")

    def variation_count(self) -> int:
        self._check()
        return self._fake.variations[type(self._task).__name__]

    def set_variation(self, v: int) -> None:
        if v < 0:
            raise Misuse("a negative variation passes upstream's check")
        if v >= self.variation_count():
            raise self._fake.TaskEnvironmentError(f"variation {v}")
        self._variation = v

    def reset(self) -> tuple[list[str], Any]:
        self._check()
        scene = self._environment._scene
        descriptions = self._task.init_episode(self._variation)
        self._fake.visit("reset")
        scene.robot.arm.put_home()
        scene.robot.fingers[:] = FINGER_M
        self._reset_called = True
        return descriptions, scene.get_observation()

    def step(self, action) -> tuple[Any, float, bool]:
        self._check()
        if not self._reset_called:
            raise RuntimeError("step before reset")
        scene = self._environment._scene
        np.random.rand()  # noqa: NPY002  some tasks draw in a step
        self._environment._action_mode.action(scene, action)
        success, terminate = self._task.success(scene.robot.arm.get_pose())
        return scene.get_observation(), float(success), terminate


def make_environment_class(fake: Fake) -> type:
    class Environment:
        def __init__(
            self,
            action_mode,
            dataset_root="",
            obs_config=None,
            headless=False,
            static_positions=False,
            robot_setup="panda",
        ):
            if obs_config is None:
                raise Misuse("the default obs_config is one object for all")
            if not headless:
                raise Misuse("a window would open")
            self._action_mode, self._obs_config = action_mode, obs_config
            self._pyrep: Any = None
            self._scene: Any = None

        def launch(self) -> None:
            if self._pyrep is not None:
                raise RuntimeError("launched already")
            if fake.live:
                raise Misuse("a second simulator in one process")
            fake.thread = threading.get_ident()
            self._pyrep = PyRep(fake)
            fake.visit("launch")
            robot = Robot(fake)
            self._pyrep.robot = fake.robot = robot
            self._scene = Scene(fake, self._pyrep, robot, self._obs_config)
            self._action_mode.arm_action_mode.set_control_mode(robot)

        def shutdown(self) -> None:
            if self._pyrep is not None:
                fake.visit("shutdown")
                fake.thread, fake.sensors = None, {}
            self._pyrep = self._scene = None

        def get_task(self, task_class: type[Task]) -> TaskEnvironment:
            if self._pyrep is None:
                raise Misuse("get_task() would launch the simulator by itself")
            fake.visit("get_task")
            task = task_class(fake)
            self._scene.task = task
            self._pyrep.running = True
            return TaskEnvironment(fake, self, task)

    return Environment


def make_arm_modes(fake: Fake) -> dict[str, type]:
    def check_shape(action, size):
        if np.shape(action) != (size,):
            raise fake.InvalidActionError(f"shape {np.shape(action)}")

    def check_pose(action):
        check_shape(action, 7)
        if not np.isclose(np.linalg.norm(action[3:]), 1.0):
            raise fake.InvalidActionError("no unit quaternion")

    class ArmMode:
        size = 7

        def action_shape(self, scene):
            return (self.size,)

        def set_control_mode(self, robot) -> None:
            robot.arm.set_control_loop_enabled(True)

    class JointVelocity(ArmMode):
        def action(self, scene, action):
            check_shape(action, 7)
            scene.robot.arm.set_joint_target_velocities(action)
            scene.step()
            scene.robot.arm.set_joint_target_velocities(np.zeros(7))

        def set_control_mode(self, robot) -> None:
            robot.arm.set_control_loop_enabled(False)
            robot.arm.set_motor_locked_at_zero_velocity(True)

    class JointPosition(ArmMode):
        def __init__(self, absolute_mode=True):
            self.absolute = absolute_mode

        def action(self, scene, action):
            check_shape(action, 7)
            arm = scene.robot.arm
            arm.set_joint_target_positions(action if self.absolute else arm.q + action)
            scene.step()
            arm.set_joint_target_positions(arm.q)

    class PoseMode(ArmMode):
        def __init__(self, absolute_mode=True, frame="world", collision_checking=False):
            self.absolute, self._collision_checking = absolute_mode, collision_checking
            if frame != "world":
                raise Misuse("targets are given in the world frame")

        def find_target(self, scene, action):
            check_pose(action)
            if self.absolute:
                return np.array(action)
            tip = scene.robot.arm.get_pose()
            return np.concatenate([tip[:3] + action[:3], multiply(action[3:], tip[3:])])

        def go(self, scene, target, until_success):
            arm = scene.robot.arm
            goal = arm.solve(target)
            arm.set_joint_target_positions(goal)
            before = None
            while True:
                scene.step()
                stands = before is not None and np.allclose(arm.q, before, atol=0.001)
                before = arm.q.copy()
                if np.allclose(arm.q, goal, atol=0.01) or stands:
                    break
                if until_success and scene.task.success(arm.get_pose())[0]:
                    break

    class EndEffectorPoseViaIK(PoseMode):
        def action(self, scene, action):
            target = self.find_target(scene, action)
            tip = scene.robot.arm.get_pose()
            if np.linalg.norm(target[:3] - tip[:3]) > IK_REACH_M:
                raise fake.InvalidActionError("too far for inverse kinematics")
            if fake.failures.get("ik"):
                raise fake.failures["ik"].pop(0)
            self.go(scene, target, until_success=False)

    class EndEffectorPoseViaPlanning(PoseMode):
        def action(self, scene, action):
            target = self.find_target(scene, action)
            if not scene.check_target_in_workspace(target[:3]):
                raise fake.InvalidActionError("outside of the workspace")
            if fake.failures.get("path"):
                raise fake.failures["path"].pop(0)
            fake.counts["collision_checking"] = self._collision_checking
            self.go(scene, target, until_success=True)

    class ForkPlanning(EndEffectorPoseViaPlanning):
        def action(self, scene, action, ignore_collisions=True):  # PerAct's fork has one more
            super().action(scene, action)
            fake.counts["ignore_collisions"] = ignore_collisions

    planning = ForkPlanning if fake.fork else EndEffectorPoseViaPlanning
    return {
        "JointVelocity": JointVelocity,
        "JointPosition": JointPosition,
        "EndEffectorPoseViaIK": EndEffectorPoseViaIK,
        "EndEffectorPoseViaPlanning": planning,
    }


def make_gripper_modes(fake: Fake) -> dict[str, type]:
    class Discrete:
        def __init__(self, attach_grasped_objects=True, detach_before_open=True):
            if not attach_grasped_objects:
                raise Misuse("nothing could be grasped")

        def action_shape(self, scene):
            return (1,)

        def action(self, scene, action):
            if np.shape(action) != (1,):
                raise fake.InvalidActionError(f"shape {np.shape(action)}")
            fingers = scene.robot.fingers
            wide = action[0] > 0.5
            if wide == bool((fingers / FINGER_M > 0.9).all()):
                return
            end = FINGER_M if wide else 0.0
            while not np.allclose(fingers, end):
                fingers += np.clip(end - fingers, -0.2 * DT, 0.2 * DT)
                scene.pyrep.step()
                scene.task.step()
            for _ in range(10 if wide else 0):
                scene.pyrep.step()
                scene.task.step()

    return {"Discrete": Discrete}


def make_sensor_class(fake: Fake) -> type:
    class VisionSensor:
        def __init__(self, name: str) -> None:
            fake.check_thread()
            if name not in fake.sensors:
                raise RuntimeError(f"there is no object {name!r} in the scene")
            self._sensor = fake.sensors[name]
            self._name = name

        def _get(self) -> Sensor:
            fake.check_thread()
            if fake.sensors.get(self._name) is not self._sensor:
                raise Misuse("a sensor of a scene that is closed")
            return self._sensor

        def get_resolution(self) -> list[int]:
            return list(self._get().resolution)

        def set_resolution(self, resolution: list[int]) -> None:
            self._get().resolution = [int(size) for size in resolution]
            self._sensor.picture = None

        def set_render_mode(self, mode: RenderMode) -> None:
            self._get().render_mode = RenderMode(mode)

        def handle_explicitly(self) -> None:
            fake.visit("capture")
            width, height = self._get().resolution
            picture = np.zeros((height, width, 3), np.float32)
            picture[: (height + 1) // 2, :, 2] = 1.0  # sky: upright means blue above
            picture[:, :, 0] = list(SENSORS).index(self._name) / 10
            picture[0, 0, 1] = fake.robot.arm.get_pose()[0] % 1.0  # it follows the robot
            self._sensor.picture = picture

        def capture_rgb(self) -> np.ndarray:
            if self._get().picture is None:
                raise Misuse("a picture that was never taken")
            return self._sensor.picture

    return VisionSensor


def install(monkeypatch: Any, folder: Path, fork: bool = False) -> Fake:
    """Put the fake into sys.modules and the settings into the environment; return its handle."""
    fake = Fake(fork)
    root = folder / "CoppeliaSim"
    root.mkdir()
    (root / "libcoppeliaSim.so").touch()
    backend = folder / "site" / "pyrep" / "backend"
    backend.mkdir(parents=True)
    (backend / "sim.py").touch()
    monkeypatch.setenv("COPPELIASIM_ROOT", str(root))
    monkeypatch.setenv("DISPLAY", ":99")

    def add(name: str, package: bool = False, **content: Any) -> None:
        module = types.ModuleType(name)
        spec = importlib.machinery.ModuleSpec(name, None, is_package=package)
        if package:
            spec.submodule_search_locations = [str(folder / "site" / Path(*name.split(".")))]
            module.__path__ = spec.submodule_search_locations
        module.__spec__ = spec
        for key, value in content.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)

    add("pyrep", package=True)
    add("pyrep.errors", **fake.pyrep_errors)
    add("pyrep.const", RenderMode=RenderMode)
    add("pyrep.objects", package=True)
    add("pyrep.objects.vision_sensor", VisionSensor=make_sensor_class(fake))
    add("rlbench", package=True)
    add("rlbench.environment", Environment=make_environment_class(fake))
    add(
        "rlbench.observation_config",
        ObservationConfig=ObservationConfig,
        CameraConfig=CameraConfig,
    )
    add("rlbench.action_modes", package=True)
    add("rlbench.action_modes.arm_action_modes", **make_arm_modes(fake))
    add("rlbench.action_modes.gripper_action_modes", **make_gripper_modes(fake))
    add("rlbench.backend", package=True)
    add("rlbench.backend.exceptions", **fake.rlbench_errors)
    add("rlbench.tasks", package=True)
    for task in TASKS.values():
        if fork or task.native not in OLD_FORK:
            task_class = type(task.name, (Task,), {"native": task.native})
            add(f"rlbench.tasks.{task.native}", **{task.name: task_class})
    return fake
