"""`openpi`: the client of any openpi policy server, `make_policy("openpi:127.0.0.1:8000")`.

π0, π0-FAST and π0.5 run in a server of their own (openpi, `scripts/serve_policy.py`), and so does
any policy of ours behind `vla-gym serve`. The connection is openpi's own client (openpi-client
0.1.2, `websocket_client_policy.py`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym import PolicySpec, SpecSheet
from vla_gym.deps import require
from vla_gym.errors import ContractMismatch
from vla_gym.policy import Chunker
from vla_gym.wire import Dialect, get_dialect
from vla_gym_policies.remote import (
    Connections,
    Memory,
    RemotePolicyError,
    Seats,
    read_address,
    refuse_likeness,
    take_env,
)

__all__ = ["OpenPIPolicy", "make_openpi_policy"]


def make_openpi_policy(address: str = "", **keywords: Any) -> OpenPIPolicy:
    """Return the client of the server at `"host:port"`, by default `127.0.0.1:8000`.

    Args:
        address: of the server.
        **keywords: of `OpenPIPolicy`.
    """
    return OpenPIPolicy(read_address(address, "127.0.0.1", 8000), **keywords)


class OpenPIPolicy:
    """Shows each env to an openpi server and takes the actions of the chunks that it answers with.

    The protocol has no batches: B envs that need a chunk are B requests, one after the other, each
    on a connection of its own.

    Args:
        address: `"ws://host:port"`.
        dialect: how the server names and forms an observation, see `vla_gym.wire`. None: as the
            metadata of one of ours say, else `"libero"`.
        keys: our key -> the server's, where they differ from the dialect's; None: not sent.
        image_size: of the pictures that are sent [pixels]; openpi's models take 224.
        execute: actions of a chunk that are taken, None: all. openpi's LIBERO script takes 5.
        ensemble: of `vla_gym.policy.Chunker`.
        spec: what the server reads and speaks, where it is not what the dialect says.
        api_key: sent as `Authorization: Api-Key ...`.
        wait_s: how long to wait for a server that is not there yet [s].

    Attributes:
        metadata: what the server says of itself.
        spec: what it needs to see and what its actions mean.

    Raises:
        RemotePolicyError: there is no such server, or it is no openpi server.
        DependencyNotInstalled: openpi-client is missing.
    """

    def __init__(
        self,
        address: str = "ws://127.0.0.1:8000",
        *,
        dialect: str | Dialect | None = None,
        keys: Mapping[str, str | None] | None = None,
        image_size: int = 224,
        execute: int | None = None,
        ensemble: float | None = None,
        spec: PolicySpec | None = None,
        api_key: str | None = None,
        wait_s: float = 0.0,
    ) -> None:
        module = require("openpi_client.websocket_client_policy", "openpi", "the policy openpi")
        self._address = address
        self._clients = Connections(
            lambda: _Client(module.WebsocketClientPolicy, address, api_key), address, wait_s
        )
        self.metadata = self._clients[0].metadata
        ours = self.metadata.get("vla_gym")
        self._ours = isinstance(ours, Mapping)
        if dialect is None:
            dialect = ours["dialect"] if isinstance(ours, Mapping) else "libero"
        self._dialect = get_dialect(dialect, keys)
        if spec is None and isinstance(ours, Mapping) and self._dialect.keys is None:
            spec = _read_spec(ours["spec"])
        self.spec = spec or _spec_of(self._dialect, image_size)
        self._chunker, self._seats = Chunker(execute, ensemble), Seats()
        self._seed: int | None = None

    def for_env(self, sheet: SpecSheet) -> OpenPIPolicy:
        """Return the policy itself.

        Raises:
            ContractMismatch: the server is one of ours and serves its policy for another env; or
                the env is LIBERO's and the state would only be like LIBERO's.
        """
        env = self.metadata["vla_gym"]["env"] if self._ours else None
        if env is not None and env["id"] != sheet.id:
            raise ContractMismatch(
                f"the server at {self._address} acts in {env['id']}, the env is {sheet.id}. Start "
                f"it with --env {sheet.id}"
            )
        refuse_likeness(self._dialect, sheet, "openpi")
        return self

    def set_random_seed(self, seed: int) -> None:
        """Seed the policy of a server of ours, with the next request; others cannot be seeded."""
        self._seed = seed

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return actions (B, A) and what is left of the chunks.

        `deterministic` reaches servers of ours only: openpi's own have no such switch.

        Raises:
            RemotePolicyError: the server has raised an error, whose traceback is in the text.
        """
        count = len(next(iter(observation.values())))
        known, starts = self._seats.read(count, state, episode_start)
        numbers = np.array([memory.seat.number for memory in known])
        marked = {**observation, "seat": numbers, "start": starts}
        ask = functools.partial(self._ask, deterministic)
        actions, chunks = self._chunker.predict(ask, marked, [memory.chunks for memory in known])
        return actions, [Memory(m.seat, left) for m, left in zip(known, chunks, strict=True)]

    def close(self) -> None:
        """Close the connections."""
        self._clients.close()

    def _ask(self, deterministic: bool, observation: dict[str, Any]) -> NDArray[np.float32]:
        """Return the chunks (b, T, A) of b envs."""
        chunks = []
        for i in range(len(observation["seat"])):
            env = take_env(observation, i)
            seat, start = int(env.pop("seat")), bool(env.pop("start"))
            message = self._dialect.write(env)
            if self._ours:
                message |= self._say_more(start, deterministic)
            chunks.append(self._infer(seat, message))
        if len({chunk.shape for chunk in chunks}) > 1:
            raise RemotePolicyError(
                f"the server at {self._address} answers with chunks of several shapes: "
                f"{[chunk.shape for chunk in chunks]}"
            )
        return np.stack(chunks)

    def _say_more(self, start: bool, deterministic: bool) -> dict[str, Any]:
        more: dict[str, Any] = {
            "vla_gym/episode_start": start,
            "vla_gym/deterministic": deterministic,
        }
        if self._seed is not None:
            more["vla_gym/seed"], self._seed = self._seed, None
        return more

    def _infer(self, seat: int, message: dict[str, Any]) -> NDArray[np.float32]:
        try:
            answer = self._clients[seat].infer(message)
        except RemotePolicyError as error:
            self.close()  # the server has closed that one; after an error none is trusted
            raise RemotePolicyError(f"the policy server at {self._address}: {error}") from error
        actions = answer.get("actions") if isinstance(answer, Mapping) else None
        chunk = np.asarray(actions, dtype=np.float32) if actions is not None else None
        if chunk is None or chunk.ndim != 2 or not len(chunk):
            found = "no actions" if chunk is None else f"actions of shape {chunk.shape}"
            raise RemotePolicyError(
                f"the policy server at {self._address} answers with {found}, not with 'actions' of "
                "shape (actions of a chunk, entries of an action)"
            )
        return chunk


