"""`vla-eval`: the client of a vla-eval model server, `make_policy("vla-eval:127.0.0.1:8000")`.

vla-eval (0.8.0) runs OpenVLA, OpenVLA-OFT, π0, CogACT, GR00T and others each in a server of its
own. Its protocol 1 over a WebSocket: msgpack dicts of `type`, `payload`, `seq` and `timestamp`
(`protocol/messages.py`), arrays as dicts with text keys (`protocol/numpy_codec.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym import PolicySpec, SpecSheet
from vla_gym.deps import require
from vla_gym.errors import ContractMismatch
from vla_gym.policy import Chunker
from vla_gym.wire import LIBERO, Dialect
from vla_gym_policies.remote import (
    Connections,
    Memory,
    RemotePolicyError,
    Seats,
    read_address,
    refuse_likeness,
    take_env,
)

__all__ = ["VLA_EVAL", "VLAEvalPolicy", "make_vla_eval_policy"]

PROTOCOL = 1

VLA_EVAL = dataclasses.replace(
    LIBERO,
    name="vla-eval",
    keys={
        "rgb_primary": "agentview",
        "rgb_wrist": "wrist",
        "proprio": "states",
        "instruction": "task_description",
    },
)
"""What vla-eval's LIBERO benchmark sends (`benchmarks/libero/benchmark.py`, `make_obs`)."""

GRIPPERS = {
    "binary_close_positive": "+1 closes",
    "binary_close_negative": "+1 opens",
    "binary_close_01": "1 closes, 0 opens",
}
ROTATIONS = {"axis_angle": "axis-angle", "euler_xyz": "euler xyz"}
STATES = {"eef_pos3_axisangle3_gripper2": ("eef vector fingers", "native")}
"""Formats of vla-eval's `specs.py` -> ours. A state that is "raw" may be any."""


def make_vla_eval_policy(address: str = "", **keywords: Any) -> VLAEvalPolicy:
    """Return the client of the server at `"host:port"`, by default `127.0.0.1:8000`.

    Args:
        address: of the server.
        **keywords: of `VLAEvalPolicy`.
    """
    return VLAEvalPolicy(read_address(address, "127.0.0.1", 8000), **keywords)


