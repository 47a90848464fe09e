"""What the clients of policy servers share: their error, and one connection for each env."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

__all__ = ["Connections", "RemotePolicyError", "read_address", "read_starts", "take_env"]

C = TypeVar("C")


class RemotePolicyError(gym.error.Error, RuntimeError):
    """A policy server cannot be reached, has raised an error, or speaks another protocol."""


class Connections(Generic[C]):
    """A connection for each env of a batch, opened when it is first needed.

    Servers keep what they remember of an episode, if anything, for each connection.

    Args:
        open_one: opens one. It has `close`.
        address: of the server, for error texts.
        wait_s: how long a server that is not there yet is waited for [s].

    Raises:
        RemotePolicyError: the first one cannot be opened.
    """

    def __init__(self, open_one: Callable[[], C], address: str, wait_s: float = 0.0) -> None:
        self._open_one, self._address = open_one, address
        self._open: dict[int, C] = {0: self._connect(wait_s)}

    def __getitem__(self, row: int) -> C:
        if row not in self._open:
            self._open[row] = self._connect()
        return self._open[row]

    def close(self) -> None:
        """Close all; they are opened again when they are needed."""
        while self._open:
            _, connection = self._open.popitem()
            with contextlib.suppress(Exception):  # it may have broken, which is why it is closed
                connection.close()  # type: ignore[attr-defined]  # see the class

    def _connect(self, wait_s: float = 0.0) -> C:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                return self._open_one()
            except OSError as error:  # refused, no such host, timed out
                if time.monotonic() >= deadline:
                    raise RemotePolicyError(
                        f"no policy server answers at {self._address} ({error}). Start it first, "
                        "or give its address: make_policy('NAME:HOST:PORT'); wait_s=60 waits for it"
                    ) from error
            time.sleep(0.2)


def read_address(address: str, host: str, port: int) -> str:
    """Return the WebSocket address of `"host:port"`, `"host"`, `":port"` or `"ws://..."`.

    Args:
        address: as the user gave it.
        host: where it names none.
        port: where it names none.

    Raises:
        RemotePolicyError: the port is not a number.
    """
    if address.startswith(("ws://", "wss://")):
        return address
    name, _, number = address.partition(":")
    if number and not number.isdigit():
        raise RemotePolicyError(f"the address {address!r} is not HOST:PORT, such as {host}:{port}")
    return f"ws://{name or host}:{number or port}"


def read_starts(count: int, state: Any, episode_start: Any) -> NDArray[np.bool_]:
    """Return (count,) True where an episode begins, also for a `state` of other envs."""
    if state is None or len(state) != count:
        return np.ones(count, bool)
    return np.zeros(count, bool) if episode_start is None else np.array(episode_start, bool)


def take_env(observation: dict[str, Any], row: int) -> dict[str, Any]:
    """Return the observation of one env of a batch, without batch axis."""
    return {
        key: value[row] if isinstance(value, np.ndarray) else str(value[row])
        for key, value in observation.items()
    }
