"""RLBench: tables, action modes and their inverses, obstacles, and CoppeliaSim's adapter on a fake.

The simulator itself runs only in test_rlbench_live.py.
"""

from __future__ import annotations

import importlib.machinery
import os
import random
import subprocess
import sys
import threading
import types

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import vla_gym
from tests.suites import rlbench_fake
from vla_gym.env import choose_simulator
from vla_gym.errors import (
    BrokenDependency,
    DependencyNotInstalled,
    InvalidAction,
    InvalidOption,
    SimulatorCrashed,
    StandInWarning,
    UnknownName,
)
from vla_gym.rotations import quaternion_to_matrix, quaternion_to_vector, vector_to_quaternion
from vla_gym.suites import coppeliasim
from vla_gym.suites.rlbench import (
    BASE_POSITION_M,
    CAMERAS,
    COPPELIASIM_STATE_DIM,
    HOME_JOINTS,
    JOINT_LIMITS,
    POSITION_M,
    ROTATION_RAD,
    SUITE,
    TASK_STATE_DIM,
    WORKSPACE_HIGH,
    WORKSPACE_LOW,
    choose_variation,
    decode_ee_delta,
    decode_joint_position,
    decode_joint_velocity,
    decode_keypose,
    encode_ee_delta,
    encode_joint_position,
    encode_joint_velocity,
    encode_keypose,
    find_coppeliasim_obstacle,
)
from vla_gym.suites.rlbench_tasks import TASKS, VARIATIONS
from vla_gym.suites.rlbench_twin import TWIN_STATE_DIM, TWIN_TASKS

SIZE = 16
HOLD = np.zeros(7, np.float32)
HOLD[6] = 1.0  # gripper stays open


@pytest.fixture(scope="module", autouse=True)
def suite():
    with rlbench_fake.registered():
        yield


@pytest.fixture
def fake(monkeypatch, tmp_path):
    yield from run_fake(monkeypatch, tmp_path)


@pytest.fixture
def fork(monkeypatch, tmp_path):
    yield from run_fake(monkeypatch, tmp_path, fork=True)


def run_fake(monkeypatch, tmp_path, fork=False):
    """Install the fake with a process of its own, and see that nothing goes on running."""
    made = rlbench_fake.install(monkeypatch, tmp_path, fork)
    monkeypatch.setattr(coppeliasim, "_process", coppeliasim._Process())
    envs.clear()
    yield made
    for env in envs:
        env.close()
    assert not made.live


envs: list[gym.Env] = []


def make(task: str = "ReachTarget", **keywords) -> gym.Env:
    keywords = {"simulator": "coppeliasim", "image_size": SIZE, **keywords}
    env = gym.make(SUITE.id(task), **keywords)
    envs.append(env)
    return env


# --- the tables ---------------------------------------------------------------------------------


def test_tables_are_complete():
    assert len(TASKS) == 109 and set(VARIATIONS) == set(TASKS)
    assert sum("peract" in task.tags for task in TASKS.values()) == 18
    assert sum("peract-fork" in task.tags for task in TASKS.values()) == 3
    assert set(TASKS) >= TWIN_TASKS and len(TWIN_TASKS) == 25
    for name, task in TASKS.items():
        wordings = (task.instruction, *task.paraphrases)
        assert len(set(wordings)) == len(wordings) >= 5, name
        assert all(text.isascii() and text.isprintable() and len(text) <= 256 for text in wordings)
        assert task.success and task.horizon in (200, 400, 800)
        assert name.lower() == task.native.replace("_", "")
        assert VARIATIONS[name] >= 1


def test_spaces_are_known_without_the_simulator():
    for simulator, state_dim in (
        ("coppeliasim", COPPELIASIM_STATE_DIM),
        ("rlbench-twin", TWIN_STATE_DIM),
    ):
        info = next(info for info in SUITE.simulators if info.name == simulator)
        layout = info.layout(TASKS["ReachTarget"], {})
        assert layout.state_dim == state_dim
        sizes = {name: len(mode.entries) for name, mode in layout.action_modes.items()}
        assert sizes == {"ee_delta": 7, "native": 8, "joint_position": 8, "keypose": 8}
        assert set(layout.cameras) == set(CAMERAS) >= {"primary", "wrist"}
        for mode in layout.action_modes.values():  # the vector travels as it is
            action = np.linspace(-1, 1, len(mode.entries)).astype(np.float32)
            assert np.array_equal(mode.to_native(action), action)


