"""Meshes of a picture, without the faces that cannot change it.

MuJoCo keeps a mesh as a display list of the GL context, and a scene's geom says which one it shows
(`dataid`, counted from `MjrContext.baseMesh`). Here each large mesh in a camera's picture gets a
list of its own, written by MuJoCo's own `mjr_uploadMesh`, of the faces that `vla_gym.faces`
chooses: the same vertices in the same order, so that the pixels are the same. It is written anew
when the mesh has moved on the picture.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.faces import Faces, Projection, Raster, Window
from vla_gym.visibility import Mirror, Parts, View, cut

__all__ = ["FaceLists", "import_gl"]

SLACK = 0.005
"""[pixels] by which a mesh at rest may move before its list is written anew."""

WORTHWHILE = 0.15
"""Greatest share of the faces of a moving mesh of which a list is written, for each time that it is
drawn in a picture: a face costs three times as much to write as to draw."""

PATIENCE = 8
"""Pictures in which a moving mesh is drawn whole before its faces are looked at again."""

MAX_LISTS = 1000
"""Of one renderer."""

STEPS = 16.0
"""Of GL's grid of corners: more than what a corner is moved by.

One step is what rounding to the grid allows. With 1.25 steps one pixel of one picture of
robosuite's TwoArmTransport differed, before a camera beside the robot's own shoulder; with 8 none.
What moves a corner so far there is not known, so the margin is wide."""


def import_gl() -> Any | None:
    """Return `OpenGL.GL`, or None where Python cannot reach GL."""
    try:
        return importlib.import_module("OpenGL.GL")
    except ImportError:  # it comes with mujoco, but without a GL library it does not load
        return None


class _List(NamedTuple):
    """A display list, and what it was written for.

    Attributes:
        number: of the list.
        projections: of the mesh, and of its mirror image, where they are drawn.
        asked: the pieces whose faces were asked, as bytes.
        slack: [pixels] by which the mesh may move; below 0: the list has not been written.
        wait: in how many pictures more to draw the mesh whole, while it moves.
    """

    number: int
    projections: list[Projection]
    asked: tuple[bytes, ...]
    slack: float
    wait: int


class FaceLists:
    """Display lists of one renderer. All methods need its GL context to be current.

    Args:
        mujoco: the module.
        gl: `OpenGL.GL`.
        model: `mujoco.MjModel`, whose meshes were uploaded.
        buffer: its `mujoco.MjrContext`.
        samples: (s, 2), where in each pixel GL takes samples.
        grid: [pixels] by which GL moves corners at most.
    """

    def __init__(
        self,
        mujoco: Any,
        gl: Any,
        model: Any,
        buffer: Any,
        samples: NDArray[np.float32],
        grid: float,
    ) -> None:
        self._mujoco, self._gl, self._model, self._buffer = mujoco, gl, model, buffer
        self._samples, self._grid = samples, grid
        self._faces: dict[int, Faces] = {}
        self._lists: dict[tuple[int, int, int, int], _List] = {}

    @classmethod
    def make(cls, mujoco: Any, model: Any, buffer: Any) -> FaceLists | None:
        """Return the lists of a renderer, or None where GL does not say where it takes samples."""
        gl = import_gl()
        if gl is None:
            return None
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, buffer)
        try:
            samples = _find_samples(gl)
            bits = int(gl.glGetIntegerv(gl.GL_SUBPIXEL_BITS))
        except (gl.GLError, gl.error.NullFunctionError):
            return None
        return cls(mujoco, gl, model, buffer, samples, STEPS * 0.5**bits)

    def show(
        self,
        camera: int,
        geom: int,
        thing: Any,
        view: View,
        size: tuple[int, int],
        parts: Parts,
        mirror: Mirror | None,
    ) -> None:
        """Have a geom of the scene draw those faces alone that can change the picture.

        Args:
            camera: its index in the model.
            geom: the same, of a geom with a large mesh.
            thing: its `mujoco.MjvGeom` in the scene.
            view: the camera.
            size: height and width of the picture [pixels].
            parts: which pieces of the mesh to look at.
            mirror: in which it may be seen too.
        """
        raster = Raster(*size, self._samples, self._grid)
        origin, rotation = (np.array(field, dtype=float) for field in (thing.pos, thing.mat))
        rotation = rotation.reshape(3, 3)
        projections, pieces = [], []
        if len(parts.seen):
            projections.append(Projection.of(view, raster, origin, rotation))
            pieces.append(parts.seen)
        if len(parts.mirrored) and mirror is not None:
            seen_in = mirror.point, mirror.normal, _find_window(view, raster, mirror.outline)
            projections.append(Projection.of(view, raster, origin, rotation, seen_in))
            pieces.append(parts.mirrored)
        mesh = int(self._model.geom_dataid[geom])
        faces = self._find_faces(mesh)
        asked = tuple(part.tobytes() for part in pieces)
        key = camera, geom, *size
        known = self._lists.get(key)
        slack, wait = 0.0, 0
        if known is None:
            if len(self._lists) >= MAX_LISTS:
                self.free()
            number = int(self._gl.glGenLists(2))  # the second one stays empty
        else:
            number, wait = known.number, known.wait
            if asked == known.asked and len(projections) == len(known.projections):
                pairs = zip(projections, known.projections, strict=True)
                moved = max(here.measure_move(there, faces.box) for here, there in pairs)
                if moved <= known.slack:
                    thing.dataid = number - self._buffer.baseMesh
                    return
                slack = SLACK if moved <= SLACK else 0.0
        if wait and not slack:
            self._lists[key] = _List(number, projections, asked, -1.0, wait - 1)
            return
        chosen = np.zeros(len(faces), dtype=bool)
        for projection, part in zip(projections, pieces, strict=True):
            chosen[faces.choose(projection, raster, slack, _take(part, len(faces)))] = True
        found = np.flatnonzero(chosen)
        if slack or len(found) <= WORTHWHILE * len(projections) * len(faces):
            self._lists[key] = _List(number, projections, asked, slack, 0)
            self._write(number, mesh, found)
            thing.dataid = number - self._buffer.baseMesh
        else:
            self._lists[key] = _List(number, projections, asked, -1.0, PATIENCE)

    def free(self) -> None:
        """Delete all lists."""
        for written in self._lists.values():
            self._gl.glDeleteLists(written.number, 2)
        self._lists.clear()

    def _find_faces(self, mesh: int) -> Faces:
        if mesh not in self._faces:
            model = self._model
            vertex, face = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
            self._faces[mesh] = Faces(
                model.mesh_vert[vertex : vertex + model.mesh_vertnum[mesh]],
                model.mesh_face[face : face + model.mesh_facenum[mesh]],
            )
        return self._faces[mesh]

    def _write(self, number: int, mesh: int, chosen: NDArray[np.intp]) -> None:
        buffer, base = self._buffer, self._buffer.baseMesh
        with _having(self._model, mesh, chosen):
            # mjr_uploadMesh writes the list baseMesh + 2 * mesh.
            buffer.baseMesh = number - 2 * mesh
            try:
                self._mujoco.mjr_uploadMesh(self._model, buffer, mesh)
            finally:
                buffer.baseMesh = base


def _take(pieces: NDArray[np.intp], faces: int) -> NDArray[np.bool_] | None:
    """Return which faces of a mesh are in some of its pieces: (faces,); None if all are."""
    bounds = cut(faces)
    if len(pieces) == len(bounds) - 1:
        return None
    return np.repeat(np.isin(np.arange(len(bounds) - 1), pieces), np.diff(bounds))


@contextlib.contextmanager
def _having(model: Any, mesh: int, chosen: NDArray[np.intp]) -> Iterator[None]:
    """Have a mesh with some of its faces alone, inside; to be uploaded, not to be simulated."""
    start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    graph = model.mesh_graphadr[mesh]
    tables = [model.mesh_face, model.mesh_facenormal]
    if model.mesh_texcoordadr[mesh] >= 0:
        tables.append(model.mesh_facetexcoord)
    tables = [table[start : start + count] for table in tables]
    before = [table[: len(chosen)].copy() for table in tables]
    try:
        for table in tables:
            table[: len(chosen)] = table[chosen]
        model.mesh_facenum[mesh], model.mesh_graphadr[mesh] = len(chosen), -1  # no convex hull
        yield
    finally:
        model.mesh_facenum[mesh], model.mesh_graphadr[mesh] = count, graph
        for table, rows in zip(tables, before, strict=True):
            table[: len(rows)] = rows


def _find_samples(gl: Any) -> NDArray[np.float32]:
    """Return where in each pixel of the current frame buffer samples are: (s, 2)."""
    count = int(gl.glGetIntegerv(gl.GL_SAMPLES))
    if not count:
        return np.array([[0.5, 0.5]], np.float32)
    places = np.zeros((count, 2), np.float32)
    for number, place in enumerate(places):
        gl.glGetMultisamplefv(gl.GL_SAMPLE_POSITION, number, place)
    return places


def _find_window(view: View, raster: Raster, outline: NDArray[np.float64]) -> Window:
    """Return the part of the picture that a polygon before the eye takes, a pixel wider."""
    places = (outline - view.eye) @ view.axes.T
    across, up = (places[:, :2] / places[:, 2:]).T
    left, right, bottom, top = view.slopes
    u = (across - left) / (right - left) * raster.width
    v = (up - bottom) / (top - bottom) * raster.height
    return (
        max(float(u.min()) - 1, 0.0),
        min(float(u.max()) + 1, float(raster.width)),
        max(float(v.min()) - 1, 0.0),
        min(float(v.max()) + 1, float(raster.height)),
    )
