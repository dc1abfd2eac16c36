"""Faces with labels of their own as subjects of conversations."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.data.samples import LabelledSamples
from llava_forgery.faces.records import load_faces, save_faces
from llava_forgery.faces.regions import hull_mask
from tests import tiny


def fake(index, method, regions):
    face = tiny.face(index)
    mask = hull_mask(regions, face.landmarks, face.image.shape[:2])
    return replace(face, label=FAKE, method=method, mask=(255 * mask).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four real faces; eight fakes of one method, two of another, and one that is untouched."""
    faces = [tiny.face(i) for i in range(4)]
    faces += [fake(10 + i, "many", ("mouth",)) for i in range(8)]
    faces += [fake(20 + i, "few", ("eyes", "chin")) for i in range(2)]
    faces += [fake(30, "many", ())]
    folder = tmp_path_factory.mktemp("labelled")
    save_faces(faces, folder, {})
    return folder


def test_balanced_and_true(folder, caplog):
    with caplog.at_level(logging.WARNING):
        subjects = LabelledSamples(load_faces(folder), size=48, seed=1)
    assert "1 of 11 fake faces are skipped" in caplog.text
    assert "p30.png" in caplog.text
    assert len(subjects) == 4
    units = [subjects[i] for i in range(4)]
    assert [[subject.label for subject in unit] for unit in units] == [[FAKE, REAL]] * 4
    fakes = [unit[0] for unit in units]
    # The rarer method is not drowned by the other.
    regions = [subject.regions for subject in fakes]
    assert regions.count(("eyes", "chin")) == 2
    assert regions.count(("mouth",)) == 2
    assert len({subject.video_id for unit in units for subject in unit}) == 8
    assert all(subject.image.shape == (48, 48, 3) for unit in units for subject in unit)
    assert "made by few" in next(s.note for s in fakes if s.regions == ("eyes", "chin"))
    assert units[0][1].note.endswith("without forgery")


def test_seeded(folder):
    def videos(seed):
        subjects = LabelledSamples(load_faces(folder), size=16, seed=seed)
        return [subject.video_id for i in range(4) for subject in subjects[i]]

    assert videos(1) == videos(1)
    assert videos(1) != videos(2)


def test_a_fake_without_a_mask(tmp_path):
    faces = [tiny.face(0), replace(tiny.face(1), label=FAKE)]
    save_faces(faces, tmp_path, {})
    with pytest.raises(ValueError, match=r"fake face 1 of p1\.png has no mask"):
        LabelledSamples(load_faces(tmp_path), size=16)
    subjects = LabelledSamples(load_faces(tmp_path), size=16, unmasked_regions=("face",))
    assert [subject.regions for subject in subjects[0]] == [("face",), ()]
    with pytest.raises(ValueError, match="unknown regions"):
        LabelledSamples(load_faces(tmp_path), size=16, unmasked_regions=("ear",))


def test_both_labels_are_needed(tmp_path):
    save_faces([tiny.face(0)], tmp_path, {})
    with pytest.raises(ValueError, match="got 1 and 0"):
        LabelledSamples(load_faces(tmp_path), size=16)
