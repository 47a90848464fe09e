"""Which geoms and sites cannot change a pixel of a picture, and which passes change none.

MuJoCo's renderer (src/render/render_gl3.c of 3.3.0) draws all that `mjv_updateScene` lists up to
four times: mirrored into the first reflecting plane or box, as itself, into the shadow map of each
light that casts shadows, and again under that light. Leaving something out leaves every pixel as it
is if neither the thing, nor its mirror image, nor its shadow can be seen. Each is decided with a
convex hull that contains it:

- it lies wholly on the outer side of one plane of the camera's frustum, or
- all its corners are behind one opaque box or plane. The region behind a convex body, seen from an
  eye outside, is convex, so that what lies between the corners is behind it too.

Bodies that hide others are taken smaller, frusta wider than they are, by a fraction of a pixel;
`tests/test_visibility.py` says what that has to cover. Nothing is hidden, and no pass skipped, where
no proof is known: height fields and planes, orthographic cameras, lamps (lights with a place) that
cast shadows, skins, flexes, tendons and whatever else the scene shows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sight", "View", "Visibility", "is_behind", "is_outside"]

Array = NDArray[np.float64]

OPAQUE = 0.995
"""`mjr_render` blends what has less alpha."""

PIXEL_MARGIN = 0.25
"""[pixels] by which bodies that hide others are taken smaller. Corners snap to 1/256 pixel."""

OCCLUDERS = 8
"""Most bodies that are asked whether they hide others: the largest of the model."""

MIN_OCCLUDER_M2 = 0.004
"""A quarter of the largest face of the smallest body that is asked."""

_SIGNS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
_SQUARE = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], dtype=float)


class View(NamedTuple):
    """A perspective camera.

    Attributes:
        eye: (3,) [m], world frame.
        axes: (3, 3), rows: right, up, forward, unit vectors.
        slopes: left, right, bottom, top edge of the picture, as distances from the axis at depth 1.
        near: depth of the nearest and
        far: of the farthest thing that is drawn [m].
        pixel: size of a pixel at depth 1, the larger of width and height.
    """

    eye: Array
    axes: Array
    slopes: tuple[float, float, float, float]
    near: float
    far: float
    pixel: float

    @classmethod
    def of(cls, cameras: Any, height: int, width: int) -> View | None:
        """Return what `mjr_render` makes of a scene's two cameras; None if it is no perspective."""
        left, right = cameras[0], cameras[1]
        if left.orthographic or right.orthographic:
            return None
        forward = np.asarray(left.forward + right.forward, dtype=float)
        forward /= np.linalg.norm(forward)
        up = np.asarray(left.up + right.up, dtype=float)
        up -= forward * (up @ forward)
        up /= np.linalg.norm(up)
        near = 0.5 * (left.frustum_near + right.frustum_near)
        bottom = 0.5 * (left.frustum_bottom + right.frustum_bottom) / near
        top = 0.5 * (left.frustum_top + right.frustum_top) / near
        center = 0.5 * (left.frustum_center + right.frustum_center) / near
        half = 0.5 * (left.frustum_width + right.frustum_width) / near
        half = half or 0.5 * (top - bottom) * width / height
        return cls(
            0.5 * np.asarray(left.pos + right.pos, dtype=float),
            np.array([np.cross(forward, up), up, forward]),
            (center - half, center + half, bottom, top),
            near,
            0.5 * (left.frustum_far + right.frustum_far),
            max((top - bottom) / height, 2 * half / width),
        )

    def planes(self) -> tuple[Array, Array]:
        """Return the frustum's inward normals (5, 3) and offsets (5,): normal @ p + offset >= 0.

        A pixel wider than the picture on each side.
        """
        right, up, forward = self.axes
        left, far_right, bottom, top = self.slopes
        normals = np.array(
            [
                right - (left - self.pixel) * forward,
                (far_right + self.pixel) * forward - right,
                up - (bottom - self.pixel) * forward,
                (top + self.pixel) * forward - up,
                forward,
            ]
        )
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        offsets = -(normals @ self.eye)
        offsets[4] -= 0.99 * self.near
        return normals, offsets


