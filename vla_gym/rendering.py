"""Off-screen rendering of a compiled MuJoCo model: right-sized, upright, without a screen.

One GL context per process serves all envs, cameras and threads. It is current only while a picture
is drawn: afterwards the context that was current before, perhaps that of a simulator's own viewer,
is current again. `MUJOCO_GL=egl|osmesa` chooses the back end; without it EGL is tried first (a GPU,
or Mesa in software), then OSMesa (software). `MUJOCO_EGL_DEVICE_ID=n` chooses the n-th EGL device,
and EGL with it.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import gc
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require
from vla_gym.errors import BrokenDependency, DependencyNotInstalled, UnknownName
from vla_gym.face_lists import FaceLists, import_gl
from vla_gym.frames import Frames
from vla_gym.meshes import compute_normals, read_simplified
from vla_gym.scenery import shown
from vla_gym.suite import AS_IS, VisualChange
from vla_gym.visibility import View, Visibility, find_shown_meshes

__all__ = ["Renderer", "check_rendering", "choose_backend"]

BACKENDS = ("egl", "osmesa")
SYSTEM_PACKAGES = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6"}

HIDDEN_GROUP = 5
"""Geoms and sites of this group are not shown, unless one asks for it."""

MIN_CULLED = 70
"""Geoms and sites from which on it pays to ask which are seen, in fast quality."""

LONGEST_PAUSE = 31
"""Pictures of one camera that are drawn without asking, see `_Pauses`."""

MESH_FACES = 500
"""Most faces of a mesh in fast quality."""

SLICES, STACKS, QUADS = 16, 8, 2
"""Of spheres, capsules, cylinders, and of the sides of boxes in fast quality, at most. MuJoCo's own
28, 16 and 4 make 900 faces of each sphere."""

MAX_GEOMS = 1000  # as gymnasium's and robosuite's viewers; one more geom would be left out by all

_context: tuple[int, Any, str] | None = None  # (process id, GL context, back end)
_lock = threading.RLock()


def _make_context(backend: str) -> Any:
    if backend == "egl":
        from mujoco.egl import GLContext
    elif backend == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        from mujoco import GLContext
    context = GLContext(64, 64)  # frame buffers are MuJoCo's own; this size is not used
    context.make_current()
    if backend == "glfw":
        import glfw

        if not glfw.get_current_context():  # it warns instead of raising
            raise RuntimeError("no window could be opened; is there a screen?")
    return context


def _read_backends() -> tuple[str, ...]:
    """Return the back ends to try. Comes before `import mujoco`, which fails on a bad name."""
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    if platform.system() != "Linux":
        return ("native",)
    if asked in ("", "enable", "enabled", "on", "true", "1"):
        return BACKENDS if os.environ.get("MUJOCO_EGL_DEVICE_ID") is None else ("egl",)
    if asked in (*BACKENDS, "glfw"):
        return (asked,)
    raise UnknownName("MUJOCO_GL", asked, BACKENDS, "the environment variables")


def choose_backend() -> str:
    """Return the GL back end in use in this process, after starting it.

    Raises:
        DependencyNotInstalled: neither EGL nor OSMesa works; the message names the system packages.
        UnknownName: MUJOCO_GL has a value that is not valid here.
    """
    with _current_gl():
        return _current_context()[2]


def _current_context() -> tuple[int, Any, str]:
    global _context
    if _context is not None and _context[0] == os.getpid():
        return _context
    if _context is not None:
        raise BrokenDependency(
            "this process was forked from one that had already rendered, and GL does not survive a "
            "fork. Start worker processes before the first reset of an env with cameras, or use "
            'the start method "spawn" (vector_kwargs={"context": "spawn"})'
        )
    backends = _read_backends()
    require("mujoco", "metaworld", "rendering")
    failures = []
    chosen_platform = os.environ.get("PYOPENGL_PLATFORM")
    loaded = type(getattr(sys.modules.get("OpenGL.platform"), "PLATFORM", None)).__name__
    for backend in backends:
        try:
            _context = (os.getpid(), _make_context(backend), backend)
        except Exception as error:  # PyOpenGL, ctypes and drivers each raise types of their own
            failures.append(f"{backend}: {type(error).__name__}: {error}")
            if chosen_platform is None:
                os.environ.pop("PYOPENGL_PLATFORM", None)  # the failed back end has set its own
        else:
            # Before MuJoCo ends EGL, which would make the context's own end print an error.
            atexit.register(_context[1].free)
            return _context
    if loaded not in ("NoneType", "EGLPlatform", "OSMesaPlatform"):  # it chooses when imported
        failures.append(
            f"PyOpenGL was imported before, for {loaded}: set PYOPENGL_PLATFORM={backends[0]} "
            "before that"
        )
    packages = " or ".join(
        f"apt-get install {SYSTEM_PACKAGES[name]}" for name in backends if name in SYSTEM_PACKAGES
    )
    raise DependencyNotInstalled(
        "off-screen rendering does not work here: "
        + "; ".join(failures)
        + (f". Run: {packages}" if packages else "")
        + ". Without rendering, make the env with cameras=()"
    )


@contextlib.contextmanager
def _current_gl() -> Iterator[None]:
    """Have the process's GL context current in this thread, and in no other one, inside."""
    with _lock:
        _, context, backend = _current_context()
        restore = _remember_egl(context) if backend == "egl" else None
        collects = gc.isenabled()
        # What others have drawn with, when it is collected, deletes GL objects by their numbers in
        # the context that is then current: in this one they would be ours.
        gc.disable()
        context.make_current()
        try:
            yield
        finally:
            if restore is not None:
                restore()
            if collects:
                gc.enable()


