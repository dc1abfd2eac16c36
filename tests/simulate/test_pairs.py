import datasets
import numpy as np
import pytest
import torch

from llava_forgery.faces.records import FEATURES, FaceCrop
from llava_forgery.simulate.degrade import DegradeConfig, degrade
from llava_forgery.simulate.pairs import CENTRED, FacePairs, FramingConfig, frame_face
from tests import tiny


@pytest.fixture(scope="module")
def faces():
    rows = [tiny.face(i).to_row() for i in range(5)]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def _pairs(faces, **options):
    return FacePairs(faces, options.pop("length", 12), size=64, **options)


def test_pair_is_the_same_whatever_the_order_and_the_workers(faces):
    pairs = _pairs(faces, degradation=DegradeConfig())
    backwards = [pairs[i] for i in reversed(range(12))][::-1]
    loader = torch.utils.data.DataLoader(pairs, None, num_workers=2)
    for one, two in zip(backwards, loader, strict=True):
        assert torch.equal(one.forged, two.forged)
        assert torch.equal(one.mask, two.mask)
        assert one.regions == tuple(two.regions)


def test_seed_and_index_change_the_pair(faces):
    pairs = _pairs(faces)
    assert not torch.equal(pairs[0].forged, pairs[5].forged)
    assert not torch.equal(pairs[0].forged, _pairs(faces, seed=1)[0].forged)


def test_every_round_covers_all_faces_in_an_order_of_its_own(faces):
    pairs = _pairs(faces, length=40)
    rounds = [[pairs.row_of(5 * lap + i) for i in range(5)] for lap in range(8)]
    assert all(sorted(rows) == [0, 1, 2, 3, 4] for rows in rounds)
    assert len({tuple(rows) for rows in rounds}) > 1


def test_mask_moves_with_the_mirrored_picture(faces):
    mirrored = DegradeConfig(probability=0.0, flip=1.0)
    plain, flipped = _pairs(faces)[3], _pairs(faces, degradation=mirrored)[3]
    assert torch.equal(plain.forged.flip(-1), flipped.forged)
    assert torch.equal(plain.mask.flip(-1), flipped.mask)


def test_degradation_treats_both_images_alike():
    torch.manual_seed(0)
    image = torch.rand(3, 32, 32)
    config = DegradeConfig(probability=1.0, noise=(0.0, 0.0))
    result, _ = degrade(torch.stack([image, image]), config, torch.Generator().manual_seed(1))
    assert torch.equal(result[0], result[1])
    assert not torch.allclose(result[0], image, atol=0.02)


def test_framing_moves_landmarks_with_the_picture():
    """A white dot on a landmark stays under it."""
    face = tiny.face()
    image = np.zeros_like(face.image)
    x, y = face.landmarks[30]
    image[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = 255
    face = FaceCrop(**{**vars(face), "image": image})
    generator = torch.Generator().manual_seed(0)
    framed, landmarks = frame_face(face, 64, FramingConfig((0.0, 0.2), 0.1), generator)
    rows, columns = np.nonzero(framed[..., 0] > 100)
    centre = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
    assert np.abs(centre - landmarks[30]).max() < 1.5


def test_centred_framing_draws_nothing():
    face = tiny.face()
    first = frame_face(face, 64, CENTRED, torch.Generator().manual_seed(0))
    second = frame_face(face, 64, CENTRED, torch.Generator().manual_seed(9))
    np.testing.assert_array_equal(first[0], second[0])


def test_fake_faces_are_refused(faces):
    rows = [{**tiny.face().to_row(), "label": 1}]
    with pytest.raises(ValueError, match="1 of 1 are labelled fake"):
        FacePairs(datasets.Dataset.from_list(rows, features=FEATURES), 3)
    with pytest.raises(IndexError):
        _pairs(faces)[12]
