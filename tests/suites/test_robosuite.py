"""robosuite: equality with upstream, the reset laws, tables, signs and frames, experts."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import subprocess
import sys
from ctypes.util import find_library
from xml.etree import ElementTree

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import vla_gym
from tests.support import needs
from vla_gym import make_policy
from vla_gym.errors import ContractMismatch, InvalidOption, UnknownName
from vla_gym.policy import connect
from vla_gym.suites.robosuite import (
    REFUSED,
    ROBOTS,
    SUITE,
    SortedGenerator,
    compute_state_dim,
    count_arms,
)
from vla_gym.suites.robosuite_models import KeptModel
from vla_gym.suites.robosuite_tasks import DRAWN_TARGETS, TASKS, wordings

pytestmark = needs("robosuite")

SIZE = 64
PAIRS = [(t, r) for t in TASKS for r in ROBOTS if (t, r) not in REFUSED]


def make(task: str, **keywords):
    return gym.make(SUITE.id(task), **keywords)


def get_upstream(env):
    return env.unwrapped._simulator._env


def read_sim(upstream) -> np.ndarray:
    return upstream.sim.get_state().flatten()


def run_upstream(task: str, robot: str, episode_seed: int, actions: np.ndarray) -> list[tuple]:
    """Step upstream directly; records of sim, state, reward, success, images and done."""
    import robosuite

    arms = count_arms(task)
    views = ["agentview", "robot0_eye_in_hand"]
    upstream = robosuite.make(
        task,
        robots=[robot] * arms if arms > 1 else robot,
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=True,
        camera_names=views,
        camera_heights=SIZE,
        camera_widths=SIZE,
        reward_shaping=True,
        control_freq=20,
        horizon=500,
        ignore_done=True,
        # a plain np.random.default_rng() where the task has no draw from a set
        seed=SortedGenerator(np.random.PCG64(99)) if task in DRAWN_TARGETS else 99,
    )
    upstream.rng.bit_generator.state = np.random.default_rng(episode_seed).bit_generator.state
    names = [f"robot{i}_proprio-state" for i in range(arms)] + ["object-state"]

    def record(observation, reward, done):
        if task == "Wipe":
            # Upstream takes the picture before it hides the markers wiped in this step.
            images = [upstream.sim.render(SIZE, SIZE, camera_name=view) for view in views]
        else:
            images = [observation[f"{view}_image"] for view in views]
        return (
            read_sim(upstream),
            np.concatenate([observation[name] for name in names]),
            reward,
            bool(upstream._check_success()),
            [np.array(image[::-1]) for image in images],
            done,
        )

    records = [record(upstream.reset(), 0.0, False)]
    for action in actions:
        observation, reward, done, _ = upstream.step(action.astype(np.float64))
        records.append(record(observation, reward, done))
        if done:
            break
    upstream.close()
    return records


@contextlib.contextmanager
def no_collection():
    """Keep Python's garbage collector from running inside.

    robosuite's MjRenderContext frees its GL names when it is collected, in whichever GL context is
    then current. That of the env's first model, collected during the episode of its second, would
    take the second's pictures with it (seen: noise instead of pictures from some step on).
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def check_golden(task: str, robot: str, steps: int = 8) -> None:
    env = make(task, robot=robot, action_mode="native", state=True, image_size=SIZE)
    rng = np.random.default_rng(7)
    actions = rng.uniform(-1, 1, (steps, env.action_space.shape[0])).astype(np.float32)
    episode_seed = int(np.random.Generator(np.random.PCG64(5)).integers(2**31))
    assert episode_seed == int(gym.utils.seeding.np_random(5)[0].integers(2**31))
    with no_collection():
        expected = run_upstream(task, robot, episode_seed, actions)
        gc.collect()  # while the current GL context is upstream's last, not ours
    observation, info = env.reset(seed=5)
    assert info["episode_seed"] == episode_seed
    reward, terminated = 0.0, False
    for step, (sim_state, state, upstream_reward, success, images, done) in enumerate(expected):
        if step:
            observation, reward, terminated, _, info = env.step(actions[step - 1])
        assert np.array_equal(read_sim(get_upstream(env)), sim_state), step
        assert np.array_equal(observation["state"], state), step
        assert reward == upstream_reward, step
        assert info["success"] == success, step
        assert terminated == done, step
        assert np.array_equal(observation["rgb_primary"], images[0]), step
        assert np.array_equal(observation["rgb_wrist"], images[1]), step
    env.close()


