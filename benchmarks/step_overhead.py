"""What a step without cameras costs beyond the bare simulator's, layer by layer.

The layers are timed on the same actions, in blocks that take turns, by the processor's time of this
process, so that a busy machine hardly matters:

- bare: `step` of the upstream env on its own, observation and reward included. Our twins and Toy
  have no upstream; there the simulator is the base.
- simulator: the suite's adapter, whose `step` returns a `Frame`.
- VLAEnv: that with checked action, observation and info.
- gym.make: that within Gymnasium's own wrappers (PassiveEnvChecker, OrderEnforcing, TimeLimit).

    python benchmarks/step_overhead.py --json benchmarks/results/step_overhead.json
"""

from __future__ import annotations

from harness import Found, Ratio, main, need, take_turns  # first: it limits threads

# isort: split
import functools
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

import vla_gym  # noqa: F401  registers the ids

STEPS = 100
"""Of a block."""


class Layer(NamedTuple):
    """One way to step."""

    start: Callable[[int], Any]
    step: Callable[[Any], Any]
    actions: list[Any]

    def run(self, turn: int) -> float:
        """Play a block; return the processor time of a step [us]."""
        self.start(turn + 2)
        self.step(self.actions[0])  # the first step after a reset may be checked by a wrapper
        started = time.process_time()
        for action in self.actions[1:]:
            self.step(action)
        return 1e6 * (time.process_time() - started) / (len(self.actions) - 1)


Bare = tuple[Layer, Callable[[], Any]]


def make_metaworld(task: str) -> Bare:
    """Return upstream's own env as a layer, and how to close it."""
    import metaworld

    benchmark = metaworld.MT1(task, seed=42)
    env = benchmark.train_classes[task]()
    env.max_path_length = sys.maxsize

    def start(seed: int) -> None:
        env.set_task(benchmark.train_tasks[seed % 50])
        env.reset()

    return Layer(start, env.step, []), env.close


def make_robosuite(task: str) -> Bare:
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


def make_layers(
    suite: str, task: str, keywords: dict[str, Any], make_bare: Callable[[], Bare] | None
) -> tuple[dict[str, Layer], list[Callable[[], Any]]]:
    """Return the layers of a case, innermost first, and what closes their envs."""
    made: list[Any] = [
        gym.make(f"VLA/{suite}-{task}-v0", cameras=(), terminate_on_success=False, **keywords)
        for _ in range(3)
    ]
    wrapped, plain, inner = made[0], made[1].unwrapped, made[2].unwrapped
    rng = np.random.default_rng(0)
    shape = wrapped.action_space.shape
    actions = [rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(STEPS)]
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


def compare(
    suite: str,
    task: str,
    keywords: dict[str, Any],
    make_bare: Callable[[], Bare] | None,
    turns: int,
) -> Found:
    """Compare the layers of one task."""
    need(suite, keywords.get("simulator"))
    layers, closers = make_layers(suite, task, keywords, make_bare)
    sides = {name: layer.run for name, layer in layers.items()}
    values = take_turns(sides, turns, warm_up=2)
    for close in closers:
        close()
    base, *others = values
    return Found(values, "us a step", [Ratio(other, base, "cost") for other in others])


def case(
    suite: str, task: str, make_bare: Callable[[], Bare] | None = None, **keywords: Any
) -> Callable[[int], Found]:
    """Return a case."""
    return functools.partial(compare, suite, task, keywords, make_bare)


CASES = {
    "Meta-World Reach": case("MetaWorld", "Reach", lambda: make_metaworld("reach-v3")),
    "Meta-World PickPlace": case("MetaWorld", "PickPlace", lambda: make_metaworld("pick-place-v3")),
    "robosuite Lift": case("Robosuite", "Lift", lambda: make_robosuite("Lift")),
    "robosuite Lift, state": case("Robosuite", "Lift", lambda: make_robosuite("Lift"), state=True),
    "RLBench twin": case("RLBench", "ReachTarget", simulator="rlbench-twin"),
    "CALVIN twin": case("CALVIN", "OpenDrawer", simulator="calvin-twin"),
    "Toy": case("Toy", "Reach"),
}


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # robosuite has much to say at each make
    sys.exit(main("step_overhead", __doc__, CASES, turns=30, quick=7))
