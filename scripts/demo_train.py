"""The embedded default, from faces to an answer, on two CPU cores.

    bash scripts/demo.sh --train [--faces DIR] [--out DIR]

It finds the faces of photographs (of samples/ by default), splits them by identity, trains a tiny
detector and the forgery adapter of a small LLaVA, evaluates both on people who were not in
training, and prints a table. Each step calls the function of a command: data prepare, convert
efficientnet, train detector, convert small-llava, data build-qa, train adapter, eval run.
"""

import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from llava_forgery.cli.app import run
from llava_forgery.cli.options import writable_folder
from llava_forgery.convert.sources import import_efficientnet, load_trunk
from llava_forgery.data.build_qa import build_conversations
from llava_forgery.evaluation.simulated import evaluate_simulated
from llava_forgery.faces.prepare import prepare
from llava_forgery.faces.records import load_faces
from llava_forgery.files import write_json
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.small_llava import build_small_llava
from llava_forgery.hosts.transformers.loading import load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.simulate.degrade import DegradeConfig
from llava_forgery.simulate.pairs import CENTRED, FacePairs
from llava_forgery.train.adapter import train_adapter
from llava_forgery.train.stage1 import train_kfd
from llava_forgery.train.warmup import further_forgeries

logger = logging.getLogger("demo")

SEED = 0
TEST_SHARE = 0.25
SAMPLES = Path(__file__).parents[1] / "samples"


@dataclass(frozen=True)
class Sizes:
    """Sizes of all steps."""

    kfd_steps: int
    qa_pairs: int
    fpl_warmup_pairs: int
    fpl_warmup_steps: int
    adapter_steps: int
    test_pairs: int


# The warm start is cheap and learns the regions: it gets most of the forgeries.
FULL = Sizes(
    kfd_steps=340, qa_pairs=350, fpl_warmup_pairs=1800, fpl_warmup_steps=900,
    adapter_steps=140, test_pairs=60,
)  # fmt: skip
REDUCED = Sizes(
    kfd_steps=12, qa_pairs=16, fpl_warmup_pairs=8, fpl_warmup_steps=20, adapter_steps=4,
    test_pairs=8,
)  # fmt: skip
# On two cores a step's time grows with its tokens, and more steps learn more: hence small batches
# of mostly short conversations.
CONVERSATIONS_PER_STEP = 4
WORDING = {"follow_ups": 0.15, "max_turns": 3, "task_descriptions": 0.25, "kfd_results": 0.75}
ADAPTER_LEARNING_RATE = 2e-3
# Dropout before every LoRA takes an eighth of a step's time here.
LORA = LoraSettings(r=32, alpha=64, dropout=0.0)


