"""Opens the twin that stands in for CALVIN's PyBullet simulator, in MuJoCo. Not CALVIN.

What is the same: measures, joints and sizes of the four play tables, the robot's kinematics, the
cameras, actions, observations, tasks and their rules. What is not: the physics is another, the
bodies are primitives, the arm collides with its hand and fingers alone.
"""

from __future__ import annotations

from vla_gym.errors import InvalidOption
from vla_gym.suite import Setup
from vla_gym.suites.calvin.simulator import CalvinSimulator
from vla_gym.twins.calvin.table import TwinTable

__all__ = ["open_twin"]


def open_twin(setup: Setup) -> CalvinSimulator:
    """Return one task of CALVIN on the twin.

    Raises:
        InvalidOption: a keyword has a value that only the original simulator knows.
    """
    keywords = setup.keywords
    if keywords["renderer"] != "mujoco" or keywords["calvin_env_root"] is not None:
        raise InvalidOption(
            f"renderer={keywords['renderer']!r} and calvin_env_root="
            f"{keywords['calvin_env_root']!r} are for simulator='pybullet', but this env runs on "
            "the twin. Make it with simulator='pybullet', which says what it lacks, or without them"
        )
    return CalvinSimulator(setup, TwinTable(keywords["scene"], setup.render_quality))
