"""OpenVLA-style models: a tiny random LLaVA that writes actions, read by independent arithmetic."""

from __future__ import annotations

import copy
import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
from vla_gym_policies.openvla import ActionTokens, OpenVLAPolicy, _crop_center

import vla_gym  # noqa: F401  # registers the ids
from tests.support import needs
from vla_gym.errors import ContractMismatch, InvalidOption, UnknownName
from vla_gym.policy import connect, make_policy
from vla_gym.rollout import run_episode

pytestmark = needs("openvla")

SIZE = 16
PROMPT = "<image> In: What action should the robot take to {instruction} Out:"
WORDS = [*PROMPT.split()[1:9], "open", "drawer", "slowly", "push", "Out:"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORD_COUNT = len(SPECIAL) + len(WORDS)
VOCABULARY = WORD_COUNT + 256  # of which the last 256 are the actions; <image> is added behind
STATS = {
    "bridge": {
        "action": {
            "q01": [-0.03, -0.04, -0.05, -0.1, -0.2, -0.3, 0.0],
            "q99": [0.03, 0.05, 0.04, 0.2, 0.1, 0.3, 1.0],
            "mask": [True] * 6 + [False],
        }
    },
    "fractal": {"action": {"q01": [-2.0] * 7, "q99": [4.0] * 7}},
}


def save_model(path, size=SIZE):
    """Save a LLaVA of some thousand random weights with its processor, and return the folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=size,
            patch_size=8,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=VOCABULARY + 1,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        image_token_index=VOCABULARY,
        norm_stats=STATS,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # the usual scale of initial weights leaves pictures without effect
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
        model.lm_head.weight[:WORD_COUNT] = 0  # it rather writes actions than words
    model.save_pretrained(path)
    names = [*SPECIAL, *WORDS, *(f"bin{i}" for i in range(256))]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"height": size, "width": size}, crop_size={"height": size, "width": size}
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("openvla"))


@pytest.fixture(scope="module")
def policy(folder):
    return make_policy(f"openvla:{folder}", unnorm_key="bridge", prompt=PROMPT)


def see(count, seed=0):
    rng = np.random.default_rng(seed)
    texts = ["Open the drawer", "push", "open the drawer slowly"]
    return {
        "rgb_primary": rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8),
        "instruction": tuple(texts[i % 3] for i in range(count)),
    }


def write(folder, seen, row):
    """Return the 7 tokens that the model writes for one env: transformers called by hand."""
    import torch
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    names = dict(zip(WORDS, range(len(SPECIAL), WORD_COUNT), strict=True))
    text = PROMPT.format(instruction=seen["instruction"][row].lower()).split()
    ids = [VOCABULARY] * 4 + [names[word] for word in text[1:]]  # 4 patches of the picture
    mean = np.array([0.48145466, 0.4578275, 0.40821073])  # CLIP's
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = (seen["rgb_primary"][row] / 255 - mean) / std
    for _ in range(7):  # greedily, without any cache
        logits = model(
            input_ids=torch.tensor([ids]),
            pixel_values=torch.from_numpy(pixels).float().permute(2, 0, 1)[None],
        ).logits[0, -1]
        logits[2] = -np.inf  # an action does not end early
        ids.append(int(logits.argmax()))
    return ids[-7:]


def read(token, low, high, normalized=True):
    """Return what a token means: worked out from OpenVLA's definition of its 256 bins."""
    # Token V - k is bin k in 1..256 of np.digitize over 256 edges from -1 to 1; bin k lies between
    # the edges k - 1 and k, so that its middle is -1 + (2 k - 1) / 255. Bin 256 is the single
    # value 1 and counts as 255.
    k = min(max(VOCABULARY - token, 1), 255)
    middle = -1 + (2 * k - 1) / 255
    return low + (middle + 1) / 2 * (high - low) if normalized else middle


def test_actions_are_the_tokens_that_transformers_writes(folder, policy):
    seen = see(3)
    actions, state = policy.predict(seen)
    assert actions.shape == (3, 7) and actions.dtype == np.float32 and state is None
    known = STATS["bridge"]["action"]
    rows = []
    for row in range(3):  # alone, where ours writes all three at once, padded on the left
        rows.append(write(folder, seen, row))
        for entry, token in enumerate(rows[-1]):
            low, high, mask = (known[name][entry] for name in ("q01", "q99", "mask"))
            np.testing.assert_allclose(
                actions[row, entry], read(token, low, high, mask), rtol=1e-5, atol=1e-7
            )
    assert len({tuple(tokens) for tokens in rows}) == 3  # or the test would compare constants
    assert sum(token >= WORD_COUNT for tokens in rows for token in tokens) >= 15


@pytest.mark.parametrize(
    ("token", "value"),
    [
        (VOCABULARY - 1, -1 + 1 / 255),  # the last token is the lowest bin
        (VOCABULARY - 2, -1 + 3 / 255),
        (VOCABULARY - 128, 0.0),
        (VOCABULARY - 255, 1 - 1 / 255),
        (VOCABULARY - 256, 1 - 1 / 255),  # 256 edges have 255 bins between them
        (3, 1 - 1 / 255),  # a word: upstream clips as well
        (VOCABULARY + 5, -1 + 1 / 255),
    ],
)
def test_bins(token, value):
    tokens = ActionTokens.of(VOCABULARY, 256, {"q01": [-1.0], "q99": [1.0]})
    np.testing.assert_allclose(tokens.decode([[token]]), [[value]], atol=1e-12)


@pytest.mark.parametrize("action", [-1.0, -0.3337, 0.0, 0.1, 0.9999])
def test_what_is_written_is_read(action):
    # OpenVLA writes np.digitize(action, edges) as the token V - bin.
    token = VOCABULARY - int(np.digitize(action, np.linspace(-1, 1, 256)))
    tokens = ActionTokens.of(VOCABULARY, 256, {"q01": [-1.0], "q99": [1.0]})
    assert abs(tokens.decode([[token]])[0, 0] - action) <= 1 / 255 + 1e-12


def test_generating_one_by_one_gives_the_same(folder, policy):
    alone = make_policy(f"openvla:{folder}", unnorm_key="bridge", prompt=PROMPT, batched=False)
    np.testing.assert_array_equal(alone.predict(see(3))[0], policy.predict(see(3))[0])


def test_a_model_that_would_rather_stop_still_writes_all_entries(policy):
    def actions(factor):
        eager = copy.deepcopy(policy.model)
        eager.lm_head.weight.data[2] = factor * policy.model.lm_head.weight[-1]  # of </s>
        ours = OpenVLAPolicy(eager, policy._processor, policy.spec, policy.tokens, prompt=PROMPT)
        return ours.predict(see(4))[0]

    np.testing.assert_array_equal(actions(100.0), actions(0.0))


def test_picture_and_command_matter_and_the_case_of_letters_does_not(policy):
    plain = policy.predict(see(1))[0]
    assert np.any(policy.predict(see(1) | {"rgb_primary": see(1, 4)["rgb_primary"]})[0] != plain)
    assert np.any(policy.predict(see(1) | {"instruction": ("push",)})[0] != plain)
    same = policy.predict(see(1) | {"instruction": ("OPEN the drawer",)})[0]
    np.testing.assert_array_equal(same, plain)


def test_sampling_follows_the_seed_and_leaves_torch_alone(policy):
    import torch

    before = torch.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        policy.set_random_seed(seed)
        two = [policy.predict(see(2), deterministic=False)[0] for _ in range(2)]
        assert np.any(two[0] != two[1])
        draws.append(two)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.any(draws[0][0] != draws[2][0])


def test_the_data_set_is_chosen_by_name(folder, tmp_path, policy):
    with pytest.raises(InvalidOption, match=r"trained on 2 data sets.*bridge, fractal"):
        make_policy(f"openvla:{folder}", prompt=PROMPT)
    with pytest.raises(UnknownName, match=r"'brige'.*Did you mean 'bridge'.*'bridge', 'fractal'"):
        make_policy(f"openvla:{folder}", prompt=PROMPT, unnorm_key="brige")
    other = make_policy(f"openvla:{folder}", prompt=PROMPT, unnorm_key="fractal").predict(see(1))
    known = STATS["bridge"]["action"]
    share = (policy.predict(see(1))[0][0, :6] - known["q01"][:6]) / (
        np.array(known["q99"][:6]) - known["q01"][:6]
    )
    np.testing.assert_allclose(other[0][0, :6], -2 + 6 * share, rtol=1e-4, atol=1e-5)
    # A fine-tuned checkpoint brings the statistics of its own data in a file, which wins.
    clone = shutil.copytree(folder, tmp_path / "copy")
    (clone / "dataset_statistics.json").write_text(json.dumps({"mine": STATS["fractal"]}))
    mine = make_policy(f"openvla:{clone}", prompt=PROMPT)
    np.testing.assert_array_equal(mine.predict(see(1))[0], other[0])


def test_the_gripper_may_be_rounded(folder):
    def gripper(form):
        policy = make_policy(
            f"openvla:{folder}",
            unnorm_key="fractal",
            prompt=PROMPT,
            binary_gripper=True,
            gripper=form,
        )
        return policy.predict(see(8))[0][:, 6]

    raw = make_policy(f"openvla:{folder}", unnorm_key="fractal", prompt=PROMPT)
    raw = raw.predict(see(8))[0][:, 6]
    assert 0 < np.count_nonzero(raw > 0.5) < 8
    np.testing.assert_array_equal(gripper("1 opens, 0 closes"), np.where(raw > 0.5, 1, 0))
    np.testing.assert_array_equal(gripper("+1 closes"), np.where(raw > 0, 1, -1))


def test_the_spec_has_open_x_embodiments_conventions(folder, policy):
    spec = policy.spec
    assert (spec.cameras, spec.image_size, spec.action_dim) == (("primary",), SIZE, 7)
    assert (spec.rotation, spec.scale, spec.gripper) == (
        "euler xyz",
        (1.0, 1.0),
        "1 opens, 0 closes",
    )
    libero = make_policy(
        f"openvla:{folder}",
        unnorm_key="bridge",
        prompt=PROMPT,
        rotation="axis-angle",
        scale=None,
        image_turn="mirrored",
    ).spec
    assert (libero.rotation, libero.scale, libero.image_turn) == ("axis-angle", None, "mirrored")


def test_metres_become_the_envs_own_steps(policy):
    env = gym.make("VLA/Toy-Reach-v0", max_episode_steps=3, **policy.spec.env_keywords())
    sheet = env.unwrapped.spec_sheet
    actions, _ = connect(policy, sheet).predict(see(1) | {"proprio": np.zeros((1, 10))})
    spoken = policy.predict(see(1))[0]
    np.testing.assert_allclose(actions[0, :3], spoken[0, :3] / sheet.action[0].scale, rtol=1e-5)
    np.testing.assert_allclose(actions[0, 6], 2 * spoken[0, 6] - 1, rtol=1e-5)
    assert run_episode(env, connect(policy, sheet), seed=0).length == 3
    with pytest.raises(ContractMismatch, match="image_size"):
        connect(policy, gym.make("VLA/Toy-Reach-v0").unwrapped.spec_sheet)


def test_the_middle_of_a_picture_fills_it_after_cropping():
    import torch

    size, side = 224, 0.9**0.5
    ramp = np.arange(size, dtype=np.uint8)[None, :, None]
    picture = np.concatenate(
        [
            np.broadcast_to(ramp, (size, size, 1)),
        ]
        * 3,
        axis=-1,
    )[None]
    cropped = _crop_center(torch, picture, 0.9)
    assert cropped.shape == picture.shape and cropped.dtype == np.uint8
    # TensorFlow's crop_and_resize: column i shows (1 - side) / 2 * 223 + i * side.
    wanted = (1 - side) / 2 * (size - 1) + np.arange(size) * side
    assert np.abs(cropped[0, 100, :, 0] - wanted).max() <= 1
    constant = np.full((1, 8, 8, 3), 77, np.uint8)
    np.testing.assert_array_equal(_crop_center(torch, constant, 0.9), constant)
    np.testing.assert_array_equal(_crop_center(torch, picture, 1.0), picture)


def test_cropping_reaches_the_model(folder, policy):
    cropped = make_policy(f"openvla:{folder}", unnorm_key="bridge", prompt=PROMPT, center_crop=True)
    assert np.any(cropped.predict(see(2))[0] != policy.predict(see(2))[0])


def test_a_lone_space_ends_openvlas_prompts(policy):
    """OpenVLA's own processor drops the token that the model was trained to see last."""
    seen_by_model = []

    class Listening:
        device, dtype = policy.model.device, policy.model.dtype

        def generate(self, **inputs):
            seen_by_model.append(inputs)
            return policy.model.generate(**inputs)

    word = WORD_COUNT - 1
    for end, added in ((7, 1), (word, 0)):  # any other token; `Out:`, which is there already
        ours = OpenVLAPolicy(
            Listening(),
            policy._processor,
            policy.spec,
            policy.tokens,
            prompt=PROMPT,
            end_token=end,
        )
        ours.predict(see(2))
        ids, mask = (seen_by_model[-1][key] for key in ("input_ids", "attention_mask"))
        assert ids.shape == mask.shape and bool((ids[:, -1] == end).all())
        assert ids.shape[1] == 4 + 12 + added  # patches, words of the longer prompt


def test_code_of_the_folder_runs_only_when_it_is_trusted(folder, tmp_path, policy):
    """As OpenVLA's: its own classes, named under a class that transformers 5 no longer has."""
    from safetensors.torch import load_file, save_file

    clone = shutil.copytree(folder, tmp_path / "remote_vla")
    (clone / "modeling_mine.py").write_text(
        "from transformers import LlavaConfig, LlavaForConditionalGeneration\n"
        "class MineConfig(LlavaConfig):\n"
        "    pass\n"
        "class MineForActionPrediction(LlavaForConditionalGeneration):\n"
        "    config_class = MineConfig\n"
    )
    config = json.loads((clone / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "modeling_mine.MineConfig",
        "AutoModelForVision2Seq": "modeling_mine.MineForActionPrediction",
    }
    (clone / "config.json").write_text(json.dumps(config))
    weights = load_file(clone / "model.safetensors")  # LLaVA's old names are for its own class only
    weights["lm_head.weight"] = weights.pop("language_model.lm_head.weight")
    save_file(weights, clone / "model.safetensors", {"format": "pt"})
    options = {"unnorm_key": "bridge", "prompt": PROMPT}
    with pytest.raises(InvalidOption, match=r"its own code.*trust_remote_code=True"):
        make_policy(f"openvla:{clone}", **options)
    remote = make_policy(f"openvla:{clone}", trust_remote_code=True, **options)
    assert type(remote.model).__name__ == "MineForActionPrediction"
    np.testing.assert_array_equal(remote.predict(see(2))[0], policy.predict(see(2))[0])


def test_faults_of_a_folder_are_named(folder, tmp_path):
    with pytest.raises(InvalidOption, match="needs the folder of a checkpoint"):
        make_policy("openvla")
    with pytest.raises(InvalidOption, match=r"lacks \{instruction\}"):
        make_policy(f"openvla:{folder}", prompt="go")
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(InvalidOption, match=r"cannot read .*nothing-known"):
        make_policy(f"openvla:{tmp_path}")
    clone = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((clone / "config.json").read_text())
    del config["norm_stats"]
    (clone / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidOption, match="no statistics of actions"):
        make_policy(f"openvla:{clone}")
