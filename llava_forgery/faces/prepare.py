"""Face crops with identities and splits from photographs and videos.

llava-forgery data prepare PHOTOS --out faces --identity-pattern '^(\\d+)_' --test-share 0.25
"""

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from llava_forgery.constants import FAKE, REAL
from llava_forgery.faces.detect import FaceDetector, detector_factory
from llava_forgery.faces.extract import CropSettings
from llava_forgery.faces.identities import (
    identities_from_csv,
    identities_from_files,
    identities_from_pattern,
    split_identities,
)
from llava_forgery.faces.journal import UNTOUCHED, Journal, open_journal, source_key
from llava_forgery.faces.records import (
    FACES,
    MANIFEST,
    REPORT,
    SETTINGS,
    save_rows,
)
from llava_forgery.faces.sources import MediaSource, check_sources, find_media
from llava_forgery.faces.video import FrameChoice
from llava_forgery.faces.workers import NO_FACE, find_in_sources
from llava_forgery.files import is_name, some_names, write_json
from llava_forgery.progress import progress

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
"""Working folder in ``out_dir`` while a run is unfinished."""


@dataclass(frozen=True)
class SkippedFile:
    """A file without a face."""

    file: str
    """The name of the source: a path relative to the prepared folder."""
    reason: str
    """Reason as a sentence."""
    unread: bool = True
    """Whether the file could not be read; False if it was read but shows no face."""


@dataclass(frozen=True)
class PrepareReport:
    """Result of ``data prepare``; also in ``report.json``."""

    files: int
    """Number of photographs and videos."""
    faces: int
    """Number of faces written."""
    faces_by_split: dict[str, int]
    identities_by_split: dict[str, int]
    """Number of identities with at least one face."""
    skipped: tuple[SkippedFile, ...]
    other_files: dict[str, int] = field(default_factory=dict)
    """Number of files of a folder that are neither pictures nor videos, by suffix, and hidden."""

    @property
    def unread(self) -> int:
        """Number of files that could not be read."""
        return sum(item.unread for item in self.skipped)


def prepare(
    src: str | PathLike,
    out_dir: str | PathLike,
    *,
    size: int = 320,
    margin: float = 0.4,
    align: bool = False,
    frames: FrameChoice | None = None,
    detector: str | FaceDetector = "dlib",
    identities_csv: str | PathLike | None = None,
    identity_pattern: str | None = None,
    test_share: float = 0.0,
    val_share: float = 0.0,
    seed: int = 0,
    largest_only: bool = True,
    label: int = REAL,
    workers: int = 1,
) -> PrepareReport:
    """Find, crop and write the faces of a folder of photographs and videos.

    Identities come from a CSV or from the file names; otherwise each file is one, with a warning.
    Whole identities go to the test and val splits, chosen before any face is searched for, so that
    a person's split does not depend on the detector.

    Args:
        src: Folder, searched recursively for pictures and videos (except hidden files and
            ``out_dir``), or one file.
        out_dir: Receives ``faces/``, ``manifest.jsonl``, ``settings.json`` and ``report.json``. It
            may be inside ``src``. An earlier result is replaced once the new one is complete.
        size: Side of the crops in pixels.
        margin: Space around the landmarks' bounding box on each side, as a share of its longer
            side.
        align: Rotate each crop until the eyes are level.
        frames: Frames of a video to read; by default 32, evenly spaced.
        detector: Name of a registered detector, or a detector.
        identities_csv: CSV with the columns ``file`` (path relative to ``src``) and ``identity``.
        identity_pattern: Regular expression searched in the file name; its group named
            ``identity``, or else its first, is the identity. A pattern with a slash is searched in
            the path relative to ``src``: ``([^/]+)/[^/]+$`` gives the folder's name.
        test_share: Share of the identities that go to the test split, at least one if above 0.
        val_share: Share of the identities that go to the val split, on which steps and thresholds
            are chosen; at least one if above 0.
        seed: Seed of the split.
        largest_only: Keep only the largest face of a photograph or video instead of all. If a
            forged one has a mask, the faces that it touches are fake, and the others are real or
            omitted. All faces of one file have its identity, so that they share a split.
        label: 0 for real, 1 for fake.
        workers: As for :func:`prepare_sources`, which also describes how to resume.

    Raises:
        FileNotFoundError: ``src`` or the CSV is missing, or there is nothing to read in ``src``.
        ValueError: An option is out of range; ``out_dir`` holds other files; a file has no
            identity; there are too few identities to split; or no file, or no file of a split,
            shows a face.
    """
    src, out_dir = Path(src), Path(out_dir)
    for name, share in ("test_share", test_share), ("val_share", val_share):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must be in [0, 1), got {share}")
    if identities_csv is not None and identity_pattern is not None:
        raise ValueError("give identities_csv or identity_pattern, not both")
    settings = CropSettings(size, margin, align, largest_only, frames or FrameChoice())
    if out_dir.resolve() == src.resolve():
        raise ValueError(f"{out_dir} is the folder of photographs itself; give another folder")
    found = find_media(src, leave_out=out_dir)
    files = [file for file in found.files if is_name(file)]
    names = identities_from_files(files)
    if identities_csv is not None:
        identities = identities_from_csv(files, Path(identities_csv))
    elif identity_pattern is not None:
        identities = identities_from_pattern(files, identity_pattern)
    else:
        identities = names
        if len(files) > 1:
            logger.warning(
                "no rule says who is in which file: each of %d files counts as a separate person, "
                "and pictures of one person may leak between the splits; give identities_csv "
                "(--identities) or identity_pattern (--identity-pattern)",
                len(files),
            )
    splits = split_identities(identities.values(), test_share, seed, val_share)
    sources = (
        MediaSource(
            path=found.root / file,
            name=file,
            video_id=names[file],
            identity=identities[file],
            label=label,
            split=splits[identities[file]],
        )
        for file in files
    )
    unread = [SkippedFile(file, reason) for file, reason in found.problems]
    unread += [
        SkippedFile(file, "its name has a backslash, a drive or a control character: rename it")
        for file in found.files
        if not is_name(file)
    ]
    for item in unread:
        logger.warning("%s is skipped: %s", item.file, item.reason)
    if not files:
        reasons = "; ".join(f"{item.file}: {item.reason}" for item in unread[:3])
        raise ValueError(f"nothing in {src} can be read ({reasons})")
    told = {
        "identities": "csv" if identities_csv else identity_pattern or "one per file",
        "test_share": test_share,
        "val_share": val_share,
        "seed": seed,
    }
    return _prepare(
        sources, out_dir, settings, detector, workers, told, unread, found.others, str(src)
    )


