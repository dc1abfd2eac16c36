"""A checkpoint of transformers that holds all: host, detector and learner, one class for all hosts.

``AutoModelForImageTextToText`` loads it with ``trust_remote_code=True``, whose code is an import of
this module, or after :func:`~llava_forgery.hosts.transformers.export.register_auto_classes`.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ModelOutput

from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.files import write_text
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.families import family_of
from llava_forgery.hosts.names import EXPORTED
from llava_forgery.hosts.placement import PLACEHOLDERS, WHOLE
from llava_forgery.hosts.transformers.shared_tower import SharedTower
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.kfd.detector import KFDOutput
from llava_forgery.kfd.encoder import TimmEncoder
from llava_forgery.kfd.host_tower import HostEncoder
from llava_forgery.kfd.skeleton import build_skeleton

MODELING, PROCESSING = "modeling_llava_forgery", "processing_llava_forgery"
AUTO_MAP = {
    "AutoConfig": f"{MODELING}.LlavaForgeryConfig",
    "AutoModelForImageTextToText": f"{MODELING}.LlavaForgeryForConditionalGeneration",
    "AutoProcessor": f"{PROCESSING}.LlavaForgeryProcessor",
}
# transformers looks at the imports before it runs the file, and names the package that is missing.
_CODE = """\
# The model is the package's own: pip install llava-forgery
from {module} import {names}
__all__ = {listed}
"""


def code_of(*classes: type) -> str:
    """Three lines that transformers finds classes of this package in."""
    names = sorted(kind.__name__ for kind in classes)
    return _CODE.format(module=classes[0].__module__, names=", ".join(names), listed=names)


class LlavaForgeryConfig(PreTrainedConfig):
    """Configuration of :class:`LlavaForgeryForConditionalGeneration`.

    Args:
        host_config: The host's, with its text and vision configurations, or their values.
        fpl: Of :class:`~llava_forgery.fpl.config.FPLConfig`.
        kfd: From :func:`llava_forgery.kfd.skeleton.describe`.
        forgery_token_id: Of ``<forgery>`` in the tokenizer; it may lie outside the vocabulary.
        fingerprint: Of the bare host that the skill was trained on.
        host_name: The bare host's.
        training: What is known of the training.
        placement: Where E_forgery stands; see :mod:`llava_forgery.hosts.placement`.
        crop: As for :func:`~llava_forgery.hosts.transformers.model.attach_forgery`.
    """

    model_type = EXPORTED
    sub_configs: ClassVar[dict[str, Any]] = {"host_config": AutoConfig}

    def __init__(
        self,
        host_config: PreTrainedConfig | Mapping[str, Any] | None = None,
        fpl: Mapping[str, Any] | None = None,
        kfd: Mapping[str, Any] | None = None,
        forgery_token_id: int | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        host_name: str = "",
        training: Mapping[str, Any] | None = None,
        placement: str = PLACEHOLDERS,
        crop: str = WHOLE,
        **kwargs: Any,
    ) -> None:
        if isinstance(host_config, Mapping):
            values = dict(host_config)
            host_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.host_config = host_config
        self.fpl, self.kfd = fpl, kfd
        self.forgery_token_id = forgery_token_id
        self.fingerprint, self.host_name, self.training = fingerprint, host_name, training
        self.placement, self.crop = placement, crop
        super().__init__(**{**kwargs, "auto_map": dict(AUTO_MAP)})

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The host's; its own where there is no host."""
        if self.host_config is None:
            return self
        return self.host_config.get_text_config(*args, **kwargs)

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        """Also write the code that the auto classes of transformers find this one by."""
        # Of a hub's checkpoint it would name that repository.
        self.auto_map = dict(AUTO_MAP)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        code = code_of(LlavaForgeryConfig, LlavaForgeryForConditionalGeneration)
        write_text(Path(save_directory) / f"{MODELING}.py", code)
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: transformers would copy the class's source into what is saved."""


