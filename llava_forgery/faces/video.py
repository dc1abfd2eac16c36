"""Single frames of a video, chosen by number and read without decoding what lies between."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from llava_forgery.optional import require

# Containers round their durations; less than this share of what they announce is a cut file.
_WHOLE = 0.9
# Containers that store the time of every frame. In others, such as MPEG program streams, the times
# after a jump are guesses, and frames are counted from the start.
_TIMED = {"mov", "matroska", "avi"}
# Decoding so many frames costs about as much as finding a place in the file.
_WORTH_A_SEEK = 16


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video are looked at; one of the two is given."""

    count: int | None = 32
    """So many, spread evenly: the middles of as many equal parts. Shorter videos give all."""
    every: int | None = None
    """Every so many-th frame, from the first on."""

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
    """The choice from what a user gave; the default where it is nothing."""
    return FrameChoice() if count is every is None else FrameChoice(count, every)


def require_pyav() -> ModuleType:
    """PyAV, or an ImportError that names the extra ``video``."""
    return require("av", extra="video", feature="reading videos")


class Video:
    """A video file whose frames are read by number.

    The file's packets are listed first, without decoding: their times number the frames and show
    where the file was cut off. Reading then goes from key frame to key frame. Damage in the middle
    of a Matroska or WebM file leaves no trace: its frames are missing, and later ones count lower.

    Args:
        path: The file.

    Raises:
        ImportError: PyAV is not installed (extra ``video``).
        FileNotFoundError: There is no such file.
        ValueError: Not a video, cut off, or larger than Pillow's guard against decompression
            bombs; the message names the file.
    """

    def __init__(self, path: str | PathLike) -> None:
        self.path = Path(path)
        self._av = require_pyav()
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} is not a file; check the path")
        try:
            with self._open() as container:
                self._times, self._keys = self._list_packets(container)
        except self._av.FFmpegError as error:
            raise ValueError(f"{path} could not be read as a video: {error.strerror}") from error

    def __len__(self) -> int:
        return len(self._times)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Decode frames.

        Args:
            numbers: Ascending frame numbers from 0.

        Yields:
            The number and the frame, (H, W, 3) uint8 RGB, upright.

        Raises:
            ValueError: A number that the video lacks, or a frame that cannot be decoded.
        """
        if numbers and not 0 <= numbers[0] <= numbers[-1] < len(self):
            raise ValueError(
                f"{self.path} has {len(self)} frames, asked for {numbers[0]} to {numbers[-1]}"
            )
        try:
            with self._open() as container:
                for number, frame in self._frames(container, numbers):
                    if frame.is_corrupt:
                        raise ValueError(f"frame {number} of {self.path} is damaged")
                    # Telephones store their pictures lying, and how to turn them.
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    yield number, np.ascontiguousarray(pixels)
        except self._av.FFmpegError as error:
            raise ValueError(
                f"{self.path} could not be decoded as a video: {error.strerror}"
            ) from error

    def _open(self) -> Any:
        return self._av.open(str(self.path), metadata_errors="replace")

    def _list_packets(self, container: Any) -> tuple[list[int], list[int]]:
        """Times of all frames and of key frames; where frames are counted, numbers and none."""
        kind = container.format.name
        if kind.endswith("_pipe") or kind.startswith("image2"):
            raise ValueError(f"{self.path} is a picture ({kind}), not a video; name it as one")
        if not container.streams.video:
            raise ValueError(f"{self.path} holds no pictures, only sound or text")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError(f"{self.path} is of a codec that this PyAV does not know")
        if stream.width * stream.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
            raise ValueError(
                f"{self.path} has frames of {stream.width} x {stream.height}, more than "
                f"{Image.MAX_IMAGE_PIXELS} pixels, the limit against decompression bombs"
            )
        # Packets that an edit list leaves out, and the empty one at the end, show nothing.
        packets = [
            (packet.pts, packet.duration or 0, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
        if not packets:
            raise ValueError(f"{self.path} holds no frames")
        times = sorted(pts for pts, _, _ in packets if pts is not None)
        if len(set(times)) != len(packets) or kind.split(",")[0] not in _TIMED:
            return list(range(len(packets))), []
        self._check_whole(container, stream, len(packets), times[-1] + packets[-1][1] - times[0])
        return times, sorted(pts for pts, _, is_key in packets if is_key)

    def _check_whole(self, container: Any, stream: Any, count: int, span: int) -> None:
        lengths = []
        if container.duration:
            lengths.append(container.duration / self._av.time_base)
        if stream.duration:
            lengths.append(float(stream.duration * stream.time_base))
        expected = min(lengths, default=0.0)
        found = float(span * stream.time_base)
        # An edit list of the QuickTime family leaves out frames that its header counts.
        announced = 0 if "mov" in container.format.name else stream.frames
        if found < _WHOLE * expected:
            raise ValueError(f"{self.path} is cut off: it ends at {found:.2f} of {expected:.2f} s")
        if count < _WHOLE * announced:
            raise ValueError(f"{self.path} is cut off: it has {count} of {announced} frames")

    def _frames(self, container: Any, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
        stream = container.streams.video[0]
        # Several processes read several files; threads for one frame would be in their way.
        stream.codec_context.thread_count = 1
        decoded = container.decode(stream)
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
                        # Some containers only guess where a time lies.
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
            for frame in container.decode(container.streams.video[0]):
                if frame.pts in wanted:
                    yield wanted.pop(frame.pts), frame
                if not wanted:
                    return
            raise ValueError(f"{self.path} ends before its frame {min(wanted.values())}")
