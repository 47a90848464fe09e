"""Ids at import, what importing costs, and a suite that an outsider adds."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled, DeprecatedEnv, NameNotFound, VersionNotFound

import vla_gym
from vla_gym import registration
from vla_gym.contract import EEF_PROPRIO, ee_delta_entries
from vla_gym.errors import InvalidOption, ResetNeeded, StandInWarning, UnknownName
from vla_gym.registration import get_suite, get_task, list_ids, list_suites
from vla_gym.suite import (
    ActionMode,
    Camera,
    Entry,
    Frame,
    Keyword,
    Layout,
    SimulatorInfo,
    Suite,
    Task,
)

HEAVY = (
    "torch",
    "mujoco",
    "metaworld",
    "robosuite",
    "transformers",
    "scipy",
    "matplotlib",
    "stable_baselines3",
    "vla_gym_policies",
)


def run_python(code):
    """Return what a fresh interpreter prints."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.fixture
def register(monkeypatch):
    """Return `register_suite`; what it registers is gone after the test."""
    monkeypatch.setattr(registration, "_suites", dict(registration._suites))
    before = dict(gym.registry)
    yield vla_gym.register_suite
    gym.registry.clear()
    gym.registry.update(before)


# A suite as an outsider would write it: a lamp that a button turns on


class LampSimulator:
    """The lamp goes on when the action's first entry is positive."""

    def __init__(self, setup):
        self.setup = setup
        self.closed = 0

    def reset(self, seed, options):
        self.on = False
        self.brightness = np.random.default_rng(seed).random()
        return self.frame(0.0)

    def step(self, action):
        self.on = bool(action[0] > 0)
        return self.frame(float(self.on))

    def render(self, camera, height, width):
        return np.full((height, width, 3), 255 if self.on else 20, np.uint8)

    def close(self):
        self.closed += 1

    def frame(self, reward):
        images = {n: self.render(n, size, size) for n, size in self.setup.images.items()}
        state = np.array([self.on, self.brightness]) if self.setup.state else None
        return Frame(images, np.zeros(10), state, reward, self.on)


def lamp_layout(task, keywords):
    mode = ActionMode(ee_delta_entries(0.01, None), ((0, 1.0), *[None] * 6), 1)
    return Layout(
        action_modes={
            "ee_delta": mode,
            "native": ActionMode((Entry("button"),), ((0, 1.0),), 1),
        },
        proprio={"eef": EEF_PROPRIO, "joints": (Entry("gripper"),)},
        state_dim=2,
        cameras={"primary": Camera("room"), "wrist": Camera("hand")},
        robot="finger",
    )


LAMP = Suite(
    name="Lamp",
    tasks={
        "TurnOn": Task("TurnOn", "on", "turn the lamp on", ("light the lamp",), horizon=4),
        "TurnOff": Task("TurnOff", "off", "turn the lamp off", ()),
    },
    simulators=(SimulatorInfo("lamp", f"{__name__}:LampSimulator"),),
    control_hz=5.0,
    terminate_on_success=True,
    layout=lamp_layout,
    reward="1 while the lamp is on",
)


