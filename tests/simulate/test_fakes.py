"""Labelled fakes beside simulated forgeries."""

from collections import Counter
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch

from llava_forgery.faces.records import FEATURES, FaceCrop
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.fakes import LabelledPairs
from llava_forgery.simulate.pairs import CENTRED, FacePairs, frame_face
from llava_forgery.simulate.simulator import to_tensor
from tests import tiny


def _set(*crops):
    return datasets.Dataset.from_list([crop.to_row() for crop in crops], features=FEATURES)


def _flat(index, level, **changes):
    """A face of one grey level."""
    face = tiny.face(index)
    return replace(face, image=np.full_like(face.image, level), **changes)


def _left(face):
    """The face with a mask over its left half."""
    mask = np.zeros(face.image.shape[:2], np.uint8)
    mask[:, : mask.shape[1] // 2] = 255
    return replace(face, mask=mask)


@pytest.fixture(scope="module")
def faces():
    return _set(*(tiny.face(i) for i in range(3)))


def _pairs(faces, labelled, ratio=1.0, **options):
    options = {"size": 64, "framing": CENTRED, **options}
    return LabelledPairs(faces, 40, labelled, ratio, **options)


def test_the_simulated_ones_are_those_of_before_and_the_share_is_the_ratio(faces):
    labelled = _set(_flat(5, 200, label=1), _flat(6, 100))
    pairs = _pairs(faces, labelled, 0.5, degradation=DegradeConfig())
    plain = FacePairs(faces, 40, size=64, framing=CENTRED, degradation=DegradeConfig())
    simulated = [i for i, pair in enumerate(pairs) if pair.paired]
    assert 10 < len(simulated) < 30
    for i in simulated[:4]:
        for one, two in zip(pairs[i], plain[i], strict=True):
            assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
    assert pairs.describe() != plain.describe()


def test_a_fake_stands_beside_a_real_face_of_its_folder_with_its_mask(faces):
    labelled = _set(_left(_flat(5, 200, label=1, method="a")), _flat(6, 100))
    for pair in (_pairs(faces, labelled)[i] for i in range(3)):
        assert pair.forged.unique().tolist() == pytest.approx([200 / 255])
        assert pair.pristine.unique().tolist() == pytest.approx([100 / 255])
        assert (pair.paired, pair.masked) == (False, True)
        assert torch.equal(pair.mask[0, :, :31], torch.ones(64, 31))
        assert torch.equal(pair.mask[0, :, 33:], torch.zeros(64, 31))
    mirrored = DegradeConfig(probability=0.0, flip=1.0)
    flipped = _pairs(faces, labelled, degradation=mirrored)[0]
    assert torch.equal(flipped.mask, pair.mask.flip(-1))


def test_methods_are_drawn_evenly_and_unmasked_fakes_say_so(faces):
    rare = [_flat(5, 200, label=1, method="a")]
    common = [_left(_flat(6 + i, 100, label=1, method="b")) for i in range(5)]
    pairs = _pairs(faces, _set(*rare, *common, _flat(20, 50)))
    found = Counter((round(float(p.forged[0, 0, 0]) * 255), p.masked) for p in pairs)
    assert set(found) == {(200, False), (100, True)}
    assert min(found.values()) >= 10
    unmasked = next(pair for pair in pairs if not pair.masked)
    assert not unmasked.mask.any()


def test_without_real_faces_those_to_be_forged_stand_beside(faces, caplog):
    pairs = _pairs(faces, _set(_flat(5, 200, label=1)))
    assert "come without real faces" in caplog.text
    for i in range(3):
        expected, _ = frame_face(FaceCrop.from_row(faces[pairs.row_of(i)]), 64, CENTRED)
        assert torch.equal(pairs[i].pristine, to_tensor(expected))


def test_untouched_frames_are_drawn_again_and_sets_without_fakes_refused(faces):
    empty = replace(_flat(5, 200, label=1), mask=np.zeros((96, 96), np.uint8))
    pairs = _pairs(faces, _set(empty, _left(_flat(6, 100, label=1)), _flat(7, 50)))
    assert {round(float(pair.forged[0, 0, 0]) * 255) for pair in pairs} == {100}
    with pytest.raises(ValueError, match="the mask of none covers anything"):
        _ = _pairs(faces, _set(empty, _flat(7, 50)))[0]
    with pytest.raises(ValueError, match="none of 3 faces is labelled fake"):
        _pairs(faces, faces)
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got 0"):
        _pairs(faces, _set(empty), 0)
