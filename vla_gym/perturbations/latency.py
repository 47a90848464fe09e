"""Late actions: what the policy decides arrives some control steps later; it sees at once.

Until the first action arrives, the robot rests: no motion, and the gripper's command is the one
that keeps the fingers as they are. What that is, is `ActionMode.rest` of the suite: 0 where 0 holds
the fingers (robosuite), else +1 (opens), or -1 where they are not open at the start, because they
hold something (CALVIN) and would drop it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vla_gym.contract import check_action
from vla_gym.perturbations.base import AnyEnv, Perturbation, Perturbed, find_grippers, get_env

__all__ = ["LATENCY"]

OPEN = 0.9
"""Openings of at least this are open fingers: the widest that is held, a block of CALVIN, is
0.7 or less."""


def _find_obstacle(env: AnyEnv) -> str | None:
    sheet = get_env(env).spec_sheet
    if sheet.rest is None:
        return (
            f"in action_mode={sheet.action_mode!r} no action is known to leave the robot as it is "
            "until the first one arrives"
        )
    space = env.observation_space
    if not isinstance(space, spaces.Dict) or "proprio" not in space.spaces:
        return (
            "the observations lack 'proprio', which says how the gripper starts; perturb the env "
            "of gym.make before other wrappers are put around it"
        )
    return None


class _LateActions(Perturbed):
    def __init__(self, env: AnyEnv, steps: float) -> None:
        super().__init__(env, LATENCY.name)
        self._sheet = get_env(env).spec_sheet
        self._steps = int(steps)
        self._on_the_way: deque[NDArray[np.float32]] = deque()

    def began(self, observation: Any) -> None:
        sheet = self._sheet
        rest = np.array(sheet.rest, dtype=np.float32)
        openings = observation["proprio"][find_grippers(sheet.proprio)]
        grippers = find_grippers(sheet.action)  # none where there is no gripper
        count = min(len(openings), len(grippers))  # a suite's own proprio may have no opening
        closed = grippers[:count][openings[:count] < OPEN]
        rest[closed] = 0.0 - rest[closed]
        self._on_the_way = deque(rest.copy() for _ in range(self._steps))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Send an action on its way and apply the one that arrives."""
        self._on_the_way.append(check_action(action, self._sheet.action, self._sheet.id))
        return self.env.step(self._on_the_way.popleft())


LATENCY = Perturbation(
    name="latency",
    doc="each action arrives so many control steps late; until the first one the robot rests",
    strength=2,
    unit="control steps",
    low=0,
    high=100,
    whole=True,
    wrap=_LateActions,
    find_obstacle=_find_obstacle,
)
