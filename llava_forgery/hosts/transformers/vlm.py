"""A transformers image-text-to-text model with the forgery skill, and what its calls do.

The prompt holds ``<forgery>`` tokens after the image
(:mod:`llava_forgery.hosts.transformers.prompts`); E_forgery of each sample's image takes their
places at prefill.

Source: LVLM-DFD, sections 3.2 and 3.3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers.modeling_outputs import ModelOutput

from llava_forgery.hosts.families import exclusive
from llava_forgery.hosts.kv_cache import cache_in
from llava_forgery.hosts.likelihood import labelled_logits
from llava_forgery.hosts.placeholder import (
    PromptView,
    count_placeholders,
    images_of_samples,
    without_placeholders,
)
from llava_forgery.hosts.placement import PLACEHOLDERS
from llava_forgery.hosts.transformers.client_prompts import (
    ImageTokens,
    PlacedPrompts,
    begin_with,
    ends_without_placeholders,
    pictures_of,
)
from llava_forgery.hosts.transformers.idle import idle_step
from llava_forgery.hosts.transformers.skilled_host import SkilledHost
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector


class ForgeryVLM(SkilledHost):
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
