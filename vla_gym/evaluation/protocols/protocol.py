"""`Protocol`: how a published benchmark is played and scored, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym

from vla_gym import registration
from vla_gym.env import choose_simulator
from vla_gym.errors import DependencyNotInstalled, InvalidOption

__all__ = ["MEAN_LENGTH", "MEAN_OVER_GROUPS", "MEAN_OVER_TASKS", "Protocol"]

MEAN_OVER_TASKS = "mean over tasks"
MEAN_OVER_GROUPS = "mean over groups"
MEAN_LENGTH = "average chain length"


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is played and scored.

    What is not here stays the policy's own: cameras, image size, proprio, and the action mode
    unless `keywords` has it. An episode's reset options are the suite's (`Suite.protocol_options`):
    a function of task and seed.

    Attributes:
        name: what `get_protocol` takes.
        title: what it is, in a few words.
        ids: of its tasks, with their versions; also of those that no simulator here has.
        episodes: of each task; episode i has the seed `seed + i`.
        source: paper, file and version that it was taken from.
        simulator: the one that the published scores come from.
        seed: of the first episode.
        keywords: of `gym.make`. They go before what a policy asks for.
        max_steps: actions after which an episode is cut: a number for all tasks, a number for each
            id, or None for the task's own.
        success: `"any"`: solved after any step; `"last"`: solved after the last one, and an episode
            goes on after success.
        groups: name -> ids; every id is in one of them, or there are none.
        score: the published figure: `"mean over tasks"`, `"mean over groups"` (of the means over
            the tasks of each) or `"average chain length"`.
        differs: sentences on how it differs from what was published, simulator aside.

    Raises:
        InvalidOption: the fields contradict each other.
    """

    name: str
    title: str
    ids: tuple[str, ...]
    episodes: int
    source: str
    simulator: str
    seed: int = 0
    keywords: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int | Mapping[str, int] | None = None
    success: Literal["any", "last"] = "any"
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    score: str = MEAN_OVER_TASKS
    differs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if fault := self._find_fault():
            raise InvalidOption(f"the protocol {self.name!r} {fault}")

    def horizon(self, env_id: str) -> int | None:
        """Return the actions after which an episode of this id is cut, None for the task's own."""
        if isinstance(self.max_steps, Mapping):
            return self.max_steps[env_id]
        return self.max_steps

    def find_playable(
        self, keywords: Mapping[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return the ids that can be played here, and of each other one why it cannot.

        A score over fewer tasks is not the published one: show how many of `ids` it stands on.

        Args:
            keywords: of `gym.make`, in addition to the protocol's; of these, `simulator` and
                `python` count, and the suite's own.

        Raises:
            DependencyNotInstalled: none can be played; the message says of one what to do.
        """
        given = {**self.keywords, **(keywords or {})}
        playable: list[str] = []
        missing: dict[str, str] = {}
        for env_id in self.ids:
            named = gym.spec(env_id).kwargs
            suite = registration.get_suite(named["suite"])
            task = registration.get_task(suite, named["task"])
            words = {name: given.get(name, word.default) for name, word in suite.keywords.items()}
            try:
                choose_simulator(
                    suite, task, given.get("simulator", "auto"), given.get("python"), words
                )
            except DependencyNotInstalled as error:
                missing[env_id] = str(error)
            else:
                playable.append(env_id)
        if not playable:
            raise DependencyNotInstalled(
                f"none of the {len(self.ids)} tasks of {self.name} can be played here. "
                f"{next(iter(missing.values()))}"
            )
        return tuple(playable), missing

    def _find_fault(self) -> str:
        if not self.ids or len(set(self.ids)) != len(self.ids):
            return f"needs ids, each once, not {self.ids}"
        if self.episodes < 1 or self.seed < 0:
            return f"has episodes={self.episodes} (at least 1), seed={self.seed} (at least 0)"
        members = [env_id for some in self.groups.values() for env_id in some]
        if self.groups and sorted(members) != sorted(self.ids):
            return f"has groups in which not every id stands once: {dict(self.groups)}"
        if self.score not in (MEAN_OVER_TASKS, MEAN_OVER_GROUPS, MEAN_LENGTH):
            valid = f"{MEAN_OVER_TASKS!r}, {MEAN_OVER_GROUPS!r} or {MEAN_LENGTH!r}"
            return f"has score={self.score!r}; valid: {valid}"
        if self.score == MEAN_OVER_GROUPS and not self.groups:
            return f"has score={self.score!r} and no groups"
        if self.score == MEAN_LENGTH and len(self.ids) != 1:
            return f"has score={self.score!r}, which takes one id, not {len(self.ids)}"
        if isinstance(self.max_steps, Mapping) and set(self.max_steps) != set(self.ids):
            return f"has max_steps for {sorted(self.max_steps)}, not for each of its ids"
        if self.success not in ("any", "last"):
            return f"has success={self.success!r}; valid: 'any' or 'last'"
        if self.success == "last" and self.keywords.get("terminate_on_success") is not False:
            return "judges the last step and needs terminate_on_success=False among its keywords"
        return ""
