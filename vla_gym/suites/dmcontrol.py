"""dm_control 1.0.28: its 13 manipulation tasks, in which a Jaco arm reaches, lifts, places, stacks.

Physics, resets, rewards and the pictures of `front_close` are upstream's, bit for bit: an episode
with seed s equals the first one of `dm_control.manipulation.load(name, seed=s)`, whatever ran
before. What differs from using dm_control directly, and why:

- One id for each task. Upstream's `_features` and `_vision` variants are the same task with other
  observations: here the pictures are asked for by `cameras`, the features are `state`.
- Cameras of ours beside `front_close`: one on the hand, and four places that upstream names for its
  arenas and does not use (manipulation/shared/cameras.py). None changes a state or a draw.
- `ee_delta`. Upstream has joint velocities alone, which are `native`. See `_Guide`.
- The episode ends by the id's horizon, 250 steps; upstream's time limit of 10 s is the same.
- Upstream shuffles the bricks of `reassemble_5_bricks_random_order` on from the last episode's
  order; here each episode starts from the first one's, so that the seed alone decides.
- A reset that finds no place for hand or bricks is tried again with further draws, up to 10 times;
  upstream's `load` raises at the first.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import EE_DELTA, EEF_PROPRIO, ee_delta_entries, eef_proprio, joints_proprio
from vla_gym.deps import require
from vla_gym.errors import SimulatorCrashed, UnknownName
from vla_gym.rendering import Renderer
from vla_gym.rotations import rotation_vector, vector_to_matrix
from vla_gym.suite import (
    AS_IS,
    ActionMode,
    Camera,
    Entry,
    Frame,
    Layout,
    Setup,
    SimulatorInfo,
    Suite,
    Task,
    VisualChange,
)
from vla_gym.suites.upstream import keep_gl_choice, quiet

CONTROL_HZ = 25.0
"""1 / CONTROL_TIMESTEP of manipulation/shared/constants.py."""

HORIZON = 250
"""Upstream's time limit, 10 s (manipulation/__init__.py)."""

POSITION_M = 0.005
ROTATION_RAD = 0.0125
"""What the arm can follow in most poses: a joint turns by 0.025 or 0.034 rad at most in a step."""

ARM_RAD_S = np.deg2rad([36.0, 36.0, 36.0, 48.0, 48.0, 48.0])
FINGER_RAD_S = 5.0
"""Largest joint velocities (entities/manipulators/kinova/jaco_arm.py and jaco_hand.py)."""

ARM_NM = np.array([30.5, 30.5, 30.5, 6.8, 6.8, 6.8])
"""Largest torques of the arm's joints (jaco_arm.py)."""

FINGER_OPEN_RAD, FINGER_CLOSED_RAD = 0.15, 1.35
"""Range of the finger joints (third_party/kinova/jaco_hand.xml)."""

SOLVED_REWARD = 1.0 - 1e-6
"""Every reward here is 1 where the task's own bounds are met and less elsewhere."""

WORKSPACE_M = (0.0, 0.0, 0.1)
"""Where moved cameras look and lights turn about, in the world."""

PINCH, BASE = "jaco_arm/jaco_hand/pinchsite", "jaco_arm/b_base"
ARM = tuple(f"jaco_arm/joint_{i}" for i in range(1, 7))
FINGERS = tuple(f"jaco_arm/jaco_hand/finger_{i}" for i in range(1, 4))

WRIST_CAMERA = {"name": "wrist", "pos": (0.0, -0.13, -0.07), "euler": (0.5, 0.0, 0.0), "fovy": 70}
"""In the frame of upstream's body `hand`, whose fingers point to -z."""

COLORS = ("red", "green", "blue", "cyan", "magenta", "yellow")
"""Of the bricks, in upstream's order (manipulation/bricks.py, `_COLOR_NAMES`)."""

_LIFTED = "the lowest corner is 0.3 m above where it was: reward 1"
_PLACED = "the brick is within 0.05 m of the target and the hand 0.2 m away: reward 1"
_STACKED = (
    "each brick's studs are within 1 mm of the next one's holes, in the right order: reward 1"
)

