"""Finding the faces of sources, in this process or in several."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, partial
from itertools import islice
from pathlib import Path

import cv2

from llava_forgery.faces.choice import candidate_of, choose
from llava_forgery.faces.detect import FaceDetector
from llava_forgery.faces.extract import CropSettings, find_faces
from llava_forgery.faces.journal import UNTOUCHED, Outcome, PixelFile
from llava_forgery.faces.sources import MediaSource
from llava_forgery.images import pixel_limit, set_pixel_limit

logger = logging.getLogger(__name__)

NO_FACE = "no face was found"
"""Beginning of the reason for a file that was read but shows no face."""

# Sources given to each process at a time: enough that none waits, few enough that memory does not
# grow with their number.
_AHEAD = 4


class Worker:
    """Finds the faces of one source after another and keeps their pixels on disk.

    Args:
        folder: Working folder.
        settings: How faces are cut out.
        make_detector: Returns the detector; picklable if it is used in another process.
    """

    def __init__(
        self, folder: Path, settings: CropSettings, make_detector: Callable[[], FaceDetector]
    ) -> None:
        self._settings = settings
        self._detector = make_detector()
        self._pixels = PixelFile(folder)

    def run(self, source: MediaSource) -> Outcome:
        """Find the faces of a source; a file that cannot be read gives an outcome with a reason."""
        rows, candidates = [], []
        is_masked, people = False, 1
        faces = find_faces(source, self._detector, self._settings)
        while True:
            # Only around reading: a full disk is not the file's fault.
            try:
                found = next(faces, None)
            except (OSError, ValueError) as error:
                return Outcome([], str(error))
            except ImportError:
                raise
            # Whatever a decoder or a face detector raises for one file.
            except Exception as error:
                return Outcome([], f"{type(error).__name__}: {error}")
            if found is None:
                break
            row = found.crop.to_row()
            for name in ("image", "mask"):
                if row[name] is not None:
                    row[name] = self._pixels.add(row[name]["bytes"])
            track = len(rows) if found.crop.track is None else found.crop.track
            candidates.append(candidate_of(found.crop, track, found.area))
            rows.append(row)
            is_masked |= found.is_masked
            people = max(people, 1 + found.beside)
        self._pixels.flush()
        if not rows:
            return Outcome([], f"{NO_FACE} in it")
        largest = self._settings.largest_only
        try:
            labels = choose(candidates, source.label, is_masked=is_masked, largest_only=largest)
        except ValueError as error:
            return Outcome([], str(error))
        chosen = []
        for row, face, label in zip(rows, candidates, labels, strict=True):
            if label is not None and label != source.label:
                # The part of the mask in its crop belongs to a neighbouring face.
                row |= {"mask": None, UNTOUCHED: face.track}
            if label is not None:
                chosen.append(row)
        return Outcome(chosen, people=1 if is_masked else people)

    def close(self) -> None:
        self._pixels.close()


def find_in_sources(
    sources: Iterable[tuple[bytes, MediaSource]],
    folder: Path,
    settings: CropSettings,
    make_detector: Callable[[], FaceDetector],
    workers: int,
) -> Iterator[tuple[bytes, Outcome]]:
    """Find the faces of all sources.

    A source that kills its process twice gets an outcome that says so; the others continue.

    Args:
        sources: Sources to read, with a key for each.
        folder: Working folder.
        settings: How faces are cut out.
        make_detector: Returns the detector; picklable if there are several workers.
        workers: Number of processes; 1 uses only this one.

    Yields:
        Key and outcome, in the order in which they finish.
    """
    if workers == 1:
        worker = Worker(folder, settings, make_detector)
        try:
            for key, source in sources:
                yield key, worker.run(source)
        finally:
            worker.close()
        return
    rest = iter(sources)
    lost: list[tuple[bytes, MediaSource]] | None = []
    while lost is not None:
        with _pool(workers, folder, settings, make_detector) as pool:
            lost = yield from _spread(pool, rest, workers * _AHEAD)
        # Retried one at a time, to find out which of them it was.
        alone = iter(lost or ())
        died = True
        while died:
            with _pool(1, folder, settings, make_detector) as pool:
                died = yield from _one_by_one(pool, alone)


def _spread(
    pool: ProcessPoolExecutor, sources: Iterator[tuple[bytes, MediaSource]], ahead: int
) -> Generator[tuple[bytes, Outcome], None, list[tuple[bytes, MediaSource]] | None]:
    """Returns None when all are done, or the sources in progress when a process died."""
    pending: dict[Future, tuple[bytes, MediaSource]] = {}
    while True:
        for item in islice(sources, ahead - len(pending)):
            try:
                pending[pool.submit(_run, item[1])] = item
            except BrokenProcessPool:
                return [*pending.values(), item]
        if not pending:
            return None
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            if isinstance(future.exception(), BrokenProcessPool):
                logger.warning("a process died; what was under way is tried once more")
                return list(pending.values())
            key, _ = pending.pop(future)
            yield key, future.result()


def _one_by_one(
    pool: ProcessPoolExecutor, sources: Iterator[tuple[bytes, MediaSource]]
) -> Generator[tuple[bytes, Outcome], None, bool]:
    """Returns whether the process died; the outcome of the source that killed it was yielded."""
    for key, source in sources:
        try:
            outcome = pool.submit(_run, source).result()
        except BrokenProcessPool:
            yield key, Outcome([], "the process that read it died, twice")
            return True
        yield key, outcome
    return False


@contextmanager
def _pool(
    workers: int, folder: Path, settings: CropSettings, make_detector: Callable[[], FaceDetector]
) -> Iterator[ProcessPoolExecutor]:
    # A fork would copy the locks of threads that PyTorch and OpenCV started.
    context = multiprocessing.get_context("spawn")
    make_worker = partial(Worker, folder, settings, make_detector)
    start = (make_worker, pixel_limit())
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=start)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


_make_worker: Callable[[], Worker] | None = None


def _start(make_worker: Callable[[], Worker], most_pixels: float) -> None:
    global _make_worker
    set_pixel_limit(most_pixels)
    # Made at the first source, so that an error there is reported as such.
    _make_worker = cache(make_worker)
    # The parent handles interruptions by ending the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    cv2.setNumThreads(1)


def _end_with_the_parent() -> None:
    """End with the parent, as a killed parent notifies nobody and its processes would wait."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(source: MediaSource) -> Outcome:
    assert _make_worker is not None
    return _make_worker().run(source)
