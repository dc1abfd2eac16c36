"""Interruptions: whatever stops a run, the next one ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_forgery.faces import prepare as module
from llava_forgery.faces.journal import Journal, Outcome, PixelFile, open_journal
from llava_forgery.faces.prepare import UNFINISHED, prepare
from tests.faces.media import (
    FatalRedSquare,
    RedSquare,
    SlowRedSquare,
    contents,
    photograph,
    picture,
    video,
)

ROOT = Path(__file__).parents[2]
PEOPLE = {"identity_pattern": r"^(\d+)", "test_share": 0.4, "size": 32}


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    """Photographs, a video and a broken file."""
    src = tmp_path_factory.mktemp("src")
    for i in range(12):
        photograph(src / f"{i}.png", (10 + 5 * i, 20, 30))
    (src / "12.jpg").write_bytes(b"\xff\xd8 broken")
    pytest.importorskip("av")
    video(src / "13.mp4", [picture((2 * i, 20, 30)) for i in range(12)])
    return src


@pytest.fixture(scope="module")
def whole(src, tmp_path_factory):
    """What a run without interruption writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(src, out, detector=SlowRedSquare(), **PEOPLE)
    return contents(out)


# STEP runs in the process before prepare does.
SCRIPT = """
import os, signal, sys
from llava_forgery.faces import prepare, records
from tests.faces.media import SlowRedSquare
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
def die_among_the_rows(rows, features, folder):
    rows = rows()
    for _ in range(5):
        next(rows)
    (folder / "half").touch()
    die()
if __name__ == "__main__":
    STEP
    src, out, workers = sys.argv[1:]
    prepare.prepare(src, out, detector=SlowRedSquare(), workers=int(workers), size=32,
                    identity_pattern=r"^(\\d+)", test_share=0.4)
"""


