"""CALVIN through `gym.make`: on the twin and, where CALVIN_ENV_ROOT is set, on the original."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import vla_gym
from tests.support import check_calvin_root, check_needs, needs
from vla_gym import check_contract
from vla_gym.errors import DependencyNotInstalled, InvalidOption, ResetNeeded, UnknownName
from vla_gym.policy import connect
from vla_gym.rollout import add_batch_axis
from vla_gym.rotations import euler_to_matrix, rotation_vector
from vla_gym.suites.calvin import SUITE
from vla_gym.suites.calvin.chains import initial_observations, load_chains
from vla_gym.suites.calvin.oracle import RULES
from vla_gym.suites.calvin.scenes import HOME_ROBOT_OBS, SCENES
from vla_gym.suites.calvin.tasks import SUBTASK_STEPS, TASKS, find_task

SIMULATORS = ("calvin-twin", "pybullet")
SINGLE = [name for name, task in TASKS.items() if task.native in RULES]
KINDS = ("RotateRedBlockLeft", "PushBlueBlockLeft", "LiftPinkBlockSlider", "StackBlock", "Chain")
"""One task of each way to start."""

HOLD = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)


@pytest.fixture(params=SIMULATORS)
def simulator(request):
    if request.param == "pybullet":
        check_calvin_root()
    else:
        check_needs("calvin-twin")
    return request.param


@pytest.fixture
def make(simulator):
    made = []

    def make_one(task="OpenDrawer", **keywords):
        keywords = {"cameras": (), "state": True, "simulator": simulator, **keywords}
        made.append(gym.make(f"VLA/CALVIN-{task}-v0", **keywords))
        return made[-1]

    yield make_one
    for env in made:
        env.close()


def place(**joints):
    """Return a `scene_obs` of scene D: blocks apart on the table; slider, drawer, ... as given."""
    names = ("slider", "drawer", "button", "switch", "bulb", "led")
    scene = np.zeros(24)
    for name, value in joints.items():
        scene[names.index(name)] = value
    for index, (x, y) in enumerate(((0.05, -0.12), (0.23, -0.12), (0.33, -0.05))):
        scene[6 + 6 * index : 9 + 6 * index] = x, y, 0.46
    return scene


def start_at(env, **joints):
    options = {"robot_obs": HOME_ROBOT_OBS, "scene_obs": place(**joints)}
    return env.reset(seed=0, options=options)


# What is known without a simulator


def test_there_are_34_tasks_and_the_chain():
    assert len(SINGLE) == 34
    assert list(TASKS)[-1] == "Chain"
    assert [TASKS[name].native for name in SINGLE] == list(RULES)
    ids = [i for i in vla_gym.list_ids() if i.startswith("VLA/CALVIN-")]
    assert ids == [f"VLA/CALVIN-{name}-v0" for name in TASKS]


def test_without_a_checkout_three_steps_say_how_to_get_it(monkeypatch):
    monkeypatch.delenv("CALVIN_ENV_ROOT", raising=False)
    with pytest.raises(DependencyNotInstalled) as caught:
        gym.make("VLA/CALVIN-OpenDrawer-v0", simulator="pybullet")
    text = str(caught.value)
    for step in ("1. git clone", "2. pip install 'vla-gym[calvin]'", "3. export CALVIN_ENV_ROOT="):
        assert step in text


def test_a_folder_that_is_no_checkout_is_named(tmp_path):
    with pytest.raises(DependencyNotInstalled, match=str(tmp_path)):
        gym.make("VLA/CALVIN-OpenDrawer-v0", simulator="pybullet", calvin_env_root=str(tmp_path))


@needs("calvin-twin")
def test_keywords_of_the_original_are_refused_by_the_twin():
    for keywords in ({"renderer": "tiny"}, {"calvin_env_root": "/somewhere"}):
        env = gym.make("VLA/CALVIN-OpenDrawer-v0", simulator="calvin-twin", **keywords)
        with pytest.raises(InvalidOption, match="for simulator='pybullet'"):
            env.reset(seed=0)


@needs("calvin-twin")
def test_the_renderer_stands_in_the_sheet_and_the_path_of_the_checkout_does_not(simulator):
    sheet = gym.make("VLA/CALVIN-Chain-v0", simulator=simulator).unwrapped.spec_sheet
    renderer = {"calvin-twin": "mujoco", "pybullet": "tiny"}[simulator]
    assert sheet.keywords == {"scene": "D", "renderer": renderer}


@needs("calvin-twin")
def test_the_chain_is_played_in_scene_d_alone():
    with pytest.raises(InvalidOption, match="scene 'D' alone, not in 'A'"):
        gym.make("VLA/CALVIN-Chain-v0", scene="A", simulator="calvin-twin")
    with pytest.raises(UnknownName, match="scene 'E'"):
        gym.make("VLA/CALVIN-OpenDrawer-v0", scene="E", simulator="calvin-twin")


def test_the_evaluation_plays_the_published_chains_in_order():
    options = SUITE.protocol_options
    assert [options(TASKS["Chain"], seed) for seed in (0, 1, 999, 1000)] == [
        {"chain": 0},
        {"chain": 1},
        {"chain": 999},
        {"chain": 0},
    ]
    assert options(TASKS["OpenDrawer"], 7) == {}


# The contract


@pytest.mark.parametrize("task", KINDS)
def test_the_contract(make, task):
    check_contract(make(task), steps=3)


@pytest.mark.parametrize("scene", SCENES)
def test_the_contract_in_every_scene_and_with_pictures(make, scene):
    env = make(
        "LiftRedBlockTable",
        scene=scene,
        cameras=("primary", "wrist"),
        image_size={"primary": 40, "wrist": 24},
    )
    check_contract(env, steps=2)


@pytest.mark.filterwarnings("ignore:.*A Box observation space")
@pytest.mark.parametrize("mode", ["ee_delta", "native"])
def test_gymnasiums_checker(make, mode):
    check_env(make("Chain", action_mode=mode).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("task", [pytest.param(t, marks=pytest.mark.slow) for t in SINGLE])
@pytest.mark.parametrize("scene", SCENES)
def test_every_task_starts_unsolved_in_every_scene_and_repeats(make, task, scene):
    env = make(task, scene=scene)
    for seed in range(3):
        one, info = env.reset(seed=seed)
        assert not info["success"]
        after, _, _, _, info = env.step(HOLD if "Place" not in task else -HOLD)
        assert not info["success"]
        again, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(one["state"], again["state"])
        np.testing.assert_array_equal(
            after["state"], env.step(HOLD if "Place" not in task else -HOLD)[0]["state"]
        )


def test_single_tasks_start_the_same_on_both_simulators():
    check_needs("calvin-twin")
    check_calvin_root()
    for name in SINGLE:
        if TASKS[name].native in ("place_in_slider", "place_in_drawer", "stack_block"):
            continue  # there the robot acts first
        states = []
        for simulator in SIMULATORS:
            env = gym.make(f"VLA/CALVIN-{name}-v0", cameras=(), state=True, simulator=simulator)
            states.append(env.reset(seed=5)[0]["state"])
            env.close()
        np.testing.assert_allclose(states[0][15:21], states[1][15:21], atol=1e-3)
        for block in range(3):
            start = 15 + 6 + 6 * block
            np.testing.assert_allclose(
                states[0][start : start + 3], states[1][start : start + 3], atol=2e-3
            )


# Observation and action


def test_proprio_is_the_hand_in_the_robots_frame(make):
    env = make("OpenDrawer")
    observation, _ = start_at(env)
    robot = observation["state"][:15]
    proprio = observation["proprio"]
    np.testing.assert_allclose(proprio[:3], robot[:3] - [-0.34, -0.46, 0.24], atol=1e-6)
    matrix = euler_to_matrix(robot[3:6])
    np.testing.assert_allclose(proprio[3:9], [*matrix[:, 0], *matrix[:, 1]], atol=1e-6)
    assert matrix[2, 2] < -0.9  # the hand's z axis points down
    assert proprio[9] == pytest.approx(1.0, abs=0.01)
    joints, _ = start_at(make("OpenDrawer", proprio="joints"))
    np.testing.assert_allclose(joints["proprio"][:7], robot[7:14], atol=1e-6)
    assert joints["proprio"].shape == (15,)


@pytest.mark.parametrize("mode", ["ee_delta", "native"])
def test_full_steps_move_by_the_stated_scale_once_the_arm_has_caught_up(make, mode):
    env = make("OpenDrawer", action_mode=mode)
    start, _ = start_at(env)
    action = HOLD.copy()
    action[0] = -1.0
    for _ in range(5):
        env.step(action)
    for _ in range(15):
        observation, *_ = env.step(HOLD)
    moved = observation["state"][:3] - start["state"][:3]
    np.testing.assert_allclose(moved, [-0.1, 0.0, 0.0], atol=4e-3)


def test_ee_delta_turns_about_the_axes_of_the_base_and_native_adds_euler_angles(make):
    turned = {}
    for mode in ("ee_delta", "native"):
        env = make("OpenDrawer", action_mode=mode)
        start, _ = start_at(env)
        action = HOLD.copy()
        action[3] = 1.0
        for _ in range(6):
            env.step(action)
        for _ in range(15):
            observation, *_ = env.step(HOLD)
        before, after = (euler_to_matrix(o["state"][3:6]) for o in (start, observation))
        turned[mode] = rotation_vector(after @ before.T)
    np.testing.assert_allclose(turned["ee_delta"], [0.3, 0.0, 0.0], atol=0.03)
    # The hand is turned by 1.5 rad about z: its own roll axis lies near the base's y axis.
    assert abs(turned["native"][1]) > 0.25 > abs(turned["native"][0])


def test_what_ee_delta_cannot_reach_is_not_stored_up(make):
    env = make("OpenDrawer")
    start_at(env)
    left, down, up = HOLD.copy(), HOLD.copy(), HOLD.copy()
    left[0], down[2], up[2] = -1.0, -1.0, 1.0
    for _ in range(8):  # away from the drawer's handle
        env.step(left)
    for _ in range(60):
        low, *_ = env.step(down)
    for _ in range(25):  # 0.5 m; a target that had run ahead would still be 0.6 m below
        high, *_ = env.step(up)
    assert high["state"][2] - low["state"][2] > 0.1


def test_the_gripper_opens_at_plus_one_and_closes_at_zero(make):
    env = make("OpenDrawer")
    start_at(env)
    for value, wanted in ((-1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (0.01, 1.0)):
        action = HOLD.copy()
        action[6] = value
        for _ in range(12):
            observation, *_ = env.step(action)
        assert observation["proprio"][9] == pytest.approx(wanted, abs=0.06)
        assert observation["state"][14] == (1.0 if wanted else -1.0)


# The chain


def test_a_chain_starts_where_upstream_starts_it_with_its_first_instruction(make):
    env = make("Chain")
    for number in (0, 1, 500, 999):
        chain = load_chains()[number]
        observation, info = env.reset(seed=0, options={"chain": number})
        robot, scene = initial_observations(chain)
        np.testing.assert_allclose(observation["state"][:15], robot, atol=2e-3)
        np.testing.assert_allclose(observation["state"][15:], scene, atol=4e-3)
        assert (info["chain"], info["chain_length"], info["subtask_step"]) == (number, 0, 0)
        assert info["subtask"] == chain.tasks[0] == find_task(observation["instruction"])
        assert info["instruction"] == TASKS[_name(chain.tasks[0])].instruction


def _name(native):
    return next(name for name, task in TASKS.items() if task.native == native)


def test_without_an_option_the_seed_draws_the_chain(make):
    env = make("Chain")
    seen = [env.reset(seed=seed)[1]["chain"] for seed in (1, 2, 3, 1)]
    assert seen[0] == seen[3]
    assert len(set(seen)) == 3


def test_the_instruction_switches_at_success_and_the_first_failure_ends_the_chain(make):
    """Chain 1 begins with turn_off_led: the LED is turned off by pressing the button."""
    number = next(i for i, c in enumerate(load_chains()) if c.tasks[0].startswith("turn_o"))
    chain = load_chains()[number]
    env = make("Chain")
    observation, _ = env.reset(seed=0, options={"chain": number})
    policy = connect(vla_gym.make_policy("calvin-expert"), env.unwrapped.spec_sheet)
    state, rewards = None, []
    for step in range(SUBTASK_STEPS):
        batch = add_batch_axis(observation)
        action, state = policy.predict(batch, state, np.array([step == 0]))
        observation, reward, terminated, truncated, info = env.step(action[0])
        rewards.append(reward)
        if info["chain_length"]:
            break
    assert info["chain_length"] == 1
    assert rewards == [*[0.0] * (len(rewards) - 1), 1.0]
    assert not (terminated or truncated or info["success"])
    assert info["subtask"] == chain.tasks[1] == find_task(observation["instruction"])
    assert info["subtask_step"] == 0
    for _ in range(SUBTASK_STEPS):
        *_, terminated, truncated, info = env.step(HOLD)
        if info["chain_length"] > 1 or truncated:
            break
    assert (terminated, truncated, info["chain_length"]) == (False, True, 1)
    assert info["subtask_step"] == SUBTASK_STEPS
    with pytest.raises(ResetNeeded, match="time limit"):
        env.unwrapped.step(HOLD)


# Options


def test_any_state_can_be_asked_for(make):
    env = make("CloseDrawer", scene="B")
    scene = place(slider=0.304, drawer=0.2, switch=0.088, bulb=1.0, led=1.0)
    for index, x in enumerate((-0.2, -0.05, 0.1)):
        scene[6 + 6 * index : 12 + 6 * index] = x, -0.1, 0.46, 0.0, 0.0, 0.7
    observation, _ = env.reset(options={"robot_obs": HOME_ROBOT_OBS, "scene_obs": scene})
    np.testing.assert_allclose(observation["state"][15:], scene, atol=4e-3)


BAD = [
    ({"chain": 3}, "for VLA/CALVIN-Chain alone"),
    ({"robot_obs": HOME_ROBOT_OBS}, "needs the other"),
    ({"robot_obs": HOME_ROBOT_OBS, "scene_obs": np.zeros(23)}, "must be 24 finite numbers"),
    ({"robot_obs": HOME_ROBOT_OBS, "scene_obs": [np.nan] * 24}, "must be 24 finite numbers"),
    ({"robot_obs": "home", "scene_obs": np.zeros(24)}, "must be 15 numbers"),
    ({"robot_obs": HOME_ROBOT_OBS, "scene_obs": place(slider=0.4)}, "the door, .* is 0.4, valid"),
    ({"robot_obs": HOME_ROBOT_OBS, "scene_obs": place(led=0.5)}, "LED, .* is 0.5, valid is 0 or 1"),
]


@pytest.mark.parametrize(("options", "text"), BAD)
def test_bad_options_never_reach_the_simulator(make, options, text):
    with pytest.raises(InvalidOption, match=text):
        make("OpenDrawer").reset(seed=0, options=options)


@pytest.mark.parametrize("value", [-1, 1000, 1.5, "3", True, None])
def test_a_chain_that_does_not_exist_is_refused(make, value):
    with pytest.raises(InvalidOption, match=r"whole number in \[0, 999\]"):
        make("Chain").reset(seed=0, options={"chain": value})


# Vector envs


@needs("calvin-twin")
def test_every_env_of_a_vector_reads_its_own_instruction_back():
    envs = gym.make_vec(
        "VLA/CALVIN-Chain-v0",
        num_envs=3,
        vectorization_mode="async",
        simulator="calvin-twin",
        cameras=(),
        paraphrase=True,
    )
    observation, info = envs.reset(seed=3)
    for text, subtask in zip(observation["instruction"], info["subtask"], strict=True):
        assert find_task(text) == subtask
    assert len(set(info["chain"])) == 3
    envs.close()


@needs("calvin-twin")
@settings(max_examples=15)
@given(seed=st.integers(0, 2**31 - 1), task=st.sampled_from(SINGLE), scene=st.sampled_from("ABCD"))
def test_a_seed_is_an_episode(seed, task, scene):
    states = []
    for _ in range(2):
        env = gym.make(
            f"VLA/CALVIN-{task}-v0", cameras=(), state=True, simulator="calvin-twin", scene=scene
        )
        states.append(env.reset(seed=seed)[0]["state"])
        env.close()
    np.testing.assert_array_equal(*states)
