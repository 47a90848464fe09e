"""Policies by name, from this package and from any other."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import vla_gym
from vla_gym.errors import BrokenDependency, InvalidOption, UnknownName
from vla_gym.policy import Policy, list_policies, make_policy, register_policy, registry


@pytest.fixture(autouse=True)
def own_register(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Return a function that installs a distribution with one module and one policy of it."""

    def install(name, policy, source, value=None):
        folder = tmp_path / name
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{name}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[vla_gym.policies]\n{policy} = {value or name + ':Policy'}\n"
        )
        monkeypatch.syspath_prepend(folder)

    return install


PARROT = """
class Policy:
    def __init__(self, *arguments, **keywords):
        self.arguments, self.keywords = arguments, keywords

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return observation["proprio"], state
"""


class Parrot:
    """Remembers what it was made from."""

    def __init__(self, *arguments, **keywords):
        self.arguments, self.keywords = arguments, keywords

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return observation["proprio"], state


def test_the_shipped_policies_are_found_by_name():
    assert {"random", "zero", "metaworld-expert", "robosuite-lift-expert"} <= set(list_policies())
    assert list_policies() == sorted(list_policies())
    for name in ("random", "zero"):
        policy = make_policy(name)
        assert isinstance(policy, Policy) and policy.spec.cameras == ()
    assert vla_gym.make_policy is make_policy


def test_random_fits_any_number_of_actions_draws_in_range_and_repeats_by_seed():
    sheet = gym.make("VLA/Toy-Reach-v0", action_mode="native").unwrapped.spec_sheet
    policy = make_policy("random").for_env(sheet)
    batch = {"proprio": np.zeros((500, 10), np.float32)}
    policy.set_random_seed(7)
    actions, state = policy.predict(batch, state="kept")
    assert actions.shape == (500, 4) and actions.dtype == np.float32 and state == "kept"
    # 2,000 draws: the mean's standard deviation is sqrt(1/3 / 2000) = 0.013.
    assert abs(actions).max() <= 1 and abs(actions.mean()) < 0.06
    assert actions.min() < -0.98 and actions.max() > 0.98
    assert not np.array_equal(policy.predict(batch)[0], actions)
    policy.set_random_seed(7)
    np.testing.assert_array_equal(policy.predict(batch)[0], actions)


def test_zero_returns_zeros_of_the_envs_shape():
    policy = make_policy("zero").for_env(gym.make("VLA/Toy-Reach-v0").unwrapped.spec_sheet)
    actions, state = policy.predict({"proprio": np.zeros((3, 10))}, state=5)
    assert actions.shape == (3, 7) and actions.dtype == np.float32 and not actions.any()
    assert state == 5


@pytest.mark.parametrize("name", ["random", "zero"])
def test_a_policy_that_was_given_no_env_says_what_it_lacks(name):
    with pytest.raises(ValueError, match=r"needs action_dim=\.\.\., or for_env\(spec_sheet\)"):
        make_policy(name).predict({"proprio": np.zeros((1, 10))})
    assert make_policy(name, action_dim=2).predict({"proprio": np.zeros((1, 10))})[0].shape == (
        1,
        2,
    )


def test_an_unknown_policy_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match=r"no policy 'rendom' in .*Did you mean 'random'\?"):
        make_policy("rendom")
    with pytest.raises(UnknownName, match=r"no policy 'zeros' .*repeat `pip install`.*'zero'\?"):
        make_policy("zeros:agent.zip")


def test_what_stands_behind_the_first_colon_is_what_the_policy_is_made_from():
    register_policy("parrot", Parrot)
    assert make_policy("parrot").arguments == ()
    assert make_policy("parrot:runs/a.zip").arguments == ("runs/a.zip",)
    made = make_policy("parrot:C:/runs/a:b.zip", device="cpu")
    assert made.arguments == ("C:/runs/a:b.zip",) and made.keywords == {"device": "cpu"}
    assert make_policy("parrot:").arguments == ("",)


