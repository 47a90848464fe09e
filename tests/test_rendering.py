"""Off-screen rendering: envs that share a process, back ends, forks. Equality with upstream's own
pixels is in tests/suites/."""

from __future__ import annotations

import gc
import multiprocessing
import subprocess
import sys
import threading

import gymnasium as gym
import numpy as np
import pytest

import vla_gym  # noqa: F401  registers the ids
from tests.support import needs

pytestmark = needs("metaworld")


def make(task, size, **keywords):
    env = gym.make(f"VLA/MetaWorld-{task}-v0", cameras=("primary",), image_size=size, **keywords)
    return env, env.reset(seed=0)[0]["rgb_primary"]


def look(env, size):
    return env.unwrapped.render_camera("primary", size)


def test_envs_that_take_turns_in_one_process_draw_their_own_pictures():
    """They share one GL context: each must bind its own frame buffer before it draws."""
    one, seen_by_one = make("Reach", 64)
    two, seen_by_two = make("DoorLock", 96)
    for _ in range(2):
        assert np.array_equal(look(one, 64), seen_by_one)
        assert np.array_equal(look(two, 96), seen_by_two)
    two.close()
    assert np.array_equal(look(one, 64), seen_by_one)
    three, seen_by_three = make("Reach", 64)
    assert np.array_equal(seen_by_three, seen_by_one)
    one.close()
    assert np.array_equal(look(three, 64), seen_by_three)
    three.close()


def test_a_larger_picture_in_between_changes_nothing():
    env, first = make("Reach", 48)
    large = look(env, 200)
    assert large.shape == (200, 200, 3) and large.dtype == np.uint8
    assert np.array_equal(look(env, 48), first)
    small = large.reshape(50, 4, 50, 4, 3).mean((1, 3))
    middle = look(env, 50).astype(float)
    assert np.abs(small - middle).mean() < 4  # the same scene, the same way up
    assert np.abs(small[::-1] - middle).mean() > 10
    env.close()


@pytest.mark.parametrize("quality", ["exact", "fast"])
def test_pictures_drawn_together_are_those_drawn_alone(quality):
    from vla_gym.rendering import Renderer

    env, _ = make("Reach", 32)
    simulator = env.unwrapped._simulator._env
    together, alone = (Renderer(simulator.model, simulator.data, quality) for _ in range(2))
    some = [("corner2", 40, 56), ("gripperPOV", 56, 40), ("corner2", 24, 24)]
    for shots in (some, some[::-1], [*some, ("topview", 72, 72)], some[:1]):
        pictures = together.render_all(shots)
        for shot, picture in zip(shots, pictures, strict=True):
            assert picture.shape == (*shot[1:], 3)
            np.testing.assert_array_equal(picture, alone.render(*shot))
        env.step(env.action_space.sample())
    together.close()
    np.testing.assert_array_equal(alone.render_all(some)[0], alone.render(*some[0]))
    alone.close()
    env.close()


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_in_our_context(enabled):
    """What others have drawn with would delete our GL objects, by their numbers."""
    from vla_gym.rendering import _current_gl

    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with _current_gl(), _current_gl():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_without_gl_in_python_pictures_are_drawn_one_after_the_other(monkeypatch):
    from vla_gym.frames import Frames
    from vla_gym.rendering import Renderer

    env, _ = make("Reach", 32)
    simulator = env.unwrapped._simulator._env
    renderer = Renderer(simulator.model, simulator.data)
    shots = [("corner2", 32, 32), ("gripperPOV", 32, 32)]
    expected = renderer.render_all(shots)
    monkeypatch.setattr(Frames, "several", False)
    monkeypatch.setattr(Frames, "_make", None)
    for picture, found in zip(expected, renderer.render_all(shots), strict=True):
        np.testing.assert_array_equal(found, picture)
    renderer.close()
    env.close()


def test_asking_in_vain_makes_pauses_of_one_camera_longer():
    from vla_gym.rendering import LONGEST_PAUSE, _Pauses

    pauses = _Pauses()

    def find_asked(camera, useful):
        asked = []
        for picture in range(140):
            if pauses.step(camera):
                asked.append(picture)
                pauses.put(camera, useful)
        return asked

    assert find_asked(0, False) == [0, 2, 6, 14, 30, 62, 94, 126]
    assert find_asked(1, True) == list(range(140))
    asked = find_asked(0, True)
    assert asked[0] <= LONGEST_PAUSE and asked == list(range(asked[0], 140))


