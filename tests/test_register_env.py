"""`register_env`: envs of others as ids, and what a wrong declaration is told."""

from __future__ import annotations

import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

import vla_gym
from tests import own_envs
from tests.own_envs import TRAY, Tray
from tests.support import ROOT, needs
from vla_gym import check_contract, registration
from vla_gym.adapt import Axis, Picture, Proprio, Source, register_env
from vla_gym.errors import ContractViolation, DependencyNotInstalled, InvalidOption, UnknownName

OWN = "VLA/Own-Tray-v0"
IMPORTED = f"tests.own_ids:{OWN}"


@pytest.fixture(autouse=True)
def own_ids(monkeypatch):
    """Register the ids of tests/own_envs.py for each test alone."""
    before = dict(gym.registry)
    monkeypatch.setattr(registration, "_suites", dict(registration._suites))
    own_envs.register_all()
    yield
    gym.registry.clear()
    gym.registry.update(before)


def register(task="Broken", env="tests.own_envs:Tray", **changes):
    """Register the tray with another declaration, and return its id."""
    env_id = f"VLA/Bent-{task}-v0"
    register_env(env_id, env, **{**TRAY, **changes})
    return env_id


def run_python(code, **variables):
    """Return what a fresh interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.mark.parametrize("action_mode", ["ee_delta", "native"])
def test_a_gymnasium_env_keeps_the_contract(action_mode):
    env = gym.make(OWN, image_size=48, state=True, action_mode=action_mode)
    check_contract(env)
    env.close()


def test_the_numbers_are_the_envs_own():
    env, plain = gym.make(OWN, image_size=48, state=True, cameras=("primary",)), Tray()
    observation, info = env.reset(seed=3)
    theirs, _ = plain.reset(seed=info["episode_seed"])
    rng = np.random.default_rng(0)
    for _ in range(20):
        np.testing.assert_array_equal(
            observation["rgb_primary"], theirs["image"][::-1, 8:56][:, ::-1]
        )
        np.testing.assert_array_equal(
            observation["proprio"][:3], np.float32(theirs["arm"]["position"])
        )
        np.testing.assert_array_equal(
            observation["proprio"][3:9], np.float32([1, 0, 0, 0, -1, 0])
        )  # half a turn about x
        np.testing.assert_array_equal(observation["state"][:3], theirs["ball"])
        assert observation["instruction"] == f"touch the {plain.color} ball"
        action = rng.uniform(-1, 1, 7).astype(np.float32)
        observation, reward, terminated, _, info = env.step(action)
        own = np.array([*action[:3], -action[6]], np.float64) * 2.0
        theirs, wanted, *_, their_info = plain.step(own)
        assert reward == wanted and info["success"] == their_info["solved"] and not terminated
    np.testing.assert_array_equal(env.unwrapped._simulator._env.unwrapped.last_action, own)


def test_plus_one_opens_and_the_opening_is_normalised():
    env = gym.make(OWN, cameras=())
    assert env.reset(seed=0)[0]["proprio"][9] == 1.0
    shut = [0, 0, 0, 0, 0, 0, -1]
    assert env.step(shut)[0]["proprio"][9] == pytest.approx(0.5, abs=1e-6)
    assert env.step(shut)[0]["proprio"][9] == 0.0
    assert env.step([0, 0, 0, 0, 0, 0, 1])[0]["proprio"][9] == pytest.approx(0.5, abs=1e-6)


def test_the_spec_sheet_says_what_was_declared():
    sheet = gym.make(OWN, state=True).unwrapped.spec_sheet
    assert [entry.scale for entry in sheet.action] == [0.02, 0.02, 0.02, 0.0, 0.0, 0.0, 1.0]
    assert sheet.action[3].note == "ignored: the env has none"
    assert sheet.cameras["primary"].turned == "upside down"
    assert sheet.cameras["wrist"].note.startswith("the env has no wrist camera")
    assert (sheet.state_dim, sheet.horizon, sheet.control_hz) == (4, 40, 10.0)
    assert sheet.success == TRAY["success_rule"] and sheet.simulator == "gymnasium"
    native = gym.make(OWN, action_mode="native").unwrapped.spec_sheet
    assert native.action[3].note == "+1 closes, -1 opens"


def test_nothing_is_imported_before_the_first_reset():
    code = (
        "import sys, gymnasium as gym, vla_gym\n"
        "from vla_gym.adapt import *\n"
        "register_env('VLA/Far-Off-v0', 'no_such_lab:make', instruction='go', horizon=9,\n"
        "    cameras={'primary': 'image'}, proprio=Proprio('position'), action=(Axis('dx'),),\n"
        "    success='done', control_hz=5.0, reward='none')\n"
        "print(gym.make('VLA/Far-Off-v0').observation_space['proprio'].shape)\n"
        "print([m for m in ('shimmy', 'PIL', 'gym', 'dm_control') if m in sys.modules])\n"
    )
    assert run_python(code) == "(10,)\n[]"


@needs("shimmy")
def test_pictures_of_another_size_are_the_middle_square_resized():
    small = gym.make(OWN, image_size=24, cameras=("primary",)).reset(seed=0)[0]["rgb_primary"]
    large = gym.make(OWN, image_size=48, cameras=("primary",)).reset(seed=0)[0]["rgb_primary"]
    mean = large.reshape(24, 2, 24, 2, 3).mean(axis=(1, 3))
    assert small.shape == (24, 24, 3) and np.abs(small - mean).max() < 60
    assert np.abs(small - mean).mean() < 2.0


@needs("shimmy")
@pytest.mark.filterwarnings("ignore")
def test_an_env_of_old_gym_keeps_the_contract():
    env = gym.make("VLA/OwnOld-Tray-v0", image_size=48, state=True)
    check_contract(env)
    new = gym.make(OWN, image_size=48, cameras=("primary",))
    one, other = env.reset(seed=5)[0], new.reset(seed=5)[0]
    np.testing.assert_array_equal(one["rgb_primary"], other["rgb_primary"])
    for _ in range(5):
        one, reward, *_ = env.step(np.full(7, 0.5, np.float32))
        other, wanted, *_ = new.step(np.full(7, 0.5, np.float32))
        np.testing.assert_array_equal(one["proprio"][:3], other["proprio"][:3])
        assert reward == wanted
    assert env.unwrapped.simulator_versions["gym"] == "0.26.2"


IN_A_PROCESS = """
import warnings; warnings.simplefilter("ignore")
import gymnasium as gym, numpy as np, vla_gym
from tests import own_ids
env = gym.make("{id}", action_mode="native", state=True, cameras=())
vla_gym.check_contract(env)
env.close()
env = gym.make("{id}", action_mode="native", state=True, image_size=64, cameras=("primary",))
observation, info = env.reset(seed=0)
picture = observation["rgb_primary"]
assert picture.shape == (64, 64, 3) and picture.std() > 5, picture.std()
{native}
for _ in range(10):
    action = env.action_space.sample()
    observation, reward, *_ = env.step(action)
    state, wanted = step(action)
    assert np.array_equal(observation["state"], state) and reward == wanted
