"""Demonstrations: one form in memory and on disk, and readers of other people's data sets."""

from vla_gym.data.demos import (
    Demonstration,
    InvalidDemonstration,
    load_demonstration,
    load_demonstrations,
    save_demonstration,
)

__all__ = [
    "Demonstration",
    "InvalidDemonstration",
    "load_demonstration",
    "load_demonstrations",
    "save_demonstration",
]
