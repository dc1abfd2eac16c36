from collections import Counter

import cv2
import numpy as np
import pytest

from llava_forgery.constants import REAL
from llava_forgery.faces.detect import get_detector
from llava_forgery.faces.extract import CropSettings, find_faces
from llava_forgery.faces.sources import MediaSource
from llava_forgery.faces.tracks import Look, Tracker
from llava_forgery.faces.video import FrameChoice
from llava_forgery.images import read_image
from tests.faces.media import video


def box(x, y=0, side=100):
    return (x, y, x + side, y + side)


def test_two_faces_that_move_keep_their_numbers():
    tracker = Tracker()
    assert tracker.update([box(0), box(300)]) == [0, 1]
    # The order in the frame does not matter, nor that one moved as far as half its width.
    assert tracker.update([box(340), box(50)]) == [1, 0]
    assert tracker.update([box(345)]) == [1]
    assert tracker.update([box(55), box(350)]) == [0, 1]


def test_the_sum_of_distances_decides():
    tracker = Tracker()
    tracker.update([box(0), box(80)])
    # Nearest first would give the second box to the second track and leave the first without.
    assert tracker.update([box(60), box(150)]) == [0, 1]


def test_new_faces():
    tracker = Tracker()
    tracker.update([box(0)])
    assert tracker.update([box(150)]) == [1]
    assert tracker.update([box(0, side=230)]) == [2]
    assert tracker.update([]) == []
    # The first was last seen six frames ago after this.
    for _ in range(3):
        tracker.update([])
    assert tracker.update([box(0)]) == [3]


def look(colour, who=None, calls=None):
    """A face of one colour; ``who`` describes it."""
    image = np.full((32, 32, 3), colour, np.uint8)

    def describe(image, landmarks):
        calls.append(who)
        return np.array([float(who)])

    return Look(image, np.zeros((68, 2), np.float32), None if who is None else describe)


def test_another_face_in_the_same_place_is_another_track():
    tracker, skin, other = Tracker(), (200, 150, 130), (60, 80, 140)
    assert tracker.update([box(0)], [look(skin)]) == [0]
    assert tracker.update([box(5)], [look(skin)]) == [0]
    assert tracker.update([box(5)], [look(other)]) == [1]
    # The first one is back before it counts as gone.
    assert tracker.update([box(5)], [look(skin)]) == [0]
    assert tracker.update([box(5), box(200)], [look(other), look(skin)]) == [1, 2]


def test_descriptions_decide_where_colours_leave_it_open():
    calls, skin, light = [], (200, 150, 130), (90, 70, 60)
    tracker = Tracker()
    assert tracker.update([box(0)], [look(skin, 1, calls)]) == [0]
    assert tracker.update([box(0)], [look(skin, 5, calls)]) == [0]
    assert calls == []
    # The light goes out; then another person stands there.
    assert tracker.update([box(0)], [look(light, 5.5, calls)]) == [0]
    assert tracker.update([box(0)], [look(skin, 9, calls)]) == [1]
    # Each face is described once.
    assert Counter(calls) == {5: 1, 5.5: 1, 9: 1}


@pytest.mark.slow
def test_a_cut_to_another_person(samples_dir, tmp_path):
    """Two people before the same wall, in the same place; the first one also smiles."""
    pytest.importorskip("dlib")
    shots = []
    for name in ("001_03", "001_08", "043_03"):
        image = read_image(samples_dir / f"{name}.jpg")
        shots += [cv2.resize(image, (320, 320), interpolation=cv2.INTER_AREA)] * 4
    video(tmp_path / "cut.mp4", shots, crf=18)
    source = MediaSource(
        tmp_path / "cut.mp4", name="v", video_id="v", identity=None, label=REAL, split="test"
    )
    settings = CropSettings(160, frames=FrameChoice(6))
    tracks = [face.crop.track for face in find_faces(source, get_detector("dlib"), settings)]
    assert tracks == [0, 0, 0, 0, 1, 1]
