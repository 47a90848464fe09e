"""The leaderboard: only like with like, and ranks no finer than the episodes tell."""

from __future__ import annotations

import dataclasses
import json
from urllib.parse import unquote

import pytest

from tests.evaluation.test_report import make_record, play, write_run
from tests.support import needs
from vla_gym.errors import InvalidOption
from vla_gym.evaluation.protocols import get_protocol
from vla_gym.evaluation.report import write_leaderboard, write_report
from vla_gym.evaluation.report.leaderboard import rank_runs

pytestmark = needs("eval")


def rank(folder):
    """Return the tables below a folder: for each, the ranks and policies from top to bottom."""
    tables = rank_runs(folder, folder).tables
    return [[(row.rank, row.shared, row.entry.policy) for row in t.rows] for t in tables]


def test_the_better_one_stands_first(tmp_path):
    write_run(tmp_path / "one", play("weak", [0] * 30))
    write_run(tmp_path / "two" / "inner", play("strong", [1] * 30))
    assert rank(tmp_path) == [[(1, False, "strong"), (2, False, "weak")]]


def test_a_rank_is_shared_where_the_episodes_do_not_settle_it(tmp_path):
    write_run(tmp_path / "one", play("a", [1, 1, 1, 0, 1, 0]))
    write_run(tmp_path / "two", play("b", [1, 0, 1, 1, 0, 0]) + play("c", [0] * 6))
    (found,) = rank(tmp_path)
    assert found[:2] == [(1, True, "a"), (1, True, "b")]
    markdown = write_leaderboard(tmp_path).with_suffix(".md").read_text()
    assert "| 1= | a | 67 % |" in markdown and "| 1= | b | 50 % |" in markdown


def test_the_paired_test_settles_what_overlapping_intervals_leave_open(tmp_path):
    # 30 and 22 of 40: the Wilson intervals overlap, but no episode is lost by the first alone.
    write_run(tmp_path / "one", play("a", [1] * 30 + [0] * 10))
    write_run(tmp_path / "two", play("b", [1] * 22 + [0] * 18))
    assert rank(tmp_path) == [[(1, False, "a"), (2, False, "b")]]
    apart = [dataclasses.replace(r, seed=r.seed + 100) for r in play("b", [1] * 22 + [0] * 18)]
    write_run(tmp_path / "other seeds" / "one", play("a", [1] * 30 + [0] * 10))
    write_run(tmp_path / "other seeds" / "two", apart)
    assert rank(tmp_path / "other seeds") == [[(1, True, "a"), (1, True, "b")]]


def test_an_entry_is_ranked_behind_those_alone_that_are_better_beyond_chance(tmp_path):
    # Of 3 the first and the last are apart, the middle one is apart from neither.
    for name, solved in (("a", 16), ("b", 12), ("c", 7)):
        records = play(name, [1] * solved + [0] * (20 - solved))
        shift = 100 * "abc".index(name)  # other seeds: the intervals alone decide
        write_run(tmp_path / name, [dataclasses.replace(r, seed=r.seed + shift) for r in records])
    assert rank(tmp_path) == [[(1, True, "a"), (1, True, "b"), (2, False, "c")]]


@pytest.mark.parametrize(
    "change",
    [
        {"simulator": "toy-twin"},
        {"protocol": "toy-1"},
        {"horizon": 99},
        {"success_rule": "at the last step"},
        {"keywords": {"town": "A"}},
        {"render_quality": "fast"},
        {"versions": {"vla-gym": "1", "mujoco": "4"}},
    ],
)
def test_scores_of_other_conditions_never_share_a_table(tmp_path, change):
    write_run(tmp_path / "one", play("a", [1, 0]))
    write_run(tmp_path / "two", play("b", [1, 0], protocol=change))
    assert sorted(map(len, rank(tmp_path))) == [1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"policy_source": "q"},
        {"cameras": ["primary"]},
        {"action_mode": "native"},
        {"batch": 8},
        {"versions": {"vla-gym": "2"}},
    ],
)
def test_what_a_policy_sees_and_our_own_version_part_no_table(tmp_path, change):
    write_run(tmp_path / "one", play("a", [1, 0]))
    write_run(tmp_path / "two", play("b", [1, 0], protocol=change))
    assert list(map(len, rank(tmp_path))) == [2]


