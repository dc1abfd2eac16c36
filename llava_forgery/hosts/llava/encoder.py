"""Encoding conversations with LLaVA's templates to the tokens and images of its models."""

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from llava_forgery.constants import IGNORE_INDEX, IMAGE_TOKEN
from llava_forgery.files import fingerprint_of
from llava_forgery.hosts.base import CandidateIds
from llava_forgery.hosts.likelihood import tell_apart
from llava_forgery.hosts.llava.hooks import FORGERY_TOKEN_INDEX
from llava_forgery.hosts.llava.images import HostImages
from llava_forgery.hosts.llava.names import PLACEMENT_KEY, TEMPLATE_KEY
from llava_forgery.hosts.llava.prompts import TEMPLATE, paper_template
from llava_forgery.hosts.llava.register import import_llava
from llava_forgery.hosts.llava.text import (
    PromptStyle,
    encode_turns,
    label_spans,
    render_turns,
    tokenise,
)
from llava_forgery.hosts.placement import PLACEHOLDERS
from llava_forgery.qa.conversation import Conversation

logger = logging.getLogger(__name__)

# The template of LLaVA 1.5's tuning and LLaVA's training scripts.
DEFAULT_TEMPLATE = "v1"


class LlavaEncoder:
    """The :class:`~llava_forgery.hosts.base.PromptEncoder` of the ``llava`` package.

    Args:
        config: Configuration of a model or a checkpoint.
        tokenizer: Fast tokenizer of the model.
        n_forgery: n_f, number of placeholders after each image.
        template: Name in LLaVA's ``conv_templates``; by default the one that the skill was
            trained with, or else ``v1``.
        image_processor: Image processor of the vision tower; without it only :meth:`check_turns`
            works.

    Raises:
        ValueError: LLaVA has no such template.
    """

    placeholder_id = FORGERY_TOKEN_INDEX

    def __init__(
        self,
        config: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        n_forgery: int,
        template: str | None = None,
        image_processor: Any | None = None,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.style = PromptStyle(
            find_template(config, template),
            n_forgery,
            bool(getattr(config, "mm_use_im_start_end", False)),
            getattr(config, PLACEMENT_KEY, PLACEHOLDERS),
        )
        self._images = HostImages(image_processor, config)

    @property
    def placement(self) -> str:
        """Placement of E_forgery, and so of placeholders."""
        return self.style.placement

    @cached_property
    def image_tokens(self) -> int:
        """Minimum number of tokens that the model makes from an image."""
        if getattr(self.config, "mm_resampler_type", None):
            # LLaVA-NeXT's resamplers make fewer than the tower has patches.
            return 1
        builder = import_llava("a prompt", "llava.model.multimodal_encoder.builder")
        return int(builder.build_vision_tower(self.config, delay_load=True).num_patches)

    def check_turns(
        self, turns: Sequence[str], images: Sequence[Image.Image], *, skill: bool, max_length: int
    ) -> dict[str, torch.Tensor]:
        """The tokens and labels of :meth:`encode_turns`, which do not depend on the images."""
        return encode_turns(
            turns,
            self.tokenizer,
            self.style,
            skill=skill,
            max_length=max_length,
            image_tokens=self.image_tokens,
        )

    def encode_turns(
        self, turns: Sequence[str], images: Sequence[Image.Image], *, skill: bool, max_length: int
    ) -> dict[str, Any]:
        """Encode a training dialogue with the ids of LLaVA's own training; see the protocol.

        Longer dialogues are cut at ``max_length``, as in LLaVA. A dialogue without an image gets an
        empty one, which LLaVA's model requires.
        """
        sample = self.check_turns(turns, images, skill=skill, max_length=max_length)
        sample["images"], sample["image_sizes"] = self._images(images)
        return sample

    def fingerprint(self) -> str:
        """Digest of everything that determines the tokens of a dialogue."""
        return fingerprint_of(
            self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else None,
            repr(self.style.template),
            [self.style.n_forgery, self.style.im_start_end, self.image_tokens],
            self.style.placement,
        )

    def encode(
        self,
        conversation: Conversation,
        images: Sequence[Image.Image] | None = None,
        *,
        label_end: bool = True,
        max_length: int | None = None,
    ) -> dict[str, Any]:
        """Encode one sample; see the protocol.

        Returns:
            ``input_ids`` with -200 for each image and -201 for each placeholder,
            ``attention_mask`` and ``labels`` (T,); ``images``, (3, H, W) or (tiles, 3, H, W) each,
            and ``image_sizes``, (width, height) each. A prompt without images has neither.
        """
        if images is not None and not images:
            raise ValueError("images is empty; give at least one, or None for a prompt without")
        turns = self._turns(conversation, len(images or ()))
        text, spans = render_turns(turns, self.style, skill=True)
        if not label_end:
            starts = [text.index(turns[2 * i + 1], start) for i, (start, _) in enumerate(spans)]
            spans = [
                (start, at + len(answer))
                for (start, _), at, answer in zip(spans, starts, turns[1::2], strict=True)
            ]
        sample: dict[str, Any] = label_spans(text, spans, self.tokenizer)
        length = len(sample["input_ids"])
        if max_length is not None and length > max_length:
            raise ValueError(
                f"the sample has {length} tokens, more than max_length {max_length}; raise "
                "max_length or shorten the conversation"
            )
        if conversation.is_prompt:
            del sample["labels"]
        sample["attention_mask"] = torch.ones_like(sample["input_ids"])
        if images:
            sample["images"], sample["image_sizes"] = self._images(images)
        return sample

    def collate(
        self, samples: Sequence[dict[str, Any]], padding_side: str = "right"
    ) -> dict[str, Any]:
        """See :func:`collate`."""
        return collate(samples, padding_side=padding_side)

    def positions(self, sample: dict[str, Any]) -> int:
        """Positions of a sample in the host, where each image is one id; see the protocol."""
        shown = sample.get("images", ())
        squares = sum(1 if image.ndim == 3 else len(image) for image in shown)
        return len(sample["input_ids"]) - len(shown) + squares * self.image_tokens

    def candidate_ids(self, prompt: Conversation) -> CandidateIds:
        """The tokens that tell "Yes" from "No" after a prompt; see the protocol."""
        if not prompt.is_prompt:
            raise ValueError("expected a conversation that ends with a question")
        turns = self._turns(prompt, 1)
        return tell_apart(self._ids(turns), lambda answer: self._ids([*turns, answer]))

    def decode(self, ids: torch.Tensor) -> str:
        """The text of an answer's new tokens (T,), without its end."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        for mark in self.stopping().get("stop_strings", []):
            text = text.removesuffix(mark).strip()
        return text

    def stopping(self) -> dict[str, Any]:
        """The template's separator, if it is not a special token."""
        template = self.style.template
        mark = template.sep2 if template.sep2 else template.sep
        if not mark or not mark.strip() or mark in self.tokenizer.all_special_tokens:
            return {}
        return {"stop_strings": [mark], "tokenizer": self.tokenizer}

    def _turns(self, conversation: Conversation, n_images: int) -> list[str]:
        first, *others = [message.text for message in conversation.messages]
        return [f"{IMAGE_TOKEN}\n" * n_images + first, *others]

    def _ids(self, turns: Sequence[str]) -> list[int]:
        text, _ = render_turns(turns, self.style, skill=True)
        return tokenise(text, self.tokenizer)[0]


def find_template(config: PreTrainedConfig, name: str | None = None) -> Any:
    """One of LLaVA's ``conv_templates``: by name, or that of the skill's training, or ``v1``.

    Raises:
        ValueError: LLaVA has no such template.
    """
    trained = getattr(config, TEMPLATE_KEY, None)
    if not (name or trained):
        logger.warning(
            "the model's configuration names no conversation template: %s is used",
            DEFAULT_TEMPLATE,
        )
    if name and trained and name != trained:
        logger.warning("the skill was trained with the template %r, not %r", trained, name)
    name = name or trained or DEFAULT_TEMPLATE
    if name == TEMPLATE:
        return paper_template()
    known = import_llava("a prompt", "llava.conversation").conv_templates
    if name not in known:
        raise ValueError(
            f"{name!r} is not one of LLaVA's conversation templates: {', '.join(known)}, {TEMPLATE}"
        )
    return known[name]


def collate(
    samples: Sequence[dict[str, Any]], pad_id: int = 0, padding_side: str = "right"
) -> dict[str, Any]:
    """Batch samples for a model of the ``llava`` package.

    Args:
        samples: ``input_ids``, and ``attention_mask`` and ``labels`` if any, (T,) each; ``images``
            and ``image_sizes`` of each image, if any.
        pad_id: Padding of ``input_ids``; any id works, because of the mask.
        padding_side: "right" or "left".

    Returns:
        (B, T) inputs per token; ``images`` (N, 3, H, W), or a list if their shapes differ; and
        ``image_sizes``, N times (width, height).

    Raises:
        ValueError: There is no sample, or they differ in keys.
    """
    if not samples:
        raise ValueError("there is no sample to collate")
    keys = set(samples[0])
    for i, sample in enumerate(samples):
        if set(sample) != keys:
            raise ValueError(f"sample {i} has the keys {sorted(sample)}, sample 0 {sorted(keys)}")
    masks = [torch.ones(len(sample["input_ids"]), dtype=torch.bool) for sample in samples]
    fill = {"input_ids": pad_id, "labels": IGNORE_INDEX}
    batch: dict[str, Any] = {
        name: pad_sequence([s[name] for s in samples], True, value, padding_side)
        for name, value in fill.items()
        if name in keys
    }
    batch["attention_mask"] = pad_sequence(masks, True, 0, padding_side)
    if "images" in keys:
        images = [image for sample in samples for image in sample["images"]]
        alike = images[0].ndim == 3 and all(image.shape == images[0].shape for image in images)
        batch["images"] = torch.stack(images) if alike else images
        batch["image_sizes"] = [size for sample in samples for size in sample["image_sizes"]]
    return batch
