"""Mixing forgery conversations with general instruction data to preserve a host's abilities.

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
    """Mix two data sets; every row of ``skill`` is in the result exactly once.

    As many rows of ``general`` are drawn as the ratio requires, at random and without repetition
    until all are used, then from all again. At a ratio of 0.5 the two alternate strictly, otherwise
    the order is random (``datasets.interleave_datasets``).

    Args:
        skill: Forgery conversations.
        general: General instruction data, of the same columns and types.
        general_ratio: Share of general rows in the result, in [0, 1).
        seed: Seed of the draw and the order.

    Returns:
        The mixed rows, which are not copied.

    Raises:
        ValueError: The ratio is out of range, the columns differ, or a data set has no rows.
    """
    if not 0 <= general_ratio < 1:
        raise ValueError(
            f"general_ratio is the share of general data and must be in [0, 1), got {general_ratio}"
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
            "%d general rows are needed for a ratio of %g but there are %d: each is repeated "
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

    Entries of ``general_json`` are marked with ``"general": true``, so that training distinguishes
    them from the skill's conversations: they get no placeholders, and the detector does not see
    them.

    The image paths of the result are relative to ``image_folder``, which is then the training's
    ``--image_folder``; no image is copied.

    Args:
        skill_json: File from ``data build-qa``.
        general_json: File such as LLaVA's own instruction data; entries may lack images.
        out: File to write.
        general_ratio: As for :func:`mix_general`.
        skill_images: Folder that the paths in ``skill_json`` are relative to; None for that of the
            file.
        general_images: Folder that the paths in ``general_json`` are relative to; None for that of
            the file.
        image_folder: Folder with the images of both, to which the paths in the result are relative;
            None for the folder of ``out``.
        allow_absolute_paths: Whether images may also be elsewhere; training needs the same option.
        skip_invalid: Whether to skip invalid general entries, each with a warning.
        seed: As for :func:`mix_general`.

    Returns:
        The number of entries written.

    Raises:
        FileNotFoundError: A file or an image is missing.
        ValueError: As for :func:`mix_general` and :func:`read_llava_json`; or an image is outside
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
                f"sample {sample.id!r} has the image {file}, which is outside {new}, the folder "
                "that the paths of the result are relative to; give one that holds the images of "
                f"both files (--image-folder {common}), and train with it, or allow any paths "
                "(--allow-absolute-paths)"
            ) from error

    for sample in samples:
        yield replace(sample, images=tuple(moved(sample, image) for image in sample.images))


def _marked(sample: LlavaSample, source: str | PathLike) -> LlavaSample:
    if sample.label is not None:
        raise ValueError(
            f"{source}: entry {sample.id!r} is labelled {sample.label} (0 real, 1 fake), so it "
            "teaches the skill and is not general data; give it as --qa"
        )
    return replace(sample, general=True)


def _rounds(length: int, count: int, seed: int) -> np.ndarray:
    """``count`` row numbers, in rounds over all rows, each in a different order."""
    laps = -(-count // length)
    orders = [np.random.default_rng([seed, lap]).permutation(length) for lap in range(laps)]
    return np.concatenate(orders)[:count]
