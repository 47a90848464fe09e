"""The VLA policy and its checkpoint: what it plays, keeps, saves and refuses."""

from __future__ import annotations

import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
from vla_gym_policies.vla import VLAConfig, make_vla_policy

import vla_gym
from tests.policies.vla_models import SMALL, make_batch, save_language, save_vision
from tests.support import needs
from vla_gym.errors import ContractMismatch, InvalidOption, UnknownName
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import run_episode

pytestmark = needs("vla")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def vit(folder):
    return save_vision(folder, "vit")


def make(vision, seed=0, config=None, **keywords):
    import torch

    torch.manual_seed(seed)
    return make_vla_policy(
        config=VLAConfig(vision=vision, **{**SMALL, **(config or {})}), **keywords
    )


def rows(batch, index):
    return {
        key: value[index] if isinstance(value, np.ndarray) else tuple(value[i] for i in index)
        for key, value in batch.items()
    }


def save(policy, folder, sheets=()):
    from vla_gym_policies.vla.checkpoint import save_checkpoint

    save_checkpoint(folder, policy.model, sheets)
    return folder


def assert_same_actions(one, other, batch):
    np.testing.assert_array_equal(one.predict(batch)[0], other.predict(batch)[0])


# --- acting


def test_it_plays_episodes_in_toy(vit):
    policy = make(vit)
    env = gym.make("VLA/Toy-Reach-v0", max_episode_steps=5, **policy.spec.env_keywords())
    connected = connect(policy, env.unwrapped.spec_sheet)
    episodes = [run_episode(env, connected, seed=3) for _ in range(2)]
    assert episodes[0].length == 5
    assert episodes[0].episode_return == episodes[1].episode_return


def test_one_policy_plays_a_vector_env_of_mixed_tasks(vit):
    policy = make(vit, config={"history": 2}, execute=2)
    envs = vla_gym.make_vec(
        ["VLA/Toy-Reach-v0", "VLA/Toy-Lift-v0"], workers=1, vectorization_mode="thread"
    )
    observation, _ = envs.reset(seed=0)
    state, start = None, np.ones(2, bool)
    for _ in range(5):
        actions, state = policy.predict(observation, state, start)
        assert actions.shape == (2, 7) and np.abs(actions).max() <= 1
        observation, _, terminated, truncated, _ = envs.step(actions)
        start = terminated | truncated
    envs.close()


@pytest.mark.slow
@needs("metaworld", "robosuite", "calvin-twin", "rlbench-twin")
def test_one_policy_plays_four_suites_in_one_vector_env(vit):
    policy = make(vit)
    ids = [
        "VLA/MetaWorld-DrawerOpen-v0",
        "VLA/Robosuite-Lift-v0",
        ("VLA/CALVIN-OpenDrawer-v0", {"simulator": "calvin-twin"}),
        ("VLA/RLBench-ReachTarget-v0", {"simulator": "rlbench-twin"}),
    ]
    envs = vla_gym.make_vec(ids, workers=1, image_size=48)
    observation, info = envs.reset(seed=0)
    assert len(set(info["suite"])) == 4
    state = None
    for _ in range(4):
        actions, state = policy.predict(observation, state)
        observation, *_ = envs.step(actions)
    for i in range(4):  # what an env gets does not depend on the other suites
        one = rows(observation, [i])
        alone, _ = policy.predict(one)
        np.testing.assert_allclose(alone[0], policy.predict(observation)[0][i], atol=1e-5)
    envs.close()


def test_a_chunk_is_taken_action_by_action(vit):
    import torch

    policy = make(vit)
    batch = make_batch(2)
    with torch.no_grad():
        chunk = policy.model.sample({**batch}).clamp(-1, 1).numpy()
    state = None
    for step in range(3):
        other = batch if step == 0 else make_batch(2, seed=9)  # seen at the next chunk only
        actions, state = policy.predict(other, state)
        np.testing.assert_allclose(actions, chunk[:, step], atol=1e-6)
    actions, _ = policy.predict(make_batch(2, seed=9), state)
    np.testing.assert_allclose(actions, policy.predict(make_batch(2, seed=9))[0], atol=1e-6)


def test_each_env_has_its_own_history_and_an_episode_forgets_it(vit):
    policy = make(vit, config={"history": 3}, execute=1)
    frames = [make_batch(2, seed=i) for i in range(4)]
    state = None
    for i, batch in enumerate(frames):
        actions, state = policy.predict(batch, state, np.array([i == 0, i in (0, 3)]))
    stacked = dict(frames[3])
    for key in ("rgb_primary", "rgb_wrist"):
        stacked[key] = np.stack(
            [
                np.stack([frames[i][key][0] for i in (1, 2, 3)]),
                np.stack([frames[3][key][1]] * 3),  # its episode has just begun
            ]
        )
    import torch

    with torch.no_grad():
        wanted = policy.model.sample(stacked).clamp(-1, 1).numpy()[:, 0]
    np.testing.assert_allclose(actions, wanted, atol=1e-6)
    policy.predict(make_batch(3), state)  # another number of envs begins anew


