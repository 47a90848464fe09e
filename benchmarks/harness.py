"""What the benchmarks share: sides that take turns, ratios with quartiles, records, floors.

A benchmark is a table of cases. Each case measures two sides or more in turns, so that a busy
machine slows all of them, and returns what each turn of each side cost: seconds, megabytes. The
result is the ratio of two sides within the same turn, as median and quartiles over the turns.

Import it before numpy: it limits the numeric libraries to one thread, as `vla-gym eval` does in its
workers. Processes started later inherit that.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

FLOORS = Path(__file__).with_name("floors.json")

PACKAGES = (
    *("vla-gym", "gymnasium", "stable-baselines3", "metaworld", "robosuite", "mujoco", "pybullet"),
    *("numpy", "scipy", "omegaconf", "torch"),
)

RENDERER = """
import vla_gym.rendering as rendering
with rendering._current_gl():
    from OpenGL import GL  # not before: the context chooses its platform
    print(GL.glGetString(GL.GL_RENDERER).decode())
"""


class Ratio(NamedTuple):
    """Which two sides are compared.

    Attributes:
        mine: a side of the case.
        theirs: the side that it is compared with.
        kind: `"speed"`: theirs divided by mine, more is better; `"cost"`: mine divided by theirs,
            less is better.
    """

    mine: str
    theirs: str
    kind: str = "speed"

    @property
    def name(self) -> str:
        """As in records and floors."""
        return f"{self.mine} / {self.theirs}"


class Found(NamedTuple):
    """What a case found.

    Attributes:
        values: side -> what it cost in each turn; less is better.
        unit: of the values.
        ratios: what to compare.
        notes: anything else that the record should have.
        fair: False where other programs took so much of the machine that the ratios, of sides with
            different numbers of processes, say little: they are shown, and meet no floor.
    """

    values: Mapping[str, Sequence[float]]
    unit: str
    ratios: Sequence[Ratio]
    notes: Mapping[str, Any] = {}
    fair: bool = True


class LeftOut(Exception):
    """A case cannot be measured here; the message says why."""


Case = Callable[[int], Found]
"""Measures so many turns."""


def need(suite: str, simulator: str | None = None) -> None:
    """Raise LeftOut where a suite's simulator, its first one unless named, cannot run."""
    from vla_gym.env import find_obstacle
    from vla_gym.registration import get_suite

    simulators = {info.name: info for info in get_suite(suite).simulators}
    info = simulators[simulator or next(iter(simulators))]
    if obstacle := find_obstacle(get_suite(suite), info):
        raise LeftOut(str(obstacle))


