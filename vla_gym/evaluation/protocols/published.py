"""The protocols of the benchmarks that vla_gym has. Data.

Sources are given as repository, commit and file. `differs` tells what is known to be otherwise
here; that a stand-in is not the original simulator is said by the simulator's name beside a score.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vla_gym import registration
from vla_gym.evaluation.protocols.protocol import MEAN_LENGTH, MEAN_OVER_GROUPS, Protocol
from vla_gym.suites.libero_tasks import BENCHMARKS as LIBERO_BENCHMARKS
from vla_gym.suites.metaworld_benchmarks import BENCHMARKS
from vla_gym.suites.metaworld_tasks import DIFFICULTIES, TASKS

__all__ = ["PUBLISHED"]


def _name_ids(suite: str, tasks: Iterable[str]) -> tuple[str, ...]:
    return tuple(registration.get_suite(suite).id(task) for task in tasks)


_MT50 = _name_ids("MetaWorld", BENCHMARKS["MT50"])

_DIFFICULTIES = {
    difficulty: _name_ids("MetaWorld", (t.name for t in TASKS.values() if difficulty in t.tags))
    for difficulty in DIFFICULTIES
}

_METAWORLD = (
    "Yu et al. 2019, Meta-World, arXiv:1910.10897; Farama-Foundation/Metaworld 7ea2b50 (3.1.1), "
    "docs/evaluation/evaluation.md and metaworld/evaluation.py"
)

_GOALS = (
    "The goals are those of MT1(seed=42) of each task. Upstream's MT10 and MT50 draw all tasks' "
    "goals from one generator, with a seed of the user's choice."
)

_META = (
    "There is no adaptation: upstream lets an agent adapt in 10 episodes per goal and then plays 3 "
    "for the score. Here each goal is played once, from the instruction alone.",
    "The goals are those of ML1(seed=42).test_tasks, 50 of each task; upstream's page says 40.",
)

_PERACT_TASKS = (
    *("OpenDrawer", "SlideBlockToColorTarget", "SweepToDustpanOfSize", "MeatOffGrill", "TurnTap"),
    *("PutItemInDrawer", "CloseJar", "ReachAndDrag", "StackBlocks", "LightBulbIn"),
    *("PutMoneyInSafe", "PlaceWineAtRackLocation", "PutGroceriesInCupboard"),
    *("PlaceShapeInShapeSorter", "PushButtons", "InsertOntoSquarePeg", "StackCups", "PlaceCups"),
)

_ROBOSUITE_GROUPS = {
    "block lifting": ("Lift",),
    "block stacking": ("Stack",),
    "pick-and-place": ("PickPlaceCan", "PickPlaceMilk"),
    "nut assembly": ("NutAssemblyRound",),
    "door opening": ("Door",),
    "table wiping": ("Wipe",),
    "two-arm lift": ("TwoArmLift",),
    "two-arm peg in hole": ("TwoArmPegInHole",),
    "two-arm handover": ("TwoArmHandover",),
}

_ROBOMIMIC = _name_ids(
    "Robosuite", ("Lift", "PickPlaceCan", "NutAssemblySquare", "TwoArmTransport", "ToolHang")
)


_LIBERO = (
    "Liu et al. 2023, LIBERO, arXiv:2306.03310; Lifelong-Robot-Learning/LIBERO 4f0dd18, "
    "libero/libero/benchmark/__init__.py (tasks, initial states); openvla/openvla 7ea2742, "
    "experiments/robot/libero/run_libero_eval.py (50 episodes, horizons, 10 settling steps); the "
    "same in Physical-Intelligence/openpi 04a8d0c, examples/libero/main.py"
)


def _libero(name: str, title: str, benchmark: str, max_steps: int) -> Protocol:
    return Protocol(
        name=name,
        title=title,
        ids=_name_ids("LIBERO", LIBERO_BENCHMARKS[benchmark]),
        episodes=50,
        source=_LIBERO,
        simulator="libero",
        max_steps=max_steps,
        differs=(
            "It is robosuite 1.5.2; published scores are of robosuite 1.4.",
            "Upstream draws the places of fixtures anew in each episode, from one generator that "
            "is seeded once. Here they are drawn from the episode's own seed.",
            "OpenVLA and openpi show 256 x 256 pixels, mirrored from left to right and resized to "
            "224. Here cameras, size and turn are the policy's; openvla-libero, openpi-libero and "
            "pi0-libero have theirs.",
        ),
    )


def _metaworld(
    name: str, title: str, benchmark: str, split: str, differs: tuple[str, ...], **further: Any
) -> Protocol:
    return Protocol(
        name=name,
        title=title,
        ids=_name_ids("MetaWorld", BENCHMARKS[benchmark]),
        episodes=50,
        source=_METAWORLD,
        simulator="metaworld",
        keywords={"split": split},
        max_steps=500,
        differs=differs,
        **further,
    )


PUBLISHED = (
    _metaworld(
        "metaworld-mt50",
        "Meta-World MT50, every training goal",
        "MT50",
        "train",
        (_GOALS,),
        groups=_DIFFICULTIES,
    ),
    _metaworld(
        "metaworld-mt10", "Meta-World MT10, every training goal", "MT10", "train", (_GOALS,)
    ),
    _metaworld(
        "metaworld-ml45-test", "Meta-World ML45, held-out tasks", "ML45-test", "test", _META
    ),
    _metaworld(
        "metaworld-ml10-test", "Meta-World ML10, held-out tasks", "ML10-test", "test", _META
    ),
    Protocol(
        name="metaworld-mt50-smolvla",
        title="Meta-World MT50 as LeRobot and SmolVLA play it",
        ids=_MT50,
        episodes=10,
        source="Shukor et al. 2025, SmolVLA, arXiv:2506.01844 (four groups and their mean); "
        "huggingface/lerobot 0492c2d, src/lerobot/envs/metaworld.py (camera, horizon, success), "
        "7291d51, src/lerobot/envs/metaworld_config.json (groups), docs/source/metaworld.mdx "
        "(10 episodes)",
        simulator="metaworld",
        keywords={"split": "train", "camera_preset": "lerobot"},
        max_steps=500,
        groups=_DIFFICULTIES,
        score=MEAN_OVER_GROUPS,
        differs=(
            "The goals are the first 10 of MT1(seed=42). LeRobot draws new ones in every episode.",
            "The instructions are ours, not LeRobot's.",
            "LeRobot shows one picture, corner2 with 480 x 480 pixels. Here corner2 stands where "
            "LeRobot's does; cameras and size are the policy's.",
        ),
    ),
    Protocol(
        name="rlbench-18x25",
        title="RLBench, PerAct's 18 tasks with keyposes",
        ids=_name_ids("RLBench", _PERACT_TASKS),
        episodes=25,
        source="Shridhar et al. 2022, Perceiver-Actor, arXiv:2209.05451, table 1; peract/peract "
        "02fb876, README.md, conf/eval.yaml, helpers/custom_rlbench_env.py; the same in NVlabs/RVT "
        "7172228, rvt/eval.py",
        simulator="coppeliasim",
        keywords={"action_mode": "keypose", "on_invalid_action": "terminate"},
        max_steps=25,
        differs=(
            "PerAct restores the first states of 25 stored test demonstrations. Here state and "
            "variation are drawn from the episode's seed; all variations may occur, as in PerAct's "
            "demonstrations.",
            "PerAct's action says of each keypose whether to avoid collisions. Here "
            "collision_checking says it for all.",
            "PerAct shows front, both shoulders and wrist with 128 x 128 pixels. Here cameras and "
            "size are the policy's, and there is no depth.",
        ),
    ),
    Protocol(
        name="calvin-chain-D",
        title="CALVIN's long-horizon evaluation (LH-MTLC), scene D",
        ids=_name_ids("CALVIN", ("Chain",)),
        episodes=1000,
        source="Mees et al. 2022, CALVIN, IEEE RA-L 7:7327-7334; mees/calvin 136fda2, "
        "calvin_models/calvin_agent/evaluation/evaluate_policy.py",
        simulator="pybullet",
        keywords={"scene": "D"},
        max_steps=5 * 360,
        score=MEAN_LENGTH,
        differs=(
            "CALVIN shows the static camera with 200 and the gripper camera with 84 pixels. Here "
            "cameras and size are the policy's.",
            "The renderer is the simulator's default, not the EGL one of CALVIN's data sets.",
        ),
    ),
    Protocol(
        name="calvin-34-D",
        title="CALVIN's 34 tasks one by one, scene D",
        ids=_name_ids(
            "CALVIN", (task for task in registration.get_suite("CALVIN").tasks if task != "Chain")
        ),
        episodes=50,
        source="Ours; tasks, instructions and 360 steps are those of mees/calvin 136fda2",
        simulator="pybullet",
        keywords={"scene": "D"},
        max_steps=360,
        differs=("It is not a published protocol: the first states are ours.",),
    ),
    Protocol(
        name="robosuite-9",
        title="robosuite's nine benchmark environments",
        ids=_name_ids("Robosuite", (t for some in _ROBOSUITE_GROUPS.values() for t in some)),
        episodes=50,
        source="Zhu et al. 2020, robosuite, arXiv:2009.12293; ARISE-Initiative/robosuite 287d93b, "
        "docs/algorithms/benchmarking.md; ARISE-Initiative/robosuite-benchmark ef3e404, "
        "runs/*/*/variant.json",
        simulator="robosuite",
        keywords={"robot": "Panda", "terminate_on_success": False},
        max_steps=500,
        groups={name: _name_ids("Robosuite", tasks) for name, tasks in _ROBOSUITE_GROUPS.items()},
        score=MEAN_OVER_GROUPS,
        differs=(
            "Published are mean returns over 500 steps, of 5 episodes, and no success rates. "
            "Episodes go on after success, except Wipe's, so that mean returns can be compared.",
            "It is robosuite 1.5.2, not 1.0, with two Pandas for the peg in the hole instead of "
            "a Panda and a Sawyer.",
        ),
    ),
    Protocol(
        name="robomimic-5",
        title="robomimic's five simulated tasks (proficient-human data)",
        ids=_ROBOMIMIC,
        episodes=50,
        source="Mandlekar et al. 2021, What Matters in Learning from Offline Human Demonstrations, "
        "arXiv:2108.03298; ARISE-Initiative/robomimic 20f5d5f, robomimic/__init__.py (horizons), "
        "01013ee, robomimic/scripts/generate_paper_configs.py (50 episodes)",
        simulator="robosuite",
        keywords={"robot": "Panda"},
        max_steps=dict(zip(_ROBOMIMIC, (400, 400, 400, 700, 700), strict=True)),
        differs=(
            "Published is the best of a training's checkpoints, each played 50 times. Here one "
            "policy is played.",
            "It is robosuite 1.5.2; the published scores are of an older one.",
        ),
    ),
    _libero("libero-spatial", "LIBERO-Spatial, every initial state", "LIBERO-Spatial", 220),
    _libero("libero-object", "LIBERO-Object, every initial state", "LIBERO-Object", 280),
    _libero("libero-goal", "LIBERO-Goal, every initial state", "LIBERO-Goal", 300),
    _libero("libero-10", "LIBERO-10 (LIBERO-Long), every initial state", "LIBERO-10", 520),
)
