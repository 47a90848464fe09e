"""The compiled model of a robosuite task, kept from one episode to the next.

Upstream's hard reset writes a model's XML anew and compiles it, which takes most of a reset. The
XML is the same each time, but for a few numbers of simple geoms that some tasks draw: the cube of
Lift, the hammer of TwoArmHandover and TwoArmTransport, the peg of TwoArmPegInHole. So the compiled
model is kept. An episode with the same XML gets it back as it was compiled. For one with other
numbers, the bodies in question are compiled alone and their entries take their places;
`mj_setConst` does what the compiler does after that. Anything else is compiled as upstream does it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from vla_gym.deps import require

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ["KeptModel"]

_DRAWN = frozenset({"size", "pos", "density", "friction"})
"""Attributes of a geom that may differ from episode to episode."""

_SIMPLE = frozenset({"box", "capsule", "cylinder", "ellipsoid", "sphere"})
"""Geom types that need no asset."""

_GEOM_ARRAYS = ("size", "aabb", "rbound", "pos", "quat", "friction")
_BODY_ARRAYS = ("mass", "inertia", "ipos", "iquat")
"""Arrays of `mjModel` that follow from a body's own geoms."""

_ASSETS = ("bvh_", "flex_", "hfield_", "mesh_", "names", "paths", "skin_", "tex_")
"""Prefixes of arrays that are big and that no episode changes."""


class KeptModel:
    """A compiled model and the XML that it came from.

    Args:
        root: the `mujoco` element of the XML.
        model: the `mujoco.MjModel` that it was compiled to, not yet changed by anything.
    """

    def __init__(self, root: Element, model: Any) -> None:
        self._mujoco = require("mujoco", "robosuite", "the robosuite suite")
        self.model = model
        self._elements = [(item.tag, dict(item.attrib), len(item)) for item in root.iter()]
        self._start = {
            name: value.copy()
            for name in dir(model)
            if not name.startswith(("__", *_ASSETS))
            and isinstance(value := getattr(model, name), np.ndarray)
            and value.flags.writeable
        }
        self._redrawn: set[str] = set()  # bodies that are no longer as they were compiled

    def copy(self) -> KeptModel:
        """Return another of its own memory, for another env: some 30 times as fast as compiling."""
        twin = copy.copy(self)
        twin.model = copy.copy(self.model)
        twin._redrawn = set(self._redrawn)
        return twin

    def become(self, root: Element, data: Any) -> bool:
        """Make the model what `root` compiles to, and reset the data.

        Args:
            root: the `mujoco` element of the XML, which upstream may have built anew.
            data: the model's `mujoco.MjData`.

        Returns:
            False where only the compiler can: the model is then of no further use.
        """
        changed = self._find_changed(root)
        if changed is None:
            return False
        for name, value in self._start.items():
            getattr(self.model, name)[...] = value
        self._redrawn.update(changed)
        if self._redrawn and not self._redraw(root, data):
            return False
        self._mujoco.mj_resetData(self.model, data)
        return True

    def _find_changed(self, root: Element) -> set[str] | None:
        """Return the names of bodies with other geoms, None if anything else differs."""
        differing = []
        elements = iter(self._elements)
        for item in root.iter():
            tag, attributes, children = next(elements, ("", {}, 0))
            if item.tag != tag or len(item) != children:
                return None
            if item.attrib != attributes:
                if not _differs_in_drawn(item, attributes):
                    return None
                differing.append(item)
        if not differing:
            return set()
        parents = {child: parent for parent in root.iter() for child in parent}
        return {parents[item].get("name", "") for item in differing}

    def _redraw(self, root: Element, data: Any) -> bool:
        """Compile the redrawn bodies alone and put them in; return whether that was possible."""
        model, mujoco = self.model, self._mujoco
        extent = float(model.stat.extent)
        for body in root.iter("body"):
            if body.get("name") in self._redrawn:
                alone = _compile_alone(mujoco, root, body)
                if alone is None or not _put(model, model.body(body.get("name")).id, alone):
                    return False
        mujoco.mj_setConst(model, data)
        return float(model.stat.extent) == extent  # with another one, pictures need other buffers


def _differs_in_drawn(item: Element, before: dict[str, str]) -> bool:
    """Whether a geom differs from its former attributes in numbers alone that tasks draw."""
    keys = {key for key in {*item.attrib, *before} if item.get(key) != before.get(key)}
    return item.tag == "geom" and keys <= _DRAWN


def _compile_alone(mujoco: Any, root: Element, body: Element) -> Any:
    """Return a model of one body's own geoms, None where they need more than their attributes."""
    alone = ElementTree.Element("mujoco")
    alone.extend(root.findall("compiler"))
    world = ElementTree.SubElement(alone, "worldbody")
    single = ElementTree.SubElement(world, "body")
    for item in body:
        if item.tag == "inertial":
            return None
        if item.tag != "geom":
            continue
        if item.get("type") not in _SIMPLE or "class" in item.attrib:
            return None
        attributes = {key: value for key, value in item.attrib.items() if key != "material"}
        ElementTree.SubElement(single, "geom", attributes)
    return mujoco.MjModel.from_xml_string(ElementTree.tostring(alone, encoding="unicode"))


def _put(model: Any, body: int, alone: Any) -> bool:
    """Copy the only body of `alone` to that of the model; return whether they are of one kind."""
    first, count = model.body_geomadr[body], model.body_geomnum[body]
    geoms = slice(first, first + count)
    start, nodes = model.body_bvhadr[body], model.body_bvhnum[body]
    alike = (
        alone.ngeom == count
        and alone.body_bvhnum[1] == nodes
        and alone.body_sameframe[1] == model.body_sameframe[body]
        and np.array_equal(alone.geom_sameframe, model.geom_sameframe[geoms])
    )
    if not alike:
        return False
    for name in _GEOM_ARRAYS:
        getattr(model, f"geom_{name}")[geoms] = getattr(alone, f"geom_{name}")
    for name in _BODY_ARRAYS:
        getattr(model, f"body_{name}")[body] = getattr(alone, f"body_{name}")[1]
    tree = slice(start, start + nodes)
    own = slice(alone.body_bvhadr[1], alone.body_bvhadr[1] + nodes)
    model.bvh_aabb[tree] = alone.bvh_aabb[own]
    model.bvh_child[tree] = alone.bvh_child[own]
    model.bvh_depth[tree] = alone.bvh_depth[own]
    leaves = alone.bvh_nodeid[own]
    model.bvh_nodeid[tree] = np.where(leaves < 0, leaves, leaves + first)
    return True
