"""Behaviour cloning: a policy learns to do what the demonstrations of data sets do.

```python
from vla_gym.train.bc import BCConfig, train

result = train(BCConfig(data=("data/mw",), out="runs/mw", steps=5000, model={"chunk": 8}))
```

Data flows `Dataset` -> `Windows` -> `Batches` -> `model.loss`; every `eval_every` steps the policy
plays its tasks by `vla_gym.evaluation.evaluate`, in worker processes. One process trains, or
several: `accelerate launch -m vla_gym.cli train ...`.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from vla_gym.data import Dataset
from vla_gym.data.statistics import describe
from vla_gym.deps import require
from vla_gym.errors import InvalidOption, UnknownName
from vla_gym.evaluation.evaluate import evaluate, find_ids
from vla_gym.evaluation.metrics import summarize
from vla_gym.evaluation.records import plain_id
from vla_gym.policy import connect
from vla_gym.train.batches import EVERYTHING, Augmentation, Batches, Windows, split_episodes
from vla_gym.train.curriculum import Curriculum
from vla_gym.train.learner import Learner, make_learner
from vla_gym.train.runs import Run

__all__ = ["BCConfig", "Result", "train"]

torch: Any = require("torch", "train", "training")
accelerate: Any = require("accelerate", "train", "training")

CHOICES = {
    "schedule": ("cosine", "linear", "constant"),
    "precision": ("no", "bf16", "fp16"),
    "balance": ("task", "frame"),
}
FREE = (
    *("out", "workers", "eval_workers", "log_every", "checkpoint_every", "patience", "trackers"),
    "threads",
)
"""What may change when a run goes on: it alters no batch and no weight."""

RECORDED_KEYWORDS = ("image_size", "render_quality", "camera_preset", "simulator", "renderer")
"""Keywords under which demonstrations were recorded that also hold for the evaluation."""

SUMMARY = ("mean", "std", "min", "max", "q01", "q99")
VALIDATION_BATCHES = 8
EVALUATION_LIMIT = timedelta(hours=12)
"""So long do the other processes wait for the one that evaluates."""


@dataclass(frozen=True)
class BCConfig:
    """All of a run; saved in its folder.

    Attributes:
        data: folders of data sets (`vla-gym collect`), with equal shapes.
        out: folder of the run. Of the same config it is continued.
        policy: what is trained: a name of `make_policy`, or with a checkpoint behind a colon
            (`"vla:FOLDER"`), or a checkpoint's folder, what training starts from.
        model: of a new policy: its config. Cameras and dimensions follow from the data.
        steps: updates.
        batch_size: rows of an update, in each process.
        learning_rate: largest, of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101).
        encoder_learning_rate: of pretrained encoders. None: a tenth of the other.
        weight_decay: of AdamW.
        schedule: `"cosine"` or `"linear"` to 0, or `"constant"`, each after `warmup` steps.
        warmup: steps in which the rate grows from 0.
        grad_clip: largest norm of the gradient. 0: any.
        precision: `"no"` (float32), `"bf16"` or `"fp16"` (mixed; fp16 needs a GPU).
        ema: decay of the exponential mean of the weights, which is what is evaluated and saved;
            early it is (1 + t) / (10 + t). 0: none, the weights themselves are.
        augmentation: changes of observations.
        balance: `"task"`: each task is drawn alike; `"frame"`: each frame.
        curriculum: which tasks are drawn, by their success so far.
        store: how pictures are read: `"unpacked"`, `"packed"` or `"memory"` (`Frames`).
        workers: processes that prepare batches. 0: the trainer itself.
        threads: of torch in each process. 0: torch's own choice.
        validation: share of each task's episodes that is held out for the validation loss, which
            is that of the training data where none is.
        eval_every: steps between evaluations. 0: at the end alone.
        eval_episodes: of each task; 0: it is not evaluated in envs, only by validation loss.
        eval_seed: of the first episode. Demonstrations of these seeds are refused. The best
            checkpoint is chosen by these episodes: score it on others. (Meta-World's protocol plays
            goal `seed % 50`, so that other seeds may be the same goals.)
        eval_ids: ids to evaluate on. (): those of the data.
        eval_keywords: of `gym.make`, beside those that all demonstrations share.
        eval_workers: processes.
        eval_max_steps: horizon of every task. None: its own.
        patience: evaluations without a better one after which the run stops. 0: it never does.
        checkpoint_every: steps between states from which the run can go on.
        log_every: steps between lines of `metrics.jsonl`.
        trackers: `"tensorboard"`, `"wandb"`.
        seed: of weights, batches and augmentation.

    Raises:
        UnknownName: a choice that does not exist.
        InvalidOption: a value out of range.
    """

    data: tuple[str, ...]
    out: str
    policy: str = "vla"
    model: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 10_000
    batch_size: int = 64
    learning_rate: float = 5e-4
    encoder_learning_rate: float | None = None
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: int = 300
    grad_clip: float = 1.0
    precision: str = "no"
    ema: float = 0.999
    augmentation: Augmentation = field(default_factory=Augmentation)
    balance: str = "task"
    curriculum: Curriculum = field(default_factory=Curriculum)
    store: str = "unpacked"
    workers: int = 0
    threads: int = 0
    validation: float = 0.05
    eval_every: int = 0
    eval_episodes: int = 20
    eval_seed: int = 1_000_000
    eval_ids: tuple[str, ...] = ()
    eval_keywords: Mapping[str, Any] = field(default_factory=dict)
    eval_workers: int = 1
    eval_max_steps: int | None = None
    patience: int = 0
    checkpoint_every: int = 1000
    log_every: int = 50
    trackers: tuple[str, ...] = ("tensorboard",)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                raise UnknownName(name, getattr(self, name), valid, "BCConfig")
        for tracker in self.trackers:
            if tracker not in ("tensorboard", "wandb"):
                raise UnknownName("tracker", tracker, ("tensorboard", "wandb"), "BCConfig")
        least: dict[str, int] = dict.fromkeys(("steps", "batch_size", "eval_workers"), 1)
        least |= dict.fromkeys(("checkpoint_every", "log_every"), 1)
        least |= dict.fromkeys(("warmup", "workers", "threads", "eval_every", "eval_episodes"), 0)
        least |= dict.fromkeys(("eval_seed", "patience", "seed", "weight_decay", "grad_clip"), 0)
        for name, smallest in least.items():
            if not getattr(self, name) >= smallest:
                raise InvalidOption(
                    f"{name}={getattr(self, name)} of BCConfig must be at least {smallest}"
                )
        if not self.learning_rate > 0:
            raise InvalidOption(f"learning_rate={self.learning_rate} of BCConfig must be above 0")
        for name in ("ema", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidOption(f"{name}={getattr(self, name)} of BCConfig must be in [0, 1)")
        if not self.data:
            raise InvalidOption("data=() of BCConfig must name at least one data set")

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Result:
    """What became of a run.

    Attributes:
        folder: of the run.
        steps: updates done.
        score: of the best checkpoint: mean success rate over tasks, or, where they are not
            evaluated in envs, minus the validation loss.
        stopped_early: whether `patience` ended it.
    """

    folder: Path
    steps: int
    score: float
    stopped_early: bool


def train(
    config: BCConfig, on_progress: Callable[[int, Mapping[str, Any]], None] | None = None
) -> Result:
    """Train, or go on with the run in `config.out`; see `BCConfig`.

    Killed at any moment, a run loses what it did since its last state (`checkpoint_every`); gone on
    with, it does the same updates as one that was never killed.

    Args:
        config: of the run.
        on_progress: called after each update with the step, counted from 1, and the latest numbers.

    Raises:
        InvalidDataset: a data set is damaged.
        InvalidOption: an argument is not valid, a checkpoint or state is damaged, or `out` holds a
            run with another config.
        DependencyNotInstalled: a package is missing.
    """
    return _Trainer(config, on_progress or (lambda step, numbers: None)).run()


class _Trainer:
    """One run, in one process of it."""

    def __init__(
        self, config: BCConfig, on_progress: Callable[[int, Mapping[str, Any]], None]
    ) -> None:
        for tracker in config.trackers:
            require(tracker, "train", f"the tracker {tracker}")
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.on_progress = config, on_progress
        datasets = [Dataset(folder) for folder in config.data]
        # It is kept for the whole process, and a second run may have another precision.
        accelerate.state.AcceleratorState._reset_state()
        self.accelerator: Any = accelerate.Accelerator(
            mixed_precision=config.precision,
            log_with=list(config.trackers) or None,
            project_dir=config.out,
            kwargs_handlers=[accelerate.InitProcessGroupKwargs(timeout=EVALUATION_LIMIT)],
        )
        with self.accelerator.main_process_first():  # which writes the folder that others find
            self.run_folder = Run(config.out, config.to_dict(), FREE)
        self.sheets = [s["spec_sheet"] for d in datasets for s in d.settings if "spec_sheet" in s]
        torch.manual_seed(config.seed)
        self.learner: Learner = _make(config, datasets)
        splits = [split_episodes(dataset, config.validation) for dataset in datasets]
        self.windows, self.held_out = (
            Windows(datasets, self.learner, [split[k] for split in splits], config.store)
            for k in (0, 1)
        )
        self.ids = _find_eval_ids(config, datasets)
        self.lengths = _mean_lengths(datasets)
        self.eval_keywords = {**_shared_keywords(datasets), **config.eval_keywords}
        _check_envs(self.learner, self.ids, self.eval_keywords)
        model = self.learner.model.to(self.accelerator.device).train()
        groups = model.parameter_groups(config.learning_rate, config.encoder_learning_rate)
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        self.loss, self.optimizer = self.accelerator.prepare(_Loss(model), optimizer)
        self.mean = _Mean(model, config.ema)
        self.step = 0
        self.successes: list[dict[str, float]] = []
        self.scores: list[float] = []

    def run(self) -> Result:
        """Do what is left of the run."""
        self._resume()
        steps = self.config.steps
        every = self.config.eval_every or steps
        while True:
            at_end = self.step >= steps
            wanted = -(-steps // every) if at_end else self.step // every
            if len(self.scores) < wanted:  # also where a run was killed while it was evaluated
                self._evaluate()
            if at_end or self._is_stale():
                break
            self._train_until(min(steps, (self.step // every + 1) * every))
        self.accelerator.end_training()
        return Result(self.run_folder.folder, self.step, max(self.scores), not at_end)

    def _train_until(self, stop: int) -> None:
        """Do updates up to `stop`; batches are prepared ahead by `workers` processes."""
        config = self.config
        weights = None
        if config.balance == "task" or config.curriculum.order != "none":
            weights = config.curriculum.weights(self.windows.tasks, self.lengths, self.successes)
        rank = self.accelerator.process_index
        loader = torch.utils.data.DataLoader(
            Batches(
                self.windows, weights, config.batch_size, config.seed, rank, config.augmentation
            ),
            batch_size=None,
            sampler=range(self.step, stop),
            num_workers=config.workers,
            collate_fn=_keep,
        )
        numbers: list[dict[str, float]] = []
        waited, since = 0.0, time.perf_counter()
        batches = iter(loader)
        for step in range(self.step, stop):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            numbers.append(self._update(step, batch))
            self.step = step + 1
            if self.step % config.log_every == 0 or self.step == stop:
                seconds = time.perf_counter() - since
                self._log(numbers, waited / seconds, seconds / len(numbers))
                numbers, waited, since = [], 0.0, time.perf_counter()
            if self.step % config.checkpoint_every == 0 or self.step == stop:
                self._save()
            self.on_progress(self.step, numbers[-1] if numbers else {})

    def _update(self, step: int, batch: Mapping[str, Any]) -> dict[str, float]:
        """Do one update; its draws (dropout, flow) follow from seed, rank and step."""
        accelerator = self.accelerator
        key = np.random.SeedSequence([self.config.seed, accelerator.process_index, step])
        torch.manual_seed(int(key.generate_state(1)[0]))
        with accelerator.autocast():
            loss, numbers = self.loss(batch)
        if not math.isfinite(numbers["loss"]):
            raise InvalidOption(
                f"the loss is {numbers['loss']} at step {step}: lower learning_rate "
                f"({self.config.learning_rate}), or check the data for entries that are not finite"
            )
        self.optimizer.zero_grad()
        accelerator.backward(loss)
        if self.config.grad_clip:
            norm = accelerator.clip_grad_norm_(self.loss.parameters(), self.config.grad_clip)
            numbers["grad_norm"] = float(norm)
        numbers["learning_rate"] = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.mean.update(step)
        return numbers

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step, as a share of the largest."""
        config = self.config
        if step < config.warmup:
            return (step + 1) / config.warmup
        done = (step - config.warmup) / max(config.steps - config.warmup, 1)
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return 1.0 if config.schedule == "constant" else max(0.0, 1.0 - done)

    def _log(self, numbers: Sequence[Mapping[str, float]], starved: float, seconds: float) -> None:
        """Log means since the last line; `busy` is the share of time not spent waiting for data."""
        mean = {key: float(np.mean([some[key] for some in numbers])) for key in numbers[0]}
        self._write(**mean, busy=1.0 - starved, seconds_per_step=seconds)

    def _write(self, **numbers: float) -> None:
        if self.accelerator.is_main_process:
            self.run_folder.log(step=self.step, **numbers)
        self.accelerator.log(numbers, step=self.step)

    def _evaluate(self) -> None:
        """Play the tasks and compute the validation loss; keep the best checkpoint.

        The last checkpoint is that of this step: it is written before the state of each step.
        """
        if self.accelerator.is_main_process:
            with self.mean.applied():
                numbers = self._validate()
            success = self._play() if self.ids else {}
            if success:
                numbers["success"] = float(np.mean(list(success.values())))
            score = numbers.get("success", -numbers["validation_loss"])
            if not self.scores or score > max(self.scores):
                self._keep_as_best()
            self.successes.append(success)
            self.scores.append(score)
            self._write(**numbers, **{f"success/{task}": rate for task, rate in success.items()})
        both = [self.successes, self.scores]
        accelerate.utils.broadcast_object_list(both)
        self.successes, self.scores = both
        self._save_state()

    def _validate(self) -> dict[str, float]:
        """Return the loss on the held-out episodes, of batches that are always the same."""
        windows = self.held_out if len(self.held_out) else self.windows
        batches = Batches(windows, None, self.config.batch_size, 0, 0, None)
        model = self.learner.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            torch.manual_seed(0)
            found = [model.loss(batches[k])[1]["loss"] for k in range(VALIDATION_BATCHES)]
        model.train()
        return {"validation_loss": float(np.mean(found))}

    def _play(self) -> dict[str, float]:
        """Return the success rate of each task."""
        config = self.config
        evaluation = evaluate(
            {"policy": str(self.run_folder.last)},
            self.ids,
            episodes=config.eval_episodes,
            folder=self.run_folder.folder / "evaluations" / f"step-{self.step:08d}",
            seed=config.eval_seed,
            workers=config.eval_workers,
            keywords=self.eval_keywords,
            max_steps=config.eval_max_steps,
            video=False,
        )
        return {s.id: s.rate or 0.0 for s in summarize(evaluation.records)}

    def _is_stale(self) -> bool:
        """Return whether `patience` evaluations have brought nothing better."""
        patience, scores = self.config.patience, self.scores
        return 0 < patience < len(scores) and max(scores[:-patience]) >= max(scores[-patience:])

    def _keep_as_best(self) -> None:
        """Put the last checkpoint in the best one's place, in one piece."""
        draft = self.run_folder.folder / ".best"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(self.run_folder.last, draft)
        old = self.run_folder.folder / ".old"
        shutil.rmtree(old, ignore_errors=True)
        if self.run_folder.best.exists():
            self.run_folder.best.rename(old)
        draft.rename(self.run_folder.best)
        shutil.rmtree(old, ignore_errors=True)

    def _save(self) -> None:
        """Write the last checkpoint and the state of the run."""
        if self.accelerator.is_main_process:
            with self.mean.applied():
                self.learner.save(self.run_folder.last, self.sheets)
        self._save_state()

    def _save_state(self) -> None:
        """Write what the run can go on from."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        self.run_folder.save_state(
            self.step,
            {
                "step": self.step,
                "model": _trained(self.learner.model),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "mean": self.mean.values,
                "scaler": scaler.state_dict() if scaler is not None else {},
                "successes": self.successes,
                "scores": self.scores,
            },
        )

    def _resume(self) -> None:
        """Go on from the latest state, if there is one."""
        state = self.run_folder.load_state()
        if state is not None:
            self.step = state["step"]
            self.learner.model.load_state_dict(state["model"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.mean.load(state["mean"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.successes, self.scores = state["successes"], state["scores"]
        if self.accelerator.is_main_process:
            self.run_folder.rewind(self.step)
        self.accelerator.wait_for_everyone()
        if self.config.trackers:
            purge = {"tensorboard": {"purge_step": self.step + 1}} if self.step else {}
            self.accelerator.init_trackers("tensorboard", init_kwargs=purge)


class _Loss(torch.nn.Module):
    """The loss as what a module returns: DistributedDataParallel sees that alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Any]) -> Any:
        return self.model.loss(batch)


