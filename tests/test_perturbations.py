"""Perturbed episodes: what changes, what does not, and who cannot have them.

Everything about pictures is asked of every simulator that is installed here.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import pickle
import signal
import sys

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vla_gym  # noqa: F401  registers the ids
from tests.support import ROOT, needs
from vla_gym import registration
from vla_gym.embedding import known_embeddings
from vla_gym.errors import InvalidAction, InvalidOption, UnknownName
from vla_gym.perturbations import (
    PERTURBATIONS,
    Perturbation,
    Setting,
    make_keywords,
    parse_perturbation,
    perturb,
)
from vla_gym.perturbations.camera import draw_move
from vla_gym.perturbations.light import draw_light
from vla_gym.rotations import rotation_vector, vector_to_matrix
from vla_gym.scenery import MOUNTED_SHARE, move_camera
from vla_gym.suite import AS_IS, CameraMove, LightChange, Setup, VisualChange
from vla_gym.worker import RemoteSimulator

SIZE = 64
TOY = "VLA/Toy-Lift-v0"

MUJOCO = {
    "VLA/MetaWorld-DrawerOpen-v0": ("metaworld", {}),
    "VLA/Robosuite-Lift-v0": ("robosuite", {}),
    "VLA/Robosuite-TwoArmLift-v0": ("robosuite", {}),
    "VLA/RLBench-ReachTarget-v0": ("rlbench-twin", {"simulator": "rlbench-twin"}),
    "VLA/CALVIN-OpenDrawer-v0": ("calvin-twin", {"simulator": "calvin-twin"}),
    "VLA/LIBERO-Spatial0-v0": ("libero", {}),
}
"""Id -> its extra and the keyword that insists on its simulator: those that can show changes."""

SLOW = {"VLA/LIBERO-Spatial0-v0": (pytest.mark.slow,)}
mujoco_params = [
    pytest.param(i, marks=(needs(extra), *SLOW.get(i, ()))) for i, (extra, _) in MUJOCO.items()
]
mujoco_ids = pytest.mark.parametrize("env_id", mujoco_params)
all_ids = pytest.mark.parametrize("env_id", [TOY, *mujoco_params])
VISUAL = ("camera", "light")


def make(env_id, **keywords):
    own = MUJOCO[env_id][1] if env_id in MUJOCO else {}
    return gym.make(env_id, **{"image_size": SIZE, "state": True, **own, **keywords})


def make_perturbed(env_id, text, **keywords):
    setting = parse_perturbation(text)
    return perturb(make(env_id, **make_keywords(setting), **keywords), setting)


def play(env, seed=0, steps=2):
    """Return all observations and rewards of the start of an episode of known actions."""
    observation, _ = env.reset(seed=seed)
    actions = np.random.default_rng(5).uniform(-1, 1, (steps, *env.action_space.shape))
    seen, rewards = [observation], [0.0]
    for action in actions.astype(np.float32):
        observation, reward, *_ = env.step(action)
        seen.append(observation)
        rewards.append(reward)
    return seen, rewards


def assert_same(one, other, leave_out=("nothing",)):
    for a, b in zip(one[0], other[0], strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if not key.startswith(leave_out):
                np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    np.testing.assert_array_equal(one[1], other[1])


class Recorder(gym.Wrapper):
    """Remembers the actions that arrive."""

    def __init__(self, env):
        super().__init__(env)
        self.actions = []

    def step(self, action):
        self.actions.append(np.array(action))
        return self.env.step(action)


# Names and strengths


@given(data=st.data(), name=st.sampled_from(sorted(PERTURBATIONS)))
def test_the_text_of_a_setting_says_all_of_it(data, name):
    kind = PERTURBATIONS[name]
    strengths = (
        st.integers(int(kind.low), int(kind.high))
        if kind.whole
        else st.floats(kind.low, kind.high, allow_subnormal=False)
    )
    setting = Setting(kind, data.draw(strengths))
    assert parse_perturbation(str(setting)) == setting
    assert str(parse_perturbation(f"{name}={setting.strength!r}")) == str(setting)
    travelled = pickle.loads(pickle.dumps(setting))  # to worker processes
    assert travelled == setting and hash(travelled) == hash(setting)


def test_the_default_strength_is_not_named():
    assert [str(parse_perturbation(name)) for name in PERTURBATIONS] == list(PERTURBATIONS)
    assert str(parse_perturbation("camera=0.05")) == "camera"
    assert str(parse_perturbation(" latency=3.0 ")) == "latency=3"
    assert str(parse_perturbation("action-noise=0.25")) == "action-noise=0.25"


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("cammera", UnknownName, "perturbation 'cammera'.*'camera'.*'latency'"),
        ("", UnknownName, "Valid: 'camera'"),
        ("camera=far", InvalidOption, "'far' .* is not a number; the default is camera=0.05"),
        ("camera=", InvalidOption, "is not a number"),
        ("camera=-0.1", InvalidOption, r"Valid: a number in \[0, 0.3\] m"),
        ("camera=nan", InvalidOption, "strength nan"),
        ("light=1.01", InvalidOption, r"a number in \[0, 1\]$"),
        ("latency=1.5", InvalidOption, r"a whole number in \[0, 100\] control steps"),
        ("instruction=2", InvalidOption, "Valid: 1: it has no strength to choose"),
    ],
)
def test_a_setting_that_is_none_is_refused_with_what_is_valid(text, error, match):
    with pytest.raises(error, match=match):
        parse_perturbation(text)


def test_a_default_that_is_not_valid_is_refused():
    with pytest.raises(ValueError, match="2 is not in"):
        Perturbation("x", "", 2, "", 0, 1, lambda env, strength: env, lambda env: None)


def test_the_page_has_every_perturbation_with_its_default_and_range():
    lines = (ROOT / "docs/robustness.md").read_text().splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    rows = {row[0]: row for row in rows if row[0] in PERTURBATIONS and len(row) == 5}
    assert list(rows) == list(PERTURBATIONS)
    for name, kind in PERTURBATIONS.items():
        _, _, default, span, _ = rows[name]
        if kind.low == kind.high:
            assert default == span == "none"
        else:
            assert default.replace(",", "").split()[0] == f"{kind.strength:g}"
            assert span.split()[:3] == [f"{kind.low:g}", "to", f"{kind.high:g}"]


# Every perturbation on every suite


@all_ids
def test_black_pictures_are_black_and_nothing_else_changes(env_id):
    env = make(env_id, cameras=("primary",))
    plain = play(env, seed=3)
    perturbed = perturb(env, parse_perturbation("black"))
    seen = play(perturbed, seed=3)
    assert_same(seen, plain, leave_out=("rgb_",))
    for observation in seen[0]:
        assert observation in perturbed.observation_space
        assert not observation["rgb_primary"].any()
    assert all(observation["rgb_primary"].any() for observation in plain[0])
    env.close()


def test_black_pictures_of_an_env_without_any_are_refused():
    env = make(TOY, cameras=())
    with pytest.raises(InvalidOption, match="the observations have no picture"):
        perturb(env, parse_perturbation("black"))
    env.close()


@pytest.mark.parametrize("name", sorted({*PERTURBATIONS} - {*VISUAL, "black"}))
@all_ids
def test_a_seed_keeps_its_start_and_repeats_and_leaves_the_env_as_it_is(env_id, name):
    setting = parse_perturbation(name)
    env = make(env_id, cameras=(), **make_keywords(setting))
    plain = play(env, seed=3, steps=5)
    perturbed = perturb(env, setting)
    first, other = play(perturbed, 3, steps=5), play(perturbed, 4, steps=5)
    assert_same(play(perturbed, 3, steps=5), first)
    assert_same(([first[0][0]], [0.0]), ([plain[0][0]], [0.0]))  # the same start
    if name != "instruction":
        assert not np.array_equal(first[0][-1]["state"], plain[0][-1]["state"])
    assert not np.array_equal(first[0][0]["state"], other[0][0]["state"])
    assert_same(play(env, seed=3, steps=5), plain)
    env.close()


@pytest.mark.parametrize("name", VISUAL)
@mujoco_ids
def test_another_view_changes_pictures_alone_and_repeats_and_leaves_the_env_as_it_is(env_id, name):
    env = make(env_id)
    plain = play(env)
    perturbed = perturb(env, parse_perturbation(name))
    changed = play(perturbed)
    assert_same(changed, plain, leave_out=("rgb_",))
    for key in ("rgb_primary", "rgb_wrist"):
        for a, b in zip(changed[0], plain[0], strict=True):
            assert np.abs(a[key].astype(int) - b[key]).mean() > 1
            assert 20 < a[key].mean() < 250 and a[key].std() > 10  # neither black nor glaring
    play(perturbed, seed=1, steps=0)
    assert_same(play(perturbed), changed)
    still = play(perturb(env, parse_perturbation(f"{name}=0")), steps=0)
    assert_same(still, (plain[0][:1], [0.0]))
    play(perturbed, steps=0)
    assert_same(play(env), plain)  # with pictures
    fresh = make(env_id)
    assert_same(play(fresh, steps=0), still)
    fresh.close()
    env.close()


def find_parts(env):
    """Return model, data, hidden groups and focus of an env's simulator, and camera -> its name."""
    simulator = env.unwrapped._simulator
    if hasattr(simulator, "_table"):
        simulator = simulator._table
    renderer = simulator._renderer
    hidden = tuple(np.flatnonzero(np.asarray(renderer._option.geomgroup) == 0))
    names = {k: v.native for k, v in env.unwrapped._layout.cameras.items()}
    return renderer._model, renderer._data, hidden, np.array(renderer._focus_m), names


