"""What a benchmark suite is: data (`Suite`, `Task`, `Layout`) and a small `Simulator` object.

A suite is described without starting anything, so that ids, spaces and spec sheets exist on a
machine that lacks its simulator. `VLAEnv` turns a `Simulator` into the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AS_IS",
    "ActionMode",
    "Camera",
    "CameraMove",
    "Entry",
    "Frame",
    "Keyword",
    "Layout",
    "LightChange",
    "PerturbableSimulator",
    "Setup",
    "Simulator",
    "SimulatorInfo",
    "Suite",
    "Task",
    "VisualChange",
]


@dataclass(frozen=True)
class Entry:
    """One entry of an action or proprio vector.

    Attributes:
        name: for example `"dx"` or `"gripper"`.
        unit: `"m"`, `"rad"`, `"rad/s"` or `""` for a number without unit.
        frame: the coordinate frame, `""` where it has none.
        scale: what +1 means in `unit` (actions); 1.0 for an entry that is not normalised.
        note: sign, range or that the suite ignores it.
    """

    name: str
    unit: str = ""
    frame: str = ""
    scale: float = 1.0
    note: str = ""


@dataclass(frozen=True)
class ActionMode:
    """One way to command a suite's robot, and how its entries become the suite's own vector.

    Attributes:
        entries: one per action entry, in order.
        native: for each entry, `(index, gain)` in the suite's own vector, or None where the suite
            ignores it. Gains are +1 or -1 wherever the suite's own range is [-1, 1] too, so that
            the conversion is exact in float32.
        native_dim: length of the suite's own vector.
        horizon: actions after which an episode is truncated where that is fewer than the task's
            horizon, for a mode whose actions take many control steps each.
        rest: the action that leaves everything as it is at the start of an episode: no motion, and
            what keeps open fingers open; where the fingers are not open, the gripper's entries
            have the opposite sign. None where there is no such action, as with absolute poses.
    """

    entries: tuple[Entry, ...]
    native: tuple[tuple[int, float] | None, ...]
    native_dim: int
    horizon: int | None = None
    rest: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.entries) != len(self.native):
            raise ValueError(
                f"an ActionMode needs one `native` item per entry: {len(self.entries)} entries, "
                f"{len(self.native)} items"
            )
        if self.rest is not None and len(self.rest) != len(self.entries):
            raise ValueError(
                f"an ActionMode needs one `rest` item per entry: {len(self.entries)} entries, "
                f"{len(self.rest)} items"
            )

    def to_native(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map a checked action, shape (len(entries),), to the suite's vector, (native_dim,)."""
        vector = [0.0] * self.native_dim  # lists: faster than arrays for so few
        for value, target in zip(action.tolist(), self.native, strict=True):
            if target is not None:
                index, gain = target
                vector[index] = gain * value
        return np.array(vector, dtype=np.float32)


@dataclass(frozen=True)
class Camera:
    """One camera: its name in the suite and how its picture was turned to stand upright."""

    native: str
    turned: str = ""
    note: str = ""


@dataclass(frozen=True)
class Keyword:
    """A `gym.make` keyword that only this suite has.

    Attributes:
        default: what it is where it is not given.
        choices: its valid values; None for one that takes a text, such as a path, or None.
        doc: what it does.
        recorded: whether an episode may depend on it, so that it belongs beside a score; a path
            of this machine does not.
    """

    default: Any
    choices: tuple[Any, ...] | None
    doc: str
    recorded: bool = True


