"""`register_env`: an env of your own becomes a `VLA/` id by a declaration of what it observes.

The env may keep Gymnasium's interface, old Gym's (0.21 or 0.26) or dm_control's `dm_env`; shimmy
converts the last three. It stays as it is: the declaration says which of its observations are
pictures, proprio, state and command, and what its action entries mean. Nothing is started to
register it: every shape follows from the declaration. What the env then gives is held against that
at the first reset, and `vla_gym.check_contract` judges the whole.

    from vla_gym.adapt import Axis, Picture, Proprio, Source, register_env

docs/register_env.md has an example that runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_gym import rotations
from vla_gym.contract import EE_DELTA, EEF_PROPRIO, ee_delta_entries, eef_proprio, joints_proprio
from vla_gym.deps import require
from vla_gym.errors import ContractViolation, InvalidOption, UnknownName
from vla_gym.registration import list_suites, register_suite
from vla_gym.suite import (
    ActionMode,
    Camera,
    Entry,
    Frame,
    Layout,
    Setup,
    SimulatorInfo,
    Suite,
    Task,
)

__all__ = [
    "APIS",
    "AdaptedSimulator",
    "Axis",
    "Moment",
    "Picture",
    "Proprio",
    "Source",
    "register_env",
]

APIS = {
    "gymnasium": ("gymnasium",),
    "gym-0.26": ("shimmy", "gym"),
    "gym-0.21": ("shimmy", "gym"),
    "dm_env": ("shimmy", "dm_control"),
}
"""Interface of the env -> the modules that it needs."""

TURNS = {
    "": lambda picture: picture,
    "upside down": lambda picture: picture[::-1, ::-1],
    "flipped vertically": lambda picture: picture[::-1],
    "flipped horizontally": lambda picture: picture[:, ::-1],
}
"""How an env's picture lies -> what sets it upright and unmirrored."""

ROTATIONS = {
    "matrix": (9, lambda v: v.reshape(3, 3)),
    "columns": (6, lambda v: np.stack([v[:3], v[3:], np.cross(v[:3], v[3:])], axis=1)),
    "quaternion_xyzw": (4, rotations.quaternion_to_matrix),
    "quaternion_wxyz": (4, lambda v: rotations.quaternion_to_matrix(v[[1, 2, 3, 0]])),
    "vector": (3, rotations.vector_to_matrix),
    "euler_xyz": (3, rotations.euler_to_matrix),
}
"""Form of a rotation, end effector to base -> (how many numbers, their matrix). Matrices are row by
row; `"columns"` are the first two; angles in rad, Euler angles extrinsic."""

_ID = re.compile(r"VLA/([A-Za-z0-9]+)-([A-Za-z0-9]+)-v(\d+)")
_ENTRY_POINT = "vla_gym.adapt:AdaptedSimulator"