def put_camera(mujoco, model, data, camera, move, focus):
    """Move a camera in the model itself: its place in its body, or in the world if it tracks."""
    body, tracks = model.cam_bodyid[camera], model.cam_mode[camera] == 1
    mounted = model.body_weldid[body] != 0
    eye, axes = data.cam_xpos[camera].copy(), data.cam_xmat[camera].reshape(3, 3).copy()
    eye, axes = move_camera(
        eye, axes, move, math.radians(model.cam_fovy[camera]), None if mounted else focus
    )
    if tracks:
        model.cam_pos0[camera] = eye - data.xpos[body]
        model.cam_mat0[camera] = axes.ravel()
        return
    turn = data.xmat[body].reshape(3, 3)
    model.cam_pos[camera] = turn.T @ (eye - data.xpos[body])
    mujoco.mju_mat2Quat(model.cam_quat[camera], (turn.T @ axes).ravel())


def put_light(model, light, focus):
    turn = vector_to_matrix(np.array(light.rotation))
    model.light_pos[:] = focus + (model.light_pos - focus) @ turn.T
    model.light_dir[:] = model.light_dir @ turn.T
    for kind in ("ambient", "diffuse", "specular"):
        colours = getattr(model, f"light_{kind}")
        colours *= np.array(light.lights, np.float32)
        colour = getattr(model.vis.headlight, kind)
        colour *= np.array(light.ambient, np.float32)


