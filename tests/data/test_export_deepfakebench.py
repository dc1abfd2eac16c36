"""Writing DeepfakeBench's folders: nothing of it lies outside the folder that was asked for."""

import dataclasses

import datasets
import pytest

from llava_forgery.data.export_deepfakebench import _frame_file, export_deepfakebench
from llava_forgery.faces.records import FEATURES, load_faces
from tests import tiny

HOSTILE = ["../../../../victim", "/{}/victim", "a/../../../../../victim", "..\\victim"]


def rows_of(video_id):
    rows = [tiny.face(0).to_row(), dataclasses.replace(tiny.face(1), label=1).to_row()]
    rows[1]["video_id"] = video_id
    return rows


@pytest.mark.parametrize("video_id", HOSTILE)
def test_a_hostile_video_id_writes_nothing(tmp_path, video_id):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "000.png").write_text("untouched")
    tiny.write_linked(rows_of(video_id.format(tmp_path)), FEATURES, tmp_path / "bad/faces")
    with pytest.raises(ValueError, match="video_id must be a name such as"):
        export_deepfakebench(load_faces(tmp_path / "bad"), tmp_path / "a/b/out", "Celeb-DF-v2")
    assert (victim / "000.png").read_text() == "untouched"
    assert not any((tmp_path / "a").rglob("*.png"))


def test_the_writer_looks_for_itself(tmp_path):
    face = tiny.face(0)
    object.__setattr__(face, "video_id", "../../../victim")
    with pytest.raises(ValueError, match=r"the path '\.\./\.\./\.\./victim/000\.png' leads out of"):
        _frame_file(face, tmp_path / "rgb/set", 32)
    assert not any(tmp_path.iterdir())


def test_names_with_slashes_are_folders(tmp_path):
    rows = datasets.Dataset.from_list(rows_of("Deepfakes/c23/000_003"), features=FEATURES)
    assert export_deepfakebench(rows, tmp_path / "out", "Celeb-DF-v2", size=32) == 2
    picture = tmp_path / "out/rgb/Celeb-DF-v2/train/frames/Deepfakes/c23/000_003/000.png"
    assert picture.is_file()


@pytest.mark.parametrize("name", ["../set", "a/b", "/tmp/set", "", "..", "a\\b"])
def test_names_of_data_sets_are_checked(tmp_path, name):
    rows = datasets.Dataset.from_list(rows_of("p1"), features=FEATURES)
    with pytest.raises(ValueError, match="dataset must be a name without a slash"):
        export_deepfakebench(rows, tmp_path / "out", name)
    assert not any(tmp_path.iterdir())
