"""Loading a host of either backend by its name with a new skill, ready to be trained."""

from os import PathLike
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from llava_forgery.downloads import allow_downloads
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.llava.encoder import DEFAULT_TEMPLATE
from llava_forgery.hosts.llava.host import SPARED, load_llava_host, read_checkpoint
from llava_forgery.hosts.llava.tower import KFDVisionTower
from llava_forgery.hosts.llava.vlm import attach_llava
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.placement import ALWAYS, FACE
from llava_forgery.hosts.quantized import pick_device, quantization_config
from llava_forgery.hosts.transformers.loading import load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector

BACKENDS = ("auto", "transformers", "llava")


def find_backend(base_model: str, backend: str = "auto") -> str:
    """The backend of a checkpoint: LLaVA's configurations contain ``mm_vision_tower``.

    Args:
        base_model: Folder or hub name of the checkpoint.
        backend: Backend given by the user; "auto" reads the checkpoint's configuration.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The backend is unknown.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend != "auto":
        return backend
    try:
        values, _ = PreTrainedConfig.get_config_dict(base_model)
    except OSError as error:
        raise FileNotFoundError(
            f"the host {base_model!r} could not be loaded ({str(error).splitlines()[0]}); give its "
            "folder or hub name (--base-model)"
        ) from error
    return "llava" if "mm_vision_tower" in values else "transformers"


def attach_new(
    base_model: str,
    kfd: str | PathLike,
    lora: LoraSettings | None = None,
    *,
    backend: str = "auto",
    seed: int = 0,
    train_projector: bool = False,
    quantization: str | None = None,
    dtype: torch.dtype | str = "auto",
    template: str = DEFAULT_TEMPLATE,
    placement: str = ALWAYS,
    crop: str = FACE,
    allow_download: bool = False,
    fpl_kind: str = "lite",
) -> ForgeryModel:
    """Load a host and attach a new skill.

    Args:
        base_model: Folder or hub name of the host.
        kfd: Folder of a trained detector.
        lora: Sizes of a new LoRA on the language model; None leaves the language model unchanged.
        backend: As for :func:`find_backend`.
        seed: Seed of the new weights.
        train_projector: Whether to also train the host's own projector.
        quantization: "4bit" or "8bit" for the language model's linear layers.
        dtype: Dtype of the host's weights.
        template: With the ``llava`` package: name in LLaVA's ``conv_templates``.
        placement: Whether E_forgery follows each image of every prompt (``always``), or is only at
            written ``placeholders``; see :mod:`llava_forgery.hosts.placement`.
        crop: Whether the ``face`` is cut out of pictures that come without ``forgery_images``, or
            the whole picture is judged (``none``).
        allow_download: Whether models that the detector's files name may be downloaded.
        fpl_kind: Sizes of the new FPL, "lite" or "paper".

    Raises:
        FileNotFoundError: Host or detector is missing.
        ImportError: A package is not installed; the message names it.
        ValueError: As for the backend's own functions, or host and detector do not match.
    """
    if find_backend(base_model, backend) == "transformers":
        # A detector on the host's own tower finds it in the host.
        detector = KnowledgeGuidedForgeryDetector.from_pretrained(
            kfd, with_tower=False, allow_download=allow_download
        )
        host, processor = load_host(Path.cwd(), base_model, quantization, dtype=dtype)
        width = host.config.get_text_config().hidden_size
        fpl = FPLConfig(width, detector.config.num_layers, fpl_kind)
        return attach_forgery(
            host, processor, detector, fpl, lora, seed, train_projector, placement, crop
        )
    options = {}
    if quantization is not None:
        _, config, _ = read_checkpoint(base_model)
        options["quantization"] = quantization_config(config, quantization, dtype, SPARED)
        options["device"] = pick_device()
    tokenizer, model = load_llava_host(base_model, dtype=dtype, **options)
    fpl = FPLConfig(
        model.config.hidden_size,
        KFDVisionTower(str(kfd), delay_load=True).config.num_layers,
        fpl_kind,
    )
    with allow_downloads(allow_download):
        return attach_llava(
            model,
            tokenizer,
            kfd,
            fpl,
            lora,
            seed,
            train_projector,
            template,
            placement,
            crop,
        )
