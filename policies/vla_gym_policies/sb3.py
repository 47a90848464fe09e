"""`sb3`: any model that Stable-Baselines3 has saved, `make_policy("sb3:agent.zip")`."""

from __future__ import annotations

import copy
import difflib
import importlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vla_gym import PolicySpec, SpecSheet, make_policy
from vla_gym.contract import EEF_PROPRIO
from vla_gym.deps import require
from vla_gym.errors import ContractMismatch, InvalidOption, UnknownName
from vla_gym.instruction import INSTRUCTION_FORMS, instruction_space

__all__ = ["SB3Policy", "make_sb3_policy"]

ALGORITHMS = {
    "PPO": "clip_range",
    "A2C": "vf_coef",
    "SAC": "target_entropy",
    "TD3": "policy_delay",
    "DDPG": "policy_delay",
}
"""Algorithm -> the setting in its file that tells it from those after it.

The file does not name its algorithm, and the policy's class does not tell either: PPO and A2C share
theirs, and a user may have their own. DDPG's file is that of a TD3, whose subclass it is; loaded as
TD3 it acts the same.
"""

FOREIGN = {"top_quantiles_to_drop_per_net": "TQC", "cg_max_steps": "TRPO"}
"""Settings of sb3_contrib's algorithms, whose files have those of `ALGORITHMS` as well."""

NOT_FOR_ACTING: dict[str, Any] = {
    "seed": None,  # loading would seed Python's, NumPy's and torch's global generators with it
    "buffer_size": 1,  # loading would allocate it: a million images of a pixel agent
    "replay_buffer_class": None,
    "replay_buffer_kwargs": {},
    "n_envs": 1,
    "n_steps": 1,
    "optimize_memory_usage": False,
    "learning_rate": 0.0,
    "lr_schedule": lambda _: 0.0,  # pickled functions of another Python version do not load
    "clip_range": lambda _: 0.0,
    "clip_range_vf": None,
    "action_noise": None,
    "tensorboard_log": None,
    "ep_info_buffer": None,
    "ep_success_buffer": None,
    "_last_obs": None,
    "_last_original_obs": None,
    "_last_episode_starts": None,
}
"""Attributes that only training needs, replaced by these while a model is loaded."""

KEYS = "rgb_<camera>, proprio, instruction and state"


def make_sb3_policy(
    path: str | Path = "",
    *,
    algorithm: str | type | None = None,
    normalizer: str | Path | None = None,
) -> SB3Policy:
    """Load a model that `model.save(path)` of Stable-Baselines3 has written, on the CPU.

    What it must see is read from its observation space, so that `vla_gym.policy.connect` can check
    it and the evaluator can make the env that it needs. It may have been trained behind
    `gymnasium.wrappers.FilterObservation`; one with a flat observation must have seen `state`
    alone. One that `vla_gym.train.rlpd` has trained on a VLA's features brings that VLA along: the
    folder that its file names lies beside it.

    Loading runs pickled code of the file, as Stable-Baselines3 does: load only what you trust.

    Args:
        path: of the file; `.zip` may be left out, as in `model.save`.
        algorithm: a class, a name in `stable_baselines3` such as `"SAC"`, or `"package:Class"`
            such as `"sb3_contrib:RecurrentPPO"`. None: as the settings in the file tell.
        normalizer: file of the `VecNormalize` that the model was trained behind, as its `save`
            has written it. It is a pickle and never loaded unasked.

    Raises:
        InvalidOption: a file is missing or is something else, or its algorithm cannot be told.
        ContractMismatch: the model's spaces are not those of a `VLA/` env.
        DependencyNotInstalled: Stable-Baselines3 is not installed.
    """
    require("stable_baselines3", "sb3", "a policy from a Stable-Baselines3 file")
    if not str(path):
        raise InvalidOption(
            'the policy "sb3" needs the file of a model, for example "sb3:agent.zip"'
        )
    file = _find_file(Path(path))
    settings = _read_settings(file)
    if algorithm is None:
        algorithm = _tell_algorithm(settings, file)
    model = _load(_find_class(algorithm), file)
    _warn_of_normalizer(file, normalizer)
    normalize = None if normalizer is None else _load_normalizer(Path(normalizer), model)
    encoder = _open_encoder(file, settings["encoder"]) if settings.get("encoder") else None
    return SB3Policy(model, name=file.name, normalizer=normalize, encoder=encoder)


