import json

import numpy as np
import pytest

from llava_forgery.faces.drawn_shape import average_landmarks
from llava_forgery.faces.generated import generate_face, generate_faces
from llava_forgery.faces.records import FaceCrop, load_faces

PEOPLE = (0, 3, 7, 11, 19, 23, 42, 101)


@pytest.fixture(scope="module")
def faces():
    return [generate_face(person, 0) for person in PEOPLE]


def test_same_seeds_same_bytes(faces):
    again = generate_face(PEOPLE[2], 0)
    np.testing.assert_array_equal(again.image, faces[2].image)
    np.testing.assert_array_equal(again.landmarks, faces[2].landmarks)
    other = generate_face(PEOPLE[2], 1)
    assert other.identity == again.identity
    assert other.video_id != again.video_id
    difference = np.abs(other.image.astype(int) - again.image).mean()
    assert difference > 3


def test_landmarks_lie_in_the_picture_in_anatomical_order(faces):
    for face in faces:
        points = face.landmarks
        assert ((points > 0) & (points < 320)).all()
        jaw, brows, nose = points[0:17], points[17:27], points[27:36]
        left, right, mouth = points[36:42], points[42:48], points[48:68]
        # The head may be tilted: measure along its own axes.
        across = right.mean(axis=0) - left.mean(axis=0)
        across /= np.linalg.norm(across)
        down = np.array([-across[1], across[0]])
        for line in (jaw[2:15], brows, nose[4:], points[[36, 39, 42, 45]], points[48:55]):
            assert (np.diff(line @ across) > 0).all()
        for line in (jaw[:9], nose[:4], points[[51, 62, 66, 57]]):
            assert (np.diff(line @ down) > -0.5).all()
        heights = [
            part.mean(axis=0) @ down for part in (brows, points[36:48], nose, mouth, jaw[6:11])
        ]
        assert (np.diff(heights) > 0).all()
        for eye in (left, right):
            assert (eye[1:3] @ down).max() < (eye[4:6] @ down).min()


def test_average_face_is_symmetrical():
    points = average_landmarks()
    assert np.isfinite(points).all()
    np.testing.assert_allclose(points[:17] * [-1, 1], points[16::-1][:17], atol=1e-9)


def test_skin_has_texture_everywhere(faces):
    """No flat fill that would give a splice away by its lack of grain."""
    for face in faces:
        x0, y0 = face.landmarks.min(axis=0).astype(int)
        x1, y1 = face.landmarks.max(axis=0).astype(int)
        grey = face.image[y0:y1, x0:x1].astype(float).mean(axis=2)
        height, width = (side // 8 * 8 for side in grey.shape)
        blocks = grey[:height, :width].reshape(height // 8, 8, width // 8, 8).std(axis=(1, 3))
        assert (blocks > 0.3).mean() > 0.97
        assert grey.std() > 5


def test_dlib_takes_them_for_faces(faces):
    pytest.importorskip("dlib")
    from llava_forgery.faces.detect import get_detector

    detector, errors = get_detector("dlib"), []
    for face in faces:
        found = detector.detect(face.image)
        if found:
            apart = np.linalg.norm(face.landmarks[36] - face.landmarks[45])
            away = np.linalg.norm(found[0].landmarks - face.landmarks, axis=1)
            errors.append(away[17:].mean() / apart)
    assert len(errors) >= 7
    assert np.mean(errors) < 0.06


def test_data_set_like_that_of_prepare(tmp_path):
    count = generate_faces(
        tmp_path / "out", identities=4, photos=2, size=96, test_share=0.25, seed=1
    )
    assert count == 8
    rows = [FaceCrop.from_row(row) for row in load_faces(tmp_path / "out")]
    assert len({row.identity for row in rows}) == 4
    assert len({row.video_id for row in rows}) == 8
    test = {row.identity for row in rows if row.split == "test"}
    assert len(test) == 1
    assert not test & {row.identity for row in rows if row.split == "train"}
    assert {row.image.shape for row in rows} == {(96, 96, 3)}
    assert json.loads((tmp_path / "out/settings.json").read_text())["made_by"] == "generate"
    with pytest.raises(ValueError, match="one identity and one photo"):
        generate_faces(tmp_path / "none", identities=0)
