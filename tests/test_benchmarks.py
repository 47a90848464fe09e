"""The benchmarks' harness: ratios, records, the gate, the tables. No time is asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, needs


@pytest.fixture
def scripts(monkeypatch):
    """Have the scripts of benchmarks/ importable by their bare names, as they see each other."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")  # the harness sets them where they are not set
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    before = set(sys.modules)
    yield
    folder = str(ROOT / "benchmarks")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
            del sys.modules[name]


FLOORS = {
    "renderer": "llvmpipe",
    "floors": {
        "render_speed": {
            "Lift": {"exact / upstream": {"at_least": 2.0, "target": 3.0, "label": "lifts"}}
        },
        "import_time": {"import": {"ours / bare": {"at_most": 1.5, "target": 1.5}}},
    },
}


def make_record(benchmark: str, case: str, values: dict[str, list[float]], ratio: Any) -> Any:
    """Return a record as the harness writes it."""
    from harness import Found, summarise

    return {
        "benchmark": benchmark,
        "command": f"python benchmarks/{benchmark}.py",
        "machine": {"processor": "a processor", "cores": 2},
        "renderer": "llvmpipe (LLVM 15)",
        "quick": False,
        "only": "",
        "turns": 4,
        "finished": True,
        "load": [0.0, 0.5],
        "cases": {case: summarise(Found(values, "ms a step", [ratio]))},
        "left_out": {},
    }


def make_lift(mine: list[float]) -> Any:
    from harness import Ratio

    values = {"upstream": [90.0, 100.0, 110.0, 100.0], "exact": mine}
    return make_record("render_speed", "Lift", values, Ratio("exact", "upstream"))


GOOD, NOISY, BAD = [30.0, 40.0, 44.0, 50.0], [52.0, 55.0, 50.0, 51.0], [60.0, 70.0, 90.0, 80.0]


def test_sides_take_turns_back_and_forth(scripts):
    from harness import take_turns

    calls: list[tuple[str, int]] = []

    def play(name: str, turn: int) -> float:
        calls.append((name, turn))
        return 10.0 * turn + (name == "b")

    sides = {name: (lambda turn, name=name: play(name, turn)) for name in "ab"}
    assert take_turns(sides, turns=2, warm_up=1) == {"a": [0.0, 10.0], "b": [1.0, 11.0]}
    assert [name for name, _ in calls] == ["a", "b", "b", "a", "a", "b"]
    assert [turn for _, turn in calls] == [-1, -1, 0, 0, 1, 1]


def test_a_ratio_is_taken_within_a_turn(scripts):
    found = make_lift([45.0, 25.0, 110.0, 50.0])["cases"]["Lift"]["ratios"]["exact / upstream"]
    # 90/45, 100/25, 110/110, 100/50: not the ratio of the medians, which is 100/47.5
    assert found == {"kind": "speed", "median": 2.0, "q1": 1.75, "q3": 2.5, "n": 4}


def test_cost_is_the_inverse_of_speed(scripts):
    from harness import Ratio

    values = {"bare": [10.0, 20.0], "ours": [11.0, 24.0]}
    record = make_record("import_time", "import", values, Ratio("ours", "bare", "cost"))
    found = record["cases"]["import"]["ratios"]["ours / bare"]
    assert (found["kind"], found["median"]) == ("cost", 1.15)


@pytest.mark.parametrize(("mine", "misses"), [(GOOD, 0), (NOISY, 0), (BAD, 1)])
def test_the_gate_misses_what_falls_below_by_more_than_noise(scripts, mine, misses):
    from harness import find_misses

    record = make_lift(mine)
    found = record["cases"]["Lift"]["ratios"]["exact / upstream"]
    assert (found["median"] < 2.0) == (mine is not GOOD)  # the noisy one is below, too
    complaints = find_misses(record, FLOORS)
    assert len(complaints) == misses
    assert all("render_speed, Lift, exact / upstream" in text for text in complaints)


@pytest.mark.parametrize(("ours", "misses"), [([14.0, 15.0, 16.0], 0), ([16.0, 17.0, 18.0], 1)])
def test_the_gate_knows_that_a_cost_should_be_low(scripts, ours, misses):
    from harness import Ratio, find_misses

    values = {"bare": [10.0] * 3, "ours": ours}
    record = make_record("import_time", "import", values, Ratio("ours", "bare", "cost"))
    assert len(find_misses(record, FLOORS)) == misses


def test_a_ratio_that_is_gone_is_missed_in_a_full_run_only(scripts):
    from harness import find_misses

    record = make_lift(GOOD)
    record["cases"] = {}
    assert find_misses(record, FLOORS) == ["render_speed, Lift, exact / upstream: not measured"]
    for change in ({"quick": True}, {"only": "Door"}, {"left_out": {"Lift": "no robosuite"}}):
        assert find_misses({**record, **change}, FLOORS) == []


def test_what_no_floor_can_be_put_to_misses_none(scripts):
    from harness import find_misses

    record = make_lift(BAD)
    assert find_misses({**record, "renderer": "NVIDIA H100"}, FLOORS) == []
    record["cases"]["Lift"]["fair"] = False
    assert find_misses(record, FLOORS) == []


def write(folder: Path, *records: Any) -> None:
    for record in records:
        (folder / f"{record['benchmark']}.json").write_text(json.dumps(record))


