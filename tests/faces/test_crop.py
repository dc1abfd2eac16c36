import cv2
import numpy as np
import pytest

from llava_forgery.faces.crop import (
    crop_box,
    crop_square,
    eye_angle,
    is_trained_margin,
    trained_framing,
)


def blob_image(side, centre, deviation):
    """A soft bright spot whose centre of mass is known, in continuous pixels."""
    x = np.arange(side) + 0.5
    spot = np.exp(
        -0.5 * ((x[None] - centre[0]) ** 2 + (x[:, None] - centre[1]) ** 2) / deviation**2
    )
    return np.repeat((255 * spot).round().astype(np.uint8)[..., None], 3, axis=2)


def centre_of_mass(image):
    weight = image[..., 0].astype(float)
    y, x = np.indices(weight.shape) + 0.5
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@pytest.mark.parametrize("size", [40, 97, 200, 260, 640])
def test_landmarks_move_with_the_pixels(size):
    spot = (201.3, 187.9)
    image = blob_image(400, spot, deviation=14)
    landmarks = np.array([[120.2, 130.7], [280.9, 255.1], spot])
    crop, _, inside = crop_square(image, landmarks, size=size, margin=0.2)
    assert crop.shape == (size, size, 3)
    assert crop.dtype == np.uint8
    assert inside.dtype == np.float32
    # A half-pixel mistake would show as about 0.5 (enlarging) or its share (shrinking).
    np.testing.assert_allclose(centre_of_mass(crop), inside[2], atol=0.06)


def test_strong_reduction_keeps_the_place():
    image = blob_image(2000, (911.0, 1043.0), deviation=120)
    crop = crop_box(image, (100.5, 200.25, 1900.5, 2000.25), 64)
    expected = (np.array([911.0, 1043.0]) - [100.5, 200.25]) * 64 / 1800
    np.testing.assert_allclose(centre_of_mass(crop), expected, atol=0.06)


def test_square_is_centred_with_margin():
    landmarks = np.array([[100.0, 50.0], [140.0, 130.0]])
    _, box, inside = crop_square(np.zeros((200, 200, 3), np.uint8), landmarks, 90, margin=0.25)
    assert box == pytest.approx((60.0, 30.0, 180.0, 150.0))
    np.testing.assert_allclose(inside, [[30, 15], [60, 75]], atol=1e-4)


def test_whole_image_at_its_own_size_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop_box(image, (0, 0, 64, 64), 64), image)


def test_whole_images_shrink_by_areas_alone():
    """The grid in between is as wide as the image: these sides, divided and multiplied again by
    the size, would be rounded up."""
    rng = np.random.default_rng(0)
    for side in (225, 232, 239, 246, 253):
        image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        expected = cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(crop_box(image, (0, 0, side, side), 224), expected)


def test_shrinking_averages_areas():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2] = 200
    np.testing.assert_allclose(crop_box(image, (0, 0, 64, 64), 32), 100, atol=1)


def _power(image):
    """Power in ten bands of frequency, the last up to the highest."""
    grey = image.mean(axis=2)
    window = np.hanning(len(grey))
    spectrum = np.fft.fft2((grey - grey.mean()) * window[:, None] * window)
    step = np.abs(np.fft.fftfreq(len(grey)))
    band = (np.hypot(step[:, None], step) * 20).astype(int)
    return np.array([(np.abs(spectrum[band == i]) ** 2).mean() for i in range(10)])


@pytest.mark.parametrize("ratio", [1.02, 1.13, 1.3, 1.6, 1.95])
def test_a_single_pass_is_as_sharp_as_averaging_areas(ratio):
    """Pictures to train on must look like those that are judged: a detector sees blur."""
    powers = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        # As in photographs, power falls with the square of the frequency.
        step = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))
        noise = np.fft.fft2(rng.standard_normal((512, 512))) / np.maximum(step, 1 / 512)
        grey = np.fft.ifft2(noise).real
        grey = np.clip(128 + 40 * grey / grey.std(), 0, 255).astype(np.uint8)
        image = np.repeat(grey[..., None], 3, axis=2)
        side = 200 * ratio
        x, y, angle = *rng.uniform(40, 80, 2), rng.uniform(-12, 12)
        box = (x, y, x + side, y + side)
        exact = crop_box(image, box, 200, angle)
        quick = crop_box(image, box, 200, angle, single_pass=True)
        powers.append((_power(quick), _power(exact)))
    quick, exact = np.mean(powers, axis=0)
    np.testing.assert_allclose(quick[:7] / exact[:7], 1, atol=0.06)


