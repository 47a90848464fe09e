"""Minari data sets, and every way from one form to another."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.data.test_dataset import make
from tests.data.test_rlbench_demos import make_frame, write_episode
from tests.support import needs
from vla_gym.cli import app
from vla_gym.data import (
    Dataset,
    InvalidDataset,
    convert,
    read_any,
    read_minari,
    write_dataset,
    write_minari,
)
from vla_gym.errors import InvalidOption, UnknownName

pytestmark = needs("data")

LIFT = {"id": "VLA/Toy-Lift-v0", "instruction": "lift", "instructions": ()}


@pytest.fixture
def demonstrations():
    return [make(4, 0), make(3, 1, noisy=True, terminated=False), make(2, 2, **LIFT)]


def same(found, known):
    found, known = list(found), list(known)
    return len(found) == len(known) and all(a.same_as(b) for a, b in zip(found, known, strict=True))


def test_minari_gives_back_all_bit_for_bit(tmp_path, demonstrations):
    reach, lift = write_minari(demonstrations, tmp_path)
    assert reach == tmp_path / "Toy-Reach" / "expert-v0"
    assert same(read_minari(reach), demonstrations[:2])
    assert same(read_minari(lift / "data"), demonstrations[2:])


def test_actions_survive_the_way_through_every_form(tmp_path, demonstrations):
    write_dataset(demonstrations[:2], tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", "minari")
    convert(tmp_path / "b" / "Toy-Reach" / "expert-v0", tmp_path / "c", "npz")
    convert(tmp_path / "c", tmp_path / "d", "lerobot")
    assert same(Dataset(tmp_path / "d", verify=True).demonstrations(), demonstrations[:2])


def test_a_minari_data_set_is_not_overwritten_and_has_a_version(tmp_path, demonstrations):
    write_minari(demonstrations, tmp_path)
    with pytest.raises(InvalidOption, match="holds a data set"):
        write_minari(demonstrations, tmp_path)
    with pytest.raises(InvalidOption, match="must be a name with a version"):
        write_minari(demonstrations, tmp_path, name="expert")


def test_minari_refuses_other_spaces(tmp_path):
    other = make(2, 1)
    observations = {k: v for k, v in other.observations.items() if k != "state"}
    with pytest.raises(InvalidDataset, match="other spaces than the first"):
        write_minari([make(2, 0), make(2, 1, observations=observations)], tmp_path)


@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
def test_a_damaged_minari_file_is_refused_by_name(tmp_path, demonstrations, name):
    folder = write_minari(demonstrations[:1], tmp_path)[0]
    path = folder / "data" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidDataset, match=name):
        list(read_minari(folder))


def test_minari_itself_reads_ours(tmp_path, demonstrations, monkeypatch):
    minari = pytest.importorskip("minari", minversion="0.5.4")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    keywords = {"image_size": 32, "state": True}
    rng = np.random.default_rng(0)
    big = {
        "rgb_primary": rng.integers(0, 256, (5, 32, 32, 3), np.uint8),
        "rgb_wrist": rng.integers(0, 256, (5, 32, 32, 3), np.uint8),
        "proprio": rng.normal(size=(5, 10)).astype(np.float32),
        "state": rng.normal(size=(5, 10)),
    }
    known = make(4, 0, observations=big, keywords=keywords)
    write_minari([known], tmp_path)
    dataset = minari.load_dataset("Toy-Reach/expert-v0")
    episode = dataset[0]
    np.testing.assert_array_equal(episode.actions, known.actions)
    np.testing.assert_array_equal(episode.rewards, known.rewards)
    for key, values in big.items():
        np.testing.assert_array_equal(episode.observations[key], values)
    assert episode.observations["instruction"] == ["reach the ball"] * 5
    assert episode.terminations.tolist() == [False, False, False, True]
    env = dataset.recover_environment()
    assert env.observation_space == dataset.observation_space
    assert env.action_space == dataset.action_space
    env.close()


def test_what_minari_itself_has_recorded_is_read(tmp_path, monkeypatch):
    import h5py

    # By hand, as its collector writes it (that one needs jax): JPEG, no header of ours.
    from PIL import Image

    folder = write_minari([make(2, 0)], tmp_path)[0] / "data"
    metadata = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(metadata | {"jpeg_encoding": True}))
    import io

    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(buffer, "JPEG")
    packed = np.frombuffer(buffer.getvalue(), np.uint8)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        group = file["episode_0"]
        del group.attrs["vla_gym"]
        group.attrs["options/goal"] = 3
        for key in ("rgb_primary", "rgb_wrist"):
            del group[f"observations/{key}"]
            group[f"observations/{key}"] = np.stack([packed] * 3)
    (found,) = read_minari(folder)
    known = make(2, 0)
    np.testing.assert_array_equal(found.actions, known.actions)
    assert (found.id, found.seed, found.options) == (known.id, 0, {"goal": 3})
    assert found.keywords == {"image_size": 16}
    assert np.abs(found.observations["rgb_wrist"].astype(int) - 200).max() <= 1


def test_rlbenchs_stored_episodes_become_a_data_set(tmp_path):
    poses = [(0.3, 0.0, 1.0 + 0.005 * i, 1.0, 0.0, 0.0, 0.0) for i in range(4)]
    for number in range(2):
        write_episode(tmp_path / "rlbench", [make_frame(pose) for pose in poses], number=number)
    done = CliRunner().invoke(
        app, ["convert", str(tmp_path / "rlbench"), str(tmp_path / "set"), "-k", "state=true"]
    )
    assert done.exit_code == 0, done.output
    dataset = Dataset(tmp_path / "set", verify=True)
    known = read_any(tmp_path / "rlbench", state=True)
    assert same(dataset.demonstrations(), known)
    assert dataset.env_ids == ["VLA/RLBench-ReachTarget-v0"]
    assert [len(e) for e in dataset.episodes] == [3, 3]


def test_what_is_no_data_set_is_refused(tmp_path, demonstrations):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidDataset, match="holds no demonstrations"):
        read_any(tmp_path / "empty")
    with pytest.raises(UnknownName, match="rlds"):
        convert(tmp_path / "empty", tmp_path / "b", "rlds")
    write_dataset(demonstrations[:1], tmp_path / "a")
    with pytest.raises(InvalidOption, match="for RLBench's episodes only"):
        read_any(tmp_path / "a", beyond="clip")
    shutil.rmtree(tmp_path / "a" / "meta" / "final")
    with pytest.raises(InvalidDataset, match=r"meta/final/.* is missing"):
        read_any(tmp_path / "a")