@needs("eval")
def test_tables_and_plot_come_from_records(scripts, tmp_path):
    from harness import Ratio
    from summary import draw, read_records, write_markdown, write_short

    values = {"bare": [10.0] * 4, "ours": [13.0] * 4}
    imported = make_record("import_time", "import", values, Ratio("ours", "bare", "cost"))
    write(tmp_path, imported, make_lift(GOOD), {"benchmark": "calvin_speed", "rows": []})
    records = read_records(tmp_path)
    assert [record["benchmark"] for record in records] == ["render_speed", "import_time"]

    table = write_markdown(records, FLOORS)
    row = "| exact | 42.0 (37.5 to 45.5) ms a step | 2.50 (2.38 to 2.62)x the speed of upstream |"
    assert f"{row} at least 3: no |" in table
    assert "1.30 (1.30 to 1.30)x the cost of bare | at most 1.5: yes |" in table
    short = write_short(records, FLOORS).splitlines()
    assert short[2:] == [
        "| what | median (quartiles) | target |",
        "|---|---|---|",
        "| lifts | 2.50 (2.38 to 2.62) | at least 3, missed |",
    ]
    for suffix in ("svg", "png"):
        draw(records, FLOORS, tmp_path / f"plot.{suffix}")
        assert (tmp_path / f"plot.{suffix}").stat().st_size > 1000
    assert ">Lift</text>" in (tmp_path / "plot.svg").read_text()


def test_text_goes_between_markers_and_nowhere_else(scripts):
    from summary import put_between

    page = "before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n"
    once = put_between(page, "x", "new\n")
    assert once == "before\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nafter\n"
    assert put_between(once, "x", "new\n") == once
    assert put_between("no marker\n", "x", "new") == "no marker\n"


@pytest.mark.parametrize(("mine", "complaints"), [(GOOD, 0), (BAD, 1)])
def test_a_run_fails_on_a_planted_regression(scripts, tmp_path, monkeypatch, mine, complaints):
    import run

    def pretend(name: str, folder: Path, quick: bool) -> bool:
        write(folder, make_lift(mine))
        return True

    monkeypatch.setattr(run, "run", pretend)
    monkeypatch.setattr(run, "read_floors", lambda: FLOORS)
    monkeypatch.setattr(sys, "argv", ["run.py", "render_speed", "--out", str(tmp_path)])
    assert run.main() == complaints


def test_a_run_fails_where_a_script_does(scripts, tmp_path, monkeypatch, capsys):
    import run

    monkeypatch.setattr(run, "run", lambda name, folder, quick: False)
    monkeypatch.setattr(sys, "argv", ["run.py", "memory", "--out", str(tmp_path)])
    assert run.main() == 1
    assert "FAILED memory: failed" in capsys.readouterr().out


def test_a_script_writes_its_record_and_judges_it(scripts, tmp_path, monkeypatch, capsys):
    import harness

    def fine(turns: int) -> harness.Found:
        return harness.Found(
            {"a": [1.0] * turns, "b": [3.0] * turns}, "ms", [harness.Ratio("a", "b")]
        )

    def missing(turns: int) -> harness.Found:
        raise harness.LeftOut("no such simulator")

    floors = {"renderer": "", "floors": {"mine": {"one": {"a / b": {"at_least": 4.0}}}}}
    monkeypatch.setattr(harness, "FLOORS", tmp_path / "floors.json")
    (tmp_path / "floors.json").write_text(json.dumps(floors))
    monkeypatch.setattr(harness, "find_renderer", lambda: None)
    monkeypatch.setattr(sys, "argv", ["x.py", "--quick", "--json", str(tmp_path / "mine.json")])
    assert harness.main("mine", "Purpose.", {"one": fine, "two": missing}, 9, 2) == 1
    record = json.loads((tmp_path / "mine.json").read_text())
    assert record["cases"]["one"]["ratios"]["a / b"]["median"] == 3.0
    assert (record["turns"], record["left_out"]) == (2, {"two": "no such simulator"})
    assert record["finished"] and record["versions"]["vla-gym"] and record["machine"]["cores"]
    assert "MISSED mine, one, a / b: 3.00 (3.00 to 3.00) is below 4.0" in capsys.readouterr().out


@needs("metaworld", "robosuite", "sb3")
def test_every_floor_names_a_case(scripts):
    import eval_speed
    import render_speed
    import reset_speed
    import step_overhead
    import vector_speed

    known = {
        "render_speed": {*render_speed.CASES, "robosuite, median of 8 tasks"},
        "step_overhead": set(step_overhead.CASES),
        "reset_speed": set(reset_speed.list_cases()),
        "vector_speed": set(vector_speed.list_cases()),
        "eval_speed": set(eval_speed.CASES),
    }
    floors = json.loads((ROOT / "benchmarks/floors.json").read_text())["floors"]
    for name, cases in known.items():
        assert set(floors[name]) <= cases
    for cases in floors.values():
        for ratios in cases.values():
            assert all(("at_least" in floor) != ("at_most" in floor) for floor in ratios.values())


def test_the_pages_show_the_committed_records(scripts):
    import summary

    records, floors = summary.read_records(summary.RESULTS), summary.read_floors()
    for page, name, text in (
        (summary.DOCS, "tables", summary.write_markdown(records, floors)),
        (summary.README, "speed", summary.write_short(records, floors)),
    ):
        found = page.read_text()
        assert summary.put_between(found, f"benchmarks, {name}", text) == found
