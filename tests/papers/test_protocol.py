"""The papers' own protocols, read against miniature folders in the benchmarks' official layouts."""

import json
from pathlib import Path

import pytest

from eval.papers.recipes import RECIPES
from eval.protocol import describe, read_protocol
from tests.faces.benchmarks import trees

PROTOCOLS = Path(__file__).parents[2] / "eval/protocols"
METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "FaceShifter", "NeuralTextures")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    trees.forensics(root / "FaceForensics++", methods=METHODS)
    trees.dfd(root / "FaceForensics++")
    trees.celeb_df(root / "Celeb-DF")
    trees.celeb_df(root / "Celeb-DF-v2")
    trees.dfdcp(root / "DFDCP")
    trees.dfdc(root / "DFDC")
    for name, label in {"COCO": "yes", "Flickr30k": "yes", "SD2": "no", "SD3": "no"}.items():
        trees.touch(root / f"AntifakePrompt/{name}/1.png")
        (root / f"AntifakePrompt/{name}.csv").write_text(f"img_path,label\n{name}/1.png,{label}\n")
    (root / "AntifakePrompt/train.csv").write_text("img_path,label\nCOCO/1.png,yes\nSD3/1.png,no\n")
    return root


@pytest.mark.parametrize("table", [name for name in RECIPES if name != "antifakeprompt"])
def test_the_main_papers_tables_run_on_all_benchmarks(data, tmp_path, table):
    protocol = read_protocol(PROTOCOLS / "lvlm_dfd.json", table, data, tmp_path)
    lines = describe(protocol, table)
    assert "FF++: 2 test real, 8 test fake, 2 train real, 8 frames of each video" in lines
    assert {line.partition(":")[0] for line in lines if not line.startswith("row")} == {
        "FF++", "CDF1", "CDF2", "DFD", "DFDCP", "DFDC"
    }  # fmt: skip
    # Of all tests that the paper's table has, none is missing; nor is a row but another project's.
    assert set(RECIPES[table].paper_tests) <= set(protocol.config.tests)
    assert [line for line in lines if "not run" in line] == (
        ["row FAK-Owl: not run: no recipe here: another project's model"]
        if table == "table2"
        else []
    )
    assert list(tmp_path.iterdir()) == []


def test_antifakeprompts_sets_and_word(data, tmp_path):
    protocol = read_protocol(PROTOCOLS / "antifakeprompt.json", "antifakeprompt", data, tmp_path)
    lines = describe(protocol, "antifakeprompt")
    assert "COCO: 1 test real" in lines
    assert "SD3: 1 test fake" in lines
    assert "pseudo-word: 2 photos, on Salesforce/instructblip-vicuna-7b" in lines
    assert [photo.label for photo in protocol.word["train"]] == [0, 1]
    assert protocol.config.tests["SD2"].csv == str(data / "AntifakePrompt/SD2.csv")


def test_what_is_not_there_is_said_and_nothing_at_all_is_an_error(data, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/Celeb-DF-v2").symlink_to(data / "Celeb-DF-v2")
    file = PROTOCOLS / "lvlm_dfd.json"
    lines = describe(read_protocol(file, "table1", tmp_path / "data", tmp_path), "table1")
    assert any(line.startswith("DFDC: not there: ") for line in lines)
    with pytest.raises(ValueError, match="no benchmark of"):
        read_protocol(file, "table1", tmp_path / "none", tmp_path)
    values = json.loads(file.read_text())
    values["config"]["detector"]["step"] = 1
    (tmp_path / "p.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"detector\.step is no setting"):
        read_protocol(tmp_path / "p.json", "table1", data, tmp_path)
