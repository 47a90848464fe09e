"""Meta-World's benchmarks as data, and how tasks share envs."""

from __future__ import annotations

import pytest

from tests.support import needs
from vla_gym.errors import InvalidOption, UnknownName
from vla_gym.evaluation.evaluate import find_ids
from vla_gym.registration import get_suite
from vla_gym.suites.metaworld_benchmarks import BENCHMARKS
from vla_gym.train.multitask import find_benchmark, spread


@needs("metaworld")
@pytest.mark.parametrize("name", ["MT10", "MT50", "ML10", "ML45"])
def test_benchmarks_have_the_tasks_that_metaworld_gives_them(name):
    import metaworld.env_dict

    theirs = getattr(metaworld.env_dict, f"{name}_V3")
    if name.startswith("MT"):
        theirs = {"train": theirs, "test": theirs}
    found = find_benchmark(name)
    tasks = get_suite("MetaWorld").tasks
    native = {f"VLA/MetaWorld-{task.name}-v0": task.native for task in tasks.values()}
    for ids, wanted in ((found.train, theirs["train"]), (found.test, theirs["test"])):
        assert sorted(native[env_id] for env_id in ids) == sorted(wanted)
        assert len(set(ids)) == len(ids)


def test_meta_learning_benchmarks_test_on_tasks_that_are_not_trained_on():
    sizes = {}
    for name in ("ML10", "ML45"):
        found = find_benchmark(name)
        assert not set(found.train) & set(found.test)
        sizes[name] = len(found.train), len(found.test)
    assert sizes == {"ML10": (10, 5), "ML45": (45, 5)}


def test_an_unknown_benchmark_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match=r"MT20.*MT10"):
        find_benchmark("MT20")


def test_a_benchmark_stands_where_ids_do():
    assert find_ids(["MT10"]) == list(find_benchmark("MT10").train)
    assert find_ids(["ml10-train", "ML10-test"]) == [
        *find_benchmark("ML10").train,
        *find_benchmark("ML10").test,
    ]
    assert len(find_ids(["MT50", "MetaWorld-*"])) == 50
    assert set(BENCHMARKS) == {"MT10", "MT50", "ML10-train", "ML10-test", "ML45-train", "ML45-test"}


def test_a_benchmark_without_its_part_is_refused_since_it_would_train_on_the_test_tasks():
    with pytest.raises(InvalidOption, match=r"'ML10'.*ML10-TRAIN, ML10-TEST"):
        find_ids(["ML10"])


def test_every_task_gets_as_many_envs():
    assert spread(["a", "b"], 4) == ["a", "a", "b", "b"]
    assert spread(["a"], 1) == ["a"]
    for envs in (0, 1, 3):
        with pytest.raises(InvalidOption, match=rf"{envs} envs .* over 2 tasks"):
            spread(["a", "b"], envs)
