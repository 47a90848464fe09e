"""What `vla_gym.visibility` leaves out changes no pixel: geometry, random scenes, tasks.

The full fuzz over tasks is slow; `make test` plays a few states of each suite.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import vla_gym  # noqa: F401  registers the ids
from tests.support import needs
from vla_gym import face_lists, rendering, visibility
from vla_gym.faces import Faces
from vla_gym.visibility import View, Visibility, is_behind, is_outside

pytestmark = needs("metaworld")

SIZE = 96


@pytest.fixture(autouse=True)
def always_ask(monkeypatch):
    """Have each picture ask what can be left out, also after pictures that could leave out none."""
    monkeypatch.setattr(rendering, "LONGEST_PAUSE", 0)


def draw_rotation(rng):
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else q @ np.diag([1, 1, -1])


def make_view(rng, size=SIZE):
    axes = draw_rotation(rng)
    tan = np.tan(rng.uniform(0.2, 0.7))
    return View(rng.normal(size=3) * 0.5, axes, (-tan, tan, -tan, tan), 0.01, 50.0, 2 * tan / size)


def draw_boxes(rng, count, size=0.5, spread=2.0):
    rotations = np.array([draw_rotation(rng) for _ in range(count)])
    halves = rng.uniform(0.02, size, (count, 3))
    return visibility._place(rng.normal(size=(count, 3)) * spread, rotations, np.zeros(3), halves)


CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)


def fill(hulls, rng, count=400):
    """Return points inside each box, corners among them: (n, count + 8, 3)."""
    shares = rng.uniform(-1, 1, (len(hulls.centers), count, 3))
    shares = np.concatenate([shares, np.tile(CORNERS, (len(hulls.centers), 1, 1))], axis=1)
    return hulls.centers[:, None] + shares @ hulls.axes


def is_in_picture(points, view):
    local = (points - view.eye) @ view.axes.T
    left, right, bottom, top = view.slopes
    depth = local[..., 2]
    return (
        (depth > view.near)
        & (local[..., 0] > left * depth)
        & (local[..., 0] < right * depth)
        & (local[..., 1] > bottom * depth)
        & (local[..., 1] < top * depth)
    )


def test_a_box_of_which_a_point_is_in_the_picture_is_never_outside():
    rng = np.random.default_rng(0)
    outside = seen = 0
    for _ in range(60):
        view, hulls = make_view(rng), draw_boxes(rng, 20)
        found = is_outside(hulls, *view.planes())
        visible = is_in_picture(fill(hulls, rng), view).any(axis=1)
        assert not (found & visible).any()
        outside, seen = outside + found.sum(), seen + visible.sum()
    assert outside > 300 and seen > 100  # both happen


def test_a_sweep_of_which_a_point_is_in_the_picture_is_never_outside():
    rng = np.random.default_rng(1)
    outside = 0
    for _ in range(60):
        view, hulls, sun = make_view(rng), draw_boxes(rng, 20), draw_rotation(rng)[0]
        found = is_outside(hulls, *view.planes(), sun)
        shadow = fill(hulls, rng)[:, :, None] + rng.uniform(0, 6, (60, 1)) * sun
        assert not (found & is_in_picture(shadow, view).any(axis=(1, 2))).any()
        assert not (found & ~is_outside(hulls, *view.planes())).any()  # the body is part of it
        outside += found.sum()
    assert outside > 100


def test_a_box_of_which_a_point_is_in_plain_view_is_never_behind():
    rng = np.random.default_rng(2)
    behind = 0
    for _ in range(60):
        eye = rng.normal(size=3) * 0.3
        rotation = draw_rotation(rng)
        half = rng.uniform(0.1, 1.2, 3)
        center = eye + draw_rotation(rng)[0] * (np.linalg.norm(half) + rng.uniform(0.1, 1.0))
        occluder = visibility._Occluders.of(eye, center[None], rotation[None], half[None])
        hulls = draw_boxes(rng, 20, size=0.2)
        hulls = visibility._Hulls(center + (center - eye) * 0.7 + hulls.centers * 0.4, hulls.axes)
        found = is_behind(hulls, occluder)[:, 0]
        for points in fill(hulls, rng, 60)[found]:
            steps = np.linspace(0, 1, 2000)[:, None, None]
            on_the_way = eye + steps * (points - eye)
            inside = (np.abs((on_the_way - center) @ rotation) < half + 2e-3).all(axis=2)
            assert inside.any(axis=0).all()
        behind += found.sum()
    assert behind > 30


def test_two_bodies_that_hide_half_each_hide_nothing():
    eye, turn = np.zeros(3), np.eye(3)
    hull = visibility._Hulls(np.array([[0, 0, 9.5]]), np.diag([1, 1, 0.5])[None])

    def is_hidden(seen_from, *boxes):
        centers, halves = np.array(boxes, dtype=float).transpose(1, 0, 2)
        turns = np.array([turn] * len(boxes))
        return is_behind(hull, visibility._Occluders.of(seen_from, centers, turns, halves)).any()

    left, right = ((-1, 0, 5), (0.9, 2, 0.1)), ((1, 0, 5), (0.9, 2, 0.1))
    whole = ((0, 0, 5), (2, 2, 0.1))
    assert not is_hidden(eye, left, right)
    assert is_hidden(eye, left, right, whole)
    assert not is_hidden(np.array([0, 0, 20.0]), whole)  # from the other side
    assert not is_hidden(eye, ((0, 0, 5), (0.5, 2, 0.1)))  # too narrow
    assert not is_hidden(eye, ((0, 0, 9.5), (3, 3, 0.5)))  # around it, not before it
    assert is_hidden(eye, ((0, 0, 5), (2, 2, 0)))  # a plane


# --- random scenes ------------------------------------------------------------------------------

SHAPES = ("sphere", "capsule", "ellipsoid", "cylinder", "box")


def draw_model(rng, shadows, lamps=False, tendon=False):
    """Return a model: a floor, big boxes, small shapes and meshes among them, a camera."""
    import mujoco

    casts = {False: 'castshadow="false"', True: 'castshadow="true"'}
    texts = [
        f'<light directional="true" dir="{-rng.uniform():.2f} 0.3 -1" {casts[shadows]}/>',
        f'<light pos="1 1 3" dir="-.2 -.2 -1" {casts[lamps]}/>',
    ]
    texts.append('<geom type="plane" size="3 3 .1" material="floor"/>')
    for index in range(45):
        big = index < 5
        kind = "box" if big else str(rng.choice([*SHAPES, "mesh"]))
        size = " ".join(f"{s:.3f}" for s in rng.uniform(0.02, 0.8 if big else 0.12, 3))
        place = " ".join(f"{p:.3f}" for p in rng.normal(size=3) * [1.2, 1.2, 0.5] + [0, 0, 0.7])
        turn = " ".join(f"{q:.3f}" for q in rng.normal(size=4) * ([1, 0, 0, 1] if big else 1))
        alpha = 0.5 if index == 3 else 1 if big else rng.choice([1, 1, 1, 0.5, 0])
        color = f'rgba="{rng.uniform():.2f} {rng.uniform():.2f} .5 {alpha}"'
        if index in (1, 2):  # only the first of them reflects
            color = 'material="shiny"'
        form = 'mesh="wedge"' if kind == "mesh" else f'size="{size}"'
        tag = "site" if kind != "mesh" and index % 9 == 8 else "geom"
        texts.append(f'<{tag} type="{kind}" {form} pos="{place}" quat="{turn}" {color}/>')
    if tendon:
        texts += ['<site name="a" pos="-1 0 1"/>', '<site name="b" pos="1 0 1"/>']
    vertices = " ".join(f"{v:.3f}" for v in rng.normal(size=(12, 3)).ravel() * 0.2)
    model = mujoco.MjModel.from_xml_string(
        f"""<mujoco>
        <visual><quality shadowsize="512"/></visual>
        <asset>
          <texture name="t" type="2d" builtin="checker" width="64" height="64" rgb1=".2 .3 .4"/>
          <texture type="skybox" builtin="gradient" width="64" height="64" rgb1=".5 .7 .9"/>
          <material name="floor" texture="t" reflectance="{rng.choice([0, 0.3])}"/>
          <material name="shiny" rgba=".8 .3 .3 1" reflectance="{rng.choice([0, 0.5])}"/>
          <mesh name="wedge" vertex="{vertices}"/>
        </asset>
        <worldbody><camera name="eye" mode="fixed" fovy="50"/>{"".join(texts)}</worldbody>
        {
            '<tendon><spatial width="0.02"><site site="a"/><site site="b"/></spatial></tendon>'
            if tendon
            else ""
        }
        </mujoco>"""
    )
    return model, mujoco.MjData(model)


def aim(model, data, rng):
    """Put the camera somewhere, looking roughly at the scene's middle."""
    import mujoco

    place = rng.normal(size=3) * [1.5, 1.5, 0.5] + [0, 0, 1.2]
    back = place - rng.normal(size=3) * 0.5
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    mujoco.mju_mat2Quat(
        model.cam_quat[0], np.stack([right, np.cross(back, right), back], axis=1).ravel()
    )
    model.cam_pos[0] = place
    mujoco.mj_forward(model, data)


