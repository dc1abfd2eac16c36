"""The commands from a benchmark's folders to mixed conversations."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.constants import FAKE
from llava_forgery.faces.benchmarks.manifest import read_manifest
from llava_forgery.faces.records import save_faces
from llava_forgery.qa.llava_json import read_llava_json
from tests import tiny
from tests.faces.benchmarks import trees
from tests.faces.media import photograph


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result


def test_import_benchmark(tmp_path):
    root, out = trees.forensics(tmp_path / "FF", compressions=("c23", "c40")), tmp_path / "m.jsonl"
    result = run("data", "import-benchmark", "ff++", root, "--out", out, "--method", "Deepfakes",
                 "--compression", "c40", "--no-masks")  # fmt: skip
    sources = read_manifest(out)
    assert {(s.method, s.compression, s.mask_path) for s in sources} == {
        (None, "c40", None), ("Deepfakes", "c40", None),
    }  # fmt: skip
    assert "test Deepfakes: 2" in result.stderr
    with pytest.raises(ValueError, match=r"ff\+\+ has no option split"):
        run("data", "import-benchmark", "ff++", root, "--out", out, "--split", "test")
    with pytest.raises(ValueError, match="needs --images"):
        run("data", "import-benchmark", "deepfakebench", out, "--out", out)
    with pytest.raises(ValueError, match="omit --identities"):
        run("data", "prepare", out, "--out", tmp_path / "faces", "--test-share", "0.5")
    run(
        "data",
        "import-benchmark",
        "dfdc",
        trees.dfdc(tmp_path / "DFDC"),
        "--out",
        out,
        "--split",
        "test",
    )
    assert {source.split for source in read_manifest(out)} == {"test"}
    for kind in ("real", "fake"):
        photograph(tmp_path / "plain" / kind / "a.png")
    result = run(
        "data", "import-benchmark", "folders", tmp_path / "plain", "--split", "test", "--out", out
    )
    assert "test fake: 1\ntest real: 1" in result.stderr


def test_conversations_of_labelled_faces_and_their_mixture(tmp_path):
    faces = [tiny.face(i) for i in range(3)]
    mask = np.full((96, 96), 255, np.uint8)
    faces += [replace(tiny.face(i), label=FAKE, mask=mask) for i in (3, 4)]
    save_faces(faces, tmp_path / "faces", {})
    run("data", "build-qa", "--faces", tmp_path / "faces", "--as-is", "--out", tmp_path / "qa",
        "--size", 32, "--task-descriptions", 0, "--no-vary", "--follow-ups", 0)  # fmt: skip
    data = tmp_path / "qa/conversations.json"
    samples = list(read_llava_json(data, tmp_path / "qa"))
    assert [sample.regions for sample in samples] == [("face",), ()] * 2
    assert samples[0].turns[0].value == "<image>\nIs this a deepfake image?"
    assert samples[0].turns[1].value.endswith("the artifact is at the whole inner face.")
    turns = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
    general = [{"id": f"g{i}", "conversations": turns} for i in range(9)]
    (tmp_path / "general.json").write_text(json.dumps(general))
    run("data", "mix", "--qa", data, "--general", tmp_path / "general.json", "--general-ratio", 0.5,
        "--out", tmp_path / "mixed.json")  # fmt: skip
    mixed = list(read_llava_json(tmp_path / "mixed.json", tmp_path))
    assert [bool(sample.images) for sample in mixed] == [True, False] * 4
    assert mixed[0].images == ("qa/images/000000.png",)
    with pytest.raises(ValueError, match="--pairs is for simulated"):
        run("data", "build-qa", "--faces", tmp_path / "faces", "--as-is", "--out", tmp_path / "qa",
            "--pairs", 3)  # fmt: skip


def test_fakes_are_taken_as_they_are_or_left_out(tmp_path):
    faces = [tiny.face(i) for i in range(3)] + [replace(tiny.face(3), label=FAKE)]
    save_faces(faces, tmp_path / "faces", {})
    base = (
        "data",
        "build-qa",
        "--faces",
        tmp_path / "faces",
        "--out",
        tmp_path / "qa",
        "--size",
        32,
    )
    with pytest.raises(ValueError, match="--real-only"):
        run(*base, "--pairs", 4)
    with pytest.raises(ValueError, match="not both"):
        run(*base, "--as-is", "--real-only")
    run(*base, "--pairs", 4, "--real-only")
    assert len(json.loads((tmp_path / "qa/conversations.json").read_text())) == 8
