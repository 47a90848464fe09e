"""Demonstrations in memory and on disk."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_gym.data import (
    Demonstration,
    InvalidDemonstration,
    load_demonstration,
    load_demonstrations,
    save_demonstration,
)
from vla_gym.data import demos as module


def make(steps=3, seed=0, **changes):
    """Return a small demonstration with pictures, proprio and state."""
    rng = np.random.default_rng(seed)
    fields = {
        "id": "VLA/Toy-Reach-v0",
        "action_mode": "ee_delta",
        "instruction": "reach the goal",
        "observations": {
            "rgb_primary": rng.integers(0, 256, (steps + 1, 4, 5, 3), np.uint8),
            "proprio": rng.normal(size=(steps + 1, 10)).astype(np.float32),
            "state": rng.normal(size=(steps + 1, 2)),
        },
        "actions": rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        "rewards": np.arange(steps, dtype=np.float32),
        "successes": np.arange(steps) == steps - 1,
        "success": True,
        "seed": seed,
    }
    return Demonstration(**(fields | changes))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
words = st.text([chr(c) for c in range(32, 127)], max_size=256)


@given(
    steps=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
    options=st.dictionaries(st.text(max_size=3), plain, max_size=3),
    texts=st.lists(words, min_size=1, max_size=3),
    cut=st.booleans(),
    source=st.text(max_size=10),
)
def test_a_file_gives_back_what_was_saved(
    tmp_path_factory, steps, seed, options, texts, cut, source
):
    demo = make(
        steps,
        seed,
        options=options,
        instruction=texts[-1],
        instructions=tuple(texts),
        terminated=cut,
        source=source,
        observations={
            "rgb_wrist": np.full((steps + 1, 2, 2, 3), seed % 256, np.uint8),
            "proprio": np.zeros((steps + 1, 3), np.float32),
            "touch": np.arange(steps + 1, dtype=np.int16),
        },
    )
    path = save_demonstration(demo, tmp_path_factory.mktemp("demo") / "a.npz")
    loaded = load_demonstration(path)
    assert loaded.same_as(demo)
    for field in dataclasses.fields(Demonstration):
        ours, theirs = getattr(demo, field.name), getattr(loaded, field.name)
        if field.name == "observations":
            assert list(ours) == list(theirs) == ["proprio", "rgb_wrist", "touch"]
            for key in ours:
                np.testing.assert_array_equal(ours[key], theirs[key])
                assert ours[key].dtype == theirs[key].dtype
        elif isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
        else:
            assert ours == theirs
            assert type(ours) is type(theirs)


def test_the_same_demonstration_gives_the_same_bytes(tmp_path):
    first = save_demonstration(make(), tmp_path / "first.npz")
    assert save_demonstration(make(), tmp_path / "second.npz").read_bytes() == first.read_bytes()


def test_demonstrations_that_differ_in_one_bit_are_not_the_same():
    actions = make().actions.copy()
    actions[0, 0] = np.nextafter(actions[0, 0], np.float32(0))
    assert make().same_as(make())
    assert not make().same_as(make(actions=actions))
    assert not make().same_as(make(source="elsewhere"))


def test_a_file_opens_with_numpy_alone(tmp_path):
    path = save_demonstration(make(), tmp_path / "a.npz")
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["actions"], make().actions)
        np.testing.assert_array_equal(
            file["observations/rgb_primary"], make().observations["rgb_primary"]
        )
        assert json.loads(file["header.json"])["id"] == "VLA/Toy-Reach-v0"


def test_length_is_the_number_of_steps_and_the_only_wording_is_the_instruction():
    assert len(make(3)) == 3
    assert make().instructions == ("reach the goal",)


def test_types_become_those_of_the_contract():
    demo = make(
        1,
        actions=[[0.5, -0.5]],
        rewards=[1],
        observations={"proprio": [[1, 2], [3, 4]], "state": np.float32([[1], [2]])},
        keywords={"cameras": ("primary",), "image_size": np.int64(64)},
        seed=np.int64(5),
    )
    assert demo.actions.dtype == demo.rewards.dtype == np.float32
    assert demo.observations["proprio"].dtype == np.float32
    assert demo.observations["state"].dtype == np.float64
    assert demo.keywords == {"cameras": ["primary"], "image_size": 64}
    assert type(demo.seed) is int


def test_big_endian_arrays_are_saved_as_what_they_say(tmp_path):
    turned = make(observations={"state": make().observations["state"].astype(">f8")})
    loaded = load_demonstration(save_demonstration(turned, tmp_path / "a.npz"))
    np.testing.assert_array_equal(loaded.observations["state"], make().observations["state"])


NAN = np.array([[np.nan, 0.0]] * 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id and action_mode must not be empty"),
        ({"id": 5}, "id must be a str"),
        ({"instruction": "öffne"}, "printable ASCII of at most 256 characters, not 'öffne'"),
        ({"instruction": "a" * 257}, "at most 256"),
        ({"instructions": ("open",)}, r"\('open',\) must contain the instruction 'reach the goal'"),
        ({"instructions": "reach the goal"}, "instructions must be a tuple"),
        ({"seed": 1.5}, "seed must be a whole number or None, not 1.5"),
        ({"seed": True}, "seed must be"),
        ({"success": 1}, "success must be a bool"),
        ({"success": False}, "success is False, but successes are True after some step"),
        ({"successes": np.zeros(3, bool)}, "success is True, but successes are not True"),
        ({"successes": np.ones(3)}, "successes must be of type bool, not float64"),
        ({"successes": np.ones(4, bool)}, r"successes must have the shape \(3,\)"),
        ({"rewards": np.zeros(2)}, r"rewards must have the shape \(3,\), .* not \(2,\)"),
        ({"rewards": [0, 1, np.inf]}, r"rewards must be finite; 1 of 3 .* entry \(2,\): inf"),
        ({"rewards": [0, 1, 1e300]}, "rewards must be finite"),
        ({"actions": np.zeros(3)}, r"actions must have the shape \(T, n\), not \(3,\)"),
        ({"actions": np.zeros((0, 7))}, "has no action"),
        ({"actions": NAN}, r"actions must be finite; 3 of 6 .* entry \(0, 0\): nan"),
        ({"actions": NAN * 0 + 2}, "actions must be finite"),
        ({"actions": [[0, 0], [0, 1.5], [0, 0]]}, r"1 of 6 do not, .* entry 1 of step 1: 1.5"),
        ({"actions": [["a"]] * 3}, "actions must be an array of numbers"),
        ({"actions": [[0.0], [0.0, 1.0], [0.0]]}, "actions is not an array of numbers"),
        ({"observations": {"instruction": np.zeros(4)}}, "is a field of its own"),
        ({"observations": {"../a": np.zeros(4)}}, "small letters, digits and underscores"),
        ({"observations": {"proprio": np.zeros((3, 2))}}, "must have 4 rows, one more than the 3"),
        ({"observations": {"proprio": np.zeros(4)}}, r"'proprio' must have the shape \(T\+1, n\)"),
        ({"observations": {"state": np.full((4, 1), np.inf)}}, "'state' must be finite"),
        ({"observations": {"rgb_a": np.zeros((4, 2, 2, 3))}}, "must be of type uint8, not float64"),
        ({"observations": {"rgb_a": np.zeros((4, 2, 2), np.uint8)}}, r"\(T\+1, H, W, 3\)"),
        ({"observations": {"odd": np.array([None] * 4)}}, "'odd' must hold numbers, not object"),
        ({"observations": {"odd": np.float32(1)}}, "must have 4 rows"),
        ({"options": {"goal": object()}}, "options must be plain values"),
        ({"options": {"goal": np.nan}}, "options must be plain values"),
        ({"keywords": 3}, "keywords must be plain values"),
    ],
)
def test_what_breaks_the_format_is_refused(changes, message):
    with pytest.raises(InvalidDemonstration, match=message):
        dataclasses.replace(make(), **changes)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return the bytes of a small file."""
    demo = make(1, observations={"proprio": np.ones((2, 2), np.float32)})
    return save_demonstration(demo, tmp_path_factory.mktemp("packed") / "a.npz").read_bytes()