print("kept")
"""
REACHER = """
plain = gym.make("Reacher-v5")
plain.reset(seed=info["episode_seed"])
def step(action):
    observation, reward, *_ = plain.step(action)
    return observation, reward
"""
PLANAR = """
from dm_control import suite
plain = suite.load("reacher", "easy", task_kwargs={"random": info["episode_seed"]})
plain.reset()
def step(action):
    found = plain.step(action)
    return np.concatenate([found.observation[k] for k in ("position", "to_target")]), found.reward
"""


@needs("shimmy", "dmcontrol")
@pytest.mark.parametrize(
    ("env_id", "native"),
    [("VLA/OwnReacher-Reach-v0", REACHER), ("VLA/OwnControl-Reach-v0", PLANAR)],
)
def test_an_env_of_gymnasium_or_dm_control_is_the_same_as_without_us(env_id, native):
    from vla_gym.rendering import choose_backend

    code = IN_A_PROCESS.format(id=env_id, native=native)
    assert run_python(code, MUJOCO_GL=choose_backend()) == "kept"


# Everywhere an id goes


def test_it_runs_in_vector_envs():
    envs = vla_gym.make_vec([IMPORTED] * 2, workers=2, image_size=48)
    same = gym.make_vec(IMPORTED, num_envs=2, vectorization_mode="sync", image_size=48)
    one, other = envs.reset(seed=4)[0], same.reset(seed=4)[0]
    for _ in range(3):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
        actions = np.full((2, 7), 0.3, np.float32)
        one, other = envs.step(actions)[0], same.step(actions)[0]
    assert one["instruction"][0].startswith("touch the ")
    envs.close()
    same.close()


def test_it_runs_in_another_interpreter(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    here, there = (gym.make(OWN, image_size=48, python=p) for p in (None, sys.executable))
    one, other = here.reset(seed=1)[0], there.reset(seed=1)[0]
    for _ in range(3):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
        one, other = (env.step(np.full(7, -0.4, np.float32))[0] for env in (here, there))
    there.close()
    broken = gym.make(register(success="solved"), cameras=(), python=sys.executable)
    with pytest.raises(ContractViolation, match=r"no observation\['solved'\].*in the simulator of"):
        broken.reset()
    broken.close()


class BallChaser:
    """Moves straight to the ball, which `state` tells."""

    spec = vla_gym.PolicySpec(suites=("Own",), cameras=(), state=True)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        action = np.zeros((len(observation["state"]), 7), np.float32)
        action[:, :3] = np.clip(
            (observation["state"][:, :3] - observation["proprio"][:, :3]) / 0.02, -1, 1
        )
        return action, state


@needs("eval", "data")
def test_it_is_evaluated_collected_and_replayed(tmp_path):
    from vla_gym.collect import collect
    from vla_gym.data import Dataset
    from vla_gym.evaluation.evaluate import evaluate
    from vla_gym.replay import replay

    played = evaluate(
        {"chaser": BallChaser, "random": "random"}, [IMPORTED], episodes=3, folder=tmp_path / "eval"
    )
    solved = [(record.policy, record.outcome) for record in played.records]
    assert solved.count(("chaser", "success")) == 3 and len(solved) == 6
    keywords = {"image_size": 48}
    collect([IMPORTED], episodes=2, folder=tmp_path / "data", expert=BallChaser, keywords=keywords)
    verdicts = list(replay(Dataset(tmp_path / "data"), pictures=True))
    assert len(verdicts) == 2 and all(verdict.same for verdict in verdicts)


@needs("sb3")
def test_an_agent_learns_in_it():
    from stable_baselines3 import PPO

    env = gym.make(OWN, cameras=(), state=True, instruction="bytes")
    agent = PPO("MultiInputPolicy", env, n_steps=16, batch_size=8, n_epochs=1, device="cpu")
    agent.learn(32)
    assert agent.num_timesteps == 32


# Suites of several tasks


def test_the_ids_of_one_suite_stand_side_by_side_and_are_replaced_one_by_one():
    assert set(registration.get_suite("Own").tasks) == {"Tray", "BigTray"}
    register_env(OWN, "tests.own_envs:Tray", **{**TRAY, "horizon": 7})
    assert set(registration.get_suite("Own").tasks) == {"Tray", "BigTray"}
    assert len(registration.get_suite("Own").simulators) == 2
    assert gym.spec(OWN).max_episode_steps == 7
    sizes = [gym.make(f"VLA/Own-{name}-v0", image_size=48) for name in ("Tray", "BigTray")]
    for env in sizes:
        env.reset(seed=0)
    found = [env.unwrapped._simulator._env.unwrapped.size for env in sizes]
    assert found == [(48, 64), (96, 96)]


def test_ids_of_one_suite_share_what_a_suite_has_once():
    with pytest.raises(InvalidOption, match=r"control_hz=50\.0, but VLA/Own-.*has 10\.0"):
        register_env("VLA/Own-Fast-v0", "a:b", **{**TRAY, "control_hz": 50.0})
    with pytest.raises(InvalidOption, match="'Toy' is not one of register_env's"):
        register_env("VLA/Toy-Tray-v0", "a:b", **TRAY)


def test_without_cartesian_entries_there_is_no_ee_delta():
    with pytest.raises(UnknownName, match=r"no action_mode 'ee_delta'.*Valid: 'native'"):
        gym.make("VLA/OwnReacher-Reach-v0")


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr("vla_gym.env.find_missing", lambda modules: modules[-1])
    with pytest.raises(DependencyNotInstalled, match=r"'gym'.*pip install 'vla-gym\[shimmy\]'"):
        gym.make("VLA/OwnOld-Tray-v0")


# What is wrong


REGISTERED = [
    ({"cameras": {"front": "image"}}, InvalidOption, "lack 'primary'"),
    ({"state": (Source("ball"),)}, InvalidOption, r"observation\['ball'\] in state .* `size`"),
    ({"action": (Axis("dx"), Axis("dx"))}, InvalidOption, r"names that differ: \['dx', 'dx'\]"),
    ({"proprio": Proprio("x")}, InvalidOption, "where the opening is"),
    ({"api": "gym"}, UnknownName, "Did you mean 'gym-0.26'|Valid: 'gymnasium'"),
]


@pytest.mark.parametrize(("changes", "kind", "text"), REGISTERED)
def test_a_declaration_that_contradicts_itself_is_refused(changes, kind, text):
    with pytest.raises(kind, match=text):
        register(**changes)


@pytest.mark.parametrize("env_id", ["Push", "VLA/Lab-Push", "VLA/My_Lab-Push-v0", "Lab-Push-v0"])
def test_what_is_no_id_is_refused(env_id):
    with pytest.raises(InvalidOption, match="is not an id"):
        register_env(env_id, "a:b", **TRAY)


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: Axis("dx", -0.1), InvalidOption, "a direction belongs in sign"),
        (lambda: Axis("dx", frame="end effector"), InvalidOption, "ee_delta is in 'robot base'"),
        (lambda: Picture("image", "upside-down"), UnknownName, "Did you mean 'upside down'"),
        (lambda: Proprio("p", rotation_form="quat"), UnknownName, "Valid: 'matrix', 'columns'"),
        (lambda: Proprio("p", positions=Source("q")), InvalidOption, "how many joints"),
        (lambda: Proprio("p", closed=1.0), InvalidOption, "both 1.0"),
        (lambda: Source("p", part=(3, 3)), InvalidOption, "after the last"),
        (lambda: Source("p", function="a:b"), InvalidOption, "a function and a key"),
        (lambda: Source(function="a.b"), InvalidOption, "must be 'module:function'"),
    ],
)
def test_a_part_of_a_declaration_that_means_nothing_is_refused(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


ARM = TRAY["proprio"]
FOUND = [
    (
        {"cameras": {"primary": "picture"}},
        r"no observation\['picture'\]; found: \['arm', 'ball', 'image'\], wanted the key 'picture'",
    ),
    (
        {"cameras": {"primary": "ball"}},
        r"camera 'primary', ball, is float64 \(3,\); wanted uint8 \(H, W, 3\)",
    ),
    (
        {"cameras": {"primary": "render()"}},
        r"NoneType None; wanted uint8 .*render_mode=\"rgb_array\"",
    ),
    (
        {"proprio": Proprio("image", opening="ball")},
        r"position, observation\['image'\], is uint8 \(48, 64, 3\); wanted 3 numbers",
    ),
    (
        {"proprio": Proprio("ball", opening="ball", rotation="ball")},
        r"rotation, observation\['ball'\], is float64 \(3,\); wanted 9 numbers",
    ),
    (
        {"proprio": Proprio("ball", opening="ball", rotation="ball", rotation_form="matrix")},
        "wanted 9 numbers",
    ),
    (
        {
            "proprio": Proprio(
                "ball",
                opening="ball",
                rotation=Source(("image",), part=(0, 6)),
                rotation_form="columns",
            )
        },
        r"is no rotation in the form 'columns'.*Forms: matrix, columns",
    ),
    (
        {"state": (Source("ball", size=4),)},
        r"state, observation\['ball'\], is float64 \(3,\); wanted 4 numbers",
    ),
    (
        {"state": (Source("ball", part=(2, 5)),)},
        r"observation\['ball'\]\[2:5\], is float64 \(3,\); wanted 3 numbers",
    ),
    (
        {"proprio": Proprio(Source(("arm", "pose")), opening="ball")},
        r"no observation\['arm'\]\['pose'\]; found: \['finger_gap', 'position', 'quaternion'\]",
    ),
    ({"success": "ball"}, r"success, .*is float64 \(3,\); wanted True or False"),
    ({"command": Source("ball")}, r"command, .* is float64 \(3,\); wanted a text"),
    (
        {"action": (Axis("dx"), Axis("gripper"))},
        r"action space is Box.*wanted a Box of shape \(2,\), for the declared entries dx, gripper",
    ),
]


@pytest.mark.parametrize(("changes", "text"), FOUND)
def test_a_declaration_that_the_env_does_not_bear_out_says_what_was_found(changes, text):
    env = gym.make(register(**changes), image_size=48, state=True)
    with pytest.raises(ContractViolation, match=text):
        check_contract(env)


def test_an_info_key_that_never_comes_is_named_at_the_first_step():
    env = gym.make(register(success=Source("is_success", info=True)), cameras=())
    env.reset(seed=0)
    with pytest.raises(ContractViolation, match=r"no info\['is_success'\]; found: \['solved'"):
        env.step(np.zeros(7, np.float32))


SIGNS = [
    ((*TRAY["action"][:3], Axis("gripper", sign=1)), r"gripper=\+1 leaves the opening at"),
    ((Axis("dx", 0.02, sign=-1), *TRAY["action"][1:]), r"dx=\+0\.5 .* wanted mostly \+x"),
    ((Axis("dy"), Axis("dx"), *TRAY["action"][2:]), r"dx=\+0\.5 .* wanted mostly \+x"),
]


@pytest.mark.parametrize(("action", "text"), SIGNS)
def test_check_contract_finds_a_wrong_sign_or_order(action, text):
    env = gym.make(register(action=action), cameras=())
    with pytest.raises(ContractViolation, match=text):
        check_contract(env)
