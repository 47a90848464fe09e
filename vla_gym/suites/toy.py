"""Toy: a point gripper over a table, in NumPy alone. For docs, tests and the cost of a step.

The gripper is a point that moves in a 0.6 m cube above a table; a cube lies on the table. It keeps
the whole contract (pictures, proprio, state, both action modes), so that everything around a
simulator can be tried and tested where none is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import EEF_PROPRIO, ee_delta_entries, eef_proprio
from vla_gym.errors import InvalidOption
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

STEP_M = 0.05
"""Largest translation per control step and axis [m]."""

LOW = np.array([-0.3, -0.3, 0.0])
HIGH = np.array([0.3, 0.3, 0.6])
HOME = np.array([0.0, 0.0, 0.3])
REACH_RADIUS_M = 0.05
GRASP_RADIUS_M = 0.04
LIFT_HEIGHT_M = 0.15

_TASKS = (
    Task(
        "Reach",
        "reach",
        "move the gripper to the green ball",
        (
            "reach the green ball",
            "bring the gripper to the green ball",
            "go to the green ball",
            "touch the green ball with the gripper",
        ),
        f"the gripper is within {REACH_RADIUS_M} m of the ball",
        horizon=50,
    ),
    Task(
        "Lift",
        "lift",
        "lift the red cube",
        (
            "pick up the red cube",
            "raise the red cube off the table",
            "grasp the red cube and lift it",
            "take the red cube from the table",
        ),
        f"the cube is more than {LIFT_HEIGHT_M} m above the table",
        horizon=100,
    ),
)


def _layout(task: Task, keywords: Mapping[str, Any]) -> Layout:
    native = tuple(Entry(name, "", "robot base", STEP_M) for name in ("vx", "vy", "vz"))
    return Layout(
        action_modes={
            "ee_delta": ActionMode(
                ee_delta_entries(STEP_M, None, ", holds in between at 0"),
                ((0, 1.0), (1, 1.0), (2, 1.0), None, None, None, (3, -1.0)),
                native_dim=4,
                rest=(0.0,) * 7,
            ),
            "native": ActionMode(
                (*native, Entry("grip", note="+1 closes, -1 opens: opposite to ee_delta")),
                tuple((i, 1.0) for i in range(4)),
                native_dim=4,
                rest=(0.0,) * 4,
            ),
        },
        proprio={
            "eef": EEF_PROPRIO,
            "joints": (
                *(Entry(f"q{axis}", "m", "robot base") for axis in "xyz"),
                *(Entry(f"v{axis}", "m/s", "robot base") for axis in "xyz"),
                Entry("gripper", note="opening: 0 closed, 1 open"),
            ),
        },
        state_dim=10,
        cameras={
            "primary": Camera("front", note="orthographic, from the front"),
            "wrist": Camera("wrist", note="orthographic, from above, moves with the gripper"),
            "top": Camera("top", note="orthographic, from above"),
        },
        robot="point",
    )


class ToySimulator:
    """A point gripper, a cube and a ball. See the module's docstring."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._gripper = HOME.copy()
        self._velocity = np.zeros(3)
        self._opening = 1.0
        self._cube = np.zeros(3)
        self._goal = np.zeros(3)
        self._held = False

    def reset(self, seed: int, options: Mapping[str, Any]) -> Frame:
        """Place cube and ball by `seed`; `options["goal"]` places the ball."""
        rng = np.random.default_rng(seed)
        self._gripper, self._velocity, self._opening = HOME.copy(), np.zeros(3), 1.0
        self._cube = np.array([*rng.uniform(-0.2, 0.2, 2), 0.0])
        self._goal = rng.uniform([-0.25, -0.25, 0.05], [0.25, 0.25, 0.5])
        if "goal" in options:
            self._goal = _check_point(options["goal"])
        self._held = False
        return self._frame(0.0)

    def step(self, action: NDArray[np.float32]) -> Frame:
        """Apply vx, vy, vz, grip, each in [-1, 1]."""
        before = self._gripper
        self._gripper = np.clip(before + STEP_M * action[:3].astype(np.float64), LOW, HIGH)
        self._velocity = (self._gripper - before) * SUITE.control_hz
        self._opening = float(np.clip(self._opening - 0.5 * action[3], 0.0, 1.0))
        near = np.linalg.norm(self._gripper - self._cube) < GRASP_RADIUS_M
        self._held = self._opening < 0.5 and (self._held or bool(near))
        if self._held:
            self._cube = self._gripper.copy()
        else:
            self._cube[2] = max(0.0, self._cube[2] - 0.05)  # it falls
        return self._frame(-self._distance())

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return a camera's picture: uint8 (height, width, 3), upright."""
        return _draw(camera, height, width, self._gripper, self._cube, self._goal, self._opening)

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _distance(self) -> float:
        target = self._goal if self._setup.native_task == "reach" else self._cube
        return float(np.linalg.norm(self._gripper - target))

    def _success(self) -> bool:
        if self._setup.native_task == "reach":
            return self._distance() <= REACH_RADIUS_M
        return bool(self._cube[2] > LIFT_HEIGHT_M)

    def _frame(self, reward: float) -> Frame:
        if self._setup.proprio == "eef":
            proprio = eef_proprio(self._gripper, np.diag([1.0, -1.0, -1.0]), self._opening)
        else:
            proprio = np.concatenate([self._gripper, self._velocity, [self._opening]])
        state = None
        if self._setup.state:
            state = np.concatenate([self._gripper, [self._opening], self._cube, self._goal])
        images = {
            camera: self.render(camera, size, size) for camera, size in self._setup.images.items()
        }
        return Frame(images, proprio, state, reward, self._success())


