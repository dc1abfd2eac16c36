import numpy as np
import pytest

from llava_forgery.constants import REGION_NAMES, WHOLE_FACE
from llava_forgery.faces.regions import hull_mask, region_polygons
from tests import tiny

CENTRES = {
    "eyes": (slice(36, 48), 2),
    "eyebrows": (slice(17, 27), 2),
    "nose": (slice(27, 36), 1),
    "mouth": (slice(48, 60), 1),
}


@pytest.mark.parametrize("name", REGION_NAMES)
def test_every_region_gives_area_inside_the_face(name):
    face = hull_mask([WHOLE_FACE], tiny.landmarks(128), (128, 128), growth=1.3)
    region = hull_mask([name], tiny.landmarks(128), (128, 128))
    assert 0.002 < region.mean() < 0.5
    assert (region * (1 - face)).sum() < 0.15 * region.sum()


@pytest.mark.parametrize("name", CENTRES)
def test_regions_lie_on_their_landmarks(name):
    points, count = CENTRES[name]
    landmarks = tiny.landmarks(128)
    polygons = region_polygons(name, landmarks)
    assert len(polygons) == count
    centre = np.concatenate(polygons).mean(axis=0)
    assert np.linalg.norm(centre - landmarks[points].mean(axis=0)) < 6


def test_left_and_right_are_mirrored():
    landmarks = tiny.landmarks(128)
    for name in ("eyes", "eyebrows", "cheeks"):
        left, right = region_polygons(name, landmarks)
        assert left[:, 0].mean() == pytest.approx(128 - right[:, 0].mean(), abs=1)
        assert left[:, 1].mean() == pytest.approx(right[:, 1].mean(), abs=1)


def test_chin_lies_below_the_mouth():
    landmarks = tiny.landmarks(128)
    mask = hull_mask(["chin"], landmarks, (128, 128))
    rows = np.nonzero(mask.any(axis=1))[0]
    assert rows.min() > landmarks[48:60, 1].min()
    assert mask[int(landmarks[8, 1]) - 2, int(landmarks[8, 0])] == 1


def test_polygons_of_many_faces_are_those_of_each():
    faces = np.stack([np.float32(tiny.landmarks(128) * (1 + i / 7)) for i in range(3)])
    for name in REGION_NAMES:
        for i, face in enumerate(faces):
            alone, together = region_polygons(name, face), region_polygons(name, faces)
            assert len(alone) == len(together)
            for one, all_faces in zip(alone, together, strict=True):
                np.testing.assert_array_equal(one, all_faces[i])


def test_unknown_region_and_wrong_shape_are_named():
    with pytest.raises(ValueError, match="unknown region 'ear'"):
        region_polygons("ear", tiny.landmarks())
    with pytest.raises(ValueError, match="unknown region 'ear'"):
        hull_mask(["nose", "ear"], tiny.landmarks(), (64, 64))
    with pytest.raises(ValueError, match=r"\(68, 2\), got \(5, 2\)"):
        region_polygons("nose", np.zeros((5, 2)))
