import json

import datasets
import pytest
from PIL import Image

from llava_forgery.integrations.lmms_eval.data import VARIABLE, locate
from llava_forgery.integrations.lmms_eval.tasks import embedded_docs, pictures
from tests import tiny

ROW = {"image": "faces/a.png", "label": 1, "video_id": "v"}


@pytest.fixture
def look(monkeypatch):
    def run(path):
        monkeypatch.setenv(VARIABLE, str(path))
        return locate()

    return run


def test_folder_of_export_eval(data, look):
    path, options = look(data)
    assert options == {"load_from_disk": True}
    assert datasets.load_from_disk(path)["test"].column_names[0] == "image"


def test_manifest_with_images_beside_it(tmp_path, look):
    (tmp_path / "faces").mkdir()
    Image.fromarray(tiny.picture(1)).save(tmp_path / "faces/a.png")
    manifest = tmp_path / "set.jsonl"
    manifest.write_text("\n" + json.dumps(ROW) + "\n")
    path, options = look(manifest)
    assert (path, options) == ("json", {"data_files": {"test": str(manifest)}})
    (picture,) = pictures(ROW)
    assert picture.size == (tiny.SIZE, tiny.SIZE)
    assert picture.mode == "RGB"


def test_pictures_come_from_the_rows_and_from_beside_the_manifest_alone(tmp_path, look, data):
    Image.fromarray(tiny.picture(1)).save(tmp_path / "secret.png")
    rows = datasets.load_from_disk(str(data))["test"]
    look(data)
    docs = embedded_docs(rows)
    assert docs[0]["image"]["bytes"].startswith(b"\x89PNG")
    assert pictures(docs[0])[0].tobytes() == rows[0]["image"].tobytes()
    linked = docs.to_list()
    linked[1]["image"] = {"bytes": None, "path": str(tmp_path / "secret.png")}
    tiny.write_linked(linked, rows.features, tmp_path / "linked/test")
    (tmp_path / "linked/dataset_dict.json").write_text('{"splits": ["test"]}')
    with pytest.raises(ValueError, match=r"no picture but the path '.*secret\.png'"):
        look(tmp_path / "linked")
    with pytest.raises(ValueError, match=r"no picture but the path '.*secret\.png'"):
        embedded_docs(datasets.load_from_disk(tmp_path / "linked")["test"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set/set.jsonl").write_text(json.dumps(ROW))
    look(tmp_path / "set/set.jsonl")
    for image in ("../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(ValueError, match=rf"the path '{image}' leads out of"):
            pictures(ROW | {"image": image})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"image": "a.png", "label": 1}), "lacks video_id"),
        ("label,image", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[1]", "a JSON object in each line"),
    ],
)
def test_manifests_that_cannot_be_read(tmp_path, look, text, message):
    (tmp_path / "set.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        look(tmp_path / "set.jsonl")


def test_data_sets_that_do_not_fit(tmp_path, look, pairs):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        look(tmp_path / "nowhere")
    pairs.faces.save_to_disk(str(tmp_path / "faces"))
    with pytest.raises(ValueError, match="export-eval"):
        look(tmp_path / "faces")
    rows = datasets.Dataset.from_list([{"label": 1, "video_id": "v"}])
    datasets.DatasetDict({"val": rows}).save_to_disk(str(tmp_path / "val"))
    with pytest.raises(ValueError, match="the splits val"):
        look(tmp_path / "val")
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "test"))
    with pytest.raises(ValueError, match="lacks image"):
        look(tmp_path / "test")


def test_no_path(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ValueError, match=f"set {VARIABLE}"):
        locate()
