"""Protocols by name: those of vla_gym, and those that other packages register."""

from __future__ import annotations

import gymnasium as gym

from vla_gym import registration
from vla_gym.errors import UnknownName
from vla_gym.evaluation.protocols.protocol import Protocol
from vla_gym.evaluation.protocols.published import PUBLISHED

__all__ = ["PROTOCOLS", "get_protocol", "list_protocols", "register_protocol"]

PROTOCOLS: dict[str, Protocol] = {}
"""Name -> protocol, in order of registration."""


def register_protocol(protocol: Protocol) -> None:
    """Make a protocol available by its name. Registering it again replaces it.

    Its suite is registered before it.

    Raises:
        UnknownName: there is no such id, or its suite has no such simulator.
    """
    ids = registration.list_ids()
    for env_id in protocol.ids:
        if env_id not in ids:
            raise UnknownName("id", env_id, ids, f"protocol {protocol.name}")
        suite = registration.get_suite(gym.spec(env_id).kwargs["suite"])
        simulators = [info.name for info in suite.simulators]
        if protocol.simulator not in simulators:
            raise UnknownName("simulator", protocol.simulator, simulators, f"suite {suite.name}")
    PROTOCOLS[protocol.name] = protocol


def get_protocol(name: str) -> Protocol:
    """Return a protocol by its name, in small or capital letters.

    Raises:
        UnknownName: there is none of that name; the message has the nearest one.
    """
    folded = {known.lower(): protocol for known, protocol in PROTOCOLS.items()}
    if name.lower() not in folded:
        raise UnknownName("protocol", name, PROTOCOLS)
    return folded[name.lower()]


def list_protocols() -> list[Protocol]:
    """Return all protocols, in order of registration."""
    return list(PROTOCOLS.values())


for _protocol in PUBLISHED:
    register_protocol(_protocol)
