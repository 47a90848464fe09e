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
samples and corners snap to a grid of fractions. Nothing is hidden, and no pass skipped, where no
proof is known: height fields and planes, orthographic cameras, lamps (lights with a place) that
cast shadows, skins, flexes, tendons and whatever else the scene shows.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require

__all__ = [
    "Mirror",
    "Parts",
    "Sight",
    "View",
    "Visibility",
    "cut",
    "find_shown_meshes",
    "is_behind",
    "is_outside",
]

Array = NDArray[np.float64]

OPAQUE = 0.995
"""`mjr_render` blends what has less alpha."""

PIXEL_MARGIN = 0.25
"""[pixels] by which bodies that hide others are taken smaller. Corners snap to 1/256 pixel."""

OCCLUDERS = 8
"""Most bodies that are asked whether they hide others: the largest of the model."""

MIN_OCCLUDER_M2 = 0.004
"""A quarter of the largest face of the smallest body that is asked."""

PIECE_FACES, MAX_PIECES = 400, 48
"""Meshes of at least twice so many faces are looked at in pieces, at most so many."""

MAX_REMEMBERED = 2000
"""Meshes whose pieces' sizes are kept in memory."""

_MESH_TYPES = (7, 8)
"""`mjGEOM_MESH` and `mjGEOM_SDF`."""

_EDGES = np.array(
    [
        [one + 3 * minus, other + 3 * below, 3 - one - other]
        for one, other in ((0, 1), (1, 2), (2, 0))
        for minus in (0, 1)
        for below in (0, 1)
    ]
)
"""Of a box: its two faces, as numbered in `_Occluders.of`, and the axis along it."""
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
            np.array([_cross(forward, up), up, forward]),
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


class Mirror(NamedTuple):
    """The surface that reflects.

    Attributes:
        point: (3,) [m], on it, world frame.
        normal: (3,).
        outline: (k, 3) [m], of its part in the picture, world frame.
    """

    point: Array
    normal: Array
    outline: Array


class Parts(NamedTuple):
    """Pieces of a mesh that may be seen, ascending.

    Attributes:
        seen: as they are.
        mirrored: in the surface that reflects.
    """

    seen: NDArray[np.intp]
    mirrored: NDArray[np.intp]


class Sight(NamedTuple):
    """What a picture can do without.

    Attributes:
        hidden: bool (ngeom + nsite,); these may be left out of the scene.
        reflection: whether the reflection pass can change a pixel.
        drawn: how many things the scene then lists. If it lists more, there is something in it
            that nobody has looked at here, and `reflection` is void.
        mirror: the surface that reflects, None without one in the picture.
        parts: geom with a large mesh -> the pieces of it that suffice. Geoms that are not in it
            must be drawn whole.
        places: (ngeom,), where in the scene each geom is then, if it is.
        useful: whether the picture can do without anything at all.
    """

    hidden: NDArray[np.bool_]
    reflection: bool
    drawn: int
    mirror: Mirror | None
    parts: dict[int, Parts]
    places: NDArray[np.intp]
    useful: bool


def _cross(a: Array, b: Array) -> list[float]:
    (a0, a1, a2), (b0, b1, b2) = a.tolist(), b.tolist()  # np.cross takes ten times as long
    return [a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0]


class _Hulls(NamedTuple):
    """Boxes: centers (n, 3) and half-axes (n, 3, 3), a row for each; world frame [m]."""

    centers: Array
    axes: Array

    def take(self, chosen: Any) -> _Hulls:
        return _Hulls(self.centers[chosen], self.axes[chosen])

    def highest(self, normals: Array) -> Array:
        """Return how far each box reaches along each normal: (n, m)."""
        return self.centers @ normals.T + np.abs(self.axes @ normals.T).sum(axis=1)

    def mirror(self, point: Array, normal: Array) -> _Hulls:
        """Return the images in the plane through `point`."""
        centers = self.centers - 2 * np.outer((self.centers - point) @ normal, normal)
        return _Hulls(centers, self.axes - 2 * (self.axes @ normal)[..., None] * normal)


class _Poses(NamedTuple):
    """All geoms, then all sites.

    Attributes:
        origins: (n, 3) [m], world frame.
        rotations: (n, 3, 3), from the own to the world frame.
        halves: (n, 3) half-sizes [m].
        hulls: boxes that contain them.
    """

    origins: Array
    rotations: Array
    halves: Array
    hulls: _Hulls


