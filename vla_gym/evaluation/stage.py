"""What a worker does: it holds one policy and one env, and plays jobs with them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import pickle
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import gymnasium as gym

from vla_gym.contract import SpecSheet
from vla_gym.errors import ContractMismatch, DependencyNotInstalled, InvalidOption
from vla_gym.evaluation.records import versions_of
from vla_gym.evaluation.reenactment import Reenactment, find_difference
from vla_gym.evaluation.video import write_video
from vla_gym.perturbations import make_keywords, parse_perturbation, perturb
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import MAX_FRAMES, Episode, Trace, run_episode

__all__ = [
    "Answer",
    "Check",
    "Died",
    "Failed",
    "Film",
    "Job",
    "Pair",
    "Play",
    "Played",
    "Stage",
    "TimedOut",
    "make_from",
    "portable",
]

logger = logging.getLogger(__name__)

VIDEO_FPS = (6.0, 15.0)
"""Slowest and fastest playback [pictures/s]: some suites act at 80 Hz, too fast to follow."""

NOT_KEYWORDS = ("suite", "task", "python", "timeout_s", "on_crash", "render_mode")
"""What an env was made with that its id says, or that is of this machine: not what it is."""

PolicyMaker = Callable[[str, "str | Callable[[], Any]"], Any]
"""Maps a policy's label and source to the policy."""


@dataclass(frozen=True)
class Pair:
    """A policy and a task, with all that is needed to make both in another process.

    Attributes:
        policy: label in the evaluation. It stands for the source too, which is not compared: a
            `functools.partial` that has been pickled no longer equals itself.
        source: what `make_policy` takes, or a picklable function that returns a policy.
        id: as `gym.make` takes it, with its version.
        keywords: of `gym.make`; they go before what the policy's spec asks for.
        max_steps: horizon [control steps], None for the task's own.
        deterministic: passed to the policy.
        success: `"any"` step that solves the task counts, and ends the episode; or the `"last"`.
        perturbation: as `vla_gym.perturbations.parse_perturbation` takes it, `""` for none.
        batch: most envs that one call of the policy serves; 1: each worker has a policy of its own.
        protocol: name of the published protocol, `""` for none.
    """

    policy: str
    source: str | Callable[[], Any] = field(compare=False)
    id: str
    keywords: dict[str, Any] = field(default_factory=dict, hash=False)
    max_steps: int | None = None
    deterministic: bool = True
    success: str = "any"
    perturbation: str = ""
    batch: int = 1
    protocol: str = ""


class Job(Protocol):
    """What a worker can be given: picklable, and answers with something picklable."""

    @property
    def pair(self) -> Pair:
        """The policy and the task that it is about."""
        ...

    def run(self, stage: Stage) -> Any:
        """Do it in a worker, with its policy and its env."""
        ...


@dataclass(frozen=True)
class Check:
    """Job: make the policy and the env, and answer with the protocol (a dict)."""

    pair: Pair

    def run(self, stage: Stage) -> dict[str, Any]:
        """Do it in a worker."""
        env, _ = stage.open(self.pair)
        sheet: SpecSheet = env.unwrapped.spec_sheet  # type: ignore[attr-defined]  # all ids are ours
        return _protocol(sheet, env, self.pair)


@dataclass(frozen=True)
class Play:
    """Job: play one episode, reset with `options`; with `film`, record a video of it."""

    pair: Pair
    episode: int
    seed: int
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    film: bool = False

    def run(self, stage: Stage) -> Played:
        """Do it in a worker."""
        env, actor = stage.open(self.pair)
        played = stage.play(env, actor, self)
        stage.rest()
        return played


@dataclass(frozen=True)
class Film:
    """Job: play a recorded episode again, without its policy, and record a video of it."""

    play: Play
    trace: Trace = field(hash=False, compare=False)

    @property
    def pair(self) -> Pair:
        """The policy and the task that it is about."""
        return self.play.pair

    def run(self, stage: Stage) -> Played:
        """Do it in a worker.

        Raises:
            InvalidOption: the episode did not come out as it was recorded.
        """
        env, _ = stage.open(self.pair)
        played = stage.play(env, Reenactment(self.trace), replace(self.play, film=True))
        again = played.episode.trace
        step = None if again is None else find_difference(self.trace, again)
        if step is not None:
            raise InvalidOption(f"played again it was another episode, from step {step} on")
        return played


