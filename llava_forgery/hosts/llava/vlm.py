"""A model of the ``llava`` package with the skill, for predictor, dialogue and training."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase

from llava_forgery.call_state import in_call
from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.families import HostFamily, exclusive
from llava_forgery.hosts.kv_cache import CACHE, cache_in
from llava_forgery.hosts.llava.checkpoint import save_llava_adapter
from llava_forgery.hosts.llava.encoder import DEFAULT_TEMPLATE, LlavaEncoder, find_template
from llava_forgery.hosts.llava.model import (
    attach_to_llava,
    detach_from_llava,
    llava_lora_config,
)
from llava_forgery.hosts.llava.names import HOST_PROJECTOR, PROJECTOR, TEMPLATE_KEY, TOWER
from llava_forgery.hosts.llava.skill import EXPANDED_LABELS, has_forgery_adapter
from llava_forgery.hosts.lora import LoraSettings, fill_lora, is_peft, merge_lora, without_peft
from llava_forgery.hosts.names import FPL
from llava_forgery.hosts.placeholder import PromptView
from llava_forgery.hosts.placement import ALWAYS, FACE
from llava_forgery.hosts.projector import TrainedProjector, fill_projector
from llava_forgery.hub import Pushable
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector
from llava_forgery.noise import quiet
from llava_forgery.optional import lazy
from llava_forgery.weights import load_tensors

peft = lazy("peft")

FAMILY = HostFamily("llava_llama", "LLaVA (the llava package)", "cache", projector=HOST_PROJECTOR)


class LlavaForgeryVLM(Pushable, nn.Module):
    """A :class:`~llava_forgery.hosts.base.ForgeryModel` of the ``llava`` package.

    The wrapped model can be used by LLaVA's own tools at the same time.

    Args:
        host: Model with the skill (``attach_to_llava``), or peft's wrapper around it.
        tokenizer: Tokenizer of the model.
        template: Name in LLaVA's ``conv_templates``; see :class:`LlavaEncoder`.

    Attributes:
        host: As given.
        prompts: Prompt encoder of the host.
        family: Record of the host's family, which says how it continues from a cache.

    Raises:
        ValueError: The model has no skill, or LLaVA has no such template.
    """

    family = FAMILY

    def __init__(
        self,
        host: PreTrainedModel | peft.PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
    ) -> None:
        super().__init__()
        self.host, self.tokenizer, self._merged = host, tokenizer, False
        if not has_forgery_adapter(self._bare):
            raise ValueError("this model has no forgery skill; attach_to_llava gives it one")
        bare = self._bare
        self.prompts = LlavaEncoder(
            bare.config,
            tokenizer,
            bare.n_forgery,
            template,
            bare.get_vision_tower().image_processor,
        )
        # LLaVA-NeXT's models need the modality of each image, to know that it is not a video.
        self._tells_modalities = "modalities" in inspect.signature(self._bare.forward).parameters

    @property
    def _bare(self) -> PreTrainedModel:
        return without_peft(self.host)

    @property
    def has_lora(self) -> bool:
        """Whether LoRA is attached; one that was merged is not."""
        return is_peft(self.host)

    @property
    def kfd(self) -> KnowledgeGuidedForgeryDetector:
        """The frozen detector."""
        return getattr(self._bare.get_model(), TOWER).kfd

    @property
    def fpl(self) -> ForgeryPromptLearner:
        """The learner."""
        return getattr(self._bare.get_model(), PROJECTOR)

    @property
    def projector(self) -> TrainedProjector | None:
        """The host's own projector, if it is or was trained."""
        return self._bare._forgery_projector

    @property
    def device(self) -> torch.device:
        """Device of the host."""
        return self.host.get_input_embeddings().weight.device

    @property
    def n_forgery(self) -> int:
        """n_f: number of placeholders that a prompt must hold for each of its images."""
        return self._bare.n_forgery

    @property
    def placement(self) -> str:
        """Placement of E_forgery."""
        return self._bare.placement

    @property
    def crop(self) -> str:
        """As the model's."""
        return self._bare.crop

    @property
    def takes_forgery_images(self) -> bool:
        """As the model's."""
        return self._bare.takes_forgery_images

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Fingerprint of the bare host."""
        known = self._bare.config.mm_forgery_host
        return {name: value for name, value in known.items() if name != "name_or_path"}

    @property
    def host_name(self) -> str:
        """Folder or hub name of the bare host."""
        return self._bare.config.mm_forgery_host["name_or_path"]

    def trainable_names(self) -> list[str]:
        """Names of the parameters that training changes."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def detect(self, forgery_images: torch.Tensor) -> KFDOutput:
        """The detector's output for images (N, 3, S, S) in [0, 1]."""
        # In its own precision; mixed precision is only for the host.
        with torch.autocast(forgery_images.device.type, enabled=False):
            return self._bare.detect(forgery_images)

    @contextmanager
    def detector_alone(self) -> Iterator[KnowledgeGuidedForgeryDetector]:
        """The detector for calls without the host, even if it reads the host's tower."""
        with self._bare.detector_alone() as kfd:
            yield kfd

    def forward(
        self,
        input_ids: torch.Tensor,
        forgery_images: torch.Tensor | None = None,
        detection: KFDOutput | None = None,
        **inputs: Any,
    ) -> Any:
        """The host's forward with E_forgery at the placeholders; see the protocol.

        Args:
            input_ids: (B, T) with -200 for each image and -201 for each placeholder.
            forgery_images: (N, 3, S, S) in [0, 1].
            detection: The detector's output, instead of ``forgery_images``. With neither, the
                detector sees ``images``.
            inputs: ``images``, ``image_sizes``, ``attention_mask``, ``labels`` ...
        """
        if forgery_images is not None and detection is None and self.takes_forgery_images:
            forgery_images, detection = None, self.detect(forgery_images)
        return self.host(
            input_ids=input_ids,
            forgery_images=forgery_images,
            detection=detection,
            **self._shown(inputs),
        )

    def labelled_logits(
        self, labels: torch.Tensor, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits that predict labelled tokens, and their labels, placed by LLaVA's model between
        the embeddings of images; see the protocol."""
        expanded: list[torch.Tensor] = []
        with in_call(EXPANDED_LABELS, expanded):
            logits = self(**inputs, labels=labels).logits
        labels = expanded[0].to(logits.device)
        # Nothing predicts the first token.
        first = 1 + int((labels[:, 1:] != IGNORE_INDEX).any(dim=0).nonzero()[0])
        return logits[:, first - 1 : -1], labels[:, first:]

    def generate(
        self,
        input_ids: torch.Tensor,
        forgery_images: torch.Tensor | None = None,
        detection: KFDOutput | None = None,
        cached_tokens: int | None = None,
        **options: Any,
    ) -> Any:
        """The host's ``generate`` with E_forgery at the placeholders; see the protocol.

        Raises:
            RuntimeError: The model is in training mode.
            ValueError: As for :meth:`forward`; or there is a cache, and ``cached_tokens`` is not
                given, the cache ends before the last placeholder, or the prompts are padded.
        """
        if self.training:
            raise RuntimeError("call eval() before generate()")
        if cache_in(options) is None:
            output = self._bare.generate(
                input_ids,
                forgery_images=forgery_images,
                detection=detection,
                **self._shown(options),
            )
            fed = 0
        else:
            if forgery_images is not None or detection is not None:
                raise ValueError(
                    "the cache extends beyond the placeholders, so that forgery_images or "
                    "detection would not be read; omit them, or the cache"
                )
            output, fed = self._continue(input_ids, cached_tokens, options)
        # LLaVA's generate only returns new tokens.
        new = (output if isinstance(output, torch.Tensor) else output.sequences)[:, fed:]
        repeats = len(new) // len(input_ids)
        sequences = torch.cat([input_ids.repeat_interleave(repeats, 0).to(new.device), new], dim=1)
        if isinstance(output, torch.Tensor):
            return sequences
        output.sequences = sequences
        return output

    def _continue(
        self, input_ids: torch.Tensor, cached_tokens: int | None, options: dict[str, Any]
    ) -> tuple[Any, int]:
        """``generate`` from a cache, and the number of ids that it was given.

        LLaVA's own does not support a cache, transformers' does: the ids whose keys are known are
        not read, only counted.
        """
        cache, mask = cache_in(options), options.pop("attention_mask", None)
        known = cache.get_seq_length()
        if cached_tokens is None or (input_ids[:, cached_tokens:] < 0).any():
            raise ValueError(
                "a cache of a model of the llava package needs cached_tokens, and must hold all "
                f"images and placeholders of the prompt; got cached_tokens={cached_tokens}"
            )
        if mask is not None and not bool(mask.bool().all()):
            raise ValueError("prompts that continue from a cache must not be padded")
        # An image is one id but has as many keys as patches.
        more = known - cached_tokens
        ids = nn.functional.pad(input_ids.clamp(min=0), (more, 0))
        options = {name: v for name, v in options.items() if name not in ("images", "image_sizes")}
        options[CACHE] = cache
        if options.get("streamer") is not None:
            # As of LLaVA's own ``generate``, which goes by embeddings: no prompt.
            options["streamer"] = PromptView(options["streamer"], input_ids[:, :0])
        with exclusive(self._bare):
            output = GenerationMixin.generate(
                self._bare, input_ids=ids, attention_mask=torch.ones_like(ids), **options
            )
        return output, ids.shape[1]

    def _shown(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs with the images in the host's precision, on its device."""
        images = inputs.get("images")
        if images is None:
            return inputs
        to = {"device": self.device, "dtype": self._bare.dtype}
        plain = isinstance(images, torch.Tensor)
        shown = {"images": images.to(**to) if plain else [image.to(**to) for image in images]}
        if self._tells_modalities:
            shown["modalities"] = ["image"] * len(images)
        return {**inputs, **shown}

    def merge_lora(self) -> None:
        """Merge LoRA into the host's weights: faster, but saving and detaching are disabled.

        Raises:
            ValueError: There is no LoRA, or the host is quantised.
        """
        if not self.has_lora:
            raise ValueError("there is no LoRA to merge")
        self.host, self._merged = merge_lora(self.host), True

    def save_pretrained(self, directory: str | PathLike) -> None:
        """Write the forgery adapter in LLaVA's layout.

        Raises:
            ValueError: LoRA was merged, or the folder holds something else.
        """
        if self._merged:
            raise ValueError("LoRA was merged into the host: load the adapter again")
        save_llava_adapter(self.host, directory, self.projector and self.projector.state())

    def load_weights(self, directory: str | PathLike) -> None:
        """Load the trained parameters from :meth:`save_pretrained`'s files, strictly.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file does not match, or holds weights of the host that are not trained
                here.
        """
        directory = Path(directory)
        self.fpl.load_state_dict(load_tensors(directory / FPL, self.fpl.state_dict()))
        if self.has_lora:
            fill_lora(self.host, directory)
        fill_projector(self.projector, directory)

    def detach(self) -> PreTrainedModel:
        """Remove skill and LoRA, and return the original bare host.

        Raises:
            ValueError: LoRA was merged.
        """
        if self._merged:
            raise ValueError("LoRA was merged into the host: load the adapter again")
        return detach_from_llava(self.host.unload() if self.has_lora else self.host)


@quiet()
def attach_llava(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forgery_tower: str | PathLike,
    fpl: ForgeryPromptLearner | FPLConfig | None = None,
    lora: LoraSettings | None = None,
    seed: int = 0,
    train_projector: bool = False,
    template: str = DEFAULT_TEMPLATE,
    placement: str = ALWAYS,
    crop: str = FACE,
) -> LlavaForgeryVLM:
    """Attach the forgery skill to a loaded model of the ``llava`` package for training.

    The weights of host and detector are frozen; trainable are the FPL, LoRA and, optionally, the
    host's projector, in full precision whatever the host's, as updates are far smaller than the
    resolution of half precision.

    Args:
        model: Model with its vision tower loaded.
        tokenizer: Tokenizer of the model.
        forgery_tower: The detector, ``kfd:DIR`` or DIR.
        fpl: As for :func:`~llava_forgery.hosts.llava.model.attach_to_llava`.
        lora: Sizes of a new LoRA on the language model; None leaves the language model unchanged.
        seed: Seed of the new weights.
        train_projector: Whether to also train the host's own projector.
        template: Name in LLaVA's ``conv_templates`` of the adapter's prompts.
        placement: As for ``attach_to_llava``.
        crop: As for ``attach_to_llava``.

    Raises:
        FileNotFoundError: The folder holds no detector.
        ValueError: As for ``attach_to_llava``, or LLaVA has no such template.
    """
    find_template(model.config, template)
    model.requires_grad_(False)
    attach_to_llava(model, forgery_tower, fpl, seed, placement, crop)
    setattr(model.config, TEMPLATE_KEY, template)
    learner = getattr(model.get_model(), PROJECTOR)
    getattr(model.get_model(), TOWER).float()
    host: PreTrainedModel | peft.PeftModel = model
    if lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            host = peft.get_peft_model(model, llava_lora_config(model, lora))
    # peft freezes everything that it did not make.
    learner.requires_grad_(True)
    if train_projector:
        model._forgery_projector = TrainedProjector(model, HOST_PROJECTOR)
        model._forgery_projector.unfreeze()
    for parameter in host.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    learner.float()
    return LlavaForgeryVLM(host, tokenizer)
