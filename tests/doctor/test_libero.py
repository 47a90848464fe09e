"""What models of LIBERO declare, judged in LIBERO: nothing where it is right, else its name."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from vla_gym_policies.libero_presets import OPENPI_SPEC

from tests.doctor.clone import Clone
from vla_gym.doctor import diagnose
from vla_gym.doctor.trajectories import play
from vla_gym.policy import connect, make_policy
from vla_gym.policy.conversions import ActionConversion, ObservationConversion
from vla_gym.rollout import add_batch_axis

pytestmark = [pytest.mark.slow, pytest.mark.needs("libero", "openpi")]

SIZE, STEPS, WIDE = 60, 1500, 12
PRESET = replace(OPENPI_SPEC, image_size=SIZE, drawn_size=None, resize=None, image_turn="mirrored")
"""What `openpi-libero` and `pi0-libero` declare, with small pictures."""
OF_ANY_SUITE = replace(PRESET, proprio="eef", proprio_rotation="axis-angle", suites=None)
"""The same from the proprio that every suite has."""


class Padded(Clone):
    """As π0: any state is padded with zeros, so that a wrong one raises no error."""

    def _features(self, batch):
        proprio = np.zeros((len(batch["proprio"]), WIDE))
        proprio[:, : batch["proprio"].shape[1]] = batch["proprio"]
        seen = (self._shrink(batch) - self.mean) @ self.axes.T
        low, spread = (
            np.append(known, np.full(WIDE - len(known), other))
            for known, other in ((self.low, 0.0), (self.spread, 1.0))
        )
        return np.concatenate([seen, (proprio - low) / spread], axis=1)


class Declared:
    """A policy that declares something else than it was trained with."""

    def __init__(self, policy, **fields):
        self.policy, self.spec = policy, replace(policy.spec, **fields)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        cameras = zip(self.policy.spec.cameras, self.spec.cameras, strict=True)
        seen = observation | {f"rgb_{one}": observation[f"rgb_{other}"] for one, other in cameras}
        return self.policy.predict(seen, state, episode_start, deterministic)


def learn(spec):
    """Return an env and an imitator of the expert, learned in the convention of a spec."""
    env = gym.make(
        "VLA/LIBERO-Spatial0-v0", state=True, render_quality="fast", **spec.env_keywords()
    )
    sheet = env.unwrapped.spec_sheet
    expert = connect(make_policy("libero-expert"), sheet)
    seen, said = ObservationConversion(spec, sheet), ActionConversion(spec, sheet)

    def translate(observation):
        batch = seen.to_policy(add_batch_axis(observation))
        return {key: value[0] for key, value in batch.items() if key != "state"}

    learned = [
        replace(
            t,
            observations=[translate(observation) for observation in t.observations],
            wanted=said.to_policy(np.clip(t.wanted, -1, 1)),
        )
        for t in play(env, expert, STEPS, 60, seed=10_000)
    ]
    clone = Padded(spec.cameras, SIZE, horizon=4, execute=2)
    clone.spec = spec
    return env, clone.learn(learned)


@pytest.fixture(scope="module")
def preset():
    env, clone = learn(PRESET)
    yield env, clone
    env.close()


def failures(diagnosis):
    return [f.fault for f in diagnosis.findings if f.verdict == "fail"]


def test_the_preset_passes(preset):
    env, clone = preset
    found = diagnose(clone, env, steps=200)
    assert found.reference == "libero-expert" and failures(found) == []
    for probe in ("agreement", "picture orientation", "channel order", "camera order"):
        assert found[probe].verdict == "pass", found[probe]
    assert found["gripper sign"].verdict == "pass", found["gripper sign"]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"image_turn": "upright"}, "mirrored pictures"),
        ({"image_turn": "upside down"}, "rotated 180 pictures"),
        ({"image_turn": "rotated 180"}, "upside down pictures"),
        ({"cameras": ("wrist", "primary")}, "swapped cameras"),
        ({"gripper": "+1 opens"}, "inverted gripper"),
        ({"gripper": "1 opens, 0 closes"}, "inverted gripper"),
    ],
)
def test_a_field_that_is_not_the_presets_is_named(preset, fields, fault):
    env, clone = preset
    assert failures(diagnose(Declared(clone, **fields), env, steps=200)) == [fault]


def test_a_quaternion_where_the_state_had_an_axis_angle_is_named():
    env, clone = learn(OF_ANY_SUITE)
    try:
        right = diagnose(clone, env, steps=200)
        wrong = diagnose(Declared(clone, proprio_rotation="quaternion xyzw"), env, steps=200)
    finally:
        env.close()
    assert failures(right) == [] and right["proprio form"].verdict == "pass", right["proprio form"]
    assert failures(wrong) == ["quaternion xyzw for axis-angle in proprio"]
