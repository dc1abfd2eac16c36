"""A conversation as the host's tokens, with loss on the answers alone."""

import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from llava_forgery.constants import FORGERY_TOKEN, IGNORE_INDEX, IMAGE_TOKEN
from llava_forgery.files import fingerprint_of
from llava_forgery.hosts.base import CandidateIds
from llava_forgery.hosts.likelihood import tell_apart
from llava_forgery.hosts.placement import ALWAYS, PLACEHOLDERS, Expansion
from llava_forgery.hosts.transformers.chat import (
    Processor,
    Rendered,
    render,
    render_text,
    special_tokens,
    tokenizer_of,
)
from llava_forgery.hosts.transformers.client_prompts import ImageTokens
from llava_forgery.hosts.transformers.processors import (
    PLACEHOLDER_VALUES,
    TOKEN_PAD_VALUES,
    adds_special_tokens,
    conventions_of,
    join,
)
from llava_forgery.qa.conversation import ROLES, Conversation, Message


def encode(
    conversation: Conversation,
    processor: Processor,
    images: Sequence[Image.Image] | None = None,
    n_forgery_tokens: int = 9,
    max_length: int | None = None,
    *,
    label_end: bool = True,
    behind: ImageTokens | None = None,
) -> dict[str, torch.Tensor]:
    """One sample as the host takes it.

    Supervised are each answer's tokens and the special token that ends its turn, nothing else.
    Where the template ends no turn (as llava-1.5-hf's), the last answer gets the tokenizer's
    end-of-text token, or the host would never learn to stop.

    Args:
        conversation: Training data; or a prompt, which gets the head of the next answer and no
            labels.
        processor: The host's, with ``<forgery>`` in its tokenizer.
        images: What the conversation is about, in the order in which the first question shows
            them; None leaves them out of the prompt.
        n_forgery_tokens: n_f, behind each image.
        max_length: Most tokens; nothing is ever cut.
        label_end: Whether the token that ends each turn is supervised.
        behind: Finds the images, right behind which the placeholders are put into the ids
            (placement ``always``); None writes them into the text, before the question.

    Returns:
        ``input_ids`` (T,), ``attention_mask`` (T,), ``labels`` (T,) unless it is a prompt, and
        what the processor makes of the images, with images, tiles or patches in the first
        dimension, such as ``pixel_values`` (images, 3, H, W).

    Raises:
        ValueError: The sample is longer than ``max_length``, the template or the tokenizer makes
            it impossible to tell the answers' tokens, or placeholders get lost.
    """
    if images is not None and not images:
        raise ValueError("images is empty; give at least one, or None for a prompt without")
    tokenizer = tokenizer_of(processor)
    n_images = len(images) if images else 0
    written = n_forgery_tokens if behind is None else 0
    rendered = render(conversation, processor, written, n_images=n_images)
    text, spans = rendered.text, rendered.answer_spans
    if not conversation.is_prompt:
        text, closed = _close_turns(rendered, tokenizer)
        spans = closed if label_end else spans
    ids, offsets = _tokenise(tokenizer, text)
    suffix = bool(images) and conventions_of(processor).answers_are_suffix
    said = _tokens_of(spans, text, offsets) if suffix or not conversation.is_prompt else []
    if images is None:
        sample = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids)).long()}
    else:
        sample = process_sample(processor, text, images, conversation.messages[0].text)
        if behind is not None and n_forgery_tokens:
            sample = _follow_images(sample, behind, n_images, n_forgery_tokens, tokenizer)
    expanded = sample["input_ids"].tolist()
    if max_length is not None and len(expanded) > max_length:
        raise ValueError(
            f"the sample has {len(expanded)} tokens, more than max_length {max_length}; raise "
            "max_length or shorten the conversation"
        )
    placeholder = tokenizer.convert_tokens_to_ids(FORGERY_TOKEN)
    known = placeholder not in (None, tokenizer.unk_token_id)
    found = expanded.count(placeholder) if known else 0
    expected = n_forgery_tokens * (max(n_images, 1) if behind is None else n_images)
    if found != expected:
        raise ValueError(
            f"tokenising left {found} of {expected} placeholders {FORGERY_TOKEN}: the "
            "tokenizer must know it as a special token, which attach_forgery sees to"
        )
    if said:
        # The images stand before the first answer: their expansion moves every answer alike.
        shift = len(expanded) - len(ids)
        first = said[0]
        if shift < 0 or expanded[first + shift :] != ids[first:]:
            raise ValueError(
                "the processor's expansion of the image changed the tokens of the answers, from "
                f"{ids[first:]} to {expanded[max(first + shift, 0) :]}; labels cannot be placed"
            )
        if suffix:
            sample["token_type_ids"][first + shift :] = 1
        if not conversation.is_prompt:
            labels = torch.full_like(sample["input_ids"], IGNORE_INDEX)
            places = torch.tensor(said) + shift
            labels[places] = sample["input_ids"][places]
            sample["labels"] = labels
    return sample


