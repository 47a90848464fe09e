"""The reader of RLBench's stored demonstrations, on folders made up here in its layouts."""

from __future__ import annotations

import collections
import functools
import os
import pickle
import re
import shutil
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import needs
from vla_gym.data import InvalidDemonstration, load_demonstration, save_demonstration
from vla_gym.data import rlbench as module
from vla_gym.data.rlbench import (
    CAMERAS,
    find_excess,
    find_keyposes,
    list_episodes,
    point_cloud,
    read_demonstrations,
    read_episode,
    to_demonstration,
)
from vla_gym.errors import InvalidOption, UnknownName
from vla_gym.suites import rlbench as suite

pytestmark = needs("eval")  # Pillow writes the pictures, SciPy is the judge of rotations

SIZE = 6
DOWN = (1.0, 0.0, 0.0, 0.0)


class Demo:
    def __init__(self, frames):
        self._observations = frames
        self.random_seed = np.random.RandomState(3).get_state()


class Observation:
    def __init__(self, **fields):
        self.__dict__.update(fields)


Demo.__module__ = "rlbench.demo"
Observation.__module__ = "rlbench.backend.observation"


def dump(value, protocol=3):
    """Pickle `value` as RLBench does, whose modules exist only while this lasts."""
    fakes = {
        "rlbench": types.ModuleType("rlbench"),
        "rlbench.demo": types.ModuleType("rlbench.demo"),
        "rlbench.backend": types.ModuleType("rlbench.backend"),
        "rlbench.backend.observation": types.ModuleType("rlbench.backend.observation"),
    }
    fakes["rlbench.demo"].Demo = Demo
    fakes["rlbench.backend.observation"].Observation = Observation
    with pytest.MonkeyPatch.context() as patch:
        for name, fake in fakes.items():
            patch.setitem(sys.modules, name, fake)
        return pickle.dumps(value, protocol)


def make_frame(pose=(0, 0, 1, *DOWN), joints=None, is_open=1.0, velocities=None, **changes):
    """Return one frame with the fields that RLBench records by default."""
    misc = {}
    for number, camera in enumerate(CAMERAS):
        misc[f"{camera}_camera_extrinsics"] = np.eye(4) * (number + 1)
        misc[f"{camera}_camera_intrinsics"] = np.diag([-10.0, -10.0, 1.0])
        misc[f"{camera}_camera_near"] = 0.5
        misc[f"{camera}_camera_far"] = 2.5
    fields = {f"{camera}_{kind}": None for camera in CAMERAS for kind in ("rgb", "point_cloud")}
    fields |= {
        "joint_velocities": np.zeros(7) if velocities is None else np.asarray(velocities, float),
        "joint_positions": np.array(suite.HOME_JOINTS if joints is None else joints, float),
        "joint_forces": np.full(7, 2.0),
        "gripper_open": is_open,
        "gripper_pose": np.array(pose, float),
        "gripper_matrix": np.asfortranarray(np.arange(16.0).reshape(4, 4)),
        "gripper_joint_positions": np.array([0.04, 0.04]) if is_open else np.array([0.01, 0.02]),
        "gripper_touch_forces": np.zeros(6),
        "task_low_dim_state": np.array([7.0, 8.0, 9.0]),
        "ignore_collisions": None,
        "misc": misc,
    }
    return fields | changes


