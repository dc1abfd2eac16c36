"""What data build-qa writes, and that an interruption neither redoes nor loses work."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

from llava_forgery.constants import FAKE, REAL
from llava_forgery.data.build_qa import build_conversations, conversation_of
from llava_forgery.faces.records import load_faces, save_faces
from llava_forgery.qa.llava_json import read_llava_json
from llava_forgery.simulate.pairs import FacePairs
from tests import tiny

ROOT = Path(__file__).parents[2]
OPTIONS = {"follow_ups": 1.0, "seed": 3, "part_size": 2, "batch_size": 3}


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    save_faces((tiny.face(i) for i in range(4)), folder, {})
    return load_faces(folder, "train")


def contents(folder):
    """Everything a built folder says."""
    rows = datasets.load_from_disk(str(folder))
    raw = rows.cast_column("image", datasets.Image(decode=False))
    files = {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.suffix == ".png" or file.name in ("conversations.json", "settings.json")
    }
    return raw.to_list(), files


@pytest.fixture(scope="module")
def whole(faces, tmp_path_factory):
    """An uninterrupted build of seven pairs."""
    out = tmp_path_factory.mktemp("whole") / "qa"
    build_conversations(FacePairs(faces, 7, size=64), tiny.kfd(), out, **OPTIONS)
    return out


def test_llava_json_says_what_the_data_set_says(whole):
    rows = datasets.load_from_disk(str(whole))
    samples = list(read_llava_json(whole / "conversations.json", whole))
    assert len(rows) == len(samples) == 14
    for index, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        conversation = sample.to_conversation()
        assert sample.id == f"{index:06d}"
        assert conversation.messages == conversation_of(row).messages
        assert (conversation.label, list(conversation.regions)) == (row["label"], row["regions"])
        with Image.open(whole / sample.images[0]) as picture:
            assert picture.tobytes() == row["image"].tobytes()
            assert picture.info["Software"] == "llava-forgery"
            kind = "simulated forgery at the " if row["label"] == FAKE else "crop of p"
            assert picture.info["Description"].startswith(kind)
    assert rows["label"][:] == [FAKE, REAL] * 7
    # Every one has follow-ups: two to four turns, in the text as in the file.
    assert {len(row["messages"]) for row in rows} == {4, 6, 8}
    assert not whole.with_name("qa-parts").exists()


def test_parts_batches_and_workers_change_nothing(faces, whole, tmp_path):
    options = OPTIONS | {"part_size": 3, "workers": 2}
    build_conversations(FacePairs(faces, 7, size=64), tiny.kfd(), tmp_path / "qa", **options)
    (rows, files), (expected, others) = contents(tmp_path / "qa"), contents(whole)
    assert rows == expected
    files.pop("settings.json")
    assert files == {name: data for name, data in others.items() if name != "settings.json"}


def test_without_a_detector_nothing_is_cited(faces, tmp_path):
    pairs = FacePairs(faces, 4, size=64)
    rows = build_conversations(pairs, None, tmp_path / "qa", max_turns=1, follow_ups=1.0)
    assert rows["score"][:] == [None] * 8
    assert {len(row["messages"]) for row in rows} == {2}
    assert "KFD" not in json.dumps(rows["messages"][:])
    with pytest.raises(ValueError, match="no detector whose score"):
        build_conversations(pairs, None, tmp_path / "qa", kfd_results=0.5)
    for most in (0, 5):
        with pytest.raises(ValueError, match="max_turns must be"):
            build_conversations(pairs, None, tmp_path / "qa", max_turns=most)


# Dies in the middle of the third of four parts, or while the parts are put together.
KILLED = """
import os, signal, sys
from llava_forgery.faces.records import load_faces
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.data import build_qa as conversations
from tests import tiny

faces, out, moment = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

class Pairs(FacePairs):
    def __getitem__(self, index):
        if moment == "pictures" and index == 5:
            die()
        return super().__getitem__(index)

if moment == "assembly":
    conversations.write_llava_json = die
conversations.build_conversations(
    Pairs(load_faces(faces, "train"), 7, size=64), tiny.kfd(), out,
    follow_ups=1.0, seed=3, part_size=2, batch_size=3,
)
"""


class Watched(FacePairs):
    """Remembers which pairs were asked for."""

    asked: tuple[int, ...] = ()

    def __getitem__(self, index):
        self.asked = (*self.asked, index)
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("moment", "todo"),
    [("pictures", {4, 5, 6}), pytest.param("assembly", set(), marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_killed_and_run_again(faces, whole, tmp_path, moment, todo):
    folder = Path(faces.cache_files[0]["filename"]).parent
    out = tmp_path / "qa"
    command = [sys.executable, "-c", KILLED, str(folder), str(out), moment]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=500)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    pairs = Watched(faces, 7, size=64)
    with pytest.raises(ValueError, match="other settings: seed was 3, now 4"):
        build_conversations(pairs, tiny.kfd(), out, **OPTIONS | {"seed": 4})
    with pytest.raises(ValueError, match="other settings: detector was"):
        build_conversations(pairs, tiny.kfd(1), out, **OPTIONS)
    build_conversations(pairs, tiny.kfd(), out, **OPTIONS)
    assert set(pairs.asked) == todo
    assert contents(out) == contents(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["qa"]
