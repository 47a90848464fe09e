"""Does the policy see and speak as the env does? Alters what it sees; asks what others would do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import SpecSheet
from vla_gym.doctor.findings import Finding
from vla_gym.doctor.repairs import (
    BLOCK,
    MEND,
    SURE,
    Agreement,
    Repair,
    action_repairs,
    euler_share,
    picture_repairs,
    scale_repair,
)
from vla_gym.doctor.responses import alter, measure_lag, measure_response
from vla_gym.doctor.trajectories import Change, Trajectory, add_rows, replay, stack
from vla_gym.instruction import encode
from vla_gym.policy.base import Policy

__all__ = ["probe_alone", "probe_with_reference"]

Array = NDArray[np.float64]
Mend = Callable[[list[Array]], list[Array]]
FAR = 1.5
"""What is beyond is no overshoot; +-1 is all that the env does."""
SHARP = 0.05
"""A share with less doubt comes from a reference that is the policy itself, or as good as. With
more, what separates an imitator from an expert biases shares by as much as the faults are."""
VAGUE = "; the reference differs in more than this: compare with the policy in its own program"
ROUNDS = 3
"""Most faults that are looked for one after another."""
NO_AGREEMENT = 0.9
"""An error from which on the policy does something else than the reference."""


@dataclass
class Case:
    """A policy, what it was shown, and what it said.

    Attributes:
        policy: connected to the env.
        sheet: the env's.
        trajectories: as the policy sees them.
        reads_words: whether it declares that it reads the instruction.
        cameras: those that it sees.
        forms: the policy as if it had declared other forms of what it is shown.
        changes: of what it sees, that were found to help.
        mends: of what it says, that were found to help.
        said: what it says with all of them.
        looked: of each trajectory, the steps in which it is known to look at what it is shown; in
            the others it may go on with a chunk of actions.
    """

    policy: Policy
    sheet: SpecSheet
    trajectories: list[Trajectory]
    reads_words: bool
    cameras: tuple[str, ...]
    forms: list[Repair] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    mends: list[Mend] = field(default_factory=list)
    said: list[Array] = field(default_factory=list)
    looked: list[NDArray[np.bool_]] = field(default_factory=list)

    def ask(self, *more: Change, policy: Policy | None = None) -> list[Array]:
        """Return what the policy, or another, says with further changes of what it sees."""
        changes = [*self.changes, *more]

        def change(batch: dict[str, Any], step: int) -> dict[str, Any]:
            for each in changes:
                batch = each(batch, step)
            return batch

        said = replay(policy or self.policy, self.trajectories, change)
        for mend in self.mends:
            said = mend(said)
        return said


def probe_alone(case: Case, others: tuple[str, ...]) -> list[Finding]:
    """Return what is found without a reference; a fault of time is mended in the case.

    Args:
        case: to look at.
        others: other commands of the suite.
    """
    case.said = replay(case.policy, case.trajectories)
    again = replay(case.policy, case.trajectories)
    if not np.isfinite(add_rows(case.said)).all():
        evidence = f"{np.mean(~np.isfinite(add_rows(case.said))):.0%} of its numbers are not"
        case.said = [np.nan_to_num(s) for s in case.said]
        return [
            Finding("finite actions", "fail", evidence, "actions that are not finite", "see there")
        ]
    noise = float(np.abs(add_rows(case.said) - add_rows(again)).max())
    if noise > 1e-3:
        why = f"two replays of the same differ by {noise:.2g}: seed it in set_random_seed"
        names = ("instruction", "proprio in time", "pictures in time")
        return [Finding(name, "unknown", why) for name in names]
    return [*_probe_times(case), _probe_instruction(case, others)]


def _probe_times(case: Case) -> list[Finding]:
    """Tell stale proprio and stale pictures from actions that are late altogether."""
    keys = tuple(f"rgb_{camera}" for camera in case.cameras)
    felt = measure_lag(case.policy, case.trajectories, case.said, ("proprio",))
    seen = measure_lag(case.policy, case.trajectories, case.said, keys) if keys else None
    found = []
    both = [r.looked for r in (felt, seen) if r is not None]
    case.looked = [np.logical_or.reduce(parts) for parts in zip(*both, strict=True)]
    late = [r.lag for r in (felt, seen) if r is not None and r.lag is not None]
    if felt.lag and seen is not None and seen.lag and felt.lag == seen.lag:
        lag = felt.lag
        found.append(
            Finding(
                "actions in time",
                "fail",
                f"whatever is changed, the earliest answer comes {lag} step(s) later",
                "actions one step late" if lag == 1 else f"actions {lag} steps late",
                "say each action of a chunk in its own step: the index runs behind",
            )
        )
        case.mends.append(
            lambda said: [np.concatenate([s[lag:], s[-1:].repeat(lag, 0)]) for s in said]
        )
        case.said = case.ask()
        return found
    for name, response, key in (("proprio", felt, "proprio"), ("pictures", seen, "rgb")):
        probe = f"{name} in time"
        if response is None:
            found.append(Finding(probe, "not applicable", "it is shown no pictures"))
        elif response.lag is None:
            found.append(Finding(probe, "not applicable", f"changed {name} change no action"))
        elif response.lag == 0:
            evidence = (
                f"changed in one step, it answers in that step; in {response.share:.0%} of all "
                f"steps it answers at all, by up to {response.size:.2g}"
            )
            found.append(Finding(probe, "pass", evidence))
        else:
            alone = len(late) < 2
            evidence = f"the earliest answer to changed {name} comes {response.lag} step(s) later"
            if alone:
                evidence += "; all that it says may be late, since it answers to nothing else"
            found.append(
                Finding(
                    probe,
                    "fail",
                    evidence,
                    f"stale {name}",
                    f"show it the {name} of the same step",
                )
            )
            case.changes.append(_ahead(case.trajectories, key, response.lag))
            case.said = case.ask()
    return found


def _ahead(trajectories: list[Trajectory], prefix: str, lag: int) -> Change:
    """Return the change that shows the keys of a prefix from so many steps ahead."""

    def change(batch: dict[str, Any], step: int) -> dict[str, Any]:
        later = stack(trajectories, step + lag)
        return {k: later[k] if k.startswith(prefix) else v for k, v in batch.items()}

    return change


def _probe_instruction(case: Case, others: tuple[str, ...]) -> Finding:
    probe = "instruction"
    if not others:
        return Finding(probe, "not applicable", "the suite has no other command")
    sizes = {}
    for text in others:
        value = encode(text, case.sheet.instruction)

        def change(batch: dict[str, Any], step: int, value: Any = value) -> dict[str, Any]:
            del step
            n = len(batch["instruction"])
            words = (value,) * n if isinstance(value, str) else np.stack([value] * n)
            return {**batch, "instruction": words}

        sizes[text] = measure_response(case.said, case.ask(change))
    words = ", ".join(f"{size:.2f} by {text!r}" for text, size in sizes.items())
    evidence = f"its actions move, in their own spreads, {words}"
    if max(sizes.values()) > 0.01:
        return Finding(probe, "pass", evidence)
    if not case.reads_words:
        why = "it answers to no other command, and does not declare that it reads any"
        return Finding(probe, "not applicable", why)
    return Finding(
        probe,
        "fail",
        evidence,
        "ignored instruction",
        "the words do not reach the model, or it was trained on one command",
    )


def probe_with_reference(case: Case) -> list[Finding]:
    """Return what is found by comparison with what the reference wants in the same states.

    Args:
        case: its trajectories were played by the reference, and `probe_alone` has seen it.
    """
    agreement = Agreement(case.trajectories)
    keys = tuple(f"rgb_{camera}" for camera in case.cameras)
    sees = bool(keys) and measure_response(case.said, case.ask(alter(keys, lambda _: True))) > 0.02
    feels = measure_response(case.said, case.ask(alter(("proprio",), lambda _: True))) > 0.02
    repairs = action_repairs(case.sheet, case.trajectories)
    if feels:
        repairs = case.forms + repairs
    if sees:
        repairs = picture_repairs(case.cameras, case.sheet.images) + repairs
    before = agreement.error(case.said)
    accepted = _search(case, agreement, repairs)
    after = agreement.error(case.said)
    agrees = after < NO_AGREEMENT
    found = [_describe_agreement(before, after, agrees)]
    for probe in PROBES:
        found.append(_judge(probe, accepted, case, agreement, repairs, sees, agrees))
    found.append(_probe_rotation_form(case, agreement, agrees))
    found.append(_probe_early(case, agreement, agrees))
    found.append(_probe_range(case))
    return found


OF_PICTURES = ("picture orientation", "channel order", "camera order")
PROBES = (
    *OF_PICTURES,
    "proprio form",
    "gripper sign",
    "frame",
    "axes",
    "rotation unit",
    "normalisation",
)


NO_REPAIR = {
    "camera order": "it sees no two cameras of one size",
    "proprio form": "proprio changes no action, or is taken in the declared form alone",
    **dict.fromkeys(("frame", "axes", "rotation unit"), "for action_mode='ee_delta' alone"),
}
"""Why a probe has nothing to try."""


def _describe_agreement(before: float, after: float, agrees: bool) -> Finding:
    words = f"error {before:.2f}, in variances of what the reference does"
    if after != before:
        words += f"; {after:.2f} with what helps below"
    if agrees:
        return Finding("agreement", "pass", words)
    return Finding("agreement", "unknown", words + ": it does something else than the reference")


def _search(
    case: Case, agreement: Agreement, repairs: list[Repair]
) -> dict[str, tuple[Repair, float, float]]:
    """Apply the repair that helps most, while one does; return probe -> repair and errors."""
    accepted: dict[str, tuple[Repair, float, float]] = {}
    for _ in range(ROUNDS):
        error = agreement.error(case.said)
        candidates = [r for r in repairs if r.probe not in accepted]
        scale = scale_repair(case.said, agreement.wanted, case.sheet)
        if scale is not None and "normalisation" not in accepted:
            candidates.append(scale)
        best, best_score, best_said = None, MEND * error, case.said
        for repair in candidates:
            said = _apply(repair, case)
            score = agreement.error(said) * (1 + repair.handicap)
            if score < best_score and agreement.compare(said, case.said) > SURE:
                best, best_score, best_said = repair, score, said
        if best is None:
            break
        accepted[best.probe] = best, error, agreement.error(best_said)
        case.said = best_said
        if best.seen is not None:
            case.changes.append(best.seen)
        if best.said is not None:
            case.mends.append(best.said)
        if best.policy is not None:
            case.policy = best.policy
    return accepted


def _apply(repair: Repair, case: Case) -> list[Array]:
    if repair.policy is not None:
        return case.ask(policy=repair.policy)
    if repair.seen is not None:
        return case.ask(repair.seen)
    assert repair.said is not None
    return repair.said(case.said)


def _judge(
    probe: str,
    accepted: dict[str, tuple[Repair, float, float]],
    case: Case,
    agreement: Agreement,
    repairs: list[Repair],
    sees: bool,
    agrees: bool,
) -> Finding:
    """Return the finding of one probe, after the search."""
    if probe in accepted:
        repair, error, left = accepted[probe]
        evidence = f"error {error:.2f} as it is, {left:.2f} with {repair.what}"
        if not agrees:  # what helps chance is no fault
            evidence += ", but even so it does something else than the reference"
            return Finding(probe, "unknown", evidence)
        return Finding(probe, "fail", evidence, repair.fault, repair.remedy)
    if probe in OF_PICTURES and not sees:
        why = "it is shown no pictures" if not case.cameras else "pictures change no action"
        return Finding(probe, "not applicable", why)
    if not agrees:
        return Finding(probe, "unknown", "it does something else than the reference")
    if probe == "normalisation":
        if scale_repair(case.said, agreement.wanted, case.sheet) is None:
            return Finding(probe, "pass", "gains and offsets of all entries are near 1 and 0")
        return Finding(probe, "unknown", "gains or offsets are off, but mending them helps little")
    mine = [r for r in repairs if r.probe == probe and not r.partial]
    if probe == "rotation unit" and not set(agreement.used) & {3, 4, 5}:
        return Finding(probe, "not applicable", "nothing is turned here")
    if probe == "gripper sign" and not set(agreement.used) & {6}:
        return Finding(probe, "not applicable", "the reference leaves the gripper alone")
    if not mine:
        return Finding(probe, "not applicable", NO_REPAIR.get(probe, "there is one form only"))
    error = agreement.error(case.said)
    least, margin, alike = np.inf, np.inf, None
    for repair in mine:
        said = _apply(repair, case)
        least = min(least, agreement.error(said))
        apart = agreement.compare(case.said, said)
        if apart < margin:
            margin, alike = apart, repair
    if margin > 2:
        return Finding(probe, "pass", f"error {error:.2f} as it is, {least:.2f} or more otherwise")
    assert alike is not None
    return Finding(probe, "unknown", f"error {error:.2f}, and about the same with {alike.what}")


def _probe_rotation_form(case: Case, agreement: Agreement, agrees: bool) -> Finding:
    probe = "rotation form"
    scale = case.sheet.action[3].scale if case.sheet.action_mode == "ee_delta" else 0.0
    if not scale or not set(agreement.used) & {3, 4, 5}:
        return Finding(probe, "not applicable", "nothing is turned here")
    if not agrees:
        return Finding(probe, "unknown", "it does something else than the reference")
    share, doubt, largest = euler_share(case.said, agreement.wanted, scale, 3)
    evidence = (
        f"{share:+.2f} +- {doubt:.2f} of the way from rotation vectors to Euler angles, which "
        f"differ by up to {largest:.3f} rad here"
    )
    if doubt > SHARP:
        return Finding(probe, "unknown", evidence + VAGUE)
    if share > 0.5:
        return Finding(
            probe, "fail", evidence, "euler for axis-angle", "declare rotation='euler xyz'"
        )
    if share < -0.5:
        return Finding(
            probe,
            "fail",
            evidence,
            "axis-angle for euler",
            "its rotation vectors are taken for Euler angles: declare rotation='axis-angle'",
        )
    return Finding(probe, "pass", evidence)


def _probe_early(case: Case, agreement: Agreement, agrees: bool) -> Finding:
    """Tell whether the policy does what the reference does one step later."""
    probe = "actions ahead of time"
    if not agrees:
        return Finding(probe, "unknown", "it does something else than the reference")
    share, doubt = _find_lead(case, agreement)
    evidence = (
        f"{share:+.2f} +- {doubt:.2f} of the way to what the reference does one step later, in the "
        "steps in which it looks"
    )
    if doubt > SHARP:
        return Finding(probe, "unknown", evidence + VAGUE)
    if share > 0.5:
        return Finding(
            probe,
            "fail",
            evidence,
            "actions one step early",
            "begin each chunk with its first action",
        )
    return Finding(probe, "pass", evidence)


def _find_lead(case: Case, agreement: Agreement) -> tuple[float, float]:
    """Return which share of the way to the reference's next action a policy is, and the doubt.

    Only steps in which it looks count, if any are known: in others it may go on with a chunk.
    """
    looks = any(looked.any() for looked in case.looked)
    rows, targets = [], []
    for i, (t, said) in enumerate(zip(case.trajectories, case.said, strict=True)):
        wanted = agreement.wanted[i]
        # Where a push came, what the reference does next is no continuation.
        use = ~(t.pushed[:-2] | t.pushed[1:-1])
        if looks:
            use &= case.looked[i][1:-1]
        now, mean = wanted[1:-1], wanted.mean(axis=0)
        parts = (wanted[2:] - now, wanted[:-2] - now, now - mean)
        rows.append(np.stack([(part / agreement.unit)[use] for part in parts], axis=-1))
        targets.append(((np.clip(said, -1, 1)[1:-1] - now) / agreement.unit)[use])
    design, target = np.concatenate(rows)[:, agreement.used], np.concatenate(targets)
    design, target = design.reshape(-1, 3), target[:, agreement.used].reshape(-1)
    if np.abs(design[:, 0]).max(initial=0.0) < 1e-3:
        return 0.0, np.inf  # the reference does always the same
    # A policy that hesitates or smooths has a share in both neighbours and in the mean.
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    spread = (target - design @ solution).std()
    doubt = spread * np.sqrt(np.linalg.pinv(design.T @ design)[0, 0] * BLOCK)
    return float(solution[0]), float(doubt)


def _probe_range(case: Case) -> Finding:
    """Tell motion that is far beyond what the env can do; that of a policy mended so far."""
    motion = [i for i, e in enumerate(case.sheet.action) if not e.name.endswith("gripper")]
    rows, wanted = (
        add_rows(said)[:, motion] for said in (case.said, [t.wanted for t in case.trajectories])
    )
    mine, theirs = (float((np.abs(a) > FAR).any(axis=1).mean()) for a in (rows, wanted))
    evidence = (
        f"beyond [-{FAR:g}, {FAR:g}] in {mine:.0%} of the steps, what is played in {theirs:.0%}"
    )
    if mine > 0.3 and mine > 3 * theirs:
        return Finding(
            "range", "fail", evidence, "actions out of range", "normalise or scale the actions"
        )
    return Finding("range", "pass", evidence)
