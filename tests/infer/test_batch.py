"""What becomes of files when one of them fails, memory runs out, or the user stops."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from llava_forgery.cli import app, predict
from llava_forgery.files import to_json
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.batch import SCHEMA_VERSION, judge_files
from llava_forgery.infer.batching import BatchLimits
from llava_forgery.infer.predictor import ForgeryPredictor
from tests import tiny


class Failing(ForgeryPredictor):
    """Raises ``error`` over the ``at``-th picture, and where a batch holds too many faces."""

    at, error, room = 99, None, 99

    def _predict_faces(self, faces):
        if any((face.image == tiny.picture(self.at)).all() for face in faces):
            raise self.error
        if len(faces) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super()._predict_faces(faces)


@pytest.fixture
def predictor():
    host, processor = tiny.llava()
    vlm = attach_forgery(host, processor, tiny.kfd(), lora=LoraSettings(r=2, alpha=4))
    return Failing(vlm, max_new_tokens=2)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        Image.fromarray(tiny.picture(i)).save(path)
    return paths


def _detect(monkeypatch, predictor, files, *more):
    monkeypatch.setattr(predict, "load_predictor", lambda *_: predictor)
    return CliRunner().invoke(app, ["detect", *map(str, files), "--model", "m", "--cropped", *more])


@pytest.mark.parametrize(
    "error", [RuntimeError("cuDNN error"), KeyError("k"), torch.OutOfMemoryError("out of memory")]
)
def test_whatever_one_file_fails_for_the_rest_is_judged(monkeypatch, predictor, files, error):
    predictor.at, predictor.error = 2, error
    result = _detect(monkeypatch, predictor, files, "--jsonl")
    assert result.exit_code == 1
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["file"] for record in records] == [str(file) for file in files]
    assert [record["error"] is None for record in records] == [True, True, False, True]
    assert str(error.args[0]) in records[2]["error"]
    assert {record["schema_version"] for record in records} == {SCHEMA_VERSION}
    assert [len(record["faces"]) for record in records] == [1, 1, 0, 1]


def test_lines_are_the_records_of_the_document(monkeypatch, predictor, files):
    # What a face takes is seen at the first one, which is judged alone.
    predictor.predict(tiny.picture(), cropped=True)
    lines = _detect(monkeypatch, predictor, files, "--jsonl").stdout.splitlines()
    document = json.loads(_detect(monkeypatch, predictor, files, "--json").stdout)
    assert [json.loads(line) for line in lines] == document
    both = _detect(monkeypatch, predictor, files, "--json", "--jsonl")
    assert "either --json" in str(both.exception)


@pytest.mark.parametrize("form", ["--json", "--jsonl", None])
def test_ctrl_c_ends_with_what_is_done(monkeypatch, predictor, files, form):
    predictor.at, predictor.error = 2, KeyboardInterrupt()
    predictor.limits = BatchLimits(faces=2)
    result = _detect(monkeypatch, predictor, files, *([form] if form else []))
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted: 2 files were judged, the others not"
    if form == "--json":
        assert [record["file"] for record in json.loads(result.stdout)] == [
            str(file) for file in files[:2]
        ]
    else:
        assert [str(file) in result.stdout for file in files] == [True, True, False, False]


def test_a_batch_too_large_is_halved_and_judged_the_same(predictor):
    faces = [predictor.find_faces(tiny.picture(i), cropped=True)[0] for i in range(5)]
    whole, rated = predictor.predict_faces(faces), predictor.predict_scores(faces)
    predictor.room = 2
    halved = predictor.predict_faces(faces)
    for one, other in zip(whole, halved, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.p_yes == pytest.approx(other.p_yes, abs=1e-5)
    for one, other in zip(rated, predictor.predict_scores(faces), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("kfd.classifier", "the detector's score is not finite. That is not the picture's fault"),
        ("host.lm_head", "the language model's P(yes) is not finite. That is not the picture's"),
    ],
)
def test_what_is_no_number_is_an_error_and_not_the_pictures(module, message, predictor, files):
    hook = predictor.vlm.get_submodule(module).register_forward_hook(
        lambda module, inputs, output: output * torch.nan
    )
    try:
        (record,) = judge_files(predictor, files[:1], cropped=True)
        with pytest.raises(ValueError, match="not the picture's fault"):
            predictor.predict_scores(predictor.find_faces(tiny.picture(1), cropped=True))
    finally:
        hook.remove()
    assert message in record.error
    assert json.loads(to_json(record.to_dict()))["faces"] == []


def test_a_line_is_out_before_the_next_file_is_read(tmp_path):
    """Of a run that is killed at its third file, two lines are there."""
    script = (
        "import os, signal, sys\n"
        "from llava_forgery.cli import app, predict\n"
        "from llava_forgery.infer import batch\n"
        "def judge(predictor, paths, **_):\n"
        "    for i in range(2):\n"
        "        yield batch.FileVerdicts(f'{i}.png')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "batch.judge_files = judge\n"
        "predict.load_predictor = lambda *_: None\n"
        "app(['detect', 'x', '--model', 'm', '--jsonl'])\n"
    )
    with open(tmp_path / "out", "w") as out:
        result = subprocess.run([sys.executable, "-c", script], stdout=out, env=dict(os.environ))
    assert result.returncode == -9
    lines = (tmp_path / "out").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["0.png", "1.png"]
