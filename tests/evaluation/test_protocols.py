"""Protocols by name: their tasks exist, they can be played, and their scores are the means."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation import stand_ins
from tests.support import ROOT, check_needs, needs
from vla_gym import registration
from vla_gym.errors import DependencyNotInstalled, InvalidOption, UnknownName
from vla_gym.evaluation.evaluate import evaluate
from vla_gym.evaluation.metrics import success_interval
from vla_gym.evaluation.protocols import (
    MEAN_LENGTH,
    MEAN_OVER_GROUPS,
    MEAN_OVER_TASKS,
    PROTOCOLS,
    Protocol,
    get_protocol,
    list_protocols,
    register_protocol,
    score_by_group,
)
from vla_gym.evaluation.records import Record

pytestmark = needs("eval")

NAMES = [protocol.name for protocol in list_protocols()]

EXTRAS = {
    "MetaWorld": ("metaworld", {}),
    "Robosuite": ("robosuite", {}),
    "RLBench": ("rlbench-twin", {"simulator": "rlbench-twin"}),
    "CALVIN": ("calvin-twin", {"simulator": "calvin-twin"}),
    "LIBERO": ("libero", {}),
}

SLOW = ("robo", "libero")

REACH, LIFT = "VLA/Toy-Reach-v0", "VLA/Toy-Lift-v0"


def make(**changes):
    fields = {
        "name": "toy-2",
        "title": "both Toy tasks",
        "ids": (REACH, LIFT),
        "episodes": 3,
        "source": "this test",
        "simulator": "toy",
    }
    return Protocol(**{**fields, **changes})


def find_suite(protocol):
    return registration.get_suite(gym.spec(protocol.ids[0]).kwargs["suite"])


@pytest.fixture
def registry():
    """Let a test register what it likes."""
    before = dict(PROTOCOLS)
    yield PROTOCOLS
    PROTOCOLS.clear()
    PROTOCOLS.update(before)


# The data.


def test_the_numbers_are_those_of_the_publications():
    found = {p.name: (len(p.ids), p.episodes, p.max_steps, p.score) for p in list_protocols()}
    steps = found.pop("robomimic-5")
    assert found == {
        "metaworld-mt50": (50, 50, 500, MEAN_OVER_TASKS),
        "metaworld-mt10": (10, 50, 500, MEAN_OVER_TASKS),
        "metaworld-ml45-test": (5, 50, 500, MEAN_OVER_TASKS),
        "metaworld-ml10-test": (5, 50, 500, MEAN_OVER_TASKS),
        "metaworld-mt50-smolvla": (50, 10, 500, MEAN_OVER_GROUPS),
        "rlbench-18x25": (18, 25, 25, MEAN_OVER_TASKS),
        "calvin-chain-D": (1, 1000, 1800, MEAN_LENGTH),
        "calvin-34-D": (34, 50, 360, MEAN_OVER_TASKS),
        "robosuite-9": (10, 50, 500, MEAN_OVER_GROUPS),
        "libero-spatial": (10, 50, 220, MEAN_OVER_TASKS),
        "libero-object": (10, 50, 280, MEAN_OVER_TASKS),
        "libero-goal": (10, 50, 300, MEAN_OVER_TASKS),
        "libero-10": (10, 50, 520, MEAN_OVER_TASKS),
    }
    assert (steps[0], steps[1], steps[3]) == (5, 50, MEAN_OVER_TASKS)
    robomimic = get_protocol("robomimic-5")
    assert [robomimic.horizon(env_id) for env_id in robomimic.ids] == [400, 400, 400, 700, 700]
    assert len(get_protocol("robosuite-9").groups) == 9


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_names_registered_ids_and_an_original_simulator(name):
    protocol = get_protocol(name)
    assert set(protocol.ids) <= set(registration.list_ids())
    suite = find_suite(protocol)
    originals = [info.name for info in suite.simulators if not info.stand_in_for]
    assert protocol.simulator in originals
    assert protocol.source and protocol.differs


@pytest.mark.parametrize("name", NAMES)
def test_groups_hold_every_id_once(name):
    protocol = get_protocol(name)
    members = [env_id for ids in protocol.groups.values() for env_id in ids]
    assert sorted(members) == (sorted(protocol.ids) if protocol.groups else [])


def test_the_difficulty_groups_are_lerobots():
    groups = get_protocol("metaworld-mt50-smolvla").groups
    natives = {
        name: {registration.get_suite("MetaWorld").tasks[i.split("-")[1]].native for i in ids}
        for name, ids in groups.items()
    }
    assert {name: len(some) for name, some in natives.items()} == {
        "easy": 28,
        "medium": 11,
        "hard": 6,
        "very hard": 5,
    }
    # huggingface/lerobot 7291d51, src/lerobot/envs/metaworld_config.json
    assert natives["very hard"] == {
        *("shelf-place-v3", "disassemble-v3", "stick-pull-v3", "stick-push-v3"),
        "pick-place-wall-v3",
    }
    assert natives["hard"] == {
        *("assembly-v3", "hand-insert-v3", "pick-out-of-hole-v3", "pick-place-v3"),
        *("push-v3", "push-back-v3"),
    }
    assert natives["medium"] == {
        *("basketball-v3", "bin-picking-v3", "box-close-v3", "coffee-pull-v3", "coffee-push-v3"),
        *("hammer-v3", "peg-insert-side-v3", "push-wall-v3", "soccer-v3", "sweep-v3"),
        "sweep-into-v3",
    }


def test_the_18_are_peracts():
    tagged = {
        registration.get_suite("RLBench").id(task.name)
        for task in registration.get_suite("RLBench").tasks.values()
        if "peract" in task.tags
    }
    assert set(get_protocol("rlbench-18x25").ids) == tagged


def test_held_out_tasks_are_in_no_training_set():
    benchmarks = registration.list_benchmarks()
    for number in (10, 45):
        protocol = get_protocol(f"metaworld-ml{number}-test")
        assert not set(protocol.ids) & set(benchmarks[f"ML{number}-train"])
        assert protocol.keywords["split"] == "test"


@needs("rlbench-twin")
def test_a_simulator_that_lacks_tasks_leaves_the_rest_to_be_played():
    protocol = get_protocol("rlbench-18x25")
    playable, missing = protocol.find_playable({"simulator": "rlbench-twin"})
    assert len(playable) == 7
    assert set(playable) | set(missing) == set(protocol.ids)
    why = missing["VLA/RLBench-TurnTap-v0"]
    assert "the simulator 'rlbench-twin' does not have this task" in why


def test_a_protocol_that_cannot_be_played_at_all_says_so(monkeypatch):
    monkeypatch.delenv("COPPELIASIM_ROOT", raising=False)
    with pytest.raises(DependencyNotInstalled, match="none of the 18 tasks of rlbench-18x25"):
        get_protocol("rlbench-18x25").find_playable({"simulator": "coppeliasim"})


def test_the_page_has_every_protocol_with_its_numbers():
    page = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name := re.fullmatch(r"`([\w-]+)`", cells[0]):
            rows.setdefault(name[1], cells[1:])
    for protocol in list_protocols():
        tasks, episodes, steps, score = rows.pop(protocol.name)[:4]
        assert int(tasks) == len(protocol.ids)
        assert int(episodes) == protocol.episodes
        horizons = sorted({protocol.horizon(env_id) for env_id in protocol.ids})
        assert steps == " or ".join(str(horizon) for horizon in horizons)
        assert score == protocol.score
    assert not rows, f"the page has protocols that do not exist: {list(rows)}"


# Names.


def test_a_name_may_be_in_small_letters():
    assert get_protocol("calvin-chain-d") is get_protocol("calvin-chain-D")


def test_an_unknown_name_says_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'metaworld-mt50'"):
        get_protocol("metaworld-mt5")


def test_a_third_party_registers_its_own(registry):
    protocol = make()
    register_protocol(protocol)
    assert get_protocol("toy-2") is protocol
    register_protocol(make(episodes=7))
    assert get_protocol("toy-2").episodes == 7
    assert [p.name for p in list_protocols()] == [*NAMES, "toy-2"]


def test_a_protocol_of_unknown_tasks_or_simulators_is_refused(registry):
    with pytest.raises(UnknownName, match="no id 'VLA/Toy-Reich-v0' in protocol toy-2"):
        register_protocol(make(ids=("VLA/Toy-Reich-v0",)))
    with pytest.raises(UnknownName, match="no simulator 'mujoco' in suite Toy"):
        register_protocol(make(simulator="mujoco"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ()}, "needs ids"),
        ({"ids": (REACH, REACH)}, "each once"),
        ({"episodes": 0}, "episodes=0"),
        ({"seed": -1}, "seed=-1"),
        ({"groups": {"a": (REACH,)}}, "not every id stands once"),
        ({"groups": {"a": (REACH, LIFT), "b": (LIFT,)}}, "not every id stands once"),
        ({"score": "median"}, "score='median'"),
        ({"score": MEAN_OVER_GROUPS}, "no groups"),
        ({"score": MEAN_LENGTH}, "takes one id, not 2"),
        ({"max_steps": {REACH: 5}}, "not for each of its ids"),
        ({"success": "always"}, "success='always'"),
        ({"success": "last"}, "terminate_on_success=False"),
    ],
)
def test_a_protocol_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(InvalidOption, match=message):
        make(**changes)


# Played.


@pytest.mark.parametrize("name", NAMES)
def test_every_task_takes_the_protocols_keywords(name):
    protocol = get_protocol(name)
    extra, keywords = EXTRAS[find_suite(protocol).name]
    check_needs(extra)
    playable, _ = protocol.find_playable(keywords)
    for env_id in playable:
        env = gym.make(env_id, cameras=(), **keywords, **protocol.keywords)
        sheet = env.unwrapped.spec_sheet
        env.close()
        assert sheet.action_mode == protocol.keywords.get("action_mode", "ee_delta")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name.startswith(SLOW) else ()) for name in NAMES],
)
def test_an_episode_is_played_and_recorded_under_the_protocol(name, tmp_path):
    protocol = get_protocol(name)
    extra, keywords = EXTRAS[find_suite(protocol).name]
    check_needs(extra)
    env_id = protocol.find_playable(keywords)[0][0]
    found = evaluate(
        ["random"],
        [env_id],
        episodes=1,
        folder=tmp_path,
        seed=protocol.seed,
        keywords={**keywords, **protocol.keywords},
        max_steps=protocol.horizon(env_id),
        video=False,
    )
    (record,) = found.records
    assert record.outcome in ("success", "failure"), record.error
    assert record.length is not None and 0 < record.length <= protocol.horizon(env_id)
    assert record.protocol["horizon"] == protocol.horizon(env_id)
    described = {**record.protocol, **record.protocol["keywords"]}
    for key, value in protocol.keywords.items():
        assert described[key] == value
    rows = score_by_group(found.records, protocol)
    (headline,) = (row for row in rows if row.headline)
    assert (headline.name, headline.n, headline.tasks) == (protocol.score, 1, 1)
    assert headline.of == len(protocol.ids)


def test_a_protocol_of_toys_is_played_and_scored(tmp_path):
    protocol = make(
        episodes=2,
        seed=4,
        keywords={"terminate_on_success": False},
        max_steps={REACH: 30, LIFT: 5},
        success="last",
        groups={"reach": (REACH,), "lift": (LIFT,)},
        score=MEAN_OVER_GROUPS,
    )
    records = []
    for env_id in protocol.ids:
        found = evaluate(
            {"p": stand_ins.ReachBall},
            [env_id],
            episodes=protocol.episodes,
            folder=tmp_path,
            seed=protocol.seed,
            keywords=protocol.keywords,
            max_steps=protocol.horizon(env_id),
            video=False,
        )
        records += found.records
    assert [r.length for r in records] == [30, 30, 5, 5]
    rows = {row.name: row for row in score_by_group(records, protocol)}
    assert [rows[name].value for name in ("reach", "lift")] == [1.0, 0.0]
    assert rows[MEAN_OVER_GROUPS].value == 0.5
    assert rows[MEAN_OVER_GROUPS].headline and not rows[MEAN_OVER_TASKS].headline


# Scores.

TASKS = tuple(f"VLA/T-{letter}-v0" for letter in "ABCDEF")


def record(env_id, seed, outcome, policy="p", **fields):
    return Record(policy, env_id, seed, seed, outcome, {}, **fields)


def play(successes, n, env_id):
    return [record(env_id, i, "success" if i < successes else "failure") for i in range(n)]


def group(sizes):
    ids = iter(TASKS)
    return {f"g{i}": tuple(next(ids) for _ in range(size)) for i, size in enumerate(sizes)}


outcomes = st.integers(1, 12).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
grouped = st.lists(st.lists(outcomes, min_size=1, max_size=3), min_size=1, max_size=2)


def score(groups):
    """Return name -> row for groups of (successes, n) of tasks."""
    named = group([len(some) for some in groups])
    ids = tuple(i for some in named.values() for i in some)
    protocol = make(ids=ids, groups=named, episodes=12, score=MEAN_OVER_GROUPS)
    counts = [count for some in groups for count in some]
    records = [r for i, (k, n) in zip(ids, counts, strict=True) for r in play(k, n, i)]
    return {row.name: row for row in score_by_group(records, protocol)}


@given(grouped)
def test_means_are_those_by_hand(groups):
    rows = score(groups)
    by_hand = [sum(k / n for k, n in some) / len(some) for some in groups]
    for i, mean in enumerate(by_hand):
        assert rows[f"g{i}"].value == pytest.approx(mean)
        assert rows[f"g{i}"].n == sum(n for _, n in groups[i])
        assert rows[f"g{i}"].planned == 12 * len(groups[i])
    counts = [count for some in groups for count in some]
    over_tasks = sum(k / n for k, n in counts) / len(counts)
    assert rows[MEAN_OVER_TASKS].value == pytest.approx(over_tasks)
    assert rows[MEAN_OVER_GROUPS].value == pytest.approx(sum(by_hand) / len(by_hand))


@given(grouped)
def test_an_interval_holds_its_mean_within_0_and_1_and_has_a_width(groups):
    for row in score(groups).values():
        assert 0 <= row.interval.low <= row.value + 1e-12
        assert row.value - 1e-12 <= row.interval.high <= 1
        assert row.interval.high - row.interval.low > 0.05  # at most 72 episodes


@given(outcomes)
def test_the_interval_of_one_task_is_wilsons(count):
    assert score([[count]])[MEAN_OVER_TASKS].interval == pytest.approx(success_interval(*count))


@given(grouped)
def test_failures_have_the_mirrored_score(groups):
    mirrored = score([[(n - k, n) for k, n in some] for some in groups])
    for name, row in score(groups).items():
        other = mirrored[name]
        assert row.value == pytest.approx(1 - other.value)
        assert row.interval.low == pytest.approx(1 - other.interval.high, abs=1e-9)


@pytest.mark.parametrize("rate", [0.5, 0.99])
def test_an_interval_holds_the_true_mean_as_often_as_it_says(rate):
    rng = np.random.default_rng(0)
    drawn = rng.binomial(10, rate, (400, 3))
    rows = [score([[(int(k), 10) for k in row]])["g0"] for row in drawn]
    held = [row.interval.low <= rate <= row.interval.high for row in rows]
    assert np.mean(held) >= 0.9


def test_smolvlas_average_is_the_mean_of_its_four_groups():
    protocol = get_protocol("metaworld-mt50-smolvla")
    solved = {"easy": 9, "medium": 5, "hard": 4, "very hard": 2}
    records = [
        r
        for name, ids in protocol.groups.items()
        for env_id in ids
        for r in play(solved[name], 10, env_id)
    ]
    rows = {row.name: row for row in score_by_group(records, protocol)}
    assert [rows[name].value for name in solved] == pytest.approx([0.9, 0.5, 0.4, 0.2])
    assert rows[MEAN_OVER_GROUPS].value == pytest.approx(0.5)  # (0.9 + 0.5 + 0.4 + 0.2) / 4
    by_tasks = (28 * 0.9 + 11 * 0.5 + 6 * 0.4 + 5 * 0.2) / 50
    assert rows[MEAN_OVER_TASKS].value == pytest.approx(by_tasks)
    assert rows[MEAN_OVER_GROUPS].headline


def test_a_score_says_on_how_many_tasks_and_episodes_it_stands():
    protocol = make(ids=TASKS[:3], episodes=2)
    records = [
        record(TASKS[0], 0, "success"),
        record(TASKS[0], 1, "crashed"),
        record(TASKS[1], 0, "crashed"),
        record(TASKS[0], 2, "failure"),  # a third episode is not the protocol's
        record(TASKS[5], 0, "failure"),  # nor is another task
    ]
    (row,) = score_by_group(records, protocol)
    assert (row.value, row.n, row.planned, row.tasks, row.of) == (1.0, 1, 6, 1, 3)


def test_a_group_without_data_has_no_score_and_does_not_count_as_zero():
    groups = {"a": TASKS[:1], "b": TASKS[1:2]}
    protocol = make(ids=TASKS[:2], groups=groups, score=MEAN_OVER_GROUPS)
    rows = {r.name: r for r in score_by_group(play(2, 2, TASKS[0]), protocol)}
    assert (rows["b"].value, rows["b"].interval, rows["b"].tasks) == (None, None, 0)
    assert (rows[MEAN_OVER_GROUPS].value, rows[MEAN_OVER_GROUPS].tasks) == (1.0, 1)


def test_policies_are_scored_on_their_own():
    records = [record(TASKS[0], 0, "success", "p"), record(TASKS[0], 0, "failure", "q")]
    rows = score_by_group(records, make(ids=TASKS[:1]))
    assert [(row.policy, row.value) for row in rows] == [("p", 1.0), ("q", 0.0)]


def test_only_the_last_step_counts_where_the_protocol_says_so():
    keywords = {"terminate_on_success": False}
    left = record(TASKS[0], 0, "success", success_at_end=False)
    stayed = record(TASKS[0], 1, "success", success_at_end=True)
    anyhow, last = make(ids=TASKS[:1]), make(ids=TASKS[:1], success="last", keywords=keywords)
    assert [score_by_group([left, stayed], p)[0].value for p in (anyhow, last)] == [1.0, 0.5]


def test_chains_are_scored_by_their_average_length():
    protocol = get_protocol("calvin-chain-D")
    (env_id,) = protocol.ids
    lengths = [0, 5, 3]
    records = [record(env_id, i, "failure", chain_length=n) for i, n in enumerate(lengths)]
    records.append(record(env_id, 3, "crashed"))
    (row,) = score_by_group(records, protocol)
    assert row.name == MEAN_LENGTH and row.headline
    assert row.value == pytest.approx(8 / 3)
    assert row.interval.low < 8 / 3 < row.interval.high
    assert (row.n, row.planned, row.tasks, row.of) == (3, 1000, 1, 1)
    (crashed,) = score_by_group([record(env_id, 0, "crashed")], protocol)
    assert (crashed.value, crashed.n, crashed.tasks) == (None, 0, 0)
