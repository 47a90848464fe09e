"""What a policy sees and says in its own forms, and the env in others: there and back."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support import needs
from vla_gym.contract import ee_delta_entries, eef_proprio, prefix_entries
from vla_gym.errors import ContractMismatch
from vla_gym.policy import PolicySpec, connect
from vla_gym.policy.conversions import (
    GRIPPERS,
    ROTATIONS,
    TURNS,
    ActionConversion,
    ObservationConversion,
)
from vla_gym.rotations import euler_to_matrix, rotation_vector, vector_to_matrix

ENV_M, ENV_RAD = 0.05, 0.5


def toy_sheet(**keywords):
    return gym.make("VLA/Toy-Reach-v0", **keywords).unwrapped.spec_sheet


def turning_sheet(arms=1, **keywords):
    """Return the sheet of an env whose hands can turn, which Toy's cannot."""
    sheet = toy_sheet(**keywords)
    one = ee_delta_entries(ENV_M, ENV_RAD)
    if arms == 1:
        return dataclasses.replace(sheet, action=one)
    return dataclasses.replace(
        sheet,
        action=(*prefix_entries("arm0_", one), *prefix_entries("arm1_", one)),
        proprio=(*prefix_entries("arm0_", sheet.proprio), *prefix_entries("arm1_", sheet.proprio)),
    )


class Speaker:
    """Says the actions that it is given, and remembers what it sees."""

    def __init__(self, spec, actions):
        self.spec, self.actions = spec, np.array(actions, np.float32)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.seen = observation
        return self.actions, state


def proprio_of(*vectors, opening=0.25):
    """Return a batch of proprio with one arm, its hand turned by rotation vectors [rad]."""
    rows = [
        eef_proprio(np.array([0.1, 0.2, 0.3]), vector_to_matrix(np.array(v, np.float64)), opening)
        for v in vectors
    ]
    return np.array(rows, np.float32)


# Actions


def hear(spec, said, sheet=None, **observation):
    """Return what the env hears when a policy of that spec says `said`, one action."""
    policy = connect(Speaker(spec, [said]), sheet or turning_sheet())
    return policy.predict(observation)[0][0]


@pytest.mark.parametrize(
    ("form", "opens", "closes", "half"),
    [
        ("+1 opens", 1, -1, 0),
        ("+1 closes", -1, 1, 0),
        ("1 opens, 0 closes", 1, 0, 0.5),
        ("1 closes, 0 opens", 0, 1, 0.5),
    ],
)
def test_the_gripper_opens_in_each_form(form, opens, closes, half):
    heard = [hear(PolicySpec(gripper=form), [0] * 6 + [g])[6] for g in (opens, closes, half)]
    assert heard == [1.0, -1.0, 0.0]


def test_a_quaternion_turns_the_hand_as_its_rotation_vector_does():
    half = 0.3 / 2  # [rad], about y; the env's unit is 0.5 rad
    for form, quaternion in (
        ("quaternion xyzw", [0, np.sin(half), 0, np.cos(half)]),
        ("quaternion wxyz", [np.cos(half), 0, np.sin(half), 0]),
        ("quaternion wxyz", [-2 * np.cos(half), 0, -2 * np.sin(half), 0]),  # the same rotation
    ):
        spec = PolicySpec(rotation=form, action_dim=8)
        heard = hear(spec, [0.1, 0.2, 0.3, *quaternion, -1.0])
        np.testing.assert_allclose(heard, [0.1, 0.2, 0.3, 0, 0.6, 0, -1], atol=1e-6)


def test_six_numbers_turn_the_hand_too():
    columns = [np.cos(0.3), np.sin(0.3), 0, -np.sin(0.3), np.cos(0.3), 0]  # 0.3 rad about z
    heard = hear(PolicySpec(rotation="6d", action_dim=10), [0, 0, 0, *columns, 1])
    np.testing.assert_allclose(heard, [0, 0, 0, 0, 0, 0.6, 1], atol=1e-6)


def test_a_policy_with_four_entries_leaves_the_hand_as_it_stands():
    spec = PolicySpec(rotation="none", gripper="+1 closes", action_dim=4)
    assert hear(spec, [0.5, -0.5, 0.25, 1.0]).tolist() == [0.5, -0.5, 0.25, 0, 0, 0, -1.0]


