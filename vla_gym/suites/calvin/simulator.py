"""`CalvinSimulator`: CALVIN's tasks and its long-horizon protocol on either play table.

What an episode is stands here once, for both simulators: where it starts, what an action means,
when a task is solved, which instruction is in force. The table, `vla_gym.suites.calvin.table`,
knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import check_index, eef_proprio
from vla_gym.errors import InvalidOption, SimulatorCrashed, UnknownName
from vla_gym.rotations import euler_to_matrix, matrix_to_quaternion
from vla_gym.suite import Frame, Setup, VisualChange
from vla_gym.suites.calvin.chains import initial_observations, load_chains
from vla_gym.suites.calvin.control import Pose, advance
from vla_gym.suites.calvin.oracle import ROBOT, Record, solved
from vla_gym.suites.calvin.scenes import (
    BASE_POSITION_M,
    BLOCKS,
    DRAWER_OPEN_M,
    OPENING_M,
    SCENES,
    SWITCH_ON_M,
    Scene,
)
from vla_gym.suites.calvin.skills import Pick
from vla_gym.suites.calvin.starts import sample_start
from vla_gym.suites.calvin.table import CAMERAS, ROBOT_OBS_DIM, SCENE_OBS_DIM, Reading, Table
from vla_gym.suites.calvin.tasks import CHAIN, SUBTASK_STEPS, TASKS

__all__ = ["CalvinSimulator", "open_original"]

_CAMERAS = dict(zip(("primary", "wrist"), CAMERAS))  # noqa: B905  Python 3.8 has no strict=

_BASE_M = np.array(BASE_POSITION_M)

_BY_NATIVE = {task.native: task for task in TASKS.values()}

GRASP_ATTEMPTS, GRASP_STEPS = 20, 200
"""Of a start with a block in the gripper: starts drawn, and control steps for picking it up."""


def open_original(setup: Setup) -> CalvinSimulator:
    """Return one task of CALVIN on the original simulator."""
    from vla_gym.suites.calvin.playtable import PlayTable

    keywords = setup.keywords
    table = PlayTable(keywords["scene"], keywords["renderer"], keywords["calvin_env_root"])
    return CalvinSimulator(setup, table)


class CalvinSimulator:
    """One task of CALVIN, or the chain of five, on a play table.

    An episode is a function of its seed and options alone. `info` says `subtask` (upstream's name
    of the task in force) and for the chain `chain` (its number of the 1000), `chain_length` (how
    many are solved) and `subtask_step`.

    Args:
        setup: what is asked for.
        table: the play table, which this simulator closes.
    """

    def __init__(self, setup: Setup, table: Table) -> None:
        self._setup, self._table = setup, table
        self._scene = SCENES[setup.keywords["scene"]]
        self._names: tuple[str, ...] = (setup.native_task,)  # upstream's, of the tasks in turn
        self._chain = -1  # its number, where there is one
        self._solved = 0
        self._steps = 0  # since the present task began
        self._hand = self._target = Pose(np.zeros(3), np.eye(3))  # measured; of `ee_delta`

    def reset(self, seed: int, options: Mapping[str, Any]) -> Frame:
        """Start the episode of `seed`, or what the options say; see `SUITE.options`."""
        rng = np.random.default_rng(seed)
        states = _read_states(options, self._scene)
        if self._setup.native_task == CHAIN:
            self._chain = _choose_chain(options, rng)
            chain = load_chains()[self._chain]
            self._names = chain.tasks
            states = states or initial_observations(chain)
        elif "chain" in options:
            raise InvalidOption("options['chain'] is for VLA/CALVIN-Chain alone")
        reading = self._place_sampled(rng) if states is None else self._place(*states)
        self._solved, self._steps = 0, 0
        self._start = reading.record
        return self._frame(reading, False)

    def step(self, action: NDArray[np.float32]) -> Frame:
        """Apply one action of the mode, each entry in [-1, 1]."""
        self._apply(action.astype(np.float64))
        reading = self._table.read()
        if not np.isfinite(reading.robot_obs).all() or not np.isfinite(reading.scene_obs).all():
            raise SimulatorCrashed(
                f"the physics of {self._setup.task} in scene {self._scene.name} has become "
                "unstable; reset to go on, and please report the seed"
            )
        self._steps += 1
        achieved = False
        if self._solved < len(self._names):
            achieved = solved(self._names[self._solved], self._start, reading.record)
        if achieved:
            self._solved += 1
            if self._solved < len(self._names):
                self._start, self._steps = reading.record, 0
        return self._frame(reading, achieved)

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return a camera's picture: uint8 (height, width, 3), upright."""
        if camera not in _CAMERAS:
            raise UnknownName("camera", camera, _CAMERAS, self._setup.native_task)
        return self._table.render(_CAMERAS[camera], height, width)

    def perturb(self, change: VisualChange) -> None:
        """See `vla_gym.suite.PerturbableSimulator`; the original cannot."""
        moves = change.cameras
        cameras = {native: moves[name] for name, native in _CAMERAS.items() if name in moves}
        self._table.perturb(VisualChange(cameras, change.light))

    def close(self) -> None:
        """Free the play table."""
        self._table.close()

    def _apply(self, action: NDArray[np.float64], mode: str | None = None) -> None:
        gripper = 1.0 if action[6] > 0 else -1.0
        if (mode or self._setup.action_mode) == "native":
            self._table.move(np.append(action[:6], gripper))
            return
        self._target = advance(self._target, self._hand, action)
        quaternion = matrix_to_quaternion(self._target.rotation)
        self._table.move_to(self._target.position, quaternion, gripper)

    def _place_sampled(self, rng: np.random.Generator) -> Reading:
        """Put the table into a random state in which the task can be solved."""
        name = self._setup.native_task
        for _ in range(GRASP_ATTEMPTS):
            start = sample_start(name, self._scene, rng)
            reading = self._place(start.robot_obs, start.scene_obs)
            if start.grasp is None:
                return reading
            reading = self._pick(start.grasp, reading)
            if _holds(reading.record, start.grasp):
                return reading
        raise SimulatorCrashed(
            f"{self._setup.task} in scene {self._scene.name}: in {GRASP_ATTEMPTS} random states "
            "the gripper could not pick up the block with which the task starts; please report it"
        )

    def _place(self, robot_obs: NDArray[np.float64], scene_obs: NDArray[np.float64]) -> Reading:
        self._table.reset(robot_obs, scene_obs)
        reading = self._table.read()
        self._see(reading)
        self._target = self._hand
        return reading

    def _pick(self, block: str, reading: Reading) -> Reading:
        """Try to pick up a block."""
        skill = Pick(block, self._scene)
        for _ in range(GRASP_STEPS):
            action = skill.act(reading.robot_obs, reading.scene_obs)
            self._apply(action.astype(np.float64), "ee_delta")
            reading = self._table.read()
            self._see(reading)
            if skill.done:
                break
        return reading

    def _see(self, reading: Reading) -> None:
        robot = reading.robot_obs
        self._hand = Pose(robot[:3].copy(), euler_to_matrix(robot[3:6]))

    def _frame(self, reading: Reading, achieved: bool) -> Frame:
        setup = self._setup
        self._see(reading)
        position, rotation = self._hand
        opening = reading.robot_obs[6] / OPENING_M
        if setup.proprio == "eef":
            proprio = eef_proprio(position - _BASE_M, rotation, opening)
        else:
            joints = reading.robot_obs[7:14]
            opening = min(max(opening, 0.0), 1.0)
            proprio = np.concatenate([joints, reading.joint_velocities, [opening]])
        done = self._solved == len(self._names)
        task = _BY_NATIVE[self._names[min(self._solved, len(self._names) - 1)]]
        info: dict[str, Any] = {"subtask": task.native}
        if setup.native_task == CHAIN:
            info.update(chain=self._chain, chain_length=self._solved, subtask_step=self._steps)
        return Frame(
            images={
                camera: self.render(camera, size, size) for camera, size in setup.images.items()
            },
            proprio=proprio,
            state=np.concatenate([reading.robot_obs, reading.scene_obs]) if setup.state else None,
            reward=float(achieved),
            success=done,
            info=info,
            instructions=(task.instruction, *task.paraphrases),
            truncated=setup.native_task == CHAIN and not done and self._steps >= SUBTASK_STEPS,
        )


