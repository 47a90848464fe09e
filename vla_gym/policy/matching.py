"""Bring a policy and an env together: bind, check conventions, convert or refuse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import SpecSheet
from vla_gym.errors import ContractMismatch
from vla_gym.policy.base import Policy, PolicySpec
from vla_gym.policy.conversions import (
    CHANNELS,
    FRAMES,
    GRIPPERS,
    LAYOUTS,
    RESIZES,
    ROTATIONS,
    TURNS,
    ActionConversion,
    ObservationConversion,
)

__all__ = ["connect"]

FORMS: dict[str, tuple[str | None, ...]] = {
    "gripper": tuple(GRIPPERS),
    "rotation": (*ROTATIONS, "none"),
    "frame": FRAMES,
    "proprio_rotation": ("6d", *(form for form in ROTATIONS if form != "6d")),
    "proprio_gripper": ("1 opens, 0 closes", *GRIPPERS),
    "image_turn": tuple(TURNS),
    "image_channels": CHANNELS,
    "image_layout": LAYOUTS,
    "resize": (None, *RESIZES),
}
"""Field of PolicySpec -> its valid values, the env's own first."""

ACTION_FORMS = ("gripper", "rotation", "frame")
PROPRIO_FORMS = ("proprio_rotation", "proprio_gripper")


def connect(policy: Any, sheet: SpecSheet, spec: PolicySpec | None = None) -> Policy:
    """Return a policy that speaks the env's convention.

    Calls `policy.for_env(sheet)` where it exists, checks `policy.spec` against the sheet, and adds
    a conversion where a lossless one exists.

    Args:
        policy: has `predict`, and perhaps `spec` and `for_env`.
        sheet: `env.unwrapped.spec_sheet`.
        spec: what the policy declares, where `policy.spec` is not to be believed.

    Raises:
        ContractMismatch: the policy needs or speaks something else; the message lists all of it.
    """
    declared: PolicySpec = spec or getattr(policy, "spec", None) or PolicySpec()
    _check(declared, sheet, policy)
    if hasattr(policy, "for_env"):
        policy = policy.for_env(sheet)
    actions = None
    if sheet.action_mode == "ee_delta":
        actions = ActionConversion(declared, sheet)
        actions = None if actions.trivial else actions
    seen = ObservationConversion(declared, sheet)
    if actions is None and seen.trivial:
        return policy
    return _Converted(policy, actions, None if seen.trivial else seen)


def _check(spec: PolicySpec, sheet: SpecSheet, policy: Any) -> None:
    differences = [
        *_compare_needs(spec, sheet),
        *_compare_forms(spec, sheet),
    ]
    if differences:
        raise ContractMismatch(
            f"{type(policy).__name__} does not fit {sheet.id}: "
            + "; ".join(differences)
            + f". Make the env with {spec.env_keywords()} or choose another policy"
        )


def _compare_needs(spec: PolicySpec, sheet: SpecSheet) -> Iterable[str]:
    """Yield what the policy needs and the env, as it was made, does not have."""

    def compare(what: str, wanted: Any, found: Any) -> Iterable[str]:
        if wanted is not None and wanted != found:
            yield f"{what}: the policy has {wanted!r}, the env {found!r}"

    if spec.suites is not None and sheet.suite not in spec.suites:
        yield f"suite: the policy acts in {spec.suites}, the env is {sheet.suite!r}"
    missing = set(spec.cameras or ()) - set(sheet.cameras)
    if missing:
        yield f"cameras: the policy reads {sorted(missing)}, the env shows {sorted(sheet.cameras)}"
    images = sheet.images
    cameras = tuple(images) if spec.cameras is None else spec.cameras
    if spec.resize is None and any(
        spec.size_of(camera) not in (None, images.get(camera, sheet.image_size))
        for camera in cameras
    ):
        yield from compare("image_size", spec.image_size, sheet.image_size)
    if spec.state and sheet.state_dim is None:
        yield "state: the policy reads it, the env does not show it (state=True does)"
    yield from compare("proprio", spec.proprio, sheet.proprio_form)
    yield from compare("instruction", spec.instruction, sheet.instruction)
    yield from compare("action_mode", spec.action_mode, sheet.action_mode)
    known = spec.rotation in FORMS["rotation"] and spec.gripper in GRIPPERS
    if known and sheet.action_mode == "ee_delta":
        wanted = ActionConversion(spec, sheet).policy_dim
        if spec.action_dim not in (None, wanted):
            found = f"the env {len(sheet.action)}"
            if spec.rotation != "axis-angle":
                found += f", and rotation={spec.rotation!r} makes {wanted} of them"
            yield f"action entries: the policy has {spec.action_dim}, {found}"
    else:
        yield from compare("action entries", spec.action_dim, len(sheet.action))
    for name, value in spec.keywords:
        yield from compare(name, value, sheet.keywords.get(name))


def _compare_forms(spec: PolicySpec, sheet: SpecSheet) -> Iterable[str]:
    """Yield the forms of the policy that are unknown or cannot be converted here."""
    for what, valid in FORMS.items():
        value = getattr(spec, what)
        if value not in valid:
            yield f"{what}: {value!r} is unknown, valid are {valid}"
        elif value == valid[0]:
            continue
        elif what in ACTION_FORMS and sheet.action_mode != "ee_delta":
            yield f"{what}: {value!r} can be converted in action_mode='ee_delta' only"
        elif (what in PROPRIO_FORMS or what == "frame") and sheet.proprio_form != "eef":
            yield f"{what}: {value!r} can be converted with proprio='eef' only"
    if spec.scale is None:
        return
    if sheet.action_mode != "ee_delta":
        yield f"scale: {spec.scale!r} can be converted in action_mode='ee_delta' only"
    elif len(spec.scale) != 2 or not all(np.isfinite(s) and s > 0 for s in spec.scale):
        yield f"scale: {spec.scale!r} is not (metres, radians), two numbers above 0"


class _Converted:
    """A policy that sees and acts in its own forms, within an env that has others."""

    def __init__(
        self,
        policy: Policy,
        actions: ActionConversion | None,
        seen: ObservationConversion | None,
    ) -> None:
        self._policy, self._actions, self._seen = policy, actions, seen

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        seen = observation if self._seen is None else self._seen.to_policy(observation)
        actions, state = self._policy.predict(seen, state, episode_start, deterministic)
        actions = np.asarray(actions, dtype=np.float32)
        if self._actions is None:
            return actions, state
        if actions.ndim != 2 or actions.shape[1] != self._actions.policy_dim:
            raise ContractMismatch(
                f"{type(self._policy).__name__} returned actions of shape {actions.shape}; its "
                f"spec says (B, {self._actions.policy_dim})"
            )
        return self._actions.to_env(actions, observation.get("proprio")), state

    def set_random_seed(self, seed: int) -> None:
        if hasattr(self._policy, "set_random_seed"):
            self._policy.set_random_seed(seed)  # type: ignore[attr-defined]  # optional by design
