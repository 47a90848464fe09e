"""Parts of robosuite's controllers that take long for what they compute, computed with less.

25 times in a control step (environments/robot_env.py of 1.5.2, `_pre_action`) upstream asks three
times for the limits of the action, which never change, computes each Jacobian of the hand twice,
and looks up where the base is of a robot that is screwed to the floor, and how fast it moves. The
numbers here are the same, from the same operations in the same order: episodes stay equal to
upstream's, bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vla_gym.deps import require

__all__ = ["speed_up"]


def speed_up(env: Any) -> None:
    """Let the controllers of an upstream env compute faster. Each of its resets makes new ones."""
    data = env.sim.data
    still: dict[str, Any] = {}
    for robot in env.robots:
        composite = robot.composite_controller
        composite.__class__ = _fix_limits(type(composite))
        for controller in composite.part_controllers.values():
            if getattr(controller, "num_ref_sites", None) == 1 and controller.ref_name is not None:
                controller._update_single_reference = _Reference(controller)
        arms = [composite.part_controllers[arm] for arm in composite.arms]
        bases = [f"{arm.naming_prefix}{arm.part_name}_center" for arm in arms]
        if all(_is_still(data.model, base) for base in bases):
            still.update((base, np.zeros(3)) for base in bases)
            composite.update_state()
            composite.update_state = _do_nothing  # it reads where the bases are
    for method in ("get_site_xvelp", "get_site_xvelr"):
        setattr(data, method, _Velocity(getattr(type(data), method).__get__(data), still))


def _is_still(model: Any, site: str) -> bool:
    """Return whether a site is part of the world, in upstream's `utils.binding_utils.MjModel`."""
    return bool(model.body_weldid[model.site_bodyid[model.site_name2id(site)]] == 0)


def _do_nothing() -> None: ...


class _Velocity(NamedTuple):
    compute: Callable[[str], Any]
    still: dict[str, Any]

    def __call__(self, name: str) -> Any:
        return self.still[name] if name in self.still else self.compute(name)


@functools.cache
def _fix_limits(kind: type) -> type:
    """Return a kind of composite controller that computes the limits of its action once."""
    compute = kind.action_limits  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(compute, functools.cached_property):
        return kind
    fixed = functools.cached_property(compute.fget)
    return type(kind.__name__, (kind,), {"action_limits": fixed})


class _Reference:
    """Reads pose, velocity and Jacobians of the site that a controller moves.

    Stands for `_update_single_reference` of controllers/parts/controller.py.
    """

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._jacobian = require("mujoco", "robosuite", "the robosuite suite").mj_jacSite
        sim = controller.sim
        self._model, self._data = sim.model._model, sim.data._data
        self._site = sim.model.site_name2id(controller.ref_name)
        self._linear = np.zeros((3, self._model.nv))
        self._angular = np.zeros((3, self._model.nv))

    def __call__(self, name: str, index: int) -> None:
        del name, index
        to, data, site = self._controller, self._data, self._site
        linear, angular, velocities = self._linear, self._angular, data.qvel
        self._jacobian(self._model, data, linear, angular, site)
        to.ref_pos[:] = data.site_xpos[site]
        to.ref_ori_mat[:, :] = data.site_xmat[site].reshape(3, 3)
        to.ref_pos_vel[:] = np.dot(linear, velocities)
        to.ref_ori_vel[:] = np.dot(angular, velocities)
        to.J_pos[:, :] = linear[:, to.qvel_index]
        to.J_ori[:, :] = angular[:, to.qvel_index]
        to.J_full[:3] = to.J_pos
        to.J_full[3:] = to.J_ori
