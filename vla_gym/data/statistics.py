"""Statistics of a data set's features, as LeRobot's `meta/stats.json` has them, but exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["QUANTILES", "count_levels", "describe", "describe_images"]

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

Statistics = dict[str, NDArray[Any]]


def describe(values: NDArray[Any]) -> Statistics:
    """Return min, max, mean, std (population), the quantiles and the count of each entry.

    Args:
        values: (N, d) or (N,), N > 0, numbers or truth values.

    Returns:
        name -> float64 (d,), `count` int64 (1,).
    """
    table = np.asarray(values, np.float64).reshape(len(values), -1)
    quantiles = np.quantile(table, list(QUANTILES.values()), axis=0)
    return {
        "min": table.min(axis=0),
        "max": table.max(axis=0),
        "mean": table.mean(axis=0),
        "std": table.std(axis=0),
        "count": np.array([len(table)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def count_levels(pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each channel has each of its 256 levels, (3, 256), of (N, H, W, 3)."""
    channels = pictures.reshape(-1, 3).T
    return np.stack([np.bincount(channel, minlength=256) for channel in channels])


def describe_images(levels: NDArray[np.int64], count: int) -> Statistics:
    """Return the statistics of pictures in [0, 1] from the counts of their levels.

    Args:
        levels: (3, 256) as `count_levels` returns them; those of several episodes add up.
        count: number of pictures.

    Returns:
        name -> float64 (3, 1, 1), `count` int64 (1,). A quantile is the smallest level that so
        large a share of the pixels does not exceed.
    """
    scale = np.arange(256) / 255.0
    shares = levels / levels.sum(axis=1, keepdims=True)
    mean = shares @ scale
    variance = np.sum(shares * (scale - mean[:, None]) ** 2, axis=1)
    seen, below = levels > 0, np.cumsum(shares, axis=1)
    found: Statistics = {
        "min": scale[seen.argmax(axis=1)],
        "max": scale[255 - seen[:, ::-1].argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt(variance),
    }
    for name, share in QUANTILES.items():
        found[name] = scale[(below >= share - 1e-12).argmax(axis=1)]
    found = {name: value.reshape(3, 1, 1) for name, value in found.items()}
    return {**found, "count": np.array([count])}
