"""What stands beside the scores: the protocol, what each policy sees, versions and machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vla_gym.evaluation.metrics import CHAIN_TASKS
from vla_gym.evaluation.report.formats import (
    DASH,
    count,
    describe_machine,
    describe_pictures,
    describe_span,
    name_task,
)
from vla_gym.evaluation.report.gather import Results

__all__ = ["Facts", "describe_intervals", "describe_lost", "find_facts"]


@dataclass(frozen=True)
class Facts:
    """What all policies and tasks have in common, and in two tables what they have not.

    Attributes:
        lead: a sentence on how many episodes there are.
        date: of the last one, YYYY-MM-DD.
        protocol: name and value of what is common.
        tasks: one row per id: id, success, horizon, control_hz, reward, robot.
        policies: one row for the tasks of which a policy sees and speaks the same: policy, source,
            sees, action_mode, keywords, tasks.
        versions: package -> versions.
        machines: each machine once, in words.
        commands: command lines, each once.
    """

    lead: str
    date: str
    protocol: list[tuple[str, str]]
    tasks: list[dict[str, str]]
    policies: list[dict[str, str]]
    versions: dict[str, str]
    machines: list[str]
    commands: list[str]


def find_facts(results: Results) -> Facts:
    """Return what is known of the episodes besides their outcomes."""
    return Facts(
        lead=_lead(results),
        date=max((record.date for record in results.records), default="")[:10],
        protocol=_find_common(results),
        tasks=_list_tasks(results),
        policies=_list_policies(results),
        versions=_find_versions(results),
        machines=list(
            dict.fromkeys(describe_machine(r["machine"]) for r in results.runs if "machine" in r)
        ),
        commands=list(dict.fromkeys(run["command"] for run in results.runs if "command" in run)),
    )


def describe_lost(crashed: int, timeouts: int, adjective: bool = True) -> str:
    """Return in words how many episodes have no outcome: `2 crashed and 1 timed-out episodes`."""
    kinds = [(crashed, "crashed"), (timeouts, "timed-out" if adjective else "timed out")]
    found = " and ".join(f"{number} {name}" for number, name in kinds if number)
    if not adjective:
        return found
    return f"{found} {'episode' if crashed + timeouts == 1 else 'episodes'}"


def describe_intervals(results: Results) -> str:
    """Return a sentence on the intervals."""
    text = "success rates have Wilson score 95 % intervals, mean returns Student's t 95 % "
    text += "intervals"
    if results.chains:
        text += ", SR_k and average lengths bootstrap percentile 95 % intervals over chains"
    return (
        f"{text}. Crashed and timed-out episodes have no outcome: they are counted, and not in n."
    )


def _lead(results: Results) -> str:
    plain = results.plain
    done = sum(record.counts for record in plain)
    sizes = sorted({s.n + s.crashed + s.timeouts for s in results.summaries.values()})
    texts = []
    if sizes:
        each = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        texts.append(f"{count(done, 'episode', 'episodes')}, {each} for each policy and task")
    if perturbed := sum(bool(r.perturbation) and r.counts for r in results.records):
        further = "a further " if texts else ""
        texts.append(f"{further}{perturbed} under a perturbation")
    outcomes = [record.outcome for record in results.records]
    crashed, timeouts = outcomes.count("crashed"), outcomes.count("timeout")
    if crashed or timeouts:
        lost = describe_lost(crashed, timeouts, adjective=False)
        have = "has" if crashed + timeouts == 1 else "have"
        texts.append(f"a further {lost} and {have} no outcome")
    return "; ".join(texts) + "."


def _find_common(results: Results) -> list[tuple[str, str]]:
    protocols = [record.protocol for record in results.records]
    facts = []
    rules = {str(protocol["success_rule"]).startswith("at the last step") for protocol in protocols}
    if results.tasks:
        any_step = "the task is solved after any step of the episode (not only the last)"
        last_step = "the task is solved after the last step of the episode"
        rule = "see each task below" if len(rules) > 1 else last_step if True in rules else any_step
        facts.append(("Success", rule))
    if results.chain_ids:
        rule = f"{CHAIN_TASKS} instructions in a row; the first one not followed ends the chain"
        facts.append(("Chains", rule))
    if options := _describe_options(results):
        facts.append(("Reset options", options))
    ends = {protocol["terminate_on_success"] for protocol in protocols}
    ending = {True: "at success or at the horizon", False: "at the horizon"}
    sampled = {protocol["deterministic"] for protocol in protocols} != {True}
    facts += [
        ("Seeds", _describe_seeds(results)),
        ("Simulator", ", ".join(dict.fromkeys(p["simulator"] for p in protocols))),
        ("Episode ends", ending[ends.pop()] if len(ends) == 1 else "see the policies below"),
        ("Actions", "sampled" if sampled else "deterministic (a policy's mode)"),
        ("Intervals", _name_intervals(results)),
    ]
    shared = {
        "render_quality": "Rendering",
        "instruction": "Instruction as",
        "paraphrase": "Paraphrases",
    }
    for key, label in shared.items():
        if len({str(protocol.get(key)) for protocol in protocols}) == 1:
            facts.append((label, _plain(protocols[0].get(key))))
    batches = {protocol.get("batch", 1) for protocol in protocols}
    if batches != {1}:
        facts.append(("Envs per call of the policy", describe_span(batches)))
    return facts


def _describe_seeds(results: Results) -> str:
    seeds = {policy: set() for policy in results.policies}
    for record in results.records:
        seeds[record.policy].add(record.seed)
    span = describe_span(set().union(*seeds.values()))
    if len(seeds) == 1:
        return span
    first, *others = seeds.values()
    if all(other == first for other in others):
        return f"{span}, the same for every policy: episodes are paired"
    return f"{span}, not all of them for every policy"


def _name_intervals(results: Results) -> str:
    methods = ["Wilson for success rates"] if results.tasks else []
    methods += ["bootstrap for SR_k and average lengths"] if results.chain_ids else []
    return "95 %; " + ", ".join([*methods, "Student's t for mean returns"])


def _describe_options(results: Results) -> str:
    """Return the reset options that a suite's protocol has set, all episodes together."""
    values: dict[str, set[Any]] = {}
    for record in results.records:
        for name, value in record.options.items():
            values.setdefault(name, set()).add(value if isinstance(value, int) else str(value))
    return "; ".join(f"{name} {describe_span(found)}" for name, found in values.items())


