"""Fine-tune a policy by reinforcement learning, from a checkpoint of behaviour cloning.

PPO (`ppo.py`, Stable-Baselines3's) or GRPO (`grpo.py`) on the success that the env reports. Both
train the same actor (`actor.py`) in the same envs (`chunk_env.py`); this file has what is common:
the config, the loop, evaluation on held-out seeds, and the run's folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from vla_gym.deps import require
from vla_gym.errors import InvalidOption, UnknownName
from vla_gym.evaluation.evaluate import find_ids
from vla_gym.evaluation.metrics import Interval, success_interval
from vla_gym.train.chunk_env import make_chunk_envs, play
from vla_gym.train.learner import make_learner
from vla_gym.train.runs import Run

if TYPE_CHECKING:
    from vla_gym.train.actor import Actor
    from vla_gym.vector import VLAVectorEnv

__all__ = ["Evaluated", "FinetuneConfig", "Finetuned", "Progress", "finetune"]

CHOICES = {
    "algorithm": ("ppo", "grpo"),
    "train": ("all", "frozen-vision", "head", "lora"),
    "critic": ("state", "feature", "shared"),
    "reward": ("sparse", "native"),
}
LEAST = {
    **dict.fromkeys(("steps", "envs", "rollout", "epochs", "groups", "rank"), 1),
    **dict.fromkeys(("batch", "group"), 2),
    **dict.fromkeys(("eval_every", "eval_episodes"), 1),
    **dict.fromkeys(("seed", "eval_seed", "warmup"), 0),
}
ABOVE_ZERO = ("std", "learning_rate", "critic_learning_rate", "clip", "max_grad_norm")
OWN = ("cameras", "state", "action_mode", "proprio", "instruction", "image_size")
"""Keywords of `gym.make` that follow from the policy; `image_size` may be given."""

SET = {
    "reward": "is the setting reward=",
    "max_episode_steps": "is the setting max_steps=",
    "terminate_on_success": "is always true in training",
}
"""Keywords of `gym.make` that the trainer gives."""

FREE = ("steps", "workers", "device")
"""What may be changed as a run is continued."""


@dataclass(frozen=True)
class FinetuneConfig:
    """All that shapes a run. The defaults suit a policy that succeeds now and then.

    Attributes:
        checkpoint: folder of the policy to begin from, or a name that `make_policy` takes.
        ids: of the envs, or globs; env i plays `ids[i % len(ids)]`.
        out: folder of the run, see `vla_gym.train.runs`. The same config goes on there.
        algorithm: `"ppo"` or `"grpo"`.
        steps: control steps in all envs together.
        seed: of exploration and of training episodes.
        envs: how many there are.
        workers: processes for them; None follows from the cores.
        keywords: of `gym.make`, such as `image_size`, which should be as in behaviour cloning.
        max_steps: horizon of every task [control steps]; None: its own.
        execute: actions taken of each chunk; None: as many as the checkpoint takes.
        device: such as `"cpu"` or `"cuda"`.

        train: what is trained: `"all"`, `"frozen-vision"` (all but the encoders), `"head"` or
            `"lora"`; see `vla_gym.train.actor.Actor`.
        rank: of `"lora"`.
        std: deviation of exploration at first, in the action's units: 1 is the largest motion.
        correlation: of what it adds to successive actions of a chunk, in [0, 1).
        learning_rate: of the actor.
        clip: most relative change of a chunk's probability that is rewarded.
        kl: weight of the divergence from the first policy; 0: it is not even computed.
        target_kl: an update ends early once the policy has moved 1.5 times so far; None: never.
        epochs, batch: passes over what was played, and chunks in each step of the optimiser. The
            larger the steadier, as sparse success makes a noisy gradient; memory is the limit.
        max_grad_norm: gradients longer than this are cut.

        reward: `"sparse"`: 1 for success; or `"native"`, the suite's own, divided by the running
            deviation of its returns. In both success ends the episode.
        success_bonus: is added to the reward of the step that succeeds. With a native reward that
            is positive everywhere it must outweigh what an episode without success goes on to get.
        rollout: chunks that PPO plays before each update, in all envs together.
        warmup: first updates of PPO that train the critic alone, which knows nothing yet.
        critic: what PPO's sees: `"state"`, the privileged state, which only training needs;
            `"feature"`, what the actor makes of its observation; `"shared"`, the same, with a
            gradient into the actor.
        critic_learning_rate: its own.
        gamma: discount per control step.
        gae_lambda: of generalised advantage estimation, per chunk.

        groups, group: starts of each update of GRPO, and rollouts from each.

        eval_every: control steps from one evaluation, and one checkpoint, to the next.
        eval_episodes: of each task.
        eval_seed: of the first of them.

    Raises:
        UnknownName, InvalidOption: a value is not valid.
    """

    checkpoint: str
    ids: tuple[str, ...]
    out: str
    algorithm: str = "ppo"
    steps: int = 300_000
    seed: int = 0
    envs: int = 16
    workers: int | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int | None = None
    execute: int | None = None
    device: str = "cpu"

    train: str = "frozen-vision"
    rank: int = 8
    std: float = 0.2
    correlation: float = 0.0
    learning_rate: float = 1e-4
    clip: float = 0.2
    kl: float = 0.01
    target_kl: float | None = 0.03
    epochs: int = 10
    batch: int = 512
    max_grad_norm: float = 1.0

    reward: str = "sparse"
    success_bonus: float = 0.0
    rollout: int = 2048
    warmup: int = 2
    critic: str = "state"
    critic_learning_rate: float = 1e-3
    gamma: float = 0.998
    gae_lambda: float = 0.95

    groups: int = 8
    group: int = 8

    eval_every: int = 50_000
    eval_episodes: int = 50
    eval_seed: int = 10_000

    def __post_init__(self) -> None:
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                raise UnknownName(name, getattr(self, name), valid, "FinetuneConfig")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidOption(f"{name}={value!r} must be a whole number, at least {least}")
        for name in ABOVE_ZERO:
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < math.inf):
                raise InvalidOption(f"{name}={value!r} must be a number above 0")
        for name in ("gamma", "gae_lambda"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidOption(f"{name}={getattr(self, name)!r} must be in (0, 1]")
        if not 0 <= self.correlation < 1:
            raise InvalidOption(f"correlation={self.correlation!r} must be in [0, 1)")
        if self.kl < 0:
            raise InvalidOption(f"kl={self.kl!r} must be at least 0")
        if isinstance(self.ids, str) or not self.ids:
            raise InvalidOption(f"ids={self.ids!r} must be a list of at least one id")
        for name in OWN:
            if name in self.keywords and name != "image_size":
                raise InvalidOption(f"the keyword {name!r} follows from the policy: leave it out")
        for name, why in SET.items():
            if name in self.keywords:
                raise InvalidOption(f"the keyword {name!r} {why}: leave it out")

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain JSON."""
        return {**dataclasses.asdict(self), "ids": list(self.ids), "keywords": dict(self.keywords)}


