"""CALVIN's 34 tasks: their rules at every threshold, and their wordings."""

from __future__ import annotations

import hashlib
import itertools
import math
import timeit

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support import needs
from vla_gym.errors import UnknownName
from vla_gym.rotations import euler_to_matrix, matrix_to_quaternion
from vla_gym.suites.calvin import oracle
from vla_gym.suites.calvin.oracle import (
    ROBOT,
    RULES,
    TABLE_PARTS,
    Block,
    Record,
    achieved,
    solved,
)
from vla_gym.suites.calvin.scenes import BLOCKS
from vla_gym.suites.calvin.tasks import CHAIN, TASKS, find_task

BASE, PLANK, DRAWER = "base_link", "plank_link", "drawer_link"

AT = {"red": -0.1, "blue": 0.1, "pink": 0.2}


def to_matrix(euler):
    """Return the rotation matrix of extrinsic xyz Euler angles in degrees."""
    return euler_to_matrix(np.radians(euler))


def make_block(
    contacts=(BASE,), position=(0, 0, 0.46), euler=(0, 0, 0), velocity=(0, 0, 0), spin=(0, 0, 0)
):
    """Return a block; `euler` is extrinsic xyz in degrees."""
    return Block(
        np.array(position, dtype=float),
        matrix_to_quaternion(to_matrix(euler)),
        np.array(velocity, dtype=float),
        np.array(spin, dtype=float),
        frozenset(contacts),
    )


def make_record(robot=(), slider=0.1, drawer=0.1, lightbulb=False, led=False, **blocks):
    """Return a record; blocks not given lie on the table, apart from each other."""
    lying = {color: make_block(position=(AT[color], -0.1, 0.46)) for color in BLOCKS}
    return Record({**lying, **blocks}, frozenset(robot), slider, drawer, lightbulb, led)


def make_done():
    """Return task -> a start and an end between which it is solved."""
    rest = make_record()
    done = {}
    for color in BLOCKS:
        for side, sign in (("right", 1), ("left", -1)):
            turned = make_block(euler=(0, 0, -90 * sign), position=(AT[color], -0.1, 0.46))
            done[f"rotate_{color}_block_{side}"] = rest, make_record(**{color: turned})
            pushed = make_block(position=(AT[color] + 0.15 * sign, -0.1, 0.46))
            done[f"push_{color}_block_{side}"] = rest, make_record(**{color: pushed})
        for place, part in (("table", BASE), ("slider", PLANK), ("drawer", DRAWER)):
            lying = make_block([part])
            lifted = make_block([ROBOT], position=(0, 0, 0.56))
            done[f"lift_{color}_block_{place}"] = (
                make_record(**{color: lying}),
                make_record(robot=[color], **{color: lifted}),
            )
    held = make_record(robot=["blue"], blue=make_block([ROBOT]))
    done["place_in_slider"] = held, make_record(blue=make_block([PLANK]))
    done["place_in_drawer"] = held, make_record(blue=make_block([DRAWER]))
    tower = make_record(red=make_block([BASE, "blue"]), blue=make_block(["red"]))
    done["stack_block"] = held, tower
    done["unstack_block"] = tower, held
    done["push_into_drawer"] = rest, make_record(pink=make_block([DRAWER]))
    opened, lit = {"slider": 0.28, "drawer": 0.28}, {"lightbulb": True, "led": True}
    for task, change in (
        *(("move_slider_left", opened), ("open_drawer", opened)),
        *(("turn_on_lightbulb", lit), ("turn_on_led", lit)),
    ):
        done[task] = rest, make_record(**change)
        done[REVERSED[task]] = done[task][::-1]
    return done


REVERSED = {
    "move_slider_left": "move_slider_right",
    "open_drawer": "close_drawer",
    "turn_on_lightbulb": "turn_off_lightbulb",
    "turn_on_led": "turn_off_led",
    "stack_block": "unstack_block",
}
"""Task -> the one that the same two moments solve in the other order."""

