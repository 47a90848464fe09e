"""Which faces of a mesh can change a sample of a picture.

A scanned object of 40,000 faces fills a few hundred pixels: half of its faces are turned away, and
most of the others lie between the samples. GL draws neither, but takes as long for them as for
those that it draws. A face that is turned away is culled (`glCullFace`, which MuJoCo turns on), and
one that covers no sample makes no fragment; so a mesh without them gives the same picture, bit for
bit, if the others keep their order.

Decided is with margins: GL moves corners to a grid of fractions of a pixel, and computes in single
precision. Faces too near to the eye to bound that are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.visibility import View

__all__ = ["Faces", "Projection", "Raster"]

Array = NDArray[np.float64]
Window = tuple[float, float, float, float]

NEAR_M = 0.05
"""Faces with a corner nearer than this are kept."""

ROUNDING_M = 4e-6
"""More than what single precision moves a corner in metres."""


class Raster(NamedTuple):
    """How GL samples a picture.

    Attributes:
        height: [pixels].
        width: [pixels].
        samples: (s, 2), where in each pixel samples are, from its left and lower edge, in [0, 1).
        grid: [pixels], what corners are moved by at most.
    """

    height: int
    width: int
    samples: NDArray[np.float32]
    grid: float


class Projection(NamedTuple):
    """From a mesh's frame to a picture.

    Attributes:
        matrix: (3, 4); of a homogeneous point (x, y, z, 1) it gives (u d, v d, d), with u and v in
            pixels from the picture's left and lower edge, and the depth d [m].
        eye: (3,) [m], in the mesh's frame.
        pixels: a pixel's smaller and larger side at depth 1.
        edge: how far the picture's edges are from the axis at depth 1, at most.
        mirrored: whether the mesh is seen in a mirror.
        window: left, right, bottom, top of the part of the picture in which it is drawn [pixels].
    """

    matrix: Array
    eye: Array
    pixels: tuple[float, float]
    edge: float
    mirrored: bool
    window: Window

    @classmethod
    def of(
        cls,
        view: View,
        raster: Raster,
        origin: Array,
        rotation: Array,
        mirror: tuple[Array, Array, Window] | None = None,
    ) -> Projection:
        """Return the projection of a mesh.

        Args:
            view: the camera.
            raster: of its picture.
            origin: (3,) [m], of the mesh, world frame.
            rotation: (3, 3), from the mesh's to the world frame.
            mirror: a point and the normal of the mirror in which it is seen, world frame, and the
                part of the picture that the mirror takes.
        """
        window = 0.0, float(raster.width), 0.0, float(raster.height)
        if mirror is not None:
            point, normal, window = mirror
            origin = origin - 2 * ((origin - point) @ normal) * normal
            rotation = rotation - 2 * np.outer(normal, normal @ rotation)
        left, right, bottom, top = view.slopes
        across, up = raster.width / (right - left), raster.height / (top - bottom)
        to_pixels = np.array([[across, 0, -left * across], [0, up, -bottom * up], [0, 0, 1]])
        turn, offset = view.axes @ rotation, view.axes @ (origin - view.eye)
        return cls(
            to_pixels @ np.column_stack([turn, offset]),
            -offset @ turn,
            (1 / max(across, up), 1 / min(across, up)),
            max(map(abs, view.slopes)),
            mirror is not None,
            window,
        )

    def measure_move(self, other: Projection, corners: Array) -> float:
        """Return what a point in a box is farther than in another projection, at most [pixels].

        Args:
            other: the other projection, into the same part of the picture.
            corners: of the box, homogeneous: (4, 8).
        """
        if self.mirrored != other.mirrored or self.window != other.window:
            return np.inf
        if np.array_equal(self.matrix, other.matrix):
            return 0.0
        here, there = self.matrix @ corners, other.matrix @ corners
        nearest = min(here[2].min(), there[2].min())
        if nearest < NEAR_M:
            return np.inf
        # u - u' = (ud - u'd') / d + u' (d' - d) / d; each term is greatest at a corner.
        moved = np.abs(here - there).max(axis=1)
        places = np.abs(there[:2] / there[2]).max(axis=1)
        return float((moved[:2] + places * moved[2]).max() / nearest)


class Faces:
    """The faces of one mesh.

    Args:
        vertices: (n, 3) [m].
        faces: (m, 3), rows of `vertices`, counterclockwise from outside.
    """

    def __init__(self, vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> None:
        points = np.asarray(vertices, dtype=float)
        low, high = points.min(axis=0), points.max(axis=0)
        chosen = np.indices((2, 2, 2)).reshape(3, 8)
        self.box = np.concatenate([np.where(chosen, high[:, None], low[:, None]), np.ones((1, 8))])
        self._vertices = np.ascontiguousarray(points.T, dtype=np.float32)
        self._corners = [np.ascontiguousarray(faces[:, i], dtype=np.intp) for i in range(3)]
        one, two, three = (points[corner] for corner in self._corners)
        normals = np.cross(two - one, three - one)
        area = np.maximum(np.linalg.norm(normals, axis=1), 1e-30)  # twice the face's
        normals /= area[:, None]
        sides = (two - one, three - two, one - three)
        longest = np.max([np.linalg.norm(side, axis=1) for side in sides], axis=0)
        self._planes = np.column_stack([normals, -(normals * one).sum(axis=1)]).astype(np.float32)
        self._length_per_area = (longest / area).astype(np.float32)
        self._per_area = (1 / area).astype(np.float32)

    def __len__(self) -> int:
        return len(self._per_area)

    def choose(
        self,
        projection: Projection,
        raster: Raster,
        slack: float = 0.0,
        among: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.intp]:
        """Return which faces may change a sample, ascending.

        Args:
            projection: of the mesh.
            raster: of the picture.
            slack: [pixels]; the answer holds for all projections that move no point by more.
            among: (m,), the faces that are asked; all without it.
        """
        matrix = projection.matrix.astype(np.float32)
        x, y, depth = matrix[:, :3] @ self._vertices + matrix[:, 3:]
        nearest, farthest = float(depth.min()), float(depth.max())
        if farthest <= 0:
            return np.zeros(0, np.intp)
        margin = slack + raster.grid + 1e-6 * max(raster.height, raster.width)
        spread = ROUNDING_M / (max(nearest, NEAR_M) * projection.pixels[0])
        margin += (2 + projection.edge) * spread
        asked = among
        close = None
        if nearest < NEAR_M:
            close = depth < NEAR_M
            np.maximum(depth, NEAR_M, out=depth)
        x /= depth
        y /= depth
        if close is None:
            front = self._find_front(projection, x, y, nearest, farthest, margin)
            asked = front if among is None else front & among
        chosen = np.arange(len(self)) if asked is None else np.flatnonzero(asked)
        a, b, c = (corner[chosen] for corner in self._corners)
        corners = [(x[a], y[a]), (x[b], y[b]), (x[c], y[c])]
        covers = _cover(corners, projection, raster, margin)
        if close is not None:
            covers |= close[a] | close[b] | close[c]
        return chosen[covers]

    def _find_front(
        self,
        projection: Projection,
        x: NDArray[np.float32],
        y: NDArray[np.float32],
        nearest: float,
        farthest: float,
        margin: float,
    ) -> NDArray[np.bool_]:
        """Return which faces may be turned to the eye: (m,).

        With A a face's area, h the eye's height above its plane, l its longest side, p and q a
        pixel's smaller and larger side at depth 1, and all of it at depths from d to D, and at most
        t from the axis at depth 1: on the picture it has at least A h / (q^2 D^3) square pixels,
        and is at most (1 + t) l / (p d) pixels wide and high. If its corners move by a margin m,
        twice its area there changes by at most 8 m times that, and 8 m^2.
        """
        small, large = projection.pixels
        height = self._planes @ np.append(projection.eye, 1).astype(np.float32)
        reach = large * max(np.abs(x).max(), np.abs(y).max()) + projection.edge
        scale = large**2 * farthest**3 * 8 * margin
        least = np.float32(scale * (1 + reach) / (small * nearest)) * self._length_per_area
        least += np.float32(scale * margin) * self._per_area
        return height >= -least - np.float32(ROUNDING_M)


def _cover(
    corners: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    projection: Projection,
    raster: Raster,
    margin: float,
) -> NDArray[np.bool_]:
    """Return which triangles of a picture may be turned to the eye and cover a sample: (k,).

    Args:
        corners: places of the first, second and third corners [pixels].
        projection: of the mesh.
        raster: of the picture.
        margin: [pixels] by which corners may be elsewhere.
    """
    left, right = _bound([u for u, _ in corners], margin)
    bottom, top = _bound([v for _, v in corners], margin)
    width, height = right - left, top - bottom
    covers = (width >= 1) | (height >= 1)
    # Where a sample is to the left of all sides, it is inside; sides move with their ends.
    allowance = np.float32(4 * margin) * (width + height) + np.float32(8 * margin**2)
    if projection.mirrored:
        corners = corners[::-1]  # their order is that of the front
    sides = []
    for (u, v), (next_u, next_v) in zip(corners, [*corners[1:], corners[0]], strict=True):
        across, up = next_u - u, next_v - v
        sides.append((across, up, across * v - up * u - allowance))
    for right_of_edge, above_edge in raster.samples:
        # The first one in the triangle's box, if one is: larger boxes cover.
        u = np.ceil(left - right_of_edge) + right_of_edge
        v = np.ceil(bottom - above_edge) + above_edge
        inside = (u <= right) & (v <= top)
        for across, up, least in sides:
            inside &= across * v - up * u >= least
        covers |= inside
    (across, up, _), (next_across, next_up, _), _ = sides
    covers &= across * next_up - up * next_across >= -allowance
    window = projection.window
    covers &= (right > window[0]) & (left < window[1]) & (top > window[2]) & (bottom < window[3])
    return covers


def _bound(
    values: list[NDArray[np.float32]], margin: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    one, two, three = values
    low = np.minimum(np.minimum(one, two), three) - np.float32(margin)
    return low, np.maximum(np.maximum(one, two), three) + np.float32(margin)
