"""Probe a policy and an env together, and say what does not fit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from vla_gym import registration
from vla_gym.contract import SpecSheet
from vla_gym.doctor.env_probes import probe_env
from vla_gym.doctor.findings import Diagnosis, Finding
from vla_gym.doctor.policy_probes import Case, probe_alone, probe_with_reference
from vla_gym.doctor.repairs import form_repairs
from vla_gym.doctor.trajectories import Trajectory, play
from vla_gym.errors import ContractMismatch, DependencyNotInstalled, InvalidOption
from vla_gym.policy.base import Policy, PolicySpec
from vla_gym.policy.matching import FORMS, connect
from vla_gym.policy.registry import list_policies, make_policy
from vla_gym.rollout import add_batch_axis

__all__ = ["diagnose", "find_expert"]

STEPS, LONGEST = 300, 60
"""Control steps that the policy is shown, and the most of one episode."""
OTHER_COMMANDS = 2
EXPERT_OF_TASK = "expert"
EXPERT = "-expert"
"""How the names of policies end that act rightly from the privileged state."""


def diagnose(
    policy: Policy | str,
    env: gym.Env[Any, Any] | str,
    *,
    reference: Policy | str | None = EXPERT_OF_TASK,
    keywords: Mapping[str, Any] | None = None,
    steps: int = STEPS,
    seed: int = 0,
) -> Diagnosis:
    """Probe a policy in an env for faults of convention.

    The env is moved by hand, to see that it does what its spec sheet says. Then the reference plays
    a few episodes with pushes, and the policy is shown the same observations: as they are, and
    changed in known ways. What it says is compared with what the reference does.

    Args:
        policy: or its name. It is connected to the env as in an evaluation.
        env: an id; or an env, perhaps with wrappers, as the policy is to see it. Such a one needs
            `state=True` for an expert.
        reference: a policy that acts rightly in this env, or its name. Best is the same policy in
            the program that it was trained in. `"expert"` takes the scripted expert of the task,
            if there is one; None, or no expert: the policy plays itself, and only what needs no
            comparison is found.
        keywords: of `gym.make`, beyond those that the policies ask for.
        steps: control steps to look at; fewer for a slow policy.
        seed: of the episodes.

    Raises:
        ContractMismatch: the policy, or the reference, does not fit the env as declared.
        InvalidOption: `steps` is less than 50, or `keywords` are given with a made env.
    """
    if steps < 50:
        raise InvalidOption(f"steps={steps} is too few to tell anything; at least 50")
    started = time.perf_counter()
    name = policy if isinstance(policy, str) else type(policy).__name__
    made = make_policy(policy) if isinstance(policy, str) else policy
    made_reference: Any = reference
    if isinstance(reference, str) and reference != EXPERT_OF_TASK:
        made_reference = make_policy(reference)
    owned = isinstance(env, str)
    if not isinstance(env, str):
        if keywords:
            raise InvalidOption("keywords are for an env that is made here; this one is made")
    else:
        env = _make_env(env, made, made_reference, dict(keywords or {}))
    try:
        return _diagnose(env, made, made_reference, name, reference, steps, seed, started)
    finally:
        if owned:
            env.close()


def find_expert(sheet: SpecSheet) -> tuple[str, Policy] | None:
    """Return name and policy of the first `*-expert` that fits an env, or None."""
    for name in list_policies():
        if name.endswith(EXPERT):
            try:
                return name, connect(make_policy(name), sheet)
            except (ContractMismatch, DependencyNotInstalled, KeyError):
                continue
    return None


def _make_env(
    env_id: str, policy: Any, reference: Any, keywords: dict[str, Any]
) -> gym.Env[Any, Any]:
    wanted: dict[str, Any] = {}
    for each in (policy, reference):
        spec = getattr(each, "spec", None)
        needs = {} if spec is None else spec.env_keywords()
        if each is not policy:  # one that sees less does not make the policy see less
            needs = {k: v for k, v in needs.items() if k not in ("cameras", "image_size")}
        wanted |= needs
    if reference == EXPERT_OF_TASK:
        wanted["state"] = True
    return gym.make(env_id, disable_env_checker=True, **{**wanted, **keywords})


def _diagnose(
    env: gym.Env[Any, Any],
    policy: Any,
    reference: Any,
    name: str,
    reference_name: Any,
    steps: int,
    seed: int,
    started: float,
) -> Diagnosis:
    sheet: SpecSheet = env.unwrapped.spec_sheet  # type: ignore[attr-defined]  # ours
    spec: PolicySpec = getattr(policy, "spec", None) or PolicySpec()
    fitted = connect(policy, sheet)
    if reference == EXPERT_OF_TASK:
        reference_name, player = find_expert(sheet) or (None, None)
    elif reference is None:
        player = None
    else:
        player = connect(reference, sheet)
        if not isinstance(reference_name, str):
            reference_name = type(reference).__name__
    findings, pictures = probe_env(env, seed)
    played = play(env, player or fitted, steps, LONGEST, seed)
    shown = played if spec.state else [_without_state(t) for t in played]
    cameras = tuple(sheet.cameras) if spec.cameras is None else spec.cameras
    forms = form_repairs(_redeclare(policy, spec, sheet, shown[0]), spec.proprio_rotation)
    case = Case(fitted, sheet, shown, spec.instruction is not None, cameras, forms)
    findings += probe_alone(case, _other_commands(sheet, played))
    if player is None:
        findings.append(
            Finding(
                "agreement",
                "unknown",
                "there is no reference: orientation of pictures, channels, signs, frames, units "
                "and statistics need one",
            )
        )
    else:
        findings += probe_with_reference(case)
    latency = measure_latency(fitted, shown[0])
    findings.append(_judge_latency(latency, sheet))
    pictures |= _mend(case, shown[0].observations[0])
    return Diagnosis(
        policy=name,
        env_id=sheet.id,
        reference=reference_name,
        findings=tuple(findings),
        latency_ms=latency,
        steps=sum(map(len, played)),
        seconds=time.perf_counter() - started,
        pictures=pictures,
    )


def _redeclare(
    policy: Any, spec: PolicySpec, sheet: SpecSheet, trajectory: Trajectory
) -> dict[str, Policy]:
    """Return form -> the policy with the rotation in proprio in that form, of those it takes."""
    if sheet.proprio_form != "eef":
        return {}
    found = {}
    for form in FORMS["proprio_rotation"]:
        if form == spec.proprio_rotation:
            continue
        try:
            other = connect(policy, sheet, dataclasses.replace(spec, proprio_rotation=form))
            other.predict(add_batch_axis(trajectory.observations[0]), None, np.array([True]), True)
        except Exception:  # whatever a model raises at a vector of another length
            continue
        found[form] = other
    return found


def _mend(case: Case, observation: dict[str, Any]) -> dict[str, Any]:
    """Return the pictures that the policy should be shown, where changing them helps it."""
    batch = add_batch_axis(observation)
    for change in case.changes:
        batch = change(batch, 0)
    return {
        f"mended_{key.removeprefix('rgb_')}": batch[key][0]
        for key, value in observation.items()
        if key.startswith("rgb_") and not np.array_equal(batch[key][0], value)
    }


def _without_state(trajectory: Trajectory) -> Trajectory:
    shown = [{k: v for k, v in o.items() if k != "state"} for o in trajectory.observations]
    return dataclasses.replace(trajectory, observations=shown)


def _other_commands(sheet: SpecSheet, played: list[Trajectory]) -> tuple[str, ...]:
    """Return commands of other tasks of the suite."""
    suite = registration.get_suite(sheet.suite)
    own = suite.tasks[sheet.task]
    used = {str(o["instruction"]) for t in played for o in t.observations}
    used |= {own.instruction, *own.paraphrases}
    others = [t.instruction for t in suite.tasks.values() if t.instruction not in used]
    return tuple(others[:: max(len(others) // OTHER_COMMANDS, 1)][:OTHER_COMMANDS])


def measure_latency(policy: Policy, trajectory: Trajectory, calls: int = 30) -> float:
    """Return the median wall time of `predict` for one env [ms], after the first call."""
    times, state = [], None
    for i, observation in enumerate(trajectory.observations[:calls]):
        begun = time.perf_counter()
        _, state = policy.predict(add_batch_axis(observation), state, np.array([i == 0]), True)
        times.append(1000 * (time.perf_counter() - begun))
    return float(np.median(times[1:] or times))


def _judge_latency(latency: float, sheet: SpecSheet) -> Finding:
    period = 1000 / sheet.control_hz
    words = f"{latency:.2f} ms an action (median, one env); a control step is {period:.1f} ms"
    if latency > period:
        words += ": slower than real time, which no simulator minds"
    return Finding("latency", "pass", words)
