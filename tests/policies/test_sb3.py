"""Models of Stable-Baselines3 as policies: what they read, what is refused, what is returned."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import zipfile

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FilterObservation, FlattenObservation, TransformObservation

import vla_gym
from tests.support import needs
from vla_gym.errors import ContractMismatch, InvalidOption, UnknownName
from vla_gym.evaluation.evaluate import evaluate
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import add_batch_axis, run_episode

pytestmark = needs("sb3")

OFF_POLICY = {"learning_starts": 8, "buffer_size": 32, "batch_size": 4}
ON_POLICY = {"n_steps": 8}


def make(task="Reach", keys=None, **keywords):
    env = gym.make(f"VLA/Toy-{task}-v0", **{"cameras": (), **keywords})
    return env if keys is None else FilterObservation(env, keys)


def sheet(env):
    return env.unwrapped.spec_sheet


def train(algorithm, env, path, policy="MultiInputPolicy", steps=16, **keywords):
    import stable_baselines3

    size = {"PPO": {**ON_POLICY, "batch_size": 8, "n_epochs": 1}, "A2C": ON_POLICY}
    model = getattr(stable_baselines3, algorithm)(
        policy,
        env,
        **{
            "policy_kwargs": {"net_arch": [8]},  # a new one: SB3 writes into it
            "seed": 0,
            "device": "cpu",
            **size.get(algorithm, OFF_POLICY),
            **keywords,
        },
    )
    model.learn(steps)
    model.save(path)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def on_state(folder):
    """A PPO that reads the privileged state by its name, and its file."""
    path = folder / "state.zip"
    return train("PPO", make(state=True, keys=["state"]), path), path


@pytest.fixture(scope="module")
def on_pixels(folder):
    """A PPO that reads the wrist view, proprio and the embedded instruction."""
    env = make(cameras=("wrist",), image_size=36, instruction="embedding")
    return train("PPO", env, folder / "pixels.zip"), folder / "pixels.zip"


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "SAC", "TD3", "DDPG"])
def test_a_loaded_model_acts_as_the_trained_one_whatever_its_algorithm(algorithm, tmp_path):
    env = make(state=True, keys=["proprio", "state"])
    model = train(algorithm, env, tmp_path / "agent")  # SB3 appends .zip
    policy = make_policy(f"sb3:{tmp_path}/agent")
    # A DDPG is saved with the settings of a TD3, its parent class, and acts as one.
    assert type(policy.model).__name__ == {"DDPG": "TD3"}.get(algorithm, algorithm)
    named = make_policy(f"sb3:{tmp_path}/agent.zip", algorithm=algorithm)
    assert type(named.model).__name__ == algorithm
    full = make(state=True)
    seen, _ = full.reset(seed=1)
    for _ in range(3):
        wanted, _ = model.predict(
            {key: seen[key] for key in ("proprio", "state")}, None, None, True
        )
        for loaded in (policy, named):
            actions, _ = connect(loaded, sheet(full)).predict(add_batch_axis(seen))
            assert actions.shape == (1, 7) and actions.dtype == np.float32
            np.testing.assert_array_equal(actions[0], wanted)
        seen, *_ = full.step(wanted)


def test_a_policy_of_the_users_own_class_is_recognised(tmp_path):
    from stable_baselines3.common.policies import MultiInputActorCriticPolicy

    class Mine(MultiInputActorCriticPolicy):
        pass

    train("PPO", make(state=True, keys=["state"]), tmp_path / "mine", policy=Mine)
    assert type(make_policy(f"sb3:{tmp_path}/mine").model).__name__ == "PPO"


def test_the_spec_says_what_the_model_was_trained_with(on_state, on_pixels, tmp_path):
    state = make_policy(f"sb3:{on_state[1]}").spec
    assert (state.cameras, state.image_size, state.state) == ((), None, True)
    assert (state.proprio, state.instruction, state.action_dim) == (None, None, 7)
    assert state.action_mode is None  # seven numbers may mean anything
    pixels = make_policy(f"sb3:{on_pixels[1]}").spec
    assert (pixels.cameras, pixels.image_size, pixels.state) == (("wrist",), 36, False)
    assert (pixels.proprio, pixels.instruction) == ("eef", "embedding")
    train("A2C", make(proprio="joints", instruction="bytes"), tmp_path / "other")
    other = make_policy(f"sb3:{tmp_path}/other").spec
    assert (other.proprio, other.instruction, other.state) == ("joints", "bytes", False)


def test_a_filtered_model_plays_in_the_env_that_shows_everything(on_state):
    model, path = on_state
    env = make(state=True, cameras=("primary",), image_size=32)
    policy = connect(make_policy(f"sb3:{path}"), sheet(env))
    episode = run_episode(env, policy, seed=5)
    seen, _ = env.reset(seed=5)
    total = 0.0
    for _ in range(50):
        action, _ = model.predict({"state": seen["state"]}, deterministic=True)
        seen, reward, *_ = env.step(action)
        total += reward
    assert episode.length == 50
    assert episode.episode_return == total


def test_images_are_given_in_the_layout_that_the_model_was_trained_with(on_pixels):
    model, path = on_pixels
    assert model.observation_space["rgb_wrist"].shape == (3, 36, 36)  # SB3 has transposed them
    env = make(cameras=("primary", "wrist"), image_size=36, instruction="embedding", state=True)
    policy = connect(make_policy(f"sb3:{path}"), sheet(env))
    seen, _ = env.reset(seed=0)
    keys = ("rgb_wrist", "proprio", "instruction")
    batch = {key: np.stack([seen[key]] * 3) for key in keys}  # 3 rows, as many as channels
    batch["rgb_wrist"][1] = 255 - batch["rgb_wrist"][1]
    actions, _ = policy.predict(batch)
    for row in range(3):
        wanted, _ = model.predict({key: batch[key][row] for key in keys}, deterministic=True)
        np.testing.assert_allclose(actions[row], wanted, atol=1e-6)  # sums in another order
    assert np.abs(actions[0] - actions[1]).max() > 1e-4
    assert run_episode(env, policy, seed=0).length == 50


def test_channels_last_stay_last_where_the_model_has_them_so(on_pixels):
    from vla_gym_policies.sb3 import SB3Policy

    env = make(cameras=("wrist",), image_size=16)
    seen, _ = env.reset(seed=0)

    class Stub:
        observation_space = spaces.Dict(rgb_wrist=env.observation_space["rgb_wrist"])
        action_space = env.action_space

        def predict(self, observation, state, episode_start, deterministic):
            np.testing.assert_array_equal(observation["rgb_wrist"][0], seen["rgb_wrist"])
            return np.zeros((1, 7)), ("memory", state)

    policy = SB3Policy(Stub())
    assert policy.spec.image_size == 16
    _, memory = policy.predict(add_batch_axis(seen), "before", np.array([False]))
    assert memory == ("memory", "before")  # a recurrent model's state passes through


def test_drawn_actions_repeat_with_the_seed_and_leave_the_global_generators_alone(on_state):
    import torch

    env = make(state=True)
    policy = connect(make_policy(f"sb3:{on_state[1]}"), sheet(env))
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  the global generators are what is looked at
    random.seed(0)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    make_policy(f"sb3:{on_state[1]}")
    first = run_episode(env, policy, seed=3, deterministic=False)
    run_episode(env, policy, seed=4, deterministic=False)
    again = run_episode(env, policy, seed=3, deterministic=False)
    after = (torch.get_rng_state(), np.random.get_state()[1], random.getstate())  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[2] == after[2]
    np.testing.assert_array_equal(before[1], after[1])
    assert first.episode_return == again.episode_return
    assert first.episode_return != run_episode(env, policy, seed=3).episode_return


@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_state_dependent_noise_repeats_with_the_seed(algorithm, tmp_path):
    env = make(state=True, keys=["state"])
    train(algorithm, env, tmp_path / "sde", use_sde=True)
    full = make(state=True)
    returns = []
    for _ in range(2):  # each load draws a noise of its own
        policy = connect(make_policy(f"sb3:{tmp_path}/sde"), sheet(full))
        returns.append(run_episode(full, policy, seed=0, deterministic=False).episode_return)
    assert returns[0] == returns[1]


def test_the_flat_state_is_understood(tmp_path):
    env = FlattenObservation(make(state=True, keys=["state"]))
    assert env.observation_space.dtype == np.float64  # proprio is float32: this cannot be it
    model = train("SAC", env, tmp_path / "flat", policy="MlpPolicy")
    policy = make_policy(f"sb3:{tmp_path}/flat")
    assert policy.spec.state and policy.spec.cameras == ()
    full = make(state=True)
    seen, _ = full.reset(seed=2)
    actions, _ = connect(policy, sheet(full)).predict(add_batch_axis(seen))
    np.testing.assert_array_equal(actions[0], model.predict(seen["state"], deterministic=True)[0])


def test_a_flat_observation_that_may_be_something_else_is_refused(tmp_path):
    both = FlattenObservation(make(state=True, keys=["proprio", "state"]))
    train("PPO", both, tmp_path / "both", policy="MlpPolicy")
    with pytest.raises(ContractMismatch, match=r"flat observation.* shape \(20,\), .*state has 10"):
        connect(make_policy(f"sb3:{tmp_path}/both"), sheet(make(state=True)))
    # Toy's state and proprio have 10 entries both; only float64 would tell them apart.
    single = TransformObservation(
        make(),
        lambda seen: seen["proprio"],
        spaces.Box(-np.inf, np.inf, (10,), np.float32),
    )
    train("PPO", single, tmp_path / "single", policy="MlpPolicy")
    with pytest.raises(ContractMismatch, match="may be state or proprio"):
        connect(make_policy(f"sb3:{tmp_path}/single"), sheet(make(state=True)))
    image = TransformObservation(
        make(cameras=("wrist",), image_size=36),
        lambda seen: seen["rgb_wrist"],
        spaces.Box(0, 255, (36, 36, 3), np.uint8),
    )
    train("PPO", image, tmp_path / "image", policy="CnnPolicy", policy_kwargs=None)
    with pytest.raises(ContractMismatch, match="names none of the keys"):
        make_policy(f"sb3:{tmp_path}/image")


def test_an_env_that_lacks_what_the_model_reads_is_refused(on_state, on_pixels):
    state, pixels = (make_policy(f"sb3:{found[1]}") for found in (on_state, on_pixels))
    with pytest.raises(ContractMismatch, match="state: the policy reads it"):
        connect(state, sheet(make()))
    with pytest.raises(ContractMismatch, match=r"cameras: the policy reads \['wrist'\]"):
        connect(pixels, sheet(make(instruction="embedding", image_size=36)))
    with pytest.raises(ContractMismatch, match="image_size: the policy has 36, the env 64"):
        connect(pixels, sheet(make(cameras=("wrist",), instruction="embedding", image_size=64)))
    with pytest.raises(ContractMismatch, match="instruction: the policy has 'embedding'"):
        connect(pixels, sheet(make(cameras=("wrist",), image_size=36)))
    with pytest.raises(ContractMismatch, match="action entries: the policy has 7, the env 4"):
        connect(state, sheet(make(state=True, action_mode="native")))


def test_a_state_of_another_suite_is_refused(on_state):
    other = gym.make("VLA/MetaWorld-Reach-v0", state=True, cameras=())  # starts no simulator
    with pytest.raises(ContractMismatch, match=r"state has shape \(10,\).*state has 39"):
        connect(make_policy(f"sb3:{on_state[1]}"), sheet(other))


def test_a_model_of_another_world_is_refused(tmp_path):
    train("PPO", gym.make("CartPole-v1"), tmp_path / "cartpole", policy="MlpPolicy")
    with pytest.raises(ContractMismatch, match=r"action space Discrete\(2\)"):
        make_policy(f"sb3:{tmp_path}/cartpole")
    train("PPO", gym.make("Pendulum-v1"), tmp_path / "pendulum", policy="MlpPolicy")
    with pytest.raises(ContractMismatch, match=r"actions in \[-2, 2\]"):
        make_policy(f"sb3:{tmp_path}/pendulum")
    stacked = gym.wrappers.FrameStackObservation(make(state=True, keys=["state"]), 2)
    train("PPO", stacked, tmp_path / "stacked")
    with pytest.raises(ContractMismatch, match=r"state has shape \(2, 10\), not \(n,\)"):
        make_policy(f"sb3:{tmp_path}/stacked")


def test_a_missing_file_is_named_with_what_is_there(on_state, tmp_path):
    folder = on_state[1].parent
    with pytest.raises(InvalidOption, match=r"does not exist\. Did you mean .*state\.zip"):
        make_policy(f"sb3:{folder}/stat.zip")
    with pytest.raises(InvalidOption, match=f"{folder} is a folder.*state.zip"):
        make_policy(f"sb3:{folder}")
    with pytest.raises(InvalidOption, match=r"does not exist.*Zip files in .*: none"):
        make_policy(f"sb3:{tmp_path}/agent")
    with pytest.raises(InvalidOption, match="nor does the folder"):
        make_policy(f"sb3:{tmp_path}/nowhere/agent")
    for name in ("sb3", "sb3:"):
        with pytest.raises(InvalidOption, match=r'for example "sb3:agent\.zip"'):
            make_policy(name)


def test_a_file_that_is_no_model_is_named_with_what_it_is(tmp_path):
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(InvalidOption, match=r"not a zip file.*5 bytes and begins with b'hello'"):
        make_policy(f"sb3:{tmp_path}/text.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("model.safetensors", b"")
    with pytest.raises(InvalidOption, match=r"it holds model\.safetensors"):
        make_policy(f"sb3:{tmp_path}/other.zip")
    with zipfile.ZipFile(tmp_path / "broken.zip", "w") as archive:
        archive.writestr("data", "{")
        archive.writestr("policy.pth", b"")
    with pytest.raises(InvalidOption, match="its data is not JSON"):
        make_policy(f"sb3:{tmp_path}/broken.zip")


def test_an_algorithm_that_cannot_be_told_must_be_named(on_state, tmp_path):
    def save_with(name, **settings):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("data", json.dumps(settings))
            archive.writestr("policy.pth", b"")
        return f"sb3:{tmp_path / name}"

    recurrent = {"__module__": "sb3_contrib.common.recurrent.policies"}
    file = save_with("recurrent.zip", policy_class=recurrent, clip_range=0.2, vf_coef=0.5)
    with pytest.raises(InvalidOption, match=r"does not tell its algorithm.*common\.recurrent"):
        make_policy(file)
    with pytest.raises(InvalidOption, match=r'algorithm=\.\.\., "sb3_contrib:TQC"'):
        make_policy(save_with("tqc.zip", top_quantiles_to_drop_per_net=2, target_entropy=-7))
    with pytest.raises(InvalidOption, match="it is none of PPO, A2C, SAC, TD3, DDPG"):
        make_policy(save_with("unknown.zip", gamma=0.9))
    with pytest.raises(UnknownName, match=r"no algorithm 'PP0'.*Did you mean 'PPO'"):
        make_policy(f"sb3:{on_state[1]}", algorithm="PP0")
    with pytest.raises(InvalidOption, match="no_such_package cannot be imported"):
        make_policy(f"sb3:{on_state[1]}", algorithm="no_such_package:Agent")
    with pytest.raises(InvalidOption, match=r"SAC cannot load .*saved with Stable-Baselines3 2"):
        make_policy(f"sb3:{on_state[1]}", algorithm="SAC")


def test_a_normalizer_is_used_when_named_and_never_loaded_unasked(tmp_path):
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    def plain():
        return make(
            state=True,
            cameras=("wrist",),
            image_size=36,
            keys=["state", "rgb_wrist"],
        )

    vector = VecNormalize(DummyVecEnv([plain]), norm_obs_keys=["state"])
    model = train("PPO", vector, tmp_path / "agent", steps=64)
    pickled = tmp_path / "agent.vecnormalize.pkl"
    vector.save(pickled)
    seen, _ = plain().reset(seed=7)
    with pytest.warns(UserWarning, match="not used: it is a pickle"):
        without = make_policy(f"sb3:{tmp_path}/agent")
    policy = make_policy(f"sb3:{tmp_path}/agent", normalizer=pickled)
    wanted, _ = model.predict(vector.normalize_obs(seen), deterministic=True)
    np.testing.assert_allclose(policy.predict(add_batch_axis(seen))[0][0], wanted, atol=1e-6)
    assert np.abs(without.predict(add_batch_axis(seen))[0][0] - wanted).max() > 1e-4
    with pytest.raises(InvalidOption, match="does not exist"):
        make_policy(f"sb3:{tmp_path}/agent", normalizer=tmp_path / "none.pkl")
    with pytest.raises(InvalidOption, match="cannot be read"):
        make_policy(f"sb3:{tmp_path}/agent", normalizer=tmp_path / "agent.zip")
    train("PPO", make(state=True, keys=["state"]), tmp_path / "other")
    with pytest.raises(InvalidOption, match="was made for the observation"):
        make_policy(f"sb3:{tmp_path}/other", normalizer=pickled)


@needs("eval")
def test_the_evaluator_makes_the_env_that_the_model_needs(on_pixels, tmp_path):
    without_suffix = f"sb3:{on_pixels[1].with_suffix('')}"
    done = evaluate(
        {
            "agent": without_suffix,
            "with-keywords": functools.partial(make_policy, without_suffix, algorithm="PPO"),
        },
        ["Toy-Reach"],
        episodes=1,
        folder=tmp_path,
        max_steps=5,
        video=False,
    )
    plain, with_keywords = done.records
    assert plain.length == 5 and plain.outcome in ("success", "failure")
    assert plain.protocol["cameras"] == ["wrist"]
    assert plain.protocol["image_size"] == 36
    assert plain.protocol["instruction"] == "embedding"
    assert with_keywords.episode_return == plain.episode_return
    # The file's content is in the protocol: an agent trained anew is another policy.
    digest = hashlib.sha256(on_pixels[1].read_bytes()).hexdigest()[:16]
    name = f"sb3:pixels.zip sha256 {digest}"
    assert plain.protocol["policy_source"] == name
    assert with_keywords.protocol["policy_source"] == (
        f"vla_gym.policy.registry.make_policy({name}, algorithm='PPO')"
    )


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(vla_gym.errors.DependencyNotInstalled, match=r"vla-gym\[sb3\]"):
        make_policy("sb3:agent.zip")
