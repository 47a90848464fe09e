"""Demonstrations as the transitions of off-policy RL, under the rules of the envs it runs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.data.dataset import Dataset
from vla_gym.data.demos import Demonstration
from vla_gym.errors import InvalidOption
from vla_gym.instruction import encode

__all__ = ["Rules", "read_transitions"]


@dataclass(frozen=True)
class Rules:
    """What the envs were made with, which demonstrations must agree with.

    Attributes:
        reward: `"sparse"`, 1 where the task is solved, else 0; or `"native"`, the suite's own.
        terminate_on_success: whether an episode ends where the task is solved.
        action_mode: of the actions.
    """

    reward: str = "sparse"
    terminate_on_success: bool = True
    action_mode: str = "ee_delta"


def read_transitions(
    dataset: Dataset,
    ids: Sequence[str],
    space: Any,
    rules: Rules,
    see: Callable[[Mapping[str, Any]], NDArray[np.float32]] | None = None,
) -> Any:
    """Return the transitions of the demonstrations as an agent would have met them online.

    Actions are those that were carried out, rewards and ends those that `rules` ask for: where an
    episode ends on success the demonstration does too, and nothing follows. Where it was cut off,
    by a time limit or by the recorder, its value goes on.

    Args:
        dataset: with the demonstrations; the state is in it if recorded with `-k state=true`.
        ids: tasks; episodes of others are left out.
        space: a Dict: what the agent observes.
        rules: of the envs.
        see: observations of an episode -> features (T+1, n), where the agent observes those.

    Returns:
        `sb3_parts.Demonstrations`.

    Raises:
        InvalidOption: a task has no demonstration, or they do not fit the envs.
    """
    from vla_gym.train.sb3_parts import Demonstrations, torch

    plain = [i.rpartition(":")[2] for i in ids]
    parts: dict[str, list[NDArray[Any]]] = {}
    for episode in dataset.episodes:
        if episode.env_id in plain:
            found = _to_transitions(dataset.load(episode.index), rules, space, see)
            found["task"] = np.full(len(found["action"]), plain.index(episode.env_id))
            for key, values in found.items():
                parts.setdefault(key, []).append(values)
    there = {plain[tasks[0]] for tasks in parts.get("task", [])}
    if lacking := [env_id for env_id in plain if env_id not in there]:
        raise InvalidOption(
            f"{dataset.folder} has no demonstration of {', '.join(lacking)}; it has those "
            f"of {', '.join(dataset.env_ids)}"
        )
    joined = {key: torch.from_numpy(np.concatenate(values)) for key, values in parts.items()}

    def pick(prefix: str) -> dict[str, Any]:
        return {
            k.removeprefix(prefix): v.float() for k, v in joined.items() if k.startswith(prefix)
        }

    return Demonstrations(
        observations=pick("now "),
        next_observations=pick("next "),
        actions=joined["action"].float(),
        labels=joined["label"].float(),
        rewards=joined["reward"].float()[:, None],
        dones=joined["done"].float()[:, None],
        tasks=joined["task"].long(),
    )


def _to_transitions(
    demo: Demonstration,
    rules: Rules,
    space: Any,
    see: Callable[[Mapping[str, Any]], NDArray[np.float32]] | None,
) -> dict[str, NDArray[Any]]:
    """Return the transitions of one demonstration up to where it would have ended online."""
    _check_fit(demo, rules)
    steps, successes = len(demo.actions), demo.successes
    if rules.terminate_on_success and successes.any():
        steps = int(successes.argmax()) + 1
    done = np.zeros(steps, bool)
    if rules.terminate_on_success and successes[steps - 1]:
        done[-1] = True
    elif steps == len(demo.actions):  # ended by the suite itself, not by a rule that is off here
        done[-1] = demo.terminated and not successes[-1]
    seen = _observe(demo, space, see)
    observed = {f"now {key}": values[:steps] for key, values in seen.items()}
    observed |= {f"next {key}": values[1 : steps + 1] for key, values in seen.items()}
    labels = demo.actions if demo.labels is None else demo.labels
    return {
        **observed,
        "action": demo.actions[:steps],
        "label": labels[:steps],
        "reward": (successes if rules.reward == "sparse" else demo.rewards)[:steps],
        "done": done,
    }


def _observe(
    demo: Demonstration,
    space: Any,
    see: Callable[[Mapping[str, Any]], NDArray[np.float32]] | None,
) -> dict[str, NDArray[Any]]:
    """Return what the agent would have observed: key -> (T+1, n)."""
    count = len(demo.actions) + 1
    if see is not None:
        texts = (demo.instruction,) * count
        return {"feature": see({**demo.observations, "instruction": texts})}
    seen: dict[str, NDArray[Any]] = dict(demo.observations)
    if "instruction" in space.spaces:
        embedding = np.asarray(encode(demo.instruction, "embedding"))
        seen["instruction"] = np.repeat(embedding[None], count, axis=0)
    for key, part in space.spaces.items():
        if key not in seen:
            raise InvalidOption(
                f"the demonstrations of {demo.id} have no {key!r}; record them with "
                f"`vla-gym collect -k {key}=true`"
            )
        if seen[key].shape[1:] != part.shape:
            raise InvalidOption(
                f"{key!r} of the demonstrations of {demo.id} has the shape {seen[key].shape[1:]}, "
                f"that of the env {part.shape}; make the env with the keywords of the recording, "
                f"{dict(demo.keywords)}"
            )
    return {key: seen[key] for key in space.spaces}


def _check_fit(demo: Demonstration, rules: Rules) -> None:
    if demo.action_mode != rules.action_mode:
        raise InvalidOption(
            f"the demonstrations of {demo.id} have action_mode={demo.action_mode!r}, the envs "
            f"{rules.action_mode!r}; give the keyword action_mode={demo.action_mode}"
        )
    if rules.reward == "native" and demo.keywords.get("reward") == "sparse":
        raise InvalidOption(
            f"the demonstrations of {demo.id} were recorded with reward='sparse', so that the "
            "native reward is not known; record them without, or train on reward='sparse'"
        )