class Pair:
    """Two renderers of one model, of which one culls."""

    def __init__(self, model, data, hidden=(), quality="exact"):
        from vla_gym.rendering import Renderer

        self.whole = Renderer(model, data, quality, hidden, cull=False)
        self.culled = Renderer(model, data, quality, hidden)
        self.model, self.left_out, self.skipped = model, 0, 0

    def check(self, camera, size=SIZE):
        groups = self.model.geom_group.copy(), self.model.site_group.copy()
        meshes = self.model.mesh_face.copy(), self.model.mesh_facenum.copy()
        expected, found = (r.render(camera, size, size) for r in (self.whole, self.culled))
        differing = int((expected != found).any(axis=2).sum())
        assert not differing, f"{camera}: {differing} pixels differ"
        assert np.array_equal(groups[0], self.model.geom_group)
        assert np.array_equal(groups[1], self.model.site_group)
        assert np.array_equal(meshes[0], self.model.mesh_face)
        assert np.array_equal(meshes[1], self.model.mesh_facenum)
        self.left_out += self.whole._scene.ngeom - self.culled._scene.ngeom
        self.skipped += int(not self.culled._scene.flags[2])

    def close(self):
        self.whole.close()
        self.culled.close()


def watch_dropped(monkeypatch):
    """Return a list that gets how many faces each choice leaves out."""
    dropped, choose = [], Faces.choose

    def choose_and_count(self, *args):
        chosen = choose(self, *args)
        dropped.append(len(self) - len(chosen))
        return chosen

    monkeypatch.setattr(Faces, "choose", choose_and_count)
    return dropped


