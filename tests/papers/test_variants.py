"""Sizes of heads and FPL against each other, on the smallest detector and host."""

import csv
import json

import numpy as np
import pytest

from eval.papers.variant_tables import (
    FIGURES,
    RunResult,
    Variant,
    VariantSettings,
    variants_csv,
    variants_markdown,
)
from eval.papers.variants import VariantData, compare_variants
from llava_forgery.faces.records import load_faces, save_faces
from tests import tiny

SETTINGS = VariantSettings(
    image_size=64, kfd_steps=2, kfd_batch_size=2, pairs=4, fpl_warmup_steps=1, align_batch_size=2,
    steps=1, batch_size=2, test_pairs=3,
)  # fmt: skip


@pytest.mark.slow
def test_cells_are_trained_once_and_tabled(tmp_path):
    people = [tiny.face(i, "test" if i > 3 else "train") for i in range(6)]
    save_faces(people, tmp_path / "faces", {})
    host, processor = tiny.llava()
    host.save_pretrained(tmp_path / "host")
    processor.save_pretrained(tmp_path / "host")
    data = VariantData(str(tmp_path / "faces"), str(tmp_path / "host"), None, tiny.kfd_config())
    faces = tuple(load_faces(tmp_path / "faces", split=split) for split in ("train", "test"))
    variants = [Variant("lite", "lite"), Variant("lite", "paper"), Variant("paper", "paper")]
    out = tmp_path / "out"
    cells = compare_variants(variants, [0], data, SETTINGS, faces, out)
    assert [(c.heads, c.fpl) for c in cells] == [(v.heads, v.fpl) for v in variants]
    # The detector is shared by the variants with the same heads.
    assert len(list((out / "detectors").iterdir())) == 2
    assert [c.seconds["stage 1"] > 0 for c in cells] == [True, False, True]
    assert cells[0].figures["AUC"] == cells[1].figures["AUC"]
    assert cells[0].parameters["heads"] < cells[2].parameters["heads"] / 10
    assert cells[0].parameters["fpl"] < cells[2].parameters["fpl"]
    with (out / "variants.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["figure"] for row in rows] == [*FIGURES] * 3
    assert float(rows[1]["seed 0"]) == pytest.approx(cells[0].figures["mask IoU"], abs=1e-4)

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("cell.json")}
    assert compare_variants(variants[:1], [0], data, SETTINGS, faces, out) == cells[:1]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("cell.json")} == stamps


def _cell(fpl, seed, value):
    figures = dict.fromkeys(FIGURES, value)
    return RunResult("lite", fpl, seed, figures, {"heads": 10, "fpl": 2000}, {"stage 1": 1.0})


def test_mean_and_deviation_over_seeds():
    values = {"lite": (0.8, 0.9, 0.7), "paper": (0.5,)}
    cells = [_cell(fpl, i, v) for fpl, row in values.items() for i, v in enumerate(row)]
    rows = list(csv.DictReader(variants_csv(cells).splitlines()))
    assert len(rows) == 2 * len(FIGURES)
    assert float(rows[0]["mean"]) == pytest.approx(0.8)
    assert float(rows[0]["std"]) == pytest.approx(np.std(values["lite"], ddof=1))
    assert (rows[-1]["std"], rows[-1]["seed 1"]) == ("", "")
    text = variants_markdown(cells, SETTINGS)
    figures = "0.800 ± 0.100 | 0.800 ± 0.100 | 0.800 ± 0.100"
    assert f"| lite | lite | 0, 1, 2 | {figures} | 10 | 2,000 |" in text
    assert "| lite | paper | 0 | 0.500 | 0.500 | 0.500 |" in text
    assert json.dumps(SETTINGS.kfd_steps) in text


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match=r"heads must be one of .*got 'large'"):
        Variant("large", "lite")
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        VariantSettings(steps=0)