def test_home_lies_within_the_limits():
    low, high = np.array(JOINT_LIMITS).T
    assert (low < HOME_JOINTS).all() and (high > HOME_JOINTS).all()


IMPORTS = """
import sys
import vla_gym.suites.coppeliasim, vla_gym.suites.rlbench
vla_gym.suites.rlbench.find_coppeliasim_obstacle()
assert not {"rlbench", "pyrep", "mujoco", "robosuite", "torch"} & set(sys.modules)
"""


def test_import_and_obstacle_are_light():
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, timeout=60)


# --- action modes as pure functions -------------------------------------------------------------

unit = st.floats(-1, 1, width=32)
booleans = st.booleans()


def actions(size: int):
    return arrays(np.float32, size, elements=unit)


@given(actions(7))
def test_ee_delta_round_trip(action):
    delta = decode_ee_delta(action)
    assert np.allclose(delta.translation_m, 0.025 * action[:3].astype(float), atol=1e-12)
    assert np.abs(delta.rotation_rad).max() <= ROTATION_RAD + 1e-12
    again = encode_ee_delta(*delta)
    assert again.dtype == np.float32
    assert np.allclose(again[:6], action[:6], atol=1e-6)
    assert again[6] == (1 if action[6] > 0 else -1)


@given(actions(8))
def test_joint_velocity_round_trip(action):
    again = encode_joint_velocity(*decode_joint_velocity(action))
    assert np.allclose(again[:7], action[:7], atol=1e-6)
    assert again[7] == (1 if action[7] > 0 else -1)


@given(actions(8))
def test_joint_position_round_trip(action):
    command = decode_joint_position(action)
    low, high = np.array(JOINT_LIMITS).T
    assert (command.joints >= low - 1e-9).all() and (command.joints <= high + 1e-9).all()
    again = encode_joint_position(*command)
    assert np.allclose(again[:7], action[:7], atol=1e-6)
    assert again[7] == (1 if action[7] > 0 else -1)


@given(actions(8))
def test_keypose_round_trip(action):
    norm = np.linalg.norm(action[3:7].astype(float))
    assume(norm > 1e-3)
    pose = decode_keypose(action)
    assert abs(np.linalg.norm(pose.quaternion_xyzw) - 1) < 1e-12
    assert (pose.position_m > WORKSPACE_LOW).all() and (pose.position_m < WORKSPACE_HIGH).all()
    again = decode_keypose(encode_keypose(*pose))
    assert np.allclose(again.position_m, pose.position_m, atol=1e-6)
    assert np.allclose(
        quaternion_to_matrix(again.quaternion_xyzw),
        quaternion_to_matrix(pose.quaternion_xyzw),
        atol=1e-6,
    )
    assert again.open == pose.open


def test_keypose_ends_are_the_workspace():
    low = decode_keypose([-1, -1, -1, 1, 0, 0, 0, -1])
    high = decode_keypose([1, 1, 1, 0, 0, 0, -0.5, 1])
    assert np.allclose(low.position_m, (-0.275, -0.655, 0.752), atol=2e-5) and not low.open
    assert np.allclose(high.position_m, (0.775, 0.655, 1.752), atol=2e-5) and high.open
    assert np.array_equal(high.quaternion_xyzw, [0, 0, 0, -1])


def test_keypose_needs_an_orientation():
    with pytest.raises(InvalidAction, match="no orientation"):
        decode_keypose(np.zeros(8, np.float32))


def test_gripper_at_zero_closes():
    assert not decode_ee_delta(np.zeros(7)).open
    assert not decode_joint_velocity(np.zeros(8)).open


@given(arrays(np.float64, 3, elements=st.floats(-1.8, 1.8)))
def test_rotation_forms_agree(vector):
    quaternion = vector_to_quaternion(vector)
    matrix = quaternion_to_matrix(quaternion)
    assert np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.isclose(np.linalg.det(matrix), 1)
    assert np.allclose(quaternion_to_vector(quaternion), vector, atol=1e-9)
    assert np.allclose(quaternion_to_vector(-quaternion), vector, atol=1e-9)


def test_quarter_turn_about_z():
    quaternion = vector_to_quaternion([0, 0, np.pi / 2])
    assert np.allclose(quaternion, [0, 0, np.sqrt(0.5), np.sqrt(0.5)])
    assert np.allclose(quaternion_to_matrix(quaternion) @ [1, 0, 0], [0, 1, 0])


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"8 numbers.*\(7,\)"):
        decode_keypose(np.ones(7))


