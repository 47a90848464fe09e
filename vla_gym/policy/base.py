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
                ensembling live here, one entry per env.
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
        state: whether it reads the privileged state.
        proprio: `"eef"` or `"joints"`.
        instruction: `"text"`, `"embedding"` or `"bytes"`.
        action_mode: the mode whose entries it speaks.
        action_dim: number of entries of its actions.
        gripper: `"+1 opens"` or `"+1 closes"`; converted where it differs (`ee_delta` only).
        rotation: `"axis-angle"` or `"euler xyz"` (extrinsic), converted where it differs
            (`ee_delta` only).
        keywords: further `gym.make` keywords that it needs, as (name, value) pairs.
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

    def env_keywords(self) -> dict[str, Any]:
        """Return the `gym.make` keywords that give this policy what it needs."""
        needs = {
            "cameras": self.cameras,
            "image_size": self.image_size,
            "state": self.state,
            "proprio": self.proprio,
            "instruction": self.instruction,
            "action_mode": self.action_mode,
        }
        return {k: v for k, v in needs.items() if v is not None} | dict(self.keywords)
