"""Test sets of the tables: names, labels and regions of what is judged."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from eval.papers.held_out import data_stamp, held_out_images, judge_held_out
from eval.papers.table_settings import HeldOutSettings
from llava_forgery.faces.records import save_faces
from tests import tiny


class Brightness:
    names = ("classifier",)
    size = 64

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        return {"classifier": [float(image.mean() / 255) for image in images]}


def test_real_faces_are_forged(tmp_path):
    save_faces([tiny.face(i, "test") for i in range(2)], tmp_path, {})
    settings = HeldOutSettings(faces=str(tmp_path), pairs=3)
    images = list(held_out_images(settings, 64))
    assert [image.label for image in images] == [1, 0] * 3
    for forged, pristine in zip(images[::2], images[1::2], strict=True):
        assert forged.regions
        assert not pristine.regions
        assert forged.identity == pristine.identity
        assert not np.array_equal(forged.image, pristine.image)
    # A photograph that is forged twice is one real video, its forgeries are two.
    assert len({image.video_id for image in images[::2]}) == 3
    assert len({image.video_id for image in images[1::2]}) == 2
    again = list(held_out_images(settings, 64))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(images, again, strict=True))


def test_faces_with_labels_are_judged_as_they_are(tmp_path):
    fake = dataclasses.replace(tiny.face(1, "test"), label=1)
    save_faces([tiny.face(0, "test"), fake], tmp_path, {})
    scorer = Brightness()
    records = list(judge_held_out(scorer, HeldOutSettings(faces=str(tmp_path)), batch_size=2))
    assert [(r.label, r.identity, r.video_id) for r in records] == [
        (0, "id0", "p0"),
        (1, "id1", "p1"),
    ]
    assert all(record.p_yes is None and 0 < record.score < 1 for record in records)


def test_folders_of_pictures_are_judged_whole(tmp_path):
    for label, count in (("real", 3), ("fake", 2)):
        (tmp_path / label).mkdir()
        for i in range(count):
            wide = np.full((20, 40, 3), 200, np.uint8)
            Image.fromarray(wide).save(tmp_path / label / f"{i}.png")
    scorer = Brightness()
    settings = HeldOutSettings(real=str(tmp_path / "real"), fake=str(tmp_path / "fake"))
    records = list(judge_held_out(scorer, settings, batch_size=2))
    assert scorer.batches == [2, 2, 1]
    assert [record.label for record in records] == [0, 0, 0, 1, 1]
    assert len({record.identity for record in records}) == 5
    only = HeldOutSettings(fake=str(tmp_path / "fake"))
    assert [r.label for r in judge_held_out(scorer, only, 4)] == [1, 1]
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        list(held_out_images(HeldOutSettings(real=str(tmp_path / "none")), 64))


def test_stamp_follows_the_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing at"):
        data_stamp(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"12")
    first = data_stamp(str(tmp_path))
    assert data_stamp(str(tmp_path)) == first
    (tmp_path / "b.png").write_bytes(b"12")
    assert data_stamp(str(tmp_path)) != first