@dataclass(frozen=True)
class Played:
    """Answer: the episode (without its frames), keywords of its env, and an mp4 file's bytes."""

    episode: Episode
    keywords: dict[str, Any]
    video: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Failed:
    """Answer: the job raised an error."""

    error: Exception
    text: str
    outcome: ClassVar[str] = "crashed"


@dataclass(frozen=True)
class Died:
    """Answer in the place of a worker that ended before it gave one."""

    text: str
    outcome: ClassVar[str] = "crashed"


@dataclass(frozen=True)
class TimedOut:
    """Answer in the place of a worker that stood still for too long, and was killed."""

    text: str
    outcome: ClassVar[str] = "timeout"


Answer = Any
"""What a job's `run` returns, or `Failed`, `Died` or `TimedOut` in its place."""


class Stage:
    """The one policy and the one env that a worker has open.

    Args:
        make: makes the policies.
        beat: called whenever there is progress; who hears nothing for long takes it as hung.
    """

    def __init__(
        self, make: PolicyMaker | None = None, beat: Callable[[], None] = lambda: None
    ) -> None:
        self._make = make or (lambda label, source: make_from(source))
        self._beat = beat
        self._label: str | None = None
        self._policy: Any = None
        self._pair: Pair | None = None
        self._env: gym.Env[Any, Any] | None = None
        self._actor: Any = None
        self._pictures = True

    def play(self, env: gym.Env[Any, Any], actor: Any, job: Play) -> Played:
        """Play an episode, and film it if the job says so and pictures can be made here."""
        play = functools.partial(
            run_episode,
            env,
            actor,
            job.seed,
            options=job.options,
            deterministic=job.pair.deterministic,
            trace=True,
        )
        if not job.film or not self._pictures:
            return Played(play(record_every=None), _find_keywords(env))
        control_hz = float(env.metadata["render_fps"])
        horizon = env.spec.max_episode_steps if env.spec is not None else None
        try:
            episode = play(record_every=math.ceil((horizon or 1) / (3 * MAX_FRAMES)))
            slowest, fastest = VIDEO_FPS
            fps = min(max(control_hz / episode.frame_stride, slowest), fastest)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "video.mp4")
                write_video(path, episode.frames, fps)
                video = path.read_bytes()
        except DependencyNotInstalled as error:  # no GL, no ffmpeg: the score does not need them
            logger.warning("no video: %s", error)
            self._pictures = False
            return self.play(env, actor, job)
        return Played(replace(episode, frames=()), _find_keywords(env), video)

    def rest(self) -> None:
        """Tell a shared policy that this worker will ask for nothing until its next episode."""
        if hasattr(self._policy, "rest"):
            self._policy.rest()

    def clear(self) -> None:
        """Close the env and forget the policy."""
        if self._env is not None:
            with contextlib.suppress(Exception):  # a crashed simulator may fail to close
                self._env.close()
        if hasattr(self._policy, "close"):
            with contextlib.suppress(Exception):
                self._policy.close()
        self._env = self._actor = self._pair = self._policy = self._label = None

    def open(self, pair: Pair) -> tuple[gym.Env[Any, Any], Any]:
        """Return the env of a pair, and its policy fitted to it; those of the last one are kept."""
        if self._env is not None and pair == self._pair:
            return self._env, self._actor
        if self._label != pair.policy:
            self.clear()
            self._policy = self._make(pair.policy, pair.source)
            self._label = pair.policy
            _limit_torch()
            self._beat()
        if self._env is not None:
            self._env.close()
            self._env = None
        spec = getattr(self._policy, "spec", None)
        _refuse_other_suites(spec, pair)
        wanted = spec.env_keywords() if spec is not None else {}
        setting = parse_perturbation(pair.perturbation) if pair.perturbation else None
        env = self._env = gym.make(
            pair.id,
            max_episode_steps=pair.max_steps,
            disable_env_checker=True,
            render_mode="rgb_array",
            **{
                "terminate_on_success": pair.success == "any",
                **wanted,
                **pair.keywords,
                **({} if setting is None else make_keywords(setting)),
            },
        )
        if setting is not None:
            env = self._env = perturb(env, setting)
        actor = connect(self._policy, env.unwrapped.spec_sheet)  # type: ignore[attr-defined]
        self._actor = _Beating(actor, self._beat)
        self._pair = pair
        self._beat()
        return env, self._actor