def read_bytes(content, folder):
    path = folder / f"{os.getpid()}.npz"
    path.write_bytes(content)
    return load_demonstration(path)


def test_a_flipped_bit_is_refused_or_changes_nothing(packed, tmp_path):
    """Nothing: in a date, in a note on the system that wrote the archive."""
    original = read_bytes(packed, tmp_path)
    harmless = 0
    for place in range(len(packed)):
        broken = bytearray(packed)
        broken[place] ^= 1 << place % 8
        try:
            assert read_bytes(bytes(broken), tmp_path).same_as(original)
            harmless += 1
        except InvalidDemonstration as error:
            assert ".npz" in str(error)
    assert harmless < len(packed) / 4


def test_a_truncated_file_is_refused_wherever_it_ends(packed, tmp_path):
    for length in range(len(packed)):
        with pytest.raises(InvalidDemonstration, match="damaged or no demonstration"):
            read_bytes(packed[:length], tmp_path)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path_factory, content):
    with pytest.raises(InvalidDemonstration, match="damaged or no demonstration"):
        read_bytes(content, tmp_path_factory.getbasetemp())


def repack(content, change, sign=True):
    """Return a sound archive with changed members; with `sign`, also with the right checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(members.pop("header.json"))
    change(header, members)
    if sign:
        header.pop("sha256", None)
        header["sha256"] = module._digest(header, members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        for name, member in members.items():
            archive.writestr(name, member)
    return buffer.getvalue()


def npy(array, allow_pickle=False):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def test_an_archive_that_was_packed_anew_with_the_same_content_is_read(packed, tmp_path):
    repacked = repack(packed, lambda header, members: None, sign=False)
    assert repacked != packed
    assert read_bytes(repacked, tmp_path).same_as(read_bytes(packed, tmp_path))


def test_a_sound_archive_whose_content_differs_from_its_checksum_is_refused(packed, tmp_path):
    def swap(header, members):
        members["actions.npy"] = npy(np.zeros((1, 7), np.float32))

    with pytest.raises(InvalidDemonstration, match="differs from its SHA-256"):
        read_bytes(repack(packed, swap, sign=False), tmp_path)

    def rename(header, members):
        header["instruction"] = "do something else"

    with pytest.raises(InvalidDemonstration, match="differs from its SHA-256"):
        read_bytes(repack(packed, rename, sign=False), tmp_path)


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def test_a_pickled_array_is_refused_and_not_run(packed, tmp_path):
    marker = tmp_path / "ran"

    def plant(header, members):
        bomb = np.empty((2, 1), object)
        bomb[:] = Bomb(marker)
        members["observations/state.npy"] = npy(bomb, allow_pickle=True)

    with pytest.raises(InvalidDemonstration, match=r"state\.npy is not an array without objects"):
        read_bytes(repack(packed, plant), tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, m: h.update(format_version=2), "has format version 2; this vla_gym reads 1"),
        (lambda h, m: h.update(format="other"), "does not say format='vla-gym demonstration'"),
        (lambda h, m: m.pop("rewards.npy"), "lacks rewards.npy"),
        (lambda h, m: h.pop("instruction"), "missing 1 required .* 'instruction'"),
        (lambda h, m: h.update(success=False), "success is False"),
        (lambda h, m: m.update({"actions.npy": npy(np.full((1, 7), 2.0))}), "must lie in"),
        (
            lambda h, m: m.update({"actions.npy": m["actions.npy"] + b"x"}),
            "actions.npy is longer than its array",
        ),
        (lambda h, m: m.update({"actions.npy": b"x"}), "actions.npy is not an array"),
        (lambda h, m: m.update({"note.txt": b"x"}), "note.txt is not an array"),
    ],
)
def test_a_file_with_a_right_checksum_is_still_checked(packed, tmp_path, change, message):
    with pytest.raises(InvalidDemonstration, match=message) as caught:
        read_bytes(repack(packed, change), tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_fields_of_a_later_writer_are_dropped(packed, tmp_path):
    later = repack(packed, lambda header, members: header.update(mood="good"))
    assert read_bytes(later, tmp_path).same_as(read_bytes(packed, tmp_path))


def test_another_npz_is_no_demonstration(tmp_path):
    np.savez(tmp_path / "other.npz", actions=np.zeros(3))
    with pytest.raises(InvalidDemonstration, match=r"is no demonstration: it has no header\.json"):
        load_demonstration(tmp_path / "other.npz")


def test_a_missing_file_is_a_missing_file_and_a_name_ends_in_npz(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_demonstration(tmp_path / "none.npz")
    with pytest.raises(InvalidDemonstration, match=r"file name ends in '\.npz'"):
        save_demonstration(make(), tmp_path / "a.zip")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = save_demonstration(make(seed=1), tmp_path / "new" / "folder" / "a.npz")

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        save_demonstration(make(seed=2), path)
    assert list(path.parent.iterdir()) == [path]
    assert load_demonstration(path).seed == 1


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    names = ["10.npz", "2.npz", "b/1.npz", "a/12.npz", "a/3.npz"]
    for seed, name in enumerate(names):
        save_demonstration(make(seed=seed), tmp_path / name)
    (tmp_path / "notes.txt").write_text("not one of them")
    (tmp_path / ".2.npz.77.part").write_text("left by a killed process")
    (tmp_path / ".hidden.npz").write_text("a copier's")
    found = [names[demo.seed] for demo in load_demonstrations(tmp_path)]
    assert found == ["2.npz", "10.npz", "a/3.npz", "a/12.npz", "b/1.npz"]


def test_a_folder_is_read_one_by_one_and_a_damaged_file_stops_it(tmp_path):
    save_demonstration(make(seed=1), tmp_path / "1.npz")
    (tmp_path / "2.npz").write_bytes(b"damaged")
    demos = load_demonstrations(tmp_path)
    assert next(demos).seed == 1
    with pytest.raises(InvalidDemonstration, match=r"2\.npz is damaged"):
        next(demos)


def test_a_missing_folder_is_told_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_demonstrations(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert list(load_demonstrations(tmp_path / "empty")) == []
