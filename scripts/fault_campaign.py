"""Whether anything goes wrong silently: about 150 inputs, with the outcome of each.

    python scripts/fault_campaign.py --all --out campaign

It makes photographs, videos, data sets and weights of users and attackers, runs them through
`detect`, `data prepare`, the training's validation pass and `eval run`, and prints the expected and
actual outcome of each; without --all only of those that are wrong. An input that can be read must
show the photograph that it was made from, within the loss of its coding; any other must be refused
with a message that names it. Exit status: 0 if every outcome is as expected, else 1; what was
*silently* wrong (accepted, dropped, or read as another picture) is counted separately.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from fault_data import FACES_FAULTS, MODEL_FAULTS, base_faces, evaluated, tiny_predictor
from fault_inputs import PASSED_BY, REFUSED, SAME, WITHOUT_FACE, Input
from fault_pictures import broken_pictures, odd_names, other_files, whole_pictures
from fault_videos import broken_videos, whole_videos
from PIL import Image

from llava_forgery.data.validation import find_invalid
from llava_forgery.faces.crop import crop_square
from llava_forgery.faces.detect import FaceDetector, get_detector
from llava_forgery.faces.detected import DetectedFace
from llava_forgery.faces.kinds import Kind, kind_of
from llava_forgery.faces.prepare import prepare
from llava_forgery.faces.records import MANIFEST
from llava_forgery.faces.video import FrameChoice
from llava_forgery.files import write_json
from llava_forgery.infer.batch import judge_files, list_media
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.train.dialogues import open_source

ROOT = Path(__file__).parent.parent
PHOTOGRAPH = ROOT / "samples/001_03.jpg"
FRAMES = FrameChoice(2)
# Largest shift of a face's square by coding, as a share of its side.
MOVED = 0.06
CROPS_MARGIN = 0.4


@dataclass(frozen=True)
class Outcome:
    """Outcome of one input in one stage."""

    stage: str
    name: str
    expected: str
    found: str
    """``same``, ``refused`` or ``passed by``, or a description of the problem."""
    says: str = ""

    @property
    def verdict(self) -> str:
        """``ok``; ``SILENT`` for a silent problem; ``LOUD`` for an unexpected error."""
        if self.found == self.expected:
            return "ok"
        return "LOUD" if self.found in (REFUSED, "crashed") else "SILENT"


class Watched:
    """A face detector that keeps the pictures it was given."""

    def __init__(self, finder: FaceDetector) -> None:
        self.finder = finder
        self.pictures: list[np.ndarray] = []

    def detect(self, image: np.ndarray) -> list[DetectedFace]:
        """As for the detector itself."""
        self.pictures.append(image)
        return self.finder.detect(image)


def main() -> None:
    """Make the inputs, run the stages, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for inputs and results; default: none")
    parser.add_argument("--model", type=Path, help="an adapter; default: a tiny random one")
    parser.add_argument("--all", action="store_true", help="also print expected outcomes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        outcomes = run(out, given.model)
    for outcome in outcomes:
        if given.all or outcome.verdict != "ok":
            print(line(outcome))
    silent = sum(outcome.verdict == "SILENT" for outcome in outcomes)
    loud = sum(outcome.verdict == "LOUD" for outcome in outcomes)
    inputs = len({outcome.name for outcome in outcomes})
    print(f"{inputs} inputs, {len(outcomes)} outcomes: {silent} silently wrong, {loud} refused or "
          "crashed against expectation")  # fmt: skip
    sys.exit(1 if silent or loud else 0)


def line(outcome: Outcome) -> str:
    """A row of the table."""
    name = outcome.name.encode("utf-8", "backslashreplace").decode()
    name = name if len(name) <= 34 else f"{name[:31]}..."
    says = " ".join(outcome.says.split())[:90]
    return (
        f"{outcome.verdict:6} {outcome.stage:8} {name:34} expected {outcome.expected:9} "
        f"came {outcome.found:9} {says}"
    )


def run(out: Path, model: Path | None = None) -> list[Outcome]:
    """Run all stages.

    Args:
        out: Receives ``inputs/`` and the output of the stages.
        model: A forgery adapter; None makes a tiny one with random weights, as only reading counts.
    """
    photo = Image.open(PHOTOGRAPH).convert("RGB")
    folder = out / "inputs"
    kinds = (whole_pictures, broken_pictures, odd_names, whole_videos, broken_videos, other_files)
    inputs = [item for kind in kinds for item in kind() if _can_be_made(item)]
    for item in inputs:
        path = folder / item.name
        path.parent.mkdir(parents=True, exist_ok=True)
        item.make(path, photo)
    if model is None:
        predictor = tiny_predictor()
    else:
        predictor = ForgeryPredictor.from_pretrained(model, device="cpu")
    finder = get_detector("dlib")
    return [
        *detected(predictor, Watched(finder), folder, inputs, photo),
        *prepared(finder, folder, out / "faces", inputs, photo),
        *validated(folder, out / "validation", inputs, photo),
        *evaluation_outcomes(out / "evaluation", predictor),
    ]


def _can_be_made(item: Input) -> bool:
    return item.package is None or find_spec(item.package) is not None


def detected(
    predictor: ForgeryPredictor,
    watched: Watched,
    folder: Path,
    inputs: Sequence[Input],
    photo: Image.Image,
) -> Iterator[Outcome]:
    """Run ``detect`` and compare the pictures in which faces are searched for."""
    predictor.face_detector = watched
    came: dict[str, tuple[str | None, list[np.ndarray]]] = {}
    for path, problem in list_media([folder]):
        if problem is not None:
            came[_key(str(path), folder)] = (problem, [])
            continue
        # One at a time: files are read ahead, and a picture does not know its file.
        for result in judge_files(predictor, [path], frames=FRAMES):
            json.dumps(result.to_dict(), allow_nan=False)
            came[_key(result.file, folder)] = (result.error, watched.pictures)
            watched.pictures = []
    for item in inputs:
        error, pictures = came.get(_shown(item.name), (None, None))
        if pictures is None:
            yield Outcome("detect", item.name, item.expected, PASSED_BY)
        elif error is not None:
            yield Outcome("detect", item.name, item.expected, REFUSED, error)
        else:
            gap = max(difference(picture, photo) for picture in pictures)
            found = SAME if gap <= item.tolerance else f"another picture ({gap:.0f} levels off)"
            yield Outcome("detect", item.name, item.expected, found)


def difference(picture: np.ndarray, photo: Image.Image) -> float:
    """Mean difference in levels of 255; 255 where the shapes differ by more than a pixel."""
    if max(abs(picture.shape[0] - photo.height), abs(picture.shape[1] - photo.width)) > 1:
        return 255.0
    picture = cv2.resize(picture, photo.size, interpolation=cv2.INTER_AREA)
    return float(np.abs(picture.astype(float) - np.asarray(photo)).mean())


def prepared(
    finder: FaceDetector, folder: Path, out: Path, inputs: Sequence[Input], photo: Image.Image
) -> Iterator[Outcome]:
    """Run ``data prepare`` and compare the squares of faces."""
    pixels = np.asarray(photo)
    _, truth, _ = crop_square(pixels, finder.detect(pixels)[0].landmarks, 320, CROPS_MARGIN)
    report = prepare(folder, out, detector=finder, frames=FRAMES, margin=CROPS_MARGIN)
    reasons = {item.file: item.reason for item in report.skipped}
    boxes: dict[str, list[list[float]]] = {}
    for row in map(json.loads, (out / MANIFEST).read_text().splitlines()):
        boxes.setdefault(row["source"], []).append(row["box"])
    side = truth[2] - truth[0]
    for item in inputs:
        name = _shown(item.name)
        if name in boxes:
            gap = np.abs(np.array(boxes[name]) - truth).max() / side
            found = SAME if gap <= MOVED else f"another square ({gap:.0%} off)"
            yield Outcome("prepare", item.name, item.expected, found)
        elif name in reasons:
            yield Outcome("prepare", item.name, item.expected, REFUSED, reasons[name])
        else:
            yield Outcome("prepare", item.name, item.expected, PASSED_BY)


def _key(file: str, folder: Path) -> str:
    return _shown(str(Path(file).relative_to(folder)))


def _shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def validated(
    folder: Path, out: Path, inputs: Sequence[Input], photo: Image.Image
) -> Iterator[Outcome]:
    """Run the pass before training, which reads every sample."""
    out.mkdir(parents=True, exist_ok=True)
    entries, expected, items = [], {}, {}
    for item in inputs:
        # Names that are not text cannot be in JSON; a pipe would block any reader.
        if _shown(item.name) != item.name or item.name == "pipe.mp4":
            continue
        entries.append(_entry(item.name, item.name))
        readable = item.expected == SAME or item.name in WITHOUT_FACE
        readable = readable and not _is_film(folder / item.name)
        expected[item.name] = SAME if readable else REFUSED
        items[item.name] = item
    for name, entry in _json_faults():
        entries.append(entry)
        expected[name] = REFUSED
    write_json(out / "data.json", entries)
    invalid: list[str] = []
    source = open_source(out / "data.json", folder, invalid=invalid)
    names = [source.name(row) for row in range(len(source))]
    wrong = find_invalid({"skill": (source.__getitem__, len(source))}, "campaign", out, 0)["skill"]
    refused = {names[row]: reason for row, reason in wrong.items()}
    for name, wanted in expected.items():
        told = next((text for text in invalid if f"{name!r}" in text), None)
        if name in refused or told is not None:
            yield Outcome("validate", name, wanted, REFUSED, refused.get(name) or told)
        elif name not in names:
            yield Outcome("validate", name, wanted, "dropped")
        elif name not in items or items[name].expected != SAME:
            yield Outcome("validate", name, wanted, SAME)
        else:
            image = source[names.index(name)].images[0]
            gap = difference(np.asarray(image), photo)
            found = SAME if gap <= items[name].tolerance else f"another picture ({gap:.0f})"
            yield Outcome("validate", name, wanted, found)


def _is_film(path: Path) -> bool:
    """A video that is not an animation, of which a training reads the first picture."""
    try:
        return kind_of(path) is Kind.VIDEO and not path.name.startswith("moving")
    except OSError:
        return False


def _entry(name: str, image: object, **changes: object) -> dict[str, object]:
    turns = [{"from": "human", "value": "<image>\nIs this face real?"},
             {"from": "gpt", "value": "Yes, it is."}]  # fmt: skip
    return {"id": name, "image": image, "conversations": turns, **changes}


def _json_faults() -> Iterator[tuple[str, dict[str, object]]]:
    yield "a path that leads out", _entry("a path that leads out", "../evaluation/secret.jpg")
    yield "an absolute path", _entry("an absolute path", str(PHOTOGRAPH.resolve()))
    yield "an address", _entry("an address", "http://127.0.0.1:9/a.jpg")
    yield "a file address", _entry("a file address", "file:///etc/hostname")
    yield "no such image", _entry("no such image", "none.jpg")
    yield "a folder", _entry("a folder", "deep")
    yield "an empty path", _entry("an empty path", "")
    yield "a number for an image", _entry("a number for an image", 7)
    two = [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "Two."}]
    yield "two marks, one image", _entry("two marks, one image", "jpeg.jpg", conversations=two)
    yield "no turns", _entry("no turns", "jpeg.jpg", conversations=[])
    turned = [{"from": "gpt", "value": "Yes."}, {"from": "human", "value": "<image>"}]
    yield "the answer first", _entry("the answer first", "jpeg.jpg", conversations=turned)


def evaluation_outcomes(out: Path, predictor: ForgeryPredictor) -> Iterator[Outcome]:
    """Run ``eval run`` with a detector, on faces and weights of all kinds."""
    model, faces = out / "model", out / "faces"
    predictor.kfd.save_pretrained(model)
    base_faces(ROOT / "samples", faces)
    truth = evaluated(model, faces, out / "base")
    if not isinstance(truth, dict):
        raise RuntimeError(f"the faces without a fault were not evaluated: {truth}")
    for kind, faults in (("faces", FACES_FAULTS), ("model", MODEL_FAULTS)):
        for number, fault in enumerate(faults):
            place = out / f"{kind} {number}"
            fault.make(faces if kind == "faces" else model, place)
            given = (model, place) if kind == "faces" else (place, faces)
            came = evaluated(*given, out / f"result {kind} {number}")
            if isinstance(came, dict):
                same = came == truth if fault.exact else came.keys() == truth.keys()
                yield Outcome(
                    "eval run", fault.name, fault.expected, SAME if same else "other figures"
                )
            else:
                crashed = "crashed" if came.startswith("Traceback") else REFUSED
                yield Outcome("eval run", fault.name, fault.expected, crashed, came)


if __name__ == "__main__":
    main()
