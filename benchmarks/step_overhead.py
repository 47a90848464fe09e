"""What a step without cameras costs beyond the bare simulator's, layer by layer.

The layers are timed on the same actions, in blocks that take turns, by the processor's time of this
process, so that a busy machine hardly matters:

- bare: `step` of the upstream env on its own, observation and reward included. Our twins and Toy
  have no upstream; there the simulator is the base.
- simulator: the suite's adapter, whose `step` returns a `Frame`.
- VLAEnv: that with checked action, observation and info.
- gym.make: that within Gymnasium's own wrappers (PassiveEnvChecker, OrderEnforcing, TimeLimit).

    python benchmarks/step_overhead.py --json benchmarks/results/step_overhead.json

Exit status 1 where a step of Meta-World through `gym.make` costs more than 1.15 bare steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # as vla-gym eval does in its workers

import gymnasium as gym
import numpy as np

import vla_gym  # noqa: F401  registers the ids
from vla_gym.evaluation.records import describe_machine, versions_of

TARGET = 1.15
"""Most that a step of Meta-World through gym.make may cost, in bare steps."""


class Layer(NamedTuple):
    """One way to step."""

    start: Callable[[int], Any]
    step: Callable[[Any], Any]
    actions: list[Any]


def make_metaworld(task: str) -> tuple[Layer, Callable[[], Any]]:
    """Return upstream's own env as a layer, and how to close it."""
    import metaworld

    benchmark = metaworld.MT1(task, seed=42)
    env = benchmark.train_classes[task]()
    env.max_path_length = sys.maxsize

    def start(seed: int) -> None:
        env.set_task(benchmark.train_tasks[seed % 50])
        env.reset()

    return Layer(start, env.step, []), env.close


def make_robosuite(task: str) -> tuple[Layer, Callable[[], Any]]:
    """Return upstream's own env as a layer, and how to close it."""
    import robosuite

    env = robosuite.make(
        task,
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        reward_shaping=True,
        control_freq=20,
        ignore_done=True,
        hard_reset=False,  # resets are not timed here
        renderer="mujoco",
        seed=0,
    )
    return Layer(lambda seed: env.reset(), env.step, []), env.close


CASES: dict[str, tuple[str, dict[str, Any], Callable[[], tuple[Layer, Callable[[], Any]]] | None]]
CASES = {
    "Meta-World Reach": ("MetaWorld-Reach", {}, lambda: make_metaworld("reach-v3")),
    "Meta-World PickPlace": ("MetaWorld-PickPlace", {}, lambda: make_metaworld("pick-place-v3")),
    "robosuite Lift": ("Robosuite-Lift", {}, lambda: make_robosuite("Lift")),
    "robosuite Lift, state": ("Robosuite-Lift", {"state": True}, lambda: make_robosuite("Lift")),
    "RLBench twin": ("RLBench-ReachTarget", {"simulator": "rlbench-twin"}, None),
    "CALVIN twin": ("CALVIN-OpenDrawer", {"simulator": "calvin-twin"}, None),
    "Toy": ("Toy-Reach", {}, None),
}


def make_layers(name: str, steps: int) -> tuple[dict[str, Layer], list[Callable[[], Any]]]:
    """Return the layers of a case, innermost first, and what closes their envs."""
    task, keywords, make_bare = CASES[name]
    made = [
        gym.make(f"VLA/{task}-v0", cameras=(), terminate_on_success=False, **keywords)
        for _ in range(3)
    ]
    wrapped, plain, inner = made[0], made[1].unwrapped, made[2].unwrapped
    rng = np.random.default_rng(0)
    shape = wrapped.action_space.shape
    actions = [rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(steps)]
    native = [plain._mode.to_native(action) for action in actions]
    layers, closers = {}, [env.close for env in made]
    if make_bare is not None:
        bare, close = make_bare()
        layers["bare"] = bare._replace(actions=native)  # float32, as its own action space says
        closers.append(close)

    def start(env: Any) -> Callable[[int], Any]:
        return lambda seed: env.reset(seed=seed)

    layers["simulator"] = Layer(start(inner), lambda vector: inner._simulator.step(vector), native)
    layers["VLAEnv"] = Layer(start(plain), plain.step, actions)
    layers["gym.make"] = Layer(start(wrapped), wrapped.step, actions)
    return layers, closers


def compare(layers: dict[str, Layer], blocks: int) -> dict[str, list[float]]:
    """Return seconds per step of each layer's blocks, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in layers}
    for block in range(-2, blocks):
        for name in layers if block % 2 else reversed(layers):
            start, step, actions = layers[name]
            start(block + 2)
            step(actions[0])  # the first step after a reset may be checked by a wrapper
            started = time.process_time()
            for action in actions[1:]:
                step(action)
            seconds = (time.process_time() - started) / (len(actions) - 1)
            if block >= 0:
                times[name].append(seconds)
    return times


def summarise(name: str, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Print and return each layer's median and its ratio to the innermost one."""
    base = next(iter(times.values()))
    rows = []
    for layer, seconds in times.items():
        ratios = [mine / bare for mine, bare in zip(seconds, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows.append(
            {
                "case": name,
                "layer": layer,
                "n": len(seconds),
                "microseconds": round(1e6 * statistics.median(seconds), 1),
                "least_microseconds": round(1e6 * min(seconds), 1),
                "ratio": round(middle, 3),
                "ratio_quartiles": [round(low, 3), round(high, 3)],
                "ratio_of_least": round(min(seconds) / min(base), 3),
            }
        )
        print(
            f"{name:<24}{layer:<12}{rows[-1]['microseconds']:>9} us a step, least "
            f"{rows[-1]['least_microseconds']:>8}, ratio {middle:.3f} ({low:.3f} to {high:.3f}), "
            f"of the least {rows[-1]['ratio_of_least']:.3f}",
            flush=True,
        )
    return rows


def main() -> int:
    """Run the benchmark from the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--blocks", type=int, default=30, help="of each layer")
    parser.add_argument("--steps", type=int, default=100, help="of a block")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # robosuite has much to say at each make
    machine, load = describe_machine(), os.getloadavg()[0]
    print(f"{machine}, load {load:.1f} before")

    rows = []
    for name in arguments.cases:
        layers, closers = make_layers(name, arguments.steps)
        rows += summarise(name, compare(layers, arguments.blocks))
        for close in closers:
            close()
    if arguments.json:
        record = {
            "benchmark": "step_overhead",
            "command": shlex.join(["python", *sys.argv]),
            "steps_of_a_block": arguments.steps,
            "rows": rows,
            "versions": versions_of(
                ("vla-gym", "gymnasium", "metaworld", "robosuite", "mujoco", "numpy")
            ),
            "machine": machine,
            "load_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    outer = [row for row in rows if row["layer"] == "gym.make" and "Meta-World" in row["case"]]
    return int(any(row["ratio"] > TARGET for row in outer))


if __name__ == "__main__":
    sys.exit(main())
