"""Export: what other programs read back is what the records say."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support import needs
from vla_gym.cli import app
from vla_gym.errors import DependencyNotInstalled
from vla_gym.evaluation.export import (
    CURVE_POINTS,
    flatten,
    send_to_wandb,
    write_csv,
    write_jsonl,
    write_tensorboard,
)
from vla_gym.evaluation.metrics import success_interval, summarize, summarize_chains
from vla_gym.evaluation.records import Record
from vla_gym.evaluation.store import Store, load_records
from vla_gym.evaluation.video import write_video

pytestmark = needs("eval")

PROTOCOL = {
    "simulator": "toy",
    "versions": {"vla-gym": "1", "toy": "2"},
    "cameras": ["primary", "wrist"],
    "keywords": {"split": "test", "state": False},
}


def make_record(policy, task, seed, outcome, **fields):
    played = {} if outcome in ("crashed", "timeout") else {"length": 10 + seed}
    played |= {"episode_return": 0.5 * seed, "env_seconds": 1.0, "policy_seconds": 0.5}
    fields = {"protocol": PROTOCOL, **played, **fields}
    return Record(policy, f"VLA/{task}", seed, seed, outcome, **fields)


def make_records():
    outcomes = ["success", "failure", "success", "success", "crashed", "failure", "timeout"]
    found = [make_record("sb3:runs/a.zip", "Reach-v0", i, o) for i, o in enumerate(outcomes)]
    found += [make_record("zero", "Reach-v0", i, "failure") for i in range(6)]
    found += [make_record("zero", "Reach-v0", i, "success", perturbation="light") for i in (0, 1)]
    lengths = (0, 1, 4, 5, 3)
    for seed, length in enumerate(lengths):
        outcome = "success" if length == 5 else "failure"
        found.append(make_record("zero", "Chain-v0", seed, outcome, chain_length=length))
    return found[::-1]  # as workers end them: in no order


@pytest.fixture
def folder(tmp_path):
    """Return an evaluation with two policies, a crash, a perturbation, chains and a video."""
    path = tmp_path / "evaluation"
    with Store(path) as store:
        store.add_run(seed=0)
        for record in make_records():
            store.append(record)
    return path


def test_a_row_of_csv_has_every_field_of_its_record(folder, tmp_path):
    records = load_records(folder)
    write_csv(records, tmp_path / "new" / "episodes.csv")
    with (tmp_path / "new" / "episodes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records) == 20
    for row, record in zip(rows, records, strict=True):
        assert row["policy"] == record.policy and row["seed"] == str(record.seed)
        assert row["perturbation"] == record.perturbation
        assert row["length"] == ("" if record.length is None else str(record.length))
        assert row["protocol.versions.vla-gym"] == "1"
        assert json.loads(row["protocol.cameras"]) == ["primary", "wrist"]
        assert row["protocol.keywords.state"] == "false"
        assert set(flatten(record)) <= set(row)


def test_a_column_that_only_some_records_have_is_empty_for_the_others(tmp_path):
    records = [
        make_record("a", "Reach-v0", 0, "success", options={"chain": 7}),
        make_record("a", "Reach-v0", 1, "success", instruction='say "hi",\nthen go'),
    ]
    write_csv(records, tmp_path / "episodes.csv")
    with (tmp_path / "episodes.csv").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["options.chain"], second["options.chain"]) == ("7", "")
    assert second["instruction"] == 'say "hi",\nthen go'


def test_lines_of_json_are_the_records(folder, tmp_path):
    records = load_records(folder)
    write_jsonl(records, tmp_path / "episodes.jsonl")
    lines = (tmp_path / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    assert [Record.from_json(line) for line in lines] == records


def read_board(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    board.Reload()
    return board


def read_curve(board, tag):
    return {event.step: event.value for event in board.Scalars(tag)}


@needs("train")
def test_tensorboard_reads_the_score_of_the_first_n_episodes_at_step_n(tmp_path):
    records = make_records()
    first, second = write_tensorboard(records, tmp_path)
    assert (first.name, second.name) == ("sb3_runs_a.zip", "zero")
    board = read_board(first)
    curve = read_curve(board, "success_rate/Reach-v0")
    # success failure success success (crash) failure (timeout), in the order of the seeds
    assert curve == pytest.approx({1: 1, 2: 1 / 2, 3: 2 / 3, 4: 3 / 4, 5: 3 / 5})
    low = read_curve(board, "success_rate_low95/Reach-v0")
    assert low == pytest.approx(
        {n: success_interval(round(n * r), n).low for n, r in curve.items()}
    )
    assert read_curve(board, "mean_steps/Reach-v0")[5] == pytest.approx(
        10 + (0 + 1 + 2 + 3 + 5) / 5
    )
    assert read_curve(board, "crashed/Reach-v0") == {1: 0, 2: 0, 3: 0, 4: 0, 5: 1}
    assert read_curve(board, "timeouts/Reach-v0")[5] == 1

    board = read_board(second)
    assert read_curve(board, "success_rate/Reach-v0")[6] == 0
    assert read_curve(board, "success_rate/Reach-v0/light") == {1: 1, 2: 1}
    (chain,) = summarize_chains(records)
    assert read_curve(board, "average_length/Chain-v0") == pytest.approx({5: chain.mean_length})
    high = read_curve(board, "average_length_high95/Chain-v0")
    assert high == pytest.approx({5: chain.length_interval.high})
    assert read_curve(board, "sr_3/Chain-v0") == pytest.approx({5: 3 / 5})
    assert "success_rate/Chain-v0" not in board.Tags()["scalars"]


def read_text(board, tag):
    (event,) = board.Tensors(tag)
    return event.tensor_proto.string_val[0].decode()


@needs("train")
def test_tensorboard_has_scores_and_protocol_as_text(tmp_path):
    first, second = write_tensorboard(make_records(), tmp_path)
    ends = " to ".join(f"{end:.3f}" for end in success_interval(3, 5))
    row = f"| Reach-v0 | success_rate | 0.600 | {ends} | 5 | 1 | 1 |"
    assert row in read_text(read_board(first), "scores").splitlines()
    text = read_text(read_board(second), "protocol/Reach-v0/light")
    assert "| keywords.split | test |" in text.splitlines()


@needs("train")
def test_tensorboards_hyperparameters_are_policies_and_its_metrics_tasks(tmp_path):
    from tensorboard.plugins.hparams import metadata

    runs = write_tensorboard(make_records(), tmp_path)
    content = read_board(tmp_path).summary_metadata[metadata.EXPERIMENT_TAG].plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    assert {info.name.tag for info in experiment.metric_infos} == {
        "success_rate/Reach-v0",
        "success_rate/Reach-v0/light",
        "average_length/Chain-v0",
    }
    labels = []
    for run in runs:
        board = read_board(run)
        content = board.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
        session = metadata.parse_session_start_info_plugin_data(content)
        labels.append(session.hparams["policy"].string_value)
    assert labels == ["sb3:runs/a.zip", "zero"]


@needs("train")
def test_a_new_export_replaces_our_events_and_nobody_elses(tmp_path):
    records = make_records()
    write_tensorboard(records[:10], tmp_path)
    other = tmp_path / "zero" / "events.out.tfevents.1.machine.1.0"
    other.write_bytes(b"")
    for _ in range(2):
        write_tensorboard(records, tmp_path)
    assert other.exists()
    assert len(list((tmp_path / "zero").iterdir())) == 2
    other.unlink()
    assert len(read_board(tmp_path / "zero").Scalars("success_rate/Reach-v0")) == 6


@needs("train")
def test_policies_whose_folders_would_be_one_get_two(tmp_path):
    labels = ("a/b", "a:b", "A_b", "..")
    records = [make_record(label, "Reach-v0", 0, "success") for label in labels]
    runs = write_tensorboard(records, tmp_path)
    assert len({str(run).lower() for run in runs}) == len(labels)
    assert all(run.parent == tmp_path and run.is_dir() for run in runs)


@needs("train")
def test_a_long_curve_has_a_point_of_its_end_and_not_too_many(tmp_path):
    rng = np.random.default_rng(0)
    count = 3 * CURVE_POINTS + 7
    solved = rng.random(count) < 0.3
    outcomes = np.where(solved, "success", "failure").tolist()
    records = [make_record("zero", "Reach-v0", i, outcome) for i, outcome in enumerate(outcomes)]
    (run,) = write_tensorboard(records, tmp_path)
    curve = read_curve(read_board(run), "success_rate/Reach-v0")
    assert len(curve) == CURVE_POINTS and max(curve) == count
    assert curve == pytest.approx({n: solved[:n].mean() for n in curve})


@needs("train")
def test_a_policy_whose_every_episode_crashed_has_no_rate(tmp_path):
    (run,) = write_tensorboard([make_record("p", "Reach-v0", 0, "crashed")], tmp_path)
    tags = read_board(run).Tags()["scalars"]
    assert sorted(tags) == ["crashed/Reach-v0", "n/Reach-v0", "timeouts/Reach-v0"]


@needs("train")
def test_tensorboard_is_written_without_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from vla_gym.evaluation.export import write_tensorboard\n"
        "from vla_gym.evaluation.records import Record\n"
        "write_tensorboard([Record('p', 'VLA/A-v0', 0, 0, 'success', {})], Path('board'))\n"
        "print(sorted({'torch', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_wandb_gets_a_run_of_each_policy(folder, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb: pip install wandb")
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    (folder / "videos").mkdir()
    write_video(folder / "videos" / "zero.mp4", list(frames), 10.0)
    with Store(folder) as store:
        filmed = next(r for r in load_records(folder) if r.policy == "zero" and r.seed == 0)
        store.add_video(filmed, "videos/zero.mp4")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    records = load_records(folder)
    places = [Path(place) for place in send_to_wandb(records, "robots", folder)]
    assert len(places) == 2
    summary = wait_for_wandb_summary(places[0], "n/Reach-v0")
    (score,) = summarize([r for r in records if r.policy != "zero"])
    assert summary["success_rate/Reach-v0"] == pytest.approx(score.rate)
    assert summary["success_rate_low95/Reach-v0"] == pytest.approx(score.rate_interval.low)
    assert (summary["n/Reach-v0"], summary["crashed/Reach-v0"]) == (5, 1)
    summary = wait_for_wandb_summary(places[1], "sr_3/Chain-v0")
    assert summary["success_rate/Reach-v0/light"] == 1 and summary["sr_3/Chain-v0"] == 0.6
    table = json.loads((places[1] / "files" / summary["episodes/path"]).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert len(rows) == sum(record.policy == "zero" for record in records)
    assert {row["protocol.keywords.split"] for row in rows} == {"test"}
    (video,) = (key for key in summary if key.startswith("video/") and key.endswith("/path"))
    assert video == f"video/{filmed.id.removeprefix('VLA/')}/path"
    copy = places[1] / "files" / summary[video]
    assert copy.read_bytes() == (folder / "videos" / "zero.mp4").read_bytes()


def wait_for_wandb_summary(place, key):
    """Return the summary once its last numbers are there: a process of wandb's writes them."""
    deadline = time.monotonic() + 30
    while key not in (summary := read_wandb_summary(place)):
        assert time.monotonic() < deadline, f"{key} is not among {sorted(summary)}"
        time.sleep(0.2)
    return summary


