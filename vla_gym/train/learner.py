"""What a policy must have so that it can be trained, and how a trainer gets one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from vla_gym.errors import InvalidOption
from vla_gym.policy import PolicySpec, make_policy

__all__ = ["Learner", "make_learner"]


class Learner(Protocol):
    """A policy with a model that can be trained; `make_policy("vla", ...)` is one.

    A plug-in that wants to be trained takes, besides what opens a checkpoint, `config` (a mapping)
    and `statistics` (of proprio, action and state: each mean, std, min, max, q01, q99; and count).

    Attributes:
        spec: which observations it reads: cameras, state.
        model: a `torch.nn.Module` with `loss(batch) -> (scalar, numbers to log)` and
            `parameter_groups(learning_rate, encoder_learning_rate) -> groups for an optimiser`. A
            batch has `rgb_<camera>` uint8 (B, history, H, W, 3), `proprio` (B, n), `state` (B, m),
            `instruction` (B texts), `action` (B, chunk, n) as the env takes them, and
            `action_mask` (B, chunk), False beyond an episode's end.
        history: frames of observation that it sees.
        chunk: actions that it predicts at once.
        image_size: of the pictures that it works on [pixels]; others are resized.
    """

    spec: PolicySpec
    model: Any

    @property
    def history(self) -> int: ...  # noqa: D102

    @property
    def chunk(self) -> int: ...  # noqa: D102

    @property
    def image_size(self) -> int: ...  # noqa: D102

    def predict(  # noqa: D102
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]: ...

    def save(self, folder: str | Path, sheets: Sequence[Any] = ()) -> None:
        """Write a checkpoint that `make_policy` opens, in one piece."""


def make_learner(name: str, **keywords: Any) -> Any:
    """Return the policy `name` if it can be trained.

    Args:
        name: as `make_policy` takes it; with a checkpoint behind the colon, that is trained on.
        **keywords: of the policy; `config` and `statistics` for a new one.

    Raises:
        InvalidOption: it cannot be trained.
    """
    policy = make_policy(name, **keywords)
    lacking = [
        attribute
        for attribute in ("model", "save", "history", "chunk", "image_size")
        if not hasattr(policy, attribute)
    ]
    if not lacking:
        model: Any = policy.model  # type: ignore[attr-defined]  # just looked
        lacking = [f"model.{n}" for n in ("loss", "parameter_groups") if not hasattr(model, n)]
    if lacking:
        raise InvalidOption(
            f"the policy {name!r} cannot be trained: it has no {', '.join(lacking)} "
            '(vla_gym.train.learner.Learner). "vla" has'
        )
    return policy
