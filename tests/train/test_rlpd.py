"""SAC and TD3 from demonstrations, on the Toy suite and with a small VLA as the encoder."""

from __future__ import annotations

import dataclasses
import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from typer.testing import CliRunner

from tests.data.toy_expert import SolvesEvenSeeds
from tests.evaluation.stand_ins import ReachBall
from tests.support import needs
from vla_gym.cli import app
from vla_gym.collect import collect
from vla_gym.data import Dataset
from vla_gym.embedding import embed
from vla_gym.errors import InvalidOption, UnknownName
from vla_gym.policy import connect, make_policy
from vla_gym.registration import get_suite
from vla_gym.rollout import add_batch_axis, run_episode
from vla_gym.train.rlpd import RLPDConfig, train_rlpd
from vla_gym.train.transitions import Rules, read_transitions

pytestmark = needs("sb3", "data", "eval")

REACH, LIFT = "VLA/Toy-Reach-v0", "VLA/Toy-Lift-v0"
STATE = {"cameras": (), "state": True}
SMALL = {
    **{"hidden": (32, 32), "batch_size": 32, "evaluation_episodes": 3},
    **{"learning_starts": 20, "warm_start": 10},
}


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Return the folder of eight solved episodes of Toy-Reach."""
    folder = tmp_path_factory.mktemp("demos")
    collect([REACH], episodes=8, folder=folder, expert=ReachBall, keywords=STATE)
    return folder


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Return the folder of two episodes, seed 0 solved, seed 1 not; cut off after 30 steps."""
    folder = tmp_path_factory.mktemp("failures")
    collect(
        [REACH],
        episodes=2,
        folder=folder,
        expert=SolvesEvenSeeds,
        keywords={**STATE, "terminate_on_success": False},
        keep_failures=True,
        max_steps=30,
        noise=0.1,
    )
    return folder


def make_env(**keywords):
    return gym.make(REACH, **STATE, instruction="embedding", **keywords)


def read(folder, **rules):
    env = make_env()
    found = read_transitions(Dataset(folder), [REACH], env.observation_space, Rules(**rules))
    env.close()
    return found


def small(demos="", **fields):
    return RLPDConfig(**{"ids": (REACH,), "demonstrations": str(demos), **SMALL, **fields})


# Demonstrations as transitions


def test_a_demonstration_becomes_the_transitions_that_an_agent_would_have_met(demos):
    found, first = read(demos), Dataset(demos).load(0)
    steps = len(first.actions)
    state = first.observations["state"]
    np.testing.assert_allclose(found.observations["state"][:steps], state[:-1], rtol=1e-6)
    np.testing.assert_allclose(found.next_observations["state"][:steps], state[1:], rtol=1e-6)
    np.testing.assert_array_equal(found.actions[:steps], first.actions)
    np.testing.assert_array_equal(found.observations["instruction"][0], embed(first.instruction))
    # Solved by the last step alone: its reward is 1 and nothing follows.
    assert found.rewards[: steps - 1].sum() == 0 and found.dones[: steps - 1].sum() == 0
    assert found.rewards[steps - 1] == 1 and found.dones[steps - 1] == 1
    assert len(found) == Dataset(demos).frames_count


def test_a_demonstration_ends_where_the_envs_rule_ends_an_episode(failures):
    whole = read(failures, terminate_on_success=False)
    solved = Dataset(failures).load(0).successes
    first = int(solved.argmax()) + 1
    assert 0 < first < 30 and len(whole) == 60
    # Cut off at 30 steps, solved or not: the value goes on, so no transition is an end.
    assert whole.dones.sum() == 0
    assert whole.rewards.sum() == solved.sum()
    cut = read(failures, terminate_on_success=True)
    assert len(cut) == first + 30
    assert cut.dones.flatten().nonzero().flatten().tolist() == [first - 1]
    assert cut.rewards.sum() == 1


