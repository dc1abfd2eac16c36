"""Videos as phones, cameras and broadcasters store them, against what players show."""

from fractions import Fraction

import av
import numpy as np
import pytest

from llava_forgery.faces.frames import square_pixels
from llava_forgery.faces.video import Video
from tests.faces.media import numbered, picture, video

# Red and blue weights of the luma, by H.273's numbers of the matrices.
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
GREEN, WINE = (0, 255, 0), (200, 30, 90)


def stored(rgb, matrix, full, bits=8):
    """Y, Cb and Cr of a colour, by the definition."""
    red, blue = WEIGHTS[matrix]
    r, g, b = (value / 255 for value in rgb)
    y = red * r + (1 - red - blue) * g + blue * b
    cb, cr = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    scales = ((0, 255), (128, 255)) if full else ((16, 219), (128, 224))
    (y0, ys), (c0, cs) = scales
    values = np.array([y0 + ys * y, c0 + cs * cb, c0 + cs * cr]) * 2 ** (bits - 8)
    return values.round().clip(0, 2**bits - 1).astype(np.uint8 if bits == 8 else np.uint16)


def coloured(path, values, *, matrix=1, full=False, transfer=1, form="yuv420p", aspect=None):
    """Two frames of one stored colour, declared as told."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, form
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, 2 if full else 1
        context.color_trc, context.color_primaries = transfer, 9 if matrix == 9 else 1
        if aspect:
            context.sample_aspect_ratio = aspect
        for _ in range(2):
            frame = av.VideoFrame(64, 48, form)
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            for plane, value in zip(frame.planes, values, strict=True):
                plane.update(np.full(plane.buffer_size // value.itemsize, value).tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def shown(path):
    ((_, frame),) = Video(path).read([1])
    return frame


@pytest.mark.parametrize("colour", [GREEN, WINE])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", list(WEIGHTS))
def test_colours_are_those_that_were_filmed(tmp_path, matrix, full, colour):
    coloured(tmp_path / "a.mp4", stored(colour, matrix, full), matrix=matrix, full=full)
    difference = shown(tmp_path / "a.mp4")[24, 32].astype(int) - colour
    assert np.abs(difference).max() <= 2


def test_ten_bits_and_no_declaration(tmp_path):
    values = stored(WINE, 9, False, bits=10)
    coloured(tmp_path / "a.mp4", values, matrix=9, form="yuv420p10le")
    # FFmpeg's own rounding.
    assert np.abs(shown(tmp_path / "a.mp4")[24, 32].astype(int) - WINE).max() <= 3
    # As FFmpeg does: BT.601.
    coloured(tmp_path / "b.mp4", stored(GREEN, 5, False), matrix=2)
    assert np.abs(shown(tmp_path / "b.mp4")[24, 32].astype(int) - GREEN).max() <= 2
    coloured(tmp_path / "c.mp4", stored(WINE, 1, False), matrix=8)
    with pytest.raises(ValueError, match=r"c\.mp4 cannot be read: its colours are of matrix 8"):
        shown(tmp_path / "c.mp4")


def pq(light):
    """SMPTE ST 2084: cd/m2 to a code in [0, 1]."""
    power = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


@pytest.mark.parametrize(
    ("transfer", "code", "grey"),
    [
        # In the dark as sRGB has it, 203 cd/m2 being its white; bright light is compressed.
        *((16, pq(light), 255 * (1.055 * (light / 203) ** (1 / 2.4) - 0.055)) for light in (5, 40)),
        (16, pq(203), 228),
        (16, pq(4000), 255),
        # HLG's 0.5 is 1/12 of the scene's peak: 1000 cd/m2 * (1/12)^1.2 = 50.7 cd/m2.
        (18, 0.5, 255 * (1.055 * (50.7 / 203) ** (1 / 2.4) - 0.055)),
        (18, 1.0, 255),
    ],
)
def test_high_dynamic_range_is_brought_to_the_standard(tmp_path, caplog, transfer, code, grey):
    values = stored((255 * code,) * 3, 9, False, bits=10)
    coloured(tmp_path / "a.mp4", values, matrix=9, transfer=transfer, form="yuv420p10le")
    assert np.abs(shown(tmp_path / "a.mp4")[24, 32] - grey).max() <= 3
    assert "a.mp4 has high dynamic range" in caplog.text


# How the eight orientations bring a stored (x, y) to the screen, before it is moved back into it.
ORIENTATIONS = [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1),
                (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)]  # fmt: skip


def displayed_by(path, matrix):
    """Write a display matrix (a, b, c, d) into the track's header."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    a, b, c, d = (round(65536 * value) for value in matrix)
    data[at : at + 20] = np.array([a, b, 0, c, d], ">i4").tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_all_orientations(tmp_path, matrix):
    path = tmp_path / "a.mp4"
    video(path, [picture((20, 10, 30), shape=(64, 128))] * 2)
    displayed_by(path, matrix)
    frame = shown(path)
    a, b, c, d = matrix
    assert frame.shape[:2] == ((64, 128) if a else (128, 64))
    y, x = np.nonzero((frame[..., 0] > 180) & (frame[..., 1] < 80))
    # The centre (35, 25) of 128 x 64, and the corner of the screen's rectangle moved to 0.
    moved = (a * 35 + c * 25 + max(0, -128 * a, -64 * c),
             b * 35 + d * 25 + max(0, -128 * b, -64 * d))  # fmt: skip
    assert (x.mean() + 0.5, y.mean() + 0.5) == pytest.approx(moved, abs=1)


