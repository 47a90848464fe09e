"""The long-horizon protocol from end to end, on a suite of somebody else."""

from __future__ import annotations

import csv
import dataclasses
import importlib

import gymnasium as gym
import numpy as np
import pytest

from tests.evaluation.test_evaluate import plain
from tests.support import needs
from vla_gym import registration
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.evaluate import evaluate
from vla_gym.evaluation.metrics import summarize_chains
from vla_gym.evaluation.report import DASH, write_report
from vla_gym.evaluation.store import Store, load_records
from vla_gym.rollout import run_episode

pytestmark = needs("eval")

ID = "VLA/Errands-Chain-v0"
IMPORTED = f"tests.evaluation.errands:{ID}"


@pytest.fixture(scope="module")
def errands():
    """The module of the suite, which is registered until the tests of this file have ended."""
    suites, ids = dict(registration._suites), dict(gym.registry)
    module = importlib.import_module("tests.evaluation.errands")
    registration.register_suite(module.SUITE)
    yield module
    registration._suites.clear()
    registration._suites.update({k: v for k, v in suites.items() if k != "Errands"})
    gym.registry.clear()
    gym.registry.update({k: v for k, v in ids.items() if k != ID})


@pytest.fixture(scope="module")
def played(errands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("errands")
    policies = {"boy": errands.Boy, "idle": errands.IdleBoy}
    return evaluate(policies, [IMPORTED], episodes=12, seed=4, folder=folder)


def of(policy, found):
    return [record for record in found.records if record.policy == policy]


def test_an_episode_plays_the_chain_of_its_seed_and_says_how_far_it_came(played):
    chains = [seed % 10 for seed in range(4, 16)]
    assert [record.options for record in of("boy", played)] == [{"chain": k} for k in chains]
    lengths = [record.chain_length for record in of("boy", played)]
    assert lengths == [None if k == 9 else k % 6 for k in chains]
    outcomes = {k: record.outcome for k, record in zip(chains, of("boy", played), strict=True)}
    assert outcomes[9] == "crashed"
    assert [k for k, outcome in outcomes.items() if outcome == "success"] == [5]
    assert {r.chain_length for r in of("idle", played)} == {0, None}
    on_disk = {record.key: record for record in load_records(played.folder)}
    assert on_disk == {record.key: record for record in played.records}


def test_its_numbers_are_those_of_the_lengths(played):
    boy, idle = summarize_chains(played.records)
    # Chains 4 5 6 7 8 0 1 2 3 4 5: lengths 4 5 0 1 2 0 1 2 3 4 5, 27 in all.
    assert (boy.n, boy.crashed) == (11, 1)
    assert boy.rates == pytest.approx((9 / 11, 7 / 11, 5 / 11, 4 / 11, 2 / 11))
    assert boy.mean_length == pytest.approx(27 / 11)
    assert idle.rates == (0, 0, 0, 0, 0) and idle.length_interval == (0, 0)


def test_the_records_do_not_depend_on_the_number_of_workers(errands, played, tmp_path):
    policies = {"boy": errands.Boy, "idle": errands.IdleBoy}
    options = {"episodes": 12, "seed": 4, "workers": 2, "video": False}
    again = evaluate(policies, [IMPORTED], folder=tmp_path, **options)
    assert plain(again.records) == plain(played.records)
    # On the disk they lie in the order in which two processes ended them.
    stored, returned = (
        sorted(summarize_chains(records), key=lambda summary: summary.policy)
        for records in (load_records(tmp_path), again.records)
    )
    assert stored == returned


def test_more_chains_go_on_from_those_that_are_there(errands, tmp_path):
    def run(episodes, seed):
        fresh = []
        options = {"episodes": episodes, "seed": seed, "video": False}
        take = lambda record: fresh.append(record.options["chain"])  # noqa: E731
        evaluate({"boy": errands.Boy}, [IMPORTED], folder=tmp_path, on_record=take, **options)
        return fresh

    assert run(2, seed=0) == [0, 1]
    assert run(4, seed=0) == [2, 3]
    assert run(2, seed=6) == [6, 7]
    assert run(8, seed=0) == [4, 5]


def test_episodes_of_other_options_are_not_mixed(errands, tmp_path):
    def run():
        return evaluate({"boy": errands.Boy}, [IMPORTED], episodes=3, folder=tmp_path, video=False)

    run()
    other = dataclasses.replace(errands.SUITE, protocol_options=lambda task, seed: {"chain": 5})
    registration.register_suite(other)
    try:
        with pytest.raises(InvalidOption, match=r"reset options: \{'chain': 0\} then, .*5\} now"):
            run()
        unset = dataclasses.replace(errands.SUITE, protocol_options=None)
        registration.register_suite(unset)
        with pytest.raises(InvalidOption, match=r"reset options: \{'chain': 0\} then, \{\} now"):
            run()
    finally:
        registration.register_suite(errands.SUITE)


@pytest.mark.parametrize("value", [np.zeros(2), (0, 1), {1: 2}])
def test_options_that_a_record_cannot_hold_stop_it_before_the_first_episode(
    value, errands, tmp_path
):
    odd = dataclasses.replace(errands.SUITE, protocol_options=lambda task, seed: {"chain": value})
    registration.register_suite(odd)
    try:
        with pytest.raises(InvalidOption, match="a record cannot hold"):
            evaluate({"boy": errands.Boy}, [IMPORTED], episodes=1, folder=tmp_path)
    finally:
        registration.register_suite(errands.SUITE)
    assert load_records(tmp_path) == []


def test_a_policy_starts_anew_with_every_instruction(errands):
    starts = []

    class Second(errands.Boy):
        """Runs an errand in its second step."""

        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            starts.append((observation["instruction"][0], bool(episode_start[0])))
            action = np.full((1, 7), -1, np.float32)
            action[:, 0] = 1.0 if not episode_start[0] and len(starts) < 6 else -1.0
            return action, state

    env = gym.make(ID, cameras=(), state=True)
    episode = run_episode(env, Second(), seed=0, options={"chain": 3})
    assert starts == [
        *((f"run errand {k}", start) for k in (0, 1) for start in (True, False)),
        *(("run errand 2", start) for start in (True, False, False)),
    ]
    assert episode.chain_length == 2 and episode.truncated and not episode.success
    assert episode.length == 7


def test_an_episode_without_chains_has_no_chain_length():
    env = gym.make("VLA/Toy-Reach-v0", cameras=(), max_episode_steps=2)

    class Still:
        starts = []  # noqa: RUF012

        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            self.starts.append(bool(episode_start[0]))
            return np.zeros((1, 7), np.float32), state

    assert run_episode(env, Still(), seed=0).chain_length is None
    assert Still.starts == [True, False]


def test_the_report_names_the_simulator_and_its_keywords_beside_each_score(played):
    html = write_report([played.folder]).read_text()
    assert html.count("bicycle, town=D") >= 2
    assert "Success rate</h2>" not in html  # a chain is no ordinary task
    assert "1 crashed" in html and "4 of 5</span>" in html
    markdown = (played.folder / "report.md").read_text()
    assert "| boy | bicycle, town=D | 11 (1 crashed) | 82 % [" in markdown
    nothing = " | ".join([f"0 % [0{DASH}0 %]"] * 5)
    assert f"| idle | bicycle, town=D | 11 (1 crashed) | {nothing} | 0.00 [0.00{DASH}0.00] |" in (
        markdown
    )
    assert "- **Reset options**: chain 0 to 9" in markdown
    rows = {row["policy"]: row for row in csv.DictReader((played.folder / "report.csv").open())}
    assert rows["boy"]["simulator"] == "bicycle" and rows["boy"]["keywords"] == "town=D"
    shares = [float(rows["boy"][f"sr_{k}"]) for k in range(1, 6)]
    assert shares[0] == pytest.approx(9 / 11, abs=1e-6)
    assert float(rows["boy"]["average_length"]) == pytest.approx(sum(shares), abs=1e-5)
    low, high = (float(rows["boy"][f"average_length_{end}95"]) for end in ("low", "high"))
    assert low < 27 / 11 < high


def test_chains_and_ordinary_tasks_have_tables_of_their_own(errands, tmp_path):
    evaluate({"boy": errands.Boy}, [IMPORTED], episodes=2, folder=tmp_path, video=False)
    evaluate({"zero": "zero"}, ["Toy-*"], episodes=2, folder=tmp_path, video=False)
    html = write_report([tmp_path]).read_text()
    assert html.count("<svg") == 2
    markdown = (tmp_path / "report.md").read_text()
    assert f"| Toy-Reach | toy | {DASH} | 0 % [0{DASH}66 %], 0/2 |" in markdown
    assert f"| all episodes | toy | {DASH} [{DASH}], not on all tasks | 0 % " in markdown
    assert "| boy | bicycle, town=D | 2 | " in markdown
    table = markdown[: markdown.index("## Errands-Chain")]
    assert "Errands-Chain |" not in table
    rows = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert [row["sr_1"] for row in rows if row["policy"] == "zero"] == ["", ""]


def test_the_best_is_not_named_across_simulators(errands, tmp_path):
    options = {"episodes": 6, "video": False}
    both = {"boy": errands.Boy, "idle": errands.IdleBoy}
    evaluate(both, [IMPORTED], folder=tmp_path / "a", **options)
    assert 'class="rate best"' in write_report([tmp_path / "a"]).read_text()
    with Store(tmp_path / "a") as store:
        for record in load_records(tmp_path / "a"):
            if record.policy == "idle":
                record.protocol["keywords"]["town"] = "A"
                store.append(record)
    html = write_report([tmp_path / "a"]).read_text()
    assert 'class="rate best"' not in html
    assert "bicycle, town=A" in html and "bicycle, town=D" in html


def test_the_command_line_prints_a_table_that_80_columns_hold(errands, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from vla_gym.cli import app
    from vla_gym.cli.console import EXIT_CRASHED, console

    policies = {"boy": errands.Boy, "a boy of a rather long name": errands.IdleBoy}
    monkeypatch.setattr("vla_gym.cli.evaluate.read_policies", lambda _: policies)
    monkeypatch.setattr(console, "width", 80)
    arguments = ["eval", "-p", "x", "-e", IMPORTED, "-n", "10", "-o", str(tmp_path), "--no-video"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == EXIT_CRASHED, found.output
    lines = found.output.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert "Errands-Chain-v0: bicycle, town=D" in lines
    header = next(line.split() for line in lines if line.startswith("policy"))
    assert header == ["policy", "n", "SR_1", "SR_2", "SR_3", "SR_4", "SR_5", "length", "crashed"]
    row = next(line.split() for line in lines if line.startswith("  boy"))
    # Chains 0 to 8: lengths 0 1 2 3 4 5 0 1 2; 7, 5, 3, 2 and 1 of 9 came so far, 18 in all.
    assert " ".join(row) == "boy 9 78 % 56 % 33 % 22 % 11 % 2.00 1"
    assert "Wilson" not in found.output
