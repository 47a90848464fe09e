"""`check_contract(env)`: does an env keep the contract of `vla_gym.contract`?

For any suite's tests. One function a law: each plays the env and yields a sentence for everything
that it finds broken.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from vla_gym.contract import EE_DELTA, EEF_PROPRIO, INFO_KEYS, SpecSheet
from vla_gym.errors import ContractViolation, InvalidAction, InvalidOption, ResetNeeded
from vla_gym.instruction import Instruction, instruction_space

__all__ = ["check_contract"]

PROBE_STEPS = 4
"""Control steps for which an action entry is held to see what it moves."""


def check_contract(env: gym.Env[Any, Any], *, seed: int = 0, steps: int = 8) -> None:
    """Play an env and raise unless it keeps the whole contract.

    Looks at spaces, spec sheet, observations, info, determinism, memory, bad actions, the direction
    of every `ee_delta` entry, the gripper's sign and, where the env has a `spec`, at a second env
    made from that spec's JSON, which is closed. `env` itself stays open and needs a reset.

    Args:
        env: from `gym.make("VLA/...")`, wrapped or not.
        seed: of the episodes.
        steps: random actions of an episode.

    Raises:
        InvalidOption: the env has no spec sheet, so that it was not made to keep this contract.
        ContractViolation: the message lists what is broken.
    """
    bare: Any = env.unwrapped
    if not isinstance(getattr(bare, "spec_sheet", None), SpecSheet):
        raise InvalidOption(
            f"{env} has no spec_sheet of vla_gym, so there is no contract to check; register a "
            "Suite with vla_gym.register_suite, or this env with vla_gym.register_env, and make "
            "what is to be checked with gym.make"
        )
    problems: list[str] = []
    for law in _FIRST_LAWS:
        if not problems:
            problems += law(bare, seed, steps)
    if not problems:
        problems += [problem for law in _FURTHER_LAWS for problem in law(bare, seed, steps)]
    if problems:
        distinct = list(dict.fromkeys(problems))
        raise ContractViolation(
            f"{bare.spec_sheet.id} breaks the contract in {len(distinct)} place(s): "
            + "; ".join(distinct)
        )


def _check_spaces(env: Any, seed: int, steps: int) -> Iterator[str]:
    del seed, steps
    sheet: SpecSheet = env.spec_sheet
    wanted: dict[str, spaces.Space[Any]] = {
        f"rgb_{camera}": spaces.Box(0, 255, (size, size, 3), np.uint8)
        for camera, size in sheet.images.items()
    }
    wanted["proprio"] = spaces.Box(-np.inf, np.inf, (len(sheet.proprio),), np.float32)
    wanted["instruction"] = instruction_space(sheet.instruction)
    if sheet.state_dim is not None:
        wanted["state"] = spaces.Box(-np.inf, np.inf, (sheet.state_dim,), np.float64)
    found = env.observation_space
    if not isinstance(found, spaces.Dict) or set(found.spaces) != set(wanted):
        yield f"observation_space is {found}, wanted a Dict of {sorted(wanted)}"
    else:
        for key, space in wanted.items():
            if found[key] != space:
                yield f"observation_space[{key!r}] is {found[key]}, wanted {space}"
    action = spaces.Box(-1.0, 1.0, (len(sheet.action),), np.float32)
    if env.action_space != action:
        yield f"action_space is {env.action_space}, wanted {action}"


def _check_sheet(env: Any, seed: int, steps: int) -> Iterator[str]:
    del seed, steps
    sheet: SpecSheet = env.spec_sheet
    for kind, entries in (("action", sheet.action), ("proprio", sheet.proprio)):
        names = [entry.name for entry in entries]
        if len(set(names)) != len(names) or not all(names):
            yield f"the {kind} entries need names that differ: {names}"
        if not all(np.isfinite(entry.scale) for entry in entries):
            yield f"the {kind} entries need finite scales"
    if sheet.action_mode == "ee_delta":
        arms = len(sheet.action) // len(EE_DELTA)
        bare = [entry.name.rpartition("_")[2] for entry in sheet.action]
        if arms not in (1, 2) or bare != list(EE_DELTA) * arms:
            yield f"ee_delta has the entries {bare}, wanted {EE_DELTA} for each arm"
    if sheet.proprio_form == "eef":
        bare = [entry.name.rpartition("_")[2] for entry in sheet.proprio]
        wanted = [entry.name for entry in EEF_PROPRIO]
        if bare not in (wanted, 2 * wanted):
            yield f"proprio='eef' has the entries {bare}, wanted {wanted} for each arm"
    if sheet.horizon < 1 or sheet.control_hz <= 0:
        yield f"horizon={sheet.horizon} and control_hz={sheet.control_hz} must be positive"
    if not {"primary", "wrist"} <= set(sheet.all_cameras):
        yield f"the cameras are {sheet.all_cameras}; 'primary' and 'wrist' must be among them"
    try:
        json.dumps(sheet.to_dict())
    except (TypeError, ValueError) as error:
        yield f"spec_sheet.to_dict() is not plain JSON: {error}"


def _check_reset(env: Any, seed: int, steps: int) -> Iterator[str]:
    del steps
    observation, info = env.reset(seed=seed)
    yield from _check_observation(env, observation, "reset()")
    yield from _check_info(env, observation, info, "reset()")
    wordings = info.get("instructions")
    if not isinstance(wordings, tuple) or info.get("instruction") not in wordings:
        yield f"reset() info['instructions'] is {wordings!r}, wanted all wordings, this one among"
    elif not all(text in Instruction() and text.strip() for text in wordings):
        yield f"the wordings {wordings!r} must be printable ASCII of 1 to 256 characters"
    if not isinstance(info.get("episode_seed"), int):
        yield f"reset() info['episode_seed'] is {info.get('episode_seed')!r}, wanted an int"
    for camera in env.spec_sheet.cameras:
        if np.ptp(observation.get(f"rgb_{camera}", [0, 1])) == 0:
            yield f"the picture rgb_{camera} is of one colour"


def _check_steps(env: Any, seed: int, steps: int) -> Iterator[str]:
    env.reset(seed=seed)
    for action in _draw_actions(env, steps):
        observation, reward, terminated, truncated, info = env.step(action)
        yield from _check_observation(env, observation, "step()")
        yield from _check_info(env, observation, info, "step()")
        if type(reward) is not float or not np.isfinite(reward):
            yield f"step() returned the reward {reward!r}, wanted a finite float"
        if type(terminated) is not bool or type(truncated) is not bool:
            yield f"step() returned {terminated!r} and {truncated!r}, wanted two bools"
        if terminated:
            break


def _check_repeats(env: Any, seed: int, steps: int) -> Iterator[str]:
    """The same seed and actions give the same episode, after other episodes and in another env."""
    first = _play(env, seed, steps)
    _play(env, seed + 1, 2)
    yield from _compare(first, _play(env, seed, steps), "played again after another episode")
    if env.spec is None:
        return
    twin = gym.make(EnvSpec.from_json(env.spec.to_json()))
    try:
        yield from _compare(first, _play(twin.unwrapped, seed, steps), "in an env made from JSON")
    finally:
        twin.close()
    twin.close()  # a second time is allowed
    fresh = gym.make(EnvSpec.from_json(env.spec.to_json())).unwrapped
    try:
        fresh.step(np.zeros(fresh.action_space.shape or (), np.float32))
        yield "step() before the first reset() went through, wanted ResetNeeded"
    except ResetNeeded:
        pass
    finally:
        fresh.close()


def _check_memory(env: Any, seed: int, steps: int) -> Iterator[str]:
    """What a caller does to an observation must not reach the env, nor the other way round."""
    observation, _ = env.reset(seed=seed)
    kept = [observation]
    copies = [_copy(observation)]
    for action in _draw_actions(env, max(2, steps)):
        observation, _, terminated, _, _ = env.step(action)
        kept.append(observation)
        copies.append(_copy(observation))
        if terminated:
            break
    for key, value in kept[0].items():
        if isinstance(value, str):
            continue
        if any(np.shares_memory(a[key], b[key]) for a, b in itertools.pairwise(kept)):
            yield f"observations of two steps share the memory of {key!r}"
        if any(not np.array_equal(a[key], b[key]) for a, b in zip(kept, copies, strict=True)):
            yield f"{key!r} of an earlier observation has changed since"
    before = _play(env, seed, steps)
    for value in env.reset(seed=seed)[0].values():
        if isinstance(value, np.ndarray):
            value[...] = 0
    yield from _compare(before, _play(env, seed, steps), "after overwriting an observation")


def _check_actions(env: Any, seed: int, steps: int) -> Iterator[str]:
    del steps
    size = len(env.spec_sheet.action)
    start = _play(env, seed, 1)
    env.reset(seed=seed)
    for bad, what in (
        (np.full(size, np.nan, np.float32), "NaN"),
        (np.full(size, np.inf, np.float32), "inf"),
        (np.zeros(size + 1, np.float32), f"shape ({size + 1},)"),
        (np.zeros((1, size), np.float32), f"shape (1, {size})"),
    ):
        try:
            env.step(bad)
            yield f"an action of {what} went through, wanted InvalidAction"
        except InvalidAction:
            pass
    action = _draw_actions(env, 1)[0]
    given = action.copy()
    found = [env.reset(seed=seed)[0], env.step(action)[0]]
    yield from _compare(start, found, "after refused actions")
    if not np.array_equal(given, action):
        yield "step() changed the caller's action"
    ends = []
    for factor in (1.0, 7.0):
        env.reset(seed=seed)
        ends.append(env.step(np.full(size, factor, np.float32))[0])
    yield from _compare([ends[0]], [ends[1]], "with 7 in the place of 1 (values are clipped)")


def _check_directions(env: Any, seed: int, steps: int) -> Iterator[str]:
    """Each motion entry moves the hand along its own axis of the base frame, the right way."""
    del steps
    sheet: SpecSheet = env.spec_sheet
    if sheet.action_mode != "ee_delta" or sheet.proprio_form != "eef":
        return
    env.reset(seed=seed)
    for index, entry in enumerate(sheet.action):
        arm, axis = divmod(index, len(EE_DELTA))
        if axis == 6 or entry.scale == 0:
            continue
        # There, back beyond the start, and to the start: one reset serves all entries.
        there = _read_pose(_hold(env, index, 0.5, PROBE_STEPS, seed)["proprio"], arm)
        back = _read_pose(_hold(env, index, -0.5, 2 * PROBE_STEPS, seed)["proprio"], arm)
        _hold(env, index, 0.5, PROBE_STEPS, seed)
        _hold(env, index, 0.0, 2 * PROBE_STEPS, seed)  # come to rest before the next entry
        moved = there[0] - back[0] if axis < 3 else _rotation_between(there, back)
        if np.argmax(np.abs(moved)) != axis % 3 or moved[axis % 3] <= 0:
            yield (
                f"{entry.name}=+0.5 instead of -0.5 moved the end effector by {np.round(moved, 4)} "
                f"[{entry.unit}] in the robot base frame, wanted mostly +{'xyz'[axis % 3]}"
            )


def _check_gripper(env: Any, seed: int, steps: int) -> Iterator[str]:
    """+1 opens, -1 closes."""
    del steps
    sheet: SpecSheet = env.spec_sheet
    if sheet.action_mode != "ee_delta":
        return
    grippers = [i for i, entry in enumerate(sheet.action) if entry.name.endswith("gripper")]
    readings = [i for i, entry in enumerate(sheet.proprio) if entry.name.endswith("gripper")]
    env.reset(seed=seed)
    for action, reading in zip(grippers, readings, strict=True):
        if sheet.action[action].note.startswith("ignored"):
            continue
        wide, shut = (
            float(_hold(env, action, sign, 2 * PROBE_STEPS, seed)["proprio"][reading])
            for sign in (1.0, -1.0)
        )
        if wide <= shut:
            yield (
                f"{sheet.action[action].name}=+1 leaves the opening at {wide:.2f}, -1 then at "
                f"{shut:.2f}: +1 must open and -1 close"
            )


def _check_pictures(env: Any, seed: int, steps: int) -> Iterator[str]:
    del steps
    if env.render_mode != "rgb_array":
        return
    env.reset(seed=seed)
    picture = env.render()
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3:
        yield f"render() returned {type(picture).__name__}, wanted uint8 (H, W, 3)"


_FIRST_LAWS = (_check_spaces, _check_sheet, _check_reset, _check_steps)
"""Without one of these, what comes after it cannot be judged."""

_FURTHER_LAWS = (
    _check_repeats,
    _check_memory,
    _check_actions,
    _check_directions,
    _check_gripper,
    _check_pictures,
)


def _check_observation(env: Any, observation: dict[str, Any], where: str) -> Iterator[str]:
    sheet: SpecSheet = env.spec_sheet
    space = env.observation_space
    if set(observation) != set(space.spaces):
        yield f"{where} returned the keys {sorted(observation)}, wanted {sorted(space.spaces)}"
        return
    for key, value in observation.items():
        if isinstance(value, np.ndarray) and not np.isfinite(value).all():
            yield f"{where} {key!r} has entries that are not finite"
        elif value not in space[key]:
            yield f"{where} {key!r} is {_describe(value)}, which is not in {space[key]}"
    proprio = observation["proprio"]
    if sheet.proprio_form == "eef" and proprio in space["proprio"]:
        for arm in range(len(proprio) // len(EEF_PROPRIO)):
            rotation = _read_pose(proprio, arm)[1]
            if not np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-4):
                yield f"{where} proprio of arm {arm}: its two columns are not orthonormal"
            opening = proprio[len(EEF_PROPRIO) * (arm + 1) - 1]
            if not 0 <= opening <= 1:
                yield f"{where} proprio of arm {arm}: the opening {opening} is not in [0, 1]"


def _check_info(
    env: Any, observation: dict[str, Any], info: dict[str, Any], where: str
) -> Iterator[str]:
    sheet: SpecSheet = env.spec_sheet
    missing = [key for key in INFO_KEYS if key not in info]
    if missing:
        yield f"{where} info lacks {missing}"
        return
    if type(info["success"]) is not bool:
        yield f"{where} info['success'] is {info['success']!r}, wanted a bool"
    for key in ("suite", "task", "simulator"):
        if info[key] != getattr(sheet, key):
            yield f"{where} info[{key!r}] is {info[key]!r}, the sheet has {getattr(sheet, key)!r}"
    if sheet.instruction == "text" and observation["instruction"] != info["instruction"]:
        yield f"{where}: observation and info hold different instructions"


def _draw_actions(env: Any, count: int) -> NDArray[np.float32]:
    """Return the same `count` random actions for every env of this size, gentle ones."""
    rng = np.random.default_rng(count)
    return rng.uniform(-0.5, 0.5, (count, len(env.spec_sheet.action))).astype(np.float32)


def _play(env: Any, seed: int, steps: int) -> list[dict[str, Any]]:
    """Return the observations of an episode, with reward and success among their keys."""
    observation, info = env.reset(seed=seed)
    found = [{**observation, "reward": 0.0, "success": info["success"]}]
    for action in _draw_actions(env, steps):
        observation, reward, terminated, _, info = env.step(action)
        found.append({**observation, "reward": reward, "success": info["success"]})
        if terminated:
            break
    return found


def _compare(one: list[Any], other: list[Any], when: str) -> Iterator[str]:
    if len(one) != len(other):
        yield f"the same seed gave {len(one) - 1} steps, and {len(other) - 1} {when}"
        return
    for step, (first, second) in enumerate(zip(one, other, strict=True)):
        keys = first.keys() & second.keys()
        differing = [key for key in sorted(keys) if not np.array_equal(first[key], second[key])]
        if differing:
            yield f"the same seed gave another {', '.join(differing)} in step {step} {when}"
            return


def _hold(env: Any, index: int, value: float, steps: int, seed: int) -> dict[str, Any]:
    """Hold one entry of the action, and return the last observation; an ended episode restarts."""
    action = np.zeros(len(env.spec_sheet.action), np.float32)
    action[index] = value
    observation: dict[str, Any] = {}
    for _ in range(steps):
        observation, _, terminated, _, _ = env.step(action)
        if terminated:
            env.reset(seed=seed)
            break
    return observation


def _read_pose(
    proprio: NDArray[np.float32], arm: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return position (3,) and rotation matrix (3, 3) of one arm from `proprio="eef"`."""
    own = proprio[len(EEF_PROPRIO) * arm :][: len(EEF_PROPRIO)].astype(np.float64)
    first, second = own[3:6], own[6:9]
    return own[:3], np.stack([first, second, np.cross(first, second)], axis=1)


def _rotation_between(one: Any, other: Any) -> NDArray[np.float64]:
    """Return the direction of the rotation from `other` to `one`, base frame; not its angle."""
    turn = one[1] @ other[1].T
    return np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])


def _copy(observation: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, str) else value.copy() for key, value in observation.items()
    }


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {value.shape}"
    return repr(value)