def make_pictures(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def write_pictures(folder, pictures):
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")


def write_episode(
    root,
    frames,
    *,
    task="reach_target",
    group="variation0",
    number=0,
    cameras=("front", "wrist"),
    kinds=("rgb",),
    descriptions=("reach the red target", "reach the red sphere"),
    protocol=3,
):
    """Write one episode of the given frames and return its folder."""
    path = root / task / group / "episodes" / f"episode{number}"
    path.mkdir(parents=True)
    demo = Demo([Observation(**frame) for frame in frames])
    (path / "low_dim_obs.pkl").write_bytes(dump(demo, protocol))
    if descriptions is not None:
        place = path if group == "all_variations" else path.parent.parent
        value = list(descriptions) if isinstance(descriptions, tuple) else descriptions
        (place / "variation_descriptions.pkl").write_bytes(dump(value, protocol))
    for camera in cameras:
        for kind in kinds:
            seed = [CAMERAS.index(camera), ["rgb", "depth", "mask"].index(kind)]
            write_pictures(path / f"{camera}_{kind}", make_pictures(seed, len(frames)))
    return path


def make_episode(tmp_path, frames, **options):
    options.setdefault("cameras", ())
    return read_episode(write_episode(tmp_path, frames, **options))


# Reading


def test_an_episode_is_read_as_it_was_recorded(tmp_path):
    frames = [make_frame((x, 0, 1, *DOWN)) for x in (0.0, 0.01, 0.02)]
    path = write_episode(tmp_path, frames)
    episode = read_episode(path)
    assert (len(episode), episode.task, episode.variation) == (3, "reach_target", 0)
    assert episode.instructions == ("reach the red target", "reach the red sphere")
    assert episode.path == path
    np.testing.assert_array_equal(
        episode.low_dim["gripper_pose"], [f["gripper_pose"] for f in frames]
    )
    np.testing.assert_array_equal(episode.low_dim["gripper_open"], [1.0, 1.0, 1.0])
    np.testing.assert_array_equal(  # stored column by column
        episode.low_dim["gripper_matrix"][1], np.arange(16.0).reshape(4, 4)
    )
    assert set(episode.low_dim) == {
        name for name, value in frames[0].items() if value is not None and name != "misc"
    }
    assert list(episode.rgb) == ["wrist", "front"]
    np.testing.assert_array_equal(episode.rgb["front"], make_pictures([4, 0], 3))
    np.testing.assert_array_equal(episode.extrinsics["right_shoulder"], [np.eye(4) * 2] * 3)
    np.testing.assert_array_equal(episode.intrinsics["front"][0], np.diag([-10.0, -10.0, 1.0]))
    name, keys, position, *_ = episode.random_seed
    assert (name, position) == ("MT19937", 624)
    np.testing.assert_array_equal(keys, np.random.RandomState(3).get_state()[1])
    assert not (episode.depth_m or episode.mask)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_that_python_writes_is_read(tmp_path, protocol):
    if protocol == 2:  # bytes are spelt as calls of _codecs.encode, which RLBench never wrote
        with pytest.raises(InvalidDemonstration, match=r"the name _codecs\.encode"):
            make_episode(tmp_path, [make_frame()], protocol=protocol)
        return
    episode = make_episode(tmp_path, [make_frame()], protocol=protocol)
    np.testing.assert_array_equal(episode.low_dim["gripper_pose"], [[0, 0, 1, *DOWN]])


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_pickles_of_numpy_1_and_2_are_read(tmp_path, core):
    frame = make_frame(is_open=np.float64(0.0), gripper_touch_forces=np.arange(6, dtype=">f4"))
    path = write_episode(tmp_path, [frame], cameras=())
    file = path / "low_dim_obs.pkl"
    content = re.sub(rb"c(numpy\._?core)", b"c" + core, file.read_bytes())
    assert core + b".multiarray\nscalar" in content
    file.write_bytes(content)
    episode = read_episode(path)
    np.testing.assert_array_equal(episode.low_dim["gripper_open"], [0.0])
    np.testing.assert_array_equal(episode.low_dim["gripper_touch_forces"], [np.arange(6)])


def test_only_the_cameras_that_are_asked_for_are_read(tmp_path):
    path = write_episode(tmp_path, [make_frame()])
    assert list(read_episode(path, "front").rgb) == ["front"]
    assert read_episode(path, ()).rgb == {}
    with pytest.raises(UnknownName, match=r"no camera 'fornt' in RLBench\. Did you mean 'front'"):
        read_episode(path, ("fornt",))


def test_depth_is_24_bits_between_the_near_and_the_far_plane(tmp_path):
    path = write_episode(tmp_path, [make_frame()] * 2, cameras=("front",))
    pictures = np.zeros((2, 1, 3, 3), np.uint8)
    pictures[1, 0] = [[255, 255, 255], [128, 0, 0], [0, 1, 2]]
    write_pictures(path / "front_depth", pictures)
    depth_m = read_episode(path, ["front"], depth=True).depth_m["front"]
    assert depth_m.dtype == np.float32
    np.testing.assert_array_equal(depth_m[0], [[0.5, 0.5, 0.5]])
    most = 2**24 - 1  # near 0.5 m, far 2.5 m
    expected = [2.5, 0.5 + 2 * (128 * 65536) / most, 0.5 + 2 * (256 + 2) / most]
    np.testing.assert_allclose(depth_m[1, 0], expected, rtol=1e-7)


def test_a_mask_is_the_number_that_its_three_bytes_spell(tmp_path):
    path = write_episode(tmp_path, [make_frame()], cameras=("front",))
    write_pictures(path / "front_mask", np.array([[[[88, 0, 0], [1, 2, 3], [255] * 3]]], np.uint8))
    mask = read_episode(path, ["front"], masks=True).mask["front"]
    assert mask.dtype == np.int64
    np.testing.assert_array_equal(mask, [[[88, 1 + 2 * 256 + 3 * 65536, 2**24 - 1]]])


def test_both_layouts_are_listed_with_numbers_in_order(tmp_path):
    for task, group, number in [
        ("open_box", "variation0", 10),
        ("open_box", "variation0", 2),
        ("reach_target", "variation10", 0),
        ("reach_target", "variation2", 0),
        ("reach_target", "all_variations", 7),
    ]:
        write_episode(tmp_path, [make_frame()], task=task, group=group, number=number, cameras=())
    (tmp_path / "open_box/variation0/episodes/episode2_old").mkdir()
    (tmp_path / "open_box/other/episodes/episode0").mkdir(parents=True)
    (tmp_path / "open_box/variation0/episodes/episode3").write_text("no folder")
    found = [path.relative_to(tmp_path).as_posix() for path in list_episodes(tmp_path)]
    assert found == [
        "open_box/variation0/episodes/episode2",
        "open_box/variation0/episodes/episode10",
        "reach_target/all_variations/episodes/episode7",
        "reach_target/variation2/episodes/episode0",
        "reach_target/variation10/episodes/episode0",
    ]
    assert len(list_episodes(tmp_path / "open_box")) == 2
    assert len(list_episodes(tmp_path / "reach_target" / "variation2")) == 1
    with pytest.raises(InvalidDemonstration, match="has no RLBench episodes; expected <task>/var"):
        list_episodes(tmp_path / "open_box" / "other")


def test_an_episode_of_peract_brings_its_own_variation_and_descriptions(tmp_path):
    path = write_episode(
        tmp_path,
        [make_frame()],
        group="all_variations",
        cameras=(),
        descriptions=("reach the  blue target\n", "réach the blue target", ""),
    )
    assert read_episode(path).variation is None
    (path / "variation_number.pkl").write_bytes(pickle.dumps(4))
    episode = read_episode(path)
    assert episode.variation == 4
    assert episode.instructions == ("reach the blue target",)
    for wrong in ("4", -1, True, 10**5000):
        (path / "variation_number.pkl").write_bytes(pickle.dumps(wrong))
        with pytest.raises(InvalidDemonstration, match="its variation is no whole number"):
            read_episode(path)


def test_a_variation_may_stand_in_the_frames_alone(tmp_path):
    frame = make_frame()
    frame["misc"]["variation_index"] = 6
    assert make_episode(tmp_path, [frame], group="all_variations").variation == 6


# Known faults of data sets


def test_descriptions_that_are_an_observation_are_left_out(tmp_path):
    """So it is in the episodes of RLBench's own tests."""
    live = Observation(**make_frame(front_rgb=np.zeros((2, 2, 3), np.uint8)))
    episode = make_episode(tmp_path, [make_frame()] * 2, descriptions=live)
    assert episode.instructions == ()
    demo = to_demonstration(episode, cameras=())
    task = suite.SUITE.tasks["ReachTarget"]
    assert demo.instructions == (task.instruction, *task.paraphrases)


def test_without_descriptions_the_words_of_another_variation_are_not_used(tmp_path):
    frames = [make_frame()] * 2
    second = make_episode(tmp_path, frames, group="variation1", descriptions=None)
    with pytest.raises(InvalidDemonstration, match=r"\(here 1\); give instructions="):
        to_demonstration(second, cameras=())
    demo = to_demonstration(second, cameras=(), instructions=["reach the maroon target"])
    assert demo.instruction == "reach the maroon target"
    assert demo.options == {"variation": 1}
    unknown = make_episode(
        tmp_path, frames, task="open_box", group="all_variations", descriptions=None
    )
    demo = to_demonstration(unknown, cameras=())  # a task of a single variation
    assert demo.instruction == suite.SUITE.tasks["OpenBox"].instruction
    assert demo.options == {}


def test_frames_without_misc_and_a_demo_without_its_seed_are_read(tmp_path):
    path = write_episode(tmp_path, [make_frame(misc=None), make_frame(misc={})], cameras=())
    demo = Demo([Observation(**make_frame(misc=None))])
    del demo.random_seed
    assert read_episode(path).intrinsics == {}
    (path / "low_dim_obs.pkl").write_bytes(dump(demo))
    episode = read_episode(path)
    assert episode.random_seed is None
    assert len(episode) == 1


def test_what_is_missing_is_named_with_its_episode(tmp_path):
    path = write_episode(tmp_path, [make_frame()] * 3)
    with pytest.raises(InvalidDemonstration, match=r"episode0 has no overhead_rgb; its folders: f"):
        read_episode(path, ["overhead"])
    with pytest.raises(InvalidDemonstration, match="episode0 has no front_depth"):
        read_episode(path, ["front"], depth=True)
    (path / "front_rgb" / "1.png").unlink()
    with pytest.raises(
        InvalidDemonstration,
        match=r"episode0: front_rgb has 2 pictures, .* 3 frames .* first missing one is 1\.png",
    ):
        read_episode(path)
    assert len(read_episode(path, ["wrist"])) == 3
    shutil.copy(path / "wrist_rgb" / "0.png", path / "wrist_rgb" / "3.png")
    with pytest.raises(InvalidDemonstration, match=r"the first extra one is 3\.png"):
        read_episode(path, ["wrist"])
    (path / "low_dim_obs.pkl").unlink()
    with pytest.raises(InvalidDemonstration, match=r"is no RLBench episode: it has no low_dim_obs"):
        read_episode(path)
    with pytest.raises(InvalidDemonstration, match="there is no such folder"):
        read_episode(path.with_name("episode9"))


def test_damaged_pictures_are_named(tmp_path):
    from PIL import Image

    path = write_episode(tmp_path, [make_frame()] * 2)
    file = path / "front_rgb" / "1.png"
    content = file.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"GIF89a"):
        file.write_bytes(broken)
        with pytest.raises(InvalidDemonstration, match=r"front_rgb/1\.png is no whole PNG"):
            read_episode(path)
    Image.new("L", (SIZE, SIZE)).save(file)
    with pytest.raises(InvalidDemonstration, match=r"1\.png has the mode L, not RGB"):
        read_episode(path)
    Image.new("RGB", (SIZE, 2)).save(file)
    with pytest.raises(InvalidDemonstration, match=r"1\.png has \(2, 6\) pixels, 0\.png has \(6, "):
        read_episode(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joint_positions": None}, "joint_positions of frame 1 is missing"),
        ({"joint_positions": np.zeros(6)}, r"of frame 1 has the shape \(6,\), not \(7,\)"),
        ({"gripper_open": "yes"}, "gripper_open of frame 1 is of type str"),
        ({"gripper_open": 10**400}, "gripper_open of frame 1 is no number"),
        ({"misc": 3}, "misc of frame 1 is no dict"),
        ({"misc": {}}, r"misc\['left_shoulder_camera_intrinsics'\] of frame 1 is missing"),
    ],
)
def test_frames_that_do_not_fit_together_are_refused(tmp_path, change, message):
    with pytest.raises(InvalidDemonstration, match=message) as caught:
        make_episode(tmp_path, [make_frame(), make_frame(**change)])
    assert "episode0" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gripper_pose": None}, "has no gripper_pose; it was recorded with joint_velocities"),
        ({"joint_positions": np.zeros(6)}, r"joint_positions has the shape \(6,\) in each frame"),
        ({"joint_velocities": np.full(7, np.nan)}, "joint_velocities of frame 0 is not finite"),
        ({"joint_positions": np.full(7, 1e300)}, "frame 0 is not finite or beyond 1e"),
        ({"gripper_pose": np.zeros(7)}, "of frame 0 has the length 0, not 1"),
    ],
)
def test_what_the_contract_needs_must_have_been_recorded(tmp_path, change, message):
    episode = make_episode(tmp_path, [make_frame(**change)] * 2)
    with pytest.raises(InvalidDemonstration, match=message):
        to_demonstration(episode, cameras=())


