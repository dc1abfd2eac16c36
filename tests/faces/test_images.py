import numpy as np
import pytest
from PIL import Image, ImageFile

from llava_forgery.faces.images import read_image


def save(path, array, mode=None, **options):
    Image.fromarray(array, mode).save(path, **options) if mode else Image.fromarray(array).save(
        path, **options
    )
    return path


def test_exif_orientation_is_applied(tmp_path):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    path = save(tmp_path / "a.jpg", image, exif=exif, quality=100)
    read = read_image(path)
    assert read.shape == (40, 20, 3)
    assert read[:8].min() > 200
    assert read[14:].max() < 50


def test_transparency_lies_over_white(tmp_path):
    image = np.zeros((4, 4, 4), np.uint8)
    image[:2, :, 3] = 255
    read = read_image(save(tmp_path / "a.png", image))
    assert (read[:2] == 0).all()
    assert (read[2:] == 255).all()


def test_palette_grey_and_sixteen_bits(tmp_path):
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[1:] = (200, 30, 60)
    palette = Image.fromarray(colours).quantize(4)
    palette.save(tmp_path / "p.png")
    np.testing.assert_allclose(read_image(tmp_path / "p.png"), colours, atol=2)
    deep = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    read = read_image(save(tmp_path / "deep.png", deep))
    np.testing.assert_array_equal(read[..., 0], [[0, 100], [200, 255]])
    assert read.shape == (2, 2, 3)


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)
    red = read_image(tmp_path / "c.jpg")[0, 0]
    assert red[0] > 200
    assert red[1] < 60


@pytest.mark.parametrize("filled_up", [False, True])
def test_broken_files_name_the_file(tmp_path, monkeypatch, filled_up):
    # lmms-eval sets it on import, for the whole process.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", filled_up)
    whole = save(
        tmp_path / "whole.jpg",
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8),
    )
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:1500])
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    for path in (cut, text):
        with pytest.raises(ValueError, match=path.name):
            read_image(path)
    with pytest.raises(FileNotFoundError, match="none.jpg"):
        read_image(tmp_path / "none.jpg")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is filled_up


@pytest.mark.parametrize("limit", [100, 200])
def test_decompression_bomb(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "bomb.png", np.zeros((18, 18, 3), np.uint8))
    # Pillow warns above its limit and raises above twice its limit: both are errors here.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"bomb\.png has more than"):
        read_image(path)
