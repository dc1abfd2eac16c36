"""A benchmark's files as a manifest for ``data prepare``, with a line for each file::

    {"path": "../FF/original_sequences/youtube/c23/videos/000.mp4", "name": "original_...",
     "video_id": "youtube/c23/000", "identity": "000_003", "label": 0, "split": "test",
     "compression": "c23"}

Paths are relative to the manifest's folder; unknown values are omitted.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import Any

from llava_forgery.faces.benchmarks.celeb_df import read_celeb_df, read_celeb_df_pp
from llava_forgery.faces.benchmarks.deepfakebench import read_deepfakebench
from llava_forgery.faces.benchmarks.dfdc import read_dfdc, read_dfdcp
from llava_forgery.faces.benchmarks.forensics import read_dfd, read_forensics
from llava_forgery.faces.benchmarks.plain import read_antifakeprompt, read_folders
from llava_forgery.faces.sources import MediaSource, check_sources
from llava_forgery.files import parse_json, write_json_lines
from llava_forgery.tables import read_text

# Reader, and the names of its options.
BENCHMARKS: dict[str, tuple[Callable[..., list[MediaSource]], tuple[str, ...]]] = {
    "ff++": (read_forensics, ("methods", "compressions", "masks", "partial")),
    "dfd": (read_dfd, ("compressions", "masks", "partial")),
    "celeb-df-v1": (read_celeb_df, ("partial",)),
    "celeb-df-v2": (read_celeb_df, ("partial",)),
    "celeb-df++": (read_celeb_df_pp, ("partial",)),
    "dfdcp": (read_dfdcp, ("partial",)),
    "dfdc": (read_dfdc, ("splits", "partial")),
    "deepfakebench": (read_deepfakebench, ("images", "splits", "compressions", "masks", "partial")),
    "folders": (read_folders, ("split", "frames", "partial")),
    "antifakeprompt": (read_antifakeprompt, ("split", "partial")),
}
_PATHS = ("path", "mask_path")
_NEEDED = ("path", "name", "video_id", "label", "split")


def read_benchmark(name: str, root: str | PathLike, **options: Any) -> list[MediaSource]:
    """The files of a benchmark.

    Args:
        name: One of ``BENCHMARKS``.
        root: Folder of the benchmark; the JSON file of ``deepfakebench``, the CSV of
            ``antifakeprompt``.
        options: Options of the reader; None counts as not given.

    Raises:
        FileNotFoundError: As for the reader; or there are no files at all.
        ValueError: As for the reader and ``check_sources``; or the benchmark or an option is
            unknown.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}")
    reader, known = BENCHMARKS[name]
    given = {option: value for option, value in options.items() if value is not None}
    strange = [option for option in given if option not in known]
    if strange:
        raise ValueError(f"{name} has no option {strange[0]}; it has {', '.join(known)}")
    sources = reader(root, **given)
    if not sources:
        raise FileNotFoundError(f"{root} holds no videos or pictures of {name}")
    check_sources(sources)
    return sources


def write_manifest(sources: Sequence[MediaSource], path: str | PathLike) -> None:
    """Write a manifest of sources.

    Raises:
        ValueError: There are no sources, a name occurs twice, or a video or identity is in two
            splits.
    """
    path = Path(path)
    if not sources:
        raise ValueError(f"no sources were given to write to {path}")
    check_sources(sources)
    base = path.parent.resolve()
    rows = []
    for source in sources:
        row = {name: value for name, value in asdict(source).items() if value is not None}
        for name in _PATHS:
            if name in row:
                row[name] = Path(os.path.relpath(row[name].resolve(), base)).as_posix()
        rows.append(row)
    write_json_lines(path, rows)


def read_manifest(path: str | PathLike) -> list[MediaSource]:
    """The inverse of :func:`write_manifest`.

    Raises:
        FileNotFoundError: The manifest, or a file or mask that it names, does not exist.
        ValueError: As for :func:`write_manifest`, or a line is invalid.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no manifest {path}; make it with: llava-forgery data import-benchmark"
        )
    known = {field.name for field in fields(MediaSource)}
    sources = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict) or not set(_NEEDED) <= set(row) <= known:
            raise ValueError(
                f"{where}: expected the keys {', '.join(_NEEDED)} and optionally "
                f"{', '.join(sorted(known - set(_NEEDED)))}, got {line[:120]}"
            )
        for name in _PATHS:
            if name in row:
                row[name] = Path(os.path.normpath(path.parent / row[name]))
                if not row[name].is_file():
                    raise FileNotFoundError(f"{where}: there is no file {row[name]}")
        try:
            sources.append(MediaSource(**{"identity": None} | row))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
    if not sources:
        raise ValueError(f"{path} names no files")
    check_sources(sources)
    return sources
