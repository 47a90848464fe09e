"""Simplified meshes, made once and cached on disk.

Simulators' visual meshes have tens of thousands of faces, most of them with edges that no camera
here resolves, and vertices are what a picture costs in software.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require

__all__ = [
    "Mesh",
    "cache_arrays",
    "cache_folder",
    "compute_normals",
    "read_simplified",
    "simplify",
]

VERSION = 1
"""Of the cached files; raised when their making changes."""

MAX_REMEMBERED = 2000
"""Simplified meshes kept in memory; a model of robosuite has a hundred."""


class Mesh(NamedTuple):
    """Triangles.

    Attributes:
        vertices: float32 (n, 3) [m].
        faces: int32 (m, 3).
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]


_simplified: dict[str, Mesh] = {}


def simplify(vertices: NDArray[Any], faces: NDArray[Any], count: int, digits: int = 5) -> Mesh:
    """Weld vertices that are equal and take faces away until at most about `count` are left.

    Args:
        vertices: (n, 3) [m].
        faces: (m, 3), integers.
        count: faces to keep.
        digits: of a vertex's coordinates, in which it must equal another.

    Raises:
        DependencyNotInstalled: fast-simplification is not installed.
    """
    simplification = require(
        "fast_simplification", "metaworld", "simplified meshes (`render_quality='fast'`)"
    )
    points, index = np.unique(
        np.round(np.asarray(vertices, dtype=float), digits), axis=0, return_inverse=True
    )
    triangles = index.reshape(-1)[faces]
    distinct = np.sort(triangles, axis=1)
    triangles = triangles[(np.diff(distinct, axis=1) > 0).all(axis=1)]
    points, triangles = points.astype(np.float32), triangles.astype(np.int32)
    for _ in range(3):  # evenly curved meshes need more than one round
        if len(triangles) <= count:
            break
        points, triangles = simplification.simplify(points, triangles, target_count=count, agg=3)
    return Mesh(np.asarray(points, np.float32), np.asarray(triangles, np.int32))


def compute_normals(vertices: NDArray[Any], faces: NDArray[Any]) -> NDArray[np.float32]:
    """Return the vertices' normals, the means of their faces' weighted by area: (n, 3)."""
    corners = np.asarray(vertices, dtype=float)[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros((len(vertices), 3))
    np.add.at(normals, faces.reshape(-1), np.repeat(across, 3, axis=0))
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(lengths > 1e-20, normals / np.maximum(lengths, 1e-20), [0.0, 0.0, 1.0])
    return normals.astype(np.float32)


def read_simplified(vertices: NDArray[Any], faces: NDArray[Any], count: int) -> Mesh:
    """Return `simplify(vertices, faces, count)`, remembered by this process and on disk."""
    content = hashlib.blake2b(vertices.tobytes() + faces.tobytes(), digest_size=16).hexdigest()
    name = f"mesh-{content}-{count}-{VERSION}"
    if name not in _simplified:
        if len(_simplified) >= MAX_REMEMBERED:
            _simplified.clear()
        arrays = cache_arrays(name, lambda: simplify(vertices, faces, count)._asdict())
        _simplified[name] = Mesh(arrays["vertices"], arrays["faces"])
    return _simplified[name]


def cache_arrays(name: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a cache file, made and written if they are not there yet.

    Where the folder cannot be written, every process makes them for itself.
    """
    file = cache_folder() / f"{name}.npz"
    with contextlib.suppress(Exception), np.load(file, allow_pickle=False) as table:
        return dict(table)  # else absent, or written by half: np.load has many ways to say so
    arrays = make()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.stem}.{os.getpid()}.npz")
        np.savez_compressed(temporary, **arrays)
        temporary.replace(file)
    return arrays


def cache_folder() -> Path:
    """Return `VLA_GYM_CACHE`, else `XDG_CACHE_HOME/vla_gym`, else `~/.cache/vla_gym`."""
    if folder := os.environ.get("VLA_GYM_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vla_gym"
