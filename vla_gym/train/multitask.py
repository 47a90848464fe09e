"""Several tasks at once: Meta-World's MT and ML benchmarks, and how tasks share envs evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vla_gym import registration
from vla_gym.errors import InvalidOption, UnknownName

__all__ = ["Benchmark", "find_benchmark", "spread"]


@dataclass(frozen=True)
class Benchmark:
    """Which tasks are trained on, and which success is reported on.

    Attributes:
        name: such as `"ML10"`.
        train, test: ids. Equal for MT10 and MT50; without a common one for ML10 and ML45.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


def find_benchmark(name: str) -> Benchmark:
    """Return a benchmark of a registered suite: MT10, MT50, ML10 or ML45 of Meta-World.

    Upstream's ML hides the goal from the state and lets a policy adapt in the test task by its
    reward. Here the state shows the goal, the instruction says what to do, and nothing adapts:
    success on the test tasks is success without any example of them.

    Source: `Suite.benchmarks`, verified against metaworld 3.1.1.

    Raises:
        UnknownName: there is none of that name.
    """
    sets = {key: tuple(ids) for key, ids in registration.list_benchmarks().items()}
    if name in sets:
        return Benchmark(name, sets[name], sets[name])
    if f"{name}-train" in sets:
        return Benchmark(name, sets[f"{name}-train"], sets[f"{name}-test"])
    known = dict.fromkeys(key.removesuffix("-train").removesuffix("-test") for key in sets)
    raise UnknownName("benchmark", name, known)


def spread(ids: Sequence[str], envs: int) -> list[str]:
    """Return the id of each of `envs` envs so that every task has as many of them as any other.

    All envs step together, so each task gives the same number of steps, however long its episodes
    are. For `vla_gym.make_vec` and whatever makes a vector env.

    Raises:
        InvalidOption: `envs` is no multiple of the number of tasks.
    """
    if not ids or envs < 1 or envs % len(ids):
        raise InvalidOption(
            f"{envs} envs cannot be spread evenly over {len(ids)} tasks; valid is a multiple of "
            "the number of tasks"
        )
    return [env_id for env_id in ids for _ in range(envs // len(ids))]
