"""What suites share to run others' packages, which meddle with GL and talk on the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

__all__ = ["keep_gl_choice", "quiet"]

GL_VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM")


@contextlib.contextmanager
def keep_gl_choice() -> Iterator[None]:
    """Undo what an import inside does to the choice of GL: the user's, and `rendering`'s."""
    before = {name: os.environ.get(name) for name in GL_VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _ErrorsOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR


_ERRORS_ONLY = _ErrorsOnly()


@contextlib.contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Keep what a logger says below errors off the terminal."""
    found = logging.getLogger(logger)
    found.addFilter(_ERRORS_ONLY)
    try:
        yield
    finally:
        found.removeFilter(_ERRORS_ONLY)
