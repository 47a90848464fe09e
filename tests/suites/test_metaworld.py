"""Meta-World through our envs against metaworld 3.1.1 stepped directly, and the laws of a reset."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import vla_gym
from tests.support import needs
from vla_gym.errors import InvalidOption, UnknownName
from vla_gym.policy import connect
from vla_gym.suites.metaworld import SUITE
from vla_gym.suites.metaworld_goals import GOALS, SPLITS, draw_goals, load_goals
from vla_gym.suites.metaworld_tasks import DIFFICULTIES, TASKS

ROOT = Path(__file__).resolve().parents[2]
COUNTS = json.loads((ROOT / "tests/golden/metaworld_scripted_counts.json").read_text())["counts"]

# One of each kind: plain goals, walls, joints, free objects, models that the episode edits, and the
# tasks whose episodes leave something behind upstream (Push, PushBack).
GOLDEN = (
    "Assembly",
    "Basketball",
    "ButtonPressTopdownWall",
    "CoffeePush",
    "DoorLock",
    "DrawerOpen",
    "Hammer",
    "LeverPull",
    "PegInsertSide",
    "Push",
    "PushBack",
    "Reach",
    "StickPull",
    "WindowClose",
)
SIZE = 64
UPSTREAM_VIEWS = SUITE.layout(
    TASKS["Reach"], {"split": "train", "camera_preset": "standard"}
).cameras


def make(task: str, **keywords) -> gym.Env:
    return gym.make(f"VLA/MetaWorld-{task}-v0", **{"cameras": (), "state": True, **keywords})


def make_upstream(task: str, goal: int, **keywords):
    """Return a freshly constructed upstream env on a training goal, and its first observation."""
    import metaworld
    from metaworld.types import Task

    native = TASKS[task].native
    cls = metaworld.ALL_V3_ENVIRONMENTS[native]
    env = cls(**keywords)
    chosen = {
        "rand_vec": load_goals(native, "train")[goal].copy(),
        "env_cls": cls,
        "partially_observable": False,
    }
    env.set_task(Task(native, pickle.dumps(chosen)))
    return env, env.reset()[0]


def render_upstream(upstream, camera: str) -> np.ndarray:
    """Return upstream's own picture; its viewer leaves it to us to make its GL context current."""
    viewer = upstream.mujoco_renderer
    viewer.camera_id = upstream.model.camera(camera).id
    viewer._get_viewer("rgb_array").make_context_current()
    return viewer.render("rgb_array")


def draw_actions(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 4)).astype(np.float32)


def assert_same_episode(env: gym.Env, task: str, goal: int, steps: int) -> None:
    upstream, state = make_upstream(task, goal)
    observation, info = env.reset(options={"goal": goal})
    assert info["goal"] == goal
    assert info["success"] is False
    np.testing.assert_array_equal(observation["state"], state)
    for action in draw_actions(steps):
        state, reward, _, _, upstream_info = upstream.step(action)
        observation, our_reward, terminated, _, info = env.step(action)
        np.testing.assert_array_equal(observation["state"], state)
        assert our_reward == reward
        assert info["success"] == bool(upstream_info["success"])
        assert info["obj_to_target"] == upstream_info["obj_to_target"]
        assert not terminated
    upstream.close()


# ---------------------------------------------------------------- data: no simulator needed


def test_tasks_are_complete_and_distinct() -> None:
    assert {task.native for task in TASKS.values()} == set(COUNTS)
    wordings = [w for task in TASKS.values() for w in (task.instruction, *task.paraphrases)]
    assert len({w.lower() for w in wordings}) == len(wordings)
    for task in TASKS.values():
        assert len(task.paraphrases) >= 4
        assert task.success
        assert task.horizon == 500
        assert "".join(part.capitalize() for part in task.native[:-3].split("-")) == task.name
    assert all(w.isascii() and w.isprintable() and len(w) <= 256 for w in wordings)


def test_difficulty_groups_have_their_published_sizes() -> None:
    groups = [task.tags[0] for task in TASKS.values()]
    assert [groups.count(name) for name in DIFFICULTIES] == [28, 11, 6, 5]


def test_goals_are_distinct_and_read_only() -> None:
    for task in TASKS.values():
        train, test = (load_goals(task.native, split) for split in SPLITS)
        assert train.shape == test.shape == (GOALS, train.shape[1])
        assert len(np.unique(np.concatenate([train, test]), axis=0)) == 2 * GOALS
        assert not train.flags.writeable


