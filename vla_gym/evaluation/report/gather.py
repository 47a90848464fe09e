"""What one or more folders hold, under labels that name one policy each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vla_gym.evaluation.metrics import ChainSummary, Summary, summarize, summarize_chains
from vla_gym.evaluation.records import Key, Record, plain_id
from vla_gym.evaluation.report.formats import COLOURS
from vla_gym.evaluation.store import load_records, load_runs

__all__ = ["Results", "gather"]

Pair = tuple[str, str]
"""Policy and id."""


@dataclass(frozen=True)
class Results:
    """The episodes of a report, and what is known of the runs that played them.

    Attributes:
        records: of all folders, each policy under a label of its own.
        runs: as `vla_gym.evaluation.store.load_runs` gives them.
        videos: the files that there are.
    """

    records: tuple[Record, ...]
    runs: tuple[Mapping[str, Any], ...]
    videos: Mapping[Key, Path]

    @cached_property
    def plain(self) -> list[Record]:
        """The episodes without a perturbation: those that a score is made of."""
        return [record for record in self.records if not record.perturbation]

    @cached_property
    def summaries(self) -> dict[Pair, Summary]:
        """Of the episodes without a perturbation."""
        return {(s.policy, s.id): s for s in summarize(self.plain)}

    @cached_property
    def chains(self) -> dict[Pair, ChainSummary]:
        """Of the episodes without a perturbation on long-horizon tasks."""
        return {(s.policy, s.id): s for s in summarize_chains(self.plain)}

    @cached_property
    def first(self) -> dict[Pair, Record]:
        """A record of each pair: the earliest episode that was filmed, else the earliest."""
        found: dict[Pair, Record] = {}
        for record in sorted(self.plain, key=lambda r: (r.key not in self.videos, r.episode)):
            found.setdefault((record.policy, record.id), record)
        return {pair: found[pair] for pair in self.summaries}

    @cached_property
    def policies(self) -> list[str]:
        """Labels, in the order in which they were asked for."""
        present = dict.fromkeys(record.policy for record in self.records)
        asked = dict.fromkeys(name for run in self.runs for name in run.get("policies", {}))
        return list(dict.fromkeys([*(name for name in asked if name in present), *present]))

    @cached_property
    def colours(self) -> dict[str, str]:
        """Label -> colour."""
        return {p: COLOURS[i % len(COLOURS)] for i, p in enumerate(self.policies)}

    @cached_property
    def ids(self) -> list[str]:
        """Ids, in the order in which they were asked for."""
        played = dict.fromkeys(record.id for record in self.records)  # as they ended
        asked = [plain_id(env_id) for run in self.runs for env_id in run.get("ids", [])]
        return list(dict.fromkeys([*(i for i in asked if i in played), *played]))

    @cached_property
    def tasks(self) -> list[str]:
        """Ids with episodes without a perturbation that play no chain."""
        played = {env_id for _, env_id in self.summaries} - set(self.chain_ids)
        return [env_id for env_id in self.ids if env_id in played]

    @cached_property
    def chain_ids(self) -> list[str]:
        """Ids that play chains of instructions."""
        chains = {env_id for _, env_id in self.chains}
        return [env_id for env_id in self.ids if env_id in chains]

    @cached_property
    def by_id(self) -> dict[str, list[Record]]:
        """Id -> its episodes without a perturbation."""
        found: dict[str, list[Record]] = {}
        for record in self.plain:
            found.setdefault(record.id, []).append(record)
        return found

    @cached_property
    def mismatches(self) -> dict[Pair, str]:
        """Pair -> why the policy does not fit the task."""
        items = [item for run in self.runs for item in run.get("mismatches", [])]
        return {(item["policy"], plain_id(item["id"])): item["why"] for item in items}

    @cached_property
    def protocols(self) -> list[str]:
        """The named protocols that the episodes were played by."""
        names = (record.protocol.get("protocol") or "" for record in self.records)
        return [name for name in dict.fromkeys(names) if name]

    def simulators(self, ids: Sequence[str]) -> list[str]:
        """Return the simulators of these ids' episodes."""
        found = (r.protocol["simulator"] for env_id in ids for r in self.by_id.get(env_id, ()))
        return list(dict.fromkeys(found))


def gather(folders: Sequence[Path]) -> Results:
    """Return what the folders hold together.

    One policy's episodes are pooled over folders where they were played under one protocol and none
    twice; else the later folder's policy gets a label of its own, with the folder's name.

    Raises:
        InvalidOption: a folder's records are damaged.
    """
    records: list[Record] = []
    videos: dict[Key, Path] = {}
    runs: list[Mapping[str, Any]] = []
    for folder in folders:
        new = load_records(folder)
        labels = _find_labels(folder, records, new)
        for record in new:
            record = replace(record, policy=labels[record.policy])
            records.append(record)
            if record.video and (folder / record.video).is_file():
                videos[record.key] = folder / record.video
        runs += [_relabel(run, labels) for run in load_runs(folder)]
    return Results(tuple(records), tuple(runs), videos)


def _find_labels(folder: Path, known: Sequence[Record], new: Sequence[Record]) -> dict[str, str]:
    """Return policy -> its label in the report, for the policies of one more folder."""
    keys = {record.key for record in known}
    protocols = {(r.policy, r.id, r.perturbation): r.protocol for r in known}
    taken = {record.policy for record in known}
    apart = {
        r.policy
        for r in new
        if r.key in keys
        or protocols.get((r.policy, r.id, r.perturbation), r.protocol) != r.protocol
    }
    labels = {}
    for policy in dict.fromkeys(record.policy for record in new):
        label = policy
        if policy in apart:
            label = f"{policy} ({folder.name})"
            if label in taken:
                label = f"{policy} ({folder})"
        labels[policy] = label
    return labels


def _relabel(run: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    policies = {labels.get(name, name): source for name, source in run.get("policies", {}).items()}
    mismatches = [
        {**item, "policy": labels.get(item["policy"], item["policy"])}
        for item in run.get("mismatches", [])
    ]
    return {**run, "policies": policies, "mismatches": mismatches}
