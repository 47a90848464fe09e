"""Run all benchmarks that need no long experiment, show the ratios, compare with the floors.

    python benchmarks/run.py --quick    # a few minutes, few turns, the main cases
    python benchmarks/run.py            # all cases
    python benchmarks/run.py --publish  # all, into benchmarks/results, the docs and the README

Exit status 1 where a ratio is worse than its floor in `floors.json` by more than its own noise, or
where a benchmark failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from harness import find_misses
from summary import BENCHMARKS, RESULTS, ROOT, print_table, publish, read_floors, read_records


def run(name: str, folder: Path, quick: bool) -> bool:
    """Run one script and return whether it came to its end."""
    path = folder / f"{name}.json"
    (ROOT / path).unlink(missing_ok=True)
    command = [f"benchmarks/{name}.py", "--json", str(path), *(["--quick"] if quick else [])]
    print(f"\n== {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT)
    return (ROOT / path).exists() and json.loads((ROOT / path).read_text())["finished"]


def judge(folder: Path, names: list[str], failed: list[str]) -> list[str]:
    """Return everything that is wrong with the records of a run."""
    records = [record for record in read_records(folder) if record["benchmark"] in names]
    floors = read_floors()
    print_table(records, floors)
    for record in records:
        if floors["renderer"] not in str(record["renderer"]):
            print(f"{record['benchmark']}: drawn by {record['renderer']}, not compared with floors")
    complaints = [f"{name}: failed" for name in failed]
    for record in records:
        complaints += find_misses(record, floors)
    return complaints


def main() -> int:
    """Run the benchmarks from the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(BENCHMARKS)}; all without")
    parser.add_argument("--quick", action="store_true", help="fewer turns, fewer cases")
    parser.add_argument("--out", type=Path, default=Path("results/bench"), help="folder of records")
    parser.add_argument("--publish", action="store_true", help="into the repository's own pages")
    arguments = parser.parse_args()
    names = arguments.names or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"no benchmark {sorted(unknown)}; there are {', '.join(BENCHMARKS)}")
    if arguments.publish and arguments.quick:
        parser.error("--publish is for whole runs, not for --quick")

    folder = RESULTS.relative_to(ROOT) if arguments.publish else arguments.out
    started = time.monotonic()
    failed = [name for name in names if not run(name, folder, arguments.quick)]
    complaints = judge(ROOT / folder, names, failed)
    if arguments.publish and not failed:
        publish()
    print(f"{len(names)} benchmarks in {(time.monotonic() - started) / 60:.1f} minutes, {folder}/")
    for complaint in complaints:
        print(f"FAILED {complaint}")
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
