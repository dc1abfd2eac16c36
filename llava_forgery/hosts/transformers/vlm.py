"""A transformers image-text-to-text model with the forgery skill.

One module owns host, detector and learner, and hangs hooks on the host. The prompt holds
``<forgery>`` tokens after the image (:mod:`llava_forgery.hosts.transformers.prompts`); E_forgery of
each sample's image takes their places at prefill.

Source: LVLM-DFD, sections 3.2 and 3.3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import ModelOutput

from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.adapter import fill_adapter, save_adapter
from llava_forgery.hosts.families import HostFamily, exclusive
from llava_forgery.hosts.frozen_lora import FrozenLora
from llava_forgery.hosts.kv_cache import cache_in
from llava_forgery.hosts.likelihood import labelled_logits
from llava_forgery.hosts.lora import is_peft, merge_lora
from llava_forgery.hosts.pictures import ClientPrompts
from llava_forgery.hosts.placeholder import (
    PlaceholderHooks,
    PromptView,
    count_placeholders,
    images_of_samples,
    input_embedding,
    without_placeholders,
)
from llava_forgery.hosts.placement import (
    ALWAYS,
    PLACEHOLDERS,
    WHOLE,
    check_crop,
    check_placement,
)
from llava_forgery.hosts.projector import TrainedProjector
from llava_forgery.hosts.transformers.client_prompts import (
    ImageTokens,
    PlacedPrompts,
    begin_with,
    ends_without_placeholders,
    pictures_of,
)
from llava_forgery.hosts.transformers.idle import idle_step
from llava_forgery.hosts.transformers.prompts import ProcessorEncoder
from llava_forgery.hosts.transformers.shared_tower import SharedTower
from llava_forgery.hub import Pushable
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector

if TYPE_CHECKING:
    import peft


class ForgeryVLM(Pushable, nn.Module):
    """A :class:`~llava_forgery.hosts.base.ForgeryModel` of transformers; from
    :func:`~llava_forgery.hosts.transformers.model.attach_forgery`.

    Threads and asyncio tasks may call it at once; what a call needs belongs to it alone.

    Attributes:
        host: The host, or peft's wrapper around it where LoRA is or will be trained.
        frozen_lora: A saved LoRA that is not to be trained, on the bare host without peft.
        processor: The host's processor, whose tokenizer knows ``<forgery>``.
        prompts: Conversations to tokens, and tokens to answers.
        kfd: The frozen detector.
        fpl: The learner.
        family: What is known of the host's kind.
        fingerprint: Of the bare host.
        host_name: Where the bare host came from: a folder or a hub name.
        training_facts: What the model card says of the training, such as ``{"steps": 140}``.
        projector: The host's own projector, where it is or was trained.
        placement: Where E_forgery stands; see :mod:`llava_forgery.hosts.placement`.
        crop: Whether faces are cut out of pictures that are given without ``forgery_images``.
    """

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
        return cast(
            PreTrainedModel, self.host.get_base_model() if is_peft(self.host) else self.host
        )

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

    def train(self, mode: bool = True) -> ForgeryVLM:
        """The detector is frozen and stays in eval mode, and so does a tower that it reads."""
        super().train(mode)
        self.kfd.eval()
        if self._shared is not None:
            self._shared.tower.eval()
        return self

    @torch.no_grad()
    def detect(self, forgery_images: torch.Tensor) -> KFDOutput:
        """The detector's output for images (N, 3, S, S) in [0, 1], or uint8.

        Where it reads the host's tower, the output keeps the host's features of the images:
        handed on as ``detection``, it spares the host a second encoding.
        """
        if forgery_images.dtype == torch.uint8:
            forgery_images = forgery_images / 255
        if self._shared is not None:
            return self._shared.encode_images(forgery_images)
        reference = next(self.kfd.consistency.parameters())
        return self.kfd(forgery_images.to(reference.device, reference.dtype))

    @contextmanager
    def detector_alone(self) -> Iterator[KnowledgeGuidedForgeryDetector]:
        """The detector for calls without the host, also where it reads the host's tower."""
        with nullcontext() if self._shared is None else self._shared.attached():
            yield self.kfd

    def forward(
        self,
        input_ids: torch.Tensor,
        forgery_images: torch.Tensor | None = None,
        detection: KFDOutput | None = None,
        images_per_sample: Sequence[int] | torch.Tensor | None = None,
        **host_inputs: Any,
    ) -> ModelOutput:
        """The host's forward with E_forgery at the placeholders.

        Args:
            input_ids: (B, T), each row with n_f placeholders for each of its images.
            forgery_images: (N, 3, S, S) in [0, 1] for the detector: the images of all samples in
                their order; none where it reads the host's own tower, and so ``pixel_values``; or
            detection: the detector's output for them, where it is known already. Without both,
                prompts without placeholders get them behind their images, and the detector sees
                ``pixel_values`` (placement ``always``), or the host answers as it would without
                the skill.
            images_per_sample: How many of the N images belong to each of the B samples; by default
                as many as their placeholders say.
            host_inputs: What the host takes: ``attention_mask``, ``pixel_values``, ``labels`` ...

        Returns:
            The host's output.

        Raises:
            ValueError: A sample's placeholders or images are not as many as they must be, or
                neither or both of ``forgery_images`` and ``detection`` are given.
        """
        placed = self._place(input_ids, host_inputs, left=False)
        if placed is not None:
            input_ids, images_per_sample = placed.input_ids, placed.images_per_sample
            host_inputs = placed.inputs
        skill, host_inputs = self._open(
            input_ids, forgery_images, detection, images_per_sample, host_inputs, placed
        )
        with skill, exclusive(self._bare):
            return self.host(input_ids=input_ids, **host_inputs)

    def labelled_logits(
        self, labels: torch.Tensor, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits that predict labelled tokens, and their labels; see the protocol."""
        return labelled_logits(self, self._bare, labels, **inputs)

    def generate(
        self,
        input_ids: torch.Tensor,
        forgery_images: torch.Tensor | None = None,
        detection: KFDOutput | None = None,
        images_per_sample: Sequence[int] | torch.Tensor | None = None,
        cached_tokens: int | None = None,
        **host_inputs: Any,
    ) -> Any:
        """The host's ``generate`` with E_forgery at the placeholders; never emits a placeholder.

        A ``streamer`` is shown the prompt without placeholders.

        Args:
            input_ids: As for :meth:`forward`; the whole prompt also where ``cache``
                (``past_key_values`` before transformers 5.24) holds the first part of it.
            forgery_images: As for :meth:`forward`; neither they nor ``detection`` where the
                cache reaches behind the last placeholder.
            detection: As for :meth:`forward`.
            images_per_sample: As for :meth:`forward`.
            cached_tokens: How many tokens of ``input_ids`` the cache holds; by default its length.
            host_inputs: What the host's ``generate`` takes.

        Raises:
            RuntimeError: The model is in training mode.
            ValueError: As :meth:`forward`.
        """
        if self.training:
            raise RuntimeError("call eval() before generate()")
        host_inputs = self._suppressing(host_inputs)
        given = input_ids
        if host_inputs.get("streamer") is not None:
            shown = without_placeholders(given, self.token_id)
            host_inputs["streamer"] = PromptView(host_inputs["streamer"], shown)
        placed = self._place(input_ids, host_inputs, left=True)
        if placed is not None:
            input_ids, images_per_sample = placed.input_ids, placed.images_per_sample
            host_inputs = placed.inputs
        generate: Callable[..., Any]
        skill: AbstractContextManager[None]
        cache = cache_in(host_inputs)
        known = 0 if cache is None else cached_tokens or cache.get_seq_length()
        if known and not any(count_placeholders(input_ids[:, known:], self.token_id)):
            if forgery_images is not None or detection is not None:
                raise ValueError(
                    "the cache reaches behind the placeholders, so that forgery_images or "
                    "detection would not be read; leave them out, or the cache"
                )
            generate, skill = self._continuation, nullcontext()
        else:
            generate = self.host.generate
            skill, host_inputs = self._open(
                input_ids, forgery_images, detection, images_per_sample, host_inputs, placed
            )
        with skill, exclusive(self._bare):
            output = generate(input_ids=input_ids, **host_inputs)
        return output if placed is None else begin_with(output, given, input_ids.shape[1])

    def _suppressing(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of ``generate`` with the placeholder among the tokens that are never written."""
        name, given = "suppress_tokens", options.get("generation_config")
        if given is None or options.get(name) is not None:
            known = options.get(name) or self._bare.generation_config.suppress_tokens or []
            return {**options, name: [*known, self.token_id]}
        given = copy.deepcopy(given)
        given.suppress_tokens = [*(given.suppress_tokens or []), self.token_id]
        return {**options, "generation_config": given}

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

    def _place(
        self, input_ids: torch.Tensor, host_inputs: dict[str, Any], left: bool
    ) -> PlacedPrompts | None:
        """A call's prompts with placeholders behind images that have none; None where nothing is
        to be done."""
        if self._images is None:
            # Without its processor the ends of images are not known.
            shown = host_inputs.get("pixel_values") is not None
            if shown and not any(count_placeholders(input_ids, self.token_id)):
                self._clients.tell_unused(self)
            return None
        ends = ends_without_placeholders(input_ids, self._images, self.token_id, host_inputs)
        if ends is None:
            return None
        if self.placement == PLACEHOLDERS:
            self._clients.tell_unused(self)
            return None
        pad = self.processor.tokenizer.pad_token_id or 0
        return PlacedPrompts(input_ids, ends, host_inputs, self.n_forgery, self.token_id, pad, left)

    def _open(
        self,
        input_ids: torch.Tensor,
        forgery_images: torch.Tensor | None,
        detection: KFDOutput | None,
        images_per_sample: Sequence[int] | torch.Tensor | None,
        host_inputs: dict[str, Any],
        placed: PlacedPrompts | None,
    ) -> tuple[AbstractContextManager[None], dict[str, Any]]:
        """The context in which to call the host, and its inputs."""
        general = forgery_images is None and detection is None
        if general and placed is not None and self._images is not None and self._shared is None:
            forgery_images, general = self._pictures(placed, self._images), False
        general = general and not any(count_placeholders(input_ids, self.token_id))
        shows_images = host_inputs.get("pixel_values") is not None
        if self._shared is not None:
            detection, host_inputs = self._shared.prepare(forgery_images, detection, host_inputs)
        if general:
            if not (self.training and torch.is_grad_enabled()):
                return nullcontext(), host_inputs
            first = self._shared is not None
            return idle_step(self._bare, self.prompts, self.fpl, shows_images, first), host_inputs
        skilled = self._skilled(input_ids, forgery_images, detection, images_per_sample)
        return skilled, host_inputs

    def _pictures(self, placed: PlacedPrompts, images: ImageTokens) -> torch.Tensor:
        """(N, 3, S, S) in [0, 1]: what the detector sees of the host's pixels."""
        self._clients.tell_derived()
        processor = self.processor.image_processor
        pictures = pictures_of(placed.inputs, placed.given, images, processor)
        side = self.kfd.config.encoder.image_size
        return self._clients.frame(pictures, side, self.crop).to(self.device)

    @contextmanager
    def _skilled(
        self,
        input_ids: torch.Tensor,
        forgery_images: torch.Tensor | None,
        detection: KFDOutput | None,
        images_per_sample: Sequence[int] | torch.Tensor | None,
    ) -> Iterator[None]:
        given = forgery_images if detection is None else detection.class_logits
        if given is None or (forgery_images is not None and detection is not None):
            raise ValueError("give either forgery_images or detection, one entry for each image")
        # Before the detector and the host are called: an error inside them would be hard to read.
        counts = images_of_samples(
            input_ids, self.token_id, self.n_forgery, len(given), images_per_sample
        )
        if detection is None:
            detection = self.detect(given)
        vectors = self.fpl(detection).split(counts)
        with self._hooks.use([sample.flatten(0, 1) for sample in vectors]):
            yield

    def _continuation(self, **inputs: Any) -> Any:
        """``generate`` from a cache on.

        Raises:
            ValueError: The family does not allow it.
        """
        bare: Any = self._bare
        if self.family.cache_mode == "recompute":
            raise ValueError(
                f"{self.family.name} hosts do not go on from a cache; give the whole "
                "prompt with its images and no cache"
            )
        for name in self.family.stateful_attributes:
            setattr(bare.model, name, None)
        if self.family.cache_mode == "language_model":
            return bare.language_model.generate(**inputs)
        return self.host.generate(**inputs)
