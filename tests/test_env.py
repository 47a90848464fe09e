"""The laws of `VLAEnv` and of the contract's small functions, on the Toy suite."""

from __future__ import annotations

import dataclasses
import json
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ClosedEnvironmentError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vla_gym import registration
from vla_gym.contract import (
    EE_DELTA,
    EEF_PROPRIO,
    INFO_KEYS,
    check_action,
    ee_delta_entries,
    eef_proprio,
    two_arms,
)
from vla_gym.embedding import known_embeddings
from vla_gym.env import MAX_IMAGE_SIZE, VLAEnv
from vla_gym.errors import InvalidAction, InvalidOption, ResetNeeded, UnknownName
from vla_gym.suite import ActionMode, Entry, Keyword
from vla_gym.suites import toy

ENTRIES = ee_delta_entries(0.05, 0.5)
UP = np.array([0, 0, 1, 0, 0, 0, 0], np.float32)
ABOVE_HOME = np.array([0.0, 0.0, 0.43])
"""Goal 0.13 m above home: going up by 0.05 m a step, it is within 0.05 m after steps 2 and 3."""


BOTH = ("primary", "wrist")


def make(task="Reach", **keywords):
    """Return the bare env: no wrapper of Gymnasium answers in its place."""
    return gym.make(f"VLA/Toy-{task}-v0", **{"cameras": (), **keywords}).unwrapped


@pytest.fixture
def register(monkeypatch):
    """Return `register_suite`; what it registers is gone after the test."""
    monkeypatch.setattr(registration, "_suites", dict(registration._suites))
    before = dict(gym.registry)
    yield registration.register_suite
    gym.registry.clear()
    gym.registry.update(before)


def play(env, actions, **reset):
    """Return everything that an episode shows: observations, rewards, flags and infos."""
    seen = [env.reset(**reset)]
    seen += [env.step(action) for action in actions]
    return seen