class _Mean:
    """Exponential mean of the weights that are trained."""

    def __init__(self, model: Any, decay: float) -> None:
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._decay = decay
        self.values = [p.detach().clone() for p in self._weights] if decay else []

    def update(self, step: int) -> None:
        """Take in the weights after the update of a step, counted from 0."""
        if self.values:
            share = 1.0 - min(self._decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(self.values, [p.detach() for p in self._weights], share)

    def load(self, values: Sequence[Any]) -> None:
        """Set the mean."""
        for mine, value in zip(self.values, values, strict=True):
            mine.copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the mean in the place of the weights meanwhile."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        with torch.no_grad():
            for weight, value in zip(self._weights, self.values, strict=bool(self.values)):
                kept = weight.detach().clone()
                weight.copy_(value)
                value.copy_(kept)


def _make(config: BCConfig, datasets: Sequence[Dataset]) -> Learner:
    """Return what is to be trained: from a checkpoint, or new, for the shapes of the data."""
    features = _shared_features(datasets)
    if ":" in config.policy or Path(config.policy).is_dir():
        if config.model:
            raise InvalidOption(
                f"model={dict(config.model)} is of a new policy; {config.policy!r} is a "
                "checkpoint, whose shape stands. Leave one of them out"
            )
        return make_learner(config.policy)
    model = dict(config.model)
    cameras = tuple(key.removeprefix("rgb_") for key in datasets[0].picture_keys)
    model.setdefault("cameras", cameras)
    model.setdefault("proprio_dim", features["observation.state"]["shape"][0])
    model["action_dim"] = features["action"]["shape"][0]
    if model.get("state_dim") or not model["cameras"]:
        if "observation.environment_state" not in features:
            raise InvalidOption(
                f"model={dict(config.model)} needs the privileged state, and {config.data[0]} has "
                "none: collect it with -k state=true, or name cameras"
            )
        model["state_dim"] = features["observation.environment_state"]["shape"][0]
    keys = ("proprio", "action", *(("state",) if model.get("state_dim") else ()))
    return make_learner(config.policy, config=model, statistics=_summarize(datasets, keys))


def _shared_features(datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Return the features of the data.

    Raises:
        InvalidOption: data sets differ.
    """
    first = datasets[0].features
    for dataset in datasets[1:]:
        for key, feature in first.items():
            other = dataset.features.get(key)
            if other is None or tuple(other["shape"]) != tuple(feature["shape"]):
                raise InvalidOption(
                    f"{dataset.folder} has {key} {other and other['shape']}, {datasets[0].folder} "
                    f"{feature['shape']}: data sets that are trained on together have equal shapes"
                )
    return first


def _summarize(datasets: Sequence[Dataset], keys: Sequence[str]) -> dict[str, Any]:
    """Return the statistics of the data's numbers, as a learner takes them."""
    found: dict[str, Any] = {"count": sum(dataset.frames_count for dataset in datasets)}
    for key in keys:
        summary = describe(np.concatenate([dataset.numbers[key] for dataset in datasets]))
        found[key] = {name: summary[name].tolist() for name in SUMMARY}
    return found


def _find_eval_ids(config: BCConfig, datasets: Sequence[Dataset]) -> list[str]:
    """Return the ids to evaluate on.

    Raises:
        InvalidOption: an episode of the evaluation is one of the demonstrations.
    """
    if not config.eval_episodes:
        return []
    seen = {(plain_id(e.env_id), e.seed) for d in datasets for e in d.episodes}
    ids = find_ids(config.eval_ids or [i for d in datasets for i in d.env_ids if i])
    seeds = range(config.eval_seed, config.eval_seed + config.eval_episodes)
    for env_id in ids:
        shared = [seed for seed in seeds if (plain_id(env_id), seed) in seen]
        if shared:
            raise InvalidOption(
                f"eval_seed={config.eval_seed}: {len(shared)} of the {len(seeds)} episodes of "
                f"{env_id} are demonstrations, the first has seed {shared[0]}. Choose other seeds"
            )
    return ids


def _check_envs(learner: Learner, ids: Sequence[str], keywords: Mapping[str, Any]) -> None:
    """Raise what the first evaluation would, hours later, if an env does not fit.

    Raises:
        ContractMismatch: the policy does not fit an env.
        InvalidOption: a keyword is not valid.
    """
    for env_id in ids:
        env = gym.make(env_id, **{**learner.spec.env_keywords(), **keywords})  # starts no simulator
        try:
            connect(learner, env.unwrapped.spec_sheet)  # type: ignore[attr-defined]  # ours
        finally:
            env.close()


def _mean_lengths(datasets: Sequence[Dataset]) -> dict[str, float]:
    """Return the mean length of each task's demonstrations [control steps]."""
    lengths: dict[str, list[int]] = {}
    for dataset in datasets:
        for episode in dataset.episodes:
            lengths.setdefault(episode.env_id or EVERYTHING, []).append(len(episode))
    return {task: float(np.mean(some)) for task, some in lengths.items()}


def _shared_keywords(datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Return the keywords of RECORDED_KEYWORDS that all demonstrations have with one value."""
    recorded = [s["keywords"] for dataset in datasets for s in dataset.settings]
    return {
        key: recorded[0][key]
        for key in RECORDED_KEYWORDS
        if recorded and all(key in r and r[key] == recorded[0][key] for r in recorded)
    }


def _trained(model: Any) -> dict[str, Any]:
    """Return the weights that are trained, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _keep(batch: Any) -> Any:
    """Return a batch as it is; torch would turn its arrays into tensors."""
    return batch
