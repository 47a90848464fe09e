"""What several test files share: which optional packages a test needs."""

from __future__ import annotations

import os
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def read_extras() -> dict[str, list[str]]:
    """Return the extras of pyproject.toml: name -> requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["optional-dependencies"]


EXTRAS = read_extras()

BY_HAND = {"rlbench", "lerobot", "browser"}
"""What no extra installs, and VLA_GYM_REQUIRE may name all the same."""


def needs(*extras: str) -> pytest.MarkDecorator:
    """Mark a test, class, module (`pytestmark = needs("sb3")`) or parameter as needing extras.

    Where one is not installed the test is skipped, or fails if VLA_GYM_REQUIRE names the extra: a
    lane that is meant to have a simulator must not turn green without it.
    """
    for extra in extras:
        if extra not in EXTRAS:
            raise ValueError(f"needs({extra!r}): no such extra in pyproject.toml: {sorted(EXTRAS)}")
    return pytest.mark.needs(*extras)


def check_needs(*extras: str) -> None:
    """Skip or fail the running test or fixture now, by the rule of `needs`."""
    for extra in extras:
        lack = find_lack(extra)
        if lack is None:
            continue
        reason = f"needs {lack}: pip install 'vla-gym[{extra}]'"
        if extra in read_required():
            pytest.fail(f"{reason} (VLA_GYM_REQUIRE asks for {extra})", pytrace=False)
        pytest.skip(reason)


def read_required() -> set[str]:
    """Return what VLA_GYM_REQUIRE, a comma-separated list, wants tested for sure."""
    required = set(filter(None, os.environ.get("VLA_GYM_REQUIRE", "").split(",")))
    if unknown := required - set(EXTRAS) - BY_HAND:
        raise pytest.UsageError(f"VLA_GYM_REQUIRE: no extra {sorted(unknown)} in pyproject.toml")
    return required


def find_lack(extra: str) -> str | None:
    """Return the first requirement of the extra that is not met here, or None."""
    for line in EXTRAS[extra]:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        if wanted.name == "vla-gym":  # "vla-gym[a,b]": an extra made of extras
            lacks = (find_lack(inner) for inner in sorted(wanted.extras))
            if lack := next(filter(None, lacks), None):
                return lack
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            return str(wanted)
        if not wanted.specifier.contains(found, prereleases=True):
            return f"{wanted}, found {found}"
    return None


def check_calvin_root() -> None:
    """Skip the running test or fixture where CALVIN's original simulator cannot run.

    Fails instead where VLA_GYM_REQUIRE names calvin.
    """
    from vla_gym.suites.calvin.checkout import ROOT_VARIABLE, find_pybullet_obstacle

    asked = "calvin" in read_required()
    if not asked and not os.environ.get(ROOT_VARIABLE):
        pytest.skip(f"{ROOT_VARIABLE} is not set: CALVIN's original simulator is not tested")
    obstacle = find_pybullet_obstacle()
    if obstacle is not None:
        (pytest.fail if asked else pytest.skip)(obstacle)
