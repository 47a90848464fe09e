"""Which one change makes a policy agree with a reference that acts rightly in the same states?

A convention fault is a known change of what a policy sees or says, and each has its inverse. So
the faults are found by trial: pictures are turned, channels swapped, signs flipped, frames changed,
one at a time, and a change that makes the policy agree much better names the fault that it mends.
The best one is kept, and the search goes on for a second one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import SpecSheet
from vla_gym.doctor.trajectories import Change, Trajectory, add_rows
from vla_gym.policy.base import Policy
from vla_gym.policy.conversions import TURNS
from vla_gym.rotations import (
    matrix_to_euler,
    vector_to_matrix,
)

__all__ = [
    "BLOCK",
    "MEND",
    "SURE",
    "Agreement",
    "Repair",
    "action_repairs",
    "euler_share",
    "fit_scale",
    "form_repairs",
    "picture_repairs",
    "scale_repair",
]

Array = NDArray[np.float64]
Actions = list[Array]

MEND = 0.75
"""A repair is taken if the error falls below this share of what it was, ..."""
SURE = 3.0
"""... by at least this many standard errors."""
CAP = 9.0
"""Largest squared error of an entry, in squared standard deviations: no outlier decides alone."""
BLOCK = 6
"""Steps that count as one sample, since neighbouring ones are alike."""


@dataclass(frozen=True)
class Repair:
    """A change that mends one fault.

    Attributes:
        probe: to which finding it belongs.
        fault: what is wrong if it helps.
        what: the change in words: "with the pictures rotated by 180 degrees".
        remedy: what to do.
        seen: alters what the policy is shown.
        said: alters the actions of all trajectories.
        policy: in place of the policy: the same, connected as if it had declared another form.
    """

    probe: str
    fault: str
    what: str
    remedy: str
    seen: Change | None = None
    said: Callable[[Actions], Actions] | None = None
    policy: Policy | None = None
    partial: bool = False  # of some cameras only: names the fault, does not clear the policy
    handicap: float = 0.0  # how much better than a simpler repair it must be, as a share


class Agreement:
    """How well actions agree with those of the reference, step by step.

    Errors are in standard deviations of what the reference does, entry by entry, so that one that
    hardly moves counts as much as one that does; entries that it never uses count not at all.
    """

    def __init__(self, trajectories: list[Trajectory]) -> None:
        self.wanted = [np.clip(t.wanted, -1, 1) for t in trajectories]
        rows = add_rows(self.wanted)
        self.spread = rows.std(axis=0)
        self.used = np.flatnonzero((self.spread > 0.02) | (np.abs(rows.mean(axis=0)) > 0.05))
        self.unit = np.maximum(self.spread, 0.05)
        self._around = np.mean(self._squares(rows - rows.mean(axis=0)))

    def _squares(self, difference: Array) -> Array:
        scaled = (difference / self.unit)[:, self.used] ** 2
        return np.minimum(scaled, CAP).mean(axis=1)

    def errors(self, said: Actions) -> list[Array]:
        """Return the error of each step of each trajectory."""
        return [
            self._squares(np.clip(s, -1, 1) - w) for s, w in zip(said, self.wanted, strict=True)
        ]

    def error(self, said: Actions) -> float:
        """Return the mean error; 1 is about that of always saying the reference's mean."""
        return float(add_rows(self.errors(said)).mean() / max(self._around, 1e-9))

    def compare(self, one: Actions, other: Actions) -> float:
        """Return by how many standard errors `other` is worse than `one`."""
        blocks = []
        for a, b in zip(self.errors(one), self.errors(other), strict=True):
            blocks += [part.mean() for part in np.array_split(b - a, max(len(a) // BLOCK, 1))]
        spread = np.std(blocks) / np.sqrt(len(blocks)) + 1e-9
        return float(np.mean(blocks) / spread)


def picture_repairs(cameras: Iterable[str], sizes: Mapping[str, int]) -> list[Repair]:
    """Return the changes of pictures: turned, in all cameras or one, channels and cameras swapped.

    Args:
        cameras: those that the policy sees.
        sizes: of the cameras' pictures [pixels].
    """
    cameras = tuple(cameras)
    groups = [cameras, *((c,) for c in cameras if len(cameras) > 1)]
    found = []
    for group in groups:
        of = "the pictures" if len(group) == len(cameras) else f"the picture of {group[0]}"
        for name, turn in TURNS.items():
            if name == "upright":
                continue
            found.append(
                Repair(
                    "picture orientation",
                    f"{name} pictures",
                    f"{of} {name}",
                    f"the policy sees {of} {name}: turn them back, or declare image_turn",
                    seen=_change_pictures(group, turn),
                    partial=len(group) < len(cameras),
                )
            )
        found.append(
            Repair(
                "channel order",
                "swapped channels",
                f"red and blue of {of} swapped",
                f"the policy sees {of} as BGR: swap them, or declare image_channels='BGR'",
                seen=_change_pictures(group, lambda pictures: pictures[..., ::-1]),
                partial=len(group) < len(cameras),
            )
        )
    for one, other in itertools.combinations(cameras, 2):
        if sizes[one] == sizes[other]:
            found.append(
                Repair(
                    "camera order",
                    "swapped cameras",
                    f"the pictures of {one} and {other} exchanged",
                    f"the policy sees {other} where it was trained on {one}: exchange them, or "
                    "name its cameras in the order of training",
                    seen=_exchange(f"rgb_{one}", f"rgb_{other}"),
                )
            )
    return found


def form_repairs(policies: Mapping[str, Policy], declared: str) -> list[Repair]:
    """Return the other forms in which the rotation in proprio may be meant.

    Args:
        policies: form -> the policy, connected as if it had declared that one.
        declared: what it does declare.
    """
    return [
        Repair(
            "proprio form",
            f"{declared} for {form} in proprio",
            f"the rotation in proprio as {form}",
            f"the policy was trained on {form}: declare proprio_rotation={form!r}",
            policy=policy,
        )
        for form, policy in policies.items()
    ]


def _exchange(one: str, other: str) -> Change:
    def change(batch, step):
        del step
        return {**batch, one: batch[other], other: batch[one]}

    return change


def _change_pictures(
    cameras: tuple[str, ...], turn: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> Change:
    def change(batch, step):
        del step
        keys = {f"rgb_{camera}" for camera in cameras}
        return {k: np.ascontiguousarray(turn(v)) if k in keys else v for k, v in batch.items()}

    return change


def action_repairs(sheet: SpecSheet, trajectories: list[Trajectory]) -> list[Repair]:
    """Return the changes of actions that fit an env in `ee_delta`, the likeliest first."""
    grippers = [i for i, e in enumerate(sheet.action) if e.name.endswith("gripper")]
    found = [
        Repair(
            "gripper sign",
            "inverted gripper",
            "the gripper entry negated",
            "negate the gripper entry, or declare gripper='+1 closes'",
            said=_each(lambda a: _with(a, grippers, -a[:, grippers])),
        ),
        Repair(
            "gripper range",
            "gripper in [0, 1]",
            "the gripper entry stretched from [0, 1] to [-1, 1]",
            "declare gripper='1 opens, 0 closes'",
            said=_each(lambda a: _with(a, grippers, 2 * a[:, grippers] - 1)),
        ),
    ]
    if sheet.action_mode != "ee_delta":
        return found
    starts = range(0, len(sheet.action), 7)
    turns = [i + k for i in starts for k in (3, 4, 5)]
    if sheet.action[3].scale:
        found.append(
            Repair(
                "rotation unit",
                "degrees for radians",
                "the rotation divided by 57.3",
                "turn degrees into radians, or declare scale=(..., pi / 180)",
                said=_each(lambda a: _with(a, turns, a[:, turns] * np.pi / 180)),
            )
        )
        found.append(
            Repair(
                "rotation unit",
                "radians for degrees",
                "the rotation multiplied by 57.3",
                "the rotation has been taken for degrees: leave it in radians",
                said=_each(lambda a: _with(a, turns, a[:, turns] * 180 / np.pi)),
            )
        )
    if sheet.proprio_form == "eef":
        hands = [_read_hands(t) for t in trajectories]
        found += [
            Repair(
                "frame",
                "wrong frame",
                "its motion turned from the hand's frame to the base's",
                "the policy acts in the hand's frame: declare frame='hand'",
                said=lambda said: _turn(said, hands, False),
            ),
            Repair(
                "frame",
                "wrong frame",
                "its motion turned from the base's frame to the hand's",
                "the policy's motion is turned by the hand once too often: drop that",
                said=lambda said: _turn(said, hands, True),
            ),
        ]
    names = "dx", "dy", "dz"
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            if order == (0, 1, 2) and signs == (1, 1, 1):
                continue
            words = ", ".join("-"[: s < 0] + names[i] for i, s in zip(order, signs, strict=True))
            found.append(
                Repair(
                    "axes",
                    "wrong axes",
                    f"({words}) in place of (dx, dy, dz)",
                    f"say ({words}) for (dx, dy, dz)",
                    said=_each(lambda a, o=order, s=signs: _permute(a, starts, o, s)),
                    handicap=0.1,
                )
            )
    return found


def _each(change: Callable[[Array], Array]) -> Callable[[Actions], Actions]:
    return lambda said: [change(a) for a in said]


def _with(actions: Array, columns: list[int], values: Array) -> Array:
    changed = actions.copy()
    changed[:, columns] = values
    return changed


def _permute(
    actions: Array, starts: range, order: tuple[int, ...], signs: tuple[int, ...]
) -> Array:
    changed = actions.copy()
    for i in starts:
        changed[:, i : i + 3] = actions[:, [i + k for k in order]] * signs
    return changed


def _read_hands(trajectory: Trajectory) -> Array:
    """Return the hands' rotation matrices, hand to base, (T, arms, 3, 3)."""
    rows = np.array([o["proprio"] for o in trajectory.observations], np.float64)
    columns = rows.reshape(len(rows), -1, 10)[..., 3:9]
    x, y = columns[..., :3], columns[..., 3:]
    return np.stack([x, y, np.cross(x, y)], axis=-1)


def _turn(said: Actions, hands: list[Array], back: bool) -> Actions:
    changed = [a.copy() for a in said]
    for a, hand in zip(changed, hands, strict=True):
        for arm in range(hand.shape[1]):
            matrix = hand[:, arm].transpose(0, 2, 1) if back else hand[:, arm]
            for i in (7 * arm, 7 * arm + 3):
                a[:, i : i + 3] = np.einsum("tij,tj->ti", matrix, a[:, i : i + 3])
    return changed


GAINS = (0.5, 2.0)
"""Of an entry of a policy whose statistics are right: a policy that hesitates has less than 1."""
OFFSET = 0.12
"""Largest offset of such an entry, of the 2 from -1 to 1."""


def scale_repair(said: Actions, wanted: Actions, sheet: SpecSheet) -> Repair | None:
    """Return the change that undoes gains and offsets that are out of bounds, or None."""
    gains, offsets = np.ones(len(sheet.action)), np.zeros(len(sheet.action))
    words = []
    for i, entry in enumerate(sheet.action):
        if entry.name.endswith("gripper"):
            continue
        gain, offset, correlation = fit_scale(said, wanted, i)
        if correlation < 0.4:
            continue
        if not GAINS[0] < gain < GAINS[1] or abs(offset) > OFFSET:
            gains[i], offsets[i] = gain, offset
            words.append(f"{entry.name} = {gain:.2f} x what it should be {offset:+.2f}")
    if not words:
        return None
    return Repair(
        "normalisation",
        "wrong statistics",
        f"gains and offsets undone ({', '.join(words)})",
        "un-normalise with the statistics of the data that the policy was trained on",
        said=_each(lambda a: (a - offsets) / gains),
        handicap=0.3,
    )


def fit_scale(said: Actions, wanted: Actions, entry: int) -> tuple[float, float, float]:
    """Return gain and offset of said = gain * wanted + offset, and the correlation.

    The gain is the ratio of the spreads with the sign of the correlation: a least-squares gain
    would be too small for a policy that agrees with the reference in part.
    """
    s, w = add_rows(said)[:, entry], add_rows(wanted)[:, entry]
    if s.std() < 1e-6 or w.std() < 1e-6:
        return 0.0, float(s.mean() - w.mean()), 0.0
    correlation = float(np.corrcoef(s, w)[0, 1])
    gain = float(np.sign(correlation) * s.std() / w.std())
    return gain, float(s.mean() - gain * w.mean()), correlation


def euler_share(
    said: Actions, wanted: Actions, rad: float, start: int
) -> tuple[float, float, float]:
    """Tell Euler angles from rotation vectors by what they differ in at second order.

    Fits said = gain * wanted + share * (euler - wanted) + offset, where euler are the Euler angles
    of the rotation that the reference wants.

    Args:
        said: actions of the policy.
        wanted: those of the reference.
        rad: what 1.0 of a rotation entry means [rad].
        start: index of the first rotation entry.

    Returns:
        share: 0 for rotation vectors, 1 for Euler angles, -1 for vectors that something took for
            Euler angles; its standard error; and the largest difference of the forms [rad].
    """
    s, w = (add_rows(a)[:, start : start + 3] * rad for a in (said, wanted))
    euler = np.array([matrix_to_euler(vector_to_matrix(v)) for v in w])
    difference = euler - w
    inside = np.all(np.abs(w) < 0.999 * rad, axis=1)  # what the reference clips is no rotation
    if inside.sum() < 20 or np.abs(difference[inside]).max() < 1e-6:
        return 0.0, np.inf, 0.0
    rows, targets = [], []
    for k in range(3):
        columns = np.zeros((inside.sum(), 7))
        columns[:, k], columns[:, 3 + k], columns[:, 6] = w[inside, k], 1.0, difference[inside, k]
        rows.append(columns)
        targets.append(s[inside, k])
    design, target = np.concatenate(rows), np.concatenate(targets)
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    left = target - design @ solution
    covariance = np.linalg.pinv(design.T @ design) * left.var() * BLOCK / 2
    return float(solution[6]), float(np.sqrt(covariance[6, 6])), float(np.abs(difference).max())
