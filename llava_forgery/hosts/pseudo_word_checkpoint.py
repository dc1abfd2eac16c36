"""Saving and loading a pseudo-word: a few kilobytes, and which host they belong to.

Layout::

    pseudo_word.json           format, host's name and fingerprint, question, training sources
    pseudo_word.safetensors    the vectors, float32
"""

from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from llava_forgery.files import (
    atomic_path,
    check_output_folder,
    portable_name,
    read_json,
    write_json,
)
from llava_forgery.hosts.fingerprint import (
    TOLERANCE,
    check_fingerprint,
    probe_difference,
)
from llava_forgery.hosts.pseudo_word import (
    LANGUAGE_MODEL,
    PseudoWordConfig,
    PseudoWordVLM,
    attach_pseudo_word,
    bare_host,
)
from llava_forgery.hosts.transformers.model import ForgeryVLM
from llava_forgery.weights import load_tensors, save_tensors

CONFIG, VECTORS = "pseudo_word.json", "pseudo_word.safetensors"
FORMAT = 1
ENTRIES = (CONFIG, VECTORS)


def save_pseudo_word(model: PseudoWordVLM, directory: str | PathLike) -> None:
    """Write the word of a model.

    Args:
        model: From :func:`attach_pseudo_word`.
        directory: A word there is replaced as a whole.

    Raises:
        ValueError: There is something else.
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
        ValueError: Of another format.
    """
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} holds no {CONFIG}, so it is no pseudo-word; "
            "`llava-forgery train-pseudo-word` writes one"
        )
    config = read_json(path)
    if config.get("format") != FORMAT:
        raise ValueError(f"{path} has format {config.get('format')}; this version reads {FORMAT}")
    return config


def load_pseudo_word(
    directory: str | PathLike,
    model: PreTrainedModel | ForgeryVLM,
    processor: ProcessorMixin,
) -> PseudoWordVLM:
    """Attach a saved word to a copy of its host.

    Args:
        directory: The word's.
        model: The host, or what ``attach_forgery`` made of it.
        processor: Its processor.

    Returns:
        In eval mode.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The host is another one, or a file does not fit.
    """
    directory = Path(directory)
    config = read_pseudo_word_config(directory)
    check_fingerprint(bare_host(model), config["host"], str(directory))
    settings = PseudoWordConfig(**config["config"])
    vlm = attach_pseudo_word(model, processor, settings)
    _check_more(vlm, config["more_embeddings"], directory)
    vlm.word.load_state_dict(load_tensors(directory / VECTORS, vlm.word.state_dict()))
    vlm.sources = tuple(config["sources"])
    return vlm.eval()


def _check_more(vlm: PseudoWordVLM, expected: dict[str, list[float]], directory: Path) -> None:
    """A host may share its language model with another one but not its Q-Former."""
    found = vlm.more_embeddings
    if set(found) != set(expected):
        raise ValueError(
            f"{directory} has vectors for {sorted([LANGUAGE_MODEL, *expected])}, this host reads "
            f"the question in {sorted([LANGUAGE_MODEL, *found])}; give the host it was trained with"
        )
    for name, probe in expected.items():
        difference = probe_difference(probe, found[name])
        if difference > TOLERANCE:
            raise ValueError(
                f"{directory} was trained for a host with another {name} (its embedding differs by "
                f"{difference:.2g} of its size); give the host it was trained with"
            )