def test_fast_quality_is_another_picture_of_the_same_scene():
    exact, first = make("Reach", 64)
    fast, second = make("Reach", 64, render_quality="fast")
    assert not np.array_equal(first, second)
    assert np.abs(first.astype(float) - second).mean() < 30
    assert np.abs(first[::-1].astype(float) - second).mean() > 30
    exact.close()
    fast.close()


def read_model(model):
    """Return all arrays and qualities of a model."""
    found = {
        name: value.copy()
        for name in dir(model)
        if name[0] != "_" and isinstance(value := getattr(model, name), np.ndarray)
    }
    quality, size = model.vis.quality, model.vis.global_
    names = "offsamples", "shadowsize", "numslices", "numstacks", "numquads"
    found["quality"] = np.array([getattr(quality, name) for name in names])
    found["size"] = np.array([size.offwidth, size.offheight])
    return found


@pytest.mark.parametrize("quality", ["exact", "fast"])
def test_drawing_leaves_the_simulated_model_as_it_was(quality):
    env, _ = make("Reach", 32, render_quality=quality)
    model = env.unwrapped._simulator._env.model
    from vla_gym.rendering import Renderer

    before = read_model(model)
    renderer = Renderer(model, env.unwrapped._simulator._env.data, quality)
    for camera in range(model.ncam):
        renderer.render(model.camera(camera).name, 64, 64)
    renderer.close()
    after = read_model(model)
    assert len(before) > 300
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    env.close()


def test_episodes_are_the_same_in_both_qualities_and_without_pictures():
    settings = [{"render_quality": "exact"}, {"render_quality": "fast"}, {"cameras": ()}]
    states = []
    for keywords in settings:
        env = gym.make(
            "VLA/MetaWorld-Reach-v0",
            **{"cameras": ("primary",), "image_size": 32, "state": True, **keywords},
        )
        found = [env.reset(seed=3)[0]["state"]]
        for action in np.random.default_rng(0).uniform(-1, 1, (8, 7)).astype(np.float32):
            found.append(env.step(action)[0]["state"])
        states.append(np.array(found))
        env.close()
    np.testing.assert_array_equal(states[0], states[1])
    np.testing.assert_array_equal(states[0], states[2])


def test_fast_quality_draws_simplified_meshes(tmp_path, monkeypatch):
    """Once simplified they are read from the cache, and the picture is nearly the same."""
    from vla_gym import meshes, rendering

    monkeypatch.setenv("VLA_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(meshes, "_simplified", {})
    env, picture = make("Reach", 64, render_quality="fast")
    files = sorted(tmp_path.iterdir())
    assert len(files) > 8
    model, data = (getattr(env.unwrapped._simulator._env, name) for name in ("model", "data"))
    small = rendering._simplify(model, env.unwrapped._simulator._renderer._option)
    assert small.mesh_facenum.sum() < 10_000 and model.mesh_facenum.sum() > 60_000
    monkeypatch.setattr(meshes, "_simplified", {})
    monkeypatch.setattr(meshes, "simplify", lambda *_: pytest.fail("simplified again"))
    again = rendering.Renderer(model, data, "fast")
    name = "corner2"
    assert np.array_equal(again.render(name, 64, 64)[::-1, ::-1], picture)
    again.close()
    monkeypatch.setattr(rendering, "MESH_FACES", 10**9)
    whole = rendering.Renderer(model, data, "fast")
    difference = np.abs(whole.render(name, 64, 64)[::-1, ::-1].astype(float) - picture)
    assert 0 < difference.mean() < 3
    whole.close()
    env.close()


def test_simplified_meshes_keep_their_shape():
    from vla_gym.meshes import compute_normals, simplify

    angles = np.linspace(0, np.pi, 60), np.linspace(0, 2 * np.pi, 121)
    high, round_ = (grid.ravel() for grid in np.meshgrid(*angles, indexing="ij"))
    vertices = np.stack(
        [np.sin(high) * np.cos(round_), np.sin(high) * np.sin(round_), np.cos(high)], axis=1
    )
    corner = np.arange(59 * 120) // 120 * 121 + np.arange(59 * 120) % 120
    faces = np.concatenate(
        [
            np.stack([corner, corner + 121, corner + 122], axis=1),
            np.stack([corner, corner + 122, corner + 1], axis=1),
        ]
    )
    ball = simplify(vertices, faces, 500)
    assert 300 < len(ball.faces) <= 510
    radii = np.linalg.norm(ball.vertices, axis=1)
    assert radii.min() > 0.97 and radii.max() < 1.03
    directions = ball.vertices / radii[:, None]
    normals = compute_normals(ball.vertices, ball.faces)
    assert ((normals * directions).sum(axis=1) > 0.95).all()  # outward: the winding is kept


def test_threads_draw_the_same_pictures():
    env, first = make("Reach", 48)
    found = []

    def draw():
        other, picture = make("Reach", 48)  # made, drawn and closed here
        found.extend([picture, look(env, 48)])  # made over there, drawn here
        other.close()

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(picture, first) for picture in found)
    assert np.array_equal(look(env, 48), first)
    env.close()