class _Occluders(NamedTuple):
    """Opaque boxes, made smaller.

    Attributes:
        centers: (m, 3) [m], world frame.
        rotations: (m, 3, 3), from the own to the world frame.
        halves: (m, 3) half-sizes [m]; a plane is a box without height.
        normals: (k, 3), outward, and
        offsets: (k,): behind a box is where normal @ p + offset <= 0 for all of its planes.
        starts: (m,), where each box's planes begin; the next box's follow.
    """

    centers: Array
    rotations: Array
    halves: Array
    normals: Array
    offsets: Array
    starts: NDArray[np.intp]

    @classmethod
    def of(cls, eye: Array, centers: Array, rotations: Array, halves: Array) -> _Occluders:
        """Find what is behind boxes, seen from an eye outside them.

        It is bounded by the faces that the eye sees, and by planes through the eye and the edges
        between those and the others.
        """
        axes = rotations.transpose(0, 2, 1)  # (m, 3, 3): a row for each axis
        seen_from = (axes @ (eye - centers)[..., None])[..., 0]
        faces = np.concatenate([axes, -axes], axis=1)  # (m, 6, 3): +x, +y, +z, -x, -y, -z
        front = np.concatenate([seen_from > halves, -seen_from > halves], axis=1)
        farthest = np.linalg.norm(seen_from, axis=1) + np.linalg.norm(halves, axis=1)
        # Clearly behind, for the depth buffer.
        depth = np.tile(halves, 2) - (1e-3 * (1 + farthest**2))[:, None]
        face_offsets = -(faces @ centers[..., None])[..., 0] - depth

        one, other, along = _EDGES.T
        spans = faces * np.tile(halves, 2)[..., None]
        middles = (centers - eye)[:, None] + spans[:, one] + spans[:, other]  # (m, 12, 3)
        edges = np.cross(middles, axes[:, along])
        edges /= np.maximum(np.linalg.norm(edges, axis=2, keepdims=True), 1e-12)
        inside = (edges @ (centers - eye)[..., None])[..., 0]
        edges *= -np.sign(inside)[..., None]
        edge_offsets = np.where(np.abs(inside) > 1e-9, -(edges @ eye), np.inf)

        # Other faces and edges bound nothing. An outline has at least one face.
        outline = np.concatenate([front, front[:, one] != front[:, other]], axis=1)
        normals = np.concatenate([faces, edges], axis=1)[outline]
        offsets = np.concatenate([face_offsets, edge_offsets], axis=1)[outline]
        starts = np.concatenate([[0], np.cumsum(outline.sum(axis=1))])[:-1].astype(np.intp)
        return cls(centers, rotations, halves, normals, offsets, starts)


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
        outside &= normals @ sweep <= 0
    return outside.any(axis=1)


def is_behind(hulls: _Hulls, occluders: _Occluders) -> NDArray[np.bool_]:
    """Return whether each occluder hides all of each hull: (n, m)."""
    if not len(hulls.centers) or not len(occluders.starts):
        return np.zeros((len(hulls.centers), len(occluders.starts)), dtype=bool)
    heights = hulls.highest(occluders.normals) + occluders.offsets
    return np.maximum.reduceat(heights, occluders.starts, axis=1) <= 0


def _place(origins: Array, rotations: Array, offsets: Array, halves: Array) -> _Hulls:
    """Return boxes that are given in frames of their own."""
    centers = origins + (rotations @ offsets[..., None])[..., 0]
    return _Hulls(centers, rotations.transpose(0, 2, 1) * halves[..., None])


def _may_be_seen(
    hulls: _Hulls,
    frusta: tuple[tuple[Array, Array], ...],
    occluders: _Occluders,
    mirror: tuple[Array, Array] | None = None,
) -> NDArray[np.bool_]:
    if mirror is not None:
        hulls = hulls.mirror(*mirror)
    seen = np.ones(len(hulls.centers), dtype=bool)
    for planes in frusta:
        seen &= ~is_outside(hulls, *planes)
    seen[seen] = ~is_behind(hulls.take(seen), occluders).any(axis=1)
    return seen


