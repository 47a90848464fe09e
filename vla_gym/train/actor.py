"""A VLA as a stochastic policy: a normal distribution around its chunk, and what of it is trained.

The model is `policy.model` of a learner such as `make_policy("vla:FOLDER")`. Beyond `Learner`, it
has `look(batch) -> camera -> maps`, `read(batch) -> texts`, `fuse(maps, texts, batch) -> features`,
`encode(batch)`, `act(features) -> chunks (B, chunk, n)`, `vision`, `language`, and `config`, a
dataclass with `cameras`, `proprio_dim`, `state_dim` and `execute`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn.utils import parametrize

from vla_gym.errors import InvalidOption, UnknownName

__all__ = ["CRITICS", "TRAINED", "Actor", "Critic"]

TRAINED = ("all", "frozen-vision", "head", "lora")
CRITICS = ("state", "feature", "shared")

Seen = dict[str, Tensor]
"""What `Actor.see` makes of an observation: all that no gradient reaches, computed once."""


class Actor(nn.Module):
    """A normal distribution whose mean is what the model would do, the first actions of a chunk.

    So its mode is what the policy does with `deterministic=True` and the same `execute`. A flow
    head starts from the one noise of its checkpoint, as it does there; fine-tuning makes it better
    from that noise, and says nothing about others.

    Args:
        policy: whose model is trained; it is changed.
        train: `"all"`: fusion, head and vision encoders (those that the model was made to train);
            `"frozen-vision"`: all but the vision encoders; `"head"`: the action head alone;
            `"lora"`: low-rank changes of all linear layers but those of encoders. The language
            encoder stays as it is.
        execute: actions of a chunk that are taken, also by the checkpoints that it saves.
        std: deviation at first, in the action's units.
        rank: of `"lora"`.
        reference: whether distances to the policy as it is now will be asked for.
        correlation: of what exploration adds to successive actions of a chunk, in [0, 1).
            Independent additions cancel each other within a chunk, and the hand stays where it was.
        moves: places of the entries of an action that the envs follow. The others are no part of
            the distribution: Meta-World's three rotations would be noise alone, in the ratio of
            probabilities too. None: all.

    Attributes:
        trained: its parameters that are trained.
        log_std: (size,), one of them.
        size: execute * entries that move, of its action.
    """

    def __init__(
        self,
        policy: Any,
        *,
        train: str,
        execute: int,
        std: float,
        rank: int = 8,
        reference: bool = True,
        correlation: float = 0.0,
        moves: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if train not in TRAINED:
            raise UnknownName("train", train, TRAINED, "Actor")
        if not 1 <= execute <= policy.chunk:
            raise InvalidOption(
                f"execute={execute} must be in [1, {policy.chunk}], the actions that this policy "
                "predicts at once"
            )
        self.model, self._train, self.execute = policy.model, train, execute
        # What it saves plays as it was trained, where nothing else is said.
        self.model.config = dataclasses.replace(self.model.config, execute=execute)
        self._entries = int(policy.spec.action_dim)
        self._moves = list(range(self._entries)) if moves is None else list(moves)
        self.size = execute * len(self._moves)
        # The action is white: the envs' is its product with a factor of the correlation.
        times = torch.arange(execute)
        correlated = torch.tensor(correlation) ** (times[:, None] - times).abs()
        factor = torch.linalg.cholesky(correlated)
        self._factor = factor.numpy()
        self._whiten = nn.Buffer(torch.linalg.inv(factor), persistent=False)
        self._std = math.log(std)
        self.log_std = nn.Parameter(torch.full((self.size,), self._std))
        self._policy = copy.copy(policy)
        self._asked = reference
        # In a list it is no module of this one, so neither trained nor saved with it.
        wanted = reference or train == "lora"
        self._before: list[Any] = [self._freeze(copy.deepcopy(self.model))] if wanted else []
        self._choose(rank)
        self.model.eval()  # no dropout: the new and the old policy must differ by training alone
        self.trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if len(self.trained) < 2:
            raise InvalidOption(f"train={train!r} leaves nothing of this model to be trained")

    def see(self, observation: Mapping[str, Any]) -> Seen:
        """Return what of B observations no gradient reaches; `forward` takes it from there.

        Args:
            observation: of B envs: `rgb_<camera>` uint8 (B, history, H, W, 3), `proprio` (B, n),
                `state` (B, m), `instruction` (B texts).
        """
        batch = {key: _as_tensor(value) for key, value in observation.items()}
        seen: Seen = {}
        with torch.no_grad():
            maps, text = None, self.model.read(batch)
            if self._sees_before_training:
                maps = self.model.look(batch)
            if self._train == "head":
                seen["feature"] = self.model.fuse(maps, text, batch)
            else:
                config = self.model.config
                keys = (("proprio", config.proprio_dim), ("state", config.state_dim))
                seen = {key: batch[key].float() for key, length in keys if length}
                seen["text"] = text
                if maps is None:
                    seen |= {f"rgb_{camera}": batch[f"rgb_{camera}"] for camera in config.cameras}
                else:
                    seen |= {f"map_{camera}": features for camera, features in maps.items()}
            if self._asked:
                (before,) = self._before
                if maps is None:
                    maps = before.look(batch)
                chunk = before.act(before.fuse(maps, text, batch))
                seen["reference"] = self._take(chunk)
            if "state" in batch:
                # A critic that sees the state must also know what is asked for.
                seen["privileged"] = torch.cat([batch["state"].float().to(text), text], -1)
        return seen

    def feature(self, seen: Seen) -> Tensor:
        """Return the feature (B, feature_dim) of what `see` returned."""
        if "feature" in seen:
            return seen["feature"]
        cameras = self.model.config.cameras
        if self._sees_before_training:
            maps = {camera: seen[f"map_{camera}"] for camera in cameras}
        else:
            maps = self.model.look(seen)
        return self.model.fuse(maps, seen["text"], seen)

    def distribution(self, feature: Tensor) -> Independent:
        """Return the distribution of the action (B, size) at features; not clipped."""
        mean = self._take(self.model.act(feature))
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)

    def expand(self, actions: Any) -> Any:
        """Return actions (B, execute * n) in [-1, 1] as the envs take them, of its own (B, size).

        Args:
            actions: array.
        """
        full = np.zeros((len(actions), self.execute, self._entries), np.float32)
        white = np.reshape(actions, (len(actions), self.execute, -1))
        full[..., self._moves] = np.clip(self._factor @ white, -1, 1)
        return full.reshape(len(actions), -1)

    def _take(self, chunk: Tensor) -> Tensor:
        """Return what of a chunk (B, chunk, n) is its action, (B, size)."""
        return (self._whiten @ chunk[:, : self.execute, self._moves]).flatten(1)

    def divergence(self, distribution: Independent, seen: Seen) -> Tensor:
        """Return the Kullback-Leibler divergence from the policy as it was at first, (B,).

        That one too is normal, with the deviation of the beginning.
        """
        before = seen["reference"]
        std = torch.full_like(before, math.exp(self._std))
        return kl_divergence(distribution, Independent(Normal(before, std), 1))

    def hold(self, still: bool) -> None:
        """Stop training it, or go on."""
        for parameter in self.trained:
            parameter.requires_grad_(not still)

    def save(self, folder: str | Path, sheets: Any = ()) -> None:
        """Write a checkpoint of the policy as it is now, low-rank changes added to its weights."""
        plain = copy.copy(self._policy)
        plain.model = self._merged() if self._train == "lora" else self.model
        plain.save(folder, sheets)

    def _merged(self) -> nn.Module:
        """Return the model without parametrisations, its weights those that act now."""
        plain = copy.deepcopy(self._before[0])
        now = {name: operator.attrgetter(name)(self.model) for name in plain.state_dict()}
        plain.load_state_dict(now)
        return plain

    @property
    def _sees_before_training(self) -> bool:
        """Whether pictures become maps before any gradient."""
        return self._train != "all"

    def _choose(self, rank: int) -> None:
        model = self.model
        encoders = nn.ModuleList([model.vision, model.language])
        if self._train == "all":
            self._freeze(model.language)
        elif self._train == "frozen-vision":
            self._freeze(encoders)
        elif self._train == "head":
            self._freeze(model)
            model.head.requires_grad_(True)
        else:
            self._freeze(model)
            fixed = set(encoders.modules())
            _add_low_rank([m for m in model.modules() if m not in fixed], rank)

    @staticmethod
    def _freeze(module: nn.Module) -> nn.Module:
        return module.requires_grad_(False).eval()


class Critic(nn.Module):
    """Values of what an actor sees.

    Args:
        kind: `"state"`: of the privileged state and the instruction; `"feature"`: of the actor's
            feature; `"shared"`: the same, and its gradient reaches the actor too.
        inputs: entries of what it reads.
        hidden: units of each of its two layers.
    """

    def __init__(self, kind: str, inputs: int, hidden: int = 256) -> None:
        super().__init__()
        if kind not in CRITICS:
            raise UnknownName("critic", kind, CRITICS, "Critic")
        self.kind = kind
        layers: list[nn.Module] = []
        for width in (inputs, hidden):
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.SiLU()]
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)  # nothing is known yet: no value is better than another
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, seen: Seen, feature: Tensor | None) -> Tensor:
        """Return the value of each row, (B,). `feature` may be None where it is not read."""
        if self.kind == "state":
            return self.layers(seen["privileged"]).squeeze(-1)
        assert feature is not None
        return self.layers(feature.detach() if self.kind == "feature" else feature).squeeze(-1)


class _LowRank(nn.Module):
    """W + B A, with A random and B zero at first (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter((torch.randn(rank, columns) / math.sqrt(columns)).to(weight))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def _add_low_rank(modules: list[nn.Module], rank: int) -> None:
    """Add low-rank changes to linear layers and to attention's projections.

    They are parametrisations of the weights and not layers around layers, as peft has them:
    torch's attention takes its weights from its layers and does not call these, so that it would
    pass by what is around them, and so would the fused path of its transformer without gradients.
    """
    for module in modules:
        if isinstance(module, nn.Linear):
            name = "weight"
        elif isinstance(module, nn.MultiheadAttention):
            name = "in_proj_weight"
        else:
            continue
        parametrize.register_parametrization(module, name, _LowRank(getattr(module, name), rank))


def _as_tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fui":
        return torch.from_numpy(np.ascontiguousarray(value))
    return value


def to_numpy(seen: Seen) -> dict[str, NDArray[Any]]:
    """Return the same as arrays."""
    return {key: value.cpu().numpy() for key, value in seen.items()}