def assert_same(one, other):
    """Raise unless two nested structures are equal, arrays bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def draw_actions(n, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, 7)).astype(np.float32)


# Actions


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ([0, np.nan, 0, 0, 0, 0, 0], r"must be finite: dy \(entry 1\) is nan\. Nothing was sent"),
        ([0, 0, np.inf, 0, 0, 0, 0], r"must be finite: dz \(entry 2\) is inf"),
        (
            [-np.inf, 0, 0, 0, 0, 0, np.nan],
            r"dx \(entry 0\) is -inf, gripper \(entry 6\) is nan",
        ),
        ([None] * 7, r"dx \(entry 0\) is nan"),
        (np.zeros(4), r"has shape \(4,\); it takes shape \(7,\): dx, dy, dz, drx, dry, drz, gri"),
        (np.zeros((1, 7)), r"has shape \(1, 7\); it takes shape \(7,\)"),
        (0.0, r"has shape \(\); it takes shape \(7,\)"),
        ("up", r"is not an array of numbers \(.*'up'\); it takes 7 numbers in \[-1, 1\]: dx, dy"),
        (["open"] * 7, "is not an array of numbers"),
        ([[0, 0], [0]], "is not an array of numbers"),
        ({"dx": 1.0}, "is not an array of numbers"),
        ([10**400, 0, 0, 0, 0, 0, 0], "is not an array of numbers"),
    ],
)
def test_a_bad_action_names_its_entry_and_never_reaches_the_simulator(bad, text):
    env, twin = make(state=True), make(state=True)
    env.reset(seed=5), twin.reset(seed=5)
    assert_same(env.step(UP), twin.step(UP))
    with pytest.raises(InvalidAction, match=f"the action for VLA/Toy-Reach-v0 .*{text}"):
        env.step(bad)
    assert_same(env.step(UP), twin.step(UP))  # the episode goes on as if nothing had been asked


def test_a_bad_action_is_refused_behind_the_wrappers_of_gym_make_too():
    env = gym.make("VLA/Toy-Reach-v0", cameras=())
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match=r"drx \(entry 3\) is nan"):
        env.step(np.array([0, 0, 0, np.nan, 0, 0, 0], np.float32))
    env.step(env.action_space.sample())


def test_values_outside_the_range_are_clipped():
    env, twin = make(state=True), make(state=True)
    env.reset(seed=1), twin.reset(seed=1)
    far = env.step([7.0, -3.0, 1.5, 0, 0, 0, -2.0])
    assert_same(far, twin.step(np.array([1, -1, 1, 0, 0, 0, -1], np.float32)))
    # One step of 0.05 m per axis from (0, 0, 0.3); closing by half: 1 - 0.5.
    np.testing.assert_allclose(far[0]["state"][:4], [0.05, -0.05, 0.35, 0.5], rtol=1e-12)


def test_a_finite_number_beyond_float32_is_clipped_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clipped = check_action([1e300, -1e39, 0, 0, 0, 0, 1e-300], ENTRIES, "here")
    assert clipped.tolist() == [1, -1, 0, 0, 0, 0, 0]


@given(arrays.arrays(np.float32, 7, elements=st.floats(-1, 1, width=32)))
def test_an_action_within_the_range_passes_unchanged(action):
    kept = action.copy()
    checked = check_action(action, ENTRIES, "here")
    assert checked.dtype == np.float32
    assert checked.tobytes() == kept.tobytes() == action.tobytes()
    assert not np.shares_memory(checked, action)


@given(arrays.arrays(np.float64, 7, elements=st.floats(allow_nan=False, allow_infinity=False)))
def test_clipping_is_the_nearest_point_of_the_range_and_done_twice_the_same(action):
    checked = check_action(action, ENTRIES, "here")
    inside = np.abs(action) <= 1
    np.testing.assert_array_equal(checked[inside], action[inside].astype(np.float32))
    np.testing.assert_array_equal(checked[~inside], np.sign(action[~inside]))
    np.testing.assert_array_equal(check_action(checked, ENTRIES, "here"), checked)


def registered_modes():
    """Return every action mode of every task of every suite, without repetition."""
    modes = {}
    for suite in registration.list_suites():
        keywords = {name: word.default for name, word in suite.keywords.items()}
        for task in suite.tasks.values():
            for name, mode in suite.layout(task, keywords).action_modes.items():
                modes[suite.name, name, mode.native, mode.native_dim] = mode
    return list(modes.values())


MODES = registered_modes()


@given(st.sampled_from(MODES), st.data())
def test_the_way_to_the_suites_own_vector_is_linear_and_exact_in_float32(mode, data):
    unit = st.floats(-1, 1, width=32)
    a, b = (
        data.draw(arrays.arrays(np.float32, len(mode.entries), elements=unit)) for _ in range(2)
    )
    native = mode.to_native(a)
    assert native.shape == (mode.native_dim,) and native.dtype == np.float32
    for value, target in zip(a, mode.native, strict=True):
        if target is not None:
            index, gain = target
            assert abs(gain) == 1.0 and native[index] == gain * value  # no rounding
    # With gains of +1 and -1 even float32 sums agree to the last bit.
    np.testing.assert_array_equal(mode.to_native(a + b), native + mode.to_native(b))
    np.testing.assert_array_equal(mode.to_native(-a), -native)


@pytest.mark.parametrize("mode", MODES)
def test_no_two_entries_of_an_action_mode_move_the_same_native_entry(mode):
    used = [target[0] for target in mode.native if target is not None]
    assert sorted(used) == sorted(set(used))
    assert all(0 <= index < mode.native_dim for index in used)
    names = [entry.name for entry in mode.entries]
    assert len(set(names)) == len(names)


def test_to_native_places_signs_and_leaves_ignored_entries_out():
    mode = make()._layout.action_modes["ee_delta"]
    action = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], np.float32)
    np.testing.assert_array_equal(
        mode.to_native(action), np.array([0.1, 0.2, 0.3, -0.7], np.float32)
    )


def test_two_arms_have_first_the_first_arms_entries():
    one = ActionMode((Entry("dx"), Entry("gripper")), ((0, 1.0), None), native_dim=2)
    both = two_arms(one)
    assert [e.name for e in both.entries] == ["arm0_dx", "arm0_gripper", "arm1_dx", "arm1_gripper"]
    assert both.native == ((0, 1.0), None, (2, 1.0), None) and both.native_dim == 4


def test_an_action_mode_with_a_gap_is_refused():
    with pytest.raises(ValueError, match="one `native` item per entry: 2 entries, 1 items"):
        ActionMode((Entry("dx"), Entry("dy")), ((0, 1.0),), native_dim=1)


def test_plus_one_opens_the_gripper_in_ee_delta_and_closes_it_in_native():
    for mode, close in (("ee_delta", [0, 0, 0, 0, 0, 0, -1.0]), ("native", [0, 0, 0, 1.0])):
        env = make(action_mode=mode)
        assert env.reset(seed=0)[0]["proprio"][-1] == 1.0
        assert env.step(close)[0]["proprio"][-1] == 0.5
        assert env.step(-np.array(close))[0]["proprio"][-1] == 1.0
    assert make(action_mode="native").spec_sheet.gripper == "suite's own sign"
    assert make().spec_sheet.gripper == "+1 opens"


# Proprio


def test_eef_proprio_holds_position_two_columns_and_opening_in_the_named_order():
    rotation = np.array([[11.0, 12, 13], [21, 22, 23], [31, 32, 33]])  # digits: row, column
    found = eef_proprio(np.array([1.0, 2, 3]), rotation, 0.25)
    assert found.tolist() == [1, 2, 3, 11, 21, 31, 12, 22, 32, 0.25]
    names = [entry.name for entry in EEF_PROPRIO]
    assert names == ["x", "y", "z", "r11", "r21", "r31", "r12", "r22", "r32", "gripper"]


@given(
    arrays.arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(
        lambda q: np.linalg.norm(q) > 1e-3
    ),
    st.floats(allow_nan=False),
)
def test_the_six_numbers_of_a_rotation_give_it_back_and_the_opening_is_in_range(quaternion, width):
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    found = eef_proprio(np.zeros(3), rotation, width)
    first, second = found[3:6], found[6:9]
    back = np.stack([first, second, np.cross(first, second)], axis=1)
    np.testing.assert_allclose(back, rotation, atol=1e-12)
    assert np.linalg.det(back) == pytest.approx(1.0)
    assert found[9] == np.clip(width, 0, 1)


# Episodes


def test_a_step_needs_a_reset_before_it():
    with pytest.raises(ResetNeeded, match=r"step\(\) of VLA/Toy-Reach-v0: no episode is running"):
        make().step(UP)
    with pytest.raises(ResetNeeded):  # Gymnasium's own wrapper says the same
        gym.make("VLA/Toy-Reach-v0", cameras=()).step(UP)


def test_a_step_after_the_episode_has_ended_is_refused_and_a_reset_starts_anew():
    env = make(terminate_on_success=True)
    env.reset(seed=0, options={"goal": ABOVE_HOME})
    ends = [env.step(UP)[2] for _ in range(2)]
    assert ends == [False, True]  # 0.08 m and 0.03 m from the goal
    with pytest.raises(ResetNeeded, match=r"the episode has ended \(terminated=True\); call reset"):
        env.step(UP)
    env.reset()
    assert env.step(UP)[2] is False


def test_a_refused_reset_leaves_no_episode_to_step():
    env = make()
    env.reset(seed=0)
    with pytest.raises(InvalidOption, match=r"options\['goal'\] must be 3 finite numbers"):
        env.reset(options={"goal": [0, 0]})
    with pytest.raises(ResetNeeded, match="no episode is running"):
        env.step(UP)
    env.reset()
    env.step(UP)


def test_a_closed_env_says_so_and_closes_twice():
    env = make(render_mode="rgb_array")
    env.reset(seed=0)
    env.close()
    env.close()
    for call in (env.reset, lambda: env.step(UP), env.render, lambda: env.render_camera("top")):
        with pytest.raises(ClosedEnvironmentError, match="VLA/Toy-Reach-v0 is closed; make a new"):
            call()


def test_an_env_closes_before_its_first_reset():
    env = make()
    env.close()
    with pytest.raises(ClosedEnvironmentError, match="is closed"):
        env.reset()


@pytest.mark.parametrize("task", ["Reach", "Lift"])
@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_the_same_seed_is_the_same_episode_whatever_ran_before(task, seed):
    keywords = {"cameras": ("primary", "wrist"), "image_size": 16, "state": True}
    actions = draw_actions(12)
    fresh = play(make(task, **keywords), actions, seed=seed)
    used = make(task, **keywords)
    play(used, draw_actions(7, seed=9), seed=123)
    used.reset()
    assert_same(play(used, actions, seed=seed), fresh)


def test_different_seeds_are_different_episodes_and_seed_zero_is_one_of_them():
    env = make(state=True)
    places = [env.reset(seed=seed)[0]["state"][4:6].tobytes() for seed in range(20)]
    assert len(set(places)) == 20
    # A zero that counted as "no seed" would go on with the stream instead.
    assert env.reset(seed=0)[0]["state"][4:6].tobytes() == places[0]


def test_without_a_seed_the_env_goes_on_with_its_own_stream():
    one, other = make(state=True), make(state=True)
    first = [one.reset(seed=3)] + [one.reset() for _ in range(4)]
    again = [other.reset(seed=3)] + [other.reset(seed=None) for _ in range(4)]
    assert_same(first, again)
    seeds = [info["episode_seed"] for _, info in first]
    assert len(set(seeds)) == 5
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(3)))  # as Gymnasium seeds
    assert seeds == [int(rng.integers(2**31)) for _ in range(5)]


def test_the_global_random_state_is_neither_read_nor_changed():
    np.random.seed(0)  # noqa: NPY002  the global generator is what the test is about
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    env = make(state=True, paraphrase=True)
    one = play(env, draw_actions(3), seed=8)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert_same(play(env, draw_actions(3), seed=8), one)


# Observations, info and reward


def test_observations_are_in_their_space_and_hold_the_documented_kinds():
    env = make(cameras=("primary", "wrist", "top"), image_size=24, state=True)
    for observation in (env.reset(seed=0)[0], env.step(UP)[0]):
        assert env.observation_space.contains(observation)
        assert observation.pop("instruction") == "move the gripper to the green ball"
        kinds = {key: (value.shape, value.dtype.name) for key, value in observation.items()}
        assert kinds == {
            "rgb_primary": ((24, 24, 3), "uint8"),
            "rgb_wrist": ((24, 24, 3), "uint8"),
            "rgb_top": ((24, 24, 3), "uint8"),
            "proprio": ((10,), "float32"),
            "state": ((10,), "float64"),
        }


class HoardingSimulator(toy.ToySimulator):
    """Hands out the same arrays each time, as simulators with buffers of their own do."""

    def __init__(self, setup):
        super().__init__(setup)
        self.own = None

    def _frame(self, reward):
        frame = super()._frame(reward)
        if self.own is None:
            self.own = frame
        for camera, picture in frame.images.items():
            self.own.images[camera][:] = picture
        self.own.proprio[:] = frame.proprio
        self.own.state[:] = frame.state
        return frame._replace(
            images=self.own.images, proprio=self.own.proprio, state=self.own.state
        )

    def render(self, camera, height, width):
        if getattr(self, "own", None) is None or height != 16:
            return super().render(camera, height, width)
        self.own.images[camera][:] = super().render(camera, height, width)
        return self.own.images[camera]


def test_observations_share_no_memory_even_if_the_simulator_reuses_its_arrays(register):
    simulator = dataclasses.replace(
        toy.SUITE.simulators[0], entry_point=f"{__name__}:HoardingSimulator"
    )
    register(dataclasses.replace(toy.SUITE, name="Hoard", simulators=(simulator,)))
    keywords = {"cameras": ("primary", "top"), "image_size": 16, "state": True}
    for instruction in ("bytes", "embedding"):
        env = gym.make("VLA/Hoard-Reach-v0", instruction=instruction, **keywords).unwrapped
        observations = [env.reset(seed=0)[0], env.step(UP)[0], env.step(UP)[0], env.reset()[0]]
        kept = pickle.loads(pickle.dumps(observations))
        own = env._simulator.own
        belongings = [*own.images.values(), own.proprio, own.state]
        for i, observation in enumerate(observations):
            for array in observation.values():
                assert array.flags.writeable and array.flags.owndata
                others = [v for o in observations[i + 1 :] for v in o.values()] + belongings
                assert not any(np.shares_memory(array, other) for other in others)
                array[...] = 0  # the caller's own to change
        picture = env.render_camera("top", 16)
        assert not any(np.shares_memory(picture, array) for array in belongings)
        plain = gym.make("VLA/Toy-Reach-v0", instruction=instruction, **keywords).unwrapped
        again = [plain.reset(seed=0)[0], plain.step(UP)[0], plain.step(UP)[0], plain.reset()[0]]
        assert_same(kept, again)


def test_info_has_the_same_keys_at_every_step_and_more_at_reset():
    env = make()
    _, at_reset = env.reset(seed=4)
    *_, at_step = env.step(UP)
    assert set(at_step) == set(INFO_KEYS)
    assert set(at_reset) == {*INFO_KEYS, "episode_seed", "instructions"}
    assert at_step == {
        "success": False,
        "instruction": "move the gripper to the green ball",
        "suite": "Toy",
        "task": "Reach",
        "simulator": "toy",
    }
    assert type(at_step["success"]) is bool and type(at_reset["episode_seed"]) is int
    task = toy.SUITE.tasks["Reach"]
    assert at_reset["instructions"] == (task.instruction, *task.paraphrases)


def test_native_reward_is_the_suites_and_sparse_is_one_in_every_solved_step():
    native, sparse = make(), make(reward="sparse")
    rewards = {"native": [], "sparse": []}
    for name, env in (("native", native), ("sparse", sparse)):
        env.reset(seed=0, options={"goal": ABOVE_HOME})
        for _ in range(6):
            _, reward, terminated, truncated, _ = env.step(UP)
            assert type(reward) is float and not terminated and not truncated
            rewards[name].append(reward)
    # Heights 0.35 to 0.60 in steps of 0.05; the goal is at 0.43 and counts within 0.05.
    assert rewards["native"] == pytest.approx([-0.08, -0.03, -0.02, -0.07, -0.12, -0.17])
    assert rewards["sparse"] == [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert sparse.spec_sheet.reward == "1.0 while solved, else 0.0"
    assert native.spec_sheet.reward == "minus the distance to the target [m]"


@pytest.mark.parametrize(
    ("habit", "asked", "ends"),
    [(False, None, False), (False, True, True), (True, None, True), (True, False, False)],
)
def test_success_ends_the_episode_as_asked_or_by_the_suites_habit(habit, asked, ends, register):
    register(dataclasses.replace(toy.SUITE, name="Habit", terminate_on_success=habit))
    env = gym.make("VLA/Habit-Reach-v0", cameras=(), terminate_on_success=asked).unwrapped
    _, info = env.reset(seed=0, options={"goal": ABOVE_HOME})
    assert info["success"] is False
    _, _, terminated, truncated, info = env.step(UP)
    assert (terminated, truncated, info["success"]) == (False, False, False)
    _, _, terminated, truncated, info = env.step(UP)
    assert (terminated, truncated, info["success"]) == (ends, False, True)
    assert env.spec_sheet.terminate_on_success is ends


def test_the_time_limit_truncates_at_the_horizon():
    env = gym.make("VLA/Toy-Reach-v0", cameras=())
    env.reset(seed=0)
    flags = [env.step(UP)[2:4] for _ in range(50)]
    assert flags == [(False, False)] * 49 + [(False, True)]
    assert env.unwrapped.spec_sheet.horizon == 50


def test_paraphrase_draws_every_wording_and_leaves_the_simulators_draws_alone():
    plain, varied = make(state=True), make(state=True, paraphrase=True)
    drawn = []
    for i in range(60):
        seed = 0 if i == 0 else None
        (calm, _), (lively, info) = plain.reset(seed=seed), varied.reset(seed=seed)
        assert calm["instruction"] == "move the gripper to the green ball"
        assert lively["instruction"] == info["instruction"]
        drawn.append(info["instruction"])
        np.testing.assert_array_equal(calm["state"], lively["state"])
        after, _, _, _, info = varied.step(UP)
        assert after["instruction"] == info["instruction"] == drawn[-1]  # it holds all episode
    task = toy.SUITE.tasks["Reach"]
    assert set(drawn) == {task.instruction, *task.paraphrases} and len(set(drawn)) == 5
    again = [varied.reset(seed=0 if i == 0 else None)[1]["instruction"] for i in range(60)]
    assert again == drawn


# Keywords


def test_without_cameras_there_are_no_pictures():
    env = make(cameras=())
    assert set(env.observation_space) == set(env.reset(seed=0)[0]) == {"proprio", "instruction"}


def test_each_camera_may_have_a_size_of_its_own():
    env = make(cameras=BOTH, image_size={"primary": 20, "wrist": 8})
    observation, _ = env.reset(seed=0)
    assert observation["rgb_primary"].shape == (20, 20, 3)
    assert observation["rgb_wrist"].shape == (8, 8, 3)
    assert observation in env.observation_space
    assert env.spec_sheet.image_size == env.spec_sheet.images == {"primary": 20, "wrist": 8}
    same = make(cameras=BOTH, image_size={"primary": 20, "wrist": 20}).spec_sheet
    assert same == make(cameras=BOTH, image_size=20).spec_sheet
    assert same.image_size == 20
    assert same.images == {"primary": 20, "wrist": 20}
    whole, _ = make(cameras=BOTH, image_size=20).reset(seed=0)
    np.testing.assert_array_equal(whole["rgb_primary"], observation["rgb_primary"])


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"primary": 20}, "must name the cameras that are observed"),
        ({"primary": 20, "wrist": 8, "left": 8}, "must name the cameras that are observed"),
        ({"primary": 20, "wrist": 0}, r"image_size\['wrist'\]=0 .* must be in"),
        ({"primary": 20, "wrist": 8.0}, r"image_size\['wrist'\]=8.0 .* whole number"),
    ],
)
def test_sizes_that_do_not_fit_the_cameras_are_refused(sizes, text):
    with pytest.raises(InvalidOption, match=text):
        make(cameras=BOTH, image_size=sizes)


def test_one_camera_may_be_given_as_a_string():
    env = make(cameras="primary")
    assert set(env.observation_space) == {"rgb_primary", "proprio", "instruction"}
    assert make(cameras=["wrist", "top"]).spec_sheet.cameras.keys() == {"wrist", "top"}


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"cameras": ("primery",)}, "no camera 'primery' in {id}. Did you mean 'primary'? Valid: "),
        ({"cameras": "wrst"}, "no camera 'wrst' in {id}. Did you mean 'wrist'?"),
        ({"action_mode": "ee-delta"}, "no action_mode 'ee-delta' in {id}. Did you mean 'ee_delta'"),
        ({"proprio": "joint"}, "no proprio form 'joint' in {id}. Did you mean 'joints'?"),
        ({"instruction": "byte"}, "no instruction form 'byte' in {id}. Did you mean 'bytes'?"),
        ({"reward": "spars"}, "no reward 'spars' in {id}. Did you mean 'sparse'?"),
        ({"render_quality": "fats"}, "no render_quality 'fats' in {id}. Did you mean 'fast'?"),
        ({"simulator": "toi"}, "no simulator 'toi' in {id}. Did you mean 'toy'?"),
        ({"render_mode": "rgb-array"}, "no render_mode 'rgb-array' in {id}. Did you mean 'rgb_arr"),
        ({"colour": 1}, "no keyword 'colour' in {id}. Valid: none."),
        ({"task": "Reech"}, "no task 'Reech' in suite Toy. Did you mean 'Reach'? Valid: 'Reach', "),
        ({"suite": "Toi"}, "no suite 'Toi'. Did you mean 'Toy'?"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest_one(keywords, text):
    with pytest.raises(UnknownName) as caught:
        VLAEnv(**{"suite": "Toy", "task": "Reach", **keywords})
    assert text.format(id="VLA/Toy-Reach-v0") in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_misspelt_keywords_are_refused_through_gym_make_too():
    with pytest.raises(UnknownName, match="no keyword 'camera' in VLA/Toy-Reach-v0"):
        gym.make("VLA/Toy-Reach-v0", camera="primary")


def test_a_misspelt_reset_option_is_refused_and_the_episode_goes_on():
    env = make()
    env.reset(seed=0)
    with pytest.raises(UnknownName, match=r"no reset option 'gaol' .*Did you mean 'goal'\?"):
        env.reset(options={"gaol": ABOVE_HOME})
    env.step(UP)


def test_a_suites_own_keyword_is_checked_against_its_choices(register):
    word = Keyword("blue", ("blue", "green"), "of the ball")
    register(dataclasses.replace(toy.SUITE, name="Hued", keywords={"colour": word}))
    for asked, expected in (({}, "blue"), ({"colour": "green"}, "green")):
        env = gym.make("VLA/Hued-Reach-v0", **asked)
        assert env.unwrapped.spec_sheet.keywords == {"colour": expected}
    with pytest.raises(UnknownName, match=r"no colour 'grean' .*Did you mean 'green'\?"):
        gym.make("VLA/Hued-Reach-v0", colour="grean")
    with pytest.raises(UnknownName, match=r"no keyword 'color' .*Did you mean 'colour'\?"):
        gym.make("VLA/Hued-Reach-v0", color="green")


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"image_size": 0}, r"image_size=0 of .* must be in \[1, 2048\] pixels"),
        ({"image_size": -4}, r"image_size=-4 of .* must be in \[1, 2048\] pixels"),
        ({"image_size": MAX_IMAGE_SIZE + 1}, r"image_size=2049 .* must be in \[1, 2048\] pixels"),
        ({"image_size": 64.0}, r"image_size=64\.0 of .* must be a whole number of pixels"),
        ({"image_size": "64"}, r"image_size='64' of .* must be a whole number of pixels"),
        ({"image_size": True}, r"image_size=True of .* must be a whole number of pixels"),
        ({"image_size": (64, 64)}, r"image_size=\(64, 64\) of .* must be a whole number"),
        ({"render_size": 0}, r"render_size=0 of .* must be in \[1, 2048\] pixels"),
        ({"state": "yes"}, "state='yes' of .* must be True or False"),
        ({"paraphrase": 1}, "paraphrase=1 of .* must be True or False"),
        ({"terminate_on_success": 0}, "terminate_on_success=0 of .* must be True or False"),
        ({"cameras": ("top", "top")}, r"cameras=\('top', 'top'\) of .* names a camera twice"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(keywords, text):
    with pytest.raises(InvalidOption, match=text) as caught:
        make(**keywords)
    assert "VLA/Toy-Reach-v0" in str(caught.value)


@pytest.mark.parametrize("size", [1, np.int64(33), MAX_IMAGE_SIZE])
def test_the_limits_of_the_image_size_themselves_work(size):
    env = make(cameras="top", image_size=size)
    observation, _ = env.reset(seed=0)
    assert observation["rgb_top"].shape == (size, size, 3)
    assert env.observation_space.contains(observation)
    json.dumps(env.spec_sheet.to_dict())  # a NumPy integer becomes a plain one


def test_state_is_observed_on_request_in_double_precision():
    env = make(state=True)
    state = env.reset(seed=0, options={"goal": [0.1, -0.2, 0.3]})[0]["state"]
    assert state.dtype == np.float64
    assert state.tolist()[:4] == [0.0, 0.0, 0.3, 1.0]  # home and open
    assert state.tolist()[7:] == [0.1, -0.2, 0.3]  # not rounded to float32
    assert env.spec_sheet.state_dim == 10 == env.observation_space["state"].shape[0]
    assert make().spec_sheet.state_dim is None


def test_joint_proprio_has_positions_velocities_and_the_gripper():
    env = make(proprio="joints")
    env.reset(seed=0)
    proprio = env.step(UP)[0]["proprio"]
    # 0.05 m up from 0.3 m, at 10 control steps per second: 0.5 m/s.
    np.testing.assert_allclose(proprio, [0, 0, 0.35, 0, 0, 0.5, 1], rtol=1e-6)
    names = [entry.name for entry in env.spec_sheet.proprio]
    assert names == ["qx", "qy", "qz", "vx", "vy", "vz", "gripper"]
    assert env.spec_sheet.proprio[3].unit == "m/s"


def test_an_instruction_in_bytes_reads_back_as_the_text():
    env = make(instruction="bytes", paraphrase=True)
    texts = set()
    for _ in range(12):
        observation, info = env.reset()
        codes = observation["instruction"]
        assert env.observation_space["instruction"].contains(codes) and codes.shape == (256,)
        assert bytes(codes).rstrip(b"\0").decode("ascii") == info["instruction"]
        texts.add(info["instruction"])
    assert len(texts) > 1


def test_an_instruction_as_an_embedding_is_the_shipped_unit_vector():
    env = make(instruction="embedding", paraphrase=True)
    for _ in range(8):
        observation, info = env.reset()
        vector = observation["instruction"]
        assert env.observation_space["instruction"].contains(vector)
        assert vector.shape == (384,) and vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)
        np.testing.assert_array_equal(vector, known_embeddings()[info["instruction"]])


# Rendering


def test_render_returns_the_primary_view_at_its_own_size():
    env = make(cameras="top", image_size=16, render_mode="rgb_array", render_size=40)
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (40, 40, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, env.render_camera("primary", 40))
    assert env.render_camera("top").shape == (40, 40, 3)
    np.testing.assert_array_equal(env.render_camera("top", 16), env.step(UP * 0)[0]["rgb_top"])


def test_rendering_changes_nothing_and_gives_pictures_that_do_not_change():
    plain, filmed = make(state=True), make(state=True, render_mode="rgb_array")
    assert_same(plain.reset(seed=2), filmed.reset(seed=2))
    first = filmed.render()
    kept = first.copy()
    for action in draw_actions(5):
        assert_same(plain.step(action), filmed.step(action))
        assert not np.array_equal(filmed.render(), kept)
    np.testing.assert_array_equal(first, kept)


def test_render_without_a_mode_returns_nothing_and_says_why():
    env = make()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match='make it with render_mode="rgb_array"'):
        assert env.render() is None


def test_rgb_array_list_collects_a_picture_a_step():
    env = gym.make("VLA/Toy-Reach-v0", cameras=(), render_mode="rgb_array_list", render_size=8)
    env.reset(seed=0)
    for _ in range(3):
        env.step(UP)
    assert [picture.shape for picture in env.render()] == [(8, 8, 3)] * 4


def test_render_camera_needs_an_episode_and_a_camera_that_exists():
    env = make()
    with pytest.raises(ResetNeeded, match=r"render of VLA/Toy-Reach-v0: call reset\(\) first"):
        env.render_camera("top")
    env.reset(seed=0)
    with pytest.raises(UnknownName, match=r"no camera 'tip' .*Did you mean 'top'\?"):
        env.render_camera("tip")
    with pytest.raises(InvalidOption, match="size=0 of VLA/Toy-Reach-v0 must be in"):
        env.render_camera("top", 0)


def test_the_last_picture_of_an_ended_episode_can_still_be_taken():
    env = make(terminate_on_success=True, render_mode="rgb_array", render_size=16)
    env.reset(seed=0, options={"goal": ABOVE_HOME})
    env.step(UP)
    assert env.step(UP)[2] is True
    assert env.render().shape == (16, 16, 3)


def test_metadata_gives_the_suites_frame_rate():
    env = make()
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": 10.0}
    assert VLAEnv.metadata["render_fps"] == 20  # the class itself is left as it was


# Spec sheet, spec and ids


@pytest.mark.parametrize("mode", ["ee_delta", "native"])
@pytest.mark.parametrize("proprio", ["eef", "joints"])
def test_the_spec_sheet_is_plain_json_and_has_an_entry_for_each_number(mode, proprio):
    env = make(action_mode=mode, proprio=proprio, cameras=("wrist",), state=True)
    sheet = env.spec_sheet
    assert len(sheet.action) == env.action_space.shape[0]
    assert len(sheet.proprio) == env.observation_space["proprio"].shape[0]
    plain = json.loads(json.dumps(sheet.to_dict()))
    assert set(plain) == {field.name for field in dataclasses.fields(sheet)}
    assert plain["id"] == "VLA/Toy-Reach-v0" and plain["simulator"] == "toy"
    assert [entry["name"] for entry in plain["action"]] == [entry.name for entry in sheet.action]
    assert plain["cameras"]["wrist"]["note"] == toy._layout(None, {}).cameras["wrist"].note
    assert plain["all_cameras"] == ["primary", "wrist", "top"]
    assert pickle.loads(pickle.dumps(sheet)) == sheet
    with pytest.raises(dataclasses.FrozenInstanceError):
        sheet.horizon = 1


def test_the_spec_sheet_of_ee_delta_names_units_and_scales():
    action = make().spec_sheet.action
    assert tuple(entry.name for entry in action) == EE_DELTA
    assert [entry.scale for entry in action] == [0.05, 0.05, 0.05, 0, 0, 0, 1]
    assert [entry.unit for entry in action] == ["m"] * 3 + ["rad"] * 3 + [""]
    assert all("cannot turn its wrist" in entry.note for entry in action[3:6])
    assert action[6].note.startswith("+1 opens, -1 closes")


KEYWORDS = {
    "cameras": ("top", "wrist"),
    "image_size": 20,
    "state": True,
    "action_mode": "native",
    "instruction": "bytes",
    "paraphrase": True,
    "proprio": "joints",
    "reward": "sparse",
    "terminate_on_success": True,
    "render_quality": "fast",
}


def test_an_env_is_made_again_from_its_spec_in_json_or_pickled():
    env = gym.make("VLA/Toy-Lift-v0", **KEYWORDS)
    actions = draw_actions(3)[:, :4]
    first = play(env, actions, seed=6)
    for spec in (EnvSpec.from_json(env.spec.to_json()), pickle.loads(pickle.dumps(env.spec))):
        again = gym.make(spec)
        assert again.unwrapped.spec_sheet == env.unwrapped.spec_sheet
        assert again.observation_space == env.observation_space
        assert_same(play(again, actions, seed=6), first)


@pytest.mark.filterwarnings("ignore:.*latest versioned")
@pytest.mark.parametrize(
    "name", ["vla_gym:VLA/Toy-Reach", "VLA/Toy-Reach", "vla_gym:VLA/Toy-Reach-v0"]
)
def test_an_id_works_without_version_and_with_the_module_in_front(name):
    env = gym.make(name, cameras=())
    assert env.spec.id == env.unwrapped.spec_sheet.id == "VLA/Toy-Reach-v0"
    assert repr(env.unwrapped) == "<VLAEnv VLA/Toy-Reach-v0 on toy>"
