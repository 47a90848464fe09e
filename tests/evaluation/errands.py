"""A suite of somebody else with a fixed list of chains: five errands, three steps for each.

Importing it registers it, as `"tests.evaluation.errands:VLA/Errands-Chain-v0"` does in the workers.
"""

from __future__ import annotations

import numpy as np

import vla_gym
from vla_gym import PolicySpec
from vla_gym.contract import EEF_PROPRIO, ee_delta_entries
from vla_gym.suite import ActionMode, Camera, Frame, Keyword, Layout, SimulatorInfo, Suite, Task

CHAINS, LENGTH, STEPS = 10, 5, 3


class ErrandsSimulator:
    """An errand is done by a positive first entry. `state` holds the chain and what is done of it.

    Chain 9 of the published list breaks the simulator.
    """

    def __init__(self, setup):
        self.setup = setup

    def reset(self, seed, options):
        self.chain = options.get("chain", -1)
        self.done = self.steps = 0
        return self.frame(0.0)

    def step(self, action):
        if self.chain == 9:
            raise RuntimeError("the bicycle has a flat tyre")
        self.steps += 1
        achieved = bool(action[0] > 0)
        if achieved:
            self.done, self.steps = self.done + 1, 0
        return self.frame(float(achieved))

    def render(self, camera, height, width):
        return np.full((height, width, 3), 40 * self.done, np.uint8)

    def close(self):
        pass

    def frame(self, reward):
        return Frame(
            images={n: self.render(n, size, size) for n, size in self.setup.images.items()},
            proprio=np.zeros(10),
            state=np.array([self.chain, self.done], np.float64) if self.setup.state else None,
            reward=reward,
            success=self.done == LENGTH,
            info={"chain": self.chain, "chain_length": self.done},
            instructions=(f"run errand {min(self.done, LENGTH - 1)}",),
            truncated=self.done < LENGTH and self.steps == STEPS,
        )


def layout(task, keywords):
    mode = ActionMode(ee_delta_entries(0.01, None), ((0, 1.0), *[None] * 6), 1)
    return Layout(
        action_modes={"ee_delta": mode, "native": ActionMode(mode.entries[:1], ((0, 1.0),), 1)},
        proprio={"eef": EEF_PROPRIO, "joints": EEF_PROPRIO[-1:]},
        state_dim=2,
        cameras={"primary": Camera("street"), "wrist": Camera("bag")},
        robot="errand boy",
    )


SUITE = Suite(
    name="Errands",
    tasks={"Chain": Task("Chain", "chain", "run errand 0", (), horizon=LENGTH * STEPS)},
    simulators=(SimulatorInfo("bicycle", f"{__name__}:ErrandsSimulator"),),
    control_hz=5.0,
    terminate_on_success=True,
    layout=layout,
    reward="1 for each errand",
    keywords={"town": Keyword("D", ("A", "D"), "where")},
    options={"chain": "number in the published list"},
    protocol_options=lambda task, seed: {"chain": seed % CHAINS},
)
vla_gym.register_suite(SUITE)


class Boy:
    """Runs the first `chain % 6` errands of a chain, then rests."""

    spec = PolicySpec(suites=("Errands",), cameras=(), state=True)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        chain, done = observation["state"].T
        action = np.zeros((len(chain), 7), np.float32)
        action[:, 0] = np.where(done < chain % 6, 1.0, -1.0)
        return action, state


class IdleBoy(Boy):
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.zeros((len(observation["state"]), 7), np.float32), state