def test_the_viewer_of_another_program_keeps_its_context():
    import mujoco

    from vla_gym.rendering import choose_backend

    if choose_backend() != "egl":
        pytest.skip("only EGL can say which context is current")
    from mujoco.egl import GLContext
    from OpenGL import EGL

    theirs = GLContext(64, 64)
    theirs.make_current()
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light/></worldbody></mujoco>")
    buffer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
    env, _ = make("Reach", 32)
    env.close()
    assert EGL.eglGetCurrentContext().address == theirs._context.address
    buffer.free()
    theirs.free()
    assert not EGL.eglGetCurrentContext()


def run_python(code, **variables):
    import os

    kept = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | variables, capture_output=True, text=True
    )


CHECK = "from vla_gym.rendering import check_rendering; print(check_rendering())"


def test_check_rendering_names_the_back_end():
    done = run_python(CHECK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("off-screen rendering works through ")


def test_an_unknown_back_end_is_refused_with_those_that_exist():
    done = run_python(CHECK, MUJOCO_GL="elg")
    assert "there is no MUJOCO_GL 'elg'" in done.stderr
    assert "Did you mean 'egl'?" in done.stderr


def test_a_back_end_that_fails_is_an_error_that_names_what_to_install():
    done = run_python(CHECK, MUJOCO_GL="glfw")  # needs a screen, of which there is none
    assert "DependencyNotInstalled" in done.stderr
    assert "make the env with cameras=()" in done.stderr


def test_an_egl_device_that_is_not_there_is_refused_instead_of_drawing_elsewhere():
    done = run_python(CHECK, MUJOCO_EGL_DEVICE_ID="99")
    assert "MUJOCO_EGL_DEVICE_ID" in done.stderr and "got 99" in done.stderr
    assert "osmesa" not in done.stderr.lower()


def test_the_first_egl_device_can_be_chosen():
    from vla_gym.rendering import choose_backend

    if choose_backend() != "egl":
        pytest.skip("there is no EGL here")
    done = run_python(CHECK, MUJOCO_EGL_DEVICE_ID="0")
    assert "works through egl" in done.stdout, done.stderr


def test_an_opengl_for_screens_that_was_imported_before_is_named():
    done = run_python(f"import OpenGL.GL; {CHECK}", MUJOCO_GL="egl", DISPLAY=":99")
    if done.returncode:  # on some machines it works all the same
        assert "PyOpenGL was imported before, for GLXPlatform" in done.stderr
        assert "PYOPENGL_PLATFORM=egl" in done.stderr


def draw_and_send(pipe):
    try:
        make("Reach", 32)
        pipe.send("drew")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_after_rendering_is_told_so_instead_of_hanging():
    env, _ = make("Reach", 32)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=draw_and_send, args=(theirs,))
    child.start()
    assert ours.poll(60)
    message = ours.recv()
    child.join(10)
    assert message.startswith("BrokenDependency") and "spawn" in message
    env.close()
