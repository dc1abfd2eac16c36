"""Forgery conversations mixed with general instruction data, so that a host keeps what it can do.

LVLM-DFD (section 3.2 and "Implementation Details") alternates between the deepfake data and the
host's own instruction data: a ratio of 0.5 here.

    llava-forgery data mix --qa QA/conversations.json --general llava_v1_5_mix665k.json \\
        --general-images IMAGES --general-ratio 0.5 --out mixed.json
"""

import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from os import PathLike
from pathlib import Path

import datasets
import numpy as np

from llava_forgery.files import contained
from llava_forgery.qa.llava_json import (
    LlavaSample,
    image_file,
    llava_dataset,
    read_llava_json,
    write_llava_json,
)

logger = logging.getLogger(__name__)


def mix_general(
    skill: datasets.Dataset, general: datasets.Dataset, general_ratio: float, seed: int = 0
) -> datasets.Dataset:
    """Mix two data sets; every row of ``skill`` stands in the result exactly once.

    Of ``general`` as many rows are drawn as the ratio asks for: at random and without repetition
    as long as there are any left, then from the whole again. At a ratio of 0.5 the two alternate
    strictly, at another one the order is drawn (``datasets.interleave_datasets``).

    Args:
        skill: Forgery conversations.
        general: General instruction data, of the same columns and types.
        general_ratio: Share of general rows in the result, from 0 to under 1.
        seed: Of the draw and the order.

    Returns:
        The mixed rows; nothing is copied.

    Raises:
        ValueError: The ratio is out of range, the columns differ, or a data set has no rows.
    """
    if not 0 <= general_ratio < 1:
        raise ValueError(
            f"general_ratio is the share of general data and lies from 0 to under 1, got "
            f"{general_ratio}"
        )
    if not len(skill):
        raise ValueError("there are no forgery conversations to mix, got 0 rows")
    count = round(len(skill) * general_ratio / (1 - general_ratio))
    if count == 0:
        return skill
    if not len(general):
        raise ValueError(f"general_ratio is {general_ratio}, but the general data has no rows")
    if skill.features != general.features:
        # interleave_datasets would fill a missing column with None.
        differing = [
            name
            for name in sorted({*skill.features, *general.features})
            if skill.features.get(name) != general.features.get(name)
        ]
        raise ValueError(
            f"both data sets need the same columns and types; they differ in {', '.join(differing)}"
        )
    if count > len(general):
        logger.warning(
            "%d general rows are needed for a ratio of %g and there are %d: each is repeated "
            "about %.1f times",
            count,
            general_ratio,
            len(general),
            count / len(general),
        )
    drawn = general.select(_rounds(len(general), count, seed))
    probabilities = None if count == len(skill) else [1 - general_ratio, general_ratio]
    return datasets.interleave_datasets(
        [skill, drawn],
        probabilities=probabilities,
        seed=seed,
        stopping_strategy="all_exhausted_without_replacement",
    )


def mix_llava_json(
    skill_json: str | PathLike,
    general_json: str | PathLike,
    out: str | PathLike,
    *,
    general_ratio: float,
    skill_images: str | PathLike | None = None,
    general_images: str | PathLike | None = None,
    image_folder: str | PathLike | None = None,
    allow_absolute_paths: bool = False,
    skip_invalid: bool = False,
    seed: int = 0,
) -> int:
    """Mix two files of LLaVA's JSON into one that LLaVA's training scripts read.

    What comes from ``general_json`` is marked with ``"general": true``, so that training tells it
    from the skill's conversations: it gets no placeholders, and the detector does not see it.

    The image paths of the result are relative to ``image_folder``, which is then the training's
    ``--image_folder``; no image is copied.

    Args:
        skill_json: From ``data build-qa``.
        general_json: Such as LLaVA's own instruction data; entries without images are fine.
        out: The file to write.
        general_ratio: As in :func:`mix_general`.
        skill_images: What the paths in ``skill_json`` are relative to; its own folder if None.
        general_images: The same for ``general_json``.
        image_folder: Holds the images of both, and the paths in the result are relative to it; the
            folder of ``out`` if None.
        allow_absolute_paths: Whether images may lie elsewhere, too; the training needs the same.
        skip_invalid: Leave general entries out that are not valid, each with a warning.
        seed: As in :func:`mix_general`.

    Returns:
        The number of entries written.

    Raises:
        FileNotFoundError: A file or an image is missing.
        ValueError: As :func:`mix_general` and :func:`read_llava_json`; or an image lies outside
            ``image_folder``.
    """
    target = Path(out).parent if image_folder is None else Path(image_folder)
    parts = []
    for source, images, skip in (
        (skill_json, skill_images, False),
        (general_json, general_images, skip_invalid),
    ):
        folder = Path(images) if images is not None else Path(source).parent
        samples = read_llava_json(
            source, folder, skip_invalid=skip, allow_absolute_paths=allow_absolute_paths
        )
        if source is general_json:
            samples = (_marked(sample, source) for sample in samples)
        parts.append(llava_dataset(_moved(samples, folder, target, allow_absolute_paths)))
    mixed = mix_general(*parts, general_ratio, seed)
    return write_llava_json((LlavaSample.from_entry(row) for row in mixed), out)


def _moved(
    samples: Iterable[LlavaSample], old: Path, new: Path, anywhere: bool
) -> Iterable[LlavaSample]:
    def moved(sample: LlavaSample, image: str) -> str:
        file = os.path.abspath(image_file(old, image, anywhere))
        try:
            return contained(new, file).relative_to(new).as_posix()
        except ValueError as error:
            if anywhere:
                return Path(os.path.relpath(os.path.realpath(file), new.resolve())).as_posix()
            common = os.path.commonpath([file, os.path.abspath(new)])
            raise ValueError(
                f"sample {sample.id!r} has the image {file}, which lies outside {new}, the folder "
                "that the paths of the result are relative to; name one that holds the images of "
                f"both files (--image-folder {common}), and train with it, or let paths lead "
                "anywhere (--allow-absolute-paths)"
            ) from error

    for sample in samples:
        yield replace(sample, images=tuple(moved(sample, image) for image in sample.images))


def _marked(sample: LlavaSample, source: str | PathLike) -> LlavaSample:
    if sample.label is not None:
        raise ValueError(
            f"{source}: entry {sample.id!r} is labelled {sample.label} (0 real, 1 fake), so it "
            "teaches the skill and is no general data; give it as --qa"
        )
    return replace(sample, general=True)


def _rounds(length: int, count: int, seed: int) -> np.ndarray:
    """``count`` row numbers, in rounds over all rows, each in an order of its own."""
    laps = -(-count // length)
    orders = [np.random.default_rng([seed, lap]).permutation(length) for lap in range(laps)]
    return np.concatenate(orders)[:count]
