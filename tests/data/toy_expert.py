"""Experts of the Toy suite for the collector's tests; worker processes import them from here."""

from __future__ import annotations

import os
import signal

import numpy as np

from tests.evaluation.stand_ins import ReachBall
from vla_gym import PolicySpec


class SolvesEvenSeeds(ReachBall):
    """Solves the episodes with an even seed and stands still in the others."""

    def set_random_seed(self, seed):
        self.seed = seed

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        actions, state = super().predict(observation, state, episode_start, deterministic)
        return actions * (self.seed % 2 == 0), state


class DiesOnSeed1(ReachBall):
    """Takes its process down in the episode with seed 1."""

    def set_random_seed(self, seed):
        if seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class RandomMotion:
    """Moves at random, with the gripper closed."""

    spec = PolicySpec(suites=("Toy",), cameras=(), action_mode="ee_delta", action_dim=7)

    def set_random_seed(self, seed):
        self.rng = np.random.default_rng(seed)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        actions = self.rng.uniform(-0.5, 0.5, (len(observation["proprio"]), 7))
        actions[:, 6] = -1.0
        return actions.astype(np.float32), state