def test_a_registered_policy_is_listed_and_comes_before_an_installed_one():
    register_policy("zero", Parrot)
    register_policy("parrot", Parrot)
    assert isinstance(make_policy("zero"), Parrot)
    assert list_policies().count("zero") == 1 and "parrot" in list_policies()


def test_a_name_with_a_colon_cannot_be_registered():
    with pytest.raises(ValueError, match="must not hold a colon: 'sb3:mine'"):
        register_policy("sb3:mine", Parrot)


def test_a_policy_of_another_package_is_found_and_imported_only_when_made(distribution, tmp_path):
    mark = tmp_path / "imported"
    source = f"open({str(mark)!r}, 'w').close()\n" + PARROT
    distribution("fake_parrots", "far-parrot", source)
    assert "far-parrot" in list_policies() and not mark.exists()
    policy = make_policy("far-parrot:seeds", colour="green")
    assert mark.exists()
    assert policy.arguments == ("seeds",) and policy.keywords == {"colour": "green"}


def test_two_packages_with_one_name_are_refused_and_both_are_named(distribution):
    distribution("fake_parrots_a", "twin-parrot", PARROT)
    distribution("fake_parrots_b", "twin-parrot", PARROT)
    with pytest.raises(
        BrokenDependency, match="several packages offer a policy named 'twin-parrot'"
    ) as e:
        make_policy("twin-parrot")
    assert "fake_parrots_a:Policy" in str(e.value) and "fake_parrots_b:Policy" in str(e.value)
    assert str(e.value).endswith("Uninstall or rename one")
    assert "twin-parrot" in list_policies()  # and the others go on
    assert make_policy("zero") is not None


def test_one_package_seen_twice_on_the_path_is_no_conflict(distribution, monkeypatch, tmp_path):
    distribution("fake_parrots_c", "seen-parrot", PARROT)
    monkeypatch.syspath_prepend(tmp_path / "fake_parrots_c")
    assert make_policy("seen-parrot").arguments == ()


@pytest.mark.parametrize(
    ("name", "source", "value", "why"),
    [
        ("fake_parrots_d", "import no_such_part", None, "No module named 'no_such_part'"),
        ("fake_parrots_e", "", None, "module 'fake_parrots_e' has no attribute 'Policy'"),
        ("fake_parrots_f", "", "no_such_module:Policy", "No module named 'no_such_module'"),
    ],
)
def test_a_policy_that_cannot_be_imported_is_broken_and_named(
    distribution, name, source, value, why
):
    distribution(name, "lame-parrot", source, value)
    assert "lame-parrot" in list_policies()
    with pytest.raises(
        BrokenDependency, match=r"the policy 'lame-parrot' \(.*cannot be loaded: "
    ) as e:
        make_policy("lame-parrot")
    assert why in str(e.value)


def write_checkpoint(folder, text):
    folder.mkdir()
    (folder / "config.json").write_text(text)
    return folder


def test_a_folder_is_read_by_the_policy_that_its_config_names(tmp_path):
    register_policy("parrot", Parrot)
    folder = write_checkpoint(tmp_path / "run 1", '{"policy": "parrot", "layers": 2}')
    policy = make_policy(str(folder), device="cpu")
    assert policy.arguments == (str(folder),)
    assert policy.keywords == {"device": "cpu"}


def test_a_name_comes_before_a_folder(tmp_path, monkeypatch):
    register_policy("parrot", Parrot)
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "parrot", '{"policy": "zero"}')
    assert make_policy("parrot").arguments == ()


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '"policy"'])
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, text):
    folder = write_checkpoint(tmp_path / "run", text)
    with pytest.raises(InvalidOption, match=r"run' is no checkpoint.*\"policy\""):
        make_policy(str(folder))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InvalidOption, match="is no checkpoint of a policy"):
        make_policy(str(tmp_path))


def test_a_checkpoint_of_an_unknown_policy_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "run", '{"policy": "parot"}')
    with pytest.raises(UnknownName, match="parot"):
        make_policy(str(folder))
