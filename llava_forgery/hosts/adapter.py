"""A forgery adapter on disk: saving, loading and model card, without the host.

Layout::

    forgery_config.json    format, host's name and fingerprint, FPL's configuration, versions
    fpl.safetensors        the learner
    kfd/                   the detector (llava_forgery.kfd.checkpoint)
    adapter_config.json, adapter_model.safetensors          LoRA in peft's format, if any
    host_trainables.safetensors                             the host's projector, if it was trained
    README.md              the model card

``PeftModel.from_pretrained(host, adapter)`` reads only the LoRA: a host without detector and
learner, which gets no E_forgery in its prompts. Adapters in LLaVA's layout
(:mod:`llava_forgery.hosts.llava.checkpoint`) hold the same files, with LLaVA's ``config.json``
instead of the first.
"""

import importlib.metadata
import shutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import llava_forgery
from llava_forgery.files import (
    atomic_path,
    check_output_folder,
    portable_name,
    read_json,
    write_json,
    write_text,
)
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.frozen_lora import FrozenLora
from llava_forgery.hosts.lora import LORA_CONFIG, LORA_WEIGHTS, fill_lora, save_lora
from llava_forgery.hosts.names import CARD, CONFIG, FPL, KFD
from llava_forgery.hosts.projector import TRAINABLES, TrainedProjector, fill_projector
from llava_forgery.hub import is_hub_name
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.optional import lazy
from llava_forgery.weights import load_tensors, save_tensors

huggingface_hub = lazy("huggingface_hub")

FORMAT = 2
ENTRIES = (CONFIG, FPL, KFD, LORA_CONFIG, LORA_WEIGHTS, TRAINABLES, CARD)
# Folder of peft's files in format 1.
_LORA_1 = "lora"

_LIBRARIES = ("torch", "transformers", "peft")


class AdaptedModel(Protocol):
    """What an adapter is written of, and filled into: a ``ForgeryVLM``."""

    host: Any
    """With LoRA a ``PeftModel``."""
    host_name: str
    fingerprint: dict[str, Any]
    kfd: KnowledgeGuidedForgeryDetector
    fpl: ForgeryPromptLearner
    frozen_lora: FrozenLora | None
    projector: TrainedProjector | None
    training_facts: dict[str, Any]
    placement: str
    crop: str

    @property
    def has_lora(self) -> bool: ...


def save_adapter(model: AdaptedModel, directory: str | PathLike) -> None:
    """Write the adapter of a model.

    Args:
        model: Model from :func:`llava_forgery.hosts.transformers.model.attach_forgery`.
        directory: Output folder; an existing adapter is replaced as a whole.

    Raises:
        ValueError: The folder holds something else.
    """
    directory = Path(directory)
    check_output_folder(directory, CONFIG)
    name = portable_name(model.host_name, directory)
    config = {
        "format": FORMAT,
        "versions": library_versions(),
        "host": {"name_or_path": name, **model.fingerprint},
        "fpl": model.fpl.config.to_dict(),
        "lora": model.has_lora,
        "training": model.training_facts,
        "placement": model.placement,
        "crop": model.crop,
    }
    with atomic_path(directory) as temporary:
        temporary.mkdir()
        save_tensors(temporary / FPL, model.fpl.state_dict())
        model.kfd.save_pretrained(temporary / KFD)
        if model.frozen_lora is not None:
            model.frozen_lora.save(temporary, name)
        elif model.has_lora:
            save_lora(model.host, temporary, name)
        if model.projector is not None:
            save_tensors(temporary / TRAINABLES, model.projector.state())
        write_json(temporary / CONFIG, config)
        write_card(temporary, name, model.has_lora, model.training_facts)


def read_adapter_config(directory: str | PathLike) -> dict[str, Any]:
    """The adapter's JSON file.

    Raises:
        FileNotFoundError: The folder is missing or holds no adapter.
        ValueError: The format differs.
    """
    config = _read_config(Path(directory))
    if config.get("format") == 1:
        raise ValueError(
            f"{directory} is an adapter of format 1, this version reads {FORMAT}; convert it with: "
            f"llava-forgery convert adapter --model {directory} --out NEW"
        )
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{Path(directory) / CONFIG} has format {config.get('format')}, this version reads "
            f"{FORMAT}; a newer llava-forgery may have written it"
        )
    return config


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise FileNotFoundError(
            f"there is no folder {directory}; give the folder of a forgery adapter, such as the "
            "demo's OUT/adapter"
        )
    if not (directory / CONFIG).is_file():
        raise FileNotFoundError(
            f"{directory} holds no {CONFIG}, so it is not a forgery adapter; "
            "`llava-forgery train adapter` writes one"
        )
    return read_json(directory / CONFIG)


