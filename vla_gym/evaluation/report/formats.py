"""Numbers and names as the report prints them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vla_gym.evaluation.metrics import Interval

__all__ = [
    "COLOURS",
    "DASH",
    "count",
    "describe_machine",
    "describe_pictures",
    "describe_setting",
    "describe_span",
    "format_difference",
    "format_interval",
    "format_number",
    "format_range",
    "format_rate",
    "name_task",
]

DASH = "\u2013"
"""Stands where there is no data; a 0 would be a claim."""

MINUS = "\u2212"

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C8C8C", "#B8A800")
"""Told apart by colour-blind readers too. Source: Okabe and Ito 2008, Color Universal Design; the
last two are darker than theirs, to be seen on white."""


def format_rate(rate: float | None) -> str:
    """Return a success rate as a percentage, a dash without data."""
    return DASH if rate is None else f"{100 * rate:.0f} %"


def format_interval(interval: Interval | None) -> str:
    """Return an interval of rates in percent, a dash without data."""
    if interval is None:
        return DASH
    return f"{100 * interval.low:.0f}{DASH}{100 * interval.high:.0f} %"


def format_number(value: float | None, digits: int = 1) -> str:
    """Return a number with so many decimals, a dash without data."""
    return DASH if value is None else f"{value:.{digits}f}"


def format_range(interval: Interval | None, digits: int = 1) -> str:
    """Return an interval of numbers with so many decimals, a dash without data."""
    if interval is None:
        return DASH
    return f"{interval.low:.{digits}f}{DASH}{interval.high:.{digits}f}"


def format_difference(difference: float | None) -> str:
    """Return a difference of two rates in percentage points, with its sign; a dash without data."""
    if difference is None:
        return DASH
    points = round(100 * difference)
    return f"{'+' if points > 0 else MINUS if points < 0 else ''}{abs(points)}"


def describe_setting(protocol: Mapping[str, Any]) -> str:
    """Return the simulator and the suite's keywords of a record's protocol, to stand by a score."""
    keywords = [f"{k}={v}" for k, v in protocol["keywords"].items() if v is not None]
    quality = protocol["render_quality"]
    fast = [] if quality == "exact" else [f"{quality} rendering"]
    return ", ".join([protocol["simulator"], *keywords, *fast])


def describe_span(values: Collection[Any]) -> str:
    """Return numbers without a gap as `first to last`, anything else as a list."""
    if not all(isinstance(value, int) for value in values):
        return ", ".join(sorted(map(str, values)))
    numbers = sorted(values)
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def describe_pictures(cameras: Sequence[str], size: int | Mapping[str, int]) -> list[str]:
    """Return the cameras and the size of their pictures [pixels]."""
    if isinstance(size, Mapping):
        return [f"{camera} at {size[camera]} px" for camera in cameras]
    return [f"{', '.join(cameras)} at {size} px"] if cameras else []


def describe_machine(machine: Mapping[str, Any]) -> str:
    """Return in words what `vla_gym.evaluation.records.describe_machine` has found."""
    memory = f", {machine['memory_gib']} GiB memory" if machine.get("memory_gib") else ""
    return (
        f"{machine['processor']}, {count(machine['cores'], 'core', 'cores')}{memory}, "
        f"{machine['system']}, Python {machine['python']}"
    )


def count(number: int, one: str, many: str) -> str:
    """Return `number` with the noun in its singular or plural."""
    return f"{number} {one if number == 1 else many}"


def name_task(env_id: str) -> str:
    """Return an id without what all ids have: `VLA/Toy-Reach-v0` is `Toy-Reach`."""
    return re.sub(r"-v\d+$", "", env_id.removeprefix("VLA/"))