def test_metres_and_degrees_become_the_envs_units():
    spec = PolicySpec(scale=(1.0, np.pi / 180))
    heard = hear(spec, [0.05, -0.025, 0.1, np.degrees(0.5), 0, np.degrees(-0.25), 1])
    np.testing.assert_allclose(heard, [1, -0.5, 2, 1, 0, -0.5, 1], rtol=1e-6)


def test_degrees_as_euler_angles_become_a_rotation_vector():
    spec = PolicySpec(scale=(1.0, np.pi / 180), rotation="euler xyz")
    heard = hear(spec, [0, 0, 0, 90, 90, 0, 1])
    expected = rotation_vector(euler_to_matrix([np.pi / 2, np.pi / 2, 0])) / ENV_RAD
    np.testing.assert_allclose(heard[3:6], expected, rtol=1e-6)


def test_motion_in_the_hands_frame_is_turned_to_the_base():
    spec = PolicySpec(frame="hand")
    # The hand is turned a quarter about z: its x axis is the base's y, its y axis the base's -x.
    proprio = proprio_of([0, 0, np.pi / 2])
    heard = hear(spec, [0.5, 0.25, 0.125, 0.5, 0, 0, 1], proprio=proprio)
    np.testing.assert_allclose(heard, [-0.25, 0.5, 0.125, 0, 0.5, 0, 1], atol=1e-6)


