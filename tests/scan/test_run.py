"""The command around the engine: what it says, skips, judges again, and how it ends."""

import json
import os
from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.scan import run
from llava_forgery.scan.reader import hash_file
from llava_forgery.scan.registry import Registry
from llava_forgery.scan.stages import judge_here
from llava_forgery.scan.units import Unit
from tests.scan.making import archive, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def scan(model, tmp_path, monkeypatch):
    """The command, with all stages in this process; ``stop`` files and Ctrl-C is pressed."""
    archive(tmp_path / "archive", photographs=4, videos=1)

    @contextmanager
    def connected(cluster):
        invoke.clusters += 1
        yield None

    def run_scan(ray, cluster, settings, plan, collector, progress):
        registry = Registry()
        registry.add(collector.folder.contents())
        judge = judge_here(settings, registry)
        for number, entry in enumerate(plan.pending()):
            if number == invoke.stop:
                raise KeyboardInterrupt
            collector.add(judge([Unit(entry)]))
            progress(1)
        collector.flush()

    def hash_entries(ray, entries):
        return [(entry.path, hash_file(entry.path)) for entry in entries]

    monkeypatch.setattr(run, "connected", connected)
    monkeypatch.setattr(run, "run_scan", run_scan)
    monkeypatch.setattr(run, "hash_entries", hash_entries)

    def invoke(*more, archive=tmp_path / "archive"):
        arguments = ["scan", archive, "--out", tmp_path / "out", "--model", model.model,
                     "--base-model", model.base_model, "--answers", "none", "--cropped",
                     *more]  # fmt: skip
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    invoke.stop, invoke.clusters = -1, 0
    return invoke


def records(tmp_path):
    rows = pq.read_table(tmp_path / "out/records").to_pylist()
    return {os.path.relpath(row["file"], tmp_path / "archive"): row for row in rows}


@pytest.mark.slow
def test_interrupted_resumed_and_changed(scan, tmp_path):
    scan.stop = 3
    stopped = scan()
    assert stopped.exit_code == 130
    assert "interrupted: 7 files are left; the same command resumes" in stopped.stdout
    scan.stop = -1
    rest = scan()
    assert rest.exit_code == 1
    assert "3 unchanged and skipped, 0 changed and judged again, 3 could not" in rest.stdout
    before = records(tmp_path)
    assert len(before) == 10
    assert scan().stdout.startswith("0 files in 0 s")
    # Where nothing is left no cluster is started.
    assert scan.clusters == 2
    # Touched: judged again by its time, not by its content. Written anew: by both.
    os.utime(tmp_path / "archive/d0/0003.png", (1, 1))
    (tmp_path / "archive/text.png").write_bytes((tmp_path / "archive/d1/0001.png").read_bytes())
    assert "9 unchanged and skipped, 1 changed" in scan("--verify", "hash").stdout
    again = scan()
    assert "9 unchanged and skipped, 1 changed and judged again, 2 could" in again.stdout
    after = records(tmp_path)
    assert after.keys() == before.keys()
    assert after["d0/0003.png"]["modified"].value == 1_000_000_000
    assert after["text.png"]["duplicate_of"].endswith("d1/0001.png")
    assert "8 unchanged and skipped, 2 changed" in scan("--retry-errors").stdout
    page = CliRunner().invoke(app, ["scan-report", str(tmp_path / "out")])
    assert page.stdout == f"wrote {tmp_path / 'out/report.html'}\n"


@pytest.mark.slow
def test_a_dry_run_judges_a_few_and_writes_no_record(scan, tmp_path):
    result = scan("--dry-run", "--workers", "2", "--sample", "100%")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["files"][".png"]["files"] == 7
    assert told["pending"] == told["files"]
    assert set(told["seconds_for_each"]) == {"picture", "video"}
    assert told["hours"]["2 workers"] <= told["hours"]["1 worker"]
    # Neither is a scan begun, whose settings would bind the next one.
    assert not (tmp_path / "out").exists()


def test_interrupted_while_files_are_listed(scan, monkeypatch):
    def list_entries(sources, leave_out):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "list_entries", list_entries)
    stopped = scan()
    assert stopped.exit_code == 130
    assert "interrupted: before all files were listed; the same command resumes" in stopped.stdout


def test_wrong_use_is_said_before_anything_is_judged(scan, tmp_path):
    assert "--verify must be stat or hash" in str(scan("--verify", "size").exception)
    assert "a share such as 1%" in str(scan("--sample", "2").exception)
    assert "answers must be one of" in str(scan("--answers", "some").exception)
    assert "does not exist" in str(scan(archive=tmp_path / "gone").exception)
    assert scan("--limit", "1").exit_code == 0
    assert len(records(tmp_path)) == 1
    other = scan("--pool", "max")
    assert "pool was 'mean', now 'max'" in str(other.exception)
