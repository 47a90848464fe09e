"""Behaviour cloning: it learns, it goes on after a kill as if nothing had been, it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.evaluation.stand_ins import ReachBall
from tests.support import ROOT, check_needs, needs
from vla_gym.collect import collect
from vla_gym.data import Dataset, InvalidDataset
from vla_gym.errors import InvalidOption, UnknownName

pytestmark = needs("train", "vla")

FIRST_SEED = 10_000
SHAPE = {
    "vision": "cnn",
    "train_vision": True,
    "vision_size": 32,
    "readout": "keypoints",
    "width": 32,
    "chunk": 2,
    "head": "regression",
    "dropout": 0.1,
}
STATE = {"cameras": (), "state_dim": 1, "width": 64, "chunk": 1, "head": "regression"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of two tasks, 8 demonstrations of one and 4 of the other."""
    check_needs("train", "vla")
    folder = tmp_path_factory.mktemp("data") / "toy"
    options = {"expert": ReachBall, "folder": folder, "seed": FIRST_SEED}
    keywords = {"image_size": 32, "state": True}
    collect(["Toy-Reach"], episodes=8, keywords=keywords, **options)
    collect(["Toy-Lift"], episodes=4, keywords=keywords, keep_failures=True, **options)
    return folder


def configure(folder, out, **changes):
    from vla_gym.train.bc import BCConfig

    fields = {
        "data": (str(folder),),
        "out": str(out),
        "model": SHAPE,
        "steps": 12,
        "batch_size": 8,
        "warmup": 2,
        "checkpoint_every": 4,
        "log_every": 1,
        "eval_episodes": 0,
        "eval_every": 6,
        "trackers": (),
        "threads": 1,
    }
    return BCConfig(**(fields | changes))


def run(config, **options):
    from vla_gym.train.bc import train

    return train(config, **options)


def read_metrics(out):
    """Return the lines of a run without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clock = ("busy", "seconds_per_step")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def weights_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# Learning


def test_it_learns_to_solve_the_task_in_the_env(tmp_path):
    folder = tmp_path / "reach"
    keywords = {"image_size": 16, "state": True}
    collect(["Toy-Reach"], expert=ReachBall, episodes=30, seed=FIRST_SEED, folder=folder,
            keywords=keywords, noise=0.1)  # fmt: skip
    config = configure(
        folder, tmp_path / "run", model=STATE, steps=400, batch_size=64, learning_rate=3e-3,
        eval_episodes=20, eval_every=0, checkpoint_every=400, log_every=100, ema=0.9,
    )  # fmt: skip
    result = run(config)
    assert result.score >= 0.9
    lines = read_metrics(tmp_path / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert lines[-1]["success/VLA/Toy-Reach-v0"] == result.score
    from vla_gym import make_policy

    policy = make_policy(str(result.folder / "best"))
    assert policy.spec.state and policy.spec.cameras == ()


def test_the_checkpoint_knows_its_envs_and_its_data(data, tmp_path):
    from vla_gym_policies.vla.checkpoint import load_checkpoint, read_sheets

    run(configure(data, tmp_path / "run"))
    model = load_checkpoint(tmp_path / "run" / "best")
    dataset = Dataset(data)
    assert model.config.cameras == ("primary", "wrist")
    assert {sheet["id"] for sheet in read_sheets(tmp_path / "run" / "best")} == {
        "VLA/Toy-Reach-v0",
        "VLA/Toy-Lift-v0",
    }
    np.testing.assert_allclose(
        model.statistics.action.mean, dataset.numbers["action"].mean(0), rtol=1e-5, atol=1e-7
    )


def test_a_checkpoint_can_be_trained_on(data, tmp_path):
    run(configure(data, tmp_path / "first"))
    before = weights_of(tmp_path / "first" / "best")
    config = configure(
        data, tmp_path / "more", policy=str(tmp_path / "first" / "best"), model={}, steps=1,
        learning_rate=1e-6, warmup=0, ema=0.0,
    )  # fmt: skip
    run(config)
    after = weights_of(tmp_path / "more" / "last")
    change = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < change < 1e-4
    with pytest.raises(InvalidOption, match="whose shape stands"):
        run(dataclasses.replace(config, model=SHAPE, out=str(tmp_path / "third")))


# Going on


SCRIPT = """
import json, sys