def test_each_arm_is_turned_by_its_own_hand():
    proprio = np.concatenate(
        [proprio_of([0, 0, np.pi / 2]), proprio_of([0, 0, -np.pi / 2])], axis=1
    )
    said = [1, 0, 0, 0, 0, 0, 1] * 2
    heard = hear(PolicySpec(frame="hand"), said, turning_sheet(arms=2), proprio=proprio)
    np.testing.assert_allclose(heard[[0, 1, 2]], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(heard[[7, 8, 9]], [0, -1, 0], atol=1e-6)


@pytest.mark.parametrize("rotation", ["euler xyz", "quaternion xyzw", "6d"])
def test_a_robot_that_cannot_turn_its_wrist_gets_no_rotation(rotation):
    size = ROTATIONS[rotation].size
    spec = PolicySpec(rotation=rotation, scale=(0.05, 1.0))
    heard = hear(spec, [0.5, 0, 0, *[0.5] * size, 1], toy_sheet())
    assert heard[3:6].tolist() == [0, 0, 0] and heard[6] == 1


vectors = arrays.arrays(np.float32, 3, elements=st.floats(-1, 1, width=32))


@given(
    motion=arrays.arrays(np.float32, (2, 7), elements=st.floats(-1, 1, width=32)),
    hands=st.tuples(vectors, vectors),
    gripper=st.sampled_from(list(GRIPPERS)),
    rotation=st.sampled_from(list(ROTATIONS)),
    frame=st.sampled_from(["base", "hand"]),
    scale=st.sampled_from([None, (1.0, 1.0), (0.01, np.pi / 180)]),
)
def test_actions_converted_there_and_back_are_the_same(
    motion, hands, gripper, rotation, frame, scale
):
    spec = PolicySpec(gripper=gripper, rotation=rotation, frame=frame, scale=scale)
    conversion = ActionConversion(spec, turning_sheet())
    proprio = proprio_of(*(np.pi * hand for hand in hands))
    said = conversion.to_policy(motion, proprio)
    assert said.shape == (2, conversion.policy_dim) and said.dtype == np.float32
    # float32 keeps 6e-8 of entries up to 57.3; a quaternion keeps 6e-8 of 1, the env's unit is 0.5
    np.testing.assert_allclose(conversion.to_env(said, proprio), motion, atol=2e-6)


def test_what_cannot_be_converted_is_refused_with_both_sides():
    for spec, keywords, text in (
        ({"frame": "world"}, {}, "frame: 'world' is unknown, valid are ('base', 'hand')"),
        (
            {"frame": "hand"},
            {"proprio": "joints"},
            "frame: 'hand' can be converted with proprio='eef' only",
        ),
        ({"frame": "hand"}, {"action_mode": "native"}, "frame: 'hand' can be converted in action"),
        ({"scale": (1.0, 0.0)}, {}, "scale: (1.0, 0.0) is not (metres, radians), two numbers"),
        ({"scale": (1.0, 1.0)}, {"action_mode": "native"}, "scale: (1.0, 1.0) can be converted in"),
        (
            {"rotation": "quaternion xyzw", "action_dim": 7},
            {},
            "action entries: the policy has 7, the env 7, and rotation='quaternion xyzw' makes 8",
        ),
        (
            {"proprio_rotation": "axis-angle"},
            {"proprio": "joints"},
            "proprio_rotation: 'axis-angle' can be converted with proprio='eef' only",
        ),
        ({"image_turn": "left"}, {}, "image_turn: 'left' is unknown, valid are ('upright', 'rot"),
        ({"image_channels": "GRAY"}, {}, "image_channels: 'GRAY' is unknown, valid are ('RGB', "),
        ({"resize": "fast"}, {}, "resize: 'fast' is unknown, valid are (None, 'nearest', "),
    ):
        with pytest.raises(ContractMismatch) as caught:
            connect(Speaker(PolicySpec(**spec), []), toy_sheet(**keywords))
        found = str(caught.value)
        assert found.startswith(f"Speaker does not fit VLA/Toy-Reach-v0: {text}"), found
        assert found.count("; ") == 0


def test_a_policy_that_breaks_its_own_word_is_named():
    policy = connect(Speaker(PolicySpec(rotation="none"), np.zeros((1, 7))), turning_sheet())
    with pytest.raises(ContractMismatch, match=r"Speaker returned actions of shape \(1, 7\); its"):
        policy.predict({})


# Observations


def see(spec, sheet=None, **observation):
    """Return what a policy of that spec sees of an observation."""
    policy = connect(speaker := Speaker(spec, np.zeros((1, 7))), sheet or toy_sheet(image_size=8))
    policy.predict(observation)
    return speaker.seen


def test_pictures_are_turned_and_their_channels_brought_in_order():
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    picture[0, 0, 1] = 10, 20, 30  # near the upper left corner
    seen = {
        turn: see(PolicySpec(image_turn=turn), rgb_primary=picture, rgb_wrist=picture)
        for turn in TURNS
    }
    for turn, (row, column) in {
        "upright": (0, 1),
        "rotated 180": (7, 6),
        "upside down": (7, 1),
        "mirrored": (0, 6),
    }.items():
        for camera in ("rgb_primary", "rgb_wrist"):
            assert seen[turn][camera][0, row, column].tolist() == [10, 20, 30]
    spec = PolicySpec(image_channels="BGR", image_layout="CHW", cameras=("primary",))
    found = see(spec, rgb_primary=picture, rgb_wrist=picture)
    assert found["rgb_primary"].shape == (1, 3, 8, 8)
    assert found["rgb_primary"][0, :, 0, 1].tolist() == [30, 20, 10]
    assert found["rgb_wrist"] is picture  # not one that it reads


def test_pictures_are_drawn_in_one_size_and_scaled_to_another():
    spec = PolicySpec(cameras=("primary",), image_size=8, drawn_size=16, resize="bilinear")
    assert spec.env_keywords()["image_size"] == 16
    env = gym.make("VLA/Toy-Reach-v0", **spec.env_keywords())
    drawn = env.reset(seed=0)[0]["rgb_primary"][None]
    env.close()
    assert drawn.shape == (1, 16, 16, 3)
    assert see(spec, env.unwrapped.spec_sheet, rgb_primary=drawn)["rgb_primary"].shape[1] == 8
    with pytest.raises(ContractMismatch, match="image_size: the policy has 8, the env 16"):
        see(dataclasses.replace(spec, resize=None), env.unwrapped.spec_sheet, rgb_primary=drawn)


def test_what_a_policy_declares_can_be_said_for_it():
    policy = Speaker(PolicySpec(gripper="+1 closes"), np.ones((1, 7), np.float32))
    observation = {"proprio": np.zeros((1, 10), np.float32)}
    for spec, sign in ((None, -1), (PolicySpec(), 1)):
        actions, _ = connect(policy, toy_sheet(), spec).predict(observation)
        assert actions[0, 6] == sign


@given(
    arrays.arrays(np.uint8, (2, 4, 4, 3)),
    st.sampled_from(list(TURNS)),
    st.sampled_from(["RGB", "BGR"]),
)
def test_pictures_turned_there_and_back_are_the_same(pictures, turn, channels):
    spec = PolicySpec(image_turn=turn, image_channels=channels, cameras=("primary",))
    conversion = ObservationConversion(spec, toy_sheet())
    assert conversion.trivial == (turn == "upright" and channels == "RGB")
    once = conversion._convert_pictures(pictures, 4)
    np.testing.assert_array_equal(conversion._convert_pictures(once, 4), pictures)


@needs("eval")
def test_pictures_are_scaled_only_where_the_policy_says_how():
    sheet = toy_sheet(image_size=8)
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    pictures[1, :4] = 200  # the upper half
    with pytest.raises(ContractMismatch, match="image_size: the policy has 4, the env 8"):
        connect(Speaker(PolicySpec(image_size=4), []), sheet)
    for size in (4, 16):
        spec = PolicySpec(image_size=size, resize="bilinear", image_turn="upside down")
        found = see(spec, sheet, rgb_primary=pictures, rgb_wrist=pictures)["rgb_primary"]
        assert found.shape == (2, size, size, 3) and not found[0].any()
        assert (found[1, 0] == 0).all() and (found[1, -1] == 200).all()
    assert connect(Speaker(PolicySpec(image_size=4, cameras=()), []), sheet)  # it sees none


def test_the_hands_rotation_is_told_in_the_policys_form():
    proprio = proprio_of([0, 0, np.pi / 2])
    half = np.sqrt(0.5)
    for form, expected in {
        "6d": [0, 1, 0, -1, 0, 0],
        "axis-angle": [0, 0, np.pi / 2],
        "euler xyz": [0, 0, np.pi / 2],
        "quaternion xyzw": [0, 0, half, half],
        "quaternion wxyz": [half, 0, 0, half],
    }.items():
        spec = PolicySpec(proprio_rotation=form, proprio_gripper="+1 closes")
        found = see(spec, proprio=proprio)["proprio"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, [[0.1, 0.2, 0.3, *expected, 0.5]], atol=1e-6)


@pytest.mark.parametrize(
    ("form", "quarter_open"),
    [
        ("+1 opens", -0.5),
        ("+1 closes", 0.5),
        ("1 opens, 0 closes", 0.25),
        ("1 closes, 0 opens", 0.75),
    ],
)
def test_the_opening_is_told_in_the_policys_form(form, quarter_open):
    found = see(PolicySpec(proprio_gripper=form), proprio=proprio_of([0, 0, 0]))
    assert found["proprio"][0, -1] == pytest.approx(quarter_open)


@given(vectors, st.sampled_from(list(ROTATIONS)))
def test_rotations_told_in_another_form_are_the_same_rotations(vector, form):
    matrix = vector_to_matrix(3.0 * vector.astype(np.float64))
    assume(abs(matrix[2, 0]) < 0.999)  # elsewhere Euler angles are not unique
    entries = ROTATIONS[form].from_matrix(matrix)
    assert entries.shape == (ROTATIONS[form].size,)
    np.testing.assert_allclose(ROTATIONS[form].to_matrix(entries), matrix, atol=1e-9)


def test_one_spec_converts_what_is_seen_and_what_is_said():
    """A policy as OpenVLA's on LIBERO: pictures rotated, gripper 1 closing, axis-angle proprio."""
    spec = PolicySpec(
        image_turn="rotated 180", proprio_rotation="axis-angle", gripper="1 closes, 0 opens"
    )
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    picture[0, 0, 0] = 255
    policy = connect(speaker := Speaker(spec, [[0.5] * 6 + [1.0]]), turning_sheet(image_size=8))
    actions, _ = policy.predict(
        {"rgb_primary": picture, "rgb_wrist": picture, "proprio": proprio_of([0.1, 0, 0])}
    )
    assert actions.tolist() == [[0.5] * 6 + [-1.0]]
    assert (speaker.seen["rgb_primary"][0, -1, -1] == 255).all()
    np.testing.assert_allclose(speaker.seen["proprio"][0, 3:6], [0.1, 0, 0], atol=1e-6)
