"""`vla-gym`: the only package of vla_gym that prints. A command's imports wait until it runs."""

from __future__ import annotations

import typer

from vla_gym.cli.catalogue import check_rendering_command, list_command, show_command
from vla_gym.cli.console import plain_errors
from vla_gym.cli.data import collect_command, convert_command, replay_command
from vla_gym.cli.doctor import doctor_command
from vla_gym.cli.evaluate import (
    compare_command,
    demo_command,
    evaluate_command,
    leaderboard_command,
    merge_command,
    protocols_command,
    report_command,
)
from vla_gym.cli.export import export_command
from vla_gym.cli.serve import serve_command
from vla_gym.cli.train import finetune_command, rlpd_command, train_command

__all__ = ["app"]

COMMANDS = {
    "Evaluation": {
        "eval": evaluate_command,
        "protocols": protocols_command,
        "report": report_command,
        "compare": compare_command,
        "leaderboard": leaderboard_command,
        "merge": merge_command,
        "export": export_command,
        "demo": demo_command,
    },
    "Environments and policies": {
        "list": list_command,
        "show": show_command,
        "doctor": doctor_command,
        "serve": serve_command,
        "check-rendering": check_rendering_command,
    },
    "Demonstrations": {
        "collect": collect_command,
        "replay": replay_command,
        "convert": convert_command,
    },
    "Training": {
        "train": train_command,
        "finetune": finetune_command,
        "rlpd": rlpd_command,
    },
}
"""Panel of `vla-gym --help` -> name -> command, in the order in which they are shown."""

app = typer.Typer(
    help="Robot-manipulation benchmarks as Gymnasium envs, and honest scores for policies on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(plain_errors(command))