def convert_format(source: str | PathLike, directory: str | PathLike) -> None:
    """Convert an adapter of format 1 to the current format, which has peft's files in its root.

    The host is not needed and not loaded, and weights are unchanged.

    Args:
        source: Adapter, which is left unchanged.
        directory: Output folder; an existing adapter is replaced as a whole.

    Raises:
        FileNotFoundError: ``source`` is not an adapter, or a file is missing.
        ValueError: The format of ``source`` differs, or ``directory`` holds something else.
    """
    source, directory = Path(source), Path(directory)
    config = _read_config(source)
    if config.get("format") != 1:
        raise ValueError(
            f"{source} is an adapter of format {config.get('format')}, nothing is to be done; to "
            "convert it for the other backend, name the host there (--base-model)"
        )
    check_output_folder(directory, CONFIG)
    # It may be relative to the folder that holds it.
    name = config["host"]["name_or_path"]
    if (source / name).is_dir():
        name = portable_name(str(source / name), directory)
    with atomic_path(directory) as temporary:
        temporary.mkdir()
        shutil.copy(source / FPL, temporary / FPL)
        shutil.copytree(source / KFD, temporary / KFD)
        if config["lora"]:
            for file in (LORA_CONFIG, LORA_WEIGHTS):
                shutil.copy(source / _LORA_1 / file, temporary / file)
            peft = read_json(temporary / LORA_CONFIG)
            write_json(temporary / LORA_CONFIG, {**peft, "base_model_name_or_path": name})
        write_json(
            temporary / CONFIG,
            {
                "format": FORMAT,
                # The versions that wrote the weights are unknown.
                "versions": {},
                "host": {**config["host"], "name_or_path": name},
                "fpl": config["fpl"],
                "lora": config["lora"],
                "training": {},
            },
        )
        write_card(temporary, name, config["lora"], {})


def fill_adapter(model: AdaptedModel, directory: str | PathLike) -> None:
    """Fill an attached FPL, LoRA and projector from an adapter's folder, strictly."""
    directory = Path(directory)
    fill_learner(model.fpl, directory)
    if model.frozen_lora is not None:
        model.frozen_lora.fill(directory)
    elif model.has_lora:
        fill_lora(model.host, directory)
    fill_projector(model.projector, directory)


def fill_learner(fpl: ForgeryPromptLearner, directory: Path) -> None:
    """Fill a built FPL from an adapter's folder, strictly."""
    fpl.load_state_dict(load_tensors(directory / FPL, fpl.state_dict()))


def library_versions() -> dict[str, str]:
    """Current versions of the libraries that write an adapter."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"llava_forgery": llava_forgery.__version__, **versions}


def write_card(directory: Path, host: str, lora: bool, training: Mapping[str, Any]) -> None:
    """Write the model card of an adapter, in either layout.

    Args:
        directory: Folder of the adapter.
        host: Folder or hub name of its host.
        lora: Whether the adapter holds LoRA.
        training: Known facts about its training, such as ``{"conversations": 700}``.
    """
    data = huggingface_hub.ModelCardData(
        base_model=host if is_hub_name(host) else None,
        library_name="llava-forgery",
        pipeline_tag="image-text-to-text",
        tags=["deepfake-detection", *(["lora", "peft"] if lora else [])],
    )
    text = _CARD.format(
        host=host,
        lora=_LORA_FILES if lora else "",
        training=_table(training) or "Nothing is recorded.",
        figures=_NO_FIGURES,
    )
    huggingface_hub.ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").save(directory / CARD)


def add_figures(directory: str | PathLike, figures: Mapping[str, float], data: str) -> None:
    """Write the figures of an evaluation into an adapter's model card, replacing earlier ones.

    Args:
        directory: Folder of an adapter, in either layout.
        figures: Values by name, such as ``{"auc": 0.93}``.
        data: Short description of the data.

    Raises:
        FileNotFoundError: The adapter has no card.
    """
    path = Path(directory) / CARD
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no {CARD}, the model card of an adapter")
    card = huggingface_hub.ModelCard.load(path)
    card.data.model_name = "forgery adapter"
    card.data.eval_results = [
        huggingface_hub.EvalResult("image-text-to-text", data, data, name, value)
        for name, value in figures.items()
    ]
    start = card.text.index(_FIGURES)
    card.text = f"{card.text[:start]}{_FIGURES}\n\nOn {data}:\n\n{_table(figures)}\n"
    write_text(path, str(card))


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name.replace('_', ' ')} | {_shown(value)} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_FIGURES = "## Figures"
_NO_FIGURES = "None are recorded; `llava-forgery eval run --card` writes them here."
_LORA_FILES = """\
| `adapter_config.json`, `adapter_model.safetensors` | LoRA, as peft writes it |

`PeftModel.from_pretrained` reads the LoRA only, and `AutoModel` loads the host with it: without
detector and Forgery Prompt Learner the model knows nothing of forgeries.
"""
_CARD = f"""\
# Forgery adapter for `{{host}}`

It gives this vision-language model forgery skills: a score, a map of the forged area, and
answers in dialogue.

```python
from llava_forgery import ForgeryPredictor

predictor = ForgeryPredictor.from_pretrained("FOLDER")  # base_model=... if the host lies elsewhere
predictor.predict("photo.jpg")
```

| file | |
|---|---|
| `kfd/` | the detector |
| `fpl.safetensors` | the Forgery Prompt Learner |
{{lora}}
Labels are real = 0 and fake = 1. A score is no proof: report it with its limits.

## Training

{{training}}

{_FIGURES}

{{figures}}
"""
