"""The forms in which policies see and act, and the way from the env's form to theirs and back.

Every conversion here but the resizing of pictures is lossless: there and back is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import EE_DELTA, EEF_PROPRIO, SpecSheet
from vla_gym.deps import require
from vla_gym.policy.base import PolicySpec
from vla_gym.rotations import (
    euler_to_matrix,
    matrix_to_euler,
    matrix_to_quaternion,
    quaternion_to_matrix,
    rotation_vector,
    vector_to_matrix,
)

__all__ = [
    "CHANNELS",
    "FRAMES",
    "GRIPPERS",
    "LAYOUTS",
    "RESIZES",
    "ROTATIONS",
    "TURNS",
    "ActionConversion",
    "ObservationConversion",
]

Array = NDArray[np.float64]


class RotationForm(NamedTuple):
    """A way to write a rotation: its number of entries, and the way to a matrix and back."""

    size: int
    to_matrix: Callable[[Array], Array]
    from_matrix: Callable[[Array], Array]


def _columns_to_matrix(columns: Array) -> Array:
    """Return the matrix of its first two columns, made orthonormal as in Zhou et al. 2019."""
    x = columns[:3] / np.linalg.norm(columns[:3])
    y = columns[3:] - (x @ columns[3:]) * x
    y = y / np.linalg.norm(y)
    return np.stack([x, y, np.cross(x, y)], axis=1)


def _normed(quaternion: Array) -> Array:
    return quaternion / np.linalg.norm(quaternion)


ROTATIONS = {
    "axis-angle": RotationForm(3, vector_to_matrix, rotation_vector),
    "euler xyz": RotationForm(3, euler_to_matrix, matrix_to_euler),
    "quaternion xyzw": RotationForm(
        4, lambda q: quaternion_to_matrix(_normed(q)), matrix_to_quaternion
    ),
    "quaternion wxyz": RotationForm(
        4,
        lambda q: quaternion_to_matrix(_normed(np.roll(q, -1))),
        lambda matrix: np.roll(matrix_to_quaternion(matrix), 1),
    ),
    "6d": RotationForm(6, _columns_to_matrix, lambda matrix: matrix[:, :2].T.reshape(6)),
}
"""Forms of a rotation. Euler angles are extrinsic xyz; 6d is the first two columns of the matrix;
a quaternion with w < 0 is its own negative."""

GRIPPERS = {
    "+1 opens": (1.0, 0.0),
    "+1 closes": (-1.0, 0.0),
    "1 opens, 0 closes": (2.0, -1.0),
    "1 closes, 0 opens": (-2.0, 1.0),
}
"""Form of a gripper entry -> gain and offset to the contract's `"+1 opens"`."""

FRAMES = ("base", "hand")
CHANNELS = ("RGB", "BGR")
LAYOUTS = ("HWC", "CHW")
RESIZES = ("nearest", "box", "bilinear", "bicubic", "lanczos")

TURNS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "upright": lambda pictures: pictures,
    "rotated 180": lambda pictures: pictures[:, ::-1, ::-1],
    "upside down": lambda pictures: pictures[:, ::-1],
    "mirrored": lambda pictures: pictures[:, :, ::-1],
}
"""How pictures (B, H, W, 3) stand; each is its own inverse. Upside down is flipped vertically, as
OpenGL's buffers are; LIBERO's and OpenVLA's are flipped or rotated, by code base."""


class ActionConversion:
    """From the actions of a policy to those of an env in `ee_delta`, and back.

    Args:
        spec: the policy's; its forms must be known ones.
        sheet: the env's.
    """

    def __init__(self, spec: PolicySpec, sheet: SpecSheet) -> None:
        self._spec = spec
        self._arms = len(sheet.action) // len(EE_DELTA)
        self._form = ROTATIONS.get(spec.rotation)
        self._turn = 0 if self._form is None else self._form.size  # entries of the rotation
        self._gain, self._offset = GRIPPERS[spec.gripper]
        scales = [sheet.action[i].scale for i in (0, 3)]
        self._env_m, self._env_rad = scales  # equal for all axes; 0 rad: rotation is ignored
        self._policy_m, self._policy_rad = spec.scale or scales
        self.trivial = (
            spec.gripper == "+1 opens"
            and spec.rotation == "axis-angle"
            and spec.frame == "base"
            and spec.scale is None
        )
        """Whether both sides speak the same."""

    @property
    def policy_dim(self) -> int:
        """Number of entries of the policy's actions."""
        return self._arms * (3 + self._turn + 1)

    def to_env(self, actions: Any, proprio: Any = None) -> NDArray[np.float32]:
        """Return the env's actions (B, 7 arms).

        Args:
            actions: the policy's, shape (B, policy_dim).
            proprio: the env's `proprio="eef"` (B, 10 arms), for actions in the hand's frame.
        """
        said = np.asarray(actions, dtype=np.float32)
        heard = np.zeros((len(said), self._arms * len(EE_DELTA)), np.float32)
        theirs, ours = said.reshape(len(said), self._arms, -1), heard.reshape(len(said), -1, 7)
        ours[..., :3] = self._rescale(theirs[..., :3], self._policy_m, self._env_m)
        ours[..., 6] = theirs[..., -1] * self._gain + self._offset
        for row, arm in np.ndindex(*ours.shape[:2]):
            ours[row, arm, 3:6] = self._vector_of(theirs[row, arm, 3:-1])
            if self._spec.frame == "hand":
                hand = _hand(proprio, row, arm)
                ours[row, arm, :3] = hand @ ours[row, arm, :3]
                ours[row, arm, 3:6] = hand @ ours[row, arm, 3:6]
        return heard

    def to_policy(self, actions: Any, proprio: Any = None) -> NDArray[np.float32]:
        """Return the policy's actions (B, policy_dim) for the env's: the inverse of `to_env`.

        With `rotation="none"`, and where the robot ignores rotation, that of the env is dropped.
        """
        heard = np.asarray(actions, dtype=np.float32)
        said = np.zeros((len(heard), self.policy_dim), np.float32)
        ours, theirs = heard.reshape(len(heard), -1, 7), said.reshape(len(said), self._arms, -1)
        theirs[..., -1] = (ours[..., 6] - self._offset) / self._gain
        for row, arm in np.ndindex(*ours.shape[:2]):
            back = np.eye(3)
            if self._spec.frame == "hand":
                back = _hand(proprio, row, arm).T
            motion = ours[row, arm, :6].astype(np.float64)
            theirs[row, arm, :3] = self._rescale(back @ motion[:3], self._env_m, self._policy_m)
            theirs[row, arm, 3:-1] = self._entries_of(back @ motion[3:])
        return said

    def _vector_of(self, entries: NDArray[np.float32]) -> Any:
        """Return the env's three rotation entries for those of the policy."""
        if self._form is None:
            return 0.0
        if self._spec.rotation == "axis-angle":
            return self._rescale(entries, self._policy_rad, self._env_rad)
        if self._env_rad == 0:  # the robot ignores it
            return entries if self._turn == 3 and self._spec.scale is None else 0.0
        angles = entries.astype(np.float64)
        if self._turn == 3:
            angles = angles * self._policy_rad
        return rotation_vector(self._form.to_matrix(angles)) / self._env_rad

    def _entries_of(self, vector: Array) -> Any:
        """Return the policy's rotation entries for the env's three."""
        if self._form is None:
            return 0.0
        if self._spec.rotation == "axis-angle":
            return self._rescale(vector, self._env_rad, self._policy_rad)
        if self._turn == 3 and self._env_rad == 0:
            return vector if self._spec.scale is None else 0.0
        entries = self._form.from_matrix(vector_to_matrix(vector * self._env_rad))
        return entries / self._policy_rad if self._turn == 3 else entries

    @staticmethod
    def _rescale(entries: Any, source: float, target: float) -> Any:
        if source == target:
            return entries
        return entries * (source / target) if target else 0.0


