"""Settings for every test, made before NumPy, torch and MuJoCo are imported.

Threads are limited because the test runner itself uses every core: without it each of n workers
starts n threads per matrix product. Child processes of a test inherit the limits.
"""

from __future__ import annotations

import os

for name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ.setdefault(f"{name}_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing may be fetched from a model hub
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
from hypothesis import settings

from tests.support import check_needs, read_required

# No deadline: a shared core may stall any example. In CI the same examples every time, so that a
# red run can be repeated; at a developer's desk new ones, which may find more.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("desk", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "desk")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a misspelt VLA_GYM_REQUIRE before any test runs."""
    read_required()


@pytest.hookimpl(tryfirst=True)  # before the fixtures of the test, which may import the package
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test whose extras are not installed (see `tests.support.needs`)."""
    for mark in item.iter_markers("needs"):
        check_needs(*mark.args)
