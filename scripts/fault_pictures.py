"""Photographs and other files of users and attackers, for fault_campaign.

Each shows the one photograph, however it is stored, or must be refused or passed by.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fault_inputs import PASSED_BY, SAME, Input, converted, data_file, encoded, saved
from PIL import Image, TiffImagePlugin


def _grey(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L"))


def whole_pictures() -> Iterator[Input]:
    """Files that show the photograph."""
    yield Input("jpeg.jpg", saved(quality=95), SAME)
    yield Input("progressive.jpg", saved(quality=90, progressive=True), SAME)
    yield Input("jfif.jfif", saved(format="JPEG"), SAME)
    yield Input("avif.avif", saved(quality=90), SAME)
    yield Input("webp.webp", saved(quality=95), SAME)
    yield Input("bmp.bmp", saved(), SAME)
    yield Input("tiff.tif", saved(compression="tiff_lzw"), SAME)
    yield Input("bigtiff.tif", saved(big_tiff=True), SAME)
    yield Input("gif.gif", saved(), SAME, 12)
    yield Input("mpo.mpo", lambda p, i: i.save(p, "MPO", save_all=True, append_images=[i]), SAME)
    yield Input("heic.heic", _heic, SAME, package="pillow_heif")
    yield Input("heic named.jpg", _heic, SAME, package="pillow_heif")
    yield Input("webp named.jpg", saved(format="WEBP", quality=95), SAME)
    yield Input("no suffix", saved(format="PNG"), SAME)
    yield Input("a.tar.gz", saved(format="PNG"), SAME)
    yield Input("png named.mp4", saved(format="PNG"), SAME)
    yield Input("SHOUTED.JPG", saved(format="JPEG"), SAME)
    for orientation in range(2, 9):
        yield Input(f"exif {orientation}.jpg", _oriented(orientation), SAME)
    yield Input("exif of 99.jpg", _with_exif(99), SAME)
    yield Input("broken exif.jpg", saved(exif=b"Exif\0\0MM\0*\0\0\xff\xff"), SAME)
    yield Input("grey and alpha.png", converted(lambda a: _opaque(_grey(a)[..., None])), SAME, 60)
    yield Input("colour and alpha.png", converted(_opaque), SAME)
    yield Input("see-through.png", converted(_see_through), SAME)
    yield Input("palette.png", lambda p, i: i.quantize(256).save(p), SAME, 12)
    yield Input("16 bits.png", converted(lambda a: _grey(a).astype(np.uint16) * 257), SAME, 60)
    yield Input("cmyk.tif", lambda p, i: Image.fromarray(255 - _inks(i), "CMYK").save(p), SAME)
    yield Input("broken profile.png", saved(icc_profile=b"no profile" * 50), SAME)
    yield Input(
        "bytes behind.jpg", lambda p, i: p.write_bytes(encoded(i, "JPEG") + bytes(999)), SAME
    )
    yield Input("two pages.tif", lambda p, i: i.save(p, save_all=True, append_images=[i]), SAME)


def _heic(path: Path, photo: Image.Image) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    photo.save(path, "HEIF", quality=90)


def _inks(photo: Image.Image) -> np.ndarray:
    pixels = np.asarray(photo)
    return np.dstack([pixels, np.full_like(pixels[..., 0], 255)])


def _opaque(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def _see_through(pixels: np.ndarray) -> np.ndarray:
    """Darkened, with an alpha channel that compensates for it on white."""
    alpha = 200
    colours = (pixels.astype(int) - (255 - alpha)).clip(0) * 255 // alpha
    return np.dstack(
        [colours.clip(0, 255).astype(np.uint8), np.full(pixels.shape[:2], alpha, np.uint8)]
    )


def _with_exif(orientation: int) -> Callable[[Path, Image.Image], object]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(exif=exif, quality=95)


def _oriented(orientation: int) -> Callable[[Path, Image.Image], object]:
    """Stored such that its orientation restores it."""
    moves = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    move = Image.Transpose(moves[orientation])
    return lambda path, photo: _with_exif(orientation)(path, photo.transpose(move))


def _cut(form: str, share: float = 0.6, **options: Any) -> Callable[[Path, Image.Image], object]:
    def make(path: Path, photo: Image.Image) -> None:
        data = encoded(photo, form, **options)
        path.write_bytes(data[: int(len(data) * share)])

    return make


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    """A black PNG of one bit per pixel, a few kilobytes whatever its size."""
    row = zlib.compress(bytes(height * ((width + 7) // 8 + 1)), 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"".join([b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", head), *chunks,
                     _chunk(b"IDAT", row), _chunk(b"IEND", b"")])  # fmt: skip


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def broken_pictures() -> Iterator[Input]:
    """Files that are not a picture, incomplete, or without a face."""
    for form, name in (("JPEG", "cut.jpg"), ("PNG", "cut.png"), ("WEBP", "cut.webp"),
                       ("TIFF", "cut.tif"), ("AVIF", "cut.avif"), ("GIF", "cut.gif"),
                       ("BMP", "cut.bmp")):  # fmt: skip
        yield Input(name, _cut(form))
    yield Input("empty.jpg", data_file(b""))
    yield Input("page.jpg", data_file(b"<!DOCTYPE html><html>404</html>"))
    yield Input("answer.png", data_file(b'{"error": "not found"}'))
    yield Input("document.jpg", data_file(b"%PDF-1.7\n1 0 obj\n"))
    yield Input("archive.jpg", data_file(b"PK\3\4" + bytes(60)))
    yield Input(
        "postscript.jpg", data_file(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    )
    yield Input("drawing.svg", data_file(b"<svg xmlns='http://www.w3.org/2000/svg'/>"))
    yield Input("lossless.jxl", data_file(b"\xff\x0a" + bytes(60)))
    yield Input("layers.psd", data_file(b"8BPS\0\1" + bytes(60)))
    yield Input("camera.nef", _reduced)
    yield Input("camera.cr3", data_file(b"\0\0\0\x18ftypcrx " + bytes(60)))
    yield Input("heic without pictures.heic", data_file(b"\0\0\0\x18ftypheic" + bytes(60)))
    yield Input("floats.tif", lambda p, i: Image.new("F", (64, 64)).save(p))
    yield Input(
        "32 bits.tif", lambda p, i: Image.fromarray(np.full((64, 64), 1 << 20, np.int32)).save(p)
    )
    yield Input("bomb.png", data_file(_png(40_000, 40_000)))
    yield Input(
        "bomb of text.png",
        data_file(_png(64, 64, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 28))))),
    )
    yield Input(
        "bomb.gif",
        data_file(b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2\x44\1\0;"),
    )
    yield Input("bomb.jpg", lambda p, i: p.write_bytes(_resized_jpeg(encoded(i, "JPEG"))))
    yield Input("one pixel.png", lambda p, i: Image.new("RGB", (1, 1)).save(p))
    yield Input("a line.png", lambda p, i: Image.new("RGB", (3000, 1)).save(p))
    yield Input("no face.png", lambda p, i: Image.new("RGB", (320, 320), "grey").save(p))


def _reduced(path: Path, photo: Image.Image) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    photo.save(path, "TIFF", tiffinfo=tags)


def _resized_jpeg(data: bytes) -> bytes:
    """A JPEG whose header says 65,500 pixels per side."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", 65_500, 65_500) + data[at + 4 :]


