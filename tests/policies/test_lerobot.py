"""LeRobot's policies in their own interpreter, compared with LeRobot called directly over there.

The variable LEROBOT_PYTHON names an interpreter with lerobot 0.4.4. Without it only our side of
the protocol is tested, against real processes of this interpreter.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import venv

import gymnasium as gym
import numpy as np
import pytest
from vla_gym_policies.lerobot import LeRobotWorker, _name_cameras
from vla_gym_policies.lerobot_worker import receive, send
from vla_gym_policies.remote import RemotePolicyError

import vla_gym  # noqa: F401  # registers the ids
from tests.support import read_required
from vla_gym.errors import ContractMismatch, DependencyNotInstalled, InvalidOption, UnknownName
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import run_episode

SIZE, STEPS = 32, 7

MAKE = """
import sys, torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
kind, path = sys.argv[1:]
torch.manual_seed(0)
visual = PolicyFeature(FeatureType.VISUAL, (3, 32, 32))
features = {
    "input_features": {
        "observation.images.primary": visual,
        "observation.images.wrist": visual,
        "observation.state": PolicyFeature(FeatureType.STATE, (10,)),
    },
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))},
    "device": "cpu",
}
if kind == "diffusion":
    config = make_policy_config("diffusion", **features, pretrained_backbone_weights=None,
        crop_shape=None, down_dims=(16, 32), diffusion_step_embed_dim=16, horizon=8,
        n_action_steps=3, num_inference_steps=2, spatial_softmax_num_keypoints=4,
        use_group_norm=True)
else:
    config = make_policy_config("act", **features, pretrained_backbone_weights=None, dim_model=16,
        n_heads=2, dim_feedforward=32, n_encoder_layers=1, n_vae_encoder_layers=1, chunk_size=5,
        n_action_steps=1 if kind == "ensemble" else 3,
        temporal_ensemble_coeff=0.3 if kind == "ensemble" else None)
policy = get_policy_class(config.type)(config)
picture = {"mean": torch.full((3, 1, 1), 0.4), "std": torch.full((3, 1, 1), 0.2),
           "min": torch.zeros(3, 1, 1), "max": torch.ones(3, 1, 1)}
def vector(n):
    return {"mean": torch.linspace(-1, 1, n), "std": torch.linspace(0.5, 2, n),
            "min": torch.linspace(-3, -2, n), "max": torch.linspace(2, 4, n)}
stats = {"observation.images.primary": picture, "observation.images.wrist": picture,
         "observation.state": vector(10), "action": vector(7)}
before, after = make_pre_post_processors(config, dataset_stats=stats)
policy.save_pretrained(path); before.save_pretrained(path); after.save_pretrained(path)
"""

PLAY = """
import sys, numpy as np, torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
path, seen, out = sys.argv[1:]
config = PreTrainedConfig.from_pretrained(path)
policy = get_policy_class(config.type).from_pretrained(path)
before, after = make_pre_post_processors(config, path)
seen, played = np.load(seen), []
for env in range(seen["primary"].shape[1]):  # one after the other, each in a batch of its own
    policy.reset()
    torch.manual_seed(env)
    for step in range(len(seen["primary"])):
        batch = {f"observation.images.{c}":
                 torch.from_numpy(seen[c][step, env]).permute(2, 0, 1).float()[None] / 255
                 for c in ("primary", "wrist")}
        batch["observation.state"] = torch.from_numpy(seen["proprio"][step, env])[None]
        batch["task"] = ["push the ball"]
        played.append(after(policy.select_action(before(batch))).numpy()[0])
np.save(out, np.reshape(played, (seen["primary"].shape[1], -1, 7)))
"""


@pytest.fixture(scope="module")
def python():
    """The interpreter with lerobot; the test is skipped, or fails if it is asked for, without."""
    found = os.environ.get("LEROBOT_PYTHON")
    if not found:
        asked = "lerobot" in read_required()
        (pytest.fail if asked else pytest.skip)(
            "LEROBOT_PYTHON is not set: LeRobot's policies are not tested"
        )
    return found


@pytest.fixture(scope="module")
def folder_of(python, tmp_path_factory):
    """Return kind -> folder of a tiny random policy of that kind, saved by LeRobot itself."""
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            subprocess.run([python, "-c", MAKE, kind, made[kind]], check=True, cwd="/")
        return made[kind]

    return make


def see(count, steps=STEPS):
    """Return what so many envs see in each step, and it under our keys."""
    rng = np.random.default_rng(0)
    seen = {
        "primary": rng.integers(0, 256, (steps, count, SIZE, SIZE, 3), np.uint8),
        "wrist": rng.integers(0, 256, (steps, count, SIZE, SIZE, 3), np.uint8),
        "proprio": rng.normal(size=(steps, count, 10)).astype(np.float32),
    }
    return seen, [
        {
            "rgb_primary": seen["primary"][step],
            "rgb_wrist": seen["wrist"][step],
            "proprio": seen["proprio"][step],
            "instruction": ("push the ball",) * count,
        }
        for step in range(steps)
    ]


def play_directly(python, folder, seen, tmp_path):
    """Return LeRobot's own actions, shape (envs, steps, 7)."""
    np.savez(tmp_path / "seen.npz", **seen)
    arguments = [folder, tmp_path / "seen.npz", tmp_path / "played.npy"]
    subprocess.run([python, "-c", PLAY, *arguments], check=True, cwd="/")
    return np.load(tmp_path / "played.npy")


