import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_forgery.faces.extract import CropSettings
from llava_forgery.faces.prepare import prepare_sources
from llava_forgery.faces.records import FaceCrop, load_faces
from llava_forgery.faces.sources import MediaSource, check_sources, find_media
from llava_forgery.faces.video import FrameChoice
from tests.faces.media import RedSquare, photograph, picture, video


def source(path="a.mp4", **changes):
    values = {"path": Path(path), "name": Path(path).name, "video_id": Path(path).stem,
              "identity": None, "label": 0, "split": "train"}  # fmt: skip
    return MediaSource(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_path": "m.png"}, "mask_path must be a Path"),
        ({"video_id": ""}, "video_id"),
        ({"identity": ""}, "identity"),
        ({"method": ""}, "method"),
        ({"label": 2}, "label"),
        ({"split": "dev"}, "split"),
        ({"frame": 3}, "frame"),
        ({"path": Path("a.png"), "frame": "../3"}, r"got '\.\./3'"),
        ({"name": "/etc/a.mp4"}, r"name of a\.mp4 must be a name such as .* got '/etc/a\.mp4'"),
        ({"video_id": "../../a"}, r"video_id of a\.mp4 must be a name"),
        ({"identity": "a\n"}, r"identity of a\.mp4 must be a name"),
        ({"method": "..\\FaceSwap"}, r"method of a\.mp4 must be a name"),
        ({"compression": "C:c23"}, r"compression of a\.mp4 must be a name"),
    ],
)
def test_records_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        source(**changes)


def test_the_list_is_checked_before_the_work():
    check_sources([source("a.mp4"), source("b.mp4", split="test")])
    with pytest.raises(ValueError, match=r"a\.mp4 occurs twice"):
        check_sources([source(), source()])
    with pytest.raises(ValueError, match=r"identity 'Ann' is in the splits train and val"):
        check_sources([source("a.mp4", identity="Ann"),
                       source("b.mp4", identity="Ann", split="val")])  # fmt: skip
    with pytest.raises(ValueError, match=r"video_id 'v' is in"):
        check_sources([source("a.mp4", identity="Ann", video_id="v"),
                       source("b.mp4", identity="Bob", video_id="v", split="val")])  # fmt: skip


def test_a_folder_is_listed(tmp_path):
    names = ["ü b/ä 1.JPG", "a.mp4", "z.gif", "notes.txt", "list.TXT", ".hidden.png", "plain"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / os.fsdecode(b"b\xff.png")).touch()
    found = find_media(tmp_path)
    assert found.files == ["a.mp4", "z.gif", "ü b/ä 1.JPG"]
    reason = "its name is not valid UTF-8; rename it"
    assert found.problems == [("b\\xff.png", reason)]
    assert found.others == {"": 1, ".txt": 2, "hidden": 1}
    with pytest.raises(ValueError, match=r"notes\.txt is neither"):
        find_media(tmp_path / "notes.txt")


def two_people(length=20):
    """The larger walks right, the smaller left; the larger is hidden in the third quarter."""
    frames = []
    for i in range(length):
        squares = [(150 - 2 * i, 20, 16)]
        if not length // 2 <= i < 3 * length // 4:
            squares.append((4 + 2 * i, 30, 32))
        frames.append(picture(*squares, shape=(96, 192)))
    return frames


def prepared(sources, out, **options):
    settings = CropSettings(size=32, margin=0.5, **options)
    return prepare_sources(sources, out, settings=settings, detector=RedSquare())