class ObservationConversion:
    """From the observation of an env to what a policy sees.

    Args:
        spec: the policy's; its forms must be known ones.
        sheet: the env's.
    """

    def __init__(self, spec: PolicySpec, sheet: SpecSheet) -> None:
        self._spec = spec
        self._arms = len(sheet.proprio) // len(EEF_PROPRIO)
        found = sheet.images
        cameras = tuple(found) if spec.cameras is None else spec.cameras
        wanted = {camera: spec.size_of(camera) or found[camera] for camera in cameras}
        plain = (spec.image_turn, spec.image_channels, spec.image_layout) == (
            "upright",
            "RGB",
            "HWC",
        )
        self._sizes = {c: n for c, n in wanted.items() if not plain or n != found[c]}
        self._proprio = (spec.proprio_rotation, spec.proprio_gripper) != ("6d", "1 opens, 0 closes")
        self.trivial = not (self._sizes or self._proprio)
        """Whether the policy sees what the env shows."""

    def to_policy(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Return a batch as the policy wants it; what it does not care about is passed on."""
        seen = dict(observation)
        for camera, size in self._sizes.items():
            seen[f"rgb_{camera}"] = self._convert_pictures(observation[f"rgb_{camera}"], size)
        if self._proprio:
            seen["proprio"] = self._convert_proprio(observation["proprio"])
        return seen

    def _convert_pictures(self, pictures: Any, size: int) -> NDArray[np.uint8]:
        pictures = np.asarray(pictures)
        if pictures.shape[1] != size:
            pictures = _resize(pictures, size, str(self._spec.resize))
        pictures = TURNS[self._spec.image_turn](pictures)
        if self._spec.image_channels == "BGR":
            pictures = pictures[..., ::-1]
        if self._spec.image_layout == "CHW":
            pictures = np.moveaxis(pictures, -1, 1)
        return np.ascontiguousarray(pictures)

    def _convert_proprio(self, proprio: Any) -> NDArray[np.float32]:
        form = ROTATIONS[self._spec.proprio_rotation]
        gain, offset = GRIPPERS[self._spec.proprio_gripper]
        ours = np.asarray(proprio, np.float32).reshape(len(proprio), self._arms, -1)
        theirs = np.empty((*ours.shape[:2], 3 + form.size + 1), np.float32)
        theirs[..., :3] = ours[..., :3]
        if self._spec.proprio_rotation == "6d":
            theirs[..., 3:9] = ours[..., 3:9]
        else:
            for row, arm in np.ndindex(*ours.shape[:2]):
                theirs[row, arm, 3:-1] = form.from_matrix(_hand(ours, row, arm))
        theirs[..., -1] = (2 * ours[..., -1] - 1 - offset) / gain
        return theirs.reshape(len(theirs), -1)


def _hand(proprio: Any, row: int, arm: int) -> Array:
    """Return the hand's rotation matrix, hand to base, from `proprio="eef"`."""
    entries = np.asarray(proprio[row], np.float64).reshape(-1, len(EEF_PROPRIO))[arm]
    return _columns_to_matrix(entries[3:9])


def _resize(pictures: NDArray[np.uint8], size: int, how: str) -> NDArray[np.uint8]:
    """Return pictures (B, H, W, 3) in another size. Pillow's filters widen where they shrink."""
    image = require("PIL.Image", "eval", f"resize={how!r}")
    way = image.Resampling[how.upper()]
    scaled = [np.asarray(image.fromarray(p).resize((size, size), way)) for p in pictures]
    return np.stack(scaled) if scaled else np.empty((0, size, size, 3), np.uint8)
