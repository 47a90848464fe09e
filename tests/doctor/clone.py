"""A small policy that really looks: it imitates an expert from pictures, proprio and words.

Kernel ridge regression on small pictures (their main components) and proprio, learned in seconds
from an expert's episodes with pushes, each sample with the expert's next actions: a chunk.
"""

from __future__ import annotations

import numpy as np

from vla_gym.doctor.trajectories import play
from vla_gym.policy import Chunker, PolicySpec

PIXELS, COMPONENTS = 12, 24
OPPONENT = np.array([[1, 4, 2], [1, 0, -4], [1, -4, 2]]) / 3
"""Brightness, red against blue, both against green."""


class Clone:
    """Knows one command; to any other it holds still."""

    def __init__(self, cameras, image_size, horizon, execute):
        self.spec = PolicySpec(
            cameras=cameras,
            image_size=image_size,
            proprio="eef",
            instruction="text",
            action_mode="ee_delta",
            action_dim=7,
        )
        self.horizon, self.chunker = horizon, Chunker(execute=execute)

    def learn(self, trajectories):
        chunks, samples = [], []
        for t in trajectories:
            for i in range(len(t)):
                last = [t.wanted[min(i + k, len(t) - 1)] for k in range(self.horizon)]
                chunks.append(np.clip(last, -1, 1).reshape(-1))
                samples.append(t.observations[i])
        batch = {k: np.stack([s[k] for s in samples]) for k in samples[0] if k != "instruction"}
        pictures = self._shrink(batch)
        self.mean = pictures.mean(0)
        _, values, axes = np.linalg.svd(pictures - self.mean, full_matrices=False)
        self.axes = axes[:COMPONENTS] / values[:COMPONENTS, None] * np.sqrt(len(pictures))
        self.low = batch["proprio"].mean(0)
        self.spread = np.maximum(batch["proprio"].std(0), 0.01)
        self.known = self._features(batch)
        distances = self._distances(self.known)
        self.width = np.median(distances)
        self.offset = np.mean(chunks, axis=0)
        kernel = np.exp(-distances / self.width) + 0.02 * np.eye(len(samples))
        self.weights = np.linalg.solve(kernel, np.array(chunks) - self.offset)
        self.command = {s["instruction"] for s in samples}
        return self

    def _shrink(self, batch):
        small = []
        for camera in self.spec.cameras:
            p = batch[f"rgb_{camera}"].astype(np.float64) / 255
            n = p.shape[1] // PIXELS
            p = p[:, : n * PIXELS, : n * PIXELS]
            p = p.reshape(len(p), PIXELS, n, PIXELS, n, 3).mean((2, 4)) @ OPPONENT
            small.append(p.reshape(len(p), -1))
        return np.concatenate(small, axis=1)

    def _features(self, batch):
        seen = (self._shrink(batch) - self.mean) @ self.axes.T
        felt = (batch["proprio"] - self.low) / self.spread
        return np.concatenate([seen, felt], axis=1)

    def _distances(self, features):
        a, b = features, self.known
        return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)

    def predict_chunk(self, observation):
        features = self._features(observation)
        kernel = np.exp(-self._distances(features) / self.width)
        chunks = (kernel @ self.weights + self.offset).reshape(len(features), self.horizon, -1)
        knows = np.array([text in self.command for text in observation["instruction"]])
        return (chunks * knows[:, None, None]).astype(np.float32)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return self.chunker.predict(self.predict_chunk, observation, state, episode_start)


def learn_clone(env, expert, steps, longest, execute=2, horizon=4, seed=10_000):
    """Return a clone of a connected expert, from `steps` steps of it in the env."""
    sheet = env.unwrapped.spec_sheet
    clone = Clone(tuple(sheet.cameras), sheet.image_size, horizon, execute)
    return clone.learn(play(env, expert, steps, longest, seed))
