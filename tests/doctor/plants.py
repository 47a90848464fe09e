"""Faults as they happen in code bases, planted around a policy that has none.

Each wraps a policy that is connected to the env of a sheet, and speaks the env's conventions.
"""

from __future__ import annotations

import numpy as np

from vla_gym.rotations import matrix_to_euler, vector_to_matrix


class Plant:
    """A policy with something wrong between it and the env."""

    def __init__(self, policy, sheet):
        self.policy, self.sheet, self.spec = policy, sheet, policy.spec
        self.command = policy.command

    def see(self, observation):
        return observation

    def say(self, actions, observation):
        return actions

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        actions, state = self.policy.predict(
            self.see(observation), state, episode_start, deterministic
        )
        return self.say(np.array(actions), observation), state


def pictures(change):
    def see(self, observation):
        return {k: change(v) if k.startswith("rgb_") else v for k, v in observation.items()}

    return see


class Flipped(Plant):
    """LIBERO's pictures, as OpenGL leaves them, in place of upright ones."""

    see = pictures(lambda p: p[:, ::-1])


class Rotated(Plant):
    """Rotated by 180 degrees, as OpenVLA's code does for LIBERO."""

    see = pictures(lambda p: p[:, ::-1, ::-1])


class Swapped(Plant):
    """OpenCV's BGR."""

    see = pictures(lambda p: p[..., ::-1])


class Inverted(Plant):
    def say(self, actions, observation):
        actions[:, 6] *= -1
        return actions


class HandFrame(Plant):
    """The motion in the hand's frame, executed in the base's."""

    def say(self, actions, observation):
        for row, proprio in zip(actions, observation["proprio"].astype(float), strict=True):
            x, y = proprio[3:6], proprio[6:9]
            hand = np.stack([x, y, np.cross(x, y)], axis=1)
            row[:3], row[3:6] = hand.T @ row[:3], hand.T @ row[3:6]
        return actions


class Euler(Plant):
    """Euler angles where the env takes a rotation vector."""

    def say(self, actions, observation):
        rad = self.sheet.action[3].scale
        for row in actions:
            matrix = vector_to_matrix(row[3:6].astype(float) * rad)
            row[3:6] = matrix_to_euler(matrix) / rad
        return actions


class Statistics(Plant):
    """Un-normalised with the statistics of another data set (shaped as BridgeData's are)."""

    gain = np.array([0.35, 2.6, 0.4])
    offset = np.array([0.25, -0.3, 0.2])

    def say(self, actions, observation):
        actions[:, :3] = actions[:, :3] * self.gain + self.offset
        return actions


class Deaf(Plant):
    """The words never reach it: the same command always."""

    def see(self, observation):
        known = next(iter(self.command))
        return {**observation, "instruction": (known,) * len(observation["instruction"])}


class Degrees(Plant):
    def say(self, actions, observation):
        actions[:, 3:6] = np.degrees(actions[:, 3:6])
        return actions


class Remembering(Plant):
    """A plant with something of each env that it keeps from step to step."""

    def start(self, state, episode_start, size):
        inner, kept = (None, [None] * size) if state is None else state
        if episode_start is not None:
            kept = [None if start else k for k, start in zip(kept, episode_start, strict=True)]
        return inner, kept


class Early(Plant):
    """The first action of each chunk is skipped: everything is done one step early."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        def skip(seen):
            return self.policy.predict_chunk(seen)[:, 1:]

        return self.policy.chunker.predict(skip, observation, state, episode_start)


class Late(Remembering):
    """What is done is what was to be done one step ago."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        inner, kept = self.start(state, episode_start, len(observation["proprio"]))
        actions, inner = self.policy.predict(observation, inner, episode_start, deterministic)
        old = [a if k is None else k for a, k in zip(actions, kept, strict=True)]
        return np.array(old), (inner, list(actions))


class Stale(Remembering):
    """Proprio of the step before, as from a buffer that is read before it is filled."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        now = observation["proprio"]
        inner, kept = self.start(state, episode_start, len(now))
        old = np.array([n if k is None else k for n, k in zip(now, kept, strict=True)])
        seen = {**observation, "proprio": old}
        actions, inner = self.policy.predict(seen, inner, episode_start, deterministic)
        return actions, (inner, list(now))


PLANTS = {
    "flipped image": (Flipped, "upside down pictures"),
    "rotated image": (Rotated, "rotated 180 pictures"),
    "swapped channels": (Swapped, "swapped channels"),
    "inverted gripper": (Inverted, "inverted gripper"),
    "wrong frame": (HandFrame, "wrong frame"),
    "Euler as axis-angle": (Euler, "euler for axis-angle"),
    "wrong statistics": (Statistics, "wrong statistics"),
    "ignored instruction": (Deaf, "ignored instruction"),
    "skipped first of a chunk": (Early, "actions one step early"),
    "late by one": (Late, "actions one step late"),
    "degrees for radians": (Degrees, "degrees for radians"),
    "stale proprio": (Stale, "stale proprio"),
}
"""What is planted -> the class, and the fault that the doctor should name."""
