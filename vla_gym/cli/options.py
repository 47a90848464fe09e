"""Options that several commands share, and how KEY=VALUE and policies are read."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla_gym.errors import InvalidOption, UnknownName

if TYPE_CHECKING:
    from vla_gym.evaluation.evaluate import PolicySource

__all__ = [
    "CORES",
    "Keywords",
    "Workers",
    "make_config",
    "read_keywords",
    "read_policies",
    "read_settings",
    "set_option",
]

CORES = os.cpu_count() or 1

Keywords = Annotated[
    list[str] | None,
    typer.Option(
        "--keyword",
        "-k",
        metavar="KEY=VALUE",
        help="A keyword of gym.make, e.g. image_size=224 or cameras=primary,wrist. Repeatable.",
    ),
]
Workers = Annotated[int, typer.Option("--workers", "-w", min=1, help="Processes.")]


def set_option(config: str, example: str) -> Any:
    """Return the option for the fields of a config that have none of their own."""
    return typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help=f"Any other field of {config}, e.g. {example}. Repeatable.",
    )


def read_policies(items: Sequence[str]) -> dict[str, PolicySource]:
    """Return label -> name of each `name`, `name:file` or `label=name`."""
    found: dict[str, PolicySource] = {}
    for item in items:
        match = re.fullmatch(r"([^=:/]+)=(.+)", item)
        label, name = match.groups() if match else (item, item)
        if label in found:
            raise InvalidOption(
                f"two policies are called {label!r}; give one a label: --policy label={name}"
            )
        found[label] = name
    return found


def read_keywords(items: Sequence[str]) -> dict[str, Any]:
    """Return the keywords of `key=value` items; values are Python literals, else text.

    `true`, `false` and `none` count as literals, `a,b` as a tuple.
    """
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise InvalidOption(f"{item!r} is not key=value, e.g. image_size=224")
        found[key] = _read_value(value)
    return found


def read_settings(items: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a config that KEY=VALUE and GROUP.KEY=VALUE name."""
    found: dict[str, Any] = {}
    for key, value in read_keywords(items).items():
        group, dot, name = key.partition(".")
        if dot:
            found.setdefault(group, {})[name] = value
        else:
            found[key] = value
    return found


def make_config(cls: Any, values: Mapping[str, Any]) -> Any:
    """Return a config dataclass of plain values; its own dataclasses are made of mappings.

    Raises:
        UnknownName: a field that it does not have.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    found = {}
    for name, value in values.items():
        if name not in known:
            raise UnknownName("setting", name, sorted(known), cls.__name__)
        inner = known[name].default_factory
        if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            value = make_config(inner, value)
        if isinstance(value, str) and isinstance(known[name].default, tuple):
            value = (value,)  # one of what may be several
        found[name] = tuple(value) if isinstance(value, list) else value
    return cls(**found)


def _read_value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(filter(None, text.split(","))) if "," in text else text