def _follow_images(
    sample: dict[str, torch.Tensor],
    tokens: ImageTokens,
    n_images: int,
    count: int,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, torch.Tensor]:
    """A sample with placeholders right behind its images."""
    ids = sample["input_ids"][None]
    moved = Expansion.behind(tokens.ends(ids, n_images), count, left=False)
    placeholder = tokenizer.convert_tokens_to_ids(FORGERY_TOKEN)
    fills = {"input_ids": placeholder, **PLACEHOLDER_VALUES}
    return {
        name: moved.move(value[None], 0, fills[name])[0] if name in fills else value
        for name, value in sample.items()
    }


class ProcessorEncoder:
    """The :class:`~llava_forgery.hosts.base.PromptEncoder` of a processor and its chat template.

    Args:
        processor: The host's; with placeholders its tokenizer knows ``<forgery>``.
        n_forgery: n_f, placeholders behind each image; 0 for a host without the skill.
        behind: As for :func:`encode`.
    """

    def __init__(
        self, processor: Processor, n_forgery: int, behind: ImageTokens | None = None
    ) -> None:
        self.processor, self.n_forgery, self._behind = processor, n_forgery, behind
        self.tokenizer = tokenizer_of(processor)
        self.placeholder_id = cast(int, self.tokenizer.convert_tokens_to_ids(FORGERY_TOKEN))

    def encode(
        self,
        conversation: Conversation,
        images: Sequence[Image.Image] | None = None,
        *,
        label_end: bool = True,
        max_length: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """See :func:`encode`."""
        return encode(
            conversation,
            self.processor,
            images,
            self.n_forgery,
            max_length,
            label_end=label_end,
            behind=self._behind,
        )

    @property
    def placement(self) -> str:
        """Where E_forgery stands, and so the placeholders."""
        return PLACEHOLDERS if self._behind is None else ALWAYS

    def encode_turns(
        self, turns: Sequence[str], images: Sequence[Image.Image], *, skill: bool, max_length: int
    ) -> dict[str, torch.Tensor]:
        """A training dialogue in LLaVA's form; see the protocol.

        Images are shown before the first question's text, as chat templates have them.

        Raises:
            ValueError: An image stands in a later turn, the host takes no text without one, or as
                :func:`encode`.
        """
        if any(IMAGE_TOKEN in turn for turn in turns[1:]):
            raise ValueError(
                f"{IMAGE_TOKEN} stands behind the first question; hosts of transformers are shown "
                "images there only"
            )
        if not (images or conventions_of(self.processor).takes_text_alone):
            raise ValueError("this host takes no text without an image; leave such dialogues out")
        texts = [turns[0].replace(IMAGE_TOKEN, ""), *turns[1:]]
        messages = [Message(ROLES[i % 2], text.strip()) for i, text in enumerate(texts)]
        conversation = Conversation(tuple(messages), label=None)
        if conversation.is_prompt:
            raise ValueError(f"expected a question and an answer each, got {len(turns)} turns")
        count = self.n_forgery if skill else 0
        sample = encode(
            conversation, self.processor, images or None, count, max_length, behind=self._behind
        )
        if bool((sample["labels"] == IGNORE_INDEX).all()):
            raise ValueError("no token is left to learn from: all labels are masked")
        return sample

    # How many tokens an image takes depends on it.
    check_turns = encode_turns

    def fingerprint(self) -> str:
        """Changes with all that decides on a dialogue's tokens."""
        fast = self.tokenizer.is_fast
        return fingerprint_of(
            self.tokenizer.backend_tokenizer.to_str() if fast else None,
            getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template,
            repr(getattr(self.processor, "image_processor", None)),
            self.n_forgery,
            self.placement,
        )

    def collate(
        self, samples: Sequence[dict[str, torch.Tensor]], padding_side: str = "right"
    ) -> dict[str, torch.Tensor]:
        """See :func:`collate`."""
        return collate(samples, self.tokenizer.pad_token_id, padding_side)

    def positions(self, sample: dict[str, torch.Tensor]) -> int:
        """Positions of a sample in the host: processors write a token for each."""
        return len(sample["input_ids"])

    def candidate_ids(self, prompt: Conversation, n_images: int = 1) -> CandidateIds:
        """The tokens that tell "Yes" from "No" behind a prompt; see the protocol.

        Raises:
            ValueError: It is no prompt, or the answers do not continue its tokens.
        """
        if not prompt.is_prompt:
            raise ValueError("expected a conversation that ends with a question")
        # Placeholders that are put in behind images change no token of the text.
        written = self.n_forgery if self._behind is None else 0
        text = render_text(prompt, self.processor, written, n_images=n_images)
        head, _ = _tokenise(self.tokenizer, text)

        def continued(answer: str) -> list[int]:
            said = Conversation((*prompt.messages, Message("assistant", answer)), label=None)
            rendered = render(said, self.processor, written, n_images=n_images)
            start, end = rendered.answer_spans[-1]
            if rendered.text[:start] != text:
                raise ValueError(
                    "the chat template's generation prompt is not what its answers begin with: "
                    f"it ends with {text[-40:]!r}, but before an answer stands "
                    f"{rendered.text[max(start - 40, 0) : start]!r}"
                )
            return _tokenise(self.tokenizer, rendered.text[:end])[0]

        special = special_tokens(self.tokenizer)
        return tell_apart(head, continued, self.tokenizer.convert_tokens_to_ids(list(special)))

    def decode(self, ids: torch.Tensor) -> str:
        """The text of an answer's new tokens (T,)."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def stopping(self) -> dict[str, Any]:
        """Nothing: the host's generation configuration knows the end of a turn."""
        return {}


def collate(
    samples: Sequence[dict[str, torch.Tensor]], pad_id: int, padding_side: str = "right"
) -> dict[str, torch.Tensor]:
    """A batch of samples from :func:`encode`.

    Args:
        samples: All with the same keys.
        pad_id: Fills ``input_ids``; masks are filled with 0 and labels with -100.
        padding_side: "right" for training, "left" for generation.

    Returns:
        What has one value for each token as (B, T); images, tiles and patches of all samples in a
        row, as :mod:`llava_forgery.hosts.transformers.processors` has it.

    Raises:
        ValueError: The samples differ in keys, or in the shape of what must be alike.
    """
    if not samples:
        raise ValueError("there is no sample to collate")
    if pad_id is None:
        raise ValueError("pad_id is None: the tokenizer has no pad token, set one")
    if padding_side not in ("left", "right"):
        raise ValueError(f'padding_side must be "left" or "right", got {padding_side!r}')
    keys = set(samples[0])
    for i, sample in enumerate(samples):
        if set(sample) != keys:
            raise ValueError(f"sample {i} has the keys {sorted(sample)}, sample 0 {sorted(keys)}")
    fill = {"input_ids": pad_id, **TOKEN_PAD_VALUES}
    batch = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if key in fill:
            batch[key] = torch.nn.utils.rnn.pad_sequence(
                values, batch_first=True, padding_value=fill[key], padding_side=padding_side
            )
        else:
            batch[key] = join(key, values)
    return batch


def _close_turns(
    rendered: Rendered, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[tuple[int, int]]]:
    """The text, and the answers' spans with the special token that ends each turn."""
    text = rendered.text
    marks = sorted(special_tokens(tokenizer) - {FORGERY_TOKEN}, key=len, reverse=True)
    mark = re.compile("|".join(re.escape(token) for token in marks))
    spans = []
    for start, end in rendered.answer_spans:
        found = mark.match(text, end) if marks else None
        spans.append((start, found.end() if found else end))
    start, end = spans[-1]
    if end == rendered.answer_spans[-1][1]:
        if text[end:].strip() or tokenizer.eos_token is None:
            raise ValueError(
                f"the chat template ends an answer with {text[end:]!r}, which holds no special "
                f"token, and the tokenizer's end-of-text token is {tokenizer.eos_token!r}; "
                "without one the host cannot learn to stop"
            )
        text = text[:end] + tokenizer.eos_token
        spans[-1] = (start, len(text))
    return text, spans


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids, and for each its (start, end) in the text."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not say where its tokens stand in the text; load "
            "the fast tokenizer"
        )
    added = adds_special_tokens(tokenizer, text)
    encoded = tokenizer(text, add_special_tokens=added, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    # A prompt that ends with an end-of-text token would be over before it is answered.
    if ids and tuple(offsets[-1]) == (0, 0) and ids[-1] == tokenizer.eos_token_id:
        raise ValueError(
            f"the tokenizer puts {tokenizer.eos_token} behind every text; load it with "
            "add_eos_token=False"
        )
    return ids, offsets


def _tokens_of(
    spans: Sequence[tuple[int, int]], text: str, offsets: Sequence[tuple[int, int]]
) -> list[int]:
    """Indices of the tokens that write the spans."""
    found = []
    for start, end in spans:
        for i, (a, b) in enumerate(offsets):
            if a >= b or b <= start or a >= end:
                continue
            if text[a:start].strip() or text[end:b].strip():
                raise ValueError(
                    f"the token {text[a:b]!r} belongs to an answer and to what stands beside it, "
                    f"in {text[max(a - 20, 0) : b + 20]!r}: this tokenizer cannot separate the "
                    "answers of this chat template"
                )
            found.append(i)
    return found


def process_sample(
    processor: Processor, text: str, images: Sequence[Image.Image], question: str
) -> dict[str, torch.Tensor]:
    """What the processor gives for one sample; its tokens without the batch dimension."""
    if tokenizer_of(processor) is processor:
        raise ValueError("a tokenizer cannot take images; pass the host's processor")
    batch = conventions_of(processor).process(processor, text, images, question)
    sample = {}
    for name, value in batch.items():
        if name == "input_ids" or name in TOKEN_PAD_VALUES:
            if len(value) != 1:
                raise ValueError(
                    f"the processor gave {name} of shape {tuple(value.shape)} for one sample, "
                    "expected 1 in front"
                )
            value = value[0]
        sample[name] = value
    return sample