def _check_point(value: Any) -> NDArray[np.float64]:
    point = np.asarray(value, dtype=np.float64)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise InvalidOption(f"options['goal'] must be 3 finite numbers x, y, z [m], not {value!r}")
    if (point < LOW).any() or (point > HIGH).any():
        raise InvalidOption(
            f"options['goal']={value!r} must lie in {LOW.tolist()} to {HIGH.tolist()}"
        )
    return point


def _draw(
    camera: str,
    height: int,
    width: int,
    gripper: NDArray[np.float64],
    cube: NDArray[np.float64],
    goal: NDArray[np.float64],
    opening: float,
) -> NDArray[np.uint8]:
    """Draw table, cube, ball and gripper; x is to the right; up is z in front, y from above."""
    picture = np.full((height, width, 3), (216, 222, 233), dtype=np.uint8)
    front = camera == "front" or camera == "primary"
    center = gripper[:2] if camera == "wrist" else np.zeros(2)
    span = 0.3 if camera == "wrist" else 0.8  # metres across the picture
    columns = (np.arange(width) + 0.5) / width * span - span / 2
    rows = span / 2 - (np.arange(height) + 0.5) / height * span
    horizontal = columns[None, :] + (0.0 if front else center[0])
    vertical = rows[:, None] + (0.3 if front else center[1])
    if front:
        picture[np.broadcast_to(vertical < -0.025, (height, width))] = (139, 111, 71)

    def place(point: NDArray[np.float64]) -> tuple[Any, Any]:
        return horizontal - point[0], vertical - point[2 if front else 1]

    dx, dy = place(goal)
    picture[dx**2 + dy**2 < 0.03**2] = (64, 160, 72)
    dx, dy = place(cube)
    picture[(abs(dx) < 0.025) & (abs(dy) < 0.025)] = (191, 55, 52)
    dx, dy = place(gripper)
    reach = 0.015 + 0.025 * opening
    fingers = (abs(abs(dx) - reach) < 0.006) & (dy > -0.01) & (dy < 0.05)
    palm = (abs(dx) < reach + 0.006) & (dy > 0.04) & (dy < 0.06)
    picture[fingers | palm] = (46, 52, 64)
    return picture


SUITE = Suite(
    name="Toy",
    tasks={task.name: task for task in _TASKS},
    simulators=(SimulatorInfo("toy", "vla_gym.suites.toy:ToySimulator"),),
    control_hz=10.0,
    terminate_on_success=False,
    layout=_layout,
    reward="minus the distance to the target [m]",
    options={"goal": "x, y, z of the green ball [m], robot base frame"},
)