@mujoco_ids
def test_pictures_are_those_that_mujoco_draws_of_a_changed_model(env_id):
    """Compared with MuJoCo's own renderer, which leaves nothing out, for every camera."""
    import mujoco

    from vla_gym.rendering import _current_gl

    env = make(env_id)
    light = draw_light(np.random.default_rng(1), 1.0)
    moves = {
        camera: draw_move(np.random.default_rng(i), 0.1)
        for i, camera in enumerate(env.unwrapped.spec_sheet.all_cameras)
    }
    env.unwrapped.perturb(VisualChange(moves, light))
    env.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1, 1, (3, *env.action_space.shape)):
        env.step(action.astype(np.float32))
    ours = {camera: env.unwrapped.render_camera(camera, SIZE) for camera in moves}
    model, data, hidden, focus, names = find_parts(env)
    before, model, data = model, copy.copy(model), copy.copy(data)
    np.testing.assert_array_equal(before.light_diffuse, model.light_diffuse)
    for camera, move in moves.items():
        put_camera(mujoco, model, data, model.camera(names[camera]).id, move, focus)
    put_light(model, light, focus)
    mujoco.mj_camlight(model, data)
    option = mujoco.MjvOption()
    for group in hidden:
        option.geomgroup[group] = 0
    turned = {k for k, v in env.unwrapped._layout.cameras.items() if v.turned}
    with _current_gl():
        scene = mujoco.MjvScene(model, 1000)
        model.vis.global_.offwidth = model.vis.global_.offheight = SIZE
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        eye, view = mujoco.MjvCamera(), mujoco.MjrRect(0, 0, SIZE, SIZE)
        eye.type = mujoco.mjtCamera.mjCAMERA_FIXED
        scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 1
        for camera, picture in ours.items():
            eye.fixedcamid = model.camera(names[camera]).id
            everything = mujoco.mjtCatBit.mjCAT_ALL
            mujoco.mjv_updateScene(model, data, option, mujoco.MjvPerturb(), eye, everything, scene)
            mujoco.mjr_render(view, scene, context)
            pixels = np.empty((SIZE, SIZE, 3), np.uint8)
            mujoco.mjr_readPixels(pixels, None, view, context)
            upright = pixels[:, ::-1] if camera in turned else pixels[::-1]
            # A pose that went through a quaternion differs in its last bits.
            differing = (picture != upright).any(axis=2).mean()
            assert differing < 0.003, (camera, differing)
        context.free()
    env.close()


