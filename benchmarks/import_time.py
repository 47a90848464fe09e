"""How long `import vla_gym` takes against `import gymnasium`, each in a fresh interpreter.

The ids of every suite are registered as vla_gym is imported, so it must stay cheap: less than 1.5
times Gymnasium, which it imports itself. The two take turns, so that a busy machine slows both.
Both are read as compiled bytecode, as from an installed package, out of a folder that the warm-up
fills.

    python benchmarks/import_time.py --json benchmarks/results/import_time.json

Exit status 1 where the ratio of the medians is not below 1.5.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from vla_gym.evaluation.records import describe_machine, versions_of

MODULES = ("gymnasium", "vla_gym")
TARGET = 1.5
CODE = "import time; started = time.perf_counter(); import {}; print(time.perf_counter() - started)"


def measure(module: str, bytecode: str) -> float:
    """Return how long importing `module` takes in an interpreter of its own [s]."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-X", f"pycache_prefix={bytecode}", "-c", CODE.format(module)],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    return float(done.stdout)


def describe(seconds: list[float]) -> dict[str, float]:
    """Return median, quartiles and range of some times, in ms."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    spread = {"median": middle, "q1": low, "q3": high, "min": min(seconds), "max": max(seconds)}
    return {name: round(1000 * value, 2) for name, value in spread.items()}


def main() -> int:
    """Run the benchmark from the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=25, help="of each, at least 2")
    parser.add_argument("--warm-up", type=int, default=3, help="runs before, at least 1")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()

    times: dict[str, list[float]] = {module: [] for module in MODULES}
    with tempfile.TemporaryDirectory() as bytecode:
        for repetition in range(-arguments.warm_up, arguments.repetitions):
            for module in MODULES if repetition % 2 else reversed(MODULES):
                seconds = measure(module, bytecode)
                if repetition >= 0:
                    times[module].append(seconds)

    summary = {module: describe(times[module]) for module in MODULES}
    ratio = summary["vla_gym"]["median"] / summary["gymnasium"]["median"]
    machine, versions = describe_machine(), versions_of(("vla-gym", "gymnasium", "numpy"))
    command = shlex.join(["python", *sys.argv])
    print(f"{command}\n{machine}\n{versions}")
    print(
        f"{arguments.warm_up} warm-up runs and {arguments.repetitions} repetitions of each, "
        "taking turns"
    )
    for module, row in summary.items():
        print(
            f"import {module:<10} median {row['median']:7.1f} ms, quartiles {row['q1']:.1f} to "
            f"{row['q3']:.1f}, range {row['min']:.1f} to {row['max']:.1f}"
        )
    print(f"ratio of the medians {ratio:.3f} (target: below {TARGET})")
    if arguments.json:
        record = {
            "benchmark": "import_time",
            "command": command,
            "warm_up": arguments.warm_up,
            "repetitions": arguments.repetitions,
            "milliseconds": summary,
            "ratio": round(ratio, 4),
            "target": TARGET,
            "seconds": {name: [round(t, 5) for t in values] for name, values in times.items()},
            "versions": versions,
            "machine": machine,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if ratio < TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
