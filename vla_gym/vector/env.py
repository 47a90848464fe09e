"""`VLAVectorEnv`: several envs at once, in worker processes or threads."""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray

from vla_gym.errors import InvalidAction, InvalidOption, UnknownName
from vla_gym.processes import count_cores
from vla_gym.vector.common import find_common
from vla_gym.vector.group import Info, Maker, Outcome
from vla_gym.vector.workers import Answer, Plan, ProcessWorker, ThreadWorker
from vla_gym.worker import _make_nameless_file

__all__ = ["VLAVectorEnv"]

KINDS = ("process", "thread")

Worker = ProcessWorker | ThreadWorker
Step = tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class VLAVectorEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """A vector env whose workers hold several envs each and write into one shared batch.

    It returns, bit for bit, what Gymnasium's `SyncVectorEnv` of the same envs returns.

    Args:
        makers: a function without arguments for each env; they go to other processes by
            cloudpickle.
        workers: how many processes or threads. None is one per usable core, or the next number
            that gives all workers equally many envs.
        kind: `"process"`, or `"thread"`, for envs that wait for something outside of Python, such
            as simulators in other interpreters; pictures of this process are drawn one at a time.
        autoreset_mode: what follows the end of an episode. `AutoresetMode.NEXT_STEP`: the next step
            resets, ignores the action and has reward 0; `SAME_STEP`: the same step resets, and
            `infos["final_obs"]`, `infos["final_info"]` are the last ones of the episode;
            `DISABLED`: you call `reset(options={"reset_mask": ...})`.
        copy: whether observations are the caller's own. Without, the arrays are views of the
            batch, which the next step or reset overwrites.

    Raises:
        InvalidOption: there is no env, the spaces differ, or hold values without a fixed size.
        UnknownName: there is no such kind or autoreset mode.

    What an env raises in a worker is raised here, with a note that says which env it was; the
    other envs have acted. A worker process that ends raises `SimulatorCrashed`, and the next reset
    starts a fresh one.
    """

    def __init__(
        self,
        makers: Sequence[Maker],
        *,
        workers: int | None = None,
        kind: str = "process",
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        copy: bool = True,
    ) -> None:
        self.closed = True  # until there is something to close
        self.num_envs = len(makers)
        self.copy = copy
        if kind not in KINDS:
            raise UnknownName("kind of worker", kind, KINDS)
        mode = _read_mode(autoreset_mode)
        common = find_common(makers)
        self.render_mode = common.render_mode
        self.metadata = {**common.metadata, "autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = common.observation, common.action
        self.observation_space = batch_space(common.observation, self.num_envs)
        self.action_space = batch_space(common.action, self.num_envs)

        number = _count_workers(self.num_envs) if workers is None else workers
        if not 1 <= number <= self.num_envs:
            raise InvalidOption(
                f"workers={workers!r} must be in [1, {self.num_envs}], the number of envs"
            )
        plan = Plan(common.observation, self.num_envs, mode, number)
        file = _make_nameless_file(plan.memory_size)
        memory = mmap.mmap(file, plan.memory_size)
        self._batch, self._finals = plan.place(memory)
        bounds = np.linspace(0, self.num_envs, number + 1).round().astype(int).tolist()
        self._slices = [slice(*pair) for pair in itertools.pairwise(bounds)]

        def start(part: slice) -> Worker:
            if kind == "thread":
                return ThreadWorker(makers[part], part.start, plan, memory)
            return ProcessWorker(makers[part], part.start, plan, file)

        self._start = start
        self._stepping = False
        self._workers: list[Worker] = []
        # Runs at the latest when the program ends, also where nobody calls close().
        self._stop = weakref.finalize(self, _stop, self._workers, file)
        self.closed = False
        try:
            self._workers += [start(part) for part in self._slices]
            self._gather()
        except BaseException:
            self.close()
            raise

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every env, or in those of a mask.

        Args:
            seed: a number s seeds the envs with s, s + 1, ...; a list has one for each; None goes
                on with their random streams.
            options: of `reset` of each env. `"reset_mask"`, bool (num_envs,), is taken out: only
                the envs where it is True are reset, of the others the last observation is returned.

        Raises:
            InvalidOption: seeds or mask have another length, or the mask is not one.
        """
        options = dict(options or {})
        mask = _check_mask(options.pop("reset_mask", None), self.num_envs)
        seeds = _spread(seed, self.num_envs)
        self._check_idle("reset")
        self._revive()
        for worker, part in zip(self._workers, self._slices, strict=True):
            worker.send("reset", seeds[part], options, mask[part])
        infos: list[Info] = self._gather()
        return self._batch.read(self.copy), self._stack(infos)

    def step(self, actions: Any) -> Step:
        """Let each env take its action. See `step_async` and `step_wait`."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        """Start a step; `step_wait` returns what comes of it.

        Args:
            actions: a batch of `action_space`: one row for each env.

        Raises:
            InvalidAction: there is not one action for each env.
        """
        self._check_idle("step_async")
        if not isinstance(actions, np.ndarray):
            actions = list(iterate(self.action_space, actions))
        if len(actions) != self.num_envs:
            raise InvalidAction(f"there are {len(actions)} actions for {self.num_envs} envs")
        for worker, part in zip(self._workers, self._slices, strict=True):
            worker.send("step", actions[part])
        self._stepping = True

    def step_wait(self) -> Step:
        """Return the step that `step_async` has started.

        Returns:
            observations, rewards float64 (num_envs,), terminated and truncated bool (num_envs,),
            infos: as Gymnasium's vector envs.
        """
        self._check_open()
        if not self._stepping:
            raise NoAsyncCallError("step_wait() without a step_async() before it", "step")
        self._stepping = False  # also where Ctrl-C comes now
        outcomes: list[Outcome] = self._gather()
        rewards, terminated, truncated, infos, finals = zip(*outcomes, strict=True)
        merged = [
            info
            if final is None
            else {"final_obs": self._finals.read_one(i), "final_info": final, **info}
            for i, (info, final) in enumerate(zip(infos, finals, strict=True))
        ]
        return (
            self._batch.read(self.copy),
            np.array(rewards, np.float64),
            np.array(terminated, np.bool_),
            np.array(truncated, np.bool_),
            self._stack(merged),
        )

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return an attribute of each env, or what it returns where it can be called."""
        self._check_idle("call")
        for worker in self._workers:
            worker.send("call", name, args, kwargs)
        return tuple(self._gather())

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of each env."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each env: a list or tuple has a value for each, else all get it.

        Raises:
            InvalidOption: the list has another length.
        """
        self._check_idle("set_attr")
        if not isinstance(values, list | tuple):
            values = [values] * self.num_envs
        if len(values) != self.num_envs:
            raise InvalidOption(f"{name}: {len(values)} values for {self.num_envs} envs")
        for worker, part in zip(self._workers, self._slices, strict=True):
            worker.send("set_attr", name, values[part])
        self._gather()

    def render(self) -> tuple[Any, ...]:
        """Return the picture of each env."""
        return self.call("render")

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # as Gymnasium's own
        """Copies of the envs' random streams."""
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # as Gymnasium's own
        """The envs' seeds."""
        return self.get_attr("np_random_seed")

    def close_extras(self, **kwargs: Any) -> None:
        """Close the envs, end the workers and give back the memory."""
        self._stop()
        # What holds the memory; views that the caller has (copy=False) keep it for themselves.
        self.__dict__.pop("_batch", None)
        self.__dict__.pop("_finals", None)
        self.__dict__.pop("_start", None)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError(f"{self} is closed; make a new one")

    def _check_idle(self, what: str) -> None:
        self._check_open()
        if self._stepping:
            raise AlreadyPendingCallError(
                f"{what}() between step_async() and step_wait(): call step_wait() first", "step"
            )

    def _revive(self) -> None:
        for i, worker in enumerate(self._workers):
            if not worker.alive():
                worker.stop()
                self._workers[i] = self._start(self._slices[i])
                self._receive([self._workers[i]])

    def _gather(self) -> list[Any]:
        """Return what the workers return, in the order of the envs."""
        return [item for part in self._receive(self._workers) for item in part or ()]

    def _receive(self, workers: Sequence[Worker]) -> list[Any]:
        answers = [worker.receive() for worker in workers]  # all, before one of them raises
        for answer in answers:
            if answer.error is not None:
                raise _name_env(answer)
        return [answer.result for answer in answers]

    def _stack(self, infos: Sequence[Info]) -> dict[str, Any]:
        """Return infos in Gymnasium's vector form, with a mask beside each.

        Most entries are numbers or texts that every env has: those become arrays in one go, the
        rest by Gymnasium's own method.
        """
        stacked: dict[str, Any] = {}
        rest = [dict(info) for info in infos]
        for name, value in infos[0].items():
            kind = type(value)
            if kind not in (bool, int, float, str):
                continue
            values = [info.get(name) for info in infos]
            if all(type(other) is kind for other in values):
                stacked[name] = np.array(values, object if kind is str else kind)
                stacked[f"_{name}"] = np.ones(self.num_envs, np.bool_)
                for info in rest:
                    del info[name]
        for i, info in enumerate(rest):
            stacked = self._add_info(stacked, info, i)
        return stacked


def _stop(workers: list[Worker], file: int) -> None:
    for worker in workers:
        worker.stop()
    workers.clear()
    os.close(file)


def _name_env(answer: Answer) -> Exception:
    """Return the error with a note that says in which env it was raised, and where."""
    error = answer.error
    assert error is not None
    if answer.env is not None:
        error.add_note(f"in env {answer.env} of the vector env")
    if answer.trace:
        error.add_note(answer.trace)
    return error


def _count_workers(num_envs: int) -> int:
    """Return the least number, one per core or more, that divides the envs evenly.

    Unequal workers would wait for the one with the most envs.
    """
    cores = min(count_cores(), num_envs)
    return next(n for n in range(cores, num_envs + 1) if num_envs % n == 0)


def _read_mode(mode: str | AutoresetMode) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise UnknownName("autoreset_mode", mode, [m.value for m in AutoresetMode]) from None


def _spread(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise InvalidOption(f"there are {len(seed)} seeds for {num_envs} envs: {seed!r}")
    return list(seed)


def _check_mask(mask: Any, num_envs: int) -> list[bool]:
    if mask is None:
        return [True] * num_envs
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (num_envs,):
        raise InvalidOption(
            f"options['reset_mask']={mask!r} must be an array of {num_envs} bools: which envs are "
            "to be reset"
        )
    if not mask.any():
        raise InvalidOption("options['reset_mask'] is False for all envs: nothing to reset")
    return mask.tolist()
