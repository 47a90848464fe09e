"""Evaluation protocols by name: which tasks, how many episodes, under which rules, which score."""

from vla_gym.evaluation.protocols.protocol import (
    MEAN_LENGTH,
    MEAN_OVER_GROUPS,
    MEAN_OVER_TASKS,
    Protocol,
)
from vla_gym.evaluation.protocols.registry import (
    PROTOCOLS,
    get_protocol,
    list_protocols,
    register_protocol,
)
from vla_gym.evaluation.protocols.score import Score, score_by_group

__all__ = [
    "MEAN_LENGTH",
    "MEAN_OVER_GROUPS",
    "MEAN_OVER_TASKS",
    "PROTOCOLS",
    "Protocol",
    "Score",
    "get_protocol",
    "list_protocols",
    "register_protocol",
    "score_by_group",
]
