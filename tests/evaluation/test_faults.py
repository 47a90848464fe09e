"""Whatever breaks, and whenever: in the end each episode is there once, as if nothing had been."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT, needs
from vla_gym.evaluation.records import TIME_FIELDS
from vla_gym.evaluation.store import load_records

pytestmark = [
    needs("eval"),
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]


def start(folder, episodes, workers, faults=None, timeout_s=4):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLA_GYM_TEST_TIMEOUT": str(timeout_s)}
    if faults is not None:
        faults.mkdir(exist_ok=True)
        environment["VLA_GYM_TEST_FAULTS"] = str(faults)
    command = [sys.executable, "-m", "tests.evaluation.faulty", str(folder)]
    return subprocess.Popen(
        [*command, str(episodes), str(workers)],
        env=environment,
        cwd=ROOT,
        # Whoever runs the tests in the background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def find_workers(parent):
    """Return the ids of the running worker processes of an evaluation."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            ppid = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_text()
        except OSError:  # no process, or one that has just ended
            continue
        if int(ppid) == parent and "vla_gym.processes" in command:
            found.append(int(folder.name))
    return found


def harass(process, rng, pause_s, share_of_main):
    """Kill and stop processes of a running evaluation until it ends; return what was done."""
    done = []
    while process.poll() is None:
        time.sleep(rng.uniform(0.5, 1.5) * pause_s)
        workers = find_workers(process.pid)
        try:
            if rng.random() < share_of_main:
                process.kill()
                done.append("main killed")
            elif workers:
                how = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP))
                os.kill(rng.choice(workers), how)
                done.append(how.name)
        except ProcessLookupError:
            continue
    return done


def rows(folder):
    left_out = {*TIME_FIELDS, "error"}
    return {
        record.key: {k: v for k, v in dataclasses.asdict(record).items() if k not in left_out}
        for record in load_records(folder)
    }


def plays_it_all(tmp_path, episodes, workers, wanted, pause_s, share_of_main):
    calm = start(tmp_path / "calm", episodes, workers)
    assert calm.wait() == 0
    rng, outside, runs = random.Random(0), [], 0
    while True:
        process = start(tmp_path / "storm", episodes, workers, tmp_path / "marks")
        outside += harass(process, rng, pause_s, share_of_main)
        runs += 1
        open_ones = episodes - sum(r.counts for r in load_records(tmp_path / "storm"))
        if process.returncode == 0 and not open_ones:
            break
        assert runs < 100, f"{open_ones} of {episodes} are still open"
    planned = [path.name for path in (tmp_path / "marks").iterdir()]
    print(f"{len(planned)} planned faults, {len(outside)} from outside, {runs} runs")
    assert len(planned) + len(outside) >= wanted
    assert len({name.rpartition("-")[2] for name in planned}) >= min(5, wanted // 3)
    assert rows(tmp_path / "storm") == rows(tmp_path / "calm")
    assert len(load_records(tmp_path / "storm")) == episodes
    assert {record.outcome for record in load_records(tmp_path / "calm")} == {"success", "failure"}


def test_a_storm_of_faults_changes_nothing(tmp_path):
    plays_it_all(tmp_path, episodes=60, workers=2, wanted=8, pause_s=2.5, share_of_main=0.3)


@pytest.mark.slow
def test_two_hundred_faults_in_a_thousand_episodes_change_nothing(tmp_path):
    plays_it_all(tmp_path, episodes=1000, workers=4, wanted=200, pause_s=3.0, share_of_main=0.15)


def test_workers_end_with_a_killed_evaluation_even_those_that_hang(tmp_path):
    (tmp_path / "marks").mkdir()
    process = start(tmp_path / "run", 60, 2, tmp_path / "marks", timeout_s=600)
    deadline = time.monotonic() + 120
    while not any("hang" in path.name for path in (tmp_path / "marks").iterdir()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    workers = find_workers(process.pid)
    assert workers
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_evaluation_may_begin_as_soon_as_the_first_is_killed(tmp_path):
    process = start(tmp_path / "run", 5000, 1)
    while len(load_records(tmp_path / "run")) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = len(load_records(tmp_path / "run"))
    assert start(tmp_path / "run", before + 5, 1).wait() == 0
    assert len(load_records(tmp_path / "run")) == before + 5


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    process = start(tmp_path / "run", 5000, 2)
    while len(load_records(tmp_path / "run")) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) != 0
    kept = load_records(tmp_path / "run")
    assert 3 <= len(kept) < 5000 and all(record.counts for record in kept)