class SB3Policy:
    """Plays a Stable-Baselines3 model: shows it what it was trained with, in its layout.

    Args:
        model: has `predict`, `observation_space` and `action_space`.
        name: for error texts.
        normalizer: a `VecNormalize` without an env, or None.
        encoder: policy with `encode`, whose features (B, n) the model observes as `feature`;
            None where it observes the env itself.

    Attributes:
        model: as given.
        spec: what the model's spaces say.

    Raises:
        ContractMismatch: the model's spaces are not those of a `VLA/` env.
    """

    def __init__(
        self, model: Any, *, name: str = "", normalizer: Any = None, encoder: Any = None
    ) -> None:
        self.model = model
        self._name = name or type(model).__name__
        self._normalizer, self._encoder = normalizer, encoder
        if encoder is None:
            self.spec = _read_spec(model.observation_space, model.action_space, self._name)
        else:
            self.spec = encoder.spec
        self._random_state: Any = None  # of torch, None: the global generator goes on

    def for_env(self, sheet: SpecSheet) -> SB3Policy:
        """Return the policy itself after a look at the lengths that the spec does not hold.

        Raises:
            ContractMismatch: `state` or `proprio` of the env has another length.
        """
        if self._encoder is not None:
            self._encoder.for_env(sheet)
            return self
        space = self.model.observation_space
        named = isinstance(space, spaces.Dict)
        read = space.spaces if named else {"state": space}
        lengths = {"state": sheet.state_dim, "proprio": len(sheet.proprio)}
        for key, length in lengths.items():
            if key in read and read[key].shape != (length,):
                raise ContractMismatch(
                    f"{self._name} does not fit {sheet.id}: "
                    f"{f'its {key}' if named else 'its flat observation, taken as the state,'} "
                    f"has shape {read[key].shape}, the env's {key} has {length} entries. It was "
                    "trained on another task, with other keywords or behind a wrapper"
                )
        if not named and space.dtype != np.float64 and space.shape == (lengths["proprio"],):
            raise ContractMismatch(
                f"{self._name} does not tell what it reads on {sheet.id}: its flat observation of "
                f"{space.shape[0]} {space.dtype} numbers may be state or proprio. Train with "
                "MultiInputPolicy behind FilterObservation, which keeps the names"
            )
        return self

    def set_random_seed(self, seed: int) -> None:
        """Seed the draws of `deterministic=False`; no global generator is touched."""
        torch = require("torch", "sb3")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if getattr(self.model, "use_sde", False):  # draws its noise once for an episode
                getattr(self.model.policy, "actor", self.model.policy).reset_noise()
            self._random_state = torch.get_rng_state()

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return the model's actions, (B, action_dim) in [-1, 1], and its recurrent state."""
        shown = self._show(observation)
        if deterministic or self._random_state is None:
            actions, state = self.model.predict(shown, state, episode_start, deterministic)
        else:
            torch = require("torch", "sb3")
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(self._random_state)
                actions, state = self.model.predict(shown, state, episode_start, deterministic)
                self._random_state = torch.get_rng_state()
        return np.asarray(actions, dtype=np.float32), state

    def _show(self, observation: dict[str, Any]) -> Any:
        """Return the part of a batch that the model reads, normalised, images in its layout."""
        if self._encoder is not None:
            observation = {"feature": self._encoder.encode(observation)}
        space = self.model.observation_space
        keys = list(space.spaces) if isinstance(space, spaces.Dict) else ["state"]
        shown: Any = {key: np.asarray(observation[key]) for key in keys}
        if not isinstance(space, spaces.Dict):
            shown = shown["state"]
        if self._normalizer is not None:
            shown = self._normalizer.normalize_obs(_arrange(shown, self._normalizer))
        return _arrange(shown, self.model)


def _open_encoder(file: Path, folder: str) -> Any:
    path = file.parent / folder
    if not path.is_dir():
        raise InvalidOption(
            f"{file} was trained on the features of another model, whose checkpoint {path} is "
            "missing: keep that folder beside the file"
        )
    return make_policy(str(path))


def _arrange(batch: Any, owner: Any) -> Any:
    """Turn images (B, H, W, 3) to (B, 3, H, W) where the observation space of `owner` has them so.

    Stable-Baselines3's VecTransposeImage has done that in training.
    """
    space = owner.observation_space
    if not isinstance(space, spaces.Dict):
        return batch
    return {
        key: np.moveaxis(value, -1, 1)
        if value.ndim == 4 and value.shape[1:] != space[key].shape
        else value
        for key, value in batch.items()
    }


