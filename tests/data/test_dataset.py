"""LeRobotDataset v3: written, added to, read back, read as windows, refused where damaged."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import needs
from vla_gym.contract import EEF_PROPRIO, ee_delta_entries
from vla_gym.data import Dataset, Demonstration, InvalidDataset, write_dataset
from vla_gym.data import layout as paths
from vla_gym.data.statistics import QUANTILES, count_levels, describe, describe_images
from vla_gym.data.writer import DatasetWriter, encode_episode, load_episode, save_episode
from vla_gym.errors import InvalidOption

pytestmark = needs("data")

SIZE = 16
SHEET = {
    "control_hz": 20.0,
    "robot": "point",
    "action": [{"name": entry.name} for entry in ee_delta_entries(0.05, None)],
    "proprio": [{"name": entry.name} for entry in EEF_PROPRIO],
}


def make(steps=5, seed=0, noisy=False, **changes):
    """Return a demonstration of random numbers and pictures."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
    fields = {
        "id": "VLA/Toy-Reach-v0",
        "action_mode": "ee_delta",
        "instruction": "reach the ball",
        "instructions": ("reach the ball", "go to the ball"),
        "observations": {
            "rgb_primary": rng.integers(0, 256, (steps + 1, SIZE, SIZE, 3), np.uint8),
            "rgb_wrist": rng.integers(0, 256, (steps + 1, SIZE, SIZE, 3), np.uint8),
            "proprio": rng.normal(size=(steps + 1, 10)).astype(np.float32),
            "state": rng.normal(size=(steps + 1, 3)),
        },
        "actions": actions,
        "labels": np.clip(actions + 0.1, -1, 1) if noisy else None,
        "rewards": rng.normal(size=steps).astype(np.float32),
        "successes": np.arange(steps) == steps - 1,
        "success": True,
        "terminated": True,
        "seed": seed,
        "keywords": {"image_size": SIZE},
        "source": "tests",
        "simulator": "toy",
        "versions": {"numpy": np.__version__},
        "spec_sheet": SHEET,
    }
    return Demonstration(**(fields | changes))


@pytest.fixture(scope="module")
def demonstrations():
    return [
        make(5, 0),
        make(3, 1, noisy=True),
        make(1, 2, id="VLA/Toy-Lift-v0", instruction="lift", instructions=(), terminated=False),
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory, demonstrations):
    return write_dataset(demonstrations, tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def folder(written, tmp_path):
    """Return a copy that a test may break."""
    return shutil.copytree(written, tmp_path / "set")


# Writing and reading back


def test_episodes_come_back_bit_for_bit(written, demonstrations):
    dataset = Dataset(written, verify=True)
    assert len(dataset) == 3
    for found, known in zip(dataset.demonstrations(), demonstrations, strict=True):
        assert found.same_as(known)


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4), cut=st.integers(0, 4))
def test_adding_later_gives_the_same_episodes(tmp_path_factory, lengths, cut):
    made = [make(steps, seed) for seed, steps in enumerate(lengths)]
    folder = tmp_path_factory.mktemp("data")
    write_dataset(made[:cut], folder)
    write_dataset(made[cut:], folder)
    dataset = Dataset(folder, verify=True)
    assert all(a.same_as(b) for a, b in zip(dataset.demonstrations(), made, strict=True))
    starts = np.cumsum([0, *lengths])
    assert [e.start for e in dataset.episodes] == starts[:-1].tolist()
    assert dataset.numbers["index"][:, 0].tolist() == list(range(starts[-1]))
    stats = describe(np.concatenate([demo.actions for demo in made]))
    for name, value in stats.items():
        np.testing.assert_allclose(dataset.statistics["action"][name], value, rtol=1e-12)