# Pickles that are not to be trusted


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Subclass(np.ndarray):
    pass


def make_bombs(marker):
    """Return name -> a value whose unpickling by `pickle` would write the file `marker`."""
    touch = f"open({str(marker)!r}, 'w').close()"
    objects = np.empty(1, object)
    objects[0] = Calls(exec, touch)
    fields = np.zeros(1, [("a", "f8")])
    return {
        "posix.system": Calls(os.system, f"touch '{marker}'"),
        "builtins.eval": Calls(eval, touch),
        "builtins.exec": Calls(exec, touch),
        "builtins.getattr": Calls(getattr, objects, "dump"),
        "functools.partial": functools.partial(exec, touch),
        "array of type 'O8'": objects,
        "array of type 'V8'": fields,
        "array of type 'U3'": np.array(["abc"]),
        "array of type 'M8'": np.array(["2020"], "datetime64[D]"),
        "collections.OrderedDict": collections.OrderedDict(a=1),
        "builtins.set": {1},
        "Subclass": np.zeros(2).view(Subclass),
        "numpy.load": Calls(np.load, str(marker)),
    }


BOMBS = sorted(make_bombs("x"))


@pytest.mark.parametrize("file", ["low_dim_obs.pkl", "variation_descriptions.pkl"])
@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_with_anything_else_is_refused_and_not_run(tmp_path, name, file):
    marker = tmp_path / "ran"
    bomb = make_bombs(marker)[name]
    path = write_episode(tmp_path, [make_frame()], cameras=())
    if file == "low_dim_obs.pkl":
        frame = make_frame(misc={"joint_poses": bomb})
        content = dump(Demo([Observation(**frame)]))
        place = path / file
    else:
        content = dump(["reach", bomb])
        place = path.parent.parent / file
    place.write_bytes(content)
    with pytest.raises(InvalidDemonstration, match=re.escape(f"{file} is damaged or refused")) as e:
        read_episode(path)
    assert name in str(e.value)
    assert not marker.exists()


