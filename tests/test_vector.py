"""Vector envs that mix tasks, suites and interpreters, and ours beside Gymnasium's."""

from __future__ import annotations

import functools
import gc
import os
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

import vla_gym
from tests.evaluation.stand_ins import find_simulators
from tests.support import ROOT, needs
from vla_gym import make_vec
from vla_gym.errors import (
    InvalidAction,
    InvalidOption,
    ResetNeeded,
    SimulatorCrashed,
    UnknownName,
)
from vla_gym.processes import count_cores
from vla_gym.vector import VLAVectorEnv

REACH, LIFT = "VLA/Toy-Reach-v0", "VLA/Toy-Lift-v0"
SMALL = {"cameras": ("primary",), "image_size": 8}


TINY = {"cameras": ("primary",), "image_size": 4}
MODES = list(AutoresetMode)


def find_workers(envs):
    """Return the process ids of the workers of a vector env, none if it has no processes."""
    return [worker.pid for worker in getattr(envs, "_workers", ()) if hasattr(worker, "pid")]


@pytest.fixture(params=["process", "thread", "async", "sync"])
def mixed(request):
    """Two tasks, one of them in another interpreter as well."""
    specs = [REACH, (LIFT, {"reward": "sparse"}), (LIFT, {"python": sys.executable})]
    envs = make_vec(specs, vectorization_mode=request.param, **SMALL)
    yield envs
    envs.close()


def test_each_env_is_the_one_that_was_asked_for(mixed):
    observation, info = mixed.reset(seed=[3, 4, 5])
    assert mixed.num_envs == 3
    assert observation["rgb_primary"].shape == (3, 8, 8, 3)
    assert list(info["task"]) == ["Reach", "Lift", "Lift"]
    assert (
        observation["instruction"]
        == ("move the gripper to the green ball",) + ("lift the red cube",) * 2
    )
    actions = np.zeros((3, 7), np.float32)
    stepped, rewards, *_ = mixed.step(actions)
    for i, (env_id, keywords) in enumerate([(REACH, {}), (LIFT, {"reward": "sparse"}), (LIFT, {})]):
        env = gym.make(env_id, **SMALL, **keywords)
        env.reset(seed=3 + i)
        one, reward, *_ = env.step(actions[i])
        assert rewards[i] == reward
        np.testing.assert_array_equal(stepped["rgb_primary"][i], one["rgb_primary"])
        np.testing.assert_array_equal(stepped["proprio"][i], one["proprio"])


@pytest.mark.parametrize("kind", ["process", "thread", "sync"])
def test_a_killed_simulator_ends_one_episode_of_a_vector_env(kind):
    envs = make_vec(
        [REACH, (LIFT, {"python": sys.executable, "on_crash": "restart"})],
        vectorization_mode=kind,
        **({} if kind == "sync" else {"workers": 1}),
        **SMALL,
    )
    envs.reset(seed=0)
    actions = np.zeros((2, 7), np.float32)
    envs.step(actions)
    (owner,) = find_workers(envs) or [os.getpid()]
    (simulator,) = find_simulators(owner)
    os.kill(simulator, signal.SIGKILL)
    _, rewards, terminated, truncated, info = envs.step(actions)
    assert list(truncated) == [False, True] and not terminated.any() and rewards[1] == 0.0
    assert list(info["crashed"]) == [False, True]
    for _ in range(3):  # the first of them is the reset of the second env
        *_, truncated, info = envs.step(actions)
        assert not truncated.any() and "crashed" not in info
    envs.close()
    assert find_simulators(owner) == []


@needs("metaworld")
@pytest.mark.slow
def test_suites_may_be_mixed():
    envs = make_vec(["VLA/MetaWorld-Reach-v0", REACH], cameras=(), instruction="bytes")
    _, info = envs.reset(seed=0)
    assert list(info["suite"]) == ["MetaWorld", "Toy"]
    envs.step(np.zeros((2, 7), np.float32))
    envs.close()