class Sight(NamedTuple):
    """What a picture can do without.

    Attributes:
        hidden: bool (ngeom + nsite,); these may be left out of the scene.
        reflection: whether the reflection pass can change a pixel.
        idle_casters: geoms whose own shadow falls on nothing that is seen.
        drawn: how many things the scene then lists. If it lists more, there is something in it
            that nobody has looked at here, and `reflection` and `idle_casters` are void.
    """

    hidden: NDArray[np.bool_]
    reflection: bool
    idle_casters: tuple[int, ...]
    drawn: int


class _Hulls(NamedTuple):
    """Boxes: centers (n, 3) and half-axes (n, 3, 3), a row for each; world frame [m]."""

    centers: Array
    axes: Array

    def take(self, chosen: Any) -> _Hulls:
        return _Hulls(self.centers[chosen], self.axes[chosen])

    def corners(self) -> Array:
        """Return (n, 8, 3)."""
        return self.centers[:, None] + _SIGNS @ self.axes

    def highest(self, normals: Array) -> Array:
        """Return how far each box reaches along each normal: (n, m)."""
        return self.centers @ normals.T + np.abs(self.axes @ normals.T).sum(axis=1)

    def mirror(self, point: Array, normal: Array) -> _Hulls:
        """Return the images in the plane through `point`."""
        centers = self.centers - 2 * np.outer((self.centers - point) @ normal, normal)
        return _Hulls(centers, self.axes - 2 * (self.axes @ normal)[..., None] * normal)


class _Occluders(NamedTuple):
    """Opaque boxes, made smaller: centers (m, 3), rotations (m, 3, 3), half-sizes (m, 3).

    A plane is a box without height.
    """

    centers: Array
    rotations: Array
    halves: Array

    def take(self, chosen: Any) -> _Occluders:
        return _Occluders(*(field[chosen] for field in self))


def is_outside(
    hulls: _Hulls, normals: Array, offsets: Array, sweep: Array | None = None, margin: float = 0.0
) -> NDArray[np.bool_]:
    """Return for each hull whether it is wholly outside one of the planes: (n,).

    Args:
        hulls: boxes.
        normals: (m, 3), inward.
        offsets: (m,).
        sweep: (3,), a direction: what lies behind the hull in this direction, without end, counts
            as part of it.
        margin: [m] by which the hull is larger.
    """
    outside = hulls.highest(normals) + offsets < -margin
    if sweep is not None:
        outside &= normals @ sweep <= 1e-6
    return outside.any(axis=1)


def is_behind(points: Array, eye: Array, occluders: _Occluders) -> NDArray[np.bool_]:
    """Return for each set of points whether one of the occluders hides all of it from the eye.

    Args:
        points: (n, k, 3).
        eye: (3,).
        occluders: boxes, none of which contains the eye.
    """
    if not len(points) or not len(occluders.centers):
        return np.zeros(len(points), dtype=bool)
    count, corners, _ = points.shape
    flat = points.reshape(-1, 3)
    seen_from = ((eye - occluders.centers)[:, None] @ occluders.rotations)[:, 0]  # (m, 3)
    ray = (flat - eye) @ occluders.rotations  # (m, n * k, 3)
    ray[np.abs(ray) < 1e-12] = 1e-12
    halves = occluders.halves[:, None]
    middle = -seen_from[:, None] / ray
    reach = halves / np.abs(ray)
    enter, leave = (middle - reach).max(axis=2), (middle + reach).min(axis=2)
    # Of the ray's length: it must enter clearly before it ends at the point.
    length = np.linalg.norm(flat - eye, axis=1)
    last = 1 - 1e-3 * (1 + length**2) / np.maximum(length, 1e-9)
    hit = (enter <= leave) & (enter > 0) & (enter < last)
    return hit.reshape(-1, count, corners).all(axis=2).any(axis=0)


