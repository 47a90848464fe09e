"""What a trainer draws: balance, augmentation, curriculum; a batch is a function of its step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.stand_ins import ReachBall
from tests.support import check_needs, needs
from vla_gym.collect import collect
from vla_gym.data import Dataset
from vla_gym.errors import InvalidOption, UnknownName
from vla_gym.train.batches import Augmentation, Batches, Windows, split_episodes
from vla_gym.train.curriculum import Curriculum

pytestmark = needs("data")

REACH, LIFT = "VLA/Toy-Reach-v0", "VLA/Toy-Lift-v0"


class Reads:
    """What `Windows` asks of a learner."""

    def __init__(self, image_size=32, history=2, chunk=3, cameras=("primary", "wrist"), state=True):
        from vla_gym import PolicySpec

        self.spec = PolicySpec(cameras=cameras, state=state)
        self.history, self.chunk, self.image_size = history, chunk, image_size


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    check_needs("data")
    found = []
    for task, seed, episodes in (("Toy-Reach", 0, 4), ("Toy-Lift", 5, 2)):
        folder = tmp_path_factory.mktemp("data") / task
        collect([task], expert=ReachBall, episodes=episodes, folder=folder, seed=seed,
                keep_failures=True, keywords={"image_size": 32, "state": True})  # fmt: skip
        found.append(Dataset(folder))
    return found


def open_windows(datasets, **options):
    everything = [list(range(len(dataset))) for dataset in datasets]
    return Windows(datasets, Reads(**options), everything, "memory")


def test_rows_of_several_data_sets_come_out_in_the_order_asked_for(datasets):
    windows = open_windows(datasets)
    assert windows.tasks == [REACH, LIFT]
    first = datasets[0].frames_count
    asked = np.array([first + 1, 0, first, 3, first - 1])
    found = windows.read(asked, None, np.random.default_rng(0))
    numbers = [dataset.numbers for dataset in datasets]
    for row, index in enumerate(asked):
        where, frame = (0, index) if index < first else (1, index - first)
        np.testing.assert_array_equal(found["action"][row, 0], numbers[where]["action"][frame])
        np.testing.assert_array_equal(found["proprio"][row], numbers[where]["proprio"][frame])
        assert found["instruction"][row] == datasets[where].episodes[0].instruction
        picture = datasets[where].frames(store="memory").batch([frame])["rgb_primary"][0, 0]
        np.testing.assert_array_equal(found["rgb_primary"][row, -1], picture)


def test_a_batch_is_a_function_of_seed_rank_and_step(datasets):
    windows = open_windows(datasets)

    def draw(seed, rank, step):
        return Batches(windows, None, 16, seed, rank, Augmentation())[step]

    one, same = draw(1, 0, 7), draw(1, 0, 7)
    assert all(np.array_equal(one[key], same[key]) for key in one)
    for other in (draw(2, 0, 7), draw(1, 1, 7), draw(1, 0, 8)):
        assert not np.array_equal(one["proprio"], other["proprio"])


def test_tasks_are_balanced_by_their_weights(datasets):
    windows = open_windows(datasets, cameras=(), image_size=0)
    frames = np.bincount(windows.task)
    assert frames[1] > 2 * frames[0] or frames[0] > 2 * frames[1]

    def share_of_lift(weights):
        batches = Batches(windows, weights, 500, 0, 0, None)
        texts = [text for step in range(4) for text in batches[step]["instruction"]]
        return np.mean(["cube" in text for text in texts])

    assert share_of_lift({REACH: 1.0, LIFT: 1.0}) == pytest.approx(0.5, abs=0.05)
    assert share_of_lift({REACH: 1.0, LIFT: 0.0}) == 0
    assert share_of_lift(None) == pytest.approx(frames[1] / frames.sum(), abs=0.05)
    with pytest.raises(InvalidOption, match="weight above 0"):
        Batches(windows, {}, 4, 0, 0, None)


def test_pictures_are_resized_once(datasets):
    from PIL import Image

    small = open_windows(datasets, image_size=16)
    found = small.read(np.array([2]), None, np.random.default_rng(0))["rgb_primary"][0, -1]
    whole = datasets[0].frames(store="memory").batch([2])["rgb_primary"][0, 0]
    wanted = np.asarray(Image.fromarray(whole).resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("store", ["packed", "unpacked", "memory"])
def test_every_store_resizes_alike(datasets, tmp_path, store):
    options = {"keys": ["rgb_primary"], "image_size": 16}
    known = datasets[0].frames(store="memory", **options).batch([0, 3])["rgb_primary"]
    for _ in range(2):  # made, and found again
        frames = datasets[0].frames(store=store, cache=tmp_path, **options)
        np.testing.assert_array_equal(frames.batch([0, 3])["rgb_primary"], known)
    whole = datasets[0].frames(store=store, cache=tmp_path, keys=["rgb_primary"])
    assert whole.batch([0])["rgb_primary"].shape[2:] == (32, 32, 3)  # no mix-up in the cache


def test_augmentation_moves_the_frames_of_a_row_together():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, 1, 20, 20, 3)).astype(np.uint8)
    rows = np.repeat(np.repeat(picture, 6, 0), 2, 1)
    moved = Augmentation(shift=0.1, brightness=0, contrast=0).change(rows, rng)
    assert moved.shape == rows.shape
    for row in moved:
        np.testing.assert_array_equal(row[0], row[1])
        # The middle of the picture is somewhere in it, moved by at most 2 pixels.
        places = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(row[0, y : y + 16, x : x + 16], picture[0, 0, 2:18, 2:18])
        ]
        assert len(places) == 1
    assert len({row.tobytes() for row in moved}) > 1


@given(st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 1000))
def test_brightness_and_contrast_keep_the_order_of_levels(brightness, contrast, seed):
    ramp = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 1, 16, 16, 3)
    changed = Augmentation(0, brightness, contrast).change(ramp, np.random.default_rng(seed))
    flat = changed.reshape(-1).astype(int)
    assert (np.diff(flat) >= 0).all()
    middle = flat[128 * 3]
    assert abs(middle - 128) <= 255 * brightness + 2


def test_proprio_noise_is_in_deviations_of_the_data(datasets):
    windows = open_windows(datasets, cameras=(), image_size=0)
    indices = np.zeros(4000, int)
    rng = np.random.default_rng(0)
    clean = windows.read(indices, None, rng)["proprio"]
    noisy = windows.read(indices, Augmentation(proprio_noise=0.5), rng)["proprio"]
    spread = (noisy - clean).std(0)
    np.testing.assert_allclose(spread, 0.5 * windows.deviations["proprio"], rtol=0.1, atol=1e-6)


def test_augmentation_outside_its_range_is_refused():
    with pytest.raises(InvalidOption, match=r"shift=1\.5"):
        Augmentation(shift=1.5)


def test_the_last_episodes_of_each_task_are_held_out(datasets):
    assert split_episodes(datasets[0], 0.25) == ([0, 1, 2], [3])
    assert split_episodes(datasets[0], 0.0) == ([0, 1, 2, 3], [])
    assert split_episodes(datasets[1], 0.9) == ([0], [1])


TASKS = ["a", "b", "c", "d"]
LENGTHS = {"a": 40.0, "b": 10.0, "c": 30.0, "d": 20.0}


def test_no_curriculum_draws_all_tasks_alike():
    assert Curriculum().weights(TASKS, LENGTHS, []) == dict.fromkeys(TASKS, 1.0)


def test_failures_draw_more():
    weights = Curriculum("failures").weights(TASKS, LENGTHS, [{"a": 1.0, "b": 0.5}])
    assert weights == pytest.approx({"a": 0.1, "b": 0.6, "c": 1.1, "d": 1.1})


def test_short_tasks_come_first_and_others_follow_as_success_comes():
    curriculum = Curriculum("horizon", threshold=0.5, patience=3)

    def used(*history):
        weights = curriculum.weights(TASKS, LENGTHS, history)
        return {task for task, weight in weights.items() if weight}

    good, bad = dict.fromkeys(TASKS, 0.8), dict.fromkeys(TASKS, 0.1)
    assert used() == {"b", "d"}
    assert used(bad) == {"b", "d"}
    assert used(good) == {"b", "c", "d"}
    assert used(good, good) == set(TASKS)
    assert used(good, good, good) == set(TASKS)
    assert used(bad, bad, bad) == {"b", "c", "d"}  # patience


def test_what_succeeds_comes_first():
    curriculum = Curriculum("success", threshold=0.9)
    success = {"a": 0.0, "b": 0.2, "c": 0.7, "d": 0.4}
    weights = curriculum.weights(TASKS, LENGTHS, [success])
    assert {task for task, weight in weights.items() if weight} == {"c", "d"}


def test_an_unknown_curriculum_is_refused():
    with pytest.raises(UnknownName, match="'horizon'"):
        Curriculum("random")