DONE = make_done()


contact_sets = st.frozensets(
    st.sampled_from([ROBOT, *TABLE_PARTS, *BLOCKS, "floor"]), max_size=4
) | st.sampled_from([frozenset({name}) for name in (ROBOT, BASE, PLANK, DRAWER, "red", "blue")])
lengths = st.floats(-0.5, 0.5)
speeds = st.floats(-2, 2) | st.just(0.0)
angles = st.floats(-179.99, 179.99)


@st.composite
def blocks(draw):
    x, y, z, *moving = (draw(lengths), draw(lengths), draw(lengths), *(draw(speeds),) * 2)
    euler = draw(angles), draw(st.floats(-89, 89)), draw(angles)
    velocity, spin = ((speed, 0, -speed) for speed in moving)
    return make_block(draw(contact_sets), (x, y, z), euler, velocity, spin)


records = st.builds(
    lambda red, blue, pink, **rest: Record({"red": red, "blue": blue, "pink": pink}, **rest),
    *(blocks(), blocks(), blocks()),
    robot_contacts=contact_sets,
    slider=st.floats(0, 0.28),
    drawer=st.floats(0, 0.22),
    lightbulb=st.booleans(),
    led=st.booleans(),
)


# --- every rule -------------------------------------------------------------------------------


def test_the_examples_are_of_all_34_tasks():
    assert set(DONE) == set(RULES)
    assert len(RULES) == 34


@pytest.mark.parametrize("task", RULES)
def test_a_task_is_solved_by_its_own_example_and_not_from_its_end(task):
    start, end = DONE[task]
    assert solved(task, start, end) is True
    assert solved(task, end, end) is False
    assert solved(task, start, start) is False


@pytest.mark.parametrize("task", RULES)
def test_an_example_solves_no_task_about_other_blocks_or_in_the_other_direction(task):
    found = achieved(*DONE[task])
    assert task in found
    colors = {color for color in BLOCKS if f"_{color}_" in task}
    named = {color for other in found for color in BLOCKS if f"_{color}_" in other}
    assert named <= (colors or {"blue"})  # an example about any block moves the blue one
    assert REVERSED.get(task) not in found


@given(records)
def test_where_nothing_has_changed_nothing_is_achieved(record):
    assert achieved(record, record) == frozenset()


@given(records, records)
def test_achieved_is_all_that_is_solved(start, end):
    assert achieved(start, end) == {task for task in RULES if solved(task, start, end)}


@given(records, records)
def test_the_reverse_of_a_change_solves_the_reverse_task(start, end):
    forth, back = achieved(start, end), achieved(end, start)
    for task, other in REVERSED.items():
        assert (task in forth) == (other in back)
        assert (other in forth) == (task in back)


@given(records, records, st.permutations(BLOCKS))
def test_rules_tell_blocks_apart_by_their_colour_alone(start, end, permuted):
    names = dict(zip(BLOCKS, permuted, strict=True))

    def paint(contacts):
        return frozenset(names.get(name, name) for name in contacts)

    def paint_record(record):
        return record._replace(
            blocks={
                names[color]: block._replace(contacts=paint(block.contacts))
                for color, block in record.blocks.items()
            },
            robot_contacts=paint(record.robot_contacts),
        )

    def paint_task(task):
        return "_".join(names.get(word, word) for word in task.split("_"))

    painted = achieved(paint_record(start), paint_record(end))
    assert painted == {paint_task(task) for task in achieved(start, end)}


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match=r"no task 'open_drawers'.*Did you mean 'open_drawer'\?"):
        solved("open_drawers", make_record(), make_record())


@pytest.mark.parametrize("task", RULES)
def test_a_rule_takes_less_than_20_microseconds(task):
    start, end = DONE[task]
    times = timeit.repeat(lambda: solved(task, start, end), number=100, repeat=9)
    assert min(times) / 100 < 20e-6


# --- thresholds -------------------------------------------------------------------------------


