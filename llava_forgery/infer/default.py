"""The shipped model: its weights in the package, its host built once and kept in a cache."""

import logging
import os
from os import PathLike
from pathlib import Path

from llava_forgery.hosts.adapter import CONFIG, KFD
from llava_forgery.hosts.small_llava import (
    RECIPE,
    SHA256,
    build_small_llava,
    missing_packages,
)
from llava_forgery.kfd.checkpoint import CONFIG as KFD_CONFIG

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
