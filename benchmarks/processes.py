"""Processor time and memory of processes, as Linux shows them."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

QUIET = 0.1
"""Most that other programs may take of a machine that is called quiet [cores]."""


def read_machine() -> float:
    """Return the processor time of all programs since the machine started [s]."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    idle = int(fields[3]) + int(fields[4])  # and waiting for disks
    return (sum(map(int, fields[:8])) - idle) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(limit_s: float) -> None:
    """Return when other programs leave the machine alone, or after `limit_s`."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        before = read_machine()
        time.sleep(0.3)
        if (read_machine() - before) / 0.3 < QUIET:
            return


def find_descendants() -> set[int]:
    """Return the processes that this one has started, and those have started, as Linux shows."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(_read_stat(stat)[1])
    found, new = set(), {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new}
        found |= new
    return found


def read_processor(pid: int) -> float:
    """Return the processor time of a process, of the user and of the system [s]."""
    fields = _read_stat(Path(f"/proc/{pid}/stat"))
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_memory(pid: int | str = "self") -> float:
    """Return the memory of a process [MB]: its own, and its part of what it shares (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def read_resident() -> float:
    """Return how much of this process is in RAM [MB] (RSS)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _read_stat(stat: Path) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on: state, parent, ..."""
    return stat.read_text().rpartition(")")[2].split()