def make_linear_cases():
    """Return for tasks with a threshold: task, threshold, `amount -> (start, end)`."""

    def push(color):
        def make(x):
            at = make_record(**{color: make_block(position=(0, 0, 0.46))})
            return at, make_record(**{color: make_block(position=(x, 0.3, 0.1))})

        return make

    def lift(color, part):
        def make(z):
            start = make_record(**{color: make_block([part], position=(0, 0, 0))})
            end = make_block([ROBOT], position=(0.3, 0.3, z))
            return start, make_record(**{color: end})

        return make

    def slide(joint):
        return lambda q: (make_record(**{joint: 0.0}), make_record(**{joint: q}))

    for color in BLOCKS:
        yield f"push_{color}_block_right", 0.1, push(color)
        yield f"push_{color}_block_left", -0.1, push(color)
        yield f"lift_{color}_block_table", 0.05, lift(color, BASE)
        yield f"lift_{color}_block_slider", 0.03, lift(color, PLANK)
        yield f"lift_{color}_block_drawer", 0.05, lift(color, DRAWER)
    yield "move_slider_left", 0.15, slide("slider")
    yield "move_slider_right", -0.15, slide("slider")
    yield "open_drawer", 0.12, slide("drawer")
    yield "close_drawer", -0.12, slide("drawer")


LINEAR = [pytest.param(*case, id=case[0]) for case in make_linear_cases()]


@pytest.mark.parametrize(("task", "threshold", "make"), LINEAR)
def test_a_distance_must_be_beyond_its_threshold(task, threshold, make):
    beyond = math.nextafter(threshold, math.copysign(math.inf, threshold))
    before = math.nextafter(threshold, 0)
    assert solved(task, *make(beyond))
    assert not solved(task, *make(threshold))
    assert not solved(task, *make(before))
    assert not solved(task, *make(-beyond))


@pytest.mark.parametrize(("task", "threshold", "make"), LINEAR)
@given(amount=st.floats(-1, 1))
def test_a_distance_counts_by_size_and_sign(task, threshold, make, amount):
    assert solved(task, *make(amount)) == (amount / threshold > 1 and amount != threshold)


TILTS = [(x, y) for x in (-29.999, 0, 29.999) for y in (-29.999, 0, 29.999)]
TURNS = {  # degrees to the left -> whether that is a turn to the left
    60.001: True,
    90.0: True,
    179.999: True,
    59.999: False,
    0.0: False,
    -90.0: False,
    -179.999: False,
    180.001: False,
}


def rotate(color, by, before=(0, 0, 0), shift=(0, 0, 0), contacts=(BASE,)):
    """Return a start and an end; `before` and `by` are extrinsic xyz Euler angles in degrees."""
    start = make_block(euler=before)
    end = make_block(contacts, position=np.add((0, 0, 0.46), shift))
    turned = matrix_to_quaternion(to_matrix(by) @ to_matrix(before))
    end = end._replace(quaternion_xyzw=turned)
    return make_record(**{color: start}), make_record(**{color: end})


@pytest.mark.parametrize("color", BLOCKS)
@pytest.mark.parametrize("turn", TURNS)
def test_a_block_must_turn_by_more_than_60_and_less_than_180_degrees(color, turn):
    for x, y in TILTS:
        left, right = rotate(color, (x, y, turn)), rotate(color, (x, y, -turn))
        assert solved(f"rotate_{color}_block_left", *left) is TURNS[turn]
        assert solved(f"rotate_{color}_block_right", *right) is TURNS[turn]
        if TURNS[turn]:
            assert not solved(f"rotate_{color}_block_right", *left)
            assert not solved(f"rotate_{color}_block_left", *right)


@pytest.mark.parametrize("color", BLOCKS)
@pytest.mark.parametrize("tilt", [(30.001, 0), (-30.001, 0), (0, 30.001), (0, -30.001)])
def test_a_block_that_turns_must_tilt_by_less_than_30_degrees(color, tilt):
    assert not solved(f"rotate_{color}_block_left", *rotate(color, (*tilt, 90)))
    assert not solved(f"rotate_{color}_block_right", *rotate(color, (*tilt, -90)))