@dataclass(frozen=True)
class Evaluated:
    """How good a policy was on the held-out episodes.

    Attributes:
        step: control steps trained until then.
        rates: id -> share of episodes solved.
        rate: of all of them.
        interval: its Wilson 95 % interval.
        n: episodes.
    """

    step: int
    rates: Mapping[str, float]
    rate: float
    interval: Interval
    n: int


@dataclass(frozen=True)
class Progress:
    """What `on_progress` is told after each update and each evaluation.

    Attributes:
        step, steps: control steps done, and to do.
        numbers: of the update, as in `metrics.jsonl`; empty at the first evaluation.
        evaluated: where one took place.
    """

    step: int
    steps: int
    numbers: Mapping[str, Any]
    evaluated: Evaluated | None = None


@dataclass(frozen=True)
class Finetuned:
    """The result of a run.

    Attributes:
        folder: of the run; `best` and `last` in it are checkpoints.
        start, best, last: evaluations of the policy at first, of the best one and of the last. The
            best was chosen by these very episodes: score it on others.
    """

    folder: Path
    start: Evaluated
    best: Evaluated
    last: Evaluated


def finetune(
    config: FinetuneConfig, on_progress: Callable[[Progress], None] | None = None
) -> Finetuned:
    """Fine-tune a policy; or go on with a run whose folder has the same config.

    Ctrl-C and a killed process lose what was done since the last evaluation. The numbers of
    `metrics.jsonl` are in docs/training/finetune.md.

    Args:
        config: see `FinetuneConfig`.
        on_progress: called after each update and evaluation.

    Raises:
        InvalidOption: the policy cannot be trained, ids do not go together, or the folder holds
            another run.
        ContractMismatch: the policy does not fit an env.
        DependencyNotInstalled: the extra `train` is not installed.
    """
    for module in ("torch", "tensorboard", *(("stable_baselines3",) * (config.algorithm == "ppo"))):
        require(module, "train", "vla-gym finetune")
    import torch

    from vla_gym.train.actor import Actor

    ids = find_ids(config.ids)
    if config.envs % len(ids):
        raise InvalidOption(
            f"envs={config.envs} cannot be spread evenly over {len(ids)} tasks: it must be a "
            "multiple of their number"
        )
    policy = make_learner(config.checkpoint)
    policy.model.to(config.device)
    sheets = _check_fit(policy, ids, config)
    torch.manual_seed(config.seed)  # the critic's weights and LoRA's are drawn from it
    actor = Actor(
        policy,
        train=config.train,
        execute=config.execute or policy.model.config.execute or policy.chunk,
        std=config.std,
        rank=config.rank,
        reference=config.kl > 0,
        correlation=config.correlation,
        moves=_find_moves(sheets),
    ).to(config.device)
    run = Run(config.out, config.to_dict(), FREE)
    state = run.load_state()
    step = state["step"] if state else 0
    with contextlib.ExitStack() as stack:
        envs = _make_envs(policy, ids, config, actor.execute)
        stack.callback(envs.close)
        trainer = _make_trainer(actor, envs, config, step, len(ids))
        writer = _make_writer(run.folder, step)
        stack.callback(writer.close)
        loop = _Loop(config, ids, run, actor, envs, trainer, writer, sheets, on_progress)
        return loop.run_from(state)


