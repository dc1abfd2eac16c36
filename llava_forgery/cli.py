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
Quantization = Annotated[
    str | None, typer.Option("--quantization", help="4bit or 8bit: hold the host's weights so.")
]
Dtype = Annotated[
    str, typer.Option("--dtype", help="Of the host's weights: auto, float32, bfloat16, float16.")
]
DeepSpeed = Annotated[
    Path | None,
    typer.Option("--deepspeed", help="DeepSpeed's JSON file, such as scripts/zero2.json."),
]
Images = Annotated[
    list[Path],
    typer.Option(
        "--data", help="Folder with real/ and fake/, or CSV path,label[,set]; repeatable."
    ),
]
Word = Annotated[Path, typer.Option("--word", help="Folder of a pseudo-word.")]


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
    lora_dropout: Annotated[float, typer.Option(help="LoRA's dropout.")] = 0.1,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    align_steps: Annotated[
        int, typer.Option(help="Steps of the FPL's warm start without the host; 0: none.")
    ] = 400,
    batch_size: Annotated[int, typer.Option(help="Conversations for each step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    fpl_learning_rate: Annotated[
        float | None, typer.Option(help="The FPL's; by default a tenth of it after a warm start.")
    ] = None,
    accumulate: Annotated[int, typer.Option(help="Passes whose gradients make one step.")] = 1,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Compute the host's layers twice to keep less in memory.")
    ] = False,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    deepspeed: DeepSpeed = None,
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
    model, processor = load_host(Path.cwd(), host, quantization, dtype=dtype)
    settings = LoraSettings(r=lora_r, alpha=lora_alpha, dropout=lora_dropout) if lora else None
    vlm = attach_forgery(model, processor, detector, lora=settings, seed=seed)
    train_adapter(
        vlm,
        datasets.load_from_disk(str(data)),
        out,
        steps=steps,
        align_steps=align_steps,
        batch_size=batch_size,
        accumulate=accumulate,
        save_steps=save_steps,
        learning_rate=learning_rate,
        fpl_learning_rate=fpl_learning_rate,
        seed=seed,
        resume=resume,
        report_to=report_to,
        gradient_checkpointing=gradient_checkpointing,
        deepspeed=deepspeed,
    )


@app.command()
def forge(
    faces: Faces,
    out: Out,
    pairs: Annotated[int, typer.Option(help="Forged faces; as many pristine ones.")] = 400,
    split: Annotated[str, typer.Option(help="Whose faces: train or test.")] = "train",
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 224,
    seed: Seed = 1,
) -> None:
    """Write simulated forgeries and pristine faces as the folders real/ and fake/."""
    from llava_forgery.faces.records import load_faces
    from llava_forgery.simulate.pairs import FacePairs
    from llava_forgery.train.forge import forge_folders

    forge_folders(FacePairs(load_faces(faces, split=split), pairs, size=size, seed=seed), out)


@app.command()
def train_pseudo_word(
    host: Annotated[str, typer.Option("--host", help="Host's folder or hub name.")],
    data: Images,
    out: Out,
    question: Annotated[str, typer.Option(help="Without the pseudo-word.")] = "Is this photo real?",
    placement: Annotated[
        str, typer.Option(help="Where [*] goes: postfix, prefix or replace (of 'real').")
    ] = "postfix",
    real_answer: Annotated[str, typer.Option(help="Answer for a real photo.")] = "yes",
    fake_answer: Annotated[str, typer.Option(help="Answer for a fake one.")] = "no",
    initial_word: Annotated[
        str | None, typer.Option(help="Word to start from; default: drawn like the vocabulary.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the photos.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Photos for each step and process.")] = 6,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-5,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.05,
    save_steps: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; default: none.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that read photos.")] = 0,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    deepspeed: DeepSpeed = None,
    seed: Seed = 0,
    resume: Resume = False,
    report_to: ReportTo = "none",
) -> None:
    """AntifakePrompt: train the embedding of one pseudo-word on real and fake photos."""
    from llava_forgery.hosts.checkpoint import load_host
    from llava_forgery.hosts.pseudo_word import PseudoWordConfig, attach_pseudo_word
    from llava_forgery.train.labelled import read_sources
    from llava_forgery.train.pseudo_word import train_pseudo_word as run

    config = PseudoWordConfig(question, placement, real_answer, fake_answer, initial_word)
    images = read_sources(data)
    model, processor = load_host(Path.cwd(), host, quantization, dtype=dtype)
    run(
        attach_pseudo_word(model, processor, config, seed),
        images,
        out,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        save_steps=save_steps,
        workers=workers,
        resume=resume,
        report_to=report_to,
        deepspeed=deepspeed,
    )


@app.command()
def evaluate_pseudo_word(
    word: Word,
    data: Images,
    out: Out,
    batch_size: Annotated[int, typer.Option(help="Photos at once.")] = 8,
    host: Host = None,
    device: Device = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
) -> None:
    """Accuracy of a pseudo-word by folder, of those in training and the others apart."""
    from llava_forgery.evaluation.pseudo_word import evaluate_pseudo_word as run
    from llava_forgery.evaluation.pseudo_word import table_of
    from llava_forgery.hosts.checkpoint import load_host, place_host
    from llava_forgery.hosts.pseudo_word_checkpoint import (
        load_pseudo_word,
        read_pseudo_word_config,
    )
    from llava_forgery.train.labelled import read_sources

    images = read_sources(data)
    name = host or read_pseudo_word_config(word)["host"]["name_or_path"]
    model, processor = load_host(word, name, quantization, dtype=dtype)
    vlm = load_pseudo_word(word, place_host(model, device), processor)
    typer.echo(table_of(run(vlm, images, out, batch_size=batch_size)))


@app.command()
def evaluate(
    model: Model,
    faces: Faces,
    out: Out,
    pairs: Annotated[
        int | None, typer.Option(help="Forged faces; default: two for each test face.")
    ] = None,
    host: Host = None,
    device: Device = None,
    seed: Seed = 2,
) -> None:
    """Measure a model on forgeries simulated from the test faces."""
    from llava_forgery.evaluation.simulated import evaluate_simulated
    from llava_forgery.faces.records import load_faces
    from llava_forgery.simulate.pairs import CENTRED, FacePairs

    rows = load_faces(faces, split="test")
    predictor = _load_predictor(model, host, device)
    source = FacePairs(
        rows, pairs or 2 * len(rows), size=predictor.size, seed=seed, framing=CENTRED
    )
    metrics = evaluate_simulated(predictor, source, out)
    typer.echo(json.dumps(metrics, indent=2))


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


def _load_predictor(model: Path, host: str | None, device: str | None):
    """Load quietly: a bar for the reading of weights says nothing about the user's files."""
    from transformers.utils.logging import disable_progress_bar

    from llava_forgery.infer.predictor import ForgeryPredictor

    disable_progress_bar()
    # peft asks transformers for a name that is to go: nothing that a user can change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
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


# For launchers that start a module in several processes, such as torchrun and deepspeed.
if __name__ == "__main__":
    main()
