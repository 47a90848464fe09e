"""Policies for the tests of the shared process, which imports them from here.

Each acts row by row, so that an action does not depend on who is served with it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from tests.evaluation import stand_ins
from vla_gym import PolicySpec
from vla_gym.policy import Chunker

CALLS = "VLA_GYM_TEST_CALLS"
"""Names a file for the number of rows of each call."""

MARKER = "VLA_GYM_TEST_SIGNAL"
"""Names a file that says that the fault has happened; its name is that of the signal."""


def count_rows(observation):
    return len(next(iter(observation.values())))


def note_call(rows):
    with Path(os.environ[CALLS]).open("a") as file:
        file.write(f"{rows}\n")


class Slow:
    """Takes 30 ms for a call, of however many rows."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        note_call(count_rows(observation))
        time.sleep(0.03)
        return observation["x"].astype(np.float32), state


class Sums:
    """Answers with the sum of all that it has seen in this episode, kept in a list of sums."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        time.sleep(0.01)
        before = [None] * count_rows(observation) if state is None else state
        sums = [
            x if start or past is None else past + x
            for x, past, start in zip(observation["x"], before, episode_start, strict=True)
        ]
        return np.array(sums, np.float32), sums


class RaisesAbove1000(Sums):
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        actions, sums = super().predict(observation, state, episode_start)
        if (actions > 1000).any():
            raise RuntimeError("more than 1000")
        return actions, sums


class RecurrentSums:
    """The same with a state as sb3_contrib's RecurrentPPO has: a tuple of (layers, B, n)."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        time.sleep(0.01)
        x = observation["x"][None]
        hidden, cell = (np.zeros_like(x), np.zeros_like(x)) if state is None else state
        assert isinstance(state, tuple | None) and hidden.shape == x.shape
        hidden = np.where(episode_start[None, :, None], 0, hidden) + x
        return hidden[0].astype(np.float32), (hidden, cell)


class LateRecurrentSums(RecurrentSums):
    """Has no state after its first step, where nothing is to be remembered yet."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        actions, state = super().predict(observation, state, episode_start)
        return actions, None if episode_start.all() else state


class OneActionForAll:
    """Forgets the batch axis, as a policy that was only tried with one env may."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        time.sleep(0.01)
        return observation["x"][:1].astype(np.float32), state


class CountsUp:
    """Predicts chunks x, x + 1, x + 2 of three actions."""

    def __init__(self):
        self.chunker = Chunker()

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        time.sleep(0.01)

        def predict_chunk(seen):
            return seen["x"][:, None] + np.arange(3)[:, None]

        return self.chunker.predict(predict_chunk, observation, state, episode_start)


class Texts:
    """Answers with the length of the command, and the sum of all else that it sees."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        time.sleep(0.01)
        rows = []
        for row in range(count_rows(observation)):
            numbers = [v[row].sum() for v in observation.values() if isinstance(v, np.ndarray)]
            rows.append([len(observation["instruction"][row]), sum(numbers)])
        return np.array(rows, np.float32), state


class CannotBeMade:
    def __init__(self):
        raise RuntimeError("the weights are in the other coat")


class Looks:
    """Acts in Toy by pictures of two sizes and the command in the given form."""

    form, keywords = "text", ()

    def __init__(self):
        self.spec = PolicySpec(
            suites=("Toy",),
            cameras=("primary", "wrist"),
            image_size={"primary": 32, "wrist": 24},
            instruction=self.form,
        )

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        actions = np.zeros((count_rows(observation), 7), np.float32)
        for row in range(len(actions)):
            texts = observation["instruction"][row]
            seen = sum(texts.encode()) if isinstance(texts, str) else float(np.abs(texts).sum())
            for i, camera in enumerate(("primary", "wrist")):
                actions[row, i] = np.sin(observation[f"rgb_{camera}"][row].astype(int).sum())
            actions[row, 2] = np.sin(seen)
        return actions, state


class LooksAtBytes(Looks):
    form = "bytes"


class LooksAtEmbedding(Looks):
    form = "embedding"


class Dances:
    """Acts in any suite by what it feels of itself and by the command."""

    spec = PolicySpec(cameras=())

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        actions = np.zeros((count_rows(observation), 7), np.float32)
        for row, command in enumerate(observation["instruction"]):
            actions[row] = np.sin(40 * observation["proprio"][row, :7] + len(command))
        return actions, state


class Chunks:
    """Goes to Toy's ball by chunks of four actions, of which three are taken."""

    spec = stand_ins.ReachBall.spec

    def __init__(self):
        self.chunker = Chunker(execute=3)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        def predict_chunk(seen):
            action, _ = stand_ins.ReachBall().predict(seen)
            return np.stack([action * k for k in (1.0, 0.7, 0.4, 0.1)], axis=1)

        return self.chunker.predict(predict_chunk, observation, state, episode_start)


class BreaksOnce(stand_ins.ReachBall):
    """Sends the signal that the environment names to its process, in its tenth call, once."""

    calls = 0

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.calls += 1
        marker = Path(os.environ.get(MARKER, "/"))
        if self.calls == 10 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.Signals[marker.name])
        return super().predict(observation)


class ErrandsByHeart:
    """Runs errands by counting steps since the command was given, not by what it sees.

    It waits up to three steps with each command: two are in time, three are not.
    """

    spec = PolicySpec(suites=("Errands",), cameras=(), state=True)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        before = [None] * count_rows(observation) if state is None else state
        steps = [
            0 if start or past is None else past + 1
            for past, start in zip(before, episode_start, strict=True)
        ]
        action = np.zeros((len(steps), 7), np.float32)
        chain, done = observation["state"].T
        action[:, 0] = np.where(np.array(steps) >= (chain * 7 + done) % 4, 1.0, -1.0)
        return action, steps


if __name__ == "__main__":  # python -m tests.evaluation.shared_policies FOLDER
    from tests.evaluation.shared_policies import Chunks as Policy  # as the workers import it
    from vla_gym.evaluation.evaluate import evaluate

    options = {"workers": 2, "batch": 2, "video": False}
    evaluate({"p": Policy}, ["Toy-Reach"], episodes=1000, folder=sys.argv[1], **options)