def test_spaces_that_differ_are_named_with_their_envs():
    with pytest.raises(InvalidOption) as caught:
        make_vec([REACH, LIFT, (LIFT, {"state": True, "action_mode": "native"})], **SMALL)
    text = str(caught.value)
    assert f"{REACH} (number 0) and {LIFT} (number 2) differ in action: Box(-1.0, 1.0, (7,)" in text
    assert "observation 'state': none and Box(-inf, inf, (10,), float64)" in text
    assert "proprio'" not in text


@pytest.mark.parametrize("specs", [[], REACH])
def test_it_takes_a_list_of_at_least_one(specs):
    with pytest.raises(InvalidOption, match="must be a list of at least one id"):
        make_vec(specs)


def test_an_unknown_mode_or_option_is_refused():
    with pytest.raises(UnknownName, match=r"no vectorization_mode 'asinc'.*'async'"):
        make_vec([REACH], vectorization_mode="asinc")
    with pytest.raises(UnknownName, match="camera 'primry'"):
        make_vec([REACH], cameras=("primry",))


def test_what_the_vector_env_takes_is_passed_on():
    options = {"context": "fork", "shared_memory": False}
    envs = make_vec([REACH], vectorization_mode="async", vector_kwargs=options, **SMALL)
    observation, _ = envs.reset(seed=0)
    assert observation["instruction"] == ("move the gripper to the green ball",)
    envs.close()
    assert "make_vec" in vla_gym.__all__


