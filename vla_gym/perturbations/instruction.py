"""Another wording: the command is said otherwise than where the task was learnt."""

from __future__ import annotations

from vla_gym import registration
from vla_gym.perturbations.base import AnyEnv, Perturbation, Perturbed, get_env

__all__ = ["INSTRUCTION"]


def _find_obstacle(env: AnyEnv) -> str | None:
    inner = get_env(env)
    sheet = inner.spec_sheet
    task = registration.get_task(registration.get_suite(sheet.suite), sheet.task)
    if not task.paraphrases:
        return f"the task has no wording but {task.instruction!r}"
    if inner.paraphrase != "always":
        return (
            "the env must be made with paraphrase='always' (make_keywords says so), and it was "
            f"made with paraphrase={inner.paraphrase!r}"
        )
    return None


class _OtherWording(Perturbed):
    """Does nothing itself: the env draws the wordings, from a stream of its own."""

    def __init__(self, env: AnyEnv, strength: float) -> None:
        del strength
        super().__init__(env, INSTRUCTION.name)


INSTRUCTION = Perturbation(
    name="instruction",
    doc="each command is one of its paraphrases, never the canonical wording",
    strength=1.0,
    unit="",
    low=1.0,
    high=1.0,
    wrap=_OtherWording,
    find_obstacle=_find_obstacle,
    keywords={"paraphrase": "always"},
)
