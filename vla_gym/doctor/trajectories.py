"""Episodes that a reference has played, with pushes now and then, and a policy shown them again.

The pushes make states that differ from each other and hands that are tilted: a policy that follows
a smooth path tells little about its conventions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import SpecSheet
from vla_gym.errors import SimulatorCrashed
from vla_gym.policy.base import Policy
from vla_gym.rollout import add_batch_axis

__all__ = ["Change", "Trajectory", "add_rows", "play", "replay"]

Array = NDArray[np.float64]
Change = Callable[[dict[str, Any], int], dict[str, Any]]
"""Returns an altered copy of a batch of observations, given it and its step."""

PUSH_EVERY = 12
"""Steps between the pushes, on average."""
PUSH_M, PUSH_RAD = 0.04, 0.5
"""What a push moves and turns the hand by [m, rad], at most."""
LONGEST_PUSH = 6


@dataclass(frozen=True)
class Trajectory:
    """One episode.

    Attributes:
        observations: of each step, (T,), as the env gave them.
        wanted: what the player wanted to do there, (T, A), before any clipping.
        pushed: where something else was done, (T,).
    """

    observations: list[dict[str, Any]]
    wanted: Array
    pushed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.wanted)


def play(
    env: gym.Env[Any, Any],
    player: Policy,
    steps: int,
    longest: int,
    seed: int,
) -> list[Trajectory]:
    """Return episodes of a player, `steps` steps in all, each at most `longest`.

    What the player wants is recorded in every step, also where a push is done instead.
    """
    sheet: SpecSheet = env.unwrapped.spec_sheet  # type: ignore[attr-defined]  # ours
    rng = np.random.default_rng(seed)
    found: list[Trajectory] = []
    while sum(map(len, found)) < steps:
        if hasattr(player, "set_random_seed"):
            player.set_random_seed(seed + len(found))  # type: ignore[attr-defined]  # optional
        observation, info = env.reset(seed=seed + len(found))
        observations, wanted, pushed = [], [], []
        state, ended, command = None, False, info["instruction"]
        push, left = None, 0
        while not ended and len(wanted) < longest:
            starts = not wanted or info["instruction"] != command  # in a chain it may change
            command = info["instruction"]
            actions, state = player.predict(
                add_batch_axis(observation), state, np.array([starts]), True
            )
            wants = np.asarray(actions[0], np.float64)
            if left == 0:
                push, left = None, 0
                if rng.random() < 1 / PUSH_EVERY:
                    push, left = draw_push(sheet, rng)
            observations.append(observation)
            wanted.append(wants)
            pushed.append(push is not None)
            does = wants
            if push is not None:
                does, left = np.where(np.isnan(push), wants, push), left - 1
            does = np.clip(np.nan_to_num(does), -1, 1).astype(np.float32)
            observation, _, terminated, truncated, info = env.step(does)
            if info.get("crashed"):
                raise SimulatorCrashed(str(info["crash"]))
            ended = terminated or truncated
        found.append(Trajectory(observations, np.array(wanted), np.array(pushed)))
    return found


def draw_push(sheet: SpecSheet, rng: np.random.Generator) -> tuple[Array, int]:
    """Return a random motion, NaN where the player's own is kept, and for how many steps."""
    action = np.array([np.nan] * len(sheet.action))
    if sheet.action_mode != "ee_delta":
        action[:-1] = rng.uniform(-1, 1, len(action) - 1)
        return action, 2
    steps = 1
    for i in range(0, len(action), 7):
        for first, most in ((i, PUSH_M), (i + 3, PUSH_RAD)):
            scale = sheet.action[first].scale
            direction = rng.normal(size=3)
            size = most * rng.uniform(0.3, 1.0) / max(scale, 1e-9)
            steps = max(steps, min(int(np.ceil(size)), LONGEST_PUSH)) if scale else steps
            direction *= min(size / steps, 1.0) / np.linalg.norm(direction)
            action[first : first + 3] = direction if scale else 0.0
    return action, steps


def replay(
    policy: Policy, trajectories: list[Trajectory], change: Change | None = None, seed: int = 0
) -> list[Array]:
    """Return what a policy says to each step of each trajectory, as it would in an episode.

    All of them are shown side by side; the shorter ones stand still at their end.

    Args:
        policy: connected to the env.
        trajectories: of it.
        change: alters what the policy is shown.
        seed: of the policy.

    Returns:
        for each trajectory (T, A), unclipped.
    """
    if hasattr(policy, "set_random_seed"):
        policy.set_random_seed(seed)  # type: ignore[attr-defined]  # optional by design
    longest = max(map(len, trajectories))
    said, state = [], None
    for step in range(longest):
        batch = stack(trajectories, step)
        if change is not None:
            batch = change(batch, step)
        starts = np.full(len(trajectories), step == 0)
        actions, state = policy.predict(batch, state, starts, True)
        said.append(np.array(actions, np.float64))
    return [np.array([s[i] for s in said[: len(t)]]) for i, t in enumerate(trajectories)]


def stack(trajectories: list[Trajectory], step: int) -> dict[str, Any]:
    """Return the observations of a step as a batch, one row per trajectory."""
    rows = [t.observations[min(step, len(t) - 1)] for t in trajectories]
    return {
        key: tuple(row[key] for row in rows)
        if isinstance(value, str)
        else np.stack([row[key] for row in rows])
        for key, value in rows[0].items()
    }


def add_rows(parts: list[Array]) -> Array:
    """Return the steps of all trajectories one below another."""
    return np.concatenate(parts, axis=0)
