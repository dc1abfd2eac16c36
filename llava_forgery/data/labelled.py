"""Photos with labels, real or fake, from two folders or a CSV.

A folder::

    DATA/real/**/*.png    DATA/fake/**/*.png

The folder of a photo, such as ``fake/sd2``, is its set, by which accuracy is reported.

A CSV (paths relative to the file; ``set`` is optional)::

    path,label,set
    photos/001.png,real,coco
    made/7.png,fake,sd2
"""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from llava_forgery.constants import FAKE, LABEL_NAMES, REAL
from llava_forgery.faces.sources import media_below
from llava_forgery.tables import read_table

_LABELS = {"real": REAL, "fake": FAKE, str(REAL): REAL, str(FAKE): FAKE}


@dataclass(frozen=True)
class LabelledFile:
    """One photo with its label and set."""

    path: Path
    label: int
    """0 real, 1 fake."""
    set: str
    """Collection or generator of the photo."""

    def __post_init__(self) -> None:
        if self.label not in (REAL, FAKE):
            raise ValueError(f"label must be 0 (real) or 1 (fake), got {self.label!r}")
        if not self.set:
            raise ValueError(f"set must have a name, got {self.set!r} for {self.path}")


def read_labelled(source: str | PathLike) -> list[LabelledFile]:
    """All photos of a folder or CSV, in a fixed order.

    Args:
        source: Folder with ``real/`` and ``fake/``, or a CSV file.

    Raises:
        FileNotFoundError: There is no such folder or file, or a line of the CSV names a photo that
            does not exist.
        ValueError: There are no photos, a column is missing, or a label is unknown; the message
            names file and line.
    """
    source = Path(source)
    if source.is_dir():
        images = list(_read_folder(source))
    elif source.is_file():
        images = list(_read_csv(source))
    else:
        raise FileNotFoundError(
            f"there is no folder or CSV file {source}; give a folder that holds real/ and fake/, "
            "or a CSV with the columns path,label"
        )
    if not images:
        raise ValueError(f"{source} names no photos")
    return images


def read_sources(sources: list[str | PathLike]) -> list[LabelledFile]:
    """The photos of several folders and CSV files."""
    return [image for source in sources for image in read_labelled(source)]


def _read_folder(root: Path) -> Iterator[LabelledFile]:
    missing = [name for name in LABEL_NAMES if not (root / name).is_dir()]
    # Folders of some generators only hold fakes and can be evaluated with others' real photos.
    if len(missing) == len(LABEL_NAMES):
        raise ValueError(f"{root} holds neither real/ nor fake/; put the photos into these folders")
    for label, name in enumerate(LABEL_NAMES):
        if name in missing:
            continue
        files = media_below(root / name, videos=False)
        if not files:
            raise ValueError(f"{root / name} holds no images; expected photographs in it")
        for file in files:
            yield LabelledFile(file, label, file.parent.relative_to(root).as_posix())


def _read_csv(path: Path) -> Iterator[LabelledFile]:
    for where, row in read_table(path, ("path", "label"), ("set",)):
        label = _LABELS.get(row["label"].lower())
        if label is None:
            raise ValueError(
                f"{where}: label must be real, fake, 0 (real) or 1 (fake), got {row['label']!r}"
            )
        file = path.parent / row["path"]
        if not file.is_file():
            raise FileNotFoundError(f"{where}: there is no file {file}")
        yield LabelledFile(file, label, row.get("set") or LABEL_NAMES[label])