@needs("metaworld")
def test_fast_pictures_change_too_and_come_back():
    env = make("VLA/MetaWorld-DrawerOpen-v0", render_quality="fast")
    plain = play(env)
    for name in ("camera", "light"):
        changed = play(perturb(env, parse_perturbation(name)))
        assert np.abs(changed[0][1]["rgb_wrist"].astype(int) - plain[0][1]["rgb_wrist"]).mean() > 1
    assert_same(play(env), plain)
    env.close()


@needs("metaworld")
def test_a_camera_moves_alike_whatever_else_is_observed():
    one = make_perturbed("VLA/MetaWorld-DrawerOpen-v0", "camera", cameras=("wrist",))
    two = make_perturbed("VLA/MetaWorld-DrawerOpen-v0", "camera", cameras=("primary", "wrist"))
    (a, _), (b, _) = one.reset(seed=1), two.reset(seed=1)
    np.testing.assert_array_equal(a["rgb_wrist"], b["rgb_wrist"])
    wanted = two.unwrapped.render_camera("primary", SIZE)
    np.testing.assert_array_equal(b["rgb_primary"], wanted)
    one.close()
    two.close()


@needs("metaworld")
def test_episodes_without_a_seed_go_on_with_the_stream_of_the_last_one():
    env = make_perturbed("VLA/MetaWorld-DrawerOpen-v0", "light", cameras=("primary",))

    def look(*seeds):
        return [env.reset(seed=seed)[0]["rgb_primary"] for seed in seeds]

    first, again = look(7, None, None), look(7, None, None)
    np.testing.assert_array_equal(first, again)
    colours = [picture.mean(axis=(0, 1)).round(2).tolist() for picture in first]
    assert len({tuple(colour) for colour in colours}) == 3
    env.close()
    unseeded = [make_perturbed(TOY, "action-noise") for _ in range(2)]
    for env in unseeded:
        env.reset()
    still = np.zeros(7, np.float32)
    moved = [env.step(still)[0]["proprio"][:3] for env in unseeded]
    assert not np.array_equal(*moved)


@needs("metaworld")
def test_camera_and_light_compose_in_either_order_with_late_and_noisy_actions():
    env = make("VLA/MetaWorld-DrawerOpen-v0")
    plain = play(env, steps=0)

    def wrap(*names):
        wrapped = env
        for name in names:
            wrapped = perturb(wrapped, parse_perturbation(name))
        return wrapped

    one = play(wrap("camera", "light", "latency", "action-noise"), steps=0)
    other = play(wrap("latency", "light", "camera"), steps=0)
    for key in ("rgb_primary", "rgb_wrist", "state"):
        np.testing.assert_array_equal(one[0][0][key], other[0][0][key])
    for name in VISUAL:
        single = play(wrap(name), steps=0)[0][0]["rgb_primary"].astype(int)
        assert np.abs(single - one[0][0]["rgb_primary"]).mean() > 1
    assert_same(play(env, steps=0), plain)
    env.close()


@needs("metaworld")
def test_a_reset_that_fails_leaves_no_change_for_the_next_one():
    env = make("VLA/MetaWorld-DrawerOpen-v0")
    plain = play(env, steps=0)
    with pytest.raises(UnknownName, match="reset option"):
        perturb(env, parse_perturbation("camera")).reset(seed=0, options={"gaol": 1})
    assert_same(play(env, steps=0), plain)
    env.close()


# Other interpreters, and those who cannot


