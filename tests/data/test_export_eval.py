import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.constants import FAKE, REAL
from llava_forgery.data.export_eval import export_faces, export_simulated
from llava_forgery.faces.records import FaceCrop, load_faces, save_faces
from llava_forgery.rows import embedded
from llava_forgery.simulate.pairs import CENTRED, FacePairs
from llava_forgery.tensors import to_bytes
from tests import tiny


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    save_faces([tiny.face(i, "test") for i in range(2)], folder, {})
    return load_faces(folder)


def test_simulated_forgeries(faces, tmp_path):
    pairs = FacePairs(faces, 4, size=48, seed=3, framing=CENTRED)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/old").touch()
    with pytest.raises(ValueError, match=r"data exists and holds no export\.json"):
        export_simulated(pairs, tmp_path / "data")
    assert (tmp_path / "data/old").exists()
    # Any DatasetDict holds this one.
    (tmp_path / "data/old").rename(tmp_path / "data/dataset_dict.json")
    with pytest.raises(ValueError, match=r"data exists and holds no export\.json"):
        export_simulated(pairs, tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    assert export_simulated(pairs, tmp_path / "data") == 8
    found = datasets.load_from_disk(str(tmp_path / "data"))
    assert list(found) == ["test"]
    rows = found["test"]
    # Alternating, so that the first few images of the set are of both classes.
    assert rows["label"][:] == [FAKE, REAL] * 4
    for i, row in enumerate(rows):
        pair = pairs[i // 2]
        image = to_bytes(pair.forged if row["label"] == FAKE else pair.pristine)
        assert np.array_equal(np.array(row["image"]), image)
        assert tuple(row["regions"]) == (pair.regions if row["label"] == FAKE else ())
        assert row["identity"] == faces[pair.row]["identity"]
    videos = dict(zip(rows["video_id"][:], rows["label"][:], strict=True))
    assert videos == {"p0/forged": 1, "p0/pristine": 0, "p1/forged": 1, "p1/pristine": 0}
    (tmp_path / "data/mine.txt").touch()
    with pytest.raises(ValueError, match=r"besides an earlier output it holds mine\.txt"):
        export_simulated(pairs, tmp_path / "data")
    (tmp_path / "data/mine.txt").unlink()
    assert export_faces(faces, tmp_path / "data") == 2


def test_command(faces, tmp_path):
    folder = Path(faces.cache_files[0]["filename"]).parent
    for arguments, count in ((["--pairs", "3", "--size", "32"], 6), (["--as-is"], 2)):
        command = ["data", "export-eval", "--faces", folder, "--out", tmp_path / "data", *arguments]
        result = CliRunner().invoke(app, list(map(str, command)))
        assert result.exit_code == 0, result.output
        rows = datasets.load_from_disk(str(tmp_path / "data"))["test"]
        assert len(rows) == count
        assert rows[0]["image"].size == ((32, 32) if count == 6 else (96, 96))


def test_faces_with_their_own_labels(faces, tmp_path):
    assert export_faces(faces, tmp_path / "data") == 2
    rows = datasets.load_from_disk(str(tmp_path / "data"))["test"]
    assert rows["video_id"][:] == ["p0", "p1"]
    assert rows["regions"][:] == [[], []]
    assert np.array_equal(np.array(rows[1]["image"]), FaceCrop.from_row(faces[1]).image)


def test_a_path_that_is_there_does_not_take_the_pictures_place(faces, tmp_path):
    Image.fromarray(tiny.picture(5)).save(tmp_path / "other.png")
    rows = [dict(row) for row in faces]
    rows[0]["image"] = {**rows[0]["image"], "path": str(tmp_path / "other.png")}
    export_faces(rows, tmp_path / "data")
    written = embedded(datasets.load_from_disk(tmp_path / "data")["test"], "data")
    assert written[0]["image"] == {"bytes": rows[0]["image"]["bytes"], "path": None}
