"""The worker of `lerobot`: runs one LeRobot policy in the interpreter that has lerobot.

`vla_gym_policies/lerobot.py` starts this file. It imports the standard library, NumPy and lerobot
(written for 0.4.4): neither vla_gym nor Gymnasium, which that interpreter need not have.

A message is a JSON header and the raw bytes of its arrays over a socket: nothing that can execute,
no pickle. What lerobot prints goes to standard error. Both sides use `send` and `receive` of this
file.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import platform
import socket
import struct
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
else:
    try:
        import numpy as np
    except ImportError:  # the answer to "open" says what is missing
        np = None

__all__ = ["receive", "send"]

STATELESS = ("act", "smolvla", "pi0", "pi05", "pi0_fast", "xvla", "groot", "wall_x")
"""Types whose `predict_action_chunk` depends on its batch alone.

The others (diffusion, vqbet, tdmpc, sac, whatever comes) read a history of observations, which
only `select_action` writes, or have no chunks.
"""

_LENGTHS = struct.Struct("<QQ")


# Messages: used by both sides.


def send(end: socket.socket, message: dict[str, Any]) -> None:
    """Send a dict of JSON values and NumPy arrays (of numbers) at its top level."""
    header, bodies = {}, []
    for key, value in message.items():
        if np is not None and isinstance(value, np.ndarray):
            data = np.ascontiguousarray(value)
            header[key] = {"dtype": data.dtype.str, "shape": value.shape}
            bodies.append((key, data.tobytes()))
        else:
            header[key] = {"value": value}
    text = json.dumps(header).encode()
    body = b"".join(data for _, data in bodies)
    end.sendall(_LENGTHS.pack(len(text), len(body)) + text + body)


def receive(end: socket.socket) -> dict[str, Any]:
    """Return what `send` was given.

    Raises:
        EOFError: the other process is gone.
        TimeoutError: nothing has come within the timeout of the socket.
    """
    text_length, body_length = _LENGTHS.unpack(_read(end, _LENGTHS.size))
    header = json.loads(_read(end, text_length))
    body, start, message = _read(end, body_length), 0, {}
    for key, item in header.items():
        if "value" in item:
            message[key] = item["value"]
            continue
        array = np.empty(item["shape"], item["dtype"])
        stop = start + array.nbytes
        array[...] = np.frombuffer(body[start:stop], array.dtype).reshape(array.shape)
        message[key], start = array, stop
    return message


def _read(end: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        data = end.recv(min(length - len(received), 1 << 20))
        if not data:
            raise EOFError("the other process closed the connection")
        received += data
    return bytes(received)


# The policy's side.


class Host:
    """What the other side may call: `open` first."""

    def open(self, path: str, device: str, strict: bool) -> dict[str, Any]:
        """Load a policy and its processors; return what it reads and gives."""
        if importlib.util.find_spec("lerobot") is None:
            return {"missing": "lerobot", "python": platform.python_version()}
        self._torch = importlib.import_module("torch")
        factory = importlib.import_module("lerobot.policies.factory")
        configs = importlib.import_module("lerobot.configs.policies")
        config = configs.PreTrainedConfig.from_pretrained(path, local_files_only=True)
        config.device = device
        self._policy = factory.get_policy_class(config.type).from_pretrained(
            path, config=config, local_files_only=True, strict=strict
        )
        self._policy.eval()
        self._prepare, self._finish = factory.make_pre_post_processors(
            config, path, preprocessor_overrides={"device_processor": {"device": device}}
        )
        self._policies: dict[int, Any] = {}
        return {
            "type": config.type,
            "versions": {name: metadata.version(name) for name in ("lerobot", "torch", "numpy")},
            "inputs": {key: list(f.shape) for key, f in config.input_features.items()},
            "actions": list(config.output_features["action"].shape),
            "chunks": config.type in STATELESS and getattr(config, "n_obs_steps", 1) == 1,
            "execute": getattr(config, "n_action_steps", None),
            "ensemble": getattr(config, "temporal_ensemble_coeff", None),
        }

    def seed(self, seed: int) -> dict[str, Any]:
        """Seed torch's generator, from which LeRobot's policies draw."""
        self._torch.manual_seed(seed)
        return {}

    def chunk(self, task: list[str], **arrays: Any) -> dict[str, Any]:
        """Return chunks of actions (b, T, A) for the observations of b envs."""
        with self._torch.no_grad():
            batch = self._prepare(self._make_batch(task, arrays))
            chunks = self._policy.predict_action_chunk(batch)
            flat = self._finish(chunks.reshape(-1, chunks.shape[-1]))
        return {"actions": _to_numpy(flat).reshape(*chunks.shape[:2], -1)}

    def act(
        self, task: list[str], seats: list[int], starts: list[bool], **arrays: Any
    ) -> dict[str, Any]:
        """Return one action (b, A) for each of b envs, whose history is kept for its seat.

        LeRobot's `reset()` resets all envs of a batch, so each env has a policy of its own; they
        share their weights.
        """
        actions = []
        for row, (seat, start) in enumerate(zip(seats, starts, strict=True)):
            policy = self._policy_of(seat)
            if start:
                policy.reset()
            one = {key: value[row : row + 1] for key, value in arrays.items()}
            with self._torch.no_grad():
                batch = self._prepare(self._make_batch(task[row : row + 1], one))
                actions.append(_to_numpy(self._finish(policy.select_action(batch))))
        return {"actions": np.concatenate(actions)}

    def _policy_of(self, seat: int) -> Any:
        if seat not in self._policies:
            policy = self._policy
            weights = [*policy.parameters(), *policy.buffers()]
            self._policies[seat] = copy.deepcopy(policy, {id(weight): weight for weight in weights})
        return self._policies[seat]

    def _make_batch(self, task: list[str], arrays: dict[str, Any]) -> dict[str, Any]:
        """Return LeRobot's batch: float32, pictures (b, 3, H, W) in [0, 1]."""
        batch: dict[str, Any] = {"task": task}
        for key, value in arrays.items():
            tensor = self._torch.from_numpy(value)
            if value.ndim == 4:
                tensor = tensor.permute(0, 3, 1, 2).contiguous().float() / 255
            batch[key] = tensor.float()
        return batch


def _to_numpy(tensor: Any) -> Any:
    return tensor.detach().float().cpu().numpy()


def _main() -> None:
    end, host = socket.socket(fileno=int(sys.argv[1])), Host()
    end.set_inheritable(False)  # the end of this process must be the end of the connection
    while True:
        try:
            request = receive(end)
        except (EOFError, OSError):  # its process is gone
            return
        try:
            answer = getattr(host, request.pop("call"))(**request)
        except Exception as error:  # the boundary: whatever went wrong is reported
            answer = {"error": f"{type(error).__name__}: {error}"}
        send(end, answer)


if __name__ == "__main__":
    _main()
