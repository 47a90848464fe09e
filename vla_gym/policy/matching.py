"""Bring a policy and an env together: bind, check conventions, convert or refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import SpecSheet
from vla_gym.errors import ContractMismatch
from vla_gym.policy.base import Policy, PolicySpec

__all__ = ["connect"]

GRIPPERS = ("+1 opens", "+1 closes")
ROTATIONS = ("axis-angle", "euler xyz")


def connect(policy: Any, sheet: SpecSheet) -> Policy:
    """Return a policy that speaks the env's convention.

    Calls `policy.for_env(sheet)` where it exists, checks `policy.spec` against the sheet, and adds
    a conversion where a lossless one exists.

    Args:
        policy: has `predict`, and perhaps `spec` and `for_env`.
        sheet: `env.unwrapped.spec_sheet`.

    Raises:
        ContractMismatch: the policy needs or speaks something else; the message lists all of it.
    """
    spec: PolicySpec = getattr(policy, "spec", None) or PolicySpec()
    _check(spec, sheet, policy)
    if hasattr(policy, "for_env"):
        policy = policy.for_env(sheet)
    flip_gripper = spec.gripper == "+1 closes"
    from_euler = spec.rotation == "euler xyz"
    if flip_gripper or from_euler:
        return _Converted(policy, sheet, flip_gripper, from_euler)
    return policy


def _check(spec: PolicySpec, sheet: SpecSheet, policy: Any) -> None:
    differences = []

    def compare(what: str, wanted: Any, found: Any) -> None:
        if wanted is not None and wanted != found:
            differences.append(f"{what}: the policy has {wanted!r}, the env {found!r}")

    if spec.suites is not None and sheet.suite not in spec.suites:
        differences.append(f"suite: the policy acts in {spec.suites}, the env is {sheet.suite!r}")
    missing = set(spec.cameras or ()) - set(sheet.cameras)
    if missing:
        differences.append(
            f"cameras: the policy reads {sorted(missing)}, the env shows {sorted(sheet.cameras)}"
        )
    if spec.cameras != () and spec.image_size is not None:
        found, size = sheet.images, spec.image_size
        wanted = size if isinstance(size, Mapping) else dict.fromkeys(spec.cameras or found, size)
        if any(found.get(camera, sheet.image_size) != n for camera, n in wanted.items()):
            compare("image_size", size, sheet.image_size)
    if spec.state and sheet.state_dim is None:
        differences.append("state: the policy reads it, the env does not show it (state=True does)")
    compare("proprio", spec.proprio, sheet.proprio_form)
    compare("instruction", spec.instruction, sheet.instruction)
    compare("action_mode", spec.action_mode, sheet.action_mode)
    compare("action entries", spec.action_dim, len(sheet.action))
    for name, value in spec.keywords:
        compare(name, value, sheet.keywords.get(name))
    for what, value, valid in (
        ("gripper", spec.gripper, GRIPPERS),
        ("rotation", spec.rotation, ROTATIONS),
    ):
        if value not in valid:
            differences.append(f"{what}: {value!r} is unknown, valid are {valid}")
        elif value != valid[0] and sheet.action_mode != "ee_delta":
            differences.append(f"{what}: {value!r} can be converted in action_mode='ee_delta' only")
    if differences:
        raise ContractMismatch(
            f"{type(policy).__name__} does not fit {sheet.id}: "
            + "; ".join(differences)
            + f". Make the env with {spec.env_keywords()} or choose another policy"
        )


class _Converted:
    """A policy whose actions are turned into the env's convention."""

    def __init__(
        self, policy: Policy, sheet: SpecSheet, flip_gripper: bool, from_euler: bool
    ) -> None:
        self._policy = policy
        self._flip_gripper, self._from_euler = flip_gripper, from_euler
        self._grippers = [i for i, e in enumerate(sheet.action) if e.name.endswith("gripper")]
        self._rotations = [i for i, e in enumerate(sheet.action) if e.name.endswith("drx")]
        self._scales = [sheet.action[i].scale for i in self._rotations]

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        actions, state = self._policy.predict(observation, state, episode_start, deterministic)
        actions = np.array(actions, dtype=np.float32)
        if self._flip_gripper:
            actions[:, self._grippers] *= -1
        if self._from_euler:
            for start, scale in zip(self._rotations, self._scales, strict=True):
                if scale > 0:  # 0: the robot ignores rotation
                    angles = actions[:, start : start + 3] * scale
                    actions[:, start : start + 3] = _euler_to_axis_angle(angles) / scale
        return actions, state

    def set_random_seed(self, seed: int) -> None:
        if hasattr(self._policy, "set_random_seed"):
            self._policy.set_random_seed(seed)  # type: ignore[attr-defined]  # optional by design


def _euler_to_axis_angle(angles: NDArray[np.float32]) -> NDArray[np.float64]:
    """Convert extrinsic xyz Euler angles to rotation vectors [rad], both shape (B, 3)."""
    half = angles.astype(np.float64) / 2
    (cx, cy, cz), (sx, sy, sz) = np.cos(half).T, np.sin(half).T
    w = cx * cy * cz + sx * sy * sz
    vector = np.stack(
        [
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
        ],
        axis=1,
    )
    vector, w = np.where((w < 0)[:, None], -vector, vector), np.abs(w)
    norm = np.linalg.norm(vector, axis=1)
    angle = 2 * np.arctan2(norm, w)
    factor = np.where(norm > 1e-12, angle / np.maximum(norm, 1e-12), 2.0)
    return np.asarray(vector * factor[:, None], dtype=np.float64)
