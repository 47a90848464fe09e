"""Visual meshes of the robosuite wheel's Panda, simplified once and cached.

Upstream's visuals have 329,000 vertices, most of them on edges that no camera here resolves, and
vertices are what a picture costs in software. The twins have no upstream image to match.
"""

from __future__ import annotations

import functools
import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require
from vla_gym.errors import BrokenDependency, DependencyNotInstalled
from vla_gym.meshes import cache_arrays, simplify

__all__ = ["Part", "find_robosuite_assets", "load_panda_parts"]

FACES = 700
"""Most faces of a part. A link fills 30 pixels of a 128 pixel picture."""

VERSION = 1
"""Of the cached file; raised when its making changes."""


class Part(NamedTuple):
    """What one body shows in one colour.

    Attributes:
        body: name of the body in upstream's model, in whose frame the vertices are.
        rgb: colour, each in [0, 1].
        vertices: float32 (n, 3) [m].
        faces: int32 (m, 3).
    """

    body: str
    rgb: tuple[float, float, float]
    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]


def find_robosuite_assets() -> Path:
    """Return the folder of robosuite's models without importing robosuite, which takes seconds.

    Raises:
        DependencyNotInstalled: robosuite is not installed.
        BrokenDependency: it is, but the Panda's model is not where robosuite 1.5.2 has it.
    """
    spec = importlib.util.find_spec("robosuite")
    if spec is None or not spec.submodule_search_locations:
        raise DependencyNotInstalled(
            "the twins use the Panda that the package 'robosuite' carries, which is not installed. "
            "Run: pip install 'vla-gym[rlbench-twin]'"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "models" / "assets"
    if not (folder / "robots" / "panda" / "robot.xml").is_file():
        raise BrokenDependency(
            f"robosuite is installed, but {folder / 'robots/panda/robot.xml'} is not there; the "
            "twins need robosuite 1.5.2: pip install 'vla-gym[rlbench-twin]' --force-reinstall"
        )
    return folder


@functools.cache
def load_panda_parts() -> tuple[Part, ...]:
    """Return the arm's and the hand's visuals, at most `FACES` faces a part.

    The first call of all takes some seconds and writes a cache file into the user's cache folder
    (`VLA_GYM_CACHE`, else `XDG_CACHE_HOME/vla_gym`, else `~/.cache/vla_gym`); where that cannot be
    written, every process simplifies for itself.
    """
    name = f"panda-{metadata.version('robosuite')}-{FACES}-{VERSION}"
    return _unpack(cache_arrays(name, lambda: _pack(_simplify_panda())))


def _pack(parts: tuple[Part, ...]) -> dict[str, NDArray[Any]]:
    arrays = {"bodies": np.array([p.body for p in parts]), "rgb": np.array([p.rgb for p in parts])}
    for index, part in enumerate(parts):
        arrays[f"vertices{index}"], arrays[f"faces{index}"] = part.vertices, part.faces
    return arrays


def _unpack(table: dict[str, NDArray[Any]]) -> tuple[Part, ...]:
    return tuple(
        Part(str(body), (rgb[0], rgb[1], rgb[2]), table[f"vertices{i}"], table[f"faces{i}"])
        for i, (body, rgb) in enumerate(zip(table["bodies"], table["rgb"].tolist(), strict=True))
    )


def _simplify_panda() -> tuple[Part, ...]:
    mujoco = require("mujoco", "rlbench-twin", "the Panda of the twins")
    assets = find_robosuite_assets()
    groups: dict[tuple[str, tuple[float, float, float]], list[Path]] = {}
    for folder, name in (("robots/panda", "robot.xml"), ("grippers", "panda_gripper.xml")):
        spec = mujoco.MjSpec.from_file(str(assets / folder / name))
        colours = {material.name: material.rgba for material in spec.materials}
        for body in spec.bodies:
            for geom in body.geoms:
                if geom.group != 1 or geom.type != mujoco.mjtGeom.mjGEOM_MESH:
                    continue
                rgba = colours.get(geom.material, geom.rgba)
                red, green, blue = (round(float(value), 2) for value in rgba[:3])
                path = assets / folder / spec.mesh(geom.meshname).file
                groups.setdefault((body.name, (red, green, blue)), []).append(path)
    return tuple(_merge(body, rgb, paths) for (body, rgb), paths in groups.items())


def _merge(body: str, rgb: tuple[float, float, float], paths: list[Path]) -> Part:
    """Join the meshes, weld their vertices and take faces away until `FACES` are left."""
    vertices, faces, count = [], [], 0
    for path in paths:
        points, triangles = _read_stl(path) if path.suffix == ".stl" else _read_obj(path)
        vertices.append(points)
        faces.append(triangles + count)
        count += len(points)
    points, triangles = simplify(np.concatenate(vertices), np.concatenate(faces), FACES)
    return Part(body, rgb, points, triangles)


def _read_obj(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return vertices and triangles of an OBJ file whose faces are triangles."""
    vertices, faces = [], []
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            vertices.append(rest.split()[:3])
        elif kind == "f":
            faces.append([int(corner.partition("/")[0]) - 1 for corner in rest.split()[:3]])
    return np.array(vertices, dtype=np.float64), np.array(faces, dtype=np.int64)


def _read_stl(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return vertices, three of its own for every triangle, and triangles of a binary STL file."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    data = path.read_bytes()
    corners = np.frombuffer(data, record, int.from_bytes(data[80:84], "little"), 84)["corners"]
    vertices = corners.reshape(-1, 3).astype(np.float64)
    return vertices, np.arange(len(vertices)).reshape(-1, 3)
