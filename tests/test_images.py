import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile, features

from llava_forgery.images import SUFFIXES, decode_image, read_image


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


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def ghostscript(monkeypatch):
    """Whether the program was asked to run what a file says."""
    calls = []

    def run(*arguments, **options):
        calls.append(arguments)
        return Image.new("RGB", (8, 8)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    return calls


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.eps"])
def test_an_eps_runs_no_program(tmp_path, ghostscript, name):
    (tmp_path / name).write_bytes(EPS)
    with Image.open(tmp_path / name) as image:
        image.load()
    # Pillow left to itself does.
    assert len(ghostscript) == 1
    with pytest.raises(ValueError, match=rf"{name} is not an image, or of a format that is not"):
        read_image(tmp_path / name)
    with pytest.raises(ValueError, match="row 3 is not an image, or of a format that is not"):
        decode_image(EPS, "row 3")
    assert len(ghostscript) == 1


@pytest.mark.parametrize("kind", ["PPM", "PCX", "TGA", "PSD", "ICO", "JPEG2000", "SGI"])
def test_formats_of_no_photograph_are_not_opened(tmp_path, kind):
    path = tmp_path / "a.jpg"
    if kind == "PSD":
        path.write_bytes(b"8BPS\0\1" + bytes(100))
    else:
        Image.new("RGB", (8, 8)).save(path, format=kind)
    with pytest.raises(ValueError, match="of a format that is not opened; expected one of JPEG"):
        read_image(path)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".mpo", ".avif"])
def test_formats_of_photographs_are_opened_whatever_the_name(tmp_path, suffix):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    image = Image.new("RGB", (8, 8), (200, 60, 20))
    image.save(tmp_path / f"a{suffix}", quality=95)
    (tmp_path / f"a{suffix}").rename(tmp_path / "named.otherwise")
    read = read_image(tmp_path / "named.otherwise")
    assert np.abs(read.astype(int) - (200, 60, 20)).max() < 16
    assert decode_image((tmp_path / "named.otherwise").read_bytes(), "row").size == (8, 8)


@pytest.mark.parametrize("limit", [100, 200])
def test_decompression_bomb(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "bomb.png", np.zeros((18, 18, 3), np.uint8))
    # Pillow warns above its limit and raises above twice its limit: both are errors here.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"bomb\.png has more than"):
        read_image(path)
