"""CALVIN's play table in its original simulator: PyBullet and the user's checkout of calvin_env.

What is upstream's (calvin_env 797142c): robot, inverse kinematics, play table, cameras, meshes and
their configuration, read from the checkout's own YAML files. What is ours is the loop around them,
in the place of upstream's `PlayTableSimEnv`: one step is upstream's `apply_action`, the physics
steps of 1/30 s and upstream's `scene.step()`, bit for bit the same states.

What differs from using calvin_env directly, and why:

- A reset loads the world anew (about 50 ms), since what Bullet remembers of an episode changes the
  next one. Upstream's reset also leaves the last gripper command in `robot_obs` and whether the
  button was pressed, so that an LED may turn over in the first step; here both start afresh.
- Pictures are drawn when asked for, at any size, not in every step.
- Some of upstream's calls go to the process's first PyBullet client instead of their own. Here each
  table's calls go to its own client, so that several tables, or other PyBullet programs, may share
  a process.
- The packages gym, hydra, opencv, GitPython and numpy-quaternion, which upstream imports but hardly
  uses, are not needed.

`renderer="tiny"` is PyBullet's software renderer. `renderer="egl"` is the one with which upstream's
data sets were made: its pictures are brighter and have soft shadows. A process can have one such
table at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.errors import BrokenDependency, DependencyNotInstalled, InvalidOption, UnknownName
from vla_gym.suite import VisualChange
from vla_gym.suites.calvin.checkout import find_pybullet_obstacle, find_root
from vla_gym.suites.calvin.oracle import ROBOT, Block, Record
from vla_gym.suites.calvin.scenes import SCENES
from vla_gym.suites.calvin.table import CAMERAS, Reading

__all__ = ["RENDERERS", "PlayTable"]

RENDERERS = ("tiny", "egl")

_GRAVITY_M_S2 = 9.8

_UNUSED = ("git", "quaternion")
"""Packages that upstream's modules import, but call for nothing that is done here."""

_egl_tables: weakref.WeakSet[PlayTable] = weakref.WeakSet()
"""Those that draw with EGL and are not closed: at most one."""


