"""What models of LIBERO are shown and what their actions do: against upstream's env, by hand."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
from vla_gym_policies.libero_presets import (
    OPENPI_SPEC,
    make_openpi_libero_policy,
    make_openvla_libero_policy,
    make_pi0_libero_policy,
    make_vla_eval_libero_policy,
)
from vla_gym_policies.openvla import _scale_recorded

from tests.policies.test_openpi import openpi_server
from tests.policies.test_openvla import PROMPT
from tests.policies.test_openvla import save_model as save_llava
from tests.policies.test_pi0 import read_vectors
from tests.policies.test_pi0 import save_model as save_pi0
from tests.policies.test_vla_eval import client_of as vla_eval_client_of
from tests.suites.test_libero import EPISODE_SEED, run_upstream
from vla_gym.errors import ContractMismatch
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import add_batch_axis
from vla_gym.suites.libero import SUITE
from vla_gym.suites.libero_tasks import TASKS

STEPS, INIT_STATE = 6, 11


def play(env, policy, steps=STEPS):
    """Play the start of an episode, and return the simulator's states and `proprio`."""
    observation, _ = env.reset(seed=5, options={"init_state": INIT_STATE})
    connected, state = connect(policy, env.unwrapped.spec_sheet), None
    simulator = env.unwrapped._simulator
    states, proprio = [], []
    for step in range(steps + 1):
        states.append(simulator._env.sim.get_state().flatten())
        proprio.append(observation["proprio"])
        start = np.array([step == 0])
        actions, state = connected.predict(add_batch_axis(observation), state, start)
        observation, *_ = env.step(actions[0])
    return np.array(states), np.array(proprio)


def play_upstream(tmp_path, task, actions):
    """Return what upstream sees in the same episode, as its scripts find it in `obs`."""
    episode = {
        "task": TASKS[task].native,
        "seed": EPISODE_SEED,
        "init_state": INIT_STATE,
        "size": 256,
        "actions": actions[:STEPS].tolist(),
    }
    (seen,) = run_upstream(tmp_path, [episode])
    seen = {name: rows[1:] for name, rows in seen.items()}  # after the settling steps
    return {
        "sim": seen["sim"],
        "agentview_image": seen["agentview_image"][:, ::-1],  # the recorder has turned them
        "robot0_eye_in_hand_image": seen["robot0_eye_in_hand_image"][:, ::-1],
        "robot0_eef_pos": seen["state"][:, 28:31],
        "robot0_eef_quat": seen["state"][:, 31:35],
        "robot0_gripper_qpos": seen["state"][:, 35:37],
    }


def to_axis_angle(quat):
    """As `quat2axisangle` of both scripts."""
    w = min(max(quat[3], -1.0), 1.0)
    return quat[:3] * 2.0 * math.acos(w) / np.sqrt(1.0 - w * w)


def make_state(seen, step):
    """As both scripts put it together, float64 (8,)."""
    quat = to_axis_angle(seen["robot0_eef_quat"][step])
    return np.concatenate([seen["robot0_eef_pos"][step], quat, seen["robot0_gripper_qpos"][step]])


# openpi


@pytest.mark.slow
@pytest.mark.needs("libero", "openpi", "serve")
@pytest.mark.parametrize("task", ["Spatial0", "Object4"])
def test_an_openpi_server_gets_upstreams_pictures_and_state_and_moves_upstreams_robot(
    task, tmp_path
):
    from openpi_client.image_tools import resize_with_pad

    actions = np.random.default_rng(3).uniform(-1, 1, (10, 7)).astype(np.float32)
    messages = []

    def answer(message):
        messages.append(message)
        return {"actions": actions[len(messages) - 1 :]}

    with openpi_server(answer) as address:
        policy = make_openpi_libero_policy(address, execute=1)
        assert policy.spec == OPENPI_SPEC
        env = gym.make(SUITE.id(task), **policy.spec.env_keywords())
        states, proprio = play(env, policy)
        env.close()
        policy.close()
    seen = play_upstream(tmp_path, task, actions)
    assert np.array_equal(states, seen["sim"])
    assert len(messages) == STEPS + 1
    for step, message in enumerate(messages):
        for name, key in (
            ("observation/image", "agentview_image"),
            ("observation/wrist_image", "robot0_eye_in_hand_image"),
        ):
            turned = np.ascontiguousarray(seen[key][step][::-1, ::-1])
            assert message[name].dtype == np.uint8
            assert np.array_equal(message[name], resize_with_pad(turned, 224, 224)), (step, key)
        wanted = make_state(seen, step).astype(np.float32)
        assert np.array_equal(message["observation/state"], wanted)
        assert np.array_equal(proprio[step], wanted)
        assert message["prompt"] == TASKS[task].instruction
    angles = np.linalg.norm(proprio[:, 3:6], axis=1)
    assert angles.min() > 3 and proprio[:, 3].min() > 3  # about half a turn, no jump of the sign