def _remember_egl(context: Any) -> Callable[[], None]:
    """Return a function that makes current what is current now; nothing, if that is ours."""
    from mujoco import egl
    from OpenGL import EGL

    before = EGL.eglGetCurrentContext()
    display, draw, read = egl.EGL_DISPLAY, EGL.EGL_NO_SURFACE, EGL.EGL_NO_SURFACE
    if not before or before.address == context._context.address:
        before = EGL.EGL_NO_CONTEXT
    else:
        display = EGL.eglGetCurrentDisplay()
        draw = EGL.eglGetCurrentSurface(EGL.EGL_DRAW)
        read = EGL.eglGetCurrentSurface(EGL.EGL_READ)
    return lambda: EGL.eglMakeCurrent(display, draw, read, before)


class Renderer:
    """Renders cameras of one compiled model.

    Args:
        model: `mujoco.MjModel`, compiled. It is never changed.
        data: `mujoco.MjData`, read at each picture.
        quality: `"exact"`: the pixels of the simulator's own viewer; `"fast"`: no shadows,
            reflections or multisampling, textures less smooth, meshes of at most `MESH_FACES`
            faces, and coarser spheres and cylinders.
        hidden_geom_groups: geom groups that the simulator's own viewer does not show.
        cull: whether to leave out what cannot change a pixel (`vla_gym.visibility`).
        focus_m: middle of the workspace, world frame: moved cameras that stand still go on looking
            there, lights turn about it.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        quality: str = "exact",
        hidden_geom_groups: tuple[int, ...] = (),
        cull: bool = True,
        focus_m: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> None:
        mujoco = require("mujoco", "metaworld", "rendering")
        self._mujoco, self._model, self._data = mujoco, model, data
        self._focus_m = focus_m
        self._fast = quality == "fast"
        self._option = mujoco.MjvOption()
        for group in hidden_geom_groups:
            self._option.geomgroup[group] = 0
        if self._fast:
            cull = cull and model.ngeom + model.nsite >= MIN_CULLED
        self._visibility = Visibility(model, self._option) if cull else None
        self._pauses = _Pauses()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturb = mujoco.MjvPerturb()
        self._scene: Any = None
        self._buffer: Any = None  # MjrContext, made at the first picture
        self._frames: Any = None  # of it
        self._face_lists: FaceLists | None = None
        self._size = (0, 0)

    def render(
        self, camera: str, height: int, width: int, change: VisualChange = AS_IS
    ) -> NDArray[np.uint8]:
        """Return the camera's picture: uint8 (height, width, 3), row 0 at its top.

        Args:
            camera: its name in the model.
            height: of the picture [pixels].
            width: of the picture [pixels].
            change: how to show the scene otherwise, in the model's names of the cameras.

        Raises:
            UnknownName: the model has no such camera.
        """
        return self.render_all([(camera, height, width)], change)[0]

    def render_all(
        self, shots: Sequence[tuple[str, int, int]], change: VisualChange = AS_IS
    ) -> list[NDArray[np.uint8]]:
        """Return the pictures of several cameras, in less time than one after the other.

        Args:
            shots: camera, height and width of each, as in `render`.
            change: see `render`.

        Raises:
            UnknownName: the model has no such camera.
        """
        cameras = [self._find_camera(camera) for camera, _, _ in shots]
        with _current_gl():
            self._prepare(max(shot[1] for shot in shots), max(shot[2] for shot in shots))
            if len(shots) > 1 and not self._frames.several:
                return [self.render(*shot, change) for shot in shots]
            for number, (shot, camera) in enumerate(zip(shots, cameras, strict=True)):
                self._frames.choose(number)
                self._draw(camera, *shot, change)
                self._frames.start()
            return [self._read(number, *shot[1:]) for number, shot in enumerate(shots)]

    def _find_camera(self, name: str) -> int:
        mujoco = self._mujoco
        camera = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        if camera < 0:
            names = [self._model.camera(i).name for i in range(self._model.ncam)]
            raise UnknownName("camera", name, names, "the model")
        return camera

    def _draw(self, camera: int, name: str, height: int, width: int, change: VisualChange) -> None:
        self._camera.fixedcamid = camera
        move = change.cameras.get(name)
        with shown(self._model, self._data, camera, move, change.light, self._focus_m):
            self._update_scene(height, width)
        viewport = self._mujoco.MjrRect(0, 0, width, height)
        self._mujoco.mjr_render(viewport, self._scene, self._buffer)

    def _read(self, number: int, height: int, width: int) -> NDArray[np.uint8]:
        self._frames.choose(number)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        viewport = self._mujoco.MjrRect(0, 0, width, height)
        self._mujoco.mjr_readPixels(pixels, None, viewport, self._buffer)
        return np.ascontiguousarray(pixels[::-1])  # GL's row 0 is at the bottom

    def _update_scene(self, height: int, width: int) -> None:
        """List what is to be drawn, without what cannot change a pixel."""
        mujoco, scene = self._mujoco, self._scene
        flags = mujoco.mjtRndFlag
        scene.flags[flags.mjRND_REFLECTION] = not self._fast
        mujoco.mjv_updateCamera(self._model, self._data, self._camera, scene)
        look = self._visibility is not None and self._pauses.step(self._camera.fixedcamid)
        view = View.of(scene.camera, height, width) if look else None
        if self._visibility is None or view is None:
            self._list_scene()
            return
        if self._fast:
            with self._hide(self._visibility.find_outside(self._data, view)):
                self._list_scene()
            return
        sight = self._visibility.look(self._data, view, shadows=True, reflections=True)
        self._pauses.put(self._camera.fixedcamid, sight.useful)
        with self._hide(sight.hidden):
            self._list_scene()
        if scene.ngeom != sight.drawn:
            return
        if not sight.reflection:
            scene.flags[flags.mjRND_REFLECTION] = 0
        if self._face_lists is not None:
            size, camera = (height, width), self._camera.fixedcamid
            for geom, parts in sight.parts.items():
                thing = scene.geoms[sight.places[geom]]
                self._face_lists.show(camera, geom, thing, view, size, parts, sight.mirror)

    def _list_scene(self) -> None:
        mujoco = self._mujoco
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._option,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )

    @contextlib.contextmanager
    def _hide(self, hidden: NDArray[np.bool_]) -> Iterator[None]:
        """Have geoms and sites in a group that is not shown, inside."""
        groups = self._model.geom_group, self._model.site_group
        chosen = hidden[: self._model.ngeom], hidden[self._model.ngeom :]
        before = [group[which] for group, which in zip(groups, chosen, strict=True)]
        try:
            for group, which in zip(groups, chosen, strict=True):
                group[which] = HIDDEN_GROUP
            yield
        finally:
            for group, which, values in zip(groups, chosen, before, strict=True):
                group[which] = values

    def _prepare(self, height: int, width: int) -> None:
        mujoco = self._mujoco
        if self._buffer is None:
            self._scene = mujoco.MjvScene(self._model, MAX_GEOMS)
            if self._fast:
                self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
                self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            self._buffer = self._make_buffer(height, width)
            self._frames = Frames(mujoco, self._buffer)
            if not self._fast and self._visibility is not None and self._visibility.refine:
                self._face_lists = FaceLists.make(mujoco, self._model, self._buffer)
            self._size = (height, width)
        elif height > self._size[0] or width > self._size[1]:
            self._size = (max(height, self._size[0]), max(width, self._size[1]))
            self._frames.free()
            mujoco.mjr_resizeOffscreen(self._size[1], self._size[0], self._buffer)
            self._frames = Frames(mujoco, self._buffer)  # its own may have another name now

    def _make_buffer(self, height: int, width: int) -> Any:
        """Upload textures and meshes: an MjrContext with an off-screen buffer of this size."""
        model = _simplify(self._model, self._option) if self._fast else self._model
        size = model.vis.global_
        before = size.offwidth, size.offheight
        size.offwidth, size.offheight = width, height
        try:
            buffer = self._mujoco.MjrContext(model, self._mujoco.mjtFontScale.mjFONTSCALE_150)
        finally:
            size.offwidth, size.offheight = before
        if self._fast:
            _simplify_textures(self._mujoco, buffer)
        return buffer

    def close(self) -> None:
        """Free the GL buffers. Safe to call more than once."""
        buffer, self._buffer = self._buffer, None
        face_lists, self._face_lists = self._face_lists, None
        if buffer is not None and _context is not None and _context[0] == os.getpid():
            # At interpreter exit the GL library may be gone.
            with contextlib.suppress(Exception), _current_gl():
                self._frames.free()
                buffer.free()
                if face_lists is not None:
                    face_lists.free()


class _Pauses:
    """For how many pictures of a camera nobody asks what can be left out.

    Asking takes 2 ms, and where nothing could be left out that is so in the next picture, too. Each
    time in vain makes the next pause longer.
    """

    def __init__(self) -> None:
        self._lengths: dict[int, int] = {}
        self._left: dict[int, int] = {}

    def step(self, camera: int) -> bool:
        """Return whether to ask for this picture."""
        left = self._left.get(camera, 0)
        self._left[camera] = max(left - 1, 0)
        return not left

    def put(self, camera: int, useful: bool) -> None:
        """Take what asking has come to."""
        length = 0 if useful else min(2 * self._lengths.get(camera, 0) + 1, LONGEST_PAUSE)
        self._lengths[camera] = self._left[camera] = length


def _simplify(model: Any, option: Any) -> Any:
    """Return a copy of a model to take meshes and qualities from, not to be simulated.

    Meshes with a texture stay as they are: a simplified one would not know where it goes.
    """
    model = copy.copy(model)
    quality = model.vis.quality
    quality.offsamples = quality.shadowsize = 0
    quality.numslices = min(quality.numslices, SLICES)
    quality.numstacks = min(quality.numstacks, STACKS)
    quality.numquads = min(quality.numquads, QUADS)
    model.mesh_graphadr[:] = -1  # convex hulls are never shown
    materials = model.geom_matid
    plain = (materials < 0) | (model.mat_texid[materials] < 0).all(axis=1) if model.nmat else True
    textured = set(model.geom_dataid[~np.broadcast_to(plain, model.ngeom)].tolist())
    shown = find_shown_meshes(model, option)
    for mesh in range(model.nmesh):
        if not shown[mesh]:
            model.mesh_facenum[mesh] = 0
        elif model.mesh_facenum[mesh] > MESH_FACES and mesh not in textured:
            _replace_mesh(model, mesh)
    return model


def _simplify_textures(mujoco: Any, buffer: Any) -> None:
    """Read textures at the nearest of their sizes, where MuJoCo mixes the nearest two."""
    gl = import_gl()
    if gl is None:
        return
    flat = int(mujoco.mjtTexture.mjTEXTURE_2D)
    for name, kind in zip(buffer.texture, buffer.textureType, strict=True):
        if name:
            target = gl.GL_TEXTURE_2D if kind == flat else gl.GL_TEXTURE_CUBE_MAP
            gl.glBindTexture(target, int(name))
            gl.glTexParameteri(target, gl.GL_TEXTURE_MIN_FILTER, gl.GL_LINEAR_MIPMAP_NEAREST)
            gl.glBindTexture(target, 0)


def _replace_mesh(model: Any, mesh: int) -> None:
    """Put a simplified mesh in a mesh's place. It is never larger."""
    start, face, normal = (
        getattr(model, f"mesh_{kind}adr")[mesh] for kind in ("vert", "face", "normal")
    )
    vertices = model.mesh_vert[start : start + model.mesh_vertnum[mesh]]
    faces = model.mesh_face[face : face + model.mesh_facenum[mesh]]
    vertices, faces = read_simplified(vertices, faces, MESH_FACES)
    if len(vertices) > min(model.mesh_vertnum[mesh], model.mesh_normalnum[mesh]):
        return
    model.mesh_vert[start : start + len(vertices)] = vertices
    model.mesh_face[face : face + len(faces)] = faces
    model.mesh_normal[normal : normal + len(vertices)] = compute_normals(vertices, faces)
    model.mesh_facenormal[face : face + len(faces)] = faces
    model.mesh_vertnum[mesh], model.mesh_facenum[mesh] = len(vertices), len(faces)
    # Without coordinates for a texture MuJoCo shades sharp edges with the faces' own normals.
    model.mesh_texcoordadr[mesh] = -1


_TEST_MODEL = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="front" pos="0 -2 1" xyaxes="1 0 0 0 0.447 0.894"/>
    <geom type="plane" size="2 2 0.1" rgba="0.2 0.3 0.8 1"/>
    <geom type="box" size="0.3 0.3 0.3" pos="0 0 0.3" rgba="0.9 0.2 0.1 1"/>
  </worldbody>
</mujoco>
"""


def check_rendering() -> str:
    """Render a red box, check that it is red, and return a line that says what works.

    Raises:
        DependencyNotInstalled: rendering does not work; the message names the system packages.
    """
    backend = choose_backend()
    mujoco = require("mujoco", "metaworld", "rendering")
    model = mujoco.MjModel.from_xml_string(_TEST_MODEL)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = Renderer(model, data)
    pixels = renderer.render("front", 64, 64)
    renderer.close()
    red, _, blue = pixels[32, 32].astype(int)
    if red <= 2 * blue:
        raise BrokenDependency(
            f"off-screen rendering through {backend} draws a red box as {pixels[32, 32]}. "
            "Try the other back end: MUJOCO_GL=osmesa or MUJOCO_GL=egl"
        )
    return f"off-screen rendering works through {backend} (MuJoCo {mujoco.__version__})"