QUICK_GOLDEN = [
    ("Lift", "Panda"),
    ("Stack", "UR5e"),
    ("Door", "Panda"),
    ("PickPlaceSingle", "Panda"),
    ("TwoArmLift", "Panda"),
    ("Wipe", "Panda"),
]


@pytest.mark.parametrize(("task", "robot"), QUICK_GOLDEN)
def test_bit_equal_to_upstream(task, robot):
    check_golden(task, robot)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "robot"),
    [(t, "Panda") for t in TASKS] + [("Lift", r) for r in ROBOTS if r != "Panda"],
)
def test_bit_equal_to_upstream_everywhere(task, robot):
    check_golden(task, robot, steps=15)


def test_ee_delta_is_native_with_the_gripper_turned():
    records = []
    for mode, sign in (("ee_delta", 1.0), ("native", -1.0)):
        env = make("Lift", cameras=(), state=True, action_mode=mode)
        env.reset(seed=1)
        for i in range(10):
            action = np.random.default_rng(i).uniform(-1, 1, 7).astype(np.float32)
            action[6] *= sign
            observation = env.step(action)[0]
        records.append(observation["state"])
        env.close()
    assert np.array_equal(*records)


@pytest.mark.parametrize("task", ["Lift", "PickPlaceSingle", "Wipe"])
def test_reset_is_a_function_of_the_seed(task):
    """Twice, after other episodes, and at the first reset (which skips a build) all agree."""
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    python_state = random.getstate()
    env = make(task, state=True, image_size=32)
    first, _ = env.reset(seed=3)
    for seed in (4, 3):
        env.reset(seed=seed)
        for _ in range(3):
            env.step(env.action_space.sample())
    again, _ = env.reset(seed=3)
    for key, value in first.items():
        assert np.array_equal(value, again[key]), key
    other, _ = env.reset(seed=4)
    assert not np.array_equal(first["state"], other["state"])
    env.close()
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert random.getstate() == python_state


def read_model(model) -> dict[str, np.ndarray]:
    """Return all arrays and numbers of a compiled model."""
    fields = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
    for part in (model.stat, model.opt):
        fields |= {f"{part!r}"[:30] + name: getattr(part, name) for name in dir(part)}
    return {
        name: np.array(value)
        for name, value in fields.items()
        if isinstance(value, int | float | np.ndarray)
    }


def find_differences(one, other) -> list[str]:
    """Return the names of arrays in which two compiled models differ; NaN equals NaN."""
    one, other = read_model(one), read_model(other)
    assert len(one) > 300 and one.keys() == other.keys()
    return [
        name
        for name, value in one.items()
        if not np.array_equal(value, other[name], equal_nan=value.dtype.kind == "f")
    ]


def check_kept_model(task: str, robot: str, seeds: range, monkeypatch) -> None:
    """Each episode's model is what upstream compiles, though it is compiled but once."""
    import mujoco

    env = make(task, robot=robot, cameras=())
    env.reset(seed=100)
    upstream, become, differences = get_upstream(env), KeptModel.become, []

    def become_and_compare(kept, root, data):
        done = become(kept, root, data)
        xml = upstream.edit_model_xml(ElementTree.tostring(root, encoding="unicode"))
        differences.append(find_differences(kept.model, mujoco.MjModel.from_xml_string(xml)))
        return done

    monkeypatch.setattr(KeptModel, "become", become_and_compare)
    kept = env.unwrapped._simulator._model
    for seed in seeds:
        env.step(env.action_space.sample())
        env.reset(seed=seed)
        assert env.unwrapped._simulator._model is kept  # the compiler had nothing to do
    assert differences == [[]] * len(seeds)
    env.close()


