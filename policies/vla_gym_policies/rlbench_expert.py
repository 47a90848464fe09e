"""`rlbench-expert`: follows the plan that each task of the RLBench twin knows for itself."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym import PolicySpec, SpecSheet
from vla_gym.errors import ContractMismatch
from vla_gym.rotations import rotation_vector
from vla_gym.twins.rlbench.tasks import load_task
from vla_gym.twins.rlbench.world import read_state

__all__ = ["RLBenchExpert"]

PATIENCE = 25
"""Control steps without coming nearer after which a waypoint counts as reached as far as it can."""

GRIPPER_STEPS = 7
"""To open or close fully: 0.04 m at 0.2 m/s are 4 steps, and the attaching one more."""


class RLBenchExpert:
    """Goes from waypoint to waypoint in straight lines, from the twin's privileged state.

    The plan is made from the first observation of an episode.

    Args:
        task: the task's name; `for_env` sets it from the env's spec sheet.
    """

    def __init__(self, task: str | None = None, scale: tuple[float, float] = (0.025, 0.1)) -> None:
        self._task, self._scale = task, scale

    spec = PolicySpec(
        suites=("RLBench",), cameras=(), state=True, action_mode="ee_delta", action_dim=7
    )

    def for_env(self, sheet: SpecSheet) -> RLBenchExpert:
        """Return the expert for the env of this sheet.

        Raises:
            ContractMismatch: the env runs on another simulator than the twin.
        """
        if sheet.simulator != "rlbench-twin":
            raise ContractMismatch(
                f"rlbench-expert reads the state of simulator='rlbench-twin'; {sheet.id} runs on "
                f"{sheet.simulator!r}. Make it with simulator='rlbench-twin'"
            )
        return RLBenchExpert(sheet.task, (sheet.action[0].scale, sheet.action[3].scale))

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return actions (B, 7) and, as the state, one plan in progress per env."""
        del deterministic
        if self._task is None:
            raise ValueError("RLBenchExpert needs task=..., or for_env(spec_sheet)")
        batch = observation["state"]
        runs: list[Any] = [None] * len(batch) if state is None else list(state)
        actions = np.zeros((len(batch), 7), np.float32)
        for row, seen in enumerate(batch):
            if runs[row] is None or (episode_start is not None and episode_start[row]):
                runs[row] = _Run(self._task, self._scale)
            runs[row] = copy.copy(runs[row])  # the caller's may be asked for this step again
            actions[row] = runs[row].act(np.asarray(seen, np.float64))
        return actions, runs


class _Run:
    """One episode: the waypoints left, and how the present one goes."""

    def __init__(self, task: str, scale: tuple[float, float]) -> None:
        self._task = load_task(task)
        self._scale = scale
        self._plan: list[Any] | None = None
        self._gripper = 1.0
        self._wait = 0
        self._least, self._stalled = np.inf, 0

    def act(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        seen = read_state(state, self._task.bodies, self._task.joints)
        if self._plan is None:
            self._plan = list(self._task.plan(seen))
            self._start_waypoint()
        action = np.zeros(7)
        if self._wait > 0:
            self._wait -= 1
            if self._wait == 0:
                self._plan = self._plan[1:]
                self._start_waypoint()
            action[6] = self._gripper
            return action
        if not self._plan:
            action[6] = self._gripper
            return action
        goal = self._plan[0]
        action[:6] = goal.stride(seen.tip, self._scale)
        turn = rotation_vector(goal.rotation @ seen.tip.rotation.T)
        left = float(np.linalg.norm(goal.position - seen.tip.position) + 0.1 * np.linalg.norm(turn))
        if left < self._least - 5e-4:
            self._least, self._stalled = left, 0
        else:
            self._stalled += 1
        if goal.is_near(seen.tip) or self._stalled > PATIENCE:
            self._wait = max(1, goal.hold)
            if goal.then_open is not None:
                self._gripper = 1.0 if goal.then_open else -1.0
                self._wait += GRIPPER_STEPS
        action[6] = self._gripper
        return action

    def _start_waypoint(self) -> None:
        self._least, self._stalled = np.inf, 0
        if self._plan and self._plan[0].open is not None:
            self._gripper = 1.0 if self._plan[0].open else -1.0
