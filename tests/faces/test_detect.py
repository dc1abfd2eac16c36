import copy
import csv
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from llava_forgery.faces import detect
from llava_forgery.faces.detect import DlibDetector, get_detector, register_detector
from llava_forgery.faces.detected import nothing_found
from llava_forgery.images import read_image
from tests.faces.small import check_small_faces


@pytest.fixture(scope="module")
def detector():
    pytest.importorskip("dlib")
    return get_detector("dlib")


def with_options(detector, **options):
    """The same models with other settings: loading them takes a second."""
    other = copy.copy(detector)
    for name, value in options.items():
        setattr(other, name, value)
    return other


def test_eye_centres_agree_with_marked_pupils(detector, samples_dir):
    with (samples_dir / "eyes.csv").open() as lines:
        rows = list(csv.DictReader(lines))[::7]
    assert len(rows) >= 5
    errors = []
    for row in rows:
        (face,) = detector.detect(read_image(samples_dir / row["file"]))
        pupils = np.array(
            [
                [float(row[f"image_{side}_eye_{axis}"]) for axis in "xy"]
                for side in ("left", "right")
            ]
        )
        eyes = np.stack([face.landmarks[36:42].mean(axis=0), face.landmarks[42:48].mean(axis=0)])
        apart = np.linalg.norm(pupils[0] - pupils[1])
        errors += list(np.linalg.norm(eyes - pupils, axis=1) / apart)
        x0, y0, x1, y1 = face.box
        assert ((eyes > [x0, y0]) & (eyes < [x1, y1])).all()
    assert np.mean(errors) < 0.05


def test_landmarks_do_not_depend_on_max_side(detector, samples_dir):
    image = read_image(samples_dir / "001_03.jpg")
    coarse = with_options(detector, max_side=320)
    (large,), (small,) = detector.detect(image), coarse.detect(image)
    eyes = np.linalg.norm(large.landmarks[36] - large.landmarks[45])
    assert np.linalg.norm(large.landmarks - small.landmarks, axis=1).mean() < 0.06 * eyes


def test_small_faces_and_min_face(detector, samples_dir):
    image = read_image(samples_dir / "001_03.jpg")
    # 135 pixels: the face is smaller than the detector's window until the picture is enlarged.
    small = cv2.resize(image, (135, 135), interpolation=cv2.INTER_AREA)
    assert len(detector.detect(small)) == 1
    assert with_options(detector, min_face=100).detect(small) == []


def test_small_faces_of_large_pictures(detector, samples_dir):
    check_small_faces(detector, samples_dir, (1080, 1920))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dlib", "mediapipe"])
def test_64_pixels_in_12_megapixels(name, samples_dir):
    check_small_faces(get_detector(name), samples_dir, (3000, 4000))


def test_very_large_pictures_are_not_enlarged_without_end(detector):
    assert detector.smallest_face(3000, 4000) == 64
    assert detector.smallest_face(9000, 12000) == 170
    assert detector.smallest_face(135, 135) == 40
    assert with_options(detector, smallest=0).smallest_face(3000, 4000) == 500


def test_nothing_in_noise(detector):
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    assert detector.detect(noise) == []
    assert detector.detect(noise[:1, :1]) == []
    assert detector.detect(noise[:1]) == []
    with pytest.raises(ValueError, match="uint8"):
        detector.detect(noise.astype(np.float32))


def test_largest_first(detector, samples_dir):
    image = read_image(samples_dir / "001_03.jpg")
    pair = np.full((320, 530, 3), 220, np.uint8)
    pair[50:260, :210] = cv2.resize(image, (210, 210), interpolation=cv2.INTER_AREA)
    pair[:, 210:] = image
    faces = detector.detect(pair)
    assert len(faces) == 2
    assert faces[0].box[0] > 210 > faces[1].box[2]


def test_doubtful_boxes_are_a_last_resort():
    sure, inside = ((0.0, 0.0, 90.0, 90.0), 1.2), ((20.0, 20.0, 60.0, 60.0), 0.4)
    other, weak = ((200.0, 0.0, 280.0, 80.0), 0.1), ((400.0, 0.0, 600.0, 200.0), -0.1)
    weaker = ((0.0, 300.0, 90.0, 390.0), -0.2)
    assert detect._without_doubts([weak, other, inside, sure]) == [sure, other]
    assert detect._without_doubts([weaker, weak]) == [weak]
    assert detect._without_doubts([]) == []


def test_options_are_checked():
    with pytest.raises(ValueError, match="max_side"):
        DlibDetector(max_side=10)


def test_another_process_gets_the_same_options(detector):
    kind, options = with_options(detector, threshold=0.1, min_face=9).__reduce__()
    assert (kind, options) == (DlibDetector, (0.1, 640, 2.0, 9, 64))


def test_registry(monkeypatch):
    monkeypatch.setattr(detect, "_DETECTORS", dict(detect._DETECTORS))
    factory = type("Mine", (), {})
    register_detector("mine", factory)
    register_detector("mine", factory)
    assert isinstance(get_detector("mine"), factory)
    with pytest.raises(ValueError, match="is taken"):
        register_detector("mine", dict)
    with pytest.raises(ValueError, match=r"unknown face detector 'yours'.*dlib, mediapipe, mine"):
        get_detector("yours")


def test_without_dlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(ImportError, match=r"llava-forgery\[faces\]"):
        get_detector("dlib")


def test_import_needs_neither_dlib_nor_the_model_package():
    code = (
        "import sys; sys.modules['dlib'] = None; sys.modules['face_recognition_models'] = None; "
        "import llava_forgery.faces.prepare"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_message_says_how_small_a_face_may_be(detector):
    photograph = np.zeros((1080, 1920, 3), np.uint8)
    assert nothing_found(detector, photograph) == (
        "no face was found in its 1920 x 1080 pixels, where faces from about 64 pixels across "
        "are searched for"
    )
    assert nothing_found(object(), photograph) == "no face was found in its 1920 x 1080 pixels"


@pytest.mark.parametrize("name", ["dlib", "mediapipe"])
def test_threads_find_the_faces_of_their_own_pictures(name, samples_dir):
    pytest.importorskip("dlib")
    try:
        detector = get_detector(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    images = [read_image(path) for path in sorted(samples_dir.glob("*.jpg"))[:24:6]]
    expected = [detector.detect(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(detector.detect, images * 4))
    for faces, alone in zip(found, expected * 4, strict=True):
        for face, own in zip(faces, alone, strict=True):
            np.testing.assert_allclose(face.landmarks, own.landmarks, atol=1e-3)
