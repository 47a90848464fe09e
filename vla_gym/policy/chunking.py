"""Action chunks: several actions predicted at once, taken one by one in each env.

Two ways of taking them. *Receding horizon* (Chi et al., Diffusion Policy, RSS 2023): take the
first so many actions of a chunk, then predict the next one. *Temporal ensembling* (Zhao et al.,
ACT, RSS 2023): predict a chunk at every step, and take the weighted mean of what all chunks that
reach it say about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.errors import ContractMismatch, InvalidOption

__all__ = ["Chunker", "take_rows"]

Actions = NDArray[np.float32]
PredictChunk = Callable[[dict[str, Any]], Any]


class _Chunk(NamedTuple):
    """A chunk (T, A), of which `age` actions belong to the past."""

    actions: Actions
    age: int


State = list[tuple[_Chunk, ...]]
"""Of each env: its chunks that reach the present, the oldest first."""


class Chunker:
    """Takes actions from chunks, for each env of a batch at its own pace.

    It holds settings only: what is still to be done lives in the `state` that `predict` returns, as
    in `vla_gym.policy.Policy`.

    Args:
        execute: how many actions of a chunk are taken before the next is predicted. None: all.
        ensemble: m of temporal ensembling: an action predicted by the i-th oldest chunk has the
            weight exp(-m i), so that 0 is their mean and ACT's 0.01 trusts older ones slightly
            more. None: no ensembling.

    Raises:
        InvalidOption: `execute` is less than 1, both are given, or `ensemble` is not finite.
    """

    def __init__(self, execute: int | None = None, ensemble: float | None = None) -> None:
        if execute is not None and (isinstance(execute, bool) or execute != int(execute)):
            raise InvalidOption(f"execute={execute!r} must be a whole number of actions, or None")
        if execute is not None and execute < 1:
            raise InvalidOption(f"execute={execute} must be at least 1: actions taken of a chunk")
        if ensemble is not None and not np.isfinite(ensemble):
            raise InvalidOption(f"ensemble={ensemble} must be a finite number, such as 0.01")
        if execute is not None and ensemble is not None:
            raise InvalidOption(
                f"execute={execute} and ensemble={ensemble} exclude each other: ensembling "
                "predicts a chunk at every step"
            )
        self.execute, self.ensemble = execute, ensemble

    def predict(
        self,
        predict_chunk: PredictChunk,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
    ) -> tuple[Actions, State]:
        """Return this step's actions, and what is left to do.

        Args:
            predict_chunk: maps an observation of b envs to chunks (b, T, A). It is called at most
                once, with those envs that need a chunk, in their order.
            observation: of B envs, see `vla_gym.policy.Policy.predict`.
            state: what the last call returned; None, or one of another number of envs, at first.
            episode_start: (B,) True where the env's chunks are void.

        Returns:
            actions float32 (B, A), and the next state.

        Raises:
            ContractMismatch: `predict_chunk` returned another shape, or chunks shorter than
                `execute`.
        """
        count = _count_rows(observation)
        before: State = state if state is not None and len(state) == count else [()] * count
        starts = np.zeros(count, bool) if episode_start is None else np.asarray(episode_start, bool)
        plans = [() if new else plan for plan, new in zip(before, starts, strict=True)]
        asked = [i for i, plan in enumerate(plans) if self.ensemble is not None or not plan]
        if asked:
            rows = observation if len(asked) == count else take_rows(observation, asked)
            for i, chunk in zip(asked, self._check(predict_chunk(rows), len(asked)), strict=True):
                plans[i] = (*plans[i], _Chunk(chunk, 0))
        actions = np.stack([self._act(plan) for plan in plans])
        return actions, [self._advance(plan) for plan in plans]

    def _check(self, chunks: Any, count: int) -> Actions:
        chunks = np.asarray(chunks, dtype=np.float32)
        if chunks.ndim != 3 or chunks.shape[0] != count or not chunks.shape[1]:
            raise ContractMismatch(
                f"chunks of {count} envs have the shape {chunks.shape}, not (envs, actions of a "
                "chunk, entries of an action)"
            )
        if self.execute is not None and self.execute > chunks.shape[1]:
            raise ContractMismatch(
                f"execute={self.execute}, but the policy predicts {chunks.shape[1]} actions at a "
                f"time; at most so many can be taken"
            )
        return chunks

    def _act(self, plan: tuple[_Chunk, ...]) -> Actions:
        actions = np.stack([chunk.actions[chunk.age] for chunk in plan])
        if len(plan) == 1 or self.ensemble is None:
            return actions[-1]
        weights = np.exp(-self.ensemble * np.arange(len(plan)))
        return (weights / weights.sum() @ actions).astype(np.float32)

    def _advance(self, plan: tuple[_Chunk, ...]) -> tuple[_Chunk, ...]:
        older = (_Chunk(chunk.actions, chunk.age + 1) for chunk in plan)
        return tuple(chunk for chunk in older if chunk.age < (self.execute or len(chunk.actions)))


def take_rows(observation: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Return the observation of some envs of a batch: arrays (b, ...), texts a tuple of b str."""
    return {
        key: value[list(rows)] if isinstance(value, np.ndarray) else tuple(value[i] for i in rows)
        for key, value in observation.items()
    }


def _count_rows(observation: dict[str, Any]) -> int:
    return len(next(iter(observation.values())))
