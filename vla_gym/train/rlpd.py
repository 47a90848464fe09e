"""Off-policy RL from demonstrations: SAC or TD3 whose every batch is half demonstrations (RLPD).

Source: Ball, Smith, Kostrikov, Levine 2023, "Efficient Online Reinforcement Learning with Offline
Data", arXiv 2302.02948. Taken over: symmetric sampling (section 4.1), LayerNorm in the critics
(4.2), several updates for each step (4.3), target entropy -|A|/2. Added, since one CPU pays for few
updates: training starts on the demonstrations alone, and the actor's loss has a term of behaviour
cloning on them (Fujimoto, Gu 2021, "A Minimalist Approach to Offline Reinforcement Learning", arXiv
2106.06860). Left to Stable-Baselines3, and
other than there: the target is the least of all critics rather than of a random pair, its entropy
term stays, and the actor is updated as often as the critics (TD3: half as often).
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vla_gym import registration
from vla_gym.data.dataset import Dataset
from vla_gym.deps import require
from vla_gym.errors import InvalidOption, SimulatorCrashed, UnknownName
from vla_gym.evaluation.evaluate import find_ids
from vla_gym.evaluation.metrics import success_interval
from vla_gym.instruction import encode
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import run_episode
from vla_gym.train.multitask import spread
from vla_gym.train.runs import Run, write_whole
from vla_gym.train.transitions import Rules, read_transitions
from vla_gym.vector.common import find_common

__all__ = ["RLPDConfig", "RLPDResult", "train_rlpd"]

logger = logging.getLogger(__name__)

CHOICES = {
    "algorithm": ("SAC", "TD3"),
    "reward": ("sparse", "native"),
    "task": ("embedding", "one_hot", "none"),
}
ENCODER = "encoder"
"""Folder, beside the trained files, of the frozen model that they read the features of."""

TRAIN_SEED = 1_000_000
"""Of the first training episode: evaluation and demonstrations have the low ones."""

TEST_KEYWORDS = {"terminate_on_success": True, "on_crash": "raise"}
"""Of evaluation envs, as `vla-gym eval` makes them."""

RECENT = 50
"""Training episodes of which the rate of success is logged."""

LOG_EVERY = 1_000

ENCODE_AT_ONCE = 64

TD3_NOISE = 0.1
"""Deviation of the exploration noise, in units of the action (Fujimoto et al. 2018: 0.1)."""


@dataclass(frozen=True)
class RLPDConfig:
    """All that shapes a run.

    Attributes:
        ids: tasks to train on, as `find_ids` takes them: ids, globs, `"MT10"`, `"ML10-train"`.
        demonstrations: folder of a `vla_gym.data.Dataset` with these tasks; `""`: none, plain RL.
        test_ids: further tasks whose success is reported apart, such as `"ML10-test"`.
        encoder: policy whose `encode`, of a frozen model, is what the agent sees, such as
            `"vla:FOLDER"`. `""`: it sees the privileged state and proprio (data recorded with
            `-k state=true`).
        task: how tasks are told apart: the instruction's `"embedding"`, `"one_hot"` (the nearest
            instruction of those trained on), or `"none"`, as where there is but one. A feature has
            the instruction in it.
        algorithm: `"SAC"` or `"TD3"`.
        reward: `"sparse"`, 1 where the task is solved, else 0; or `"native"`, the suite's own. That
            of the demonstrations is made to be the same.
        terminate_on_success: whether an episode, and a demonstration, ends where it is solved.
        keywords: of `gym.make`, for training and evaluation.
        test_keywords: of `gym.make`, for evaluation alone, such as `{"split": "test"}`.
        steps: of the envs, all together.
        envs: that are stepped together, a multiple of the number of tasks; 0: one for each task.
        updates_per_step: gradient steps for each step of an env.
        demonstration_share: of each batch; 0: they serve for the normalisation alone.
        warm_start: updates on the demonstrations alone, of critics and actor, before the first
            step. 0, or no demonstrations: `learning_starts` decides.
        learning_starts: steps at random before learning, where there is no warm start.
        imitation: weight, in the actor's loss, of the mean squared error to the demonstrations'
            actions (TD3+BC, on demonstrations alone).
        batch_size, learning_rate, gamma: as SB3 has them.
        tau: share of the critics that their targets take over at each update. A value that is too
            high where nothing is won wears off in about 1 / (tau (1 - gamma)) updates.
        hidden: widths of the layers of actor and critics.
        critics: number of critics.
        layer_norm: whether they have LayerNorm.
        start_temperature: weight of the entropy at first (SAC), which it tunes from there on.
        buffer: newest steps that are remembered, at most.
        evaluate_every: steps from one evaluation and saving to the next.
        evaluation_episodes: of each task, with the seeds 0, 1, ...
        seed: of the networks, the draws and the training episodes.
    """

    ids: tuple[str, ...]
    demonstrations: str = ""
    test_ids: tuple[str, ...] = ()
    encoder: str = ""
    task: str = "embedding"
    algorithm: str = "TD3"
    reward: str = "sparse"
    terminate_on_success: bool = True
    keywords: Mapping[str, Any] = field(default_factory=dict)
    test_keywords: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 30_000
    envs: int = 0
    updates_per_step: float = 1.0
    demonstration_share: float = 0.5
    learning_starts: int = 500
    warm_start: int = 2_500
    imitation: float = 10.0
    batch_size: int = 128
    learning_rate: float = 1e-3
    tau: float = 0.02
    gamma: float = 0.98
    hidden: tuple[int, ...] = (128, 128)
    critics: int = 2
    layer_norm: bool = True
    start_temperature: float = 0.01
    buffer: int = 100_000
    evaluate_every: int = 2_000
    evaluation_episodes: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("ids", "test_ids", "hidden"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                raise UnknownName(name, getattr(self, name), valid, "RLPDConfig")
        for name in ("steps", "batch_size", "critics", "evaluate_every", "evaluation_episodes"):
            if getattr(self, name) < 1:
                raise InvalidOption(
                    f"{name}={getattr(self, name)} of RLPDConfig must be at least 1"
                )
        if not 0 <= self.demonstration_share < 1:
            raise InvalidOption(
                f"demonstration_share={self.demonstration_share} of RLPDConfig must be in [0, 1)"
            )
        own = {"reward", "terminate_on_success", "state", "instruction"}
        if taken := own & {*self.keywords, *self.test_keywords}:
            raise InvalidOption(f"keywords {sorted(taken)} follow from other fields of RLPDConfig")


@dataclass(frozen=True)
class RLPDResult:
    """What a run has come to.

    Attributes:
        best, last: files for `make_policy("sb3:FILE")`.
        metrics: the lines of `metrics.jsonl` that have an evaluation.
    """

    best: Path
    last: Path
    metrics: list[dict[str, Any]]


def train_rlpd(
    config: RLPDConfig,
    folder: str | Path,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
) -> RLPDResult:
    """Train an agent; called again with the same folder, go on from the last evaluation.

    The folder gets `config.json`, `metrics.jsonl`, `tensorboard/`, `best.zip`, `last.zip`, for
    features also `encoder/`, and in `state/` what it goes on from: networks, optimisers, buffer and
    random generators. Episodes that were under way are begun anew.

    Args:
        config: of the run.
        folder: of the run.
        on_metrics: called with each line of `metrics.jsonl`.

    Raises:
        InvalidOption: config, demonstrations and envs do not fit together, or the folder holds
            another run.
        InvalidDataset: the demonstrations are damaged.
        DependencyNotInstalled: Stable-Baselines3 is not installed.
    """
    require("stable_baselines3", "sb3", "RL from demonstrations")
    run = Run(folder, dataclasses.asdict(config), free=("steps",))
    trainer = _Trainer(config, run, on_metrics)
    try:
        trainer.run_all()
    finally:
        trainer.close()
    return RLPDResult(trainer.best, trainer.last, trainer.evaluations())


class _Trainer:
    """One run, from its config to its files."""

    def __init__(
        self, config: RLPDConfig, run: Run, on_metrics: Callable[[dict[str, Any]], None] | None
    ) -> None:
        self._config, self._run, self._on_metrics = config, run, on_metrics
        self.best, self.last = run.folder / "best.zip", run.folder / "last.zip"
        self._ids, self._test_ids = find_ids(config.ids), find_ids(config.test_ids)
        encoder = _open_encoder(config.encoder, run.folder) if config.encoder else None
        self._keywords = _find_keywords(config, encoder)
        self._testers: dict[str, gym.Env[Any, Any]] = {}
        self._outcomes: deque[bool] = deque(maxlen=RECENT)
        self._envs = self._make_envs(encoder)
        self._demonstrations: Any = None
        if config.demonstrations:
            see = None if encoder is None else functools.partial(_encode, encoder)
            space = self._envs.observation_space
            dataset, rules = Dataset(config.demonstrations), _find_rules(config)
            self._demonstrations = read_transitions(dataset, self._ids, space, rules, see)
        state = run.load_state()
        self._model = self._make_model() if state is None else self._load_model(state)
        self._best = max((m["success"] for m in self.evaluations()), default=-1.0)
        self._started = time.perf_counter()

    def run_all(self) -> None:
        """Train up to the wanted number of steps."""
        from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

        model, board = self._model, str(self._run.folder / "tensorboard")
        every, steps = self._config.evaluate_every, self._config.steps
        if model.num_timesteps >= steps:
            return
        model.set_logger(Logger(board, [TensorBoardOutputFormat(board)]))
        if model.num_timesteps == 0:
            if self._config.warm_start and self._shown:
                model.train(self._config.warm_start, self._config.batch_size)
            self._evaluate()
        while (done := model.num_timesteps) < steps:
            left = min(every - done % every, steps - done)
            model.learn(left, self._on_step, log_interval=None, reset_num_timesteps=False)
            self._evaluate()
        model.logger.close()

    def close(self) -> None:
        """Close all envs."""
        self._envs.close()
        for env in self._testers.values():
            env.close()

    def _make_envs(self, encoder: Any) -> Any:
        from stable_baselines3.common.vec_env import DummyVecEnv

        from vla_gym.train.sb3_parts import FeatureVecEnv

        ids = spread(self._ids, self._config.envs or len(self._ids))
        keys = _find_keys(self._config)
        makers = [functools.partial(_make_env, env_id, keys, self._keywords) for env_id in ids]
        find_common(makers)
        envs = DummyVecEnv(makers)
        if encoder is None:
            return envs
        return FeatureVecEnv(envs, encoder.encode, encoder.model.feature_dim)

    def _make_model(self) -> Any:
        import stable_baselines3

        from vla_gym.train.sb3_parts import POLICIES, Inputs

        config = self._config
        told = "instruction" in self._envs.observation_space.spaces
        one_hot = len(self._ids) if told and config.task == "one_hot" else 0
        networks = {
            "net_arch": list(config.hidden),
            "n_critics": config.critics,
            "features_extractor_class": Inputs,
            "features_extractor_kwargs": {"tasks": one_hot},
        }
        model = getattr(stable_baselines3, config.algorithm)(
            POLICIES[config.algorithm] if config.layer_norm else "MultiInputPolicy",
            self._envs,
            policy_kwargs=networks,
            learning_rate=config.learning_rate,
            gamma=config.gamma,
            batch_size=config.batch_size,
            buffer_size=config.buffer,
            learning_starts=0 if self._shown and config.warm_start else config.learning_starts,
            tau=config.tau,
            gradient_steps=max(round(config.updates_per_step * self._envs.num_envs), 1),
            seed=config.seed,
            **_find_settings(config, self._envs.action_space.shape),
        )
        if config.encoder:
            model.encoder = ENCODER  # saved with the model; the policy "sb3" looks there
        embeddings = [encode(_instruction_of(env_id), "embedding") for env_id in self._ids]
        for module in model.policy.modules():
            if isinstance(module, Inputs):
                module.set_numbers(self._demonstrations, np.stack(embeddings) if one_hot else None)
        self._use_demonstrations(model)
        self._envs.seed((1 + config.seed) * TRAIN_SEED)
        return model

    def _load_model(self, state: Mapping[str, Any]) -> Any:
        import stable_baselines3
        import torch

        algorithm = getattr(stable_baselines3, self._config.algorithm)
        file = io.BytesIO(state["model"].numpy().tobytes())
        model = algorithm.load(file, env=self._envs)
        _fill_buffer(model.replay_buffer, state["buffer"])
        self._use_demonstrations(model)
        self._run.rewind(model.num_timesteps)
        self._envs.seed((1 + self._config.seed) * TRAIN_SEED + model.num_timesteps)
        numbers = state["numpy"].numpy().astype(np.uint32)
        drawn = ("MT19937", numbers, state["drawn"], 0, 0.0)
        np.random.set_state(drawn)  # noqa: NPY002  # SB3 draws from it
        torch.set_rng_state(state["torch"])
        return model

    def _use_demonstrations(self, model: Any) -> None:
        from vla_gym.train.sb3_parts import MixedBuffer, imitate_as_well

        config = self._config
        if not self._shown:
            return
        share = config.demonstration_share
        model.replay_buffer = MixedBuffer(model.replay_buffer, self._demonstrations, share)
        if config.imitation:
            imitate_as_well(model, self._demonstrations, config.imitation, config.batch_size)

    @property
    def _shown(self) -> bool:
        """Whether the demonstrations serve for more than the normalisation."""
        return self._demonstrations is not None and self._config.demonstration_share > 0

    def _on_step(self, seen: dict[str, Any], _: dict[str, Any]) -> bool:
        """Take note of episodes that ended, and log when it is time."""
        for done, info in zip(seen["dones"], seen["infos"], strict=True):
            if done and not info.get("crashed"):
                self._outcomes.append(bool(info["success"]))
        step = self._model.num_timesteps
        if step // LOG_EVERY > (step - self._envs.num_envs) // LOG_EVERY:
            self._log({})
        return True

    def _evaluate(self) -> None:
        """Play in the envs, log, and save what it goes on from."""
        model = self._model
        file = _to_bytes(model)
        write_whole(self.last, file)
        policy = make_policy(f"sb3:{self.last}")
        numbers = self._play("", policy, self._ids)
        if self._test_ids:
            numbers |= self._play("test/", policy, self._test_ids)
        if numbers["success"] >= self._best:
            self._best = numbers["success"]
            write_whole(self.best, file)
        self._log(numbers)
        self._run.save_state(model.num_timesteps, _describe_state(model, file))

    def _play(self, prefix: str, policy: Any, ids: Sequence[str]) -> dict[str, Any]:
        """Return success rates over the tasks, all together with a Wilson interval."""
        episodes, rates, successes, played = self._config.evaluation_episodes, {}, 0, 0
        for env_id in ids:
            if env_id not in self._testers:
                keywords = {**self._keywords, **TEST_KEYWORDS, **self._config.test_keywords}
                keywords |= policy.spec.env_keywords()
                self._testers[env_id] = gym.make(env_id, disable_env_checker=True, **keywords)
            env = self._testers[env_id]
            sheet = env.unwrapped.spec_sheet  # type: ignore[attr-defined]  # all ids are ours
            outcomes = _play_episodes(env, connect(policy, sheet), episodes)
            rates[f"success/{env_id}"] = float(np.mean(outcomes or [0.0]))
            successes, played = successes + sum(outcomes), played + len(outcomes)
        interval = success_interval(successes, played)
        if interval is None:
            raise SimulatorCrashed(f"every episode of {list(ids)} has crashed; see the log")
        found = {"success": successes / played, "interval": list(interval), "n": played, **rates}
        return {f"{prefix}{key}": value for key, value in found.items()}

    def _log(self, numbers: Mapping[str, Any]) -> None:
        model = self._model
        found = {k: float(v) for k, v in model.logger.name_to_value.items()} | dict(numbers)
        if self._outcomes:
            found["train/success"] = float(np.mean(self._outcomes))
        for key, value in found.items():
            if isinstance(value, int | float):
                model.logger.record(key, value)
        model.logger.dump(model.num_timesteps)
        seconds = round(time.perf_counter() - self._started, 1)
        line = {"step": model.num_timesteps, "time": seconds, **found}
        self._run.log(**line)
        if self._on_metrics is not None:
            self._on_metrics(line)

    def evaluations(self) -> list[dict[str, Any]]:
        return [line for line in self._run.metrics() if "success" in line]


def _find_keywords(config: RLPDConfig, encoder: Any) -> dict[str, Any]:
    """Return the keywords of `gym.make` with which the agent, or the encoder, sees what it needs.

    The instruction is one of Stable-Baselines3's numbers: an embedding, or the text's bytes.
    """
    common = {
        **config.keywords,
        "reward": config.reward,
        "terminate_on_success": config.terminate_on_success,
    }
    if encoder is not None:
        return {**common, **encoder.spec.env_keywords(), "instruction": "bytes"}
    return {"cameras": (), **common, "state": True, "instruction": "embedding"}


def _find_rules(config: RLPDConfig) -> Rules:
    mode = config.keywords.get("action_mode", "ee_delta")
    return Rules(config.reward, config.terminate_on_success, mode)


def _make_env(
    env_id: str, keys: tuple[str, ...] | None, keywords: Mapping[str, Any]
) -> gym.Env[Any, Any]:
    env = gym.make(env_id, disable_env_checker=True, on_crash="restart", **keywords)
    return env if keys is None else gym.wrappers.FilterObservation(env, keys)


def _find_keys(config: RLPDConfig) -> tuple[str, ...] | None:
    """Return what the agent sees of an observation, None for all that the encoder reads."""
    if config.encoder:
        return None
    single = len(find_ids([*config.ids, *config.test_ids])) == 1
    instruction = () if single or config.task == "none" else ("instruction",)
    return ("state", "proprio", *instruction)


def _open_encoder(name: str, folder: Path) -> Any:
    """Return the frozen policy whose features are seen; its checkpoint is copied to the run."""
    kept = folder / ENCODER
    if not kept.exists():
        source = Path(name.removeprefix("vla:"))
        if not source.is_dir():
            raise InvalidOption(
                f"encoder={name!r} must be the folder of a checkpoint, such as vla:RUN/best; "
                f"{source} is none"
            )
        temporary = folder / f".{ENCODER}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        temporary.rename(kept)
    policy: Any = make_policy(str(kept))
    if not hasattr(policy, "encode"):
        raise InvalidOption(f"encoder={name!r} has no encode, as the policy vla has")
    if policy.model.config.history > 1:
        raise InvalidOption(
            f"encoder={name!r} looks at {policy.model.config.history} frames, and its feature is "
            "no function of one observation; choose one with history=1"
        )
    return policy


def _encode(encoder: Any, batch: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the features (T, n) of an episode's frames, piece by piece."""
    count = len(batch["instruction"])
    pieces = [
        encoder.encode({k: v[i : i + ENCODE_AT_ONCE] for k, v in batch.items()})
        for i in range(0, count, ENCODE_AT_ONCE)
    ]
    return np.concatenate(pieces)