@needs("metaworld")
def test_a_simulator_in_another_interpreter_shows_the_same_also_after_a_crash():
    here = make("VLA/MetaWorld-DrawerOpen-v0")
    there = make("VLA/MetaWorld-DrawerOpen-v0", python=sys.executable, on_crash="restart")
    both = [parse_perturbation(name) for name in ("camera", "light")]
    wrapped = [perturb(perturb(env, both[0]), both[1]) for env in (here, there)]
    expected = play(wrapped[0])
    assert_same(play(wrapped[1]), expected)
    os.kill(there.unwrapped._simulator._process.pid, signal.SIGKILL)
    *_, truncated, info = wrapped[1].step(there.action_space.sample())
    assert truncated and info["crashed"]
    assert_same(play(wrapped[1]), expected)
    assert_same(play(there), play(here))
    here.close()
    there.close()


def test_a_simulator_that_cannot_is_refused_by_name_before_an_episode_starts():
    for keywords in ({}, {"python": sys.executable}):
        env = make(TOY, **keywords)
        for name in ("camera", "light"):
            text = (
                f"{TOY} cannot be perturbed by {name!r}: the simulator 'toy' cannot change it. "
                "Valid here: black, action-noise, latency"
            )
            with pytest.raises(InvalidOption, match=text):
                perturb(env, parse_perturbation(name))
        assert env.unwrapped._simulator is None
        change = VisualChange({"wrist": CameraMove((0, 0, 0), (0, 0, 0))})
        with pytest.raises(InvalidOption, match="'toy' cannot change camera; it can change noth"):
            env.unwrapped.perturb(change)
        env.close()


def test_a_worker_whose_simulator_cannot_says_so():
    setup = Setup("Toy", "Lift", "lift", "ee_delta", {}, "eef", False, "exact", {})
    simulator = RemoteSimulator(sys.executable, "vla_gym.suites.toy:ToySimulator", setup)
    with pytest.raises(InvalidOption, match="can change neither cameras nor light"):
        simulator.perturb(AS_IS)
    simulator.close()


def test_the_original_simulators_are_known_not_to():
    for suite in ("RLBench", "CALVIN"):
        infos = {info.name: info.perturbs for info in registration.get_suite(suite).simulators}
        assert set(infos.values()) == {(), ("camera", "light")}
        assert all(bool(perturbs) == name.endswith("twin") for name, perturbs in infos.items())


@needs("metaworld")
def test_a_camera_that_is_none_is_refused():
    env = make("VLA/MetaWorld-DrawerOpen-v0")
    with pytest.raises(UnknownName, match=r"camera 'rist'.*'wrist'"):
        env.unwrapped.perturb(VisualChange({"rist": CameraMove((0, 0, 0), (0, 0, 0))}))
    env.close()


def test_an_env_that_is_not_ours_is_refused():
    with pytest.raises(InvalidOption, match="is no env of vla_gym"):
        perturb(gym.make("CartPole-v1"), parse_perturbation("latency"))


# Moves and lights


def unit(rng):
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


@given(seed=st.integers(0, 2**32 - 1))
def test_a_camera_that_stands_still_goes_on_looking_at_its_point_and_a_mounted_one_turns(seed):
    rng = np.random.default_rng(seed)
    axes, eye = vector_to_matrix(unit(rng) * rng.uniform(0, 3)), rng.normal(size=3)
    depth = rng.uniform(0.4, 4.0)
    focus = eye - depth * axes[:, 2] + rng.normal() * axes[:, 0]
    offset = unit(rng) * 0.3 * rng.uniform()
    move = CameraMove(tuple(offset), (0.0, 0.0, 0.0))
    place, turned = move_camera(eye, axes, move, 0.7, focus)
    np.testing.assert_allclose(place, eye + axes @ offset, atol=1e-12)
    np.testing.assert_allclose(turned.T @ turned, np.eye(3), atol=1e-12)
    towards = eye - depth * axes[:, 2] - place
    np.testing.assert_allclose(-turned[:, 2], towards / np.linalg.norm(towards), atol=1e-9)

    tilt, pan, roll = rng.uniform(-0.1, 0.1, 3)
    move = CameraMove(tuple(offset), (tilt, pan, roll))
    place, turned = move_camera(eye, axes, move, 0.7, None)
    np.testing.assert_allclose(place, eye + MOUNTED_SHARE * (axes @ offset), atol=1e-12)
    angles = rotation_vector(axes.T @ turned)
    np.testing.assert_allclose(angles, [0.7 * tilt, 0.7 * pan, roll], atol=1e-9)


