import numpy as np
import pytest

from llava_forgery.faces.drawn_texture import Canvas, blob, curve, lay, light_up

CANVAS = Canvas(width=120, height=100, unit=20.0, origin=(60.0, 40.0))


def test_shapes_lie_where_their_coordinates_say():
    mask = CANVAS.fill(blob(np.array([0.7, -0.4]), (0.8, 0.6)))
    assert mask.shape == (100, 120)
    assert (mask * CANVAS.x).sum() / mask.sum() == pytest.approx(0.7, abs=0.01)
    assert (mask * CANVAS.y).sum() / mask.sum() == pytest.approx(-0.4, abs=0.01)
    # OpenCV draws the edge itself too, about half a pixel.
    assert mask.sum() / 20**2 == pytest.approx(np.pi * 0.83 * 0.63, rel=0.03)


def test_window_is_a_part_of_the_canvas():
    shape = blob(np.array([1.0, 1.0]), (0.5, 0.5))
    part, window = CANVAS.window(shape, 0.3)
    whole = CANVAS.fill(shape)
    np.testing.assert_array_equal(part.fill(shape), whole[window[1:]])
    np.testing.assert_allclose(part.x[0], CANVAS.x[0, window[2]], atol=1e-6)
    outside, _ = CANVAS.window(shape + 50, 0.1)
    assert (outside.width, outside.height) == (1, 1)


def test_curve_passes_through_its_points():
    points = np.array([[0, 0], [1, 2], [3, 1], [4, 4]])
    np.testing.assert_allclose(curve(points, 5)[::5], points, atol=1e-9)
    np.testing.assert_allclose(curve(points, 5, closed=True)[::5], points, atol=1e-9)


def test_noise_is_seeded_and_of_unit_deviation():
    canvas = Canvas()
    first = canvas.noise(np.random.default_rng(0), 3, 2)
    np.testing.assert_array_equal(first, canvas.noise(np.random.default_rng(0), 3, 2))
    assert first.std() == pytest.approx(1, abs=0.15)
    assert not np.array_equal(first, canvas.noise(np.random.default_rng(1), 3, 2))


def test_light_comes_from_where_it_is():
    height = CANVAS.bumps((1.0, 0.0, 0.0, 1.0, 1.0))
    diffuse, gloss = light_up(height, CANVAS.unit, np.array([-1.0, 0.0, 0.7]))
    assert diffuse[40, 40] > diffuse[40, 80] + 0.3
    for light in (diffuse, gloss):
        assert 0 <= light.min() <= light.max() <= 1
    flat, _ = light_up(np.zeros((9, 9), np.float32), 20, np.array([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(flat, 1, atol=1e-6)


def test_lay_mixes_in_place():
    picture = np.zeros((3, 2, 2), np.float32)
    lay(picture, np.array([1.0, 0.5, 0.0]), np.array([[0, 1], [0.5, 0]], np.float32))
    np.testing.assert_allclose(picture[:, 0, 1], [1, 0.5, 0])
    np.testing.assert_allclose(picture[:, 1, 0], [0.5, 0.25, 0])
    assert picture.dtype == np.float32
