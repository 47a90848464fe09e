"""Serve a policy to others' programs in the openpi protocol.

The protocol (openpi, `websocket_policy_server.py`, and openpi-client 0.1.2), over a WebSocket:
the server first sends its metadata; then each message of the client is one observation of one env,
and each answer `{"actions": (T, A), "server_timing": ...}`, in the bytes of `vla_gym.wire`. A text
frame is an error, after which the server closes. `GET /healthz` answers 200.

The protocol knows neither batches nor episodes. Here a connection is an episode, with the state of
the policy for itself, unless the client says more: a message may hold `vla_gym/episode_start`
(bool), `vla_gym/seed` (int) and `vla_gym/deterministic` (bool), as our own client's does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym._version import __version__
from vla_gym.contract import SpecSheet
from vla_gym.deps import require
from vla_gym.errors import ContractMismatch, InvalidOption
from vla_gym.policy import Policy, PolicySpec, connect
from vla_gym.rollout import add_batch_axis
from vla_gym.wire import Dialect, get_dialect, pack, unpack

__all__ = ["PolicyServer", "Session", "serve"]

logger = logging.getLogger(__name__)

SIGNS = ("+1 opens", "+1 closes")

INTERNAL_ERROR = 1011  # RFC 6455, section 7.4.1


def serve(
    policy: Policy,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    sheet: SpecSheet | None = None,
    dialect: str | Dialect = "vla_gym",
    label: str = "",
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a policy until the process is interrupted.

    There is no password: who can reach the port can use the policy.

    Args:
        policy: has `predict`.
        host: address to listen on; the default is reached from this machine alone.
        port: to listen on, 0 for a free one.
        sheet: of the env in which it is to act, for a policy that must know it.
        dialect: what the clients speak, see `vla_gym.wire.DIALECTS`.
        label: name of the policy, for the metadata.
        on_ready: called with the address once clients can connect.

    Raises:
        ContractMismatch: the policy fits neither the env nor the dialect.
        InvalidOption: it cannot listen there.
    """
    server = PolicyServer(policy, sheet=sheet, dialect=dialect, label=label)
    asyncio.run(server.run(host, port, on_ready))


class PolicyServer:
    """A policy and what it says of itself.

    Args:
        policy, sheet, dialect, label: as for `serve`.

    Attributes:
        policy: speaks the convention of the env where there is one.
        spec: what it reads and speaks.
        dialect: of the clients.
        metadata: plain values, sent to each client first.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        sheet: SpecSheet | None = None,
        dialect: str | Dialect = "vla_gym",
        label: str = "",
    ) -> None:
        self.dialect = get_dialect(dialect)
        self.spec: PolicySpec = getattr(policy, "spec", None) or PolicySpec()
        self.policy = policy if sheet is None else connect(policy, sheet)
        if sheet is not None:
            self.spec = dataclasses.replace(
                _spec_in_contract(self.spec),
                image_size=None if self.spec.image_size is None else sheet.image_size,
                action_mode=sheet.action_mode,
                action_dim=len(sheet.action),
            )
        self._flip = self._compare_conventions()
        about = {
            "version": __version__,
            "policy": label or type(policy).__name__,
            "dialect": self.dialect.name,
            "spec": dataclasses.asdict(self.spec),
            "env": None if sheet is None else sheet.to_dict(),
        }
        self.metadata: dict[str, Any] = {"vla_gym": json.loads(json.dumps(about, default=dict))}

    def _compare_conventions(self) -> bool:
        """Return whether the gripper's sign must change for the clients."""
        spec, dialect = self.spec, self.dialect
        if dialect.keys is None:
            return False  # our own client reads the spec
        contract = _spec_in_contract(spec)
        differences = [
            f"{field.name} is {getattr(spec, field.name)!r}, theirs is the contract's"
            for field in dataclasses.fields(spec)
            if field.name != "gripper"
            and getattr(spec, field.name) != getattr(contract, field.name)
        ]
        if spec.gripper not in SIGNS:
            differences.append(f"gripper is {spec.gripper!r}, not {' or '.join(map(repr, SIGNS))}")
        if spec.action_mode not in (None, "ee_delta"):
            differences.append(f"action_mode is {spec.action_mode!r}, they read 'ee_delta'")
        if "proprio" in dialect.keys and spec.proprio not in (None, dialect.proprio):
            differences.append(f"proprio is {spec.proprio!r}, they send {dialect.proprio!r}")
        if spec.action_dim not in (None, 7):
            differences.append(f"actions have {spec.action_dim} entries, they read 7")
        if lacking := set(spec.cameras or ()) - set(dialect.cameras or ()):
            differences.append(f"it reads the cameras {sorted(lacking)}, which they do not send")
        if spec.state:
            differences.append("it reads the privileged state, which they do not send")
        if differences:
            raise ContractMismatch(
                f"the policy cannot be served in the dialect {dialect.name!r}: "
                f"{'; '.join(differences)}. Choose the dialect 'vla_gym', or the env (--env) in "
                "whose convention it is to act"
            )
        return spec.gripper != dialect.gripper

    def act(
        self, observation: dict[str, Any], state: Any, start: bool, deterministic: bool
    ) -> tuple[NDArray[np.float32], Any]:
        """Return one action (1, A) in the clients' convention, and the next state."""
        actions, state = self.policy.predict(observation, state, np.array([start]), deterministic)
        actions = np.array(actions, dtype=np.float32)
        if self._flip:
            actions[:, -1] *= -1
        return actions, state

    async def run(
        self, host: str, port: int, on_ready: Callable[[str], None] | None = None
    ) -> None:
        """Listen until cancelled; arguments and errors as for `serve`."""
        websockets = require("websockets.asyncio.server", "serve", "vla-gym serve")
        require("msgpack", "serve", "vla-gym serve")
        with ThreadPoolExecutor(1, "policy") as thread:  # one request at a time, always in there
            try:
                server = await websockets.serve(
                    lambda connection: self._talk(connection, thread),
                    host,
                    port,
                    process_request=_answer_http,
                    compression=None,
                    max_size=None,
                )
            except OSError as error:
                raise InvalidOption(
                    f"cannot listen on {host}:{port} ({error}); choose another --port, 0 for a "
                    "free one"
                ) from error
            async with server:
                if on_ready is not None:
                    on_ready(_address(server.sockets[0]))
                await server.serve_forever()

    async def _talk(self, connection: Any, thread: ThreadPoolExecutor) -> None:
        """Answer one client until it goes or a request fails."""
        closed = require("websockets.exceptions", "serve").ConnectionClosed
        session, loop = Session(self), asyncio.get_running_loop()
        logger.info("%s connected", connection.remote_address)
        with contextlib.suppress(closed):
            await connection.send(pack(self.metadata))
            async for message in connection:
                try:
                    # In a thread, so that pings are answered meanwhile.
                    answer = await loop.run_in_executor(thread, session.answer, message)
                except Exception:  # any code may run in a policy; the client gets to know
                    logger.exception("%s asked in vain", connection.remote_address)
                    await connection.send(traceback.format_exc())
                    await connection.close(INTERNAL_ERROR, "error: see the frame before")
                    break
                await connection.send(answer)
        logger.info("%s left", connection.remote_address)


