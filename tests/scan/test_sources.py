"""What is listed, and from where."""

import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_forgery.scan.sources import Entry, list_entries, local_copy, read_bytes


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b/c.mp4", "b/.hidden.jpg", "notes.txt"):
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "archive"


def names(sources, root):
    return [os.path.relpath(entry.path, root) for entry in list_entries(sources)]


def test_folders_files_globs_and_addresses_of_this_machine(folder):
    assert names([str(folder)], folder) == ["a.jpg", "b/c.mp4"]
    assert names([str(folder / "a.jpg")], folder) == ["a.jpg"]
    assert names([f"file://{folder}"], folder) == ["a.jpg", "b/c.mp4"]
    assert names([f"{folder}/**/*.*"], folder) == ["a.jpg", "b/c.mp4"]
    (entry,) = list_entries([str(folder / "a.jpg")])
    status = (folder / "a.jpg").stat()
    assert entry == Entry(str(folder / "a.jpg"), status.st_size, status.st_mtime_ns)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_lists_name_files_relative_to_their_folder(folder, kind):
    path = folder / f"list.{kind}"
    rows = ["a.jpg", "gone.jpg", "b/c.mp4"]
    if kind == "csv":
        path.write_text("label,path\n" + "".join(f"0,{row}\n" for row in rows))
    elif kind == "jsonl":
        path.write_text("".join(f'{{"file": "{row}"}}\n' for row in rows))
    else:
        pq.write_table(pa.table({"path": rows}), path)
    entries = list(list_entries([str(path)]))
    assert [os.path.relpath(entry.path, folder) for entry in entries] == rows
    assert [entry.problem is None for entry in entries] == [True, False, True]
    assert "No such file" in entries[1].problem


def test_a_list_of_a_spreadsheet_begins_with_a_byte_order_mark(folder):
    (folder / "list.csv").write_text("path\na.jpg\n", encoding="utf-8-sig")
    assert names([str(folder / "list.csv")], folder) == ["a.jpg"]


def test_lists_of_other_file_systems_name_files_beside_them():
    fs = fsspec.filesystem("memory")
    fs.pipe({"/lists/in.csv": b"path\na.jpg\nmemory://other/b.jpg\n", "/lists/a.jpg": b"one"})
    fs.pipe("/other/b.jpg", b"three")
    pq.write_table(pa.table({"path": ["a.jpg"]}), where := fs.open("/lists/in.parquet", "wb"))
    where.close()
    found = list(list_entries(["memory://lists/in.csv", "memory://lists/in.parquet"]))
    assert [entry.size for entry in found] == [3, 5, 3]
    assert {entry.problem for entry in found} == {None}


def test_what_a_scan_writes_is_not_scanned(folder):
    (folder / "out").mkdir()
    (folder / "out" / "picture.png").write_bytes(b"")
    (folder / "outer.png").write_bytes(b"")
    for source in (str(folder), f"{folder}/**"):
        entries = list_entries([source], leave_out=folder / "out")
        names = [os.path.relpath(entry.path, folder) for entry in entries]
        assert sorted(set(names)) == ["a.jpg", "b/c.mp4", "outer.png"]


def test_other_file_systems():
    fs = fsspec.filesystem("memory")
    fs.pipe({"/shelf/a.jpg": b"one", "/shelf/deep/b.mp4": b"three", "/shelf/c.txt": b""})
    found = list(list_entries(["memory://shelf"]))
    assert [(entry.path, entry.size) for entry in found] == [
        ("memory:///shelf/a.jpg", 3),
        ("memory:///shelf/deep/b.mp4", 5),
    ]
    assert all(entry.modified > 1e18 for entry in found)
    assert read_bytes(found[0].path) == b"one"
    with local_copy(found[1].path) as path:
        assert (path.name, path.read_bytes()) == ("b.mp4", b"three")
    assert not path.exists()
    (only,) = list_entries(["memory://shelf/*.jpg"])
    assert only == found[0]
    with pytest.raises(FileNotFoundError, match="holds no photographs"):
        list(list_entries(["memory://empty"]))


def test_what_is_not_there_or_names_nothing_is_an_error(folder):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list(list_entries([str(folder / "gone")]))
    with pytest.raises(FileNotFoundError, match="no file fits"):
        list(list_entries([str(folder / "*.tiff")]))
    with pytest.raises(FileNotFoundError, match="no list"):
        list(list_entries([str(folder / "gone.csv")]))
    (folder / "wrong.csv").write_text("name\na.jpg\n")
    with pytest.raises(ValueError, match="no column path or file, only name"):
        list(list_entries([str(folder / "wrong.csv")]))
    (folder / "empty.csv").write_text("path,label\na.jpg,0\n,1\n")
    with pytest.raises(ValueError, match="file number 2 has no path"):
        list(list_entries([str(folder / "empty.csv")]))
    (folder / "wrong.jsonl").write_text('{"path": "a.jpg"}\n[1]\n')
    with pytest.raises(ValueError, match="line 2: expected an object"):
        list(list_entries([str(folder / "wrong.jsonl")]))


def test_a_name_that_is_no_text_is_an_entry_with_a_problem(folder):
    os.close(os.open(os.fsencode(folder) + b"/\xff.jpg", os.O_CREAT))
    (entry,) = (e for e in list_entries([str(folder)]) if e.problem)
    assert entry.path.endswith("\\xff.jpg")
    assert "not valid UTF-8" in entry.problem
