"""The face crop that all later stages start from, and its data set on disk.

A prepared folder holds ``faces/`` (a Hugging Face data set), ``manifest.jsonl`` (one row per face,
without pixels) and ``settings.json`` (how it was made). A manifest row::

    {"video_id": "001_03", "identity": "001", "label": 0, "source": "001_03.jpg", "split": "test",
     "box": [172.4, 171.0, 501.2, 499.8], "landmarks": [[67.1, 121.9], ...]}

Rows of videos and benchmarks may have further fields: ``frame``, ``track``, ``method``,
``compression``, ``angle``.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from llava_forgery.constants import FAKE, LABEL_NAMES, REAL
from llava_forgery.faces.crop import Box
from llava_forgery.files import atomic_path, check_name, to_json, write_json
from llava_forgery.images import decode_image, to_rgb
from llava_forgery.optional import lazy
from llava_forgery.rows import image_bytes, load_rows, write_rows

SPLITS = ("train", "val", "test")
FACES, MANIFEST, SETTINGS, REPORT = "faces", "manifest.jsonl", "settings.json", "report.json"

if TYPE_CHECKING:
    import datasets

    FEATURES: datasets.Features
else:
    datasets = lazy("datasets")
OPTIONAL = ("frame", "track", "method", "compression", "angle", "mask")
"""Columns that may be empty and that are missing in faces prepared by an earlier version."""


@cache
def _features() -> datasets.Features:
    values, numbers = datasets.Value, datasets.List
    return datasets.Features(
        {
            "image": datasets.Image(),
            "landmarks": numbers(numbers(values("float32"), length=2), length=68),
            "box": numbers(values("float64"), length=4),
            "video_id": values("string"),
            "identity": values("string"),
            "label": datasets.ClassLabel(names=list(LABEL_NAMES)),
            "source": values("string"),
            "split": values("string"),
            "frame": values("int32"),
            "track": values("int32"),
            "method": values("string"),
            "compression": values("string"),
            "angle": values("float64"),
            "mask": datasets.Image(),
        }
    )


def __getattr__(name: str) -> datasets.Features:
    # Built on demand: a verdict on a photograph does not need datasets.
    if name == "FEATURES":
        return _features()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class FaceCrop:
    """One face, cut out of a photograph or a frame.

    Coordinates are continuous: the centre of the first pixel lies at (0.5, 0.5).
    """

    image: np.ndarray
    """(S, S, 3) uint8 RGB."""
    landmarks: np.ndarray
    """(68, 2) float32, pixels of this crop, x right and y down, iBUG 300-W order; they may lie
    outside it."""
    box: Box
    """The crop's square in pixels of the source; it may extend beyond it."""
    video_id: str
    """Id shared by the frames of a video; for a photograph its source path without the suffix. This
    and the other names may become file paths: :func:`llava_forgery.files.is_name` holds for them.
    """
    identity: str
    """The person; faces of one identity are never in different splits."""
    label: int
    """0 real, 1 fake."""
    source: str
    """Path relative to the folder that was prepared, with forward slashes."""
    split: str
    """``"train"``, ``"val"`` or ``"test"``."""
    frame: int | None = None
    """Number of the frame in its video, from 0; None for a photograph."""
    track: int | None = None
    """Number of the face in its video, from 0, the same in all frames; None for a photograph."""
    method: str | None = None
    """Method of the forgery, such as ``"Deepfakes"``; None if real or unknown."""
    compression: str | None = None
    """Compression of the video, such as ``"c23"``; None if unknown."""
    angle: float | None = None
    """Clockwise rotation of the square ``box`` about its centre in degrees, for a crop that was
    turned upright; None for an unrotated crop."""
    mask: np.ndarray | None = None
    """(S, S) uint8, 255 where forged, 0 elsewhere; None if unknown."""

    def __post_init__(self) -> None:
        image, landmarks = self.image, self.landmarks
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            raise ValueError(f"image must be a uint8 array, got {_kind(image)}")
        if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1]:
            raise ValueError(f"image must have the shape (S, S, 3), got {image.shape}")
        if image.size == 0:
            raise ValueError("image has no pixels")
        if not isinstance(landmarks, np.ndarray) or landmarks.dtype != np.float32:
            raise ValueError(f"landmarks must be a float32 array, got {_kind(landmarks)}")
        if landmarks.shape != (68, 2):
            raise ValueError(f"landmarks must have the shape (68, 2), got {landmarks.shape}")
        if not np.isfinite(landmarks).all():
            raise ValueError(f"landmarks of {self.source} must be finite")
        if len(self.box) != 4 or not np.isfinite(self.box).all():
            raise ValueError(f"box must be four finite numbers, got {self.box}")
        if self.box[0] >= self.box[2] or self.box[1] >= self.box[3]:
            raise ValueError(f"box must be (x0, y0, x1, y1) with x0 < x1, y0 < y1, got {self.box}")
        for name in ("video_id", "identity", "source"):
            check_name(getattr(self, name), name)
        if self.label not in (REAL, FAKE):
            raise ValueError(f"label must be {REAL} (real) or {FAKE} (fake), got {self.label!r}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        self._check_optional()

    def _check_optional(self) -> None:
        for name in ("frame", "track"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ValueError(f"{name} must be None or 0 or more, got {value!r}")
        for name in ("method", "compression"):
            if getattr(self, name) is not None:
                check_name(getattr(self, name), name)
        if self.angle is not None and not np.isfinite(self.angle):
            raise ValueError(f"angle must be None or finite, got {self.angle}")
        mask = self.mask
        if mask is not None:
            if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8:
                raise ValueError(f"mask must be None or a uint8 array, got {_kind(mask)}")
            if mask.shape != self.image.shape[:2]:
                raise ValueError(
                    f"mask must have the image's shape {self.image.shape[:2]}, got {mask.shape}"
                )

    def to_row(self) -> dict[str, Any]:
        """A row of the data set, with the image as lossless PNG."""
        row = {"image": {"bytes": encode_png(self.image), "path": None}, **self.to_manifest()}
        if self.mask is not None:
            row["mask"] = {"bytes": encode_png(self.mask), "path": None}
        return {**dict.fromkeys(OPTIONAL), **row}

    def to_manifest(self) -> dict[str, Any]:
        """Everything except the pixels, JSON-serializable, without empty optional fields."""
        optional = {
            name: getattr(self, name)
            for name in OPTIONAL
            if name != "mask" and getattr(self, name) is not None
        }
        return {
            "video_id": self.video_id,
            "identity": self.identity,
            "label": int(self.label),
            "source": self.source,
            "split": self.split,
            "box": [float(value) for value in self.box],
            "landmarks": [[float(x), float(y)] for x, y in self.landmarks],
            **optional,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> FaceCrop:
        """Read a row of the data set, whose image may be decoded or not.

        Raises:
            ValueError: A column is missing, or a value is invalid.
        """
        missing = [name for name in _features() if name not in row and name not in OPTIONAL]
        if missing:
            raise ValueError(f"the row lacks {', '.join(missing)}; it has {', '.join(row)}")
        optional = {name: row.get(name) for name in OPTIONAL}
        if optional["mask"] is not None:
            optional["mask"] = image_pixels(optional["mask"], "L")
        x0, y0, x1, y1 = (float(value) for value in row["box"])
        return cls(
            image=image_pixels(row["image"], "RGB"),
            landmarks=np.asarray(row["landmarks"], dtype=np.float32),
            box=(x0, y0, x1, y1),
            video_id=row["video_id"],
            identity=row["identity"],
            label=int(row["label"]),
            source=row["source"],
            split=row["split"],
            **optional,
        )


def save_faces(
    crops: Iterable[FaceCrop], out_dir: str | PathLike, settings: Mapping[str, Any]
) -> int:
    """Write faces as a data set; see :func:`save_rows`."""
    return save_rows((crop.to_row() for crop in crops), out_dir, settings)


def save_rows(
    rows: Iterable[Mapping[str, Any]], out_dir: str | PathLike, settings: Mapping[str, Any]
) -> int:
    """Write faces as a data set, one after another, so that memory does not grow with them.

    Nothing in ``out_dir`` changes until all faces are written.

    Args:
        rows: Rows from :meth:`FaceCrop.to_row`, possibly a generator, whose exceptions are
            propagated.
        out_dir: Receives ``faces/``, ``manifest.jsonl`` and ``settings.json``; existing ones are
            replaced.
        settings: How the faces were made, for ``settings.json``.

    Returns:
        The number of faces.

    Raises:
        ValueError: There are no faces, or an identity or a video is in two splits.
    """
    out_dir = Path(out_dir)
    count = 0
    with atomic_path(out_dir / FACES) as folder, atomic_path(out_dir / MANIFEST) as manifest:
        folder.mkdir()
        with manifest.open("w", encoding="utf-8") as lines:

            def written() -> Iterator[dict[str, Any]]:
                nonlocal count
                for row in _checked(rows):
                    told = {
                        name: value
                        for name, value in row.items()
                        if name not in ("image", "mask") and value is not None
                    }
                    lines.write(to_json(told) + "\n")
                    count += 1
                    yield dict(row)
                if not count:
                    raise ValueError(f"no faces were given to write to {out_dir}")

            write_rows(written, _features(), folder)
    # An existing report describes the faces that were replaced.
    (out_dir / REPORT).unlink(missing_ok=True)
    write_json(out_dir / SETTINGS, dict(settings))
    return count


def encode_png(image: np.ndarray) -> bytes:
    """Lossless PNG of (H, W, 3) or (H, W) uint8; the same bytes for the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def load_faces(folder: str | PathLike, split: str | None = None) -> datasets.Dataset:
    """Load the faces that :func:`save_faces` wrote.

    Args:
        folder: Its ``out_dir``, or the ``faces`` folder within.
        split: Split to load; None for all.

    Returns:
        A memory-mapped data set whose rows :meth:`FaceCrop.from_row` reads; pictures are the bytes
        of their files (:func:`~llava_forgery.rows.embedded`).

    Raises:
        FileNotFoundError: There is no such folder, or no faces in it.
        ValueError: It holds something else, pictures by their paths only, or no face of that split.
    """
    folder = Path(folder)
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; make it with: llava-forgery data prepare PHOTOS "
            f"--out {folder}"
        )
    inner = folder / FACES if (folder / FACES).is_dir() else folder
    if not (inner / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no prepared faces; expected the folder that "
            "'llava-forgery data prepare PHOTOS --out FOLDER' wrote"
        )
    faces = load_rows(inner)
    expected = set(_features())
    if not expected - set(OPTIONAL) <= set(faces.column_names) <= expected:
        raise ValueError(f"{inner} is another data set: expected columns {list(_features())}")
    if split is not None:
        places = [i for i, name in enumerate(faces["split"]) if name == split]
        present = sorted(set(faces["split"]))
        if not places:
            raise ValueError(
                f"{folder} has no face of the split {split!r}, only of {', '.join(present)}; "
                "prepare it again with a test share above 0"
            )
        faces = faces.select(places)
    if len(faces) == 0:
        raise ValueError(f"{folder} holds no faces")
    return faces


def image_pixels(image: Mapping[str, Any] | Image.Image, mode: str) -> np.ndarray:
    """The pixels of a row's picture.

    Args:
        image: Picture from :func:`~llava_forgery.rows.embedded`, or a decoded one.
        mode: "RGB" for (H, W, 3) uint8, "L" for (H, W) uint8.

    Raises:
        ValueError: There is no picture, or it is broken.
    """
    if isinstance(image, Mapping):
        image = decode_image(image_bytes(image, "the row"), "the picture of the row")
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected a picture, got {_kind(image)}")
    pixels = to_rgb(image)
    return pixels if mode == "RGB" else np.array(Image.fromarray(pixels).convert(mode))


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__


def _checked(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    seen: dict[tuple[str, str], str] = {}
    for row in rows:
        for what in ("identity", "video_id"):
            name = row[what]
            before = seen.setdefault((what, name), row["split"])
            if before != row["split"]:
                raise ValueError(
                    f"{what} {name!r} is in the splits {before} and {row['split']}; each must be "
                    "in a single split"
                )
        yield row
