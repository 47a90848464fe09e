"""Our vision-language-action model and the policy that plays it, `make_policy("vla:FOLDER")`.

- `config.VLAConfig`: all that shapes a model.
- `model.VLAModel`: `loss(batch)`, `sample(batch)`, `encode(batch)`; `model.make_model(config)`.
- `checkpoint.save_checkpoint`, `checkpoint.load_checkpoint`: the folder.
- `policy.VLAPolicy`: `predict`, as any policy.

torch is imported by the modules below, not by this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_gym.deps import require
from vla_gym_policies.vla.config import VLAConfig

if TYPE_CHECKING:
    from vla_gym_policies.vla.policy import VLAPolicy
    from vla_gym_policies.vla.statistics import Statistics

__all__ = ["VLAConfig", "make_vla_policy"]


def make_vla_policy(
    path: str | Path = "",
    *,
    config: VLAConfig | Mapping[str, Any] | None = None,
    statistics: Statistics | Mapping[str, Any] | None = None,
    random_weights: bool = False,
    **keywords: Any,
) -> VLAPolicy:
    """Return the policy of a checkpoint, or of a new, untrained model.

    Args:
        path: folder that `save_checkpoint` has written.
        config: instead of a path, the shape of a new model, also as a mapping. Its fusion and head
            are random.
        statistics: with `config`: of the data that it will be trained on; `Statistics`, or what
            its `to_dict` returns. None: nothing is normalised.
        random_weights: with `config`: also its encoders are random. Nothing else makes them so.
        **keywords: of `VLAPolicy`: `execute`, `ensemble`, `device`, `dtype`, `compile`.

    Raises:
        InvalidOption: both or none of path and config are given, or the folder is no intact
            checkpoint.
        DependencyNotInstalled: a package or an encoder's weights are missing.
    """
    for module in ("torch", "transformers", "safetensors"):
        require(module, "vla", 'the policy "vla"')
    from vla_gym_policies.vla import policy  # imports torch

    return policy.make_policy_from(path, config, statistics, random_weights, **keywords)
