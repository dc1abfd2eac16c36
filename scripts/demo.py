"""The shipped model on photographs, forgeries of them, and short videos, in two minutes.

    bash scripts/demo.sh [--out DIR] [--reduced]

It takes photographs of samples/, forges some of them, makes six short H.264 videos of them, judges
all with the shipped model, writes OUT/report.html and prints a table. The figures are of simulated
forgeries: those on real ones are in the model's card, llava_forgery/default.
"""

import importlib.metadata
import time
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

import llava_forgery
from llava_forgery.cli.app import run
from llava_forgery.cli.options import writable_folder
from llava_forgery.faces.prepare import prepare
from llava_forgery.faces.records import load_faces
from llava_forgery.faces.video import FrameChoice
from llava_forgery.files import atomic_path
from llava_forgery.images import save_png
from llava_forgery.infer.batch import judge_files
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.infer.report import ReportEntry, write_report
from llava_forgery.optional import require
from llava_forgery.qa.templates import join_regions
from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.pairs import FacePairs, FramingConfig
from llava_forgery.tensors import to_bytes

SAMPLES = Path(__file__).parents[1] / "samples"
SIDE = 288
# Margin around the face, so that it has to be found.
FRAMING = FramingConfig(margin=(0.55, 0.55), jitter=0.0, angle=0.0)
# All kinds of forgery.
SIMULATOR = SimulatorConfig(swap=0.25, reenactment=0.25)
FPS, FRAMES, CRF = 25, 30, 23
QUESTIONS = ("Is this a deepfake image?", "Where was the face changed?", "How sure are you?")
REAL_NOTE = "photograph of samples/, cut to the face"
NOTE = "simulated forgery made by llava-forgery's demo; not a real photograph"


def main(
    out: Annotated[Path, typer.Option(help="Folder to write.", callback=writable_folder)] = Path(
        "demo-out"
    ),
    model: Annotated[
        Path | None, typer.Option(help="Folder of an adapter; default: the shipped model.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the language model; default: ~/.cache.")
    ] = None,
    reduced: Annotated[
        bool, typer.Option("--reduced", help="Fewer pictures, to see that everything runs.")
    ] = False,
) -> None:
    """Judge photographs and forgeries, and write report.html, pictures/, videos/ and maps/."""
    started = time.monotonic()
    count = 3 if reduced else 8
    prepare(SAMPLES, out / "faces", size=SIDE, margin=0.65, identity_pattern=r"^(\d+)_",
            test_share=0.5)  # fmt: skip
    rows = load_faces(out / "faces")
    pairs = FacePairs(rows, count, size=SIDE, simulator=SIMULATOR, framing=FRAMING, role="preview")
    predictor = ForgeryPredictor.from_pretrained(model, cache=cache, answers="flagged")
    truths = make_pictures(pairs, out / "pictures")
    truths |= make_videos(pairs, 1 if reduced else 3, out / "videos")
    results = [
        *judge_files(predictor, [out / "pictures"], overlay_dir=out / "maps"),
        *judge_files(
            predictor, [out / "videos"], overlay_dir=out / "maps", frames=FrameChoice(count=6)
        ),
    ]
    entries = [ReportEntry(result, truths[Path(result.file).name]) for result in results]
    forged = out / "pictures/forged_00.png"
    dialogue = () if predictor.vlm is None else talk(predictor, forged)
    write_report(
        out / "report.html",
        "llava-forgery: what the shipped model says",
        "Photographs of samples/, forgeries that the simulator made of them, and videos of both. "
        "The people may be among those that the model was trained on: these figures show what it "
        "gives, not how good it is.",
        entries,
        dialogue=dialogue,
        facts=facts(predictor),
        video=out / "videos/forged_00.mp4",
    )
    print_table(entries)
    print(f"\n{out / 'report.html'}: all of it with pictures; {time.monotonic() - started:.0f} s")


def make_pictures(pairs: FacePairs, folder: Path) -> dict[str, str]:
    """Write real and forged photographs; returns the truth of each by file name."""
    truths = {}
    for i in range(len(pairs)):
        pair = pairs[i]
        save_png(to_bytes(pair.pristine), folder / f"real_{i:02}.png", REAL_NOTE)
        save_png(to_bytes(pair.forged), folder / f"forged_{i:02}.png", NOTE)
        truths[f"real_{i:02}.png"] = "real"
        truths[f"forged_{i:02}.png"] = f"forged: {join_regions(pair.regions)}"
    return truths


def make_videos(pairs: FacePairs, count: int, folder: Path) -> dict[str, str]:
    """Write real and forged videos, in which a camera moves over the photograph."""
    truths = {}
    for i in range(count):
        pair = pairs[i]
        for name, image in (("real", pair.pristine), ("forged", pair.forged)):
            write_video(to_bytes(image), folder / f"{name}_{i:02}.mp4")
            truths[f"{name}_{i:02}.mp4"] = name
    return truths


def write_video(image: np.ndarray, path: Path) -> None:
    """Write (S, S, 3) uint8 as a second of H.264."""
    av = require("av", extra="video", feature="making videos")
    path.parent.mkdir(parents=True, exist_ok=True)
    side = image.shape[0]
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = side
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(CRF)}
        stream.time_base = Fraction(1, FPS)
        for number in range(FRAMES):
            turn = 2 * np.pi * number / FRAMES
            matrix = cv2.getRotationMatrix2D(
                (side / 2, side / 2), 2 * np.sin(turn), 1.03 + 0.02 * np.cos(turn)
            )
            matrix[:, 2] += 3 * np.cos(turn), 3 * np.sin(turn)
            moved = cv2.warpAffine(image, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
            frame = av.VideoFrame.from_ndarray(moved, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def talk(predictor: ForgeryPredictor, picture: Path):
    """A dialogue about one picture."""
    dialogue = predictor.dialogue(picture)
    for question in QUESTIONS:
        dialogue.ask(question)
    return dialogue.messages


def facts(predictor: ForgeryPredictor) -> dict[str, str]:
    """Facts for the head of the report."""
    thresholds = predictor.kfd.thresholds
    return {
        "llava-forgery": llava_forgery.__version__,
        "torch, transformers": ", ".join(
            importlib.metadata.version(name) for name in ("torch", "transformers")
        ),
        "fake from a score of": f"{thresholds.fake:.3f}",
        "uncertain between": f"{thresholds.low:.3f} and {thresholds.high:.3f}",
        "videos": f"H.264, CRF {CRF}, {FRAMES} frames",
    }


def print_table(entries: list[ReportEntry]) -> None:
    """Print the verdicts."""
    print(f"\n{'file':<18}{'known':<38}{'verdict':<11}{'score':>6}{'P(yes)':>8}")
    for entry in entries:
        name = Path(entry.result.file).name
        if entry.result.error is not None:
            print(f"{name:<18}{entry.truth:<38}not judged: {entry.result.error}")
        for face in entry.result.faces[:1]:
            said = "-" if face.p_yes is None else f"{face.p_yes:.2f}"
            print(f"{name:<18}{entry.truth[:36]:<38}{face.band:<11}{face.score:6.2f}{said:>8}")


if __name__ == "__main__":
    run(lambda: typer.run(main), "%(message)s")
