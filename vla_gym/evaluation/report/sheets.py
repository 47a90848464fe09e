"""`report.csv` and `episodes.csv`; an empty field is a number that does not exist."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from vla_gym.evaluation.metrics import (
    CHAIN_TASKS,
    ChainSummary,
    Summary,
    summarize,
    summarize_chains,
)
from vla_gym.evaluation.report.gather import Results

__all__ = ["list_episodes", "list_summaries"]

_SUMMARY = (
    *("policy", "id", "perturbation", "n", "successes", "crashed", "timeouts", "success_rate"),
    *("wilson95_low", "wilson95_high", "mean_return", "t95_low", "t95_high", "mean_length"),
    *("mean_seconds", "policy_ms_per_step", "protocol", "simulator", "keywords"),
)
_CHAIN = (
    *(f"sr_{k}{end}" for k in range(1, CHAIN_TASKS + 1) for end in ("", "_low95", "_high95")),
    *("average_length", "average_length_low95", "average_length_high95"),
)
_EPISODE = (
    *("policy", "id", "perturbation", "episode", "seed", "episode_seed", "outcome"),
    *("success_at_end", "episode_return", "length", "chain_length", "terminated", "truncated"),
    *("env_seconds", "policy_seconds", "attempts", "instruction", "error", "video", "date"),
)


def list_summaries(results: Results) -> str:
    """Return one row per policy, id and perturbation, as CSV."""
    chains = {(s.policy, s.id, s.perturbation): s for s in summarize_chains(results.records)}
    protocols = {(r.policy, r.id, r.perturbation): r.protocol for r in results.records}
    rows = []
    for s in summarize(results.records):
        key = s.policy, s.id, s.perturbation
        protocol = protocols[key]
        keywords = " ".join(f"{k}={v}" for k, v in protocol["keywords"].items())
        row = [*key, s.n, s.successes, s.crashed, s.timeouts, *_numbers(s)]
        row += [protocol.get("protocol", ""), protocol["simulator"], keywords]
        if key in chains:
            row += _chain_numbers(chains[key])
        elif chains:
            row += [""] * len(_CHAIN)
        rows.append(row)
    return _write([*_SUMMARY, *(_CHAIN if chains else ())], rows)


def list_episodes(results: Results) -> str:
    """Return one row per episode, as CSV."""
    columns = [*_EPISODE, "protocol", "simulator"]
    rows = (
        [
            *(_field(getattr(record, name)) for name in _EPISODE),
            record.protocol.get("protocol", ""),
            record.protocol["simulator"],
        ]
        for record in results.records
    )
    return _write(columns, rows)


def _write(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def _numbers(s: Summary) -> list[Any]:
    rate, returns = s.rate_interval or (None, None), s.return_interval or (None, None)
    values = (s.rate, *rate, s.mean_return, *returns, s.mean_length, s.mean_seconds, s.policy_ms)
    return list(map(_field, values))


def _chain_numbers(s: ChainSummary) -> list[Any]:
    nothing = (None, None)
    values: list[float | None] = []
    for k, rate in enumerate(s.rates or (None,) * CHAIN_TASKS):
        values += [rate, *(s.rate_intervals[k] if s.rate_intervals else nothing)]
    values += [s.mean_length, *(s.length_interval or nothing)]
    return list(map(_field, values))


def _field(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else value