def _list_tasks(results: Results) -> list[dict[str, str]]:
    rows = []
    for env_id in results.ids:
        found = [record.protocol for record in results.records if record.id == env_id]
        rows.append(
            {
                "id": env_id,
                "success": ", ".join(dict.fromkeys(str(p["success_rule"]) for p in found)),
                "horizon": ", ".join(sorted({str(protocol["horizon"]) for protocol in found})),
                "control_hz": f"{found[0]['control_hz']:g}",
                "reward": ", ".join(dict.fromkeys(str(p["reward"]) for p in found)),
                "robot": str(found[0]["robot"]),
            }
        )
    return rows


def _list_policies(results: Results) -> list[dict[str, str]]:
    """Return what each policy sees and speaks, tasks with the same in one row."""
    groups: dict[tuple[str, ...], dict[str, None]] = {}
    for record in results.records:
        p = record.protocol
        sees = [f"proprio ({p['proprio']})", *describe_pictures(p["cameras"], p["image_size"])]
        sees += ["privileged state"] if p["state"] else []
        keywords = ", ".join(f"{k}={v}" for k, v in p["keywords"].items()) or DASH
        key = (record.policy, p["policy_source"], ", ".join(sees), p["action_mode"], keywords)
        groups.setdefault(key, {})[name_task(record.id)] = None
    names = ("policy", "source", "sees", "action_mode", "keywords")
    everything = {name_task(env_id) for env_id in results.ids}
    rows = []
    for policy in results.policies:
        for key, tasks in groups.items():
            if key[0] == policy:
                all_of_them = len(tasks) > 3 and set(tasks) == everything
                text = f"all {len(tasks)}" if all_of_them else ", ".join(tasks)
                rows.append(dict(zip(names, key, strict=True)) | {"tasks": text})
    return rows


def _find_versions(results: Results) -> dict[str, str]:
    found: dict[str, dict[str, None]] = {}
    for record in results.records:
        for name, version in record.protocol["versions"].items():
            found.setdefault(name, {})[version] = None
    return {name: ", ".join(versions) for name, versions in found.items()}


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
