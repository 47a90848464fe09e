"""The instruction arrives intact, and changes with each episode, through every vector env."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import string

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import (
    batch_space,
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)
from hypothesis import given
from hypothesis import strategies as st

from vla_gym.errors import UnknownName
from vla_gym.instruction import (
    EMBEDDING_DIM,
    MAX_LENGTH,
    Instruction,
    encode,
    encode_bytes,
    instruction_space,
)

REACH, LIFT = "VLA/Toy-Reach-v0", "VLA/Toy-Lift-v0"
SEED = 11
HORIZON = 2

printable = st.text(alphabet=[chr(code) for code in range(32, 127)], max_size=MAX_LENGTH)


def short_spec(env_id):
    """Return the id's spec with a time limit of 2 steps, so that episodes end soon."""
    spec = copy.deepcopy(gym.spec(env_id))
    spec.max_episode_steps = HORIZON
    return spec


def make_short(env_id=REACH):
    return gym.make(short_spec(env_id), cameras=(), paraphrase=True)


def wordings(seed, episodes, env_id=REACH):
    """Return what a single env says in so many episodes after `reset(seed=seed)`."""
    env = make_short(env_id)
    said = [env.reset(seed=seed)[0]["instruction"]]
    said += [env.reset()[0]["instruction"] for _ in range(episodes - 1)]
    return said