@pytest.mark.parametrize("shadows", [False, True], ids=["no shadows", "shadows"])
def test_pictures_of_random_scenes_are_equal(shadows, monkeypatch):
    monkeypatch.setattr(visibility, "PIECE_FACES", 3)  # of the twenty that these meshes have
    monkeypatch.setattr(face_lists, "WORTHWHILE", 1.0)
    monkeypatch.setattr(visibility, "_measured", {})
    rng = np.random.default_rng(int(shadows))
    left_out = skipped = 0
    dropped = watch_dropped(monkeypatch)
    for _ in range(8):
        model, data = draw_model(rng, shadows)
        pair = Pair(model, data)
        for _ in range(8):
            aim(model, data, rng)
            pair.check("eye")
        left_out, skipped = left_out + pair.left_out, skipped + pair.skipped
        pair.close()
    assert left_out > 300 and skipped > 10
    assert dropped == [] if shadows else sum(dropped) > 1000


def test_fast_pictures_of_random_scenes_are_equal(monkeypatch):
    monkeypatch.setattr(rendering, "MIN_CULLED", 0)
    rng = np.random.default_rng(6)
    left_out = 0
    for _ in range(4):
        model, data = draw_model(rng, shadows=True, lamps=True)
        pair = Pair(model, data, quality="fast")
        for _ in range(8):
            aim(model, data, rng)
            pair.check("eye")
        left_out += pair.left_out
        pair.close()
    assert left_out > 200


def test_pieces_are_runs_of_faces_that_leave_none_out():
    for faces in (0, 1, 2 * visibility.PIECE_FACES, 33_333, 10**6):
        bounds = visibility.cut(faces)
        assert bounds[0] == 0 and bounds[-1] == faces and (np.diff(bounds) >= 0).all()
    assert len(visibility.cut(2 * visibility.PIECE_FACES - 1)) == 2
    assert len(visibility.cut(10**6)) == visibility.MAX_PIECES + 1


def test_what_a_ray_hits_first_is_never_left_out():
    import mujoco

    rng = np.random.default_rng(5)
    hidden = 0
    for _ in range(10):
        model, data = draw_model(rng, shadows=False)
        option = mujoco.MjvOption()
        culler = Visibility(model, option)
        aim(model, data, rng)
        tan = np.tan(np.radians(25))
        turn = data.cam_xmat[0].reshape(3, 3)
        view = View(
            data.cam_xpos[0].copy(),
            np.array([turn[:, 0], turn[:, 1], -turn[:, 2]]),
            (-tan, tan, -tan, tan),
            0.01,
            50.0,
            2 * tan / SIZE,
        )
        found = culler.look(data, view, shadows=False, reflections=True).hidden
        hit = np.zeros(1, np.int32)
        for x in np.linspace(-tan, tan, 61):
            for y in np.linspace(-tan, tan, 61):
                ray = view.axes.T @ [x, y, 1.0]
                mujoco.mj_ray(model, data, view.eye, ray / np.linalg.norm(ray), None, 1, -1, hit)
                assert hit[0] < 0 or not found[hit[0]]
        hidden += found.sum()
    assert hidden > 50