from vla_gym.train.bc import BCConfig, train

if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    fields["data"] = tuple(fields["data"])
    train(BCConfig(**fields))
"""


def start(tmp_path, config):
    """Run a config in another process."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    fields = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ("augmentation", "curriculum")
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, str(script), json.dumps(fields)], env=environment)


def test_a_killed_run_goes_on_as_if_nothing_had_been(data, tmp_path):
    whole = configure(data, tmp_path / "whole", steps=60, eval_every=25, checkpoint_every=10)
    run(whole)
    killed = dataclasses.replace(whole, out=str(tmp_path / "killed"))
    lines = tmp_path / "killed" / "metrics.jsonl"
    for least in (7, 31):  # before a first state, and later
        process = start(tmp_path, killed)
        deadline = time.monotonic() + 120
        while not lines.exists() or lines.read_bytes().count(b"\n") < least:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.wait()
        reached = read_metrics(tmp_path / "killed")[-1]["step"]
        states = [int(p.name.split("-")[1]) for p in (tmp_path / "killed/state").glob("*.pt")]
        assert reached - max(states, default=0) <= 10 + 1
    run(killed)
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    one, two = (weights_of(tmp_path / name / "last") for name in ("killed", "whole"))
    assert all((one[name] == two[name]).all() for name in two)


def test_a_finished_run_is_not_done_again(data, tmp_path):
    config = configure(data, tmp_path / "run")
    first = run(config)
    steps = []
    assert run(config, on_progress=lambda step, numbers: steps.append(step)) == first
    assert steps == []


def test_a_damaged_state_is_refused_and_the_one_before_it_taken(data, tmp_path):
    config = configure(data, tmp_path / "run")
    run(config)
    states = sorted((tmp_path / "run" / "state").glob("*.pt"))
    assert len(states) == 2
    content = bytearray(states[1].read_bytes())
    content[len(content) // 2] ^= 1
    states[1].write_bytes(content)
    with pytest.raises(InvalidOption, match=r"is damaged.*goes on from step 8"):
        run(config)
    states[1].unlink()
    assert run(config).steps == 12


def test_damaged_data_and_checkpoints_are_refused(data, tmp_path):
    import shutil

    copy = shutil.copytree(data, tmp_path / "data")
    path = next((copy / "data").rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidDataset, match="is damaged"):
        run(configure(copy, tmp_path / "run"))
    run(configure(data, tmp_path / "good"))
    weights = tmp_path / "good" / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(InvalidOption, match="is corrupt"):
        run(configure(data, tmp_path / "more", policy=str(tmp_path / "good/best"), model={}))


def test_another_config_in_the_same_folder_is_refused(data, tmp_path):
    config = configure(data, tmp_path / "run", steps=2)
    run(config)
    with pytest.raises(InvalidOption, match=r"learning_rate=0.1 now, 0.0005 then"):
        run(dataclasses.replace(config, learning_rate=0.1))
    run(dataclasses.replace(config, log_every=5))  # changes no weight
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidOption, match="holds no run"):
        run(dataclasses.replace(config, out=str(tmp_path / "other")))


def test_it_stops_early_where_nothing_gets_better(data, tmp_path):
    config = configure(
        data, tmp_path / "run", learning_rate=1e-12, ema=0.0, steps=50, eval_every=2, patience=3
    )
    result = run(config)
    assert result.stopped_early and result.steps < 50
    scores = [-li["validation_loss"] for li in read_metrics(tmp_path / "run") if len(li) == 2]
    assert len(scores) == result.steps // 2
    assert max(scores[:-3]) >= max(scores[-3:])


# What is refused


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"schedule": "step"}, UnknownName, "'cosine'"),
        ({"precision": "int8"}, UnknownName, "'bf16'"),
        ({"trackers": ("printer",)}, UnknownName, "'tensorboard'"),
        ({"steps": 0}, InvalidOption, "steps=0"),
        ({"learning_rate": 0.0}, InvalidOption, "learning_rate=0.0"),
        ({"ema": 1.0}, InvalidOption, "ema=1.0"),
        ({"data": ()}, InvalidOption, "at least one data set"),
    ],
)
def test_wrong_values_are_refused(tmp_path, changes, error, text):
    with pytest.raises(error, match=text):
        configure("data", tmp_path, **changes)


