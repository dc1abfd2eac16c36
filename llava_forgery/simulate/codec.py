"""Compression as videos have it: H.264 with libx264, through PyAV."""

import threading
from fractions import Fraction
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from llava_forgery.optional import require

_ENCODER = "libx264"
# The quality of its constant rate factor hardly differs from the slower presets'.
_PRESET = "superfast"


class _Kept(threading.local):
    """What each thread keeps for its next picture, and what leaves no trace in it.

    There is no encoder among it: libx264 gives a stream's first picture another quantizer than
    those after it, which would tell the two pictures of a pair apart.
    """

    @cached_property
    def decoder(self) -> Any:
        av = require_h264()
        decoder = av.CodecContext.create("h264", "r")
        decoder.thread_count = 1
        # Each picture comes with its packet.
        decoder.flags |= av.codec.context.Flags.low_delay
        return decoder

    @cached_property
    def converter(self) -> Any:
        return require_h264().video.reformatter.VideoReformatter()


_kept = _Kept()


def compress_h264(
    image: np.ndarray, crf: int, frames: int = 1, motion: tuple[float, float] = (0.0, 0.0)
) -> np.ndarray:
    """What a video's frame has gone through: fewer colours, block transform, deblocking filter.

    The picture is encoded as the last frame of a short video, and decoded again. With more than
    one frame it is predicted from those before it, as most frames of a video are.

    Args:
        image: (H, W, 3) uint8 RGB.
        crf: libx264's constant rate factor, 0 (next to nothing is lost) to 51. FaceForensics++ has
            23 (c23) and 40 (c40).
        frames: Of the video, 1 or more.
        motion: How far the picture moves from frame to frame in x and in y, in pixels; in the last
            frame it lies where it is given.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImportError: PyAV is not installed (extra ``train``), or was built without libx264.
    """
    av = require_h264()
    height, width = image.shape[:2]
    # Colours are stored for blocks of 2 x 2.
    even = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    encoder = av.CodecContext.create(_ENCODER, "w")
    encoder.height, encoder.width = even.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 25)
    # Whole trainings are shared out to processes: threads would be in each other's way.
    encoder.thread_count = 1
    encoder.options = {"crf": str(crf), "preset": _PRESET, "tune": "zerolatency"}
    packets = []
    for index in range(frames):
        before = index + 1 - frames
        frame = av.VideoFrame.from_ndarray(_shifted(even, before, motion), format="rgb24")
        frame = _kept.converter.reformat(frame, format=encoder.pix_fmt)
        frame.pts = index
        packets += encoder.encode(frame)
    decoder = _kept.decoder
    # Also after an error in the middle of a stream.
    decoder.flush_buffers()
    decoded = [
        picture
        for packet in [*packets, *encoder.encode(None)]
        for picture in decoder.decode(packet)
    ]
    if len(decoded) != frames:
        raise RuntimeError(f"expected {frames} frames from the H.264 decoder, got {len(decoded)}")
    return decoded[-1].to_ndarray(format="rgb24")[:height, :width]


def _shifted(image: np.ndarray, steps: int, motion: tuple[float, float]) -> np.ndarray:
    """The picture moved by so many steps; a negative number is the past."""
    if not steps or motion == (0.0, 0.0):
        return image
    matrix = np.float64([[1, 0, steps * motion[0]], [0, 1, steps * motion[1]]])
    return cv2.warpAffine(
        image, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


@cache
def require_h264() -> ModuleType:
    """PyAV with libx264.

    Raises:
        ImportError: One of them is missing; the message names the extra ``train``.
    """
    av = require("av", extra="train", feature="compressing pictures as videos are")
    if _ENCODER not in av.codecs_available:
        raise ImportError(
            f"this PyAV was built without {_ENCODER}; install its wheel (pip install av), or leave "
            "H.264 out with DegradeConfig(video=0)"
        )
    return av