def assert_same(one, other, where="result"):
    """Compare what two vector envs return: values, types, dtypes, keys, and infos within infos."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and one.shape == other.shape, where
        if one.dtype != object:
            np.testing.assert_array_equal(one, other, where)
        else:
            for i, (left, right) in enumerate(zip(one, other, strict=True)):
                assert_same(left, right, f"{where}[{i}]")
    elif isinstance(one, tuple | list):
        assert len(one) == len(other), where
        for i, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}[{i}]")
    else:
        assert one == other, where


def play_both(ours, theirs, steps, seed, options=None):
    """Play both with the same random actions and compare all that they return; both get closed."""
    random = np.random.default_rng(0)
    disabled = ours.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    ends = 0
    try:
        assert ours.metadata == theirs.metadata
        for space in ("observation_space", "single_observation_space"):
            assert getattr(ours, space) == getattr(theirs, space)
        assert ours.action_space == theirs.action_space
        assert_same(*(envs.reset(seed=seed, options=options) for envs in (ours, theirs)))
        for _ in range(steps):
            actions = random.uniform(-1, 1, theirs.action_space.shape)  # float64: it goes as it is
            results = [envs.step(actions) for envs in (ours, theirs)]
            assert_same(*results)
            ended = results[0][2] | results[0][3]
            ends += ended.sum()
            if disabled and ended.any():
                # A mask for each: Gymnasium takes it out of the caller's options.
                assert_same(
                    *(e.reset(options={"reset_mask": ended.copy()}) for e in (ours, theirs))
                )
        assert_same(ours.get_attr("np_random_seed"), theirs.get_attr("np_random_seed"))
        return ends
    finally:
        ours.close()
        theirs.close()


def make_both(makers, **options):
    theirs = {"autoreset_mode": options["autoreset_mode"]}
    return VLAVectorEnv(makers, **options), SyncVectorEnv(makers, **theirs)


def draw_makers(horizons):
    """Toy envs of both tasks, with horizons of their own, so that they end at different steps."""
    return [
        functools.partial(
            gym.make, (REACH, LIFT)[i % 2], max_episode_steps=horizon, paraphrase=True, **TINY
        )
        for i, horizon in enumerate(horizons)
    ]


def play_with_pictures(ids, quality, kind):
    """Compare a vector env of simulators that draw; print how many episodes ended."""
    twin = {"simulator": "rlbench-twin"} if "RLBench" in ids[0] else {}
    makers = [
        functools.partial(
            gym.make,
            env_id,
            image_size=32,
            render_quality=quality,
            max_episode_steps=2 + i,
            state=True,
            **twin,
        )
        for i, env_id in enumerate([*ids, ids[0]])
    ]
    ours, theirs = make_both(makers, workers=2, kind=kind, autoreset_mode=AutoresetMode.SAME_STEP)
    print(play_both(ours, theirs, 4, 0))


class TestLikeGymnasium:
    """The same observations, rewards, ends and infos as `SyncVectorEnv`, bit for bit."""

    @pytest.mark.parametrize(("kind", "examples"), [("process", 12), ("thread", 40)])
    def test_of_toy_envs(self, kind, examples):
        @settings(max_examples=examples, deadline=None)
        @given(
            horizons=st.lists(st.integers(1, 5), min_size=1, max_size=5),
            workers=st.integers(1, 3),
            mode=st.sampled_from(MODES),
            seed=st.one_of(st.none(), st.integers(0, 2**31 - 10)),
            copy=st.booleans(),
        )
        def check(horizons, workers, mode, seed, copy):
            seeds = list(range(len(horizons))) if seed is None else seed
            ours, theirs = make_both(
                draw_makers(horizons),
                workers=min(workers, len(horizons)),
                kind=kind,
                autoreset_mode=mode,
                copy=copy,
            )
            assert play_both(ours, theirs, 7, seeds) >= 1

        check()

    @pytest.mark.parametrize("kind", ["process", "thread"])
    @pytest.mark.parametrize("form", ["bytes", "embedding"])
    def test_of_the_other_forms_of_an_instruction_and_of_options(self, kind, form):
        makers = [
            functools.partial(
                gym.make, REACH, instruction=form, state=True, terminate_on_success=True, **TINY
            )
        ] * 3
        options = {"goal": [0.0, 0.0, 0.3]}  # where the gripper starts: solved at once
        ours, theirs = make_both(
            makers, workers=2, kind=kind, autoreset_mode=AutoresetMode.SAME_STEP
        )
        assert play_both(ours, theirs, 3, 1, options) >= 3

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["process", "thread"])
    @pytest.mark.parametrize(
        ("ids", "quality"),
        [
            pytest.param(
                ["VLA/MetaWorld-Reach-v0", "VLA/MetaWorld-DrawerOpen-v0"],
                "exact",
                marks=needs("metaworld"),
            ),
            pytest.param(
                ["VLA/RLBench-ReachTarget-v0", "VLA/RLBench-OpenDrawer-v0"],
                "fast",
                marks=needs("rlbench-twin"),
            ),
        ],
    )
    def test_of_simulators_with_pictures(self, ids, quality, kind):
        # In a program of its own, whose linear algebra has as many threads as that of the workers:
        # here a plug-in may have loaded numpy before conftest.py sets that number.
        call = f"play_with_pictures({ids!r}, {quality!r}, {kind!r})"
        program = f"from tests.test_vector import play_with_pictures\n{call}"
        result = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr
        assert int(result.stdout) >= 3

    def test_infos_of_any_kind(self):
        scalars = st.sampled_from(
            [True, 2, 2.5, "a", None, np.float32(1.5), np.bool_(True), (1, 2)]
        )
        values = st.one_of(scalars, st.just(np.arange(3)), st.dictionaries(st.just("k"), scalars))
        envs = VLAVectorEnv(draw_makers([1, 1, 1]), kind="thread")

        @settings(max_examples=300, deadline=None)
        @given(
            kinds=st.dictionaries(st.sampled_from("xyz"), values),
            lack=st.lists(st.sets(st.sampled_from("xyz")), min_size=3, max_size=3),
        )
        def check(kinds, lack):
            infos = [{k: v for k, v in kinds.items() if k not in without} for without in lack]
            expected = {}
            for i, info in enumerate(infos):
                expected = envs._add_info(expected, info, i)
            assert_same(envs._stack(infos), expected)

        check()
        envs.close()


@pytest.fixture(params=["process", "thread"])
def pair(request):
    envs = VLAVectorEnv(draw_makers([3, 100]), kind=request.param, workers=2)
    yield envs
    envs.close()


NOTHING = np.zeros((2, 7), np.float32)


def test_observations_are_copies_by_default_and_views_if_asked(pair):
    first, _ = pair.reset(seed=0)
    kept = {key: np.copy(value) for key, value in first.items()}
    second, *_ = pair.step(NOTHING + 1)
    assert_same({k: np.copy(v) for k, v in first.items()}, kept)
    assert not np.array_equal(first["proprio"], second["proprio"])
    assert not any(np.shares_memory(first[k], second[k]) for k in ("proprio", "rgb_primary"))
    pair.copy = False
    first, _ = pair.reset(seed=0)
    second, *_ = pair.step(NOTHING + 1)
    np.testing.assert_array_equal(first["proprio"], second["proprio"])
    assert np.shares_memory(first["proprio"], second["proprio"])


def test_an_error_has_its_type_and_the_number_of_its_env(pair):
    pair.reset(seed=0)
    actions = NOTHING.copy()
    actions[1, 2] = np.nan
    with pytest.raises(InvalidAction, match=r"dz \(entry 2\) is nan") as caught:
        pair.step(actions)
    assert caught.value.__notes__[0] == "in env 1 of the vector env"
    assert "check_action" in caught.value.__notes__[1]  # where it was raised
    with pytest.raises(UnknownName, match=r"reset option 'gaol'.*Did you mean 'goal'") as caught:
        pair.reset(options={"gaol": 1})
    assert caught.value.kind == "reset option" and caught.value.asked == "gaol"
    observation, _ = pair.reset(seed=0)  # it goes on
    assert len(observation["instruction"]) == 2


class Cat(Exception):
    def __init__(self, paws, keyboard):
        super().__init__(f"{paws} paws on {keyboard}")


def walk():
    raise Cat(4, "the keyboard")


def test_an_error_that_cannot_travel_keeps_its_words():
    envs = VLAVectorEnv(draw_makers([3]), workers=1)
    envs.set_attr("walk", walk)
    with pytest.raises(RuntimeError, match="Cat: 4 paws on the keyboard"):
        envs.call("walk")
    envs.set_attr("walk", lambda: (i for i in ()))
    with pytest.raises(RuntimeError, match="cannot be sent to another process"):
        envs.call("walk")
    envs.close()


def test_an_env_that_cannot_be_made_leaves_nothing_behind():
    parent = os.getpid()

    def make_in_worker():
        if os.getpid() != parent:
            raise Cat(2, "the table")
        return gym.make(REACH, **TINY)

    before = find_children()
    with pytest.raises(RuntimeError, match="Cat: 2 paws") as caught:
        VLAVectorEnv([functools.partial(gym.make, REACH, **TINY), make_in_worker], workers=2)
    assert caught.value.__notes__[0] == "in env 1 of the vector env"
    assert find_children() == before


def test_attributes_and_methods_reach_every_env(pair):
    pair.reset(seed=5)
    assert pair.get_attr("np_random_seed") == pair.np_random_seed == (5, 6)
    assert [sheet.task for sheet in pair.get_attr("spec_sheet")] == ["Reach", "Lift"]
    pair.set_attr("colour", ["red", "blue"])
    assert pair.call("colour") == ("red", "blue")
    pair.set_attr("colour", "green")
    assert pair.get_attr("colour") == ("green", "green")
    pictures = pair.call("render_camera", "top", size=6)
    assert [picture.shape for picture in pictures] == [(6, 6, 3)] * 2
    with pytest.raises(InvalidOption, match="3 values for 2 envs"):
        pair.set_attr("colour", [1, 2, 3])
    with pytest.raises(AttributeError, match="nonsense"):
        pair.get_attr("nonsense")


def test_steps_may_be_started_and_awaited(pair):
    pair.reset(seed=0)
    with pytest.raises(NoAsyncCallError):
        pair.step_wait()
    pair.step_async(NOTHING)
    for call in (pair.reset, lambda: pair.step(NOTHING), lambda: pair.call("spec_sheet")):
        with pytest.raises(AlreadyPendingCallError):
            call()
    _, rewards, *_ = pair.step_wait()
    assert rewards.shape == (2,) and (rewards < 0).all()


def test_what_is_asked_wrongly_is_refused(pair):
    pair.reset(seed=0)
    with pytest.raises(InvalidAction, match="3 actions for 2 envs"):
        pair.step(np.zeros((3, 7), np.float32))
    with pytest.raises(InvalidOption, match="3 seeds for 2 envs"):
        pair.reset(seed=[1, 2, 3])
    masks = [[True, False], np.ones(3, bool), np.ones(2, int)]
    for mask in masks:
        with pytest.raises(InvalidOption, match="must be an array of 2 bools"):
            pair.reset(options={"reset_mask": mask})
    with pytest.raises(InvalidOption, match="False for all envs"):
        pair.reset(options={"reset_mask": np.zeros(2, bool)})
    with pytest.raises(InvalidOption, match=r"workers=3 must be in \[1, 2\]"):
        VLAVectorEnv(draw_makers([1, 1]), workers=3)
    with pytest.raises(UnknownName, match=r"autoreset_mode 'Never'.*'NextStep'"):
        VLAVectorEnv(draw_makers([1]), autoreset_mode="Never")
    with pytest.raises(UnknownName, match="kind of worker 'proces'"):
        VLAVectorEnv(draw_makers([1]), kind="proces")
    with pytest.raises(InvalidOption, match="vector_kwargs"):
        make_vec([REACH], vector_kwargs={"context": "fork"})
    with pytest.raises(InvalidOption, match="workers=2"):
        make_vec([REACH] * 2, vectorization_mode="sync", workers=2)


def test_without_autoreset_an_ended_env_needs_a_reset():
    envs = make_vec([REACH] * 2, autoreset_mode="Disabled", max_episode_steps=1, workers=1, **TINY)
    envs.reset(seed=0)
    options = {"reset_mask": np.array([True, False])}
    *_, truncated, _ = envs.step(NOTHING)
    assert truncated.all()
    envs.reset(options=options)
    assert list(options) == ["reset_mask"]  # the caller's options stay as they are
    with pytest.raises(ResetNeeded, match="autoreset is disabled") as caught:
        envs.step(NOTHING)
    assert caught.value.__notes__[0] == "in env 1 of the vector env"
    envs.close()


def test_a_killed_worker_is_a_crash_and_a_reset_starts_a_fresh_one():
    envs = VLAVectorEnv(draw_makers([9, 9, 9]), workers=3)
    envs.reset(seed=0)
    before = find_workers(envs)
    os.kill(before[1], signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(SimulatorCrashed, match=r"env 1 was killed by SIGKILL.*reset\(\)"):
            envs.step(np.zeros((3, 7), np.float32))
    observation, _ = envs.reset(seed=0)
    after = find_workers(envs)
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]
    expected, _ = SyncVectorEnv(draw_makers([9, 9, 9])).reset(seed=0)
    assert_same(observation, expected)
    envs.step(np.zeros((3, 7), np.float32))
    envs.close()
    assert not any(is_running(pid) for pid in before + after)


def is_running(pid):
    """Return whether a process runs; a zombie, which nobody has waited for, counts too."""
    return Path(f"/proc/{pid}").exists()


def find_children():
    """Return the children of this process, zombies as well, but multiprocessing's tracker."""
    tracker = getattr(resource_tracker._resource_tracker, "_pid")  # noqa: B009  typeshed has it not
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in children} - {tracker}


