"""Cost of LLaVA's tools showing the detector only the pictures that their processor prepared.

    python -m eval.client_resolution --faces FACES --split test --out FIGURES.md

Simulated forgeries and their pristine faces are judged as the detector's own inputs are made, from
the face crop at its own resolution, and as a client's picture: the crop takes the whole of it, a
half or a third of its side, the picture passes CLIP's or SigLIP's processor in float16, and the
face is found in it and cut out (``mm_forgery_crop face``), or the whole is judged (``none``).
"""

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from llava_forgery.cli.app import run
from llava_forgery.evaluation.metrics import auc
from llava_forgery.evaluation.scorers import DetectorScorer
from llava_forgery.files import write_text
from llava_forgery.hosts.pictures import ClientPrompts, picture_of
from llava_forgery.hosts.placement import FACE, WHOLE
from llava_forgery.infer.default import default_model, load_detector_of
from llava_forgery.simulate.pairs import CENTRED, FacePairs, load_real_faces
from llava_forgery.tensors import to_bytes

# Sides of the pixel tensors of LLaVA 1.5 and of LLaVA-OneVision.
PROCESSORS = {
    "CLIP, 336 px": CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    ),
    "SigLIP, 384 px": SiglipImageProcessorPil(size={"height": 384, "width": 384}),
}
# Share of the picture's side that the crop takes, with the treatment.
VIEWS = ((1.0, WHOLE), (1.0, FACE), (0.5, FACE), (1 / 3, FACE), (0.5, WHOLE))


def main(
    faces: Annotated[Path, typer.Option(help="Folder written by data prepare.")],
    out: Annotated[Path, typer.Option(help="Markdown file to write.")],
    split: Annotated[str, typer.Option(help="Split of the faces: train, val or test.")] = "test",
    model: Annotated[
        Path | None, typer.Option(help="Detector or adapter; default: the shipped one.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Number of forged and of pristine faces.")] = 100,
    side: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 320,
    seed: Annotated[int, typer.Option(help="Seed of the forgeries.")] = 0,
) -> None:
    """Write the table."""
    scorer = DetectorScorer(load_detector_of(model or default_model(), None, False))
    material = FacePairs(
        load_real_faces(faces, split), pairs, size=side, seed=seed, framing=CENTRED, role="test"
    )
    crops = [to_bytes(image) for pair in material for image in (pair.forged, pair.pristine)]
    labels = np.tile([1, 0], len(crops) // 2)
    clients = ClientPrompts()
    own = np.array(score(scorer, clients.frame(crops, scorer.size, WHOLE)))
    lines = [
        "| the detector sees | AUC | mean change of the score |",
        "|---|---|---|",
        f"| the crop itself, {side} px | {auc(labels, own):.3f} | |",
    ]
    for name, processor in PROCESSORS.items():
        for share, crop in VIEWS:
            shown = [through(processor, surrounded(image, share)) for image in crops]
            found = np.array(score(scorer, clients.frame(shown, scorer.size, crop)))
            lines.append(
                f"| {name}, the crop takes {share:.0%} of the side, `{crop}` | "
                f"{auc(labels, found):.3f} | {np.abs(found - own).mean():.3f} |"
            )
            print(lines[-1], flush=True)
    write_text(out, "\n".join(lines) + "\n")


def surrounded(crop: np.ndarray, share: float) -> np.ndarray:
    """A picture in which a crop (S, S, 3) takes a share of the side, with its edge repeated."""
    room = round(len(crop) * (1 / share - 1) / 2)
    return cv2.copyMakeBorder(crop, room, room, room, room, cv2.BORDER_REPLICATE)


def through(processor, picture: np.ndarray) -> np.ndarray:
    """A picture after a client's processor."""
    pixels = processor(picture, return_tensors="pt")["pixel_values"][0].to(torch.float16)
    return picture_of(pixels, processor.image_mean, processor.image_std)


def score(scorer: DetectorScorer, images: torch.Tensor) -> list[float]:
    """The detector's scores of (N, 3, S, S)."""
    return scorer([to_bytes(image) for image in images])["kfd"]


if __name__ == "__main__":
    run(lambda: typer.run(main))
