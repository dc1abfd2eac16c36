"""lmms-eval's own command line on simulated forgeries of photographs, with ours and its model."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from peft import PeftModel
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava_forgery.data.export_eval import export_simulated
from llava_forgery.evaluation.metrics import auc, average_precision, video_level
from llava_forgery.faces.prepare import prepare
from llava_forgery.faces.records import load_faces
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.integrations.lmms_eval.data import VARIABLE
from llava_forgery.noise import LINES
from llava_forgery.simulate.pairs import CENTRED, FacePairs
from tests import tiny

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "eval/run_lmms_eval.sh"
SHORT = ["--gen_kwargs", "max_new_tokens=4", "--verbosity", "WARNING"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photographs(samples_dir, tmp_path_factory):
    """Two forgeries of each of three photographs, and as many pristine ones."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "in").mkdir()
    for photo in sorted(samples_dir.rglob("*.jpg"))[:3]:
        shutil.copy(photo, folder / "in" / photo.name)
    prepare(folder / "in", folder / "faces")
    pairs = FacePairs(load_faces(folder / "faces"), 6, size=tiny.SIZE, seed=0, framing=CENTRED)
    export_simulated(pairs, folder / "data")
    return folder / "data"


def _environment(data):
    inherited = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    return {
        **inherited, "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1", VARIABLE: str(data),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip


def _run(command, data, **variables):
    environment = {**_environment(data), **variables}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, timeout=1800
    )


def _script(out, data, *arguments, **variables):
    return _run(["bash", SCRIPT, data, out, *arguments, *SHORT], data, **variables)


def _figures(out, task="forgery_detect"):
    (file,) = out.rglob("*_results.json")
    found = json.loads(file.read_text())["results"][task]
    return {key.removesuffix(",none"): value for key, value in found.items()}


def _direct(adapter, data):
    """(video AUC, video AP) of the predictor's P(yes)."""
    predictor = ForgeryPredictor.from_pretrained(adapter, device="cpu")
    predictor.max_new_tokens = 4
    rows = datasets.load_from_disk(str(data))["test"]
    p_yes = [predictor.predict(row["image"], cropped=True).p_yes for row in rows]
    videos = video_level(p_yes, rows["video_id"][:], rows["label"][:])
    assert len(videos.labels) == 6
    return auc(videos.labels, videos.scores), average_precision(videos.labels, videos.scores)


def test_command_of_the_readme(adapter, photographs, tmp_path):
    command = [
        sys.executable, "-m", "lmms_eval", "eval", "--model", "llava_forgery", "--model_args",
        f"adapter={adapter},device=cpu", "--tasks", "forgery_detect", "--include_path",
        ROOT / "eval/lmms_tasks", "--output_path", tmp_path, *SHORT,
    ]  # fmt: skip
    result = _run(command, photographs)
    assert result.returncode == 0, result.stderr
    assert not re.search("|".join(LINES.values()), result.stdout + result.stderr)
    assert "|video_auc" in result.stdout
    assert "|video_ap" in result.stdout
    found = _figures(tmp_path)
    assert (found["video_auc"], found["video_ap"]) == pytest.approx(
        _direct(adapter, photographs), abs=1e-9
    )
    assert found["p_yes_from_likelihood"] == 1


def test_two_ranks_say_the_same(adapter, photographs, tmp_path):
    result = _script(
        tmp_path, photographs, "--model", "llava_forgery", "--model_args",
        f"adapter={adapter},device=cpu", "--tasks", "forgery_detect", PROCESSES="2",
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = _figures(tmp_path)
    assert (found["video_auc"], found["video_ap"]) == pytest.approx(
        _direct(adapter, photographs), abs=1e-9
    )


def test_lmms_evals_own_llava(adapter, photographs, tmp_path):
    """On the bare host; transformers 5 wants the device in device_map too."""
    host = adapter.parent / "host"
    result = _script(
        tmp_path, photographs, "--model", "llava_hf", "--model_args",
        f"pretrained={host},device=cpu,device_map=cpu", "--tasks", "forgery_detect",
        "--log_samples",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    found = _figures(tmp_path)
    assert found["p_yes_from_likelihood"] == 0
    assert 0 <= found["video_auc"] <= 1
    (samples,) = tmp_path.rglob("*_samples_forgery_detect.jsonl")
    said = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    # llava_hf gives an empty answer where it fails.
    assert len(said) == 12
    assert any(said)
    assert "in generating" not in result.stdout


def test_rows_of_a_table_see_the_same_and_say_who_used_the_skill(adapter, photographs, tmp_path):
    """The bare host, the host with the adapter's LoRA alone, and the skill; AUC as predicted."""
    host, merged = adapter.parent / "host", tmp_path / "merged"
    processor = AutoProcessor.from_pretrained(host)
    model = PeftModel.from_pretrained(LlavaForConditionalGeneration.from_pretrained(host), adapter)
    model.merge_and_unload().save_pretrained(merged)
    processor.save_pretrained(merged)
    on_cpu = "device=cpu,device_map=cpu"
    result = _script(
        tmp_path / "out", photographs,
        "--row", f"bare=llava_hf:pretrained={host},{on_cpu}",
        "--row", f"lora=llava_hf:pretrained={merged},{on_cpu}",
        "--row", f"skill=llava_forgery:pretrained={adapter},device=cpu",
        "--tasks", "forgery_detect",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    bare, lora, skill = json.loads((tmp_path / "out/table.json").read_text())
    assert bare["fpl_calls"] == lora["fpl_calls"] == 0 < skill["fpl_calls"]
    rows = datasets.load_from_disk(str(photographs))["test"]
    # Some of the pristine images are of two forgeries.
    shown = len({row["image"].convert("RGB").tobytes() for row in rows})
    assert [row["pictures"] for row in (bare, lora, skill)] == [shown] * 3
    assert 6 < shown <= 12
    assert (tmp_path / "out/table.md").read_text() in result.stdout
    found = (
        skill["figures"]["forgery_detect: video_auc"],
        skill["figures"]["forgery_detect: video_ap"],
    )
    assert found == pytest.approx(_direct(adapter, photographs), abs=1e-6)


def test_a_row_that_fails_names_itself(photographs, tmp_path):
    result = _script(tmp_path, photographs, "--row", "skill=llava_forgery:adapter=nowhere")
    assert result.returncode == 2
    assert "the row 'skill' failed" in result.stderr
    assert not (tmp_path / "table.md").exists()


def test_no_results_is_a_failure(photographs, tmp_path):
    result = _script(
        tmp_path, photographs, "--model", "llava_forgery", "--model_args", "adapter=nowhere"
    )
    assert result.returncode == 1
    assert "wrote no results" in result.stderr
    assert "no folder nowhere" in result.stdout + result.stderr
