"""What the tests of RL fine-tuning share: tiny VLAs for the Toy suite."""

from __future__ import annotations

import numpy as np

REACH, LIFT = "VLA/Toy-Reach-v0", "VLA/Toy-Lift-v0"
STATE = {"cameras": (), "state_dim": 10, "fusion": "mlp", "fusion_layers": 1}
PIXELS = {
    "cameras": ("primary", "wrist"),
    "vision": "cnn",
    "train_vision": True,
    "vision_size": 32,
    "readout": "keypoints",
}


def make_vla(seed=0, **config):
    """Return a new VLA of a fraction of a second; by default it reads the privileged state."""
    import torch

    from vla_gym import make_policy

    torch.manual_seed(seed)
    shape = {
        "width": 16,
        "attention_heads": 2,
        "fusion_layers": 1,
        "flow_layers": 1,
        "flow_steps": 3,
        "chunk": 3,
        "head": "regression",
    }
    return make_policy("vla", config={**shape, **(config or STATE)})


def clone_reacher(folder, steps=150, speed=1.0):
    """Save a VLA that has learned Toy-Reach from its state by cloning a proportional controller.

    With `speed` below 1 it was shown a hand that moves so much slower than it could.
    """
    import torch
    from vla_gym_policies.vla.statistics import Statistics

    from vla_gym import make_policy

    rng = np.random.default_rng(0)
    hand = rng.uniform([-0.3, -0.3, 0.0], [0.3, 0.3, 0.6], (4000, 3))
    ball = rng.uniform([-0.25, -0.25, 0.05], [0.25, 0.25, 0.5], (4000, 3))
    state = np.concatenate([hand, np.ones((4000, 1)), np.zeros((4000, 3)), ball], 1)
    proprio = np.concatenate([hand, np.zeros((4000, 7))], 1)
    actions = np.zeros((4000, 2, 7))
    for k in range(2):
        motion = np.clip((ball - hand) / 0.05, -1, 1) * speed
        actions[:, k, :3] = motion
        hand = hand + 0.05 * motion
    torch.manual_seed(0)
    policy = make_policy(
        "vla",
        config={**STATE, "proprio_dim": 0, "chunk": 2, "width": 32, "head": "regression"},
        statistics=Statistics.of(proprio, actions[:, 0], state),
    )
    model = policy.model.train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        rows = rng.integers(0, 4000, 256)
        batch = {
            "state": torch.from_numpy(state[rows]),
            "instruction": ("move the gripper to the green ball",) * 256,
            "action": torch.from_numpy(actions[rows]),
        }
        loss, _ = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    policy.save(folder)
    return str(folder)