def test_rows_do_not_depend_on_their_company(vit):
    policy = make(vit)
    batch = make_batch(3)
    together, _ = policy.predict(batch)
    for i in range(3):
        alone, _ = policy.predict(rows(batch, [i]))
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_the_instruction_matters(vit):
    policy = make(vit)
    batch = make_batch(1)
    one, _ = policy.predict({**batch, "instruction": ("open the drawer",)})
    other, _ = policy.predict({**batch, "instruction": ("lift the red cube",)})
    assert np.abs(one - other).max() > 1e-4


def test_deterministic_is_one_draw_and_a_seed_gives_others(vit):
    import torch

    policy = make(vit)
    batch = make_batch(2)
    first, _ = policy.predict(batch)
    before = torch.get_rng_state()
    np.testing.assert_array_equal(policy.predict(batch)[0], first)
    policy.set_random_seed(1)
    drawn, _ = policy.predict(batch, deterministic=False)
    again, _ = policy.predict(batch, deterministic=False)
    policy.set_random_seed(1)
    np.testing.assert_array_equal(policy.predict(batch, deterministic=False)[0], drawn)
    assert np.abs(drawn - first).max() > 1e-3 and np.abs(again - drawn).max() > 1e-3
    assert bool((torch.get_rng_state() == before).all())  # nobody else's generator


def test_sb3_evaluates_it(vit):
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.evaluation import evaluate_policy

    keywords = {"image_size": 32, "instruction": "embedding", "max_episode_steps": 4}
    policy = make(vit)
    env = gym.make("VLA/Toy-Reach-v0", **keywords)
    # Stable-Baselines3 moves the channels to the front for its own networks only.
    mean, _ = evaluate_policy(policy, env, n_eval_episodes=1, warn=False)
    assert np.isfinite(mean)


def test_what_does_not_fit_is_refused(vit, folder):
    policy = make(vit)
    env = gym.make("VLA/Toy-Reach-v0", cameras=("primary",), action_mode="native")
    with pytest.raises(ContractMismatch, match=r"cameras.*action_mode"):
        connect(policy, env.unwrapped.spec_sheet)
    wide = make(vit, config={"proprio_dim": 20})
    with pytest.raises(ContractMismatch, match="20 entries of proprio, the env has 10"):
        connect(wide, gym.make("VLA/Toy-Reach-v0").unwrapped.spec_sheet)
    reads_words = make(vit, config={"language": save_language(folder)})
    env = gym.make("VLA/Toy-Reach-v0", instruction="embedding")
    with pytest.raises(ContractMismatch, match="reads words"):
        connect(reads_words, env.unwrapped.spec_sheet)
    with pytest.raises(InvalidOption, match="execute=9 is more than the 3"):
        make(vit, execute=9)
    with pytest.raises(UnknownName, match="bfloat16"):
        make(vit, dtype="float16")
    with pytest.raises(InvalidOption, match="needs the folder"):
        make_vla_policy()


# --- checkpoint


@pytest.mark.parametrize("family", ["resnet", "siglip", "dinov2", "vit"])
@pytest.mark.parametrize("trained", [False, True])
def test_a_loaded_checkpoint_acts_bit_for_bit_as_the_saved_one(family, trained, tmp_path):
    from vla_gym_policies.vla.checkpoint import load_checkpoint, read_sheets
    from vla_gym_policies.vla.model import make_model
    from vla_gym_policies.vla.policy import VLAPolicy
    from vla_gym_policies.vla.statistics import Statistics

    rng = np.random.default_rng(0)
    config = VLAConfig(
        vision=save_vision(tmp_path, family),
        language=save_language(tmp_path) if trained else "all-MiniLM-L6-v2",
        train_vision=trained,
        train_language=trained,
        share_vision=not trained,
        history=2,
        **SMALL,
    )
    statistics = Statistics.of(rng.normal(size=(50, 10)), rng.uniform(-1, 1, (50, 7)))
    policy = VLAPolicy(make_model(config, statistics))
    sheet = gym.make("VLA/Toy-Reach-v0").unwrapped.spec_sheet
    path = save(policy, tmp_path / "checkpoint", [sheet])
    shutil.rmtree(config.vision)  # the folder is enough
    if trained:
        shutil.rmtree(config.language)
    loaded = make_policy(str(path))
    batch = make_batch(2)
    assert_same_actions(loaded, policy, batch)
    model = load_checkpoint(path)
    assert model.config == config and model.statistics == statistics
    assert any(p.requires_grad for p in model.vision.parameters()) == trained
    assert read_sheets(path)[0]["id"] == "VLA/Toy-Reach-v0"
    assert json.loads((path / "config.json").read_text())["policy"] == "vla"
    save(loaded, tmp_path / "again")  # and a loaded one saves as itself
    assert_same_actions(make_vla_policy(tmp_path / "again"), policy, batch)


