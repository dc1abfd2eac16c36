"""The manifest that every benchmark becomes."""

import json

import pytest

from llava_forgery.faces.benchmarks.manifest import (
    BENCHMARKS,
    read_benchmark,
    read_manifest,
    write_manifest,
)
from tests.faces.benchmarks import trees

MADE = {
    "ff++": trees.forensics,
    "dfd": trees.dfd,
    "celeb-df-v1": trees.celeb_df,
    "celeb-df-v2": trees.celeb_df,
    "celeb-df++": trees.celeb_df_pp,
    "dfdcp": trees.dfdcp,
    "dfdc": trees.dfdc,
}


@pytest.mark.parametrize("name", MADE)
def test_every_benchmark_becomes_one(tmp_path, name):
    sources = read_benchmark(name, MADE[name](tmp_path / "data set"))
    path = tmp_path / "lists" / "manifest.jsonl"
    write_manifest(sources, path)
    assert read_manifest(path) == sources
    row = json.loads(path.read_text().splitlines()[0])
    assert row["path"].startswith("../data set/")
    assert None not in row.values()
    # Both can be moved together.
    (tmp_path / "moved").mkdir()
    for part in ("lists", "data set"):
        (tmp_path / part).rename(tmp_path / "moved" / part)
    assert len(read_manifest(tmp_path / "moved/lists/manifest.jsonl")) == len(sources)


def test_names_and_options_are_checked(tmp_path):
    assert set(MADE) < set(BENCHMARKS)
    with pytest.raises(ValueError, match="unknown benchmark 'ffpp'; expected one of ff"):
        read_benchmark("ffpp", tmp_path)
    with pytest.raises(ValueError, match="dfdcp has no option masks"):
        read_benchmark("dfdcp", tmp_path, masks=True, partial=None)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"path": "gone.mp4"}, FileNotFoundError, "line 1: there is no file"),
        ({"label": 2}, ValueError, "line 1: label of"),
        ({"split": "dev"}, ValueError, "line 1: split of"),
        ({"colour": "red"}, ValueError, "line 1: expected the keys"),
        ({"video_id": "../../../etc/x"}, ValueError, r"line 1: video_id of .* got '\.\./"),
        ({"name": "/tmp/x.mp4"}, ValueError, "line 1: name of .* must be a name such as"),
        ({"identity": "a\0"}, ValueError, "line 1: identity of"),
        ({"name": "test/ddd.mp4"}, ValueError, "occurs twice"),
        ({"video_id": "test/ddd"}, ValueError, "'test/ddd' is in the splits train and test"),
    ],
)
def test_lines_are_checked(tmp_path, change, error, message):
    path = tmp_path / "manifest.jsonl"
    write_manifest(read_benchmark("dfdc", trees.dfdc(tmp_path)), path)
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | change), *others]))
    with pytest.raises(error, match=message):
        read_manifest(path)


def test_no_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match="import-benchmark"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="no sources"):
        write_manifest([], tmp_path / "none.jsonl")
