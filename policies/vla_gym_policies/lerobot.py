"""`lerobot`: any policy of LeRobot, in its own interpreter.

`make_policy("lerobot:outputs/train/mine/checkpoints/last/pretrained_model", python=...)`. lerobot
pins other versions of NumPy, torch, transformers and Meta-World than ours, so it runs where it is
installed; `lerobot_worker.py` is the file of ours over there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_gym import PolicySpec
from vla_gym.errors import ContractMismatch, DependencyNotInstalled, InvalidOption
from vla_gym.policy import Chunker
from vla_gym_policies import lerobot_worker
from vla_gym_policies.checkpoints import declare, find_folder
from vla_gym_policies.lerobot_worker import receive, send
from vla_gym_policies.remote import RemotePolicyError, Seats

__all__ = ["LeRobotPolicy", "LeRobotWorker", "make_lerobot_policy"]

LEROBOT = "lerobot==0.4.4"
"""The version that this was written for and tested with; it needs Python 3.10 or 3.11."""

STATE, IMAGE = "observation.state", "observation.image"

BOOT = """import sys
sys.path[:] = [folder for folder in sys.path if folder]
file = sys.argv.pop(1)
exec(compile(open(file, "rb").read(), file, "exec"), {"__name__": "__main__", "__file__": file})
"""
"""Runs the worker without the folders of this package and of the caller on its path: there, our
`random.py` and `lerobot.py` would hide the real ones."""


def make_lerobot_policy(
    path: str | Path = "",
    *,
    python: str | None = None,
    cameras: Mapping[str, str] | None = None,
    state: Callable[[dict[str, Any]], ArrayLike] | None = None,
    execute: int | None = None,
    ensemble: float | None = None,
    chunks: bool | None = None,
    strict: bool = True,
    device: str = "cpu",
    timeout_s: float = 600.0,
    **conventions: Any,
) -> LeRobotPolicy:
    """Load a policy that LeRobot has saved (ACT, diffusion, SmolVLA, π0, ...) and its processors.

    Args:
        path: folder with `config.json`, `model.safetensors`, `policy_preprocessor.json` and
            `policy_postprocessor.json`, which LeRobot writes as `pretrained_model`.
        python: interpreter that has lerobot. None: the variable LEROBOT_PYTHON, else this one.
        cameras: our camera -> LeRobot's key, such as `{"primary": "observation.images.top"}`. None
            where LeRobot's names are ours, or there is a single `observation.image`.
        state: LeRobot's `observation.state` (B, n) from an observation, whose proprio is already in
            the declared form. None: the proprio.
        execute: actions taken of each chunk. None: as the checkpoint says (`n_action_steps`).
        ensemble: see `vla_gym.policy.Chunker`. None: as the checkpoint says
            (`temporal_ensemble_coeff`).
        chunks: whether `predict_action_chunk` depends on one observation alone. None: as known of
            the policy's type. Where it does, envs are batched and our Chunker takes the actions;
            otherwise each env has a queue of its own over there, and is asked one by one.
        strict: refuse weights that are missing or too many. LeRobot itself, `False`, logs them and
            leaves what is missing random.
        device: of torch over there.
        timeout_s: how long one call may take, the loading included.
        **conventions: fields of `vla_gym.PolicySpec` that tell what the data set meant.

    Raises:
        InvalidOption: the folder is no such policy, its cameras cannot be told, or `python` is no
            program.
        DependencyNotInstalled: the interpreter lacks lerobot.
        RemotePolicyError: the policy cannot be loaded there.
        UnknownName: a keyword that `PolicySpec` does not have.
    """
    folder = find_folder(path, "lerobot")
    inputs = _read_inputs(folder)
    names = _name_cameras(inputs, cameras, folder)
    spec = declare(
        conventions,
        cameras=tuple(names),
        image_size=_read_sizes(inputs, names, folder) if "image_size" not in conventions else None,
        proprio="eef" if STATE in inputs else None,
        instruction="text",
        action_mode="ee_delta",
    )
    worker = LeRobotWorker(python or os.environ.get("LEROBOT_PYTHON") or sys.executable, timeout_s)
    try:
        about = worker.call("open", path=str(folder.resolve()), device=device, strict=strict)
        if "missing" in about:
            raise DependencyNotInstalled(
                f"python={worker.python!r} (Python {about['python']}) has no lerobot. Run: "
                f"{worker.python} -m pip install '{LEROBOT}', best in an environment of its own, "
                "since lerobot needs NumPy 2"
            )
        worker.versions = about["versions"]
        if execute is None and ensemble is None:
            ensemble = about["ensemble"]
            execute = about["execute"] if ensemble is None else None
        if spec.action_dim is None:
            spec = declare(vars(spec) | {"action_dim": about["actions"][0]})
        return LeRobotPolicy(
            worker,
            spec,
            names,
            state_dim=inputs[STATE][0] if STATE in inputs else None,
            chunker=Chunker(execute, ensemble)
            if (about["chunks"] if chunks is None else chunks)
            else None,
            state=state,
        )
    except BaseException:
        worker.close()
        raise


class LeRobotPolicy:
    """Plays a policy of LeRobot that lives in another process.

    `predict_action_chunk` of most policies depends on one observation alone: our Chunker takes the
    actions, at each env's own pace. Diffusion, VQ-BeT and others read several past observations,
    kept by LeRobot's `select_action`; LeRobot's `reset()` would clear them for all envs at once. So
    the worker has a policy for each row of the batch, with shared weights, and one object of this
    class plays one vector env at a time.

    LeRobot's policies draw where they are samplers, with `deterministic=True` as well;
    `set_random_seed` seeds them.

    Args:
        worker: in which the policy has been opened.
        spec: what it sees and speaks.
        cameras: our camera -> LeRobot's key.
        state_dim: length of `observation.state`, None where it reads none.
        chunker: takes the actions of its chunks; None: it is asked at every step.
        state: see `make_lerobot_policy`.
    """

    def __init__(
        self,
        worker: LeRobotWorker,
        spec: PolicySpec,
        cameras: Mapping[str, str],
        *,
        state_dim: int | None,
        chunker: Chunker | None,
        state: Callable[[dict[str, Any]], ArrayLike] | None = None,
    ) -> None:
        self.worker, self.spec = worker, spec
        self._cameras, self._state_dim = dict(cameras), state_dim
        self._chunker, self._state_of, self._seats = chunker, state, Seats()

    def set_random_seed(self, seed: int) -> None:
        """Seed the draws of the policy."""
        self.worker.call("seed", seed=int(seed))

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Return actions (B, action_dim) as LeRobot's post-processor gives them."""
        del deterministic  # LeRobot has no such choice
        if self._chunker is not None:
            return self._chunker.predict(self._predict_chunk, observation, state, episode_start)
        count = len(observation["instruction"])
        known, starts = self._seats.read(count, state, episode_start)
        answer = self.worker.call(
            "act",
            seats=[memory.seat.number for memory in known],
            starts=starts.tolist(),
            **self._translate(observation),
        )
        return answer["actions"].astype(np.float32), known

    def close(self) -> None:
        """End the other process. Safe to call more than once."""
        self.worker.close()

    def _predict_chunk(self, observation: dict[str, Any]) -> NDArray[np.float32]:
        return self.worker.call("chunk", **self._translate(observation))["actions"]

    def _translate(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Return an observation under LeRobot's keys."""
        seen: dict[str, Any] = {
            key: np.asarray(observation[f"rgb_{camera}"]) for camera, key in self._cameras.items()
        }
        if self._state_dim is not None:
            read = self._state_of or (lambda seen: seen["proprio"])
            seen[STATE] = np.asarray(read(observation), np.float32)
            if seen[STATE].shape[1] != self._state_dim:
                raise ContractMismatch(
                    f"the policy's {STATE} has {self._state_dim} entries, the proprio "
                    f"{seen[STATE].shape[1]}: see proprio_rotation, proprio and state of "
                    "make_lerobot_policy"
                )
        return seen | {"task": [str(text) for text in observation["instruction"]]}


class LeRobotWorker:
    """A process of another interpreter that runs `lerobot_worker.py`.

    Args:
        python: path of the interpreter, or its name on PATH.
        timeout_s: how long one call may take.

    Attributes:
        versions: of lerobot, torch and NumPy over there, once a policy is open.

    Raises:
        InvalidOption: there is no such program.
    """

    def __init__(self, python: str, timeout_s: float) -> None:
        found = shutil.which(python)
        if found is None:
            raise InvalidOption(
                f"python={python!r} is not a program that can be run here; give the path of a "
                f"Python interpreter in which {LEROBOT} is installed"
            )
        self.python, self._timeout_s, self._owner = python, timeout_s, os.getpid()
        self.versions: dict[str, str] = {}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        self._end, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [found, "-c", BOOT, lerobot_worker.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env={"HF_HUB_OFFLINE": "1", **os.environ},  # nothing is downloaded unasked
            )
        self._end.settimeout(timeout_s)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Return what a method of `lerobot_worker.Host` answers.

        Raises:
            RemotePolicyError: it raised an error, did not answer in time, or the process ended.
        """
        try:
            send(self._end, {"call": method, **arguments})
            answer = receive(self._end)
        except TimeoutError as error:
            self._process.kill()
            self.close()
            raise RemotePolicyError(
                f"{self._name()} did not answer {method!r} within timeout_s={self._timeout_s:g} s "
                f"and was ended. {self._last_words()}"
            ) from error
        except (EOFError, OSError) as error:
            self.close()
            raise RemotePolicyError(
                f"{self._name()} has ended (exit code {self._process.returncode}) at {method!r}. "
                f"{self._last_words()} Make the policy anew to go on"
            ) from error
        if "error" in answer:
            raise RemotePolicyError(f"{self._name()}, at {method!r}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process. Safe to call more than once."""
        self._end.close()  # which it takes as the end
        try:
            self._process.wait(5 if self._process.poll() is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __del__(self) -> None:
        if hasattr(self, "_process") and os.getpid() == self._owner:  # not in a forked child
            with contextlib.suppress(Exception):  # the interpreter may be at its own end
                self._end.close()
                self._process.kill()
                self._process.wait()

    def _name(self) -> str:
        return f"the LeRobot policy in {self.python}"

    def _last_words(self) -> str:
        """Return the end of what it has printed."""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 2000))
        said = self._log.read().decode(errors="replace").strip()
        return f"It last said:\n{said}\n" if said else "It has printed nothing."