@given(seed=st.integers(0, 2**32 - 1), strength=st.floats(0, 0.3))
def test_a_move_is_as_large_as_its_strength_allows_and_grows_with_it(seed, strength):
    move = draw_move(np.random.default_rng(seed), strength)
    assert np.linalg.norm(move.offset_m) <= strength * (1 + 1e-9)
    share = strength / 0.05
    assert np.abs(move.turn[:2]).max() <= share / 15 * (1 + 1e-9)
    assert abs(move.turn[2]) <= share * math.radians(3) * (1 + 1e-9)
    whole = draw_move(np.random.default_rng(seed), 0.3)
    np.testing.assert_allclose(np.array(move), np.array(whole) * (strength / 0.3), atol=1e-12)


def test_offsets_fill_the_ball():
    rng = np.random.default_rng(0)
    offsets = np.array([draw_move(rng, 1.0).offset_m for _ in range(4000)])
    radii = np.linalg.norm(offsets, axis=1)
    assert abs((radii < 0.5).mean() - 0.125) < 0.02  # the share of its volume
    assert np.abs(offsets.mean(axis=0)).max() < 0.03


@given(seed=st.integers(0, 2**32 - 1), strength=st.floats(0, 1))
def test_a_light_keeps_to_its_ranges(seed, strength):
    light = draw_light(np.random.default_rng(seed), strength)
    turn = vector_to_matrix(np.array(light.rotation))
    assert math.acos(min(turn[2, 2], 1.0)) <= math.radians(20) * strength + 1e-6  # of the vertical
    red, green, blue = light.lights
    assert 0.4**strength - 1e-9 <= green <= 1.5**strength + 1e-9
    assert 0.55**strength - 1e-9 <= light.ambient[1] <= 1.3**strength + 1e-9
    for i in range(3):
        assert light.lights[i] / green == pytest.approx(light.ambient[i] / light.ambient[1])
    assert (red >= green) == (blue <= green)  # warm or cold
    assert 0.7 < red / green < 1.3 and 0.7 < blue / green < 1.4
    assert draw_light(np.random.default_rng(seed), 0.0) == LightChange(
        (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)
    )


# Instructions


@all_ids
def test_the_command_is_always_a_paraphrase(env_id):
    env = make_perturbed(env_id, "instruction", cameras=())
    said = set()
    for seed in range(12):
        observation, info = env.reset(seed=seed)
        canonical, *others = info["instructions"]
        assert observation["instruction"] == info["instruction"] != canonical
        assert info["instruction"] in others
        said.add(info["instruction"])
    assert len(said) > 1
    env.close()


def test_every_paraphrase_is_said_and_the_same_ones_again():
    env = make_perturbed("VLA/Toy-Reach-v0", "instruction", cameras=())
    said = [env.reset(seed=seed)[1]["instruction"] for seed in range(60)]
    task = registration.get_suite("Toy").tasks["Reach"]
    assert set(said) == set(task.paraphrases)
    assert said == [env.reset(seed=seed)[1]["instruction"] for seed in range(60)]


def test_paraphrases_are_encoded_as_the_policy_reads_them():
    env = make_perturbed("VLA/Toy-Reach-v0", "instruction", cameras=(), instruction="embedding")
    observation, info = env.reset(seed=0)
    expected = known_embeddings()[info["instruction"]]
    np.testing.assert_array_equal(observation["instruction"], expected)


@needs("calvin-twin")
def test_the_next_command_of_a_chain_is_a_paraphrase_too():
    env = make_perturbed("VLA/CALVIN-Chain-v0", "instruction", cameras=(), simulator="calvin-twin")
    env.reset(seed=0)
    inner = env.unwrapped
    for name in ("OpenDrawer", "TurnOnLed"):
        task = registration.get_suite("CALVIN").tasks[name]
        inner._speak((task.instruction, *task.paraphrases))  # as a step does that solves a task
        assert inner._make_info(inner._simulator.reset(0, {}))["instruction"] in task.paraphrases
    env.close()


