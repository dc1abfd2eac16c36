"""What a client uploads: told apart by content, held in memory, within the limits."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL import Image

from llava_forgery.faces.video import FrameChoice, Video, require_pyav
from llava_forgery.images import decode_image, is_heif
from llava_forgery.serve.errors import ApiError
from llava_forgery.serve.settings import Settings

# Matroska and WebM, MPEG streams, Flash, Windows Media. Nothing else reaches FFmpeg, some of whose
# formats, such as playlists, name further files.
_VIDEO_MAGIC = (
    b"\x1a\x45\xdf\xa3",
    b"\x00\x00\x01\xba",
    b"\x00\x00\x01\xb3",
    b"FLV\x01",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
)
# Control characters, and what reorders or hides text.
UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_NAME_LENGTH = 120


@dataclass(frozen=True)
class Upload:
    """A file that a client sent."""

    data: bytes
    name: str
    """Its name without folders, for people; nothing is opened by it."""

    @classmethod
    def of(cls, data: bytes, name: str) -> "Upload":
        """From what the client says.

        Raises:
            ApiError: 400 for an empty file.
        """
        if not data:
            raise ApiError(400, "the file is empty", "media")
        name = UNPRINTABLE.sub("", PurePosixPath(name.replace("\\", "/")).name)
        return cls(data, name[-_NAME_LENGTH:] or "unnamed")

    @cached_property
    def sha256(self) -> str:
        """Of the bytes as they came, in hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def is_video(self) -> bool:
        """Whether its first bytes are those of a video; otherwise it may be a picture."""
        head = self.data[:16]
        if head[4:8] == b"ftyp":
            return not is_heif(head) and head[8:12] not in (b"avif", b"avis")
        if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):
            return True
        if head[:4] == b"RIFF":
            return head[8:12] == b"AVI "
        if head[:1] == b"G" and self.data[188:189] == b"G" and self.data[376:377] == b"G":
            return True
        return head.startswith(_VIDEO_MAGIC)


def open_picture(upload: Upload) -> Image.Image:
    """Decode a picture.

    Raises:
        ApiError: 400 for what is none, is broken, or larger than ``images.pixel_limit``.
    """
    try:
        return decode_image(upload.data, upload.name)
    except ValueError as error:
        raise ApiError(400, str(error), "media") from None


@contextmanager
def video_file(upload: Upload, settings: Settings) -> Iterator[Path]:
    """A path under which a video can be opened; its bytes stay in memory where Linux allows it.

    Elsewhere they are a file for their owner only, removed at the end.

    Raises:
        ApiError: 400 for what cannot be read as a video, or is beyond the limits; 501 where PyAV
            is missing.
    """
    with tempfile.TemporaryDirectory(prefix="llava-forgery-") as folder:
        # The suffix is that of any video: readers tell its kind by its content.
        path = Path(folder) / "upload.mp4"
        if hasattr(os, "memfd_create"):
            with open(os.memfd_create("upload"), "wb") as memory:
                memory.write(upload.data)
                memory.flush()
                path.symlink_to(f"/proc/{os.getpid()}/fd/{memory.fileno()}")
                yield _checked(path, upload, settings)
        else:
            path.write_bytes(upload.data)
            yield _checked(path, upload, settings)


def _checked(path: Path, upload: Upload, settings: Settings) -> Path:
    try:
        av = require_pyav()
    except ImportError as error:
        raise ApiError(501, str(error), "media") from None
    try:
        with av.open(str(path)) as container:
            seconds = (container.duration or 0) / av.time_base
        frames = len(Video(path))
    except (ValueError, av.FFmpegError) as error:
        raise ApiError(400, without_path(error, path, upload), "media") from None
    # What a file says of its length may be wrong; its frames were counted.
    if seconds > settings.max_seconds or frames > 120 * settings.max_seconds:
        raise ApiError(400, f"{upload.name} is longer than {settings.max_seconds} s, the limit; "
                       "send a part of it", "media")  # fmt: skip
    return path


def frames_of(path: Path, choice: FrameChoice, settings: Settings) -> int:
    """How many frames of a video are to be judged.

    Raises:
        ApiError: 400 for more than the limit.
    """
    count = len(choice.numbers(len(Video(path))))
    if count > settings.max_frames:
        raise ApiError(400, f"{count} frames are asked for; the limit is {settings.max_frames}",
                       "media", "frames")  # fmt: skip
    return count


def without_path(error: Exception, path: Path, upload: Upload) -> str:
    """What an error says, with the client's name of the file in the place of ours."""
    text = str(error).replace(str(path), upload.name).replace(str(path.parent), "")
    return text.replace(path.name, upload.name)
