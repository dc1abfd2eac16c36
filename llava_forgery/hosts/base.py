"""Protocols of a host with the forgery skill, for either backend.

Predictor, dialogue, likelihoods, training and lmms-eval know these two protocols only. Each has one
implementation for transformers (:class:`~llava_forgery.hosts.transformers.vlm.ForgeryVLM`,
:class:`~llava_forgery.hosts.transformers.prompts.ProcessorEncoder`) and one for the ``llava``
package (:class:`~llava_forgery.hosts.llava.vlm.LlavaForgeryVLM`,
:class:`~llava_forgery.hosts.llava.encoder.LlavaEncoder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import nn

from llava_forgery.constants import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llava_forgery.fpl.learner import ForgeryPromptLearner
    from llava_forgery.hosts.families import HostFamily
    from llava_forgery.hosts.projector import TrainedProjector
    from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector
    from llava_forgery.qa.conversation import Conversation

# Inputs with one value per token, padded like the ids, with these values.
TOKEN_PAD_VALUES = {
    "attention_mask": 0,
    "labels": IGNORE_INDEX,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
}


class CandidateIds(NamedTuple):
    """The tokens that tell "Yes" from "No" after a prompt."""

    shared: tuple[int, ...]
    """Common beginning of both answers, mostly empty: these tokens are added to the prompt."""
    yes: int
    no: int


class PromptEncoder(Protocol):
    """Converts conversations to the host's tokens, and its tokens to answers."""

    tokenizer: PreTrainedTokenizerBase
    placement: str
    """Placement of E_forgery (:mod:`llava_forgery.hosts.placement`), and so of placeholders."""
    placeholder_id: int
    """Token in ``input_ids`` for each embedding of E_forgery."""

    def encode(
        self,
        conversation: Conversation,
        images: Sequence[Image.Image] | None = None,
        *,
        label_end: bool = True,
        max_length: int | None = None,
    ) -> dict[str, Any]:
        """Encode one sample for the host; inputs with one value per token have no batch dimension.

        Args:
            conversation: Conversation; a prompt gets the head of the next answer, anything else
                ``labels``.
            images: Images of the first question, in order, each followed by n_f placeholders.
                Without any, transformers' prompts keep the placeholders of one.
            label_end: Whether the labels include the mark that ends each answer.
            max_length: Maximum number of tokens; nothing is ever truncated.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels`` (T,), the latter -100 outside the
            answers, and the host's inputs for the images.

        Raises:
            ValueError: The sample is too long, or the tokenizer or the template cannot separate
                the answers.
        """

    def encode_turns(
        self, turns: Sequence[str], images: Sequence[Image.Image], *, skill: bool, max_length: int
    ) -> dict[str, Any]:
        """Encode a training dialogue in LLaVA's form, with labels.

        Args:
            turns: Question, answer, question, answer ...; one ``<image>`` for each image.
            images: RGB images; none for text only.
            skill: Whether each image is followed by n_f placeholders.
            max_length: Maximum number of tokens.

        Raises:
            ValueError: As for :meth:`encode`; or no token is left to learn from, or the host does
                not support images at these positions.
        """

    def check_turns(
        self, turns: Sequence[str], images: Sequence[Image.Image], *, skill: bool, max_length: int
    ) -> dict[str, Any]:
        """``input_ids`` and ``labels`` of :meth:`encode_turns`, computed as cheaply as possible."""

    def fingerprint(self) -> str:
        """Digest of everything that determines the tokens of a dialogue."""

    def collate(
        self, samples: Sequence[dict[str, Any]], padding_side: str = "right"
    ) -> dict[str, Any]:
        """Batch encoded samples: inputs with one value per token (B, T), images concatenated.

        Args:
            samples: At least one sample, all with the same keys.
            padding_side: "right" for training and likelihoods, "left" for ``generate``.
        """

    def positions(self, sample: dict[str, Any]) -> int:
        """How many positions an encoded sample takes in the host, its images' among them; at most,
        where that shows only once the images are encoded."""

    def candidate_ids(self, prompt: Conversation) -> CandidateIds:
        """The first tokens of "Yes" and "No" after a prompt about one image.

        Raises:
            ValueError: The answers do not continue the prompt's tokens, or begin alike.
        """

    def decode(self, ids: torch.Tensor) -> str:
        """The text of an answer's new tokens (T,), without its end."""

    def stopping(self) -> dict[str, Any]:
        """Arguments of ``generate`` that end an answer besides the host's own end token."""


