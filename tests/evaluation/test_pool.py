"""Who plays what next, what is begun again, and what a worker's end is called."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.jobs import Errand
from vla_gym.errors import (
    ContractMismatch,
    DependencyNotInstalled,
    InvalidAction,
    InvalidOption,
    SimulatorCrashed,
    UnknownName,
)
from vla_gym.evaluation.pool import Pool
from vla_gym.evaluation.stage import Died, Failed, Pair, TimedOut
from vla_gym.evaluation.workers import LocalWorkers


@functools.cache
def pair(name):
    """Return the pair of `"policy task"`."""
    policy, task = name.split()
    return Pair(policy, policy, task)


def errands(name, count=1):
    return [Errand(pair(name), number) for number in range(count)]


class Desk:
    """Workers in this process: who is waited for answers in an order that the test decides.

    Args:
        answers: maps a job and how often it was begun before to its answer.
        choose: of how many busy workers, which one answers next.
    """

    def __init__(self, answers=lambda job, times: job.number, choose=lambda number: 0):
        self.answers, self.choose = answers, choose
        self.given = []  # (slot, job) in the order in which they were begun
        self.workers, self.closed = [], False

    def start(self, slot):
        assert all(w.slot != slot or w.ended for w in self.workers), "the last one still works"
        self.workers.append(Clerk(self, slot))
        return self.workers[-1]

    def wait(self, workers):
        assert workers and all(w.job is not None for w in workers)
        return [workers[self.choose(len(workers))]]

    def close(self):
        assert all(worker.ended for worker in self.workers)
        self.closed = True


class Clerk:
    def __init__(self, desk, slot):
        self.desk, self.slot = desk, slot
        self.job = self.pair = None
        self.ended = False

    def alive(self):
        return not self.ended

    def give(self, job):
        assert self.job is None and not self.ended
        self.job, self.pair = job, job.pair
        self.times = sum(job is other for _, other in self.desk.given)
        self.desk.given.append((self.slot, job))

    def take(self):
        job, self.job = self.job, None
        answer = self.desk.answers(job, self.times)
        self.ended = isinstance(answer, Died | TimedOut)
        return answer

    def stop(self):
        self.ended = True


def play(desk, jobs, number, retries=0):
    with Pool(desk, number, retries) as pool:
        return list(pool.run(jobs))


def test_a_worker_keeps_to_its_pair_then_to_its_policy():
    desk = Desk()
    jobs = [*errands("a reach", 2), *errands("b reach", 3), *errands("a push"), *errands("b push")]
    play(desk, jobs, 1)
    order = [f"{job.pair.policy} {job.pair.id}" for _, job in desk.given]
    assert order == ["b reach"] * 3 + ["b push"] + ["a reach"] * 2 + ["a push"]


def test_workers_spread_over_the_pairs_by_the_work_that_each_has():
    desk = Desk()
    with Pool(desk, 4) as pool:
        running = pool.run([*errands("a reach", 9), *errands("b reach", 4)])
        next(running)
        first = [job.pair.policy for _, job in desk.given[:4]]
        running.close()
    assert first == ["a", "a", "b", "a"]  # 9 > 4; 8 / 2 >= 4; 7 / 3 < 4; 7 / 3 > 3 / 2


def test_the_next_job_has_begun_before_the_caller_hears_of_the_last():
    desk = Desk()
    with Pool(desk, 2) as pool:
        for heard, _ in enumerate(pool.run(errands("a reach", 5)), start=1):
            assert len(desk.given) == min(heard + 2, 5)


KINDS = {
    "answer": None,
    "raise": Failed(RuntimeError("oh"), "oh"),
    "crash": Failed(SimulatorCrashed("oh"), "oh"),
    "die": Died("oh"),
    "hang": TimedOut("oh"),
    "refuse": Failed(InvalidOption("oh"), "oh"),
}


@given(
    plans=st.lists(
        st.tuples(
            st.sampled_from(["a x", "a y", "b x"]),
            st.lists(st.sampled_from(["raise", "crash", "die", "hang"]), max_size=4),
            st.sampled_from(["answer", "refuse"]),
        ),
        max_size=12,
    ),
    number=st.integers(1, 4),
    retries=st.integers(0, 3),
    draws=st.randoms(use_true_random=False),
)
def test_each_job_ends_once_with_its_last_answer(plans, number, retries, draws):
    jobs = [Errand(pair(name), i) for i, (name, _, _) in enumerate(plans)]
    ways = [[*bad, last] for _, bad, last in plans]

    def answer(job, times):
        kind = ways[job.number][times]
        return job.number if kind == "answer" else KINDS[kind]

    desk = Desk(answer, draws.randrange)
    found = play(desk, jobs, number, retries)
    assert desk.closed
    assert sorted(f.job.number for f in found) == list(range(len(jobs)))
    assert {slot for slot, _ in desk.given} <= set(range(number))
    for finished in found:
        way = ways[finished.job.number]
        assert finished.attempts == min(len(way), retries + 1)
        assert finished.attempts == sum(job is finished.job for _, job in desk.given)
        kind = way[finished.attempts - 1]
        wanted = finished.job.number if kind == "answer" else KINDS[kind]
        assert finished.answer == wanted


@pytest.mark.parametrize(
    "error",
    [
        InvalidOption("no"),
        InvalidAction("nan"),
        ContractMismatch("no"),
        DependencyNotInstalled("no"),
        UnknownName("task", "x", ["y"]),
    ],
)
def test_what_the_caller_got_wrong_is_not_tried_again(error):
    (found,) = play(Desk(lambda job, times: Failed(error, "")), errands("a x"), 1, retries=5)
    assert found.attempts == 1 and found.answer.error is error


def test_a_worker_that_died_while_idle_is_replaced():
    desk = Desk()
    with Pool(desk, 1) as pool:
        assert len(list(pool.run(errands("a x", 2)))) == 2
        desk.workers[0].ended = True
        assert [f.answer for f in pool.run(errands("a x", 2))] == [0, 1]
    assert len(desk.workers) == 2


def test_all_is_ended_if_the_caller_stops_halfway():
    desk = Desk()
    with pytest.raises(KeyboardInterrupt), Pool(desk, 3) as pool:
        for _ in pool.run(errands("a x", 9)):
            raise KeyboardInterrupt
    assert desk.closed and all(worker.ended for worker in desk.workers)


def test_nothing_to_do_starts_nobody():
    desk = Desk()
    assert play(desk, [], 3) == [] and not desk.workers and desk.closed


def test_how_processes_end(tmp_path):
    """The real ones. `work` takes longer than the timeout, but shows signs of life."""
    ways = ["answer", "raise", "refuse", "exit", "kill", "hang", "work", "answer"]
    jobs = [Errand(pair("a x"), number, how) for number, how in enumerate(ways)]
    with Pool(LocalWorkers(tmp_path, 3, timeout=5.0), 3, retries=0) as pool:
        found = {finished.job.number: finished.answer for finished in pool.run(jobs)}
    assert (found[0], found[6], found[7]) == (0, 6, 7)
    assert isinstance(found[1], Failed) and found[1].text == "RuntimeError: the job raised"
    assert isinstance(found[2].error, InvalidOption)
    assert isinstance(found[3], Died) and "exit code 3 (see worker-" in found[3].text
    assert isinstance(found[4], Died) and "killed by SIGKILL, perhaps for want" in found[4].text
    assert isinstance(found[5], TimedOut) and "no step for 5 s: its process" in found[5].text
