"""Runs of RL fine-tuning: they improve a policy, go on after a cut, and refuse what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import vla_gym  # noqa: F401  registers the ids
from tests.support import needs
from tests.train.rl_support import LIFT, PIXELS, REACH, clone_reacher, make_vla
from vla_gym.errors import ContractMismatch, InvalidOption, UnknownName
from vla_gym.train.rl import FinetuneConfig, finetune

pytestmark = needs("vla", "sb3", "train", "eval")

TINY = {
    "steps": 96,
    "envs": 4,
    "workers": 1,
    "max_steps": 6,
    "rollout": 16,
    "batch": 8,
    "epochs": 2,
    "warmup": 1,
    "groups": 2,
    "group": 4,
    "eval_every": 48,
    "eval_episodes": 2,
}


@pytest.fixture(scope="module")
def slow_reacher(tmp_path_factory):
    """A policy that was shown a slow hand, so that it often comes too late."""
    return clone_reacher(tmp_path_factory.mktemp("bc") / "slow", speed=0.3)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Pixel policies, by the length of their history."""
    folder = tmp_path_factory.mktemp("bc")
    for history in (1, 2):
        make_vla(**PIXELS, history=history).save(folder / f"{history}")
    return folder


def config(checkpoint, out, **fields):
    return FinetuneConfig(str(checkpoint), **{"ids": (REACH,), "out": str(out), **TINY, **fields})


def lines_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_slow_policy_learns_to_come_in_time(slow_reacher, tmp_path, algorithm):
    """Success within 10 steps is all that it is told, and it plays what it has learned."""
    from vla_gym.evaluation.evaluate import evaluate

    result = finetune(
        config(
            slow_reacher,
            tmp_path / "run",
            algorithm=algorithm,
            steps=12_000,
            envs=32,
            max_steps=10,
            std=0.2,
            learning_rate=1e-3,
            rollout=512,
            batch=256,
            epochs=8,
            groups=32,
            group=8,
            kl=0.0,
            target_kl=0.1,
            eval_every=12_000,
            eval_episodes=100,
        )
    )
    assert result.start.rate < 0.7  # 0.57 or 0.6: sums round otherwise on another processor
    assert result.last.interval.low > result.start.interval.high + 0.1

    # The evaluator, which makes envs and policy anew and acts step by step, finds the same.
    found = evaluate(
        {"tuned": str(result.folder / "last"), "cloned": slow_reacher},
        [REACH],
        episodes=100,
        seed=10_000,
        folder=tmp_path / "eval",
        max_steps=10,
        video=False,
    )
    rates = {
        policy: np.mean([r.outcome == "success" for r in found.records if r.policy == policy])
        for policy in ("tuned", "cloned")
    }
    assert rates == pytest.approx({"tuned": result.last.rate, "cloned": result.start.rate})


CASES = [
    pytest.param({"train": "all", "critic": "shared"}, id="ppo-all-shared"),
    pytest.param({"train": "frozen-vision"}, id="ppo-frozen-state"),
    pytest.param({"train": "head", "critic": "feature", "reward": "native"}, id="ppo-head-native"),
    pytest.param({"train": "lora", "kl": 0.0}, id="ppo-lora"),
    pytest.param({"algorithm": "grpo", "train": "lora"}, id="grpo-lora"),
]


@pytest.mark.parametrize("history", [1, 2])
@pytest.mark.parametrize("fields", CASES)
def test_a_run_from_pixels_leaves_checkpoints_numbers_and_a_state(
    untrained, tmp_path, fields, history
):
    from vla_gym import make_policy

    seen = []
    out = tmp_path / "run"
    ids = (REACH, LIFT)
    fields = {**fields, "keywords": {"image_size": 32}, "ids": ids}
    result = finetune(config(untrained / f"{history}", out, **fields), seen.append)
    assert result.last.step >= 96
    assert set(result.last.rates) == set(ids)
    assert result.last.n == 4
    assert next(p.evaluated.step for p in seen if p.evaluated) == 0
    lines = lines_of(out)
    assert all({"step", "time"} <= line.keys() for line in lines)
    assert all(np.isfinite(line.get("std", 1.0)) for line in lines)
    assert list((out / "tensorboard").iterdir())
    for name in ("best", "last"):
        assert make_policy(str(out / name)).spec.cameras == ("primary", "wrist")
    sheets = json.loads((out / "last" / "spec_sheet.json").read_text())
    assert [sheet["id"] for sheet in sheets] == list(ids)


