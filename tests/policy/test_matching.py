"""A policy meets an env: bound, checked, converted without loss or refused."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support import needs
from vla_gym.contract import ee_delta_entries, prefix_entries
from vla_gym.errors import ContractMismatch
from vla_gym.policy import Policy, PolicySpec, connect, make_policy

SCALE_RAD = 4.0  # a power of two: multiplying by it rounds nothing, and it reaches beyond pi


def sheet_of(**keywords):
    return gym.make("VLA/Toy-Reach-v0", **keywords).unwrapped.spec_sheet


def turning_sheet(rotation_rad=SCALE_RAD):
    """Return the sheet of an arm that can turn its wrist, which Toy's cannot."""
    return dataclasses.replace(sheet_of(), action=ee_delta_entries(0.05, rotation_rad))


class Speaker:
    """Says the actions that it is given, and remembers what it hears."""

    def __init__(self, spec, actions=None):
        self.spec, self.actions, self.heard = spec, actions, []

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.heard.append((observation, state, episode_start, deterministic))
        return self.actions, (state or 0) + 1


class Untold:
    """Declares nothing, as a Stable-Baselines3 model does."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.zeros((1, 7), np.float32), state


def refuse(spec, sheet):
    """Return the text with which the policy is refused."""
    with pytest.raises(ContractMismatch) as caught:
        connect(Speaker(spec), sheet)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_a_policy_that_declares_nothing_is_returned_as_it_is():
    policy = Untold()
    assert connect(policy, sheet_of()) is policy


def test_a_policy_that_speaks_as_the_env_does_is_returned_as_it_is():
    spec = PolicySpec(
        suites=("MetaWorld", "Toy"),
        cameras=("wrist",),
        image_size=128,
        state=True,
        proprio="eef",
        instruction="text",
        action_mode="ee_delta",
        action_dim=7,
    )
    policy = Speaker(spec)
    assert connect(policy, sheet_of(state=True)) is policy  # it may look at fewer cameras


def test_for_env_binds_the_policy_to_the_env_of_the_sheet():
    asked = []

    class Fitting(Untold):
        spec = PolicySpec(cameras=())

        def for_env(self, sheet):
            asked.append(sheet)
            return "bound"

    sheet = sheet_of()
    assert connect(Fitting(), sheet) == "bound" and asked == [sheet]
    native = connect(make_policy("random"), sheet_of(action_mode="native"))
    assert native.predict({"proprio": np.zeros((2, 10))})[0].shape == (2, 4)


def test_a_policy_that_does_not_fit_is_refused_before_it_is_bound():
    class Fussy(Untold):
        spec = PolicySpec(suites=("MetaWorld",))

        def for_env(self, sheet):
            raise AssertionError("bound")

    with pytest.raises(ContractMismatch, match=r"Fussy does not fit VLA/Toy-Reach-v0: suite: the"):
        connect(Fussy(), sheet_of())


@pytest.mark.parametrize(
    ("spec", "keywords", "text"),
    [
        (
            {"suites": ("MetaWorld",)},
            {},
            "suite: the policy acts in ('MetaWorld',), the env is 'Toy'",
        ),
        (
            {"cameras": ("wrist", "top")},
            {"cameras": ("wrist", "primary")},
            "cameras: the policy reads ['top'], the env shows ['primary', 'wrist']",
        ),
        ({"image_size": 224}, {}, "image_size: the policy has 224, the env 128"),
        ({"state": True}, {}, "state: the policy reads it, the env does not show it (state=True"),
        ({"proprio": "joints"}, {}, "proprio: the policy has 'joints', the env 'eef'"),
        ({"instruction": "embedding"}, {}, "instruction: the policy has 'embedding', the env 'te"),
        ({"action_mode": "native"}, {}, "action_mode: the policy has 'native', the env 'ee_delta'"),
        ({"action_dim": 4}, {}, "action entries: the policy has 4, the env 7"),
        ({"keywords": (("robot", "Panda"),)}, {}, "robot: the policy has 'Panda', the env None"),
        ({"gripper": "+1 shuts"}, {}, "gripper: '+1 shuts' is unknown, valid are ('+1 opens', "),
        ({"rotation": "quaternion"}, {}, "rotation: 'quaternion' is unknown, valid are ('axis-an"),
        (
            {"gripper": "+1 closes"},
            {"action_mode": "native"},
            "gripper: '+1 closes' can be converted in action_mode='ee_delta' only",
        ),
        (
            {"rotation": "euler xyz"},
            {"action_mode": "native"},
            "rotation: 'euler xyz' can be converted in action_mode='ee_delta' only",
        ),
    ],
)
def test_each_difference_is_refused_with_both_sides(spec, keywords, text):
    found = refuse(PolicySpec(**spec), sheet_of(**keywords))
    assert found.startswith(f"Speaker does not fit VLA/Toy-Reach-v0: {text}")
    assert found.count("; ") == 0  # nothing else is held against it


def test_all_differences_are_listed_at_once_with_the_keywords_that_mend_them():
    spec = PolicySpec(
        suites=("MetaWorld",),
        cameras=("top",),
        image_size=64,
        state=True,
        proprio="joints",
        instruction="bytes",
        action_mode="native",
        action_dim=4,
        gripper="+1 shuts",
        rotation="quaternion",
        keywords=(("robot", "Panda"),),
    )
    text = refuse(spec, sheet_of())
    differences = text.partition(": ")[2].split("; ")
    named = "suite, cameras, image_size, state, proprio, instruction, action_mode, action entries"
    assert [difference.partition(":")[0] for difference in differences] == [
        *named.split(", "),
        "robot",
        "gripper",
        "rotation",
    ]
    assert text.endswith(
        "Make the env with {'cameras': ('top',), 'image_size': 64, 'state': True, 'proprio': "
        "'joints', 'instruction': 'bytes', 'action_mode': 'native', 'robot': 'Panda'} or choose "
        "another policy"
    )


def test_the_keywords_that_a_policy_asks_for_make_an_env_that_fits_it():
    spec = PolicySpec(
        cameras=("top",), image_size=32, state=True, proprio="joints", action_mode="native"
    )
    policy = Speaker(spec)
    with pytest.raises(ContractMismatch):
        connect(policy, sheet_of())
    assert connect(policy, sheet_of(**spec.env_keywords())) is policy
    assert PolicySpec().env_keywords() == {}


def test_a_blind_policy_does_not_mind_the_size_of_the_pictures():
    policy = Speaker(PolicySpec(cameras=(), image_size=224))
    assert connect(policy, sheet_of()) is policy


def test_a_gripper_of_the_opposite_sign_is_flipped_and_nothing_else():
    said = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0], [0, 0, 0, 0, 0, 0, -0.25]], np.float32)
    kept = said.copy()
    policy = connect(Speaker(PolicySpec(gripper="+1 closes"), said), turning_sheet())
    heard, _ = policy.predict({})
    np.testing.assert_array_equal(heard[:, :6], kept[:, :6])
    assert heard[:, 6].tolist() == [-1.0, 0.25]
    np.testing.assert_array_equal(said, kept)  # the policy's own array is not touched


def test_both_arms_are_converted():
    one = ee_delta_entries(0.05, SCALE_RAD)
    both = (*prefix_entries("arm0_", one), *prefix_entries("arm1_", one))
    sheet = dataclasses.replace(sheet_of(), action=both)
    spec = PolicySpec(gripper="+1 closes", rotation="euler xyz")
    # 90 degrees about one axis is the same in both forms; about x then y it is not.
    quarter = np.pi / 2 / SCALE_RAD
    said = np.zeros((1, 14), np.float32)
    said[0, [3, 6, 10, 11, 13]] = quarter, 1, quarter, quarter, -0.5
    heard, _ = connect(Speaker(spec, said), sheet).predict({})
    np.testing.assert_allclose(heard[0, 3:6], [quarter, 0, 0], atol=1e-7)
    # Ry(90) Rx(90) maps x to -z, y to x and z to -y: 120 degrees about (1, 1, -1) / sqrt 3.
    axis = np.array([1, 1, -1]) / np.sqrt(3)
    np.testing.assert_allclose(heard[0, 10:13] * SCALE_RAD, axis * np.radians(120), rtol=1e-6)
    assert heard[0, [6, 13]].tolist() == [-1.0, 0.5]
    assert not heard[0, [0, 1, 2, 7, 8, 9]].any()


def test_rotation_is_left_alone_where_the_robot_ignores_it():
    said = np.full((1, 7), 0.5, np.float32)
    policy = connect(Speaker(PolicySpec(rotation="euler xyz"), said), sheet_of())
    np.testing.assert_array_equal(policy.predict({})[0], said)


def test_observation_state_and_flags_pass_through_a_conversion():
    speaker = Speaker(PolicySpec(gripper="+1 closes"), np.zeros((2, 7), np.float32))
    policy = connect(speaker, turning_sheet())
    assert isinstance(policy, Policy)
    observation, starts = {"proprio": np.zeros((2, 10))}, np.array([True, False])
    _, state = policy.predict(observation)
    assert state == 1
    _, state = policy.predict(observation, state, episode_start=starts, deterministic=False)
    assert state == 2
    heard, state, episode_start, deterministic = speaker.heard[1]
    assert heard is observation and state == 1
    assert episode_start is starts and deterministic is False
    assert speaker.heard[0][1:] == (None, None, True)


def test_a_seed_reaches_the_policy_behind_a_conversion_if_it_takes_one():
    seeds = []

    class Seeded(Speaker):
        def set_random_seed(self, seed):
            seeds.append(seed)

    spec = PolicySpec(gripper="+1 closes")
    connect(Seeded(spec), turning_sheet()).set_random_seed(9)
    connect(Speaker(spec), turning_sheet()).set_random_seed(10)  # it takes none: no error
    assert seeds == [9]


def convert(euler):
    """Return what the env gets for Euler angles [rad] of a policy, as rotation vectors [rad]."""
    said = np.zeros((len(euler), 7), np.float32)
    said[:, 3:6] = euler / SCALE_RAD
    policy = connect(Speaker(PolicySpec(rotation="euler xyz"), said), turning_sheet())
    actions, _ = policy.predict({})
    assert actions.dtype == np.float32 and actions.shape == said.shape
    assert not actions[:, [0, 1, 2, 6]].any()
    return actions[:, 3:6].astype(np.float64) * SCALE_RAD


angle = st.floats(-SCALE_RAD, SCALE_RAD, width=32)
tiny = st.floats(-(2.0**-10), 2.0**-10, width=32)
special = st.sampled_from(
    [float(np.float32(x)) for x in (0, np.pi, -np.pi, np.pi / 2, -np.pi / 2, np.pi / 4, 1e-20)]
)
batches = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.just(3)), elements=angle | tiny | special
)


@needs("eval")
@given(batches)
def test_euler_angles_become_the_rotation_vector_of_the_same_rotation(euler):
    from scipy.spatial.transform import Rotation

    vectors = convert(euler)
    assert (np.linalg.norm(vectors, axis=1) <= np.pi + 1e-6).all()  # the short way round
    expected = Rotation.from_euler("xyz", euler.astype(np.float64))  # lower case: extrinsic
    difference = (Rotation.from_rotvec(vectors) * expected.inv()).magnitude()
    assert difference.max() < 2e-6  # float32 resolves 2.4e-7 at pi
    away = expected.magnitude() < np.pi - 1e-3  # at pi, both signs of the axis are right
    np.testing.assert_allclose(vectors[away], expected.as_rotvec()[away], rtol=1e-6, atol=1e-9)


@needs("eval")
@given(arrays.arrays(np.float32, (1, 3), elements=tiny))
def test_small_angles_are_converted_to_full_relative_precision(euler):
    from scipy.spatial.transform import Rotation

    expected = Rotation.from_euler("xyz", euler.astype(np.float64)).as_rotvec()
    size = float(np.abs(euler).max())
    # float32 rounds each entry by 6e-8 of itself, below 1e-38 more; scipy errs by 1e-16 of the
    # largest entry.
    np.testing.assert_allclose(convert(euler), expected, rtol=1e-6, atol=1e-14 * size + 1e-38)


@given(st.integers(0, 2), st.floats(-np.pi, np.pi))
def test_a_turn_about_one_axis_is_the_same_in_both_forms(axis, size):
    euler = np.zeros((1, 3), np.float32)
    euler[0, axis] = np.clip(size, -3.14159, 3.14159)  # within pi after rounding
    np.testing.assert_allclose(convert(euler), euler, rtol=1e-6, atol=1e-12)