def test_what_a_refused_pickle_names_is_not_even_imported(tmp_path):
    (tmp_path / "low_dim_obs.pkl").write_bytes(b"\x80\x03cturtle\nPen\n.")
    sys.modules.pop("turtle", None)
    with pytest.raises(InvalidDemonstration, match=r"the name turtle\.Pen, which no RLBench"):
        read_episode(tmp_path)
    assert "turtle" not in sys.modules


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x03crlbench.demo\nDemo.__class__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(X\x03\x00\x00\x00strK\x00X\x01\x00\x00\x00bt"
        b"R.",  # an array of the class "str"
        b"\x80\x03}(K\x01K\x02u.",  # a dict
        b"\x80\x03crlbench.demo\nDemo\n.",  # the class itself
        b"\x80\x03crlbench.demo\nDemo\n)\x81.",  # without frames
        b"\x80\x03crlbench.demo\nDemo\n)\x81}X\x0d\x00\x00\x00_observationsK\x01sb.",
        b"\x80\x03crlbench.demo\nDemo\n)\x81}X\x0d\x00\x00\x00_observations]sb.",
        b"\x80\x03cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R}b.",  # a type with a dict as its state
        b"\x80\x03Nr\xff\xff\xff\xff.",  # an index of 4 billion
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a bytearray of 8 exabytes
        b"\x80\x03\x8bX",
        b"\x80\x03P0\n.",  # a persistent id
        b"\x80\x03\x82\x01.",  # an extension code
        b"\xff",
        b"",
    ],
)
def test_made_up_pickles_are_refused(tmp_path, content):
    (tmp_path / "low_dim_obs.pkl").write_bytes(content)
    with pytest.raises(InvalidDemonstration, match=r"low_dim_obs\.pkl (is damaged or|holds no)"):
        read_episode(tmp_path)


