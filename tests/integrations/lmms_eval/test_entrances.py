"""Whichever way a picture comes in, the same pixels are judged and learned from."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from llava_forgery.faces.records import image_pixels
from llava_forgery.hosts.llava.tower import KFDImageProcessor
from llava_forgery.images import read_image
from llava_forgery.integrations.lmms_eval.data import VARIABLE
from llava_forgery.integrations.lmms_eval.model import LlavaForgery
from llava_forgery.integrations.lmms_eval.tasks import pictures
from llava_forgery.qa.conversation import Message
from llava_forgery.qa.llava_json import LlavaSample, Turn
from llava_forgery.train.dialogues import JsonSource
from tests import tiny
from tests.test_images import DISPLAY_P3, from_display_p3, profile

SIDE = tiny.SIZE
COLOURS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]
ALPHA = COLOURS[..., 1]
WHITENED = (GREY * (ALPHA / 255.0) + 255 - ALPHA).round().astype(np.uint8)


def deep():
    return Image.fromarray(GREY.astype(np.uint16) * 257), {}, np.dstack([GREY] * 3)


def grey_and_alpha():
    return Image.fromarray(np.dstack([GREY, ALPHA])), {}, np.dstack([WHITENED] * 3)


def colours_and_alpha():
    image = Image.fromarray(np.dstack([GREY, GREY, GREY, ALPHA]))
    return image, {}, np.dstack([WHITENED] * 3)


def palette_with_transparency():
    image = Image.fromarray(GREY, "P")
    image.putpalette([i for level in range(256) for i in (level, level, level)])
    expected = np.where(GREY == 7, 255, GREY)
    return image, {"transparency": 7}, np.dstack([expected] * 3)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    expected = np.asarray(ImageOps.exif_transpose(_with(Image.fromarray(COLOURS), exif)))
    return Image.fromarray(COLOURS), {"exif": exif}, expected


def _with(image, exif):
    image.info["exif"] = exif.tobytes()
    return image


def four_inks():
    ink = Image.fromarray(255 - np.dstack([COLOURS, np.full_like(GREY, 255)]), "CMYK")
    return ink, {"compression": "tiff_lzw"}, COLOURS


def display_p3():
    flat = np.full_like(COLOURS, (200, 100, 50))
    expected = np.full_like(COLOURS, np.round(from_display_p3((200, 100, 50))))
    return Image.fromarray(flat), {"icc_profile": profile(DISPLAY_P3)}, expected


@pytest.fixture(scope="module")
def model(adapter):
    return LlavaForgery(str(adapter), device="cpu", cropped=True)


@pytest.mark.parametrize(
    "kind",
    [
        deep,
        grey_and_alpha,
        colours_and_alpha,
        palette_with_transparency,
        turned,
        four_inks,
        display_p3,
    ],
)
def test_all_entrances_see_the_same(model, tmp_path, kind, monkeypatch):
    (tmp_path / "manifest.jsonl").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "manifest.jsonl"))
    image, options, expected = kind()
    name = "a.tif" if image.mode == "CMYK" else "a.png"
    path = tmp_path / name
    image.save(path, **options)
    read = read_image(path)
    assert np.abs(read.astype(int) - expected).max() <= (2 if kind is display_p3 else 1)

    def seen(picture):
        (face,) = model.predictor.find_faces(picture, cropped=True)
        return face.image

    with Image.open(path) as opened:
        turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", "A face."))
        entry = JsonSource([LlavaSample("a", turns, (name,))], tmp_path)[0]
        row = {"bytes": path.read_bytes(), "path": None}
        tensor = KFDImageProcessor(SIDE)(opened)["pixel_values"][0]
        entrances = {
            "a path": seen(path),
            "a PIL image": seen(opened),
            "an array": seen(read),
            "lmms-eval": model._about([opened], (Message("user", "What?"),)).face,
            "the tasks of any model": np.asarray(pictures({"image": row})[0]),
            "the tasks, by a path": np.asarray(pictures({"image": name})[0]),
            "LLaVA's JSON": np.asarray(entry.images[0]),
            "a row of a data set": image_pixels(row, "RGB"),
            "LLaVA's image processor": (tensor.permute(1, 2, 0).numpy() * 255).round(),
        }
    for entrance, pixels in entrances.items():
        np.testing.assert_array_equal(pixels, read, err_msg=entrance)
