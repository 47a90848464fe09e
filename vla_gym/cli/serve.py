"""`vla-gym serve`: a policy for others' programs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import typer

from vla_gym.cli.console import console
from vla_gym.cli.options import Keywords, read_keywords
from vla_gym.errors import InvalidOption

if TYPE_CHECKING:
    from vla_gym.contract import SpecSheet

__all__ = ["serve_command"]


def serve_command(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="Name, or name:file.")],
    host: Annotated[str, typer.Option(help="The default: this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    env: Annotated[
        str | None,
        typer.Option("--env", "-e", help="Id in whose convention it acts, for one that needs it."),
    ] = None,
    dialect: Annotated[
        str, typer.Option(help="Keys and forms of the clients: vla_gym, libero or libero-native.")
    ] = "vla_gym",
    keyword: Keywords = None,
) -> None:
    """Serve a policy to others' programs in the openpi protocol, until Ctrl-C."""
    from vla_gym.policy import make_policy
    from vla_gym.serving import serve

    made = make_policy(policy)
    sheet = None if env is None else _sheet_for(made, env, read_keywords(keyword or []))
    if keyword and env is None:
        raise InvalidOption(f"--keyword {keyword[0]} is of an env: name it with --env")
    with contextlib.suppress(KeyboardInterrupt):
        serve(
            made,
            host=host,
            port=port,
            sheet=sheet,
            dialect=dialect,
            label=policy,
            on_ready=lambda address: console.print(
                f"serving {policy} at {address}", highlight=False, markup=False, soft_wrap=True
            ),
        )


def _sheet_for(policy: Any, pattern: str, keywords: dict[str, Any]) -> SpecSheet:
    """Return the spec sheet of an env made for the policy; no simulator starts."""
    from vla_gym.evaluation.evaluate import find_ids

    (first, *more) = find_ids([pattern])
    if more:
        raise InvalidOption(f"{pattern!r} names {1 + len(more)} ids; choose one, such as {first}")
    spec = getattr(policy, "spec", None)
    env = gym.make(first, **{**(spec.env_keywords() if spec else {}), **keywords})
    try:
        return env.unwrapped.spec_sheet  # type: ignore[attr-defined]  # ours
    finally:
        env.close()
