"""From a folder of photographs to face crops with identities and splits.

llava-forgery prepare PHOTOS --out faces --identity-pattern '^(\\d+)_' --test-share 0.25
"""

import csv
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from llava_forgery.constants import REAL
from llava_forgery.faces.crop import crop_square
from llava_forgery.faces.detect import FaceDetector, get_detector
from llava_forgery.faces.images import SUFFIXES, read_image
from llava_forgery.faces.records import (
    FACES,
    MANIFEST,
    REPORT,
    SETTINGS,
    FaceCrop,
    save_faces,
)
from llava_forgery.files import write_json

logger = logging.getLogger(__name__)

_OWN = {FACES, MANIFEST, SETTINGS, REPORT}


@dataclass(frozen=True)
class SkippedFile:
    """A file that gave no face."""

    file: str
    """Path relative to the prepared folder."""
    reason: str
    """A sentence."""


@dataclass(frozen=True)
class PrepareReport:
    """What :func:`prepare` found; also in ``report.json``."""

    files: int
    """Images that were looked at."""
    faces: int
    """Faces that were written."""
    faces_by_split: dict[str, int]
    identities_by_split: dict[str, int]
    """Identities with at least one face."""
    skipped: tuple[SkippedFile, ...]


def prepare(
    src: str | PathLike,
    out_dir: str | PathLike,
    *,
    size: int = 320,
    margin: float = 0.4,
    detector: str | FaceDetector = "dlib",
    identities_csv: str | PathLike | None = None,
    identity_pattern: str | None = None,
    test_share: float = 0.0,
    seed: int = 0,
    largest_only: bool = True,
    label: int = REAL,
) -> PrepareReport:
    """Find, crop and write the faces of a folder of photographs.

    Identities come from a CSV, from the file names, or are one per file. Whole identities go to
    the test split, chosen before any face is looked for: which split a person is in does not
    depend on the detector.

    Args:
        src: Folder, searched with its subfolders for jpg, jpeg, png and webp (hidden files and
            ``out_dir`` are left out), or one image.
        out_dir: Gets ``faces/``, ``manifest.jsonl``, ``settings.json`` and ``report.json``. It may
            lie inside ``src``. An earlier result is replaced once the new one is complete.
        size: Side of the crops in pixels.
        margin: Space around the landmarks' bounding box on each side, as a share of its longer
            side.
        detector: A registered name or a detector.
        identities_csv: CSV with the columns ``file`` (path relative to ``src``) and ``identity``.
        identity_pattern: Regular expression searched in the file name; its group named
            ``identity``, or else its first, is the identity. A pattern with a slash is searched in
            the path relative to ``src``: ``([^/]+)/[^/]+$`` takes the folder's name.
        test_share: Share of the identities that go to the test split, at least one if above 0.
        seed: Of the split.
        largest_only: Take the largest face of a photograph, or all. All faces of one photograph
            carry its identity, so that they share a split.
        label: 0 real, 1 fake.

    Raises:
        FileNotFoundError: ``src`` or the CSV is missing, or there is no image in ``src``.
        ValueError: An option out of range; ``out_dir`` holds other files; a file without an
            identity; too few identities to split; no face in any file, or in any file of a split.
    """
    src, out_dir = Path(src), Path(out_dir)
    if not 0 <= test_share < 1:
        raise ValueError(f"test_share must be from 0 to under 1, got {test_share}")
    if identities_csv is not None and identity_pattern is not None:
        raise ValueError("give identities_csv or identity_pattern, not both")
    if size < 16 or margin < 0:
        raise ValueError(f"size must be 16 or more, margin 0 or more; got {size} and {margin}")
    _check_out_dir(src, out_dir)
    root, files = find_images(src, leave_out=out_dir)
    if identities_csv is not None:
        identities = _identities_from_csv(files, Path(identities_csv))
    elif identity_pattern is not None:
        identities = _identities_from_pattern(files, identity_pattern)
    else:
        identities = {file: _stem(file) for file in files}
    splits = split_identities(identities.values(), test_share, seed)
    finder = get_detector(detector) if isinstance(detector, str) else detector

    skipped: list[SkippedFile] = []
    faces_by_split = dict.fromkeys(splits.values(), 0)
    identities_with_faces: dict[str, str] = {}

    def crops() -> Iterator[FaceCrop]:
        for file in tqdm(files, desc="faces", unit="file", disable=None):
            identity = identities[file]
            split = splits[identity]
            try:
                image = read_image(root / file)
                found = finder.detect(image)[: 1 if largest_only else None]
                cuts = [crop_square(image, face.landmarks, size, margin) for face in found]
            except (OSError, ValueError) as error:
                _skip(skipped, file, str(error))
                continue
            if not cuts:
                _skip(skipped, file, "no face was found in it")
            for crop, box, landmarks in cuts:
                faces_by_split[split] += 1
                identities_with_faces[identity] = split
                yield FaceCrop(
                    image=crop,
                    landmarks=landmarks,
                    box=box,
                    video_id=_stem(file),
                    identity=identity,
                    label=label,
                    source=file,
                    split=split,
                )
        _check_faces(faces_by_split, skipped, src)

    settings = {
        "made_by": "prepare",
        "size": size,
        "margin": margin,
        "detector": detector if isinstance(detector, str) else type(detector).__name__,
        "identities": "csv" if identities_csv else identity_pattern or "one per file",
        "test_share": test_share,
        "seed": seed,
        "largest_only": largest_only,
    }
    count = save_faces(crops(), out_dir, settings)
    report = PrepareReport(
        files=len(files),
        faces=count,
        faces_by_split=faces_by_split,
        identities_by_split={
            split: sum(other == split for other in identities_with_faces.values())
            for split in faces_by_split
        },
        skipped=tuple(skipped),
    )
    write_json(out_dir / REPORT, asdict(report))
    logger.info("%d faces of %d files written to %s", count, len(files), out_dir)
    return report