@dataclass(frozen=True)
class Layout:
    """The spaces of one task under given keywords.

    Attributes:
        action_modes: name -> ActionMode; always holds `"ee_delta"` and `"native"`.
        proprio: form -> entries; always holds `"eef"` and `"joints"`.
        state_dim: length of the privileged state vector.
        cameras: name -> Camera; always holds `"primary"` and `"wrist"`.
        robot: the robot's name.
    """

    action_modes: Mapping[str, ActionMode]
    proprio: Mapping[str, tuple[Entry, ...]]
    state_dim: int
    cameras: Mapping[str, Camera]
    robot: str


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        name: CamelCase, the second part of its id.
        native: its name in the suite.
        instruction: the canonical language command.
        paraphrases: other wordings of the same command, none equal to `instruction`.
        success: the suite's own success rule in words.
        horizon: control steps after which an episode is truncated.
        tags: for example a difficulty group.
    """

    name: str
    native: str
    instruction: str
    paraphrases: tuple[str, ...]
    success: str = ""
    horizon: int = 500
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class SimulatorInfo:
    """One simulator that can run a suite.

    Attributes:
        name: what `gym.make(simulator=...)` takes and `info["simulator"]` reports.
        entry_point: `"module:Class"` of the `Simulator`, called with a `Setup`.
        modules: top-level modules that must be installed.
        extra: the extra of vla-gym that installs them.
        distributions: packages whose versions belong beside a score.
        find_sources: takes the suite's keywords and returns name -> version of what belongs there
            too and is no package, such as the commit of a checkout.
        find_obstacle: for a simulator that pip alone does not install: takes the suite's keywords
            and returns why it cannot run here and the steps to get it, or None where it can;
            imports nothing heavy.
        tasks: names of the tasks that it has; None is all of the suite's.
        layout: of this simulator where it differs from the suite's.
        defaults: of the suite's keywords, where this simulator's are others.
        stand_in_for: name of the original simulator if this is one of our own in its place, whose
            scores are never the original's.
        perturbs: which of `"camera"` and `"light"` its `perturb` can change; with any of them it is
            a `PerturbableSimulator`.
        settings: plain values that its `Setup` carries, for an entry point that serves many.
    """

    name: str
    entry_point: str
    modules: tuple[str, ...] = ()
    extra: str = ""
    distributions: tuple[str, ...] = ()
    find_sources: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None
    find_obstacle: Callable[[Mapping[str, Any]], str | None] | None = None
    tasks: frozenset[str] | None = None
    layout: Callable[[Task, Mapping[str, Any]], Layout] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    stand_in_for: str = ""
    perturbs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """One benchmark: data only.

    Attributes:
        name: the first part of its ids.
        tasks: name -> Task.
        simulators: in the order in which `simulator="auto"` tries them.
        control_hz: control steps per simulated second.
        terminate_on_success: the suite's own habit.
        layout: `(task, keywords) -> Layout`.
        reward: which native reward, with its version and range.
        keywords: `gym.make` keywords of this suite.
        options: name -> what `reset(options={name: ...})` means.
        benchmarks: name of a published set of tasks, such as `"MT10"` -> names of those tasks. It
            may stand wherever ids do (`find_ids`).
        protocol_options: reset options (plain JSON values) of the evaluation episode with this
            seed, for suites whose published protocol plays a fixed list of episodes; None: the seed
            alone decides.
        version: of the ids; raised when anything that a user can see changes.
    """

    name: str
    tasks: Mapping[str, Task]
    simulators: tuple[SimulatorInfo, ...]
    control_hz: float
    terminate_on_success: bool
    layout: Callable[[Task, Mapping[str, Any]], Layout]
    reward: str
    keywords: Mapping[str, Keyword] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    benchmarks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    protocol_options: Callable[[Task, int], Mapping[str, Any]] | None = None
    version: int = 0

    def id(self, task: str) -> str:
        """Return the Gymnasium id of one of the suite's tasks."""
        return f"VLA/{self.name}-{task}-v{self.version}"


@dataclass(frozen=True)
class Setup:
    """What a simulator is asked to run and to report: plain values only, so that it can travel.

    Attributes:
        suite, task: names, as in the id.
        native_task: the task's name in the suite.
        action_mode: the suite's vector arrives already converted; a simulator with several
            controllers picks one by this name.
        images: contract name of each camera that every frame must show -> height and width of its
            picture [pixels].
        proprio: `"eef"` or `"joints"`.
        state: whether frames carry the privileged state.
        render_quality: `"exact"` or `"fast"`.
        keywords: the suite's own keywords, all of them.
        settings: of the `SimulatorInfo`.
    """

    suite: str
    task: str
    native_task: str
    action_mode: str
    images: Mapping[str, int]
    proprio: str
    state: bool
    render_quality: str
    keywords: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)