def main(
    faces: Annotated[
        Path, typer.Option(help="Folder of photographs.", show_default="samples/")
    ] = SAMPLES,
    out: Annotated[Path, typer.Option(help="Folder to write.", callback=writable_folder)] = Path(
        "demo-out"
    ),
    identity_pattern: Annotated[
        str,
        typer.Option(
            help="Regular expression for file names whose group is the identity; default: the part "
            "before the first underscore."
        ),
    ] = r"^([^_]+)_",
    reduced: Annotated[
        bool, typer.Option("--reduced", help="Tiny sizes, to see that everything runs.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the finished steps of an interrupted demo.")
    ] = False,
) -> None:
    """Run the demo and write summary.json, overlays/, dialogue.md and adapter/ into OUT."""
    started = time.monotonic()
    sizes = REDUCED if reduced else FULL
    if out.exists() and any(out.iterdir()) and not resume:
        raise ValueError(f"{out} is not empty; give another --out, or --resume to continue in it")
    work = out / "work"

    step("faces")
    if not (work / "faces/faces").is_dir():
        check_identities(faces, identity_pattern)
        prepare(
            faces,
            work / "faces",
            identity_pattern=identity_pattern,
            test_share=TEST_SHARE,
            seed=SEED,
        )
    train, test = (load_faces(work / "faces", split=split) for split in ("train", "test"))

    step("detector (stage 1)")
    if not (out / "kfd/kfd_config.json").is_file():
        detector = KnowledgeGuidedForgeryDetector.from_preset("tiny", SEED)
        import_efficientnet(work / "trunk.safetensors")
        load_trunk(detector, work / "trunk.safetensors")
        train_kfd(detector, train, out / "kfd", steps=sizes.kfd_steps, seed=SEED, resume=resume)
    detector = KnowledgeGuidedForgeryDetector.from_pretrained(out / "kfd")
    side = detector.config.encoder.image_size

    step("host")
    if not (out / "host").is_dir():
        build_small_llava(out / "host", SEED)

    step("forgery adapter (stage 2)")
    if not (out / "adapter").is_dir():
        pairs = FacePairs(
            train,
            sizes.qa_pairs,
            size=side,
            seed=SEED,
            degradation=DegradeConfig(),
            role="stage2",
        )
        conversations = build_conversations(
            pairs, detector, work / "conversations", seed=SEED, **WORDING
        )
        model, processor = load_host(Path.cwd(), str(out / "host"))
        vlm = attach_forgery(model, processor, detector, lora=LORA, seed=SEED)
        train_adapter(
            vlm,
            conversations,
            out / "adapter",
            steps=sizes.adapter_steps,
            fpl_warmup_steps=sizes.fpl_warmup_steps,
            fpl_warmup_pairs=further_forgeries(train, sizes.fpl_warmup_pairs, detector, SEED),
            batch_size=CONVERSATIONS_PER_STEP,
            learning_rate=ADAPTER_LEARNING_RATE,
            seed=SEED,
            resume=resume,
        )

    step("evaluation on people who were not in training")
    predictor = ForgeryPredictor.from_pretrained(out / "adapter")
    pairs = FacePairs(test, sizes.test_pairs, size=side, seed=SEED, framing=CENTRED, role="test")
    metrics = evaluate_simulated(predictor, pairs, out)
    summary = {
        "faces": len(train) + len(test),
        "train_identities": len(set(train["identity"])),
        "test_identities": len(set(test["identity"])),
        **metrics,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(out / "summary.json", summary)
    print_table(summary, out)


def step(name: str) -> None:
    """Log the next step."""
    logger.info("--- %s", name)


def check_identities(faces: Path, pattern: str) -> None:
    """Check that people are told apart; otherwise the same face is in training and in test.

    Raises:
        ValueError: The pattern finds fewer than four people.
    """
    names = [path.name for path in faces.rglob("*") if path.is_file()] if faces.is_dir() else []
    found = {match.group(1) for name in names if (match := re.search(pattern, name))}
    if names and len(found) < 4:
        raise ValueError(
            f"{pattern!r} finds {len(found)} people in the file names of {faces}, at least 4 are "
            "needed; give --identity-pattern, such as '^(.*)\\.' if every file is another person"
        )


def print_table(summary: dict[str, Any], out: Path) -> None:
    """Print the summary."""
    kfd, text = summary["kfd"], summary["text"]
    rows = [
        ("detector: AUC", kfd["auc"]),
        ("detector: average precision", kfd["ap"]),
        ("detector: mask IoU", kfd["mask_iou"]),
        ("answer: AUC of P(yes)", text["auc"]),
        ("answer: average precision", text["ap"]),
        ("answer: accuracy", text["accuracy"]),
        ("answer: region F1", summary["regions_f1"]),
        ("detector and answer agree", summary["agreement"]),
    ]
    people = (
        f"{summary['train_identities']} people in training, {summary['test_identities']} in test"
    )
    print(f"\n{summary['faces']} faces, {people}, {summary['images']} test images")
    for name, value in rows:
        print(f"  {name:<30}{value:8.3f}")
    print(f"  {'answer: not understood':<30}{text['unparsed']:8d}")
    print(f"  {'seconds':<30}{summary['seconds']:8.0f}")
    print(f"\nPictures in {out / 'overlays'}, a dialogue in {out / 'dialogue.md'}. Try:")
    print(f"  llava-forgery detect PHOTO --model {out / 'adapter'} --overlay maps")


if __name__ == "__main__":
    run(lambda: typer.run(main), "%(message)s")
