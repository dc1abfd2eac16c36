"""Single frames of a video, selected by number and read without decoding those in between."""

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from llava_forgery.faces.containers import is_text, missing_bytes
from llava_forgery.faces.frames import TRANSFERS, display_matrix, square_pixels, to_rgb, upright
from llava_forgery.optional import require

logger = logging.getLogger(__name__)

# Containers that store the time of every frame. In others, such as MPEG program streams, times
# after a seek are guesses, and frames are counted from the start.
_TIMED = {"mov", "matroska", "avi"}
# Decoding this many frames costs about as much as a seek.
_WORTH_A_SEEK = 16


@dataclass(frozen=True)
class FrameChoice:
    """Frames of a video to read; exactly one of the two fields is set."""

    count: int | None = 32
    """Number of evenly spaced frames: the middles of as many equal parts. All of shorter videos."""
    every: int | None = None
    """Read every Nth frame, from the first."""

    def __post_init__(self) -> None:
        if (self.count is None) == (self.every is None):
            raise ValueError(
                f"give count or every, one of them, got count={self.count}, every={self.every}"
            )
        if (self.count or self.every or 0) < 1:
            raise ValueError(
                f"expected 1 or more frames, got count={self.count}, every={self.every}"
            )

    def numbers(self, length: int) -> list[int]:
        """Frame numbers from 0, ascending, of a video of ``length`` frames."""
        if self.every is not None:
            return list(range(0, length, self.every))
        count = min(self.count or 0, length)
        return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def frame_choice(count: int | None, every: int | None) -> FrameChoice:
    """The choice from a user's options; the default if neither is given."""
    return FrameChoice() if count is every is None else FrameChoice(count, every)


def require_pyav() -> ModuleType:
    """PyAV, or an ImportError that names the extra ``video``."""
    return require("av", extra="video", feature="reading videos")


