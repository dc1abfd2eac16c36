"""What a host with the forgery skill is, whichever backend it comes from.

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

# One value for each token: padded beside the ids, with these values.
TOKEN_PAD_VALUES = {
    "attention_mask": 0,
    "labels": IGNORE_INDEX,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
}


class CandidateIds(NamedTuple):
    """The tokens that tell "Yes" from "No" behind a prompt."""

    shared: tuple[int, ...]
    """What both answers begin with, mostly nothing: these tokens join the prompt."""
    yes: int
    no: int


class PromptEncoder(Protocol):
    """Conversations to the host's tokens, and its tokens to answers."""

    tokenizer: PreTrainedTokenizerBase
    placement: str
    """Where E_forgery stands (:mod:`llava_forgery.hosts.placement`), and so the placeholders."""
    placeholder_id: int
    """Stands in ``input_ids`` once for each embedding of E_forgery."""

    def encode(
        self,
        conversation: Conversation,
        images: Sequence[Image.Image] | None = None,
        *,
        label_end: bool = True,
        max_length: int | None = None,
    ) -> dict[str, Any]:
        """One sample as the host takes it, without a batch dimension in what has one value a token.

        Args:
            conversation: A prompt gets the head of the next answer, anything else ``labels``.
            images: What the first question shows, in order, each with n_f placeholders behind it.
                Without any, transformers' prompts keep the placeholders of one.
            label_end: Whether the labels hold the mark that ends each answer.
            max_length: Most tokens; nothing is ever cut.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels`` (T,), the latter -100 but for the
            answers, and what the host takes of the images.

        Raises:
            ValueError: The sample is too long, or the tokenizer or the template cannot separate
                the answers.
        """

    def encode_turns(
        self, turns: Sequence[str], images: Sequence[Image.Image], *, skill: bool, max_length: int
    ) -> dict[str, Any]:
        """A training dialogue in LLaVA's form, with labels.

        Args:
            turns: Question, answer, question, answer ...; one ``<image>`` for each image.
            images: RGB; none for text alone.
            skill: Whether n_f placeholders stand behind each image.
            max_length: Most tokens.

        Raises:
            ValueError: No token is left to learn from, the host cannot show images where the turns
                have them, or as :meth:`encode`.
        """

    def check_turns(
        self, turns: Sequence[str], images: Sequence[Image.Image], *, skill: bool, max_length: int
    ) -> dict[str, Any]:
        """``input_ids`` and ``labels`` of :meth:`encode_turns` with as little as they need."""

    def fingerprint(self) -> str:
        """Changes with all that decides on a dialogue's tokens."""

    def collate(
        self, samples: Sequence[dict[str, Any]], padding_side: str = "right"
    ) -> dict[str, Any]:
        """A batch of encoded samples: (B, T) what has one value a token, images in a row.

        Args:
            samples: At least one, all with the same keys.
            padding_side: "right" for training and likelihoods, "left" for ``generate``.
        """

    def positions(self, sample: dict[str, Any]) -> int:
        """How many positions an encoded sample takes in the host, its images' among them; at most,
        where that shows only once the images are encoded."""

    def candidate_ids(self, prompt: Conversation) -> CandidateIds:
        """The tokens with which "Yes" and "No" begin behind a prompt about one image.

        Raises:
            ValueError: The answers do not continue the prompt's tokens, or begin alike.
        """

    def decode(self, ids: torch.Tensor) -> str:
        """The text of an answer's new tokens (T,), without what ends it."""

    def stopping(self) -> dict[str, Any]:
        """Arguments of ``generate`` for what ends an answer beside the host's own end token."""


