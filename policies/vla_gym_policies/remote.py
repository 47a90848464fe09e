"""What the clients of policy servers share: their error, connections, and a seat for each env."""

from __future__ import annotations

import contextlib
import heapq
import time
import weakref
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vla_gym import SpecSheet
from vla_gym.errors import ContractMismatch
from vla_gym.wire import Dialect

__all__ = [
    "Connections",
    "Memory",
    "RemotePolicyError",
    "Seats",
    "read_address",
    "refuse_likeness",
    "take_env",
]

C = TypeVar("C")


class RemotePolicyError(gym.error.Error, RuntimeError):
    """A policy server cannot be reached, has raised an error, or speaks another protocol."""


class Connections(Generic[C]):
    """A connection for each seat, opened when it is first needed.

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

    def __getitem__(self, seat: int) -> C:
        if seat not in self._open:
            self._open[seat] = self._connect()
        return self._open[seat]

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


class _Seat:
    """A number that is free again when nothing remembers this object any more."""

    def __init__(self, number: int) -> None:
        self.number = number


class Memory(NamedTuple):
    """An entry of a policy's `state`: the env's seat, and what is left of its chunks."""

    seat: _Seat
    chunks: Any = ()


class Seats:
    """Numbers for envs: what a server remembers of an episode it keeps for such a number.

    A row of a batch is no such number, since the next batch may have other envs in another order.
    An env keeps its seat as long as its entry of `state` is handed on; the lowest one that is free
    is taken first, so that the envs of a vector env have their own indices.
    """

    def __init__(self) -> None:
        self._free: list[int] = []
        self._count = 0

    def read(
        self, count: int, state: Any, episode_start: Any
    ) -> tuple[list[Memory], NDArray[np.bool_]]:
        """Return what is known of each env, and (count,) True where an episode begins.

        Args:
            count: of envs.
            state: what `predict` returned: a list of `Memory`, with None for a new env. One of
                another number of envs is void.
            episode_start: as `predict` takes it.
        """
        before = state if state is not None and len(state) == count else [None] * count
        starts = np.array([memory is None for memory in before])
        if episode_start is not None:
            starts |= np.asarray(episode_start, bool)
        known = [Memory(self._take()) if memory is None else memory for memory in before]
        return [
            Memory(memory.seat) if start else memory
            for memory, start in zip(known, starts, strict=True)
        ], starts

    def _take(self) -> _Seat:
        if self._free:
            seat = _Seat(heapq.heappop(self._free))
        else:
            seat = _Seat(self._count)
            self._count += 1
        weakref.finalize(seat, heapq.heappush, self._free, seat.number).atexit = False
        return seat


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


def take_env(observation: dict[str, Any], row: int) -> dict[str, Any]:
    """Return the observation of one env of a batch, without batch axis."""
    return {
        key: value[row] if isinstance(value, np.ndarray) else str(value[row])
        for key, value in observation.items()
    }


def refuse_likeness(dialect: Dialect, sheet: SpecSheet, policy: str) -> None:
    """Refuse a state that is only like LIBERO's in LIBERO, where the true one can be had.

    Args:
        dialect: of the server.
        sheet: of the env.
        policy: its name, for the error text.

    Raises:
        ContractMismatch: it is such a state.
    """
    sent = "proprio" in (dialect.keys or {})
    if sheet.suite == "LIBERO" and sent and dialect.state == "eef vector fingers":
        raise ContractMismatch(
            f"{sheet.id} has the state that LIBERO's models are trained on, as proprio='native'; "
            f"the dialect {dialect.name!r} makes one like it from proprio='eef', with other "
            f"positions and both fingers alike. Take the policy {policy}-libero"
        )
