import json

import pytest

from llava_forgery.data.forge import forge_folders
from llava_forgery.faces.records import load_faces, save_faces
from llava_forgery.simulate.pairs import FacePairs
from tests import tiny


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    save_faces([tiny.face(i, "train") for i in range(2)], folder, {})
    return FacePairs(load_faces(folder), 3, size=48, seed=1)


def test_two_folders_and_a_summary(pairs, tmp_path):
    forge_folders(pairs, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "fake", "forgeries.json", "real",
    ]  # fmt: skip
    names = {path.name for path in (tmp_path / "out/fake").iterdir()}
    assert names == {path.name for path in (tmp_path / "out/real").iterdir()}
    assert len(names) == 3
    assert json.loads((tmp_path / "out/forgeries.json").read_text()) == {"pairs": 3}
    # Its own output is replaced.
    forge_folders(pairs, tmp_path / "out")


def test_users_own_folders_survive(pairs, tmp_path):
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/mine.png").touch()
    with pytest.raises(ValueError, match=r"holds no forgeries\.json"):
        forge_folders(pairs, tmp_path)
    assert (tmp_path / "fake/mine.png").exists()
