import numpy as np
import pytest
from PIL import Image

from llava_forgery.faces.video import FrameChoice, Video
from tests.faces.media import number_of, numbered, picture, video

pytest.importorskip("av")


def shown(path, numbers):
    """The numbers that stand in the frames that came."""
    return {number: number_of(frame) for number, frame in Video(path).read(numbers)}


def test_choices():
    assert FrameChoice(4).numbers(100) == [12, 37, 62, 87]
    assert FrameChoice(4).numbers(3) == [0, 1, 2]
    assert FrameChoice(1).numbers(5) == [2]
    assert FrameChoice(None, 3).numbers(8) == [0, 3, 6]
    for options in ({"count": None}, {"count": 3, "every": 3}, {"count": 0}):
        with pytest.raises(ValueError, match="frames|one of them"):
            FrameChoice(**options)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"g": 12, "bf": 2, "crf": 5}),
        ("a.mkv", "libx264", {"g": 12, "bf": 2, "crf": 5}),
        ("a.avi", "mpeg4", {"g": 12, "qscale": 1}),
        ("a.mpg", "mpeg2video", {"g": 12, "bf": 2, "qscale": 1}),
        ("a.webm", "libvpx", {"g": 12, "crf": 4, "b": "2M"}),
    ],
)
def test_the_frame_that_was_asked_for_comes(tmp_path, name, codec, options):
    video(tmp_path / name, numbered(90), codec, **options)
    assert len(Video(tmp_path / name)) == 90
    # Jumps over several key frames, neighbours, the first and the last.
    numbers = [0, 1, 30, 31, 47, 48, 70, 89]
    assert shown(tmp_path / name, numbers) == {number: number for number in numbers}


def test_turned_as_telephones_do(tmp_path):
    path = tmp_path / "a.mp4"
    video(path, [picture((20, 10, 30), shape=(64, 128))] * 2)
    data = bytearray(path.read_bytes())
    # The matrix of the track's header, 16.16 fixed point: a quarter turn clockwise to view.
    at = data.find(b"tkhd") + 44
    data[at : at + 20] = np.array([0, 1 << 16, 0, -1 << 16, 0], ">i4").tobytes()
    path.write_bytes(data)
    ((_, frame),) = Video(path).read([1])
    assert frame.shape == (128, 64, 3)
    y, x = np.nonzero((frame[..., 0] > 180) & (frame[..., 1] < 80))
    # The centre (35, 25) of 128 x 64 comes to (64 - 25, 35).
    assert (x.mean(), y.mean()) == pytest.approx((39, 35), abs=1)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"),
                                             ("a.avi", "mpeg4")])  # fmt: skip
def test_a_video_that_is_cut_off_is_refused(tmp_path, name, codec):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(40)]
    video(tmp_path / name, noise, codec)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(ValueError, match=rf"{name} is cut off"):
        Video(tmp_path / name)


def test_what_is_no_video(tmp_path, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.mp4", format="JPEG")
    with pytest.raises(ValueError, match=r"photo\.mp4 is a picture"):
        Video(tmp_path / "photo.mp4")
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.avi could not be read as a video"):
        Video(tmp_path / "text.avi")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match=r"empty\.mp4"):
        Video(tmp_path / "empty.mp4")
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        Video(tmp_path / "none.mp4")
    video(tmp_path / "a.mp4", numbered(4))
    with pytest.raises(ValueError, match="has 4 frames, asked for 2 to 4"):
        list(Video(tmp_path / "a.mp4").read([2, 4]))
    video(tmp_path / "b.avi", numbered(4), "mpeg4")
    strange = (tmp_path / "b.avi").read_bytes().replace(b"FMP4", b"ZZZZ")
    (tmp_path / "b.avi").write_bytes(strange)
    with pytest.raises(ValueError, match=r"b\.avi has a codec"):
        Video(tmp_path / "b.avi")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="decompression"):
        Video(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
        "ffconcat version 1.0\nfile ../secret.mp4\n",
        "ffconcat version 1.0\nfile beside.mp4\n",
    ],
)
def test_a_list_of_files_that_is_named_like_a_video_opens_none_of_them(tmp_path, text):
    video(tmp_path / "secret.mp4", [np.zeros((32, 32, 3), np.uint8)] * 3)
    assert len(Video(tmp_path / "secret.mp4")) == 3
    (tmp_path / "in").mkdir()
    (tmp_path / "in/beside.mp4").write_bytes((tmp_path / "secret.mp4").read_bytes())
    (tmp_path / "in/list.mp4").write_text(text.format(tmp_path / "secret.mp4"))
    with pytest.raises(ValueError, match=r"list\.mp4 could not be read as a video"):
        Video(tmp_path / "in/list.mp4")
