"""Commands that make conversations."""

from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.cli.app import data, notice
from llava_forgery.cli.options import AllowDownload, Faces, Out, Seed, writable_file


@data.command("build-qa")
def build_qa(
    faces: Faces,
    out: Out,
    kfd: Annotated[
        Path | None,
        typer.Option("--kfd", help="Folder of a trained detector; without it no scores are cited."),
    ] = None,
    as_is: Annotated[
        bool,
        typer.Option(
            "--as-is",
            help="Use the faces' own labels, as many real as fake, instead of forging; regions "
            "come from their masks.",
        ),
    ] = False,
    real_only: Annotated[
        bool, typer.Option("--real-only", help="Forge the real ones of faces of both labels.")
    ] = False,
    unmasked_region: Annotated[
        list[str] | None,
        typer.Option(
            help="With --as-is: regions of fakes without a mask, such as face for swapped faces; "
            "repeatable. Without it such fakes are an error."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the faces: train, val or test.")] = "train",
    pairs: Annotated[
        int | None, typer.Option(help="Number of forged and of pristine faces; default: 400.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the pictures; default: the detector's, or 224.")
    ] = None,
    follow_ups: Annotated[
        float, typer.Option(help="Probability of follow-up turns in a conversation.")
    ] = 0.3,
    max_turns: Annotated[int, typer.Option(help="Maximum turns of a conversation, 1 to 4.")] = 4,
    task_descriptions: Annotated[
        float, typer.Option(help="Probability of a task description at the beginning.")
    ] = 0.25,
    kfd_results: Annotated[
        float | None,
        typer.Option(
            help="Probability of the sentence that cites the score; default: 0.75 with --kfd."
        ),
    ] = None,
    vary: Annotated[bool, typer.Option(help="Vary the wordings, or use only the paper's.")] = True,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            help="For a detector on a host's vision tower: folder or hub name of that host; "
            "default: the one it was trained on.",
        ),
    ] = None,
    allow_download: AllowDownload = False,
    workers: Annotated[int, typer.Option(help="Number of processes that make the pictures.")] = 0,
    seed: Seed = 1,
) -> None:
    """Make the training conversations: forge, score, ask, answer.

    OUT is a Hugging Face data set that also contains LLaVA's JSON (conversations.json, images/). An
    interrupted run resumes when it is repeated.
    """
    from llava_forgery.constants import FAKE
    from llava_forgery.data.build_qa import build_conversations
    from llava_forgery.data.samples import LabelledSamples
    from llava_forgery.faces.records import load_faces
    from llava_forgery.hosts.quantized import pick_device
    from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
    from llava_forgery.simulate.degrade import DegradeConfig
    from llava_forgery.simulate.pairs import FacePairs, load_real_faces

    detector = None
    if kfd is not None:
        detector = KnowledgeGuidedForgeryDetector.from_pretrained(
            kfd, base_model=base_model, allow_download=allow_download
        ).to(pick_device())
        needed = detector.config.encoder.image_size
        if size not in (None, needed):
            raise ValueError(f"the detector sees {needed} pixels, got --size {size}; omit it")
        size = needed
    size = size or 224
    if as_is and real_only:
        raise ValueError("give --as-is (all faces as they are) or --real-only (forged), not both")
    rows = (load_real_faces if real_only else load_faces)(faces, split)
    if not as_is and FAKE in rows["label"]:
        raise ValueError(
            f"{faces} holds fakes: use their labels (--as-is), or forge only the real faces "
            "(--real-only)"
        )
    if as_is and pairs is not None:
        raise ValueError("--pairs is for simulated forgeries; omit it with --as-is")
    if unmasked_region and not as_is:
        raise ValueError("--unmasked-region is for faces with labels of their own: add --as-is")
    source: FacePairs | LabelledSamples
    if as_is:
        source = LabelledSamples(
            rows, size=size, seed=seed, unmasked_regions=tuple(unmasked_region or ())
        )
    else:
        source = FacePairs(
            rows,
            pairs or 400,
            size=size,
            seed=seed,
            degradation=DegradeConfig(),
            role="stage2",
        )
    built = build_conversations(
        source,
        detector,
        out,
        follow_ups=follow_ups,
        max_turns=max_turns,
        task_descriptions=task_descriptions,
        kfd_results=kfd_results,
        vary=vary,
        seed=seed,
        workers=workers,
    )
    notice(f"{len(built)} conversations in {out}")


@data.command("mix")
def mix(
    qa: Annotated[Path, typer.Option("--qa", help="LLaVA JSON that data build-qa wrote.")],
    general: Annotated[Path, typer.Option(help="LLaVA JSON of general instruction data.")],
    general_ratio: Annotated[
        float, typer.Option(help="Share of general data; 0.5 alternates, as in the paper.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="LLaVA JSON to write.", callback=writable_file)
    ],
    general_images: Annotated[
        Path | None, typer.Option(help="Folder its image paths are relative to; default: its own.")
    ] = None,
    image_folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the images of both files, for --image_folder in training; default: "
            "the folder of --out."
        ),
    ] = None,
    allow_absolute_paths: Annotated[
        bool,
        typer.Option(
            "--allow-absolute-paths",
            help="Allow paths in the data to lead out of their image folders.",
        ),
    ] = False,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Skip invalid general entries with a warning.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Mix forgery conversations with general instruction data in a ratio."""
    from llava_forgery.qa.mixing import mix_llava_json

    count = mix_llava_json(
        qa,
        general,
        out,
        general_ratio=general_ratio,
        general_images=general_images,
        image_folder=image_folder,
        allow_absolute_paths=allow_absolute_paths,
        skip_invalid=skip_invalid,
        seed=seed,
    )
    notice(f"{count} conversations in {out}")
