"""Off-screen rendering of a compiled MuJoCo model: right-sized, upright, without a screen.

One GL context per process serves all envs, cameras and threads. It is current only while a picture
is drawn: afterwards the context that was current before, perhaps that of a simulator's own viewer,
is current again. `MUJOCO_GL=egl|osmesa` chooses the back
end; without it EGL is tried first (a GPU, or Mesa in software), then OSMesa (software).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import platform
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require
from vla_gym.errors import BrokenDependency, DependencyNotInstalled, UnknownName

__all__ = ["Renderer", "check_rendering", "choose_backend"]

BACKENDS = ("egl", "osmesa")
SYSTEM_PACKAGES = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6"}

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
        return BACKENDS
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
        context.make_current()
        try:
            yield
        finally:
            if restore is not None:
                restore()


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
        model: `mujoco.MjModel`, compiled. `quality="fast"` changes its visual quality fields.
        data: `mujoco.MjData`, read at each picture.
        quality: `"exact"`: the pixels of the simulator's own viewer; `"fast"`: no shadows,
            reflections or multisampling.
        hidden_geom_groups: geom groups that the simulator's own viewer does not show.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        quality: str = "exact",
        hidden_geom_groups: tuple[int, ...] = (),
    ) -> None:
        mujoco = require("mujoco", "metaworld", "rendering")
        self._mujoco, self._model, self._data = mujoco, model, data
        self._fast = quality == "fast"
        self._option = mujoco.MjvOption()
        for group in hidden_geom_groups:
            self._option.geomgroup[group] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturb = mujoco.MjvPerturb()
        self._scene: Any = None
        self._buffer: Any = None  # MjrContext, made at the first picture
        self._size = (0, 0)

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return the camera's picture: uint8 (height, width, 3), row 0 at its top.

        Raises:
            UnknownName: the model has no such camera.
        """
        mujoco = self._mujoco
        camera_id = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if camera_id < 0:
            names = [self._model.camera(i).name for i in range(self._model.ncam)]
            raise UnknownName("camera", camera, names, "the model")
        self._camera.fixedcamid = camera_id
        viewport = mujoco.MjrRect(0, 0, width, height)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        with _current_gl():
            self._prepare(height, width)
            mujoco.mjv_updateScene(
                self._model,
                self._data,
                self._option,
                self._perturb,
                self._camera,
                mujoco.mjtCatBit.mjCAT_ALL,
                self._scene,
            )
            mujoco.mjr_render(viewport, self._scene, self._buffer)
            mujoco.mjr_readPixels(pixels, None, viewport, self._buffer)
        return np.ascontiguousarray(pixels[::-1])  # GL's row 0 is at the bottom

    def _prepare(self, height: int, width: int) -> None:
        mujoco = self._mujoco
        if self._buffer is None:
            visual = self._model.vis
            if self._fast:
                visual.quality.offsamples = 0
            visual.global_.offwidth, visual.global_.offheight = width, height
            self._scene = mujoco.MjvScene(self._model, MAX_GEOMS)
            if self._fast:
                self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
                self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            self._buffer = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_150)
            self._size = (height, width)
        elif height > self._size[0] or width > self._size[1]:
            self._size = (max(height, self._size[0]), max(width, self._size[1]))
            mujoco.mjr_resizeOffscreen(self._size[1], self._size[0], self._buffer)
        # Each time: the envs of a process share one GL context, in which the last one is bound.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._buffer)

    def close(self) -> None:
        """Free the GL buffers. Safe to call more than once."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None and _context is not None and _context[0] == os.getpid():
            # At interpreter exit the GL library may be gone.
            with contextlib.suppress(Exception), _current_gl():
                buffer.free()


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
