"""Imports point one way, and what a module promises exists."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.support import ROOT
from vla_gym.errors import DependencyNotInstalled

LAYERS = (
    ("_version", "errors", "worker_main"),
    ("deps", "suite", "rotations"),
    ("meshes", "scenery", "video", "visibility", "wire"),
    ("faces",),
    ("face_lists",),
    ("frames",),
    ("rendering", "embedding", "worker"),
    ("instruction",),
    ("contract",),
    ("suites",),
    ("twins",),
    ("registration",),
    ("processes",),
    ("env", "adapt"),
    ("conformance", "wrappers", "vector", "embedding_table", "perturbations"),
    ("policy",),
    ("rollout",),
    ("evaluation", "data", "doctor", "serving"),
    ("collect", "replay"),
    ("train",),
    ("demo",),
    ("cli",),
)
"""Modules and packages of vla_gym: each may import what stands above it and its own package."""

POLICY_MAY_IMPORT = {"contract", "errors", "deps", "instruction", "rotations", "suite"}
"""A policy knows the contract, not the env: it also runs where no env is (on a robot)."""

PUBLIC = {
    "vla_gym",
    "vla_gym.contract",
    "vla_gym.deps",
    "vla_gym.errors",
    "vla_gym.instruction",
    "vla_gym.policy",
    "vla_gym.registration",
    "vla_gym.rotations",
    "vla_gym.suites.calvin.scenes",
    "vla_gym.suites.calvin.skills",
    "vla_gym.suites.calvin.table",
    "vla_gym.suites.calvin.tasks",
    "vla_gym.twins.panda",
    "vla_gym.twins.rlbench.tasks",
    "vla_gym.twins.rlbench.world",
    "vla_gym.wire",
}
"""What `policies/` may import, as an outside plug-in may."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def find_modules(folder, package):
    """Return dotted name -> path of every module of a package."""
    found = {}
    for path in sorted((folder / package).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


CORE = find_modules(ROOT, "vla_gym")
PLUGINS = find_modules(ROOT / "policies", "vla_gym_policies")
MODULES = CORE | PLUGINS


def read_imports(name, path=None, source=None):
    """Return the modules of ours that a module imports anywhere in it, lazily or for types too.

    `from vla_gym import errors` counts as `vla_gym.errors`, `from vla_gym import make_policy` as
    `vla_gym`.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: so many packages up
                is_package = path is not None and path.name == "__init__.py"
                parts = name.split(".") + ([""] if is_package else [])
                base = ".".join([*parts[: -node.level], *([base] if base else [])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= {i for i in inner if i in MODULES} or {base}
            if any(i not in MODULES for i in inner):
                found.add(base)
    return {i for i in found if i.split(".")[0] in ("vla_gym", "vla_gym_policies")} - {name}


def group_of(module):
    """Return the name of LAYERS for a module: `vla_gym.suites.toy` -> `suites`."""
    return module.split(".")[1]


def find_faults(name, imports):
    """Return what is wrong with the imports of a module of vla_gym."""
    faults = []
    own = group_of(name)
    for module in sorted(imports):
        if module.split(".")[0] == "vla_gym_policies":
            faults.append(f"{name} imports {module}: policies are found by entry point")
        elif module == "vla_gym":
            if own not in LAYERS[-1]:
                faults.append(f"{name} imports a name of the whole package: take its module")
        elif own != group_of(module):
            if LEVEL[group_of(module)] >= LEVEL[own]:
                faults.append(f"{name} imports {module}, which stands above or beside it")
            elif own == "policy" and group_of(module) not in POLICY_MAY_IMPORT:
                faults.append(f"{name} imports {module}: a policy knows the contract alone")
    return faults


def test_the_reader_of_imports_sees_every_way_to_import():
    source = (
        "import vla_gym.env\n"
        "from vla_gym import errors, make_policy\n"
        "from vla_gym.suite import Task\n"
        "from . import toy\n"
        "from ..deps import require\n"
        "import numpy.vla_gym\n"
        "def f():\n    from vla_gym.suites.robosuite import SUITE\n"
    )
    assert read_imports("vla_gym.suites.metaworld", source=source) == {
        "vla_gym.env",
        "vla_gym.errors",
        "vla_gym",
        "vla_gym.suite",
        "vla_gym.suites.toy",
        "vla_gym.deps",
        "vla_gym.suites.robosuite",
    }


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("vla_gym.contract", "vla_gym.env"),
        ("vla_gym.suite", "vla_gym.contract"),
        ("vla_gym.suites.toy", "vla_gym.registration"),
        ("vla_gym.registration", "vla_gym.env"),
        ("vla_gym.policy.matching", "vla_gym.registration"),
        ("vla_gym.rollout", "vla_gym.evaluation.evaluate"),
        ("vla_gym.env", "vla_gym"),
        ("vla_gym.cli", "vla_gym_policies.random"),
    ],
)
def test_an_import_that_points_the_wrong_way_is_a_fault(module, imported):
    assert len(find_faults(module, {imported})) == 1


@pytest.mark.parametrize("name", sorted(set(CORE) - {"vla_gym"}))
def test_imports_point_one_way(name):
    assert group_of(name) in LEVEL, f"give {name} its place in LAYERS"
    assert not find_faults(name, read_imports(name, CORE[name]))


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_policies_import_only_what_an_outside_plug_in_may(name):
    imports = read_imports(name, PLUGINS[name])
    outside = {i for i in imports if i.split(".")[0] != "vla_gym_policies"}
    assert outside <= PUBLIC, f"{name} imports {sorted(outside - PUBLIC)}"


@pytest.mark.parametrize(
    "name", [name for name in sorted(MODULES) if "__all__" in MODULES[name].read_text()]
)
def test_everything_in_all_exists_once(name):
    try:
        module = importlib.import_module(name)
    except (DependencyNotInstalled, ModuleNotFoundError) as error:
        # The core imports what is optional only when it is used; what subclasses torch's and
        # Stable-Baselines3's classes cannot, and is itself imported only when it is used.
        if name in CORE and not name.startswith("vla_gym.train."):
            raise
        pytest.skip(f"{name} needs an optional package: {error}")
    names = module.__all__
    assert len(set(names)) == len(names) > 0
    assert [n for n in names if not hasattr(module, n)] == []


def test_core_modules_outside_the_suites_say_what_is_public():
    silent = {name for name in CORE if "__all__" not in CORE[name].read_text()}
    # Suites are data, their SUITE; a twin's tasks are the classes that tasks/__init__.py names.
    suites = {name for name in silent if name.startswith("vla_gym.suites.") or ".tasks." in name}
    packages = {name for name in silent if CORE[name].name == "__init__.py"}
    assert silent - suites - packages == {"vla_gym._version", "vla_gym.cli.__main__"}


def is_main_block(node):
    """Return whether a statement is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def find_prints(source):
    """Return the lines that call print, outside `__main__` blocks and the `_main` that they call.

    A command that a developer runs by `python -m` may talk; a library writes to its logger.
    """
    lines = []

    def visit(node):
        if is_main_block(node) or (isinstance(node, ast.FunctionDef) and node.name == "_main"):
            return
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "builtins.print"):
            lines.append(node.lineno)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return lines


def test_the_finder_of_prints_finds_them():
    assert find_prints("def f():\n    print(1)\nif __name__ == '__main__':\n    print(2)\n") == [2]
    assert find_prints("def _main():\n    print(1)\nclass A:\n    x = print\n    print(3)\n") == [5]


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"vla_gym.cli"}))
def test_nothing_prints_below_the_command_line(name):
    assert find_prints(Path(MODULES[name]).read_text()) == []


def test_no_module_imports_everything_of_another():
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), name
