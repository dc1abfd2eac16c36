"""Whether a video file is complete, by the sizes that its container declares."""

import os
from pathlib import Path
from typing import BinaryIO

_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"styp", b"sidx"}
_NEEDED = {b"moov", b"mdat", b"moof"}
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def missing_bytes(path: Path) -> int:
    """Number of bytes that a file lacks of the size that its outermost parts declare.

    Supports the MP4 and QuickTime family, Matroska and WebM, and AVI; live recordings, whose parts
    are open-ended, and other containers declare nothing.

    Args:
        path: File to check.

    Returns:
        0 if nothing is missing, or nothing is declared.
    """
    size = os.path.getsize(path)
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == _EBML:
            end = _matroska_end(file)
        elif head[:4] == b"RIFF":
            end = 8 + int.from_bytes(head[4:8], "little")
        elif head[4:8] in _BOXES:
            end = _boxes_end(file, size)
        else:
            end = 0
    return max(0, end - size)


def _boxes_end(file: BinaryIO, size: int) -> int:
    """End of the last box that holds or lists pictures; data appended by others is ignored."""
    start = end = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        # 0: up to the end of the file.
        if kind not in _BOXES or length < 8:
            break
        if kind in _NEEDED:
            end = start + length
        start += length
    return end


def _matroska_end(file: BinaryIO) -> int:
    file.seek(4)
    length = _vint(file)
    if length is None:
        return 0
    file.seek(length, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return 0
    length = _vint(file)
    return 0 if length is None else file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """EBML's integer of variable length; None if it means that the length is unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> more)]) + file.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value


def is_text(path: Path) -> bool:
    """Whether a file begins like a text, which no video container does."""
    with path.open("rb") as file:
        head = file.read(4096)
    # One format of uncompressed video has a text header.
    if not head or b"\0" in head or head.startswith(b"YUV4MPEG2"):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # The last character may be incomplete.
        return error.start > len(head) - 4
    return True


def gif_frames(file: BinaryIO) -> tuple[int, bool]:
    """Number of pictures in a GIF, and whether it is complete.

    Args:
        file: File open for reading bytes.
    """
    file.seek(0)
    head = file.read(13)
    _skip_palette(file, head[10:11])
    frames = 0
    while (mark := file.read(1)) in (b"!", b","):
        if mark == b"!":
            file.read(1)
        else:
            _skip_palette(file, file.read(9)[8:9])
            file.read(1)
        if not _skip_blocks(file):
            return frames, False
        frames += mark == b","
    return frames, mark == b";"


def _skip_palette(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << ((flags[0] & 7) + 1), os.SEEK_CUR)


def _skip_blocks(file: BinaryIO) -> bool:
    """Whether all blocks of a part, up to the empty one, exist."""
    while length := file.read(1):
        if length == b"\0":
            return True
        if len(file.read(length[0])) < length[0]:
            return False
    return False
