"""A transformers host with detector, learner and hooks: put together, saved and taken apart."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.adapter import fill_adapter, save_adapter
from llava_forgery.hosts.families import HostFamily
from llava_forgery.hosts.frozen_lora import FrozenLora
from llava_forgery.hosts.lora import is_peft, merge_lora, without_peft
from llava_forgery.hosts.pictures import ClientPrompts
from llava_forgery.hosts.placeholder import PlaceholderHooks, input_embedding
from llava_forgery.hosts.placement import (
    ALWAYS,
    PLACEHOLDERS,
    WHOLE,
    check_crop,
    check_placement,
)
from llava_forgery.hosts.projector import TrainedProjector
from llava_forgery.hosts.transformers.client_prompts import ImageTokens
from llava_forgery.hosts.transformers.prompts import ProcessorEncoder
from llava_forgery.hosts.transformers.shared_tower import SharedTower
from llava_forgery.hub import Pushable
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector

if TYPE_CHECKING:
    import peft


class SkilledHost(Pushable, nn.Module):
    """What a ``ForgeryVLM`` owns; its attributes are named there."""

    def __init__(
        self,
        host: PreTrainedModel | peft.PeftModel,
        processor: ProcessorMixin,
        kfd: KnowledgeGuidedForgeryDetector,
        fpl: ForgeryPromptLearner,
        family: HostFamily,
        fingerprint: dict[str, Any],
        host_name: str,
        trained_before: frozenset[str] = frozenset(),
        shared: SharedTower | None = None,
        projector: TrainedProjector | None = None,
        placement: str = PLACEHOLDERS,
        crop: str = WHOLE,
    ) -> None:
        super().__init__()
        self._install(host, kfd, fpl, family, fingerprint, host_name, shared, placement, crop)
        self.projector, self._trained_before = projector, trained_before
        self.use_processor(processor)
        self._hang(self.prompts.placeholder_id)

    def _install(
        self,
        host: PreTrainedModel | peft.PeftModel,
        kfd: KnowledgeGuidedForgeryDetector,
        fpl: ForgeryPromptLearner,
        family: HostFamily,
        fingerprint: dict[str, Any],
        host_name: str,
        shared: SharedTower | None,
        placement: str,
        crop: str,
    ) -> None:
        self.placement, self.crop = check_placement(placement), check_crop(crop)
        # They need the processor's tokenizer.
        self._images: ImageTokens | None = None
        self._clients = ClientPrompts()
        self._shared, self.projector, self._merged = shared, None, False
        # peft's wrapper passes the host's own attributes on, which types cannot say.
        self.host: Any = host
        self.kfd, self.fpl = kfd, fpl
        self.family, self.fingerprint, self.host_name = family, fingerprint, host_name
        self.training_facts: dict[str, Any] = {}
        self.frozen_lora: FrozenLora | None = None
        self._trained_before = frozenset()

    def use_processor(self, processor: ProcessorMixin) -> None:
        """Take the host's processor, whose tokenizer knows ``<forgery>``."""
        self.processor = processor
        self._images = ImageTokens(self.family, self._bare.config, processor.tokenizer)
        self.prompts = ProcessorEncoder(
            processor, self.n_forgery, self._images if self.placement == ALWAYS else None
        )

    def _hang(self, token_id: int) -> None:
        """Hang the hooks that put E_forgery in the places of a token."""
        self.token_id = token_id
        self._hooks = PlaceholderHooks(input_embedding(self.host), token_id)

    @property
    def device(self) -> torch.device:
        """Where the host lies."""
        return input_embedding(self.host).weight.device

    @property
    def has_lora(self) -> bool:
        """Whether LoRA is attached."""
        return self.frozen_lora is not None or is_peft(self.host)

    @property
    def _bare(self) -> PreTrainedModel:
        return without_peft(self.host)

    @property
    def n_forgery(self) -> int:
        """n_f: placeholders that a prompt must hold for each of its images."""
        return self.fpl.config.n_forgery

    @property
    def takes_forgery_images(self) -> bool:
        """Whether calls take ``forgery_images``. A detector on the host's own vision tower reads
        ``pixel_values``, and each image is encoded once."""
        return self._shared is None

    def trainable_names(self) -> list[str]:
        """Names of the parameters that training changes: the FPL's, LoRA's, the projector's."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def train(self, mode: bool = True) -> Self:
        """The detector is frozen and stays in eval mode, and so does a tower that it reads."""
        super().train(mode)
        self.kfd.eval()
        if self._shared is not None:
            self._shared.tower.eval()
        return self

    def merge_lora(self) -> None:
        """Add LoRA to the host's weights: calls are faster, but nothing can be saved or detached.

        Raises:
            ValueError: There is none, or the host is quantised.
        """
        if not self.has_lora:
            raise ValueError("there is no LoRA to merge")
        if self.frozen_lora is not None:
            self.frozen_lora.merge()
            self.frozen_lora = None
        else:
            self.host = merge_lora(self.host)
        self._merged = True

    def detach(self) -> PreTrainedModel:
        """Take hooks and LoRA off and return the bare host, as it was.

        Raises:
            ValueError: LoRA was merged.
        """
        if self._merged:
            raise ValueError("LoRA was merged into the host: load the adapter again")
        self._hooks.remove()
        if self.projector is not None:
            self.projector.restore()
        if self.frozen_lora is not None:
            self.frozen_lora.remove()
        bare = self.host.unload() if is_peft(self.host) else self.host
        for name, parameter in bare.named_parameters():
            parameter.requires_grad_(name in self._trained_before)
        return bare

    def save_pretrained(self, directory: str | PathLike) -> None:
        """Write the forgery adapter; see :mod:`llava_forgery.hosts.adapter`.

        Raises:
            ValueError: LoRA was merged, or the folder holds something else.
        """
        if self._merged:
            raise ValueError("LoRA was merged into the host: load the adapter again")
        save_adapter(self, directory)

    def load_weights(self, directory: str | PathLike) -> None:
        """Fill FPL and LoRA from what :meth:`save_pretrained` wrote, strictly.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: It does not fit.
        """
        fill_adapter(self, directory)
