"""Videos in the page: the first episode of each policy and task, failures, perturbed episodes."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_gym.deps import require
from vla_gym.evaluation.metrics import CHAIN_TASKS
from vla_gym.evaluation.records import Key, Record
from vla_gym.evaluation.report.formats import name_task
from vla_gym.evaluation.report.gather import Results

__all__ = ["VIDEO_BYTES", "Film", "Gallery", "Reel", "make_gallery"]

VIDEO_BYTES = 60 * 2**20
"""Most that the videos of one page may have, as they stand in it (base64): browsers open a page of
some 100 MB slowly or not at all."""


@dataclass(frozen=True)
class Film:
    """One episode to be seen.

    Attributes:
        record: of the episode.
        verdict: its outcome in a word, or how many instructions of a chain were followed.
        video: `data:` URI of an mp4.
        poster: `data:` URI of its first picture.
    """

    record: Record
    verdict: str
    video: str
    poster: str


@dataclass(frozen=True)
class Reel:
    """Films of one task, or of one policy on one task. `instruction` is "" where they differ."""

    id: str
    name: str
    policy: str
    instruction: str
    chain: bool
    films: tuple[Film, ...]


@dataclass(frozen=True)
class Gallery:
    """All videos of a page.

    Attributes:
        first: for each task the first episode of each policy.
        further: for each task and policy what else was filmed: failures, and episodes under a
            perturbation.
        left_out: videos for which there was no room.
    """

    first: tuple[Reel, ...]
    further: tuple[Reel, ...]
    left_out: int

    @property
    def all_failed(self) -> bool:
        """Whether all of `further` are failures."""
        return all(f.record.outcome == "failure" for reel in self.further for f in reel.films)


def make_gallery(results: Results, most: int = VIDEO_BYTES) -> Gallery:
    """Return the videos, first episodes before others, as many as fit into `most` bytes.

    Args:
        results: with the files of the videos.
        most: bytes of all videos together, as the page holds them.
    """
    filmed = [record for record in results.records if record.key in results.videos]
    first = {r.key for r in results.first.values()}
    shown = [record for record in filmed if record.key in first]
    others = [record for record in filmed if record.key not in first]
    chosen = _choose([*shown, *_take_turns(others)], results.videos, most)
    films = {
        record.key: _make_film(record, results.videos[record.key])
        for record in (*shown, *others)
        if record.key in chosen
    }
    by_task = _collect(results, shown, films, by_policy=False)
    by_pair = _collect(results, others, films, by_policy=True)
    return Gallery(by_task, by_pair, len(filmed) - len(films))


def _take_turns(records: Iterable[Record]) -> list[Record]:
    """Return the first of each policy and task, then the second of each, and so on."""
    turns: dict[Key, int] = {}
    met: dict[tuple[str, str], int] = {}
    records = sorted(records, key=lambda record: (record.perturbation, record.episode))
    for record in records:
        turns[record.key] = met[record.policy, record.id] = (
            met.get((record.policy, record.id), -1) + 1
        )
    return sorted(records, key=lambda record: turns[record.key])


def _choose(records: Iterable[Record], videos: Mapping[Key, Path], most: int) -> set[Key]:
    chosen: set[Key] = set()
    for record in records:
        most -= 4 * -(-videos[record.key].stat().st_size // 3)  # base64
        if most < 0:
            break
        chosen.add(record.key)
    return chosen


def _collect(
    results: Results, records: Iterable[Record], films: Mapping[Key, Film], by_policy: bool
) -> tuple[Reel, ...]:
    groups: dict[tuple[str, str], list[Film]] = {}
    order = {name: k for k, name in enumerate([*results.ids, *results.policies])}
    for record in sorted(
        records, key=lambda r: (order[r.id], order[r.policy], r.perturbation, r.episode)
    ):
        if record.key in films:
            group = record.id, record.policy if by_policy else ""
            groups.setdefault(group, []).append(films[record.key])
    return tuple(
        Reel(
            id=env_id,
            name=name_task(env_id),
            policy=policy,
            instruction=_shared([film.record.instruction for film in found]),
            chain=env_id in results.chain_ids,
            films=tuple(found),
        )
        for (env_id, policy), found in groups.items()
    )


def _shared(texts: Sequence[str]) -> str:
    return texts[0] if len(set(texts)) == 1 else ""


def _make_film(record: Record, path: Path) -> Film:
    verdict = record.outcome
    if record.chain_length is not None:
        verdict = f"{record.chain_length} of {CHAIN_TASKS}"
    return Film(record, verdict, _embed("video/mp4", path.read_bytes()), _make_poster(path))


def _make_poster(path: Path) -> str:
    """Return the first picture: it shows without decoding the video, and on paper."""
    ffmpeg = require("imageio_ffmpeg", "eval", "a video's first picture").get_ffmpeg_exe()
    command = [ffmpeg, "-v", "error", "-i", path, "-frames:v", "1", "-f", "mjpeg", "-q:v", "4", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode or not done.stdout:  # half a file: the browser says so
        return ""
    return _embed("image/jpeg", done.stdout)


def _embed(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