@pytest.mark.parametrize("name", [b"numpy\ndtype", b"rlbench.demo\nDemo"])
def test_a_pickle_cannot_change_what_the_next_one_is_read_with(tmp_path, name):
    good = write_episode(tmp_path, [make_frame()], cameras=())
    bad = tmp_path / "bad"
    bad.mkdir()
    # None, {"poison": 1} as the state of the function or class: sets an attribute of it
    (bad / "low_dim_obs.pkl").write_bytes(
        b"\x80\x03c" + name + b"\nN}X\x06\x00\x00\x00poisonK\x01s\x86b."
    )
    with pytest.raises(InvalidDemonstration):
        read_episode(bad)
    key = tuple(name.decode().split("\n"))
    assert not hasattr(module._make_known_names()[key], "poison")
    assert not any(hasattr(c, "poison") for c in (module._Record, module._Array, module._DType))
    assert len(read_episode(good)) == 1


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return an episode folder without pictures and the bytes of its pickle."""
    path = write_episode(tmp_path_factory.mktemp("stored"), [make_frame(misc={})] * 2, cameras=())
    return path, (path / "low_dim_obs.pkl").read_bytes()


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_pickle_is_refused(stored, share):
    path, content = stored
    (path / "low_dim_obs.pkl").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InvalidDemonstration, match=r"low_dim_obs\.pkl is damaged or refused"):
        read_episode(path)


@settings(max_examples=300)
@given(share=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_changed_byte_gives_an_episode_or_a_clear_error(stored, share, value):
    path, content = stored
    changed = bytearray(content)
    changed[int(share * len(content))] = value
    (path / "low_dim_obs.pkl").write_bytes(changed)
    try:
        to_demonstration(read_episode(path), cameras=(), beyond="clip")
    except InvalidDemonstration as error:
        assert "episode0" in str(error)


# Actions


def rotation(quaternions):
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(quaternions)


def make_walk(seed, count, metres, radians):
    """Return poses (count, 7) whose steps are at most so long along each axis."""
    rng = np.random.default_rng(seed)
    from scipy.spatial.transform import Rotation

    position = np.array([0.2, 0.0, 1.2])
    turned = Rotation.from_rotvec(rng.normal(size=3) * 3)
    poses = []
    for _ in range(count):
        # A quaternion and its negative are the same rotation; recordings hold either.
        poses.append([*position, *(turned.as_quat() * rng.choice([-1, 1]))])
        position = position + rng.uniform(-metres, metres, 3)
        turned = Rotation.from_rotvec(rng.uniform(-radians, radians, 3)) * turned
    return np.array(poses)


def integrate(demo, start):
    """Follow `ee_delta` actions from a pose; return positions and SciPy rotations."""
    from scipy.spatial.transform import Rotation

    position, turned = np.array(start[:3]), rotation(start[3:])
    path = [(position, turned)]
    for action in demo.actions:
        delta = suite.decode_ee_delta(action)
        position = position + delta.translation_m
        turned = Rotation.from_rotvec(delta.rotation_rad) * turned
        path.append((position, turned))
    return path


def assert_same_pose(found, pose):
    np.testing.assert_allclose(found[0], pose[:3], rtol=0, atol=1e-6)
    # The sine of half the angle between them, which is exact near zero
    between = (found[1] * rotation(pose[3:]).inv()).as_quat()[:3]
    assert np.linalg.norm(between) < 1e-6


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31 - 1), count=st.integers(2, 40))
def test_ee_delta_actions_lead_along_the_recorded_poses(tmp_path_factory, seed, count):
    poses = make_walk(seed, count, suite.POSITION_M, suite.ROTATION_RAD)
    rng = np.random.default_rng(seed)
    opens = rng.integers(0, 2, count)
    frames = [make_frame(pose, is_open=float(o)) for pose, o in zip(poses, opens, strict=True)]
    episode = make_episode(tmp_path_factory.mktemp("walk"), frames)
    demo = to_demonstration(episode, cameras=())
    assert len(find_excess(episode)) == 0
    assert demo.actions.shape == (count - 1, 7)
    for found, pose in zip(integrate(demo, poses[0]), poses, strict=True):
        assert_same_pose(found, pose)
    np.testing.assert_array_equal(demo.actions[:, 6], 2 * opens[1:] - 1)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31 - 1), count=st.integers(2, 12))
def test_split_actions_lead_to_the_recorded_poses_in_more_steps(tmp_path_factory, seed, count):
    poses = make_walk(seed, count, 4 * suite.POSITION_M, 4 * suite.ROTATION_RAD)
    frames = [make_frame(pose) for pose in poses]
    episode = make_episode(tmp_path_factory.mktemp("walk"), frames)
    demo = to_demonstration(episode, cameras=(), beyond="split", state=True)
    assert np.abs(demo.actions[:, :6]).max() <= 1
    assert len(find_excess(episode)) <= count - 1 <= len(demo)
    path = integrate(demo, poses[0])
    # State stays that of the frame before, so it says where in the episode a row is.
    shown = demo.observations["state"][:, 22:25]
    frame_of = [int(np.flatnonzero((poses[:, :3] == row).all(axis=1))[0]) for row in shown]
    assert sorted(set(frame_of)) == list(range(count))
    assert frame_of == sorted(frame_of)
    for number, pose in enumerate(poses):
        assert_same_pose(path[frame_of.index(number)], pose)
    for (position, turned), proprio in zip(path, demo.observations["proprio"], strict=True):
        np.testing.assert_allclose(proprio[:3], position - suite.BASE_POSITION_M, atol=1e-6)
        np.testing.assert_allclose(proprio[3:9], turned.as_matrix().T[:2].ravel(), atol=2e-6)


def test_a_demonstration_by_hand(tmp_path):
    frames = [
        make_frame((0.1, 0.2, 1.0, 0, 0, 0, 1)),
        make_frame((0.12, 0.2, 0.99, 0, 0, np.sin(0.025), np.cos(0.025)), is_open=0.0),
        make_frame((0.12, 0.2, 0.99, 0, 0, -np.sin(0.025), -np.cos(0.025)), is_open=0.0),
    ]
    path = write_episode(tmp_path, frames, group="variation3", number=12)
    demo = to_demonstration(read_episode(path), state=True)
    assert demo.id == "VLA/RLBench-ReachTarget-v0"
    assert demo.instruction == "reach the red target"
    assert demo.instructions == ("reach the red target", "reach the red sphere")
    assert demo.options == {"variation": 3}
    assert demo.source == "RLBench data set: reach_target/variation3/episode12"
    assert (demo.simulator, demo.seed) == ("coppeliasim", None)
    assert (demo.success, demo.terminated) == (True, True)
    assert demo.keywords == {
        "cameras": ["primary", "wrist"],
        "image_size": SIZE,
        "proprio": "eef",
        "state": True,
    }
    np.testing.assert_array_equal(demo.rewards, [0, 1])
    np.testing.assert_array_equal(demo.successes, [False, True])
    # +1 is 0.025 m and 0.1 rad: 0.02 m, -0.01 m and 0.05 rad about z, then nothing; closed both.
    expected = [[0.8, 0, -0.4, 0, 0, 0.5, -1], [0, 0, 0, 0, 0, 0, -1]]
    np.testing.assert_allclose(demo.actions, expected, atol=1e-6)
    # The base stands at (-0.268, -0.007, 0.750); fingers at 0.04 of 0.04 m, then 0.015 on average.
    proprio = demo.observations["proprio"]
    np.testing.assert_allclose(proprio[0], [0.368, 0.207, 0.25, 1, 0, 0, 0, 1, 0, 1], atol=1e-6)
    c, s = np.cos(0.05), np.sin(0.05)
    np.testing.assert_allclose(
        proprio[1], [0.388, 0.207, 0.24, c, s, 0, -s, c, 0, 0.375], atol=1e-6
    )
    np.testing.assert_array_equal(demo.observations["rgb_primary"], make_pictures([4, 0], 3))
    np.testing.assert_array_equal(demo.observations["rgb_wrist"], make_pictures([3, 0], 3))
    state = demo.observations["state"]
    assert state.shape == (3, suite.COPPELIASIM_STATE_DIM)
    np.testing.assert_allclose(
        state[1, :33],
        [*suite.HOME_JOINTS, *[0] * 7, *[2] * 7, 0, *frames[1]["gripper_pose"], 7, 8, 9, 0],
    )


def test_demonstrations_fit_the_spaces_of_the_suite_and_survive_their_file(tmp_path):
    poses = make_walk(1, 5, 0.02, 0.05)
    write_episode(tmp_path, [make_frame(pose) for pose in poses])
    layout = suite.SUITE.layout(suite.SUITE.tasks["ReachTarget"], {})
    for mode, entries in layout.action_modes.items():
        for proprio in ("eef", "joints"):
            (demo,) = read_demonstrations(
                tmp_path, mode, ("primary", "wrist"), proprio=proprio, state=True
            )
            assert demo.actions.shape[1] == len(entries.entries)
            assert demo.observations["proprio"].shape[1] == len(layout.proprio[proprio])
            assert demo.observations["state"].shape[1] == layout.state_dim
            path = save_demonstration(demo, tmp_path / "out" / f"{mode}-{proprio}.npz")
            assert load_demonstration(path).same_as(demo)


def test_joints_as_proprio_are_angles_speeds_and_opening(tmp_path):
    frames = [make_frame(joints=np.full(7, 0.1), velocities=np.full(7, 0.2)), make_frame()]
    demo = to_demonstration(make_episode(tmp_path, frames), cameras=(), proprio="joints")
    np.testing.assert_allclose(demo.observations["proprio"][0], [0.1] * 7 + [0.2] * 7 + [1])


def test_without_fingers_the_opening_is_open_or_closed(tmp_path):
    frames = [make_frame(gripper_joint_positions=None, is_open=o) for o in (1.0, 0.0)]
    demo = to_demonstration(make_episode(tmp_path, frames), cameras=())
    np.testing.assert_array_equal(demo.observations["proprio"][:, 9], [1, 0])


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31 - 1))
def test_joint_actions_lead_to_the_next_joints(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    low, high = np.array(suite.JOINT_LIMITS).T
    start = rng.uniform(low + 0.2, high - 0.2)
    joints = start + np.concatenate([np.zeros((1, 7)), rng.uniform(-0.05, 0.05, (4, 7))]).cumsum(0)
    joints = np.clip(joints, low, high)
    frames = [make_frame(joints=q) for q in joints]
    episode = make_episode(tmp_path_factory.mktemp("joints"), frames)
    demo = to_demonstration(episode, "joint_position", cameras=())
    decoded = [suite.decode_joint_position(action).joints for action in demo.actions]
    np.testing.assert_allclose(decoded, joints[1:], atol=1e-6)
    demo = to_demonstration(episode, "native", cameras=())  # rad/s for 1 / 20 s
    moved = [suite.decode_joint_velocity(action).joints / 20 for action in demo.actions]
    np.testing.assert_allclose(joints[0] + np.cumsum(moved, 0), joints[1:], atol=1e-6)


def test_steps_beyond_one_are_refused_clipped_or_split(tmp_path):
    """Frame 1 is 0.06 m on, 2.4 times what one step can do; the gripper closes with it."""
    frames = [
        make_frame((0.10, 0, 1, *DOWN)),
        make_frame((0.16, 0, 1, *DOWN), is_open=0.0),
        make_frame((0.17, 0, 1, *DOWN), is_open=0.0),
    ]
    episode = read_episode(write_episode(tmp_path, frames))
    np.testing.assert_array_equal(find_excess(episode), [0])
    with pytest.raises(InvalidDemonstration, match=r"1 of 2 steps go beyond .* step 0, .* 2\.4\."):
        to_demonstration(episode)
    clipped = to_demonstration(episode, beyond="clip")
    np.testing.assert_allclose(clipped.actions[:, 0], [1.0, 0.4], atol=1e-6)
    assert clipped.source.endswith("; 1 of 2 steps go beyond [-1, 1] in ee_delta (clip)")
    split = to_demonstration(episode, beyond="split")
    np.testing.assert_allclose(split.actions[:, 0], [0.8, 0.8, 0.8, 0.4], atol=1e-6)
    np.testing.assert_array_equal(split.actions[:, 6], [1, 1, -1, -1])
    np.testing.assert_allclose(
        split.observations["proprio"][:, 0] - 0.268, [0.10, 0.12, 0.14, 0.16, 0.17], atol=1e-6
    )
    pictures = make_pictures([4, 0], 3)
    np.testing.assert_array_equal(split.observations["rgb_primary"], pictures[[0, 0, 0, 1, 2]])
    np.testing.assert_array_equal(split.successes, [False, False, False, True])
    assert split.source.endswith("(split)")


def test_a_rounding_error_is_not_beyond_one(tmp_path):
    frames = [make_frame((0.1, 0, 1, *DOWN)), make_frame((0.1 + 0.025 + 1e-9, 0, 1, *DOWN))]
    demo = to_demonstration(make_episode(tmp_path, frames), cameras=())
    assert demo.actions[0, 0] == 1


def test_absolute_targets_cannot_be_split(tmp_path):
    outside = make_frame((0.9, 0, 1, *DOWN))  # the workspace ends at x = 0.775 m
    episode = make_episode(tmp_path, [make_frame(), outside])
    for mode in ("keypose", "joint_position"):
        with pytest.raises(InvalidOption, match="beyond='split' works in ee_delta and native"):
            to_demonstration(episode, mode, cameras=(), beyond="split")
    with pytest.raises(InvalidDemonstration, match=r"beyond='clip' clips them$"):
        to_demonstration(episode, "keypose", cameras=())
    demo = to_demonstration(episode, "keypose", cameras=(), beyond="clip")
    assert demo.actions[0, 0] == 1


def test_names_that_do_not_exist_are_refused_with_the_nearest(tmp_path):
    episode = read_episode(write_episode(tmp_path, [make_frame()] * 2))
    for options, message in [
        ({"action_mode": "keypos"}, "no action_mode 'keypos' .* Did you mean 'keypose'"),
        ({"cameras": ("front",)}, "no camera 'front'"),
        ({"proprio": "eff"}, "no proprio form 'eff' .* Did you mean 'eef'"),
        ({"beyond": "cut"}, "no value of beyond 'cut'"),
    ]:
        with pytest.raises(UnknownName, match=message):
            to_demonstration(episode, **options)
    with pytest.raises(InvalidDemonstration, match=r"without the pictures of 'overhead'.*'front'"):
        to_demonstration(episode, cameras=("overhead",))
    with pytest.raises(UnknownName, match="no camera 'front'"):
        next(read_demonstrations(tmp_path, cameras=("front",)))
    other = make_episode(tmp_path, [make_frame()] * 2, task="reach_targets")
    with pytest.raises(
        UnknownName, match=r"no task 'reach_targets' .* Did you mean 'reach_target'"
    ):
        to_demonstration(other, cameras=())


def test_one_frame_makes_no_step_and_states_have_an_end(tmp_path):
    with pytest.raises(InvalidDemonstration, match="a single frame, from which no step follows"):
        to_demonstration(make_episode(tmp_path / "a", [make_frame()]), cameras=())
    for name, change, message in [
        ("b", None, "was recorded without task_low_dim_state"),
        ("c", np.zeros(suite.TASK_STATE_DIM + 1), f"state has room for {suite.TASK_STATE_DIM}"),
    ]:
        episode = make_episode(tmp_path / name, [make_frame(task_low_dim_state=change)] * 2)
        with pytest.raises(InvalidDemonstration, match=message):
            to_demonstration(episode, cameras=(), state=True)


def test_pictures_are_resized_on_request(tmp_path):
    path = write_episode(tmp_path, [make_frame()] * 2, cameras=("front",))
    write_pictures(path / "front_rgb", np.full((2, SIZE, SIZE, 3), (10, 20, 30), np.uint8))
    episode = read_episode(path)
    demo = to_demonstration(episode, cameras=("primary",), image_size=4)
    assert demo.observations["rgb_primary"].shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(demo.observations["rgb_primary"][1, 2, 3], [10, 20, 30])
    assert demo.keywords["image_size"] == 4
    write_pictures(path / "front_rgb", np.zeros((2, SIZE, 2, 3), np.uint8))
    with pytest.raises(InvalidDemonstration, match="would be distorted by image_size=4"):
        to_demonstration(read_episode(path), cameras=("primary",), image_size=4)


# Key poses


def find(tmp_path, opens, fast):
    """Return the key poses of an episode: gripper per frame, and whether the arm moves there."""
    frames = [
        make_frame(is_open=float(o), velocities=[0.0] * 6 + [0.3 if f == "1" else 0.09])
        for o, f in zip(opens, fast, strict=True)
    ]
    return find_keyposes(make_episode(tmp_path, frames))


@pytest.mark.parametrize(
    ("opens", "fast", "expected"),
    [
        # Never still, never a grasp: only the last frame.
        (("1111111111"), ("1111111111"), [9]),
        # The gripper closes at 3 and opens at 7.
        (("1110000111"), ("1111111111"), [3, 7, 9]),
        # Still at 5. Still at 0 too, which is no key pose, and over before 5.
        (("1111111111"), ("0111101111"), [5, 9]),
        # Still from 0 on: the pause lasts over frames 1 to 4, then 5 to 5 + 4.
        (("1" * 14), ("0" * 14), [5, 10, 13]),
        # Still at 3, 4 and 8: 4 lies within the pause, which ends after 7.
        (("1" * 12), ("111001110111"), [3, 8, 11]),
        # Still at 3 and 7: 7 is the last frame of the pause.
        (("1" * 12), ("111011101111"), [3, 11]),
        # Still at 3, but the gripper closes at 4, or has closed at 2 or at 3.
        (("1111000000"), ("1110111111"), [4, 9]),
        (("1100000000"), ("1110111111"), [2, 9]),
        (("1110000000"), ("1110111111"), [3, 9]),
        # It has closed at 1, two frames before the earliest that still at 3 looks at.
        (("1000000000"), ("1110111111"), [1, 3, 9]),
        # A stop in the last frame but one is its neighbour, one frame earlier it is not.
        (("1" * 8), ("11111101"), [7]),
        (("1" * 8), ("11111011"), [5, 7]),
        # The gripper opens in the last frame but one: that and the last are neighbours.
        (("0000000011"), ("1111111111"), [9]),
        # Neighbours elsewhere stay.
        (("1101111111"), ("1111111111"), [2, 3, 9]),
        (("11"), ("11"), [1]),
    ],
)
def test_key_poses_by_hand(tmp_path, opens, fast, expected):
    opens = [int(o) for o in opens]
    assert find(tmp_path, opens, fast) == expected


def test_an_end_that_differs_from_the_start_does_not_make_a_stop_at_the_start(tmp_path):
    """PerAct's code finds one at frame 2 here: its frames before the first are those at the end."""
    assert find(tmp_path, [1] * 8 + [0] * 4, "000111111111") == [8, 11]