def test_what_cannot_be_trained_is_refused(data, tmp_path):
    with pytest.raises(InvalidOption, match="cannot be trained: it has no model"):
        from vla_gym.train.learner import make_learner

        make_learner("random")


def test_demonstrations_are_no_test_episodes(data, tmp_path):
    config = configure(data, tmp_path, eval_episodes=3, eval_seed=FIRST_SEED - 2)
    with pytest.raises(InvalidOption, match="1 of the 3 episodes of VLA/Toy-Reach-v0"):
        run(config)


def test_what_the_first_evaluation_would_refuse_is_refused_before_training(data, tmp_path):
    config = configure(data, tmp_path / "run", eval_episodes=1, eval_keywords={"imagesize": 32})
    with pytest.raises(TypeError, match="imagesize"):
        run(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_policy_on_the_state_needs_data_with_it(tmp_path):
    collect(["Toy-Reach"], expert=ReachBall, episodes=2, seed=FIRST_SEED,
            folder=tmp_path / "data", keywords={"image_size": 16})  # fmt: skip
    with pytest.raises(InvalidOption, match="collect it with -k state=true"):
        run(configure(tmp_path / "data", tmp_path / "run", model=STATE))


def test_a_loss_that_is_no_number_stops_the_run(data, tmp_path):
    with pytest.raises(InvalidOption, match="lower learning_rate"):
        run(configure(data, tmp_path, learning_rate=1e30, warmup=0, grad_clip=0.0, steps=30))


# Precision and processes


def test_mixed_precision_stays_near_float32(data, tmp_path):
    for precision in ("no", "bf16"):
        run(
            configure(data, tmp_path / precision, precision=precision, model=SHAPE | {"dropout": 0})
        )
    exact, mixed = (
        [line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line]
        for name in ("no", "bf16")
    )
    assert exact != mixed
    np.testing.assert_allclose(mixed, exact, rtol=0.05)


@pytest.mark.slow
def test_two_processes_train_one_model(data, tmp_path):
    """torchrun of the command itself; each process draws its own batches.

    Without GPUs `accelerate launch --num_processes 2` would start one process alone.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["-m", "vla_gym.cli", "train", "-d", str(data), "-o", str(tmp_path / "run")]
    command += ["--steps", "6", "--batch-size", "4", "--eval-episodes", "2", "-w", "1"]
    command += [part for key, value in SHAPE.items() for part in ("-m", f"{key}={value}")]
    command += ["--set", "log_every=1", "--set", "threads=1", "--set", "warmup=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    lines = [li for li in read_metrics(tmp_path / "run") if "loss" in li]
    assert [line["step"] for line in lines] == list(range(1, 7))
    from vla_gym import make_policy

    make_policy(str(tmp_path / "run" / "best"))
    alone = configure(data, tmp_path / "alone", steps=6, batch_size=4, warmup=0, eval_every=0)
    run(alone)
    # The other process's gradients count: the second update is not that of one process.
    one = [line["loss"] for line in read_metrics(tmp_path / "alone") if "loss" in line]
    assert one[0] == pytest.approx(lines[0]["loss"], rel=1e-4)
    assert one[2:] != pytest.approx([line["loss"] for line in lines[2:]], rel=1e-4)


def test_the_command_trains_and_says_where(data, tmp_path):
    from typer.testing import CliRunner

    from vla_gym.cli import app

    arguments = ["train", "-d", str(data), "-o", str(tmp_path / "run"), "--steps", "2"]
    arguments += [part for key, value in SHAPE.items() for part in ("-m", f"{key}={value}")]
    arguments += ["--batch-size", "4", "--eval-episodes", "0", "--set", "augmentation.shift=0.2"]
    arguments += ["--set", "trackers=tensorboard"]  # one of what may be several
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "finished after 2 steps" in result.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["augmentation"]["shift"] == 0.2
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    wrong = CliRunner().invoke(app, [*arguments, "--set", "learning=1"])
    assert wrong.exit_code == 2 and "there is no setting 'learning'" in wrong.output