def _find_settings(config: RLPDConfig, action_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what SAC or TD3 takes and the other does not."""
    if config.algorithm == "SAC":
        return {
            "ent_coef": f"auto_{config.start_temperature}",
            "target_entropy": -float(np.prod(action_shape)) / 2,
        }
    from stable_baselines3.common.noise import NormalActionNoise

    deviation = np.full(action_shape, TD3_NOISE)
    return {"action_noise": NormalActionNoise(np.zeros(action_shape), deviation)}


def _instruction_of(env_id: str) -> str:
    keywords = gym.spec(env_id).kwargs
    suite = registration.get_suite(keywords["suite"])
    return registration.get_task(suite, keywords["task"]).instruction


def _play_episodes(env: gym.Env[Any, Any], policy: Any, episodes: int) -> list[bool]:
    """Return the outcomes of the seeds 0, 1, ...; an episode that crashes has none."""
    outcomes = []
    for seed in range(episodes):
        try:
            outcomes.append(run_episode(env, policy, seed).success)
        except SimulatorCrashed as error:
            logger.warning("evaluation, seed %d: %s", seed, error)
    return outcomes


def _to_bytes(model: Any) -> bytes:
    file = io.BytesIO()
    model.save(file)
    return file.getvalue()


def _describe_state(model: Any, file: bytes) -> dict[str, Any]:
    """Return all that a run goes on from, as tensors and plain values."""
    import torch

    _, drawn, *rest = np.random.get_state()  # noqa: NPY002  # SB3 draws from it
    return {
        "model": torch.frombuffer(bytearray(file), dtype=torch.uint8),
        "buffer": _pack_buffer(getattr(model.replay_buffer, "online", model.replay_buffer)),
        "numpy": torch.from_numpy(np.asarray(drawn).astype(np.int64)),
        "drawn": rest[0],
        "torch": torch.get_rng_state(),
    }


BUFFER_ARRAYS = ("actions", "rewards", "dones", "timeouts")


def _pack_buffer(buffer: Any) -> dict[str, Any]:
    """Return what a replay buffer of SB3 holds so far."""
    import torch

    arrays = {name: getattr(buffer, name) for name in BUFFER_ARRAYS}
    for name in ("observations", "next_observations"):
        arrays |= {f"{name} {key}": values for key, values in getattr(buffer, name).items()}
    size = buffer.size()
    filled = {name: torch.from_numpy(values[:size].copy()) for name, values in arrays.items()}
    return {"pos": buffer.pos, "full": buffer.full, **filled}


def _fill_buffer(buffer: Any, packed: Mapping[str, Any]) -> None:
    """Put back what `_pack_buffer` has returned."""
    size = len(packed["actions"])
    for name, values in packed.items():
        if name in ("pos", "full"):
            continue
        attribute, _, key = name.partition(" ")
        target = getattr(buffer, attribute)
        (target[key] if key else target)[:size] = values.numpy()
    buffer.pos, buffer.full = packed["pos"], packed["full"]
