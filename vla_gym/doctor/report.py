"""Write a diagnosis to a folder: JSON, and the pictures that the probes looked at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from vla_gym.deps import require
from vla_gym.doctor.findings import Diagnosis

__all__ = ["save_diagnosis"]

SMALLEST = 256
"""Pictures are written at least so high [pixels], each of theirs as a square."""


def save_diagnosis(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Write `doctor.json` and a PNG of each picture; return the paths.

    Raises:
        DependencyNotInstalled: Pillow is not there (the extra `eval` brings it).
    """
    image = require("PIL.Image", "eval", "the pictures of vla-gym doctor")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "doctor.json"]
    paths[0].write_text(json.dumps(diagnosis.to_dict(), indent=2) + "\n")
    for name, picture in diagnosis.pictures.items():
        factor = max(-(-SMALLEST // picture.shape[0]), 1)
        large = np.repeat(np.repeat(picture, factor, axis=0), factor, axis=1)
        paths.append(folder / f"{name}.png")
        image.fromarray(large).save(paths[-1])
    return paths