_STATE_DIMS = {
    "reach_site": 45,
    "reach_duplo": 55,
    "lift_brick": 55,
    "lift_large_box": 55,
    "place_brick": 58,
    "place_cradle": 58,
    "stack_2_bricks": 68,
    "stack_2_bricks_moveable_base": 68,
    "stack_3_bricks": 81,
    "stack_3_bricks_random_order": 84,
    "stack_2_of_3_bricks_random_order": 83,
    "reassemble_3_bricks_fixed_order": 81,
    "reassemble_5_bricks_random_order": 112,
}
"""Numbers in the observations of upstream's `_features` variant."""


def _task(name: str, native: str, success: str, *wordings: str) -> Task:
    return Task(name, native, wordings[0], wordings[1:], success, HORIZON)


_TASKS = (
    _task(
        "ReachSite",
        "reach_site",
        "the pinch site is within 0.05 m of the target: reward 1",
        "move the hand to the red sphere",
        "reach the red sphere",
        "bring the fingers into the red ball",
        "go to the red target",
    ),
    _task(
        "ReachDuplo",
        "reach_duplo",
        "the pinch site is within 0.05 m of the brick: reward 1",
        "move the hand to the brick",
        "reach the brick",
        "bring the fingers to the toy brick",
        "touch the brick",
    ),
    _task(
        "LiftBrick",
        "lift_brick",
        _LIFTED,
        "lift the brick",
        "pick up the toy brick",
        "raise the brick off the floor",
        "take the brick and hold it up",
    ),
    _task(
        "LiftLargeBox",
        "lift_large_box",
        _LIFTED,
        "lift the large box",
        "pick up the big box",
        "raise the large box off the floor",
        "heave the box up",
    ),
    _task(
        "PlaceBrick",
        "place_brick",
        _PLACED,
        "place the brick on the brick on the pedestal",
        "put the loose brick on top of the one on the pedestal",
        "set the brick on the pedestal's brick and let go",
        "put the brick onto the raised brick",
    ),
    _task(
        "PlaceCradle",
        "place_cradle",
        _PLACED,
        "place the brick in the cradle on the pedestal",
        "put the brick into the cradle",
        "set the brick on the three spheres and let go",
        "lay the brick on top of the pedestal",
    ),
    _task(
        "Stack2Bricks",
        "stack_2_bricks",
        _STACKED,
        "stack the green brick on the red brick",
        "put the green brick on top of the red one",
        "click the green brick onto the red brick",
        "place the green brick on the red one",
    ),
    _task(
        "Stack2BricksMoveableBase",
        "stack_2_bricks_moveable_base",
        _STACKED,
        "stack the green brick on the loose red brick",
        "put the green brick on top of the loose red one",
        "click the green brick onto the red one, which can move",
        "build a tower of two bricks with the green one on top",
    ),
    _task(
        "Stack3Bricks",
        "stack_3_bricks",
        _STACKED,
        "stack the green brick on the red brick and the blue brick on the green one",
        "build a tower: red at the bottom, then green, then blue",
        "put green on red and blue on green",
        "stack the three bricks with the blue one on top and the red one at the bottom",
    ),
    _task(
        "Stack3BricksRandomOrder",
        "stack_3_bricks_random_order",
        _STACKED,
        "stack the three bricks like the example stack",
        "build the same tower as the example with the three bricks",
        "copy the example stack with the loose bricks",
        "put the three bricks on each other in the example's order",
    ),
    _task(
        "Stack2Of3BricksRandomOrder",
        "stack_2_of_3_bricks_random_order",
        _STACKED,
        "stack two of the bricks like the example stack",
        "copy the example stack of two with the bricks that it shows",
        "choose the two bricks of the example and stack them as it does",
        "build the example's tower of two bricks",
    ),
    _task(
        "Reassemble3BricksFixedOrder",
        "reassemble_3_bricks_fixed_order",
        _STACKED,
        "rebuild the stack with the blue brick on the red one and the green brick on top",
        "take the stack apart and build it again: red, then blue, then green",
        "swap the two upper bricks of the stack",
        "exchange the green and the blue brick of the stack",
    ),
    _task(
        "Reassemble5BricksRandomOrder",
        "reassemble_5_bricks_random_order",
        _STACKED,
        "rebuild the stack in the order of the example stack",
        "take the stack apart and build it again like the example",
        "reorder the five bricks as in the example stack",
        "make the tower look like the example",
    ),
)