@given(
    color=st.sampled_from(BLOCKS),
    before=st.tuples(angles, st.floats(-89, 89), angles),
    by=st.tuples(st.floats(-50, 50), st.floats(-50, 50), angles),
)
def test_a_turn_is_judged_in_the_world_frame_from_any_orientation(color, before, by):
    x, y, z = by
    assume(min(abs(abs(x) - 30), abs(abs(y) - 30), abs(abs(z) - 60)) > 1e-9)
    pair = rotate(color, by, before)
    upright = abs(x) < 30 and abs(y) < 30
    assert solved(f"rotate_{color}_block_left", *pair) == (upright and z > 60)
    assert solved(f"rotate_{color}_block_right", *pair) == (upright and z < -60)


def test_a_turn_of_just_the_threshold_or_of_just_half_a_circle_is_none():
    def turn(quaternion):
        end = make_block()._replace(quaternion_xyzw=np.array(quaternion, dtype=float))
        return make_record(red=make_block()), make_record(red=end)

    quarter, half = turn((0, 0, 1, 1)), turn((0, 0, 1, 0))  # 90 and 180 degrees to the last bit
    assert oracle._rotate("red", math.nextafter(90, 0), *quarter)
    assert not oracle._rotate("red", 90.0, *quarter)
    assert not achieved(*half)
    assert solved("rotate_red_block_left", *turn((0, 0, 1, 1e-9)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_block_that_turns_may_move_by_a_tenth_of_a_metre(axis):
    for far, expected in ((0.0999, True), (0.1001, False), (-0.0999, True), (-0.1001, False)):
        shift = np.eye(3)[axis] * far
        assert solved("rotate_red_block_left", *rotate("red", (0, 0, 90), shift=shift)) is expected
    start, end = rotate("red", (0, 0, 90))
    origin, exact = np.zeros(3), np.eye(3)[axis] * 0.1
    start.blocks["red"].position[:], end.blocks["red"].position[:] = origin, exact
    assert solved("rotate_red_block_left", start, end)
    end.blocks["red"].position[axis] = math.nextafter(0.1, 1)
    assert not solved("rotate_red_block_left", start, end)


@pytest.mark.parametrize(
    ("contacts", "expected"),
    [([BASE], True), ([ROBOT, BASE], True), (["blue"], True), ([ROBOT], False), ([], False)],
)
def test_a_turned_block_must_touch_more_than_the_robot(contacts, expected):
    pair = rotate("red", (0, 0, 90), contacts=contacts)
    assert solved("rotate_red_block_left", *pair) is expected


@needs("eval")
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_rotation_between_two_orientations_is_scipys(seed, scale, other_scale):
    from scipy.spatial.transform import Rotation

    first, second = Rotation.random(2, random_state=seed)
    expected = (second * first.inv()).as_euler("xyz", degrees=True)
    assume(abs(expected[1]) < 89)  # near 90 degrees the angles are not unique
    assume(max(abs(expected)) < 179.999)  # nor is the sign of 180
    found = oracle._euler_between(scale * first.as_quat(), -other_scale * second.as_quat())
    tolerance = 1e-12 / math.cos(math.radians(expected[1]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


# --- contacts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([BASE], [BASE], True),
        ([BASE, ROBOT], [BASE], True),
        ([BASE], [BASE, ROBOT], True),
        ([BASE], [BASE, "blue"], True),
        ([BASE, "blue"], [BASE, "blue"], True),
        ([BASE, "blue"], [BASE], False),
        ([BASE], [PLANK], False),
        ([BASE], [DRAWER, PLANK], False),
        ([BASE], [ROBOT], False),
        ([BASE], [], False),
        ([ROBOT], [BASE], False),
        ([], [BASE], False),
        ([], [], False),
    ],
)
def test_a_pushed_block_still_touches_what_it_touched(before, after, expected):
    start = make_record(red=make_block(before, position=(0, 0, 0.46)))
    for x, task in ((0.2, "push_red_block_right"), (-0.2, "push_red_block_left")):
        end = make_record(red=make_block(after, position=(x, 0, 0.46)))
        assert solved(task, start, end) is expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([BASE], [ROBOT], {"table"}),
        ([PLANK], [ROBOT], {"slider"}),
        ([DRAWER], [ROBOT], {"drawer"}),
        ([BASE, ROBOT, "pink"], [ROBOT], {"table"}),
        ([BASE, PLANK], [ROBOT], {"table", "slider"}),
        (["slide_link"], [ROBOT], set()),
        (["pink"], [ROBOT], set()),
        ([ROBOT], [ROBOT], set()),
        ([], [ROBOT], set()),
        ([BASE], [ROBOT, BASE], set()),
        ([BASE], [ROBOT, "pink"], set()),
        ([BASE], ["pink"], set()),
        ([BASE], [], set()),
    ],
)
def test_a_lifted_block_is_held_by_the_robot_alone_and_came_from_its_place(before, after, expected):
    start = make_record(blue=make_block(before))
    end = make_record(blue=make_block(after, position=(0, 0, 0.6)))
    found = {task for task in achieved(start, end) if task.startswith("lift")}
    assert found == {f"lift_blue_block_{place}" for place in expected}