class Moment(NamedTuple):
    """What a function of a `Source` is called with.

    Attributes:
        env: the env, after shimmy's conversion if it needed one.
        observation: what its last reset or step returned.
        reward: of that step; 0 at reset.
        info: of that reset or step.
    """

    env: Any
    observation: Any
    reward: float
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Where one thing is found. Wherever one is wanted, a text stands for `Source(text)`.

    Attributes:
        key: of the env's observation; a tuple of keys leads into nested ones; `""` is the whole
            observation, for an env whose observation is no Dict.
        part: first entry and the one after the last, of the value laid flat; None is all of it.
        size: how many numbers it must have, where only that tells the length of a space.
        info: the key is one of `info`.
        function: `"module:function"` that is called with a `Moment` and returns the value; instead
            of a key.
    """

    key: str | tuple[str, ...] = ""
    part: tuple[int, int] | None = None
    size: int | None = None
    info: bool = False
    function: str = ""

    def __post_init__(self) -> None:
        if self.function and (self.key or self.info):
            raise InvalidOption(f"{self} has a function and a key: give one of them")
        if self.function and not _is_entry_point(self.function):
            raise InvalidOption(f"function={self.function!r} must be 'module:function'")
        if self.part is not None and not 0 <= self.part[0] < self.part[1]:
            raise InvalidOption(f"part={self.part} of {self} must be (first, after the last)")

    def __str__(self) -> str:
        place = f"{self.function}()" if self.function else "info" if self.info else "observation"
        keys = (self.key,) if isinstance(self.key, str) else self.key
        place += "".join(f"[{key!r}]" for key in keys if key)
        return place if self.part is None else f"{place}[{self.part[0]}:{self.part[1]}]"

    @property
    def length(self) -> int | None:
        """How many numbers it has, where the declaration says so."""
        return self.size if self.part is None else self.part[1] - self.part[0]


@dataclass(frozen=True)
class Picture:
    """One camera: uint8 (H, W, 3) of any size. The middle square is resized where it must be.

    Attributes:
        source: where its picture is; `"render()"` is what the env's `render()` returns.
        turned: how it lies: `"upside down"`, `"flipped vertically"`, `"flipped horizontally"`, or
            `""` where it is upright and not mirrored.
        note: what it shows, for the spec sheet.
    """

    source: Source | str
    turned: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.turned not in TURNS:
            raise UnknownName("turn", self.turned, TURNS, "a Picture")


@dataclass(frozen=True)
class Proprio:
    """Where the robot's own measurements are.

    Attributes:
        position: of the end effector in the robot's base frame [m], 3 numbers.
        rotation: of the end effector against the base; None where the env has none: the contract's
            six entries are then those of no rotation.
        rotation_form: one of `ROTATIONS`.
        opening: of the gripper, one number, or several whose mean counts; None where it has none.
        closed, opened: what `opening` is for a closed and for an open gripper.
        positions, velocities: of the joints [rad, rad/s], each with a `part` or `size`; None leaves
            the gripper alone in `proprio="joints"`.
    """

    position: Source | str
    rotation: Source | str | None = None
    rotation_form: str = "matrix"
    opening: Source | str | None = None
    closed: float = 0.0
    opened: float = 1.0
    positions: Source | None = None
    velocities: Source | None = None

    def __post_init__(self) -> None:
        if self.rotation_form not in ROTATIONS:
            raise UnknownName("rotation_form", self.rotation_form, ROTATIONS, "Proprio")
        if self.closed == self.opened:
            raise InvalidOption(f"closed and opened of Proprio are both {self.opened}")
        joints = self.positions, self.velocities
        lengths = {None if source is None else source.length for source in joints}
        if joints != (None, None) and (None in lengths or len(lengths) > 1):
            raise InvalidOption(
                "positions and velocities of Proprio must be given both, with a `part` or a `size` "
                f"that says how many joints there are: {self.positions!r}, {self.velocities!r}"
            )

    @property
    def joints(self) -> int:
        """How many joints there are."""
        return 0 if self.positions is None else self.positions.length or 0


@dataclass(frozen=True)
class Axis:
    """One entry of the env's own action, whose range becomes [-1, 1].

    Attributes:
        name: one of `dx`, `dy`, `dz`, `drx`, `dry`, `drz` (axis-angle) and `gripper` where it is
            that entry of `ee_delta`; any other name is reached by `action_mode="native"` alone.
        scale: what the upper end of the env's range means in `unit` per control step; positive.
        sign: -1 where the upper end means the other direction than the contract's: for `gripper`,
            where it closes.
        unit, frame, note: for the spec sheet. An entry of `ee_delta` is in m or rad in the robot's
            base frame.
    """

    name: str
    scale: float = 1.0
    sign: int = 1
    unit: str = ""
    frame: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.sign not in (1, -1) or not self.scale > 0:
            raise InvalidOption(
                f"{self}: sign must be +1 or -1 and scale positive; a direction belongs in sign"
            )
        if self.name in EE_DELTA[:6] and self.frame not in ("", "robot base"):
            raise InvalidOption(
                f"the action entry {self.name!r} is in the frame {self.frame!r}; ee_delta is in "
                "'robot base'. Turn it in a wrapper of the env, or give it another name: then it "
                'is an entry of action_mode="native" alone'
            )


@dataclass(frozen=True)
class _Declaration:
    """All that the simulator needs to know: plain values, so that it can travel as a dict."""

    env: str
    api: str
    cameras: Mapping[str, Picture]
    proprio: Proprio
    action: tuple[Axis, ...]
    success: Source
    state: tuple[Source, ...]
    command: Source | None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def restore(cls, plain: Mapping[str, Any]) -> _Declaration:
        """Return what `dataclasses.asdict` has taken apart."""

        def source(value: Mapping[str, Any] | str | None) -> Any:
            return Source(**value) if isinstance(value, Mapping) else value

        cameras = {
            name: Picture(**{**value, "source": source(value["source"])})
            for name, value in plain["cameras"].items()
        }
        proprio = {name: source(value) for name, value in plain["proprio"].items()}
        return cls(
            **{
                **plain,
                "cameras": cameras,
                "proprio": Proprio(**proprio),
                "action": tuple(Axis(**value) for value in plain["action"]),
                "success": source(plain["success"]),
                "state": tuple(source(value) for value in plain["state"]),
                "command": source(plain["command"]),
            }
        )


def register_env(
    env_id: str,
    env: str,
    *,
    instruction: str,
    cameras: Mapping[str, Picture | Source | str],
    proprio: Proprio,
    action: Sequence[Axis],
    success: Source | str,
    horizon: int,
    control_hz: float,
    reward: str,
    api: str = "gymnasium",
    env_kwargs: Mapping[str, Any] | None = None,
    paraphrases: Sequence[str] = (),
    command: Source | str | None = None,
    state: Sequence[Source] = (),
    success_rule: str = "",
    terminate_on_success: bool = False,
    robot: str = "",
) -> None:
    """Register an env of your own as an id; registering the id again replaces it.

    Nothing is imported or started. Call it where a module of yours is imported, so that other
    processes can do the same: `"my_lab:VLA/MyLab-Push-v0"` is an id that imports `my_lab` first.

    Args:
        env_id: `"VLA/<Suite>-<Task>-v<version>"`; the ids of one suite share `control_hz`,
            `reward`, `terminate_on_success` and the version.
        env: `"module:function"`, which returns the env; or its id in Gymnasium, or in Gym.
        instruction: the command, ASCII.
        cameras: `"primary"` and, if the env has one, `"wrist"`; any others. Without a wrist camera
            `rgb_wrist` is the primary's picture, and the spec sheet says so.
        proprio: where position, rotation, opening and joints are.
        action: one for each entry of the env's own action, in its order. `ee_delta` exists where
            at least one of dx, dy and dz is among them; else `action_mode="native"` alone does.
        success: whether the task is solved at this moment. A key of `info` may be absent at reset,
            which is then False.
        horizon: control steps after which an episode is truncated.
        control_hz: control steps a second.
        reward: what the env's own reward is, with its range.
        api: one of `APIS`.
        env_kwargs: keywords for `env`; plain values.
        paraphrases: other wordings of the command.
        command: where the env itself says the command, if it differs from episode to episode.
        state: the privileged state, part by part, each with a `part` or a `size`.
        success_rule: `success` in words.
        terminate_on_success: whether the env's own habit is to end an episode at success.
        robot: its name.

    Raises:
        InvalidOption: the declaration contradicts itself.
        UnknownName: `api` or a form is not among those that exist.
    """
    found = _ID.fullmatch(env_id)
    if found is None:
        raise InvalidOption(
            f"{env_id!r} is not an id; it must be 'VLA/<Suite>-<Task>-v<version>', both names of "
            "letters and digits, such as 'VLA/MyLab-Push-v0'"
        )
    if api not in APIS:
        raise UnknownName("api", api, APIS, env_id)
    if "primary" not in cameras:
        raise InvalidOption(f"cameras of {env_id} lack 'primary': {sorted(cameras)}")
    for source in state:
        if source.length is None:
            raise InvalidOption(f"{source} in state of {env_id} needs a `part` or a `size`")
    names = [axis.name for axis in action]
    if not names or len(set(names)) != len(names):
        raise InvalidOption(f"the action entries of {env_id} need names that differ: {names}")
    if "gripper" in names and proprio.opening is None:
        raise InvalidOption(
            f"the action of {env_id} has a gripper, so its Proprio must say where the opening is; "
            "give a Source with a function where no key has it"
        )
    declaration = _Declaration(
        env=env,
        api=api,
        cameras={
            name: picture if isinstance(picture, Picture) else Picture(picture)
            for name, picture in cameras.items()
        },
        proprio=proprio,
        action=tuple(action),
        success=_as_source(success),
        state=tuple(state),
        command=None if command is None else _as_source(command),
        env_kwargs=dict(env_kwargs or {}),
    )
    suite, name, version = found.groups()
    task = Task(name, env, instruction, tuple(paraphrases), success_rule, horizon)
    info = SimulatorInfo(
        name=api,
        entry_point=_ENTRY_POINT,
        modules=APIS[api],
        extra="" if api == "gymnasium" else "shimmy",
        distributions=APIS[api],
        tasks=frozenset([name]),
        layout=lambda task, keywords: _make_layout(declaration, robot),
        settings=dataclasses.asdict(declaration),
    )
    _add(
        Suite(
            name=suite,
            tasks={name: task},
            simulators=(info,),
            control_hz=control_hz,
            terminate_on_success=terminate_on_success,
            layout=info.layout,  # type: ignore[arg-type]  # it has one
            reward=reward,
            version=int(version),
        )
    )


_SHARED = ("control_hz", "reward", "terminate_on_success", "version")


def _add(suite: Suite) -> None:
    """Register a suite of one task, together with those of its name that are there already."""
    others = {each.name: each for each in list_suites()}.get(suite.name)
    if others is not None:
        if any(info.entry_point != _ENTRY_POINT for info in others.simulators):
            raise InvalidOption(
                f"the suite {suite.name!r} is not one of register_env's; choose another name"
            )
        tasks = {k: v for k, v in others.tasks.items() if k not in suite.tasks}
        for shared in _SHARED if tasks else ():
            if getattr(others, shared) != getattr(suite, shared):
                raise InvalidOption(
                    f"{shared}={getattr(suite, shared)!r}, but {others.id(next(iter(tasks)))} of "
                    f"the same suite has {getattr(others, shared)!r}; the ids of one suite share "
                    f"{', '.join(_SHARED)}: choose another suite's name"
                )
        infos = (
            info for info in others.simulators if not suite.tasks.keys() & (info.tasks or set())
        )
        suite = dataclasses.replace(
            suite, tasks={**tasks, **suite.tasks}, simulators=(*infos, *suite.simulators)
        )
    register_suite(suite)


def _as_source(value: Source | str) -> Source:
    return Source(value) if isinstance(value, str) else value


def _is_entry_point(text: str) -> bool:
    """Return whether a text is `"module:function"`, and not an id of Gymnasium."""
    module, _, name = text.partition(":")
    return name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _import(entry_point: str) -> Any:
    module, _, name = entry_point.partition(":")
    return getattr(importlib.import_module(module), name)


def _make_layout(declaration: _Declaration, robot: str) -> Layout:
    proprio = declaration.proprio
    eef = EEF_PROPRIO
    if proprio.rotation is None:
        still = "the env measures no rotation: always that of no rotation"
        eef = tuple(
            dataclasses.replace(e, note=still) if e.name.startswith("r") else e for e in eef
        )
    gripper = eef[-1]
    if proprio.opening is None:
        gripper = dataclasses.replace(gripper, note="the env has no gripper: always 0")
        eef = (*eef[:-1], gripper)
    cameras = {
        name: Camera(str(picture.source), picture.turned, picture.note)
        for name, picture in declaration.cameras.items()
    }
    if "wrist" not in cameras:
        cameras["wrist"] = dataclasses.replace(
            cameras["primary"], note="the env has no wrist camera: this is the primary's picture"
        )
    return Layout(
        action_modes=_make_modes(declaration.action),
        proprio={"eef": eef, "joints": joints_proprio(proprio.joints, gripper)},
        state_dim=sum(source.length or 0 for source in declaration.state),
        cameras=cameras,
        robot=robot,
    )


def _make_modes(action: tuple[Axis, ...]) -> dict[str, ActionMode]:
    native = ActionMode(
        tuple(
            Entry(axis.name, axis.unit, axis.frame, axis.scale, axis.note or _describe_sign(axis))
            for axis in action
        ),
        tuple((index, 1.0) for index in range(len(action))),
        native_dim=len(action),
    )
    own = {axis.name: (index, axis) for index, axis in enumerate(action)}
    if not own.keys() & set(EE_DELTA[:3]):
        return {"native": native}
    entries, targets = [], []
    for entry in ee_delta_entries(1.0, 1.0):
        index, axis = own.get(entry.name, (0, None))
        if axis is None:
            entries.append(dataclasses.replace(entry, scale=0.0, note="ignored: the env has none"))
            targets.append(None)
        else:
            note = f"{entry.note}; {axis.note}" if entry.note and axis.note else entry.note
            entries.append(dataclasses.replace(entry, scale=axis.scale, note=note or axis.note))
            targets.append((index, float(axis.sign)))
    rest = (*(0.0,) * 6, 1.0 if "gripper" in own else 0.0)
    return {
        "ee_delta": ActionMode(tuple(entries), tuple(targets), len(action), rest=rest),
        "native": native,
    }


def _describe_sign(axis: Axis) -> str:
    if axis.name == "gripper":
        return "+1 opens, -1 closes" if axis.sign > 0 else "+1 closes, -1 opens"
    return "" if axis.sign > 0 else "opposite to ee_delta"


class AdaptedSimulator:
    """An env of somebody else, read as its declaration says. Made by `register_env`'s ids."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._where = f"VLA/{setup.suite}-{setup.task}"
        self._declared = _Declaration.restore(setup.settings)
        self._functions: dict[str, Any] = {}
        self._env = _open(self._declared)
        self._moment = Moment(self._env, None, 0.0, {})
        try:
            self._low, self._high, self._dtype = self._read_range()
        except BaseException:
            self._env.close()
            raise
        self._wordings: tuple[str, ...] = ()

    def reset(self, seed: int, options: Mapping[str, Any]) -> Frame:
        """Reset the env with this seed."""
        del options  # there are none; VLAEnv has refused any
        observation, info = self._env.reset(seed=seed)
        self._wordings = ()
        self._moment = Moment(self._env, observation, 0.0, info)
        return self._frame(first=True)

    def step(self, action: NDArray[np.float32]) -> Frame:
        """Apply the env's own entries, each in [-1, 1], in the env's own range and type."""
        share = (action.astype(np.float64) + 1.0) / 2.0
        vector = self._low + share * (self._high - self._low)
        same = (self._low == -1.0) & (self._high == 1.0)  # exact where there is nothing to scale
        vector = np.where(same, action, vector).astype(self._dtype)
        observation, reward, terminated, truncated, info = self._env.step(vector)
        self._moment = Moment(self._env, observation, float(reward), info)
        return self._frame(terminated=bool(terminated), truncated=bool(truncated))

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return a camera's picture: uint8 (height, width, 3), upright."""
        cameras = self._declared.cameras
        if camera not in (*cameras, "wrist"):
            raise UnknownName("camera", camera, cameras, self._where)
        picture = cameras.get(camera, cameras["primary"])
        if picture.source == "render()":
            found = self._env.render()
        else:
            found = self._look_up(_as_source(picture.source))
        array = np.asarray(found) if found is not None else None
        if array is None or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ContractViolation(
                f"{self._where}: the picture of camera {camera!r}, {picture.source}, is "
                f"{_describe(found)}; wanted uint8 (H, W, 3). For another form give a Source with "
                "a function that converts it"
                + ('; make the env with render_mode="rgb_array"' if found is None else "")
            )
        return _fit(TURNS[picture.turned](array), height, width)

    def close(self) -> None:
        """Close the env."""
        self._env.close()

    def _frame(
        self, *, first: bool = False, terminated: bool = False, truncated: bool = False
    ) -> Frame:
        setup, declared = self._setup, self._declared
        state = None
        if setup.state:
            parts = [self._read(source, source.length, "state") for source in declared.state]
            state = np.concatenate([*parts, np.empty(0)])
        if declared.command is not None:
            self._listen(declared.command, first)
        info = self._moment.info
        return Frame(
            images={name: self.render(name, size, size) for name, size in setup.images.items()},
            proprio=self._read_proprio(),
            state=state,
            reward=self._moment.reward,
            success=self._read_success(first),
            terminated=terminated,
            truncated=truncated,
            info={k: v for k, v in info.items() if type(v) in (bool, int, float, str)},
            instructions=self._wordings,
        )

    def _read_proprio(self) -> NDArray[np.float64]:
        proprio = self._declared.proprio
        opening = 0.0
        if proprio.opening is not None:
            raw = float(np.mean(self._read(proprio.opening, None, "opening")))
            opening = (raw - proprio.closed) / (proprio.opened - proprio.closed)
            opening = min(max(opening, 0.0), 1.0)
        if self._setup.proprio == "joints":
            joints = [
                self._read(source, proprio.joints, what)
                for source, what in (
                    (proprio.positions, "positions"),
                    (proprio.velocities, "velocities"),
                )
                if source is not None
            ]
            return np.concatenate([*joints, [opening]])
        rotation = np.eye(3)
        if proprio.rotation is not None:
            size, to_matrix = ROTATIONS[proprio.rotation_form]
            rotation = to_matrix(self._read(proprio.rotation, size, "rotation"))
            if not np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-4):
                raise ContractViolation(
                    f"{self._where}: rotation, {_as_source(proprio.rotation)}, is no rotation in "
                    f"the form {proprio.rotation_form!r}: its matrix is "
                    f"{np.round(rotation, 4).tolist()}. Forms: {', '.join(ROTATIONS)}"
                )
        return eef_proprio(self._read(proprio.position, 3, "position"), rotation, opening)

    def _read_success(self, first: bool) -> bool:
        source = self._declared.success
        if first and source.info and source.key not in self._moment.info:
            return False
        value = np.asarray(self._look_up(source))
        if value.size != 1 or value.dtype.kind not in "biuf":
            raise ContractViolation(
                f"{self._where}: success, {source}, is {_describe(value)}; wanted True or False"
            )
        return bool(value.reshape(()))

    def _listen(self, source: Source, first: bool) -> None:
        if not first and source.info and source.key not in self._moment.info:
            return  # said at reset
        text = self._look_up(source)
        if not isinstance(text, str):
            raise ContractViolation(
                f"{self._where}: command, {source}, is {_describe(text)}; wanted a text"
            )
        self._wordings = (str(text),)

    def _read(self, source: Source | str, size: int | None, what: str) -> NDArray[np.float64]:
        """Return numbers, shape (size,), or as many as there are where `size` is None."""
        source = _as_source(source)
        value = self._look_up(source)
        array = np.asarray(value)
        wanted = "numbers" if size is None else f"{size} number{'s' * (size != 1)}"
        flat = array.ravel()
        if source.part is not None and array.dtype.kind in "biuf":
            if source.part[1] > flat.size:
                flat = flat[:0]
            flat = flat[slice(*source.part)]
        short = flat.size == 0 if size is None else flat.size != size
        if array.dtype.kind not in "biuf" or short:
            raise ContractViolation(
                f"{self._where}: {what}, {source}, is {_describe(value)}; wanted {wanted}"
            )
        return flat.astype(np.float64)

    def _look_up(self, source: Source) -> Any:
        if source.function:
            if source.function not in self._functions:
                self._functions[source.function] = _import(source.function)
            return self._functions[source.function](self._moment)
        value = self._moment.info if source.info else self._moment.observation
        keys = (source.key,) if isinstance(source.key, str) else source.key
        for key in filter(None, keys):
            if not isinstance(value, Mapping) or key not in value:
                found = sorted(map(str, value)) if isinstance(value, Mapping) else _describe(value)
                raise ContractViolation(
                    f"{self._where}: there is no {source}; found: {found}, wanted the key {key!r}"
                )
            value = value[key]
        return value

    def _read_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64], Any]:
        """Return both ends of the env's action space, and its type."""
        from gymnasium import spaces

        space, axes = self._env.action_space, self._declared.action
        names = ", ".join(axis.name for axis in axes)
        if not isinstance(space, spaces.Box) or space.shape != (len(axes),):
            raise ContractViolation(
                f"{self._where}: the env's action space is {space}; wanted a Box of shape "
                f"({len(axes)},), for the declared entries {names}"
            )
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ContractViolation(
                f"{self._where}: the env's action space {space} has no finite range, so that there "
                "is nothing to scale; wrap it with gymnasium.wrappers.RescaleAction or the like"
            )
        for index, axis in enumerate(axes):
            if axis.name in EE_DELTA[:6] and low[index] != -high[index]:
                raise ContractViolation(
                    f"{self._where}: the env's action entry {axis.name!r} ranges from {low[index]} "
                    f"to {high[index]}; wanted a range around 0, which means no motion"
                )
        return low, high, space.dtype