def prepare_sources(
    sources: Iterable[MediaSource],
    out_dir: str | PathLike,
    *,
    settings: CropSettings | None = None,
    detector: str | FaceDetector = "dlib",
    workers: int = 1,
    notes: Mapping[str, Any] | None = None,
) -> PrepareReport:
    """Find, crop and write the faces of a list of sources, in its order.

    Results are stored source by source in ``out_dir/.unfinished``. After any interruption the same
    call resumes there and writes the same result as an uninterrupted call. Files that were added or
    changed since are read, files that are no longer listed are dropped. With different settings the
    work starts again.

    Args:
        sources: Sources to read. The list is held in memory, but pixels are not.
        out_dir: Receives ``faces/``, ``manifest.jsonl``, ``settings.json`` and ``report.json``. An
            earlier result is replaced once the new one is complete.
        settings: How faces are cut out.
        detector: Name of a registered detector, or a detector; picklable if there are several
            workers.
        workers: Number of processes; the result does not depend on it. With 2 or more, a script
            that calls this needs the usual ``if __name__ == "__main__":``.
        notes: Additional entries of ``settings.json``, JSON-serializable.

    Raises:
        ValueError: ``out_dir`` holds other files; a name occurs twice; an identity or a video is in
            two splits; or no file, or no file of a split, shows a face.
        RuntimeError: Another process prepares into ``out_dir``.
        ImportError: A package that the detector or videos need is not installed.
    """
    return _prepare(
        sources, Path(out_dir), settings or CropSettings(), detector, workers, notes or {}
    )


def _prepare(
    sources: Iterable[MediaSource],
    out_dir: Path,
    settings: CropSettings,
    detector: str | FaceDetector,
    workers: int,
    notes: Mapping[str, Any],
    skipped: Sequence[SkippedFile] = (),
    others: Mapping[str, int] | None = None,
    where: str = "the list",
) -> PrepareReport:
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    _check_out_dir(out_dir)
    sources = list(sources)
    if not sources:
        raise ValueError("there are no sources to prepare; expected at least one")
    check_sources(sources)
    job = {**asdict(settings), "detector": _description(detector)}
    if isinstance(detector, str):
        make_detector = detector_factory(detector)
    else:
        make_detector = partial(_itself, detector)
    working = out_dir / UNFINISHED
    with open_journal(working, job) as journal:
        keys = [source_key(source) for source in sources]
        todo = [item for item in zip(keys, sources, strict=True) if item[0] not in journal]
        if len(todo) < len(sources):
            logger.info("%d of %d files are already done", len(sources) - len(todo), len(sources))
        done = len(sources) - len(todo)
        with progress(title="faces", unit="file", total=len(sources), initial=done) as bar:
            for key, outcome in find_in_sources(todo, working, settings, make_detector, workers):
                journal.add(key, outcome)
                bar.update()
        result = _Result(sources, keys, journal)
        result.check(where, working)
        count = save_rows(result.rows(), out_dir, {"made_by": "prepare", **job, **notes})
    report = PrepareReport(
        files=len(sources),
        faces=count,
        faces_by_split=result.faces,
        identities_by_split={split: len(names) for split, names in result.people.items()},
        skipped=(*skipped, *result.skipped),
        other_files=dict(others or {}),
    )
    write_json(out_dir / REPORT, asdict(report))
    # Last, so that a run that stops before can be resumed.
    shutil.rmtree(working)
    _remove_remains(out_dir)
    logger.info("%d faces of %d files written to %s", count, len(sources), out_dir)
    return report


