import datasets
import numpy as np
import pytest
from PIL import Image

from llava_forgery.data.preview import draw_preview
from llava_forgery.faces.records import FEATURES
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.tensors import to_bytes
from tests import tiny


@pytest.fixture(scope="module")
def faces():
    rows = [tiny.face(i).to_row() for i in range(2)]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def _draw(faces, path, seed=3):
    draw_preview(FacePairs(faces, 2, size=64, seed=seed), path)
    return np.asarray(Image.open(path).convert("RGB"))


def test_sheet_shows_the_pairs_and_is_marked(faces, tmp_path):
    sheet = _draw(faces, tmp_path / "sheet.png")
    pair = FacePairs(faces, 2, size=64, seed=3)[0]
    # A corner of the sheet's first row; the frame around the forged picture is three pixels wide.
    pristine, forged = to_bytes(pair.pristine), to_bytes(pair.forged)
    top = 38
    np.testing.assert_array_equal(sheet[top : top + 64, 12 : 12 + 64], pristine)
    np.testing.assert_array_equal(sheet[top + 3 : top + 61, 91 : 91 + 58], forged[3:61, 3:61])
    note = Image.open(tmp_path / "sheet.png").text["Description"]
    assert "simulated forgeries" in note
    assert "not real photographs" in note


def test_sheet_follows_from_the_seed_and_leaves_nothing_behind(faces, tmp_path):
    first, again = (_draw(faces, tmp_path / name) for name in ("a.png", "b.png"))
    np.testing.assert_array_equal(first, again)
    other = _draw(faces, tmp_path / "a.png", seed=4)
    assert other.shape != first.shape or (other != first).any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_text_stays_on_the_sheet(faces, tmp_path):
    sheet = _draw(faces, tmp_path / "sheet.png")
    assert (sheet[40:-20, -8:] == 255).all(axis=2).mean() > 0.99
