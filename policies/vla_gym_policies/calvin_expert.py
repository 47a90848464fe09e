"""`calvin-expert`: scripted skills for CALVIN's 34 tasks, one after another where they change."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym import PolicySpec, SpecSheet
from vla_gym.suites.calvin.scenes import SCENES
from vla_gym.suites.calvin.skills import Skill, make_skill
from vla_gym.suites.calvin.table import ROBOT_OBS_DIM
from vla_gym.suites.calvin.tasks import find_task

__all__ = ["CalvinExpert"]


class CalvinExpert:
    """Does what the instruction says, with the skill that is written for it, from the state.

    It knows the tasks by their instructions and our paraphrases. A new instruction, or a new
    episode, starts a new skill from wherever the robot is.

    Args:
        scene: the table's name; `for_env` sets it from the env's spec sheet.
    """

    spec = PolicySpec(
        suites=("CALVIN",),
        cameras=(),
        state=True,
        instruction="text",
        action_mode="ee_delta",
        action_dim=7,
    )

    def __init__(self, scene: str | None = None) -> None:
        self._scene = None if scene is None else SCENES[scene]

    def for_env(self, sheet: SpecSheet) -> CalvinExpert:
        """Return the expert for the env of this sheet."""
        return CalvinExpert(sheet.keywords["scene"])

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return actions (B, 7) for `observation["state"]`, float64 (B, 39).

        The state returned is a list of B pairs: instruction, and the skill that follows it.

        Raises:
            ValueError: an instruction is none of those known.
        """
        del deterministic
        batch, instructions = observation["state"], observation["instruction"]
        runs: list[Any] = [None] * len(batch) if state is None else list(state)
        actions = np.zeros((len(batch), 7), np.float32)
        for row in range(len(batch)):
            instruction = str(instructions[row])
            begins = runs[row] is None or (episode_start is not None and episode_start[row])
            if begins or runs[row][0] != instruction:
                runs[row] = instruction, self._make_skill(instruction)
        for row, seen in enumerate(batch):  # once all are known: no skill goes on for nothing
            seen = np.asarray(seen, np.float64)
            actions[row] = runs[row][1].act(seen[:ROBOT_OBS_DIM], seen[ROBOT_OBS_DIM:])
        return actions, runs

    def _make_skill(self, instruction: str) -> Skill:
        if self._scene is None:
            raise ValueError("CalvinExpert needs scene=..., or for_env(spec_sheet)")
        task = find_task(instruction)
        if task is None:
            raise ValueError(
                f"calvin-expert has no skill for {instruction!r}; it knows the instructions and "
                "paraphrases of vla_gym.suites.calvin.tasks.TASKS"
            )
        return make_skill(task, self._scene)
