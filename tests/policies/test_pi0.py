"""π0: a tiny random checkpoint, played and compared with transformers called by hand."""

from __future__ import annotations

import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
from vla_gym_policies.pi0 import Statistics

import vla_gym  # noqa: F401  # registers the ids
from tests.support import needs
from vla_gym.errors import ContractMismatch, InvalidOption, UnknownName
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import run_episode

pytestmark = needs("pi0")

SIZE, PATCH, CHUNK, WIDE = 16, 8, 4, 12  # pixels, pixels, actions, entries of padded vectors
WORDS = ["push", "the", "red", "ball", "open", "drawer", "to", "left"]
IMAGE_TOKEN = 5 + len(WORDS)  # the processor adds it behind the words


def read_vectors(length, seed):
    rng = np.random.default_rng(seed)
    mean, std = rng.normal(size=length), rng.uniform(0.5, 2, length)
    return {
        "mean": mean.tolist(),
        "std": std.tolist(),
        "q01": (mean - 2 * std).tolist(),
        "q99": (mean + 2 * std).tolist(),
    }


STATS = {"norm_stats": {"state": read_vectors(10, 0), "actions": read_vectors(7, 1)}}


def save_model(path):
    """Save a π0 of some thousand random weights, tokenizer and statistics; return the folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PI0Config, PI0ForConditionalGeneration, PreTrainedTokenizerFast

    torch.manual_seed(0)
    gemma = {
        "model_type": "gemma",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 64,
    }
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": gemma,
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "patch_size": PATCH,
                "image_size": SIZE,
                "vision_use_head": False,
            },
            "projection_dim": 16,
            "image_token_id": IMAGE_TOKEN,
        },
        dit_config=gemma,
        chunk_size=CHUNK,
        max_state_dim=WIDE,
        max_action_dim=WIDE,
        num_inference_steps=3,
    )
    model = PI0ForConditionalGeneration(config)
    with torch.no_grad():  # the usual scale of initial weights leaves pictures without effect
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
    model.save_pretrained(path)
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", "\n", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    ).save_pretrained(path)
    (path / "norm_stats.json").write_text(json.dumps(STATS))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("pi0"))


@pytest.fixture(scope="module")
def policy(folder):
    return make_policy(f"pi0:{folder}")


def see(count, seed=0):
    """Return an observation of so many envs, their commands of different length."""
    rng = np.random.default_rng(seed)
    texts = ["push the_red ball", "open the drawer to the left", "push\nthe ball "]
    return {
        "rgb_primary": rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8),
        "rgb_wrist": rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8),
        "proprio": rng.normal(size=(count, 10)).astype(np.float32),
        "instruction": tuple(texts[i % 3] for i in range(count)),
    }


def encode(text, cameras):
    """Return the tokens of a command, by hand: pictures, <bos>, words, newline."""
    words = text.replace("_", " ").replace("\n", " ").split()
    pictures = [IMAGE_TOKEN] * (cameras * (SIZE // PATCH) ** 2)
    return [*pictures, 1, *(5 + WORDS.index(word) for word in words), 4]


def call_transformers(model, seen, seed, slots=2, dtype=None):
    """Return the chunks that transformers itself gives: nothing of ours but arithmetic by hand."""
    import torch

    count = len(seen["proprio"])
    tokens = [encode(text, 2) for text in seen["instruction"]]
    longest = max(map(len, tokens))
    pixels = torch.zeros(count, slots, 3, SIZE, SIZE)
    for slot, camera in enumerate(["primary", "wrist"]):
        picture = torch.from_numpy(seen[f"rgb_{camera}"].astype(np.float32))
        pixels[:, slot] = picture.permute(0, 3, 1, 2) / 127.5 - 1
    known = STATS["norm_stats"]
    state = np.zeros((count, WIDE), np.float32)
    mean, std = np.array(known["state"]["mean"]), np.array(known["state"]["std"])
    state[:, :10] = (seen["proprio"] - mean) / std
    noise = torch.randn(count, CHUNK, WIDE, generator=torch.Generator().manual_seed(seed))
    chunk = model.sample_actions(
        state=torch.from_numpy(state),
        input_ids=torch.tensor([t + [0] * (longest - len(t)) for t in tokens]),
        attention_mask=torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in tokens]),
        pixel_values=pixels,
        pixel_attention_mask=torch.arange(slots).expand(count, slots) < 2,
        noise=noise,
    ).numpy()
    return chunk[..., :7] * known["actions"]["std"] + known["actions"]["mean"]


def test_actions_are_those_of_transformers_called_by_hand(folder, policy):
    from transformers import PI0ForConditionalGeneration

    model = PI0ForConditionalGeneration.from_pretrained(folder).eval()
    seen = see(3)
    wanted = call_transformers(model, seen, seed=7)
    # The third slot of π0, masked because it is empty, changes nothing.
    np.testing.assert_allclose(call_transformers(model, seen, 7, slots=3), wanted, atol=1e-4)
    policy.set_random_seed(7)
    state = None
    for step in range(CHUNK):
        actions, state = policy.predict(seen, state, np.array([step == 0] * 3))
        assert actions.shape == (3, 7) and actions.dtype == np.float32
        np.testing.assert_allclose(actions, wanted[:, step], atol=1e-4)


def test_every_input_matters(policy):
    def chunk(seen):
        policy.set_random_seed(0)
        return policy.predict(seen)[0]

    plain = chunk(see(2))
    for key in ("rgb_primary", "rgb_wrist", "proprio", "instruction"):
        other = see(2) | {key: see(2, 1)[key] if key != "instruction" else ("open",) * 2}
        assert np.abs(chunk(other) - plain).max() > 1e-4, key
    swapped = see(2)
    swapped["rgb_primary"], swapped["rgb_wrist"] = swapped["rgb_wrist"], swapped["rgb_primary"]
    assert np.abs(chunk(swapped) - plain).max() > 1e-4


def test_half_precision_is_close(folder, policy):
    half = make_policy(f"pi0:{folder}", dtype="bfloat16")
    policy.set_random_seed(0)
    exact, rounded = policy.predict(see(2))[0], half.predict(see(2))[0]
    assert 0 < np.abs(rounded - exact).max() < 0.2


def test_the_same_seed_gives_the_same_actions_and_leaves_torch_alone(policy):
    import torch

    torch.manual_seed(3)
    before = torch.get_rng_state()
    draws = []
    for seed in (5, 5, 6):
        policy.set_random_seed(seed)
        draws.append(policy.predict(see(1))[0])
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[2] - draws[0]).max() > 1e-3


def test_a_chunk_is_asked_for_where_one_is_needed(folder):
    policy = make_policy(f"pi0:{folder}", execute=3)
    asked, predict_chunk = [], policy._predict_chunk
    policy._predict_chunk = lambda seen: asked.append(len(seen["proprio"])) or predict_chunk(seen)
    state = None
    for step in range(4):
        _, state = policy.predict(see(2), state, np.array([step == 0, step in (0, 2)]))
    assert asked == [2, 1, 1]  # both at first; the second at its reset; the first after 3 actions


def test_statistics_follow_openpi():
    # openpi: (x - mean) / (std + 1e-6), and (x - q01) / (q99 - q01 + 1e-6) * 2 - 1.
    mean = Statistics.of("mean-std", [1.0], [2.0])
    np.testing.assert_allclose(mean.normalize([[5.0]]), [[4 / 2.000001]])
    quantile = Statistics.of("quantile", [1.0], [3.0])
    np.testing.assert_allclose(quantile.normalize([[1.0], [2.5]]), [[-1], [3 / 2.000001 - 1]])
    np.testing.assert_allclose(quantile.restore(quantile.normalize([[0.3]])), [[0.3]])


@pytest.mark.parametrize("normalization", ["mean-std", "quantile"])
def test_statistics_are_found_below_the_folder_or_given(folder, tmp_path, normalization):
    given = make_policy(
        f"pi0:{folder}", norm_stats=STATS["norm_stats"], normalization=normalization
    )
    copy = shutil.copytree(folder, tmp_path / "copy")
    place = copy / "assets" / "mine" / "libero"
    place.mkdir(parents=True)
    (copy / "norm_stats.json").rename(place / "norm_stats.json")
    found = make_policy(f"pi0:{copy}", normalization=normalization)
    np.testing.assert_array_equal(found.predict(see(1))[0], given.predict(see(1))[0])
    (copy / "assets" / "norm_stats.json").write_text("{}")
    with pytest.raises(InvalidOption, match=r"several data sets: assets/.*norm_stats="):
        make_policy(f"pi0:{copy}")


def test_statistics_of_transformers_own_processor_are_read(folder, tmp_path, policy):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "norm_stats.json").unlink()
    with pytest.raises(InvalidOption, match=r"no statistics.*norm_stats\.json.*state_mean"):
        make_policy(f"pi0:{copy}")
    known = STATS["norm_stats"]
    saved = {f"{key}_{n}": known[key][n] for key in known for n in ("mean", "std")}
    (copy / "processor_config.json").write_text(json.dumps(saved))
    policy.set_random_seed(0)
    np.testing.assert_array_equal(
        make_policy(f"pi0:{copy}").predict(see(1))[0], policy.predict(see(1))[0]
    )
    with pytest.raises(InvalidOption, match=r"'quantile'"):
        make_policy(f"pi0:{copy}", normalization="quantile")


def test_vectors_of_another_length_than_the_statistics_are_refused(folder, policy):
    with pytest.raises(ContractMismatch, match="an action has 9 entries, its statistics have 7"):
        make_policy(f"pi0:{folder}", action_dim=9)
    # 7 of 10 is as wrong as 11 of 10, unless the other three were padding.
    for length in (7, 11):
        short = see(1) | {"proprio": np.zeros((1, length), np.float32)}
        with pytest.raises(ContractMismatch, match=f"state has {length} entries.* have 10"):
            policy.predict(short)
    with pytest.raises(ContractMismatch, match="state has 13 entries, the model takes at most 12"):
        policy.predict(see(1) | {"proprio": np.zeros((1, 13), np.float32)})
    padded = {
        key: {n: v + [0.0] * 5 for n, v in STATS["norm_stats"][key].items()}
        for key in ("state", "actions")
    }
    assert make_policy(f"pi0:{folder}", norm_stats=padded).predict(see(1))[0].shape == (1, 7)


def test_the_state_may_be_made_from_the_observation(folder, policy):
    made = make_policy(f"pi0:{folder}", state=lambda seen: -seen["proprio"])
    policy.set_random_seed(0)
    negative = see(1) | {"proprio": -see(1)["proprio"]}
    np.testing.assert_array_equal(made.predict(see(1))[0], policy.predict(negative)[0])


def test_faults_of_a_folder_are_named(folder, tmp_path):
    with pytest.raises(InvalidOption, match="needs the folder of a checkpoint"):
        make_policy("pi0")
    with pytest.raises(InvalidOption, match=r"nowhere does not exist\. Nothing is downloaded"):
        make_policy("pi0:nowhere")
    with pytest.raises(InvalidOption, match=r"lacks config.json; it holds nothing"):
        make_policy(f"pi0:{tmp_path}")
    with pytest.raises(InvalidOption, match="'minmax' is unknown, valid are"):
        make_policy(f"pi0:{folder}", normalization="minmax")
    with pytest.raises(UnknownName, match="Did you mean 'gripper'"):
        make_policy(f"pi0:{folder}", griper="+1 opens")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidOption, match=r"no tokenizer \(.*PaliGemma.*tokenizer="):
        make_policy(f"pi0:{folder}", tokenizer=tmp_path / "empty")


def test_weights_that_are_missing_are_never_random(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    del weights["action_out_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidOption, match=r"lacks weights.*action_out_proj\.weight"):
        make_policy(f"pi0:{copy}")


def test_it_plays_an_env_whose_conventions_differ(folder):
    # As LIBERO's: native gripper sign, axis-angle proprio of 7 entries.
    stats = {"state": read_vectors(7, 0), "actions": read_vectors(7, 1)}
    policy = make_policy(
        f"pi0:{folder}", norm_stats=stats, gripper="+1 closes", proprio_rotation="axis-angle"
    )
    env = gym.make("VLA/Toy-Reach-v0", max_episode_steps=6, **policy.spec.env_keywords())
    connected = connect(policy, env.unwrapped.spec_sheet)
    first, again = (run_episode(env, connected, seed=1) for _ in range(2))
    assert first.length == 6 and first.episode_return == again.episode_return
    wide = gym.make("VLA/Toy-Reach-v0", image_size=32)
    with pytest.raises(ContractMismatch, match="image_size"):
        connect(policy, wide.unwrapped.spec_sheet)