def take(observation, rows):
    return {
        key: value[rows] if isinstance(value, np.ndarray) else tuple(value[i] for i in rows)
        for key, value in observation.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["act", "ensemble"])
def test_a_batch_acts_as_lerobot_does_in_each_env(kind, python, folder_of, tmp_path):
    seen, observations = see(3)
    wanted = play_directly(python, folder_of(kind), seen, tmp_path)
    policy = make_policy(f"lerobot:{folder_of(kind)}", python=python)
    assert policy.worker.versions["lerobot"] == "0.4.4"
    state = None
    for step, observation in enumerate(observations):
        actions, state = policy.predict(observation, state, np.array([step == 0] * 3))
        assert actions.shape == (3, 7) and actions.dtype == np.float32
        np.testing.assert_allclose(actions, wanted[:, step], atol=1e-4)
    policy.close()


@pytest.mark.parametrize("kind", ["act", "diffusion"])
def test_an_env_that_starts_anew_does_not_disturb_the_others(kind, python, folder_of, tmp_path):
    """Env 1 starts its episode two steps later; LeRobot's own reset() would clear env 0 as well."""
    policy = make_policy(f"lerobot:{folder_of(kind)}", python=python)
    assert (policy._chunker is None) == (kind == "diffusion")
    _, observations = see(2)

    def play(rows, late):
        """Return actions of some envs; where `late`, env 1 begins anew in step 2."""
        state, played = None, []
        for step, observation in enumerate(observations):
            starts = np.array([step == 0 or (late and step == 2 and row == 1) for row in rows])
            policy.set_random_seed(step)  # the draws of a sampler depend on the batch
            actions, state = policy.predict(take(observation, rows), state, starts)
            played.append(actions)
        return np.stack(played, axis=1)

    both, alone = play([0, 1], late=True), play([0], late=False)
    np.testing.assert_allclose(both[0], alone[0], atol=1e-4)
    steady = play([0, 1], late=False)
    assert np.abs(both[1] - steady[1]).max() > 1e-3
    policy.close()


@pytest.mark.slow
def test_a_policy_with_a_history_acts_as_lerobot_does(python, folder_of, tmp_path):
    seen, observations = see(1)
    wanted = play_directly(python, folder_of("diffusion"), seen, tmp_path)
    policy = make_policy(f"lerobot:{folder_of('diffusion')}", python=python)
    policy.set_random_seed(0)
    state = None
    for step, observation in enumerate(observations):
        actions, state = policy.predict(observation, state, np.array([step == 0]))
        np.testing.assert_allclose(actions, wanted[:, step], atol=1e-4)
    policy.close()


def test_it_plays_an_env_and_says_what_it_needs(python, folder_of):
    policy = make_policy(f"lerobot:{folder_of('act')}", python=python, gripper="+1 closes")
    assert policy.spec.cameras == ("primary", "wrist") and policy.spec.action_dim == 7
    env = gym.make("VLA/Toy-Reach-v0", max_episode_steps=4, **policy.spec.env_keywords())
    connected = connect(policy, env.unwrapped.spec_sheet)
    first, again = (run_episode(env, connected, seed=1) for _ in range(2))
    assert first.length == 4 and first.episode_return == again.episode_return
    with pytest.raises(ContractMismatch, match="image_size"):
        connect(policy, gym.make("VLA/Toy-Reach-v0").unwrapped.spec_sheet)
    observation = see(1)[1][0] | {"proprio": np.zeros((1, 7), np.float32)}
    with pytest.raises(ContractMismatch, match=r"observation\.state has 10 entries, the proprio 7"):
        policy.predict(observation)
    policy.close()


def test_a_broken_checkpoint_and_a_killed_worker_are_errors(python, folder_of, tmp_path):
    import shutil

    copy = shutil.copytree(folder_of("act"), tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RemotePolicyError, match=r"at 'open': .*Safetensor"):
        make_policy(f"lerobot:{copy}", python=python)
    policy = make_policy(f"lerobot:{folder_of('act')}", python=python)
    policy.worker._process.kill()
    with pytest.raises(RemotePolicyError, match=r"has ended \(exit code -9\) at 'chunk'"):
        policy.predict(see(1)[1][0])