class Video:
    """A video file whose frames are read by number.

    The file's packets are listed first, without decoding: their times number the frames. Reading
    then seeks from key frame to key frame. Damage in the middle of a Matroska or WebM file is not
    detectable: its frames are missing, and later ones get lower numbers. Of several streams, the
    one is read that moves, is marked as the default and has the most pixels, in this order; cover
    art and thumbnails are ignored.

    Args:
        path: File to read.

    Raises:
        ImportError: PyAV is not installed (extra ``video``).
        FileNotFoundError: There is no such file.
        ValueError: The file is not a video, is cut off, or exceeds Pillow's limit against
            decompression bombs; the message names it.
    """

    def __init__(self, path: str | PathLike) -> None:
        self.path = Path(path)
        self._av = require_pyav()
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} is not a file; check the path")
        missing = missing_bytes(self.path)
        if missing:
            raise ValueError(f"{path} is cut off: it lacks {missing:,} bytes of what it declares")
        # Playlists and lists of files are text; FFmpeg would open the files that they name.
        if is_text(self.path):
            raise ValueError(f"{path} could not be read as a video: it is a text")
        try:
            with self._open() as container:
                self._list_frames(container)
        except self._av.FFmpegError as error:
            raise ValueError(f"{path} could not be read as a video: {error.strerror}") from error

    def __len__(self) -> int:
        return len(self._seconds)

    def seconds(self, number: int) -> float:
        """Time at which a frame is shown, in seconds from the file's beginning.

        Args:
            number: Number of the frame, from 0.
        """
        return self._seconds[number]

    def read(self, numbers: Sequence[int]) -> Generator[tuple[int, np.ndarray], None, None]:
        """Decode frames.

        High dynamic range (PQ, HLG) is converted to the standard range, with a warning.

        Args:
            numbers: Ascending frame numbers from 0.

        Yields:
            The number and the frame as players show it, (H, W, 3) uint8 RGB: upright, with square
            pixels, in sRGB.

        Raises:
            ValueError: The video has no such frame, or a frame cannot be decoded.
        """
        if numbers and not 0 <= numbers[0] <= numbers[-1] < len(self):
            raise ValueError(
                f"{self.path} has {len(self)} frames, asked for {numbers[0]} to {numbers[-1]}"
            )
        try:
            with self._open() as container:
                stream = container.streams[self._stream]
                transfer = stream.codec_context.color_trc
                if transfer in TRANSFERS:
                    logger.warning(
                        "%s has high dynamic range (%s); its frames are converted to the standard "
                        "range, which detectors were not trained on",
                        self.path, TRANSFERS[transfer],
                    )  # fmt: skip
                aspect = float(stream.sample_aspect_ratio or 1)
                for number, frame in self._frames(container, numbers):
                    if frame.is_corrupt:
                        raise ValueError(f"frame {number} of {self.path} is damaged")
                    self._check_size(frame.width, frame.height, aspect)
                    try:
                        pixels = square_pixels(to_rgb(frame, transfer), aspect)
                        pixels = upright(pixels, display_matrix(frame))
                    except ValueError as error:
                        raise ValueError(f"{self.path} cannot be read: {error}") from error
                    yield number, pixels
        except self._av.FFmpegError as error:
            raise ValueError(
                f"{self.path} could not be decoded as a video: {error.strerror}"
            ) from error

    def _open(self) -> Any:
        return self._av.open(str(self.path), metadata_errors="replace")

    def _check_size(self, width: int, height: int, aspect: float) -> None:
        pixels = width * height * max(aspect, 1 / aspect)
        if pixels > (Image.MAX_IMAGE_PIXELS or float("inf")):
            raise ValueError(
                f"{self.path} has frames of {pixels:,.0f} pixels ({width} x {height}), more than "
                f"{Image.MAX_IMAGE_PIXELS:,}, the limit against decompression bombs"
            )

    def _list_frames(self, container: Any) -> None:
        """Choose the stream and number its frames by their times."""
        kind = container.format.name
        if kind.endswith("_pipe") or kind.startswith("image2"):
            raise ValueError(f"{self.path} is a picture ({kind}), not a video; name it as one")
        still = self._av.stream.Disposition.attached_pic | self._av.stream.Disposition.still_image
        still |= self._av.stream.Disposition.timed_thumbnails
        streams = [s for s in container.streams.video if not s.disposition & still]
        if not streams:
            cover = " and a cover" if container.streams.video else ""
            raise ValueError(f"{self.path} holds no moving pictures, only sound or text{cover}")
        # Packets that an edit list excludes, and the empty one at the end, show nothing.
        packets = {stream.index: [] for stream in streams}
        for packet in container.demux(streams):
            if packet.size and not packet.is_discard:
                packets[packet.stream_index].append((packet.pts, packet.is_keyframe))
        stream = max(
            streams,
            key=lambda s: (
                len(packets[s.index]) > 1,
                bool(s.disposition & self._av.stream.Disposition.default),
                s.width * s.height if s.codec_context else 0,
            ),
        )
        if stream.codec_context is None:
            raise ValueError(f"{self.path} has a codec that this PyAV does not support")
        self._check_size(stream.width, stream.height, float(stream.sample_aspect_ratio or 1))
        listed = packets[stream.index]
        if not any(is_key for _, is_key in listed):
            raise ValueError(f"{self.path} holds no frames")
        self._stream = stream.index
        # Packets before the first key frame of a broadcast belong to frames before the recording.
        while not listed[0][1]:
            del listed[0]
        times = sorted(pts for pts, _ in listed if pts is not None)
        known = len(set(times)) == len(listed)
        if known:
            # Skipped sound that starts before 0 shifts nothing.
            begin = max(0, container.start_time or 0) / self._av.time_base
            self._seconds = [float(time * stream.time_base) - begin for time in times]
        else:
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            self._seconds = [number / rate for number in range(len(listed))]
        # If frames are counted, their numbers and no key frames.
        timed = known and kind.split(",")[0] in _TIMED
        self._times = times if timed else list(range(len(listed)))
        self._keys = sorted(pts for pts, is_key in listed if is_key) if timed else []

    def _frames(self, container: Any, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
        stream = container.streams[self._stream]
        # Several processes read several files; threads within a frame would slow them down.
        stream.codec_context.thread_count = 1
        decoded = container.decode(stream) if self._keys else _from_first_key(container, stream)
        position = -1
        for number in numbers:
            if not self._keys:
                frame = None
                while position < number:
                    frame = next(decoded, None)
                    position += 1
            else:
                time = self._times[number]
                key = self._keys[max(0, bisect_right(self._keys, time) - 1)]
                if bisect_left(self._times, key) - position > _WORTH_A_SEEK:
                    container.seek(key, stream=stream)
                    decoded = container.decode(stream)
                    frame = next(decoded, None)
                    if frame is None or frame.pts > time:
                        # Some containers only guess the position of a time.
                        yield from self._from_start(numbers[numbers.index(number) :])
                        return
                else:
                    frame = next(decoded, None)
                while frame is not None and frame.pts < time:
                    frame = next(decoded, None)
                if frame is not None and frame.pts != time:
                    raise ValueError(f"{self.path} is damaged: its frame {number} is missing")
                position = number
            if frame is None:
                raise ValueError(f"{self.path} ends before its frame {number}")
            yield number, frame

    def _from_start(self, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
        with self._open() as container:
            wanted = {self._times[number]: number for number in numbers}
            for frame in container.decode(container.streams[self._stream]):
                if frame.pts in wanted:
                    yield wanted.pop(frame.pts), frame
                if not wanted:
                    return
            raise ValueError(f"{self.path} ends before its frame {min(wanted.values())}")


def _from_first_key(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames except those whose key frame is not in the file."""
    started = False
    for packet in container.demux(stream):
        started = started or packet.is_keyframe
        if started:
            yield from packet.decode()
