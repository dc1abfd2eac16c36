"""Animated GIF, WebP, PNG and AVIF files, read frame by frame like videos."""

from collections.abc import Generator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from llava_forgery.faces.containers import gif_frames, missing_bytes
from llava_forgery.faces.video import Video
from llava_forgery.images import open_image, to_rgb

# Duration that browsers use for a frame without one, or with less than 20 ms.
_SHORTEST, _USUAL_SECONDS = 0.02, 0.1


class Animation:
    """An animated picture with the interface of :class:`~llava_forgery.faces.video.Video`.

    Args:
        path: File to read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an animation, is cut off, or exceeds the limit against
            decompression bombs; the message names it.
    """

    def __init__(self, path: str | PathLike) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} is not a file; check the path")
        with self.path.open("rb") as file:
            whole = file.read(3) != b"GIF" or gif_frames(file)[1]
        if not whole or missing_bytes(self.path):
            raise ValueError(f"{path} is cut off: its end is missing")
        self._seconds: list[float] = []
        now = 0.0
        with open_image(self.path, str(path)) as image:
            for frame in range(getattr(image, "n_frames", 1)):
                image.seek(frame)
                image.load()
                self._seconds.append(now)
                length = image.info.get("duration", 0) / 1000
                now += length if length >= _SHORTEST else _USUAL_SECONDS

    def __len__(self) -> int:
        return len(self._seconds)

    def seconds(self, number: int) -> float:
        """Time at which a frame is shown, in seconds from the beginning.

        Args:
            number: Number of the frame, from 0.
        """
        return self._seconds[number]

    def read(self, numbers: Sequence[int]) -> Generator[tuple[int, np.ndarray], None, None]:
        """Decode frames.

        Args:
            numbers: Ascending frame numbers from 0.

        Yields:
            The number and the frame, (H, W, 3) uint8 sRGB; transparent pixels are blended with
            white.

        Raises:
            ValueError: The animation has no such frame, or a frame cannot be decoded.
        """
        if numbers and not 0 <= numbers[0] <= numbers[-1] < len(self):
            raise ValueError(
                f"{self.path} has {len(self)} frames, asked for {numbers[0]} to {numbers[-1]}"
            )
        with open_image(self.path, str(self.path)) as image:
            for number in numbers:
                image.seek(number)
                yield number, to_rgb(image)


def open_video(path: str | PathLike) -> Video | Animation:
    """Open a video or an animated picture, depending on the file's content.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read; the message names it.
        ImportError: The file is a video and PyAV is not installed (extra ``video``).
    """
    path = Path(path)
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(12)
    animated = head.startswith((b"GIF8", b"\x89PNG")) or head[8:12] in (b"WEBP", b"avis")
    return Animation(path) if animated else Video(path)
