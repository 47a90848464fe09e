"""`VLAEnv`: the one `gym.Env` of this package. It turns a suite's `Simulator` into the contract."""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from numpy.typing import NDArray

from vla_gym import registration
from vla_gym.contract import SpecSheet, action_space, check_action, observation_space
from vla_gym.deps import find_missing
from vla_gym.errors import (
    DependencyNotInstalled,
    InvalidOption,
    SimulatorCrashed,
    StandInWarning,
    UnknownKeyword,
    UnknownName,
)
from vla_gym.instruction import INSTRUCTION_FORMS, encode
from vla_gym.suite import (
    AS_IS,
    Frame,
    PerturbableSimulator,
    Setup,
    Simulator,
    SimulatorInfo,
    Suite,
    Task,
    VisualChange,
)
from vla_gym.worker import DEFAULT_TIMEOUT_S, RemoteSimulator, find_interpreter
from vla_gym.worker_main import MAX_PICTURE_SIZE, find_versions

__all__ = ["VLAEnv", "choose_simulator", "find_obstacle"]

logger = logging.getLogger(__name__)

Observation = dict[str, Any]

REWARDS = ("native", "sparse")
RENDER_QUALITIES = ("exact", "fast")
ON_CRASH = ("raise", "restart")
RENDER_SIZE = 256
"""Default height and width of `render()` [pixels]; observations have `image_size`."""

MAX_IMAGE_SIZE = MAX_PICTURE_SIZE
MAX_TIMEOUT_S = 1e6