@pytest.mark.parametrize("task", ["Lift", "TwoArmPegInHole"])
def test_kept_model_is_what_upstream_compiles(task, monkeypatch):
    check_kept_model(task, "Panda", range(3), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "robot"),
    [(t, "Panda") for t in TASKS] + [("Lift", r) for r in ROBOTS if r != "Panda"],
)
def test_kept_model_is_what_upstream_compiles_everywhere(task, robot, monkeypatch):
    check_kept_model(task, robot, range(8 if task.startswith("TwoArm") else 4), monkeypatch)


KEPT_XML = """
<mujoco>
  <worldbody>
    <body name="cube" pos="0 0 1">
      <freejoint/>
      <geom name="a" type="{kind}" size="{size}" pos="0 0 {z}" mass="1"/>
      <geom name="b" type="sphere" size="0.1" density="{density}"/>
      <body name="tip" pos="0 0 {tip}"><geom type="box" size="0.1 0.2 0.3"/><joint/></body>
    </body>
    <geom type="plane" size="3 3 1"/>
  </worldbody>
</mujoco>
"""
KEPT_NUMBERS = {"kind": "box", "size": "0.1 0.2 0.3", "z": 0.5, "density": 900, "tip": 1}


@pytest.mark.parametrize(
    ("numbers", "possible"),
    [
        ({}, True),
        ({"z": 0.7, "density": 1200}, True),
        ({"tip": 2}, False),  # a body has moved
        ({"kind": "cylinder", "size": "0.1 0.2"}, False),
        ({"size": "9 9 9"}, False),  # the scene has another extent, on which pictures depend
    ],
)
def test_kept_model_knows_what_it_can_become(numbers, possible):
    import mujoco

    first, xml = (KEPT_XML.format(**KEPT_NUMBERS | changes) for changes in ({}, numbers))
    model = mujoco.MjModel.from_xml_string(first)
    kept = KeptModel(ElementTree.fromstring(first), model)
    model.geom_rgba[:] = 0.3  # as an episode might
    model.body_mass[1] = 7
    data = mujoco.MjData(model)
    data.qpos[:] = 0.3
    assert kept.become(ElementTree.fromstring(xml), data) == possible
    if possible:
        assert find_differences(model, mujoco.MjModel.from_xml_string(xml)) == []
        assert np.array_equal(data.qpos, model.qpos0)
        assert kept.become(ElementTree.fromstring(first), data)  # and back
        assert find_differences(model, mujoco.MjModel.from_xml_string(first)) == []


def test_envs_of_a_process_share_a_compilation_but_no_memory():
    """The second env's model is a copy of the first's, in whatever state that is."""
    seeds = (1, 2)
    alone = make("Lift", cameras=(), state=True)
    expected = [alone.reset(seed=seed)[0]["state"] for seed in seeds]
    for _ in range(3):
        alone.step(alone.action_space.sample())
    other = make("Lift", cameras=(), state=True)
    found = [other.reset(seed=seed)[0]["state"] for seed in seeds]
    assert np.array_equal(expected, found)
    models = [env.unwrapped._simulator._model.model for env in (alone, other)]
    assert not np.shares_memory(models[0].geom_size, models[1].geom_size)
    before = read_sim(get_upstream(alone))
    other.step(np.ones(7, np.float32))
    assert np.array_equal(read_sim(get_upstream(alone)), before)
    alone.close()
    other.reset(seed=1)  # outlives what it was copied from
    other.close()