@settings(max_examples=30)
@given(
    frames=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30),
)
def test_key_poses_rise_end_with_the_last_frame_and_hold_every_change(tmp_path_factory, frames):
    opens = [int(o) for o, _ in frames]
    found = find(tmp_path_factory.mktemp("keys"), opens, ["1" if f else "0" for _, f in frames])
    last = len(frames) - 1
    assert found[-1] == last
    assert 0 not in found
    assert found == sorted(set(found))
    changes = {i for i in range(1, last + 1) if opens[i] != opens[i - 1]}
    assert changes - set(found) <= {last - 1}


def test_in_keypose_a_demonstration_has_one_step_per_key_pose(tmp_path):
    half = np.sqrt(0.5)
    frames = [make_frame((0.01 * i, 0, 1, *DOWN), velocities=np.ones(7)) for i in range(6)]
    frames[3] |= make_frame((0.25, 0.0, 1.252, half, half, 0, 0), is_open=0.0)
    frames[4] |= {"gripper_open": 0.0}
    frames[5] |= make_frame((0.775, -0.655, 0.752, -half, 0, 0, -half), is_open=0.0)
    episode = read_episode(write_episode(tmp_path, frames))
    assert find_keyposes(episode) == [3, 5]
    demo = to_demonstration(episode, "keypose")
    # The middle of the workspace, then its corner; quaternions with w >= 0; closed.
    expected = [[0, 0, 0, half, half, 0, 0, -1], [1, -1, -1, half, 0, 0, half, -1]]
    np.testing.assert_allclose(demo.actions, expected, atol=1e-6)
    pictures = make_pictures([4, 0], 6)
    np.testing.assert_array_equal(demo.observations["rgb_primary"], pictures[[0, 3, 5]])
    np.testing.assert_allclose(demo.observations["proprio"][:, 0], [0.268, 0.518, 1.043], atol=1e-6)
    first = suite.decode_keypose(demo.actions[0])
    np.testing.assert_allclose(first.position_m, [0.25, 0, 1.252], atol=1e-6)


