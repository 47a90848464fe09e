"""Policies: the plug-in interface, what a policy declares, and how one is found by name."""

from vla_gym.policy.base import Policy, PolicySpec
from vla_gym.policy.chunking import Chunker, take_rows
from vla_gym.policy.matching import connect
from vla_gym.policy.registry import list_policies, make_policy, register_policy

__all__ = [
    "Chunker",
    "Policy",
    "PolicySpec",
    "connect",
    "list_policies",
    "make_policy",
    "register_policy",
    "take_rows",
]
