"""`openvla-libero`, `openpi-libero`, `pi0-libero`, `vla-eval-libero`: models fine-tuned on LIBERO.

Each is the policy without `-libero`, told what LIBERO's demonstrations mean. Every keyword of that
policy can be given as well, and wins:

    make_policy("openpi-libero:127.0.0.1:8000", execute=10)

What they tell, and where it is from (openvla/openvla c8f03f4, `experiments/robot/libero/`:
`run_libero_eval.py`, `libero_utils.py`; Physical-Intelligence/openpi 15a9616,
`examples/libero/main.py`):

- Pictures are drawn with 256 pixels and turned by half a turn. As upstream's stand on their heads,
  theirs are ours mirrored. They are scaled to 224: OpenVLA by Lanczos after JPEG, then cropped to
  the middle 90 % of the area, openpi by Pillow's bilinear filter.
- The state, which OpenVLA does not read, is LIBERO's own 8 numbers: `proprio="native"`.
- Motion is in the env's own steps. OpenVLA's gripper is 1 open, 0 closed, and rounded; openpi's is
  upstream's, +1 closes.
- openpi takes 5 actions of a chunk.

The 10 settling steps and the horizons are the env's, see `vla_gym.suites.libero`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vla_gym import PolicySpec
from vla_gym.wire import LIBERO_NATIVE
from vla_gym_policies.openpi import OpenPIPolicy, make_openpi_policy
from vla_gym_policies.openvla import OpenVLAPolicy, make_openvla_policy
from vla_gym_policies.pi0 import PI0Policy, make_pi0_policy
from vla_gym_policies.vla_eval import VLA_EVAL, VLAEvalPolicy, make_vla_eval_policy

__all__ = [
    "OPENPI_SPEC",
    "make_openpi_libero_policy",
    "make_openvla_libero_policy",
    "make_pi0_libero_policy",
    "make_vla_eval_libero_policy",
]

SUITES = ("LIBERO",)

DRAWN_SIZE = 256
"""In which LIBERO's demonstrations were drawn again for training [pixels]."""

EXECUTE = 5
"""Actions of a chunk that openpi takes (`replan_steps`)."""

OPENPI_SPEC = PolicySpec(
    suites=SUITES,
    cameras=("primary", "wrist"),
    image_size=224,
    drawn_size=DRAWN_SIZE,
    resize="bilinear",
    proprio="native",
    instruction="text",
    action_mode="ee_delta",
    action_dim=7,
    gripper="+1 closes",
)
"""What an openpi server for LIBERO reads and speaks. `LIBERO_NATIVE` mirrors the pictures."""


def make_openvla_libero_policy(path: str | Path = "", **keywords: Any) -> OpenVLAPolicy:
    """Load an OpenVLA checkpoint that was fine-tuned on LIBERO, with random crops.

    Args:
        path: of its folder.
        **keywords: of `vla_gym_policies.openvla.make_openvla_policy`. `unnorm_key` is needed where
            the checkpoint knows several data sets: `"libero_spatial"`, or `"..._no_noops"`.
    """
    known: dict[str, Any] = {
        "recorded_size": DRAWN_SIZE,
        "center_crop": True,
        "binary_gripper": True,
        "suites": SUITES,
        "image_turn": "mirrored",
        "rotation": "axis-angle",
        "scale": None,
        "gripper": "1 opens, 0 closes",  # OpenVLA's data loader has turned LIBERO's sign
    }
    return make_openvla_policy(path, **{**known, **keywords})


def make_openpi_libero_policy(address: str = "", **keywords: Any) -> OpenPIPolicy:
    """Return the client of an openpi server that was started with `--env LIBERO`.

    Args:
        address: `"host:port"`.
        **keywords: of `vla_gym_policies.openpi.OpenPIPolicy`.
    """
    known: dict[str, Any] = {"dialect": LIBERO_NATIVE, "spec": OPENPI_SPEC, "execute": EXECUTE}
    return make_openpi_policy(address, **{**known, **keywords})


def make_pi0_libero_policy(path: str | Path = "", **keywords: Any) -> PI0Policy:
    """Load a π0 checkpoint that was fine-tuned on LIBERO with openpi.

    Args:
        path: of its folder.
        **keywords: of `vla_gym_policies.pi0.make_pi0_policy`.
    """
    fields = ("suites", "cameras", "drawn_size", "resize", "proprio", "gripper")
    known = {name: getattr(OPENPI_SPEC, name) for name in fields}
    known |= {"image_turn": "mirrored", "execute": EXECUTE}
    return make_pi0_policy(path, **{**known, **keywords})


def make_vla_eval_libero_policy(address: str = "", **keywords: Any) -> VLAEvalPolicy:
    """Return the client of a vla-eval server whose model was fine-tuned on LIBERO.

    Args:
        address: `"host:port"`.
        **keywords: of `vla_gym_policies.vla_eval.VLAEvalPolicy`.
    """
    known = {"dialect": dataclasses.replace(VLA_EVAL, state="native")}
    return make_vla_eval_policy(address, **{**known, **keywords})
