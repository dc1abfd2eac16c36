import json
import os

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from llava_forgery.evaluation.figures import new_figure, save_figure
from llava_forgery.files import (
    atomic_path,
    check_name,
    check_output,
    check_output_folder,
    contained,
    is_name,
    parse_json,
    read_json,
    read_json_lines,
    remove_leftovers,
    sentence,
    write_json,
    write_json_lines,
    write_text,
)
from llava_forgery.images import save_png
from llava_forgery.optional import packaged_file, require
from llava_forgery.rows import write_rows
from llava_forgery.weights import save_tensors


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def interrupted():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    with atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic_path(target):
        pass
    assert (target / "new").exists()


def test_json_refuses_nan_and_names_a_broken_file(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"auc": float("nan")})
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b\.json is not valid JSON"):
        read_json(tmp_path / "b.json")
    write_json(tmp_path / "c.json", {"name": "é"})
    assert json.loads((tmp_path / "c.json").read_text()) == {"name": "é"}


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_words_for_what_is_no_number_are_refused_by_all_readers(word, tmp_path):
    with pytest.raises(ValueError, match=rf"the answer is not valid JSON: {word} is not a number"):
        parse_json(f'{{"p_yes": {word}}}', "the answer")
    (tmp_path / "a.json").write_text(f'[1, {{"a": {word}}}]')
    with pytest.raises(ValueError, match=rf"a\.json is not valid JSON: {word}"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_text(f"1\n{word}\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2 is not valid JSON: {word}"):
        read_json_lines(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_lines(tmp_path / "b.jsonl", [1, float(word)])
    assert not (tmp_path / "b.jsonl").exists()


def test_lines_come_back_whatever_they_hold(tmp_path):
    # The last is a line of its own to str.splitlines().
    values = [{"a": None}, [1.5, "é"], "two\u2028lines"]
    write_json_lines(tmp_path / "a.jsonl", values)
    assert read_json_lines(tmp_path / "a.jsonl") == values


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_what_is_written_has_the_modes_of_new_files(umask, tmp_path):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "a")
        with atomic_path(tmp_path / "b") as temporary:
            # As tempfile and safetensors write.
            temporary.mkdir(mode=0o700)
            os.close(os.open(temporary / "secret", os.O_CREAT, mode=0o600))
            (temporary / "run.sh").touch(mode=0o777)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path, *tmp_path.rglob("*"))}
    assert modes["a.txt"] == modes["secret"] == 0o666 & ~umask
    assert modes["b"] == modes["run.sh"] == 0o777 & ~umask


def test_missing_package_is_named_with_its_extra():
    with pytest.raises(ImportError, match=r"flying needs .*llava-forgery\[wings\]"):
        require("no_such_package", extra="wings", feature="flying")
    with pytest.raises(FileNotFoundError, match="pip install wings"):
        packaged_file("no_such_package", "*.dat", "flying", "wings")
    assert packaged_file("pytest", "__main__.py", "testing", "pytest").name == "__main__.py"


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    target = tmp_path / "out"
    check_output_folder(target, "a.json")
    target.mkdir()
    check_output_folder(target, "a.json")
    (target / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"out exists and holds no a\.json.*\(mine\.txt\)"):
        check_output_folder(target, "a.json")
    (target / "a.json").touch()
    check_output_folder(target, "a.json")
    with pytest.raises(ValueError, match=r"holds no b\.json"):
        check_output_folder(target, "a.json", "b.json")
    with pytest.raises(ValueError, match=r"besides an earlier output it holds mine\.txt"):
        check_output_folder(target, "a.json", entries=["a.json", "b"])
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        check_output_folder(target / "mine.txt", "a.json")
    assert sorted(path.name for path in target.iterdir()) == ["a.json", "mine.txt"]


