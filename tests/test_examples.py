"""The scripts of docs/examples run as they are, for a handful of steps."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

import vla_gym  # noqa: F401  registers the ids
from tests.support import ROOT, needs
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import run_episode

EXAMPLES = ROOT / "docs" / "examples"
TOY = pytest.param("VLA/Toy-Reach-v0", id="Toy")
METAWORLD = pytest.param("VLA/MetaWorld-Reach-v0", marks=needs("metaworld"), id="MetaWorld")

SMALL = {
    "PPO": {"n_steps": 8, "batch_size": 8, "n_epochs": 1},
    "SAC": {"learning_starts": 4, "batch_size": 4, "buffer_size": 64},
    "TD3": {"learning_starts": 4, "batch_size": 4, "buffer_size": 64},
}


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs the main of a script with arguments and returns its output."""

    def run_main(name, *arguments, **attributes):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for attribute, value in attributes.items():
            monkeypatch.setattr(module, attribute, value)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return run_main


def play(path, env_id):
    """Play an episode of a saved model, as `vla-gym eval -p sb3:path` does."""
    policy = make_policy(f"sb3:{path}")
    env = gym.make(env_id, **policy.spec.env_keywords(), max_episode_steps=5)
    episode = run_episode(env, connect(policy, env.unwrapped.spec_sheet), 0)
    env.close()
    return episode


def actor_of(path, algorithm):
    import stable_baselines3

    model = getattr(stable_baselines3, algorithm).load(path, device="cpu")
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()]), model


@needs("sb3")
@pytest.mark.parametrize("env_id", [TOY, METAWORLD])
@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "TD3"])
def test_stable_baselines3_trains_saves_and_goes_on_from_the_state(
    run, algorithm, env_id, tmp_path
):
    common = ("--algorithm", algorithm, "--env-id", env_id, "--total-timesteps", 16)
    first, second = tmp_path / "first.zip", tmp_path / "second.zip"
    run("sb3_state", *common, "--out", first, PRESETS=SMALL)
    run("sb3_state", *common, "--resume", first, "--out", second, PRESETS=SMALL)
    (before, trained), (after, resumed) = actor_of(first, algorithm), actor_of(second, algorithm)
    assert (trained.num_timesteps, resumed.num_timesteps) == (16, 32)
    assert list(trained.observation_space) == ["state"]
    assert not np.array_equal(before, after)
    assert play(second, env_id).length == 5


@needs("sb3")
@pytest.mark.parametrize("env_id", [TOY, METAWORLD])
@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_stable_baselines3_trains_on_pictures_and_words(run, algorithm, env_id, tmp_path):
    path = tmp_path / "agent.zip"
    run(
        *("sb3_pixels", "--algorithm", algorithm, "--env-id", env_id, "--out", path),
        *("--total-timesteps", 8, "--image-size", 36),
        PRESETS=SMALL,
    )
    _, model = actor_of(path, algorithm)
    keys = {"rgb_primary", "rgb_wrist", "proprio", "instruction"}
    assert set(model.observation_space.spaces) == keys and model.num_timesteps == 8
    assert play(path, env_id).length == 5


def check_lines(output, steps):
    """Each line tells steps, the mean return of ended episodes and a finite loss."""
    lines = re.findall(r"steps (\d+), return (\S+|none ended), loss (\S+)", output)
    assert [int(line[0]) for line in lines] == steps
    assert all(np.isfinite(float(line[2])) for line in lines)
    return [line[1] for line in lines]


@needs("sb3")  # for torch
@pytest.mark.parametrize("env_id", [TOY, METAWORLD])
def test_the_single_file_in_cleanrls_manner_needs_an_id_and_nothing_else(run, env_id):
    output = run(
        *("cleanrl_ppo", "--env-id", f"vla_gym:{env_id}", "--total-timesteps", 48),
        *("--num-envs", 2, "--num-steps", 12, "--num-minibatches", 2, "--update-epochs", 2),
    )
    check_lines(output, [24, 48])


@needs("sb3")
def test_the_single_file_runs_from_the_command_line_without_importing_us():
    source = (EXAMPLES / "cleanrl_ppo.py").read_text()
    assert not re.search(r"^\s*(import|from) vla_gym", source, re.MULTILINE)
    done = subprocess.run(
        [
            *(sys.executable, EXAMPLES / "cleanrl_ppo.py", "--total-timesteps", "512"),
            *("--num-envs", "2", "--num-steps", "256", "--update-epochs", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (mean,) = check_lines(done.stdout, [512])
    assert -100 < float(mean) < 1  # of episodes of the Toy's own reward, minus the distance


@needs("sb3")
def test_its_advantages_are_those_worked_out_by_hand(run):
    import torch

    spec = importlib.util.spec_from_file_location("cleanrl_ppo", EXAMPLES / "cleanrl_ppo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def column(*values):
        return torch.tensor(values, dtype=torch.float64)[:, None]

    # Step 1 cuts an episode off, step 2 only resets, step 3 ends one for good.
    found = module.estimate_advantages(
        rewards=column(1, 2, 0, 4),
        values=column(10, 20, 30, 40),
        terminated=column(0, 0, 0, 1),
        ended=column(0, 1, 0, 1),
        last_value=torch.tensor([50.0], dtype=torch.float64),
        gamma=0.5,
        gae_lambda=0.5,
    )
    cut = 2 + 0.5 * 30 - 20  # the value of the last observation is that of the row after
    first = (1 + 0.5 * 20 - 10) + 0.25 * cut
    last = 4 - 40
    reset = (0 + 0.5 * 40 - 30) + 0.25 * last
    assert found.flatten().tolist() == [first, cut, reset, last]


@needs("torchrl")
@pytest.mark.parametrize("env_id", [TOY, METAWORLD])
def test_torchrl_collects_and_learns(run, env_id):
    output = run(
        *("torchrl_ppo", "--env-id", env_id, "--total-timesteps", 32),
        *("--frames-per-batch", 16, "--update-epochs", 2),
    )
    check_lines(output, [16, 32])


@needs("torchrl")
def test_torchrl_sees_the_words_of_an_env_as_they_are():
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    env = GymWrapper(gym.make("VLA/Toy-Reach-v0", image_size=16))
    check_env_specs(env)
    rollout = env.rollout(3)
    assert rollout["rgb_primary"].shape == (3, 16, 16, 3)
    assert rollout["instruction"] == ["move the gripper to the green ball"] * 3
    env.close()


@needs("tianshou")
@pytest.mark.parametrize("env_id", [TOY, METAWORLD])
def test_tianshou_collects_and_learns(run, env_id):
    before = np.random.get_state()  # noqa: NPY002  # the script seeds the global generator
    try:
        output = run(
            *("tianshou_ppo", "--env-id", env_id, "--total-timesteps", 32),
            *("--steps-per-collect", 16, "--num-envs", 2),
        )
    finally:
        np.random.set_state(before)  # noqa: NPY002
    (best, steps) = re.search(r"best return (\S+) after (\d+) steps", output).groups()
    assert np.isfinite(float(best)) and int(steps) == 32
