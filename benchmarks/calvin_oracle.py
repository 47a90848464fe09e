"""Whether our CALVIN oracle says of the same states what calvin_env's own `Tasks` says.

In each scene of the original simulator states are recorded: random ones (lights, drawer, slider,
blocks on the table, in the cabinet, in the drawer, on each other, in the air, tilted), states of
random play and of scripted picks of every block. Then all pairs of two states of a scene are judged
by both, as start and end of all 34 tasks.

    export CALVIN_ENV_ROOT=/path/of/calvin_env
    python benchmarks/calvin_oracle.py --json benchmarks/results/calvin_oracle.json

Exit status 1 where the two disagree, or where a task is achieved in fewer than 5 pairs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vla_gym.suites.calvin.checkout import find_commit, find_root
from vla_gym.suites.calvin.oracle import RULES, Record, achieved
from vla_gym.suites.calvin.playtable import PlayTable
from vla_gym.suites.calvin.scenes import (
    BLOCKS,
    DRAWER_OPEN_M,
    HOME_ROBOT_OBS,
    IN_DRAWER_Z_M,
    ON_TABLE_Z_M,
    SCENES,
    SWITCH_ON_M,
    Scene,
)

Vector = NDArray[np.float64]

HOME = np.array(HOME_ROBOT_OBS)
LEAST = 5
"""Pairs in which each task must be achieved."""


class Moment(NamedTuple):
    """One state: what our oracle reads of it, and upstream's `info`."""

    record: Record
    info: dict[str, Any]


def read_moment(table: PlayTable) -> Moment:
    """Return the table's present state in both forms."""
    info = {
        "robot_info": table.robot.get_observation()[1],
        "scene_info": table.scene.get_info(),
    }
    return Moment(table.read().record, info)


def draw_scene_obs(scene: Scene, rng: np.random.Generator) -> Vector:
    """Return a random `scene_obs`; blocks may overlap and be thrown apart by the physics."""
    joints = [
        rng.choice([0.0, scene.slider_range, rng.uniform(0, scene.slider_range)]),
        rng.choice([0.0, DRAWER_OPEN_M, rng.uniform(0, DRAWER_OPEN_M)]),
        0.0,
        rng.choice([0.0, SWITCH_ON_M]),
    ]
    poses: list[Vector] = []
    for _ in BLOCKS:
        if poses and rng.random() < 0.25:  # on the one before, turned with it or not
            below = poses[-1]
            pose = below + np.array([0, 0, 0.04, 0, 0, rng.choice([0.0, np.pi / 2])])
        else:
            pose = draw_pose(scene, joints[1], rng)
        poses.append(pose)
    return np.concatenate([joints, rng.integers(2, size=2), *rng.permutation(poses)])


def draw_pose(scene: Scene, drawer: float, rng: np.random.Generator) -> Vector:
    """Return position and Euler angles of a block somewhere, shape (6,)."""
    place = rng.choice([*scene.areas, *scene.areas, "table", "drawer", "drawer", "air", "floor"])
    tilt = rng.uniform(-0.8, 0.8, 2) if rng.random() < 0.2 else np.zeros(2)
    turn = [*tilt, rng.uniform(-np.pi, np.pi)]
    if place == "drawer":
        x, y = scene.drawer_x + rng.uniform(-0.13, 0.13), rng.uniform(-0.11, -0.01) - drawer
        return np.array([x, y, IN_DRAWER_Z_M, *turn])
    if place == "air":
        return np.array([rng.uniform(-0.2, 0.3), rng.uniform(-0.2, 0.0), 0.6, *turn])
    if place == "floor":
        return np.array([rng.uniform(0.5, 0.8), rng.uniform(-0.3, 0.3), 0.02, *turn])
    (low, high) = scene.areas[place]
    return np.array([*rng.uniform(low, high), ON_TABLE_Z_M, *turn])