PLACES = {"place_in_slider": PLANK, "place_in_drawer": DRAWER}


@pytest.mark.parametrize("task", PLACES)
@pytest.mark.parametrize("color", BLOCKS)
def test_a_placed_block_was_held_by_the_robot_alone_and_is_free(task, color):
    part, other = PLACES[task], BLOCKS[BLOCKS.index(color) - 1]

    def place(robot=(color,), held=(ROBOT,), robot_after=(), after=(part,)):
        start = make_record(robot, **{color: make_block(held)})
        return solved(task, start, make_record(robot_after, **{color: make_block(after)}))

    assert place()
    assert place(after=[part, "slide_link", other], robot_after=[other, BASE])
    assert not place(after=[BASE])
    assert not place(after=[PLANK if part is DRAWER else DRAWER])
    assert not place(after=[])
    assert not place(robot_after=[color])
    assert not place(robot=[])
    assert not place(robot=[BASE])
    assert not place(robot=[other])
    assert not place(robot=[color, BASE])
    assert not place(robot=[color, other])
    assert not place(held=[ROBOT, BASE])
    assert not place(held=[BASE])
    assert not place(held=[])


STACKED = [  # contacts of a block -> whether it is stacked, whether it is apart from all others
    (["red"], True, False),
    (["red", "pink"], True, False),
    (["red", ROBOT], False, False),
    (["red", BASE], False, False),
    ([ROBOT], False, True),
    ([BASE], False, True),
    ([], False, True),
]


@pytest.mark.parametrize("pair", list(itertools.product(STACKED, STACKED)))
def test_a_block_is_stacked_from_apart_and_unstacked_to_apart(pair):
    (before, was_stacked, was_apart), (after, is_stacked, is_apart) = pair
    start, end = make_record(blue=make_block(before)), make_record(blue=make_block(after))
    assert solved("stack_block", start, end) is (was_apart and is_stacked)
    assert solved("unstack_block", start, end) is (was_stacked and is_apart)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("motion", ["velocity", "spin"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_stacked_block_is_slow(axis, motion, sign):
    held = make_record(robot=["blue"], blue=make_block([ROBOT], velocity=(5, 5, 5)))
    for speed, expected in ((math.nextafter(1, 0), True), (1.0, False)):
        moving = np.eye(3)[axis] * speed * sign
        tower = make_record(blue=make_block(["red"], **{motion: moving}))
        assert solved("stack_block", held, tower) is expected
        assert solved("unstack_block", tower, held) is expected


@pytest.mark.parametrize("color", BLOCKS)
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([BASE], [DRAWER], True),
        ([BASE], [DRAWER, BASE], True),
        ([BASE], [DRAWER, ROBOT], True),  # as upstream's code has it, not its docstring
        ([BASE, ROBOT], [DRAWER], False),
        ([BASE, "slide_link"], [DRAWER], False),
        ([PLANK], [DRAWER], False),
        ([ROBOT], [DRAWER], False),
        ([], [DRAWER], False),
        ([BASE], [BASE], False),
        ([BASE], [PLANK], False),
        ([BASE], [], False),
    ],
)
def test_a_block_goes_from_the_table_alone_into_the_drawer(color, before, after, expected):
    start = make_record(**{color: make_block(before)})
    end = make_record(**{color: make_block(after)})
    assert solved("push_into_drawer", start, end) is expected