def _read_spec(observation: Any, action: Any, name: str) -> PolicySpec:
    """Return what a model's spaces say of the env that it was trained in."""
    if not isinstance(action, spaces.Box) or len(action.shape) != 1:
        raise ContractMismatch(
            f"{name} has the action space {action}; every VLA/ env takes a vector: Box(-1, 1, (n,))"
        )
    if not (np.all(action.low == -1) and np.all(action.high == 1)):
        raise ContractMismatch(
            f"{name} has actions in [{action.low.min():g}, {action.high.max():g}], every VLA/ env "
            "takes [-1, 1]: it was trained behind a wrapper that rescales them, or elsewhere"
        )
    common: dict[str, Any] = {"action_dim": int(action.shape[0])}
    if isinstance(observation, spaces.Box) and len(observation.shape) == 1:
        return PolicySpec(cameras=(), state=True, **common)
    if not isinstance(observation, spaces.Dict):
        raise ContractMismatch(
            f"{name} has the observation space {observation}, which names none of the keys "
            f"{KEYS}. Train with MultiInputPolicy behind FilterObservation, which keeps the names; "
            "without names only a flat vector, taken as the state, is understood"
        )
    faults, sizes, cameras = [], set(), []
    for key, space in observation.spaces.items():
        shape = space.shape or ()
        if key.startswith("rgb_"):
            if len(shape) != 3 or shape not in {(shape[1],) * 2 + (3,), (3,) + (shape[1],) * 2}:
                faults.append(f"{key} has shape {shape}, not (n, n, 3) or (3, n, n)")
            sizes.add(shape[1] if len(shape) == 3 else shape)
            cameras.append(key.removeprefix("rgb_"))
        elif key == "instruction":
            if _instruction_form(space) is None:
                faults.append(f"instruction is {space}, neither an embedding nor bytes")
        elif key in ("proprio", "state"):
            if len(shape) != 1:
                faults.append(f"{key} has shape {shape}, not (n,)")
        else:
            faults.append(f"{key!r} is no key of a VLA/ env")
    if len(sizes) > 1:
        faults.append(f"its images differ in size: {sorted(map(str, sizes))}")
    if faults:
        raise ContractMismatch(
            f"{name} does not read the observation of a VLA/ env ({KEYS}): {'; '.join(faults)}. "
            "It was trained behind a wrapper that changes them, or elsewhere"
        )
    keys = observation.spaces
    return PolicySpec(
        cameras=tuple(cameras),
        image_size=sizes.pop() if sizes else None,
        state="state" in keys,
        proprio=_proprio_form(keys["proprio"]) if "proprio" in keys else None,
        instruction=_instruction_form(keys["instruction"]) if "instruction" in keys else None,
        **common,
    )


def _proprio_form(space: spaces.Space[Any]) -> str:
    """Tell the form from the length: `eef` has 10 entries for each of one or two arms."""
    n = (space.shape or (0,))[0]
    return "eef" if n in (len(EEF_PROPRIO), 2 * len(EEF_PROPRIO)) else "joints"


def _instruction_form(space: spaces.Space[Any]) -> str | None:
    for form in INSTRUCTION_FORMS:
        known = instruction_space(form)
        if isinstance(known, spaces.Box) and (known.shape, known.dtype) == (
            space.shape,
            space.dtype,
        ):
            return form
    return None


def _find_file(path: Path) -> Path:
    for candidate in (path, Path(f"{path}.zip")):
        if candidate.is_file():
            return candidate
    folder = path if path.is_dir() else path.parent
    what = "is a folder" if path.is_dir() else "does not exist"
    if not folder.is_dir():
        raise InvalidOption(f"the model file {path} {what}, nor does the folder {folder}")
    there = sorted(file.name for file in folder.glob("*.zip"))
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.5)
    hint = f" Did you mean {folder / near[0]}?" if near else ""
    raise InvalidOption(
        f"the model file {path} {what}.{hint} Zip files in {folder}: {_first(there)}"
    )