def start(folder, src, out, workers, kill="pass"):
    (folder / "script.py").write_text(SCRIPT.replace("STEP", kill))
    return subprocess.Popen(
        [sys.executable, folder / "script.py", src, out, str(workers)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )


def finished(out):
    path = out / UNFINISHED / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


class Counting(SlowRedSquare):
    """Counts; goes by the other's name, since another detector would start anew."""

    def __init__(self):
        self.calls = 0

    def detect(self, image):
        self.calls += 1
        return RedSquare.detect(self, image)


Counting.__name__ = "SlowRedSquare"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_9_in_the_middle(src, whole, tmp_path, workers):
    psutil = pytest.importorskip("psutil")
    out = tmp_path / "out"
    process = start(tmp_path, src, out, workers)
    while finished(out) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = finished(out)
    assert 4 <= done < 14
    assert [path.name for path in out.iterdir()] == [UNFINISHED]
    # The workers of a parent that was killed end as well.
    assert psutil.wait_procs(family, timeout=60)[1] == []
    detector = Counting()
    prepare(src, out, detector=detector, **PEOPLE)
    assert contents(out) == whole
    # One of the finished files may be the one that is no picture: nothing was looked for in it.
    assert detector.calls <= 24 - (done - 1)
    assert not (out / UNFINISHED).exists()


@pytest.mark.parametrize(
    "kill", ["records.write_rows = die_among_the_rows", "prepare.write_json = die"]
)
def test_kill_9_at_the_end(src, whole, tmp_path, kill):
    out = tmp_path / "out"
    assert start(tmp_path, src, out, 1, kill).wait() == -signal.SIGKILL
    assert finished(out) == 14
    detector = Counting()
    prepare(src, out, detector=detector, **PEOPLE)
    assert contents(out) == whole
    assert detector.calls == 0
    names = {"faces", "manifest.jsonl", "settings.json", "report.json"}
    assert {path.name for path in out.iterdir()} == names


def interrupted(src, out, monkeypatch, **options):
    """Stop after everything was found and nothing written."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_rows", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(src, out, detector=Counting(), **{**PEOPLE, **options})


def test_several_workers_write_what_one_writes(src, whole, tmp_path):
    prepare(src, tmp_path / "out", detector=SlowRedSquare(), workers=2, **PEOPLE)
    assert contents(tmp_path / "out") == whole


def test_what_changed_since_is_looked_at(tmp_path, monkeypatch):
    src, out = tmp_path / "src", tmp_path / "out"
    for name in ("a", "b", "c"):
        photograph(src / f"{name}.png")
    options = {"identity_pattern": "(.)", "size": 32}
    interrupted(src, out, monkeypatch, test_share=0.0, **options)
    photograph(src / "b.png", (60, 10, 50))
    photograph(src / "d.png")
    (src / "a.png").unlink()
    detector = Counting()
    # Identities and splits belong to the new run.
    report = prepare(src, out, detector=detector, test_share=0.5, seed=1, **options)
    assert detector.calls == 2
    assert sum(report.faces_by_split.values()) == 3
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["b.png", "c.png", "d.png"]
    assert {row["split"] for row in rows} == {"train", "test"}
    assert rows[0]["box"][0] != rows[1]["box"][0]


def test_other_settings_start_anew(src, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupted(src, out, monkeypatch)
    detector = Counting()
    prepare(src, out, detector=detector, **{**PEOPLE, "size": 48})
    assert detector.calls == 24


@pytest.mark.slow
def test_a_file_that_kills_its_process_is_refused(tmp_path):
    src, out = tmp_path / "src", tmp_path / "out"
    for i in range(5):
        photograph(src / f"{i}.png")
    Image.fromarray(picture((10, 10, 20), shape=(50, 80))).save(src / "2b.png")
    report = prepare(src, out, detector=FatalRedSquare(), workers=2, size=32)
    assert report.faces == 5
    assert [(s.file, s.reason) for s in report.skipped] == [
        ("2b.png", "the process that read it died, twice")
    ]


def outcome(folder, data=b"pixels"):
    pixels = PixelFile(folder)
    place = pixels.add(data)
    pixels.close()
    return Outcome([{"image": place, "mask": None}])


def test_an_unfinished_line_is_dropped(tmp_path):
    with open_journal(tmp_path, {}) as journal:
        journal.add(b"a" * 16, outcome(tmp_path))
        journal.add(b"b" * 16, Outcome([], "no face"))
    lines = tmp_path / "journal.jsonl"
    whole = lines.read_bytes()
    for end in (len(whole) - 1, len(whole) - 20):
        lines.write_bytes(whole[:end])
        with open_journal(tmp_path, {}) as journal:
            assert b"a" * 16 in journal
            assert b"b" * 16 not in journal
            journal.add(b"b" * 16, Outcome([], "no face"))
        assert lines.read_bytes() == whole
    # Pixels that were never written: neither is the line then.
    (file,) = tmp_path.glob("pixels-*.bin")
    file.write_bytes(b"pix")
    with open_journal(tmp_path, {}) as journal:
        assert b"a" * 16 not in journal


def test_damaged_pixels_are_an_error(tmp_path):
    with open_journal(tmp_path, {}) as journal:
        found = outcome(tmp_path)
        assert journal.pixels(found.faces[0]["image"]) == b"pixels"
        (file,) = tmp_path.glob("pixels-*.bin")
        file.write_bytes(b"\0" * 6)
        with pytest.raises(ValueError, match="is damaged; delete the folder"):
            journal.pixels(found.faces[0]["image"])


def test_two_runs_at_once_are_refused(tmp_path):
    pytest.importorskip("fcntl")
    with (
        open_journal(tmp_path, {}) as journal,
        pytest.raises(RuntimeError, match="another process"),
        open_journal(tmp_path, {}),
    ):
        pass
    assert isinstance(journal, Journal)
    assert np.array_equal(Outcome([], "why").faces, [])
    with pytest.raises(ValueError, match="faces or a reason"):
        Outcome([])
