"""`RLBenchTwin`: the simulator that stands in for CoppeliaSim, in MuJoCo. Not RLBench.

What is the same: action modes, proprio, cameras, the robot, and the tasks' measures and success
rules as far as `vla_gym.suites.rlbench` and each task say. What is not: bodies are primitives, the
physics is another, `keypose` moves in a straight line, of the tip where the arm can follow it, else
of the joints, and avoids nothing.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import eef_proprio
from vla_gym.deps import require
from vla_gym.errors import SimulatorCrashed, UnknownName
from vla_gym.rendering import Renderer
from vla_gym.rotations import quaternion_to_matrix, vector_to_matrix
from vla_gym.suite import AS_IS, Frame, Setup, VisualChange
from vla_gym.suites.rlbench import (
    BASE_POSITION_M,
    CAMERAS,
    choose_variation,
    decode_ee_delta,
    decode_joint_position,
    decode_joint_velocity,
    decode_keypose,
)
from vla_gym.twins.panda import FINGER_OPEN_M, Pose
from vla_gym.twins.rlbench.scene import (
    COLLISION_GROUP,
    JOINT4_OFFSET,
    SENSOR_GROUP,
    TASK_CENTRE_M,
    TIMESTEP_S,
    SceneBuilder,
)
from vla_gym.twins.rlbench.tasks import load_task
from vla_gym.twins.rlbench.world import World

__all__ = ["RLBenchTwin"]

CONTROL_S = 0.05
SUBSTEPS = round(CONTROL_S / TIMESTEP_S)

FINGER_SPEED = 0.2 / FINGER_OPEN_M
"""RLBench's gripper actuation, 0.2 m/s, as a share of the full opening per second."""

MAX_JOINT_SPEED = np.array([2.175] * 4 + [2.61] * 3)
"""Of `ee_delta` and `joint_position` [rad/s]: Franka's limits. Where the arm is nearly stretched,
as at the start, they slow the tip to below what an action of +-1 asks for."""

PLANNED_JOINT_SPEED = 1.0
"""Of `keypose` [rad/s]: RLBench's planner."""

MAX_PLANNED_STEPS = 200
SETTLE_STEPS = 10
"""Control steps after placing, as in RLBench's reset."""

HIDDEN_GEOM_GROUPS = (0, COLLISION_GROUP, SENSOR_GROUP, 5)
INSTABILITY = 1e4
"""A joint speed beyond this means that the physics has come apart."""


@functools.lru_cache(maxsize=32)
def _compile(task: str) -> tuple[Any, tuple[str, ...]]:
    scene = SceneBuilder()
    load_task(task).build(scene)
    return scene.compile(), tuple(scene.graspable)