@pytest.mark.parametrize("task", ["Lift", "NutAssemblySingle", "Wipe"])
def test_an_episode_is_the_same_whether_its_state_is_observed_or_not(task):
    """Without `state` upstream's observables are not even made."""
    records = []
    for state in (True, False):
        env = make(task, cameras=(), state=state, action_mode="native")
        rng = np.random.default_rng(3)
        record = []
        for seed in (1, 2):
            observation, _ = env.reset(seed=seed)
            record.append(np.append(read_sim(get_upstream(env)), observation["proprio"]))
            for _ in range(4):
                action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
                observation, reward, *_ = env.step(action)
                sim = read_sim(get_upstream(env))
                record.append(np.concatenate([sim, observation["proprio"], [reward]]))
        records.append(np.concatenate(record))
        env.close()
    assert np.array_equal(*records)


def test_robosuite_itself_still_compiles_its_robots():
    """Ours are not compiled alone, but what upstream's class does is put back after each reset."""
    from robosuite.models.robots import create_robot

    env = make("Lift", cameras=())
    env.reset(seed=0)
    assert env.unwrapped._simulator._env.robots[0].robot_model.mujoco_model is None
    env.close()
    robot = create_robot("Panda")
    robot.set_mujoco_model()
    assert robot.mujoco_model.nq == 7


def run_python(code: str, **variables: str) -> str:
    """Run code in a fresh interpreter without this process's GL choices; return its output."""
    gl = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    kept = {key: value for key, value in os.environ.items() if key not in gl}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # upstream's notices stay off the terminal
    return done.stdout


OTHER_PROCESS = """
import hashlib, gymnasium as gym, numpy as np, vla_gym
env = gym.make("VLA/Robosuite-NutAssemblySingle-v0", state=True, cameras=())
digest = hashlib.sha256()
for seed in (0, 1, 2):
    observation, info = env.reset(seed=seed)
    digest.update(observation["state"].tobytes() + info["instruction"].encode())
print(digest.hexdigest())
"""


def test_reset_agrees_between_processes_with_different_string_hashes():
    """Upstream draws the nut from a set of names; set order differs between these processes."""
    outputs = {run_python(OTHER_PROCESS, PYTHONHASHSEED=seed) for seed in ("1", "2", "3")}
    assert len(outputs) == 1


def test_drawn_target_is_named():
    for task, targets in DRAWN_TARGETS.items():
        env = make(task, cameras=())
        seen = set()
        for seed in range(6):
            _, info = env.reset(seed=seed)
            target = str(get_upstream(env).obj_to_use)
            seen.add(target)
            assert info["instructions"] == wordings(targets[target])
            assert info["instruction"] == TASKS[targets[target]].instruction
        assert len(seen) > 1
        env.close()


def test_wordings():
    for task in TASKS.values():
        texts = wordings(task.name)
        assert len(set(texts)) == len(texts) >= 5, task.name
        assert all(text.isascii() and len(text) <= 256 for text in texts)
        assert task.success and task.horizon == 500


def test_state_dim_and_cameras_known_without_starting():
    env = make("TwoArmPegInHole", state=True)
    assert env.observation_space["state"].shape == (109,)
    assert env.observation_space["proprio"].shape == (20,)
    assert env.action_space.shape == (14,)
    assert env.unwrapped._simulator is None
    with pytest.raises(UnknownName, match="sideview"):
        make("Lift", cameras=("sidevew",))
    with pytest.raises(UnknownName, match="XArm7"):
        make("Lift", robot="xArm7")
    with pytest.raises(InvalidOption, match="finger pads"):
        make("TwoArmHandover", robot="XArm7")
    with pytest.raises(InvalidOption, match=r"first step.*Valid: Panda, IIWA"):
        make("Wipe", robot="Sawyer")


def check_tables(task: str, robot: str) -> None:
    env = make(task, robot=robot, cameras=(), state=True, proprio="joints")
    observation, _ = env.reset(seed=0)
    assert observation["state"].shape == (compute_state_dim(task, robot),)
    assert observation in env.observation_space
    native = {
        camera.native for camera in SUITE.layout(TASKS[task], {"robot": robot}).cameras.values()
    }
    assert native == set(get_upstream(env).sim.model.camera_names)
    for _ in range(5):
        assert env.step(env.action_space.sample())[0] in env.observation_space
    env.close()


