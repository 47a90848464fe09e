"""Policies for the evaluator's tests; worker processes import them from here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from vla_gym import PolicySpec


class ReachBall:
    """Solves Toy-Reach from the state: the gripper's place and the ball's are in it."""

    spec = PolicySpec(suites=("Toy",), cameras=(), state=True)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        seen = observation["state"]
        action = np.zeros((len(seen), 7), np.float32)
        action[:, :3] = np.clip((seen[:, 7:10] - seen[:, :3]) / 0.05, -1, 1)
        return action, state


class Zero:
    spec = PolicySpec(cameras=())

    def __init__(self):
        self.seed = -1

    def set_random_seed(self, seed):
        self.seed = seed

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.act()
        return np.zeros((len(observation["proprio"]), 7), np.float32), state

    def act(self):
        pass


class RaisesOnSeed2(Zero):
    def act(self):
        if self.seed == 2:
            raise RuntimeError("the cat walked over the keyboard")


class DiesOnSeed2(Zero):
    def act(self):
        if self.seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)


class KillsSimulatorOnSeed2(Zero):
    """Kills the env's simulator, which runs in a process of its own, in the third step of seed 2.

    As somebody else might: no part of the evaluation knows of it.
    """

    def set_random_seed(self, seed):
        super().set_random_seed(seed)
        self.steps = 0

    def act(self):
        self.steps += 1
        if self.seed == 2 and self.steps == 3:
            (simulator,) = find_simulators(os.getpid())
            os.kill(simulator, signal.SIGKILL)


def find_simulators(parent):
    """Return the ids of the simulators' processes that a process has started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_text()
        except OSError:  # no process, or one that has just ended
            continue
        if int(ppid) == parent and state != "Z" and "worker_main.py" in command:
            found.append(int(folder.name))
    return found


class DiesOnce(Zero):
    """Kills its process at seed 2 unless a marker file exists, and makes it."""

    def act(self):
        marker = Path(os.environ["VLA_GYM_TEST_MARKER"])
        if self.seed == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class SleepsOnSeed2(Zero):
    def act(self):
        if self.seed == 2:
            time.sleep(3600)


class ReachesAndLeaves(ReachBall):
    """Goes to the ball for 30 steps, and then away from it."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        action, _ = super().predict(observation)
        steps = [0] * len(action) if state is None else state
        for row, step in enumerate(steps):
            if step >= 30:
                action[row] = 1.0
        return action, [step + 1 for step in steps]


class OtherSuite(Zero):
    spec = PolicySpec(suites=("Elsewhere",), cameras=())


class WantsState(Zero):
    spec = PolicySpec(cameras=(), state=True, action_dim=99)