def test_rewards_are_of_the_asked_kind_and_actions_those_that_were_carried_out(failures):
    demo = Dataset(failures).load(0)
    found = read(failures, reward="native", terminate_on_success=False)
    np.testing.assert_array_equal(found.rewards[:30, 0], demo.rewards)
    assert (demo.rewards[:5] < 0).all()  # minus a distance: no sparse reward
    np.testing.assert_array_equal(found.actions[:30], demo.actions)
    np.testing.assert_array_equal(found.labels[:30], demo.labels)
    assert (demo.actions != demo.labels).any()  # there was noise


def test_transitions_are_drawn_of_each_task_equally_often(demos):
    import torch

    found = read(demos)
    tasks = torch.cat([torch.zeros(10, dtype=torch.long), torch.ones(len(found) - 10).long()])
    lopsided = dataclasses.replace(found, tasks=tasks, rewards=tasks[:, None].float())
    torch.manual_seed(0)
    # 4000 draws of a fair coin: within 0.05 of one half but for one in 10^9.
    assert lopsided.sample(4000).rewards.mean() == pytest.approx(0.5, abs=0.05)


def test_what_does_not_fit_is_refused(demos, tmp_path):
    def refused(match, demonstrations, ids=(REACH,), shape=10, **rules):
        space = spaces.Dict({"state": spaces.Box(-1, 1, (shape,))})
        with pytest.raises(InvalidOption, match=match):
            read_transitions(Dataset(demonstrations), ids, space, Rules(**rules))

    refused(r"no demonstration of VLA/Toy-Lift-v0; it has those of VLA/Toy-Reach", demos, (LIFT,))
    refused(r"'state' .* has the shape \(10,\), that of the env \(9,\)", demos, shape=9)
    refused(r"action_mode='ee_delta', the envs 'native'", demos, action_mode="native")
    blind, sparse = tmp_path / "blind", tmp_path / "sparse"
    common = {"episodes": 1, "expert": ReachBall}
    collect([REACH], folder=blind, keywords={"cameras": ()}, **common)
    refused(r"have no 'state'; record them with `vla-gym collect -k state=true`", blind)
    collect([REACH], folder=sparse, keywords={**STATE, "reward": "sparse"}, **common)
    refused(r"the native reward is not known", sparse, reward="native")


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"algorithm": "DQN"}, UnknownName, "DQN"),
        ({"steps": 0}, InvalidOption, "steps=0"),
        ({"demonstration_share": 1.0}, InvalidOption, r"must be in \[0, 1\)"),
        ({"keywords": {"reward": "sparse"}}, InvalidOption, "follow from other fields"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, error, match):
    with pytest.raises(error, match=match):
        small(**fields)


# Batches


def test_half_of_each_batch_are_demonstrations_and_a_truncated_episode_has_a_value(demos):
    from stable_baselines3.common.buffers import DictReplayBuffer
    from stable_baselines3.common.vec_env import DummyVecEnv

    from vla_gym.train.sb3_parts import MixedBuffer

    envs = DummyVecEnv([lambda: make_env(max_episode_steps=5)])
    online = DictReplayBuffer(50, envs.observation_space, envs.action_space)
    mixed = MixedBuffer(online, read(demos), share=0.25)
    seen, still = envs.reset(), np.zeros((1, 7), np.float32)
    for _ in range(5):
        after, rewards, ends, infos = envs.step(still)
        mixed.add(seen, after, still, rewards, ends, infos)
        seen = after
    assert ends[0] and online.dones[:5].sum() == 1  # the time limit
    batch = mixed.sample(400)
    own, theirs = batch.actions[:300], batch.actions[300:]
    assert (own == 0).all() and (theirs != 0).any(1).all()
    assert batch.dones[:300].sum() == 0
    # One transition in about twenty ends a demonstration.
    assert 0 < batch.dones[300:].sum() == batch.rewards[300:].sum()
    assert batch.observations["state"].shape == (400, 10) == batch.next_observations["state"].shape
    envs.close()


