"""What a policy is: Stable-Baselines3's batched `predict`, and a declaration of conventions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Policy", "PolicySpec"]


@runtime_checkable
class Policy(Protocol):
    """Maps a batch of observations to a batch of actions.

    Every Stable-Baselines3 model is one as it is. A policy may also have:

    - `spec`: a `PolicySpec`. Without it nothing is checked and nothing converted.
    - `for_env(sheet)`: returns the policy for the env of a `SpecSheet`, for one that must know the
      task or the number of actions.
    - `set_random_seed(seed)`: called before each episode (SB3's own name for it).
    """

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return actions and the next recurrent state.

        Args:
            observation: the env's observation with a leading batch axis B: `rgb_*` uint8
                (B, H, W, 3), `proprio` float32 (B, n), `instruction` a sequence of B str (or an
                array (B, k)), `state` float64 (B, n).
            state: what the last call returned, None at first. Recurrent state, action chunks and
                ensembling live here. A list with one entry per env lets envs come and go between
                calls, as batched evaluation does: None is the entry of a new one. Do not change
                it in place.
            episode_start: (B,) True where an episode begins and the entry of `state` is void. The
                evaluator also sets it at each further instruction of a chain.
            deterministic: whether to return the mode instead of a sample.

        Returns:
            actions, shape (B, action_dim), and the next state.
        """
        ...


@dataclass(frozen=True)
class PolicySpec:
    """What a policy needs to see and what its actions mean. None: it does not care.

    Attributes:
        suites: names of the suites it can act in.
        cameras: cameras it reads; `()` if it reads none.
        image_size: size of the images that it takes [pixels]; camera -> size where they differ.
        drawn_size: size in which the env draws them for it, where its training data were drawn in
            another one and scaled by `resize`; None: `image_size`.
        state: whether it reads the privileged state.
        proprio: `"eef"`, `"joints"` or another form that the suite has, such as `"native"`.
        instruction: `"text"`, `"embedding"` or `"bytes"`.
        action_mode: the mode whose entries it speaks.
        action_dim: number of entries of its actions.
        keywords: further `gym.make` keywords that it needs, as (name, value) pairs.

    What follows is converted where it differs from the env's (`ee_delta` and `eef` only). Entries
    of an action are x, y, z, the rotation, the gripper; of proprio the same.

    Attributes:
        gripper: `"+1 opens"`, `"+1 closes"`, `"1 opens, 0 closes"` or `"1 closes, 0 opens"`.
        rotation: `"axis-angle"`, `"euler xyz"` (extrinsic), `"quaternion xyzw"`, `"quaternion
            wxyz"`, `"6d"` (the first two columns of the matrix) or `"none"`: no entries, the hand
            is not turned.
        frame: `"base"` or `"hand"`, in which its motion is meant.
        scale: metres and radians that 1.0 of its motion means; None: what the env's means.
            (1.0, 1.0) is a policy in m and rad, (1.0, pi / 180) in m and degrees. What is then
            beyond the env's largest motion is clipped.
        proprio_rotation: `"6d"` or another of the forms above.
        proprio_gripper: as `gripper`, of the opening.
        image_turn: how its pictures stand: `"upright"`, `"rotated 180"`, `"upside down"` (flipped
            vertically) or `"mirrored"`.
        image_channels: `"RGB"` or `"BGR"`.
        image_layout: `"HWC"` or `"CHW"`.
        resize: how pictures of another size than `image_size` are scaled: `"nearest"`, `"box"`,
            `"bilinear"`, `"bicubic"` or `"lanczos"` (Pillow's, which average where they shrink).
            None: they are refused, since an env can draw the right size.
    """

    suites: tuple[str, ...] | None = None
    cameras: tuple[str, ...] | None = None
    image_size: int | Mapping[str, int] | None = None
    state: bool | None = None
    proprio: str | None = None
    instruction: str | None = None
    action_mode: str | None = None
    action_dim: int | None = None
    gripper: str = "+1 opens"
    rotation: str = "axis-angle"
    keywords: tuple[tuple[str, Any], ...] = ()
    frame: str = "base"
    scale: tuple[float, float] | None = None
    proprio_rotation: str = "6d"
    proprio_gripper: str = "1 opens, 0 closes"
    image_turn: str = "upright"
    image_channels: str = "RGB"
    image_layout: str = "HWC"
    resize: str | None = None
    drawn_size: int | Mapping[str, int] | None = None

    def env_keywords(self) -> dict[str, Any]:
        """Return the `gym.make` keywords that give this policy what it needs."""
        needs = {
            "cameras": self.cameras,
            "image_size": self.image_size if self.drawn_size is None else self.drawn_size,
            "state": self.state,
            "proprio": self.proprio,
            "instruction": self.instruction,
            "action_mode": self.action_mode,
        }
        return {k: v for k, v in needs.items() if v is not None} | dict(self.keywords)

    def size_of(self, camera: str) -> int | None:
        """Return the size that it takes of a camera's pictures [pixels], None for any."""
        if isinstance(self.image_size, Mapping):
            return self.image_size.get(camera)
        return self.image_size