def test_a_labelled_video_and_its_masks(tmp_path):
    pytest.importorskip("av")
    frames = two_people()
    video(tmp_path / "a.mp4", frames, crf=10)
    masks = [np.zeros_like(frame) for frame in frames]
    for i, mask in enumerate(masks):
        # The right half of the larger face.
        mask[30:62, 4 + 2 * i + 16 : 4 + 2 * i + 32] = 255
    video(tmp_path / "m.mp4", masks, crf=10)
    what = source(tmp_path / "a.mp4", label=1, split="val", method="FaceSwap", compression="c23",
                  mask_path=tmp_path / "m.mp4")  # fmt: skip
    report = prepared([what], tmp_path / "out", frames=FrameChoice(None, 4))
    # Frames 0, 4, 8, 12, 16, in 12 of which the larger is hidden.
    assert report.faces == 4
    faces = [FaceCrop.from_row(row) for row in load_faces(tmp_path / "out")]
    assert [face.frame for face in faces] == [0, 4, 8, 16]
    assert {(f.label, f.split, f.method, f.compression) for f in faces} == {
        (1, "val", "FaceSwap", "c23")
    }
    assert {(f.video_id, f.identity, f.source) for f in faces} == {("a", "a", "a.mp4")}
    assert len({face.track for face in faces}) == 1
    for face in faces:
        # The face fills the middle half of the crop.
        assert set(np.unique(face.mask)) == {0, 255}
        assert (face.mask[10:22, 18:22] == 255).all()
        assert (face.mask[:, :14] == 0).all()
        assert face.image[16, 16, 0] > 180


def test_all_faces_of_a_video_keep_their_tracks(tmp_path):
    pytest.importorskip("av")
    video(tmp_path / "a.mp4", two_people(), crf=10)
    # Frames 2, 6, 10, 14 and 18; in 10 and 14 there is the smaller face alone.
    report = prepared([source(tmp_path / "a.mp4")], tmp_path / "out",
                      frames=FrameChoice(5), largest_only=False)  # fmt: skip
    faces = [FaceCrop.from_row(row) for row in load_faces(tmp_path / "out")]
    assert report.faces == len(faces) == 8
    sides = {track: {round((f.box[2] - f.box[0]) / 20) for f in faces if f.track == track}
             for track in (0, 1)}  # fmt: skip
    assert sorted(map(len, sides.values())) == [1, 1]
    assert sides[0] != sides[1]


def test_masks_that_do_not_fit_are_named(tmp_path):
    pytest.importorskip("av")
    photograph(tmp_path / "good.png")
    photograph(tmp_path / "a.png")
    Image.new("L", (50, 50)).save(tmp_path / "small.png")
    video(tmp_path / "v.mp4", two_people())
    video(tmp_path / "short.mp4", two_people()[:10])
    sources = [
        source(tmp_path / "good.png", mask_path=tmp_path / "good.png"),
        source(tmp_path / "a.png", mask_path=tmp_path / "small.png"),
        source(tmp_path / "a.png", mask_path=tmp_path / "none.png", name="b.png", frame=3),
        source(tmp_path / "v.mp4", mask_path=tmp_path / "short.mp4"),
    ]
    report = prepared(sources, tmp_path / "out")
    assert report.faces == 1
    reasons = {item.file: item.reason for item in report.skipped}
    assert "small.png has 50 x 50 pixels" in reasons["a.png"]
    assert "none.png is not a file" in reasons["b.png"]
    assert "short.mp4 has 10 frames and the video 20" in reasons["v.mp4"]


def test_a_saved_frame_keeps_its_number_and_a_crop_its_angle(tmp_path):
    photograph(tmp_path / "a.png")
    sources = [source(tmp_path / "a.png", video_id="v", frame=7)]
    prepared(sources, tmp_path / "out", align=True)
    (face,) = [FaceCrop.from_row(row) for row in load_faces(tmp_path / "out")]
    assert (face.frame, face.track, face.video_id) == (7, None, "v")
    # The "landmarks" stand on the diagonal, and so does the line through the eyes.
    assert face.angle == pytest.approx(45, abs=0.1)
    assert np.ptp(face.landmarks[:, 1]) < 0.01
    with pytest.raises(ValueError, match="size must be 16"):
        CropSettings(size=8)