class _Result:
    """The outcomes of a journal in the order of the sources."""

    def __init__(
        self, sources: Sequence[MediaSource], keys: Sequence[bytes], journal: Journal
    ) -> None:
        self._sources, self._keys, self._journal = sources, keys, journal
        self.faces = {source.split: 0 for source in sources}
        self.people: dict[str, set[str]] = {source.split: set() for source in sources}
        self.skipped: list[SkippedFile] = []
        unsure = []
        for source, key in zip(sources, keys, strict=True):
            outcome = journal.get(key)
            if outcome.reason is not None:
                logger.warning("%s is skipped: %s", source.name, outcome.reason)
                unread = not outcome.reason.startswith(NO_FACE)
                self.skipped.append(SkippedFile(source.name, outcome.reason, unread))
            else:
                self.faces[source.split] += len(outcome.faces)
                self.people[source.split].add(source.person)
                if source.label == FAKE and outcome.people > 1:
                    unsure.append(source.name)
        if unsure:
            logger.warning(
                "%d forged files show several faces, and no mask says which of them are forged "
                "(%s): every face that is kept counts as a fake",
                len(unsure),
                some_names(unsure),
            )

    def check(self, where: str, working: Path) -> None:
        """Raise if nothing was found."""
        reasons = "; ".join(f"{item.file}: {item.reason}" for item in self.skipped[:3])
        if not sum(self.faces.values()):
            shutil.rmtree(working)
            raise ValueError(
                f"no face was found in any image of {where} ({reasons}); expected photographs of "
                "faces at least 64 pixels wide, seen from the front"
            )
        empty = [split for split, count in self.faces.items() if not count]
        if empty:
            raise ValueError(
                f"no face was found in any image of the {empty[0]} identities ({reasons}); add "
                "photographs, or choose another seed"
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the data set, with the current properties of their sources."""
        for source, key in zip(self._sources, self._keys, strict=True):
            for face in self._journal.get(key).faces:
                pixels = {
                    name: {"bytes": self._journal.pixels(face[name]), "path": None}
                    for name in ("image", "mask")
                    if face[name] is not None
                }
                known = {
                    "video_id": source.video_id,
                    "identity": source.person,
                    "label": source.label,
                    "source": source.name,
                    "split": source.split,
                    "method": source.method,
                    "compression": source.compression,
                }
                untouched = face.pop(UNTOUCHED, None)
                if untouched is not None:
                    # Another person next to the forged one counts as a real video of its own.
                    video = f"{source.video_id}/untouched-{untouched}"
                    known |= {"label": REAL, "method": None, "video_id": video}
                yield {**face, **pixels, **known}


def _itself(detector: FaceDetector) -> FaceDetector:
    return detector


def _description(detector: str | FaceDetector) -> str | dict[str, Any]:
    """A detector's name, or its class and options; if they change, a run starts again."""
    if isinstance(detector, str):
        return detector
    return {"class": type(detector).__name__, **getattr(detector, "options", {})}


def _check_out_dir(out_dir: Path) -> None:
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir} is a file; give a folder to write to")
    # Hidden: the working folder of an unfinished run and remains of an interrupted rename.
    present = {entry.name for entry in out_dir.iterdir()} if out_dir.is_dir() else set()
    present = {name for name in present if not name.startswith(".")}
    if not present:
        return
    if not present & {MANIFEST, FACES}:
        others = ", ".join(sorted(present)[:3])
        raise ValueError(
            f"{out_dir} holds other files ({others}) and no earlier result; give a new or empty "
            "folder"
        )
    logger.warning("the faces in %s will be replaced", out_dir)


def _remove_remains(out_dir: Path) -> None:
    """Remove what runs left behind that were killed while writing the result."""
    for pattern in (".rows-*", *(f".{name}.*.*" for name in (FACES, MANIFEST, SETTINGS, REPORT))):
        for entry in out_dir.glob(pattern):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
