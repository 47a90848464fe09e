"""A face that may change a sample is never left out: against each sample, in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_gym import faces
from vla_gym.faces import Faces, Projection, Raster
from vla_gym.visibility import View

SAMPLES = np.array([[0.375, 0.125], [0.875, 0.375], [0.125, 0.625], [0.625, 0.875]], np.float32)
CENTRE = np.array([[0.5, 0.5]], np.float32)
GRID = 1 / 256

seeds = st.integers(0, 2**32 - 1)


def draw_rotation(rng):
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else q[:, ::-1]


def draw_mesh(rng, count, size):
    """Return vertices and faces: a cloud of triangles of about this size [m], turned anyhow."""
    centers = rng.uniform(-0.2, 0.2, (count, 1, 3))
    vertices = (centers + rng.normal(size=(count, 3, 3)) * size).reshape(-1, 3)
    return vertices.astype(np.float32), np.arange(3 * count, dtype=np.int32).reshape(-1, 3)


def draw_view(rng, height, width, distance):
    """Return a camera that looks past the origin, roughly."""
    axes = draw_rotation(rng) * [[1], [1], [-1]]  # right, up, forward
    tangent = rng.uniform(0.2, 0.8)
    aspect = width / height
    slopes = -tangent * aspect, tangent * aspect, -tangent, tangent
    return View(axes[2] * -distance, axes, slopes, 0.01, 50.0, 2 * tangent / height)


def draw_scene(seed, size=0.005, distance=1.0, mirrored=False, samples=SAMPLES):
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(16, 80, 2))
    raster = Raster(height, width, samples, GRID)
    view = draw_view(rng, height, width, distance)
    vertices, corners = draw_mesh(rng, 2000, size)
    origin, rotation = rng.normal(size=3) * 0.05, draw_rotation(rng)
    mirror = None
    if mirrored:
        point, normal = view.eye + view.axes[2] * distance * 0.9, -view.axes[2]
        normal = draw_rotation(rng)[0] * 0.3 + normal
        normal /= np.linalg.norm(normal)
        origin = 2 * point - origin  # behind the mirror, roughly: its image is before the eye
        mirror = point, normal, (0.0, float(width), 0.0, float(height))
    return rng, view, raster, vertices, corners, origin, rotation, mirror


def project(view, raster, vertices, origin, rotation, mirror=None):
    """Return where vertices are on the picture, and how deep, in double precision: (n, 3)."""
    world = origin + vertices.astype(float) @ rotation.T
    if mirror is not None:
        point, normal, _ = mirror
        world -= 2 * np.outer((world - point) @ normal, normal)
    local = (world - view.eye) @ view.axes.T
    left, right, bottom, top = view.slopes
    u = (local[:, 0] / local[:, 2] - left) / (right - left) * raster.width
    v = (local[:, 1] / local[:, 2] - bottom) / (top - bottom) * raster.height
    return np.column_stack([u, v, local[:, 2]])


def find_covering(places, corners, raster, mirrored):
    """Return which faces are drawn: turned to the eye, and around a sample of the picture."""
    a, b, c = (places[corners[:, i], :2] for i in range(3))
    sign = -1 if mirrored else 1

    def cross(one, other):
        return sign * (one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0])

    columns, rows = np.meshgrid(np.arange(raster.width), np.arange(raster.height))
    pixels = np.column_stack([columns.ravel(), rows.ravel()])
    covering = np.zeros(len(corners), dtype=bool)
    for sample in raster.samples:
        points = pixels + sample
        for face in np.flatnonzero((cross(b - a, c - a) > 0) & ~covering):
            sides = ((a, b), (b, c), (c, a))
            inside = [cross(end[face] - start[face], points - start[face]) for start, end in sides]
            covering[face] = (np.min(inside, axis=0) >= 0).any()
    return covering


def choose(view, raster, vertices, corners, origin, rotation, mirror=None, slack=0.0):
    projection = Projection.of(view, raster, origin, rotation, mirror)
    chosen = np.zeros(len(corners), dtype=bool)
    chosen[Faces(vertices, corners).choose(projection, raster, slack)] = True
    return projection, chosen


@pytest.mark.parametrize("samples", [SAMPLES, CENTRE], ids=["4 samples", "1 sample"])
@pytest.mark.parametrize("mirrored", [False, True], ids=["seen", "mirrored"])
@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from([0.0005, 0.005, 0.05]))
def test_a_face_that_is_drawn_is_chosen_wherever_the_grid_puts_its_corners(
    mirrored, samples, seed, size
):
    scene = draw_scene(seed, size, mirrored=mirrored, samples=samples)
    rng, view, raster, vertices, corners, origin, rotation, mirror = scene
    places = project(view, raster, vertices, origin, rotation, mirror)
    _, chosen = choose(view, raster, vertices, corners, origin, rotation, mirror)
    for moved in (0.0, GRID):
        there = places + rng.choice([-moved, moved], places.shape) * [1, 1, 0]
        covering = find_covering(there, corners, raster, mirrored)
        ahead = (places[corners, 2] > 0).all(axis=1)
        assert not (covering & ahead & ~chosen).any()


def test_most_small_faces_are_left_out():
    _, view, raster, *mesh, _ = draw_scene(0, size=0.001)
    _, chosen = choose(view, raster, *mesh)
    assert 0 < chosen.mean() < 0.2


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0, 0.03))
def test_a_move_is_never_measured_shorter_than_it_is(seed, far):
    rng, view, raster, vertices, corners, origin, rotation, _ = draw_scene(seed)
    there = origin + rng.normal(size=3) * far, draw_small_turn(rng, far) @ rotation
    one = Projection.of(view, raster, origin, rotation)
    other = Projection.of(view, raster, *there)
    bound = one.measure_move(other, Faces(vertices, corners).box)
    places = project(view, raster, vertices, origin, rotation)[:, :2]
    moved = np.abs(places - project(view, raster, vertices, *there)[:, :2]).max()
    assert moved <= bound + 1e-9
    assert far == 0 or bound < 40 * moved + 1e-6  # it is a measure, too


def draw_small_turn(rng, angle):
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(1e-6, 3e-4))
def test_a_choice_with_slack_serves_all_poses_within_it(seed, far):
    rng, view, raster, vertices, corners, origin, rotation, _ = draw_scene(seed, size=0.002)
    here, chosen = choose(view, raster, vertices, corners, origin, rotation, slack=0.05)
    there = origin + rng.normal(size=3) * far, draw_small_turn(rng, far) @ rotation
    other, needed = choose(view, raster, vertices, corners, *there)
    if other.measure_move(here, Faces(vertices, corners).box) <= 0.05:
        places = project(view, raster, vertices, *there)
        covering = find_covering(places, corners, raster, mirrored=False)
        assert not (covering & ~chosen).any()
    assert (chosen & needed).any()


def test_faces_too_near_to_judge_are_kept():
    _, view, raster, vertices, corners, *_ = draw_scene(3, size=0.01, distance=0.1)
    origin, rotation = view.eye + 0.05 * view.axes[2], np.eye(3)
    _, chosen = choose(view, raster, vertices, corners, origin, rotation)
    depth = project(view, raster, vertices, origin, rotation)[:, 2][corners]
    near = (depth < faces.NEAR_M).any(axis=1)
    assert near.sum() > 100 and (~near & ~chosen).sum() > 100
    assert chosen[near].all()


def test_only_pieces_that_are_asked_are_chosen():
    _, view, raster, vertices, corners, origin, rotation, _ = draw_scene(4, size=0.02)
    projection = Projection.of(view, raster, origin, rotation)
    mesh = Faces(vertices, corners)
    among = np.arange(len(corners)) % 3 == 0
    chosen = mesh.choose(projection, raster, among=among)
    expected = mesh.choose(projection, raster)
    assert np.array_equal(chosen, expected[expected % 3 == 0])


def test_a_mesh_behind_the_eye_has_no_face():
    _, view, raster, vertices, corners, *_ = draw_scene(5)
    origin = view.eye - 2 * view.axes[2]
    assert not choose(view, raster, vertices, corners, origin, np.eye(3))[1].any()