def _layout(task: Task, keywords: Mapping[str, Any]) -> Layout:
    joints = tuple(
        Entry(f"joint_{i + 1}", "rad/s", "", float(limit)) for i, limit in enumerate(ARM_RAD_S)
    )
    fingers = tuple(
        Entry(f"finger_{i}", "rad/s", "", FINGER_RAD_S, "+1 closes, -1 opens") for i in (1, 2, 3)
    )
    upstream = "upstream's place, which it does not use"
    return Layout(
        action_modes={
            "ee_delta": ActionMode(
                ee_delta_entries(
                    POSITION_M, ROTATION_RAD, ", in proportion in between; 0 stops the fingers"
                ),
                tuple((i, 1.0) for i in range(len(EE_DELTA))),
                native_dim=len(EE_DELTA),
                rest=(0.0,) * len(EE_DELTA),
            ),
            "native": ActionMode(
                (*joints, *fingers),
                tuple((i, 1.0) for i in range(9)),
                native_dim=9,
                rest=(0.0,) * 9,
            ),
        },
        proprio={"eef": EEF_PROPRIO, "joints": joints_proprio(6)},
        state_dim=_STATE_DIMS[task.native],
        cameras={
            "primary": Camera("front_close", note="upstream's, from the front towards the robot"),
            "wrist": Camera("jaco_arm/jaco_hand/wrist", note="ours: upstream's hand has no camera"),
            **{
                name: Camera(name, note=upstream)
                for name in ("front_far", "top_down", "left_close", "right_close")
            },
        },
        robot="Jaco",
    )