@pytest.mark.parametrize("how", ["close", "garbage"])
def test_closing_leaves_no_process_memory_or_descriptor(how):
    gc.collect()
    shared = sorted(os.listdir("/dev/shm"))
    children, files = find_children(), len(os.listdir("/proc/self/fd"))
    envs = make_vec([REACH] * 2, workers=2, **SMALL)
    observation, _ = envs.reset(seed=0)
    assert len(find_children() - children) == 2
    assert sorted(os.listdir("/dev/shm")) == shared  # it has no name
    if how == "close":
        envs.close()
        envs.close()
        with pytest.raises(ClosedEnvironmentError):
            envs.step(NOTHING)
    else:
        del envs
        gc.collect()
    assert find_children() == children
    assert len(os.listdir("/proc/self/fd")) == files
    assert observation["rgb_primary"].any()  # what the caller has stays


PROGRAM = """
import numpy as np
import vla_gym

envs = vla_gym.make_vec(["VLA/Toy-Reach-v0"] * 2, workers=2, cameras=())
envs.reset(seed=0)
envs.step(np.zeros((2, 7), np.float32))
print(*[worker.pid for worker in envs._workers], flush=True)
"""


@pytest.mark.parametrize("end", ["", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_program_needs_no_main_guard_and_leaves_no_process_however_it_ends(end, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + end)
    result = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == (-signal.SIGKILL if end else 0), result.stderr
    assert result.stderr == ""
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker has outlived its program"
        time.sleep(0.05)


SUITE = """
import dataclasses

from vla_gym import register_suite
from vla_gym.suites.toy import SUITE, ToySimulator


class Mine(ToySimulator):
    pass


info = dataclasses.replace(SUITE.simulators[0], name="mine", entry_point=f"{__name__}:Mine")
register_suite(dataclasses.replace(SUITE, name="Mine", simulators=(info,)))
"""


def test_a_suite_of_ones_own_reaches_the_workers(tmp_path, monkeypatch):
    (tmp_path / "suite_of_mine.py").write_text(SUITE)
    monkeypatch.syspath_prepend(tmp_path)
    import suite_of_mine  # noqa: F401  # pyright: ignore[reportMissingImports]  # written above

    try:
        envs = make_vec(["VLA/Mine-Reach-v0"] * 2, workers=2, **TINY)
        _, info = envs.reset(seed=0)
        assert list(info["simulator"]) == ["mine", "mine"]
        envs.close()
    finally:
        from vla_gym import registration

        suite = registration._suites.pop("Mine")
        for task in suite.tasks:
            del gym.registry[suite.id(task)]


def test_workers_share_the_cores_and_the_envs_evenly(monkeypatch):
    monkeypatch.setattr("vla_gym.vector.env.count_cores", lambda: 2)
    numbers = {1: 1, 2: 2, 3: 3, 4: 2, 5: 5, 8: 2, 9: 3}
    for num_envs, workers in numbers.items():
        envs = VLAVectorEnv(draw_makers([1] * num_envs), kind="thread")
        assert len(envs._workers) == workers
        assert len({part.stop - part.start for part in envs._slices}) == 1
        envs.close()
    assert count_cores() == len(os.sched_getaffinity(0))


def test_threads_that_draw_are_limited_in_workers_alone(monkeypatch):
    monkeypatch.setattr("vla_gym.processes.count_cores", lambda: 5)
    for workers, asked, threads in [(1, None, 5), (2, None, 2), (3, None, 0), (3, "4", 4)]:
        monkeypatch.delenv("LP_NUM_THREADS", raising=False)
        if asked is not None:  # the user's own stays
            monkeypatch.setenv("LP_NUM_THREADS", asked)
        envs = VLAVectorEnv(draw_makers([1] * workers), workers=workers)
        variables = Path(f"/proc/{find_workers(envs)[0]}/environ").read_text().split("\0")
        envs.close()
        assert f"LP_NUM_THREADS={threads}" in variables
        assert os.environ.get("LP_NUM_THREADS") == asked
        assert {v for v in variables if "BLAS" in v} == {
            f"{name}={value}" for name, value in os.environ.items() if "BLAS" in name
        }