def test_variations():
    drawn = [choose_variation("ReachTarget", seed, {}) for seed in range(300)]
    assert set(drawn) == set(range(20))
    assert choose_variation("ReachTarget", 5, {}) == drawn[5]
    first = [choose_variation("StackBlocks", seed, {}) for seed in range(6)]
    assert first == [
        31,
        31,
        17,
        58,
        26,
        7,
    ]  # of published episodes: a change needs a new id version
    assert choose_variation("ReachTarget", 5, {"variation": np.int64(19)}) == 19
    for bad in (20, -1, 1.0, True, "3", None):
        with pytest.raises(InvalidOption, match=r"ReachTarget.*\[0, 19\]"):
            choose_variation("ReachTarget", 5, {"variation": bad})


# --- what is missing ----------------------------------------------------------------------------


def test_nothing_is_missing_with_the_fake(fake):
    assert find_coppeliasim_obstacle() is None
    assert choose_simulator(SUITE, TASKS["ReachTarget"]).name == "coppeliasim"


@pytest.mark.parametrize(
    ("change", "lack"),
    [
        (lambda m, tmp: m.delenv("COPPELIASIM_ROOT"), "COPPELIASIM_ROOT, which is not set"),
        (
            lambda m, tmp: m.setenv("COPPELIASIM_ROOT", "sim"),
            "an absolute path in COPPELIASIM_ROOT",
        ),
        (lambda m, tmp: m.setenv("COPPELIASIM_ROOT", str(tmp)), "does not hold it"),
        (lambda m, tmp: m.delenv("DISPLAY"), "DISPLAY is not set"),
        (lambda m, tmp: m.setenv("DISPLAY", ""), "DISPLAY is not set"),
        (lambda m, tmp: hide(m, "rlbench"), "'rlbench', which is not installed"),
        (lambda m, tmp: hide(m, "pyrep"), "'pyrep' (PyRep), which is not installed"),
        (
            lambda m, tmp: (tmp / "site" / "pyrep" / "backend" / "sim.py").unlink(),
            "not the other of that name (/",
        ),
        (lambda m, tmp: replace_by_file(m, "pyrep"), "not the other of that name (a single file)"),
    ],
)
def test_each_missing_piece_is_named(fake, monkeypatch, tmp_path, change, lack):
    change(monkeypatch, tmp_path)
    obstacle = find_coppeliasim_obstacle()
    assert obstacle is not None and lack in obstacle
    assert obstacle.count("needs") == 1 and obstacle.split("\n")[0].count(";") == 0
    for step in ("CoppeliaSim_Edu_V4_1_0", "LD_LIBRARY_PATH", "stepjam/PyRep.git", "Xvfb"):
        assert step in obstacle
    with pytest.raises(DependencyNotInstalled, match="4_1_0"):
        make()


def hide(monkeypatch, package):
    monkeypatch.delitem(sys.modules, package)


def replace_by_file(monkeypatch, name):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)


def test_half_removed_package_counts_as_missing(fake, monkeypatch):
    sys.modules["rlbench"].__spec__ = None
    assert "'rlbench', which is not installed" in (find_coppeliasim_obstacle() or "")


def test_auto_takes_the_twin_with_a_warning(monkeypatch):
    monkeypatch.delenv("COPPELIASIM_ROOT", raising=False)
    monkeypatch.setattr("vla_gym.env._warned", set())
    monkeypatch.setattr("vla_gym.env.find_missing", lambda modules: None)
    with pytest.warns(StandInWarning, match="rlbench-twin"):
        assert choose_simulator(SUITE, TASKS["ReachTarget"]).name == "rlbench-twin"
    with pytest.raises(DependencyNotInstalled, match="does not have this task"):
        choose_simulator(SUITE, TASKS["SetupChess"], "rlbench-twin")


def test_broken_import_says_what_to_do(fake, monkeypatch):
    monkeypatch.delitem(sys.modules, "rlbench.environment")  # the fake package holds no file
    env = make()
    with pytest.raises(BrokenDependency, match="LD_LIBRARY_PATH must hold COPPELIASIM_ROOT"):
        env.reset(seed=0)


def test_obstacles_of_another_interpreter_show_at_the_reset(fake, monkeypatch):
    """With python=... nothing is asked before; the worker then meets the obstacle itself."""
    env = make()
    monkeypatch.delenv("DISPLAY")
    with pytest.raises(DependencyNotInstalled, match="DISPLAY"):
        env.reset(seed=0)


