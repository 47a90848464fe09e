"""Frame buffers beside MuJoCo's own, so that several pictures are drawn before the first is read.

Reading a picture waits until it is filled. Whoever reads each before drawing the next leaves a
processor idle while the GL driver's threads fill pixels, and these idle while the next picture's
vertices are prepared. `MjrContext` has one off-screen frame buffer; it draws into any other that
stands in its field `offFBO`.
"""

from __future__ import annotations

from typing import Any

from vla_gym.face_lists import import_gl

__all__ = ["Frames"]


class Frames:
    """Frame buffers of one `MjrContext`: its own, and others of the same size and formats.

    All methods need its GL context to be current.

    Args:
        mujoco: the module.
        buffer: `mujoco.MjrContext`.
    """

    def __init__(self, mujoco: Any, buffer: Any) -> None:
        self._mujoco, self._buffer = mujoco, buffer
        self._gl: Any = import_gl()
        self._names = [buffer.offFBO]
        self._stores: list[int] = []

    @property
    def several(self) -> bool:
        """Whether there can be more than MuJoCo's own: not where Python cannot reach GL."""
        return self._gl is not None

    def choose(self, number: int) -> None:
        """Have MuJoCo draw into this one, from 0, and read from it."""
        while number >= len(self._names):
            self._names.append(self._make())
        self._buffer.offFBO = self._names[number]
        # Each time: the envs of a process share one GL context, in which the last one is bound.
        self._mujoco.mjr_setBuffer(self._mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._buffer)

    def start(self) -> None:
        """Have the driver begin with what was drawn, without waiting for it."""
        if self._gl is not None:
            self._gl.glFlush()

    def free(self) -> None:
        """Leave MuJoCo's own alone: before it is resized or freed."""
        self._buffer.offFBO, *others = self._names
        if others:
            self._gl.glDeleteFramebuffers(len(others), others)
            self._gl.glDeleteRenderbuffers(len(self._stores), self._stores)
        self._names, self._stores = self._names[:1], []

    def _make(self) -> int:
        gl, buffer = self._gl, self._buffer
        name = int(gl.glGenFramebuffers(1))
        gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, name)
        for pattern, attachment in (
            (buffer.offColor, gl.GL_COLOR_ATTACHMENT0),
            (buffer.offDepthStencil, gl.GL_DEPTH_STENCIL_ATTACHMENT),
        ):
            gl.glBindRenderbuffer(gl.GL_RENDERBUFFER, pattern)
            samples, pixels, width, height = (
                int(gl.glGetRenderbufferParameteriv(gl.GL_RENDERBUFFER, what))
                for what in (
                    gl.GL_RENDERBUFFER_SAMPLES,
                    gl.GL_RENDERBUFFER_INTERNAL_FORMAT,
                    gl.GL_RENDERBUFFER_WIDTH,
                    gl.GL_RENDERBUFFER_HEIGHT,
                )
            )
            store = int(gl.glGenRenderbuffers(1))
            self._stores.append(store)
            gl.glBindRenderbuffer(gl.GL_RENDERBUFFER, store)
            gl.glRenderbufferStorageMultisample(gl.GL_RENDERBUFFER, samples, pixels, width, height)
            gl.glFramebufferRenderbuffer(gl.GL_FRAMEBUFFER, attachment, gl.GL_RENDERBUFFER, store)
        return name