def test_importing_vla_gym_loads_no_simulator_no_learning_library_and_no_policy():
    loaded = run_python(
        f"import sys, vla_gym; print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert loaded == "[]"


def test_importing_vla_gym_registers_every_id_and_nothing_but_gymnasium_is_needed():
    names = run_python(
        "import gymnasium as gym, vla_gym\n"
        "print(*[name for name in gym.registry if name.startswith('VLA/')])"
    ).split()
    assert sorted(names) == sorted(vla_gym.list_ids())
    for expected in ("VLA/Toy-Reach-v0", "VLA/MetaWorld-DrawerOpen-v0", "VLA/Robosuite-Lift-v0"):
        assert expected in names


def test_an_id_with_the_module_in_front_works_where_only_gymnasium_is_imported():
    sheet = run_python(
        "import gymnasium as gym\n"
        "env = gym.make('vla_gym:VLA/Toy-Reach-v0', cameras=())\n"
        "print(env.reset(seed=0)[1]['instruction'])"
    )
    assert sheet == "move the gripper to the green ball"


@pytest.mark.parametrize("suite", [suite.name for suite in list_suites()])
def test_every_task_has_an_id_with_its_horizon_and_its_names(suite):
    suite = get_suite(suite)
    for task in suite.tasks.values():
        spec = gym.spec(f"VLA/{suite.name}-{task.name}-v{suite.version}")
        assert spec.entry_point == "vla_gym.env:VLAEnv"
        assert spec.max_episode_steps == task.horizon > 0
        assert spec.kwargs == {"suite": suite.name, "task": task.name}


@pytest.mark.parametrize("suite", [suite.name for suite in list_suites()])
def test_every_task_has_sentences_that_an_instruction_can_carry(suite):
    space = vla_gym.Instruction()
    for name, task in get_suite(suite).tasks.items():
        wordings = (task.instruction, *task.paraphrases)
        assert task.name == name
        assert len(set(wordings)) == len(wordings), name
        for text in wordings:
            assert space.contains(text) and text == text.strip() != "", (name, text)


def test_ids_are_listed_once_and_in_order_of_registration():
    ids = list_ids()
    assert len(set(ids)) == len(ids) == sum(len(suite.tasks) for suite in list_suites())
    assert ids[:2] == ["VLA/Toy-Reach-v0", "VLA/Toy-Lift-v0"]
    assert [suite.name for suite in list_suites()][:3] == ["Toy", "MetaWorld", "Robosuite"]


def test_a_missing_simulator_hides_no_id_and_its_suite_says_what_to_install():
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    answer = run_python(
        "import sys\n"
        "sys.modules['metaworld'] = None\n"
        "import gymnasium as gym, vla_gym\n"
        "assert 'VLA/MetaWorld-DrawerOpen-v0' in vla_gym.list_ids()\n"
        "try:\n"
        "    gym.make('VLA/MetaWorld-DrawerOpen-v0')\n"
        "except gym.error.DependencyNotInstalled as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    assert answer == (
        "DependencyNotInstalled VLA/MetaWorld-DrawerOpen-v0 cannot run here: the simulator "
        "'metaworld' needs the package 'metaworld', which is not installed. "
        "Run: pip install 'vla-gym[metaworld]'"
    )


def test_an_outsiders_suite_becomes_an_env_with_the_whole_contract(register):
    register(LAMP)
    assert list_ids()[-2:] == ["VLA/Lamp-TurnOn-v0", "VLA/Lamp-TurnOff-v0"]
    env = gym.make("VLA/Lamp-TurnOn-v0", image_size=8, state=True)
    observation, info = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    assert observation["instruction"] == "turn the lamp on"
    assert info["instructions"] == ("turn the lamp on", "light the lamp")
    assert (observation["rgb_wrist"] == 20).all()
    observation, reward, terminated, truncated, info = env.step([1, 0, 0, 0, 0, 0, 0])
    assert (observation["rgb_primary"] == 255).all() and observation["state"][0] == 1.0
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    assert (info["suite"], info["task"], info["simulator"]) == ("Lamp", "TurnOn", "lamp")
    env.reset()
    flags = [env.step([-1, 0, 0, 0, 0, 0, 0])[2:4] for _ in range(4)]
    assert flags == [(False, False)] * 3 + [(False, True)]  # its horizon is 4
    simulator = env.unwrapped._simulator
    env.close()
    env.close()
    assert simulator.closed == 1


@pytest.mark.filterwarnings("ignore:.*A Box observation space m")  # proprio has no bounds
def test_an_outsiders_env_passes_gymnasiums_own_checker(register):
    from gymnasium.utils.env_checker import check_env

    register(LAMP)
    check_env(gym.make("VLA/Lamp-TurnOn-v0", image_size=8).unwrapped, skip_render_check=True)


def test_misspelt_ids_of_an_outsiders_suite_get_suggestions_too(register):
    register(LAMP)
    with pytest.raises(NameNotFound, match=r"Did you mean: `Lamp-TurnOn`\?"):
        gym.make("VLA/Lamp-TurnOm-v0")
    with pytest.raises(VersionNotFound, match="`v7`"):
        gym.make("VLA/Lamp-TurnOn-v7")
    with pytest.raises(UnknownName, match=r"no suite 'Lmap'\. Did you mean 'Lamp'\?"):
        get_suite("Lmap")
    with pytest.raises(UnknownName, match=r"no task 'turn_on' in suite Lamp\. .*mean 'TurnOn'\?"):
        get_task(get_suite("Lamp"), "turn_on")


def test_registering_a_suite_again_replaces_it_without_a_warning(register, recwarn):
    register(LAMP)
    task = dataclasses.replace(LAMP.tasks["TurnOn"], horizon=9)
    register(dataclasses.replace(LAMP, tasks={"TurnOn": task}))
    assert not recwarn.list
    assert gym.spec("VLA/Lamp-TurnOn-v0").max_episode_steps == 9
    assert [name for name in list_ids() if "/Lamp-" in name] == ["VLA/Lamp-TurnOn-v0"]
    assert "VLA/Lamp-TurnOff-v0" not in gym.registry  # nothing is behind it any more


@pytest.mark.filterwarnings("ignore:.*latest versioned", "ignore:.*is out of date")
def test_a_newer_version_is_what_an_id_without_version_means(register):
    register(LAMP)
    register(dataclasses.replace(LAMP, version=1))
    env = gym.make("VLA/Lamp-TurnOn")
    assert env.spec.id == env.unwrapped.spec_sheet.id == "VLA/Lamp-TurnOn-v1"
    # The new suite must not pass for the old one.
    with pytest.raises(DeprecatedEnv, match="use `VLA/Lamp-TurnOn-v1` instead"):
        gym.make("VLA/Lamp-TurnOn-v0")


def test_an_outsiders_missing_simulator_is_named_with_its_extra(register):
    needy = SimulatorInfo("lamp", "nowhere:Lamp", ("numpy", "no_such_lamp"), "metaworld")
    register(dataclasses.replace(LAMP, simulators=(needy,)))
    with pytest.raises(DependencyNotInstalled) as caught:
        gym.make("VLA/Lamp-TurnOn-v0")
    assert str(caught.value) == (
        "VLA/Lamp-TurnOn-v0 cannot run here: the simulator 'lamp' needs the package 'no_such_lamp',"
        " which is not installed. Run: pip install 'vla-gym[metaworld]'"
    )


def test_auto_takes_the_first_simulator_that_is_installed_and_a_name_insists(register):
    here = SimulatorInfo("here", f"{__name__}:LampSimulator")
    away = SimulatorInfo("away", "nowhere:Lamp", ("no_such_lamp",), "robosuite")
    twin = SimulatorInfo("twin", f"{__name__}:LampSimulator")
    register(dataclasses.replace(LAMP, simulators=(away, here, twin)))
    for asked, chosen in (("auto", "here"), ("here", "here"), ("twin", "twin")):
        env = gym.make("VLA/Lamp-TurnOn-v0", simulator=asked)
        assert env.unwrapped.spec_sheet.simulator == env.reset(seed=0)[1]["simulator"] == chosen
    with pytest.raises(DependencyNotInstalled, match=r"simulator 'away'.*'vla-gym\[robosuite\]'"):
        gym.make("VLA/Lamp-TurnOn-v0", simulator="away")
    with pytest.raises(UnknownName, match=r"no simulator 'twim' .*Did you mean 'twin'\?"):
        gym.make("VLA/Lamp-TurnOn-v0", simulator="twim")


def test_a_simulator_that_lacks_a_task_is_passed_over_and_says_so_when_asked_for(register):
    some = SimulatorInfo("some", f"{__name__}:LampSimulator", tasks=frozenset({"TurnOff"}))
    full = SimulatorInfo("full", f"{__name__}:LampSimulator")
    register(dataclasses.replace(LAMP, simulators=(some, full)))
    chosen = {
        task: gym.make(f"VLA/Lamp-{task}-v0").unwrapped.spec_sheet.simulator
        for task in ("TurnOn", "TurnOff")
    }
    assert chosen == {"TurnOn": "full", "TurnOff": "some"}
    text = r"VLA/Lamp-TurnOn-v0 cannot run here: the simulator 'some' does not have this task \(it "
    with pytest.raises(
        DependencyNotInstalled, match=text + r"has 1 of 2; .*'Lamp-\*'` shows which"
    ):
        gym.make("VLA/Lamp-TurnOn-v0", simulator="some")


def test_all_obstacles_are_told_where_no_simulator_can_run(register):
    blocked = SimulatorInfo("blocked", "nowhere:Lamp", find_obstacle=lambda _: "first plug it in")
    away = SimulatorInfo("away", "nowhere:Lamp", ("no_such_lamp",), "robosuite")
    register(dataclasses.replace(LAMP, simulators=(blocked, away)))
    with pytest.raises(DependencyNotInstalled) as caught:
        gym.make("VLA/Lamp-TurnOn-v0")
    assert str(caught.value) == (
        "VLA/Lamp-TurnOn-v0 cannot run here: first plug it in; the simulator 'away' needs the "
        "package 'no_such_lamp', which is not installed. Run: pip install 'vla-gym[robosuite]'"
    )
    clear = SimulatorInfo("clear", f"{__name__}:LampSimulator", find_obstacle=lambda _: None)
    register(dataclasses.replace(LAMP, simulators=(clear,)))
    assert gym.make("VLA/Lamp-TurnOn-v0").unwrapped.spec_sheet.simulator == "clear"


def test_an_obstacle_may_depend_on_the_suites_keywords(register):
    clear = SimulatorInfo(
        "clear",
        f"{__name__}:LampSimulator",
        find_obstacle=lambda keywords: None if keywords["socket"] else "set socket=...",
    )
    keywords = {"socket": Keyword(None, None, "where to plug it in")}
    register(dataclasses.replace(LAMP, simulators=(clear,), keywords=keywords))
    with pytest.raises(DependencyNotInstalled, match=r"set socket=\.\.\."):
        gym.make("VLA/Lamp-TurnOn-v0")
    sheet = gym.make("VLA/Lamp-TurnOn-v0", socket="/wall").unwrapped.spec_sheet
    assert sheet.keywords == {"socket": "/wall"}
    with pytest.raises(InvalidOption, match=r"socket=3 of .* must be a text or None"):
        gym.make("VLA/Lamp-TurnOn-v0", socket=3)


class LampSeries(LampSimulator):
    """Asks for on, then off, then on; gives 2 steps for each."""

    wordings = (("turn it on", "light", "shine"), ("turn it off", "dark", "dim"))

    def reset(self, seed, options):
        self.done, self.steps = 0, 0
        return super().reset(seed, options)

    def step(self, action):
        wanted = self.done % 2 == 0
        super().step(action)
        self.steps += 1
        if self.on == wanted:
            self.done, self.steps = self.done + 1, 0
        return self.frame(0.0)

    def frame(self, reward):
        frame = super().frame(reward)
        return frame._replace(
            success=self.done == 3,
            instructions=self.wordings[self.done % 2],
            truncated=self.steps == 2,
        )


def test_a_suite_may_change_the_command_and_cut_an_episode_short(register):
    info = SimulatorInfo("lamp", f"{__name__}:LampSeries")
    register(dataclasses.replace(LAMP, simulators=(info,)))
    on, off = np.ones(7, np.float32), -np.ones(7, np.float32)
    env = gym.make("VLA/Lamp-TurnOn-v0", cameras=())
    first, _ = env.reset(seed=0)
    assert first["instruction"] == "turn it on"
    commands, ends = zip(*[env.step(a)[0::2][:2] for a in (on, off, on)], strict=True)
    assert [seen["instruction"] for seen in commands] == [
        "turn it off",
        "turn it on",
        "turn it off",
    ]
    assert ends == (False, False, True)
    env.reset(seed=0)
    assert env.step(off)[2:4] == (False, False)
    assert env.step(off)[2:4] == (False, True)
    with pytest.raises(ResetNeeded, match="the suite's own time limit"):
        env.unwrapped.step(off)


def test_a_paraphrase_is_drawn_once_for_each_command(register):
    info = SimulatorInfo("lamp", f"{__name__}:LampSeries")
    register(dataclasses.replace(LAMP, simulators=(info,)))
    env = gym.make("VLA/Lamp-TurnOn-v0", cameras=(), paraphrase=True).unwrapped
    seen = set()
    for seed in range(30):
        observation, info = env.reset(seed=seed)
        assert observation["instruction"] == info["instruction"] in LampSeries.wordings[0]
        kept = env.step(-np.ones(7))[0]["instruction"]
        assert kept == observation["instruction"]
        changed = env.step(np.ones(7))[0]["instruction"]
        assert changed in LampSeries.wordings[1]
        seen |= {kept, changed}
    assert seen == {wording for wordings in LampSeries.wordings for wording in wordings}


def test_a_stand_in_warns_once_and_not_at_all_when_it_is_asked_for(register, recwarn):
    real = SimulatorInfo("real", "nowhere:Lamp", ("no_such_lamp",), "robosuite")
    twin = SimulatorInfo("twin", f"{__name__}:LampSimulator", stand_in_for="real")
    register(dataclasses.replace(LAMP, name="Lantern", simulators=(real, twin)))
    gym.make("VLA/Lantern-TurnOn-v0", simulator="twin")
    assert not recwarn.list
    text = "Lantern runs on 'twin', our own stand-in for 'real', .*scores are not Lantern results"
    with pytest.warns(StandInWarning, match=text):
        env = gym.make("VLA/Lantern-TurnOn-v0")
    assert env.reset(seed=0)[1]["simulator"] == "twin"
    recwarn.clear()
    gym.make("VLA/Lantern-TurnOff-v0")
    assert not recwarn.list
    with pytest.raises(DependencyNotInstalled, match="'real' needs the package 'no_such_lamp'"):
        gym.make("VLA/Lantern-TurnOn-v0", simulator="real")


def test_a_simulator_may_have_a_layout_of_its_own(register):
    def bigger(task, keywords):
        return dataclasses.replace(lamp_layout(task, keywords), robot="thumb", state_dim=2)

    plain = SimulatorInfo("plain", f"{__name__}:LampSimulator")
    other = SimulatorInfo("other", f"{__name__}:LampSimulator", layout=bigger)
    register(dataclasses.replace(LAMP, simulators=(plain, other)))
    robots = [
        gym.make("VLA/Lamp-TurnOn-v0", simulator=name).unwrapped.spec_sheet.robot
        for name in ("plain", "other")
    ]
    assert robots == ["finger", "thumb"]


def test_an_action_mode_with_a_horizon_of_its_own_truncates_by_it(register):
    def with_pose(task, keywords):
        layout = lamp_layout(task, keywords)
        pose = dataclasses.replace(layout.action_modes["native"], horizon=2)
        return dataclasses.replace(layout, action_modes={**layout.action_modes, "pose": pose})

    register(dataclasses.replace(LAMP, layout=with_pose))
    env = gym.make("VLA/Lamp-TurnOn-v0", action_mode="pose")
    assert env.unwrapped.spec_sheet.horizon == 2
    for _ in range(2):  # the count starts anew at each reset
        env.reset()
        assert [env.step([-1.0])[2:4] for _ in range(2)] == [(False, False), (False, True)]
    assert gym.make("VLA/Lamp-TurnOn-v0").unwrapped.spec_sheet.horizon == 4


def test_an_unknown_name_survives_pickling():
    error = UnknownName("task", "Lft", ("Lift", "Reach"), "suite Toy")
    again = pickle.loads(pickle.dumps(error))
    assert (
        str(again)
        == str(error)
        == ("there is no task 'Lft' in suite Toy. Did you mean 'Lift'? Valid: 'Lift', 'Reach'.")
    )
    assert (again.kind, again.asked, again.valid, again.where) == (
        "task",
        "Lft",
        ("Lift", "Reach"),
        "suite Toy",
    )


@pytest.mark.parametrize("asked", ["drawer_open", "draweropen", "drawer-open", "DrawerOpn"])
def test_a_name_in_another_spelling_finds_its_task(asked):
    with pytest.raises(UnknownName, match=r"Did you mean 'DrawerOpen'\?"):
        get_task(get_suite("MetaWorld"), asked)


def test_a_name_like_no_other_gets_the_list_without_a_suggestion():
    with pytest.raises(UnknownName) as caught:
        get_suite("xyzzy")
    assert "Did you mean" not in str(caught.value)
    assert str(caught.value).startswith("there is no suite 'xyzzy'. Valid: 'Toy', 'MetaWorld', ")