# Our side of the protocol, without lerobot.


def write_config(folder, images=("observation.images.primary",), shape=(3, 32, 32)):
    features = {key: {"type": "VISUAL", "shape": list(shape)} for key in images}
    (folder / "config.json").write_text(json.dumps({"type": "act", "input_features": features}))


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter with nothing installed, not even NumPy."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    return str(folder / "bin" / "python")


def test_an_interpreter_without_lerobot_is_told_how_to_get_it(tmp_path, bare_python):
    write_config(tmp_path)
    with pytest.raises(DependencyNotInstalled, match=r"bin/python -m pip install 'lerobot==0\.4"):
        make_policy(f"lerobot:{tmp_path}", python=bare_python)


def test_the_worker_does_not_see_our_modules_as_pythons_own(bare_python):
    # Beside the worker's file lie our random.py and lerobot.py.
    worker = LeRobotWorker(bare_python, timeout_s=60)
    assert set(worker.call("open", path="", device="cpu", strict=True)) == {"missing", "python"}
    worker.close()


def test_an_interpreter_that_is_none_is_refused(tmp_path):
    write_config(tmp_path)
    with pytest.raises(InvalidOption, match="python='nowhere/python' is not a program"):
        make_policy(f"lerobot:{tmp_path}", python="nowhere/python")


def test_a_worker_that_dies_hangs_or_fails_is_an_error(tmp_path):
    def pretend(code):
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{code}\n")
        program.chmod(0o755)
        return LeRobotWorker(str(program), timeout_s=0.5)

    dead = pretend("echo no such library; exit 3")
    with pytest.raises(RemotePolicyError, match=r"ended \(exit code 3\)[\s\S]*no such library"):
        dead.call("open", path="", device="cpu", strict=True)
    hanging = pretend("exec sleep 100")
    with pytest.raises(RemotePolicyError, match=r"did not answer 'open' within timeout_s=0\.5"):
        hanging.call("open", path="", device="cpu", strict=True)
    assert hanging._process.poll() is not None  # nothing stays behind
    real = LeRobotWorker(sys.executable, timeout_s=60)
    with pytest.raises(RemotePolicyError, match="at 'fly': AttributeError"):
        real.call("fly")
    real.close()
    real.close()
    assert real._process.returncode == 0


def test_messages_arrive_as_they_were_sent():
    ours, theirs = socket.socketpair()
    rng = np.random.default_rng(0)
    message = {
        "call": "act",
        "task": ["open the drawer", ""],
        "starts": [True, False],
        "pictures": rng.integers(0, 256, (4, 224, 224, 3), np.uint8)[:, ::-1],  # more than a buffer
        "state": rng.normal(size=(2, 3)),
        "empty": np.zeros((0, 7), np.float32),
    }
    sender = threading.Thread(target=send, args=(ours, message))
    sender.start()
    arrived = receive(theirs)
    sender.join()
    assert list(arrived) == list(message)
    for key, value in message.items():
        if isinstance(value, np.ndarray):
            assert arrived[key].dtype == value.dtype and arrived[key].flags.writeable
            np.testing.assert_array_equal(arrived[key], value)
        else:
            assert arrived[key] == value
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)
    theirs.close()


def test_cameras_are_named_and_never_guessed(tmp_path):
    shape = [3, 32, 32]
    own = {"observation.images.wrist": shape, "observation.images.primary": shape}
    assert _name_cameras(own, None, tmp_path) == {
        "wrist": "observation.images.wrist",
        "primary": "observation.images.primary",
    }
    assert _name_cameras(
        {"observation.image": shape, "observation.state": [2]}, None, tmp_path
    ) == {"primary": "observation.image"}
    foreign = {"observation.images.image": shape, "observation.images.image2": shape}
    with pytest.raises(InvalidOption, match=r"cameras=\{'primary': 'observation.images.image'"):
        _name_cameras(foreign, None, tmp_path)
    chosen = {"wrist": "observation.images.image2"}
    assert _name_cameras(foreign, chosen, tmp_path) == chosen
    with pytest.raises(InvalidOption, match=r"names observation\.images\.top, which"):
        _name_cameras(foreign, {"primary": "observation.images.top"}, tmp_path)


def test_faults_of_a_folder_are_named(tmp_path):
    with pytest.raises(InvalidOption, match="needs the folder of a checkpoint"):
        make_policy("lerobot")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidOption, match="no input_features"):
        make_policy(f"lerobot:{tmp_path}")
    write_config(tmp_path, shape=(3, 480, 640))
    with pytest.raises(InvalidOption, match=r"640 x 480 pixels.*image_size="):
        make_policy(f"lerobot:{tmp_path}")
    write_config(tmp_path)
    with pytest.raises(UnknownName, match="'griper'"):
        make_policy(f"lerobot:{tmp_path}", griper="+1 opens")
