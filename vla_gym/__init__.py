"""vla_gym: robot-manipulation benchmarks as Gymnasium envs with one observation and one action.

    import gymnasium as gym
    import vla_gym

    env = gym.make("VLA/MetaWorld-DrawerOpen")

Importing this registers every id, also those whose simulator is not installed. It imports
gymnasium, numpy and our own light files: no simulator, no torch.
"""

from vla_gym import registration
from vla_gym._version import __version__
from vla_gym.adapt import register_env
from vla_gym.conformance import check_contract
from vla_gym.contract import SpecSheet
from vla_gym.env import VLAEnv
from vla_gym.instruction import Instruction
from vla_gym.policy import Policy, PolicySpec, list_policies, make_policy
from vla_gym.registration import list_ids, register_suite
from vla_gym.vector import make_vec

__all__ = [
    "Instruction",
    "Policy",
    "PolicySpec",
    "SpecSheet",
    "VLAEnv",
    "__version__",
    "check_contract",
    "list_ids",
    "list_policies",
    "make_policy",
    "make_vec",
    "register_env",
    "register_suite",
]

registration.register_all()
