import io

import numpy as np
import pytest
import torch
from PIL import Image

from llava_forgery.evaluation.perturb import (
    LEVELS,
    PERTURBATIONS,
    Perturbation,
    choose_perturbations,
    perturb,
)
from tests import tiny

IMAGE = tiny.picture(3, 96)
KINDS = {kind.name: kind for kind in PERTURBATIONS}
every_kind = pytest.mark.parametrize("kind", PERTURBATIONS, ids=lambda kind: kind.name)


def difference(one, two):
    return float(np.abs(one.astype(int) - two.astype(int)).mean())


@every_kind
def test_same_image_and_seed_give_the_same_result(kind):
    torch.manual_seed(1)
    first = perturb(IMAGE, kind, 3, "a.png", seed=4)
    # Neither the global generator nor what was changed before has a say.
    torch.manual_seed(2)
    perturb(tiny.picture(9, 96), kind, 5, "b.png", seed=4)
    assert np.array_equal(first, perturb(IMAGE, kind, 3, "a.png", seed=4))
    assert first.shape == IMAGE.shape
    assert first.dtype == np.uint8


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"crop"}))
def test_strength_grows_with_the_level(name):
    """Mean over images: each level is further from the image than the one before."""
    kind = KINDS[name]
    images = [tiny.picture(i, 224) for i in range(3)]
    away = [
        np.mean([difference(image, perturb(image, kind, level, str(i))) for i, image in
                 enumerate(images)])
        for level in range(LEVELS + 1)
    ]  # fmt: skip
    assert away[0] == 0
    assert np.all(np.diff(away) > 0), away


@pytest.mark.parametrize("name", ["noise", "crop", "screenshot", "gamma"])
def test_key_and_seed_decide_what_is_random(name):
    kind = KINDS[name]
    results = [perturb(IMAGE, kind, 4, f"{i}.png", seed=i % 2) for i in range(8)]
    assert len({result.tobytes() for result in results}) > 1
    if name == "noise":
        assert len({result.tobytes() for result in results}) == 8


def test_noise_of_two_levels_differs_in_size_alone():
    grey = np.full((64, 64, 3), 128, np.uint8)
    weak, strong = (perturb(grey, KINDS["noise"], level, "a") for level in (2, 3))
    weak, strong = (values.astype(float) - 128 for values in (weak, strong))
    assert np.corrcoef(weak.ravel(), strong.ravel())[0, 1] > 0.98
    assert strong.std() == pytest.approx(255 * 0.04, rel=0.03)


def test_jpeg_has_the_quality_it_names():
    ours = perturb(IMAGE, KINDS["jpeg"], 5, "a")
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, format="JPEG", quality=30)
    theirs = np.asarray(Image.open(buffer))
    # Two encoders of one quality: nearer to each other than to the image.
    assert difference(ours, theirs) < 0.3 * difference(ours, IMAGE)


def test_blur_grows_with_the_image():
    small = np.zeros((64, 64, 3), np.uint8)
    small[:, 32:] = 255
    large = np.zeros((128, 128, 3), np.uint8)
    large[:, 64:] = 255
    edges = []
    for image in (small, large):
        row = perturb(image, KINDS["blur"], 5, "a")[0, :, 0].astype(float) / 255
        edges.append(np.sum(row * (1 - row)) / len(row))
    assert edges[0] == pytest.approx(edges[1], rel=0.1)


def test_crop_keeps_the_share_it_names():
    ramp = np.repeat(np.linspace(0, 255, 200).astype(np.uint8)[None], 200, axis=0)
    image = np.stack([ramp] * 3, axis=2)
    for level, cut in enumerate(KINDS["crop"].strengths, start=1):
        row = perturb(image, KINDS["crop"], level, "a")[100, :, 0].astype(float)
        assert (row[-1] - row[0]) / 255 == pytest.approx(1 - cut, abs=0.02)


def test_gamma_goes_both_ways():
    grey = np.full((32, 32, 3), 100, np.uint8)
    found = {int(perturb(grey, KINDS["gamma"], 3, str(i))[0, 0, 0]) for i in range(20)}
    expected = {round(255 * (100 / 255) ** g) for g in (1.8, 1 / 1.8)}
    assert found == expected


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="level must be 0 to 5, got 6"):
        perturb(IMAGE, KINDS["jpeg"], 6, "a")
    with pytest.raises(ValueError, match=r"expected \(S, S, 3\) uint8"):
        perturb(IMAGE[:50], KINDS["jpeg"], 1, "a")
    with pytest.raises(ValueError, match="must have 5 strengths"):
        Perturbation("x", "y", (1, 2), KINDS["jpeg"].apply)
    with pytest.raises(ValueError, match=r"unknown perturbations \['fog'\]"):
        choose_perturbations(["fog"])
    assert [kind.name for kind in choose_perturbations(["noise", "jpeg"])] == ["jpeg", "noise"]
    assert choose_perturbations(None) == PERTURBATIONS