# Points


def test_points_by_hand():
    """Focal length 2 pixels, centre at column 2, row 1; camera 3 m up, looking along +x."""
    intrinsics = [[-2.0, 0, 2], [0, -2.0, 1], [0, 0, 1]]
    # Columns: the camera's x (left in the picture) is +y, its y (up) is +z, its z (ahead) is +x.
    extrinsics = np.array([[0, 0, 1, 10.0], [1, 0, 0, 20], [0, 1, 0, 3], [0, 0, 0, 1]])
    points = point_cloud(np.full((3, 5), 4.0), intrinsics, extrinsics)
    assert points.shape == (3, 5, 3)
    np.testing.assert_allclose(points[1, 2], [14, 20, 3])  # the centre: 4 m ahead
    np.testing.assert_allclose(points[1, 4], [14, 16, 3])  # 2 columns right: 2 / 2 * 4 m
    np.testing.assert_allclose(points[0, 2], [14, 20, 5])  # 1 row up: 1 / 2 * 4 m


@given(seed=st.integers(0, 2**31 - 1))
def test_points_project_back_onto_their_pixels_at_their_depth(seed):
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.1, 3, (2, 4, 5))
    k = np.zeros((2, 3, 3))
    k[:, 0, 0], k[:, 1, 1], k[:, 2, 2] = -rng.uniform(50, 200, 2), -rng.uniform(50, 200, 2), 1
    k[:, :2, 2] = rng.uniform(0, 5, (2, 2))
    pose = np.tile(np.eye(4), (2, 1, 1))
    pose[:, :3, :3] = Rotation.from_rotvec(rng.normal(size=(2, 3))).as_matrix()
    pose[:, :3, 3] = rng.normal(size=(2, 3))
    points = point_cloud(depth, k, pose)
    for n in range(2):
        there = np.linalg.inv(pose[n]) @ np.append(points[n, 3, 1], 1)
        pixel = k[n] @ there[:3]
        np.testing.assert_allclose(pixel[2], depth[n, 3, 1])
        np.testing.assert_allclose(pixel[:2] / pixel[2], [1, 3], atol=1e-9)
        np.testing.assert_allclose(points[n], point_cloud(depth[n], k[n], pose[n]))


def test_the_bombs_of_these_tests_are_no_duds(tmp_path):
    """Python's own unpickler runs them, so that the refusals above mean something."""
    for name in ("posix.system", "builtins.eval", "builtins.exec", "array of type 'O8'"):
        marker = tmp_path / name
        pickle.loads(pickle.dumps(make_bombs(marker)[name], 3))
        assert marker.exists()