class DMControlSimulator:
    """One manipulation task. See the module's docstring."""

    def __init__(self, setup: Setup) -> None:
        # dm_control chooses a GL of its own when imported, and says so to PyOpenGL and the user.
        with keep_gl_choice(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # glfw's, where there is no screen
            require("dm_control.manipulation", "dmcontrol", "the DMControl suite")
            composer = importlib.import_module("dm_control.composer")
            registry = importlib.import_module("dm_control.manipulation.shared.registry")
            places = importlib.import_module("dm_control.manipulation.shared.cameras")
            self._unstable = importlib.import_module("dm_control.rl.control").PhysicsError
        self._setup = setup
        self._cameras = _layout(SUITE.tasks[setup.task], {}).cameras
        self._task = registry.get_constructor(f"{setup.native_task}_features")()
        arena = self._task.root_entity.mjcf_model.worldbody
        for place in (places.FRONT_FAR, places.TOP_DOWN, places.LEFT_CLOSE, places.RIGHT_CLOSE):
            arena.add("camera", **place._asdict())
        self._task.hand.mjcf_model.find("body", "hand").add("camera", **WRIST_CAMERA)
        if not setup.state:  # nobody reads what they would compute in every physics step
            for observable in self._task.observables.values():
                observable.enabled = False
        self._env = composer.Environment(
            self._task, random_state=np.random.RandomState(0), max_reset_attempts=10
        )
        self._guide: _Guide | None = None
        self._renderer: Renderer | None = None
        self._change = AS_IS

    def reset(self, seed: int, options: Mapping[str, Any]) -> Frame:
        """Start the episode that a fresh upstream env with this seed starts."""
        del options  # the suite has none; VLAEnv has refused any
        self._env.random_state.seed(seed)
        if hasattr(self._task, "_initial_order"):
            self._task._initial_order.sort()
        self._drop_renderer()  # its model goes with the reset
        with quiet("absl"):  # it speaks of each pose that is drawn and cannot be reached
            step = self._env.reset()
        model, data = self._env.physics.model.ptr, self._env.physics.data.ptr
        self._arm = np.array([model.joint(name).qposadr[0] for name in ARM])
        self._arm_dof = np.array([model.joint(name).dofadr[0] for name in ARM])
        self._fingers = np.array([model.joint(name).qposadr[0] for name in FINGERS])
        self._model, self._data = model, data
        self._guide = _Guide(model, data, self._arm_dof)
        return self._frame(step.observation, 0.0, self._task.get_reward(self._env.physics))

    def step(self, action: NDArray[np.float32]) -> Frame:
        """Apply joint velocities, shape (9,), or with `ee_delta` the contract's entries, (7,)."""
        vector = action.astype(np.float64)
        command = np.empty(9)
        if self._setup.action_mode == "ee_delta":
            assert self._guide is not None
            command[:6] = self._guide.steer(POSITION_M * vector[:3], ROTATION_RAD * vector[3:6])
            command[6:] = -FINGER_RAD_S * vector[6]
        else:
            command[:6] = ARM_RAD_S * vector[:6]
            command[6:] = FINGER_RAD_S * vector[6:]
        try:
            step = self._env.step(command)
        except self._unstable as error:
            raise SimulatorCrashed(
                f"dm_control {self._setup.native_task}: its simulation has become unstable "
                f"({error}); reset to go on"
            ) from error
        return self._frame(step.observation, float(step.reward), float(step.reward))

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return a camera's picture: uint8 (height, width, 3), upright."""
        if camera not in self._cameras:
            raise UnknownName("camera", camera, self._cameras, self._setup.native_task)
        if self._renderer is None:
            self._renderer = Renderer(
                self._model, self._data, self._setup.render_quality, focus_m=WORKSPACE_M
            )
        return self._renderer.render(self._cameras[camera].native, height, width, self._change)

    def perturb(self, change: VisualChange) -> None:
        """See `vla_gym.suite.PerturbableSimulator`."""
        self._change = change.rename(self._cameras)

    def close(self) -> None:
        """Free the model, its data and the GL buffers."""
        self._drop_renderer()
        self._env.close()

    def _frame(self, observation: Mapping[str, Any], reward: float, value: float) -> Frame:
        setup = self._setup
        order = getattr(self._task, "_desired_order", None)
        return Frame(
            images={name: self.render(name, size, size) for name, size in setup.images.items()},
            proprio=self._read_proprio(),
            state=np.concatenate([np.ravel(v) for v in observation.values()])
            if setup.state
            else None,
            reward=reward,
            success=value >= SOLVED_REWARD,
            info={} if order is None else {"order": ", ".join(COLORS[i] for i in order)},
        )

    def _read_proprio(self) -> NDArray[np.float64]:
        data = self._data
        closed = (np.mean(data.qpos[self._fingers]) - FINGER_OPEN_RAD) / (
            FINGER_CLOSED_RAD - FINGER_OPEN_RAD
        )
        opening = min(max(1.0 - float(closed), 0.0), 1.0)
        if self._setup.proprio == "joints":
            return np.concatenate([data.qpos[self._arm], data.qvel[self._arm_dof], [opening]])
        site, base = data.site(PINCH), data.body(BASE)
        turn = base.xmat.reshape(3, 3).T
        return eef_proprio(turn @ (site.xpos - base.xpos), turn @ site.xmat.reshape(3, 3), opening)

    def _drop_renderer(self) -> None:
        renderer, self._renderer = self._renderer, None
        if renderer is not None:
            renderer.close()


class _Guide:
    """Turns deltas of the hand's pose into joint velocities.

    A goal pose starts at the hand's and moves by each delta. The hand is sent along with the
    delta's own velocity and drawn to the goal with `GAIN`, so that neither gravity nor the limited
    torques of the joints let it drift off. Damped least squares on the site's Jacobian give the
    joints' velocities (Nakamura and Hanafusa 1986, "Inverse Kinematic Solutions With Singularity
    Robustness for Robot Manipulator Control", eq. 24). Where one of them, or its change from what
    it is now, is beyond its limit, all are scaled down, which keeps the direction: else the quick
    joints would run ahead of the slow ones. The goal never leads by more than `LEAD_M` and
    `LEAD_RAD`: a hand that is held up does not shoot off when it comes free.

    The base frame has the world's axes, so that deltas need no turning.
    """

    GAIN = 5.0
    LEAD_M = 0.02
    LEAD_RAD = 0.1
    DAMPING = 0.06
    SHARE = 0.9

    def __init__(self, model: Any, data: Any, dofs: NDArray[np.int_]) -> None:
        self._mujoco = require("mujoco", "dmcontrol", "the DMControl suite")
        self._model, self._data, self._dofs = model, data, dofs
        self._site = model.site(PINCH).id
        self._jacobian = np.zeros((6, model.nv))
        self._goal_position = data.site_xpos[self._site].copy()
        self._goal_rotation = data.site_xmat[self._site].reshape(3, 3).copy()

    def steer(
        self, move_m: NDArray[np.float64], turn_rad: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return joint velocities [rad/s], shape (6,), for one control step.

        Args:
            move_m: translation, base frame, shape (3,).
            turn_rad: axis times angle, base frame, shape (3,).
        """
        position = self._data.site_xpos[self._site]
        rotation = self._data.site_xmat[self._site].reshape(3, 3)
        lag = self._goal_position - position
        lag_turn = rotation_vector(self._goal_rotation @ rotation.T)
        twist = CONTROL_HZ * np.concatenate([move_m, turn_rad])
        twist += self.GAIN * np.concatenate([lag, lag_turn])
        self._goal_position = position + _shorten(lag + move_m, self.LEAD_M)
        goal_turn = rotation_vector(vector_to_matrix(turn_rad) @ self._goal_rotation @ rotation.T)
        self._goal_rotation = vector_to_matrix(_shorten(goal_turn, self.LEAD_RAD)) @ rotation
        self._mujoco.mj_jacSite(
            self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site
        )
        arm = self._jacobian[:, self._dofs]
        damped = arm @ arm.T + self.DAMPING**2 * np.eye(6)
        velocities = arm.T @ np.linalg.solve(damped, twist)
        velocities /= max(1.0, float(np.max(np.abs(velocities) / ARM_RAD_S)))
        now = self._data.qvel[self._dofs]
        change = velocities - now
        return now + change / max(
            1.0, float(np.max(np.abs(change) / self._find_reach(change, now)))
        )

    def _find_reach(
        self, change: NDArray[np.float64], now: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return by how much the joints' torques can change their velocities in a control step."""
        model, data, dofs = self._model, self._data, self._dofs
        load = data.qfrc_bias[dofs] + model.dof_frictionloss[dofs] * np.sign(now)
        spare = np.maximum(ARM_NM - np.sign(change) * load, 0.1 * ARM_NM)
        return self.SHARE * spare / (model.dof_armature[dofs] * CONTROL_HZ)


def _shorten(vector: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """Return the vector, at most so long."""
    norm = float(np.linalg.norm(vector))
    return vector if norm <= length else vector * (length / norm)


SUITE = Suite(
    name="DMControl",
    tasks={task.name: task for task in _TASKS},
    simulators=(
        SimulatorInfo(
            "dm_control",
            "vla_gym.suites.dmcontrol:DMControlSimulator",
            ("dm_control", "mujoco"),
            "dmcontrol",
            ("dm-control", "mujoco"),
            perturbs=("camera", "light"),
        ),
    ),
    control_hz=CONTROL_HZ,
    terminate_on_success=False,
    layout=_layout,
    reward="dm_control 1.0.28's own, dense, in [0, 1]; 1 where solved",
)