def odd_names() -> Iterator[Input]:
    """Names, links and pipes."""
    jpeg = saved(format="JPEG", quality=95)
    yield Input("Ünïcode ñame 😀.jpg", jpeg, SAME)
    yield Input("-rf.jpg", jpeg, SAME)
    yield Input("a b  c.jpg", jpeg, SAME)
    yield Input("deep/er/and/deeper/a.jpg", jpeg, SAME)
    yield Input("folder.mp4/a.jpg", jpeg, SAME)
    yield Input("n" * 240 + ".jpg", jpeg, SAME)
    yield Input(os.fsdecode(b"latin-\xe4.jpg"), jpeg)
    yield Input("gone.jpg", lambda p, i: p.symlink_to("nowhere.jpg"))
    yield Input("loop", lambda p, i: p.symlink_to("."))
    yield Input("itself.png", lambda p, i: p.symlink_to("itself.png"))
    yield Input("pipe.mp4", lambda p, i: os.mkfifo(p))
    yield Input(".hidden.jpg", jpeg, PASSED_BY)


def other_files() -> Iterator[Input]:
    """Files that are neither picture nor video."""
    yield Input("notes.txt", data_file(b"text"), PASSED_BY)
    yield Input("labels.csv", data_file(b"file,label\n"), PASSED_BY)
    yield Input("module.ts", data_file(b"export const G = 'G';\n" * 300), PASSED_BY)
    yield Input("song.mp3", data_file(b"ID3\4" + bytes(99)), PASSED_BY)
    yield Input("song.m4a", data_file(b"\0\0\0\x18ftypM4A " + bytes(99)), PASSED_BY)