class ForgeryModel(Protocol):
    """A host with the skill: an ``nn.Module`` that owns host, detector and learner.

    Threads and asyncio tasks may call it concurrently.
    """

    host: nn.Module
    """The bare host, or peft's wrapper around it."""
    kfd: KnowledgeGuidedForgeryDetector
    fpl: ForgeryPromptLearner
    prompts: PromptEncoder
    family: HostFamily
    """Record of the host's family, which says how it continues from a cache."""
    device: torch.device
    """Device of the host's input embedding, and so of its inputs."""
    has_lora: bool
    fingerprint: dict[str, Any]
    """Fingerprint of the bare host; see :mod:`llava_forgery.hosts.fingerprint`."""
    projector: TrainedProjector | None
    """The host's own projector, if it was trained as well."""
    host_name: str
    """Folder or hub name of the bare host."""
    n_forgery: int
    """n_f: number of placeholders after each image of a prompt."""
    placement: str
    """Placement of E_forgery; see :mod:`llava_forgery.hosts.placement`."""
    crop: str
    """Whether faces are cut out of pictures that are given without ``forgery_images``."""
    takes_forgery_images: bool
    """Whether calls take ``forgery_images``. A detector on the host's own vision tower reads the
    host's images, and each image is encoded once."""

    training: bool
    """As of ``nn.Module``."""

    def eval(self) -> Any:
        """As of ``nn.Module``."""

    def detect(self, forgery_images: torch.Tensor) -> KFDOutput:
        """The detector's output for images (N, 3, S, S) in [0, 1]."""

    def detector_alone(self) -> AbstractContextManager[KnowledgeGuidedForgeryDetector]:
        """The detector for calls without the host, even if it reads the host's tower."""

    def forward(
        self,
        input_ids: torch.Tensor,
        forgery_images: torch.Tensor | None = None,
        detection: KFDOutput | None = None,
        **inputs: Any,
    ) -> Any:
        """The host's output with E_forgery at the placeholders.

        Args:
            input_ids: (B, T), with n_f placeholders for each image.
            forgery_images: (N, 3, S, S) in [0, 1], the images of all samples in order.
            detection: The detector's output for them, instead of ``forgery_images``.
            inputs: Further inputs from :meth:`PromptEncoder.collate`.

        Raises:
            ValueError: Placeholders and images do not match, or ``forgery_images`` and
                ``detection`` are both given.
        """

    def labelled_logits(
        self, labels: torch.Tensor, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits that predict labelled tokens, with their labels.

        Args:
            labels: (B, T), -100 for tokens without a label.
            inputs: As for :meth:`forward`.

        Returns:
            (B, K, V) and (B, K), from the first labelled token on. A host may replace one token by
            several embeddings, so K cannot be derived from T.
        """

    def generate(
        self,
        input_ids: torch.Tensor,
        forgery_images: torch.Tensor | None = None,
        detection: KFDOutput | None = None,
        cached_tokens: int | None = None,
        **options: Any,
    ) -> Any:
        """The host's ``generate``, which never emits a placeholder.

        Args:
            input_ids: Whole prompt, padded on the left, even if ``cache`` holds its first part.
            forgery_images: As for :meth:`forward`; omitted, like ``detection``, if the cache
                extends beyond the last placeholder.
            detection: As for :meth:`forward`.
            cached_tokens: Number of tokens of ``input_ids`` in the cache, as a host may replace one
                token by several embeddings.
            options: Further inputs from ``collate`` and arguments of the host's ``generate``.

        Returns:
            Sequences that begin with ``input_ids``, or transformers' output that holds them.

        Raises:
            RuntimeError: The model is in training mode.
            ValueError: As for :meth:`forward`.
        """

    def trainable_names(self) -> list[str]:
        """Names of the parameters that training changes."""

    def save_pretrained(self, directory: str | PathLike) -> None:
        """Write the forgery adapter, never the host."""

    def load_weights(self, directory: str | PathLike) -> None:
        """Load the trained parameters from :meth:`save_pretrained`'s files, strictly."""

    def merge_lora(self) -> None:
        """Merge LoRA into the host's weights: faster, but saving and detaching are disabled."""

    def detach(self) -> nn.Module:
        """Remove skill and LoRA, and return the original bare host."""
