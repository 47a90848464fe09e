"""Envs as somebody else has them, and their declarations."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from vla_gym.adapt import Axis, Picture, Proprio, Source, register_env

STEP_M = 0.02
DOWN_WXYZ = np.array([0.0, 1.0, 0.0, 0.0])  # half a turn about x


class Tray(gym.Env):
    """A gripper over a tray with a ball; pictures are upside down, the gripper's entry closes."""

    def __init__(self, size=(48, 64)):
        self.size = tuple(size)
        box = gym.spaces.Box
        self.observation_space = gym.spaces.Dict(
            {
                "image": box(0, 255, (*self.size, 3), np.uint8),
                "arm": gym.spaces.Dict(
                    {
                        "position": box(-1, 1, (3,), np.float64),
                        "quaternion": box(-1, 1, (4,), np.float64),
                        "finger_gap": box(0, 0.08, (2,), np.float32),
                    }
                ),
                "ball": box(-1, 1, (3,), np.float64),
            }
        )
        self.action_space = box(-2.0, 2.0, (4,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ball = np.array([*self.np_random.uniform(-0.2, 0.2, 2), 0.0])
        self.color = str(self.np_random.choice(["red", "blue"]))
        self.position, self.gap = np.array([0.0, 0.0, 0.2]), 0.08
        return self.observe(), {"color": self.color, "command": f"touch the {self.color} ball"}

    def step(self, action):
        self.last_action = action
        self.position = np.clip(self.position + STEP_M / 2 * action[:3], -0.3, 0.3)
        self.gap = float(np.clip(self.gap - 0.02 * action[3], 0.0, 0.08))
        distance = float(np.linalg.norm(self.position - self.ball))
        return self.observe(), -distance, False, False, {"solved": distance < 0.05, "spare": [1]}

    def render(self):
        return None  # it has no render mode

    def observe(self):
        picture = np.full((*self.size, 3), 90, np.uint8)
        picture[: self.size[0] // 4] = 200  # the sky
        row, column = ((self.position[[2, 0]] + 0.4) / 0.8 * self.size).astype(int)
        picture[self.size[0] - 1 - row, column] = (255, 0, 0)
        return {
            "image": picture[::-1, ::-1].copy(),
            "arm": {
                "position": self.position.copy(),
                "quaternion": DOWN_WXYZ.copy(),
                "finger_gap": np.full(2, self.gap / 2, np.float32),
            },
            "ball": self.ball.copy(),
        }


class OldTray:
    """The same with gym 0.21's methods: `seed`, four results of a step."""

    metadata = {"render.modes": ["rgb_array"]}  # noqa: RUF012  gym's name

    def __init__(self):
        from gym import spaces

        self.tray = Tray()
        self.observation_space = spaces.Box(-1, 1, (7,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.next_seed = None

    def seed(self, seed=None):
        self.next_seed = seed
        return [seed]

    def reset(self):
        observation, _ = self.tray.reset(seed=self.next_seed)
        self.next_seed = None
        return self.flatten(observation)

    def step(self, action):
        observation, reward, _, _, info = self.tray.step(2.0 * action.astype(np.float64))
        return self.flatten(observation), reward, bool(info["solved"]), info

    def flatten(self, observation):
        arm = observation["arm"]
        return np.concatenate([arm["position"], observation["ball"], arm["finger_gap"][:1]])

    def render(self, mode="human"):
        return self.tray.observe()["image"][::-1, ::-1] if mode == "rgb_array" else None

    def close(self):
        pass


def make_planar_arm():
    from dm_control import suite

    return suite.load("reacher", "easy")


def find_finger(moment):
    return moment.env.physics.named.data.geom_xpos["finger"]


def is_near(moment):
    return moment.reward > 0.9


def fingertip(moment):
    """Reacher-v5's last two numbers are the fingertip minus the target, 4 and 5 the target."""
    values = moment.observation
    return np.array([*(values[8:10] + values[4:6]), 0.0])


TRAY = {
    "instruction": "touch the ball",
    "paraphrases": ("move the gripper to the ball",),
    "command": Source("command", info=True),
    "cameras": {"primary": Picture("image", turned="upside down")},
    "proprio": Proprio(
        position=Source(("arm", "position")),
        rotation=Source(("arm", "quaternion")),
        rotation_form="quaternion_wxyz",
        opening=Source(("arm", "finger_gap")),
        opened=0.04,
    ),
    "action": (
        *(Axis(name, STEP_M, unit="m") for name in ("dx", "dy", "dz")),
        Axis("gripper", sign=-1),
    ),
    "state": (Source("ball", size=3), Source(("arm", "finger_gap"), part=(0, 1))),
    "success": Source("solved", info=True),
    "success_rule": "the gripper is within 0.05 m of the ball",
    "horizon": 40,
    "control_hz": 10.0,
    "reward": "minus the distance to the ball [m]",
    "robot": "point",
}


def register_all():
    """Register the ids."""
    register_env("VLA/Own-Tray-v0", f"{__name__}:Tray", **TRAY)
    register_env("VLA/Own-BigTray-v0", f"{__name__}:Tray", env_kwargs={"size": [96, 96]}, **TRAY)
    old = {key: value for key, value in TRAY.items() if key != "command"}
    register_env(
        "VLA/OwnOld-Tray-v0",
        f"{__name__}:OldTray",
        api="gym-0.21",
        **{
            **old,
            "cameras": {"primary": "render()"},
            "proprio": Proprio(
                position=Source(part=(0, 3)), opening=Source(part=(6, 7)), opened=0.04
            ),
            "state": (Source(size=7),),
        },
    )
    register_env(
        "VLA/OwnReacher-Reach-v0",
        "Reacher-v5",
        env_kwargs={"render_mode": "rgb_array", "width": 64, "height": 64},
        instruction="reach the red ball",
        cameras={"primary": Picture("render()", note="from above")},
        proprio=Proprio(
            position=Source(function=f"{__name__}:fingertip"),
            positions=Source(part=(0, 2)),
            velocities=Source(part=(6, 8)),
        ),
        action=(Axis("torque0", unit="Nm"), Axis("torque1", unit="Nm")),
        state=(Source(size=10),),
        success=Source(function=f"{__name__}:is_near"),
        horizon=50,
        control_hz=50.0,
        reward="Reacher-v5's",
    )
    register_env(
        "VLA/OwnControl-Reach-v0",
        f"{__name__}:make_planar_arm",
        api="dm_env",
        instruction="reach the red ball",
        cameras={"primary": "render()"},
        proprio=Proprio(
            position=Source(function=f"{__name__}:find_finger"),
            positions=Source("position", size=2),
            velocities=Source("velocity", size=2),
        ),
        action=tuple(Axis(f"torque{i}", unit="Nm") for i in range(2)),
        state=(Source("position", size=2), Source("to_target", size=2)),
        success=Source(function=f"{__name__}:is_near"),
        horizon=100,
        control_hz=50.0,
        reward="dm_control's: 1 at the target, else 0",
    )