class RLBenchTwin:
    """One task of the twin. See the module's docstring.

    An episode is a function of its seed and variation alone. `info` says `variation`, `sim_steps`
    (control steps that the last action took; more than 1 only in `keypose`) and, where an action
    could not be carried out, `action_failed` and `action_error`.
    """

    def __init__(self, setup: Setup) -> None:
        self._mujoco = require("mujoco", "rlbench-twin", "the RLBench twin")
        model, graspable = _compile(setup.task)
        self._setup = setup
        self._world = World(copy.copy(model), graspable)
        self._task = load_task(setup.task)()
        self._renderer: Renderer | None = None
        self._change = AS_IS
        self._variation = 0
        self._opening = 1.0  # commanded; moves towards 0 or 1 at the fingers' speed
        self._open = True
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int, options: Mapping[str, Any]) -> Frame:
        """Start the episode of `seed`, in `options["variation"]` or in one drawn from the seed."""
        variation = choose_variation(self._setup.task, seed, options)
        rng = np.random.default_rng(seed)
        self._rng = np.random.default_rng([seed, 2])  # of the search for far poses
        self._variation, self._open, self._opening = variation, True, 1.0
        self._world.reset()
        self._task.place(self._world, rng, variation)
        self._world.forward()
        target = self._world.robot.target
        for _ in range(SETTLE_STEPS):
            self._advance(target, target)
        self._task.observe(self._world)
        return self._frame(0, "")

    def step(self, action: NDArray[np.float32]) -> Frame:
        """Apply one action of the mode, each entry in [-1, 1]."""
        mode = self._setup.action_mode
        if mode == "keypose":
            return self._go(action)
        robot = self._world.robot
        error = ""
        if mode == "ee_delta":
            delta = decode_ee_delta(action)
            start = robot.find_tip(robot.target)
            pose = Pose(
                start.position + delta.translation_m,
                vector_to_matrix(delta.rotation_rad) @ start.rotation,
            )
            joints, left = robot.solve(pose, robot.target)
            if left > 0.02:
                error = f"the pose is out of the arm's reach by {left:.3f} (m + rad)"
            self._open = delta.open
            speed = MAX_JOINT_SPEED
        elif mode == "native":
            command = decode_joint_velocity(action)
            joints, self._open, speed = (
                robot.target + command.joints * CONTROL_S,
                command.open,
                None,
            )
        else:
            command = decode_joint_position(action)
            joints, self._open, speed = _to_model(command.joints), command.open, MAX_JOINT_SPEED
        self._drive(joints, speed)
        self._task.observe(self._world)
        return self._frame(1, error)

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return a camera's picture: uint8 (height, width, 3), upright."""
        if camera not in CAMERAS:
            raise UnknownName("camera", camera, CAMERAS, self._setup.native_task)
        if self._renderer is None:
            world = self._world
            self._renderer = Renderer(
                world.model,
                world.data,
                self._setup.render_quality,
                HIDDEN_GEOM_GROUPS,
                focus_m=TASK_CENTRE_M,
            )
        return self._renderer.render(CAMERAS[camera].native, height, width, self._change)

    def perturb(self, change: VisualChange) -> None:
        """See `vla_gym.suite.PerturbableSimulator`."""
        self._change = change.rename(CAMERAS)

    def close(self) -> None:
        """Free the GL buffers."""
        renderer, self._renderer = self._renderer, None
        if renderer is not None:
            renderer.close()

    def _drive(
        self, joints: NDArray[np.float64], speed: NDArray[np.float64] | float | None = None
    ) -> None:
        """Move the commanded joints towards `joints` for one control step, at most at `speed`."""
        robot = self._world.robot
        start = robot.target
        move = np.clip(joints, robot.low, robot.high) - start
        if speed is not None:
            move = move / max(1.0, float((np.abs(move) / speed).max()) / CONTROL_S)
        # What the arm could not follow, because something is in its way, is not stored up.
        lag = np.clip(start + move - robot.joints, -0.15, 0.15)
        self._advance(start, robot.joints + lag)

    def _follow(self, path: list[NDArray[np.float64]]) -> None:
        """Move along the points of a path for one control step and drop those that are reached."""
        reach = PLANNED_JOINT_SPEED * CONTROL_S
        joints, left = self._world.robot.target, reach
        while path:
            length = float(np.abs(path[0] - joints).max())
            if length > left:
                joints = joints + (path[0] - joints) * (left / length)
                break
            joints, left = path.pop(0), left - length
        self._drive(joints, PLANNED_JOINT_SPEED)

    def _advance(self, start: NDArray[np.float64], end: NDArray[np.float64]) -> None:
        """Simulate one control step in which the arm's command goes from `start` to `end`."""
        world, robot = self._world, self._world.robot
        velocity = (end - start) / CONTROL_S
        change = FINGER_SPEED * TIMESTEP_S
        for step in range(1, SUBSTEPS + 1):
            robot.command(start + (end - start) * (step / SUBSTEPS), velocity)
            if world.held is None:
                goal = 1.0 if self._open else 0.0
                self._opening += float(np.clip(goal - self._opening, -change, change))
            else:  # no more force on what is attached
                self._opening = robot.opening
            robot.command_fingers(self._opening)
            self._mujoco.mj_step(world.model, world.data)
        robot.target = end
        world.update_grasp(closing=not self._open)
        if not np.abs(world.data.qvel).max() < INSTABILITY:
            raise SimulatorCrashed(
                f"the physics of the RLBench twin's {self._setup.task} has become unstable; reset "
                "to go on, and please report the seed"
            )

    def _go(self, action: NDArray[np.float32]) -> Frame:
        """Carry out a key pose: go there, then open or close."""
        keypose = decode_keypose(action)
        robot = self._world.robot
        pose = Pose(keypose.position_m, quaternion_to_matrix(keypose.quaternion_xyzw))
        path = robot.trace_line(pose, robot.target)
        if path is None:
            found = robot.search(pose, robot.target, self._rng)
            path = [] if found is None else [found]
        if not path:
            where = np.round(keypose.position_m, 3).tolist()
            return self._frame(0, f"no arm posture brings the tip to {where} with that rotation")
        steps = 0
        while path and steps < MAX_PLANNED_STEPS:
            steps += 1
            self._follow(path)
            self._task.observe(self._world)
            if self._task.succeeded(self._world):
                return self._frame(steps, "")
        if keypose.open != self._open:
            self._open = keypose.open
            for _ in range(6):  # 0.04 m at 0.2 m/s take 4 steps
                self._advance(robot.target, robot.target)
                self._task.observe(self._world)
                steps += 1
        return self._frame(steps, "")

    def _frame(self, steps: int, error: str) -> Frame:
        setup, world, robot = self._setup, self._world, self._world.robot
        if setup.proprio == "eef":
            tip = robot.tip
            proprio = eef_proprio(
                tip.position - np.array(BASE_POSITION_M), tip.rotation, robot.opening
            )
        else:
            proprio = np.concatenate([_from_model(robot.joints), robot.velocities, [robot.opening]])
        success = bool(self._task.succeeded(world))
        info: dict[str, Any] = {"variation": self._variation, "sim_steps": steps}
        if error:
            info |= {"action_failed": True, "action_error": error}
        state = None
        if setup.state:
            task = self._task
            state = world.write_state(self._variation, task.bodies, task.joints)
        failed = bool(error) and setup.keywords["on_invalid_action"] == "terminate"
        return Frame(
            images={
                camera: self.render(camera, size, size) for camera, size in setup.images.items()
            },
            proprio=proprio,
            state=state,
            reward=float(success),
            success=success,
            terminated=failed,
            info=info,
            instructions=self._task.wordings(self._variation),
        )


def _to_model(joints: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert joint angles from RLBench's zero to the robot model's."""
    return joints + JOINT4_OFFSET * (np.arange(7) == 3)


def _from_model(joints: NDArray[np.float64]) -> NDArray[np.float64]:
    return joints - JOINT4_OFFSET * (np.arange(7) == 3)
