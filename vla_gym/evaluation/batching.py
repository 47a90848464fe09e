"""One policy for all workers: it answers those that wait for it in one call.

The policy lives in a process of its own. A worker writes its observation into memory that both
share and asks; whoever has asked by the time that the policy is free is served together. Nobody
waits for the slowest: the policy waits for those whose envs still step for at most `PATIENCE` of
what a call of it takes.

A batch sums in another order than a single observation does, so a network's actions may differ in
their last bits from those of a policy that each worker has to itself, and with them an episode.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import SpecSheet
from vla_gym.errors import ContractMismatch, SimulatorCrashed
from vla_gym.evaluation.stage import make_from, portable
from vla_gym.processes import START_S, Process, Pulse

__all__ = ["BatchedPolicy", "PolicyProcess"]

PATIENCE = 0.25
"""Of the duration of a call: how long the policy waits for envs that still step."""

LONGEST_WAIT_S = 0.1
LONGEST_PATH = 90
"""Of a socket's folder: systems allow from 104 bytes on for the whole."""

BEAT_S = 0.5

Layout = tuple[tuple[str, str, tuple[int, ...], int], ...]
"""Of each array: key, dtype, shape, place in the memory [bytes]."""


class PolicyProcess:
    """The process that runs the policies, as the one that starts it sees it.

    Args:
        start: starts a `Process` with a function and its arguments.
        batch: most observations in a call.
        timeout: a call that takes longer [s] is taken as hung; None: none is.
    """

    def __init__(self, start: Callable[..., Process], batch: int, timeout: float | None) -> None:
        self._start, self._batch, self._timeout = start, batch, timeout
        self._watching = threading.Lock()  # each thread of a Ray actor waits for its own worker
        self._folder = _make_folder()
        self.address = str(Path(self._folder, "policies"))
        self._begin()

    def _begin(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.address)
        self._process = self._start(_serve, self.address, self._batch)

    def watch(self) -> None:
        """Start the process again if it has died, or stands still: whoever asked it is told."""
        with self._watching:
            silent_s = self._process.pulse.silent_s()
            hung = self._timeout is not None and silent_s > self._timeout
            if hung or not self._process.alive():
                self._process.close()
                self._begin()

    def close(self) -> None:
        """End the process."""
        self._process.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _make_folder() -> str:
    """Return a new folder that nobody else may look into, with a path that a socket can have."""
    folder = tempfile.mkdtemp(prefix="vla_gym-")
    if len(folder) > LONGEST_PATH:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="vla_gym-", dir="/tmp")
    return folder


