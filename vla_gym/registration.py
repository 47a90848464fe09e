"""Names to suites and ids: every task of every suite becomes `VLA/<Suite>-<Task>-v<version>`."""

from __future__ import annotations

import importlib

import gymnasium as gym

from vla_gym.errors import UnknownName
from vla_gym.suite import Suite, Task

__all__ = [
    "get_suite",
    "get_task",
    "list_benchmarks",
    "list_ids",
    "list_suites",
    "register_suite",
]

SUITE_MODULES = (
    "vla_gym.suites.toy",
    "vla_gym.suites.metaworld",
    "vla_gym.suites.robosuite",
    "vla_gym.suites.rlbench",
    "vla_gym.suites.calvin",
    "vla_gym.suites.dmcontrol",
    "vla_gym.suites.libero",
)
"""A new benchmark is one module with a `SUITE`, and one line here."""

_suites: dict[str, Suite] = {}


def register_suite(suite: Suite) -> None:
    """Register a suite and an id for each of its tasks. Registering it again replaces it."""
    if replaced := _suites.get(suite.name):
        for task in replaced.tasks:  # none may go on under an old id with the new suite behind it
            gym.registry.pop(replaced.id(task), None)
    _suites[suite.name] = suite
    for task in suite.tasks.values():
        env_id = suite.id(task.name)
        gym.registry.pop(env_id, None)  # replaced on purpose; register() would warn
        gym.register(
            id=env_id,
            entry_point="vla_gym.env:VLAEnv",
            max_episode_steps=task.horizon,
            kwargs={"suite": suite.name, "task": task.name},
        )


def register_all() -> None:
    """Register the suites of this package, also those whose simulator is not installed."""
    for module in SUITE_MODULES:
        register_suite(importlib.import_module(module).SUITE)


def list_suites() -> list[Suite]:
    """Return the registered suites, in order of registration."""
    return list(_suites.values())


def list_ids() -> list[str]:
    """Return the ids of all registered suites."""
    return [suite.id(task) for suite in _suites.values() for task in suite.tasks]


def list_benchmarks() -> dict[str, list[str]]:
    """Return the ids of each published set of tasks, such as `"MT10"`."""
    return {
        name: [suite.id(task) for task in tasks]
        for suite in list_suites()
        for name, tasks in suite.benchmarks.items()
    }


def get_suite(name: str) -> Suite:
    """Return a registered suite by its name.

    Raises:
        UnknownName: there is none of that name.
    """
    if name not in _suites:
        raise UnknownName("suite", name, _suites)
    return _suites[name]


def get_task(suite: Suite, name: str) -> Task:
    """Return a task of a suite by its name.

    Raises:
        UnknownName: there is none of that name; the message has the nearest one.
    """
    if name not in suite.tasks:
        raise UnknownName("task", name, suite.tasks, f"suite {suite.name}")
    return suite.tasks[name]