class Visibility:
    """What a compiled model's pictures can do without.

    Args:
        model: `mujoco.MjModel`, as it is when its meshes are uploaded.
        option: `mujoco.MjvOption`: which groups are shown.
    """

    def __init__(self, model: Any, option: Any) -> None:
        kinds: Any = require("mujoco", "metaworld", "rendering").mjtGeom
        self._model, self._option = model, option
        self._types = np.concatenate([model.geom_type, model.site_type])
        meshes = np.isin(self._types, _MESH_TYPES)
        meshes &= self._find_shown()  # what is not shown needs no measuring
        self._boxes = self._types == kinds.mjGEOM_BOX
        self._planes = self._types == kinds.mjGEOM_PLANE
        solid = (kinds.mjGEOM_SPHERE, kinds.mjGEOM_CAPSULE, kinds.mjGEOM_ELLIPSOID)
        self._bounded = np.isin(self._types, [*solid, kinds.mjGEOM_CYLINDER]) | self._boxes | meshes
        # Pieces cast shadows where they are not seen.
        self.refine = not ((model.light_castshadow != 0) & model.light_active).any()
        self._measure_meshes(meshes)
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

    def _measure_meshes(self, meshes: NDArray[np.bool_]) -> None:
        model = self._model
        self._halves, self._offsets = np.zeros((2, len(meshes), 3))
        owners, numbers, halves, offsets = [], [], [], []
        for geom in np.flatnonzero(meshes[: model.ngeom]):
            mesh = model.geom_dataid[geom]
            if mesh < 0:
                continue
            low, high = measure_pieces(model, mesh)
            least, most = low.min(axis=0), high.max(axis=0)
            self._halves[geom], self._offsets[geom] = (most - least) / 2, (most + least) / 2
            if len(low) > 1 and self.refine:
                owners += [geom] * len(low)
                numbers += range(len(low))
                halves.append((high - low) / 2)
                offsets.append((high + low) / 2)
        self._owners = np.array(owners, dtype=np.intp)
        self._numbers = np.array(numbers, dtype=np.intp)
        self._piece_halves = np.concatenate([np.zeros((0, 3)), *halves])
        self._piece_offsets = np.concatenate([np.zeros((0, 3)), *offsets])

    def find_outside(self, data: Any, view: View) -> NDArray[np.bool_]:
        """Return what is not in the picture, geoms and sites: a part of what `look` finds.

        It takes a fifth of the time, and is right where nothing reflects or casts shadows.
        """
        return self._bounded & is_outside(self._find_poses(data).hulls, *view.planes())

    def look(self, data: Any, view: View, shadows: bool, reflections: bool) -> Sight:
        """Return what the view's picture can do without.

        Args:
            data: `mujoco.MjData`.
            view: the camera.
            shadows: whether lights cast shadows in it.
            reflections: whether surfaces reflect in it.
        """
        poses = self._find_poses(data)
        alphas = self._find_alphas()
        drawn = self._find_shown() & (alphas != 0)
        visible = drawn & (alphas > 0)
        suns, lamps = self._find_suns(data) if shadows else ((), False)
        refine = self.refine and not suns and not lamps
        # The first that reflects is the only one: without it, another would reflect.
        mirrors = (self._boxes | self._planes) & (self._find_reflectances() > 0)
        keep = drawn & (mirrors | ~self._bounded)
        occluders = self._find_occluders(view, poses, drawn & (alphas >= OPAQUE))
        asked = np.flatnonzero(visible & self._bounded)
        seen, pieces = self._find_seen(asked, poses, (view.planes(),), occluders, refine)
        keep[seen] = True

        mirror = self._find_mirror(view, poses, drawn, alphas) if reflections else None
        mirrored, surface = np.zeros(0, np.intp), None
        reflection = False
        if mirror is not None:
            images, mirrored, outline = self._find_images(
                mirror, view, poses, visible, occluders, refine
            )
            reflection = bool(images.any()) or self._unknown
            surface = Mirror(mirror[1], mirror[2], outline) if reflection else None
            keep |= images

        if lamps:
            keep |= drawn
        for sun in suns:
            keep |= drawn & ~self._find_idle_casters(view, poses.hulls, sun)
        return Sight(
            drawn & ~keep,
            reflection,
            int(keep.sum()),
            surface,
            self._group(pieces, mirrored) if refine else {},
            np.cumsum(keep) - 1,
            refine or bool((drawn & ~keep).any()) or (mirror is not None and not reflection),
        )

    def _group(self, seen: NDArray[np.intp], mirrored: NDArray[np.intp]) -> dict[int, Parts]:
        owners = np.unique(self._owners[np.concatenate([seen, mirrored])])
        bounds = [
            np.searchsorted(self._owners[some], [owners, owners + 1]).T for some in (seen, mirrored)
        ]
        return {
            int(owner): Parts(
                self._numbers[seen[slice(*one)]], self._numbers[mirrored[slice(*other)]]
            )
            for owner, one, other in zip(owners, *bounds, strict=True)
        }

    def _find_poses(self, data: Any) -> _Poses:
        model = self._model
        sizes = np.concatenate([model.geom_size, model.site_size])
        halves = (sizes[:, None] @ self._shapes)[:, 0] + self._halves
        rotations = np.concatenate([data.geom_xmat, data.site_xmat]).reshape(-1, 3, 3)
        origins = np.concatenate([data.geom_xpos, data.site_xpos])
        return _Poses(origins, rotations, halves, _place(origins, rotations, self._offsets, halves))

    def _find_seen(
        self,
        asked: NDArray[np.intp],
        poses: _Poses,
        frusta: tuple[tuple[Array, Array], ...],
        occluders: _Occluders,
        refine: bool,
        mirror: tuple[Array, Array] | None = None,
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return which of `asked` may be in all frusta and not behind anything, and which pieces.

        Large meshes are asked piece by piece: each may be hidden by another thing.
        """
        asked = asked[_may_be_seen(poses.hulls.take(asked), frusta, occluders, mirror)]
        if not refine:
            return asked, np.zeros(0, np.intp)
        some = np.zeros(len(self._types), dtype=bool)
        some[asked] = True
        pieces = np.flatnonzero(some[self._owners])
        owners = self._owners[pieces]
        hulls = _place(
            poses.origins[owners],
            poses.rotations[owners],
            self._piece_offsets[pieces],
            self._piece_halves[pieces],
        )
        pieces = pieces[_may_be_seen(hulls, frusta, occluders, mirror)]
        some[owners] = False
        some[self._owners[pieces]] = True
        return asked[some[asked]], pieces

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

    def _find_reflectances(self) -> Array:
        if not self._model.nmat:
            return np.zeros(len(self._materials))
        return np.where(self._materials < 0, 0, self._model.mat_reflectance[self._materials])

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

    def _find_occluders(self, view: View, poses: _Poses, opaque: NDArray[np.bool_]) -> _Occluders:
        chosen = self._slabs[opaque[self._slabs]]
        sizes = np.sort(poses.halves[chosen], axis=1)
        faces = sizes[:, 1] * sizes[:, 2]
        chosen = chosen[np.argsort(-faces)[:OCCLUDERS]]
        chosen = chosen[: int((faces > MIN_OCCLUDER_M2).sum())]
        centers, turns, half = (field[chosen] for field in poses[:3])
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
        return _Occluders.of(view.eye, centers[usable], turns[usable], smaller[usable])

    def _find_mirror(
        self, view: View, poses: _Poses, drawn: NDArray[np.bool_], alphas: Array
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
            normal = poses.rotations[geom, :, 2]
            point = poses.origins[geom] + poses.halves[geom, 2] * normal  # 0, if a plane
            if (view.eye - point) @ normal < 0:
                if self._planes[geom]:
                    continue  # seen from behind a plane is transparent: the next one may reflect
                return None
            size = poses.halves[geom] * [1, 1, 0]
            size[:2][size[:2] <= 0] = 2 * view.far  # no end
            return int(geom), point, normal, point + _SQUARE * size @ poses.rotations[geom].T
        return None

    def _find_images(
        self,
        mirror: tuple[int, Array, Array, Array],
        view: View,
        poses: _Poses,
        drawn: NDArray[np.bool_],
        occluders: _Occluders,
        refine: bool,
    ) -> tuple[NDArray[np.bool_], NDArray[np.intp], Array]:
        """Return whose mirror image may be seen, of which pieces, and the part that is in view."""
        geom, point, normal, corners = mirror
        images = np.zeros(len(drawn), dtype=bool)
        surface = _clip(corners, *view.planes())
        # Only what stands on the surface's front side hides it.
        lowest = (occluders.centers - point) @ normal - (
            np.abs((normal @ occluders.rotations) * occluders.halves).sum(axis=1)
        )
        in_front = lowest > 1e-3
        occluders = _Occluders.of(view.eye, *(field[in_front] for field in occluders[:3]))
        points = _Hulls(surface, np.zeros((len(surface), 3, 3)))
        if len(surface) < 3 or is_behind(points, occluders).all(axis=0).any():
            return images, np.zeros(0, np.intp), surface
        images[drawn & ~self._bounded] = True
        asked = np.flatnonzero(drawn & self._bounded)
        asked = asked[poses.hulls.take(asked).highest(normal[None])[:, 0] > point @ normal - 1e-3]
        frusta = view.planes(), _make_pyramid(surface, view)
        seen, pieces = self._find_seen(asked, poses, frusta, occluders, refine, (point, normal))
        images[seen] = True
        images[geom] = False
        return images, pieces, surface

    def _find_idle_casters(self, view: View, hulls: _Hulls, sun: Array) -> NDArray[np.bool_]:
        """Return whose shadow surely falls on nothing that is seen.

        With multisampling a pixel at an edge is shaded as if the surface went on to the pixel's
        center, which may be at another depth, or behind the eye: what counts is the four sides of
        the frustum, and of the same frustum behind the eye.
        """
        normals, offsets = view.planes()
        normals, offsets = normals[:4], offsets[:4]
        margin = 2 * self._texel
        return is_outside(hulls, normals, offsets, sun, margin) & is_outside(
            hulls, -normals, -offsets, sun, margin
        )


def _read_mesh(model: Any, mesh: int) -> tuple[Array, NDArray[np.int32]]:
    """Return vertices (n, 3) and faces (m, 3) as they are drawn."""
    vertex, face = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
    return (
        model.mesh_vert[vertex : vertex + model.mesh_vertnum[mesh]],
        model.mesh_face[face : face + model.mesh_facenum[mesh]],
    )


def find_shown_meshes(model: Any, option: Any) -> NDArray[np.bool_]:
    """Return which meshes belong to a geom of a group that is shown: (nmesh,)."""
    meshes = np.zeros(model.nmesh, dtype=bool)
    shown = option.geomgroup[np.clip(model.geom_group, 0, 5)] != 0
    meshes[model.geom_dataid[shown & np.isin(model.geom_type, _MESH_TYPES)]] = True
    return meshes


def count_pieces(faces: int) -> int:
    """Return into how many pieces a mesh of so many faces is cut: 1 if it is small."""
    return min(MAX_PIECES, faces // PIECE_FACES) if faces >= 2 * PIECE_FACES else 1


def cut(faces: int) -> NDArray[np.intp]:
    """Return where a mesh's pieces begin, and its end: (k + 1,).

    A piece is a run of faces in their own order. So pieces in their order draw what the mesh draws,
    also where two of its faces are equally near.
    """
    return np.linspace(0, faces, count_pieces(faces) + 1).astype(np.intp)


_measured: dict[tuple[int, int], tuple[Array, Array]] = {}


def measure_pieces(model: Any, mesh: int) -> tuple[Array, Array]:
    """Return the lowest and highest corners of the boxes around a mesh's pieces: (k, 3) each.

    Remembered for the process: robosuite builds models with the same meshes at every reset.
    """
    vertices, faces = _read_mesh(model, mesh)
    key = len(faces), zlib.crc32(vertices.tobytes() + faces.tobytes())
    if key not in _measured:
        if len(_measured) >= MAX_REMEMBERED:
            _measured.clear()
        corners = np.asarray(vertices, dtype=float)[faces]  # (m, 3, 3)
        starts = cut(len(faces))[:-1]
        _measured[key] = (
            np.minimum.reduceat(corners.min(axis=1), starts),
            np.maximum.reduceat(corners.max(axis=1), starts),
        )
    return _measured[key]


def _clip(polygon: Array, normals: Array, offsets: Array) -> Array:
    """Return the part of a convex polygon (n, 3) on the inner side of all planes: (k, 3)."""
    for normal, offset in zip(normals, offsets, strict=True):
        if not len(polygon):
            break
        heights = polygon @ normal + offset
        following, next_heights = np.roll(polygon, -1, axis=0), np.roll(heights, -1)
        kept = []
        for i, height in enumerate(heights):
            if height >= 0:
                kept.append(polygon[i])
            if (height >= 0) != (next_heights[i] >= 0):
                kept.append(
                    polygon[i] + (following[i] - polygon[i]) * height / (height - next_heights[i])
                )
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