class _Client:
    """openpi's own client, whose errors become ours."""

    def __init__(self, kind: Any, address: str, api_key: str | None) -> None:
        errors = require("websockets.exceptions", "openpi")
        self._broken = (errors.WebSocketException, EOFError, OSError)
        try:
            self._client = kind(address, api_key=api_key)
            self.metadata: Mapping[str, Any] = self._client.get_server_metadata()
        except OSError:
            raise  # nobody is there (yet)
        except Exception as error:  # whatever the bytes of another protocol lead to
            raise RemotePolicyError(
                f"what answers at {address} is no openpi server, which sends its metadata first "
                f"({type(error).__name__}: {error})"
            ) from error

    def infer(self, message: dict[str, Any]) -> Any:
        try:
            return self._client.infer(message)
        except RuntimeError as error:  # a text frame: the server's traceback
            raise RemotePolicyError(str(error)) from error
        except self._broken as error:
            raise RemotePolicyError(
                f"the connection broke ({type(error).__name__}: {error})"
            ) from error

    def close(self) -> None:
        self._client._ws.close()  # openpi-client 0.1.2 has no way of its own


def _spec_of(dialect: Dialect, image_size: int) -> PolicySpec:
    """Return what a server of this dialect reads and speaks."""
    keys = dialect.keys
    if keys is None:
        return PolicySpec(gripper=dialect.gripper)
    return PolicySpec(
        cameras=dialect.cameras,
        image_size=image_size if dialect.cameras else None,
        state=True if "state" in keys else None,
        proprio=dialect.proprio if "proprio" in keys else None,
        instruction="text" if "instruction" in keys else None,
        action_mode="ee_delta",
        action_dim=7,
        gripper=dialect.gripper,
    )


def _read_spec(plain: Mapping[str, Any]) -> PolicySpec:
    """Return the spec of a server of ours: JSON has no tuples."""
    names = {field.name for field in dataclasses.fields(PolicySpec)}
    return PolicySpec(**{key: _freeze(value) for key, value in plain.items() if key in names})


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value
