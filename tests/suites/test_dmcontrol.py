"""dm_control's manipulation tasks: bit-equal to upstream, and moved by the contract's action."""

from __future__ import annotations

import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from tests.support import ROOT, needs
from vla_gym.registration import get_suite
from vla_gym.rotations import quaternion_to_matrix, rotation_vector
from vla_gym.suites.dmcontrol import (
    ARM_RAD_S,
    FINGER_RAD_S,
    HORIZON,
    POSITION_M,
    ROTATION_RAD,
    SUITE,
)

pytestmark = needs("dmcontrol")

QUICK = ("ReachSite", "PlaceCradle", "Stack2Of3BricksRandomOrder")
TASKS = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in SUITE.tasks
]


def make(task="LiftBrick", **keywords):
    return gym.make(f"VLA/DMControl-{task}-v0", **{"cameras": (), "state": True, **keywords})


def load(task, seed, variant="features"):
    """Return upstream's own env and its first step."""
    from dm_control import manipulation

    env = manipulation.load(f"{SUITE.tasks[task].native}_{variant}", seed=seed)
    return env, env.reset()


def flatten(observation):
    return np.concatenate([np.ravel(value) for value in observation.values()])


def read_rotation(proprio):
    first, second = np.float64(proprio[3:6]), np.float64(proprio[6:9])
    return np.stack([first, second, np.cross(first, second)], axis=1)


def drive(env, action, steps):
    for _ in range(steps):
        observation = env.step(np.float32(action))[0]
    return observation["proprio"].astype(np.float64)


@pytest.mark.parametrize("task", TASKS)
def test_episodes_are_upstreams_bit_for_bit_whatever_ran_before(task):
    env = make(task, action_mode="native")
    scale = np.append(ARM_RAD_S, [FINGER_RAD_S] * 3)
    for seed in (0, 1):
        observation, info = env.reset(seed=seed)
        theirs, step = load(task, info["episode_seed"])
        np.testing.assert_array_equal(observation["state"], flatten(step.observation))
        rng = np.random.default_rng(seed)
        for _ in range(8):
            action = rng.uniform(-1, 1, 9).astype(np.float32)
            observation, reward, terminated, _, info = env.step(action)
            step = theirs.step(scale * action.astype(np.float64))
            np.testing.assert_array_equal(observation["state"], flatten(step.observation))
            np.testing.assert_array_equal(
                env.unwrapped._simulator._data.qpos, theirs.physics.data.qpos
            )
            assert reward == step.reward and not terminated
            assert info["success"] == (step.reward > 0.999999)
        theirs.close()
    env.close()


def test_the_registered_tasks_are_all_of_upstreams():
    from dm_control import manipulation

    names = {
        name.removesuffix("_features") for name in manipulation.get_environments_by_tag("features")
    }
    assert names == {task.native for task in SUITE.tasks.values()}


def test_without_state_the_physics_is_the_same():
    action = np.full(7, 0.5, np.float32)
    ends = []
    for state in (True, False):
        env = make("Stack2Bricks", state=state)
        env.reset(seed=3)
        for _ in range(5):
            env.step(action)
        ends.append(env.unwrapped._simulator._data.qpos.copy())
        env.close()
    np.testing.assert_array_equal(*ends)


PICTURES = """
import warnings; warnings.simplefilter("ignore")
import gymnasium as gym, numpy as np, vla_gym
from dm_control import manipulation
env = gym.make("VLA/DMControl-Stack2Bricks-v0", action_mode="native", image_size=84)
observation, info = env.reset(seed=2)
theirs = manipulation.load("stack_2_bricks_vision", seed=info["episode_seed"])
step = theirs.reset()
from vla_gym.suites.dmcontrol import ARM_RAD_S, FINGER_RAD_S
scale = np.append(ARM_RAD_S, [FINGER_RAD_S] * 3)
rng = np.random.default_rng(0)
for _ in range(4):
    assert np.array_equal(observation["rgb_primary"], step.observation["front_close"][0])
    action = rng.uniform(-1, 1, 9).astype(np.float32)
    observation = env.step(action)[0]
    step = theirs.step(scale * action)
assert observation["rgb_primary"].std() > 20 and observation["rgb_wrist"].std() > 20
print("equal")
"""


