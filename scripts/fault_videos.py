"""Videos as phones, cameras and attackers write them, for fault_campaign.

Each shows the one photograph in all frames, however it is stored, or must be refused.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from fault_inputs import SAME, Input, data_file
from PIL import Image


def write_video(path: Path, frames: list[np.ndarray], codec: str = "libx264", *, form="yuv420p",
                matrix: int = 5, full: bool = False, **options: Any) -> None:  # fmt: skip
    """Write (H, W, 3) uint8 frames; options are the encoder's, ``aspect`` the pixels' shape."""
    aspect = options.pop("aspect", None)
    start = {"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}
    kind = None if path.suffix in _CONTAINERS else "mp4"
    with av.open(str(path), "w", format=kind, options=start) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = form
        stream.options = {key: str(value) for key, value in options.items()}
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, 2 if full else 1
        if aspect:
            context.sample_aspect_ratio = aspect
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels))
            frame = frame.reformat(
                format=form,
                src_colorspace=5,
                dst_colorspace=matrix,
                src_color_range=2,
                dst_color_range=2 if full else 1,
            )
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


_CONTAINERS = (
    ".mp4",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".ts",
    ".mpg",
    ".wmv",
    ".3gp",
    ".flv",
    ".mxf",
)


def _filmed(codec: str = "libx264", **options: Any) -> Callable[[Path, Image.Image], object]:
    return lambda path, photo: write_video(path, [np.asarray(photo)] * 5, codec, **options)


def whole_videos() -> Iterator[Input]:
    """Files that show the photograph."""
    fine = {"crf": 12}
    yield Input("film.mp4", _filmed(**fine), SAME)
    yield Input("film.mov", _filmed(**fine), SAME)
    yield Input("film.mkv", _filmed(**fine), SAME)
    yield Input("film.3gp", _filmed(**fine), SAME)
    yield Input("film.flv", _filmed(**fine), SAME)
    yield Input("film.webm", _filmed("libvpx", crf=6, b="4M"), SAME, 12)
    yield Input("film.avi", _filmed("mpeg4", qscale=2), SAME, 12)
    yield Input("film.ts", _filmed("mpeg2video", qscale=2), SAME, 12)
    yield Input("film.mpg", _filmed("mpeg2video", qscale=2), SAME, 12)
    yield Input("film.wmv", _filmed("msmpeg4", qscale=2), SAME, 12)
    yield Input("film named.jpg", _filmed(**fine), SAME)
    yield Input("bt709.mp4", _filmed(matrix=1, **fine), SAME)
    yield Input("bt2020.mp4", _filmed(matrix=9, **fine), SAME)
    yield Input("full range.mp4", _filmed(matrix=1, full=True, **fine), SAME)
    yield Input("ten bits.mp4", _filmed(form="yuv420p10le", **fine), SAME)
    yield Input("wide pixels.mp4", _squeezed, SAME, 12)
    for number, matrix in enumerate(_MATRICES):
        yield Input(f"turned {number}.mp4", _displayed(matrix), SAME)
    yield Input("cover.mp4", _with_cover, SAME)
    yield Input("one frame.mp4", lambda p, i: write_video(p, [np.asarray(i)], crf=12), SAME)
    yield Input("bytes behind.mp4", _and_more(_filmed(**fine)), SAME)
    for name in ("moving.gif", "moving.webp", "moving.png"):
        yield Input(name, _moving, SAME, 12)


def _squeezed(path: Path, photo: Image.Image) -> None:
    small = photo.resize((photo.width // 2, photo.height), Image.Resampling.BOX)
    write_video(path, [np.asarray(small)] * 5, crf=12, aspect=Fraction(2, 1))


def _with_cover(path: Path, photo: Image.Image) -> None:
    """A larger picture, marked as the cover, before the film."""
    with av.open(str(path), "w") as container:
        still = container.add_stream("mjpeg", rate=25)
        still.width, still.height, still.pix_fmt = 640, 480, "yuvj420p"
        still.disposition = av.stream.Disposition.attached_pic.value
        stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = *photo.size, "yuv420p"
        grey = av.VideoFrame.from_ndarray(np.full((480, 640, 3), 128, np.uint8))
        packets = [*still.encode(grey), *still.encode()]
        for _ in range(5):
            packets += stream.encode(av.VideoFrame.from_image(photo))
        container.mux([*packets, *stream.encode()])


def _and_more(make: Callable[[Path, Image.Image], object]) -> Callable[[Path, Image.Image], object]:
    def write(path: Path, photo: Image.Image) -> None:
        make(path, photo)
        path.write_bytes(path.read_bytes() + b"0000SEFT" * 99)

    return write


def _moving(path: Path, photo: Image.Image) -> None:
    # A pixel moves, as encoders drop a frame that repeats the previous one.
    frames = []
    for i in range(4):
        frame = photo.copy()
        frame.putpixel((i, 0), (255, 0, 0))
        frames.append(frame)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)


# Position on the screen of (x, y) in the file: a x + c y, b x + d y.
_MATRICES = ((-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, 1, -1, 0),
             (0, -1, 1, 0), (0, -1, -1, 0))  # fmt: skip


def _displayed(matrix: tuple[int, int, int, int]) -> Callable[[Path, Image.Image], object]:
    """Stored such that its display matrix restores it."""
    a, b, c, d = matrix

    def make(path: Path, photo: Image.Image) -> None:
        # The inverse of what the matrix does to the pixels.
        pixels = np.asarray(photo)
        if (d if a else b) < 0:
            pixels = pixels[::-1]
        if (a or c) < 0:
            pixels = pixels[:, ::-1]
        if not a:
            pixels = pixels.swapaxes(0, 1)
        write_video(path, [pixels] * 5, crf=12)
        data = bytearray(path.read_bytes())
        at = data.find(b"tkhd") + 44
        data[at : at + 20] = np.array([a << 16, b << 16, 0, c << 16, d << 16], ">i4").tobytes()
        path.write_bytes(data)

    return make


def _cut_film(codec: str, share: float, **options: Any) -> Callable[[Path, Image.Image], object]:
    def make(path: Path, photo: Image.Image) -> None:
        _filmed(codec, **options)(path, photo)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return make


def broken_videos() -> Iterator[Input]:
    """Files that are not a video, incomplete, or without a face."""
    yield Input("cut.mp4", _cut_film("libx264", 0.7))
    yield Input("cut.mkv", _cut_film("libx264", 0.7))
    yield Input("cut.avi", _cut_film("mpeg4", 0.7))
    yield Input("empty.mp4", data_file(b""))
    yield Input("text.mov", data_file(b"no video"))
    yield Input("photo in.mkv", data_file(b"\x1a\x45\xdf\xa3" + bytes(99)))
    yield Input("list.mp4", data_file(b"ffconcat version 1.0\nfile film.mp4\n"))
    yield Input(
        "playlist.mp4", data_file(b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfilm.ts\n")
    )
    yield Input("sound.mp4", _sound)
    yield Input("strange codec.avi", _strange_codec)
    yield Input("sloping.mp4", _sloping)
    yield Input(
        "no face.mp4", lambda p, i: write_video(p, [np.full((320, 320, 3), 99, np.uint8)] * 3)
    )


def _sound(path: Path, photo: Image.Image) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux([*stream.encode(silence), *stream.encode()])


def _strange_codec(path: Path, photo: Image.Image) -> None:
    _filmed("mpeg4")(path, photo)
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))


def _sloping(path: Path, photo: Image.Image) -> None:
    _filmed()(path, photo)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    data[at : at + 20] = np.array([56756, 32768, 0, -32768, 56756], ">i4").tobytes()
    path.write_bytes(data)