def test_other_tasks_are_another_table(tmp_path):
    write_run(tmp_path / "one", play("a", [1]))
    write_run(tmp_path / "two", play("b", [1]) + play("b", [1], env_id="VLA/Toy-B-v0"))
    assert sorted(map(len, rank(tmp_path))) == [1, 1]


def test_perturbed_episodes_count_for_nothing(tmp_path):
    write_run(tmp_path / "one", play("a", [1, 1]) + play("a", [0, 0], perturbation="camera"))
    write_run(tmp_path / "two", play("b", [0], perturbation="camera"))
    board = rank_runs(tmp_path, tmp_path)
    assert [row.entry.score for table in board.tables for row in table.rows] == [1.0]
    assert "perturbed" in board.left_out["two"]


def test_a_named_protocol_gives_its_own_score(tmp_path):
    protocol = get_protocol("metaworld-mt50")
    named = {"protocol": protocol.name, "suite": "MetaWorld"}
    first, second = protocol.ids[:2]
    records = play("p", [1, 1, 1, 1], env_id=first, protocol=named)
    records += play("p", [0], env_id=second, protocol=named)
    write_run(tmp_path / "one", records)
    (table,) = rank_runs(tmp_path, tmp_path).tables
    assert table.rows[0].entry.score == 0.5  # over tasks; over episodes it would be 0.8
    assert protocol.title in table.title
    markdown = write_leaderboard(tmp_path).with_suffix(".md").read_text()
    assert f"5 of {50 * protocol.episodes} |" in markdown


def test_chains_are_ranked_by_their_length(tmp_path):
    for name, lengths in (("a", [0, 1, 0, 1, 1, 0]), ("b", [3, 4, 3, 4, 5, 3])):
        records = [
            make_record(name, seed=s, outcome="failure", chain_length=length)
            for s, length in enumerate(lengths)
        ]
        write_run(tmp_path / name, records)
    (table,) = rank_runs(tmp_path, tmp_path).tables
    assert table.measure == "average length"
    assert [row.entry.policy for row in table.rows] == ["b", "a"]
    assert table.rows[0].entry.score == pytest.approx(22 / 6)


def test_runs_that_cannot_be_read_are_listed_with_the_reason(tmp_path):
    write_run(tmp_path / "good", play("a", [1]))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "records.sqlite").write_bytes(b"no database" * 100)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "records.jsonl").write_text("{}\n")
    write_run(tmp_path / "empty", [])
    html = write_leaderboard(tmp_path).read_text()
    markdown = (tmp_path / "leaderboard.md").read_text()
    assert "- `damaged`: " in markdown and "not a database" in markdown
    assert "- `old`: records.jsonl is of an older version of vla_gym" in markdown
    assert "- `empty`: no episode with an outcome" in markdown
    assert "| 1 | a | 100 % |" in markdown and "not a database" in html


def test_a_training_runs_own_evaluations_are_no_entries(tmp_path):
    run = tmp_path / "training"
    write_run(run / "evaluations" / "step-1", play("policy", [1]))
    for name in ("config.json", "metrics.jsonl"):
        (run / name).write_text(json.dumps({}) + "\n")
    write_run(tmp_path / "eval", play("a", [1]))
    assert rank(tmp_path) == [[(1, False, "a")]]


def test_links_are_relative_and_lead_to_what_is_there(tmp_path):
    run = write_run(tmp_path / "runs" / "a run, of may", play("a", [1]))
    write_report([run])
    write_run(tmp_path / "runs" / "bare", play("b", [1]))
    html = write_leaderboard(tmp_path / "runs", tmp_path / "board" / "new")
    content = html.read_text()
    address = content.partition('<a href="')[2].partition('"')[0]
    assert address.startswith("../../runs/")
    assert (html.parent / unquote(address)).resolve() == run / "report.html"
    assert content.count("<a ") == 1 and "bare" in content
    markdown = (html.parent / "leaderboard.md").read_text()
    assert "[a run, of may](<../../runs/a run, of may/report.html>)" in markdown


def test_no_run_is_an_error_that_says_what_makes_one(tmp_path):
    with pytest.raises(InvalidOption, match=r"no run below .*`vla-gym eval --out"):
        write_leaderboard(tmp_path)
