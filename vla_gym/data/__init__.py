"""Demonstrations: in memory, as LeRobotDataset v3, Minari and `.npz`, and readers of RLBench's."""

from vla_gym.data.convert import convert, read_any
from vla_gym.data.dataset import Dataset, EpisodeRow, Frames
from vla_gym.data.demos import (
    Demonstration,
    InvalidDemonstration,
    load_demonstration,
    load_demonstrations,
    save_demonstration,
)
from vla_gym.data.layout import InvalidDataset
from vla_gym.data.minari import read_minari, write_minari
from vla_gym.data.writer import DatasetWriter, write_dataset

__all__ = [
    "Dataset",
    "DatasetWriter",
    "Demonstration",
    "EpisodeRow",
    "Frames",
    "InvalidDataset",
    "InvalidDemonstration",
    "convert",
    "load_demonstration",
    "load_demonstrations",
    "read_any",
    "read_minari",
    "save_demonstration",
    "write_dataset",
    "write_minari",
]