@pytest.mark.parametrize(("task", "robot"), [("ToolHang", "Kinova3"), ("TwoArmTransport", "UR5e")])
def test_tables(task, robot):
    check_tables(task, robot)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "robot"), PAIRS)
def test_all_tables(task, robot):
    check_tables(task, robot)


def check_base_frame(task: str, robot: str) -> None:
    """Each entry of ee_delta moves the end effector along its own axis of the base frame."""
    env = make(task, robot=robot, cameras=())
    arms = count_arms(task)
    for arm in range(arms):
        for entry in range(6):
            observation, _ = env.reset(seed=2)
            if (
                robot == "IIWA"
            ):  # its hand starts on the table, which holds it: lift it, let it rest
                up = np.zeros(7 * arms, np.float32)
                up[2::7] = 0.6
                for action in [up] * 8 + [0 * up] * 15:
                    observation, *_ = env.step(action)
            before = observation["proprio"][10 * arm : 10 * arm + 10].astype(float)
            action = np.zeros(7 * arms, np.float32)
            action[7 * arm + entry] = 0.4
            for _ in range(4):
                observation, *_ = env.step(action)
            after = observation["proprio"][10 * arm : 10 * arm + 10].astype(float)
            if entry < 3:
                moved = after[:3] - before[:3]
            else:
                moved = rotation_vector(read_rotation(after) @ read_rotation(before).T)
            share = moved[entry % 3] / np.linalg.norm(moved)
            # Not 1: the arm lags behind its goal, and IIWA in pairs sinks a little on its way along
            # x (0.71; all others over 0.9). A wrong frame gives 0 or -1.
            assert share > 0.65, (arm, entry, moved)
    env.close()


def read_rotation(proprio: np.ndarray) -> np.ndarray:
    first, second = proprio[3:6], proprio[6:9]
    return np.stack([first, second, np.cross(first, second)], axis=1)


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """For angles well below pi."""
    skew = np.array(
        [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]
    )
    return skew / 2


def test_ee_delta_is_in_the_base_frame():
    check_base_frame("Lift", "Panda")


@pytest.mark.slow
@pytest.mark.parametrize("robot", ROBOTS)
def test_ee_delta_is_in_the_base_frame_of_every_robot(robot):
    check_base_frame("Lift", robot)


@pytest.mark.slow
@pytest.mark.parametrize("robot", ["Panda", "IIWA"])
def test_ee_delta_is_in_each_arms_own_base_frame(robot):
    check_base_frame("TwoArmLift", robot)


@pytest.mark.slow
@pytest.mark.parametrize("robot", ["IIWA", "XArm7"])
def test_ee_delta_stays_in_the_base_frame_when_the_first_joint_turns(robot):
    """Their controller's frame turns with the first joint; ours does not."""
    env = make("Lift", robot=robot, cameras=(), proprio="joints")
    observation, _ = env.reset(seed=0)
    aside = np.array([0, 1, 0, 0, 0, 0, 0], np.float32)
    for _ in range(80):
        observation, *_ = env.step(aside)
        if abs(observation["proprio"][0]) > 0.35:
            break
    assert abs(observation["proprio"][0]) > 0.3  # the first joint has turned
    upstream = get_upstream(env)
    robot_ = upstream.robots[0]

    def read():
        return upstream.sim.data.site_xpos[robot_.eef_site_id["right"]].copy()

    for _ in range(25):  # until it has come to rest
        env.step(np.zeros(7, np.float32))
    before = read()
    for _ in range(4):
        env.step(np.array([-0.5, 0, 0, 0, 0, 0, 0], np.float32))
    moved = read() - before
    env.close()
    assert -moved[0] / np.linalg.norm(moved) > 0.95, moved


