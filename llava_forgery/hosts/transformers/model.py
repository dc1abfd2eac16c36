"""Give a loaded transformers image-text-to-text model the forgery skill.

Source: LVLM-DFD, sections 3.2 and 3.3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, ProcessorMixin

from llava_forgery.constants import FORGERY_TOKEN
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.families import family_of
from llava_forgery.hosts.fingerprint import host_fingerprint
from llava_forgery.hosts.lora import LoraSettings, lora_config
from llava_forgery.hosts.placeholder import input_embedding
from llava_forgery.hosts.placement import ALWAYS, FACE, check_crop, check_placement
from llava_forgery.hosts.projector import TrainedProjector
from llava_forgery.hosts.transformers.shared_tower import SharedTower
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.host_tower import HostEncoder
from llava_forgery.noise import quiet
from llava_forgery.optional import lazy

if TYPE_CHECKING:
    import peft
else:
    peft = lazy("peft")


@quiet()
def attach_forgery(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    kfd: KnowledgeGuidedForgeryDetector,
    fpl: ForgeryPromptLearner | FPLConfig | None = None,
    lora: LoraSettings | peft.LoraConfig | None = None,
    seed: int = 0,
    train_projector: bool = False,
    placement: str = ALWAYS,
    crop: str = FACE,
) -> ForgeryVLM:
    """Give a loaded host the forgery skill.

    The host's and the detector's weights are frozen; what remains trainable are the FPL and LoRA.
    ``<forgery>`` is added to the processor's tokenizer; the host's embedding is not resized.

    Args:
        model: A transformers image-text-to-text model.
        processor: Its processor.
        kfd: A trained detector.
        fpl: A learner, or its configuration for a new one; by default a new ``lite`` one of the
            host's width.
        lora: Sizes of a new LoRA on the language model, or peft's own configuration, whose list of
            names is taken to be of the language model; None leaves the language model as it is
            (prompt tuning only).
        seed: Of the new weights.
        train_projector: Train the host's own projector as well.
        placement: Whether E_forgery stands behind each image of every prompt (``always``), or
            at written ``placeholders`` only; see :mod:`llava_forgery.hosts.placement`.
        crop: Whether the ``face`` is cut out of pictures that come without ``forgery_images``, or
            the whole picture is judged (``none``).

    Returns:
        The module that takes ``forgery_images`` beside the host's own inputs.

    Raises:
        ValueError: The host is of a family that was not tried or has an encoder-decoder language
            model, the tokenizer owns ``<forgery>`` already, sizes do not fit, or there is no such
            placement or crop.
    """
    check_placement(placement)
    check_crop(crop)
    family = family_of(model)
    if model.config.get_text_config().is_encoder_decoder:
        raise ValueError(
            f"this {family.name} host has an encoder-decoder language model, which takes prompt "
            "and answer apart; use one with a decoder alone, such as InstructBLIP with Vicuna"
        )
    tokenizer = processor.tokenizer
    if FORGERY_TOKEN in tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizer owns {FORGERY_TOKEN} already: the skill is attached, or the host was "
            "saved with it; load host and processor anew"
        )
    fingerprint = host_fingerprint(model)
    width = fingerprint["hidden_size"]
    if fpl is None:
        fpl = FPLConfig(hidden_size=width, num_layers=kfd.config.num_layers)
    if isinstance(fpl, FPLConfig):
        fpl = replace(fpl, hidden_size=width)
        learner = ForgeryPromptLearner.from_config(fpl, seed)
        embedding = input_embedding(model)
        # Gemma's families multiply the rows of their embedding by the square root of its width.
        learner.match_scale(embedding.weight, float(getattr(embedding, "embed_scale", 1.0)))
    else:
        learner = fpl
    if learner.config.hidden_size != width:
        raise ValueError(
            f"this FPL makes embeddings of width {learner.config.hidden_size}, the host's are "
            f"{width} wide: it belongs to another host"
        )
    if learner.config.num_layers != kfd.config.num_layers:
        raise ValueError(
            f"this FPL reads {learner.config.num_layers} consistency maps, the detector gives "
            f"{kfd.config.num_layers}: it belongs to another detector"
        )
    # Refuses a host that does not fit, so before anything is changed.
    own_tower = isinstance(kfd.encoder, HostEncoder)
    shared = SharedTower(model, processor, kfd) if own_tower else None
    tokenizer.add_tokens([FORGERY_TOKEN], special_tokens=True)
    trained = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    model.requires_grad_(False)
    kfd.requires_grad_(False).eval()
    host: PreTrainedModel | peft.PeftModel = model
    if lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            host = peft.get_peft_model(model, lora_config(model, lora))
    projector = None
    if train_projector:
        projector = TrainedProjector(model, family.projector)
        projector.unfreeze()
    device = input_embedding(model).weight.device
    return ForgeryVLM(
        host,
        processor,
        kfd.to(device),
        learner.to(device),
        family,
        fingerprint,
        str(model.name_or_path),
        trained,
        shared,
        projector,
        placement,
        crop,
    )