def weights(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_cut_run_goes_on_from_its_last_evaluation(slow_reacher, tmp_path, algorithm):
    class Cut(Exception):
        pass

    def cut(progress):
        if progress.step >= 72 and progress.evaluated is None:
            raise Cut

    out = tmp_path / "run"
    the_config = config(slow_reacher, out, algorithm=algorithm, steps=200, eval_every=48)
    with pytest.raises(Cut):
        finetune(the_config, cut)
    at = max(line["step"] for line in lines_of(out) if "success" in line)
    assert at >= 48
    then = weights(out / "last")
    steps = []
    result = finetune(the_config, lambda progress: steps.append(progress.step))
    assert steps[0] > at  # it did not begin anew
    assert result.last.step >= 200
    now = weights(out / "last")
    if algorithm == "ppo":  # it has gone on learning; a group of GRPO may all fail
        assert any(not np.array_equal(now[name], then[name]) for name in now)
    logged = [line["step"] for line in lines_of(out)]
    assert logged == sorted(logged)
    # Once it is finished nothing is done any more, and its result is still there.
    steps.clear()
    again = finetune(the_config, lambda progress: steps.append(progress.step))
    assert again == result
    assert not steps


def test_the_actor_stands_still_while_the_critic_warms_up(slow_reacher, tmp_path):
    out = tmp_path / "run"
    finetune(config(slow_reacher, out, warmup=100, critic="shared"))
    before, after = weights(Path(slow_reacher)), weights(out / "last")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    finetune(config(slow_reacher, tmp_path / "other", warmup=0, critic="shared"))
    after = weights(tmp_path / "other" / "last")
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_each_stretch_of_training_and_each_seed_has_new_episodes():
    """An evaluation in between leaves the envs' random streams in the same place each time."""
    from vla_gym.train.actor import Actor
    from vla_gym.train.chunk_env import make_chunk_envs, play
    from vla_gym.train.ppo import SeenEnvs

    policy = make_vla()
    actor = Actor(policy, train="all", execute=1, std=0.1)
    envs = make_chunk_envs(
        [REACH], 2, cameras=(), image_size=32, history=1, execute=1, workers=1, state=True,
        max_episode_steps=1,
    )  # fmt: skip
    starts = []
    for seed in (0, 1):
        seen = SeenEnvs(envs, actor, seed)
        for _ in range(2):
            play(envs, [[10], [11]], lambda o: (np.zeros((2, 7), np.float32), [None] * 2))
            seen.restart()
            starts += [tuple(row) for row in seen.reset()["privileged"]]
    envs.close()
    assert len(set(starts)) == len(starts) == 8


def test_a_large_weight_of_the_divergence_holds_the_policy_back(slow_reacher, tmp_path):
    fields = {"steps": 600, "warmup": 0, "learning_rate": 1e-3, "target_kl": None}
    far = {}
    for kl in (1e-6, 10.0):
        out = tmp_path / f"{kl}"
        finetune(config(slow_reacher, out, kl=kl, eval_every=600, rollout=64, **fields))
        far[kl] = [line["kl_to_start"] for line in lines_of(out) if "kl_to_start" in line][-1]
    assert far[10.0] < 0.2 * far[1e-6]


def test_advantages_are_within_groups():
    from vla_gym.train.grpo import find_advantages

    # Group 0: 1, 0, 0, 0: mean 1/4, deviation sqrt(3)/4. Group 1: all alike. Group 2: 1, 0.
    groups = [0, 0, 0, 0, 1, 1, 2, 2]
    successes = [True, False, False, False, True, True, True, False]
    third = 1 / np.sqrt(3)
    expected = [3 * third, -third, -third, -third, 0, 0, 1, -1]
    assert np.allclose(find_advantages(groups, successes), expected)


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"algorithm": "sac"}, UnknownName, "grpo"),
        ({"train": "vision"}, UnknownName, "frozen-vision"),
        ({"std": 0.0}, InvalidOption, "std=0.0 must be a number above 0"),
        ({"envs": 0}, InvalidOption, "envs=0 must be a whole number, at least 1"),
        ({"keywords": {"cameras": ()}}, InvalidOption, "'cameras' follows from the policy"),
        ({"keywords": {"reward": "native"}}, InvalidOption, "is the setting reward="),
        ({"ids": "Toy-Reach"}, InvalidOption, "must be a list"),
        ({"gamma": 1.5}, InvalidOption, r"gamma=1.5 must be in \(0, 1\]"),
    ],
)
def test_a_wrong_setting_is_named(fields, error, text):
    with pytest.raises(error, match=text):
        config("x", "y", **fields)


def test_a_policy_that_does_not_fit_is_refused(slow_reacher, tmp_path):
    with pytest.raises(InvalidOption, match="envs=3 cannot be spread evenly over 2 tasks"):
        finetune(config(slow_reacher, tmp_path / "uneven", ids=(REACH, LIFT), envs=3))
    with pytest.raises(InvalidOption, match="cannot be trained: it has no model"):
        finetune(config("random", tmp_path / "a"))
    make_vla(cameras=(), state_dim=10, action_dim=14).save(tmp_path / "two-arms")
    with pytest.raises(ContractMismatch, match="action entries"):
        finetune(config(tmp_path / "two-arms", tmp_path / "b"))
    finetune(config(slow_reacher, tmp_path / "run"))
    with pytest.raises(InvalidOption, match="another config"):
        finetune(config(slow_reacher, tmp_path / "run", std=0.3))


def test_the_command_finetunes(slow_reacher, tmp_path):
    from typer.testing import CliRunner

    from vla_gym.cli import app

    given = [f"--set={key}={value}" for key, value in TINY.items() if key not in ("steps", "envs")]
    out = tmp_path / "run"
    command = ["finetune", "-c", slow_reacher, "-e", "Toy-Reach", "-o", str(out), "--steps=96"]
    result = CliRunner().invoke(app, [*command, "--envs=4", *given])
    assert result.exit_code == 0, result.output
    assert "step 0:" in result.output
    assert "n = 2" in result.output
    assert (out / "best" / "config.json").exists()
    result = CliRunner().invoke(app, [*command, "--envs=4", *given, "--set=strd=1"])
    assert result.exit_code == 2
    assert "'strd'" in result.output