def test_task_of_the_fork_alone(fake):
    env = make("SlideBlockToColorTarget")
    with pytest.raises(DependencyNotInstalled, match="MohitShridhar"):
        env.reset(seed=0)
    assert not fake.live


def test_fork_of_peract(fork):
    """Its planner takes one more argument; its task exists."""
    env = make("SlideBlockToColorTarget", action_mode="keypose", collision_checking=True)
    env.reset(seed=0)
    env.step(encode_keypose((0.3, 0.0, 1.2), (1, 0, 0, 0), True))
    assert fork.counts["ignore_collisions"] is False
    for mode in ("ee_delta", "joint_position"):
        env = make(action_mode=mode)
        env.reset(seed=0)
        env.step(np.full(env.action_space.shape, 0.1, np.float32))


# --- the contract on the fake -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ee_delta", "native", "joint_position", "keypose"])
@pytest.mark.parametrize("proprio", ["eef", "joints"])
def test_contract(fake, mode, proprio):
    env = make(
        action_mode=mode,
        proprio=proprio,
        state=True,
        cameras=tuple(CAMERAS),
        render_mode="rgb_array",
    )
    vla_gym.check_contract(env)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_starts(fork, task):
    env = make(task, cameras=())
    _, info = env.reset(seed=1)
    assert info["instruction"] == f"fake {TASKS[task].native} {info['variation']}"
    assert info["variation"] == choose_variation(task, info["episode_seed"], {})


def test_nothing_starts_before_the_first_reset(fake):
    env = make()
    assert env.observation_space["proprio"].shape == (10,)
    assert not fake.live and fake.counts == {}
    env.reset(seed=0)
    assert fake.live and fake.counts["launch"] == 1
    env.close()
    env.close()
    assert not fake.live and fake.counts["shutdown"] == 1


def test_observation_is_in_the_base_frame(fake):
    env = make(state=True)
    observation, info = env.reset(seed=0)
    tip = rlbench_fake.HOME_TIP - np.array(BASE_POSITION_M)
    assert np.allclose(observation["proprio"][:3], tip, atol=1e-6)
    home = quaternion_to_matrix(rlbench_fake.HOME_QUATERNION)
    assert np.allclose(observation["proprio"][3:9], home[:, :2].T.ravel(), atol=1e-6)
    assert observation["proprio"][9] == 1.0
    state = observation["state"]
    assert state.shape == (7 + 7 + 7 + 1 + 7 + TASK_STATE_DIM,)
    assert np.array_equal(state[:7], HOME_JOINTS)
    assert np.array_equal(state[14:21], np.full(7, 0.5)) and state[21] == 1.0
    assert np.allclose(state[22:25], rlbench_fake.HOME_TIP)
    assert np.array_equal(state[29:32], fake.targets[-1]) and not state[32:].any()
    assert info["sim_steps"] == 0 and info["action_failed"] is False and info["action_error"] == ""


def test_joint_proprio(fake):
    env = make(proprio="joints", action_mode="native")
    observation, _ = env.reset(seed=0)
    assert np.allclose(observation["proprio"][:7], HOME_JOINTS)
    action = np.array([1, 0, -0.5, 0, 0, 0, 0, 1], np.float32)
    observation, *_ = env.step(action)
    assert np.allclose(observation["proprio"][:7], HOME_JOINTS + 0.05 * action[:7], atol=1e-6)
    assert np.allclose(observation["proprio"][7:14], action[:7], atol=1e-5)  # rad/s
    assert observation["proprio"][14] == 1.0