def _read_settings(file: Path) -> dict[str, Any]:
    """Return the settings of a saved model as JSON, without unpickling anything."""
    wanted = "not a zip file of Stable-Baselines3's model.save()"
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if "data" not in names or "policy.pth" not in names:
                raise InvalidOption(
                    f"{file} is {wanted}, which holds data and policy.pth; it holds {_first(names)}"
                )
            settings = json.loads(archive.read("data"))
    except zipfile.BadZipFile as error:
        with file.open("rb") as opened:
            start = opened.read(8)
        raise InvalidOption(
            f"{file} is {wanted}: it has {file.stat().st_size} bytes and begins with {start!r} "
            f"({error})"
        ) from error
    except ValueError as error:
        raise InvalidOption(f"{file} is {wanted}: its data is not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise InvalidOption(f"{file} is {wanted}: its data is a {type(settings).__name__}")
    return settings


def _tell_algorithm(settings: Mapping[str, Any], file: Path) -> str:
    policy = settings.get("policy_class")
    module = str(policy.get("__module__", "")) if isinstance(policy, dict) else ""
    foreign = next((name for key, name in FOREIGN.items() if key in settings), None)
    if foreign is None and not module.startswith("sb3_contrib."):
        for name, key in ALGORITHMS.items():
            if key in settings:
                return name
    guess = f'"sb3_contrib:{foreign}"' if foreign else 'for example "sb3_contrib:RecurrentPPO"'
    raise InvalidOption(
        f"{file} does not tell its algorithm: it is none of {', '.join(ALGORITHMS)} "
        f"(its policy is from {module or 'an unknown module'}). Name its class with "
        f"algorithm=..., {guess}"
    )


def _find_class(algorithm: str | type) -> Any:
    if not isinstance(algorithm, str):
        found: Any = algorithm
    else:
        module, colon, name = algorithm.rpartition(":")
        try:
            package = importlib.import_module(module if colon else "stable_baselines3")
        except ImportError as error:
            raise InvalidOption(
                f"algorithm={algorithm!r}: {module} cannot be imported ({error})"
            ) from error
        found = getattr(package, name, None)
        if found is None and not colon:
            raise UnknownName("algorithm", name, ALGORITHMS, "stable_baselines3")
    if not hasattr(found, "load") or not hasattr(found, "predict"):
        raise InvalidOption(
            f"algorithm={algorithm!r} is not the class of an algorithm; give "
            f"{', '.join(ALGORITHMS)} or 'package:Class'"
        )
    return found


def _load(algorithm: Any, file: Path) -> Any:
    torch = require("torch", "sb3")
    try:
        with torch.random.fork_rng(devices=[]):  # a new network draws its weights first
            return algorithm.load(file, device="cpu", custom_objects=copy.deepcopy(NOT_FOR_ACTING))
    except (
        AssertionError,
        AttributeError,
        EOFError,
        ImportError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:  # what pickle, torch and SB3 raise for files of other versions or algorithms
        raise InvalidOption(
            f"{algorithm.__name__} cannot load {file} ({type(error).__name__}: {error}). It was "
            f"saved with Stable-Baselines3 {_saved_with(file)}, here is "
            f"{require('stable_baselines3', 'sb3').__version__}; algorithm=... names another class"
        ) from error


def _saved_with(file: Path) -> str:
    with zipfile.ZipFile(file) as archive:
        if "_stable_baselines3_version" not in archive.namelist():
            return "of an unknown version"
        return archive.read("_stable_baselines3_version").decode(errors="replace").strip()


def _warn_of_normalizer(file: Path, given: str | Path | None) -> None:
    beside = file.with_suffix(".vecnormalize.pkl")
    if given is None and beside.is_file():
        warnings.warn(
            f"{beside} lies beside the model but is not used: it is a pickle, which runs code as "
            f"it loads. If you trust it, pass normalizer={str(beside)!r}; without it a model that "
            "was trained behind VecNormalize acts on numbers of another scale",
            stacklevel=3,
        )


def _load_normalizer(path: Path, model: Any) -> Any:
    kind = require("stable_baselines3.common.vec_env", "sb3").VecNormalize
    if not path.is_file():
        raise InvalidOption(f"normalizer={str(path)!r} does not exist")
    try:
        with path.open("rb") as opened:
            found = pickle.load(opened)
    except (AttributeError, EOFError, ImportError, ValueError, pickle.UnpicklingError) as error:
        raise InvalidOption(f"normalizer={str(path)!r} cannot be read: {error}") from error
    if not isinstance(found, kind):
        raise InvalidOption(
            f"normalizer={str(path)!r} holds a {type(found).__name__}, not a VecNormalize"
        )
    seen, wanted = (_keys(owner.observation_space) for owner in (found, model))
    if seen != wanted:
        raise InvalidOption(
            f"normalizer={str(path)!r} was made for the observation {seen}, the model reads "
            f"{wanted}"
        )
    return found


def _keys(space: Any) -> dict[str, tuple[int, ...]]:
    """Return key -> sorted shape, which does not depend on where the channels stand."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    return {key: tuple(sorted(part.shape or ())) for key, part in parts.items()}


def _first(names: list[str], n: int = 5) -> str:
    if not names:
        return "none"
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