def test_the_packaged_encoder_is_referred_to_until_it_changes(tmp_path):
    import torch

    small = {key: value for key, value in SMALL.items() if key != "vision_size"}
    policy = make_vla_policy(config=VLAConfig(vision_size=64, **small))
    batch = make_batch(1)
    path = save(policy, tmp_path / "frozen")
    assert (path / "model.safetensors").stat().st_size < 1e6
    np.testing.assert_array_equal(
        make_policy(str(path)).predict(batch)[0], policy.predict(batch)[0]
    )
    with torch.no_grad():  # trained behind our back
        next(policy.model.vision.parameters()).mul_(1.5)
    path = save(policy, tmp_path / "changed")
    assert (path / "model.safetensors").stat().st_size > 1e7
    np.testing.assert_array_equal(
        make_policy(str(path)).predict(batch)[0], policy.predict(batch)[0]
    )
    config = json.loads((tmp_path / "frozen" / "config.json").read_text())
    config["vision"][0]["packaged"] = "0" * 64
    (tmp_path / "frozen" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidOption, match="another version of the weights"):
        make_policy(str(tmp_path / "frozen"))


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", cut, "corrupt: model.safetensors"),
        ("model.safetensors", flip_a_bit, "corrupt: model.safetensors"),
        ("model.safetensors", lambda file: file.unlink(), "incomplete: model.safetensors"),
        ("statistics.json", flip_a_bit, "corrupt: statistics.json"),
        ("statistics.json", lambda file: file.unlink(), "incomplete: statistics.json"),
        ("spec_sheet.json", lambda file: file.unlink(), "incomplete: spec_sheet.json"),
        ("config.json", cut, "no checkpoint"),
        ("config.json", lambda file: file.write_text('{"policy": "vla", "format": 9}'), "format 9"),
        ("config.json", lambda file: file.write_text('{"policy": "pi0", "format": 1}'), "'pi0'"),
        ("config.json", lambda file: file.write_text('{"policy": "vla", "format": 1}'), "no files"),
    ],
)
def test_a_damaged_folder_is_refused(vit, tmp_path, name, damage, message):
    path = save(make(vit), tmp_path / "checkpoint")
    damage(path / name)
    with pytest.raises(InvalidOption, match=message):
        make_vla_policy(path)


def test_weights_of_another_config_are_refused(vit, tmp_path):
    path = save(make(vit), tmp_path / "checkpoint")
    config = json.loads((path / "config.json").read_text())
    for changed, message in (
        ({"chunk": 5}, "do not fit its config"),
        ({"fusion_layers": 2}, "are missing"),
        ({"novel": 1}, "no setting 'novel'"),
    ):
        (path / "config.json").write_text(
            json.dumps({**config, "model": {**config["model"], **changed}})
        )
        with pytest.raises(InvalidOption, match=message):
            make_vla_policy(path)


def test_saving_replaces_a_checkpoint_and_nothing_else(vit, tmp_path, monkeypatch):
    from vla_gym_policies.vla import checkpoint

    first, second = make(vit, seed=0), make(vit, seed=1)
    batch = make_batch(1)
    path = save(first, tmp_path / "checkpoint")
    monkeypatch.setattr(checkpoint, "save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(second, path)
    monkeypatch.undo()
    assert_same_actions(make_policy(str(path)), first, batch)
    save(second, path)
    assert_same_actions(make_policy(str(path)), second, batch)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]  # no drafts are left
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(InvalidOption, match="is not overwritten"):
        save(first, tmp_path / "mine")
    assert (tmp_path / "mine" / "diary.txt").exists()


def test_a_model_of_the_state_sees_no_pictures_and_checks_its_length(tmp_path):
    from vla_gym import make_policy
    from vla_gym.errors import ContractMismatch
    from vla_gym.policy import connect

    env = gym.make("VLA/Toy-Reach-v0", state=True, cameras=())
    sheet = env.unwrapped.spec_sheet
    config = {"cameras": (), "state_dim": sheet.state_dim, "width": 16, "head": "regression"}
    policy = make_policy("vla", config=config)
    policy.save(tmp_path / "state")
    again = make_policy(str(tmp_path / "state"))
    observation, _ = env.reset(seed=0)
    batch = {k: [v] if k == "instruction" else np.asarray(v)[None] for k, v in observation.items()}
    assert "rgb_primary" not in batch
    np.testing.assert_array_equal(again.predict(batch)[0], policy.predict(batch)[0])
    moved = {**batch, "state": batch["state"] + 0.5}
    assert not np.array_equal(policy.predict(moved)[0], policy.predict(batch)[0])
    wide = make_policy("vla", config=config | {"state_dim": sheet.state_dim + 1})
    with pytest.raises(ContractMismatch, match="entries of state"):
        connect(wide, sheet)