def find_images(src: Path, leave_out: Path | None = None) -> tuple[Path, list[str]]:
    """The images of a folder and its subfolders, or one image.

    Args:
        src: Folder or file.
        leave_out: A folder that is not entered.

    Returns:
        The folder that paths are relative to, and the paths, sorted, with forward slashes.

    Raises:
        FileNotFoundError: ``src`` does not exist, or holds no image.
    """
    if src.is_file():
        return src.parent, [src.name]
    if not src.is_dir():
        raise FileNotFoundError(f"{src} does not exist; expected a folder of photographs or one")
    avoided = leave_out.resolve() if leave_out is not None else None
    files = []
    for folder, subfolders, names in os.walk(src):
        here = Path(folder)
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and (here / name).resolve() != avoided
        ]
        files += [
            (here / name).relative_to(src).as_posix()
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    if not files:
        raise FileNotFoundError(
            f"{src} holds no images; expected files ending in {', '.join(SUFFIXES)}"
        )
    return src, sorted(files)


def split_identities(identities: Iterable[str], test_share: float, seed: int) -> dict[str, str]:
    """Give each identity a split.

    Args:
        identities: Names; repetitions count once, their order does not matter.
        test_share: Share that goes to ``"test"``, rounded; at least one if above 0.
        seed: Of the shuffle.

    Raises:
        ValueError: A test share, but fewer than two identities, or none left for training.
    """
    names = sorted(set(identities))
    n_test = 0
    if test_share > 0:
        n_test = max(1, round(test_share * len(names)))
        if n_test >= len(names):
            raise ValueError(
                f"a test share of {test_share} needs at least two identities and one left to "
                f"train on, got {len(names)}; add people, lower the share, or set it to 0"
            )
    order = np.random.default_rng(seed).permutation(len(names))
    test = {names[i] for i in order[:n_test]}
    return {name: "test" if name in test else "train" for name in names}


def _stem(file: str) -> str:
    return str(PurePosixPath(file).with_suffix(""))


def _skip(skipped: list[SkippedFile], file: str, reason: str) -> None:
    logger.warning("%s is left out: %s", file, reason)
    skipped.append(SkippedFile(file, reason))


def _check_out_dir(src: Path, out_dir: Path) -> None:
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir} is a file; give a folder to write to")
    if out_dir.resolve() == src.resolve():
        raise ValueError(f"{out_dir} is the folder of photographs itself; give another folder")
    present = {entry.name for entry in out_dir.iterdir()} if out_dir.is_dir() else set()
    if not present:
        return
    if MANIFEST not in present:
        others = ", ".join(sorted(present)[:3])
        raise ValueError(
            f"{out_dir} holds other files ({others}) and no earlier result; give a new or empty "
            "folder"
        )
    logger.warning("the faces in %s will be replaced", out_dir)


def _check_faces(
    faces_by_split: Mapping[str, int], skipped: Sequence[SkippedFile], src: Path
) -> None:
    reasons = "; ".join(f"{item.file}: {item.reason}" for item in skipped[:3])
    if not sum(faces_by_split.values()):
        raise ValueError(
            f"no face was found in any image of {src} ({reasons}); expected photographs of faces "
            "at least 40 pixels wide, seen from the front"
        )
    empty = [split for split, count in faces_by_split.items() if not count]
    if empty:
        raise ValueError(
            f"no face was found in any image of the {empty[0]} identities ({reasons}); add "
            "photographs, or choose another seed"
        )


def _identities_from_csv(files: Sequence[str], path: Path) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a CSV with file,identity")
    known: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        columns = reader.fieldnames or []
        if "file" not in columns or "identity" not in columns:
            raise ValueError(f"{path} must have the columns file,identity; it has {columns}")
        for row in reader:
            file = (row["file"] or "").strip().replace("\\", "/")
            identity = (row["identity"] or "").strip()
            if not file or not identity:
                raise ValueError(f"{path}, line {reader.line_num}: file or identity is empty")
            if known.setdefault(file, identity) != identity:
                raise ValueError(f"{path} gives {file} the identities {known[file]} and {identity}")
    missing = [file for file in files if file not in known]
    if missing:
        raise ValueError(
            f"{path} has no identity for {missing[0]} ({len(missing)} of {len(files)} files are "
            "missing in it); the column file holds paths relative to the folder of photographs"
        )
    return {file: known[file] for file in files}


def _identities_from_pattern(files: Sequence[str], pattern: str) -> dict[str, str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"identity_pattern {pattern!r} is not a regular expression: {error}"
        ) from error
    if not expression.groups:
        raise ValueError(
            f"identity_pattern {pattern!r} has no group; put the identity in parentheses, for "
            r"example '^(\d+)_'"
        )
    group = "identity" if "identity" in expression.groupindex else 1
    identities = {}
    for file in files:
        match = expression.search(file if "/" in pattern else PurePosixPath(file).name)
        if match is None or not match[group]:
            raise ValueError(
                f"identity_pattern {pattern!r} finds no identity in {file}; change the pattern, or "
                "leave the file out of the folder"
            )
        identities[file] = match[group]
    return identities