def read_wandb_summary(place):
    """Return the summary of an offline run, from its records in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    (path,) = place.glob("run-*.wandb")
    content = path.read_bytes()
    position, message, summary = 7, b"", {}  # behind the file's own header
    while position + 7 <= len(content):
        if position % 32768 > 32768 - 7:  # no header fits: the rest of a block is empty
            position += -position % 32768
            continue
        size = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]  # 1: whole; 2, 3, 4: first, middle and last part
        message += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):
            found, message = Message.FromString(message), b""
            for item in (*found.summary.update, *found.history.item):
                key = item.key or "/".join(item.nested_key)
                summary[key] = json.loads(item.value_json)
    return summary


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("wandb", "wandb", ("--wandb", "robots")),
        ("tensorboard", "train", ("--tensorboard", "board")),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    module, extra, arguments, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    found = CliRunner().invoke(app, ["export", str(folder), *arguments])
    assert found.exit_code == 2
    assert f"pip install 'vla-gym[{extra}]'" in " ".join(found.output.split())
    assert not (tmp_path / "board").exists()


@needs("train")
def test_the_command_writes_all_that_it_is_asked_for(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--csv", "a.csv", "--jsonl", "a.jsonl", "--tensorboard", "board"]
    found = CliRunner().invoke(app, ["export", str(folder), *arguments])
    assert found.exit_code == 0, found.output
    wrote = [line.removeprefix("wrote ") for line in found.output.splitlines()]
    assert wrote == ["a.csv", "a.jsonl", "board/sb3_runs_a.zip", "board/zero"]
    assert all(Path(path).exists() for path in wrote)


def test_the_command_says_what_is_missing(folder, tmp_path):
    found = CliRunner().invoke(app, ["export", str(folder)])
    assert found.exit_code == 2 and "nothing to write: choose --csv FILE" in found.output
    (tmp_path / "empty").mkdir()
    found = CliRunner().invoke(app, ["export", str(tmp_path / "empty"), "--csv", "x.csv"])
    assert found.exit_code == 2 and "no episodes in" in found.output


def test_a_missing_package_is_the_error_that_the_function_documents(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(DependencyNotInstalled, match="an export to Weights & Biases"):
        send_to_wandb(load_records(folder), "robots", folder)
