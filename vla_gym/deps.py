"""Optional packages: the only place that imports them by name and says how to install them."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from vla_gym.errors import BrokenDependency, DependencyNotInstalled

__all__ = ["find_missing", "require"]


def _install_line(extra: str) -> str:
    return f"pip install 'vla-gym[{extra}]'"


def find_missing(modules: tuple[str, ...]) -> str | None:
    """Return the first of `modules` that is not installed, without importing any of them."""
    for module in modules:
        try:
            found = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):  # a parent package is missing, or a half-removed module
            found = False
        if not found:
            return module
    return None


def require(module: str, extra: str, purpose: str = "") -> ModuleType:
    """Import and return `module`, which the optional extra `extra` of vla-gym installs.

    Args:
        module: dotted name of the module to import.
        extra: the extra of vla-gym that brings it, for the error text.
        purpose: what needs it, for the error text.

    Raises:
        DependencyNotInstalled: the module is not installed.
        BrokenDependency: it is installed, but importing it fails.
    """
    need = f"{purpose} needs the package" if purpose else "this needs the package"
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # A plain ImportError ("cannot import name") may carry the package's own name as well.
        missing = isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]
        if missing:
            raise DependencyNotInstalled(
                f"{need} {error.name!r}, which is not installed. Run: {_install_line(extra)}"
            ) from error
        raise BrokenDependency(
            f"{need} {module!r}, which is installed but cannot be imported ({error}). "
            f"Repair it with: {_install_line(extra)} --force-reinstall"
        ) from error
    except (
        Exception
    ) as error:  # an import may run any code: numba and GL loaders raise their own types
        raise BrokenDependency(
            f"{need} {module!r}, which is installed but fails while it is imported "
            f"({type(error).__name__}: {error}). "
            f"Repair it with: {_install_line(extra)} --force-reinstall"
        ) from error
