"""CALVIN's evaluation chains: upstream's own, valid, and where each of them starts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_gym.errors import UnknownName
from vla_gym.suites.calvin import chains
from vla_gym.suites.calvin.chains import (
    KINDS,
    STATE_KEYS,
    apply,
    generate_chains,
    initial_observations,
    list_initial_states,
    load_chains,
)
from vla_gym.suites.calvin.oracle import RULES
from vla_gym.suites.calvin.scenes import BLOCKS, HOME_ROBOT_OBS

BLOCK_KEYS = [f"{color}_block" for color in BLOCKS]


def replay(chain):
    """Return the symbolic states of a chain: before, between and after its tasks."""
    states = [dict(chain.initial)]
    for task in chain.tasks:
        states.append(apply(task, states[-1]))
    return states


# --- the shipped chains -----------------------------------------------------------------------


def test_chains_are_the_thousand_that_upstream_draws():
    plain = [[dict(chain.initial), list(chain.tasks)] for chain in load_chains()]
    # Of json.dumps(get_sequences(1000)), calvin fa03f01 run with numpy 1.26.4.
    expected = "840cb992c69ce9b6d59f6020966b6300c15233f8e0b9667b6486c1962424d308"
    assert hashlib.sha256(json.dumps(plain).encode()).hexdigest() == expected


def test_the_first_chain_is_upstreams():
    first = load_chains()[0]
    assert first.initial == {
        "led": 1,
        "lightbulb": 1,
        "slider": "left",
        "drawer": "open",
        "red_block": "slider_left",
        "blue_block": "table",
        "pink_block": "slider_right",
        "grasped": 0,
    }
    assert first.tasks == (
        "rotate_blue_block_right",
        "move_slider_right",
        "lift_red_block_slider",
        "place_in_slider",
        "turn_off_lightbulb",
    )


def test_every_chain_can_be_done_and_has_five_kinds_of_task():
    for chain in load_chains():
        assert None not in replay(chain)
        assert len({KINDS[task] for task in chain.tasks}) == len(chain.tasks) == 5


def test_chains_are_spread_as_upstream_spreads_them():
    loaded = load_chains()
    assert len(loaded) == 1000
    assert len({chain.tasks for chain in loaded}) == 997
    per_state = Counter(tuple(chain.initial.values()) for chain in loaded)
    states = [tuple(state.values()) for state in list_initial_states()]
    assert [per_state[state] for state in states] == [6] * 40 + [5] * 152
    tasks = Counter(task for chain in loaded for task in chain.tasks)
    assert set(tasks) == set(RULES)
    assert tasks["place_in_slider"] == 398
    assert tasks["open_drawer"] == 379
    assert tasks["unstack_block"] == 81
    assert tasks["lift_pink_block_drawer"] == 17


def test_chains_are_loaded_once_and_cannot_be_changed():
    assert load_chains() is load_chains()
    with pytest.raises(TypeError):
        load_chains()[0].initial["led"] = 0  # type: ignore[index]


# --- the generator ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_shipped_chains_are_those_that_the_generator_draws():
    drawn = generate_chains(1000)
    assert tuple(drawn) == load_chains()
    assert chains._FILE.read_text() == chains.dump_chains(drawn)


@pytest.mark.parametrize("number", [0, 1, 39, 40, 101, 191])
def test_the_generator_draws_the_shipped_chains_of_a_state(number):
    place_of = np.random.RandomState(0).permutation(1000)  # upstream shuffles at the end
    ordered = dict(zip(place_of.tolist(), load_chains(), strict=True))
    first = 5 * number + min(number, 40)  # the first 40 states have six chains
    count = 6 if number < 40 else 5
    state = list_initial_states()[number]
    expected = [ordered[first + i] for i in range(count)]
    assert all(chain.initial == state for chain in expected)
    assert chains._draw_tasks(state, count, seed=number) == [chain.tasks for chain in expected]


def test_fewer_chains_start_in_different_states_and_the_global_generator_stays_untouched():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    few = generate_chains(3)
    initial_observations(few[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    states = [tuple(state.values()) for state in list_initial_states()]
    assert sorted(states.index(tuple(chain.initial.values())) for chain in few) == [0, 1, 2]
    assert all(None not in replay(chain) for chain in few)
    assert generate_chains(0) == []


# --- symbolic rules ---------------------------------------------------------------------------

START = {
    **{"led": 0, "lightbulb": 1, "slider": "right", "drawer": "open"},
    **{"red_block": "table", "blue_block": "slider_left", "pink_block": "slider_right"},
    "grasped": 0,
}


@pytest.mark.parametrize(
    ("change", "task", "expected"),
    [
        ({}, "rotate_red_block_left", {}),
        ({}, "push_red_block_right", {}),
        ({}, "push_blue_block_right", None),
        ({}, "turn_on_led", {"led": 1}),
        ({}, "turn_off_led", None),
        ({}, "turn_off_lightbulb", {"lightbulb": 0}),
        ({}, "turn_on_lightbulb", None),
        ({}, "move_slider_left", {"slider": "left"}),
        ({}, "move_slider_right", None),
        ({}, "close_drawer", {"drawer": "closed"}),
        ({}, "open_drawer", None),
        ({}, "lift_red_block_table", {"red_block": "grasped", "grasped": 1}),
        ({}, "lift_blue_block_slider", {"blue_block": "grasped", "grasped": 1}),
        ({}, "lift_pink_block_slider", None),  # the door, at the right, hides it
        ({"slider": "left"}, "lift_pink_block_slider", {"pink_block": "grasped", "grasped": 1}),
        ({"slider": "left"}, "lift_blue_block_slider", None),
        ({"red_block": "drawer"}, "lift_red_block_drawer", {"red_block": "grasped", "grasped": 1}),
        ({"red_block": "drawer", "drawer": "closed"}, "lift_red_block_drawer", None),
        ({}, "push_into_drawer", {"red_block": "drawer"}),
        ({"drawer": "closed"}, "push_into_drawer", None),
        ({"blue_block": "table"}, "push_into_drawer", None),
        ({"blue_block": "drawer"}, "push_into_drawer", None),
        ({}, "place_in_slider", None),
        ({}, "stack_block", None),
        ({}, "unstack_block", None),
    ],
)
def test_a_task_needs_and_changes_what_upstream_says(change, task, expected):
    state = {**START, **change}
    assert apply(task, state) == (None if expected is None else {**state, **expected})


def test_a_held_block_can_be_put_down_in_three_ways_and_nothing_else_be_done():
    held = {**START, "blue_block": "grasped", "grasped": 1}
    free = {**held, "grasped": 0}
    possible = {task: apply(task, held) for task in RULES}
    assert {task: state for task, state in possible.items() if state} == {
        "place_in_slider": {**free, "blue_block": "slider_right"},
        "place_in_drawer": {**free, "blue_block": "drawer"},
        "stack_block": {**free, "blue_block": "stacked_top", "red_block": "stacked_bottom"},
    }
    tower = possible["stack_block"]
    assert apply("unstack_block", tower) == {**free, "blue_block": "table"}
    assert apply("lift_red_block_table", tower) is None


def test_what_can_be_done_in_two_ways_is_no_step_of_a_chain():
    held = {**START, "blue_block": "grasped", "pink_block": "table", "grasped": 1}
    assert apply("stack_block", held) is None  # on the red block or on the pink one


@given(st.sampled_from(list_initial_states()), st.lists(st.sampled_from(list(RULES)), max_size=40))
def test_along_any_tasks_a_state_stays_consistent(state, tasks):
    for task in tasks:
        before = dict(state)
        after = apply(task, state)
        assert dict(state) == before
        state = state if after is None else after
        places = [state[key] for key in BLOCK_KEYS]
        assert tuple(state) == STATE_KEYS
        assert state["grasped"] == places.count("grasped") <= 1
        assert places.count("stacked_top") == places.count("stacked_bottom") <= 1


def test_initial_states_are_all_different_and_leave_a_block_to_work_with():
    states = list_initial_states()
    assert len(states) == len({tuple(state.values()) for state in states}) == 192
    for state in states:
        places = [state[key] for key in BLOCK_KEYS]
        assert places.count("table") in (1, 2)
        assert max(places.count("slider_left"), places.count("slider_right")) == 1


def test_an_unknown_task_is_refused():
    with pytest.raises(UnknownName, match=r"no task 'open_draw'.*Did you mean 'open_drawer'"):
        apply("open_draw", START)


def test_kinds_are_upstreams_eleven():
    by_kind = {}
    for task, kind in KINDS.items():
        by_kind.setdefault(kind, set()).add(task)
    assert sorted(map(len, by_kind.values())) == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 12]
    assert {"place_in_slider", "place_in_drawer"} in by_kind.values()
    assert {f"lift_{color}_block_drawer" for color in BLOCKS} in by_kind.values()
    assert KINDS["rotate_red_block_left"] == KINDS["push_pink_block_right"]
    assert KINDS["push_into_drawer"] != KINDS["push_pink_block_right"]


# --- where a chain starts ---------------------------------------------------------------------


def test_the_seed_of_a_start_is_upstreams_hash():
    # The example of pyhash's README; and of the first chain's state.
    assert chains._fnv1_32(b"hello world") == 2805756500
    text = str(load_chains()[0].initial.values())
    assert text == "dict_values([1, 1, 'left', 'open', 'slider_left', 'table', 'slider_right', 0])"
    assert chains._fnv1_32(text.encode()) == 47886304


def test_the_first_start_is_upstreams():
    robot_obs, scene_obs = initial_observations(load_chains()[0])
    np.testing.assert_array_equal(robot_obs, HOME_ROBOT_OBS)
    np.testing.assert_array_equal(scene_obs[:6], [0.28, 0.22, 0, 0.088, 1, 1])
    red, blue, pink = scene_obs[6:].reshape(3, 6)
    np.testing.assert_array_equal(red[:5], [-2.40851662e-01, 9.24044687e-02, 4.60990009e-01, 0, 0])
    np.testing.assert_array_equal(blue[:5], [5.00000896e-02, -1.20000177e-01, 4.59990009e-01, 0, 0])
    np.testing.assert_array_equal(pink[:5], [7.03416330e-02, 9.24044687e-02, 4.60990009e-01, 0, 0])
    yaws = [red[5], blue[5], pink[5]]
    np.testing.assert_allclose(yaws, [1.3345457611, 1.8104560851, 1.3310484736], atol=1e-10)


def test_all_starts_are_upstreams():
    scenes = np.stack([initial_observations(chain)[1] for chain in load_chains()])
    # Bit for bit equal to get_env_state_for_initial_condition of calvin fa03f01 when recorded.
    expected = "a81d086b5c44c64f9d0fd723c9cc4bb84cdf38be18d8070dcac0c412b07b8bd2"
    assert hashlib.sha256((np.round(scenes, 9) + 0.0).tobytes()).hexdigest() == expected


def test_a_start_shows_its_symbolic_state():
    for chain in load_chains():
        state = chain.initial
        robot_obs, scene_obs = initial_observations(chain)
        assert robot_obs.shape == (15,) and scene_obs.shape == (24,)
        assert (scene_obs[0] > 0) == (state["slider"] == "left")
        assert (scene_obs[1] > 0) == (state["drawer"] == "open")
        assert (scene_obs[3] > 0) == (scene_obs[4] == 1) == (state["lightbulb"] == 1)
        assert scene_obs[5] == state["led"]
        poses = scene_obs[6:].reshape(3, 6)
        for key, (x, y, z, roll, pitch, yaw) in zip(BLOCK_KEYS, poses, strict=True):
            in_cabinet = y > 0
            where = ("slider_left" if x < -0.1 else "slider_right") if in_cabinet else "table"
            assert where == state[key]
            assert z == pytest.approx(0.46, abs=1e-3)
            assert roll == pitch == 0
            assert abs(yaw - np.pi / 2) <= np.pi / 8
        apart = [np.linalg.norm(poses[i, :3] - poses[j, :3]) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert min(apart) > 0.15


def test_the_same_symbolic_state_starts_alike_and_arrays_belong_to_the_caller():
    one, *_, other = [c for c in load_chains() if c.initial == load_chains()[0].initial]
    assert one.tasks != other.tasks
    first, again = initial_observations(one), initial_observations(other)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
        a[:] = 99
    np.testing.assert_array_equal(again[1], initial_observations(one)[1])