def test_nothing_is_left_out_where_a_lamp_casts_shadows():
    rng = np.random.default_rng(3)
    model, data = draw_model(rng, shadows=False, lamps=True)
    pair = Pair(model, data)
    for _ in range(5):
        aim(model, data, rng)
        pair.check("eye")
    assert pair.left_out == 0
    pair.close()


def test_a_scene_with_something_unknown_keeps_its_reflections():
    rng = np.random.default_rng(4)
    model, data = draw_model(rng, shadows=False, tendon=True)
    model.mat_reflectance[:] = 0.4
    pair = Pair(model, data)
    for _ in range(5):
        aim(model, data, rng)
        pair.check("eye")
    assert pair.skipped == 0
    pair.close()


def test_an_orthographic_camera_is_drawn_whole():
    rng = np.random.default_rng(6)
    model, data = draw_model(rng, shadows=False)
    model.cam_orthographic[0], model.cam_fovy[0] = 1, 2
    pair = Pair(model, data)
    aim(model, data, rng)
    pair.check("eye")
    assert pair.left_out == 0
    pair.close()


# --- tasks --------------------------------------------------------------------------------------

METAWORLD = ("Reach", "DoorOpen", "PegInsertSide", "WindowClose", "Basketball", "Assembly")
ROBOSUITE = ("Lift", "Door", "PickPlace", "Wipe", "NutAssembly", "TwoArmTransport", "TwoArmLift")
LIBERO = ("Spatial0", "Object0", "Goal0", "Long0", "Long3", "Long5")
RLBENCH = ("OpenDrawer", "StackBlocks")


def find_renderer(env):
    """Return the renderer that an env's simulator has made, and which groups it does not show."""
    simulator = env.unwrapped._simulator
    renderer = getattr(simulator, "_renderer", None) or simulator._table._renderer
    return renderer, tuple(np.flatnonzero(renderer._option.geomgroup[:3] == 0))


def play(env_id, states, **keywords):
    """Compare all cameras of a task in `states` states along random episodes."""
    env = gym.make(env_id, cameras=("primary",), image_size=32, **keywords).unwrapped
    rng = np.random.default_rng(7)
    compared = 0
    pair = None
    for state in range(states):
        if state % 6 == 0:
            env.reset(seed=state)
            renderer, hidden = find_renderer(env)
            if pair is not None:
                compared += pair.left_out + pair.skipped
                pair.close()
            pair = Pair(renderer._model, renderer._data, hidden)
            action = rng.uniform(-1, 1, env.action_space.shape)
        for _ in range(int(rng.integers(1, 8))):
            action = 0.6 * action + 0.8 * rng.uniform(-1, 1, action.shape)
            _, _, terminated, _, _ = env.step(np.clip(action, -1, 1).astype(np.float32))
            if terminated:
                break
        for camera in range(pair.model.ncam):
            pair.check(pair.model.camera(camera).name, 128)
        if terminated:
            env.reset(seed=state)
            renderer, hidden = find_renderer(env)
            pair.close()
            pair = Pair(renderer._model, renderer._data, hidden)
    compared += pair.left_out + pair.skipped
    pair.close()
    env.close()
    assert compared > 0  # else nothing has been tested


TASKS = [
    *(pytest.param(f"VLA/MetaWorld-{task}-v0", {}, marks=needs("metaworld")) for task in METAWORLD),
    *(pytest.param(f"VLA/Robosuite-{task}-v0", {}, marks=needs("robosuite")) for task in ROBOSUITE),
    pytest.param("VLA/Robosuite-Stack-v0", {"robot": "Sawyer"}, marks=needs("robosuite")),
    *(pytest.param(f"VLA/LIBERO-{task}-v0", {}, marks=needs("libero")) for task in LIBERO),
    *(
        pytest.param(
            f"VLA/RLBench-{task}-v0",
            {"simulator": "rlbench-twin"},
            marks=[needs("rlbench-twin"), pytest.mark.filterwarnings("ignore")],
        )
        for task in RLBENCH
    ),
    pytest.param(
        "VLA/CALVIN-OpenDrawer-v0",
        {"simulator": "calvin-twin"},
        marks=[needs("calvin-twin"), pytest.mark.filterwarnings("ignore")],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "keywords"), TASKS)
def test_pictures_of_many_states_are_equal(env_id, keywords):
    play(env_id, 36, **keywords)


@pytest.mark.parametrize(
    "env_id",
    [
        pytest.param("VLA/MetaWorld-Reach-v0"),
        pytest.param("VLA/Robosuite-Lift-v0", marks=needs("robosuite")),
        pytest.param("VLA/LIBERO-Goal0-v0", marks=needs("libero")),
    ],
)
def test_pictures_of_some_states_are_equal(env_id):
    play(env_id, 2)