def expect(steps, mode, seeds=(SEED, SEED + 1), env_ids=(REACH, REACH)):
    """Return for each observation of a vector env (reset, then steps) what it must say.

    An episode has `HORIZON` steps. Where the env resets in the step that ends it, the next one
    begins in that step's observation; else a step later, which is then no step of an episode.
    """
    length = HORIZON if mode == AutoresetMode.SAME_STEP else HORIZON + 1
    columns = [
        wordings(seed, steps // length + 1, env_id)
        for seed, env_id in zip(seeds, env_ids, strict=True)
    ]
    rows = [tuple(column[i // length] for column in columns) for i in range(steps + 1)]
    for column in zip(*rows, strict=True):
        assert len(set(column)) > 1, "choose a seed whose wordings differ"
    return rows


def read(envs, steps, seed=SEED):
    """Return what the vector env says at its reset and each step, looked at in time."""
    observation, info = envs.reset(seed=seed)
    rows = [tuple(observation["instruction"])]
    assert tuple(info["instruction"]) == rows[-1]
    actions = np.zeros(envs.action_space.shape, np.float32)
    for _ in range(steps):
        observation, _, _, _, info = envs.step(actions)
        rows.append(tuple(observation["instruction"]))
        assert all(isinstance(text, str) for text in rows[-1])
        assert tuple(info["instruction"]) == rows[-1]
    return rows


MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vectorization_mode", ["sync", "async"])
def test_make_vec_delivers_the_wording_of_each_episode(vectorization_mode, mode):
    envs = gym.make_vec(
        short_spec(REACH),
        num_envs=2,
        vectorization_mode=vectorization_mode,
        vector_kwargs={"autoreset_mode": mode},
        cameras=(),
        paraphrase=True,
    )
    try:
        assert read(envs, 8) == expect(8, mode)
    finally:
        envs.close()


@pytest.mark.parametrize(
    ("vectorization_mode", "vector_kwargs"),
    [
        ("sync", None),
        ("async", None),
        ("async", {"context": "fork"}),
        ("async", {"context": "spawn"}),
        ("async", {"context": "forkserver"}),
    ],
)
def test_plain_make_vec_with_an_id_alone_delivers_the_command(vectorization_mode, vector_kwargs):
    envs = gym.make_vec(
        LIFT, num_envs=2, vectorization_mode=vectorization_mode, vector_kwargs=vector_kwargs
    )
    try:
        assert read(envs, 2) == [("lift the red cube",) * 2] * 3
    finally:
        envs.close()


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_sync_vector_envs_deliver_the_wording_of_each_episode(mode, copies):
    envs = SyncVectorEnv([make_short] * 2, copy=copies, autoreset_mode=mode)
    assert read(envs, 8) == expect(8, mode)


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_async_vector_envs_deliver_the_wording_of_each_episode(context, shared_memory, copies):
    envs = AsyncVectorEnv(
        [make_short] * 2, context=context, shared_memory=shared_memory, copy=copies
    )
    try:
        assert read(envs, 5) == expect(5, AutoresetMode.NEXT_STEP)
    finally:
        envs.close()


def test_envs_with_different_tasks_keep_their_own_commands():
    makers = [lambda: make_short(REACH), lambda: make_short(LIFT), lambda: make_short(REACH)]
    seeds, env_ids = (SEED, SEED + 2, SEED + 1), (REACH, LIFT, REACH)
    rows = expect(8, AutoresetMode.NEXT_STEP, seeds, env_ids)
    assert {row[1] for row in rows}.isdisjoint({row[0] for row in rows})
    for envs in (SyncVectorEnv(makers), AsyncVectorEnv(makers)):
        try:
            assert read(envs, 8, seed=list(seeds)) == rows
        finally:
            envs.close()


def test_the_last_observation_of_an_episode_keeps_its_own_wording():
    for cls in (SyncVectorEnv, AsyncVectorEnv):
        envs = cls([make_short] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
        try:
            rows = expect(2, AutoresetMode.SAME_STEP)
            envs.reset(seed=SEED)
            actions = np.zeros((2, 7), np.float32)
            envs.step(actions)
            observation, _, _, truncated, info = envs.step(actions)
            assert truncated.all()
            assert tuple(observation["instruction"]) == rows[2]
            assert tuple(last["instruction"] for last in info["final_obs"]) == rows[0]
        finally:
            envs.close()


def test_observations_of_a_shared_memory_env_do_not_change_later_when_they_are_copies():
    envs = AsyncVectorEnv([make_short] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    try:
        rows = expect(2, AutoresetMode.SAME_STEP)
        first, _ = envs.reset(seed=SEED)
        for _ in range(2):
            last, *_ = envs.step(np.zeros((2, 7), np.float32))
        assert type(first["instruction"]) is tuple
        assert first["instruction"] == rows[0]
        assert last["instruction"] == rows[2]
        assert pickle.loads(pickle.dumps(first))["instruction"] == rows[0]
        assert copy.deepcopy(first)["instruction"] == rows[0]
        assert envs.observation_space["instruction"].contains(last["instruction"])
    finally:
        envs.close()


def test_without_copies_the_view_follows_the_envs_and_its_pickle_and_deepcopy_do_not():
    envs = AsyncVectorEnv([make_short] * 2, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    try:
        rows = expect(2, AutoresetMode.SAME_STEP)
        view = envs.reset(seed=SEED)[0]["instruction"]
        copied, pickled = copy.deepcopy(view), pickle.loads(pickle.dumps(view))
        assert view == rows[0] and view != rows[2] and hash(view) == hash(rows[0])
        for _ in range(2):
            envs.step(np.zeros((2, 7), np.float32))
        assert view == rows[2] and list(view) == list(rows[2]) and repr(view) == repr(rows[2])
        assert (view[0], view[-1], view[:], len(view)) == (rows[2][0], rows[2][1], rows[2], 2)
        assert type(copied) is type(pickled) is tuple
        assert copied == pickled == rows[0]
    finally:
        envs.close()


def test_a_vector_env_has_the_single_envs_spaces():
    single = make_short()
    for cls in (SyncVectorEnv, AsyncVectorEnv):
        envs = cls([make_short] * 2)
        try:
            assert envs.single_observation_space == single.observation_space
            assert isinstance(envs.single_observation_space["instruction"], Instruction)
            observation, _ = envs.reset(seed=0)
            assert envs.observation_space.contains(observation)
            assert envs.observation_space["instruction"] == batch_space(Instruction(), 2)
        finally:
            envs.close()


@pytest.mark.parametrize("form", ["bytes", "embedding"])
def test_numeric_forms_pass_through_shared_memory_as_well(form):
    def make():
        return gym.make(short_spec(REACH), cameras=(), paraphrase=True, instruction=form)

    envs = AsyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    try:
        rows = expect(4, AutoresetMode.SAME_STEP)
        observation, _ = envs.reset(seed=SEED)
        for i, texts in enumerate(rows):
            expected = np.stack([encode(text, form) for text in texts])
            np.testing.assert_array_equal(observation["instruction"], expected, err_msg=str(i))
            observation, *_ = envs.step(np.zeros((2, 7), np.float32))
    finally:
        envs.close()


# Shared memory, without processes


@given(printable, printable)
def test_what_is_written_to_shared_memory_is_read_back(before, text):
    space = Instruction()
    memory = create_shared_memory(space, n=3, ctx=multiprocessing.get_context("spawn"))
    view = read_from_shared_memory(space, memory, n=3)
    assert view == ("", "", "")
    for index, value in enumerate(["left alone", before, "left alone too"]):
        write_to_shared_memory(space, index, value, memory)
    assert view == ("left alone", before, "left alone too")
    write_to_shared_memory(space, 1, text, memory)  # no rest of a longer one remains
    assert view == ("left alone", text, "left alone too")


@pytest.mark.parametrize(
    "text", ["", " ", "trailing  ", "  leading", "x" * MAX_LENGTH, " " * MAX_LENGTH, "~" * 255]
)
def test_empty_full_and_padded_texts_are_read_back(text):
    space = Instruction()
    memory = create_shared_memory(space, n=2)
    write_to_shared_memory(space, 1, text, memory)
    assert tuple(read_from_shared_memory(space, memory, n=2)) == ("", text)


def test_a_shorter_space_has_its_own_row_length():
    space = Instruction(4)
    memory = create_shared_memory(space, n=3)
    for index, text in enumerate(["abcd", "", "ef"]):
        write_to_shared_memory(space, index, text, memory)
    assert read_from_shared_memory(space, memory, n=3) == ("abcd", "", "ef")


# The space and the forms


@given(printable)
def test_the_space_holds_printable_ascii_with_spaces(text):
    assert Instruction().contains(text)
    assert bytes(encode_bytes(text)).rstrip(b"\0").decode("ascii") == text


@pytest.mark.parametrize(
    "stranger",
    ["x" * (MAX_LENGTH + 1), "caf\u00e9", "two\nlines", "a\ttab", "\0", 7, None, b"lift"],
)
def test_the_space_holds_nothing_else(stranger):
    assert not Instruction().contains(stranger)


def test_the_space_knows_exactly_the_95_printable_characters():
    assert Instruction().character_set == {chr(code) for code in range(32, 127)}
    assert set(string.ascii_letters + string.digits + " .,'-") < Instruction().character_set


def test_spaces_are_equal_by_length_and_survive_pickle_and_deepcopy():
    space = Instruction()
    assert space == Instruction() == pickle.loads(pickle.dumps(space)) == copy.deepcopy(space)
    assert type(copy.deepcopy(space)) is Instruction
    assert space != Instruction(64)
    assert space != gym.spaces.Text(MAX_LENGTH, min_length=0)  # whose characters lack the space
    assert repr(space) == "Instruction(256)"


def test_samples_are_seeded_and_lie_in_the_space():
    space, twin = Instruction(seed=3), Instruction(seed=3)
    samples = [space.sample() for _ in range(50)]
    assert all(space.contains(sample) for sample in samples)
    assert samples == [twin.sample() for _ in range(50)]
    assert len(set(samples)) > 40


def test_each_form_has_its_space_and_its_value_belongs_to_it():
    text = "lift the red cube"
    assert instruction_space("text") == Instruction() and encode(text, "text") == text
    for form, shape, kind in (
        ("bytes", MAX_LENGTH, "uint8"),
        ("embedding", EMBEDDING_DIM, "float32"),
    ):
        space, value = instruction_space(form), encode(text, form)
        assert space.shape == value.shape == (shape,) and space.dtype == value.dtype == kind
        assert space.contains(value)
    codes = encode("Hi", "bytes")
    assert codes[:3].tolist() == [72, 105, 0] and not codes[2:].any()


def test_an_unknown_form_is_refused_with_the_nearest_one():
    for function in (instruction_space, lambda form: encode("lift", form)):
        with pytest.raises(UnknownName, match=r"no instruction form 'txt'\. Did you mean 'text'\?"):
            function("txt")
