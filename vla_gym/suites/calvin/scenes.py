"""The four play tables of CALVIN, A to D, as numbers.

Facts of calvin_env 797142c (conf/scene/calvin_scene_*.yaml, data/calvin_table_*/urdf), lengths in
metres after its global scaling of 0.8, world frame: +x right, +y away from the viewer into the
cabinet, +z up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "BASE_POSITION_M",
    "BLOCKS",
    "BLOCK_DEPTH_M",
    "CONTROL_HZ",
    "DRAWER_OPEN_M",
    "HOME_ROBOT_OBS",
    "IN_DRAWER_Z_M",
    "ON_TABLE_Z_M",
    "OPENING_M",
    "SCENES",
    "SCENE_KEYS",
    "SURFACES",
    "SWITCH_ON_M",
    "Scene",
]

CONTROL_HZ = 30.0

BASE_POSITION_M = (-0.34, -0.46, 0.24)
"""The robot's base; it is not turned, so that directions in base and world frame are the same."""

BLOCKS = ("red", "blue", "pink")

BLOCK_LENGTHS_M = {"small": 0.04, "middle": 0.056, "big": 0.08}
BLOCK_DEPTH_M = 0.04
"""Width and height of every block; the length is along its own x axis."""

ON_TABLE_Z_M = 0.46
"""Height of a block's centre on the table or on the cabinet's floor, which are equally high."""

IN_DRAWER_Z_M = 0.362
"""Height of a block's centre on the drawer's floor."""

DRAWER_OPEN_M = 0.22
SWITCH_ON_M = 0.088
OPENING_M = 0.08
"""Distance between the fingers when they are open."""

SURFACES = ("table", "slider_left", "slider_right")
"""Where blocks start: on the table, or in the cabinet behind the left or right door position."""

HOME_ROBOT_OBS = (
    *(0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963),
    *(-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0),
)
"""`robot_obs` at the start of every evaluation episode. Source: calvin fa03f01,
calvin_models/calvin_agent/evaluation/utils.py, `get_env_state_for_initial_condition`."""


@dataclass(frozen=True)
class Scene:
    """What differs from one play table to another.

    Attributes:
        name: `"A"` to `"D"`.
        order: of the blocks in `scene_obs`.
        sizes: block -> `"small"`, `"middle"` or `"big"`.
        button_x: of the button and of the LED above it.
        switch_x: of the switch and of the light bulb above it.
        slider_x: of the door's own frame when it is closed to the right (joint at 0).
        slider_range: travel of the door; the joint grows to the left.
        drawer_x: middle of the drawer.
        cabinet_x: middle of the cabinet, whose cavity reaches 0.26 to both sides.
        areas: surface -> lowest and highest corner (x, y) of where upstream puts blocks at random.
        wood: what table and cabinet floor are made of: `"dark_wood"`, `"light_wood"` or `"wood"`.
        door_wood: the same of drawer and door.
    """

    name: str
    order: tuple[str, str, str]
    sizes: Mapping[str, str]
    button_x: float
    switch_x: float
    slider_x: float
    slider_range: float
    drawer_x: float
    cabinet_x: float
    areas: Mapping[str, tuple[tuple[float, float], tuple[float, float]]]
    wood: str
    door_wood: str

    def length(self, block: str) -> float:
        """Return a block's length along its own x axis."""
        return BLOCK_LENGTHS_M[self.sizes[block]]


def _areas(
    table: tuple[float, float], left: tuple[float, float], right: tuple[float, float]
) -> dict[str, tuple[tuple[float, float], tuple[float, float]]]:
    return {
        "table": ((table[0], -0.15), (table[1], -0.03)),
        "slider_left": ((left[0], 0.05), (left[1], 0.12)),
        "slider_right": ((right[0], 0.05), (right[1], 0.12)),
    }


SCENES = {
    "A": Scene(
        "A",
        ("pink", "blue", "red"),
        {"red": "middle", "blue": "big", "pink": "small"},
        button_x=-0.28,
        switch_x=0.30,
        slider_x=-0.10,
        slider_range=0.28,
        drawer_x=0.10,
        cabinet_x=-0.10,
        areas=_areas((-0.20, 0.35), (-0.32, -0.16), (-0.05, 0.13)),
        wood="dark_wood",
        door_wood="dark_wood",
    ),
    "B": Scene(
        "B",
        ("red", "blue", "pink"),
        {"red": "small", "blue": "big", "pink": "middle"},
        button_x=0.28,
        switch_x=-0.32,
        slider_x=0.088,
        slider_range=0.304,
        drawer_x=0.18,
        cabinet_x=0.08,
        areas=_areas((-0.35, 0.15), (-0.12, 0.06), (0.15, 0.33)),
        wood="light_wood",
        door_wood="light_wood",
    ),
    "C": Scene(
        "C",
        ("blue", "red", "pink"),
        {"red": "big", "blue": "small", "pink": "middle"},
        button_x=-0.12,
        switch_x=-0.32,
        slider_x=0.06,
        slider_range=0.24,
        drawer_x=0.10,
        cabinet_x=0.08,
        areas=_areas((0.0, 0.35), (-0.12, 0.06), (0.15, 0.30)),
        wood="wood",
        door_wood="dark_wood",
    ),
    "D": Scene(
        "D",
        ("red", "blue", "pink"),
        {"red": "middle", "blue": "small", "pink": "big"},
        button_x=-0.12,
        switch_x=0.30,
        slider_x=-0.10,
        slider_range=0.28,
        drawer_x=0.18,
        cabinet_x=-0.10,
        areas=_areas((0.0, 0.35), (-0.32, -0.16), (-0.05, 0.13)),
        wood="dark_wood",
        door_wood="dark_wood",
    ),
}

SCENE_KEYS = ("slider", "drawer", "button", "switch", "lightbulb", "led")
"""The first six entries of `scene_obs`; position and Euler angles of each block follow."""
