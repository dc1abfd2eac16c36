"""Whether a video file is all there, by the sizes that its container declares."""

import os
from pathlib import Path
from typing import BinaryIO

_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"styp", b"sidx"}
_NEEDED = {b"moov", b"mdat", b"moof"}
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def missing_bytes(path: Path) -> int:
    """How many bytes a file lacks of what its outermost parts declare.

    Knows the MP4 and QuickTime family, Matroska and WebM, and AVI; live recordings, whose parts are
    open-ended, and other containers declare nothing.

    Args:
        path: The file.

    Returns:
        0 where nothing is missing, or nothing is declared.
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
    """Where the last box that holds or lists pictures ends; what others append is not read."""
    start = end = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        # 0: as far as the file goes.
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
    """EBML's integer of variable length; None where it says that the length is not known."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> more)]) + file.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value


def is_text(path: Path) -> bool:
    """Whether a file begins as a text does, which no container of videos is."""
    with path.open("rb") as file:
        head = file.read(4096)
    # Uncompressed video of one format has a header of text.
    if not head or b"\0" in head or head.startswith(b"YUV4MPEG2"):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # A character may be cut in two at the end.
        return error.start > len(head) - 4
    return True


def gif_frames(file: BinaryIO) -> tuple[int, bool]:
    """How many pictures a GIF holds, and whether it has its end.

    Args:
        file: Open for reading bytes.
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
    """Whether the blocks of a part, up to the empty one, are all there."""
    while length := file.read(1):
        if length == b"\0":
            return True
        if len(file.read(length[0])) < length[0]:
            return False
    return False
