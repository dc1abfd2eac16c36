"""A pair of folders, and AntifakePrompt's CSV."""

import pytest

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.benchmarks.plain import read_antifakeprompt, read_folders
from tests.faces.benchmarks.trees import touch


def test_two_folders(tmp_path):
    touch(tmp_path / "real/a b.jpg")
    touch(tmp_path / "fake/sd2/ü.png")
    touch(tmp_path / "fake/c.mp4")
    touch(tmp_path / "fake/notes.txt")
    found = {s.name: (s.label, s.split, s.method) for s in read_folders(tmp_path, split="val")}
    assert found == {
        "real/a b.jpg": (REAL, "val", None),
        "fake/sd2/ü.png": (FAKE, "val", "sd2"),
        "fake/c.mp4": (FAKE, "val", None),
    }
    with pytest.raises(ValueError, match="got 'dev'"):
        read_folders(tmp_path, split="dev")


def test_folders_of_splits(tmp_path):
    for split in ("train", "test"):
        touch(tmp_path / split / "real/a.jpg")
        touch(tmp_path / split / "fake/a.jpg")
    found = {source.video_id: source.split for source in read_folders(tmp_path)}
    assert found["train/real/a.jpg"] == "train"
    assert found["test/fake/a.jpg"] == "test"
    (tmp_path / "test/fake/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="holds no pictures or videos"):
        read_folders(tmp_path)
    (tmp_path / "test/fake").rmdir()
    with pytest.raises(FileNotFoundError, match="the fake pictures or videos"):
        read_folders(tmp_path)


def test_numbered_pictures_of_a_folder_are_one_video(tmp_path, caplog):
    for name in ("2", "10", "1"):
        touch(tmp_path / f"real/alice/{name}.png")
        touch(tmp_path / f"fake/swap/alice/frame_{name}.png")
    for name in ("real/000.png", "real/001.png", "real/set/cat.png", "fake/sd2/a1.png"):
        touch(tmp_path / name)
    touch(tmp_path / "fake/sd2/b2.png")
    sources = {source.name: source for source in read_folders(tmp_path)}
    alice = [s for s in sources.values() if s.video_id == "real/alice"]
    assert [source.frame for source in alice] == [1, 2, 10]
    assert [source.path.name for source in alice] == ["1.png", "2.png", "10.png"]
    fake = sources["fake/swap/alice/frame_2.png"]
    assert (fake.video_id, fake.method, fake.frame) == ("fake/swap/alice", "swap", 2)
    # Those beside real/ and fake/ themselves, and of other names, are photographs.
    assert {s.video_id for s in sources.values() if s.frame is None} == {
        "real/000.png", "real/001.png", "real/set/cat.png", "fake/sd2/a1.png", "fake/sd2/b2.png",
    }  # fmt: skip
    assert "2 folders are read as one video each (fake/swap/alice, real/alice)" in caplog.text
    apart = {source.name: source for source in read_folders(tmp_path, frames=False)}
    assert {source.video_id for source in apart.values()} == set(apart)
    assert apart["fake/swap/alice/frame_2.png"].method == "swap"
    with pytest.raises(ValueError, match=r"set holds cat\.png; as the frames of one video"):
        read_folders(tmp_path, frames=True)


def test_times_are_no_frame_numbers(tmp_path):
    touch(tmp_path / "fake/a.png")
    for second in (1, 2):
        touch(tmp_path / f"real/holiday/2026112809300{second}.jpg")
    assert {source.frame for source in read_folders(tmp_path)} == {None}


def test_one_of_the_two_folders(tmp_path):
    touch(tmp_path / "fake/a.jpg")
    (tmp_path / "real").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no pictures.*--partial"):
        read_folders(tmp_path)
    (source,) = read_folders(tmp_path, partial=True)
    assert (source.name, source.label) == ("fake/a.jpg", FAKE)
    (tmp_path / "fake/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="in real/ or fake/"):
        read_folders(tmp_path, partial=True)


def test_antifakeprompt_that_is_not_complete(tmp_path, caplog):
    touch(tmp_path / "a.png")
    table = tmp_path / "label.csv"
    table.write_text("img_path,label\na.png,no\nb.png,yes\n")
    (source,) = read_antifakeprompt(table, partial=True)
    assert source.name == "a.png"
    assert "1 of its pictures are missing" in caplog.text
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="of the 2 pictures"):
        read_antifakeprompt(table, partial=True)


def test_antifakeprompt(tmp_path):
    absolute = touch(tmp_path / "elsewhere/b.jpg")
    touch(tmp_path / "data/SD2/a.png")
    table = tmp_path / "data/test_label.csv"
    table.write_text(f"img_path,label\nSD2/a.png,no\n{absolute},yes\n")
    fake, real = read_antifakeprompt(table)
    # Yes is the answer to "Is this photo real?".
    assert (fake.label, fake.method, fake.name) == (FAKE, "SD2", "SD2/a.png")
    assert (real.label, real.method, real.path) == (REAL, None, absolute)
    # As a name it is relative, so that it could be a file's below any folder.
    assert real.name == real.video_id == absolute.as_posix().lstrip("/")
    table.write_text("img_path,label\n../elsewhere/b.jpg,yes\n")
    (again,) = read_antifakeprompt(table)
    assert (again.name, again.path.resolve()) == (real.name, absolute)
    table.write_text(f"img_path,label\n../elsewhere/b.jpg,yes\n{absolute},yes\n")
    with pytest.raises(ValueError, match=r"line 3: .*b\.jpg is listed twice"):
        read_antifakeprompt(table)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("path,label\na.png,no\n", ValueError, "expected the columns img_path,label"),
        ("img_path,label\na.png,1\n", ValueError, "line 2: the label must be yes"),
        ("img_path,label\nb.png,no\n", FileNotFoundError, "line 2: there is no file"),
        ("img_path,label\na.png,no\na.png,yes\n", ValueError, "line 3: a.png is listed twice"),
        ("img_path,label\n", ValueError, "names no pictures"),
    ],
)
def test_antifakeprompt_is_checked(tmp_path, text, error, message):
    touch(tmp_path / "a.png")
    (tmp_path / "label.csv").write_text(text)
    with pytest.raises(error, match=message):
        read_antifakeprompt(tmp_path / "label.csv")
