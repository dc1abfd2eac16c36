"""The command, on a tiny adapter and host saved to disk."""

import gc
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import llava_forgery
from llava_forgery.cli import app
from llava_forgery.cli.app import load_predictor
from llava_forgery.faces.records import save_faces
from llava_forgery.files import sentence
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.loading import load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.predictor import ForgeryPredictor
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """host/, adapter/, other-host/ and face.png."""
    folder = tmp_path_factory.mktemp("cli")
    for name, seed in (("host", 0), ("other-host", 1)):
        host, processor = tiny.llava(seed)
        host.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    model, processor = load_host(folder, str(folder / "host"))
    vlm = attach_forgery(model, processor, tiny.kfd(), lora=LoraSettings(r=2, alpha=4))
    vlm.save_pretrained(folder / "adapter")
    Image.fromarray(tiny.picture(1)).save(folder / "face.png")
    return folder


def _run(*arguments, text=None, code="from llava_forgery.cli import main; main()"):
    # Without it numexpr, for one, says how many threads it takes.
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, input=text, timeout=600, env=environment
    )


def test_detect_in_a_new_process_says_what_the_library_says(folder):
    result = _run("detect", folder / "face.png", "--model", folder / "adapter", "--cropped",
                  "--json", "--dtype", "float32")  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    (entry,) = json.loads(result.stdout)
    predictor = ForgeryPredictor.from_pretrained(folder / "adapter")
    verdict = predictor.predict(folder / "face.png", cropped=True)
    assert entry["error"] is None
    assert entry["faces"][0]["score"] == pytest.approx(verdict.score, abs=1e-4)
    assert entry["faces"][0]["p_yes"] == pytest.approx(verdict.p_yes, abs=1e-4)
    assert entry["faces"][0]["answer"] == verdict.answer
    assert entry["faces"][0]["overlay"] is None


def test_loading_chooses_the_precision_and_collects_again(folder):
    for dtype, expected in ((None, "highest"), ("float32", "highest"), ("auto", "medium")):
        load_predictor(folder / "adapter", device="cpu", dtype=dtype)
        assert (torch.get_float32_matmul_precision(), gc.isenabled()) == (expected, True)
    with pytest.raises(FileNotFoundError):
        load_predictor(folder / "nothing")
    assert gc.isenabled()