def test_the_layout_is_that_of_lerobot_v3(written):
    names = {p.relative_to(written).as_posix() for p in written.rglob("*") if p.is_file()}
    assert names == {
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
        "meta/vla_gym.json",
        "meta/final/chunk-000/file-000.parquet",
    }
    info = json.loads((written / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 9, 2)
    assert (info["fps"], info["robot_type"]) == (20, "point")
    features = info["features"]
    assert features["action"] == {
        "dtype": "float32",
        "shape": [7],
        "names": ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"],
    }
    assert features["observation.images.wrist"]["shape"] == [SIZE, SIZE, 3]
    # What LeRobot's policies would take for an action or an observation is one.
    assert {key for key in features if key.startswith("action")} == {"action"}


def test_the_label_is_the_action_and_what_was_done_lies_beside_it(written, demonstrations):
    numbers = Dataset(written).numbers
    noisy = demonstrations[1]
    np.testing.assert_array_equal(numbers["action"][5:8], noisy.labels)
    np.testing.assert_array_equal(numbers["executed_action"][5:8], noisy.actions)
    np.testing.assert_array_equal(numbers["action"][:5], demonstrations[0].actions)


def test_videos_keep_about_the_picture_and_exactly_all_else(tmp_path):
    rows = np.linspace(0, 255, 32)[:, None, None] * np.ones((1, 32, 3))
    smooth = np.stack([np.roll(rows, 3 * i, axis=0) for i in range(6)]).astype(np.uint8)
    known = make(5, observations={"rgb_primary": smooth, "proprio": np.zeros((6, 10))})
    write_dataset([known, known], tmp_path, images="video")
    dataset = Dataset(tmp_path, verify=True)
    found = dataset.load(1)
    np.testing.assert_array_equal(found.actions, known.actions)
    gap = np.abs(found.observations["rgb_primary"].astype(int) - smooth)
    assert gap.mean() < 4
    assert (gap[-1] == 0).all()  # the last one is a PNG
    frames = dataset.frames().batch([7])
    np.testing.assert_array_equal(frames["rgb_primary"][0, 0], found.observations["rgb_primary"][2])


def test_an_episode_waits_on_disk_as_it_was_encoded(tmp_path):
    known = make(4, noisy=True)
    path = tmp_path / "work" / "a.parquet"
    save_episode(encode_episode(known, folder=path.parent, stem="a"), path)
    with DatasetWriter(tmp_path / "set") as writer:
        writer.add(load_episode(path))
    assert Dataset(tmp_path / "set").load(0).same_as(known)


def test_other_features_are_refused_and_named(folder):
    known = make(2, seed=9)
    observations = {k: v for k, v in known.observations.items() if k != "state"}
    with pytest.raises(InvalidDataset, match=r"environment_state: .*there, absent here"):
        write_dataset([make(2, seed=9, observations=observations)], folder)
    assert len(Dataset(folder, verify=True)) == 3


def test_images_are_png_or_video(tmp_path):
    with pytest.raises(InvalidOption, match="images='jpeg'"):
        write_dataset([make()], tmp_path, images="jpeg")


def test_a_killed_commit_leaves_the_data_set_as_it_was_and_is_tidied_up(folder, demonstrations):
    # What a writer leaves that is killed after the data file: no table knows of it.
    stray = folder / paths.data_path(1)
    shutil.copy(folder / paths.data_path(0), stray)
    assert len(Dataset(folder, verify=True)) == 3
    # And one that is killed just before the manifest.
    (folder / paths.INFO).write_text((folder / paths.INFO).read_text() + " ")
    with pytest.raises(InvalidDataset, match=r"info\.json is damaged.*repairs it"):
        Dataset(folder)
    write_dataset([make(2, seed=8)], folder)
    dataset = Dataset(folder, verify=True)
    assert dataset.load(0).same_as(demonstrations[0])
    assert dataset.load(3).same_as(make(2, seed=8))


# Damage


FILES = (
    "meta/info.json",
    "meta/stats.json",
    "meta/tasks.parquet",
    "meta/vla_gym.json",
    "meta/episodes/chunk-000/file-000.parquet",
    "meta/final/chunk-000/file-000.parquet",
    "data/chunk-000/file-000.parquet",
)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_by_name(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidDataset, match=name):
        Dataset(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    if name == "meta/vla_gym.json":  # then it is another program's
        with pytest.raises(InvalidDataset, match=r"no meta/vla_gym\.json"):
            Dataset(folder).load(0)
    else:
        with pytest.raises(InvalidDataset, match=name):
            Dataset(folder)


@pytest.mark.parametrize("name", sorted(set(FILES) - {"meta/vla_gym.json"}))
def test_a_flipped_bit_is_found_by_the_checksum(folder, name):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidDataset, match=name):
        Dataset(folder, verify=True)


def test_an_older_version_is_refused(folder):
    (folder / paths.MANIFEST).unlink()
    info = json.loads((folder / paths.INFO).read_text())
    (folder / paths.INFO).write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(InvalidDataset, match=r"v2\.1; this reads v3"):
        Dataset(folder)


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(InvalidDataset, match=r"info\.json is missing"):
        Dataset(tmp_path)


# Statistics


@given(st.integers(1, 30), st.integers(0, 99))
def test_statistics_of_numbers_are_numpys(count, seed):
    values = np.random.default_rng(seed).normal(size=(count, 3))
    found = describe(values)
    np.testing.assert_allclose(found["mean"], values.mean(axis=0))
    np.testing.assert_allclose(found["std"], values.std(axis=0))
    for name, share in QUANTILES.items():
        np.testing.assert_allclose(found[name], np.quantile(values, share, axis=0))


@given(st.integers(1, 4), st.integers(0, 99))
def test_statistics_of_pictures_are_those_of_their_pixels(count, seed):
    pictures = np.random.default_rng(seed).integers(0, 9, (count, 3, 4, 3), np.uint8)
    pixels = pictures.reshape(-1, 3) / 255
    found = describe_images(count_levels(pictures), count)
    assert found["mean"].shape == (3, 1, 1)
    np.testing.assert_allclose(found["mean"].ravel(), pixels.mean(axis=0))
    np.testing.assert_allclose(found["std"].ravel(), pixels.std(axis=0), atol=1e-12)
    np.testing.assert_array_equal(found["min"].ravel(), pixels.min(axis=0))
    np.testing.assert_array_equal(found["max"].ravel(), pixels.max(axis=0))
    for name, share in QUANTILES.items():
        known = np.quantile(pixels, share, axis=0, method="inverted_cdf")
        np.testing.assert_allclose(found[name].ravel(), known)


# Windows


@pytest.mark.parametrize("store", ["packed", "unpacked", "memory"])
def test_windows_hold_the_past_and_the_future_and_say_what_is_padding(
    written, demonstrations, store, tmp_path
):
    frames = Dataset(written).frames(history=3, future=4, store=store, cache=tmp_path)
    assert len(frames) == 9
    first = demonstrations[0]
    item = frames[1]  # second of five
    assert item["history_is_pad"].tolist() == [True, False, False]
    for key in ("rgb_primary", "proprio", "state"):
        np.testing.assert_array_equal(item[key], first.observations[key][[0, 0, 1]])
    np.testing.assert_array_equal(item["action"], first.actions[1:5])
    assert not item["action_is_pad"].any()
    item = frames[4]  # its last
    np.testing.assert_array_equal(item["action"], first.actions[[4, 4, 4, 4]])
    assert item["action_is_pad"].tolist() == [False, True, True, True]
    np.testing.assert_array_equal(item["rgb_wrist"], first.observations["rgb_wrist"][2:5])
    item = frames[8]  # the only step of another task
    assert (item["instruction"], item["env_index"], item["task_index"]) == ("lift", 1, 1)
    assert (item["episode_index"], item["frame_index"]) == (2, 0)


def test_windows_of_chosen_episodes_and_keys(written, demonstrations):
    frames = Dataset(written).frames(episodes=[2, 1], keys=["proprio"], columns=["next.reward"])
    assert len(frames) == 4
    batch = frames.batch([0, 1])
    assert batch["episode_index"].tolist() == [2, 1]
    assert "rgb_primary" not in batch
    assert batch["next.reward"][1, 0, 0] == demonstrations[1].rewards[0]


def test_windows_survive_a_pickle_and_a_new_data_set_makes_a_new_copy(folder):
    frames = Dataset(folder).frames()
    known = frames[2]["rgb_primary"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(frames))[2]["rgb_primary"], known)
    before = set((folder / ".cache").iterdir())
    write_dataset([make(2, seed=5)], folder)
    np.testing.assert_array_equal(
        Dataset(folder).frames()[9]["rgb_primary"][0],
        make(2, seed=5).observations["rgb_primary"][0],
    )
    after = {p for p in (folder / ".cache").iterdir() if "primary" in p.name}
    assert len(after) == 1 and not after & before


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"history": 0}, "history=0"),
        ({"store": "zip"}, "store='zip'"),
        ({"keys": ["depth"]}, "has no \\['depth'\\]"),
        ({"episodes": [3]}, "none of them \\[3\\]"),
    ],
)
def test_wrong_options_of_windows_are_refused(written, options, text):
    with pytest.raises(InvalidOption, match=text):
        Dataset(written).frames(**options)