@pytest.mark.needs("libero", "openpi", "serve")
def test_a_server_takes_five_actions_of_a_chunk_and_libero_alone():
    with openpi_server(lambda message: {"actions": np.zeros((50, 7))}) as address:
        longer = make_openpi_libero_policy(address, execute=10)
        policy = make_openpi_libero_policy(address)
        assert (policy._chunker.execute, longer._chunker.execute) == (5, 10)
        with pytest.raises(ContractMismatch, match=r"acts in \('LIBERO',\)"):
            connect(policy, gym.make("VLA/Toy-Reach-v0").unwrapped.spec_sheet)
        plain = make_policy(f"openpi:{address}")
        sheet = gym.make("VLA/LIBERO-Goal0-v0", image_size=224).unwrapped.spec_sheet
        with pytest.raises(ContractMismatch, match=r"proprio='native'.*openpi-libero"):
            connect(plain, sheet)
        for each in (plain, longer, policy):
            each.close()


# vla-eval


@pytest.mark.needs("libero", "vla-eval")
def test_a_vla_eval_server_gets_the_native_state_and_the_plain_client_is_refused():
    from tests.policies.test_vla_eval import single

    with vla_eval_client_of(single) as (plain, _):
        policy = make_vla_eval_libero_policy(plain._address)
        env = gym.make("VLA/LIBERO-Goal0-v0", **policy.spec.env_keywords())
        assert policy.spec.proprio == "native" and policy.spec.image_size == 256
        connect(policy, env.unwrapped.spec_sheet)
        sheet = gym.make("VLA/LIBERO-Goal0-v0", image_size=256).unwrapped.spec_sheet
        with pytest.raises(ContractMismatch, match=r"proprio='native'.*vla-eval-libero"):
            connect(plain, sheet)
        policy.close()


# OpenVLA


class Listening:
    """A processor that remembers the pictures it was given."""

    def __init__(self, processor):
        self.processor, self.tokenizer, self.pictures = processor, processor.tokenizer, []

    def __call__(self, *, images, **keywords):
        self.pictures += [np.asarray(row[0]) for row in images]
        return self.processor(images=images, **keywords)


def lanczos3(size, target):
    """Return TensorFlow's weights of antialiased lanczos3, (target, size)."""
    scale = size / target
    centers = (np.arange(target) + 0.5) * scale
    apart = (np.arange(size) + 0.5 - centers[:, None]) / scale
    weights = np.where(np.abs(apart) < 3, np.sinc(apart) * np.sinc(apart / 3), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def scale_by_hand(picture, size=224):
    """JPEG by OpenCV, whose defaults are TensorFlow's; then the filter as its definition says."""
    import cv2

    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    levels = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float64)
    weights = lanczos3(len(picture), size)
    scaled = [weights @ band @ weights.T for band in np.moveaxis(levels, -1, 0)]
    return np.clip(np.round(np.stack(scaled, axis=-1)), 0, 255)


