"""The inputs of the fault campaign in an archive: one record each, as ``detect`` judges them."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from llava_forgery.faces.video import FrameChoice
from llava_forgery.infer.batch import judge_files
from llava_forgery.scan.collector import Collector
from llava_forgery.scan.folder import open_folder
from llava_forgery.scan.plan import Plan
from llava_forgery.scan.reader import ReadSettings
from llava_forgery.scan.sources import list_entries
from llava_forgery.scan.stages import ScanSettings, judge_here
from llava_forgery.scan.units import Unit
from tests.scan.making import save_model

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
def test_every_input_has_the_record_that_detect_prints(tmp_path, monkeypatch, samples_dir):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import fault_pictures
    import fault_videos

    photo = Image.open(sorted(samples_dir.glob("*.jpg"))[0]).convert("RGB")
    kinds = (fault_pictures.whole_pictures, fault_pictures.broken_pictures,
             fault_pictures.odd_names, fault_pictures.other_files,
             fault_videos.whole_videos, fault_videos.broken_videos)  # fmt: skip
    for item in (item for kind in kinds for item in kind()):
        if item.package is None or find_spec(item.package):
            path = tmp_path / "inputs" / item.name
            path.parent.mkdir(parents=True, exist_ok=True)
            item.make(path, photo)
    model = replace(save_model(tmp_path), device="cpu")
    read = ReadSettings(FrameChoice(2), cropped=True)
    settings = ScanSettings(model, "none", read)
    with open_folder(tmp_path / "out", settings.decisive()) as folder, Collector(folder) as into:
        plan = Plan(folder, list_entries([str(tmp_path / "inputs")]))
        into.add(judge_here(settings)([Unit(entry) for entry in plan.pending()]))
    rows = pq.read_table(tmp_path / "out/records").to_pylist()
    records = {row["file"]: row for row in rows}
    assert len(records) == len(rows) == into.files
    judged = judge_files(
        model.predictor(), [tmp_path / "inputs"], cropped=True, frames=FrameChoice(2)
    )
    expected = {_shown(result.file): result.to_dict() for result in judged}
    assert records.keys() == expected.keys()
    assert len(records) > 100
    assert into.errors > 30
    for name, wanted in expected.items():
        record = records[name]
        assert record["error"] == (wanted["error"] and _shown(wanted["error"])), name
        scores = [face["score"] for face in wanted["faces"]]
        assert [face["score"] for face in record["faces"]] == pytest.approx(scores, abs=1e-5), name


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
