"""Prepared faces as DeepfakeBench's pictures and data set JSON.

llava-forgery data export-deepfakebench --faces FACES --dataset Celeb-DF-v2 --out OUT
"""

from collections import Counter
from os import PathLike
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

import llava_forgery
from llava_forgery.faces.benchmarks.deepfakebench import to_deepfakebench
from llava_forgery.faces.crop import crop_box
from llava_forgery.faces.records import FaceCrop
from llava_forgery.faces.sources import MediaSource
from llava_forgery.files import atomic_path, check_output_folder, contained, is_name, write_json
from llava_forgery.images import save_png
from llava_forgery.progress import progress

# DeepfakeBench's own data are in folders named rgb as well: this file identifies ours.
SUMMARY = "export.json"


def export_deepfakebench(
    faces: datasets.Dataset, output_dir: str | PathLike, dataset: str, size: int = 256
) -> int:
    """Write faces in DeepfakeBench's layout: pictures, masks and the data set JSON.

    The output is ``rgb/DATASET/.../frames/VIDEO/000.png``, ``masks`` next to ``frames`` if masks
    are known, and ``DATASET.json``. Landmarks are not written, so detectors that need them cannot
    be trained on the result.

    Args:
        faces: Rows of ``FaceCrop`` with both labels.
        output_dir: Output folder; an existing one is replaced as a whole.
        dataset: DeepfakeBench's name of the data set; see ``to_deepfakebench``.
        size: Side of the pictures in pixels; crops are scaled as a whole.

    Returns:
        The number of pictures.

    Raises:
        ValueError: As for ``to_deepfakebench``; or there are several faces of one frame, or the
            name would lead to another folder.
    """
    if not is_name(dataset) or "/" in dataset:
        raise ValueError(
            f"dataset must be a name without a slash, such as 'Celeb-DF-v2', got {dataset!r}"
        )
    listing = f"{dataset}.json"
    check_output_folder(output_dir, SUMMARY, entries=("rgb", listing, SUMMARY))
    with atomic_path(Path(output_dir)) as temporary:
        folder = temporary / "rgb" / dataset
        sources = [
            _frame_file(FaceCrop.from_row(row), folder, size)
            for row in progress(faces, "export", "face")
        ]
        names = Counter(source.name for source in sources)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(
                f"{twice[0]} would be written twice: DeepfakeBench takes one face per frame; "
                "prepare without --all-faces"
            )
        value = to_deepfakebench(sources, dataset, temporary / "rgb")
        write_json(temporary / listing, value)
        write_json(temporary / SUMMARY, {"dataset": dataset, "version": llava_forgery.__version__})
    return len(sources)


def _frame_file(face: FaceCrop, folder: Path, size: int) -> MediaSource:
    """Write a face's picture and mask, and return their paths."""
    # A photograph is its own only frame.
    number = face.frame or 0
    folder = folder / face.split
    box = (0.0, 0.0, float(face.image.shape[0]), float(face.image.shape[0]))
    paths = {}
    for kind, pixels in (("frames", face.image), ("masks", face.mask)):
        if pixels is None:
            continue
        path = contained(folder / kind, f"{face.video_id}/{number:03d}.png")
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        save_png(Image.fromarray(crop_box(pixels, box, size)), path, f"{kind} of {face.source}")
        paths[kind] = path
    return MediaSource(
        path=paths["frames"],
        name=f"{face.video_id}/{number:03d}",
        video_id=face.video_id,
        identity=None,
        label=face.label,
        split=face.split,
        method=face.method,
        compression=face.compression,
        mask_path=paths.get("masks"),
        frame=number,
    )
