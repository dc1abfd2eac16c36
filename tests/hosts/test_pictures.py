"""What the detector sees of pictures that clients give, with dlib's own finder of faces."""

import sys

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil

from llava_forgery.hosts.pictures import ClientPrompts, picture_of
from llava_forgery.images import read_image
from llava_forgery.tensors import to_bytes
from tests import tiny

SIZE = 96


@pytest.fixture(scope="module")
def photograph(samples_dir):
    pytest.importorskip("dlib")
    return read_image(samples_dir / "001_03.jpg")


@pytest.fixture(scope="module")
def clients():
    return ClientPrompts()


def test_a_processors_pixels_are_the_picture_again(photograph):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128}
    )
    square = photograph[: min(photograph.shape[:2]), : min(photograph.shape[:2])]
    pixels = processor(square, return_tensors="pt")["pixel_values"][0].half()
    found = picture_of(pixels, processor.image_mean, processor.image_std)
    plain = processor(square, return_tensors="np", do_normalize=False, do_rescale=False)
    expected = np.asarray(plain["pixel_values"][0]).transpose(1, 2, 0)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_the_face_is_cut_out_and_found_crops_stay(photograph, clients, caplog):
    (face,) = clients.frame([photograph], SIZE, "face")
    (whole,) = clients.frame([photograph], SIZE, "none")
    assert face.shape == whole.shape == (3, SIZE, SIZE)
    assert float((face - whole).abs().mean()) > 0.02
    # A crop that is framed as in training is not cut again.
    (large,) = clients.frame([photograph], 2 * SIZE, "face")
    (again,) = clients.frame([to_bytes(large)], SIZE, "face")
    torch.testing.assert_close(again, face, rtol=0, atol=0.1)
    assert float((again - face).abs().mean()) < 0.01
    assert not caplog.text


def test_without_a_face_the_whole_is_judged_with_a_warning(clients, caplog, photograph):
    nobody = np.zeros((40, 80, 3), dtype=np.uint8)
    nobody[:, 40:] = 200
    (found,) = clients.frame([nobody], SIZE, "face")
    assert torch.equal(found, clients.frame([nobody], SIZE, "none")[0])
    assert "no face was found" in caplog.text


def test_without_a_finder_the_whole_is_judged_with_a_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "dlib", None)
    (found,) = ClientPrompts().frame([tiny.picture()], SIZE, "face")
    assert torch.equal(found, ClientPrompts().frame([tiny.picture()], SIZE, "none")[0])
    assert "face detection needs the package 'dlib'" in caplog.text