class _Beating:
    """A policy that says that it is alive after each step."""

    def __init__(self, policy: Any, beat: Callable[[], None]) -> None:
        self._policy, self._beat = policy, beat

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def predict(self, *args: Any, **keywords: Any) -> Any:
        self._beat()
        found = self._policy.predict(*args, **keywords)
        self._beat()
        return found


def portable(error: Exception) -> Exception:
    """Return the error, or one that says the same where it does not survive the way elsewhere."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever the error's own pickling raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def make_from(source: str | Callable[[], Any]) -> Any:
    """Return the policy of a name that `make_policy` takes, or of a function that returns one."""
    return make_policy(source) if isinstance(source, str) else source()


def _refuse_other_suites(spec: Any, pair: Pair) -> None:
    """Raise before `gym.make`, which would complain of the policy's keywords in a foreign suite."""
    suite = pair.id.rpartition("/")[2].partition("-")[0]
    if spec is not None and spec.suites is not None and suite not in spec.suites:
        raise ContractMismatch(
            f"{pair.policy} does not fit {pair.id}: it acts in {', '.join(spec.suites)} only"
        )


def _limit_torch() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


def _protocol(sheet: SpecSheet, env: gym.Env[Any, Any], pair: Pair) -> dict[str, Any]:
    """Return all that a score depends on besides the seed, as plain JSON values."""
    made_with = env.spec.kwargs if env.spec is not None else {}
    theirs = dict(env.unwrapped.simulator_versions)  # type: ignore[attr-defined]  # all ids are ours
    interpreter = {f"simulator's {name}": theirs.pop(name) for name in ("python", "numpy")}
    versions = versions_of(("vla-gym", "gymnasium", "numpy")) | theirs
    if made_with.get("python") is not None:
        versions |= interpreter
    rule = {"any": "at any step", "last": "at the last step"}[pair.success]
    protocol = {
        "protocol": pair.protocol,
        "suite": sheet.suite,
        "task": sheet.task,
        "simulator": sheet.simulator,
        "robot": sheet.robot,
        "versions": versions,
        "horizon": env.spec.max_episode_steps if env.spec is not None else sheet.horizon,
        "control_hz": sheet.control_hz,
        "success_rule": f"{rule}: {sheet.success}" if sheet.success else rule,
        "action_mode": sheet.action_mode,
        "cameras": list(sheet.cameras),
        "image_size": sheet.image_size,
        "proprio": sheet.proprio_form,
        "state": sheet.state_dim is not None,
        "instruction": sheet.instruction,
        "reward": sheet.reward,
        "terminate_on_success": sheet.terminate_on_success,
        "render_quality": sheet.render_quality,
        "keywords": sheet.keywords,
        "paraphrase": made_with.get("paraphrase", False),
        "perturbation": pair.perturbation,
        "policy_source": _name_of(pair.source),
        "deterministic": pair.deterministic,
        "batch": pair.batch,
    }
    return _as_json(protocol)


def _find_keywords(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Return the keywords of `gym.make` that make the same env on any machine."""
    made_with = env.spec.kwargs if env.spec is not None else {}
    return _as_json({k: v for k, v in made_with.items() if k not in NOT_KEYWORDS})


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as a record gives them back: no tuples."""
    return json.loads(json.dumps(values, default=str))


def _name_of(source: str | Callable[[], Any]) -> str:
    """Return what a policy was made from; a file is told apart by its content, not by its place."""
    if isinstance(source, functools.partial):
        given = [_name_of(x) if isinstance(x, str) else repr(x) for x in source.args]
        given += [f"{key}={value!r}" for key, value in source.keywords.items()]
        return f"{_name_of(source.func)}({', '.join(given)})"
    if not isinstance(source, str):
        return f"{source.__module__}.{source.__qualname__}"
    key, _, argument = source.partition(":")
    for path in (Path(argument), Path(argument + ".zip")):  # SB3's files may be named without it
        if argument and path.is_file():
            return f"{key}:{path.name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return source
