"""SAC of Stable-Baselines3 learns Meta-World's reach from the state through `gym.make`.

For each seed an agent is trained and then plays, beside the random policy, the same held-out
seeds through `vla_gym`'s own evaluator (`sb3:agent.zip`), each episode for the task's full 500
steps. An episode counts as solved if it is solved at any step; the rate at the last step stands
beside it. The task has 50 goals, one of which an episode's seed draws, and the same goal is the
same episode. So each agent also plays the 50 goals of `split="test"`, which no training has seen,
and every rate is given by goal too.

    python benchmarks/reach_rl.py --json benchmarks/results/reach_rl.json

Exit status 1 where an agent solves less than 90 % of the episodes.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
from harness import describe_run, write_record

import vla_gym  # noqa: F401  registers the ids
from vla_gym.evaluation.evaluate import evaluate
from vla_gym.evaluation.metrics import success_interval
from vla_gym.evaluation.records import Record

ID = "VLA/MetaWorld-Reach-v0"
SPLITS = ("train", "test")
TARGET = 0.9
FIRST_SEED = 10_000
"""Of the evaluation. Training seeds its env once with 0, 1, 2 and goes on from there."""

TRAINING_HORIZON = 100
"""Control steps: reaching takes about 40, and short episodes show more goals."""

SETTINGS: dict[str, Any] = {
    "learning_rate": 2e-3,
    "gamma": 0.9,  # the reward tells at every step how near the goal is
    "ent_coef": "auto_0.1",  # from 1.0, the default, the bonus outweighs the reward for long
    "learning_starts": 1000,
    "train_freq": 4,
    "gradient_steps": 2,
    "batch_size": 256,
    "policy_kwargs": {"net_arch": [128, 128]},
}


def train(seed: int, steps: int, path: Path) -> dict[str, Any]:
    """Train SAC for so many env steps, save it as `path` and return what that took."""
    import torch
    from stable_baselines3 import SAC

    torch.set_num_threads(1)
    env = gym.make(ID, state=True, cameras=(), max_episode_steps=TRAINING_HORIZON)
    env = gym.wrappers.FilterObservation(env, ["state"])
    model = SAC("MultiInputPolicy", env, seed=seed, device="cpu", **copy.deepcopy(SETTINGS))
    started = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - started
    model.save(path)
    env.close()
    return {"env_steps": steps, "updates": model._n_updates, "seconds": round(seconds, 1)}


def find_goals(split: str, seeds: range) -> dict[int, int]:
    """Return seed -> the number of the goal that an episode with this seed has."""
    env = gym.make(ID, cameras=(), split=split)
    goals = {seed: int(env.reset(seed=seed)[1]["goal"]) for seed in seeds}
    env.close()
    return goals


def describe(records: list[Record], goals: dict[int, int]) -> dict[str, Any]:
    """Return counts, rates and Wilson 95 % intervals of one policy's episodes on one split."""
    done = [record for record in records if record.outcome != "crashed"]
    at_any = {record.seed: record.outcome == "success" for record in done}
    at_end = {record.seed: bool(record.success_at_end) for record in done}
    met = sorted({goals[seed] for seed in at_any})
    always = [g for g in met if all(at_any[seed] for seed in at_any if goals[seed] == g)]
    result: dict[str, Any] = {
        "crashed": len(records) - len(done),
        "horizon": sorted({record.length for record in done if record.length}),
    }
    for name, solved, n in (
        ("at_any_step", sum(at_any.values()), len(done)),
        ("at_last_step", sum(at_end.values()), len(done)),
        ("goals_always_solved", len(always), len(met)),
    ):
        interval = success_interval(solved, n)
        assert interval is not None
        result[name] = {
            "solved": solved,
            "n": n,
            "rate": round(solved / n, 4),
            "wilson_95": [round(bound, 4) for bound in interval],
        }
    return result


def show(found: dict[str, Any]) -> str:
    """Return one rate as text, for example `97/100 = 97.0 % [91.5, 99.0]`."""
    low, high = (100 * bound for bound in found["wilson_95"])
    return f"{found['solved']}/{found['n']} = {100 * found['rate']:.1f} % [{low:.1f}, {high:.1f}]"


def main() -> int:
    """Run the benchmark from the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the training")
    parser.add_argument("--steps", type=int, default=40_000, help="env steps of each training")
    parser.add_argument("--episodes", type=int, default=100, help="of each evaluation")
    parser.add_argument("--workers", type=int, default=1, help="processes of the evaluation")
    parser.add_argument("--models", type=Path, help="folder to keep the agents in")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()

    print(describe_run(), flush=True)

    work = Path(tempfile.mkdtemp(prefix="reach_rl-"))
    models = arguments.models or work / "models"
    models.mkdir(parents=True, exist_ok=True)
    trainings, policies = {}, {}
    for seed in arguments.seeds:
        path = models / f"sac-seed{seed}.zip"
        trainings[f"sac-seed{seed}"] = train(seed, arguments.steps, path)
        policies[f"sac-seed{seed}"] = f"sb3:{path}"
        print(f"sac-seed{seed}: {trainings[f'sac-seed{seed}']}", flush=True)
    policies["random"] = "random"

    seeds = range(FIRST_SEED, FIRST_SEED + arguments.episodes)
    results: dict[str, dict[str, Any]] = {name: {} for name in policies}
    for split in SPLITS:
        goals = find_goals(split, seeds)
        done = evaluate(
            policies,
            [ID],
            episodes=arguments.episodes,
            folder=work / split,
            seed=FIRST_SEED,
            workers=arguments.workers,
            keywords={"split": split, "terminate_on_success": False},
            video=False,
        )
        for name in policies:
            mine = [record for record in done.records if record.policy == name]
            results[name][split] = found = describe(mine, goals)
            print(
                f"{name:<10} {split:<6} any step {show(found['at_any_step']):<30} "
                f"last step {show(found['at_last_step']):<30} "
                f"goals {show(found['goals_always_solved'])}",
                flush=True,
            )
    shutil.rmtree(work)

    rates = [results[name]["train"]["at_any_step"]["rate"] for name in trainings]
    print(f"lowest rate of {len(rates)} seeds: {100 * min(rates):.1f} % (target: {100 * TARGET:g})")
    content = {
        "protocol": f"{ID} from its state, SAC; {arguments.episodes} episodes with the seeds "
        f"from {FIRST_SEED}, 500 steps each, deterministic actions; Wilson 95 % intervals. "
        "train: the 50 goals of the training; test: 50 others. goals_always_solved: of the "
        "goals met, those solved at any step in each of their episodes",
        "target": TARGET,
        "training": {
            "horizon": TRAINING_HORIZON,
            "settings": SETTINGS,
            "runs": trainings,
        },
        "results": results,
    }
    write_record(arguments.json, "reach_rl", content)
    return 0 if min(rates) >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