def test_other_angles_are_refused(tmp_path):
    video(tmp_path / "a.mp4", [picture()] * 2)
    displayed_by(tmp_path / "a.mp4", (0.866, 0.5, -0.5, 0.866))
    with pytest.raises(ValueError, match="shown rotated by 30 degrees; expected quarter turns"):
        shown(tmp_path / "a.mp4")


def test_pixels_that_are_not_square(tmp_path):
    coloured(tmp_path / "a.mp4", stored(WINE, 1, False), aspect=Fraction(16, 11))
    assert shown(tmp_path / "a.mp4").shape == (48, 93, 3)
    displayed_by(tmp_path / "a.mp4", (0, 1, -1, 0))
    assert shown(tmp_path / "a.mp4").shape == (93, 48, 3)
    coloured(tmp_path / "b.mkv", stored(WINE, 1, False), aspect=Fraction(1, 2))
    assert shown(tmp_path / "b.mkv").shape == (96, 64, 3)
    assert square_pixels(np.zeros((576, 720, 3), np.uint8), 64 / 45).shape == (576, 1024, 3)


def with_still(path, frames, cover):
    """A video behind a still picture of more pixels, perhaps marked as its cover."""
    with av.open(str(path), "w") as container:
        still = container.add_stream("mjpeg", rate=25)
        still.width, still.height, still.pix_fmt = 320, 240, "yuvj420p"
        if cover:
            still.disposition = av.stream.Disposition.attached_pic.value
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        grey = av.VideoFrame.from_ndarray(np.full((240, 320, 3), 128, np.uint8))
        packets = [*still.encode(grey), *still.encode()]
        for frame in frames:
            packets += stream.encode(av.VideoFrame.from_ndarray(frame))
        container.mux([*packets, *stream.encode()])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("cover", [False, True])
def test_cover_and_thumbnail_are_not_the_video(tmp_path, name, cover):
    with_still(tmp_path / name, numbered(4), cover)
    film = Video(tmp_path / name)
    assert len(film) == 4
    assert [frame.shape for _, frame in film.read([0, 3])] == [(48, 112, 3)] * 2


def test_a_song_with_a_cover_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        still = container.add_stream("mjpeg", rate=25)
        still.width, still.height, still.pix_fmt = 32, 32, "yuvj420p"
        still.disposition = av.stream.Disposition.attached_pic.value
        grey = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8))
        container.mux([*still.encode(grey), *still.encode()])
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux([*sound.encode(silence), *sound.encode()])
    with pytest.raises(ValueError, match="no moving pictures, only sound or text and a cover"):
        Video(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.avi"])
def test_a_whole_file_is_not_called_cut_off(tmp_path, name):
    """Sound that goes on, a last picture that stands for a minute, bytes behind the end."""
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 112, 48, "yuv420p"
        sound = container.add_stream("aac" if codec == "libx264" else "mp2", rate=16000)
        sound.layout = "mono"
        for i, frame in enumerate(numbered(3)):
            still = av.VideoFrame.from_ndarray(frame)
            # In AVI what stands is left out, and counted in its header.
            still.pts = (0, 1, 60)[i] if codec == "mpeg4" else (0, 1, 1500)[i]
            container.mux(stream.encode(still))
        container.mux(stream.encode())
        for i in range(300):
            kind = "fltp" if codec == "libx264" else "s16p"
            silence = np.zeros((1, 1024), np.float32 if kind == "fltp" else np.int16)
            samples = av.AudioFrame.from_ndarray(silence, kind, "mono")
            samples.sample_rate, samples.pts = 16000, 1024 * i
            container.mux(sound.encode(samples))
        container.mux(sound.encode())
    with (tmp_path / name).open("ab") as file:
        file.write(b"0000SEFT of a telephone" * 9)
    film = Video(tmp_path / name)
    assert len(film) == 3
    assert film.seconds(1) == pytest.approx(0.04, abs=0.002)
    assert film.seconds(2) == pytest.approx(2.4 if codec == "mpeg4" else 60, abs=0.002)
    assert len(list(film.read([0, 2]))) == 2


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.ts", "mpeg4"), ("a.mpg", "mpeg2video"), ("a.mxf", "mpeg2video"), ("a.wmv", "msmpeg4"),
     ("a.flv", "flv"), ("a.3gp", "mpeg4")],
)  # fmt: skip
def test_seconds_count_from_the_beginning(tmp_path, name, codec):
    video(tmp_path / name, numbered(30), codec)
    film = Video(tmp_path / name)
    assert len(film) == 30
    assert [film.seconds(i) for i in (0, 10, 29)] == pytest.approx([0, 0.4, 1.16], abs=0.045)


def test_a_recording_that_begins_between_key_frames(tmp_path):
    video(tmp_path / "whole.ts", numbered(60), "mpeg2video", g=20, bf=0, qscale=1)
    data = (tmp_path / "whole.ts").read_bytes()
    # From the middle of the first group on; the tables come again and again.
    (tmp_path / "cut.ts").write_bytes(data[188 * (len(data) // 188 // 6) :])
    film = Video(tmp_path / "cut.ts")
    assert len(film) == 40
    assert len(list(film.read([0, 20, 39]))) == 3