class LlavaForgeryForConditionalGeneration(ForgeryVLM, PreTrainedModel, GenerationMixin):
    """A host with the skill as one model of transformers.

    ``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` are those of transformers. A call
    takes what :class:`~.exported_processor.LlavaForgeryProcessor` gives. With :meth:`use_processor`
    it serves wherever a :class:`~llava_forgery.hosts.base.ForgeryModel` does.

    Args:
        config: Of the checkpoint.
    """

    config_class = LlavaForgeryConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True
    # The detector's scores change with rounding.
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["kfd", "fpl"]
    _no_split_modules: ClassVar[list[str]] = [
        "KnowledgeGuidedForgeryDetector",
        "ForgeryPromptLearner",
    ]

    def __init__(self, config: LlavaForgeryConfig) -> None:
        PreTrainedModel.__init__(self, config)
        host = AutoModelForImageTextToText.from_config(config.host_config, trust_remote_code=False)
        kfd = build_skeleton(config.kfd)
        fpl = ForgeryPromptLearner(FPLConfig.from_dict(config.fpl))
        shared = SharedTower(host, None, kfd) if isinstance(kfd.encoder, HostEncoder) else None
        family = family_of(host)
        self._install(
            host,
            kfd,
            fpl,
            family,
            config.fingerprint,
            config.host_name,
            shared,
            config.placement,
            config.crop,
        )
        self._hang(config.forgery_token_id)
        self.training_facts = dict(config.training or {})
        self.post_init()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """For the Trainer: whether the host divides its loss by ``num_items_in_batch``."""
        return getattr(self.host, "accepts_loss_kwargs", True)

    def get_input_embeddings(self) -> torch.nn.Module:
        """The host's."""
        return self.host.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Give the host others."""
        self._hooks.remove()
        self.host.set_input_embeddings(value)
        self._hang(self.token_id)

    def get_output_embeddings(self) -> torch.nn.Module:
        """The host's."""
        return self.host.get_output_embeddings()

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        """Give the host others."""
        self.host.set_output_embeddings(value)

    def get_decoder(self) -> torch.nn.Module:
        """The host's language model."""
        return self.host.get_decoder()

    def get_encoder(self, modality: str | None = None) -> torch.nn.Module:
        """The host's encoder of a modality."""
        return self.host.get_encoder(modality=modality)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        forgery_images: torch.Tensor | None = None,
        images_per_sample: Sequence[int] | torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        detection: KFDOutput | None = None,
        *,
        token_type_ids: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        **host_inputs: Any,
    ) -> ModelOutput:
        """The host's forward with E_forgery at the placeholders.

        What a host's processor gives is named here, as the Trainer leaves out what is not.

        Args:
            input_ids: (B, T), as :meth:`.ForgeryVLM.forward` takes it.
            attention_mask: (B, T).
            forgery_images: (N, 3, S, S) in [0, 1], or uint8, for the detector.
            images_per_sample: (B,), how many of the N images are each sample's; one by default.
            pixel_values: The host's.
            labels: (B, T), -100 where nothing is learnt; nor is it at placeholders.
            detection: As :meth:`.ForgeryVLM.forward` takes it.
            token_type_ids: The host's, as are the others.

        Returns:
            The host's output, with ``loss`` where there are labels.

        Raises:
            ValueError: As :meth:`.ForgeryVLM.forward`.
        """
        if labels is not None:
            labels = labels.masked_fill(labels == self.token_id, IGNORE_INDEX)
        inputs = {
            "attention_mask": attention_mask,
            "pixel_values": pixel_values,
            "labels": labels,
            "token_type_ids": token_type_ids,
            "mm_token_type_ids": mm_token_type_ids,
            "pixel_attention_mask": pixel_attention_mask,
            "image_sizes": image_sizes,
            "image_grid_thw": image_grid_thw,
            "qformer_input_ids": qformer_input_ids,
            "qformer_attention_mask": qformer_attention_mask,
        }
        inputs = {name: value for name, value in inputs.items() if value is not None}
        return super().forward(
            input_ids, forgery_images, detection, images_per_sample, **inputs, **host_inputs
        )

    def generate(self, input_ids: torch.Tensor | None = None, *args: Any, **options: Any) -> Any:
        """The host's ``generate``; see :meth:`.ForgeryVLM.generate`.

        Args:
            input_ids: (B, T); ``inputs`` is the same.
            args: As for :meth:`.ForgeryVLM.generate`.
            options: Likewise, and what transformers' ``generate`` takes.
        """
        ids = options.pop("inputs", None) if input_ids is None else input_ids
        # from_pretrained fills this model's own.
        self.host.generation_config = self.generation_config
        return super().generate(ids, *args, **options)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """:meth:`transformers.PreTrainedModel.from_pretrained`."""
        loaded = super().from_pretrained(*args, **kwargs)
        encoder = (loaded[0] if isinstance(loaded, tuple) else loaded).kfd.encoder
        if isinstance(encoder, TimmEncoder):
            encoder.use_channels_last()
        return loaded

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        """:meth:`transformers.PreTrainedModel.save_pretrained`."""
        PreTrainedModel.save_pretrained(self, save_directory, *args, **kwargs)

    push_to_hub = PreTrainedModel.push_to_hub

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: transformers would copy the class's source into what is saved."""
