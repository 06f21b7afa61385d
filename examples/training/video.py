"""Frames of a video, one in memory at a time; needs PyAV (``pip install av``)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}


def require_decoder() -> Any:
    """The module ``av``.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError("videos need a decoder: pip install av") from error
    return av


def read_frames(path: Path) -> Iterator[Image.Image]:
    """Frames in order.

    Raises:
        ValueError: the file is no video, or ends in the middle of one.
    """
    av = require_decoder()
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_image()
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error


def frame_rate(path: Path) -> Fraction:
    """Frames per second; 25 if the file does not say."""
    with require_decoder().open(str(path)) as container:
        return container.streams.video[0].average_rate or Fraction(25)


@contextlib.contextmanager
def writing_frames(path: Path, rate: Fraction) -> Iterator[Callable[[Image.Image], None]]:
    """A function that adds a picture to the video at ``path``; all pictures have one size."""
    av = require_decoder()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000

        def add(picture: Image.Image) -> None:
            # The encoder takes even sizes only.
            width, height = (side - side % 2 for side in picture.size)
            if not stream.codec_context.is_open:
                stream.width, stream.height = width, height
            frame = av.VideoFrame.from_ndarray(np.asarray(picture)[:height, :width], "rgb24")
            container.mux(stream.encode(frame))

        yield add
        if stream.codec_context.is_open:
            container.mux(stream.encode())