class Session:
    """One connection: the policy's state in it, and whether an episode begins."""

    def __init__(self, server: PolicyServer) -> None:
        self._server = server
        self._state: Any = None
        self._start = True

    def answer(self, data: bytes | str) -> bytes:
        """Return the answer to one message.

        Raises:
            ContractMismatch: the message is no observation that the policy can read. Other errors
                are the policy's own.
        """
        began = time.perf_counter()
        message = unpack(data) if isinstance(data, bytes) else data
        if not isinstance(message, dict):
            raise ContractMismatch(
                f"a message must be a dict of the keys of an observation, not {message!r:.80}"
            )
        start = self._start or bool(message.pop("vla_gym/episode_start", False))
        seed = message.pop("vla_gym/seed", None)
        deterministic = bool(message.pop("vla_gym/deterministic", True))
        observation = self._server.dialect.read(message)
        self._check(observation, message)
        if seed is not None and hasattr(self._server.policy, "set_random_seed"):
            self._server.policy.set_random_seed(int(seed))  # type: ignore[attr-defined]  # optional
        actions, self._state = self._server.act(
            add_batch_axis(observation), None if start else self._state, start, deterministic
        )
        self._start = False
        timing = {"infer_ms": 1000 * (time.perf_counter() - began)}
        return pack({"actions": actions, "server_timing": timing})

    def _check(self, observation: Mapping[str, Any], message: Mapping[str, Any]) -> None:
        """Refuse an observation that lacks what the policy reads, or has pictures of other size."""
        spec, keys = self._server.spec, self._server.dialect.keys
        needed = [f"rgb_{camera}" for camera in spec.cameras or ()]
        needed += ["state"] * bool(spec.state) + ["instruction"] * bool(spec.instruction)
        faults = [
            f"it lacks {(keys or {}).get(key, key)!r}" for key in needed if key not in observation
        ]
        for key, value in observation.items():
            if key.startswith("rgb_"):
                faults += _fault_of(key, value, spec)
        if faults or not observation:
            raise ContractMismatch(
                f"the policy cannot read this observation in the dialect "
                f"{self._server.dialect.name!r}: {'; '.join(faults) or 'it has none of its keys'}. "
                f"Its keys: {', '.join(map(str, message))}"
            )


def _fault_of(key: str, picture: Any, spec: PolicySpec) -> list[str]:
    size = spec.size_of(key.removeprefix("rgb_"))
    shape, dtype = np.shape(picture), getattr(picture, "dtype", type(picture).__name__)
    first = spec.image_layout == "CHW"
    valid = len(shape) == 3 and shape[0 if first else 2] == 3 and dtype == np.uint8
    sides = shape[1:] if first else shape[:2]
    if valid and size in (None, *sides[:1]) and sides[0] == sides[1]:
        return []
    n = "n" if size is None else size
    wanted = f"(3, {n}, {n})" if first else f"({n}, {n}, 3)"
    return [f"{key} is {dtype} {shape}, not uint8 {wanted}"]


def _spec_in_contract(spec: PolicySpec) -> PolicySpec:
    """Return the same needs with every form the contract's own, as `connect` makes it."""
    needs = ("suites", "cameras", "state", "proprio", "instruction", "keywords")
    speaks = ("action_mode", "action_dim")
    size = spec.image_size if spec.drawn_size is None else spec.drawn_size
    same = {name: getattr(spec, name) for name in (*needs, *speaks)}
    return PolicySpec(image_size=size, **same)


def _answer_http(connection: Any, request: Any) -> Any:
    return connection.respond(HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None


def _address(socket: Any) -> str:
    host, port = socket.getsockname()[:2]
    return f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"