class Visibility:
    """What a compiled model's pictures can do without.

    Args:
        model: `mujoco.MjModel`, as it is when its meshes are uploaded.
        option: `mujoco.MjvOption`: which groups are shown.
    """

    def __init__(self, model: Any, option: Any) -> None:
        import mujoco

        kinds = mujoco.mjtGeom
        self._model, self._option = model, option
        self._types = np.concatenate([model.geom_type, model.site_type])
        meshes = np.isin(self._types, [kinds.mjGEOM_MESH, kinds.mjGEOM_SDF])
        self._boxes = self._types == kinds.mjGEOM_BOX
        self._planes = self._types == kinds.mjGEOM_PLANE
        solid = (kinds.mjGEOM_SPHERE, kinds.mjGEOM_CAPSULE, kinds.mjGEOM_ELLIPSOID)
        self._bounded = np.isin(self._types, [*solid, kinds.mjGEOM_CYLINDER]) | self._boxes | meshes
        self._halves, self._offsets = _measure_meshes(model, meshes)
        # What a primitive's size (a, b, c) means: half-sizes are size @ this.
        self._shapes = np.zeros((len(self._types), 3, 3))
        self._shapes[:] = np.eye(3)
        self._shapes[self._types == kinds.mjGEOM_SPHERE] = [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
        self._shapes[self._types == kinds.mjGEOM_CAPSULE] = [[1, 1, 1], [0, 0, 1], [0, 0, 0]]
        self._shapes[self._types == kinds.mjGEOM_CYLINDER] = [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
        self._shapes[meshes | self._planes] = 0
        self._halves[: model.ngeom][model.geom_type == kinds.mjGEOM_PLANE] = model.geom_size[
            model.geom_type == kinds.mjGEOM_PLANE
        ] * [1, 1, 0]
        self._slabs = np.flatnonzero((self._boxes | self._planes)[: model.ngeom])
        self._materials = np.concatenate([model.geom_matid, model.site_matid])
        self._texel = 2 * model.stat.extent * model.vis.map.shadowclip
        self._texel /= max(model.vis.quality.shadowsize, 1)
        self._unknown = bool(model.nskin or model.nflex)

    def look(self, data: Any, view: View, shadows: bool) -> Sight:
        """Return what the view's picture can do without.

        Args:
            data: `mujoco.MjData`.
            view: the camera.
            shadows: whether lights cast shadows in it.
        """
        hulls, rotations, halves = self._find_hulls(data)
        alphas = self._find_alphas()
        drawn = self._find_shown() & (alphas != 0)
        suns, lamps = self._find_suns(data) if shadows else ((), False)
        keep = drawn & ~self._bounded
        normals, offsets = view.planes()
        occluders = self._find_occluders(view, hulls, rotations, halves, drawn & (alphas >= OPAQUE))

        asked = np.flatnonzero(drawn & self._bounded & (alphas > 0))
        asked = asked[~is_outside(hulls.take(asked), normals, offsets)]
        asked = asked[~is_behind(hulls.take(asked).corners(), view.eye, occluders)]
        keep[asked] = True
        seen = keep.copy()

        reflection = True
        mirror = self._find_mirror(view, hulls, rotations, halves, drawn, alphas)
        if mirror is not None:
            images = self._find_images(mirror, view, hulls, drawn, occluders)
            reflection = bool(images.any())
            keep |= images
        elif not self._unknown:
            reflection = False

        if lamps:
            keep |= drawn
        for sun in suns:
            keep |= drawn & ~is_outside(hulls, normals, offsets, sun, 2 * self._texel)
        idle: tuple[int, ...] = ()
        if suns and not lamps and not self._unknown:
            idle = self._find_idle_casters(
                view, hulls, rotations, halves, seen & (alphas >= OPAQUE), suns
            )
        return Sight(drawn & ~keep, reflection or self._unknown, idle, int(keep.sum()))

    def _find_hulls(self, data: Any) -> tuple[_Hulls, Array, Array]:
        model = self._model
        sizes = np.concatenate([model.geom_size, model.site_size])
        halves = (sizes[:, None] @ self._shapes)[:, 0] + self._halves
        rotations = np.concatenate([data.geom_xmat, data.site_xmat]).reshape(-1, 3, 3)
        centers = np.concatenate([data.geom_xpos, data.site_xpos])
        centers = centers + (rotations @ self._offsets[..., None])[..., 0]
        axes = rotations.transpose(0, 2, 1) * halves[..., None]
        return _Hulls(centers, axes), rotations, halves

    def _find_alphas(self) -> Array:
        """Return the alpha of each geom and site as `setMaterial` chooses it (float32 exact)."""
        model = self._model
        rgba = np.concatenate([model.geom_rgba, model.site_rgba])
        alphas = rgba[:, 3]
        if model.nmat:
            plain = (rgba == np.array([0.5, 0.5, 0.5, 1], np.float32)).all(axis=1)
            plain &= self._materials >= 0
            alphas = np.where(plain, model.mat_rgba[self._materials, 3], alphas)
        return alphas

    def _find_shown(self) -> NDArray[np.bool_]:
        model, option = self._model, self._option
        return np.concatenate(
            [
                option.geomgroup[np.clip(model.geom_group, 0, 5)],
                option.sitegroup[np.clip(model.site_group, 0, 5)],
            ]
        ).astype(bool)

    def _find_suns(self, data: Any) -> tuple[tuple[Array, ...], bool]:
        """Return the directions of the suns that cast shadows, and whether a lamp does."""
        model = self._model
        casting = (model.light_castshadow != 0) & (model.light_active != 0)
        directional = model.light_directional != 0
        suns = tuple(data.light_xdir[casting & directional])
        return suns, bool((casting & ~directional).any())

    def _find_occluders(
        self, view: View, hulls: _Hulls, rotations: Array, halves: Array, opaque: Any
    ) -> _Occluders:
        chosen = self._slabs[opaque[self._slabs]]
        sizes = np.sort(halves[chosen], axis=1)
        faces = sizes[:, 1] * sizes[:, 2]
        chosen = chosen[np.argsort(-faces)[:OCCLUDERS]]
        chosen = chosen[: int((faces > MIN_OCCLUDER_M2).sum())]
        centers, turns, half = hulls.centers[chosen], rotations[chosen], halves[chosen]
        eye = ((view.eye - centers)[:, None] @ turns)[:, 0]
        farthest = np.linalg.norm(eye, axis=1) + np.linalg.norm(half, axis=1)
        margin = PIXEL_MARGIN * view.pixel * farthest
        flat = self._planes[chosen]
        # A plane's edge is seen foreshortened; its back is transparent.
        slant = np.where(flat, np.maximum(eye[:, 2], 1e-9) / farthest, 1)
        smaller = half - (margin / slant)[:, None]
        smaller[flat, 2] = 0
        distance = np.linalg.norm(np.maximum(np.abs(eye) - half, 0), axis=1)
        reach = view.near * np.sqrt(1 + max(map(abs, view.slopes)) ** 2 * 2)
        # The near plane cuts nothing off it within the picture, nor does the far one.
        usable = (distance > 1.01 * reach) & (farthest < 0.99 * view.far)
        usable &= (smaller[:, :2] > 0).all(axis=1) & (flat | (smaller[:, 2] > 0))
        usable &= ~flat | (eye[:, 2] > 0)
        return _Occluders(centers, turns, smaller).take(usable)

    def _find_mirror(
        self, view: View, hulls: _Hulls, rotations: Array, halves: Array, drawn: Any, alphas: Array
    ) -> tuple[int, Array, Array, Array] | None:
        """Return geom, point, normal and corners (4, 3) of the surface that reflects, if one does.

        MuJoCo takes the first opaque plane or box in the scene whose material reflects.
        """
        model = self._model
        for geom in self._slabs:
            material = self._materials[geom]
            if not drawn[geom] or alphas[geom] < OPAQUE:
                continue
            if material < 0 or model.mat_reflectance[material] <= 0:
                continue
            normal = rotations[geom, :, 2]
            top = 0.0 if self._planes[geom] else halves[geom, 2]
            point = hulls.centers[geom] + top * normal
            if (view.eye - point) @ normal < 0:
                if self._planes[geom]:
                    continue  # seen from behind a plane is transparent: the next one may reflect
                return None
            size = halves[geom] * [1, 1, 0]
            size[:2][size[:2] <= 0] = 2 * view.far  # no end
            return int(geom), point, normal, point + _SQUARE * size @ rotations[geom].T
        return None

    def _find_images(
        self, mirror: Any, view: View, hulls: _Hulls, drawn: Any, occluders: _Occluders
    ) -> NDArray[np.bool_]:
        """Return whose mirror image may be seen."""
        geom, point, normal, corners = mirror
        images = np.zeros(len(drawn), dtype=bool)
        surface = _clip(corners, *view.planes())
        # What hides the surface must stand on its front side.
        lowest = (occluders.centers - point) @ normal - (
            np.abs((normal @ occluders.rotations) * occluders.halves).sum(axis=1)
        )
        occluders = occluders.take(lowest > 1e-3)
        if len(surface) < 3 or is_behind(surface[None], view.eye, occluders)[0]:
            return images
        asked = drawn & self._bounded
        asked[geom] = False
        images[drawn & ~self._bounded] = True
        images[geom] = False
        asked = np.flatnonzero(asked)
        asked = asked[hulls.take(asked).highest(normal[None])[:, 0] > point @ normal - 1e-3]
        mirrored = hulls.take(asked).mirror(point, normal)
        hidden = is_outside(mirrored, *view.planes())
        hidden |= is_outside(mirrored, *_make_pyramid(surface, view))
        hidden[~hidden] = is_behind(mirrored.take(~hidden).corners(), view.eye, occluders)
        images[asked[~hidden]] = True
        return images

    def _find_idle_casters(
        self,
        view: View,
        hulls: _Hulls,
        rotations: Array,
        halves: Array,
        receivers: Any,
        suns: tuple[Array, ...],
    ) -> tuple[int, ...]:
        """Return the planes that shade nothing that is seen.

        Everything that is in the picture is above the plane or hidden by it. The plane itself and
        what stands on it are lit: a texel's center is at most half a texel from where it is read,
        by which the depth changes by (|x| + |y|) / 2 with the slopes x and y, and the renderer puts
        casters 1.5 max(|x|, |y|) back.
        """
        planes = np.flatnonzero(self._planes & receivers)
        if len(planes) != 1 or not (self._bounded | self._planes)[receivers].all():
            return ()
        plane = int(planes[0])
        turn, size = rotations[plane], halves[plane, :2]
        if any(not 0.2 < -(sun @ turn[:, 2]) < 0.98 for sun in suns):
            return ()
        size = np.where(size > 0, size - 0.01, np.inf)
        others = hulls.take(receivers & ~self._planes)
        centers = (others.centers - hulls.centers[plane]) @ turn
        reaches = np.abs(others.axes @ turn).sum(axis=1)
        eye = (view.eye - hulls.centers[plane]) @ turn
        if eye[2] <= 0 or (np.abs(eye[:2]) >= size).any():
            return ()
        above = centers[:, 2] - reaches[:, 2] > 0
        within = (np.abs(centers[:, :2]) + reaches[:, :2] < size).all(axis=1)
        return (plane,) if (above | within).all() else ()


def _measure_meshes(model: Any, meshes: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return half-sizes and centers of the boxes around the meshes: (n, 3) each, else zeros."""
    halves, centers = np.zeros((2, len(meshes), 3))
    for geom in np.flatnonzero(meshes[: model.ngeom]):
        mesh = model.geom_dataid[geom]
        if mesh >= 0:
            start = model.mesh_vertadr[mesh]
            vertices = model.mesh_vert[start : start + model.mesh_vertnum[mesh]]
            low, high = vertices.min(axis=0), vertices.max(axis=0)
            halves[geom], centers[geom] = (high - low) / 2, (high + low) / 2
    return halves, centers


def _clip(polygon: Array, normals: Array, offsets: Array) -> Array:
    """Return the part of a convex polygon (n, 3) on the inner side of all planes: (k, 3)."""
    for normal, offset in zip(normals, offsets):
        if not len(polygon):
            break
        heights = polygon @ normal + offset
        following, next_heights = np.roll(polygon, -1, axis=0), np.roll(heights, -1)
        kept = []
        for i, height in enumerate(heights):
            if height >= 0:
                kept.append(polygon[i])
            if (height >= 0) != (next_heights[i] >= 0):
                kept.append(polygon[i] + (following[i] - polygon[i]) * height / (height - next_heights[i]))
        polygon = np.array(kept).reshape(-1, 3)
    return polygon


def _make_pyramid(polygon: Array, view: View) -> tuple[Array, Array]:
    """Return the planes through the eye and a convex polygon's sides: inward normals, offsets.

    A pixel wider than the polygon looks.
    """
    rays = polygon - view.eye
    normals = np.cross(rays, np.roll(rays, -1, axis=0))
    lengths = np.linalg.norm(normals, axis=1)
    normals = normals[lengths > 1e-12] / lengths[lengths > 1e-12, None]
    center = rays.mean(axis=0)
    normals *= np.sign(normals @ center)[:, None]
    normals += 2 * view.pixel * center / np.linalg.norm(center)
    return normals, -(normals @ view.eye)