def _holds(record: Record, block: str) -> bool:
    """Return whether the robot has the block in its gripper, and both touch nothing else."""
    alone = record.blocks[block].contacts == {ROBOT}
    return alone and record.robot_contacts == {block}


def _choose_chain(options: Mapping[str, Any], rng: np.random.Generator) -> int:
    count = len(load_chains())
    if "chain" not in options:
        return int(rng.integers(count))
    return check_index(options["chain"], count, "options['chain'] of VLA/CALVIN-Chain")


def _read_states(
    options: Mapping[str, Any], scene: Scene
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return `robot_obs` and `scene_obs` of the options, checked; None where they are not given."""
    names = ("robot_obs", "scene_obs")
    given = [name for name in names if name in options]
    if not given:
        return None
    if len(given) == 1:
        raise InvalidOption(f"options[{given[0]!r}] needs the other of {names} too")
    arrays = []
    for name, size in zip(names, (ROBOT_OBS_DIM, SCENE_OBS_DIM)):  # noqa: B905  Python 3.8
        try:
            array = np.array(options[name], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidOption(f"options[{name!r}] must be {size} numbers: {error}") from error
        if array.shape != (size,) or not np.isfinite(array).all():
            raise InvalidOption(
                f"options[{name!r}] must be {size} finite numbers, not shape {array.shape}, "
                f"{array.tolist()}"
            )
        arrays.append(array)
    _check_ranges(arrays[0], arrays[1], scene)
    return arrays[0], arrays[1]


def _check_ranges(
    robot_obs: NDArray[np.float64], scene_obs: NDArray[np.float64], scene: Scene
) -> None:
    tolerance = 2e-3  # recorded states pass their stops by what the physics gives way
    ranges = [
        ("the fingers' distance, robot_obs[6]", robot_obs[6], 0.0, OPENING_M),
        ("the gripper command, robot_obs[14]", robot_obs[14], -1.0, 1.0),
        ("the door, scene_obs[0]", scene_obs[0], 0.0, scene.slider_range),
        ("the drawer, scene_obs[1]", scene_obs[1], 0.0, DRAWER_OPEN_M),
        ("the button, scene_obs[2]", scene_obs[2], 0.0, 0.02),
        ("the switch, scene_obs[3]", scene_obs[3], 0.0, SWITCH_ON_M),
    ]
    wrong = [
        f"{what} is {value:g}, valid is {low:g} to {high:g}"
        for what, value, low, high in ranges
        if not low - tolerance <= value <= high + tolerance
    ]
    for what, value in (("bulb, scene_obs[4]", scene_obs[4]), ("LED, scene_obs[5]", scene_obs[5])):
        if value not in (0.0, 1.0):
            wrong.append(f"the light of the {what}, is {value:g}, valid is 0 or 1")
    blocks = scene_obs[6:].reshape(len(BLOCKS), 6)
    if np.abs(blocks[:, :3]).max() > 2.0:
        wrong.append("a block's position, scene_obs[6:], is more than 2 m from the table")
    if wrong:
        raise InvalidOption(f"reset of scene {scene.name}: " + "; ".join(wrong))
