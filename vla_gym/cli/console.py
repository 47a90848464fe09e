"""What every command prints to, the exit codes, and errors without a traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import typer
from rich.console import Console
from rich.markup import escape

__all__ = [
    "EXIT_CRASHED",
    "EXIT_ERROR",
    "EXIT_INTERRUPTED",
    "console",
    "errors",
    "plain_errors",
]

console = Console()
errors = Console(stderr=True)

EXIT_CRASHED, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 130
"""Something was found amiss; something asked for is not possible; Ctrl-C."""


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show an error that a user can act on as one red paragraph, without a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **keywords: Any) -> None:
        try:
            command(*args, **keywords)
        except (gym.error.Error, OSError) as error:
            errors.print(f"[bold red]Error:[/] [red]{escape(str(error))}[/]", highlight=False)
            raise typer.Exit(EXIT_ERROR) from error

    return run
