"""H.264 videos, written by the ffmpeg that the package imageio-ffmpeg carries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["write_h264"]


def write_h264(
    ffmpeg: Any,
    path: Path,
    pictures: Iterable[NDArray[np.uint8]],
    size: tuple[int, int],
    fps: float,
    options: Sequence[str],
) -> None:
    """Write pictures as an mp4 (H.264, yuv420p) with one thread.

    Args:
        ffmpeg: the module `imageio_ffmpeg`.
        path: of the file; its folder is made.
        pictures: uint8 (H, W, 3), row 0 at the top.
        size: (H, W), both even, as yuv420p needs.
        fps: pictures per second.
        options: further ones of ffmpeg.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ffmpeg.write_frames(
        str(path),
        (size[1], size[0]),
        fps=fps,
        codec="libx264",
        pix_fmt_in="rgb24",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=[*options, "-threads", "1"],
    )
    writer.send(None)  # starts ffmpeg
    for picture in pictures:
        writer.send(np.ascontiguousarray(picture))
    writer.close()
