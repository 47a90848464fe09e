"""Demonstrations that RLBench has stored on disk, read without RLBench and without trusting them.

Two layouts are read, RLBench's own and that of PerAct's data sets:

    <root>/<task>/variation<N>/variation_descriptions.pkl
    <root>/<task>/variation<N>/episodes/episode<M>/
    <root>/<task>/all_variations/episodes/episode<M>/  (variation_number.pkl and
                                                        variation_descriptions.pkl are in it)

An episode folder has `low_dim_obs.pkl` and for each camera `<camera>_rgb/`, `<camera>_depth/` and
`<camera>_mask/` with one PNG per frame, from `0.png` on. The pickles go through an unpickler that
knows the few names which such files need and refuses every other; it decodes arrays from their raw
bytes itself.

RLBench's licence forbids to pass its data on, so none is part of this package.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_gym.contract import eef_proprio
from vla_gym.data.demos import Demonstration, InvalidDemonstration, natural_key
from vla_gym.deps import require
from vla_gym.errors import InvalidOption, UnknownName
from vla_gym.rotations import quaternion_to_matrix, quaternion_to_vector, vector_to_quaternion
from vla_gym.suite import Task
from vla_gym.suites import rlbench as suite
from vla_gym.suites.coppeliasim import clean
from vla_gym.suites.rlbench_tasks import VARIATIONS

__all__ = [
    "CAMERAS",
    "Episode",
    "find_excess",
    "find_keyposes",
    "list_episodes",
    "point_cloud",
    "read_demonstrations",
    "read_episode",
    "to_demonstration",
]

logger = logging.getLogger(__name__)

CAMERAS = ("left_shoulder", "right_shoulder", "overhead", "wrist", "front")
"""RLBench's names of its cameras."""

_LOW_DIM = "low_dim_obs.pkl"
_DESCRIPTIONS = "variation_descriptions.pkl"
_VARIATION = "variation_number.pkl"
_IMAGES = ("rgb", "depth", "mask", "point_cloud")

_DEPTH_STEPS = 2**24 - 1
"""A depth picture holds 24 bits: 0 is the near plane, this the far plane."""

_TOLERANCE = 1e-6
"""An action this little beyond [-1, 1] is a rounding error of the division by its scale."""

_LARGEST = 1e9
"""No number of a robot is as large [m, rad, N]: a damaged file's may be, and would overflow."""

_BASE_M = np.array(suite.BASE_POSITION_M)

