"""The RLBench twin: every task can be solved, none by chance; modes, determinism, pictures."""

from __future__ import annotations

import threading
import warnings

import gymnasium as gym
import numpy as np
import pytest

import vla_gym
from tests.support import ROOT, needs
from vla_gym import check_contract
from vla_gym.errors import DependencyNotInstalled, InvalidOption, StandInWarning
from vla_gym.policy import connect
from vla_gym.rollout import run_episode
from vla_gym.rotations import rotation_vector, vector_to_quaternion
from vla_gym.suites.rlbench import (
    SUITE,
    encode_joint_position,
    encode_keypose,
)
from vla_gym.suites.rlbench_tasks import VARIATIONS
from vla_gym.suites.rlbench_twin import MAX_BODIES, MAX_JOINTS, TWIN_TASKS
from vla_gym.twins.rlbench.tasks import MODULES, load_task
from vla_gym.twins.rlbench.world import read_state

pytestmark = needs("rlbench-twin")

TASKS = sorted(TWIN_TASKS)
REACH_LIKE = {"ReachTarget"}
"""Tasks that wandering may solve: a point in the air that is touched once."""

GOLDEN = ROOT / "tests/golden/rlbench_twin"


def make(task, **keywords):
    wanted = {"cameras": (), "simulator": "rlbench-twin", **keywords}
    return gym.make(f"VLA/RLBench-{task}-v0", **wanted)


def play(env, name, seed, variation):
    policy = connect(vla_gym.make_policy(name), env.unwrapped.spec_sheet)
    return run_episode(env, policy, seed=seed, options={"variation": variation})


def solve(task, seeds):
    env = make(task, state=True, terminate_on_success=True)
    found = [play(env, "rlbench-expert", s, s % VARIATIONS[task]).success for s in seeds]
    env.close()
    return sum(found), len(found)


# ---------------------------------------------------------------- tables


def test_the_twin_has_the_tasks_that_it_says():
    assert len(TASKS) >= 25
    assert set(MODULES) == set(TASKS) <= set(SUITE.tasks)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_says_what_it_must(task):
    cls = load_task(task)
    assert cls.__name__ == task and cls.__doc__ and "uccess" in cls.__doc__
    assert 1 <= len(cls.bodies) <= MAX_BODIES and len(cls.joints) <= MAX_JOINTS
    wordings = [cls.wordings(variation) for variation in range(VARIATIONS[task])]
    for texts in wordings:
        assert len(set(texts)) == len(texts) >= 5
        assert all(text.isascii() and 3 < len(text) <= 256 for text in texts)
    assert len({texts[0] for texts in wordings}) == len(wordings)


# ---------------------------------------------------------------- solvable, and not by chance


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_solves_a_slice_of_every_task(task):
    solved, episodes = solve(task, range(4))
    assert solved == episodes


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_expert_solves_every_task_on_50_seeds_and_all_variations(task):
    solved, episodes = solve(task, range(max(50, VARIATIONS[task])))
    assert solved >= 0.95 * episodes


@pytest.mark.parametrize("task", TASKS)
def test_doing_nothing_solves_nothing(task):
    env = make(task)
    for variation in {0, VARIATIONS[task] - 1}:
        _, info = env.reset(seed=variation, options={"variation": variation})
        assert info["success"] is False
        for open_or_shut in (1.0, -1.0):
            action = np.zeros(7, np.float32)
            action[6] = open_or_shut
            for _ in range(20):
                assert env.step(action)[4]["success"] is False
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_chance_solves_at_most_one_in_twenty(task):
    env = make(task, terminate_on_success=True)
    solved = sum(play(env, "random", s, s % VARIATIONS[task]).success for s in range(40))
    env.close()
    assert solved <= (40 if task in REACH_LIKE else 2)


# ---------------------------------------------------------------- episodes


@pytest.mark.parametrize("task", TASKS)
def test_everything_lies_still_after_a_reset(task):
    env = make(task)
    for seed in range(3):
        env.reset(seed=seed)
        world = env.unwrapped._simulator._world
        assert np.abs(world.data.qvel).max() < 0.05
        assert world.held is None
    env.close()


@pytest.mark.parametrize("task", ["PickAndLift", "OpenDrawer"])
def test_an_episode_is_a_function_of_its_seed_also_in_another_env(task):
    def run(env, seed):
        rng = np.random.default_rng(1)
        states = [env.reset(seed=seed)[0]["state"]]
        for _ in range(15):
            action = rng.uniform(-1, 1, 7).astype(np.float32)
            states.append(env.step(action)[0]["state"])
        return np.array(states)

    one, other = make(task, state=True), make(task, state=True)
    first = run(one, 3)
    run(one, 4)
    assert np.array_equal(run(one, 3), first)
    assert np.array_equal(run(other, 3), first)
    assert not np.array_equal(run(other, 5), first)