class VLAEvalPolicy:
    """Shows each env to a vla-eval model server, on a connection of its own.

    The requests of a batch go out together, so that a server with `max_batch_size` predicts them
    together. A server that keeps chunks itself (`chunk_size`) answers with one action at a time,
    another with chunks, which are taken here.

    What the server declares when greeted decides what is sent and what its actions mean.

    Args:
        address: `"ws://host:port"`.
        dialect: names and forms of what is sent; where the server stems from other data than
            LIBERO, `mirrored=False` may be right.
        image_size: of the pictures that are sent [pixels]; vla-eval's LIBERO has 256.
        gripper, rotation: of the actions, as in `PolicySpec`, where the server does not say.
        execute, ensemble: of `vla_gym.policy.Chunker`, for servers that answer with chunks.
        timeout_s: how long an answer may take [s].
        wait_s: how long to wait for a server that is not there yet [s].

    Attributes:
        metadata: the server's greeting.
        spec: what it needs to see and what its actions mean.

    Raises:
        RemotePolicyError: there is no such server, or it speaks another protocol.
        ContractMismatch: its actions or its state are of a form that is not converted here.
    """

    def __init__(
        self,
        address: str = "ws://127.0.0.1:8000",
        *,
        dialect: Dialect = VLA_EVAL,
        image_size: int = 256,
        gripper: str | None = None,
        rotation: str | None = None,
        execute: int | None = None,
        ensemble: float | None = None,
        timeout_s: float = 120.0,
        wait_s: float = 0.0,
    ) -> None:
        self._address = address
        self._clients = Connections(lambda: _Client(address, timeout_s), address, wait_s)
        self.metadata = self._clients[0].metadata
        self._dialect = _trim(dialect, self.metadata)
        self.spec = self._read_spec(image_size, gripper, rotation)
        self._chunker, self._seats = Chunker(execute, ensemble), Seats()

    def for_env(self, sheet: SpecSheet) -> VLAEvalPolicy:
        """Return the policy itself.

        Raises:
            ContractMismatch: the env is LIBERO's and the state would only be like LIBERO's.
        """
        refuse_likeness(self._dialect, sheet, "vla-eval")
        return self

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return actions (B, A) and what is left of the chunks; the server decides how it draws.

        Raises:
            RemotePolicyError: the server has answered with an error, which is in the text.
        """
        del deterministic
        count = len(next(iter(observation.values())))
        known, starts = self._seats.read(count, state, episode_start)
        numbers = np.array([memory.seat.number for memory in known])
        marked = {**observation, "seat": numbers, "start": starts}
        chunks = [memory.chunks for memory in known]
        actions, chunks = self._chunker.predict(self._ask, marked, chunks)
        return actions, [Memory(m.seat, left) for m, left in zip(known, chunks, strict=True)]

    def close(self) -> None:
        """Close the connections."""
        self._clients.close()

    def _ask(self, observation: dict[str, Any]) -> NDArray[np.float32]:
        """Return the chunks (b, T, A) of b envs."""
        try:
            envs = [take_env(observation, i) for i in range(len(observation["seat"]))]
            clients = [self._clients[int(env["seat"])] for env in envs]
            for client, env in zip(clients, envs, strict=True):
                if env["start"]:
                    client.start_episode(env["instruction"])
            for client, env in zip(clients, envs, strict=True):
                client.send("observation", self._write(env))
            chunks = [_read_chunk(client.receive("action")) for client in clients]
        except RemotePolicyError as error:
            self.close()  # answers to the other envs may still be under way
            raise RemotePolicyError(f"the model server at {self._address}: {error}") from error
        if len({chunk.shape for chunk in chunks}) > 1:
            raise RemotePolicyError(
                f"the model server at {self._address} answers with chunks of several shapes: "
                f"{[chunk.shape for chunk in chunks]}"
            )
        return np.stack(chunks)

    def _write(self, env: dict[str, Any]) -> dict[str, Any]:
        """Return the observation of one env in their words: pictures are one level down."""
        keys = self._dialect.keys or {}
        pictures = {name for key, name in keys.items() if key.startswith("rgb_")}
        flat = self._dialect.write(env)
        images = {name: value for name, value in flat.items() if name in pictures}
        return {"images": images} | {k: v for k, v in flat.items() if k not in pictures}

    def _read_spec(self, image_size: int, gripper: str | None, rotation: str | None) -> PolicySpec:
        declared = self.metadata.get("action_spec") or {}
        faults = []
        position = _format(declared, "position")
        if position not in (None, "delta_xyz"):
            faults.append(f"position is {position!r}, here are 'delta_xyz'")
        found: dict[str, Any] = {}
        for name, given, known in (
            ("gripper", gripper, GRIPPERS),
            ("rotation", rotation, ROTATIONS),
        ):
            form = _format(declared, name)
            if given is not None:
                found[name] = given
            elif form in known:
                found[name] = known[form]
            else:
                said = "does not say" if form is None else f"says {form!r}"
                faults.append(
                    f"{name}: the server {said}; known are {', '.join(known)}. Where you know "
                    f"better, pass {name}={' or '.join(map(repr, known.values()))}"
                )
        state = _format(self.metadata.get("observation_spec") or {}, "state") or "raw"
        sent = "proprio" in (self._dialect.keys or {})
        if sent and state != "raw" and self._dialect.state not in STATES.get(state, (state,)):
            faults.append(f"state is {state!r}, the dialect has {self._dialect.state!r}")
        if faults:
            raise ContractMismatch(
                f"the model server at {self._address} ({self.metadata.get('model_server')}) "
                f"cannot be used: {'; '.join(faults)}"
            )
        return PolicySpec(
            cameras=self._dialect.cameras,
            image_size=image_size,
            proprio=self._dialect.proprio if sent else None,
            instruction="text",
            action_mode="ee_delta",
            action_dim=7,
            **found,
        )


class _Client:
    """One connection, greeted: messages out, messages in."""

    def __init__(self, address: str, timeout_s: float) -> None:
        client = require("websockets.sync.client", "vla-eval", "the policy vla-eval")
        self._codec = require("msgpack", "vla-eval", "the policy vla-eval")
        errors = require("websockets.exceptions", "vla-eval")
        self._broken = (errors.WebSocketException, EOFError, OSError)
        self._timeout_s, self._seq, self._in_episode = timeout_s, 0, False
        self._stack = contextlib.ExitStack()
        try:
            self._socket = self._stack.enter_context(
                client.connect(address, compression=None, max_size=None, ping_interval=None)
            )
        except errors.WebSocketException as error:
            raise RemotePolicyError(f"no WebSocket answers at {address} ({error})") from error
        try:
            self.metadata: Mapping[str, Any] = self._greet()
        except RemotePolicyError as error:
            self.close()
            raise RemotePolicyError(
                f"what answers at {address} is no vla-eval server: {error}"
            ) from error

    def start_episode(self, instruction: str) -> None:
        if self._in_episode:
            self.send("episode_end", {})
        self.send("episode_start", {"task": {"name": instruction}})
        self._in_episode = True

    def send(self, kind: str, payload: Mapping[str, Any]) -> None:
        self._seq += 1
        message = {"type": kind, "payload": payload, "seq": self._seq, "timestamp": time.time()}
        try:
            self._socket.send(self._codec.packb(message, default=_pack_array))
        except self._broken as error:
            raise RemotePolicyError(
                f"the connection broke ({type(error).__name__}: {error})"
            ) from error

    def receive(self, kind: str) -> Mapping[str, Any]:
        """Return the payload of the answer to the last message."""
        try:
            data = self._socket.recv(timeout=self._timeout_s)
            message = self._codec.unpackb(data, object_hook=_unpack_array)
            found, payload, seq = message["type"], message["payload"], message["seq"]
        except TimeoutError as error:
            raise RemotePolicyError(f"no answer within {self._timeout_s:g} s") from error
        except self._broken as error:
            raise RemotePolicyError(
                f"the connection broke ({type(error).__name__}: {error})"
            ) from error
        except Exception as error:  # whatever other bytes lead msgpack to
            raise RemotePolicyError(
                f"its answer is no message of protocol {PROTOCOL} ({type(error).__name__}: {error})"
            ) from error
        if found == "error":
            raise RemotePolicyError(f"it answers with an error: {payload.get('error', payload)}")
        if found != kind or seq != self._seq:
            raise RemotePolicyError(
                f"its answer to message {self._seq} is {found!r} to message {seq}, not {kind!r}"
            )
        return payload

    def close(self) -> None:
        if self._in_episode:
            with contextlib.suppress(RemotePolicyError):
                self.send("episode_end", {})
        self._in_episode = False
        self._stack.close()

    def _greet(self) -> Mapping[str, Any]:
        self.send("hello", {"harness_version": "vla_gym", "protocol_version": PROTOCOL})
        greeting = self.receive("hello")
        version = greeting.get("protocol_version")
        if version != PROTOCOL:
            raise RemotePolicyError(f"it speaks protocol {version}, here is {PROTOCOL}")
        return greeting


def _trim(dialect: Dialect, greeting: Mapping[str, Any]) -> Dialect:
    """Return the dialect without what the server does not ask for."""
    wants = greeting.get("observation_params") or {}
    optional = {"rgb_wrist": "send_wrist_image", "proprio": "send_state"}
    keys = {
        key: name
        for key, name in (dialect.keys or {}).items()
        if key not in optional or wants.get(optional[key])
    }
    return dataclasses.replace(dialect, keys=keys)


def _format(specs: Mapping[str, Any], name: str) -> str | None:
    return specs[name].get("format") if name in specs else None


def _read_chunk(payload: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the actions (T, A) of an answer: one, or a chunk."""
    actions = payload.get("actions")
    chunk = np.atleast_2d(np.asarray([] if actions is None else actions, dtype=np.float32))
    if chunk.ndim != 2 or not chunk.size:
        raise RemotePolicyError(
            f"its answer holds no 'actions' but {', '.join(payload) or 'nothing'}"
        )
    return chunk


def _pack_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        head = {"dtype": value.dtype.str, "shape": list(value.shape)}
        return {"__ndarray__": True, "data": value.tobytes(), **head}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be sent; plain values and arrays can")


def _unpack_array(found: dict[Any, Any]) -> Any:
    if "__ndarray__" not in found:
        return found
    dtype = np.dtype(found["dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype} is not read; numbers are")
    return np.frombuffer(found["data"], dtype).reshape(found["shape"]).copy()