def _read_inputs(folder: Path) -> dict[str, list[int]]:
    """Return what a policy reads: LeRobot's key -> shape."""
    config = json.loads((folder / "config.json").read_text())
    try:
        return {key: list(item["shape"]) for key, item in config["input_features"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidOption(
            f"{folder}/config.json is not of a LeRobot policy: it has no input_features with "
            f"shapes ({type(error).__name__}: {error})"
        ) from error


def _name_cameras(
    inputs: Mapping[str, list[int]], given: Mapping[str, str] | None, folder: Path
) -> dict[str, str]:
    """Return our camera -> LeRobot's key."""
    images = [key for key, shape in inputs.items() if key.startswith(IMAGE) and len(shape) == 3]
    if given is not None:
        if unknown := sorted(set(given.values()) - set(images)):
            raise InvalidOption(
                f"cameras names {', '.join(unknown)}, which {folder} does not read; it reads "
                f"{', '.join(images)}"
            )
        return dict(given)  # views that are left out stay empty, where the policy allows it
    names = {key.removeprefix(f"{IMAGE}s."): key for key in images}
    if list(names) == [IMAGE]:
        return {"primary": IMAGE}
    if not set(names) <= {"primary", "wrist"}:
        example = {camera: key for camera, key in zip(("primary", "wrist"), images, strict=False)}
        raise InvalidOption(
            f"{folder} reads the pictures {', '.join(images)}; say which camera each one is, for "
            f"example cameras={example}"
        )
    return names


def _read_sizes(
    inputs: Mapping[str, list[int]], names: Mapping[str, str], folder: Path
) -> dict[str, int]:
    sizes = {camera: inputs[key] for camera, key in names.items()}
    for camera, (_, height, width) in sizes.items():
        if height != width:
            raise InvalidOption(
                f"{folder} was trained on pictures of {width} x {height} pixels ({names[camera]}); "
                "an env's are squares. Give image_size=... to show it those all the same"
            )
    return {camera: shape[1] for camera, shape in sizes.items()}