def test_import_does_not_import_the_simulator() -> None:
    code = (
        "import sys, vla_gym.suites.metaworld; "
        "assert not {'metaworld', 'mujoco'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- against upstream


@needs("metaworld")
@pytest.mark.parametrize("task", GOLDEN)
def test_episodes_equal_upstream_bit_for_bit(task: str) -> None:
    env = make(task, action_mode="native")
    env.reset(options={"goal": 30})
    for action in draw_actions(25):
        env.step(action)
    for goal in (0, 49):  # each after another episode
        assert_same_episode(env, task, goal, steps=25)
    env.close()


@needs("metaworld")
@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_all_tasks_equal_upstream_bit_for_bit(task: str) -> None:
    env = make(task, action_mode="native")
    for goal in (3, 0, 7, 7, 0):
        assert_same_episode(env, task, goal, steps=60)
    env.close()


@needs("metaworld")
@pytest.mark.parametrize("task", GOLDEN[4:])
def test_pictures_equal_upstreams_viewer(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vla_gym.rendering import choose_backend

    monkeypatch.setenv("MUJOCO_GL", choose_backend())  # upstream would try a window first
    names = tuple(UPSTREAM_VIEWS) if task == "StickPull" else ("primary", "wrist")
    env = make(task, cameras=names, image_size=SIZE, action_mode="native")
    env.reset(options={"goal": 5})
    env.step(draw_actions(1)[0])
    upstream, _ = make_upstream(task, 9, render_mode="rgb_array", width=SIZE, height=SIZE)
    observation, _ = env.reset(options={"goal": 9})
    for action in (None, draw_actions(1)[0]):
        if action is not None:
            upstream.step(action)
            observation = env.step(action)[0]
        for name in names:
            picture = render_upstream(upstream, UPSTREAM_VIEWS[name].native)
            if UPSTREAM_VIEWS[name].turned:
                picture = picture[::-1, ::-1]
            np.testing.assert_array_equal(observation[f"rgb_{name}"], picture, err_msg=name)
    env.close()
    upstream.close()


@needs("metaworld")
def test_lerobot_preset_equals_lerobots_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    # What lerobot 0.6.2, envs/metaworld.py, does: 480 x 480, corner2 moved, np.flip over both axes.
    from vla_gym.rendering import choose_backend

    monkeypatch.setenv("MUJOCO_GL", choose_backend())
    upstream, _ = make_upstream("DrawerOpen", 2, render_mode="rgb_array")
    upstream.model.cam_pos[2] = [0.75, 0.075, 0.7]
    env = make("DrawerOpen", cameras=("primary",), image_size=480, camera_preset="lerobot")
    env.reset(options={"goal": 1})
    env.reset(options={"goal": 2})
    for _ in range(2):  # upstream's camera moves only with the next step after the edit
        upstream.step(np.zeros(4, np.float32))
        observation = env.step(np.zeros(7, np.float32))[0]
    np.testing.assert_array_equal(
        observation["rgb_primary"], np.flip(render_upstream(upstream, "corner2"), (0, 1))
    )
    env.close()
    upstream.close()


@needs("metaworld")
def test_every_view_is_upright() -> None:
    import mujoco

    upstream, _ = make_upstream("Reach", 0)
    mujoco.mj_forward(upstream.model, upstream.data)
    assert {upstream.model.camera(i).name for i in range(upstream.model.ncam)} == {
        view.native for view in UPSTREAM_VIEWS.values()
    }
    for name, view in UPSTREAM_VIEWS.items():
        axes = upstream.data.camera(view.native).xmat.reshape(3, 3)
        up, forward = axes[:, 1] * (-1 if view.turned else 1), -axes[:, 2]
        if forward[2] < -0.98:  # straight down: up is away from the robot
            assert up[1] > 0.9, name
        else:
            assert up[2] > 0.1, name
    upstream.close()


@needs("metaworld")
@pytest.mark.parametrize("split", SPLITS)
def test_goal_table_equals_upstreams_draws(split: str) -> None:
    np.testing.assert_array_equal(
        load_goals("window-open-v3", split), draw_goals("window-open-v3", split)
    )


@needs("metaworld")
@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", TASKS)
def test_all_goal_tables_equal_upstreams_draws(task: str, split: str) -> None:
    native = TASKS[task].native
    np.testing.assert_array_equal(load_goals(native, split), draw_goals(native, split))


# ---------------------------------------------------------------- resets and options


def summarise(task: str, seed: int) -> str:
    """Return a digest of an episode's start and 3 steps, pictures included."""
    import hashlib

    env = make(task, cameras=("primary", "wrist"), image_size=32)
    digest = hashlib.sha256()
    observation, info = env.reset(seed=seed)
    digest.update(str(info["goal"]).encode())
    for _ in range(3):
        for key in ("rgb_primary", "rgb_wrist", "proprio", "state"):
            digest.update(observation[key].tobytes())
        observation = env.step(np.full(7, 0.5, np.float32))[0]
    env.close()
    return digest.hexdigest()


@needs("metaworld")
@pytest.mark.parametrize("task", ["Push", "WindowClose"])
def test_same_seed_same_episode_after_others_and_in_another_process(task: str) -> None:
    env = make(task, cameras=("primary", "wrist"), image_size=32)
    first, info = env.reset(seed=5)
    for seed in (6, 7):
        env.reset(seed=seed)
        for _ in range(5):
            env.step(env.action_space.sample())
    again, info_again = env.reset(seed=5)
    assert info == info_again
    for key in ("rgb_primary", "rgb_wrist", "proprio", "state"):
        np.testing.assert_array_equal(first[key], again[key], err_msg=key)
        assert not np.shares_memory(first[key], again[key])
    env.close()
    code = f"from tests.suites.test_metaworld import summarise; print(summarise({task!r}, 5))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert other.stdout.strip().splitlines()[-1] == summarise(task, 5)


@needs("metaworld")
def test_episodes_leave_numpys_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    env = make("Reach")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.reset()
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    env.close()


@needs("metaworld")
def test_default_goal_follows_the_seed_and_varies() -> None:
    env = make("Reach")
    goals = [env.reset(seed=1)[1]["goal"], *(env.reset()[1]["goal"] for _ in range(12))]
    assert goals == [env.reset(seed=1)[1]["goal"], *(env.reset()[1]["goal"] for _ in range(12))]
    assert len(set(goals)) > 6
    assert all(0 <= goal < GOALS for goal in goals)
    env.close()


@needs("metaworld")
def test_splits_have_other_goals_in_sight() -> None:
    seen = {}
    for split in SPLITS:
        env = make("Reach", split=split)
        state = env.reset(options={"goal": np.int64(4)})[0]["state"]
        # Reach's goal is the last half of its random vector, and the end of the observation.
        np.testing.assert_array_equal(state[-3:], load_goals("reach-v3", split)[4][-3:])
        seen[split] = state
        env.close()
    assert not np.array_equal(seen["train"], seen["test"])


@needs("metaworld")
@pytest.mark.parametrize("goal", [True, np.True_, 1.0, np.float32(1), -1, 50, "3", None, [1]])
def test_bad_goals_are_refused(goal: object) -> None:
    env = make("Reach")
    with pytest.raises(InvalidOption, match=r"\[0, 49\]"):
        env.reset(options={"goal": goal})
    env.reset(options={"goal": 0})  # and the env goes on
    env.close()


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="DrawerOpen"):
        vla_gym.VLAEnv("MetaWorld", "drawer-open")


@needs("metaworld")
def test_unknown_keywords_and_options_are_refused() -> None:
    with pytest.raises(UnknownName, match="'test'"):
        make("Reach", split="tset")
    with pytest.raises(UnknownName, match="'lerobot'"):
        make("Reach", camera_preset="lerobott")
    with pytest.raises(UnknownName, match="'topview'"):
        make("Reach", cameras=("topviev",))
    env = make("Reach")
    with pytest.raises(UnknownName, match="'goal'"):
        env.reset(options={"gaol": 1})
    env.close()


@needs("metaworld")
def test_no_list_of_tasks_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's MT1 draws 50 tasks on an env of its own, which takes several times our start."""

    def fail(*arguments: object, **keywords: object) -> None:
        raise AssertionError("a list of tasks was built")

    for name in ("MT1", "ML1"):
        monkeypatch.setattr(f"metaworld.{name}.__init__", fail)
    for split in SPLITS:
        env = make("Reach", split=split)
        env.reset(seed=0)
        env.close()


# ---------------------------------------------------------------- actions, proprio, horizon


@needs("metaworld")
def test_long_time_limits_reach_beyond_upstreams_500_steps() -> None:
    env = make("WindowOpen", max_episode_steps=510)
    env.reset(seed=0)
    truncated = [env.step(np.zeros(7, np.float32))[3] for _ in range(510)]
    assert truncated == [False] * 509 + [True]
    env.close()


@needs("metaworld")
def test_action_moves_along_its_axes_and_plus_one_opens() -> None:
    env = make("Reach")
    for axis in range(3):
        for sign in (1.0, -1.0):
            start = env.reset(options={"goal": 0})[0]["proprio"][:3]
            action = np.zeros(7, np.float32)
            action[axis] = sign
            for _ in range(10):
                end = env.step(action)[0]["proprio"][:3]
            moved = sign * (end - start)
            assert np.argmax(moved) == axis
            assert 0.03 < moved[axis] < 0.105  # 10 steps of at most 0.01 m, with the hand's lag
    for command, opening in ((1.0, 1.0), (-1.0, 0.0)):
        env.reset(options={"goal": 0})
        for _ in range(80):
            proprio = env.step(np.array([0, 0, 0, 0, 0, 0, command], np.float32))[0]["proprio"]
        assert abs(proprio[9] - opening) < 0.01
    env.close()


@needs("metaworld")
def test_rotation_entries_are_ignored() -> None:
    states = []
    for turn in (0.0, 1.0):
        env = make("Reach")
        env.reset(options={"goal": 0})
        states.append(env.step(np.array([0.3, 0, 0, turn, -turn, turn, 1], np.float32))[0])
        env.close()
    np.testing.assert_array_equal(states[0]["state"], states[1]["state"])


@needs("metaworld")
@pytest.mark.parametrize("task", ["Reach", "CoffeePush"])  # whose joints lie at other addresses
def test_proprio_forms(task: str) -> None:
    env = make(task)
    observation, _ = env.reset(options={"goal": 0})
    proprio = observation["proprio"]
    np.testing.assert_array_equal(proprio[:3], observation["state"][:3].astype(np.float32))
    columns = proprio[3:9].reshape(2, 3)
    np.testing.assert_allclose(columns @ columns.T, np.eye(2), atol=1e-6)
    env.close()
    env = make(task, proprio="joints")
    joints = env.reset(options={"goal": 0})[0]["proprio"]
    assert joints.shape == (15,) == env.observation_space["proprio"].shape
    upstream, _ = make_upstream(task, 0)
    expected = [upstream.data.joint(f"right_j{i}").qpos[0] for i in range(7)]
    expected += [upstream.data.joint(f"right_j{i}").qvel[0] for i in range(7)]
    np.testing.assert_array_equal(joints[:14], np.array(expected, np.float32))
    assert joints[14] == proprio[9]
    env.close()
    upstream.close()


@needs("metaworld")
def test_no_cameras_no_gl(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("GL was started")

    monkeypatch.setattr("vla_gym.rendering._current_context", fail)
    env = make("Reach")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
    env.close()


# ---------------------------------------------------------------- gymnasium's checker, experts


def check(task: str) -> None:
    from gymnasium.utils.env_checker import check_env

    for keywords in ({"cameras": ()}, {"cameras": ("primary", "wrist"), "image_size": 32}):
        env = make(task, render_mode="rgb_array", render_size=32, **keywords)
        check_env(env.unwrapped)
        env.close()


@needs("metaworld")
def test_gymnasiums_checker_passes() -> None:
    check("DialTurn")


@needs("metaworld")
@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_gymnasiums_checker_passes_on_every_id(task: str) -> None:
    check(task)


@needs("metaworld")
@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("task", ["DrawerOpen", "BoxClose", "PickPlace", "StickPush"])
def test_experts_play_as_they_do_upstream(task: str) -> None:
    from metaworld.policies import ENV_POLICY_MAP

    goal = 1
    env = make(task)
    expert = connect(vla_gym.make_policy("metaworld-expert"), env.unwrapped.spec_sheet)
    upstream, state = make_upstream(task, goal)
    upstream_expert = ENV_POLICY_MAP[TASKS[task].native]()
    observation, _ = env.reset(options={"goal": goal})
    memory, success = None, False
    for step in range(200):
        action = np.clip(np.asarray(upstream_expert.get_action(state), np.float32), -1, 1)
        state, _, _, _, upstream_info = upstream.step(action)
        batch = {"state": observation["state"][None]}
        actions, memory = expert.predict(batch, memory, np.array([step == 0]))
        np.testing.assert_array_equal(actions[0, [0, 1, 2]], action[:3])
        assert actions[0, 6] == -action[3]
        observation, _, _, _, info = env.step(actions[0])
        np.testing.assert_array_equal(observation["state"], state)
        assert info["success"] == bool(upstream_info["success"])
        success = success or info["success"]
        if success:
            break
    assert success
    env.close()
    upstream.close()


def load_benchmark():
    path = ROOT / "benchmarks/metaworld_experts.py"
    spec = importlib.util.spec_from_file_location("metaworld_experts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs("metaworld")
@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("task", ["ButtonPress", "Reach", "DoorClose", "WindowOpen"])
def test_expert_counts_on_a_slice(task: str) -> None:
    assert COUNTS[TASKS[task].native] == 50  # so that every slice of it is solved too
    assert load_benchmark().play_task(task, goals=4)["solved"] == 4


@needs("metaworld")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("task", TASKS)
def test_expert_counts(task: str) -> None:
    row = load_benchmark().play_task(task, goals=50)
    assert row["solved"] == COUNTS[TASKS[task].native]
