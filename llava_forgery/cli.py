"""The command ``llava-forgery``: one subcommand for each step from photographs to an answer."""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Forgery skills for LLaVA-style vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Faces = Annotated[Path, typer.Option("--faces", help="Folder written by prepare.")]
Model = Annotated[Path, typer.Option("--model", help="Folder of a forgery adapter.")]
Host = Annotated[
    str | None,
    typer.Option("--host", help="Host's folder or hub name; default: the one the adapter names."),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda ...; default: a GPU if there is one.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Cropped = Annotated[
    bool,
    typer.Option("--cropped", help="The files are face crops already: no face is looked for."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")]
ReportTo = Annotated[str, typer.Option("--report-to", help="none, tensorboard or wandb.")]


@app.command()
def prepare(
    src: Annotated[Path, typer.Argument(help="Photograph, or folder of photographs.")],
    out: Out,
    size: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 320,
    margin: Annotated[
        float, typer.Option(help="Space around the landmarks, as a share of their box's side.")
    ] = 0.4,
    identities: Annotated[
        Path | None, typer.Option(help="CSV with the columns file and identity.")
    ] = None,
    identity_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression over the file name whose group is the identity."),
    ] = None,
    test_share: Annotated[
        float, typer.Option(help="Share of the identities that are kept for testing.")
    ] = 0.0,
    seed: Seed = 0,
) -> None:
    """Turn photographs into face crops with landmarks and identities."""
    from llava_forgery.faces.prepare import prepare as run

    report = run(
        src,
        out,
        size=size,
        margin=margin,
        identities_csv=identities,
        identity_pattern=identity_pattern,
        test_share=test_share,
        seed=seed,
    )
    typer.echo(
        f"{report.faces} faces in {report.files} images; {len(report.skipped)} images were left "
        f"out, see {out / 'report.json'}",
        err=True,
    )


@app.command()
def generate_faces(
    out: Out,
    identities: Annotated[int, typer.Option(help="Number of drawn people.")] = 60,
    photos: Annotated[int, typer.Option(help="Pictures of each.")] = 2,
    size: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 320,
    test_share: Annotated[
        float, typer.Option(help="Share of the identities that are kept for testing.")
    ] = 0.25,
    seed: Seed = 0,
) -> None:
    """Draw faces by program, where there are no photographs."""
    from llava_forgery.faces.generated import generate_faces as run

    run(out, identities=identities, photos=photos, size=size, test_share=test_share, seed=seed)


@app.command()
def import_efficientnet(
    out: Annotated[Path, typer.Option("--out", help="safetensors file to write.")],
) -> None:
    """Bring the trunk's ImageNet weights into safetensors."""
    from llava_forgery.kfd.imports import import_efficientnet as run

    run(out)


@app.command()
def make_small_llava(out: Out, seed: Seed = 0) -> None:
    """Build the demo's host: a small LLaVA around SmolLM2-135M-Instruct."""
    from llava_forgery.hosts.small_llava import build_small_llava

    build_small_llava(out, seed)


@app.command()
def train_kfd(
    faces: Faces,
    out: Out,
    preset: Annotated[str, typer.Option(help="tiny or paper.")] = "tiny",
    trunk_weights: Annotated[
        Path | None, typer.Option(help="safetensors to start a timm trunk from.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 220,
    batch_size: Annotated[int, typer.Option(help="Pairs for each step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    workers: Annotated[int, typer.Option(help="Processes that simulate forgeries.")] = 1,
    seed: Seed = 0,
    resume: Resume = False,
    report_to: ReportTo = "none",
) -> None:
    """Stage 1: train the detector on forgeries simulated from the training faces."""
    from llava_forgery.faces.records import load_faces
    from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
    from llava_forgery.kfd.imports import load_trunk
    from llava_forgery.train.stage1 import train_kfd as run

    rows = load_faces(faces, split="train")
    detector = KnowledgeGuidedForgeryDetector.from_preset(preset, seed)
    if trunk_weights is not None:
        load_trunk(detector, trunk_weights)
    run(
        detector,
        rows,
        out,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        workers=workers,
        seed=seed,
        resume=resume,
        report_to=report_to,
    )


@app.command()
def build_qa(
    faces: Faces,
    kfd: Annotated[Path, typer.Option("--kfd", help="Folder of a trained detector.")],
    out: Out,
    pairs: Annotated[int, typer.Option(help="Forged faces; as many pristine ones.")] = 400,
    follow_ups: Annotated[
        float, typer.Option(help="Probability of follow-up turns in a conversation.")
    ] = 0.3,
    task_descriptions: Annotated[
        float, typer.Option(help="Probability of a task description at the beginning.")
    ] = 1.0,
    kfd_results: Annotated[
        float, typer.Option(help="Probability of the sentence that cites the score.")
    ] = 1.0,
    seed: Seed = 1,
) -> None:
    """Make the training conversations: forge, score, ask, answer."""
    from llava_forgery.faces.records import load_faces
    from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
    from llava_forgery.simulate.degrade import DegradeConfig
    from llava_forgery.simulate.pairs import FacePairs
    from llava_forgery.train.conversations import build_conversations

    detector = KnowledgeGuidedForgeryDetector.from_pretrained(kfd)
    source = FacePairs(
        load_faces(faces, split="train"),
        pairs,
        size=detector.config.encoder.image_size,
        seed=seed,
        degradation=DegradeConfig(),
    )
    build_conversations(
        source,
        detector,
        out,
        follow_ups=follow_ups,
        task_descriptions=task_descriptions,
        kfd_results=kfd_results,
        seed=seed,
    )


@app.command()
def finetune(
    host: Annotated[str, typer.Option("--host", help="Host's folder or hub name.")],
    kfd: Annotated[Path, typer.Option("--kfd", help="Folder of a trained detector.")],
    data: Annotated[Path, typer.Option("--data", help="Folder written by build-qa.")],
    out: Out,
    lora: Annotated[
        bool, typer.Option(help="Train LoRA beside the FPL; without it prompt tuning alone.")
    ] = True,
    lora_r: Annotated[int, typer.Option(help="LoRA's rank.")] = 32,
    lora_alpha: Annotated[int, typer.Option(help="LoRA's scale.")] = 32,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    align_steps: Annotated[
        int, typer.Option(help="Steps of the FPL's warm start without the host; 0: none.")
    ] = 400,
    batch_size: Annotated[int, typer.Option(help="Conversations for each step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    fpl_learning_rate: Annotated[
        float | None, typer.Option(help="The FPL's; by default a tenth of it after a warm start.")
    ] = None,
    seed: Seed = 0,
    resume: Resume = False,
    report_to: ReportTo = "none",
) -> None:
    """Stage 2: train the forgery adapter of a host on conversations."""
    import datasets

    from llava_forgery.hosts.checkpoint import load_host
    from llava_forgery.hosts.lora import LoraSettings
    from llava_forgery.hosts.transformers_vlm import attach_forgery
    from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
    from llava_forgery.train.stage2 import train_adapter

    detector = KnowledgeGuidedForgeryDetector.from_pretrained(kfd)
    model, processor = load_host(Path.cwd(), host)
    settings = LoraSettings(r=lora_r, alpha=lora_alpha) if lora else None
    vlm = attach_forgery(model, processor, detector, lora=settings, seed=seed)
    train_adapter(
        vlm,
        datasets.load_from_disk(str(data)),
        out,
        steps=steps,
        align_steps=align_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        fpl_learning_rate=fpl_learning_rate,
        seed=seed,
        resume=resume,
        report_to=report_to,
    )


@app.command()
def evaluate(
    model: Model,
    faces: Faces,
    out: Out,
    pairs: Annotated[
        int | None, typer.Option(help="Forged faces; default: two for each test face.")
    ] = None,
    roc: Annotated[
        bool, typer.Option("--roc", help="Draw roc.png too, the ROC curves with intervals.")
    ] = False,
    host: Host = None,
    device: Device = None,
    seed: Seed = 2,
) -> None:
    """Measure a model on forgeries simulated from the test faces."""
    from llava_forgery.evaluation.simulated import draw_roc, evaluate_simulated
    from llava_forgery.faces.records import load_faces
    from llava_forgery.simulate.pairs import CENTRED, FacePairs

    rows = load_faces(faces, split="test")
    predictor = _load_predictor(model, host, device)
    source = FacePairs(
        rows, pairs or 2 * len(rows), size=predictor.size, seed=seed, framing=CENTRED
    )
    metrics = evaluate_simulated(predictor, source, out)
    if roc:
        draw_roc(out)
    typer.echo(json.dumps(metrics, indent=2))


@app.command()
def robustness(
    model: Annotated[
        Path, typer.Option("--model", help="Folder of a forgery adapter, or of a detector.")
    ],
    faces: Faces,
    out: Out,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    pairs: Annotated[
        int | None,
        typer.Option(help="Forged faces where all are real; default: two for each face."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Kind of change, may be repeated; default: all."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images judged at once.")] = 16,
    host: Host = None,
    device: Device = None,
    seed: Seed = 2,
) -> None:
    """Measure how compression, blur and other changes of the pictures lower the AUC.

    Faces of both labels are judged as they are; real faces alone are forged by the simulator.
    """
    from llava_forgery.evaluation.images import evaluation_images
    from llava_forgery.evaluation.perturb import choose_perturbations
    from llava_forgery.evaluation.robustness import measure_robustness, write_robustness
    from llava_forgery.evaluation.scorers import load_scorer
    from llava_forgery.faces.records import load_faces

    kinds = choose_perturbations(only)
    rows = load_faces(faces, split=split)
    _be_quiet()
    scorer = load_scorer(model, host, device)
    images = evaluation_images(rows, scorer.size, pairs=pairs, seed=seed)
    points = measure_robustness(scorer, images, kinds, seed=seed, batch_size=batch_size)
    about = {
        "model": str(model),
        "faces": str(faces),
        "split": split,
        "source": images.source,
        "images": len(images),
        "seed": seed,
    }
    write_robustness(points, out, about)
    for point in points:
        typer.echo(
            f"{point.score:6} {point.perturbation:10} level {point.level}  "
            f"AUC {point.auc:.3f} [{point.low:.3f}, {point.high:.3f}]"
        )


@app.command()
def explain(
    model: Model,
    out: Out,
    image: Annotated[Path | None, typer.Argument(help="Photograph.")] = None,
    faces: Annotated[
        Path | None,
        typer.Option("--faces", help="Instead of a photograph: forge a test face of this folder."),
    ] = None,
    pair: Annotated[int, typer.Option(help="With --faces: number of the forgery.")] = 0,
    cropped: Cropped = False,
    host: Host = None,
    device: Device = None,
    seed: Seed = 2,
) -> None:
    """Draw why the largest face is called what it is: mask, Grad-CAM, consistency maps."""
    from llava_forgery.faces.records import load_faces
    from llava_forgery.infer.explain import explain_pair, explain_photograph
    from llava_forgery.simulate.pairs import CENTRED, FacePairs

    if (image is None) == (faces is None):
        raise ValueError("give either a photograph or --faces")
    if image is not None:
        written = explain_photograph(_load_predictor(model, host, device), image, out, cropped)
    else:
        rows = load_faces(faces, split="test")
        predictor = _load_predictor(model, host, device)
        # The forgeries that `evaluate` judges under the same seed.
        pairs = FacePairs(rows, pair + 1, size=predictor.size, seed=seed, framing=CENTRED)
        written = explain_pair(predictor, pairs[pair], out)
    for path in written:
        typer.echo(path)


@app.command()
def detect(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    model: Model,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of lines.")
    ] = False,
    overlay: Annotated[
        Path | None, typer.Option("--overlay", help="Folder for pictures with maps.")
    ] = None,
    cropped: Cropped = False,
    host: Host = None,
    device: Device = None,
) -> None:
    """Judge the faces in photographs.

    Exit status: 0 when every file was judged, 1 when some were not, 2 for wrong use.
    """
    from llava_forgery.infer.batch import judge_files

    predictor = _load_predictor(model, host, device)
    results = []
    for result in judge_files(predictor, paths, cropped=cropped, overlay_dir=overlay):
        results.append(result)
        if not as_json:
            typer.echo("\n".join(_lines(result)))
    if as_json:
        typer.echo(json.dumps([r.to_dict() for r in results], indent=2, ensure_ascii=False))
    if any(result.error for result in results):
        raise typer.Exit(1)


def _be_quiet() -> None:
    """A bar for the reading of weights says nothing about the user's files."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # peft asks transformers for a name that is to go: nothing that a user can change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _load_predictor(model: Path, host: str | None, device: str | None):
    from llava_forgery.infer.predictor import ForgeryPredictor

    _be_quiet()
    return ForgeryPredictor.from_pretrained(model, host, device)


def _lines(result) -> list[str]:
    """A result for people."""
    if result.error:
        return [f"{result.file}: not judged: {result.error}"]
    lines = [f"{result.file}:"]
    for face in result.faces:
        name = "fake" if face.is_fake else "real"
        agree = "" if face.agree else "  (detector and answer disagree)"
        lines.append(f"  {name}  score {face.score:.3f}  P(yes) {face.p_yes:.3f}{agree}")
        lines.append(f"        {face.answer}")
    return lines


@app.command()
def chat(
    image: Annotated[Path, typer.Argument(help="Photograph.")],
    model: Model,
    cropped: Cropped = False,
    host: Host = None,
    device: Device = None,
) -> None:
    """Talk about the largest face of a photograph; an empty line or Ctrl-D ends it."""
    predictor = _load_predictor(model, host, device)
    dialogue = predictor.dialogue(image, cropped)
    typer.echo(f"Score of the detector: {dialogue.score:.3f} (0 real, 1 fake). Ask a question.")
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            break
        if not question:
            break
        typer.echo(dialogue.ask(question))


def main() -> None:
    """Run the command; users' mistakes become one line and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "open_clip", "datasets", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        app()
    except (ValueError, FileNotFoundError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
