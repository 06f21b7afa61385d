"""Frames of a video, one in memory at a time; needs PyAV (``pip install av``)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LARGEST_TERM = 65535  # of a frame rate, in MPEG-4
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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Raises:
    ValueError: the file is no video, or cannot be decoded.
    """
    av = require_decoder()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no pictures")
            yield container
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error


def read_frames(path: Path) -> Iterator[Image.Image]:
    """Frames in order. A file that ends too early yields the frames that it has.

    Raises:
        ValueError: the file is no video, or cannot be decoded.
    """
    with _opened(path) as container:
        for frame in container.decode(video=0):
            yield frame.to_image()


def frame_rate(path: Path) -> Fraction:
    """Frames per second, rounded to a rate that encoders accept; 25 if the file does not say.

    Raises:
        ValueError: the file is no video.
    """
    with _opened(path) as container:
        rate = Fraction(container.streams.video[0].average_rate or 25)
    near = (rate.limit_denominator(most) for most in (1001, 100, 1))
    return max(Fraction(1), next((x for x in near if x.numerator <= LARGEST_TERM), Fraction(25)))


@contextlib.contextmanager
def writing_frames(path: Path, rate: Fraction) -> Iterator[Callable[[Image.Image], None]]:
    """A function that adds a picture to the video at ``path``; all pictures have one size.

    There is no video if the block fails.
    """
    av = require_decoder()
    part = path.with_name(f"part-{path.name}")
    try:
        with av.open(str(part), "w") as container:
            yield from _encoding(av, container, rate)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _encoding(av: Any, container: Any, rate: Fraction) -> Iterator[Callable[[Image.Image], None]]:
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