def check_gripper(robot: str) -> None:
    env = make("Lift", robot=robot, cameras=())
    observation, _ = env.reset(seed=0)
    action = np.zeros(7, np.float32)
    action[2] = 0.8
    for _ in range(5):
        env.step(action)
    action[2] = 0.0
    openings = []
    for sign in (1, -1, 1):
        action[6] = sign
        for _ in range(220 if robot == "Jaco" else 60):
            observation, *_ = env.step(action)
        openings.append(observation["proprio"][9])
    env.close()
    assert openings[0] > 0.95 and openings[1] < 0.1 and openings[2] > 0.95, openings


def test_gripper_plus_one_opens():
    check_gripper("Panda")


@pytest.mark.slow
@pytest.mark.parametrize("robot", ROBOTS)
def test_gripper_plus_one_opens_on_every_robot(robot):
    check_gripper(robot)


OSMESA = """
import os
import gymnasium as gym, numpy as np, vla_gym
from vla_gym.rendering import choose_backend
env = gym.make("VLA/Robosuite-Lift-v0", image_size=64)
observation, _ = env.reset(seed=0)
assert choose_backend() == "osmesa" and os.environ["MUJOCO_GL"] == "osmesa"
assert observation["rgb_primary"].std() > 10
env.close()
"""


@pytest.mark.skipif(find_library("OSMesa") is None, reason="libosmesa6 is not installed")
def test_osmesa_works_too():
    run_python(OSMESA, MUJOCO_GL="osmesa")


IMPORTS = """
import os, sys
import vla_gym.suites.robosuite as suite
assert not {"robosuite", "mujoco", "cv2"} & set(sys.modules)
suite._import_robosuite()
assert "robosuite" in sys.modules
assert not {"MUJOCO_GL", "PYOPENGL_PLATFORM"} & set(os.environ)
"""


def test_import_is_light_and_leaves_the_environment_alone():
    run_python(IMPORTS)


def test_wipe_ends_on_its_own():
    """The suite itself ends a Wipe episode when the arm hits the table or a joint limit."""
    env = make("Wipe", cameras=())
    env.reset(seed=0)
    for _ in range(100):
        _, _, terminated, _, info = env.step(np.array([0, 0, 0, 0, 1, 0, 0], np.float32))
        if terminated:
            break
    env.close()
    assert terminated and not info["success"]


def test_close_frees_and_is_safe_twice():
    env = make("Lift", image_size=32)
    env.reset(seed=0)
    simulator = env.unwrapped._simulator
    env.close()
    env.close()
    assert simulator._env is None and simulator._renderer is None
    make("Lift").close()  # never started


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_checker(task):
    env = make(task, image_size=32, state=True)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def run_expert(name: str, task: str, seeds: range) -> int:
    env = make(task, cameras=(), state=True, terminate_on_success=True)
    policy = connect(make_policy(name), env.unwrapped.spec_sheet)
    solved = 0
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        state, start, over = None, np.array([True]), False
        while not over:
            batch = {key: np.stack([value]) for key, value in observation.items()}
            actions, state = policy.predict(batch, state, start)
            start = np.array([False])
            observation, _, terminated, truncated, info = env.step(actions[0])
            over = terminated or truncated
        solved += info["success"]
    env.close()
    return solved


@pytest.mark.parametrize(
    ("name", "task"), [("robosuite-lift-expert", "Lift"), ("robosuite-door-expert", "Door")]
)
def test_expert_slice(name, task):
    assert run_expert(name, task, range(3)) == 3


def test_experts_refuse_other_tasks():
    sheet = make("Stack", cameras=(), state=True).unwrapped.spec_sheet
    for name in ("robosuite-lift-expert", "robosuite-door-expert"):
        with pytest.raises(ContractMismatch, match="Stack"):
            connect(make_policy(name), sheet)
    sheet = make("Lift", cameras=(), state=True, robot="Sawyer").unwrapped.spec_sheet
    with pytest.raises(ContractMismatch, match="robot"):
        connect(make_policy("robosuite-lift-expert"), sheet)


def test_all_ids_are_registered():
    assert {SUITE.id(task) for task in TASKS} <= set(vla_gym.list_ids())
    assert len(TASKS) == 19
