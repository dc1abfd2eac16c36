"""The shipped model: its weights in the package, its host built once and kept in a cache.

And detectors by themselves, whether they lie in a folder of their own or in an adapter's.
"""

import logging
import os
from os import PathLike
from pathlib import Path
from typing import Any

from llava_forgery.files import read_json
from llava_forgery.hosts.names import CONFIG, KFD, MODEL_CONFIG, is_exported
from llava_forgery.hosts.small_llava import (
    RECIPE,
    SHA256,
    build_small_llava,
    missing_packages,
)
from llava_forgery.hub import local_folder
from llava_forgery.kfd.checkpoint import CONFIG as KFD_CONFIG
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.optional import lazy

# Of exported checkpoints only.
skeleton = lazy("llava_forgery.kfd.skeleton")

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parents[1] / "default"
"""A detector (``kfd/``) and, beside it, its adapter for the small host."""
CACHE = "LLAVA_FORGERY_CACHE"
"""Environment variable that names the cache's folder."""


def default_model() -> Path:
    """The folder of the shipped weights.

    Raises:
        FileNotFoundError: This installation has none.
    """
    if not (FOLDER / KFD / KFD_CONFIG).is_file():
        raise FileNotFoundError(
            f"this installation ships no model ({FOLDER / KFD} is missing): name one (--model)"
        )
    return FOLDER


def missing_for_answers() -> str | None:
    """What the shipped model lacks for answers, as a sentence; None if nothing."""
    if not (FOLDER / CONFIG).is_file():
        return (
            "the shipped model is a detector alone: train an adapter for answers (llava-forgery "
            "train adapter)"
        )
    return missing_packages()


def cache_folder(cache: str | PathLike | None = None) -> Path:
    """Where what is built once is kept: ``cache``, $LLAVA_FORGERY_CACHE or ~/.cache."""
    if cache is not None:
        return Path(cache)
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE])
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "llava-forgery"


def default_host(cache: str | PathLike | None = None) -> Path:
    """The folder of the shipped adapter's host, built when it is not in the cache.

    Args:
        cache: As for :func:`cache_folder`.

    Raises:
        FileNotFoundError: The package with its language model is not installed.
        OSError: The cache cannot be written.
    """
    folder = cache_folder(cache) / f"small-llava-{SHA256[:12]}"
    if not (folder / RECIPE).is_file():
        logger.info("building the default's language model in %s, once", folder)
        build_small_llava(folder)
    return folder


def shipped_model(
    host: Any, answers: str | None, cache: str | PathLike | None
) -> tuple[Path, Any, str | None]:
    """The shipped model's folder, its host, and which answers it can give.

    Args:
        host: Instead of the default's own; None builds that where answers are wanted.
        answers: As for the predictor; ``none`` comes back where something is missing for answers,
            and a warning says what.
        cache: As for :func:`cache_folder`.

    Raises:
        FileNotFoundError: This installation ships no model.
    """
    folder = default_model()
    if answers == "none":
        return folder, host, answers
    missing = missing_for_answers() if host is None else None
    if missing is not None:
        logger.warning("scores without answers: %s", missing)
        return folder, host, "none"
    return folder, host or str(default_host(cache)), answers


def is_detector(directory: str | PathLike) -> bool:
    """Whether a folder holds a detector and no adapter."""
    return (Path(directory) / KFD_CONFIG).is_file()


def exported_reads_host(directory: str | PathLike) -> bool:
    """Whether a folder is an exported checkpoint whose detector reads the host's vision tower."""
    if not is_exported(directory):
        return False
    values = read_json(Path(directory) / MODEL_CONFIG)
    return values["kfd"]["config"]["encoder"]["kind"] == "host"


def load_detector_of(
    directory: str | PathLike, host: Any = None, allow_download: bool = False
) -> KnowledgeGuidedForgeryDetector:
    """A detector's folder, or the detector of an adapter or an exported checkpoint, without host.

    Args:
        directory: The folder, or its hub name.
        host: Folder or hub name of the host whose vision tower the detector reads; by default the
            one it names. Detectors with an encoder of their own need none.
        allow_download: Whether what the folder's files name may be downloaded.

    Raises:
        FileNotFoundError: There is no detector.
        ValueError: A file is damaged; or the detector reads the vision tower of the host that an
            exported checkpoint holds, which must be loaded with it.
    """
    folder = local_folder(directory)
    if is_exported(folder):
        if exported_reads_host(folder):
            raise ValueError(f"the detector in {directory} reads its host's tower: load the whole")
        return skeleton.load_from_model(read_json(folder / MODEL_CONFIG)["kfd"], folder)
    if not is_detector(folder):
        folder = folder / KFD
    config = folder / KFD_CONFIG
    if not config.is_file():
        raise FileNotFoundError(f"{directory} holds neither a detector nor an adapter with one")
    reads_host = read_json(config)["config"]["encoder"]["kind"] == "host"
    return KnowledgeGuidedForgeryDetector.from_pretrained(
        folder, base_model=host if reads_host else None, allow_download=allow_download
    )