@needs("sb3")
def test_a_torch_loader_takes_them(written):
    from torch.utils.data import DataLoader

    loader = DataLoader(Dataset(written).frames(history=2, future=3), batch_size=4, shuffle=True)
    batch = next(iter(loader))
    assert tuple(batch["rgb_primary"].shape) == (4, 2, SIZE, SIZE, 3)
    assert tuple(batch["action"].shape) == (4, 3, 7)
    assert len(batch["instruction"]) == 4


# LeRobot itself


LEROBOT = os.environ.get("LEROBOT_PYTHON")
need_lerobot = pytest.mark.skipif(
    not LEROBOT, reason="LEROBOT_PYTHON is not set: the python of an environment with lerobot 0.4"
)


def run_lerobot(code, tmp_path, *arguments):
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": "",
    }
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [str(LEROBOT), str(script), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@need_lerobot
def test_lerobot_reads_ours(written, demonstrations, tmp_path):
    run_lerobot(
        """
        import sys
        import numpy as np
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        data = LeRobotDataset("local/ours", root=sys.argv[1],
                              delta_timestamps={"action": [0.0, 0.05]})
        rows = [data[i] for i in range(len(data))]
        stats = data.meta.stats
        np.savez(
            sys.argv[2],
            action=np.stack([r["action"] for r in rows]),
            pad=np.stack([r["action_is_pad"] for r in rows]),
            state=np.stack([r["observation.environment_state"] for r in rows]),
            proprio=np.stack([r["observation.state"] for r in rows]),
            pictures=np.stack([r["observation.images.primary"] for r in rows]),
            reward=np.stack([r["next.reward"] for r in rows]),
            tasks=[r["task"] for r in rows],
            mean=stats["action"]["mean"],
            picture_mean=stats["observation.images.primary"]["mean"],
        )
        """,
        tmp_path,
        written,
        tmp_path / "found.npz",
    )
    found = np.load(tmp_path / "found.npz")
    first = demonstrations[0]
    np.testing.assert_array_equal(found["action"][:4, 0], first.actions[:4])
    np.testing.assert_array_equal(found["action"][:4, 1], first.actions[1:5])
    assert found["pad"][:5].tolist() == [[False, False]] * 4 + [[False, True]]
    state = first.observations["state"][:-1].astype(np.float32)  # LeRobot's tensors are float32
    np.testing.assert_array_equal(found["state"][:5], state)
    np.testing.assert_array_equal(found["proprio"][:5], first.observations["proprio"][:-1])
    pictures = np.round(found["pictures"] * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(pictures[:5], first.observations["rgb_primary"][:-1])
    np.testing.assert_array_equal(found["reward"][:5], first.rewards)
    assert found["tasks"].tolist() == ["reach the ball"] * 8 + ["lift"]
    assert found["picture_mean"].shape == (3, 1, 1)


@need_lerobot
def test_ours_reads_lerobots(tmp_path):
    run_lerobot(
        """
        import sys
        import numpy as np
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        features = {
            "observation.state": {"dtype": "float32", "shape": (4,), "names": None},
            "observation.images.primary": {
                "dtype": "image", "shape": (8, 8, 3), "names": ["height", "width", "channels"]},
            "action": {"dtype": "float32", "shape": (7,), "names": None},
        }
        data = LeRobotDataset.create("local/theirs", fps=10, features=features, root=sys.argv[1],
                                     use_videos=False)
        rng = np.random.default_rng(0)
        actions, pictures = [], []
        for episode in range(2):
            for step in range(3 + episode):
                actions.append(rng.uniform(-1, 1, 7).astype(np.float32))
                pictures.append(rng.integers(0, 256, (8, 8, 3), np.uint8))
                data.add_frame({
                    "observation.state": np.zeros(4, np.float32),
                    "observation.images.primary": pictures[-1],
                    "action": actions[-1], "task": f"task {episode}"})
            data.save_episode()
        data.finalize()
        np.savez(sys.argv[2], actions=np.stack(actions), pictures=np.stack(pictures))
        """,
        tmp_path,
        tmp_path / "theirs",
        tmp_path / "known.npz",
    )
    known = np.load(tmp_path / "known.npz")
    dataset = Dataset(tmp_path / "theirs")
    assert [len(episode) for episode in dataset.episodes] == [3, 4]
    frames = dataset.frames(cache=tmp_path / "cache")
    batch = frames.batch(range(7))
    np.testing.assert_array_equal(batch["action"][:, 0], known["actions"])
    np.testing.assert_array_equal(batch["rgb_primary"][:, 0], known["pictures"])
    assert batch["instruction"] == ["task 0"] * 3 + ["task 1"] * 4
    assert dataset.statistics["action"]["mean"].shape == (7,)