class BatchedPolicy:
    """A policy in the other process, as a worker's env sees it: of one env at a time.

    What a policy remembers of an episode stays over there. Its random draws come from one stream
    for all envs, so an episode of a policy that draws does not repeat by itself.

    Args:
        address: of the process.
        beat: called while it waits.
        label: names the policy over there.
        source: what makes it, where it is not there yet.

    Raises:
        Exception: what making the policy raised.
        SimulatorCrashed: the process ended; a new one is on its way.
    """

    def __init__(
        self,
        address: str,
        beat: Callable[[], None],
        label: str,
        source: str | Callable[[], Any],
    ) -> None:
        self._beat, self._folder = beat, Path(address).parent
        self._arrays: _SharedArrays | None = None
        self._connection = _connect(address, beat)
        self.spec = self._ask("open", label, cloudpickle.dumps(source))

    def for_env(self, sheet: SpecSheet) -> BatchedPolicy:
        """Fit the policy to an env, where it wants to be."""
        self._ask("bind", sheet)
        return self

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the action, shape (1, action_dim), of the one env."""
        arrays = {k: v for k, v in observation.items() if isinstance(v, np.ndarray)}
        texts = {k: v for k, v in observation.items() if k not in arrays}
        layout = None
        if self._arrays is None or not self._arrays.fits(arrays):
            self._arrays = _SharedArrays.create(self._folder, arrays)
            layout = self._arrays.path, self._arrays.layout
        self._arrays.write(arrays)
        start = episode_start is not None and bool(episode_start[0])
        action = self._ask("predict", layout, texts, state is None, start, deterministic)
        return action, [True]

    def rest(self) -> None:
        """Say that nothing will be asked for a while: an episode has ended."""
        with contextlib.suppress(OSError):
            self._connection.send(("rest",))

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def _ask(self, *question: Any) -> Any:
        try:
            self._connection.send(question)
            while not self._connection.poll(BEAT_S):
                self._beat()
            error, answer = self._connection.recv()
        except (EOFError, OSError) as lost:
            raise SimulatorCrashed(
                "the process of the policy ended or stood still while it was asked (see "
                "policies.log)"
            ) from lost
        if error is not None:
            raise error
        return answer


class _SharedArrays:
    """Named arrays in memory that two processes have mapped."""

    def __init__(self, path: str, layout: Layout) -> None:
        self.path, self.layout = path, layout
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self.views = {
            key: np.ndarray(shape, dtype, self._memory, place)
            for key, dtype, shape, place in layout
        }

    @classmethod
    def create(cls, folder: Path, arrays: Mapping[str, NDArray[Any]]) -> _SharedArrays:
        layout, place = [], 0
        for key, array in arrays.items():
            layout.append((key, array.dtype.str, array.shape, place))
            place += -(-array.nbytes // 64) * 64  # a multiple of any item's size
        descriptor, path = tempfile.mkstemp(dir=folder)
        os.ftruncate(descriptor, max(place, 1))
        os.close(descriptor)
        return cls(path, tuple(layout))

    def fits(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        return self.views.keys() == arrays.keys() and all(
            view.shape == arrays[key].shape and view.dtype == arrays[key].dtype
            for key, view in self.views.items()
        )

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for key, view in self.views.items():
            view[...] = arrays[key]


def _connect(address: str, beat: Callable[[], None]) -> Connection:
    deadline = time.monotonic() + START_S
    while True:
        beat()
        try:
            return Client(address, family="AF_UNIX")
        except (OSError, EOFError) as error:  # not there yet, or just gone
            if time.monotonic() > deadline:
                raise SimulatorCrashed(
                    f"the process of the policy did not start within {START_S:g} s (see "
                    "policies.log)"
                ) from error
            time.sleep(0.05)


@dataclass(eq=False)
class _Served:
    """A policy, and whether what it remembers has an entry per env: None until that is seen."""

    policy: Any
    splits: bool | None = None


@dataclass
class _Guest:
    """One worker, as the process of the policies sees it.

    Attributes:
        label: of its policy.
        served: its policy, fitted to its env.
        entry: what the policy remembers of its episode.
        playing: whether it is in an episode, so that it will ask again soon.
        request: what it waits for: texts, episode_start, deterministic; None: nothing.
        asked: when.
    """

    connection: Connection
    label: str = ""
    served: _Served | None = None
    arrays: _SharedArrays | None = None
    entry: Any = None
    playing: bool = False
    request: tuple[dict[str, Any], bool, bool] | None = None
    asked: float = field(default=0.0)

    def answer(self, answer: Any = None, error: Exception | None = None) -> None:
        with contextlib.suppress(OSError):  # it has gone, which the next wait finds out
            self.connection.send((error, answer))

    @property
    def form(self) -> Any:
        """What requests must have in common to be served in one call."""
        assert self.request is not None and self.arrays is not None
        texts, _, deterministic = self.request
        arrays = [(key, dtype, shape) for key, dtype, shape, _ in self.arrays.layout]
        return id(self.served), tuple(arrays), tuple(texts), deterministic


class _Server:
    """Serves the requests of all guests."""

    def __init__(self, batch: int, beat: Callable[[], None]) -> None:
        self._batch, self._beat = batch, beat
        self._guests: dict[Connection, _Guest] = {}
        self._policies: dict[str, _Served] = {}
        self._bound: dict[tuple[str, bytes], _Served] = {}
        self._call_s = 0.0

    def welcome(self, connection: Connection) -> None:
        self._guests[connection] = _Guest(connection)

    def hear(self, connection: Connection) -> None:
        guest = self._guests[connection]
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            del self._guests[connection]
            connection.close()
            return
        try:
            kind, *content = pickle.loads(message)
            if kind == "predict":
                self._take_request(guest, *content)
            elif kind == "rest":
                guest.playing = False
            elif kind == "open":
                guest.answer(self._open(guest, *content))
            else:
                guest.answer(self._bind(guest, *content))
        except Exception as error:  # of the policy's own code, or its module cannot be imported
            traceback.print_exc()
            guest.answer(error=portable(error))

    def _take_request(
        self,
        guest: _Guest,
        layout: tuple[str, Layout] | None,
        texts: dict[str, Any],
        fresh: bool,
        start: bool,
        deterministic: bool,
    ) -> None:
        if layout is not None:
            guest.arrays = _SharedArrays(*layout)
            os.unlink(guest.arrays.path)  # it lives as long as the two that have mapped it
        if fresh:
            guest.entry = None
        guest.playing = True
        guest.request, guest.asked = (texts, start, deterministic), time.monotonic()

    def _open(self, guest: _Guest, label: str, pickled: bytes) -> Any:
        guest.label = ""
        if label not in self._policies:
            in_use = {other.label for other in self._guests.values()}
            for unused in self._policies.keys() - in_use:
                del self._policies[unused]
                self._bound = {key: p for key, p in self._bound.items() if key[0] != unused}
            self._policies[label] = _seeded(make_from(pickle.loads(pickled)))
        guest.label, guest.served = label, self._policies[label]
        return getattr(guest.served.policy, "spec", None)

    def _bind(self, guest: _Guest, sheet: SpecSheet) -> None:
        guest.served = self._policies[guest.label]
        policy: Any = guest.served.policy
        if hasattr(policy, "for_env"):
            key = guest.label, pickle.dumps(sheet)  # guests in like envs share what is made here
            if key not in self._bound:
                bound = policy.for_env(sheet)
                self._bound[key] = guest.served if bound is policy else _seeded(bound)
            guest.served = self._bound[key]

    @property
    def connections(self) -> list[Connection]:
        return list(self._guests)

    def patience(self) -> float | None:
        """Return how long to wait for further requests [s], None where there is none yet."""
        waiting = [guest for guest in self._guests.values() if guest.request is not None]
        if not waiting:
            return None
        playing = sum(guest.playing for guest in self._guests.values())
        if len(waiting) >= min(self._batch, playing):
            return 0.0
        limit = min(PATIENCE * self._call_s, LONGEST_WAIT_S)
        return max(0.0, min(guest.asked for guest in waiting) + limit - time.monotonic())

    def serve(self) -> None:
        """Answer those that have waited longest, and all that can be served with them."""
        waiting = [guest for guest in self._guests.values() if guest.request is not None]
        waiting.sort(key=lambda guest: guest.asked)
        form, served = waiting[0].form, waiting[0].served
        together = [guest for guest in waiting if guest.form == form]
        most = self._batch if served is not None and served.splits else 1
        self._predict(together[:most])

    def _predict(self, guests: Sequence[_Guest]) -> None:
        self._beat()
        began = time.monotonic()
        try:
            actions, entries = self._call(guests)
        except Exception as error:
            if len(guests) > 1:  # one of them may be to blame, the others are not
                for guest in guests:
                    self._predict([guest])
                return
            traceback.print_exc()
            guests[0].request = None
            guests[0].answer(error=portable(error))
            return
        took = time.monotonic() - began
        self._call_s = took if not self._call_s else 0.9 * self._call_s + 0.1 * took
        for guest, action, entry in zip(guests, actions, entries, strict=True):
            guest.request, guest.entry = None, entry
            guest.answer(action[None])

    def _call(self, guests: Sequence[_Guest]) -> tuple[NDArray[np.float32], list[Any]]:
        """Return the action of each guest, and what the policy remembers of it."""
        served = guests[0].served
        assert served is not None
        requests = [guest.request for guest in guests if guest.request is not None]
        views = [guest.arrays.views for guest in guests if guest.arrays is not None]
        observation: dict[str, Any] = {
            key: np.concatenate([view[key] for view in views]) for key in views[0]
        }
        for key in requests[0][0]:
            observation[key] = tuple(text for texts, _, _ in requests for text in texts[key])
        entries = [guest.entry for guest in guests]
        state: Any = None
        if any(entry is not None for entry in entries):
            state = entries if served.splits else entries[0]
        starts = np.array([start for _, start, _ in requests])
        actions, state = served.policy.predict(observation, state, starts, requests[0][2])
        actions = np.asarray(actions)
        if len(actions) != len(guests):
            raise ContractMismatch(
                f"{type(served.policy).__name__} returned actions of shape {actions.shape} for a "
                f"batch of {len(guests)}"
            )
        if state is None:
            served.splits = served.splits is not False
            return actions, [None] * len(guests)
        served.splits = isinstance(state, list) and len(state) == len(guests)
        if not served.splits and len(guests) > 1:
            raise ContractMismatch(
                f"{type(served.policy).__name__} remembers {type(state).__name__}, no list with an "
                f"entry for each of {len(guests)} envs"
            )
        return actions, state if served.splits else [state]


def _seeded(policy: Any) -> _Served:
    if hasattr(policy, "set_random_seed"):
        policy.set_random_seed(0)
    return _Served(policy)


def _serve(connection: Connection, pulse: Pulse, address: str, batch: int) -> None:
    """Run the policies until the process is killed."""
    listener = Listener(address, family="AF_UNIX", backlog=128)
    arrived: list[Connection] = []
    ours, theirs = Pipe(duplex=False)

    def accept() -> None:
        while True:
            with contextlib.suppress(OSError, EOFError):
                arrived.append(listener.accept())
                theirs.send_bytes(b"!")

    threading.Thread(target=accept, daemon=True).start()

    server = _Server(batch, pulse.beat)
    while True:
        pulse.beat()
        patience = server.patience()
        ready = wait([ours, *server.connections], BEAT_S if patience is None else patience)
        for end in ready:
            if end is ours:
                ours.recv_bytes()
                server.welcome(arrived.pop(0))
            else:
                server.hear(end)  # type: ignore[arg-type]  # only connections are given
        if server.patience() == 0.0:
            server.serve()