class _Loop:
    """Updates, evaluations and checkpoints of a run, one after the other."""

    def __init__(
        self,
        config: FinetuneConfig,
        ids: list[str],
        run: Run,
        actor: Actor,
        envs: VLAVectorEnv,
        trainer: Any,
        writer: Any,
        sheets: list[Any],
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._config, self._ids, self._run, self._actor = config, ids, run, actor
        self._envs, self._trainer, self._writer, self._sheets = envs, trainer, writer, sheets
        self._tell = on_progress or (lambda progress: None)
        self._step, self._seconds = 0, 0.0
        self._evaluated: dict[str, Evaluated] = {}

    def run_from(self, state: dict[str, Any] | None) -> Finetuned:
        """Train to the end, from a state or from the beginning."""
        config, started = self._config, time.monotonic()
        if state is not None:
            self._trainer.load(state["trainer"])
            self._step, before = state["step"], state["seconds"]
            self._evaluated = {key: _to_evaluated(v) for key, v in state["evaluated"].items()}
            self._run.rewind(self._step)
        else:
            before = 0.0
            self._run.rewind(-1)  # a run that was cut off before its first state begins anew
            self._evaluate({})
        while self._step < config.steps:
            due = self._step // config.eval_every
            numbers = self._trainer.update()
            self._step += numbers.pop("control_steps")
            self._seconds = before + time.monotonic() - started
            self._log(numbers)
            if self._step // config.eval_every > due or self._step >= config.steps:
                self._evaluate(numbers)
            else:
                self._tell(Progress(self._step, config.steps, numbers))
        return Finetuned(self._run.folder, **self._evaluated)

    def _evaluate(self, numbers: dict[str, Any]) -> None:
        """Play the held-out episodes, keep the best policy and a state to go on from."""
        found = _evaluate(self._actor, self._envs, self._ids, self._config, self._step)
        self._trainer.interrupt()
        best = self._evaluated.get("best")
        if best is None or found.rate > best.rate:
            self._evaluated["best"] = found
            self._actor.save(self._run.best, self._sheets)
        self._evaluated.setdefault("start", found)
        self._evaluated["last"] = found
        self._actor.save(self._run.last, self._sheets)
        self._log(
            {
                "success": found.rate,
                "interval": list(found.interval),
                "n": found.n,
                **{f"success/{env_id}": rate for env_id, rate in found.rates.items()},
            }
        )
        self._run.save_state(
            self._step,
            {
                "step": self._step,
                "seconds": self._seconds,
                "trainer": self._trainer.state(),
                "evaluated": {k: _to_plain(v) for k, v in self._evaluated.items()},
            },
        )
        self._tell(Progress(self._step, self._config.steps, numbers, found))

    def _log(self, numbers: Mapping[str, Any]) -> None:
        self._run.log(step=self._step, time=round(self._seconds, 1), **numbers)
        for key, value in numbers.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(key, value, self._step)
        self._writer.flush()


def _evaluate(
    actor: Actor, envs: VLAVectorEnv, ids: list[str], config: FinetuneConfig, step: int
) -> Evaluated:
    """Play the held-out episodes of each task with the actor's mode.

    That is what the policy does with `deterministic=True` (a test holds them together); here
    pictures are drawn once for each chunk.
    """
    import torch

    def act(observation: dict[str, Any]) -> tuple[Any, list[None]]:
        with torch.no_grad():
            seen = actor.see(observation)
            mean = actor.distribution(actor.feature(seen)).mean
        return actor.expand(mean.cpu().numpy()), [None] * len(mean)

    plans: list[list[int]] = [[] for _ in range(envs.num_envs)]
    for task in range(len(ids)):
        mine = plans[task :: len(ids)]
        for n in range(config.eval_episodes):
            mine[n % len(mine)].append(config.eval_seed + n)
    outcomes: dict[str, list[bool]] = {env_id: [] for env_id in ids}
    for episode in play(envs, plans, act):
        outcomes[ids[episode.env % len(ids)]].append(episode.success)
    solved, n = sum(map(sum, outcomes.values())), sum(map(len, outcomes.values()))
    interval = success_interval(solved, n)
    if interval is None:
        raise InvalidOption("no episode of the evaluation had an outcome: all have crashed")
    rates = {env_id: sum(some) / max(len(some), 1) for env_id, some in outcomes.items()}
    return Evaluated(step, rates, solved / n, interval, n)


def _make_envs(policy: Any, ids: list[str], config: FinetuneConfig, execute: int) -> VLAVectorEnv:
    keywords = _keywords(policy, config)
    sizes = keywords.pop("image_size", 128)
    return make_chunk_envs(
        ids,
        config.envs,
        cameras=keywords.pop("cameras"),
        image_size=sizes,
        history=policy.history,
        execute=execute,
        workers=config.workers,
        **keywords,
    )


def _keywords(policy: Any, config: FinetuneConfig) -> dict[str, Any]:
    """Return the keywords of `gym.make`: the policy's, the user's and those of the training."""
    needs = {"cameras": (), **policy.spec.env_keywords(), "instruction": "text"}
    if config.algorithm == "ppo" and config.critic == "state":
        needs["state"] = True
    keywords = {**needs, **config.keywords, "reward": config.reward, "terminate_on_success": True}
    if config.max_steps is not None:
        keywords["max_episode_steps"] = config.max_steps
    return keywords


def _check_fit(policy: Any, ids: list[str], config: FinetuneConfig) -> list[Any]:
    """Return the spec sheets of all tasks; raise ContractMismatch if one does not fit."""
    from vla_gym.policy import connect

    sheets = []
    for env_id in ids:
        env = gym.make(env_id, **_keywords(policy, config))
        sheets.append(env.unwrapped.spec_sheet)  # type: ignore[attr-defined]  # ours
        env.close()
        if connect(policy, sheets[-1]) is not policy:
            raise InvalidOption(
                f"the policy speaks another convention than {env_id}: evaluation converts it, "
                "training does not"
            )
    return sheets


def _find_moves(sheets: list[Any]) -> list[int]:
    """Return the places of the entries of an action that at least one env follows."""
    scales = [[entry.scale for entry in sheet.action] for sheet in sheets]
    return [i for i, some in enumerate(zip(*scales, strict=True)) if any(s != 0.0 for s in some)]


def _make_trainer(
    actor: Actor, envs: VLAVectorEnv, config: FinetuneConfig, step: int, tasks: int
) -> Any:
    # A continued run sees new episodes. NumPy takes no larger seed.
    seed = (config.seed * 1_000_003 + step) % 2**32
    if config.algorithm == "ppo":
        from vla_gym.train.ppo import PPOTrainer

        return PPOTrainer(actor, envs, config, seed)
    from vla_gym.train.grpo import GRPOTrainer

    return GRPOTrainer(actor, envs, config, seed, tasks)


def _make_writer(folder: Path, step: int) -> Any:
    board = require("torch.utils.tensorboard", "train", "vla-gym finetune")
    return board.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else 0)


def _to_plain(found: Evaluated) -> dict[str, Any]:
    return {**dataclasses.asdict(found), "interval": list(found.interval)}


def _to_evaluated(values: Mapping[str, Any]) -> Evaluated:
    return Evaluated(**{**values, "interval": Interval(*values["interval"])})
