"""Saving and loading a pseudo-word: a few kilobytes, and the fingerprint of their host.

Layout::

    pseudo_word.json           format, host's name and fingerprint, question, training sources
    pseudo_word.safetensors    the vectors, float32
"""

from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from llava_forgery.files import (
    atomic_path,
    check_output_folder,
    portable_name,
    read_json,
    write_json,
)
from llava_forgery.weights import save_tensors

CONFIG, VECTORS = "pseudo_word.json", "pseudo_word.safetensors"
FORMAT = 1
ENTRIES = (CONFIG, VECTORS)


def save_pseudo_word(model: nn.Module, directory: str | PathLike) -> None:
    """Write the word of a model.

    Args:
        model: Model from :func:`llava_forgery.hosts.pseudo_word.attach_pseudo_word`.
        directory: Output folder; an existing word is replaced as a whole.

    Raises:
        ValueError: The folder holds something else.
    """
    directory = Path(directory)
    check_output_folder(directory, CONFIG)
    with atomic_path(directory) as temporary:
        temporary.mkdir()
        save_tensors(temporary / VECTORS, model.word.state_dict())
        write_json(
            temporary / CONFIG,
            {
                "format": FORMAT,
                "host": {
                    "name_or_path": portable_name(model.host_name, directory),
                    **model.fingerprint,
                },
                "more_embeddings": model.more_embeddings,
                "config": model.config.to_dict(),
                "sources": list(model.sources),
            },
        )


def read_pseudo_word_config(directory: str | PathLike) -> dict[str, Any]:
    """The word's JSON file.

    Raises:
        FileNotFoundError: The folder is missing or holds no pseudo-word.
        ValueError: The format differs.
    """
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} holds no {CONFIG}, so it is not a pseudo-word; "
            "`llava-forgery train pseudo-word` writes one"
        )
    config = read_json(path)
    if config.get("format") != FORMAT:
        raise ValueError(f"{path} has format {config.get('format')}; this version reads {FORMAT}")
    return config
