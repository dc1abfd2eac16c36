"""Which of several faces are kept, and which of a forged file are forged."""

import numpy as np
import pytest
from PIL import Image

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.choice import Candidate, choose
from llava_forgery.faces.extract import CropSettings
from llava_forgery.faces.prepare import prepare_sources
from llava_forgery.faces.records import FaceCrop, load_faces
from llava_forgery.faces.sources import MediaSource
from llava_forgery.faces.video import FrameChoice
from tests.faces.media import RedSquare, photograph, picture, video

LARGE, SMALL = (60, 10, 60), (10, 30, 30)
"""Squares (x, y, side)."""


def test_the_face_that_the_mask_touches_is_the_fake():
    large, small = Candidate(0, 900, 500, 0), Candidate(1, 400, 200, 150)
    spilled = Candidate(0, 900, 500, 20)
    options = {"is_masked": True, "largest_only": False}
    assert choose([large, small], FAKE, **options) == [REAL, FAKE]
    assert choose([spilled, small], FAKE, **options) == [REAL, FAKE]
    assert choose([Candidate(0, 900, 500, 25), small], FAKE, **options) == [FAKE, FAKE]
    assert choose([large, small], FAKE, is_masked=True, largest_only=True) == [None, FAKE]
    # One eye of the larger face.
    assert choose([Candidate(0, 900, 500, 10)], FAKE, **options) == [FAKE]
    with pytest.raises(ValueError, match="touches none of the 2 faces"):
        choose([large, large, Candidate(1, 400, 200, 0)], FAKE, **options)
    # A mask that is black where it was looked at says nothing; real files have no fakes.
    assert choose([large, small], FAKE, is_masked=False, largest_only=True) == [FAKE, None]
    assert choose([large, small], REAL, **options) == [REAL, REAL]
    assert choose([], FAKE, **options) == []


def test_the_largest_sum_of_areas_decides_along_a_video():
    faces = [Candidate(0, 100), Candidate(1, 150), Candidate(0, 100)]
    assert choose(faces, REAL, is_masked=False, largest_only=True) == [REAL, None, REAL]


def rows(tmp_path, source, **options):
    settings = CropSettings(32, frames=FrameChoice(4), **options)
    prepare_sources([source], tmp_path / "out", settings=settings, detector=RedSquare())
    return [FaceCrop.from_row(row) for row in load_faces(tmp_path / "out")]


def two_people(tmp_path, is_video):
    """A forged file whose smaller face is forged."""
    mask = np.zeros((96, 160, 3), np.uint8)
    x, y, side = SMALL
    mask[y : y + side, x : x + side] = 255
    if is_video:
        video(tmp_path / "a.mp4", [picture(LARGE, SMALL)] * 8, crf=5)
        video(tmp_path / "mask.mp4", [mask] * 8, crf=5)
        file, mask_file = tmp_path / "a.mp4", tmp_path / "mask.mp4"
    else:
        photograph(tmp_path / "a.png", LARGE, SMALL)
        Image.fromarray(mask).save(tmp_path / "mask.png")
        file, mask_file = tmp_path / "a.png", tmp_path / "mask.png"
    return MediaSource(
        file, name="a", video_id="a", identity="p", label=FAKE, split="train", method="swap",
        mask_path=mask_file,
    )  # fmt: skip


@pytest.mark.parametrize("is_video", [True, False])
def test_of_two_people_the_forged_one_is_kept(tmp_path, is_video):
    faces = rows(tmp_path, two_people(tmp_path, is_video))
    assert len(faces) == (4 if is_video else 1)
    for face in faces:
        assert (face.label, face.method, face.video_id) == (FAKE, "swap", "a")
        # The square around the smaller face.
        assert (face.box[0] + face.box[2]) / 2 == pytest.approx(25, abs=3)
        assert face.mask.max() == 255


@pytest.mark.parametrize("is_video", [True, False])
def test_all_faces_are_labelled_by_the_mask(tmp_path, is_video):
    faces = rows(tmp_path, two_people(tmp_path, is_video), largest_only=False)
    fakes = [face for face in faces if face.label == FAKE]
    others = [face for face in faces if face.label == REAL]
    assert len(fakes) == len(others) == (4 if is_video else 1)
    assert {(face.method, face.video_id) for face in fakes} == {("swap", "a")}
    assert {(face.method, face.video_id) for face in others} == {(None, "a/untouched-0")}
    assert {face.identity for face in faces} == {"p"}
    assert {face.mask is None for face in others} == {True}


def test_a_mask_of_another_file_and_none_at_all(tmp_path, caplog):
    source = two_people(tmp_path, False)
    Image.fromarray(picture(shape=(96, 160)) * 0).save(tmp_path / "mask.png")
    # Black: the mask says nothing, and the largest face is kept.
    (face,) = rows(tmp_path, source)
    assert face.box[2] - face.box[0] > 60
    assert "no mask says which of them are forged (a): every face that is kept" in caplog.text
    mask = np.zeros((96, 160, 3), np.uint8)
    mask[90:, 150:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="its mask touches none of the 2 faces"):
        rows(tmp_path, source)