def rest(table: PlayTable, scene: Scene, rng: np.random.Generator) -> Iterator[Moment]:
    """Yield one random state, after it has come to rest or while it does."""
    table.reset(HOME, draw_scene_obs(scene, rng))
    for _ in range(rng.integers(12)):
        table.move(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    yield read_moment(table)


def play(table: PlayTable, scene: Scene, rng: np.random.Generator) -> Iterator[Moment]:
    """Yield states of random play, which leans towards the table."""
    table.reset(HOME, draw_scene_obs(scene, rng))
    drift = np.append(rng.uniform([-0.6, 0, -0.7], [0.8, 0.6, -0.3]), np.zeros(3))
    for _ in range(4):
        gripper = rng.choice([-1.0, 1.0])
        for _ in range(12):
            action = np.clip(drift + rng.normal(0, 0.3, 6), -1, 1)
            table.move(np.append(action, gripper))
        yield read_moment(table)


def pick(table: PlayTable, scene: Scene, rng: np.random.Generator, block: int) -> Iterator[Moment]:
    """Yield states while a block is picked up, turned and put down again."""
    scene_obs = draw_scene_obs(scene, rng)
    (low, high) = scene.areas["table"]
    for other in range(len(BLOCKS)):  # on the table only the one
        scene_obs[6 + 6 * other : 12 + 6 * other] = [0.6 + 0.1 * other, 0.3, 0.02, 0, 0, 0]
    spot = np.array([rng.uniform(low[0] + 0.05, high[0] - 0.05), -0.08, ON_TABLE_Z_M])
    scene_obs[6 + 6 * block : 12 + 6 * block] = [*spot, 0, 0, np.pi / 2]
    table.reset(HOME, scene_obs)
    # Fingers close along the block's narrow side, which is the world's x axis.
    grasp = np.array([np.pi, 0.0, np.pi / 2])
    turned = grasp + np.array([0, 0, rng.uniform(-1.4, 1.4)])
    above, barely = np.array([0, 0, 0.12]), np.array([0, 0, 0.005])
    path = [(spot + above, grasp, 1, 30), (spot, grasp, 1, 20), (spot, grasp, -1, 8)]
    path += [(spot + above, grasp, -1, 15), (spot + above, turned, -1, 25)]
    path += [(spot + barely, turned, -1, 20), (spot, turned, 1, 6)]
    path += [(spot + above, turned, 1, 15)]
    for position, euler, gripper, steps in path:
        quaternion = Rotation.from_euler("xyz", euler).as_quat()
        for _ in range(steps):
            table.move_to(position, quaternion, gripper)
        yield read_moment(table)


def record_moments(table: PlayTable, scene: Scene, count: int, seed: int) -> list[Moment]:
    """Return `count` states of a scene, from all three sources."""
    rng = np.random.default_rng(seed)

    def record() -> Iterator[Moment]:
        for block in itertools.cycle(range(len(BLOCKS))):
            for _ in range(4):
                yield from rest(table, scene, rng)
            yield from play(table, scene, rng)
            yield from pick(table, scene, rng, block)

    return list(itertools.islice(record(), count))


def compare(pairs: Iterator[tuple[Moment, Moment]], tasks: Any) -> tuple[Counter, Counter, int]:
    """Judge pairs of states by both oracles.

    Args:
        pairs: of start and end, of one scene.
        tasks: upstream's `Tasks`.

    Returns:
        in how many pairs upstream's oracle finds each task achieved; in how many ours says
        otherwise; number of pairs.
    """
    positives, disagreements, number = Counter(), Counter(), 0
    for start, end in pairs:
        theirs = tasks.get_task_info(start.info, end.info)
        positives.update(theirs)
        disagreements.update(theirs ^ achieved(start.record, end.record))
        number += 1
    return positives, disagreements, number


def load_tasks(root: Path) -> Any:
    """Return upstream's oracle with its rules; a `PlayTable` must have been made before."""
    from calvin_env.envs.tasks import Tasks
    from omegaconf import OmegaConf

    return Tasks(OmegaConf.load(root / "conf/tasks/new_playtable_tasks.yaml").tasks)


def main() -> int:
    """Run the benchmark from the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", help="checkout of calvin_env; else CALVIN_ENV_ROOT")
    parser.add_argument("--scenes", nargs="*", default=list(SCENES))
    parser.add_argument("--states", type=int, default=150, help="recorded per scene")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()

    from harness import write_record  # here, since tests load this file alone

    positives, disagreements, number = Counter(), Counter(), 0
    for name in arguments.scenes:
        table = PlayTable(name, root=arguments.root)
        root = find_root(arguments.root)
        assert root is not None
        moments = record_moments(table, SCENES[name], arguments.states, arguments.seed)
        found = compare(itertools.product(moments, repeat=2), load_tasks(root))
        table.close()
        positives, disagreements = positives + found[0], disagreements + found[1]
        number += found[2]
        print(f"scene {name}: {found[2]} pairs, {sum(found[1].values())} disagreements")
    rows = [
        {"task": task, "achieved": positives[task], "disagreements": disagreements[task]}
        for task in RULES
    ]
    for row in rows:
        print(f"{row['task']:<26}{row['achieved']:>7} achieved {row['disagreements']:>5} disagree")
    print(f"{number} pairs x {len(RULES)} tasks: {disagreements.total()} disagreements")
    content = {
        "pairs": number,
        "disagreements": disagreements.total(),
        "tasks": rows,
        "calvin_env": find_commit(root),
    }
    write_record(arguments.json, "calvin_oracle", content)
    enough = all(positives[task] >= LEAST for task in RULES)
    return 0 if enough and not disagreements.total() else 1


if __name__ == "__main__":
    sys.exit(main())
