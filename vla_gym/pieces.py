"""Large meshes in pieces, of which a picture draws those that can be seen.

MuJoCo keeps a mesh as a display list of the GL context, and a scene's geom says which one it shows
(`dataid`, counted from `MjrContext.baseMesh`). Here each piece gets a list of its own, written by
MuJoCo's own `mjr_uploadMesh`, and each choice of pieces a list that calls theirs. The vertices are
the same, in the same order, so that the pixels are.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.visibility import cut

__all__ = ["Pieces", "import_gl"]

MAX_CHOICES = 500
"""Choices of pieces that are kept as lists."""


def import_gl() -> Any | None:
    """Return `OpenGL.GL`, or None where Python cannot reach GL."""
    try:
        return importlib.import_module("OpenGL.GL")
    except ImportError:  # it comes with mujoco, but without a GL library it does not load
        return None


class Pieces:
    """Display lists of one GL context. All methods need it to be current."""

    def __init__(self, gl: Any, base: int, first: int, starts: NDArray[np.intp]) -> None:
        """See `upload`.

        Args:
            gl: `OpenGL.GL`.
            base: list from which `dataid` counts.
            first: the first list of all pieces; each has two, of which the second is empty.
            starts: number of each mesh's first piece, and that of all pieces: (nmesh + 1,).
        """
        self._gl, self._base, self._first, self._starts = gl, base, first, starts
        self._choices: dict[tuple[int, bytes], int] = {}

    @classmethod
    def upload(
        cls, mujoco: Any, model: Any, buffer: Any, meshes: NDArray[np.bool_]
    ) -> Pieces | None:
        """Write the lists of all pieces, or return None where Python cannot reach GL.

        Args:
            mujoco: the module.
            model: `mujoco.MjModel`.
            buffer: its `mujoco.MjrContext`.
            meshes: (nmesh,), which are shown; others get no lists.
        """
        gl = import_gl()
        if gl is None:
            return None
        bounds = [cut(int(count)) for count in np.where(meshes, model.mesh_facenum, 0)]
        counts = [len(bound) - 1 if len(bound) > 2 else 0 for bound in bounds]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)
        if not starts[-1]:
            return None
        base, first = buffer.baseMesh, int(gl.glGenLists(2 * int(starts[-1])))
        if first < base:
            return None
        model = copy.copy(model)  # the simulated one stays as it is
        model.mesh_graphadr[:] = -1  # no lists of convex hulls
        try:
            for mesh in np.flatnonzero(counts):
                start = model.mesh_faceadr[mesh]
                for number, (low, high) in enumerate(
                    zip(bounds[mesh][:-1], bounds[mesh][1:], strict=True)
                ):
                    model.mesh_faceadr[mesh], model.mesh_facenum[mesh] = start + low, high - low
                    # mjr_uploadMesh writes the list baseMesh + 2 * mesh.
                    buffer.baseMesh = int(first + 2 * (starts[mesh] + number - mesh))
                    mujoco.mjr_uploadMesh(model, buffer, int(mesh))
        finally:
            buffer.baseMesh = base
        return cls(gl, base, first, starts)

    def compose(self, mesh: int, pieces: NDArray[np.intp]) -> int:
        """Return the `dataid` with which a geom shows these pieces of a mesh, given ascending."""
        key = mesh, pieces.tobytes()
        if key not in self._choices:
            if len(self._choices) >= MAX_CHOICES:
                self._forget()
            called = self._first + 2 * (self._starts[mesh] + pieces)
            choice = self._gl.glGenLists(1)
            self._gl.glNewList(choice, self._gl.GL_COMPILE)
            self._gl.glCallLists(called.astype(np.uint32))
            self._gl.glEndList()
            self._choices[key] = choice
        return self._choices[key] - self._base

    def free(self) -> None:
        """Delete all lists."""
        self._forget()
        self._gl.glDeleteLists(self._first, 2 * int(self._starts[-1]))

    def _forget(self) -> None:
        for choice in self._choices.values():
            self._gl.glDeleteLists(choice, 1)
        self._choices.clear()
