"""Talking about one face, over several turns."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from llava_forgery.call_state import lock_of
from llava_forgery.hosts.base import TOKEN_PAD_VALUES, ForgeryModel
from llava_forgery.hosts.kv_cache import CACHE
from llava_forgery.infer.answering import was_cut
from llava_forgery.qa.build import detection_prompt
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.tensors import from_bytes, to_device

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

logger = logging.getLogger(__name__)

NOTHING_SAID = "(The model gave no answer.)"


class PromptTooLong(ValueError):
    """A prompt and its answer take more positions than the language model has."""


class Dialogue:
    """A dialogue about one face; detector and vision tower look at it once.

    The first turn leaves the host's keys and values behind; later turns go on from them where the
    family allows it (``HostFamily.cache_mode``) and the new prompt begins with what they hold.
    Otherwise a turn is computed anew, with the same answer.

    Made by ``ForgeryPredictor.dialogue``.

    Args:
        vlm: In eval mode.
        image: (S, S, 3) uint8, the face.
        max_new_tokens: Most tokens of an answer.
        reuse_cache: False computes every turn anew, for comparison or to save memory between
            turns.

    Attributes:
        score: The detector's score of the face.
        messages: What was said so far.
        truncated: Whether the last answer was cut off at ``max_new_tokens``.
        prompt_tokens: Tokens of the last turn's prompt.
        reused_tokens: How many of them were not computed again.
    """

    def __init__(
        self,
        vlm: ForgeryModel,
        image: np.ndarray,
        max_new_tokens: int = 64,
        reuse_cache: bool = True,
    ) -> None:
        self.vlm, self.image, self.max_new_tokens = vlm, image, max_new_tokens
        self.reuse_cache = reuse_cache and vlm.family.cache_mode != "recompute"
        self._detection = vlm.detect(from_bytes(image)[None])
        self.score = float(self._detection.score[0])
        self.messages: tuple[Message, ...] = ()
        self.truncated = False
        self.prompt_tokens = self.reused_tokens = 0
        self._cache: Any = None
        self._cached_ids = torch.empty(0, dtype=torch.long)
        self._first_prompt = 0

    @torch.inference_mode()
    def ask(self, text: str, streamer: BaseStreamer | None = None, **options: Any) -> str:
        """Ask a question and get the answer; both join the dialogue.

        The first question is put behind the task description and the detector's result, as in
        training. Threads that ask at once take turns.

        Args:
            text: The question.
            streamer: Receives the answer's tokens as they are written, as transformers has it.
            options: Of the host's ``generate``, such as ``max_new_tokens``, or ``do_sample`` and
                ``temperature``, in the place of what the dialogue takes otherwise.

        Raises:
            ValueError: An empty question.
            PromptTooLong: A ValueError: dialogue and answer are longer than the language model
                reads.
        """
        text = text.strip()
        if not text:
            raise ValueError("the question is empty")
        with lock_of(self):
            return self._ask(text, streamer, options)

    def recall(self, turns: Iterable[tuple[str, str]]) -> None:
        """Take up what was said elsewhere about this face; the next turn reads it anew.

        Args:
            turns: Questions and their answers, in place of what this dialogue holds.

        Raises:
            ValueError: A text is empty or holds a placeholder.
        """
        messages = messages_of(self.score, turns)
        with lock_of(self):
            self.messages, self._cache, self.reused_tokens = messages, None, 0
            self._first_prompt = 0

    def _ask(self, text: str, streamer: BaseStreamer | None, options: dict[str, Any]) -> str:
        messages = with_question(self.score, self.messages, text)
        prompts = self.vlm.prompts
        limit = options.get("max_new_tokens", self.max_new_tokens)
        encoded = encode_turn(self.vlm, messages, self.image, limit)
        inputs = to_device(prompts.collate([encoded], padding_side="left"), self.vlm.device)
        ids = inputs["input_ids"][0]
        if not self._first_prompt:
            self._first_prompt = len(ids)
        # What fails half-way must not be gone on from.
        cached, cache = self._cut_cache(ids), self._cache
        self.prompt_tokens, self.reused_tokens, self._cache = len(ids), cached, None
        if cached:
            kept = {"input_ids", *TOKEN_PAD_VALUES, *self.vlm.family.cached_turn_inputs}
            inputs = {name: tensor for name, tensor in inputs.items() if name in kept}
            inputs |= {CACHE: cache, "cached_tokens": cached}
        else:
            inputs["detection"] = self._detection
        output = self.vlm.generate(
            **inputs,
            **{
                **prompts.stopping(),
                "max_new_tokens": self.max_new_tokens,
                "do_sample": False,
                **options,
            },
            use_cache=True,
            return_dict_in_generate=True,
            streamer=streamer,
        )
        said = output.sequences[0]
        if self.reuse_cache:
            # The last token was written, but not read.
            self._cache, self._cached_ids = getattr(output, CACHE), said[:-1]
        # A host may end its turn at once; the next prompt needs words in every turn.
        answer = prompts.decode(said[len(ids) :]) or NOTHING_SAID
        self.truncated = was_cut(self.vlm, said[len(ids) :], self.max_new_tokens)
        self.messages = (*messages, Message("assistant", answer))
        return answer

    def _cut_cache(self, ids: torch.Tensor) -> int:
        """How many tokens of the prompt (T,) the cache holds, cut to them; 0 if it is of no use.

        Chat templates may word earlier turns anew, and a decoded answer may be tokenised
        otherwise than it was written: only the ids can tell.
        """
        if self._cache is None:
            return 0
        length = min(len(self._cached_ids), len(ids))
        alike = (self._cached_ids[:length] == ids[:length]).long()
        # The last token of the prompt is computed in any case: it gives the answer's first.
        common = min(int(alike.cumprod(dim=0).sum()), len(ids) - 1)
        if self.vlm.family.bidirectional_prefix:
            needed = self._first_prompt
        else:
            needed = int((ids == self.vlm.prompts.placeholder_id).nonzero()[-1]) + 1
        if common < needed:
            logger.debug("%d tokens in common, %d needed: computed anew", common, needed)
            return 0
        try:
            self._cache.crop(common - len(self._cached_ids))
        except RuntimeError as error:
            # Layers with a sliding window that is full have forgotten what lies before it.
            logger.debug("the cache cannot be cut (%s): computed anew", error)
            return 0
        return common


def messages_of(score: float, turns: Iterable[tuple[str, str]]) -> tuple[Message, ...]:
    """Questions and their answers as the model is told of them; the first cites the score."""
    messages: tuple[Message, ...] = ()
    for question, answer in turns:
        asked = with_question(score, messages, question.strip())
        messages = (*asked, Message("assistant", answer.strip()))
    return messages


def with_question(score: float, messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """A dialogue with its next question."""
    question = text if messages else detection_prompt(score, question=text)
    return (*messages, Message("user", question))


def encode_turn(
    vlm: ForgeryModel, messages: Sequence[Message], image: np.ndarray, max_new_tokens: int
) -> dict[str, Any]:
    """A dialogue that waits for its next answer, as the host takes it, without a batch dimension.

    Args:
        vlm: The host.
        messages: The last one is a question.
        image: (S, S, 3) uint8.
        max_new_tokens: Most tokens of the answer, for which there must be room.

    Raises:
        PromptTooLong: There is none.
    """
    conversation = Conversation(tuple(messages), label=None)
    encoded = vlm.prompts.encode(conversation, [Image.fromarray(image)])
    text = vlm.host.config.get_text_config(decoder=True)
    limit = getattr(text, "max_position_embeddings", None)
    taken = vlm.prompts.positions(encoded)
    if limit is not None and taken + max_new_tokens > limit:
        raise PromptTooLong(
            f"the dialogue takes {taken} positions and its answer up to {max_new_tokens}; the "
            f"language model has {limit}: begin a new dialogue, or ask for a shorter answer"
        )
    return encoded