BEYOND = ("raise", "clip", "split")
_SPLITTABLE = ("ee_delta", "native")
"""Action modes that say how far to move, so that a motion can be done in several steps."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One stored episode of N frames as RLBench recorded it: its units, frames and names.

    Attributes:
        path: of its folder.
        task: RLBench's name, for example `"reach_target"`.
        variation: number of the variation, None where neither a folder nor a file says it.
        instructions: wordings of the command; empty where the data set has none that is usable.
        low_dim: field of RLBench's Observation -> array (N, ...), of those that were recorded:
            `gripper_pose` (N, 7) xyz [m] and quaternion xyzw in the world frame, `gripper_open`
            (N,), `joint_positions` (N, 7) [rad], `joint_velocities` (N, 7) [rad/s], ...
        rgb: camera -> uint8 (N, H, W, 3).
        depth_m: camera -> float32 (N, H, W), distance along the viewing direction [m].
        mask: camera -> int64 (N, H, W), the simulator's number of the object seen.
        intrinsics: camera -> float64 (N, 3, 3), with negative focal lengths [pixels].
        extrinsics: camera -> float64 (N, 4, 4), camera to world; the camera looks along +z.
        random_seed: state of NumPy's global generator with which the episode began, None if absent.
    """

    path: Path
    task: str
    variation: int | None
    instructions: tuple[str, ...]
    low_dim: Mapping[str, NDArray[np.float64]]
    rgb: Mapping[str, NDArray[np.uint8]]
    depth_m: Mapping[str, NDArray[np.float32]]
    mask: Mapping[str, NDArray[np.int64]]
    intrinsics: Mapping[str, NDArray[np.float64]]
    extrinsics: Mapping[str, NDArray[np.float64]]
    random_seed: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        """Return N, the number of frames."""
        return len(next(iter(self.low_dim.values())))

    def need(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the field `name` of `low_dim`, of `shape` and sane size in every frame.

        Raises:
            InvalidDemonstration: it was not recorded, has another shape, is not finite or is huge.
        """
        if name not in self.low_dim:
            raise InvalidDemonstration(
                f"{self.path} has no {name}; it was recorded with {', '.join(self.low_dim)}"
            )
        values = self.low_dim[name]
        if values.shape[1:] != shape:
            raise InvalidDemonstration(
                f"{self.path}: {name} has the shape {values.shape[1:]} in each frame, not {shape}"
            )
        wild = ~(np.abs(values) < _LARGEST)  # also where a value is not a number
        if wild.any():
            frame = int(np.argwhere(wild)[0][0])
            raise InvalidDemonstration(
                f"{self.path}: {name} of frame {frame} is not finite or beyond {_LARGEST:g}"
            )
        return values


def list_episodes(root: str | os.PathLike[str]) -> list[Path]:
    """Return the episode folders below `root`, in the order of their names, numbers by value.

    Args:
        root: of a data set, or the folder of one task or one variation in it.

    Raises:
        InvalidDemonstration: there is none.
    """
    root = Path(os.path.abspath(root))
    inside = "episodes/episode[0-9]*"
    found = [
        path
        for pattern in (inside, f"*/{inside}", f"*/*/{inside}")
        for path in root.glob(pattern)
        if path.is_dir()
        and re.fullmatch(r"episode\d+", path.name)
        and re.fullmatch(r"variation\d+|all_variations", _group_of(path).name)
    ]
    if not found:
        raise InvalidDemonstration(
            f"{root} has no RLBench episodes; expected <task>/variation<N>/{inside} or "
            f"<task>/all_variations/{inside} in it"
        )
    return sorted(found, key=lambda path: natural_key(path.as_posix()))


def read_episode(
    path: str | os.PathLike[str],
    cameras: Sequence[str] | None = None,
    *,
    depth: bool = False,
    masks: bool = False,
) -> Episode:
    """Read one episode folder.

    Known faults of data sets do no harm: descriptions that are no texts (RLBench's own test
    episodes), no variation index, no count of reset attempts, missing folders of cameras that were
    not asked for.

    Args:
        path: of the folder.
        cameras: RLBench's names of the cameras to read; `()` reads no picture, None reads every
            camera whose pictures the episode has.
        depth: whether to read the depth of these cameras.
        masks: whether to read their masks.

    Raises:
        UnknownName: RLBench has no such camera.
        InvalidDemonstration: what was asked for is missing or damaged, or a pickle holds a name
            that such files do not need; the message names the episode.
        DependencyNotInstalled: pictures need Pillow.
    """
    path = Path(os.path.abspath(path))  # its parts say the task; a link may be among them
    if not (path / _LOW_DIM).is_file():
        raise InvalidDemonstration(
            f"{path} is no RLBench episode: "
            + (f"it has no {_LOW_DIM}" if path.is_dir() else "there is no such folder")
        )
    if cameras is None:
        cameras = [camera for camera in CAMERAS if (path / f"{camera}_rgb").is_dir()]
    cameras = (cameras,) if isinstance(cameras, str) else tuple(cameras)
    for camera in cameras:
        if camera not in CAMERAS:
            raise UnknownName("camera", camera, CAMERAS, "RLBench")
    demo = _load_pickle(path / _LOW_DIM)
    frames = _read_frames(demo, path)
    misc = [_read_misc(frame, number, path) for number, frame in enumerate(frames)]

    def stack_misc(camera: str, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        key = f"{camera}_camera_{name}"
        return _stack([values.get(key) for values in misc], f"misc[{key!r}]", path, shape)

    depth_m = {}
    for camera in cameras if depth else ():
        near, far = (stack_misc(camera, name, ())[:, None, None] for name in ("near", "far"))
        steps = _read_numbers(path, camera, "depth", len(frames), (65536, 256, 1))
        depth_m[camera] = (near + steps / _DEPTH_STEPS * (far - near)).astype(np.float32)
    calibrated = [camera for camera in CAMERAS if f"{camera}_camera_extrinsics" in misc[0]]
    seed = vars(demo).get("random_seed")
    return Episode(
        path=path,
        task=_group_of(path).parent.name,
        variation=_read_variation(path, misc[0]),
        instructions=_read_instructions(path),
        low_dim=_stack_low_dim(frames, path),
        rgb={camera: _read_pictures(path, camera, "rgb", len(frames)) for camera in cameras},
        depth_m=depth_m,
        mask={
            camera: _read_numbers(path, camera, "mask", len(frames), (1, 256, 65536))
            for camera in (cameras if masks else ())
        },
        intrinsics={camera: stack_misc(camera, "intrinsics", (3, 3)) for camera in calibrated},
        extrinsics={camera: stack_misc(camera, "extrinsics", (4, 4)) for camera in calibrated},
        random_seed=tuple(map(_value_of, seed)) if isinstance(seed, tuple) else None,
    )


def to_demonstration(
    episode: Episode,
    action_mode: str = "ee_delta",
    cameras: Sequence[str] = ("primary", "wrist"),
    *,
    image_size: int | None = None,
    proprio: str = "eef",
    state: bool = False,
    beyond: str = "raise",
    instructions: Sequence[str] = (),
) -> Demonstration:
    """Turn a stored episode into observations and actions as the suite's envs have them.

    RLBench stores no actions. Those here follow from each frame and the next: the motion of the
    tip (`ee_delta`), of the joints (`native`), the joints (`joint_position`) or the tip's pose
    (`keypose`) that was reached, and whether the gripper is open then. In `keypose` the frames are
    the first and those of `find_keyposes`, in the other modes all of them, 50 ms apart.

    RLBench stores an episode when it has solved the task: reward and success come with the last
    step.

    Args:
        episode: from `read_episode`, with the pictures of `cameras`.
        action_mode: one of the suite's.
        cameras: contract names: `"primary"` is RLBench's front camera.
        image_size: height and width to which pictures are resized; None leaves them as they are.
        proprio: `"eef"` or `"joints"`, as for `gym.make`.
        state: whether to add the `state` of the original simulator.
        beyond: what happens where an action does not fit into [-1, 1]:
            `"raise"` refuses the episode;
            `"clip"` clips its entries, as the env does, so that the actions move less than the
            frames do;
            `"split"` (`ee_delta` and `native` only) does the motion in as many equal steps as it
            needs, so that the actions lead to the recorded poses: the proprio between the two
            frames is interpolated, pictures and state stay those of the first, the gripper moves in
            the last step.
            `find_excess` says which steps they are, `source` of the result how many.
        instructions: wordings to use instead of the data set's own. Where it has none, the task's
            are used if they fit the episode's variation.

    Raises:
        UnknownName: there is no such task, camera, action mode or option.
        InvalidDemonstration: the episode lacks what is needed, or `beyond="raise"` found steps.
        InvalidOption: `beyond="split"` in a mode of absolute targets.
    """
    task = _find_task(episode)
    _check_name("action_mode", action_mode, tuple(_ENCODERS))
    _check_name("proprio form", proprio, ("eef", "joints"))
    _check_name("value of beyond", beyond, BEYOND)
    if beyond == "split" and action_mode not in _SPLITTABLE:
        raise InvalidOption(
            f"beyond='split' works in {' and '.join(_SPLITTABLE)}; {action_mode} says where to be, "
            "not how far to move. Take 'clip' or 'raise'"
        )
    track = _read_track(episode, action_mode)
    actions = _encode(track, action_mode)
    excess = _find_excess(actions)
    note = ""
    if len(excess):
        note = f"{len(excess)} of {len(actions)} steps go beyond [-1, 1] in {action_mode}"
        if beyond == "raise":
            raise InvalidDemonstration(
                f"{episode.path}: {note}, the first is step {excess[0]}, the largest entry is "
                f"{np.abs(actions).max():.3g}. beyond='clip' clips them"
                + (", beyond='split' does them in several" if action_mode in _SPLITTABLE else "")
            )
        logger.info("%s: %s (%s)", episode.path, note, beyond)
        note = f"; {note} ({beyond})"
        if beyond == "split":
            track = _split(track, actions)
            actions = _encode(track, action_mode)
    actions = np.clip(actions, -1.0, 1.0)
    cameras = (cameras,) if isinstance(cameras, str) else tuple(cameras)
    observations: dict[str, NDArray[Any]] = {"proprio": _make_proprio(track, proprio)}
    for camera in cameras:
        observations[f"rgb_{camera}"] = _get_pictures(episode, camera, image_size)[track.frame]
    if state:
        observations["state"] = _make_state(episode)[track.frame]
    wordings = tuple(instructions) or episode.instructions or _wordings_of(task, episode)
    steps = len(actions)
    keywords: dict[str, Any] = {"cameras": cameras, "proprio": proprio, "state": state}
    if cameras:
        keywords["image_size"] = observations[f"rgb_{cameras[0]}"].shape[1]
    return Demonstration(
        id=suite.SUITE.id(task.name),
        action_mode=action_mode,
        instruction=wordings[0],
        instructions=wordings,
        observations=observations,
        actions=actions,
        rewards=np.eye(1, steps, steps - 1, dtype=np.float32)[0],
        successes=np.eye(1, steps, steps - 1, dtype=np.bool_)[0],
        success=True,
        terminated=True,
        options={} if episode.variation is None else {"variation": episode.variation},
        keywords=keywords,
        source=f"RLBench data set: {_describe(episode.path)}{note}",
        simulator="coppeliasim",
    )


def read_demonstrations(
    root: str | os.PathLike[str],
    action_mode: str = "ee_delta",
    cameras: Sequence[str] = ("primary", "wrist"),
    **options: Any,
) -> Iterator[Demonstration]:
    """Yield all episodes below `root` as demonstrations, one in memory at a time.

    Args:
        root: as for `list_episodes`.
        action_mode: as for `to_demonstration`.
        cameras: as for `to_demonstration`; pictures of no others are read.
        **options: further ones of `to_demonstration`.
    """
    cameras = (cameras,) if isinstance(cameras, str) else tuple(cameras)
    native = [_native_camera(camera) for camera in cameras]
    for path in list_episodes(root):
        yield to_demonstration(read_episode(path, native), action_mode, cameras, **options)


def find_excess(episode: Episode, action_mode: str = "ee_delta") -> NDArray[np.int64]:
    """Return the numbers of the steps whose action does not fit into [-1, 1]."""
    _check_name("action_mode", action_mode, tuple(_ENCODERS))
    return _find_excess(_encode(_read_track(episode, action_mode), action_mode))


def find_keyposes(
    episode: Episode, *, still_rad_s: float = 0.1, pause_frames: int = 4
) -> list[int]:
    """Return the frames whose poses, reached one after the other, make up the episode.

    As in C2F-ARM (James et al. 2022) and PerAct (Shridhar et al. 2022), a frame is a key pose if

    - the gripper has opened or closed since the frame before, or
    - the arm stands still: no joint is faster than `still_rad_s`, the gripper's state is the same
      from two frames before to one frame after, and no stop was found in the last `pause_frames`
      frames, or
    - it is the last.

    The first frame is none, but a stop there counts for the pause. If the last two key poses are
    neighbours, the earlier one is dropped. PerAct's published code compares the gripper in frames
    0 and 1 with that at the episode's end (a negative index); here the first frame stands for what
    was before it.
    """
    is_open = _read_open(episode)
    still = np.all(np.abs(episode.need("joint_velocities", (7,))) <= still_rad_s, axis=1)
    last = len(episode) - 1
    keyposes = []
    pause = 0
    for i in range(last + 1):
        around = is_open[max(i - 2, 0) : i + 2]
        stopped = bool(pause <= 0 and still[i] and (around == is_open[i]).all())
        pause = pause_frames if stopped else pause - 1
        if i > 0 and (stopped or i == last or is_open[i] != is_open[i - 1]):
            keyposes.append(i)
    if len(keyposes) > 1 and keyposes[-2] == last - 1:
        del keyposes[-2]
    return keyposes


def point_cloud(
    depth_m: ArrayLike, intrinsics: ArrayLike, extrinsics: ArrayLike
) -> NDArray[np.float64]:
    """Return the point in the world that each pixel shows [m], shape (..., H, W, 3).

    Args:
        depth_m: distance along the viewing direction, shape (..., H, W).
        intrinsics: shape (..., 3, 3), focal lengths negative as RLBench stores them: its pictures
            stand upright, while the camera's x axis points left and its y axis up.
        extrinsics: camera to world, shape (..., 4, 4).

    The centre of a pixel lies at its whole-numbered (column, row); half a pixel is not added.
    """
    depth = np.asarray(depth_m, dtype=np.float64)
    k, pose = np.asarray(intrinsics, np.float64), np.asarray(extrinsics, np.float64)
    rows, columns = np.mgrid[: depth.shape[-2], : depth.shape[-1]]

    def entry(row: int, column: int) -> NDArray[np.float64]:
        return k[..., row, column, None, None]

    y = (rows - entry(1, 2)) / entry(1, 1)
    x = (columns - entry(0, 2) - entry(0, 1) * y) / entry(0, 0)
    camera = np.stack(np.broadcast_arrays(x * depth, y * depth, depth), axis=-1)
    turned = np.einsum("...ij,...hwj->...hwi", pose[..., :3, :3], camera)
    return turned + pose[..., None, None, :3, 3]


@dataclass(frozen=True)
class _Track:
    """What the robot does over the M observations of a demonstration.

    Attributes:
        position_m: (M, 3), world.
        quaternion: (M, 4) xyzw, world, unit.
        joints: (M, 7) [rad].
        velocities: (M, 7) of the joints [rad/s].
        opening: (M,), in [0, 1].
        open: (M,) bool.
        frame: (M,) the episode's frame whose pictures and state are shown.
    """

    position_m: NDArray[np.float64]
    quaternion: NDArray[np.float64]
    joints: NDArray[np.float64]
    velocities: NDArray[np.float64]
    opening: NDArray[np.float64]
    open: NDArray[np.bool_]
    frame: NDArray[np.int64]


def _read_track(episode: Episode, action_mode: str) -> _Track:
    pose = episode.need("gripper_pose", (7,))
    norm = np.linalg.norm(pose[:, 3:], axis=1, keepdims=True)
    odd = np.flatnonzero(np.abs(norm - 1) > 1e-3)
    if len(odd):
        raise InvalidDemonstration(
            f"{episode.path}: the quaternion in gripper_pose of frame {odd[0]} has the length "
            f"{norm[odd[0], 0]:.4g}, not 1"
        )
    is_open = _read_open(episode)
    opening = is_open.astype(np.float64)
    if "gripper_joint_positions" in episode.low_dim:
        fingers = episode.need("gripper_joint_positions", (2,))
        opening = np.clip(fingers.mean(axis=1) / suite.FINGER_TRAVEL_M, 0.0, 1.0)
    frame = np.arange(len(episode))
    if action_mode == "keypose":
        frame = np.array([0, *find_keyposes(episode)])
    if len(frame) < 2:
        raise InvalidDemonstration(f"{episode.path} has a single frame, from which no step follows")
    return _Track(
        position_m=pose[frame, :3],
        quaternion=(pose[:, 3:] / norm)[frame],
        joints=episode.need("joint_positions", (7,))[frame],
        velocities=episode.need("joint_velocities", (7,))[frame],
        opening=opening[frame],
        open=is_open[frame],
        frame=frame,
    )


def _read_open(episode: Episode) -> NDArray[np.bool_]:
    return episode.need("gripper_open", ()) > 0.5


def _encode_ee_delta(track: _Track, t: int) -> NDArray[np.float32]:
    rotation = _rotation_between(track.quaternion[t], track.quaternion[t + 1])
    moved = track.position_m[t + 1] - track.position_m[t]
    return suite.encode_ee_delta(moved, rotation, bool(track.open[t + 1]))


def _encode_joint_velocity(track: _Track, t: int) -> NDArray[np.float32]:
    velocities = (track.joints[t + 1] - track.joints[t]) * suite.CONTROL_HZ
    return suite.encode_joint_velocity(velocities, bool(track.open[t + 1]))


def _encode_joint_position(track: _Track, t: int) -> NDArray[np.float32]:
    return suite.encode_joint_position(track.joints[t + 1], bool(track.open[t + 1]))


def _encode_keypose(track: _Track, t: int) -> NDArray[np.float32]:
    return suite.encode_keypose(
        track.position_m[t + 1], track.quaternion[t + 1], bool(track.open[t + 1])
    )


_ENCODERS = {
    "ee_delta": _encode_ee_delta,
    "native": _encode_joint_velocity,
    "joint_position": _encode_joint_position,
    "keypose": _encode_keypose,
}
"""Action mode -> the action that leads from observation t of a track to the next."""


def _encode(track: _Track, action_mode: str) -> NDArray[np.float32]:
    encode = _ENCODERS[action_mode]
    return np.stack([encode(track, t) for t in range(len(track.frame) - 1)])


def _find_excess(actions: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.flatnonzero(np.abs(actions).max(axis=1) > 1.0 + _TOLERANCE)


def _split(track: _Track, actions: NDArray[np.float32]) -> _Track:
    """Return the track with further observations where an action is too large for one step."""
    largest = np.abs(actions).max(axis=1)
    pieces = [max(1, math.ceil(value - _TOLERANCE)) for value in largest]
    # Row of the new track -> the old observation before it, and how far it is to the next.
    before = np.array([t for t, n in enumerate(pieces) for _ in range(n)] + [len(pieces)])
    part = np.array([i / n for n in pieces for i in range(n)] + [0.0])
    after = np.minimum(before + 1, len(pieces))

    def blend(values: NDArray[np.float64]) -> NDArray[np.float64]:
        weight = part.reshape(-1, *(1,) * (values.ndim - 1))
        return values[before] + weight * (values[after] - values[before])

    turned = []
    for first, second, share in zip(before, after, part, strict=True):
        start = track.quaternion[first]
        rotation = share * _rotation_between(start, track.quaternion[second])
        turned.append(_multiply(vector_to_quaternion(rotation), start))
    return _Track(
        position_m=blend(track.position_m),
        quaternion=np.stack(turned),
        joints=blend(track.joints),
        velocities=blend(track.velocities),
        opening=track.opening[before],
        open=track.open[before],
        frame=track.frame[before],
    )


def _rotation_between(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the rotation vector r with R_second = exp(r) R_first, of unit quaternions xyzw."""
    inverse = first * np.array([-1.0, -1.0, -1.0, 1.0])
    return quaternion_to_vector(_multiply(second, inverse))


def _multiply(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the product of two quaternions xyzw: the right one's rotation, then the left one's."""
    vector = left[3] * right[:3] + right[3] * left[:3] + np.cross(left[:3], right[:3])
    return np.append(vector, left[3] * right[3] - left[:3] @ right[:3])


def _make_proprio(track: _Track, form: str) -> NDArray[np.float32]:
    if form == "joints":
        columns = [track.joints, track.velocities, track.opening[:, None]]
        return np.concatenate(columns, axis=1).astype(np.float32)
    rows = [
        eef_proprio(position - _BASE_M, quaternion_to_matrix(quaternion), float(opening))
        for position, quaternion, opening in zip(
            track.position_m, track.quaternion, track.opening, strict=True
        )
    ]
    return np.stack(rows).astype(np.float32)


def _make_state(episode: Episode) -> NDArray[np.float64]:
    """Return the frames' `state` as `suite.COPPELIASIM_STATE_DIM` describes it."""
    count = len(episode)
    task = episode.low_dim.get("task_low_dim_state")
    if task is None:
        raise InvalidDemonstration(f"{episode.path} was recorded without task_low_dim_state")
    task = episode.need("task_low_dim_state", task.shape[1:]).reshape(count, -1)
    room = suite.TASK_STATE_DIM - task.shape[1]
    if room < 0:
        raise InvalidDemonstration(
            f"{episode.path}: task_low_dim_state has {task.shape[1]} numbers, state has room for "
            f"{suite.TASK_STATE_DIM}"
        )
    columns = [
        episode.need(f"joint_{name}", (7,)) for name in ("positions", "velocities", "forces")
    ]
    columns += [_read_open(episode)[:, None], episode.need("gripper_pose", (7,)), task]
    return np.concatenate([*columns, np.zeros((count, room))], axis=1)


def _get_pictures(episode: Episode, camera: str, size: int | None) -> NDArray[np.uint8]:
    native = _native_camera(camera)
    if native not in episode.rgb:
        raise InvalidDemonstration(
            f"{episode.path} was read without the pictures of {camera!r} (RLBench's {native!r}); "
            f"it has {', '.join(map(repr, episode.rgb)) or 'none'}"
        )
    pictures = episode.rgb[native]
    if size is None or pictures.shape[1:3] == (size, size):
        return pictures
    if pictures.shape[1] != pictures.shape[2]:
        raise InvalidDemonstration(
            f"{episode.path}: pictures of {pictures.shape[1]} x {pictures.shape[2]} pixels would "
            f"be distorted by image_size={size}; take None"
        )
    image = require("PIL.Image", "eval", "resizing RLBench's pictures")
    return np.stack(
        [
            np.asarray(image.fromarray(p).resize((size, size), image.Resampling.BICUBIC))
            for p in pictures
        ]
    )


def _native_camera(camera: str) -> str:
    _check_name("camera", camera, tuple(suite.CAMERAS))
    return suite.CAMERAS[camera].native


def _check_name(kind: str, name: str, valid: tuple[str, ...]) -> None:
    if name not in valid:
        raise UnknownName(kind, name, valid, "RLBench demonstrations")


def _find_task(episode: Episode) -> Task:
    tasks = {task.native: task for task in suite.SUITE.tasks.values()}
    if episode.task not in tasks:
        raise UnknownName("task", episode.task, tasks, f"RLBench ({episode.path})")
    return tasks[episode.task]


def _wordings_of(task: Task, episode: Episode) -> tuple[str, ...]:
    """Return the task's own wordings, which are those of its variation 0."""
    if episode.variation == 0 or VARIATIONS[task.name] == 1:
        return (task.instruction, *task.paraphrases)
    raise InvalidDemonstration(
        f"{episode.path} has no usable {_DESCRIPTIONS}, and the wordings of {task.native} depend "
        f"on its variation (here {episode.variation}); give instructions=..."
    )


def _group_of(path: Path) -> Path:
    """Return the folder `variation<N>` or `all_variations` that an episode lies in."""
    return path.parent.parent


def _describe(path: Path) -> str:
    return f"{_group_of(path).parent.name}/{_group_of(path).name}/{path.name}"


def _read_variation(path: Path, misc: Mapping[str, Any]) -> int | None:
    named = re.fullmatch(r"variation(\d+)", _group_of(path).name)
    if named:
        return int(named.group(1))
    file = path / _VARIATION
    value = _load_pickle(file) if file.is_file() else misc.get("variation_index")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise InvalidDemonstration(f"{path}: its variation is no whole number from 0 on")
    return value


def _read_instructions(path: Path) -> tuple[str, ...]:
    """Return the wordings, none where the file is missing or is no list of texts."""
    for file in (path / _DESCRIPTIONS, _group_of(path) / _DESCRIPTIONS):
        if file.is_file():
            value = _load_pickle(file)
            if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
                logger.info("%s holds no texts; left out", file)
                return ()
            return clean(value)
    return ()


def _read_frames(demo: Any, path: Path) -> list[dict[str, Any]]:
    """Return the fields of each frame's Observation."""
    frames = vars(demo).get("_observations") if isinstance(demo, _Record) else None
    if not isinstance(frames, list) or not all(isinstance(frame, _Record) for frame in frames):
        raise InvalidDemonstration(
            f"{path / _LOW_DIM} holds no rlbench.demo.Demo made of Observations"
        )
    if not frames:
        raise InvalidDemonstration(f"{path / _LOW_DIM} holds no frame")
    return [vars(frame) for frame in frames]


def _read_misc(frame: Mapping[str, Any], number: int, path: Path) -> dict[str, Any]:
    misc = frame.get("misc")
    if misc is None:
        return {}
    if not isinstance(misc, dict):
        raise InvalidDemonstration(f"{path}: misc of frame {number} is no dict")
    return {key: _value_of(value) for key, value in misc.items() if isinstance(key, str)}


def _stack_low_dim(
    frames: Sequence[Mapping[str, Any]], path: Path
) -> dict[str, NDArray[np.float64]]:
    low_dim = {}
    for name in frames[0]:
        if not isinstance(name, str) or name == "misc" or name.endswith(_IMAGES):
            continue
        values = [_value_of(frame.get(name)) for frame in frames]
        if any(value is not None for value in values):
            low_dim[name] = _stack(values, name, path)
    if not low_dim:
        raise InvalidDemonstration(f"{path / _LOW_DIM}: its frames are empty")
    return low_dim


def _stack(
    values: Sequence[Any], what: str, path: Path, shape: tuple[int, ...] | None = None
) -> NDArray[np.float64]:
    """Return one value per frame as one array; all must be numbers of the same shape."""
    arrays = []
    for number, value in enumerate(values):
        if not isinstance(value, np.ndarray | float | int):
            raise InvalidDemonstration(
                f"{path}: {what} of frame {number} "
                + ("is missing" if value is None else f"is of type {type(value).__name__}")
            )
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":  # a whole number of more than 64 bits
            raise InvalidDemonstration(f"{path}: {what} of frame {number} is no number")
        array = array.astype(np.float64)
        shape = array.shape if shape is None else shape
        if array.shape != shape:
            raise InvalidDemonstration(
                f"{path}: {what} of frame {number} has the shape {array.shape}, not {shape}"
            )
        arrays.append(array)
    return np.stack(arrays)


def _read_pictures(path: Path, camera: str, kind: str, count: int) -> NDArray[np.uint8]:
    """Return a folder's pictures, shape (count, H, W, 3)."""
    folder = path / f"{camera}_{kind}"
    if not folder.is_dir():
        there = sorted(p.name for p in path.iterdir() if p.is_dir())
        raise InvalidDemonstration(
            f"{path} has no {folder.name}; its folders: {', '.join(there) or 'none'}"
        )
    found = {file.name for file in folder.glob("*.png")}
    expected = [f"{i}.png" for i in range(count)]
    if found != set(expected):
        odd = min(found.symmetric_difference(expected), key=natural_key)
        raise InvalidDemonstration(
            f"{path}: {folder.name} has {len(found)} pictures, {_LOW_DIM} has {count} frames "
            f"(0.png to {count - 1}.png); the first {'missing' if odd not in found else 'extra'} "
            f"one is {odd}"
        )
    image = require("PIL.Image", "eval", "reading RLBench's pictures")
    pictures = []
    for name in expected:
        try:
            with image.open(folder / name, formats=("PNG",)) as opened:
                mode = opened.mode
                picture = np.array(opened)
        except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
            raise InvalidDemonstration(f"{folder / name} is no whole PNG: {error}") from error
        if mode != "RGB":
            raise InvalidDemonstration(f"{folder / name} has the mode {mode}, not RGB of 8 bits")
        if pictures and picture.shape != pictures[0].shape:
            raise InvalidDemonstration(
                f"{folder / name} has {picture.shape[:2]} pixels, 0.png has {pictures[0].shape[:2]}"
            )
        pictures.append(picture)
    return np.stack(pictures)


def _read_numbers(
    path: Path, camera: str, kind: str, count: int, weights: tuple[int, int, int]
) -> NDArray[np.int64]:
    """Return the whole numbers that the three bytes of each pixel stand for."""
    # Not in uint8, which has no 256: NumPy 1 would wrap around and NumPy 2 refuse.
    return _read_pictures(path, camera, kind, count).astype(np.int64) @ np.array(weights)


class _Record:
    """What stands for an instance of a class of RLBench: its attributes and nothing else."""


class _DType:
    """A NumPy type as pickled: one of plain numbers."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?([fiu][1248]|b1)", code):
            raise pickle.UnpicklingError(f"an array of type {code!r}, not of plain numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subarray, names, fields, size, alignment, flags): of a plain type
        # only the byte order says anything.
        if not isinstance(state, tuple) or len(state) < 5 or any(x is not None for x in state[2:5]):
            raise pickle.UnpicklingError("an array with fields")
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"an array of byte order {state[1]!r}")
        if state[1] != "|":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A NumPy array as pickled, filled from its raw bytes."""

    value: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array of unknown form")
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: str) -> None:
        if not isinstance(dtype, _DType) or not isinstance(raw, bytes | bytearray):
            raise pickle.UnpicklingError("an array that is not made of bytes")
        whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not whole or math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array of shape {shape!r} with {len(raw)} bytes")
        flat = np.frombuffer(raw, dtype.dtype)
        native = flat.astype(flat.dtype.newbyteorder("="))
        self.value = native.reshape(shape, order="F" if order == "F" else "C")


def _value_of(value: Any) -> Any:
    """Return what an unpickled value stands for: arrays and plain values."""
    return value.value if isinstance(value, _Array) else value


def _make_known_names() -> dict[tuple[str, str], Any]:
    """Return what stands for each name that an episode's pickles may use; all of it stores data.

    Made anew for each file: a pickle can set attributes of what it is given, and what one file sets
    must not reach the next.
    """

    def make_dtype(code: Any, align: Any = False, copy: Any = False) -> _DType:
        del align, copy
        return _DType(code)

    def make_array(kind: Any, shape: Any, code: Any) -> _Array:
        del shape, code  # placeholders: the true ones come with the state
        if kind != "numpy.ndarray":
            raise pickle.UnpicklingError("an array of another class")
        return _Array()

    def make_filled_array(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        array = _Array()
        array.fill(raw, dtype, shape, order)
        return array

    def make_scalar(dtype: Any, raw: Any) -> Any:
        value = make_filled_array(raw, dtype, (), "C").value
        assert value is not None
        return value.item()

    known: dict[tuple[str, str], Any] = {
        ("rlbench.demo", "Demo"): type("Demo", (_Record,), {}),
        ("rlbench.backend.observation", "Observation"): type("Observation", (_Record,), {}),
        ("numpy", "ndarray"): "numpy.ndarray",
        ("numpy", "dtype"): make_dtype,
    }
    for core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
        known[f"{core}.multiarray", "_reconstruct"] = make_array
        known[f"{core}.multiarray", "scalar"] = make_scalar
        known[f"{core}.numeric", "_frombuffer"] = make_filled_array  # pickle protocol 5
    return known


class _Unpickler(pickle._Unpickler):
    """Opens what RLBench has pickled; a name that such files do not need is refused.

    It builds on the unpickler that is written in Python: a damaged index makes the other one ask
    for gigabytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._names = _make_known_names()

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a known name.

        Raises:
            UnpicklingError: it is not known; what it stands for elsewhere is not even imported.
        """
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(
                f"the name {module}.{name}, which no RLBench episode needs; nothing was run"
            )
        return self._names[module, name]


def _load_pickle(path: Path) -> Any:
    """Return the content of a pickle, arrays as `_Array`, instances as `_Record`."""
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except (
        pickle.UnpicklingError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        MemoryError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise InvalidDemonstration(f"{path} is damaged or refused ({error})") from error
