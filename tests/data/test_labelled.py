import pytest
from PIL import Image

from llava_forgery.constants import FAKE, REAL
from llava_forgery.data.labelled import LabelledFile, read_labelled, read_sources
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    """real/coco/a.png, real/b.jpg, fake/sd2/deep/c.png and a file that is no image."""
    for name in ("real/coco/a.png", "real/b.jpg", "fake/sd2/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.picture(0, 8)).save(tmp_path / name)
    (tmp_path / "fake/notes.txt").write_text("nothing")
    return tmp_path


def _csv(folder, text):
    path = folder / "list.csv"
    path.write_text(text)
    return path


def test_folders_give_labels_and_sets_at_any_depth(folder):
    found = {(i.path.name, i.label, i.set) for i in read_labelled(folder)}
    assert found == {
        ("a.png", REAL, "real/coco"),
        ("b.jpg", REAL, "real"),
        ("c.png", FAKE, "fake/sd2/deep"),
    }


def test_csv_gives_labels_and_sets(folder):
    text = "path,label,set\nreal/b.jpg,real,coco\nfake/sd2/deep/c.png,1,\n"
    first, second = read_labelled(_csv(folder, text))
    assert (first.path, first.label, first.set) == (folder / "real/b.jpg", REAL, "coco")
    assert (second.label, second.set) == (FAKE, "fake")
    assert len(read_sources([folder, folder / "list.csv"])) == 5


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("file,label\n", ValueError, r"list.csv, line 1: expected the columns path,label"),
        ("path,label,size\n", ValueError, r"line 1: .* got 'path,label,size'"),
        ("path,label\nreal/b.jpg,real\nreal/b.jpg,maybe\n", ValueError, r"line 3: label must be"),
        ("path,label\nreal/b.jpg\n", ValueError, r"line 2: expected 2 values"),
        ("path,label\na.png,real,more\n", ValueError, r"line 2: expected 2 values"),
        ("path,label\nnowhere.png,fake\n", FileNotFoundError, r"line 2: there is no file .*nowher"),
        ("path,label\n", ValueError, r"list.csv names no photos"),
    ],
)
def test_broken_csvs_are_named_with_their_line(folder, text, error, message):
    with pytest.raises(error, match=message):
        read_labelled(_csv(folder, text))


def test_broken_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder or CSV file"):
        read_labelled(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither real/ nor fake/"):
        read_labelled(tmp_path)
    (tmp_path / "fake").mkdir()
    with pytest.raises(ValueError, match="fake holds no images"):
        read_labelled(tmp_path)


def test_wrong_records():
    with pytest.raises(ValueError, match="label must be 0"):
        LabelledFile("a.png", 2, "set")
    with pytest.raises(ValueError, match="set must have a name"):
        LabelledFile("a.png", 0, "")
