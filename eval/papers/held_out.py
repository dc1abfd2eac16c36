"""Test sets of the tables: who is judged, in pieces that records can be made of."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.papers.cells import ImageRecord
from eval.papers.table_settings import HeldOutSettings
from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.images import ManifestImages
from llava_forgery.evaluation.real import read_real_frames, square_crop
from llava_forgery.evaluation.scorers import Scorer
from llava_forgery.faces.benchmarks.plain import read_antifakeprompt
from llava_forgery.faces.records import MANIFEST, load_faces
from llava_forgery.faces.sources import media_below
from llava_forgery.simulate.pairs import CENTRED, FacePairs
from llava_forgery.tensors import to_bytes


@dataclass(frozen=True)
class HeldOutImage:
    """One image of a test set with what is true of it."""

    image: np.ndarray
    """(S, S, 3) uint8."""
    label: int
    """0 real, 1 fake."""
    identity: str
    """Whose face it is; a picture of an unknown person is a person of its own."""
    video_id: str
    """Images of one video share it. Each simulated forgery is a video of its own; a photograph is
    one however often it was forged."""
    regions: tuple[str, ...] = ()
    """Forged regions where they are known."""


def held_out_images(settings: HeldOutSettings, size: int) -> Iterator[HeldOutImage]:
    """The images of a test set, in a fixed order.

    Args:
        settings: Where they are.
        size: Side S of the images in pixels.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: A folder holds no images or faces, or a file is no picture.
    """
    if settings.crops is not None:
        return _crops(Path(settings.crops), size)
    if settings.csv is not None:
        return _listed(settings.csv, size)
    if settings.faces is None:
        return _pictures(settings, size)
    faces = load_faces(settings.faces, split=settings.split)
    labels = set(faces["label"])
    if labels == {REAL}:
        count = 2 * len(faces) if settings.pairs is None else settings.pairs
        return _forged(
            FacePairs(faces, count, size=size, seed=settings.seed, framing=CENTRED, role="test")
        )
    return _labelled(ManifestImages(faces, size))


def judge_held_out(
    scorer: Scorer, settings: HeldOutSettings, batch_size: int
) -> Iterator[ImageRecord]:
    """Records of a model's scores on a test set."""
    batch: list[HeldOutImage] = []
    for image in held_out_images(settings, scorer.size):
        batch.append(image)
        if len(batch) == batch_size:
            yield from _judge(scorer, batch)
            batch = []
    if batch:
        yield from _judge(scorer, batch)


def data_stamp(folder: str) -> str:
    """Hash of what a data folder holds, so that changed data are not taken for the same.

    Prepared faces are known by their manifest, a single file by its content, and pictures and
    hosts by their files' names and sizes: those may be many gigabytes.

    Raises:
        FileNotFoundError: There is no such file or folder, or it is empty.
    """
    path = Path(folder)
    digest = hashlib.sha256()
    if (path / MANIFEST).is_file():
        digest.update((path / MANIFEST).read_bytes())
        return digest.hexdigest()[:16]
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise FileNotFoundError(f"there is nothing at {folder}")
    for file in files:
        digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def _judge(scorer: Scorer, batch: list[HeldOutImage]) -> Iterator[ImageRecord]:
    values = scorer([image.image for image in batch])
    # A detector's score, or that of a classifier in its place.
    scores = values.get("kfd", values.get("classifier"))
    said = values.get("p_yes")
    for i, image in enumerate(batch):
        yield ImageRecord(
            label=image.label,
            score=None if scores is None else scores[i],
            p_yes=None if said is None else said[i],
            identity=image.identity,
            video_id=image.video_id,
            regions=image.regions,
        )


def _forged(pairs: FacePairs) -> Iterator[HeldOutImage]:
    for i in range(len(pairs)):
        pair = pairs[i]
        row = pairs.faces[pair.row]
        video, who = row["video_id"], row["identity"]
        yield HeldOutImage(to_bytes(pair.forged), FAKE, who, f"{video} forgery {i}", pair.regions)
        yield HeldOutImage(to_bytes(pair.pristine), REAL, who, video)


def _labelled(images: ManifestImages) -> Iterator[HeldOutImage]:
    identities = images.faces["identity"]
    for i in range(len(images)):
        item = images[i]
        yield HeldOutImage(item.image, item.label, identities[i], item.group)


def _crops(folder: Path, size: int) -> Iterator[HeldOutImage]:
    frames = [f for f in read_real_frames(folder.parent) if f.set == folder.name]
    if not frames:
        raise FileNotFoundError(f"{folder} holds no crops; expected SET/real, SET/fake_METHOD")
    for frame in frames:
        image = square_crop(folder.parent / frame.path, size)
        # A swap shows two people; the intervals draw the first, in whose video it is.
        yield HeldOutImage(image, frame.label, frame.identities[0], frame.video_id)


def _listed(csv: str, size: int) -> Iterator[HeldOutImage]:
    for source in read_antifakeprompt(csv):
        picture = square_crop(source.path, size)
        yield HeldOutImage(picture, source.label, source.name, source.name)


def _pictures(settings: HeldOutSettings, size: int) -> Iterator[HeldOutImage]:
    for folder, label in ((settings.real, REAL), (settings.fake, FAKE)):
        if folder is None:
            continue
        files = media_below(Path(folder), videos=False)
        if not files:
            raise FileNotFoundError(f"{folder} holds no pictures; expected photographs in it")
        for file in files:
            image = square_crop(file, size)
            yield HeldOutImage(image, label, str(file), str(file))