def test_the_one_hot_vector_names_the_task_of_the_nearest_instruction():
    import torch

    from vla_gym.train.sb3_parts import Inputs

    box = spaces.Box(-1, 1, (384,))
    inputs = Inputs(spaces.Dict({"instruction": box, "state": spaces.Box(-9, 9, (2,))}), tasks=2)
    tasks = get_suite("MetaWorld").tasks  # all of their wordings are in the table that ships
    drawer, button = tasks["DrawerOpen"], tasks["ButtonPress"]
    inputs.set_numbers(None, np.stack([embed(t.instruction) for t in (drawer, button)]))
    said = np.stack([embed(t.paraphrases[0]) for t in (button, drawer)])
    seen = inputs(
        {"instruction": torch.from_numpy(said), "state": torch.tensor([[3.0, -40.0], [0.0, 0.0]])}
    )
    assert seen.tolist() == [[0, 1, 3, -10], [1, 0, 0, 0]]


def test_critics_have_layer_norm_and_the_actor_has_none(demos, tmp_path):
    from stable_baselines3 import TD3

    train_rlpd(small(demos, steps=30, critics=3), tmp_path)
    policy = TD3.load(tmp_path / "best.zip").policy
    norms = {
        name: sum("LayerNorm" in type(module).__name__ for module in part.modules())
        for name, part in (("actor", policy.actor), ("critic", policy.critic))
    }
    assert norms == {"actor": 0, "critic": 3 * 2}
    values = policy.critic.features_extractor.state_dict()
    wanted = read(demos).observations["proprio"].mean(0)
    np.testing.assert_allclose(values["proprio_shift"], wanted, atol=1e-6)


def test_the_actor_imitates_as_much_as_it_is_told_to(demos, tmp_path):
    def error(imitation):
        config = small(demos, steps=1, warm_start=300, imitation=imitation)
        run = tmp_path / str(imitation)
        train_rlpd(config, run)
        policy = make_policy(f"sb3:{run / 'best.zip'}")
        found = read(demos)
        seen = {key: found.observations[key].numpy() for key in ("state", "proprio")}
        actions, _ = policy.model.predict(seen, deterministic=True)
        return ((actions - found.labels.numpy()) ** 2).mean()

    assert error(10.0) < 0.5 * error(0.0)


# Whole runs


