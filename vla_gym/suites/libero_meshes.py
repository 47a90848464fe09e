"""Simplified meshes that keep their texture, for fast pictures of LIBERO's scanned objects.

`vla_gym.rendering` leaves meshes with a texture as they are. LIBERO's objects are scans of up to
42,000 faces, and all have one. Here a mesh is cut where its texture is (where one point has two
texture coordinates) and simplified; a vertex that is left has the coordinates of one of those that
were merged into it, the nearest.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require
from vla_gym.meshes import cache_arrays, compute_normals
from vla_gym.rendering import Renderer
from vla_gym.visibility import find_shown_meshes

__all__ = ["MESH_FACES", "TexturedMesh", "TexturedRenderer", "simplify_textured"]

MESH_FACES = 3000
"""Most faces of a mesh with a texture in fast quality."""

VERSION = 1
"""Of the cached files; raised when their making changes."""


class TexturedRenderer(Renderer):
    """A renderer whose fast quality simplifies meshes with a texture too."""

    def _make_buffer(self, height: int, width: int) -> Any:
        if not self._fast:
            return super()._make_buffer(height, width)
        model, self._model = self._model, _simplify_textured(self._model, self._option)
        try:
            return super()._make_buffer(height, width)
        finally:
            self._model = model


class TexturedMesh(NamedTuple):
    """Triangles with a texture.

    Attributes:
        vertices: float32 (n, 3) [m].
        faces: int32 (m, 3), rows of `vertices`.
        corners: int64 (n,): which corner of the original mesh has each vertex's coordinates.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    corners: NDArray[np.int64]


def simplify_textured(
    corners: NDArray[Any], coordinates: NDArray[Any], count: int, digits: int = 5
) -> TexturedMesh:
    """Take faces away until at most about `count` are left.

    Args:
        corners: of the faces, (m, 3, 3) [m].
        coordinates: their texture coordinates, (m, 3, 2).
        count: faces to keep.
        digits: in which corners must be equal, in space and on the texture, to be one vertex.
    """
    simplification = require(
        "fast_simplification", "libero", "simplified meshes (`render_quality='fast'`)"
    )
    keys = np.round(np.c_[corners.reshape(-1, 3), coordinates.reshape(-1, 2)].astype(float), digits)
    points, source, index = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    triangles = index.reshape(-1, 3).astype(np.int32)
    distinct = np.sort(triangles, axis=1)
    triangles = triangles[(np.diff(distinct, axis=1) > 0).all(axis=1)]
    points = points[:, :3].astype(np.float32)
    for _ in range(3):  # evenly curved meshes need more than one round
        if len(triangles) <= count:
            break
        *_, collapses = simplification.simplify(
            points, triangles, target_count=count, agg=3, return_collapses=True
        )
        merged, triangles, target = simplification.replay_simplification(
            points, triangles, collapses
        )
        distance = np.linalg.norm(points - merged[target], axis=1)
        order = np.lexsort((distance, target))  # of each target first the nearest
        _, first = np.unique(target[order], return_index=True)
        points, source = merged, source[order[first]]
    return TexturedMesh(
        np.asarray(points, np.float32), np.asarray(triangles, np.int32), source.astype(np.int64)
    )


def _simplify_textured(model: Any, option: Any) -> Any:
    """Return a copy of a model, with simplified meshes, to take meshes from."""
    model = copy.copy(model)
    textured = np.zeros(model.nmesh, bool)
    materials = model.geom_matid
    has_texture = (materials >= 0) & (model.mat_texid[materials] >= 0).any(axis=1)
    meshes = model.geom_dataid[has_texture]
    textured[meshes[meshes >= 0]] = True
    big = (model.mesh_texcoordadr >= 0) & (model.mesh_facenum > MESH_FACES)
    for mesh in np.flatnonzero(textured & big & find_shown_meshes(model, option)).tolist():
        _replace_mesh(model, mesh)
    return model


def _replace_mesh(model: Any, mesh: int) -> None:
    """Put a simplified mesh in a mesh's place. It is never larger."""
    start, face, normal, first = (
        getattr(model, f"mesh_{kind}adr")[mesh] for kind in ("vert", "face", "normal", "texcoord")
    )
    place = slice(face, face + model.mesh_facenum[mesh])
    textures = model.mesh_facetexcoord[place].copy()
    new = _read_simplified(
        model.mesh_vert[start + model.mesh_face[place]], model.mesh_texcoord[first + textures]
    )
    count, face_count = len(new.vertices), len(new.faces)
    if count > min(model.mesh_vertnum[mesh], model.mesh_normalnum[mesh]):
        return
    model.mesh_vert[start : start + count] = new.vertices
    model.mesh_normal[normal : normal + count] = compute_normals(new.vertices, new.faces)
    place = slice(face, face + face_count)
    model.mesh_face[place] = model.mesh_facenormal[place] = new.faces
    model.mesh_facetexcoord[place] = textures.reshape(-1)[new.corners][new.faces]
    model.mesh_vertnum[mesh], model.mesh_facenum[mesh] = count, face_count


def _read_simplified(corners: NDArray[Any], coordinates: NDArray[Any]) -> TexturedMesh:
    """Return a simplified mesh, from the cache if it is there."""
    content = hashlib.blake2b(digest_size=16)
    for array in (corners, coordinates):
        content.update(np.ascontiguousarray(array).tobytes())
    name = f"textured-{content.hexdigest()}-{MESH_FACES}-{VERSION}"
    make = functools.partial(simplify_textured, corners, coordinates, MESH_FACES)
    return TexturedMesh(**cache_arrays(name, lambda: make()._asdict()))
