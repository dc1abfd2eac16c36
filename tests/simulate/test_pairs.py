import ast
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from llava_forgery.faces.crop import eye_angle
from llava_forgery.faces.records import FEATURES, FaceCrop, save_faces
from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.pairs import (
    CENTRED,
    ROLES,
    FacePairs,
    FramingConfig,
    frame_face,
    load_real_faces,
)
from tests import tiny

ROOT = Path(__file__).parents[2]
_PAIRS = ("FacePairs", "LabelledPairs")


@pytest.fixture(scope="module")
def faces():
    rows = [tiny.face(i).to_row() for i in range(5)]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def _pairs(faces, **options):
    return FacePairs(faces, options.pop("length", 12), size=64, **options)


def _collate(pairs):
    return [(p.forged, p.pristine, p.mask, p.regions, p.row) for p in pairs]


def test_pairs_are_the_same_whatever_the_order_the_workers_and_the_batches(faces):
    pairs = _pairs(faces, degradation=DegradeConfig())
    expected = [pairs[i] for i in reversed(range(12))][::-1]
    for workers in (0, 1, 2):
        for batch in (1, 4):
            loader = torch.utils.data.DataLoader(
                pairs, batch, num_workers=workers, collate_fn=_collate
            )
            found = [pair for items in loader for pair in items]
            for one, two in zip(expected, found, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one[:3], two[:3], strict=True))
                assert tuple(one[3:5]) == two[3:]


def test_kept_crops_change_nothing_and_are_bounded(faces, monkeypatch):
    first = [pair.forged for pair in _pairs(faces)]
    monkeypatch.setattr("llava_forgery.simulate.pairs._KEPT_BYTES", 2 * 96 * 96 * 3)
    pairs = _pairs(faces)
    for _ in range(2):
        assert all(torch.equal(a, b.forged) for a, b in zip(first, pairs, strict=True))
    assert len(pairs._kept) == 2


def test_seed_and_index_change_the_pair(faces):
    pairs = _pairs(faces)
    assert not torch.equal(pairs[0].forged, pairs[5].forged)
    assert not torch.equal(pairs[0].forged, _pairs(faces, seed=1)[0].forged)


def test_roles_share_no_forgery_under_one_seed(faces):
    """Regions and places of training's forgeries are no test pairs' ones."""
    of_role = {
        role: [_pairs(faces, length=24, seed=2, framing=CENTRED, role=role)[i] for i in range(24)]
        for role in ROLES
    }
    for one, other in combinations(ROLES, 2):
        masks = zip(of_role[one], of_role[other], strict=True)
        assert not any(torch.equal(a.mask, b.mask) for a, b in masks), (one, other)
        rows = ([pair.row for pair in of_role[role]] for role in (one, other))
        assert next(rows) != next(rows)
    with pytest.raises(ValueError, match="role is one of training, stage2, .* got 'train'"):
        _pairs(faces, role="train")


@pytest.mark.parametrize("folder", ["llava_forgery", "eval", "scripts"])
def test_every_use_says_what_its_pairs_are_for(folder):
    """The default is training's: a test that forgot it would judge training's own forgeries."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in _PAIRS:
                named = {keyword.arg for keyword in node.keywords}
                assert "role" in named, f"{path.relative_to(ROOT)}:{node.lineno} names no role"


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


@pytest.mark.parametrize("point", [4, 12, 30])
@pytest.mark.parametrize("angle", [0.0, 40.0])
def test_framing_moves_landmarks_with_the_picture(point, angle):
    """A white dot on a landmark stays under it."""
    face = tiny.face()
    image = np.zeros_like(face.image)
    x, y = face.landmarks[point]
    image[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = 255
    face = FaceCrop(**{**vars(face), "image": image})
    rng = np.random.default_rng(0)
    framed, landmarks = frame_face(face, 64, FramingConfig((0.1, 0.3), 0.05, angle), rng)
    rows, columns = np.nonzero(framed[..., 0] > 100)
    centre = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
    assert np.abs(centre - landmarks[point]).max() < 1.5


def test_pictures_are_turned_either_way():
    """By how the line through the eyes is tilted; the margin does not change it."""
    face, framing = tiny.face(), FramingConfig(angle=12.0)
    level = eye_angle(frame_face(face, 64, CENTRED)[1])
    turns = [
        level - eye_angle(frame_face(face, 64, framing, np.random.default_rng(seed))[1])
        for seed in range(60)
    ]
    assert -12 <= min(turns) < -8
    assert 8 < max(turns) <= 12


def test_centred_framing_draws_nothing():
    face = tiny.face()
    first = frame_face(face, 64, CENTRED)
    second = frame_face(face, 64, CENTRED, np.random.default_rng(9))
    np.testing.assert_array_equal(first[0], second[0])
    with pytest.raises(ValueError, match="needs a generator"):
        frame_face(face, 64, FramingConfig())


def test_swaps_take_other_people(faces, monkeypatch):
    asked = []
    pairs = _pairs(faces, simulator=SimulatorConfig(swap=1.0))
    forge = pairs.simulator.forge
    monkeypatch.setattr(pairs.simulator, "forge", lambda *args: asked.append(args) or forge(*args))
    for index in range(12):
        image = pairs[index].pristine
        donor = asked[-1][3]
        assert donor.image.shape == (64, 64, 3)
        apart = np.abs(donor.image.astype(int) - asked[-1][0])
        assert apart.mean() > 1
        assert torch.equal(pairs[index].pristine, image)
    alone = datasets.Dataset.from_list([tiny.face().to_row()] * 2, features=FEATURES)
    with pytest.raises(ValueError, match="needs two people"):
        _pairs(alone, simulator=SimulatorConfig(swap=0.1))


def test_photographs_are_compressed_before_they_are_forged(faces):
    config = {"probability": 0.0, "flip": 0.0, "video": 0.0, "jpeg_quality": (30, 31)}
    plain = _pairs(faces, degradation=DegradeConfig(**config))
    before = _pairs(faces, degradation=DegradeConfig(**config, before=1.0))
    assert not torch.equal(plain[0].pristine, before[0].pristine)
    outside = (before[0].mask == 0).expand(3, -1, -1)
    assert torch.equal(before[0].forged[outside], before[0].pristine[outside])


def test_fake_faces_are_refused(faces):
    rows = [{**tiny.face().to_row(), "label": 1}]
    with pytest.raises(ValueError, match="1 of 1 are labelled fake"):
        FacePairs(datasets.Dataset.from_list(rows, features=FEATURES), 3)
    with pytest.raises(IndexError):
        _pairs(faces)[12]


def test_real_faces_of_a_benchmark(tmp_path, caplog):
    crops = [replace(tiny.face(i), label=int(i == 1)) for i in range(3)]
    save_faces(crops, tmp_path / "mixed", {})
    with caplog.at_level("INFO"):
        rows = load_real_faces(tmp_path / "mixed", "train")
    assert rows["source"] == ["p0.png", "p2.png"]
    assert "1 fake faces" in caplog.text
    save_faces(crops[1:2], tmp_path / "fakes", {})
    with pytest.raises(ValueError, match="are fake"):
        load_real_faces(tmp_path / "fakes")