def test_an_env_that_was_made_for_the_canonical_wording_is_refused():
    for paraphrase in (False, True):
        env = make(TOY, paraphrase=paraphrase)
        text = f"made with paraphrase='always' .make_keywords.* paraphrase={paraphrase}"
        with pytest.raises(InvalidOption, match=text):
            perturb(env, parse_perturbation("instruction"))
    with pytest.raises(UnknownName, match=r"paraphrase 'never'.*'always'"):
        make(TOY, paraphrase="never")


def test_a_task_with_one_wording_is_refused(monkeypatch):
    suite = registration.get_suite("Toy")
    mute = dataclasses.replace(suite.tasks["Reach"], paraphrases=())
    changed = dataclasses.replace(suite, tasks={**suite.tasks, "Reach": mute})
    monkeypatch.setitem(registration._suites, "Toy", changed)
    with pytest.raises(InvalidOption, match="no wording but 'move the gripper to the green ball'"):
        make_perturbed("VLA/Toy-Reach-v0", "instruction")
    with pytest.raises(InvalidOption, match="'instruction': the task has no wording but"):
        perturb(make("VLA/Toy-Reach-v0"), parse_perturbation("instruction"))


# Actions


def record(env_id, text, actions, seed=0, **keywords):
    """Return the actions that arrive at the env."""
    setting = parse_perturbation(text)
    recorder = Recorder(make(env_id, **{"cameras": (), **keywords}))
    env = perturb(recorder, setting)
    env.reset(seed=seed)
    for action in actions:
        env.step(action)
    env.close()
    return np.array(recorder.actions)


@pytest.mark.parametrize("mode", ["ee_delta", "native"])
def test_noise_is_normal_on_all_entries_but_the_grippers(mode):
    size = {"ee_delta": 7, "native": 4}[mode]
    sent = np.zeros((100, size), np.float32)
    sent[:, -1] = np.tile([1.0, -1.0], 50)
    found = np.concatenate(
        [record(TOY, "action-noise", sent, seed, action_mode=mode) for seed in range(20)]
    )
    np.testing.assert_array_equal(found[:, -1], np.tile(sent[:, -1], 20))
    noise = found[:, :-1]
    assert noise.std(axis=0) == pytest.approx(0.1, abs=0.006)  # 2000 draws: 0.0016 each
    assert np.abs(noise.mean(axis=0)).max() < 0.01
    assert np.abs(np.corrcoef(noise.T) - np.eye(size - 1)).max() < 0.1
    wide = record(TOY, "action-noise=1", sent, action_mode=mode)
    assert np.abs(wide).max() == 1.0  # clipped


@needs("robosuite")
def test_two_arms_have_noise_on_both_and_two_quiet_grippers():
    sent = np.zeros((3, 14), np.float32)
    found = record("VLA/Robosuite-TwoArmLift-v0", "action-noise", sent)
    assert ((found == 0).all(axis=0) == [False, False, False, False, False, False, True] * 2).all()


@pytest.mark.parametrize("name", ["action-noise", "latency"])
def test_an_action_that_is_not_valid_is_refused_when_it_is_sent(name):
    env = make_perturbed(TOY, name, cameras=())
    env.reset(seed=0)
    for action, text in ((np.zeros(6), r"shape \(6,\)"), (np.full(7, np.nan), "must be finite")):
        with pytest.raises(InvalidAction, match=text):
            env.step(action)


@given(steps=st.integers(0, 12), count=st.integers(1, 12))
def test_actions_arrive_late_in_their_order_and_the_robot_rests_before(steps, count):
    sent = np.random.default_rng(0).uniform(-1, 1, (count, 7)).astype(np.float32)
    found = record(TOY, f"latency={steps}", sent)
    expected = np.concatenate([np.zeros((steps, 7), np.float32), sent])[:count]
    np.testing.assert_array_equal(found, expected)


def test_an_episode_begins_with_nothing_on_the_way():
    recorder = Recorder(make(TOY, cameras=()))
    env = perturb(recorder, parse_perturbation("latency"))
    for _ in range(2):
        env.reset(seed=0)
        recorder.actions.clear()
        for _ in range(3):
            env.step(np.ones(7, np.float32))
        np.testing.assert_array_equal(recorder.actions, np.repeat([0, 0, 1], 7).reshape(3, 7))


