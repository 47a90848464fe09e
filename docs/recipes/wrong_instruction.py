"""Does a policy listen? It plays tasks while it is told what another task's instruction is.

    python docs/recipes/wrong_instruction.py RUN/best -o OUT \
        --pair MetaWorld-FaucetOpen MetaWorld-FaucetClose [--pair ...] [-k split=test]

Of each pair both tasks are played, each with its own instruction and with the other's: the same
seeds, side by side in one report. It matters where both tasks have the same scene.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import vla_gym
from vla_gym.cli.options import read_keywords
from vla_gym.evaluation.evaluate import evaluate, find_ids
from vla_gym.evaluation.metrics import summarize
from vla_gym.evaluation.report import write_report
from vla_gym.registration import list_suites


class Told:
    """A policy that hears one instruction, whatever the env says."""

    def __init__(self, policy: Any, instruction: str) -> None:
        self._policy, self._instruction, self.spec = policy, instruction, policy.spec

    def for_env(self, sheet: Any) -> Told:
        """Return itself, fitted to the env."""
        return Told(self._policy.for_env(sheet), self._instruction)

    def set_random_seed(self, seed: int) -> None:
        """Seed the policy."""
        self._policy.set_random_seed(seed)

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Predict with the instruction replaced."""
        count = len(observation["instruction"])
        told = {**observation, "instruction": [self._instruction] * count}
        return self._policy.predict(told, state, episode_start, deterministic)


def make_told(path: str, instruction: str) -> Told:
    """Return the policy of a checkpoint that hears `instruction`."""
    return Told(vla_gym.make_policy(path), instruction)


def find_instruction(env_id: str) -> str:
    """Return the instruction of a registered task."""
    return next(
        task.instruction
        for suite in list_suites()
        for name, task in suite.tasks.items()
        if suite.id(name) == env_id
    )


def main() -> None:
    """Play all pairs and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--pair", nargs=2, action="append", required=True, metavar="ID")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("-n", "--episodes", type=int, default=50)
    parser.add_argument("-s", "--seed", type=int, default=0)
    parser.add_argument("-w", "--workers", type=int, default=1)
    parser.add_argument("-k", "--keyword", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    records = []
    for pair in arguments.pair:
        ids = find_ids(pair)
        for played, other in (ids, ids[::-1]):
            told = find_instruction(other)
            policies = {
                "its own instruction": functools.partial(vla_gym.make_policy, arguments.checkpoint),
                f"told: {told}": functools.partial(make_told, arguments.checkpoint, told),
            }
            records += evaluate(
                policies,
                [played],
                episodes=arguments.episodes,
                folder=arguments.out,
                seed=arguments.seed,
                workers=arguments.workers,
                keywords=read_keywords(arguments.keyword),
            ).records
    rows = [
        {"id": s.id, "policy": s.policy, "n": s.n, "rate": s.rate, "interval": s.rate_interval}
        for s in summarize(records)
    ]
    for row in rows:
        low, high = row["interval"]
        print(f"{row['id']:34} {row['policy']:60} {row['rate']:4.0%} [{low:.0%}, {high:.0%}]")
    (arguments.out / "rates.json").write_text(json.dumps(rows, indent=1) + "\n")
    write_report([arguments.out])


if __name__ == "__main__":
    main()
