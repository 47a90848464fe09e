"""The errors of vla_gym. Each says what was asked, what was found, what is valid and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gymnasium.error import DependencyNotInstalled, Error, ResetNeeded
else:
    try:
        from gymnasium.error import DependencyNotInstalled, Error, ResetNeeded
    except ImportError:
        # In a simulator's worker (vla_gym/worker_main.py), whose interpreter needs no Gymnasium.
        # There errors are only raised; the other process raises its own by their names.
        class Error(Exception):
            """Stands in for `gymnasium.error.Error`."""

        class DependencyNotInstalled(Error):
            """Stands in for `gymnasium.error.DependencyNotInstalled`."""

        class ResetNeeded(Error):
            """Stands in for `gymnasium.error.ResetNeeded`."""


__all__ = [
    "BrokenDependency",
    "ContractMismatch",
    "ContractViolation",
    "DependencyNotInstalled",
    "InvalidAction",
    "InvalidOption",
    "ResetNeeded",
    "SimulatorCrashed",
    "StandInWarning",
    "UnknownKeyword",
    "UnknownName",
]


class InvalidAction(Error, ValueError):
    """An action has the wrong shape or an entry that is not a finite number."""


class InvalidOption(Error, ValueError):
    """A keyword of `gym.make` or an entry of `reset(options=...)` has a value that is not valid."""


class UnknownName(Error, ValueError):
    """A task, camera, mode, policy or option was asked for that does not exist."""

    def __init__(self, kind: str, asked: object, valid: Iterable[str], where: str = "") -> None:
        self.kind, self.asked, self.valid = kind, asked, tuple(valid)
        super().__init__(kind, asked, self.valid, where)
        self.where = where

    def __reduce__(self) -> Any:  # worker processes send errors to their parent by pickle
        return type(self), (self.kind, self.asked, self.valid, self.where)

    def __str__(self) -> str:
        place = f" in {self.where}" if self.where else ""
        near = difflib.get_close_matches(str(self.asked), self.valid, n=1, cutoff=0.5)
        if not near:  # "drawer_open" and "draweropen" are near "DrawerOpen" too
            folded = {name.lower().replace("-", "").replace("_", ""): name for name in self.valid}
            key = str(self.asked).lower().replace("-", "").replace("_", "")
            near = [folded[k] for k in difflib.get_close_matches(key, folded, n=1, cutoff=0.5)]
        suggestion = f" Did you mean {near[0]!r}?" if near else ""
        valid = ", ".join(repr(name) for name in self.valid) or "none"
        return f"there is no {self.kind} {self.asked!r}{place}.{suggestion} Valid: {valid}."


class UnknownKeyword(UnknownName, TypeError):
    """`gym.make` was given a keyword that the env does not have.

    A `TypeError` in Python's own words: TorchRL's `GymEnv` tries keywords and goes by it.
    """

    def __init__(self, asked: str, valid: Iterable[str] = (), where: str = "") -> None:
        if " " in asked:  # `gym.make` makes a TypeError anew, from a text with more in it
            self._text = asked
            asked = ""
        else:
            self._text = ""
        super().__init__("keyword", asked, valid, where)

    def __reduce__(self) -> Any:
        return type(self), (self._text or self.asked, self.valid, self.where)

    def __str__(self) -> str:
        return self._text or f"unexpected keyword argument {self.asked!r}: {super().__str__()}"


class ContractMismatch(Error, ValueError):
    """A policy needs or speaks something that the env does not, and no conversion is lossless."""


class ContractViolation(Error, AssertionError):
    """An env breaks the contract that `vla_gym.check_contract` tests."""


class BrokenDependency(DependencyNotInstalled):
    """A package is installed but cannot be imported; reinstalling or repairing it is what helps."""


class SimulatorCrashed(Error, RuntimeError):
    """A simulator died or answered with an error; the episode has no valid outcome."""


class StandInWarning(UserWarning):
    """A simulator of our own runs in the place of the original, whose scores it does not give."""
