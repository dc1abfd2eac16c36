import sys

import numpy as np
import pytest
from PIL import (
    EpsImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    ImageOps,
    TiffImagePlugin,
    features,
)

from llava_forgery.images import SUFFIXES, decode_image, open_image, read_image, to_rgb


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
    with pytest.raises(ValueError, match=rf"{name} is not an image, or of an unsupported"):
        read_image(tmp_path / name)
    with pytest.raises(ValueError, match="row 3 is not an image, or of an unsupported"):
        decode_image(EPS, "row 3")
    assert len(ghostscript) == 1


@pytest.mark.parametrize("kind", ["PPM", "PCX", "TGA", "PSD", "ICO", "JPEG2000", "SGI"])
def test_formats_of_no_photograph_are_not_opened(tmp_path, kind):
    path = tmp_path / "a.jpg"
    if kind == "PSD":
        path.write_bytes(b"8BPS\0\1" + bytes(100))
    else:
        Image.new("RGB", (8, 8)).save(path, format=kind)
    with pytest.raises(ValueError, match="of an unsupported format; expected one of JPEG"):
        read_image(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_formats_of_photographs_are_opened_whatever_the_name(tmp_path, suffix):
    if suffix.startswith(".avif") and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    if suffix in (".heic", ".heif", ".hif"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    image = Image.new("RGB", (8, 8), (200, 60, 20))
    kind = Image.registered_extensions().get(suffix, "AVIF" if suffix == ".avifs" else "HEIF")
    image.save(tmp_path / f"a{suffix}", format=kind, quality=95)
    (tmp_path / f"a{suffix}").rename(tmp_path / "named.otherwise")
    read = read_image(tmp_path / "named.otherwise")
    assert np.abs(read.astype(int) - (200, 60, 20)).max() < 16
    assert decode_image((tmp_path / "named.otherwise").read_bytes(), "row").size == (8, 8)


@pytest.mark.parametrize("limit", [100, 200])
def test_decompression_bomb(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "bomb.png", np.zeros((18, 18, 3), np.uint8))
    # Pillow warns above its limit and raises above twice its limit: both are errors here.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"bomb\.png has 324 pixels, more than .*--max-pixels 324"):
        read_image(path)


def test_what_pillow_fills_up_stays_an_error_among_threads(tmp_path, monkeypatch):
    """One thread's reading ends while another's goes on; neither changes what the other sees."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = save(tmp_path / "whole.png", np.zeros((8, 8, 3), np.uint8))
    with open_image(whole, "a"):
        with open_image(whole, "b"):
            pass
        assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def profile(primaries, gamma=2.2):
    """An ICC profile of three primaries (XYZ under D50) and a gamma."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + np.round(np.array(values) * 65536).astype(">i4").tobytes()

    text = b"desc\0\0\0\0\0\0\0\x05test\0" + bytes(78)
    curve = b"curv\0\0\0\0\0\0\0\x01" + round(gamma * 256).to_bytes(2, "big") + b"\0\0"
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none", b"wtpt": xyz((0.9642, 1, 0.8249))}
    for name, value in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags |= {name + b"XYZ": xyz(value), name + b"TRC": curve}
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + (start + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data
    head = bytes(8) + b"\x02\x20\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += np.round(np.array([0.9642, 1, 0.8249]) * 65536).astype(">i4").tobytes() + bytes(48)
    data = head + len(tags).to_bytes(4, "big") + table + body
    return len(data).to_bytes(4, "big") + data[4:]


DISPLAY_P3 = np.array(
    [[0.51512, 0.24120, -0.00105], [0.29198, 0.69225, 0.04189], [0.15710, 0.06657, 0.78407]]
)
SRGB = np.array(
    [[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]]
)


def from_display_p3(colour):
    """By the definitions of both colour spaces."""
    linear = (np.array(colour) / 255) ** 2.2 @ DISPLAY_P3 @ np.linalg.inv(SRGB)
    linear = linear.clip(0, 1)
    return 255 * np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_brought_to_srgb(tmp_path, mode):
    colour = (200, 100, 50)
    image = Image.new("RGB", (8, 8), colour)
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png", icc_profile=profile(DISPLAY_P3))
    read = read_image(tmp_path / "a.png")
    assert np.abs(read - from_display_p3(colour)).max() <= 2
    assert np.abs(read - np.array(colour)).max() > 10
    # sRGB by another name moves nothing.
    exact = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(
        read_image(save(tmp_path / "s.png", exact, icc_profile=icc)), exact
    )


def test_profiles_that_do_not_fit_are_told(tmp_path, caplog):
    image = np.full((8, 8), 100, np.uint8)
    path = save(tmp_path / "grey.png", image, icc_profile=profile(DISPLAY_P3))
    assert (read_image(path) == 100).all()
    assert "profile is for RGB and its pixels are L" in caplog.text
    path = save(tmp_path / "a.png", np.dstack([image] * 3), icc_profile=b"no profile" * 20)
    assert (read_image(path) == 100).all()
    assert "colour profile is broken" in caplog.text


def test_transparency_of_all_modes_lies_over_white():
    levels = np.array([[0, 85, 170, 255]], np.uint8)
    grey = np.full_like(levels, 90)
    expected = (90 * (levels / 255) + 255 * (1 - levels / 255)).round()
    for image in (
        Image.fromarray(np.dstack([grey, levels]), "LA"),
        Image.fromarray(np.dstack([grey] * 3 + [levels]), "RGBA"),
        np.dstack([grey, levels]),
        np.dstack([grey] * 3 + [levels]),
        (np.dstack([grey] * 3 + [levels]) * np.uint16(257)),
    ):
        np.testing.assert_allclose(to_rgb(image), np.dstack([expected] * 3), atol=1)
    palette = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8), "P")
    palette.putpalette([90] * 12)
    palette.info["transparency"] = bytes([0, 85, 170, 255])
    np.testing.assert_allclose(to_rgb(palette), np.dstack([expected] * 3), atol=1)
    # One colour of a picture without alpha is declared to be transparent.
    single = Image.fromarray(np.array([[7, 8]], np.uint8))
    single.info["transparency"] = 7
    assert to_rgb(single)[0, :, 0].tolist() == [255, 8]
    deep = Image.fromarray(np.array([[700, 257 * 8]], np.uint16))
    deep.info["transparency"] = 700
    assert to_rgb(deep)[0, :, 0].tolist() == [255, 8]


def test_values_of_unknown_range_are_refused(tmp_path):
    for name, values in (("f.tif", np.zeros((4, 4), np.float32)),
                         ("i.tif", np.full((4, 4), 1 << 20, np.int32))):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{name} could not be read.*of unknown range"):
            read_image(save(tmp_path / name, values))
    shapes = ((4, 4, 5), (2, 4, 4, 3), (0, 4, 3))
    for array in (np.zeros((4, 4, 3)), *(np.zeros(shape, np.uint8) for shape in shapes)):
        with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8 RGB"):
            to_rgb(array)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_orientations_are_those_of_pillow(tmp_path, orientation, kind):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (5, 9, 3), dtype=np.uint8))
    image = image.resize((72, 40), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a", format=kind, exif=exif)
    with Image.open(tmp_path / "a") as opened:
        expected = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a"), expected)


def test_a_large_picture_is_converted_in_bands():
    image = np.random.default_rng(0).integers(0, 256, (700, 5003, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(image)), image)


def test_previews_of_raw_files_are_not_taken_for_photographs(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif", tiffinfo=tags)
    with pytest.raises(
        ValueError, match=r"a\.tif could not be read.*raw file, or begins with a red"
    ):
        read_image(tmp_path / "a.tif")


def test_heic_without_its_package_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    with pytest.raises(ValueError, match=r"a\.jpg is HEIF.*pip install 'llava-forgery\[heic\]'"):
        read_image(tmp_path / "a.jpg")


def test_of_animations_and_pages_the_first_is_read_and_told(tmp_path, caplog):
    frames = [Image.new("RGB", (8, 8), (level, 0, 0)) for level in (200, 100, 50)]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        what = "pages" if name == "a.tif" else "frames"
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert abs(int(read_image(tmp_path / name)[4, 4, 0]) - 200) <= 4
        assert f"{name} has 3 {what}, of which only the first is read" in caplog.text