def test_a_single_pass_keeps_the_place():
    spot = (201.3, 187.9)
    image = blob_image(400, spot, deviation=14)
    box = (100.2, 90.7, 340.2, 330.7)
    crop = crop_box(image, box, 160, single_pass=True)
    expected = (np.array(spot) - box[:2]) * 160 / 240
    np.testing.assert_allclose(centre_of_mass(crop), expected, atol=0.06)


@pytest.mark.parametrize("size", [60, 70, 100, 120, 250, 400])
def test_a_single_pass_changes_only_what_shrinks_to_no_less_than_half(size):
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    box = (20.3, 10.1, 270.3, 260.1)
    quick = crop_box(image, box, size, 5.0, single_pass=True)
    np.testing.assert_array_equal(quick, crop_box(image, box, size, 5.0))


def test_outside_repeats_the_edge():
    image = np.zeros((50, 50, 3), np.uint8)
    image[:, :25], image[:, 25:] = (10, 20, 30), (200, 210, 220)
    crop = crop_box(image, (-50, -50, 100, 100), 150)
    assert (crop[:, :50] == (10, 20, 30)).all()
    assert (crop[:, 100:] == (200, 210, 220)).all()
    assert (crop_box(image, (500, 500, 600, 600), 20) == (200, 210, 220)).all()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 10, 20), "square"),
        ((5, 5, 5, 5), "x0 < x1"),
        ((0, 0, float("nan"), 4), "finite"),
    ],
)
def test_bad_boxes(box, message):
    with pytest.raises(ValueError, match=message):
        crop_box(np.zeros((8, 8, 3), np.uint8), box, 8)


def test_bad_landmarks():
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="do not span"):
        crop_square(image, np.full((68, 2), 3.0))
    with pytest.raises(ValueError, match="finite"):
        crop_square(image, np.full((68, 2), np.nan))


@pytest.mark.parametrize("angle", [-150.0, -20.0, 7.5, 90.0])
@pytest.mark.parametrize("size", [60, 300])
def test_turned_landmarks_move_with_the_pixels(angle, size):
    spot = (201.3, 187.9)
    image = blob_image(400, spot, deviation=14)
    landmarks = np.array([[140.2, 150.7], [260.9, 245.1], spot])
    crop, box, inside = crop_square(image, landmarks, size=size, margin=0.2, angle=angle)
    np.testing.assert_allclose(centre_of_mass(crop), inside[2], atol=0.06)
    # The square's centre is the crop's, and lengths are scaled alike.
    assert box[2] - box[0] == pytest.approx(box[3] - box[1])
    scale = size / (box[2] - box[0])
    before = np.linalg.norm(landmarks[0] - landmarks[1])
    assert np.linalg.norm(inside[0] - inside[1]) == pytest.approx(before * scale, rel=1e-4)
    np.testing.assert_array_equal(crop, crop_box(image, box, size, angle))


def test_the_eye_angle_makes_the_eyes_level():
    landmarks = np.random.default_rng(0).uniform(50, 150, (68, 2))
    landmarks[36:42], landmarks[42:48] = (80, 90), (120, 113.1)
    angle = eye_angle(landmarks)
    assert angle == pytest.approx(30.0, abs=0.01)
    _, _, inside = crop_square(np.zeros((200, 200, 3), np.uint8), landmarks, 90, angle=angle)
    assert inside[36, 1] == pytest.approx(inside[42, 1], abs=1e-3)
    assert inside[36, 0] < inside[42, 0]


def framed(height, width, centre, longer):
    """Where a face of this size at this place is cut out."""
    half = np.array([longer / 2, longer / 2 * 0.9])
    points = np.stack([np.array(centre) - half, np.array(centre) + half]).astype(np.float32)
    return trained_framing(points, height, width)


def test_framing_of_crops():
    # As training could have drawn it: untouched.
    assert framed(320, 320, (165, 155), 200) == ((0, 0, 320, 320), pytest.approx(0.3))
    # Too wide: the middle of training's framings.
    box, margin = framed(900, 900, (400, 500), 200)
    assert box == pytest.approx((240, 340, 560, 660))
    assert margin == 0.3
    # The picture ends 20 pixels from the face: the widest square that lies in it.
    box, margin = framed(400, 400, (120, 200), 200)
    assert box == pytest.approx((0, 80, 240, 320))
    assert margin == pytest.approx(0.1)
    # Tight: nothing to be done.
    box, margin = framed(200, 200, (100, 100), 200)
    assert box == (0, 0, 200, 200)
    assert margin == pytest.approx(0)
    assert not is_trained_margin(margin)
    # At the edge of a wide picture: cut beyond it, as faces of photographs are.
    box, margin = framed(900, 900, (100, 450), 200)
    assert box == pytest.approx((-60, 290, 260, 610))
    assert not is_trained_margin(margin)
