"""The user's checkout of calvin_env, the original simulator: where it is and what it lacks.

calvin_env is on no package index, and a wheel built of it has neither meshes nor configuration, so
that it is used from a git checkout.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vla_gym.deps import find_missing

__all__ = ["ROOT_VARIABLE", "STEPS", "find_commit", "find_pybullet_obstacle", "find_root"]

ROOT_VARIABLE = "CALVIN_ENV_ROOT"

STEPS = f"""\
To run CALVIN in its original simulator:
1. git clone https://github.com/mees/calvin_env
2. pip install 'vla-gym[calvin]' (Python below 3.12: PyBullet has no wheel for later ones)
3. export {ROOT_VARIABLE}=/path/of/calvin_env, or gym.make(..., \
calvin_env_root="/path/of/calvin_env")
PyBullet may also be installed for another Python, with OmegaConf and SciPy beside it: \
gym.make(..., simulator="pybullet", python="/path/of/that/python")."""

_MODULES = ("pybullet", "omegaconf", "scipy")

_PARTS = ("calvin_env/robot/robot.py", "conf/scene", "data")
"""What a checkout holds, and what an installed calvin_env would lack."""


def find_root(keyword: str | None = None) -> Path | None:
    """Return where the checkout is said to be: `keyword`, else CALVIN_ENV_ROOT, else None."""
    root = keyword or os.environ.get(ROOT_VARIABLE)
    return Path(root).expanduser().absolute() if root else None


def find_pybullet_obstacle(root: str | None = None) -> str | None:
    """Return what CALVIN in PyBullet lacks here and the steps to get it, or None.

    Imports nothing: importing PyBullet takes time and prints.

    Args:
        root: as for `find_root`.
    """
    lacks = [*_find_lacking_parts(find_root(root)), *_find_lacking_modules()]
    if not lacks:
        return None
    return f"the simulator 'pybullet' needs {'; '.join(lacks)}.\n{STEPS}"


def _find_lacking_parts(root: Path | None) -> list[str]:
    if root is None:
        return [
            f"a checkout of calvin_env, and neither calvin_env_root nor the environment variable "
            f"{ROOT_VARIABLE} says where one is"
        ]
    missing = [part for part in _PARTS if not (root / part).exists()]
    if not missing:
        return []
    return [f"a checkout of calvin_env, which {str(root)!r} is not: it has no {missing[0]}"]


def _find_lacking_modules() -> list[str]:
    lacks = []
    for module in _MODULES:
        if find_missing((module,)):
            version = ".".join(map(str, sys.version_info[:2]))
            lacks.append(f"the package {module!r}, which is not installed for Python {version}")
    return lacks


def find_commit(root: Path) -> str | None:
    """Return the commit that the checkout is at, 40 hexadecimal digits; None if it cannot be told.

    Reads git's files by itself: upstream asks GitPython, which needs a `git` program and refuses a
    folder that belongs to another user. Files that were changed after checking out are not noticed.
    """
    try:
        folder = root / ".git"
        if folder.is_file():  # a submodule or a linked work tree: "gitdir: <folder>"
            folder = root / folder.read_text().partition(":")[2].strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        reference = head.partition(":")[2].strip()
        shared = folder / "commondir"  # of a linked work tree
        if shared.is_file():
            folder = folder / shared.read_text().strip()
        if (folder / reference).is_file():
            return (folder / reference).read_text().strip()
        for line in (folder / "packed-refs").read_text().splitlines():
            if line.endswith(f" {reference}"):
                return line.split()[0]
    except OSError:
        pass
    return None