class ForgeryModel(Protocol):
    """A host with the skill: an ``nn.Module`` that owns host, detector and learner.

    Threads and asyncio tasks may call it at once.
    """

    host: nn.Module
    """The bare host, or peft's wrapper around it."""
    kfd: KnowledgeGuidedForgeryDetector
    fpl: ForgeryPromptLearner
    prompts: PromptEncoder
    family: HostFamily
    """How the host goes on from a cache."""
    device: torch.device
    """Of the host's input embedding, and so of its inputs."""
    has_lora: bool
    fingerprint: dict[str, Any]
    """Of the bare host; see :mod:`llava_forgery.hosts.fingerprint`."""
    projector: TrainedProjector | None
    """The host's own projector where it was trained as well."""
    host_name: str
    """Where the bare host came from: a folder or a hub name."""
    n_forgery: int
    """n_f: placeholders behind each image of a prompt."""
    placement: str
    """Where E_forgery stands; see :mod:`llava_forgery.hosts.placement`."""
    crop: str
    """Whether faces are cut out of pictures that are given without ``forgery_images``."""
    takes_forgery_images: bool
    """Whether calls take ``forgery_images``. A detector on the host's own vision tower reads what
    the host is shown, and each image is encoded once."""

    training: bool
    """As of ``nn.Module``."""

    def eval(self) -> Any:
        """As of ``nn.Module``."""

    def detect(self, forgery_images: torch.Tensor) -> KFDOutput:
        """The detector's output for images (N, 3, S, S) in [0, 1]."""

    def detector_alone(self) -> AbstractContextManager[KnowledgeGuidedForgeryDetector]:
        """The detector for calls without the host, also where it reads the host's tower."""

    def forward(
        self,
        input_ids: torch.Tensor,
        forgery_images: torch.Tensor | None = None,
        detection: KFDOutput | None = None,
        **inputs: Any,
    ) -> Any:
        """The host's output with E_forgery at the placeholders.

        Args:
            input_ids: (B, T), n_f placeholders for each image.
            forgery_images: (N, 3, S, S) in [0, 1], the images of all samples in order; or
            detection: the detector's output for them, where it is known already.
            inputs: What else :meth:`PromptEncoder.collate` gives.

        Raises:
            ValueError: Placeholders and images do not fit, or both of the two are given.
        """

    def labelled_logits(
        self, labels: torch.Tensor, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits that predict labelled tokens, beside their labels.

        Args:
            labels: (B, T), -100 where nothing is asked.
            inputs: As for :meth:`forward`.

        Returns:
            (B, K, V) and (B, K), from the first labelled token on. A host may have put several
            embeddings in the place of one token, so K need not be counted from T.
        """

    def generate(
        self,
        input_ids: torch.Tensor,
        forgery_images: torch.Tensor | None = None,
        detection: KFDOutput | None = None,
        cached_tokens: int | None = None,
        **options: Any,
    ) -> Any:
        """The host's ``generate``; never emits a placeholder.

        Args:
            input_ids: The whole prompt, padded in front; also where ``cache`` holds its first part.
            forgery_images: As for :meth:`forward`; left out, as is ``detection``, where the cache
                reaches behind the last placeholder.
            detection: As for :meth:`forward`.
            cached_tokens: How many tokens of ``input_ids`` the cache holds: a host may have put
                several embeddings in the place of one token.
            options: What else ``collate`` gives, and what the host's ``generate`` takes.

        Returns:
            Sequences that begin with ``input_ids``, or transformers' output that holds them.

        Raises:
            RuntimeError: The model is in training mode.
            ValueError: As :meth:`forward`.
        """

    def trainable_names(self) -> list[str]:
        """Names of the parameters that training changes."""

    def save_pretrained(self, directory: str | PathLike) -> None:
        """Write the forgery adapter, never the host."""

    def load_weights(self, directory: str | PathLike) -> None:
        """Fill what is trained from :meth:`save_pretrained`'s files, strictly."""

    def merge_lora(self) -> None:
        """Add LoRA to the host's weights: faster, but nothing can be saved or detached then."""

    def detach(self) -> nn.Module:
        """Take skill and LoRA off; returns the bare host as it was."""
