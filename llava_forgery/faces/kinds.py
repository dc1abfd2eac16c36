"""Whether a file is a picture or a video, by its content or else its name."""

import io
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from llava_forgery.faces.containers import gif_frames
from llava_forgery.images import HEIF_BRANDS, SUFFIXES


class Kind(StrEnum):
    """How a file is read."""

    PICTURE = "picture"
    VIDEO = "video"
    """Includes animations."""


VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mj2", ".mkv", ".webm", ".avi"),
    *(".divx", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".m2ts", ".mts", ".wmv", ".asf"),
    *(".flv", ".ogv", ".ogm", ".mxf", ".rm", ".rmvb", ".dv", ".nut", ".ivf", ".y4m", ".h264"),
    *(".264", ".hevc", ".h265", ".265", ".wtv", ".gxf"),
)
"""Suffixes of videos. ``.ts`` is not among them, as TypeScript uses it too; there only the content
counts."""

_OTHER_PICTURES = (
    *(".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".ico", ".svg", ".eps", ".ppm", ".pgm", ".pbm"),
    *(".tga", ".pcx", ".exr", ".hdr", ".dds", ".qoi", ".dib", ".dng", ".cr2", ".cr3", ".nef"),
    *(".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
)
"""Pictures that are not supported: reading them raises an error that says so."""

_SOUND_SUFFIXES = (".mka", ".weba", ".wma", ".oga", ".ogg", ".opus", ".m4a", ".m4b", ".m4p")

_HEAD, _MORE = 1 << 12, 1 << 16
# Signatures at the beginning of files.
_PICTURES = (
    *(b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"8BPS", b"\xff\x0a", b"qoif"),
    *(b"\0\0\0\x0cJXL \r\n\x87\n", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    *(b"\x76\x2f\x31\x01", b"#?RADIANCE", b"DDS "),
)
_VIDEOS = (
    *(b"FLV\x01", b".RMF", b"DKIF", b"YUV4MPEG2", b"nut/multimedia container", b"\x1f\x07\0"),
    *(b"\0\0\x01\xba", b"\0\0\x01\xb3", b"\0\0\x01\xb0", b"\x06\x0e\x2b\x34\x02\x05\x01\x01"),
    *(b"\0\0\0\x01\x67", b"\0\0\0\x01\x27", b"\0\0\0\x01\x40\x01", b"\0\0\x01\x67"),
    *(b"\0\0\0\0\x01\xbc", b"\xb7\xd8\x00\x20\x37\x49\xda\x11"),
)
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_VIDEO = bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b")
_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"moof", b"styp")
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}


def kind_of(path: Path) -> Kind | None:
    """The kind of a file; None if it is neither picture nor video.

    Args:
        path: File; if it does not exist, its name decides.

    Raises:
        OSError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            kind, sure = _by_content(file, path)
    except FileNotFoundError:
        kind, sure = None, False
    return kind if sure else kind_by_name(path.name)


def kind_by_name(name: str) -> Kind | None:
    """The kind of a file by its name."""
    name = name.lower()
    if name.endswith(VIDEO_SUFFIXES):
        return Kind.VIDEO
    return Kind.PICTURE if name.endswith(SUFFIXES + _OTHER_PICTURES) else None


def _by_content(file: BinaryIO, path: Path) -> tuple[Kind | None, bool]:
    """The kind, and whether the content decided it."""
    head = file.read(_HEAD)
    if head.startswith(b"\x89PNG"):
        return (Kind.VIDEO if _png_frames(file) > 1 else Kind.PICTURE), True
    if head.startswith((b"GIF87a", b"GIF89a")):
        return (Kind.VIDEO if gif_frames(file)[0] > 1 else Kind.PICTURE), True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        moves = head[12:16] == b"VP8X" and head[20] & 2
        return (Kind.VIDEO if moves else Kind.PICTURE), True
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return Kind.VIDEO, True
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return Kind.PICTURE, True
    if head.startswith(_PICTURES):
        return Kind.PICTURE, True
    if head[4:8] == b"ftyp":
        return _by_brand(head[8:12]), True
    if head.startswith(_VIDEOS) or head[4:8] in _BOXES or _is_transport_stream(head):
        return Kind.VIDEO, True
    # Containers that often hold only sound: the name decides.
    sound = path.name.lower().endswith(_SOUND_SUFFIXES)
    head += file.read(_MORE) if sound else b""
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return (None if sound and b"V_" not in head else Kind.VIDEO), True
    if head.startswith(_ASF):
        return (None if sound and _ASF_VIDEO not in head else Kind.VIDEO), True
    if head.startswith(b"OggS"):
        moves = any(name in head for name in (b"theora", b"BBCD\0", b"OVP80", b"video\0"))
        return (Kind.VIDEO if moves else None), True
    return None, False


def _by_brand(brand: bytes) -> Kind | None:
    if brand == b"avis":
        return Kind.VIDEO
    if brand in (*HEIF_BRANDS, b"avif", b"crx ", b"jp2 ", b"jpx ", b"jxl "):
        return Kind.PICTURE
    return None if brand in (b"M4A ", b"M4B ", b"M4P ", b"F4A ") else Kind.VIDEO


def _is_transport_stream(head: bytes) -> bool:
    """MPEG-2, whose packets begin with "G"; also truncated within a packet, or with time stamps."""
    for step in (188, 192, 204):
        for start in range(min(step, len(head))):
            marks = head[start : start + 8 * step : step]
            if len(marks) >= 3 and marks.count(b"G") == len(marks):
                # Text may contain such bytes too, but is not a stream.
                return b"\0" in head
    return False


def _png_frames(file: BinaryIO) -> int:
    """Number of frames of an animated PNG; 1 for any other."""
    file.seek(8)
    while True:
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"acTL":
            return int.from_bytes(file.read(4), "big")
        if len(head) < 8 or kind in (b"IDAT", b"IEND"):
            return 1
        file.seek(length + 4, io.SEEK_CUR)
