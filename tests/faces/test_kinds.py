"""Folders as people have them: what files hold decides, and nothing is dropped without a word."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from llava_forgery.faces.animation import Animation, open_video
from llava_forgery.faces.kinds import Kind, kind_of
from llava_forgery.faces.sources import find_media
from llava_forgery.faces.video import Video
from tests.faces.media import numbered, picture, video


def animation(path, levels=(200, 100, 50), **options):
    frames = [Image.new("RGB", (32, 24), (level, 0, 0)) for level in levels]
    times = {"duration": options.pop("duration", 200)}
    frames[0].save(path, save_all=True, append_images=frames[1:], **times, **options)
    return path


VIDEOS = {"a.mp4": "mpeg4", "a.mov": "mpeg4", "a.3gp": "mpeg4", "a.mkv": "mpeg4",
          "a.webm": "libvpx", "a.avi": "mpeg4", "a.ts": "mpeg2video", "a.m2ts": "mpeg2video",
          "a.mpg": "mpeg2video",
          "a.vob": "mpeg2video", "a.wmv": "msmpeg4", "a.asf": "msmpeg4", "a.flv": "flv",
          "a.mxf": "mpeg2video", "a.nut": "mpeg4", "a.ivf": "libvpx", "a.h264": "libx264",
          "a.m4v": "mpeg4", "a.m2v": "mpeg2video", "a.rm": "rv20", "a.ogv": "libvpx"}  # fmt: skip


@pytest.mark.parametrize(("name", "codec"), VIDEOS.items())
def test_every_container_is_known_by_what_it_holds(tmp_path, name, codec):
    # Real's codec wants sides of 16.
    frames = [np.zeros((96, 112, 3), np.uint8)] * 12 if name == "a.rm" else numbered(12)
    video(tmp_path / name, frames, codec)
    (tmp_path / name).rename(tmp_path / "upload")
    assert kind_of(tmp_path / "upload") is Kind.VIDEO
    assert find_media(tmp_path).files == ["upload"]
    film = open_video(tmp_path / "upload")
    assert len(film) in (12, 13)
    assert len(list(film.read([0, 11]))) == 2


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp", "a.tif", "a.avif"])
def test_pictures_are_known_by_what_they_hold(tmp_path, name):
    Image.fromarray(picture()).save(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "a.mp4")
    assert kind_of(tmp_path / "a.mp4") is Kind.PICTURE


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.avif"])
def test_animations_are_videos(tmp_path, name):
    path = animation(tmp_path / name, lossless=True)
    assert kind_of(path) is Kind.VIDEO
    film = open_video(path)
    assert isinstance(film, Animation)
    assert [film.seconds(i) for i in range(len(film))] == pytest.approx([0, 0.2, 0.4])
    shown = {number: int(frame[12, 16, 0]) for number, frame in film.read([0, 2])}
    assert shown == {0: pytest.approx(200, abs=3), 2: pytest.approx(50, abs=3)}
    with pytest.raises(ValueError, match="has 3 frames, asked for 2 to 3"):
        list(film.read([2, 3]))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_an_animation_that_is_cut_off_is_refused(tmp_path, name):
    path = animation(tmp_path / name, levels=(10, 200, 90, 250), lossless=True)
    data = path.read_bytes()
    for end in (len(data) - 2, len(data) * 2 // 3):
        path.write_bytes(data[:end])
        if name == "a.png" and end == len(data) - 2:
            continue
        with pytest.raises(ValueError, match=name):
            list(open_video(path).read([0, 3]))


def test_what_is_transparent_in_an_animation_lies_over_white(tmp_path):
    frames = [Image.new("RGBA", (8, 8), (0, 0, 0, alpha)) for alpha in (255, 0)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=10)
    film = open_video(tmp_path / "a.png")
    assert [frame[4, 4, 0] for _, frame in film.read([0, 1])] == [0, 255]
    # As browsers show what would be too fast to see.
    assert film.seconds(1) == pytest.approx(0.1)


def test_what_is_neither(tmp_path):
    texts = {
        "notes.txt": "text",
        "module.ts": "export const a = 'G';\n" * 200,
        "a.json": "{}",
        "b": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "song.mp3").write_bytes(b"ID3\4" + bytes(100))
    (tmp_path / "song.m4a").write_bytes(b"\0\0\0\x18ftypM4A " + bytes(100))
    (tmp_path / "song.mka").write_bytes(b"\x1a\x45\xdf\xa3" + b"A_VORBIS" + bytes(100))
    (tmp_path / "song.wav").write_bytes(b"RIFF\x20\0\0\0WAVEfmt " + bytes(30))
    assert {kind_of(path) for path in tmp_path.iterdir()} == {None}
    with pytest.raises(FileNotFoundError, match=r"no pictures or videos \(1 without suffix, 1 \.j"):
        find_media(tmp_path)
    # What promises to be one is one, and reading it will say what is wrong.
    for name in ("page.jpg", "empty.mp4", "a.heic", "raw.nef", "drawing.svg"):
        (tmp_path / name).write_text("<html>" if name == "page.jpg" else "")
    found = find_media(tmp_path)
    assert found.files == ["a.heic", "drawing.svg", "empty.mp4", "page.jpg", "raw.nef"]
    assert found.others == {"": 1, ".json": 1, ".m4a": 1, ".mka": 1, ".mp3": 1, ".ts": 1,
                            ".txt": 1, ".wav": 1}  # fmt: skip


def test_nothing_of_a_folder_is_dropped(tmp_path):
    root = tmp_path / "photos"
    (root / "a/b").mkdir(parents=True)
    Image.fromarray(picture()).save(root / "a/b/real.jpg")
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(picture()).save(tmp_path / "elsewhere/one.png")
    os.symlink(root, root / "a/loop")
    os.symlink(tmp_path / "elsewhere", root / "linked")
    os.symlink(tmp_path / "elsewhere/one.png", root / "linked.png")
    os.symlink(root / "a", root / "twice")
    os.symlink("nowhere", root / "gone.jpg")
    os.symlink("nowhere", root / "gone.txt")
    os.symlink("self.png", root / "self.png")
    os.mkfifo(root / "pipe.mp4")
    (root / ".hidden.jpg").touch()
    found = find_media(root)
    assert found.files == ["a/b/real.jpg", "linked.png", "linked/one.png"]
    problems = dict(found.problems)
    assert set(problems) == {"a/loop", "gone.jpg", "pipe.mp4", "self.png", "twice"}
    assert "leads to the folder ., which is already searched" in problems["a/loop"]
    assert "leads to the folder a," in problems["twice"]
    assert "leads nowhere" in problems["gone.jpg"]
    assert "not a regular file" in problems["pipe.mp4"]
    assert found.others == {"hidden": 1, ".txt": 1}
    with pytest.raises(FileNotFoundError, match="is not a regular file"):
        find_media(root / "pipe.mp4")


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="the superuser reads everything"
)
def test_what_may_not_be_read_is_told(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "closed.jpg").touch(mode=0)
    try:
        problems = dict(find_media(tmp_path).problems)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert "cannot be read (Permission denied)" in problems["closed"]
    assert "cannot be read (Permission denied)" in problems["closed.jpg"]


def test_folders_that_cannot_be_listed_are_told(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    Image.fromarray(picture()).save(tmp_path / "a.jpg")
    listed = os.scandir

    def scandir(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_media(tmp_path)
    assert found.files == ["a.jpg"]
    assert found.problems == [("closed", "the folder cannot be read (Permission denied)")]


def test_a_video_is_no_animation(tmp_path):
    video(tmp_path / "a.mp4", numbered(3))
    assert isinstance(open_video(tmp_path / "a.mp4"), Video)
    with pytest.raises(FileNotFoundError, match=r"none\.gif is not a file"):
        open_video(tmp_path / "none.gif")
