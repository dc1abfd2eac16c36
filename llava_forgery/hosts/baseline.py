"""A host without the Forgery Prompt Learner: bare, or only with LoRA.

The benefit of the skill is measured against these two. Prompts hold no placeholders
(``n_forgery_tokens=0``); the host's only input from the detector is the sentence with its score.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import ModelOutput

from llava_forgery.files import atomic_path, check_output_folder
from llava_forgery.hosts.families import exclusive
from llava_forgery.hosts.likelihood import labelled_logits
from llava_forgery.hosts.lora import (
    LORA_WEIGHTS,
    LoraSettings,
    fill_lora,
    is_peft,
    lora_config,
    save_lora,
    without_peft,
)
from llava_forgery.hosts.transformers.prompts import ProcessorEncoder
from llava_forgery.optional import lazy

peft = lazy("peft")


class BaselineVLM(nn.Module):
    """A bare host, or a host with a new LoRA on its language model.

    Args:
        model: A transformers image-text-to-text model; its own weights are frozen.
        processor: Processor of the model.
        lora: Sizes of a new LoRA; None leaves the host bare.
        seed: Seed of LoRA's weights.

    Attributes:
        host: The model, or peft's wrapper around it.
        prompts: Prompt encoder of the host.
        n_forgery: 0, the number of placeholders in each prompt.
        takes_forgery_images: False, as there is no detector.
    """

    n_forgery = 0
    takes_forgery_images = False

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        lora: LoraSettings | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.host: PreTrainedModel | peft.PeftModel = model
        self.processor, self.prompts = processor, ProcessorEncoder(processor, self.n_forgery)
        if lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.host = peft.get_peft_model(model, lora_config(model, lora))

    @property
    def device(self) -> torch.device:
        """Device of the host."""
        return self.host.get_input_embeddings().weight.device

    @property
    def has_lora(self) -> bool:
        """Whether LoRA is attached."""
        return is_peft(self.host)

    def trainable_names(self) -> list[str]:
        """Names of the parameters that training changes, those of LoRA."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    @property
    def _bare(self) -> PreTrainedModel:
        return without_peft(self.host)

    def forward(self, **host_inputs: Any) -> ModelOutput:
        """The host's forward, on prompts without placeholders."""
        with exclusive(self._bare):
            return self.host(**host_inputs)

    def labelled_logits(
        self, labels: torch.Tensor, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As for :meth:`llava_forgery.hosts.base.ForgeryModel.labelled_logits`."""
        return labelled_logits(self, self._bare, labels, **inputs)

    def generate(self, **host_inputs: Any) -> Any:
        """The host's ``generate``, on prompts without placeholders."""
        with exclusive(self._bare):
            return self.host.generate(**host_inputs)

    def save_pretrained(self, directory: str | PathLike) -> None:
        """Write LoRA in peft's layout.

        Raises:
            ValueError: LoRA is not attached, so there is nothing to save; or the folder holds
                something else, which would be replaced.
        """
        if not self.has_lora:
            raise ValueError("a bare host has nothing to save: LoRA is not attached")
        check_output_folder(directory, LORA_WEIGHTS)
        with atomic_path(directory) as temporary:
            save_lora(self.host, temporary)

    def load_weights(self, directory: str | PathLike) -> None:
        """Load the attached LoRA from the files of :meth:`save_pretrained`, strictly.

        Raises:
            FileNotFoundError: The file is missing.
            ValueError: The file does not match.
        """
        fill_lora(self.host, directory)
