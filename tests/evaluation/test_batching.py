"""One policy for all workers: the actions of each are those that it would have got alone."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest

from tests.evaluation import shared_policies, stand_ins
from tests.evaluation.test_evaluate import REACH, plain
from tests.support import ROOT, check_needs, needs
from vla_gym import registration
from vla_gym.errors import ContractMismatch, SimulatorCrashed
from vla_gym.evaluation.batching import BatchedPolicy, PolicyProcess
from vla_gym.evaluation.evaluate import evaluate
from vla_gym.evaluation.store import load_records
from vla_gym.evaluation.workers import ONE_THREAD
from vla_gym.policy import connect, make_policy
from vla_gym.processes import Process
from vla_gym.rollout import add_batch_axis

pytestmark = [
    needs("eval"),
    pytest.mark.skipif(sys.platform != "linux", reason="sockets in the file system, /proc"),
]


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """The file in which policies note their calls; the environment names it to their process."""
    path = tmp_path_factory.mktemp("calls") / "calls"
    os.environ[shared_policies.CALLS] = str(path)
    yield path
    del os.environ[shared_policies.CALLS]


@pytest.fixture(scope="module")
def process(calls, tmp_path_factory):
    log = tmp_path_factory.mktemp("logs") / "policies.log"
    process = PolicyProcess(starter(log), 8, None)
    yield process
    folder = Path(process.address).parent
    process.close()
    assert not folder.exists()


def starter(log):
    return functools.partial(Process, log=log, environment=ONE_THREAD)


def open_policy(process, source):
    return BatchedPolicy(process.address, lambda: None, source.__name__, source)


def play(policy, numbers, episodes=1):
    """Return the first entry of each action of an env that shows these numbers, one a step."""
    actions = []
    for _ in range(episodes):
        state = None
        for step, number in enumerate(numbers):
            seen = {"x": np.array([[number]], np.float64)}
            action, state = policy.predict(seen, state, np.array([step == 0]), True)
            assert action.shape == (1, 1)
            actions.append(float(action[0, 0]))
        policy.rest()
    return actions


def play_together(process, source, rows, episodes=1):
    """Play an env for each row at once; return what `play` returns for each, or its error."""

    def play_row(numbers):
        policy = open_policy(process, source)
        try:
            return play(policy, numbers, episodes)
        except RuntimeError as error:
            return str(error)
        finally:
            policy.close()

    with ThreadPoolExecutor(len(rows)) as pool:
        return list(pool.map(play_row, rows))


ROWS = [[10 * row + step for step in range(4 + row)] for row in range(5)]
SUMS = [list(np.cumsum(row).astype(float)) for row in ROWS]


@pytest.mark.parametrize(
    "source",
    [
        shared_policies.Sums,
        shared_policies.RecurrentSums,
        shared_policies.LateRecurrentSums,
    ],
)
def test_what_a_policy_remembers_of_an_episode_stays_with_its_env(process, source):
    if source is shared_policies.LateRecurrentSums:
        wanted = [list(np.cumsum(row[1:]).astype(float)) for row in ROWS]
        wanted = [[float(row[0]), *sums] for row, sums in zip(ROWS, wanted, strict=True)]
    else:
        wanted = SUMS
    found = play_together(process, source, ROWS, episodes=2)
    assert found == [sums * 2 for sums in wanted]


def test_a_policy_that_raises_for_one_env_serves_the_others(process):
    rows = [*ROWS, [600.0, 600.0, 1.0]]
    found = play_together(process, shared_policies.RaisesAbove1000, rows)
    assert found == [*SUMS, "more than 1000"]


def test_chunks_of_different_ages(process):
    rows = [[100 * row + 10 * step for step in range(4 + row)] for row in range(5)]
    wanted = [[row[step - step % 3] + step % 3 for step in range(len(row))] for row in rows]
    assert play_together(process, shared_policies.CountsUp, rows) == wanted
    policies = [open_policy(process, shared_policies.CountsUp) for _ in range(2)]
    states, starts, seen = [None, None], [True, True], []
    for step in range(5):  # the second one begins anew in between
        if step == 2:
            states[1], starts[1] = None, True
        for i, policy in enumerate(policies):
            observation = {"x": np.array([[10.0 * step + i]])}
            action, states[i] = policy.predict(observation, states[i], np.array([starts[i]]))
            seen.append(float(action[0, 0]))
        starts = [False, False]
    assert seen[::2] == [0, 1, 2, 30, 31] and seen[1::2] == [1, 2, 21, 22, 23]


def test_a_policy_that_forgets_the_batch_axis_is_asked_for_one_env_at_a_time(process):
    found = play_together(process, shared_policies.OneActionForAll, ROWS)
    assert found == [list(map(float, row)) for row in ROWS]


def test_what_others_open_and_leave_does_not_touch_an_episode(process):
    one = open_policy(process, shared_policies.RecurrentSums)
    state, seen = None, []
    for step, source in enumerate((shared_policies.Sums, shared_policies.Texts, None)):
        action, state = one.predict({"x": np.array([[1.0]])}, state, np.array([step == 0]))
        seen.append(float(action[0, 0]))
        if source is not None:
            open_policy(process, source).close()
    assert seen == [1, 2, 3]


def test_observations_of_other_forms_are_served_apart(process):
    def play_texts(row):
        policy, answers = open_policy(process, shared_policies.Texts), []
        for step in range(6):
            seen = {
                "a": np.full((1, 2 + row % 2, 3), step, np.uint8),
                "b": np.full((1, 1 + step % 2), row, np.float64),  # also from step to step
                "instruction": ("x" * (row + step),),
            }
            answers.append(policy.predict(seen, None, np.array([True]))[0][0].tolist())
        policy.close()
        return answers

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(play_texts, range(6)))
    for row, answers in enumerate(found):
        sums = [3 * (2 + row % 2) * step + row * (1 + step % 2) for step in range(6)]
        assert answers == [[row + step, total] for step, total in enumerate(sums)]


def test_shared_memory_does_not_pile_up(process):
    folder = Path(process.address).parent
    policy = open_policy(process, shared_policies.Texts)
    for size in range(1, 40):
        seen = {"a": np.ones((1, size)), "instruction": ("go",)}
        assert policy.predict(seen, None, np.array([True]))[0].tolist() == [[2, size]]
    assert [path.name for path in folder.iterdir()] == [Path(process.address).name]
    policy.close()


def read_calls(path):
    return [int(line) for line in path.read_text().split()]


def test_those_that_wait_are_served_together(process, calls):
    calls.write_text("")
    rows = [[row] * 15 for row in range(8)]
    assert play_together(process, shared_policies.Slow, rows) == rows
    rows_of_calls = read_calls(calls)
    assert sum(rows_of_calls) == 8 * 15
    assert np.mean(rows_of_calls) > 4


def test_a_slow_env_does_not_hold_back_the_others(process, calls):
    calls.write_text("")
    over, counts = threading.Event(), [0] * 4

    def step(row):
        policy, state = open_policy(process, shared_policies.Slow), None
        while not over.is_set():
            _, state = policy.predict({"x": np.array([[row]])}, state, np.array([state is None]))
            counts[row] += 1
            if row == 0:
                time.sleep(0.5)
                if counts[0] == 5:
                    over.set()
        policy.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(step, range(4)))
    assert min(counts[1:]) > 5 * counts[0]  # in lock-step they would be equal
    assert np.mean(read_calls(calls)) > 1.5  # and those three are still served together


def test_no_more_than_batch_are_served_together(calls, tmp_path):
    start = starter(tmp_path / "log")
    process = PolicyProcess(start, 2, None)
    calls.write_text("")
    rows = [[row] * 4 for row in range(5)]
    try:
        assert play_together(process, shared_policies.Slow, rows) == rows
    finally:
        process.close()
    assert max(read_calls(calls)) == 2 and sum(read_calls(calls)) == 20


def test_a_killed_process_is_a_crash_to_those_that_wait_and_comes_again(calls, tmp_path):
    start = starter(tmp_path / "log")
    process = PolicyProcess(start, 4, None)
    try:
        policy = open_policy(process, shared_policies.Sums)
        assert play(policy, [1, 2]) == [1, 3]
        process._process.kill()
        with pytest.raises(SimulatorCrashed, match=r"ended or stood still .*policies\.log"):
            play(policy, [1, 2])
        process._process.wait(10)
        process.watch()
        assert play(open_policy(process, shared_policies.Sums), [1, 2]) == [1, 3]
    finally:
        process.close()


def test_watching_in_many_threads_starts_one_process(tmp_path):
    started = []

    def start(*arguments):
        started.append(starter(tmp_path / "log")(*arguments))
        return started[-1]

    process = PolicyProcess(start, 2, None)
    try:
        started[0].kill()
        started[0].wait(10)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: process.watch(), range(4)))
        assert len(started) == 2
    finally:
        process.close()


# --- shipped policies: envs join and leave a batch in mid-episode

EXPERTS = {
    "metaworld-expert": ("MetaWorld-DrawerOpen", "metaworld", {}),
    "rlbench-expert": ("RLBench-ReachTarget", "rlbench-twin", {"simulator": "rlbench-twin"}),
    "calvin-expert": ("CALVIN-OpenDrawer", "calvin-twin", {"simulator": "calvin-twin"}),
    "robosuite-lift-expert": ("Robosuite-Lift", "robosuite", {}),
    "robosuite-door-expert": ("Robosuite-Door", "robosuite", {}),
}

EXPERT_PARAMS = [
    pytest.param(name, marks=(needs(extra), *[pytest.mark.slow] * (extra == "robosuite")))
    for name, (_, extra, _) in EXPERTS.items()
]


def play_staggered(policy, envs, steps, first):
    """Play env i from step `first[i]` of a batch on; return the actions of each."""
    seen, entries, played = [None] * len(envs), [None] * len(envs), [[] for _ in envs]
    for step in range(max(first) + steps):
        rows = [i for i in range(len(envs)) if first[i] <= step < first[i] + steps]
        starts = np.array([first[i] == step for i in rows])
        for i in rows:
            if first[i] == step:
                seen[i] = add_batch_axis(envs[i].reset(seed=10 + i)[0])
        observation = {
            key: np.concatenate([seen[i][key] for i in rows])
            if isinstance(value, np.ndarray)
            else tuple(seen[i][key][0] for i in rows)
            for key, value in seen[rows[0]].items()
        }
        before = [None if first[i] == step else entries[i] for i in rows]
        before = None if starts.all() else before
        actions, state = policy.predict(observation, before, starts, True)
        assert isinstance(state, list | None) and (state is None or len(state) == len(rows))
        for row, i in enumerate(rows):
            entries[i] = None if state is None else state[row]
            played[i].append(actions[row])
            seen[i] = add_batch_axis(envs[i].step(actions[row])[0])
    return np.array(played)


def compare_staggered(make, env_id, keywords, steps, tolerance=0.0):
    first = [0, 0, 3, 5]
    envs = [gym.make(f"VLA/{env_id}-v0", **keywords) for _ in first]
    policy = connect(make(), envs[0].unwrapped.spec_sheet)
    late = play_staggered(policy, envs, steps, first)
    together = play_staggered(policy, envs, steps, [0] * 4)
    np.testing.assert_allclose(late, together, atol=tolerance, rtol=0)
    for env in envs:
        env.close()
    return late


@pytest.mark.parametrize("name", EXPERT_PARAMS)
def test_an_expert_bears_envs_that_join_late(name):
    env_id, _, keywords = EXPERTS[name]
    keywords = {**keywords, "state": True, "cameras": (), "terminate_on_success": False}
    actions = compare_staggered(lambda: make_policy(name), env_id, keywords, 25)
    assert len(np.unique(actions.reshape(-1, 7), axis=0)) > 20


@pytest.mark.parametrize(
    "name", [param for param in EXPERT_PARAMS if param.values != ("calvin-expert",)]
)
def test_the_same_state_may_be_asked_again(name):
    """As is done where a batch raises; a plan of calvin-expert is a generator, and cannot."""
    env_id, _, keywords = EXPERTS[name]
    env = gym.make(f"VLA/{env_id}-v0", state=True, cameras=(), **keywords)
    policy = connect(make_policy(name), env.unwrapped.spec_sheet)
    seen, state = env.reset(seed=0)[0], None
    for step in range(12):
        arguments = add_batch_axis(seen), state, np.array([step == 0]), True
        first, _ = policy.predict(*arguments)
        actions, state = policy.predict(*arguments)
        np.testing.assert_array_equal(first, actions)
        seen = env.step(actions[0])[0]
    env.close()


@needs("vla")
def test_a_vla_bears_envs_that_join_late():
    from vla_gym_policies.vla import VLAConfig

    small = {"width": 16, "fusion_layers": 1, "flow_layers": 1, "flow_steps": 2, "chunk": 4}
    config = VLAConfig(**small, attention_heads=2, grid_size=2, vision_size=32, history=3)
    keywords = {"image_size": 32}
    policy = make_policy("vla", config=config, execute=3)
    compare_staggered(lambda: policy, "Toy-Reach", keywords, 9, tolerance=1e-5)


def test_an_env_keeps_its_seat_at_a_server_wherever_it_is_in_a_batch():
    from vla_gym_policies.remote import Memory, Seats

    seats = Seats()
    (a, b), starts = seats.read(2, None, np.array([True, True]))
    assert [a.seat.number, b.seat.number] == [0, 1] and starts.all()
    known, starts = seats.read(3, [Memory(b.seat, "left"), None, a], np.array([False, True, True]))
    assert [memory.seat.number for memory in known] == [1, 2, 0]
    assert [memory.chunks for memory in known] == ["left", (), ()]
    assert starts.tolist() == [False, True, True]
    del b, known  # its episode is over, and nobody remembers it
    (c, d), _ = seats.read(2, None, None)
    assert sorted((c.seat.number, d.seat.number)) == [1, 2]
    assert a.seat.number == 0


# --- the whole evaluation


def same_records(found, wanted):
    """Compare all but times and `batch`."""
    found, wanted = plain(found.records), plain(wanted.records)
    for record, batch in [(r, 1) for r in wanted] + [(r, 4) for r in found]:
        assert record["protocol"].pop("batch") == batch
    assert found == wanted


@pytest.fixture
def errands():
    """The ids of a suite of chains, registered while the test runs."""
    suites, ids = dict(registration._suites), dict(gym.registry)
    module = importlib.import_module("tests.evaluation.errands")
    registration.register_suite(module.SUITE)
    yield "tests.evaluation.errands:VLA/Errands-Chain-v0"
    registration._suites.clear()
    registration._suites.update({k: v for k, v in suites.items() if k != "Errands"})
    gym.registry.clear()
    gym.registry.update({k: v for k, v in ids.items() if "Errands" not in k})


def test_a_batch_gives_the_records_of_single_calls(errands, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    policies = {
        "reach": stand_ins.ReachBall,
        "chunks": shared_policies.Chunks,
        "text": shared_policies.Looks,
        "bytes": shared_policies.LooksAtBytes,
        "embedding": shared_policies.LooksAtEmbedding,
        "errands": shared_policies.ErrandsByHeart,
    }
    options = {"episodes": 4, "video": False, "skip_mismatches": True}
    ids = ["Toy-*", errands]
    alone = evaluate(policies, ids, folder=tmp_path / "a", workers=2, **options)
    together = evaluate(policies, ids, folder=tmp_path / "b", workers=4, batch=4, **options)
    same_records(together, alone)
    assert len(alone.records) == 4 * (5 * 2 + 1)
    lengths = {r.policy: set() for r in alone.records}
    for record in alone.records:
        lengths[record.policy].add((record.length, record.chain_length))
    assert len(lengths["errands"]) > 1 and len(lengths["chunks"]) > 1
    assert not list((tmp_path / "temporary").iterdir())


def test_a_temporary_folder_with_a_long_path_does_not_matter(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    process = PolicyProcess(starter(tmp_path / "log"), 2, None)
    try:
        assert play(open_policy(process, shared_policies.Sums), [1, 2]) == [1, 3]
    finally:
        process.close()
    assert not Path(process.address).parent.exists() and not list(deep.iterdir())


@pytest.mark.slow
@needs("sb3", "vla")
def test_a_network_of_stable_baselines3_and_a_vla_in_a_batch(tmp_path):
    import stable_baselines3
    import torch
    from vla_gym_policies.vla import VLAConfig

    env = gym.make(REACH, cameras=(), instruction="embedding", state=True)
    torch.manual_seed(0)
    model = stable_baselines3.SAC("MultiInputPolicy", env, buffer_size=1, seed=0)
    model.save(tmp_path / "sac.zip")
    small = {"width": 16, "fusion_layers": 1, "flow_layers": 1, "flow_steps": 2, "chunk": 4}
    config = VLAConfig(**small, attention_heads=2, grid_size=2, vision_size=32, history=2)
    make_policy("vla", config=config, execute=3).save(tmp_path / "vla")
    policies = {"sac": f"sb3:{tmp_path / 'sac.zip'}", "vla": f"vla:{tmp_path / 'vla'}"}
    options = {"episodes": 4, "video": False, "max_steps": 12}
    found = [
        evaluate(policies, ["Toy-*"], folder=tmp_path / f"{n}", workers=n, batch=n, **options)
        for n in (1, 4)
    ]
    outcomes = [[(r.key, r.outcome, r.length) for r in one.records] for one in found]
    assert outcomes[0] == outcomes[1]
    returns = [[r.episode_return for r in one.records] for one in found]
    np.testing.assert_allclose(returns[0], returns[1], atol=1e-3)
    assert len({round(x, 6) for x in returns[0]}) > 8  # they do depend on the episode


def find_policy_process(parent):
    """Return the child that writes policies.log."""
    for child in psutil.Process(parent).children():
        try:
            if os.readlink(f"/proc/{child.pid}/fd/1").endswith("policies.log"):
                return child
        except OSError:  # it has just ended
            continue
    raise AssertionError("there is no process of policies")


@pytest.mark.parametrize(
    ("how", "timeout"), [("SIGKILL", 600.0), pytest.param("SIGSTOP", 20.0, marks=pytest.mark.slow)]
)
def test_a_process_of_policies_that_breaks_costs_time_only(how, timeout, tmp_path, monkeypatch):
    policies = {"p": shared_policies.BreaksOnce}
    options = {"episodes": 6, "video": False, "workers": 3}
    alone = evaluate(policies, [REACH], folder=tmp_path / "a", **options)
    monkeypatch.setenv(shared_policies.MARKER, str(tmp_path / how))
    options |= {"batch": 4, "timeout": timeout, "retries": 2}
    found = evaluate(policies, [REACH], folder=tmp_path / "b", **options)
    assert (tmp_path / how).exists()
    assert max(r.attempts for r in found.records) == 2
    same_records(found, alone)


def test_a_policy_that_cannot_be_made_is_one_error(tmp_path):
    policies = {"p": shared_policies.CannotBeMade}
    options = {"episodes": 2, "folder": tmp_path, "workers": 2, "batch": 2}
    with pytest.raises(RuntimeError, match="the weights are in the other coat"):
        evaluate(policies, [REACH], **options)
    assert not load_records(tmp_path)
    assert "Traceback" in (tmp_path / "logs" / "policies.log").read_text()


def test_an_evaluation_that_may_not_begin_leaves_nothing_behind(tmp_path, monkeypatch):
    from vla_gym.errors import InvalidOption
    from vla_gym.evaluation.store import Store

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = {child.pid for child in psutil.Process().children()}
    with Store(tmp_path / "run"), pytest.raises(InvalidOption, match="is writing into"):
        evaluate(["zero"], [REACH], episodes=1, folder=tmp_path / "run", batch=2)
    assert {child.pid for child in psutil.Process().children()} <= before
    assert not list((tmp_path / "temporary").iterdir())


def test_the_process_of_policies_ends_with_a_killed_evaluation(tmp_path):
    command = [sys.executable, "-m", "tests.evaluation.shared_policies", str(tmp_path)]
    main = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while len(load_records(tmp_path)) < 2:
        assert main.poll() is None
        time.sleep(0.05)
    children = psutil.Process(main.pid).children()
    policies = find_policy_process(main.pid)
    policies.suspend()  # it could not end by itself
    main.kill()
    main.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_mismatch_is_told_by_the_policy_itself(tmp_path):
    """`for_env` runs in the other process; what it raises says why all the same."""
    check_needs("robosuite")
    with pytest.raises(ContractMismatch, match="robosuite-lift-expert solves VLA/Robosuite-Lift"):
        evaluate(
            ["robosuite-lift-expert"], ["Robosuite-Stack"], episodes=1, folder=tmp_path, batch=2
        )


PLAYED = {
    "metaworld-expert": ["MetaWorld-Reach", "MetaWorld-DrawerOpen"],
    "rlbench-expert": ["RLBench-ReachTarget"],
    "calvin-expert": ["CALVIN-Chain"],
    "robosuite-lift-expert": ["Robosuite-Lift"],
}


@pytest.mark.slow
@needs("metaworld", "robosuite", "rlbench-twin", "calvin-twin")
def test_one_policy_for_tasks_of_five_suites(tmp_path):
    ids = ["Toy-Lift", *[name for names in PLAYED.values() for name in names]]
    options = {"episodes": 2, "video": False, "max_steps": 30}
    policies = {"p": shared_policies.Dances}
    alone = evaluate(policies, ids, folder=tmp_path / "a", workers=2, **options)
    together = evaluate(policies, ids, folder=tmp_path / "b", workers=4, batch=4, **options)
    same_records(together, alone)
    assert len({record.protocol["suite"] for record in alone.records}) == 5
    assert len(alone.records) == 2 * len(ids) and all(r.counts for r in alone.records)


@pytest.mark.slow
@needs("metaworld", "robosuite", "rlbench-twin", "calvin-twin")
def test_experts_of_four_suites_in_one_batched_evaluation(tmp_path):
    ids = [name for names in PLAYED.values() for name in names]
    options = {"episodes": 2, "video": False, "skip_mismatches": True}
    alone = evaluate(list(PLAYED), ids, folder=tmp_path / "a", workers=2, **options)
    together = evaluate(list(PLAYED), ids, folder=tmp_path / "b", workers=4, batch=4, **options)
    same_records(together, alone)
    assert {(r.policy, r.id) for r in alone.records} == {
        (expert, f"VLA/{name}-v0") for expert, names in PLAYED.items() for name in names
    }
    assert sum(r.outcome == "success" for r in alone.records) >= 8
    assert max(r.chain_length or 0 for r in alone.records) >= 3
