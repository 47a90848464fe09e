"""Write a short H.264 video that every browser plays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_gym.deps import require

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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.mp4")
    height, width = frames[0].shape[:2]
    writer = ffmpeg.write_frames(
        str(temporary),
        (width, height),
        fps=fps,
        codec="libx264",
        pix_fmt_in="rgb24",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-crf", "24", "-preset", "fast", "-threads", "1", "-movflags", "+faststart"],
    )
    writer.send(None)  # starts ffmpeg
    for frame in [*frames, *[frames[-1]] * round(HOLD_S * fps)]:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    temporary.replace(path)