def crop_by_hand(picture, area=0.9):
    """The middle of a picture, as crop_and_resize defines it."""
    from scipy.ndimage import map_coordinates

    size, side = len(picture), area**0.5
    places = (1 - side) / 2 * (size - 1) + np.arange(size) * side
    grid = np.meshgrid(places, places, indexing="ij")
    bands = [map_coordinates(picture[..., c].astype(float), grid, order=1) for c in range(3)]
    return np.floor(np.clip(np.stack(bands, axis=-1) / 255 * 255.5, 0, 255))


@pytest.mark.slow
@pytest.mark.needs("libero", "openvla")
def test_openvla_gets_upstreams_picture_and_moves_upstreams_robot(tmp_path):
    statistics = {"q01": [-0.9] * 6 + [0.0], "q99": [0.8] * 6 + [1.0]}
    statistics["mask"] = [True] * 6 + [False]
    policy = make_openvla_libero_policy(
        save_llava(tmp_path / "model", 224),
        norm_stats={"libero_spatial_no_noops": {"action": statistics}},
        prompt=PROMPT,
    )
    spec = policy.spec
    assert (spec.suites, spec.image_size, spec.image_turn) == (("LIBERO",), 256, "mirrored")
    assert (spec.scale, spec.rotation, spec.gripper) == (None, "axis-angle", "1 opens, 0 closes")
    policy._processor = listening = Listening(policy._processor)
    spoken, predict = [], policy.predict

    def record(*arguments, **keywords):
        actions, state = predict(*arguments, **keywords)
        spoken.append(actions[0])
        return actions, state

    policy.predict = record
    env = gym.make(SUITE.id("Spatial0"), **spec.env_keywords())
    states, _ = play(env, policy)
    env.close()
    executed = np.array(spoken)
    assert np.isin(executed[:, 6], [0, 1]).all()
    executed[:, 6] = -np.sign(2 * executed[:, 6] - 1)  # normalize and invert, as their script does
    seen = play_upstream(tmp_path, "Spatial0", executed)
    assert np.array_equal(states, seen["sim"])
    assert len(listening.pictures) == STEPS + 1
    for step, shown in enumerate(listening.pictures):
        turned = np.ascontiguousarray(seen["agentview_image"][step][::-1, ::-1])
        wanted = crop_by_hand(scale_by_hand(turned))
        apart = np.abs(shown.astype(int) - wanted)
        assert shown.shape == (224, 224, 3) and shown.dtype == np.uint8
        # A level that lies between two may be rounded otherwise.
        assert apart.max() <= 1 and (apart > 0).mean() < 0.01, (step, apart.max())


@pytest.mark.needs("openvla")
def test_recorded_pictures_are_scaled_as_the_filter_says():
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    picture = np.asarray(Image.fromarray(picture).resize((256, 256)))
    found, wanted = _scale_recorded(Image, picture, 224), scale_by_hand(picture)
    assert np.abs(found - wanted).max() <= 1 and (found != wanted).mean() < 0.001


# π0


@pytest.mark.slow
@pytest.mark.needs("libero", "pi0", "openpi")
def test_pi0_in_this_process_gets_what_an_openpi_server_gets(tmp_path):
    from openpi_client.image_tools import resize_with_pad

    statistics = {"state": read_vectors(8, 0), "actions": read_vectors(7, 1)}
    policy = make_pi0_libero_policy(save_pi0(tmp_path), norm_stats=statistics, execute=1)
    spec, size = policy.spec, policy.spec.image_size
    assert spec.env_keywords() == {**OPENPI_SPEC.env_keywords(), "image_size": 256}
    shown, predict = [], policy.predict

    def record(observation, *arguments):
        shown.append(observation)
        return predict(observation, *arguments)

    policy.predict = record
    env = gym.make(SUITE.id("Goal8"), **spec.env_keywords())
    observation, _ = env.reset(seed=0)
    connect(policy, env.unwrapped.spec_sheet).predict(add_batch_axis(observation))
    env.close()
    for camera in ("rgb_primary", "rgb_wrist"):
        turned = np.ascontiguousarray(observation[camera][:, ::-1])
        assert np.array_equal(shown[0][camera][0], resize_with_pad(turned, size, size)), camera
    assert np.array_equal(shown[0]["proprio"][0], observation["proprio"])