RESTS = (
    (TOY, (), 0.0, 0.0),
    ("VLA/MetaWorld-DrawerOpen-v0", ("metaworld",), 1.0, -1.0),
    ("VLA/Robosuite-Lift-v0", ("robosuite",), 0.0, 0.0),
    ("VLA/LIBERO-Spatial0-v0", ("libero",), 0.0, 0.0),
    ("VLA/RLBench-ReachTarget-v0", ("rlbench-twin",), 1.0, 1.0),
    ("VLA/CALVIN-OpenDrawer-v0", ("calvin-twin",), 1.0, 1.0),
    # It starts with a block in the gripper. In `native` the target pose is then still where the
    # hand was before it picked the block up, so that no action leaves it where it is.
    ("VLA/CALVIN-PlaceInDrawer-v0", ("calvin-twin",), -1.0, None),
)
"""Id, its extra, the gripper's entry at rest in `ee_delta` and in `native`."""


@pytest.mark.parametrize(
    ("env_id", "mode", "gripper"),
    [
        pytest.param(i, mode, gripper, marks=(needs(*extras), *SLOW.get(i, ())))
        for i, extras, ee_delta, native in RESTS
        for mode, gripper in (("ee_delta", ee_delta), ("native", native))
        if gripper is not None
    ],
)
def test_until_the_first_action_arrives_neither_hand_nor_fingers_move(env_id, mode, gripper):
    twin = {"CALVIN": "calvin-twin", "RLBench": "rlbench-twin"}.get(env_id[4:].split("-")[0])
    keywords = {"simulator": twin} if twin else {}
    recorder = Recorder(make(env_id, cameras=(), action_mode=mode, **keywords))
    env = perturb(recorder, parse_perturbation("latency=15"))
    start = env.reset(seed=0)[0]["proprio"]
    hurry = np.ones(env.action_space.shape, np.float32)
    hurry[-1] = -gripper
    for _ in range(15):
        resting = env.step(hurry)[0]["proprio"]
    expected = np.zeros(env.action_space.shape)
    expected[-1] = gripper
    np.testing.assert_array_equal(recorder.actions, [expected] * 15)
    assert np.abs(resting[:3] - start[:3]).max() < 0.007  # [m]: it still settles
    assert abs(resting[9] - start[9]) < 0.03
    for _ in range(5):
        moving = env.step(hurry)[0]["proprio"]
    assert np.abs(moving[:3] - start[:3]).max() > 0.01
    env.close()


@pytest.mark.slow
@needs("libero")
def test_the_robot_rests_where_proprio_has_no_opening():
    """LIBERO's own proprio has the places of the two fingers in place of it."""
    recorder = Recorder(make("VLA/LIBERO-Spatial0-v0", cameras=(), proprio="native"))
    env = perturb(recorder, parse_perturbation("latency=3"))
    env.reset(seed=0)
    for _ in range(4):
        env.step(np.ones(7, np.float32))
    np.testing.assert_array_equal(recorder.actions, [np.zeros(7)] * 3 + [np.ones(7)])
    env.close()


@needs("rlbench-twin")
@pytest.mark.parametrize("mode", ["joint_position", "keypose"])
@pytest.mark.parametrize("name", ["latency", "action-noise"])
def test_modes_of_absolute_poses_are_refused(name, mode):
    env = make("VLA/RLBench-ReachTarget-v0", action_mode=mode)
    text = f"by {name!r}: in action_mode={mode!r}.*Valid here: camera, light, black$"
    with pytest.raises(InvalidOption, match=text):
        perturb(env, parse_perturbation(name))
    assert env.unwrapped._simulator is None


def test_an_env_without_proprio_is_refused_for_latency():
    env = gym.wrappers.FilterObservation(make(TOY), ["state"])
    with pytest.raises(InvalidOption, match=r"lack 'proprio'.* perturb the env"):
        perturb(env, parse_perturbation("latency"))


def test_rest_has_an_entry_for_each_of_the_action():
    for suite in map(registration.get_suite, ("Toy", "MetaWorld", "Robosuite", "RLBench")):
        task = next(iter(suite.tasks.values()))
        keywords = {name: word.default for name, word in suite.keywords.items()}
        for name, mode in suite.layout(task, keywords).action_modes.items():
            assert (mode.rest is None) == (name in ("joint_position", "keypose"))
            with pytest.raises(ValueError, match="one `rest` item per entry"):
                type(mode)(mode.entries, mode.native, mode.native_dim, rest=(0.0,))