def test_a_run_goes_on_from_its_last_evaluation(demos, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    lines = []
    train_rlpd(small(demos, steps=40, evaluate_every=20), run)
    before = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    with (run / "metrics.jsonl").open("a") as file:  # what a killed run has logged beyond it
        file.write('{"step": 50, "success": 0.9}\n')
    result = train_rlpd(small(demos, steps=80, evaluate_every=20), run, lines.append)
    assert [line["step"] for line in lines] == [60, 80]
    assert [line["step"] for line in result.metrics] == [0, 20, 40, 60, 80]
    uninterrupted = train_rlpd(small(demos, steps=80, evaluate_every=20), whole).metrics
    assert uninterrupted[-1]["train/n_updates"] == result.metrics[-1]["train/n_updates"]
    assert before == result.metrics[2]
    assert list(tmp_path.glob("*/tensorboard/*"))

    import torch

    latest = max((run / "state").iterdir())
    packed = torch.load(latest, weights_only=True)["buffer"]
    assert packed["pos"] == len(packed["actions"]) == 80  # the experience of both parts
    with pytest.raises(InvalidOption, match=r"another config .*gamma"):
        train_rlpd(small(demos, steps=90, evaluate_every=20, gamma=0.5), run)


def test_a_warm_start_imitates(demos, tmp_path):
    config = small(demos, steps=1, warm_start=600, learning_rate=3e-3, evaluation_episodes=10)
    metrics = train_rlpd(config, tmp_path).metrics
    assert metrics[0]["step"] == 0 and metrics[0]["success"] >= 0.8


def test_tasks_train_together_and_others_are_reported_apart(demos, tmp_path):
    lift = tmp_path / "lift"
    collect([LIFT], episodes=1, folder=lift, expert="random", keep_failures=True, keywords=STATE)
    config = small(lift, ids=(LIFT,), test_ids=(REACH,), steps=40, envs=2, task="one_hot")
    (line,) = [m for m in train_rlpd(config, tmp_path / "run").metrics if m["step"] == 40]
    assert {f"success/{LIFT}", f"test/success/{REACH}", "test/success", "test/interval"} <= set(
        line
    )
    assert line["n"] == line["test/n"] == 3
    with pytest.raises(InvalidOption, match="no demonstration of VLA/Toy-Reach-v0"):
        train_rlpd(small(lift, ids=(LIFT, REACH), steps=10), tmp_path / "other")


@pytest.mark.slow
def test_demonstrations_solve_what_plain_rl_does_not(tmp_path):
    """Sparse reward, 5,000 steps: 100 % (n=50) with 20 demonstrations; without, 6 % after 3,000."""
    folder = tmp_path / "demos"
    common = {"seed": 1000, "expert": ReachBall, "keywords": STATE, "noise": 0.3}
    collect([REACH], episodes=20, folder=folder, **common)

    def solved(share):
        config = RLPDConfig(
            **{"ids": (REACH,), "demonstrations": str(folder), "demonstration_share": share},
            **{"keywords": {"max_episode_steps": 15}, "algorithm": "SAC", "gamma": 0.9},
            **{"steps": 5000, "evaluate_every": 5000, "evaluation_episodes": 50},
            **{"hidden": (64, 64), "updates_per_step": 2, "warm_start": 1000},
            learning_starts=100,
        )
        return train_rlpd(config, tmp_path / f"share-{share}").metrics[-1]["success"]

    shown = solved(0.5)
    assert shown >= 0.8
    assert solved(0.0) <= shown - 0.3


@needs("vla")
def test_an_agent_on_the_features_of_a_vla_plays_from_its_file(demos, tmp_path):
    import torch

    vla = make_policy(
        "vla",
        config={
            **{"cameras": (), "state_dim": 10, "proprio_dim": 10, "width": 16, "chunk": 2},
            **{"fusion": "mlp", "fusion_layers": 1, "attention_heads": 2, "head": "regression"},
            "normalize": "none",
        },
    )
    vla.save(tmp_path / "vla")
    config = small(demos, encoder=f"vla:{tmp_path / 'vla'}", steps=60)
    best = train_rlpd(config, tmp_path / "run").best
    shutil.rmtree(tmp_path / "vla")  # the run is complete without it
    policy = make_policy(f"sb3:{best}")
    assert policy.model.observation_space["feature"].shape == (16,)
    env = gym.make(REACH, **policy.spec.env_keywords())
    batch = add_batch_axis(env.reset(seed=0)[0])
    with torch.no_grad():
        feature = vla.model.encode(batch).numpy()
    wanted, _ = policy.model.predict({"feature": feature}, deterministic=True)
    found, _ = connect(policy, env.unwrapped.spec_sheet).predict(batch)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert run_episode(env, policy, 0).length > 0
    env.close()
    shutil.rmtree(tmp_path / "run" / "encoder")
    with pytest.raises(InvalidOption, match="keep that folder beside the file"):
        make_policy(f"sb3:{best}")


def test_the_command_trains_and_its_file_is_evaluated(demos, tmp_path):
    arguments = ["rlpd", "-e", "Toy-Reach", "-d", str(demos), "-o", str(tmp_path / "run")]
    settings = ["hidden=[16]", "batch_size=16", "evaluation_episodes=2", "learning_starts=10"]
    for setting in settings:
        arguments += ["--set", setting]
    done = CliRunner().invoke(app, [*arguments, "--steps", "40"])
    assert done.exit_code == 0, done.output
    assert "step 40" in done.output and "best.zip" in done.output
    refused = CliRunner().invoke(app, [*arguments, "--set", "gama=1"])
    assert refused.exit_code == 2
