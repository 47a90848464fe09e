"""The same records on a Ray cluster as in one process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.evaluation import stand_ins
from tests.evaluation.test_evaluate import REACH, by_key, plain
from tests.support import needs
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.evaluate import evaluate

pytestmark = needs("eval", "ray")


@pytest.fixture(scope="module")
def cluster():
    """One cluster for all tests here; without one, each evaluation begins its own."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_the_records_are_those_of_one_process(cluster, tmp_path):
    policies = {"random": "random", "expert": stand_ins.ReachBall, "p": stand_ins.RaisesOnSeed2}
    ids = ["Toy-*"]
    here = evaluate(policies, ids, episodes=3, folder=tmp_path / "here")
    there = evaluate(policies, ids, episodes=3, folder=tmp_path / "ray", workers=2, ray="auto")
    assert plain(there.records) == plain(here.records)
    assert {r.video for r in there.records} == {r.video for r in here.records}
    assert {r.outcome for r in there.records} == {"success", "failure", "crashed"}


def test_a_shared_policy_for_each_actor(cluster, tmp_path):
    options = {"episodes": 4, "video": False}
    alone = evaluate({"p": stand_ins.ReachBall}, [REACH], folder=tmp_path / "a", **options)
    options |= {"workers": 2, "batch": 2, "ray": "auto"}
    shared = evaluate({"p": stand_ins.ReachBall}, [REACH], folder=tmp_path / "b", **options)
    outcomes = [[(r.outcome, r.length) for r in found.records] for found in (alone, shared)]
    assert outcomes[0] == outcomes[1]


def test_lost_actors_are_replaced_and_their_episodes_begun_again(cluster, tmp_path):
    killed = []

    def kill_an_actor(record):
        if len(killed) < 2:
            actors = [p for p in psutil.process_iter(["cmdline"]) if is_an_actor(p)]
            os.kill(actors[0].pid, signal.SIGKILL)
            killed.append(actors[0].pid)

    options = {"episodes": 12, "video": False, "workers": 2, "retries": 3}
    found = evaluate(
        ["random"], [REACH], folder=tmp_path / "a", ray="auto", on_record=kill_an_actor, **options
    )
    calm = evaluate(["random"], [REACH], folder=tmp_path / "b", **options)
    assert len(set(killed)) == 2
    assert plain(found.records) == plain(calm.records)
    assert by_key(found.records) == list(found.records)


def is_an_actor(process):
    return "ray::_Host" in " ".join(process.info["cmdline"] or ())


def test_no_cluster_is_an_error_that_says_how_to_get_one(cluster, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**options):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(InvalidOption, match="ray start --head"):
        evaluate(["random"], [REACH], episodes=1, folder=tmp_path, ray="10.0.0.1:6379")


@pytest.mark.slow
def test_a_cluster_of_its_own_ends_with_the_evaluation(tmp_path):
    script = Path(tmp_path, "own.py")
    script.write_text(
        "import sys\n"
        "from vla_gym.evaluation.evaluate import evaluate\n"
        "if __name__ == '__main__':\n"
        "    found = evaluate(['random'], ['Toy-Reach'], episodes=2, folder=sys.argv[1],"
        " ray='local', video=False)\n"
        "    print([r.outcome for r in found.records])\n"
    )
    import subprocess
    import sys

    found = subprocess.run(
        [sys.executable, script, tmp_path / "out"], capture_output=True, text=True, timeout=300
    )
    assert found.stdout.strip() == "['failure', 'failure']", found.stderr
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info)]