def take_turns(
    sides: Mapping[str, Callable[[int], float]], turns: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return what each side cost in each turn; every other turn goes through them backwards.

    Args:
        sides: name -> what is called once a turn, with the turn's number, and returns its cost.
            Warm-up turns are negative.
        turns: turns that count.
        warm_up: turns before, that do not.
    """
    values: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-warm_up, turns):
        for name in list(sides) if turn % 2 else reversed(list(sides)):
            value = sides[name](turn)
            if turn >= 0:
                values[name].append(value)
    return values


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, quartiles and number of some values."""
    low = middle = high = values[0]
    if len(values) > 1:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    figures = {"median": middle, "q1": low, "q3": high}
    return {**{name: float(f"{value:.4g}") for name, value in figures.items()}, "n": len(values)}


def find_median(rows: Sequence[Mapping[str, Sequence[float]]], sides: Sequence[str]) -> Found:
    """Return the median over several cases, in parts of upstream's time.

    Args:
        rows: the values of each case, as in `Found`; one side is "upstream".
        sides: to compare with it.
    """
    values = {
        side: [
            statistics.median(mine / theirs for mine, theirs in pairs)
            for pairs in zip(
                *(zip(row[side], row["upstream"], strict=True) for row in rows), strict=True
            )
        ]
        for side in ("upstream", *sides)
    }
    return Found(values, "of upstream's time", [Ratio(side, "upstream") for side in sides])


def summarise(found: Found) -> dict[str, Any]:
    """Return a case as it stands in the record."""
    ratios = {}
    for ratio in found.ratios:
        pairs = zip(found.values[ratio.mine], found.values[ratio.theirs], strict=True)
        speed = ratio.kind == "speed"
        values = [theirs / mine if speed else mine / theirs for mine, theirs in pairs]
        ratios[ratio.name] = {"kind": ratio.kind, **spread(values)}
    sides = {side: spread(values) for side, values in found.values.items()}
    return {
        "unit": found.unit,
        "sides": sides,
        "ratios": ratios,
        "notes": dict(found.notes),
        "fair": found.fair,
    }


def show(case: str, row: Mapping[str, Any]) -> Iterator[str]:
    """Yield a summarised case as lines of text."""
    yield case if row["fair"] else f"{case} (on a busy machine: no floor is applied)"
    for side, figures in row["sides"].items():
        yield f"    {side:<44}{show_spread(figures):>28} {row['unit']}"
    for name, figures in row["ratios"].items():
        yield f"    {name:<44}{show_spread(figures):>28} times the {figures['kind']}"


def show_spread(figures: Mapping[str, float]) -> str:
    """Return for example `2.65 (2.23 to 2.83)`."""
    low, middle, high = (show_number(figures[name]) for name in ("q1", "median", "q3"))
    return f"{middle} ({low} to {high})"


def show_number(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def describe_run() -> dict[str, Any]:
    """Return what a record needs so that others can judge it: command, versions, machine."""
    from vla_gym.evaluation.records import describe_machine, versions_of

    return {
        "command": shlex.join(["python", *_leave_out("--json", sys.argv)]),
        "versions": versions_of(PACKAGES),
        "machine": describe_machine(),
    }


def _leave_out(option: str, words: Sequence[str]) -> list[str]:
    """Return a command's words without an option and its value, a path on one machine."""
    kept = [word for word in words if not word.startswith(f"{option}=")]
    if option in kept:
        place = kept.index(option)
        del kept[place : place + 2]
    return kept


@functools.cache
def find_renderer() -> str | None:
    """Return what draws the pictures, as GL names it; None where nothing can."""
    done = subprocess.run([sys.executable, "-c", RENDERER], capture_output=True, text=True)
    return done.stdout.strip() or None


def write_record(path: Path | None, benchmark: str, content: Mapping[str, Any]) -> None:
    """Write a JSON record with command, versions and machine; nothing without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": benchmark, **content, **describe_run()}
    path.write_text(json.dumps(record, indent=1) + "\n")


def find_misses(record: Mapping[str, Any], floors: Mapping[str, Any]) -> list[str]:
    """Return in which ratios a record is worse than its floors by more than its own noise.

    `at_least`: the upper quartile is below. `at_most`: the lower one is above. A full run that
    lacks a ratio misses it, too, unless the case was left out. The floors are those of one kind of
    renderer; nothing is missed where another one draws, or where a case was not measured fairly.

    Args:
        record: of one benchmark.
        floors: the content of floors.json.
    """
    if floors["renderer"] not in (record["renderer"] or ""):
        return []
    misses, full = [], not (record["quick"] or record["only"])
    for case, ratios in floors["floors"].get(record["benchmark"], {}).items():
        row = record["cases"].get(case, {"ratios": {}, "fair": True})
        measured = row["ratios"]
        for name, floor in ratios.items() if row["fair"] else ():
            place, found = f"{record['benchmark']}, {case}, {name}", measured.get(name)
            if found is None:
                if full and case not in record["left_out"]:
                    misses.append(f"{place}: not measured")
            elif found["q3"] < floor.get("at_least", 0):
                misses.append(f"{place}: {show_spread(found)} is below {floor['at_least']}")
            elif found["q1"] > floor.get("at_most", math.inf):
                misses.append(f"{place}: {show_spread(found)} is above {floor['at_most']}")
    return misses


def main(
    benchmark: str,
    purpose: str | None,
    cases: Mapping[str, Case],
    turns: int,
    quick: int,
    combine: Callable[[dict[str, Found]], dict[str, Found]] | None = None,
    in_quick: Sequence[str] | None = None,
) -> int:
    """Run a benchmark from the command line.

    Args:
        benchmark: its name.
        purpose: the script's docstring.
        cases: name -> case.
        turns: of each side.
        quick: the same with `--quick`.
        combine: makes further cases of what all have found.
        in_quick: the cases that `--quick` measures; all without it.

    Returns:
        The exit status: 1 where a ratio misses its floor (`find_misses`).
    """
    parser = argparse.ArgumentParser(description=(purpose or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns, fewer cases")
    parser.add_argument("--turns", type=int, help=f"of each side ({turns}; with --quick {quick})")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    cases = {case: measure for case, measure in cases.items() if arguments.only in case}
    if not cases:
        parser.error(f"no case has {arguments.only!r} in its name")
    count = arguments.turns or (quick if arguments.quick else turns)
    some = in_quick if in_quick is not None and arguments.quick else list(cases)

    load = os.getloadavg()[0]
    results: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    everything: dict[str, Found] = {}
    record: dict[str, Any] = {
        "renderer": find_renderer(),
        "quick": arguments.quick,
        "only": arguments.only,
        "turns": count,
        "finished": False,
        "cases": results,
        "left_out": left_out,
        "load": [round(load, 2), round(load, 2)],
    }

    def add(case: str, found: Found, before: float) -> None:
        everything[case] = found
        results[case] = summarise(found)
        results[case]["load"] = [round(before, 2), round(os.getloadavg()[0], 2)]
        print(*show(case, results[case]), sep="\n", flush=True)
        record["load"][1] = round(os.getloadavg()[0], 2)
        write_record(arguments.json, benchmark, record)  # after each: an interruption loses one

    about = {**describe_run(), "renderer": record["renderer"], "load": load}
    print(*(f"{name}: {value}" for name, value in about.items()), sep="\n")
    for case, measure in cases.items():
        if case not in some:
            continue
        before = os.getloadavg()[0]
        try:
            found = measure(count)
        except LeftOut as why:
            left_out[case] = str(why)
            print(f"{case}: left out, {why}")
        else:
            add(case, found, before)
    for case, found in (combine(everything) if combine and everything else {}).items():
        add(case, found, load)
    record["finished"] = True
    write_record(arguments.json, benchmark, record)
    misses = find_misses({"benchmark": benchmark, **record}, json.loads(FLOORS.read_text()))
    for miss in misses:
        print(f"MISSED {miss}")
    return int(bool(misses))