def test_pictures_are_those_asked_for(fake):
    env = make(cameras=("primary", "overhead"), render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    assert fake.counts["capture"] == 2
    # cam_front is the fifth sensor of the fake, cam_overhead the third
    for camera, red in (("primary", 102), ("overhead", 51)):
        picture = observation[f"rgb_{camera}"]
        assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
        assert picture[3, 3].tolist() == [red, 0, 255] and picture[-1, 3].tolist() == [red, 0, 0]
    assert env.render().shape == (256, 256, 3)
    assert env.unwrapped.render_camera("wrist", 20).shape == (20, 20, 3)
    observation, *_ = env.step(HOLD)
    assert observation["rgb_primary"].shape == (SIZE, SIZE, 3)
    with pytest.raises(UnknownName, match="wrist"):
        env.unwrapped._simulator.render("wirst", 8, 8)


def test_pictures_of_another_shape(fake):
    env = make()
    env.reset(seed=0)
    assert env.unwrapped._simulator.render("primary", 10, 30).shape == (10, 30, 3)


def test_render_quality(fake):
    make(render_quality="fast").reset(seed=0)
    modes = {sensor.render_mode for sensor in fake.sensors.values()}
    assert modes == {rlbench_fake.RenderMode.OPENGL}
    make().reset(seed=0)
    modes = {sensor.render_mode for sensor in fake.sensors.values()}
    assert modes == {rlbench_fake.RenderMode.OPENGL3}


def test_sizes_and_cameras_of_two_envs_share_one_simulator(fake):
    small, large = make(image_size=8, cameras=("wrist",)), make(image_size=40)
    for _ in range(2):
        assert small.reset(seed=0)[0]["rgb_wrist"].shape == (8, 8, 3)
        assert large.reset(seed=0)[0]["rgb_primary"].shape == (40, 40, 3)
    assert fake.counts["launch"] == 1


# --- action modes on the fake -------------------------------------------------------------------


def test_ee_delta_moves_by_the_metres_stated(fake):
    env = make()
    start = env.reset(seed=0)[0]["proprio"].astype(float)
    action = HOLD.copy()
    action[:3] = 1.0, -0.5, 0.25
    observation, *_, info = env.step(action)
    moved = observation["proprio"][:3] - start[:3]
    assert np.allclose(moved, POSITION_M * np.array([1, -0.5, 0.25]), atol=0.006)  # 0.01 rad short
    assert info["sim_steps"] == 1


def test_ee_delta_turns_in_the_base_frame(fake):
    env = make()
    env.reset(seed=0)
    action = HOLD.copy()
    action[5] = 1.0
    observation, *_ = env.step(action)
    columns = observation["proprio"][3:9].reshape(2, 3).T
    turn = quaternion_to_matrix(vector_to_quaternion([0, 0, ROTATION_RAD]))
    home = quaternion_to_matrix(rlbench_fake.HOME_QUATERNION)
    assert np.allclose(columns, (turn @ home)[:, :2], atol=0.011)


def test_gripper_opens_above_zero(fake):
    env = make()
    env.reset(seed=0)
    for value, opening, steps in (
        (-1.0, 0, 5),
        (-0.2, 0, 1),
        (0.1, 1, 15),
        (1.0, 1, 1),
        (0.0, 0, 5),
    ):
        action = HOLD.copy()
        action[6] = value
        observation, *_, info = env.step(action)
        assert np.isclose(observation["proprio"][9], opening)
        assert info["sim_steps"] == steps  # one of the arm; 4 to close, 4 + 10 to open


def test_joint_position_drives_to_the_target(fake):
    env = make(action_mode="joint_position", proprio="joints")
    env.reset(seed=0)
    target = np.array(HOME_JOINTS) + 0.25
    for _ in range(3):  # 0.1 rad a step in the fake
        observation, *_, info = env.step(encode_joint_position(target, True))
        assert info["sim_steps"] == 1
    assert np.allclose(observation["proprio"][:7], target, atol=1e-5)


def test_keypose_goes_there_in_many_steps(fake):
    env = make(action_mode="keypose")
    env.reset(seed=0)
    position = np.array([0.35, 0.2, 1.3])
    observation, *_, info = env.step(encode_keypose(position, rlbench_fake.HOME_QUATERNION, True))
    assert np.allclose(observation["proprio"][:3], position - np.array(BASE_POSITION_M), atol=0.006)
    assert info["sim_steps"] > 3 and fake.counts["collision_checking"] is False


def test_keypose_episode_has_25_actions(fake):
    env = make(action_mode="keypose", terminate_on_success=False)
    assert env.unwrapped.spec_sheet.horizon == 25
    env.reset(seed=0)
    action = encode_keypose((0.3, 0.0, 1.4), rlbench_fake.HOME_QUATERNION, True)
    ends = [env.step(action)[3] for _ in range(25)]
    assert ends == [False] * 24 + [True]


def test_corner_of_the_workspace_is_inside(fake):
    env = make(action_mode="keypose")
    env.reset(seed=0)
    for corner in (-1.0, 1.0):
        *_, info = env.step(np.array([corner] * 3 + [1, 0, 0, 0, 1], np.float32))
        assert not info["action_failed"]


def test_zero_quaternion_is_refused_before_the_simulator(fake):
    env = make(action_mode="keypose")
    env.reset(seed=0)
    steps = fake.counts.get("step", 0)
    with pytest.raises(InvalidAction, match="quaternion"):
        env.step(np.zeros(8, np.float32))
    assert fake.counts.get("step", 0) == steps


def test_success_ends_the_episode(fake):
    env = make(action_mode="keypose")
    env.reset(seed=0)
    action = encode_keypose(fake.targets[-1], rlbench_fake.HOME_QUATERNION, True)
    _, reward, terminated, truncated, info = env.step(action)
    assert reward == 1.0 and terminated and not truncated and info["success"] is True


def test_success_need_not_end_the_episode(fake):
    env = make(action_mode="keypose", terminate_on_success=False)
    env.reset(seed=0)
    action = encode_keypose(fake.targets[-1], rlbench_fake.HOME_QUATERNION, True)
    for _ in range(2):
        _, reward, terminated, _, info = env.step(action)
        assert reward == 1.0 and not terminated and info["success"] is True


def test_failed_task_terminates_without_success(fake):
    env = make("BeatTheBuzz")
    env.reset(seed=0)
    fake.fails = True
    _, reward, terminated, _, info = env.step(HOLD)
    assert reward == 0.0 and terminated and info["success"] is False


# --- refused actions and failures ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["InvalidActionError", "IKError", "ConfigurationPathError"])
def test_refused_action_changes_nothing(fake, name):
    error = {**fake.rlbench_errors, **fake.pyrep_errors}[name]("no way")
    env = make(state=True)
    env.reset(seed=0)
    before, *_ = env.step(HOLD)
    fake.failures["ik"] = [error]
    after, reward, terminated, _, info = env.step(-HOLD)
    assert reward == 0.0 and not terminated and info["success"] is False
    assert info["action_failed"] is True and info["action_error"] == f"{name}: no way"
    assert info["sim_steps"] == 0
    for key, value in before.items():
        assert np.array_equal(after[key], value)
        assert isinstance(value, str) or not np.shares_memory(after[key], value)
    *_, info = env.step(HOLD)  # it goes on
    assert info["action_failed"] is False and info["action_error"] == ""


def test_refused_action_may_end_the_episode(fake):
    env = make(action_mode="keypose", on_invalid_action="terminate")
    env.reset(seed=0)
    fake.failures["path"] = [fake.InvalidActionError("no path")]
    _, reward, terminated, _, info = env.step(encode_keypose((0.3, 0, 1), (1, 0, 0, 0), True))
    assert terminated and reward == 0.0 and not info["success"] and info["action_failed"]


def test_unforeseen_error_ends_the_episode_and_restarts(fake):
    env = make()
    env.reset(seed=0)
    fake.failures["step"] = [RuntimeError("V-REP side")]
    with pytest.raises(SimulatorCrashed, match=r"reach_target.*RuntimeError: V-REP side"):
        env.step(HOLD)
    with pytest.raises(SimulatorCrashed, match=r"reset\(\) takes it back"):
        env.step(HOLD)
    env.reset(seed=0)
    env.step(HOLD)
    assert fake.counts["launch"] == 2 and fake.counts["shutdown"] == 1


@pytest.mark.parametrize("place", ["get_task", "reset", "capture"])
def test_failures_elsewhere_are_told(fake, place):
    env = make()
    fake.failures[place] = [RuntimeError("boom")]
    with pytest.raises(SimulatorCrashed, match="boom"):
        env.reset(seed=0)
    env.reset(seed=0)
    assert fake.counts["launch"] == 2


def test_failed_launch_is_told_and_cleaned_up(fake, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    env = make()
    fake.failures["launch"] = [fake.pyrep_errors["PyRepError"]("no GLX")]
    with pytest.raises(SimulatorCrashed, match=r"no GLX.*glxinfo"):
        env.reset(seed=0)
    assert not fake.live
    env.reset(seed=0)
    assert fake.live


def test_working_folder_is_restored(fake, monkeypatch, tmp_path):
    launch = sys.modules["rlbench.environment"].Environment.launch

    def launch_and_forget(self):
        os.chdir("/")
        launch(self)

    monkeypatch.setattr(sys.modules["rlbench.environment"].Environment, "launch", launch_and_forget)
    monkeypatch.chdir(tmp_path)
    for failures in ([RuntimeError("x")], []):
        fake.failures["launch"] = failures
        env = make()
        if failures:
            with pytest.raises(SimulatorCrashed):
                env.reset(seed=0)
        else:
            env.reset(seed=0)
        assert os.getcwd() == str(tmp_path)


def test_stuck_arm_is_told(fake):
    env = make()
    env.reset(seed=0)
    fake.stuck = True
    action = HOLD.copy()
    action[:3] = 1.0
    with pytest.raises(SimulatorCrashed, match="2000 steps"):
        env.step(action)
    with pytest.raises(SimulatorCrashed, match=r"call reset\(\)"):
        env.step(action)
    fake.stuck = False
    env.reset(seed=0)
    env.step(action)
    assert fake.counts["launch"] == 1


def test_placement_is_tried_again_with_derived_seeds(fake):
    env = make()
    fake.failures["reset"] = [fake.TaskEnvironmentError("no place")] * 2
    _, info = env.reset(seed=0)
    assert info["placements"] == 3
    first = fake.targets[-3:]
    assert not np.allclose(first[0], first[1]) and not np.allclose(first[1], first[2])
    fake.failures["reset"] = [fake.TaskEnvironmentError("no place")] * 2
    env.reset(seed=0)
    assert np.array_equal(first, fake.targets[-3:])


def test_task_that_cannot_be_placed(fake):
    env = make()
    fake.failures["reset"] = [fake.TaskEnvironmentError("no place")] * 5
    with pytest.raises(SimulatorCrashed, match=r"could not place reach_target.*5 resets: no place"):
        env.reset(seed=0)
    env.reset(seed=0)
    assert fake.counts["launch"] == 1


def test_state_that_is_too_long(fake):
    fake.low_dim_length = TASK_STATE_DIM
    observation, _ = make(state=True).reset(seed=0)
    assert observation["state"].shape == (COPPELIASIM_STATE_DIM,)
    fake.low_dim_length += 1
    with pytest.raises(SimulatorCrashed, match="1025 numbers"):
        make(state=True).reset(seed=0)
    make(state=False).reset(seed=0)


def test_older_rlbench_with_fewer_variations(fake):
    fake.variations["ReachTarget"] = 3
    env = make()
    env.reset(options={"variation": 2})
    with pytest.raises(SimulatorCrashed, match="has 3 variations of reach_target"):
        env.reset(options={"variation": 3})


# --- seeds, variations, words -------------------------------------------------------------------


def test_seed_decides_the_episode_as_upstream_would(fake):
    env = make()
    _, info = env.reset(seed=3)
    found = fake.targets[-1]
    np.random.seed(info["episode_seed"])  # noqa: NPY002
    random.seed(info["episode_seed"])
    task = sys.modules["rlbench.tasks.reach_target"].ReachTarget(fake)
    task.init_episode(info["variation"])
    assert np.array_equal(task.target, found)
    make("PushButton").reset(seed=8)
    env.reset(seed=3)
    assert np.array_equal(fake.targets[-1], found)
    env.reset()
    assert not np.array_equal(fake.targets[-1], found)


def test_global_generators_are_left_alone(fake):
    env = make()
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    expected = np.random.RandomState(1).rand(3), random.Random(1).random()
    env.reset(seed=0)
    env.step(HOLD)
    fake.failures["ik"] = [fake.InvalidActionError("x")]
    env.step(HOLD)
    fake.failures["step"] = [RuntimeError("x")]
    with pytest.raises(SimulatorCrashed):
        env.step(HOLD)
    assert np.array_equal(np.random.rand(3), expected[0])  # noqa: NPY002
    assert random.random() == expected[1]


def test_global_generators_do_not_reach_the_episode(fake):
    env = make()
    np.random.seed(1)  # noqa: NPY002
    env.reset(seed=0)
    np.random.seed(2)  # noqa: NPY002
    env.reset(seed=0)
    assert np.array_equal(fake.targets[0], fake.targets[1])


def test_variation_option(fake):
    env = make()
    for variation in (0, 19):
        observation, info = env.reset(seed=0, options={"variation": variation})
        assert info["variation"] == variation
        assert observation["instruction"] == f"fake reach_target {variation}"
        assert info["instructions"] == (
            f"fake reach_target {variation}",
            f"another wording of {variation}",
        )
        *_, info = env.step(HOLD)
        assert info["variation"] == variation
    with pytest.raises(InvalidOption, match=r"\[0, 19\]"):
        env.reset(options={"variation": 20})
    with pytest.raises(UnknownName, match="variation"):
        env.reset(options={"variaton": 1})
    assert len({env.reset()[1]["variation"] for _ in range(30)}) > 5


def test_invalid_variation_starts_nothing(fake):
    with pytest.raises(InvalidOption):
        make().reset(options={"variation": 99})
    assert not fake.live


def test_wordings_are_cleaned(fake):
    fake.descriptions = [
        "pick  up\tthe caf\u00e9 cup ",
        "pick up the cafe cup",
        "",
        "x" * 300,
        "\u2713",
    ]
    _, info = make().reset(seed=0)
    assert info["instructions"] == ("pick up the cafe cup", "x" * 256)


def test_no_wordings_leave_the_tasks_own(fake):
    fake.descriptions = []
    _, info = make().reset(seed=0)
    assert info["instruction"] == TASKS["ReachTarget"].instruction


# --- one simulator in a process -----------------------------------------------------------------


def test_tasks_share_one_simulator_one_after_the_other(fake):
    first, second = make("ReachTarget"), make("PushButton")
    for env in (first, second, first):
        env.reset(seed=0)
        for _ in range(3):
            env.step(HOLD)
    assert fake.counts["launch"] == 1 and fake.counts["get_task"] == 3
    first.reset(seed=1)
    assert fake.counts["get_task"] == 3  # it has it still
    first.close()
    assert fake.live
    second.reset(seed=0)
    second.close()
    assert not fake.live and fake.counts["launch"] == 1


def test_episode_that_was_taken_over_is_lost(fake):
    first, second = make("ReachTarget", render_mode="rgb_array"), make("PushButton")
    first.reset(seed=0)
    second.reset(seed=0)
    with pytest.raises(SimulatorCrashed, match=r"no longer holds this episode of ReachTarget"):
        first.step(HOLD)
    with pytest.raises(SimulatorCrashed, match=r"ReachTarget.*spawn"):
        first.render()
    second.step(HOLD)
    first.reset(seed=0)
    first.step(HOLD)


def test_modes_switch_and_the_motors_are_set_up_anew(fake):
    """The fake refuses velocities to motors in position control and the other way round."""
    modes = ("ee_delta", "keypose", "joint_position", "native", "ee_delta", "native")
    pairs = [(mode, make(action_mode=mode)) for mode in modes]
    for mode, env in pairs:
        env.reset(seed=0)
        action = np.zeros(env.action_space.shape, np.float32)
        action[3:] = 1.0 if mode == "keypose" else 0.5
        *_, info = env.step(action)
        assert not info["action_failed"]
    assert fake.counts["launch"] == 4  # position, velocity, position, velocity
    assert fake.counts["shutdown"] == 3


def run_in_thread(function):
    caught = []

    def target():
        try:
            function()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    return caught


def test_other_threads_are_refused(fake):
    env, other = make(render_mode="rgb_array"), make("PushButton")
    env.reset(seed=0)
    calls = (
        lambda: env.unwrapped.step(HOLD),
        lambda: env.unwrapped.render_camera("primary"),
        lambda: env.unwrapped.reset(seed=1),
        lambda: other.reset(seed=0),
    )
    for call in calls:
        (error,) = run_in_thread(call)
        assert isinstance(error, SimulatorCrashed) and "another thread" in str(error)
    env.reset(seed=0)
    env.step(HOLD)
    simulator = env.unwrapped._simulator
    (error,) = run_in_thread(simulator.close)
    assert isinstance(error, SimulatorCrashed)
    assert fake.live


def test_another_thread_may_start_it_after_the_first_has_closed_it(fake):
    env = make()
    env.reset(seed=0)
    env.close()

    def play():
        again = make()
        again.reset(seed=0)
        again.close()

    assert run_in_thread(play) == []


def test_fork_of_the_process_is_refused(fake, monkeypatch):
    env = make()
    env.reset(seed=0)
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(SimulatorCrashed, match="does not survive a fork"):
        env.step(HOLD)
    monkeypatch.setattr(os, "getpid", lambda: pid)


def test_close_of_one_that_failed_before_it_started(fake):
    env = make()
    fake.failures["launch"] = [RuntimeError("x")]
    with pytest.raises(SimulatorCrashed):
        env.reset(seed=0)
    env.close()
    env.close()


def test_unclean_shutdown_is_told(fake):
    env = make()
    env.reset(seed=0)
    fake.failures["shutdown"] = [RuntimeError("hangs")]
    with pytest.raises(SimulatorCrashed, match="did not stop cleanly"):
        env.close()
    fake.thread = None  # for the fixture