@pytest.mark.parametrize("light", ["lightbulb", "led"])
@pytest.mark.parametrize(("before", "after"), list(itertools.product((False, True), repeat=2)))
def test_a_light_must_change(light, before, after):
    start, end = make_record(**{light: before}), make_record(**{light: after})
    assert solved(f"turn_on_{light}", start, end) is (after and not before)
    assert solved(f"turn_off_{light}", start, end) is (before and not after)


# --- wordings ---------------------------------------------------------------------------------

SINGLE = [task for task in TASKS.values() if task.native != CHAIN]


def test_tasks_are_the_oracles_in_its_order_and_then_the_chain():
    assert [task.native for task in SINGLE] == list(RULES)
    assert list(TASKS)[-1] == "Chain"
    assert all(task.name == name for name, task in TASKS.items())
    assert TASKS["RotateRedBlockRight"].native == "rotate_red_block_right"
    assert {task.horizon for task in SINGLE} == {360}
    assert TASKS["Chain"].horizon == 1800
    assert all(task.success and task.tags for task in TASKS.values())


def test_instructions_are_upstreams_validation_sentences_word_for_word():
    text = "\n".join(f"{task.native}: {task.instruction}" for task in SINGLE)
    # Of new_playtable_validation.yaml of calvin fa03f01, in the oracle's order.
    expected = "92cc6e5a4f4d8ff3de3599a353218362833f70071988f31b7af66c2e37e989cb"
    assert hashlib.sha256(text.encode()).hexdigest() == expected


def test_every_wording_leads_back_to_its_own_task():
    wordings = [
        (wording, task.native)
        for task in SINGLE
        for wording in (task.instruction, *task.paraphrases)
    ]
    assert len({wording.lower() for wording, _ in wordings}) == len(wordings) == 34 * 5
    for wording, native in wordings:
        assert find_task(wording) == native
    assert find_task(TASKS["Chain"].instruction) is None
    assert find_task("make coffee") is None


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.native)
def test_wordings_are_short_plain_and_name_what_they_are_about(task):
    assert len(task.paraphrases) == 4
    words = set(task.native.split("_"))
    for wording in (task.instruction, *task.paraphrases):
        assert wording.isascii() and wording.isprintable() and len(wording) <= 256
        assert wording == wording.strip()
        said = wording.lower()
        assert {color for color in BLOCKS if color in said} == words & set(BLOCKS)
        if task.native.startswith(("rotate", "push_")) and words & set(BLOCKS):
            clockwise = "counterclockwise" not in said and "clockwise" in said
            right = "right" in said or clockwise
            left = "left" in said or "counterclockwise" in said
            assert (right, left) == ("right" in words, "left" in words)


@pytest.mark.parametrize(
    "task",
    [task for task in SINGLE if task.native.startswith(("lift", "place"))],
    ids=lambda task: task.native,
)
def test_paraphrases_say_from_where_or_to_where(task):
    nouns = {"table": "table", "slider": "cabinet", "drawer": "drawer"}
    for paraphrase in task.paraphrases:
        named = {place for place, noun in nouns.items() if noun in paraphrase}
        assert named == set(task.native.split("_")) & set(nouns)