def test_several_twins_in_threads_play_the_same_episodes():
    def run(found):
        env = make("PickAndLift", state=True, cameras=("wrist",), image_size=32)
        observation, _ = env.reset(seed=2)
        for _ in range(10):
            observation = env.step(np.full(7, 0.4, np.float32))[0]
        found.append((observation["state"], observation["rgb_wrist"]))
        env.close()

    found = []
    threads = [threading.Thread(target=run, args=(found,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(found)
    assert len(found) == 4
    for state, picture in found[:3]:
        assert np.array_equal(state, found[3][0])
        assert np.array_equal(picture, found[3][1])


def test_variation_names_the_instruction_and_must_exist():
    env = make("ReachTarget")
    _, info = env.reset(seed=0, options={"variation": 4})
    assert info["variation"] == 4 and "blue" in info["instruction"]
    assert info["instructions"] == load_task("ReachTarget").wordings(4)
    with pytest.raises(InvalidOption, match=r"\[0, 19\]"):
        env.reset(options={"variation": 20})
    drawn = {env.reset(seed=s)[1]["variation"] for s in range(12)}
    assert len(drawn) > 4
    env.close()


def test_state_holds_what_the_names_say():
    env = make("OpenDrawer", state=True)
    observation, info = env.reset(seed=1)
    task = load_task("OpenDrawer")
    seen = read_state(observation["state"], task.bodies, task.joints)
    assert seen.variation == info["variation"] and seen.opening == pytest.approx(1.0)
    world = env.unwrapped._simulator._world
    for name in task.bodies:
        np.testing.assert_allclose(seen.poses[name].position, world.pose(name).position)
        np.testing.assert_allclose(seen.poses[name].rotation, world.pose(name).rotation, atol=1e-9)
    np.testing.assert_allclose(seen.tip.position, world.robot.tip.position)
    with pytest.raises(InvalidOption, match="state has shape"):
        read_state(observation["state"][:-1], task.bodies, task.joints)


# ---------------------------------------------------------------- action modes


def test_ee_delta_moves_by_its_scale():
    env = make("PushButton")
    env.reset(seed=0)
    down, stay = np.array([[0, 0, -1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1]], np.float32)

    def go(action, steps):
        for _ in range(steps):
            proprio = env.step(action)[0]["proprio"]
        return proprio

    go(down, 12)  # at home the arm is nearly stretched: its joints' speed limit slows it there
    start = go(stay, 4)
    go(down, 8)
    end = go(stay, 4)
    assert start[2] - end[2] == pytest.approx(8 * 0.025, abs=0.003)
    np.testing.assert_allclose(start[:2], end[:2], atol=0.003)
    turn = np.array([0, 0, 0, 0, 0, 1, 1], np.float32)
    go(turn, 5)
    turned = go(stay, 4)
    # Base frame: the hand's x axis turns about z, against the clock from above.
    angle = np.arctan2(turned[4], turned[3]) - np.arctan2(end[4], end[3])
    assert (angle + np.pi) % (2 * np.pi) - np.pi == pytest.approx(5 * 0.1, abs=0.02)
    env.close()


def test_native_joint_velocities_turn_the_joints():
    env = make("ReachTarget", action_mode="native", proprio="joints")
    start = env.reset(seed=0)[0]["proprio"]
    np.testing.assert_allclose(start[:7], (0, 0.1745, 0, -0.8727, 0, 1.2217, 0.7854), atol=1e-3)
    action = np.zeros(8, np.float32)
    action[6], action[7] = 0.5, 1.0
    for _ in range(10):
        end = env.step(action)[0]["proprio"]
    assert end[6] - start[6] == pytest.approx(10 * 0.05 * 0.5, abs=0.02)
    assert end[13] == pytest.approx(0.5, abs=0.1)  # its velocity
    env.close()


def test_joint_positions_are_reached():
    env = make("ReachTarget", action_mode="joint_position", proprio="joints")
    start = env.reset(seed=0)[0]["proprio"]
    wanted = start[:7] + np.array([0.3, 0.2, -0.2, -0.4, 0.1, 0.2, -0.5])
    action = encode_joint_position(wanted, open=False)
    for _ in range(15):
        end = env.step(action)[0]["proprio"]
    np.testing.assert_allclose(end[:7], wanted, atol=0.01)
    assert end[14] < 0.1
    env.close()


def test_the_plan_as_key_poses_solves_tasks_too():
    for task in ("ReachTarget", "PickAndLift", "PushButton"):
        env = make(task, action_mode="keypose", state=True, terminate_on_success=True)
        for seed in range(3):
            observation, info = env.reset(seed=seed)
            cls = load_task(task)
            plan = cls.plan(read_state(observation["state"], cls.bodies, cls.joints))
            is_open, terminated, steps = True, False, 0
            for waypoint in plan:
                for change in (waypoint.open, waypoint.then_open):
                    is_open = is_open if change is None else change
                quat = vector_to_quaternion(rotation_vector(waypoint.rotation))
                pose = waypoint.position, quat
                _, _, terminated, _, info = env.step(encode_keypose(*pose, open=is_open))
                assert "action_error" not in info
                steps += info["sim_steps"]
                if terminated:
                    break
            assert terminated and info["success"], (task, seed)
            assert steps > 10
        env.close()


def test_a_key_pose_out_of_reach_is_said_or_ends_the_episode():
    away = np.array([1, 1, 1, 1, 0, 0, 0, 1], np.float32)  # the workspace's far upper corner
    env = make("ReachTarget", action_mode="keypose")
    before = env.reset(seed=0)[0]["proprio"]
    after, reward, terminated, _, info = env.step(away)
    assert info["action_failed"] and "no arm posture" in info["action_error"]
    assert not terminated and reward == 0.0 and info["sim_steps"] == 0
    assert np.array_equal(before, after["proprio"])
    env.close()
    env = make("ReachTarget", action_mode="keypose", on_invalid_action="terminate")
    env.reset(seed=0)
    assert env.step(away)[2]
    env.close()


def test_an_episode_has_25_key_poses():
    env = make("PickAndLift", action_mode="keypose")
    env.reset(seed=0)
    stay = encode_keypose((0.25, 0, 1.3), (0, 1, 0, 0), open=True)
    truncated = [env.step(stay)[3] for _ in range(25)]
    assert truncated == [False] * 24 + [True]
    env.close()


# ---------------------------------------------------------------- contract, names, pictures


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ee_delta", "native", "joint_position", "keypose"])
def test_every_mode_keeps_the_contract_with_pictures(mode):
    env = make("PickAndLift", action_mode=mode, cameras=("primary", "wrist"), image_size=32)
    check_contract(env, steps=3)
    env.close()


def test_auto_says_once_that_it_is_not_the_original():
    from vla_gym import env as module

    module._warned.clear()
    with pytest.warns(StandInWarning, match=r"stand-in for 'coppeliasim'.*not RLBench results"):
        first = gym.make("VLA/RLBench-ReachTarget", cameras=())
    with warnings.catch_warnings():
        warnings.simplefilter("error", StandInWarning)
        gym.make("VLA/RLBench-ReachTarget", cameras=())
    _, info = first.reset(seed=0)
    assert info["simulator"] == "rlbench-twin"
    first.close()


def test_a_task_that_the_twin_lacks_says_so():
    with pytest.raises(DependencyNotInstalled, match="'rlbench-twin' does not have this task"):
        make("SetupChess")


def test_the_original_is_explained_where_it_is_missing():
    with pytest.raises(DependencyNotInstalled, match="COPPELIASIM_ROOT"):
        make("ReachTarget", simulator="coppeliasim")


def draw(task, seed=0):
    """Return the front view at 128 px and the wrist view below it, after a reset: (256, 128, 3)."""
    env = make(task, cameras=("primary", "wrist"), render_quality="fast")
    variation = min(1, VARIATIONS[task] - 1)
    observation, _ = env.reset(seed=seed, options={"variation": variation})
    env.close()
    return np.concatenate([observation["rgb_primary"], observation["rgb_wrist"]])


@needs("eval")
@pytest.mark.parametrize("task", TASKS)
def test_a_task_looks_as_it_did(task):
    """Against pictures that were looked at (drawn by `python -m tests.twins.test_rlbench_twin`)."""
    from PIL import Image

    golden = np.asarray(Image.open(GOLDEN / f"{task}.png").convert("RGB")).astype(float)
    found = draw(task).astype(float)
    # Drivers round differently along edges; a thing that is missing or elsewhere is far more.
    assert np.abs(found - golden).mean() < 2.0


def _draw_golden() -> None:
    from PIL import Image

    GOLDEN.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        Image.fromarray(draw(task)).save(GOLDEN / f"{task}.png", optimize=True)


if __name__ == "__main__":
    _draw_golden()