def test_the_library_says_nothing(folder):
    code = (
        "import sys\n"
        "from llava_forgery import ForgeryPredictor\n"
        "ForgeryPredictor.from_pretrained(sys.argv[1]).predict(sys.argv[2], cropped=True)\n"
    )
    result = _run(folder / "adapter", folder / "face.png", code=code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def _said(result):
    """What a command says beside its progress bars, and where transformers prints the loss."""
    assert result.returncode == 0, result.stderr
    lines = re.split(r"[\r\n]", result.stdout + result.stderr)
    return [
        x
        for x in lines
        if x.strip() and not re.search(r"\d+%\||image/s\]", x) and "train_loss" not in x
    ]


@pytest.mark.slow
def test_no_command_says_what_other_packages_have_to_say(folder, faces, tmp_path):
    everybody, out = tmp_path / "faces", tmp_path / "out"
    save_faces((tiny.face(i, "train" if i < 3 else "test") for i in range(5)), everybody, {})
    host = ["--base-model", folder / "host"]
    kfd = ["--kfd", folder / "adapter/kfd"]
    data = ["data", "build-qa", "--faces", everybody, *kfd, "--pairs", 2, "--out", out / "qa"]
    assert _said(_run(*data)) == [f"4 conversations in {out / 'qa'}"]
    train = ["train", "adapter", *host, *kfd, "--data", out / "qa", "--steps", 2, "--batch-size", 2]
    assert _said(_run(*train, "--fpl-warmup-steps", 2, "--out", out / "adapter")) == []
    if find_spec("bitsandbytes"):
        small = ["--quantization", "4bit", "--fpl-warmup-steps", 0, "--out", out / "small"]
        assert _said(_run(*train, *small)) == []
    detector = ["train", "detector", "--faces", everybody, "--steps", 1, "--batch-size", 1]
    assert _said(_run(*detector, "--out", out / "kfd")) == []
    forged = ["data", "forge", "--faces", everybody, "--pairs", 2, "--size", 32]
    assert _said(_run(*forged, "--out", out / "forged")) == []
    word = ["train", "pseudo-word", *host, "--data", out / "forged", "--epochs", 1]
    assert _said(_run(*word, "--out", out / "word")) == []
    result = _run("eval", "run", "--model", out / "adapter", "--faces", everybody, "--roc",
                  "--out", out / "eval")  # fmt: skip
    assert [line for line in _said(result) if line not in result.stdout] == []


@pytest.mark.slow
def test_exit_status_1_when_a_file_was_not_judged(folder, tmp_path):
    (tmp_path / "broken.jpg").write_text("no picture")
    result = _run("detect", tmp_path / "broken.jpg", folder / "face.png", "--model",
                  folder / "adapter", "--cropped")  # fmt: skip
    assert result.returncode == 1
    assert "broken.jpg: not judged" in result.stdout
    assert "score" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "no folder nowhere"),
        (["--model", "ADAPTER", "--base-model", "OTHER"], "other weights"),
        (["--json", "--jsonl"], "either --json"),
    ],
)
@pytest.mark.slow
def test_wrong_use_is_exit_status_2(folder, arguments, message):
    names = {"ADAPTER": folder / "adapter", "OTHER": folder / "other-host"}
    arguments = [names.get(argument, argument) for argument in arguments]
    result = _run("detect", folder / "face.png", "--cropped", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_chat_answers_several_questions(folder):
    result = _run("chat", folder / "face.png", "--model", folder / "adapter", "--cropped",
                  text="Is it fake?\nWhere?\n\n")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Score of the detector: 0." in result.stdout
    assert result.stdout.count("> ") == 3


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Real faces, all for testing."""
    out = tmp_path_factory.mktemp("faces")
    save_faces((tiny.face(i, "test") for i in range(2)), out, {})
    return out


def test_robustness_of_a_detector_writes_its_curves(folder, faces, tmp_path):
    arguments = ["eval", "robustness", "--model", folder / "adapter/kfd", "--faces", faces,
                 "--out", tmp_path / "out", "--pairs", 4, "--only", "jpeg"]  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["robustness.csv", "robustness.json", "robustness.png"]
    record = json.loads((tmp_path / "out/robustness.json").read_text())
    assert (record["source"], record["images"]) == ("simulated forgeries", 8)
    assert len(record["points"]) == 6


@pytest.mark.parametrize("model", ["adapter", "adapter/kfd"])
def test_evaluate_judges_fakes_as_they_are(folder, tmp_path, model):
    crops = [replace(tiny.face(i, "test"), label=i % 2) for i in range(4)]
    save_faces(crops, tmp_path / "faces", {})
    arguments = ["eval", "run", "--model", folder / model, "--faces", tmp_path / "faces",
                 "--out", tmp_path / "out", "--roc", "--pool", "max"]  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["metrics.json", "records.jsonl", "roc.png"]
    assert "| detector | frames | 2 / 2 |" in result.output
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["images"], metrics["videos"], metrics["pooling"]) == (4, 4, "max")
    assert ("text" in metrics) == (model == "adapter")
    result = CliRunner().invoke(app, [*map(str, arguments), "--pairs", "3"])
    assert "judged as they are" in str(result.exception)


def test_evaluate_says_what_it_cannot_measure(folder, faces, tmp_path):
    for model, given, more, message in [
        ("adapter/kfd", faces, [], "detector without a host"),
        ("adapter", faces, ["--pool", "max"], "no fakes"),
    ]:
        arguments = ["eval", "run", "--model", folder / model, "--faces", given,
                     "--out", tmp_path / "out", *more]  # fmt: skip
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert message in str(result.exception)


def test_explain_a_file_or_a_forgery(folder, faces, tmp_path):
    runner, model = CliRunner(), ["--model", str(folder / "adapter")]
    one, two = tmp_path / "one", tmp_path / "two"
    result = runner.invoke(
        app, ["explain", str(folder / "face.png"), *model, "--cropped", "--out", str(one)]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == str(one / "explanation.png")
    result = runner.invoke(app, ["explain", *model, "--faces", str(faces), "--out", str(two)])
    assert result.exit_code == 0, result.output
    assert (two / "forged.png").is_file()
    result = runner.invoke(app, ["explain", *model, "--out", str(two)])
    assert "either a photograph or --faces" in str(result.exception)


def test_a_pseudo_word_from_faces_to_a_table(folder, tmp_path):
    """forge, train pseudo-word and eval pseudo-word, one after the other."""
    faces = [tiny.face(i, split="test" if i == 3 else "train") for i in range(4)]
    save_faces(faces, tmp_path / "faces", {})
    runner = CliRunner()

    def run(*arguments):
        result = runner.invoke(app, [*map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    for split, pairs in (("train", 3), ("test", 2)):
        run("data", "forge", "--faces", tmp_path / "faces", "--split", split, "--pairs", pairs,
            "--size", 32, "--out", tmp_path / split / "faces")  # fmt: skip
    # The training's folder is another set than the test's.
    listing = "path,label,set\n" + "".join(
        f"faces/{name}/{file.name},{name},seen-{name}\n"
        for name in ("real", "fake")
        for file in sorted((tmp_path / "train/faces" / name).iterdir())
    )
    (tmp_path / "train/list.csv").write_text(listing)
    run("train", "pseudo-word", "--base-model", folder / "host",
        "--data", tmp_path / "train/list.csv", "--epochs", 1, "--placement", "prefix",
        "--out", tmp_path / "word")  # fmt: skip
    table = run("eval", "pseudo-word", "--word", tmp_path / "word",
                "--data", tmp_path / "test/faces", "--data", tmp_path / "train/list.csv",
                "--out", tmp_path / "evaluation", "--device", "cpu")  # fmt: skip
    rows = {line.split()[0]: line.split() for line in table.splitlines()}
    assert rows["seen-fake"][-1] == "yes"
    assert rows["fake"][-1] == "no"
    assert (rows["held_in"][1], rows["held_out"][1], rows["all"][1]) == ("6", "4", "10")
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert metrics["held_out"]["auc"] is not None


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("adapter", ["--base-model", "none", "--kfd", "none", "--data", "none"]),
        ("pseudo-word", ["--base-model", "none", "--data", "none"]),
    ],
)
def test_a_folder_of_something_else_is_refused_before_anything_is_loaded(
    tmp_path, command, options
):
    (tmp_path / "mine.txt").write_text("keep")
    result = CliRunner().invoke(app, ["train", command, *options, "--out", str(tmp_path)])
    assert isinstance(result.exception, ValueError)
    assert "is not an earlier output of this; give another --out" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def _writing():
    """Every command and option that names a file or folder to write."""
    pending = [((), typer.main.get_command(app))]
    while pending:
        words, command = pending.pop()
        for name, inner in getattr(command, "commands", {}).items():
            pending.append(((*words, name), inner))
        for option in command.params:
            if option.name in ("out", "overlay"):
                yield pytest.param([*words, option.opts[0]], id=" ".join(words))


@pytest.mark.parametrize("words", list(_writing()))
def test_what_cannot_be_written_is_refused_before_anything_is_read(tmp_path, words):
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, [*words, str(tmp_path / "file/out")])
    assert isinstance(result.exception, NotADirectoryError)
    assert sentence(result.exception) == f"{tmp_path / 'file/out'}: Not a directory"
    assert "Missing option" not in result.output


def test_what_the_system_refuses_is_one_line_and_exit_status_2(tmp_path):
    (tmp_path / "file").touch()
    result = _run("data", "forge", "--faces", tmp_path, "--out", tmp_path / "file/out")
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path / 'file/out'}: Not a directory\n"


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"llava-forgery {llava_forgery.__version__}\n")