class Frame(NamedTuple):
    """What a simulator reports after a reset or a step.

    Attributes:
        images: camera -> uint8 (H, W, 3), upright RGB.
        proprio: float64 (n,), as the layout says.
        state: float64 (state_dim,), or None where it was not asked for.
        reward: the suite's own reward; 0 at reset.
        success: whether the task is solved at this moment.
        terminated: the suite itself ended the episode.
        truncated: the suite cut the episode short, for a time limit of its own.
        info: further plain values.
        instructions: wordings of the command now in force, canonical first; empty where it is
            simply the task's.
    """

    images: dict[str, NDArray[np.uint8]]
    proprio: NDArray[np.float64]
    state: NDArray[np.float64] | None
    reward: float
    success: bool
    terminated: bool = False
    info: Mapping[str, Any] = MappingProxyType({})
    instructions: tuple[str, ...] = ()
    truncated: bool = False


class CameraMove(NamedTuple):
    """Where a camera goes from its own place. Plain numbers, so that it can travel.

    Attributes:
        offset_m: (3,) to the right, up and back, in the camera's own frame [m]. A camera on a
            moving body goes a fifth as far; one that stands still turns so that it goes on looking
            at the same point of the workspace.
        turn: (3,): tilt and pan as shares of the vertical field of view, so that a picture shifts
            alike through every lens, and roll [rad].
    """

    offset_m: tuple[float, float, float]
    turn: tuple[float, float, float]


class LightChange(NamedTuple):
    """What becomes of the light. Plain numbers, so that it can travel.

    Attributes:
        rotation: (3,), axis times angle by which all lights turn about the workspace, world frame
            [rad].
        lights: (3,) factors of red, green and blue of the scene's lights.
        ambient: (3,) factors of the light that is everywhere or comes from the camera.
    """

    rotation: tuple[float, float, float]
    lights: tuple[float, float, float]
    ambient: tuple[float, float, float]


class VisualChange(NamedTuple):
    """How a scene is shown otherwise than it is; nothing that moves or collides knows of it.

    Attributes:
        cameras: name -> move; a camera that is not named stays.
        light: None leaves it as it is.
    """

    cameras: Mapping[str, CameraMove] = MappingProxyType({})
    light: LightChange | None = None

    def rename(self, cameras: Mapping[str, Camera]) -> VisualChange:
        """Return the same with each camera's name in the suite."""
        return VisualChange({cameras[k].native: v for k, v in self.cameras.items()}, self.light)


AS_IS = VisualChange()


class Simulator(Protocol):
    """One running task. Nothing here knows of Gymnasium; `VLAEnv` gives it the contract."""

    def reset(self, seed: int, options: Mapping[str, Any]) -> Frame:
        """Start an episode that is a function of `seed` and `options` alone.

        Raises:
            InvalidOption: an option has a value that is not valid.
        """
        ...

    def step(self, action: NDArray[np.float32]) -> Frame:
        """Apply one action in the suite's own layout, shape (native_dim,)."""
        ...

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return the picture of a camera of the layout: uint8 (height, width, 3), upright."""
        ...

    def close(self) -> None:
        """Free what the simulator holds. Called once."""
        ...


class PerturbableSimulator(Simulator, Protocol):
    """A simulator that can show its scene otherwise than it is."""

    def perturb(self, change: VisualChange) -> None:
        """Have all pictures from now on show this change alone, until the next call.

        Cameras have their contract's names. `AS_IS` shows the scene as it is, bit for bit; states,
        rewards and draws are the same with every change.
        """
        ...
