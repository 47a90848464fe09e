import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_gym.errors import ContractMismatch, InvalidOption
from vla_gym.policy import Chunker, take_rows


class Counting:
    """Chunks whose entries say for which env and which step they were predicted."""

    def __init__(self, length):
        self.length, self.asked = length, []

    def __call__(self, observation):
        envs, steps = observation["proprio"][:, 0], observation["proprio"][:, 1]
        self.asked.append((tuple(envs.astype(int)), observation["instruction"]))
        ahead = np.arange(self.length)
        return np.stack(
            [
                np.stack([np.full(self.length, env), step + ahead, np.full(self.length, step)], 1)
                for env, step in zip(envs, steps, strict=True)
            ]
        )


def observe(steps):
    """An observation of envs that are at these steps of their episodes."""
    proprio = np.array([[env, step] for env, step in enumerate(steps)], np.float32)
    return {"proprio": proprio, "instruction": tuple(f"task {i}" for i in range(len(steps)))}


@given(
    length=st.integers(1, 6),
    data=st.data(),
    restarts=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=20),
)
def test_each_env_takes_its_own_chunk_action_by_action(length, data, restarts):
    execute = data.draw(st.none() | st.integers(1, length))
    chunker, chunks = Chunker(execute), Counting(length)
    state, steps = None, [-1] * 3
    for restart in restarts:
        steps = [0 if new else step + 1 for step, new in zip(steps, restart, strict=True)]
        start = None if state is None and not any(restart) else np.array(restart)
        actions, state = chunker.predict(chunks, observe(steps), state, start)
        for env, (step, action) in enumerate(zip(steps, actions, strict=True)):
            predicted_at = step - step % (execute or length)
            assert action.tolist() == [env, step, predicted_at]
    assert actions.dtype == np.float32


def test_only_envs_that_need_a_chunk_are_asked():
    chunker, chunks = Chunker(2), Counting(4)
    _, state = chunker.predict(chunks, observe([0, 0, 0]))
    _, state = chunker.predict(chunks, observe([1, 0, 1]), state, np.array([False, True, False]))
    assert chunks.asked[1] == ((1,), ("task 1",))
    _, state = chunker.predict(chunks, observe([2, 1, 2]), state, np.zeros(3, bool))
    assert chunks.asked[2] == ((0, 2), ("task 0", "task 2"))


def test_state_is_not_changed_by_going_on():
    chunker, chunks = Chunker(), Counting(3)
    _, state = chunker.predict(chunks, observe([0]))
    first = chunker.predict(chunks, observe([1]), state)[0]
    assert (chunker.predict(chunks, observe([1]), state)[0] == first).all()


def test_another_number_of_envs_starts_anew():
    chunker, chunks = Chunker(), Counting(3)
    _, state = chunker.predict(chunks, observe([0, 0]))
    actions, _ = chunker.predict(chunks, observe([5]), state)
    assert actions.tolist() == [[0, 5, 5]]


@pytest.mark.parametrize("m", [0.0, 0.01, 1.0, -0.5])
def test_temporal_ensembling_is_acts(m):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(8, 4, 2)).astype(np.float32)  # the chunk predicted at each step
    chunker, state = Chunker(ensemble=m), None
    for step in range(8):
        actions, state = chunker.predict(
            lambda observation: table[observation["proprio"][:, 1].astype(int)],
            observe([step]),
            state,
            np.array([step == 0]),
        )
        sources = range(max(0, step - 3), step + 1)  # oldest first, as in ACT
        said = np.array([table[s, step - s] for s in sources])
        weights = np.exp(-m * np.arange(len(said)))
        np.testing.assert_allclose(actions[0], weights @ said / weights.sum(), rtol=1e-5)


def test_ensembling_forgets_at_an_episodes_start():
    chunker, chunks = Chunker(ensemble=0.0), Counting(3)
    _, state = chunker.predict(chunks, observe([7, 7]))
    actions, _ = chunker.predict(chunks, observe([0, 8]), state, np.array([True, False]))
    assert actions[0].tolist() == [0, 0, 0]
    assert actions[1].tolist() == [1, 8, 7.5]


@pytest.mark.parametrize(
    "keywords",
    [{"execute": 0}, {"execute": 1.5}, {"execute": 2, "ensemble": 0.1}, {"ensemble": np.nan}],
)
def test_settings_without_a_meaning_are_refused(keywords):
    with pytest.raises(InvalidOption):
        Chunker(**keywords)


@pytest.mark.parametrize("shape", [(1, 7), (2, 3, 7), (1, 0, 7)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ContractMismatch, match="chunk"):
        Chunker().predict(lambda _: np.zeros(shape), observe([0]))


def test_chunks_shorter_than_what_is_taken_are_refused():
    with pytest.raises(ContractMismatch, match="execute=5, but the policy predicts 3"):
        Chunker(5).predict(Counting(3), observe([0]))


def test_take_rows_keeps_kinds():
    rows = take_rows(observe([4, 5, 6]), [2, 0])
    assert rows["proprio"].tolist() == [[2, 6], [0, 4]]
    assert rows["instruction"] == ("task 2", "task 0")