def test_leftovers_of_a_killed_write_are_removed_and_the_old_output_put_back(tmp_path):
    for name in (".out.0123abcd.tmp", ".out.mine.tmp", "out.0123abcd.tmp", ".other.0123abcd.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".out.0123abcd.old").mkdir()
    (tmp_path / ".out.0123abcd.old/kept").touch()
    remove_leftovers(tmp_path / "out")
    remaining = sorted(path.name for path in tmp_path.iterdir())
    assert remaining == [".other.0123abcd.tmp", ".out.mine.tmp", "out", "out.0123abcd.tmp"]
    assert (tmp_path / "out/kept").exists()
    (tmp_path / ".out.0123abcd.old").mkdir()
    remove_leftovers(tmp_path / "out")
    assert not (tmp_path / ".out.0123abcd.old").exists()
    remove_leftovers(tmp_path / "missing/out")
    # In the folder as well.
    (tmp_path / "out/.a.json.0123abcd.tmp").touch()
    remove_leftovers(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]


@pytest.mark.parametrize(
    "name",
    [
        "000_003",
        "Deepfakes/c23/000_003",
        "a..b/...",
        ".hidden",
        "Zoë – 3 👩‍🦰.jpg",
        "12:30",
        "a b/c",
    ],
)
def test_good_names(name):
    assert is_name(name)
    check_name(name, "video_id")


@pytest.mark.parametrize(
    "name",
    ["", "/", "/etc/x", "..", "../x", "a/../../x", "a/..", "a//b", "a/", "./a", "a/./b", "a\\b",
     "..\\x", "C:x", "c:/x", "//host/x", "a\0b", "a\nb", "a\x7f", "a\x85", "a\udcff", None, 7],
)  # fmt: skip
def test_names_that_could_lead_elsewhere(name):
    assert not is_name(name)
    with pytest.raises(ValueError, match=r"video_id must be a name such as '000_003' or"):
        check_name(name, "video_id")


def test_contained_paths(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    assert contained(folder, "a/b.png") == folder / "a/b.png"
    assert contained(folder, "./a//b.png") == folder / "a/b.png"
    assert contained(folder, "..a/b.png") == folder / "..a/b.png"
    assert contained(folder, str(folder / "a.png")) == folder / "a.png"
    # What the system would make of it hangs on links; the names say that it stays.
    assert contained(folder, "link/../b.png") == folder / "b.png"
    monkeypatch.chdir(tmp_path)
    assert str(contained("data", "a.png")) == "data/a.png"
    for name in ("../a.png", "a/../../b", "..", "/etc/passwd", f"{folder}-other/a.png", "a\0.png"):
        with pytest.raises(ValueError, match=r"the path .* leads out of .*data"):
            contained(folder, name)
    # A link in the folder is its owner's.
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    assert contained(folder, "link/a.png") == folder / "link/a.png"


def _write_text(path):
    write_json(path, {"a": "x" * 9000})


def _write_tensors(path):
    save_tensors(path, {"a": torch.zeros(5000)})


def _write_picture(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save_png(Image.fromarray(noise), path, "noise")


def _write_figure(path):
    figure = new_figure(5, 5)
    figure.add_subplot().plot([0, 1], [0, 1])
    save_figure(figure, path, "a line")


def _write_rows(path):
    features = datasets.Features({"a": datasets.Value("string")})
    with atomic_path(path) as folder:
        write_rows(lambda: iter([{"a": "x" * 9000}]), features, folder)


def _write_folder(path):
    with atomic_path(path) as folder:
        folder.mkdir()
        save_tensors(folder / "lora.safetensors", {"a": torch.zeros(5000)})


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (_write_text, "out"),
        (_write_tensors, "out"),
        (_write_picture, "out"),
        (_write_figure, "out"),
        (_write_rows, "out"),
        (_write_folder, "out/lora.safetensors"),
    ],
)
def test_a_full_disk_names_the_file_and_leaves_what_was_there(tmp_path, fill_disk, write, name):
    (tmp_path / "out").write_text("old")
    fill_disk(4096)
    with pytest.raises(OSError, match="File too large") as caught:
        write(tmp_path / "out")
    fill_disk(None)
    assert sentence(caught.value) == f"{tmp_path / name}: File too large"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "old"


def test_errors_of_reading_keep_their_names(tmp_path):
    def copy():
        with atomic_path(tmp_path / "out"):
            (tmp_path / "missing").read_text()

    with pytest.raises(FileNotFoundError) as caught:
        copy()
    assert sentence(caught.value) == f"{tmp_path / 'missing'}: No such file or directory"
    assert sentence(FileNotFoundError("there is no folder a")) == "there is no folder a"


def test_an_output_is_tried_before_the_work(tmp_path, fill_disk):
    for inside in (True, False):
        check_output(tmp_path / "a/b", inside)
        check_output(tmp_path, inside)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    check_output(tmp_path / "file")
    with pytest.raises(ValueError, match="file is a file, expected a folder"):
        check_output(tmp_path / "file", inside=True)
    for inside in (True, False):
        with pytest.raises(NotADirectoryError) as caught:
            check_output(tmp_path / "file/a/b", inside)
        assert sentence(caught.value) == f"{tmp_path / 'file/a/b'}: Not a directory"
        with pytest.raises(OSError, match="File name too long"):
            check_output(tmp_path / ("x" * 256), inside)
    # The temporary name is longer.
    with pytest.raises(OSError, match="File name too long"):
        check_output_folder(tmp_path / ("x" * 250), "a.json")
    fill_disk(0)
    for inside in (True, False):
        with pytest.raises(OSError, match="File too large"):
            check_output(tmp_path / "a", inside)
