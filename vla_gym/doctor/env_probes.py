"""Does the env do what it says? Moves the hand and looks, with whatever wrapper stands between."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vla_gym.contract import SpecSheet
from vla_gym.doctor.findings import Finding
from vla_gym.rotations import rotation_vector

__all__ = ["probe_env"]

Array = NDArray[np.float64]

STEPS = 4
"""Steps of each motion."""
GRIPPER_STEPS = 12
MOST_STALE = 3
"""Steps by which proprio may lag for it to be noticed."""
SLOWEST, FASTEST = 0.05, 3.0
"""Of what the spec sheet says. It is what is commanded: robosuite's arm does a fifth of it."""


def probe_env(env: gym.Env[Any, Any], seed: int) -> tuple[list[Finding], dict[str, Any]]:
    """Return what is found about an env in one short episode, and the pictures looked at."""
    sheet: SpecSheet = env.unwrapped.spec_sheet  # type: ignore[attr-defined]  # ours
    observation, _ = env.reset(seed=seed)
    shown = {k: v for k, v in observation.items() if k.startswith("rgb_")}
    findings = _compare_pictures(env, sheet, shown)
    pictures = {f"seen_{k.removeprefix('rgb_')}": v for k, v in shown.items()}
    if sheet.action_mode != "ee_delta" or sheet.proprio_form != "eef":
        why = f"action_mode={sheet.action_mode!r}, proprio={sheet.proprio_form!r}"
        names = ("translation", "rotation", "gripper", "proprio in time", "picture's up")
        return findings + [Finding(f"env: {n}", "not applicable", why) for n in names], pictures
    walk = _Walk(env, sheet, seed)
    moved, rising = walk.go_along(range(3))
    turned, _ = walk.go_along(range(3, 6)) if sheet.action[3].scale else (None, [])
    findings.append(_judge_motion("env: translation", moved, sheet.action[0].scale, "m"))
    if turned is None:
        findings.append(
            Finding("env: rotation", "not applicable", "this robot cannot turn its wrist")
        )
    else:
        findings.append(_judge_motion("env: rotation", turned, sheet.action[3].scale, "rad"))
    findings.append(_judge_gripper(*walk.open_and_close()))
    findings.append(_judge_time(walk.log))
    findings.append(_judge_up(rising))
    if rising and rising[0] is not None:
        pictures["rising_primary"] = np.hstack(rising[:: max(len(rising) // 6, 1)])
    return findings, pictures


class _Moment(NamedTuple):
    """What was observed, and what the env below all wrappers reported in the same step."""

    proprio: Array
    inner: Array
    picture: Any


class _Tap:
    """Keeps what an env's own `step` returns, whatever wrappers make of it."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self.observation: Any = None

    def __enter__(self) -> None:
        step = self._env.step

        def tapped(action: Any) -> Any:
            result = step(action)
            self.observation = result[0]
            return result

        self._env.step = tapped

    def __exit__(self, *error: object) -> None:
        del self._env.step  # the method of the class is there again


class _Walk:
    """Moves the hand and remembers proprio and pictures of each step."""

    def __init__(self, env: gym.Env[Any, Any], sheet: SpecSheet, seed: int) -> None:
        self._env, self._sheet, self._seed = env, sheet, seed
        self._tap = _Tap(env.unwrapped)
        self.log: list[list[_Moment]] = []

    def restart(self) -> None:
        observation, _ = self._env.reset(seed=self._seed)
        self.log.append([])
        self._remember(observation, observation)
        self.hold(2)

    def _remember(self, observation: Any, inner: Any) -> None:
        outer, inner = (np.asarray(o["proprio"], np.float64) for o in (observation, inner))
        self.log[-1].append(_Moment(outer, inner, observation.get("rgb_primary")))

    def hold(self, steps: int, entry: int = 0, value: float = 0.0) -> None:
        """Say one entry for some steps; the gripper stays open."""
        for _ in range(steps):
            action = np.zeros(len(self._sheet.action), np.float32)
            action[6::7] = 1.0
            action[entry] = value if entry % 7 == 6 or value else action[entry]
            with self._tap:
                observation, _, terminated, truncated, _ = self._env.step(action)
            self._remember(observation, self._tap.observation)
            if terminated or truncated:
                self.restart()

    @property
    def proprio(self) -> Array:
        return self.log[-1][-1].proprio

    def go_along(self, entries: range) -> tuple[Array, list[Any]]:
        """Return what +1 of each entry does to the hand, (3, 3), and pictures on the way up."""
        effect, shown = np.zeros((3, 3)), []
        for column, entry in enumerate(entries):
            ways = []
            for sign in (1.0, -1.0):
                self.restart()
                before = self.proprio
                self.hold(STEPS, entry, sign)
                self.hold(1)
                ways.append(sign * _difference(before, self.proprio, entries.start >= 3))
                if entry == 2:
                    part = [moment.picture for moment in self.log[-1][2:]]
                    shown = [*part[::-1], *shown] if sign < 0 else [*shown, *part]
            # Something may be in the way on one side.
            effect[:, column] = max(ways, key=lambda way: float(np.linalg.norm(way)))
        return effect / STEPS, shown

    def open_and_close(self) -> tuple[float, float]:
        """Return the opening after +1 and after -1."""
        self.restart()
        self.hold(GRIPPER_STEPS, 6, 1.0)
        opened = float(self.proprio[9])
        self.hold(GRIPPER_STEPS, 6, -1.0)
        return opened, float(self.proprio[9])


def _difference(before: Array, after: Array, turn: bool) -> Array:
    if not turn:
        return after[:3] - before[:3]
    one, other = (
        np.stack([p[3:6], p[6:9], np.cross(p[3:6], p[6:9])], axis=1) for p in (before, after)
    )
    return rotation_vector(other @ one.T)


def _judge_motion(probe: str, effect: Array, scale: float, unit: str) -> Finding:
    """Compare what each entry does, (3, 3) a column each, with what the spec sheet says."""
    names = ("dx", "dy", "dz") if unit == "m" else ("drx", "dry", "drz")
    sizes = np.linalg.norm(effect, axis=0)
    words = ", ".join(
        f"+{n} moves by ({', '.join(f'{v:+.4f}' for v in effect[:, i])}) {unit} per step"
        for i, n in enumerate(names)
    )
    words += f"; the sheet says {scale:g} {unit} along its own axis"
    moves = sizes > 0.1 * scale
    if not moves.any():
        return Finding(probe, "fail", words, "the hand does not move", "see the action's path")
    along = np.diag(effect)[moves] / sizes[moves]
    if (along < 0.7).any():
        return Finding(
            probe,
            "fail",
            words,
            f"wrong {probe.removeprefix('env: ')} axes",
            "the env, or a wrapper around it, does not move the hand in the robot's base frame",
        )
    if not moves.all():
        return Finding(probe, "unknown", words + "; something is in the way of one axis")
    ratio = float(np.median(sizes / scale))
    if not SLOWEST < ratio < FASTEST:
        return Finding(
            probe,
            "fail",
            words,
            f"wrong {probe.removeprefix('env: ')} scale",
            f"a motion is {ratio:.3g} times what the spec sheet says",
        )
    return Finding(probe, "pass", words)


def _judge_gripper(opened: float, closed: float) -> Finding:
    words = f"opening {opened:.2f} after +1, {closed:.2f} after -1 ({GRIPPER_STEPS} steps each)"
    if opened - closed > 0.2:
        return Finding("env: gripper", "pass", words)
    if closed - opened > 0.2:
        return Finding(
            "env: gripper",
            "fail",
            words,
            "the env's gripper is inverted",
            "a wrapper negates the gripper entry, or the opening in proprio",
        )
    return Finding("env: gripper", "unknown", words + ": it hardly moves")


def _judge_time(log: list[list[_Moment]]) -> Finding:
    """Look whether the proprio observed is that which the env reported in the same step."""
    probe = "env: proprio in time"
    gaps = {}
    for lag in range(MOST_STALE + 1):
        pairs = [
            (later.proprio, earlier.inner)
            for episode in log
            for earlier, later in zip(episode[1:], episode[1 + lag :], strict=False)
        ]
        gaps[lag] = float(
            np.mean([np.abs(a - b).mean() if a.shape == b.shape else np.inf for a, b in pairs])
        )
    best = min(gaps, key=lambda lag: gaps[lag])
    words = f"differs from what the env reports in that step by {gaps[0]:.2g} on average"
    if gaps[0] < 1e-6:
        return Finding(probe, "pass", words)
    if best == 0 or gaps[best] > 0.1 * gaps[0]:
        return Finding(probe, "unknown", words + ": a wrapper changes it")
    return Finding(
        probe,
        "fail",
        words + f", from that {best} step(s) before by {gaps[best]:.2g}",
        "stale proprio of the env",
        "a wrapper shows the proprio of an earlier step",
    )


def _judge_up(rising: list[Any]) -> Finding:
    """Look whether what moves in the picture moves up while the hand does."""
    probe = "env: picture's up"
    if not rising or rising[0] is None:
        return Finding(probe, "not applicable", "no primary picture")
    shifts = [_find_shift(one, other) for one, other in itertools.pairwise(rising)]
    down = float(np.mean([shift[0] for shift in shifts]))
    doubt = float(np.std([shift[0] for shift in shifts]) / np.sqrt(len(shifts)))
    words = (
        f"while the hand rises, what moves in the picture goes {abs(down):.2f} +- {doubt:.2f} "
        f"pixels a step {'up' if down < 0 else 'down'}"
    )
    if down < -3 * doubt and down < -0.05:
        return Finding(probe, "pass", words)
    if down < 5 * doubt or down < 0.05:  # an elbow may sink while the hand rises
        return Finding(probe, "unknown", words)
    return Finding(
        probe, "fail", words, "the env's picture is upside down", "turn it, or drop a wrapper"
    )


def _find_shift(one: Any, other: Any) -> Array:
    """Return by how much what moves has moved, rows and columns [pixels].

    Least squares on the brightness gradients (Lucas and Kanade 1981), over the whole picture: what
    stands still has no part in it.
    """
    a, b = (_blur(picture.astype(np.float64).mean(axis=2)) for picture in (one, other))
    moving = np.abs(b - a) > 2.0
    if moving.sum() < 10:
        return np.zeros(2)
    gradient = np.stack(np.gradient((a + b) / 2), axis=-1)[moving]
    shift, *_ = np.linalg.lstsq(gradient, (a - b)[moving], rcond=None)
    return shift


def _blur(picture: Array) -> Array:
    """Return the means over 5 by 5 pixels, so that a shift of a pixel or two is a small one."""
    for axis in (0, 1):
        picture = np.mean([np.roll(picture, k, axis) for k in range(-2, 3)], axis=0)
    return picture


def _compare_pictures(
    env: gym.Env[Any, Any], sheet: SpecSheet, pictures: dict[str, Any]
) -> list[Finding]:
    """Compare the pictures observed with those that the env itself draws at this moment."""
    probe = "env: pictures as drawn"
    if not pictures:
        return [Finding(probe, "not applicable", "the env shows no pictures")]
    changes = {
        "as they are": lambda p: p,
        "upside down": lambda p: p[::-1],
        "mirrored": lambda p: p[:, ::-1],
        "rotated 180": lambda p: p[::-1, ::-1],
        "with red and blue swapped": lambda p: p[..., ::-1],
        "upside down, red and blue swapped": lambda p: p[::-1, :, ::-1],
        "rotated 180, red and blue swapped": lambda p: p[::-1, ::-1, ::-1],
    }
    turned, words = [], []
    for key, picture in pictures.items():
        camera = key.removeprefix("rgb_")
        if camera not in sheet.cameras or picture.ndim != 3:
            continue
        size = sheet.images[camera]
        drawn = np.asarray(env.unwrapped.render_camera(camera, size))  # type: ignore[attr-defined]
        if drawn.shape != picture.shape:
            words.append(f"{camera} has another size than the env draws ({picture.shape})")
            continue
        gaps = {
            name: float(np.abs(change(drawn).astype(float) - picture).mean())
            for name, change in changes.items()
        }
        best = min(gaps, key=lambda name: gaps[name])
        words.append(f"{camera} is drawn {best} ({gaps[best]:.1f} of 255 apart)")
        if best != "as they are" and gaps[best] < 0.5 * gaps["as they are"]:
            turned.append(f"{camera} {best}")
    if not turned:
        return [Finding(probe, "pass", "; ".join(words))]
    return [
        Finding(
            probe,
            "fail",
            "; ".join(words),
            f"a wrapper shows {', '.join(turned)}",
            "drop what turns or swaps between the env and the policy",
        )
    ]