class VLAEnv(gym.Env[Observation, NDArray[np.float32]]):
    """One task of one suite, in the contract of `vla_gym.contract`.

    The simulator starts at the first reset, so that making an env, asking for its spaces and
    forking are cheap and safe.

    Args:
        suite: name of a registered suite, for example `"MetaWorld"`.
        task: name of one of its tasks, for example `"DrawerOpen"`.
        cameras: names of the cameras to observe; `()` renders nothing.
        image_size: height and width of the images [pixels], or camera -> size.
        state: whether to observe the simulator's privileged state (float64).
        action_mode: `"ee_delta"`, `"native"` or a further mode of the suite.
        instruction: `"text"`, `"embedding"` (float32 (384,)) or `"bytes"` (uint8 (256,)).
        paraphrase: draw one of the task's wordings at each reset instead of the canonical one;
            `"always"`: never the canonical one. Does not change the simulator's draws.
        proprio: `"eef"` or `"joints"`.
        reward: `"native"`, or `"sparse"`: 1.0 in every step in which the task is solved, else 0.0.
        terminate_on_success: whether success ends the episode; None is the suite's own habit.
        render_quality: `"exact"`: the simulator's own pixels; `"fast"`: no shadows, reflections or
            multisampling, and simplified meshes.
        simulator: `"auto"` or the name of one of the suite's simulators.
        python: another Python interpreter (3.8 or later, with numpy and the simulator) in which the
            simulator runs in a process of its own: its path, or its name on PATH. None runs it in
            this process.
        timeout_s: with `python`, how long one call of the simulator may take before it counts as
            hung and its process is killed; None is 600 s. The first reset includes its start.
        on_crash: when the simulator crashes, hangs or is killed: `"raise"` raises
            `SimulatorCrashed`. `"restart"` ends the episode instead: truncated, reward 0,
            the last observation again, `info["crashed"]` True and `info["crash"]` the reason;
            the next reset starts a fresh simulator. A reset that crashes is tried once more.
        render_mode: `"rgb_array"` or None (`gym.make` adds `"human"` and `"rgb_array_list"`).
        render_size: height and width of `render()` [pixels].
        **keywords: keywords that only this suite has.

    Raises:
        UnknownName: a name does not exist; the message has the nearest one that does.
        InvalidOption: a keyword has a value of the wrong kind.
        DependencyNotInstalled: the simulator is not installed; the message has the command.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  Gymnasium's name

    def __init__(
        self,
        suite: str,
        task: str,
        *,
        cameras: Sequence[str] = ("primary", "wrist"),
        image_size: int | Mapping[str, int] = 128,
        state: bool = False,
        action_mode: str = "ee_delta",
        instruction: str = "text",
        paraphrase: bool | str = False,
        proprio: str = "eef",
        reward: str = "native",
        terminate_on_success: bool | None = None,
        render_quality: str = "exact",
        simulator: str = "auto",
        python: str | None = None,
        timeout_s: float | None = None,
        on_crash: str = "raise",
        render_mode: str | None = None,
        render_size: int = RENDER_SIZE,
        **keywords: Any,
    ) -> None:
        self._simulator: Simulator | None = None  # first: close() must work after a failed __init__
        self._closed = False
        self._episode = "none"  # -> "running" -> "terminated", "truncated" or "crashed"
        self._actions = 0

        the_suite = registration.get_suite(suite)
        the_task = registration.get_task(the_suite, task)
        env_id = the_suite.id(the_task.name)
        given, keywords = keywords, _check_keywords(the_suite, keywords, env_id)
        self._info = choose_simulator(the_suite, the_task, simulator, python, keywords)
        keywords.update((k, v) for k, v in self._info.defaults.items() if k not in given)
        layout = (self._info.layout or the_suite.layout)(the_task, keywords)
        if isinstance(cameras, str):
            cameras = (cameras,)
        cameras = tuple(cameras)
        for camera in cameras:
            _check_name("camera", camera, layout.cameras, env_id)
        if len(set(cameras)) != len(cameras):
            raise InvalidOption(f"cameras={cameras!r} of {env_id} names a camera twice")
        _check_name("action_mode", action_mode, layout.action_modes, env_id)
        _check_name("proprio form", proprio, layout.proprio, env_id)
        _check_name("instruction form", instruction, INSTRUCTION_FORMS, env_id)
        _check_name("reward", reward, REWARDS, env_id)
        _check_name("render_quality", render_quality, RENDER_QUALITIES, env_id)
        images = _read_sizes(image_size, cameras, env_id)
        sizes = set(images.values()) or {0 if isinstance(image_size, Mapping) else int(image_size)}
        _check_size("render_size", render_size, env_id)
        _check_flag("state", state, env_id)
        _check_paraphrase(paraphrase, the_task, env_id)
        if terminate_on_success is not None:
            _check_flag("terminate_on_success", terminate_on_success, env_id)
        _check_name("on_crash", on_crash, ON_CRASH, env_id)
        _check_timeout(timeout_s, python, env_id)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UnknownName("render_mode", render_mode, self.metadata["render_modes"], env_id)
        self._python = python if python is None else find_interpreter(python)
        self._timeout_s = DEFAULT_TIMEOUT_S if timeout_s is None else float(timeout_s)
        self._restarts = on_crash == "restart"
        self._last: Observation | None = None  # kept only where a crash may need it again

        self._suite, self._task, self._layout = the_suite, the_task, layout
        self._mode = layout.action_modes[action_mode]
        self._paraphrase = paraphrase if isinstance(paraphrase, str) else bool(paraphrase)
        self._sparse = reward == "sparse"
        if terminate_on_success is None:
            terminate_on_success = the_suite.terminate_on_success
        self._setup = Setup(
            suite=the_suite.name,
            task=the_task.name,
            native_task=the_task.native,
            action_mode=action_mode,
            images=images,
            proprio=proprio,
            state=bool(state),
            render_quality=render_quality,
            keywords=keywords,
            settings=self._info.settings,
        )
        self.spec_sheet = SpecSheet(
            id=env_id,
            suite=the_suite.name,
            task=the_task.name,
            simulator=self._info.name,
            robot=layout.robot,
            action_mode=action_mode,
            action=self._mode.entries,
            proprio_form=proprio,
            proprio=layout.proprio[proprio],
            cameras={name: layout.cameras[name] for name in cameras},
            all_cameras=tuple(layout.cameras),
            image_size=images if len(sizes) > 1 else sizes.pop(),
            instruction=instruction,
            state_dim=layout.state_dim if state else None,
            control_hz=the_suite.control_hz,
            horizon=min(the_task.horizon, self._mode.horizon or the_task.horizon),
            success=the_task.success,
            reward=the_suite.reward if reward == "native" else "1.0 while solved, else 0.0",
            terminate_on_success=bool(terminate_on_success),
            render_quality=render_quality,
            keywords={k: v for k, v in keywords.items() if the_suite.keywords[k].recorded},
            gripper="suite's own sign" if action_mode == "native" else "+1 opens",
            rotation="axis-angle" if action_mode == "ee_delta" else "suite's own",
            rest=self._mode.rest,
        )
        self.observation_space = observation_space(
            images,
            layout.proprio[proprio],
            instruction,
            self.spec_sheet.state_dim,
        )
        self.action_space = action_space(self._mode)
        self.render_mode = render_mode
        self._render_size = int(render_size)
        self.metadata = {**type(self).metadata, "render_fps": the_suite.control_hz}
        self._wordings: tuple[str, ...] = ()  # of the command now in force
        self._language: tuple[str, NDArray[Any] | str] | None = None  # text and its encoding
        self._wordings_rng: np.random.Generator | None = None
        self._change = AS_IS  # what the simulator shows
        self._next_change = AS_IS

    @property
    def paraphrase(self) -> bool | str:
        """The keyword `paraphrase`."""
        return self._paraphrase

    @property
    def perturbs(self) -> tuple[str, ...]:
        """Which of `"camera"` and `"light"` `perturb` can change on this simulator."""
        return self._info.perturbs

    def perturb(self, change: VisualChange) -> None:
        """Show the next episode, and only it, with moved cameras or another light.

        From the next reset to the one after, in all pictures. States, rewards and draws stay what
        they are. Several calls before a reset add up.

        Args:
            change: cameras by their contract's names.

        Raises:
            InvalidOption: the simulator cannot.
            UnknownName: there is no such camera.
        """
        asked = {"camera": bool(change.cameras), "light": change.light is not None}
        lacking = [kind for kind, wanted in asked.items() if wanted and kind not in self.perturbs]
        if lacking:
            raise InvalidOption(
                f"{self.spec_sheet.id}: the simulator {self._info.name!r} cannot change "
                f"{' and '.join(lacking)}; it can change {', '.join(self.perturbs) or 'nothing'}"
            )
        for camera in change.cameras:
            _check_name("camera", camera, self._layout.cameras, self.spec_sheet.id)
        cameras, light = self._next_change
        self._next_change = VisualChange({**cameras, **change.cameras}, change.light or light)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        The same seed and options give the same episode, bit for bit, whatever ran before. Without
        a seed, the next episode of the env's own random stream starts.

        Args:
            seed: of the env's random stream; None goes on with it.
            options: the suite's own, see `vla_gym.registration.get_suite(name).options`.

        Raises:
            UnknownName: an option does not exist.
            InvalidOption: an option has a value that is not valid.
            SimulatorCrashed: with `on_crash="restart"`, a fresh simulator crashed too.
        """
        change, self._next_change = self._next_change, AS_IS
        if self._closed:
            raise ClosedEnvironmentError(f"{self.spec_sheet.id} is closed; make a new one")
        super().reset(seed=seed)
        if seed is not None or self._wordings_rng is None:
            # A stream of its own, so that paraphrase=True leaves the simulator's draws as they are.
            (self._wordings_rng,) = self.np_random.spawn(1)
        options = dict(options or {})
        for name in options:
            _check_name("reset option", name, self._suite.options, self.spec_sheet.id)
        episode_seed = int(self.np_random.integers(2**31))
        self._episode = "none"
        frame = self._start_episode(episode_seed, options, change)
        self._wordings = ()  # drawn anew, also where the command is the last episode's
        self._speak(frame.instructions or (self._task.instruction, *self._task.paraphrases))
        self._episode, self._actions = "running", 0
        info = self._make_info(frame)
        info["episode_seed"] = episode_seed
        info["instructions"] = self._wordings
        return self._observe(frame), info

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply one action for one control step.

        Args:
            action: shape and meaning as `spec_sheet.action` says, each entry in [-1, 1].

        Returns:
            observation, reward, terminated, truncated (here only in an action mode or a suite with
            a time limit of its own: `gym.make` adds the task's), info.

        Raises:
            InvalidAction: wrong shape or not finite; the simulator never sees it.
            ResetNeeded: there is no running episode.
            SimulatorCrashed: unless `on_crash="restart"`.
        """
        if self._episode != "running" or self._simulator is None:
            if self._closed:
                raise ClosedEnvironmentError(f"{self.spec_sheet.id} is closed; make a new one")
            why = {
                "none": "no episode is running",
                "terminated": "the episode has ended (terminated=True)",
                "truncated": "the episode has ended (the suite's own time limit)",
                "crashed": "the episode has ended (its simulator crashed)",
            }[self._episode]
            raise ResetNeeded(f"step() of {self.spec_sheet.id}: {why}; call reset() first")
        checked = check_action(action, self._mode.entries, self.spec_sheet.id)
        try:
            frame = self._simulator.step(self._mode.to_native(checked))
        except SimulatorCrashed as error:
            if not self._restarts:
                raise
            return self._end_crashed(error)
        if frame.instructions:
            self._speak(frame.instructions)
        reward = float(frame.success) if self._sparse else float(frame.reward)
        success_ends = frame.success and self.spec_sheet.terminate_on_success
        terminated = bool(frame.terminated or success_ends)
        if terminated:
            self._episode = "terminated"
        elif frame.truncated:
            self._episode = "truncated"
        self._actions += 1
        beyond = self._mode.horizon is not None and self._actions >= self._mode.horizon
        truncated = bool(frame.truncated or beyond)
        return self._observe(frame), reward, terminated, truncated, self._make_info(frame)

    def render(self) -> NDArray[np.uint8] | None:
        """Return the primary camera's picture, uint8 (render_size, render_size, 3), upright."""
        if self.render_mode is None:
            gym.logger.warn(
                f"render() of {self.spec_sheet.id} returns nothing without a render mode; "
                'make it with render_mode="rgb_array"'
            )
            return None
        return self.render_camera("primary")

    def render_camera(self, camera: str, size: int | None = None) -> NDArray[np.uint8]:
        """Return the picture of any camera of the layout at any size, uint8 (size, size, 3)."""
        if self._closed:
            raise ClosedEnvironmentError(f"{self.spec_sheet.id} is closed; make a new one")
        if self._episode == "none":
            raise ResetNeeded(f"render of {self.spec_sheet.id}: call reset() first")
        _check_name("camera", camera, self._layout.cameras, self.spec_sheet.id)
        size = self._render_size if size is None else size
        _check_size("size", size, self.spec_sheet.id)
        if self._simulator is None:  # crashed: wrappers that film an env draw its last step too
            return np.zeros((size, size, 3), np.uint8)
        return np.array(self._simulator.render(camera, size, size))

    @property
    def simulator_versions(self) -> dict[str, str]:
        """Versions of Python, numpy, the simulator's packages and sources, where it runs.

        With `python=...` this starts the simulator if it does not run yet: only its own
        interpreter knows.
        """
        info = self._info
        sources = {} if info.find_sources is None else info.find_sources(self._setup.keywords)
        if self._python is None:
            return {**find_versions(info.distributions), **sources}
        if self._simulator is None:
            if self._closed:
                raise ClosedEnvironmentError(f"{self.spec_sheet.id} is closed; make a new one")
            self._simulator = self._open()
        assert isinstance(self._simulator, RemoteSimulator)
        return {**self._simulator.versions, **sources}

    def close(self) -> None:
        """Free the simulator. Safe to call more than once."""
        simulator, self._simulator, self._closed = self._simulator, None, True
        if simulator is not None:
            simulator.close()

    def __repr__(self) -> str:
        return f"<VLAEnv {self.spec_sheet.id} on {self.spec_sheet.simulator}>"

    def _open(self) -> Simulator:
        self._change = AS_IS
        if self._python is not None:
            return RemoteSimulator(
                self._python,
                self._info.entry_point,
                self._setup,
                self._info.distributions,
                self._timeout_s,
            )
        module, _, name = self._info.entry_point.partition(":")
        return getattr(importlib.import_module(module), name)(self._setup)

    def _start_episode(self, seed: int, options: dict[str, Any], change: VisualChange) -> Frame:
        try:
            return self._reset_simulator(seed, options, change)
        except SimulatorCrashed as error:
            if not self._restarts:
                raise
            logger.warning("%s: trying once more after a crash: %s", self.spec_sheet.id, error)
            self._discard()
        try:
            return self._reset_simulator(seed, options, change)
        except SimulatorCrashed:
            self._discard()
            raise

    def _reset_simulator(self, seed: int, options: dict[str, Any], change: VisualChange) -> Frame:
        if self._simulator is None:
            self._simulator = self._open()
        if change != self._change:
            cast(PerturbableSimulator, self._simulator).perturb(change)
            self._change = change
        return self._simulator.reset(seed, options)

    def _end_crashed(
        self, error: SimulatorCrashed
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Return what a step returns whose simulator crashed: the episode has no outcome."""
        logger.warning("%s: the episode ends as crashed: %s", self.spec_sheet.id, error)
        self._discard()
        self._episode = "crashed"
        assert self._last is not None
        info = {**self._name_episode(), "success": False, "crashed": True, "crash": str(error)}
        return copy.deepcopy(self._last), 0.0, False, True, info

    def _discard(self) -> None:
        """Free a simulator that has crashed; the next reset opens a fresh one."""
        simulator, self._simulator = self._simulator, None
        if simulator is not None:
            with contextlib.suppress(Exception):  # it may be in any state
                simulator.close()

    def _speak(self, wordings: tuple[str, ...]) -> None:
        """Give the command of these wordings, canonical first; the same ones change nothing."""
        if wordings == self._wordings:
            return
        self._wordings = wordings
        text = wordings[0]
        if self._paraphrase:
            assert self._wordings_rng is not None
            first = int(self._paraphrase == "always")
            if first == len(wordings):
                raise InvalidOption(
                    f"paraphrase='always' of {self.spec_sheet.id}: the command {text!r}, now in "
                    "force, has no other wording"
                )
            text = wordings[int(self._wordings_rng.integers(first, len(wordings)))]
        if self._language is None or self._language[0] != text:
            self._language = (text, encode(text, self.spec_sheet.instruction))

    def _observe(self, frame: Frame) -> Observation:
        assert self._language is not None
        encoded = self._language[1]
        observation: Observation = {
            f"rgb_{camera}": np.array(frame.images[camera]) for camera in self._setup.images
        }
        observation["proprio"] = np.array(frame.proprio, dtype=np.float32)
        observation["instruction"] = encoded if isinstance(encoded, str) else encoded.copy()
        if self._setup.state:
            observation["state"] = np.array(frame.state, dtype=np.float64)
        if self._restarts:
            self._last = copy.deepcopy(observation)
        return observation

    def _make_info(self, frame: Frame) -> dict[str, Any]:
        return {**frame.info, **self._name_episode(), "success": bool(frame.success)}

    def _name_episode(self) -> dict[str, Any]:
        assert self._language is not None
        return {
            "instruction": self._language[0],
            "suite": self._suite.name,
            "task": self._task.name,
            "simulator": self._info.name,
        }


def _check_name(
    kind: str, name: object, valid: Mapping[str, Any] | Sequence[str], where: str
) -> None:
    if name not in valid:
        raise UnknownName(kind, name, valid, where)


def _check_size(name: str, value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InvalidOption(f"{name}={value!r} of {where} must be a whole number of pixels")
    if not 1 <= value <= MAX_IMAGE_SIZE:
        raise InvalidOption(f"{name}={value} of {where} must be in [1, {MAX_IMAGE_SIZE}] pixels")


def _read_sizes(
    image_size: int | Mapping[str, int], cameras: tuple[str, ...], where: str
) -> dict[str, int]:
    """Return camera -> size, from one size for all or one for each."""
    if not isinstance(image_size, Mapping):
        _check_size("image_size", image_size, where)
        return dict.fromkeys(cameras, int(image_size))
    if set(image_size) != set(cameras):
        raise InvalidOption(
            f"image_size={dict(image_size)!r} of {where} must name the cameras that are observed, "
            f"which are {cameras}, or be one number for all"
        )
    for camera in cameras:
        _check_size(f"image_size[{camera!r}]", image_size[camera], where)
    return {camera: int(image_size[camera]) for camera in cameras}


def _check_timeout(value: Any, python: str | None, where: str) -> None:
    if value is None:
        return
    if python is None:
        raise InvalidOption(
            f"timeout_s={value!r} of {where} needs python=...: a simulator in this process cannot "
            "be stopped. python=sys.executable gives it a process of its own"
        )
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 < float(value) <= MAX_TIMEOUT_S:
        raise InvalidOption(
            f"timeout_s={value!r} of {where} must be a number of seconds above 0, at most "
            f"{MAX_TIMEOUT_S:.0f}"
        )


def _check_flag(name: str, value: object, where: str) -> None:
    if not isinstance(value, bool | np.bool_):
        raise InvalidOption(f"{name}={value!r} of {where} must be True or False")


def _check_paraphrase(value: object, task: Task, where: str) -> None:
    if isinstance(value, str):
        if value != "always":
            raise UnknownName("paraphrase", value, ("always",), where)
        if not task.paraphrases:
            raise InvalidOption(
                f"paraphrase='always' of {where}: the task has no wording but {task.instruction!r}"
            )
    elif not isinstance(value, bool | np.bool_):
        raise InvalidOption(f"paraphrase={value!r} of {where} must be True or False, or 'always'")


def _check_keywords(suite: Suite, keywords: dict[str, Any], where: str) -> dict[str, Any]:
    """Return all of the suite's keywords, those given and the defaults of the rest."""
    for name, value in keywords.items():
        if name not in suite.keywords:
            raise UnknownKeyword(name, suite.keywords, where)
        choices = suite.keywords[name].choices
        if choices is None:
            if value is not None and not isinstance(value, str):
                raise InvalidOption(f"{name}={value!r} of {where} must be a text or None")
        elif value not in choices:
            raise UnknownName(name, value, choices, where)
    return {name: keywords.get(name, word.default) for name, word in suite.keywords.items()}


def choose_simulator(
    suite: Suite,
    task: Task,
    asked: str = "auto",
    python: str | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> SimulatorInfo:
    """Return the simulator to use: `"auto"` takes the first of the suite that can run the task.

    With another interpreter (`python`), what is installed in this one says nothing. `keywords` are
    all of the suite's; None is their defaults.

    Raises:
        UnknownName: the suite has no simulator of that name.
        DependencyNotInstalled: none that was asked for can run here; the message has the steps.
    """
    where = suite.id(task.name)
    if asked != "auto":
        _check_name("simulator", asked, ["auto", *(info.name for info in suite.simulators)], where)
    obstacles = []
    for info in suite.simulators:
        if asked not in ("auto", info.name):
            continue
        if info.tasks is not None and task.name not in info.tasks:
            obstacles.append(
                f"the simulator {info.name!r} does not have this task (it has {len(info.tasks)} of "
                f"{len(suite.tasks)}; `vla-gym list '{suite.name}-*'` shows which)"
            )
            continue
        obstacle = None if python is not None else find_obstacle(suite, info, keywords)
        if obstacle is None:
            if info.stand_in_for and asked == "auto":
                _warn_of_stand_in(suite, info)
            return info
        obstacles.append(obstacle)
    raise DependencyNotInstalled(f"{where} cannot run here: " + "; ".join(obstacles))


def find_obstacle(
    suite: Suite, info: SimulatorInfo, keywords: Mapping[str, Any] | None = None
) -> str | None:
    """Return why a simulator cannot run in this process and what to do, or None where it can.

    Args:
        suite: whose simulator it is.
        info: the simulator.
        keywords: all of the suite's; None is their defaults.
    """
    missing = find_missing(info.modules)
    if missing is not None:
        return (
            f"the simulator {info.name!r} needs the package {missing!r}, which is not installed. "
            f"Run: pip install 'vla-gym[{info.extra}]'"
        )
    if info.find_obstacle is None:
        return None
    if keywords is None:
        keywords = {name: word.default for name, word in suite.keywords.items()}
    return info.find_obstacle(keywords)


_warned: set[str] = set()


def _warn_of_stand_in(suite: Suite, info: SimulatorInfo) -> None:
    if suite.name in _warned:
        return
    _warned.add(suite.name)
    warnings.warn(
        f"{suite.name} runs on {info.name!r}, our own stand-in for {info.stand_in_for!r}, which "
        f"cannot run here: its scores are not {suite.name} results. "
        f"simulator={info.stand_in_for!r} says how to get the original, "
        f"simulator={info.name!r} silences this",
        StandInWarning,
        stacklevel=5,  # the caller of gym.make
    )