@pytest.mark.slow
def test_pictures_are_upstreams_pixels():
    from vla_gym.rendering import choose_backend

    environment = {**os.environ, "MUJOCO_GL": choose_backend(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(  # dm_control keeps the GL that it finds when it is imported
        [sys.executable, "-c", PICTURES], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "equal", done.stderr


def test_pictures_show_the_sky_above_and_the_arm_from_the_front():
    env = make(cameras=("primary", "wrist", "top_down"), image_size=96)
    observation, _ = env.reset(seed=0)
    picture = observation["rgb_primary"].astype(int)
    checked = picture[-24:].std(axis=(0, 1)).max()
    assert checked > 5  # the floor's tiles are below
    for camera in ("wrist", "top_down"):
        assert observation[f"rgb_{camera}"].std() > 5
    env.close()


@pytest.mark.parametrize("axis", range(3))
def test_the_hand_moves_by_what_the_spec_sheet_says(axis):
    env = make("LiftLargeBox")
    start = env.reset(seed=4)[0]["proprio"].astype(np.float64)
    there = drive(env, np.eye(7)[axis] * 0.5, 10)
    there = drive(env, np.zeros(7), 10)
    moved = there[:3] - start[:3]
    wanted = np.zeros(3)
    wanted[axis] = 10 * 0.5 * POSITION_M
    np.testing.assert_allclose(moved, wanted, atol=0.004)
    assert np.linalg.norm(rotation_vector(read_rotation(there) @ read_rotation(start).T)) < 0.03
    env.close()


@pytest.mark.parametrize("axis", range(3))
def test_the_hand_turns_by_what_the_spec_sheet_says(axis):
    env = make("LiftLargeBox")
    start = env.reset(seed=4)[0]["proprio"].astype(np.float64)
    drive(env, np.eye(7)[3 + axis] * 0.5, 10)
    there = drive(env, np.zeros(7), 15)
    turned = rotation_vector(read_rotation(there) @ read_rotation(start).T)
    wanted = np.zeros(3)
    wanted[axis] = 10 * 0.5 * ROTATION_RAD
    np.testing.assert_allclose(turned, wanted, atol=0.03)
    np.testing.assert_allclose(there[:3], start[:3], atol=0.006)
    env.close()


def test_rest_holds_the_hand_against_gravity_and_native_does_not():
    drifts = []
    for mode, size in (("ee_delta", 7), ("native", 9)):
        env = make(action_mode=mode)
        start = env.reset(seed=1)[0]["proprio"]
        assert env.unwrapped.spec_sheet.rest == (0.0,) * size
        drifts.append(np.linalg.norm(drive(env, np.zeros(size), 50)[:3] - start[:3]))
        env.close()
    assert drifts[0] < 0.004 < drifts[1]


def test_a_goal_out_of_reach_does_not_wind_up():
    env = make()
    env.reset(seed=0)
    down = np.array([0, 0, -1, 0, 0, 0, 1])
    low = drive(env, down, 150)[2]  # the floor, or the end of the arm, is long reached
    up = drive(env, -down * [1, 1, 1, 1, 1, 1, -1], 10)[2]
    assert up - low > 0.02
    env.close()


def test_plus_one_opens_and_minus_one_closes_all_the_way():
    env = make(proprio="joints")
    env.reset(seed=0)
    assert drive(env, np.eye(7)[6], 40)[-1] == pytest.approx(1.0, abs=0.01)
    assert drive(env, -np.eye(7)[6], 40)[-1] < 0.1
    assert env.observation_space["proprio"].shape == (13,)
    env.close()


def test_success_is_where_the_reward_is_one():
    env = make("ReachSite")
    observation, info = env.reset(seed=0)
    assert not info["success"]
    target = observation["state"][:3] - [0, 0.4, 0]  # the base stands there
    for _ in range(HORIZON):
        error = target - observation["proprio"][:3]
        action = np.append(np.clip(error / POSITION_M, -1, 1), [0, 0, 0, 0])
        observation, reward, _, _, info = env.step(np.float32(action))
        if info["success"]:
            break
    assert info["success"] and reward == 1.0 and np.linalg.norm(error) < 0.06
    env.close()


def lift(seed):
    """Go above the brick with the fingers across it, go down, close, lift; return the last info."""
    env = make("LiftBrick")
    observation, info = env.reset(seed=seed)
    phase, held = "above", 0
    while not info["success"] and env.unwrapped._actions < HORIZON:
        hand = observation["proprio"].astype(np.float64)
        orientation, position = observation["state"][-7:-3], observation["state"][-3:]
        goal, yaw = position - [0, 0.4, 0], 0.0  # the base stands there
        if phase == "above":
            side = quaternion_to_matrix(orientation[[1, 2, 3, 0]])[:, 0]
            yaw = np.arctan2(side[1], side[0]) - np.arctan2(hand[4], hand[3])
            yaw = (yaw + np.pi / 2) % np.pi - np.pi / 2
            goal[2] += 0.12
            if np.linalg.norm(hand[:2] - goal[:2]) < 0.01 and abs(yaw) < 0.15:
                phase = "down"
        if phase == "down":
            goal[2] = 0.012
            if hand[2] < 0.022:
                phase = "close"
        if phase == "close":
            goal, held = hand[:3], held + 1
            if held > 28:
                phase, top = "lift", np.add(hand[:3], [0, 0, 0.4])
        if phase == "lift":
            goal = top
        move = np.clip((goal - hand[:3]) / POSITION_M / 2, -1, 1)
        turn = [0, 0, np.clip(0.3 * yaw / ROTATION_RAD, -1, 1)]
        grip = 1.0 if phase in ("above", "down") else -1.0
        observation, *_, info = env.step(np.float32([*move, *turn, grip]))
    env.close()
    return info


@pytest.mark.parametrize("seed", range(3))
def test_a_brick_can_be_lifted_with_ee_delta(seed):
    assert lift(seed)["success"]


def test_random_orders_follow_the_seed_alone_and_are_told():
    env = make("Reassemble5BricksRandomOrder", state=False)
    orders = [env.reset(seed=seed)[1]["order"] for seed in (0, 1, 2, 0)]
    assert orders[0] == orders[3] and len(set(orders)) > 1
    assert sorted(orders[0].split(", ")) == ["blue", "cyan", "green", "magenta", "red"]
    env.close()


def test_every_tasks_state_has_the_length_that_the_suite_tells():
    for task in SUITE.tasks.values():
        env = make(task.name)
        observation, info = env.reset(seed=0)
        assert observation["state"].shape == env.observation_space["state"].shape
        assert info["instruction"] == task.instruction
        env.close()


def test_wordings_are_distinct():
    wordings = [w for task in SUITE.tasks.values() for w in (task.instruction, *task.paraphrases)]
    assert len(set(wordings)) == len(wordings) == 4 * 13
    assert get_suite("DMControl").id("ReachSite") == "VLA/DMControl-ReachSite-v0"


def test_importing_dm_control_leaves_the_users_choice_of_gl():
    code = (
        "import os, gymnasium as gym, vla_gym\n"
        "env = gym.make('VLA/DMControl-ReachSite-v0', cameras=())\n"
        "env.reset(seed=0)\n"
        "print({n: os.environ.get(n) for n in ('MUJOCO_GL', 'PYOPENGL_PLATFORM')})\n"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean)
    assert done.stdout.strip() == "{'MUJOCO_GL': None, 'PYOPENGL_PLATFORM': None}", done.stderr
    assert done.stderr == ""
