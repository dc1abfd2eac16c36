"""Data sets for evaluation with lmms-eval: image, label, regions, video.

The output is a Hugging Face data set with the single split ``test``.
"""

from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import datasets

import llava_forgery
from llava_forgery.constants import FAKE, REAL
from llava_forgery.data.samples import FORGED, PRISTINE
from llava_forgery.files import atomic_path, check_output_folder, write_json
from llava_forgery.images import png_bytes
from llava_forgery.progress import progress
from llava_forgery.qa.templates import join_regions
from llava_forgery.rows import write_rows
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.tensors import to_bytes

SPLIT, DICTIONARY = "test", "dataset_dict.json"
# Any DatasetDict may hold the other two: this file identifies ours.
SUMMARY = "export.json"
ENTRIES = frozenset({SPLIT, DICTIONARY, SUMMARY})
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.Value("int8"),
        "regions": datasets.List(datasets.Value("string")),
        "video_id": datasets.Value("string"),
        "identity": datasets.Value("string"),
        "source": datasets.Value("string"),
    }
)


def export_simulated(pairs: FacePairs, output_dir: str | PathLike) -> int:
    """Write the forged and the pristine image of each pair, one after the other.

    All forgeries of one photograph count as a video, and its pristine images as another.

    Args:
        pairs: Pairs of people who were not in training.
        output_dir: Output folder; an existing data set is replaced.

    Returns:
        The number of images.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for pair in progress(
            (pairs[i] for i in range(len(pairs))), "forge", "pair", total=len(pairs)
        ):
            face = faces[pair.row]
            for label, image, regions in (
                (FAKE, pair.forged, pair.regions),
                (REAL, pair.pristine, ()),
            ):
                kind = "forged" if label == FAKE else "pristine"
                note = (
                    FORGED.format(regions=join_regions(regions))
                    if label == FAKE
                    else PRISTINE.format(source=face["source"])
                )
                yield {
                    "image": {"bytes": png_bytes(to_bytes(image), note), "path": None},
                    "label": label,
                    "regions": list(regions),
                    "video_id": f"{face['video_id']}/{kind}",
                    "identity": face["identity"],
                    "source": face["source"],
                }

    faces = pairs.faces.remove_columns("image")
    _write(rows, output_dir)
    return 2 * len(pairs)


def export_faces(faces: datasets.Dataset, output_dir: str | PathLike) -> int:
    """Write faces with their own labels, such as a prepared benchmark's; no regions are known.

    Args:
        faces: Rows of ``FaceCrop``.
        output_dir: Output folder; an existing data set is replaced.

    Returns:
        The number of images.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for face in progress(faces, "export", "face"):
            kept = {name: face[name] for name in FEATURES if name != "regions"}
            yield {**kept, "regions": []}

    _write(rows, output_dir)
    return len(faces)


def _write(rows: Callable[[], Iterator[dict[str, Any]]], output_dir: str | PathLike) -> None:
    check_output_folder(output_dir, SUMMARY, entries=ENTRIES)
    with atomic_path(Path(output_dir)) as temporary:
        temporary.mkdir()
        write_rows(rows, FEATURES, temporary / SPLIT)
        # Makes it a DatasetDict, which lmms-eval needs.
        write_json(temporary / DICTIONARY, {"splits": [SPLIT]})
        write_json(temporary / SUMMARY, {"version": llava_forgery.__version__})