class PlayTable:
    """Upstream's robot and play table on a PyBullet client of their own; see `Table`.

    All of a table's calls must come from one thread.

    Args:
        scene: `"A"` to `"D"`.
        renderer: `"tiny"` or `"egl"`.
        root: folder of the checkout of calvin_env; None takes CALVIN_ENV_ROOT.

    Attributes:
        robot, scene: upstream's `Robot` and `PlayTableScene`.

    Raises:
        DependencyNotInstalled: PyBullet or the checkout is missing; the text says how to get them.
        BrokenDependency: they are there but cannot be used.
        InvalidOption: the renderer cannot run in this process.
    """

    def __init__(self, scene: str, renderer: str = "tiny", root: str | None = None) -> None:
        self._client: Any = None
        if scene not in SCENES:
            raise UnknownName("scene", scene, SCENES, "CALVIN")
        if renderer not in RENDERERS:
            raise UnknownName("renderer", renderer, RENDERERS, "CALVIN")
        obstacle = find_pybullet_obstacle(root)
        checkout = find_root(root)
        if obstacle is not None or checkout is None:
            raise DependencyNotInstalled(obstacle)
        if renderer == "egl":
            _check_egl()
        with _silent_stdout():
            self._upstream = _import_upstream(checkout)
            self._config = _read_config(checkout, scene)
            self._client = _connect(renderer)
            self._build()
            if renderer == "egl":
                self._start_egl()

    def reset(self, robot_obs: NDArray[np.float64], scene_obs: NDArray[np.float64]) -> None:
        """Put everything to where these say; see `Table.reset`.

        The fingers hold the distance that `robot_obs` says until the first action.
        """
        self._load()
        self.scene.reset(np.asarray(scene_obs, dtype=np.float64))
        for button in self.scene.buttons:
            button.prev_is_pressed = button._is_pressed
        self.robot.reset(np.asarray(robot_obs, dtype=np.float64))
        self.robot.gripper_action = 1 if robot_obs[14] > 0 else -1
        self._client.stepSimulation()

    def move(self, action: NDArray[np.float64]) -> None:
        """Apply upstream's relative action for one control step; see `Table.move`."""
        self._step(np.asarray(action, dtype=np.float64))

    def move_to(
        self, position: NDArray[np.float64], quaternion_xyzw: NDArray[np.float64], gripper: float
    ) -> None:
        """Drive towards an absolute pose for one control step; see `Table.move_to`.

        As upstream, this leaves the target pose alone to which `move` adds.
        """
        self._step((position, quaternion_xyzw, int(gripper)))

    def read(self) -> Reading:
        """Return the present state; see `Table.read`."""
        robot_obs, robot_info = self.robot.get_observation()
        joints = self._client.getJointStates(self.robot.robot_uid, self.robot.arm_joint_ids)
        lights = {light.name: bool(light.get_state()) for light in self.scene.lights}
        doors = {door.name: door.get_state() for door in self.scene.doors}
        record = Record(
            blocks={
                _color_of(block): self._read_block(block) for block in self.scene.movable_objects
            },
            robot_contacts=self._name_contacts(robot_info["contacts"]),
            slider=doors["base__slide"],
            drawer=doors["base__drawer"],
            lightbulb=lights["lightbulb"],
            led=lights["led"],
        )
        velocities = np.array([joint[1] for joint in joints])
        return Reading(robot_obs, self.scene.get_obs(), velocities, record)

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return a picture drawn at this very size; see `Table.render`.

        The vertical field of view is upstream's, whatever the width.
        """
        if camera not in CAMERAS:
            raise UnknownName("camera", camera, CAMERAS, "CALVIN")
        options = dict(self._config["cameras"][camera])
        make = self._upstream.cameras[options.pop("_target_")]
        options.update(height=height, width=width, aspect=options["aspect"] * width / height)
        view = make(cid=self._client._client, robot_id=self.robot.robot_uid, **options)
        return np.ascontiguousarray(view.render()[0], dtype=np.uint8)

    def perturb(self, change: VisualChange) -> None:
        """Refuse; see `Table.perturb`. `SimulatorInfo.perturbs` says so beforehand."""
        raise InvalidOption(
            f"CALVIN's original simulator cannot show {change}: its cameras and its light are "
            "upstream's. The twin can: simulator='calvin-twin'"
        )

    def close(self) -> None:
        """End the PyBullet client; see `Table.close`."""
        client, self._client = self._client, None
        _egl_tables.discard(self)
        if client is not None:
            with _silent_stdout():
                client.disconnect()

    def _build(self) -> None:
        """Make upstream's objects as its `PlayTableSimEnv` does, in the same order."""
        config, client = self._config, self._client
        client.resetSimulation()
        client.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
        client.setTimeStep(1.0 / config["env"]["bullet_time_step"])
        self._repeats = int(config["env"]["bullet_time_step"] // config["env"]["control_freq"])
        self.robot = _bind(self._upstream.robot, client).Robot(
            cid=client._client, **config["robot"]
        )
        self.scene = self._upstream.scene.PlayTableScene(
            p=client, cid=client._client, np_random=None, **config["scene"]
        )
        self._load()

    def _load(self) -> None:
        """Make the world anew, the same each time: upstream draws where the blocks first are."""
        self._client.resetSimulation()
        self._client.setGravity(0, 0, -_GRAVITY_M_S2)
        self.scene.np_random = np.random.default_rng(0)
        self.robot.load()
        self.scene.load()
        self._names = self._name_bodies()

    def _name_bodies(self) -> dict[tuple[int, int] | int, str]:
        """Return the names of the table's (body, link) and of the other bodies."""
        names: dict[tuple[int, int] | int, str] = {self.robot.robot_uid: ROBOT}
        for table in self.scene.fixed_objects:
            names.update({(table.uid, i): link for link, i in table.info_dict["links"].items()})
        names.update({block.uid: _color_of(block) for block in self.scene.movable_objects})
        return names

    def _step(self, action: Any) -> None:
        self.robot.apply_action(action)
        for _ in range(self._repeats):
            self._client.stepSimulation()
        self.scene.step()

    def _read_block(self, block: Any) -> Block:
        info = block.get_info()
        return Block(
            np.array(info["current_pos"]),
            np.array(info["current_orn"]),
            np.array(info["current_lin_vel"]),
            np.array(info["current_ang_vel"]),
            self._name_contacts(info["contacts"]),
        )

    def _name_contacts(self, points: Any) -> frozenset[str]:
        """Return what is touched; entries 2 and 4 of a contact point are its body and link."""
        touched = {(point[2], point[4]) for point in points}
        return frozenset(
            self._names.get((body, link)) or self._names.get(body) or "floor"
            for body, link in touched
        )

    def _start_egl(self) -> None:
        """Draw twice: EGL's pictures before the first change of size differ from later ones."""
        _egl_tables.add(self)
        for size in (16, 32):
            self.render("static", size, size)


def _color_of(block: Any) -> str:
    return block.name.rpartition("_")[2]  # "block_red"


def _import_upstream(root: Path) -> types.SimpleNamespace:
    """Import what is used of calvin_env from the checkout at `root`.

    Returns:
        a namespace: `robot` and `scene`, modules; `cameras`, `_target_` -> class.
    """
    package = root / "calvin_env"
    present = sys.modules.get("calvin_env")
    folders = list(getattr(present, "__path__", []))
    if present is not None and str(package.resolve()) not in map(os.path.realpath, folders):
        raise BrokenDependency(
            f"calvin_env of {str(package)!r} cannot be imported: this process has already imported "
            f"another one, from {folders}. Use one checkout per process"
        )
    names = ("robot.robot", "scene.play_table_scene", "camera.static_camera")
    try:
        with _importing_from(root):
            robot, scene, static, gripper = (
                importlib.import_module(f"calvin_env.{name}")
                for name in (*names, "camera.gripper_camera")
            )
    except Exception as error:  # a library that does not fit may raise anything
        raise BrokenDependency(
            f"calvin_env of {str(root)!r} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    cameras = {
        f"{module.__name__}.{name}": getattr(module, name)
        for module, name in ((static, "StaticCamera"), (gripper, "GripperCamera"))
    }
    return types.SimpleNamespace(robot=robot, scene=scene, cameras=cameras)


@contextlib.contextmanager
def _importing_from(root: Path) -> Iterator[None]:
    """Let `root` be searched first and fill in for packages that upstream could do without."""
    filled_in = []
    sys.path.insert(0, str(root))
    try:
        for name in _UNUSED:
            try:
                importlib.import_module(name)
            except Exception:  # not installed, or no `git` program, or built for another numpy
                sys.modules[name] = types.ModuleType(name)
                filled_in.append(name)
        yield
    finally:
        sys.path.remove(str(root))
        for name in filled_in:
            del sys.modules[name]


def _read_config(root: Path, scene: str) -> dict[str, Any]:
    """Return the checkout's own configuration, without Hydra and without a data set.

    Returns:
        `robot`, `scene` and `env` are what upstream's classes take; `cameras`: name -> the same.
    """
    from omegaconf import OmegaConf

    def load(name: str) -> Any:
        return OmegaConf.load(root / "conf" / f"{name}.yaml")

    robot = OmegaConf.merge(load("robot/panda"), load("robot/panda_longer_finger"))
    parts = {
        "robot": robot,
        "scene": load(f"scene/calvin_scene_{scene}"),
        "cameras": {name: load(f"cameras/cameras/{name}") for name in CAMERAS},
        "env": load("env/play_table_env"),
        "data_path": str(root / "data"),
        "use_vr": False,
    }
    config: Any = OmegaConf.to_container(OmegaConf.create(parts), resolve=True)
    for part in ("robot", "scene"):
        for key in ("_target_", "_recursive_", "defaults"):
            config[part].pop(key, None)
    config["scene"]["objects"] = OmegaConf.create(config["scene"]["objects"])  # it converts them
    return config


def _bind(module: Any, client: Any) -> Any:
    """Return a copy of an imported module whose PyBullet calls go to `client` by default.

    Upstream's robot names its client in most calls; where it does not, PyBullet takes client 0.
    """
    copy: Any = importlib.util.module_from_spec(module.__spec__)
    module.__spec__.loader.exec_module(copy)
    copy.p = client
    return copy


def _connect(renderer: str) -> Any:
    """Return a new PyBullet client without a window, which draws with `renderer`."""
    import pybullet
    from pybullet_utils.bullet_client import BulletClient

    client: Any = BulletClient(pybullet.DIRECT)
    if renderer == "egl":
        plugin = importlib.util.find_spec("eglRenderer")
        file = plugin.origin if plugin is not None else None
        if file is None or client.loadPlugin(file, "_eglRendererPlugin") < 0:
            client.disconnect()
            raise BrokenDependency(
                "renderer='egl': PyBullet's plugin eglRenderer does not load on this machine. "
                "renderer='tiny' needs no graphics driver"
            )
    return client


def _check_egl() -> None:
    if os.environ.get("MUJOCO_GL") == "osmesa":
        raise InvalidOption(
            "renderer='egl' draws nothing but black in a process whose MUJOCO_GL is 'osmesa'. Set "
            "MUJOCO_GL=egl, or take renderer='tiny'"
        )
    if _egl_tables:
        raise InvalidOption(
            "renderer='egl': this process already has a CALVIN table that draws with EGL, and "
            "PyBullet crashes with two. Close it, use one process per env, or take renderer='tiny'"
        )


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Send to standard error what is printed meanwhile, by C code too; PyBullet does."""
    _flush()
    try:
        saved = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        _flush()
        os.dup2(saved, 1)
        os.close(saved)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)  # what C code has printed
