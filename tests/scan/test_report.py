"""The page of a scan, from its Parquet files alone."""

import re
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_forgery.scan.collector import Collector
from llava_forgery.scan.folder import open_folder
from llava_forgery.scan.report import error_kind, write_report
from llava_forgery.scan.schema import to_table
from tests.scan.making import duplicate, result


def scan(root, *results):
    with open_folder(root, {}) as folder, Collector(folder) as collector:
        collector.add(results)


def test_the_page_says_what_the_records_hold(tmp_path):
    scan(
        tmp_path,
        result("/a/<b>.jpg", 0.99, 0.2, sha256="11" * 32),
        result("/a/c.jpg", 0.75),
        result("/d/e.jpg", error="/d/e.jpg could not be read: 17 bytes"),
        result("/d/f.jpg", error="/d/f.jpg could not be read: 4 bytes"),
        duplicate("/g/h.jpg", "11" * 32),
    )
    page = write_report(tmp_path, tmp_path / "report.html").read_text()
    tiles = {name: value for value, name in re.findall(r"<b>([\d.,]+)</b>([a-z ]+)</div>", page)}
    assert (tiles["files"], tiles["not judged"], tiles["faces"]) == ("5", "2", "5")
    assert (tiles["files flagged"], tiles["duplicates"]) == ("3", "1")
    # Copies of a picture are shown once, the highest score first; names are escaped.
    assert re.findall(r"<b>score ([\d.]+)", page) == ["0.990", "0.750"]
    assert "&lt;b&gt;.jpg" in page
    assert "<b>.jpg" not in page
    assert "<tr><td>FILE could not be read: # bytes<td>2" in page
    assert "<tr><td>/a<td>2<td>2<td>0" in page
    assert "<tr><td>2023-11<td>4<td>2<td>2" in page
    assert "script" not in page
    assert "http" not in page


def test_kinds_of_errors():
    assert error_kind("/x/9.mp4 ends before its frame 12", "/x/9.mp4") == (
        "FILE ends before its frame #"
    )
    assert len(error_kind("word " * 99, "/x")) == 120


def test_without_records_there_is_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no records"):
        write_report(tmp_path, tmp_path / "report.html")
    (tmp_path / "records").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "records" / "part-000000.parquet")
    with pytest.raises(ValueError, match="no file of a scan"):
        write_report(tmp_path, tmp_path / "report.html")


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_less_than_a_minute(tmp_path):
    """Of this process: others may take the processor meanwhile."""
    scores = [(i * 37 % 1000) / 1000 for i in range(5000)]
    rows = [result(f"/f{i % 300}/{i}.jpg", score).record for i, score in enumerate(scores)]
    (tmp_path / "records").mkdir()
    for shard in range(20):
        for row in rows:
            row["file"] = f"/{shard}{row['file']}"
        pq.write_table(to_table(rows), tmp_path / "records" / f"part-{shard:06}.parquet")
    begun = time.process_time()
    page = write_report(tmp_path, tmp_path / "report.html")
    assert time.process_time() - begun < 60
    assert "<b>100,000</b>files" in page.read_text()