def _open(declared: _Declaration) -> Any:
    """Make the env, with Gymnasium's interface."""
    keywords = dict(declared.env_kwargs)
    if _is_entry_point(declared.env):
        env = _import(declared.env)(**keywords)
    elif declared.api == "gymnasium":
        import gymnasium

        return gymnasium.make(declared.env, **keywords)
    elif declared.api == "dm_env":
        raise InvalidOption(
            f"env={declared.env!r} with api='dm_env' must be 'module:function', a function that "
            "returns the env"
        )
    else:
        env = require("gym", "shimmy", "an old-Gym env").make(declared.env, **keywords)
    if declared.api == "gymnasium":
        return env
    shimmy = require("shimmy", "shimmy", f"an env of {declared.api}")
    if declared.api == "dm_env":
        require("dm_control", "shimmy", "an env of dm_env")
        return shimmy.DmControlCompatibilityV0(env, render_mode="rgb_array")
    if declared.api == "gym-0.26":
        return shimmy.GymV26CompatibilityV0(env=env)
    # With a render mode shimmy draws a picture in every step.
    drawn = any(picture.source == "render()" for picture in declared.cameras.values())
    return shimmy.GymV21CompatibilityV0(env=env, render_mode="rgb_array" if drawn else None)


def _fit(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return the largest middle part of the wanted shape, resized to it."""
    rows, columns = picture.shape[:2]
    if (rows, columns) == (height, width):
        return np.ascontiguousarray(picture)
    share = min(rows / height, columns / width)
    tall, wide = max(1, round(share * height)), max(1, round(share * width))
    top, left = (rows - tall) // 2, (columns - wide) // 2
    part = np.ascontiguousarray(picture[top : top + tall, left : left + wide])
    if (tall, wide) == (height, width):
        return part
    image = require("PIL.Image", "shimmy", "pictures in another size than the env's")
    resized = image.fromarray(part).resize((width, height), image.Resampling.BILINEAR)
    return np.asarray(resized)


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, Mapping):
        return f"a dict of {sorted(map(str, value))}"
    return f"{type(value).__name__} {value!r}"[:120]
