"""Commands that measure models and explain their verdicts."""

from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.cli.app import app, evaluation, load_predictor
from llava_forgery.cli.options import (
    AllowDownload,
    Backend,
    BaseModel,
    Cropped,
    Device,
    Dtype,
    FaceFinder,
    Faces,
    Images,
    MaxPixels,
    Model,
    Out,
    Quantization,
    Seed,
    Uncited,
    Word,
)

AnyModel = Annotated[
    Path, typer.Option("--model", help="Folder of a forgery adapter, or of a detector.")
]


@evaluation.command("run")
def evaluate(
    model: AnyModel,
    faces: Faces,
    out: Out,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    pairs: Annotated[
        int | None,
        typer.Option(help="Forged faces if all are real; default: two for each face."),
    ] = None,
    as_is: Annotated[
        bool,
        typer.Option(
            "--as-is", help="Do not forge faces that are all real; gives the false-positive rate."
        ),
    ] = False,
    pool: Annotated[
        str | None,
        typer.Option(
            help="How frames of a video are pooled, if faces are judged as they are: mean "
            "(default), median, max or top_k."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images judged at once.")] = 16,
    web: Annotated[
        bool,
        typer.Option(
            help="Score simulated forgeries a second time, resized and compressed as on the web."
        ),
    ] = True,
    attributes: Annotated[
        Path | None,
        typer.Option(
            help="CSV of people (identity, and columns such as sex, age, skin_tone) for figures "
            "by group."
        ),
    ] = None,
    roc: Annotated[
        bool, typer.Option("--roc", help="Also draw roc.png, the ROC curves with intervals.")
    ] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Write the figures into the adapter's model card.")
    ] = False,
    uncited: Uncited = False,
    base_model: BaseModel = None,
    backend: Backend = "auto",
    device: Device = None,
    allow_download: AllowDownload = False,
    seed: Seed = 2,
) -> None:
    """Measure a model on faces of both labels as they are, or on forgeries of real ones.

    A benchmark's faces give figures of frames, of videos, and by method; faces of one label the
    error rate, with a null AUC. If all faces are real, the simulator forges them unless --as-is is
    given, with figures of regions and masks, pictures and a dialogue. Prints a table; all figures
    are in OUT/metrics.json. An interrupted run resumes when it is repeated.
    """
    from llava_forgery.constants import FAKE
    from llava_forgery.evaluation.card import write_figures
    from llava_forgery.evaluation.groups import read_attributes
    from llava_forgery.evaluation.labelled import evaluate_labelled
    from llava_forgery.evaluation.scorers import load_scorer
    from llava_forgery.evaluation.simulated import draw_roc, evaluate_simulated
    from llava_forgery.evaluation.summary import summary_table
    from llava_forgery.faces.records import load_faces
    from llava_forgery.hosts.names import CARD
    from llava_forgery.kfd.checkpoint import CONFIG as KFD_CONFIG
    from llava_forgery.pooling import check_reduction
    from llava_forgery.simulate.pairs import CENTRED, FacePairs

    if card and not (model / CARD).is_file():
        raise ValueError(f"{model} holds no {CARD}, the model card of an adapter; drop --card")
    people = None if attributes is None else read_attributes(attributes)
    rows = load_faces(faces, split=None if split == "all" else split)
    labels = set(rows["label"])
    if FAKE in labels or as_is:
        if pairs is not None:
            raise ValueError(f"the faces of {faces} are judged as they are; drop --pairs")
        if roc and len(labels) < 2:
            raise ValueError(
                f"a ROC curve needs real and fake faces, but the {split} split of {faces} holds "
                f"only {'fakes' if FAKE in labels else 'real ones'}; drop --roc"
            )
        reduce = pool or "mean"
        check_reduction(reduce)
        scorer = load_scorer(
            model,
            base_model,
            backend,
            device=device,
            allow_download=allow_download,
            uncited=uncited,
        )
        metrics = evaluate_labelled(
            scorer,
            rows,
            out,
            batch_size=batch_size,
            reduce=reduce,
            thresholds=scorer.thresholds,
            attributes=people,
        )
        groups, of = "video_id", "labelled faces"
    else:
        if pool is not None:
            raise ValueError(
                f"{faces} holds no fakes, and forgeries of single faces are not videos to --pool; "
                "drop it, or judge the faces --as-is"
            )
        if (model / KFD_CONFIG).is_file():
            raise ValueError(
                f"{model} is a detector without a host, which is measured on faces with labels of "
                f"their own, but {faces} holds only real ones; give --as-is for its false-positive "
                "rate, or an adapter, or see `eval robustness`"
            )
        predictor = load_predictor(model, base_model, backend, device, None, allow_download)
        count = 2 * len(rows) if pairs is None else pairs
        source = FacePairs(
            rows, count, size=predictor.size, seed=seed, framing=CENTRED, role="test"
        )
        # Each pair has two images.
        metrics = evaluate_simulated(
            predictor,
            source,
            out,
            batch_size=max(1, batch_size // 2),
            web=web,
            uncited=uncited,
            attributes=people,
        )
        groups, of = "identity", "simulated forgeries"
    if roc:
        draw_roc(out, groups, of)
    if card:
        write_figures(model, metrics, of)
    typer.echo(summary_table(metrics), nl=False)


@evaluation.command("pseudo-word")
def evaluate_pseudo_word(
    word: Word,
    data: Images,
    out: Out,
    batch_size: Annotated[int, typer.Option(help="Photos at once.")] = 8,
    base_model: BaseModel = None,
    device: Device = None,
    allow_download: AllowDownload = False,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
) -> None:
    """Accuracy of a pseudo-word by folder, separately for those in training and others.

    An interrupted run resumes when it is repeated.
    """
    from llava_forgery.data.labelled import read_sources
    from llava_forgery.downloads import allow_downloads
    from llava_forgery.evaluation.pseudo_word import evaluate_pseudo_word as run
    from llava_forgery.evaluation.pseudo_word import table_of
    from llava_forgery.hosts.pseudo_word import load_pseudo_word
    from llava_forgery.hosts.pseudo_word_checkpoint import CONFIG, read_pseudo_word_config
    from llava_forgery.hosts.quantized import place_host
    from llava_forgery.hosts.transformers.loading import load_named_host
    from llava_forgery.hub import local_folder

    images, word = read_sources(data), local_folder(word)
    read_pseudo_word_config(word)
    with allow_downloads(allow_download):
        model, processor = load_named_host(word / CONFIG, base_model, quantization, dtype=dtype)
    vlm = load_pseudo_word(word, place_host(model, device, dtype), processor)
    typer.echo(table_of(run(vlm, images, out, batch_size=batch_size)))


@evaluation.command("robustness")
def robustness(
    model: AnyModel,
    faces: Faces,
    out: Out,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    pairs: Annotated[
        int | None,
        typer.Option(help="Forged faces if all are real; default: two for each face."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Kind of change; repeatable; default: all."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images judged at once.")] = 16,
    base_model: BaseModel = None,
    backend: Backend = "auto",
    device: Device = None,
    allow_download: AllowDownload = False,
    seed: Seed = 2,
) -> None:
    """Measure how compression, blur and other changes of the pictures lower the AUC.

    Faces of both labels are judged as they are; if all are real, the simulator forges them. An
    interrupted run resumes when it is repeated.
    """
    from llava_forgery.evaluation.images import evaluation_images
    from llava_forgery.evaluation.perturb import choose_perturbations
    from llava_forgery.evaluation.robustness import measure_robustness, write_robustness
    from llava_forgery.evaluation.scorers import load_scorer
    from llava_forgery.faces.records import load_faces

    kinds = choose_perturbations(only)
    rows = load_faces(faces, split=split)
    scorer = load_scorer(model, base_model, backend, device=device, allow_download=allow_download)
    images = evaluation_images(rows, scorer.size, pairs=pairs, seed=seed)
    points = measure_robustness(
        scorer, images, kinds, seed=seed, batch_size=batch_size, output_dir=out
    )
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
    max_pixels: MaxPixels = None,
    detector: FaceFinder = None,
    base_model: BaseModel = None,
    backend: Backend = "auto",
    device: Device = None,
    allow_download: AllowDownload = False,
    seed: Seed = 2,
) -> None:
    """Draw explanations of the largest face's verdict: mask, Grad-CAM, consistency maps."""
    from llava_forgery.faces.records import load_faces
    from llava_forgery.infer.explain import explain_pair, explain_photograph
    from llava_forgery.simulate.pairs import CENTRED, FacePairs
    from llava_forgery.tensors import to_bytes

    if (image is None) == (faces is None):
        raise ValueError("give either a photograph or --faces")
    if faces is not None and detector is not None:
        raise ValueError("the faces of --faces are already found; omit --face-detector")
    if image is not None:
        predictor = load_predictor(model, base_model, backend, device, detector, allow_download)
        written = explain_photograph(predictor, image, out, cropped)
    else:
        rows = load_faces(faces, split="test")
        predictor = load_predictor(model, base_model, backend, device, None, allow_download)
        # The forgeries that `eval run` judges with the same seed.
        pairs = FacePairs(
            rows, pair + 1, size=predictor.size, seed=seed, framing=CENTRED, role="test"
        )
        forgery = pairs[pair]
        written = explain_pair(
            predictor,
            to_bytes(forgery.forged),
            to_bytes(forgery.pristine),
            forgery.mask[0].numpy(),
            forgery.regions,
            out,
        )
    for path in written:
        typer.echo(path)
