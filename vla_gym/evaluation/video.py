"""Write a short H.264 video that every browser plays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require
from vla_gym.video import write_h264

__all__ = ["write_video"]

HOLD_S = 1.0
"""The last picture stays this long, so that the outcome can be seen before the video loops."""


def write_video(path: Path, frames: Sequence[NDArray[np.uint8]], fps: float) -> None:
    """Write frames as an mp4 (H.264, yuv420p).

    Args:
        path: appears only when it is complete.
        frames: uint8 (H, W, 3), row 0 at the top; H and W even, as yuv420p needs.
        fps: pictures per second.
    """
    ffmpeg = require("imageio_ffmpeg", "eval", "a video")
    temporary = path.with_suffix(".part.mp4")
    held = [*frames, *[frames[-1]] * round(HOLD_S * fps)]
    size = frames[0].shape[0], frames[0].shape[1]
    options = ["-crf", "24", "-preset", "fast", "-movflags", "+faststart"]
    write_h264(ffmpeg, temporary, held, size, fps, options)
    temporary.replace(path)
