"""The command prepare: its options, and an interruption of the real thing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llava_forgery.cli.app import app
from llava_forgery.faces import detect
from tests.faces.media import RedSquare, contents, photograph, picture, video

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch):
    """Calls prepare; the detector ``red`` finds red squares."""
    monkeypatch.setattr(detect, "_DETECTORS", {**detect._DETECTORS, "red": RedSquare})

    def call(*arguments):
        return CliRunner().invoke(
            app, ["data", "prepare", *map(str, arguments), "--face-detector", "red"]
        )

    return call


def rows(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_options_reach_the_library(run, tmp_path):
    pytest.importorskip("av")
    src, out = tmp_path / "src", tmp_path / "out"
    photograph(src / "a.png", (10, 10, 40), (90, 20, 30))
    video(src / "b.mp4", [picture((40 + i, 20, 40)) for i in range(9)], crf=10)
    options = ("--out", out, "--size", 224, "--margin", 0.25, "--fake")
    result = run(src, *options, "--every", 4, "--all-faces", "--align")
    assert result.exit_code == 0, result.output
    assert "5 faces in 2 files; 0 files were skipped" in result.output
    found = rows(out)
    assert [(row["source"], row.get("frame"), row.get("track")) for row in found] == [
        ("a.png", None, None), ("a.png", None, None),
        ("b.mp4", 0, 0), ("b.mp4", 4, 0), ("b.mp4", 8, 0),
    ]  # fmt: skip
    assert {row["label"] for row in found} == {1}
    assert found[0]["angle"] == pytest.approx(45, abs=0.1)
    # The diagonal of 40 pixels, now level, and a quarter of it on each side.
    assert found[0]["box"][2] - found[0]["box"][0] == pytest.approx(40 * 2**0.5 * 1.5, rel=1e-3)
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["size"], settings["frames"]) == (224, {"count": None, "every": 4})
    result = run(src, *options, "--frames", 2)
    assert [row.get("frame") for row in rows(out)] == [None, 2, 6], result.output
    result = run(src, *options, "--frames", 2, "--every", 4)
    assert "count or every" in str(result.exception)
    result = run(src, *options, "--workers", 0)
    assert "workers must be 1 or more" in str(result.exception)


@pytest.mark.slow
def test_kill_9_of_the_command_on_photographs(tmp_path, samples_dir):
    pytest.importorskip("dlib")
    src = tmp_path / "src"
    src.mkdir()
    for photo in sorted(samples_dir.glob("*.jpg"))[:24]:
        (src / photo.name).symlink_to(photo)

    def command(out, workers):
        return subprocess.Popen(
            [sys.executable, "-m", "llava_forgery.cli", "data", "prepare", src, "--out", out,
             "--workers", str(workers), "--size", "224",
             "--identity-pattern", r"^(\d+)_", "--test-share", "0.25"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    whole, out = tmp_path / "whole", tmp_path / "out"
    assert command(whole, 1).wait() == 0
    journal = out / ".unfinished" / "journal.jsonl"
    killed = command(out, 2)
    while not journal.is_file() or journal.read_bytes().count(b"\n") < 3:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    done = journal.read_bytes()
    assert done.count(b"\n") < 24
    assert not (out / "faces").exists()
    assert command(out, 2).wait() == 0
    assert contents(out) == contents(whole)
    assert not journal.exists()
