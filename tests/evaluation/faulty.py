"""A suite and a policy that break in every way, each planned fault once; and what breaks them.

`VLA_GYM_TEST_FAULTS` names a folder for the marks of faults that have happened; without it there
are none. Whether an episode has a fault, and which, is a function of what seeded it.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
import zlib
from pathlib import Path

import numpy as np

import vla_gym
from vla_gym import PolicySpec
from vla_gym.suite import SimulatorInfo
from vla_gym.suites import toy

KINDS = ("raise", "hang", "exit", "kill", "segfault")
SHARE = 0.11
"""Of the episodes: with a planned fault of the simulator's, and as many of the policy's."""


def maybe_break(where: str, number: int) -> None:
    """Do what is planned for this number, if it has not been done before."""
    marks = os.environ.get("VLA_GYM_TEST_FAULTS")
    draw = zlib.crc32(f"{where} {number}".encode())
    if marks is None or draw % 1000 >= 1000 * SHARE:
        return
    kind = KINDS[draw // 1000 % len(KINDS)]
    try:
        Path(marks, f"{where}-{number}-{kind}").touch(exist_ok=False)
    except FileExistsError:
        return
    if kind == "raise":
        raise RuntimeError(f"planned fault of the {where}")
    if kind == "hang":
        time.sleep(3600)
    if kind == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSEGV)


class FaultySimulator(toy.ToySimulator):
    def reset(self, seed, options):
        self.countdown, self.seed = 1 + seed % 5, seed
        return super().reset(seed, options)

    def step(self, action):
        self.countdown -= 1
        if self.countdown == 0:
            maybe_break("simulator", self.seed)
        return super().step(action)


vla_gym.register_suite(
    dataclasses.replace(
        toy.SUITE,
        name="Faulty",
        simulators=(SimulatorInfo("toy", f"{__name__}:FaultySimulator"),),
    )
)
ID = f"{__name__}:VLA/Faulty-Reach-v0"


class FaultyPolicy:
    """Goes towards the ball, with a wobble of its own seed; breaks in its third step."""

    spec = PolicySpec(suites=("Faulty",), cameras=(), state=True)

    def set_random_seed(self, seed):
        self.seed, self.rng = seed, np.random.default_rng(seed)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        step = 0 if state is None else state[0]
        if step == 2:
            maybe_break("policy", self.seed)
        seen = observation["state"]
        action = np.zeros((1, 7), np.float32)
        action[:, :3] = np.clip((seen[:, 7:10] - seen[:, :3]) / 0.3, -1, 1)
        action[:, :3] += self.rng.normal(0, 1.5, 3)
        return action.clip(-1, 1), [step + 1]


if __name__ == "__main__":  # python -m tests.evaluation.faulty FOLDER EPISODES WORKERS
    from tests.evaluation.faulty import FaultyPolicy as Policy  # as the workers import it
    from vla_gym.evaluation.evaluate import evaluate

    evaluate(
        {"wobbly": Policy},
        ["tests.evaluation.faulty:VLA/Faulty-Reach-v0"],
        episodes=int(sys.argv[2]),
        folder=sys.argv[1],
        workers=int(sys.argv[3]),
        timeout=float(os.environ.get("VLA_GYM_TEST_TIMEOUT", "4")),
        video=False,
    )
