"""What differs between processors: how their tensors are joined, and the few conventions.

A processor is taken as it is wherever it can be. ``TOKEN_PAD_VALUES`` and
``PADDED_TENSORS`` say how the tensors of several samples become a batch; ``_CONVENTIONS`` holds the
processors that need more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from llava_forgery.hosts.base import TOKEN_PAD_VALUES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

# Of placeholders that are put in behind images.
PLACEHOLDER_VALUES = {**TOKEN_PAD_VALUES, "attention_mask": 1}
# Everything else (images, tiles, patches, grids, sizes) is concatenated along its first dimension.
# These, with that many dimensions, may differ in the others and are filled up with zeros behind
# them, as the processors do themselves within a batch: the host knows from masks or sizes.
PADDED_TENSORS = {
    "pixel_values": 5,
    "pixel_attention_mask": 4,
    "qformer_input_ids": 2,
    "qformer_attention_mask": 2,
}

# Neither PaliGemma nor InstructBLIP was trained on dialogues. Question, line break, answer and
# end-of-text token are what both know.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '\n' if message['role'] == 'user' else eos_token }}{% endfor %}"
)

Tensors = dict[str, torch.Tensor]


def process_plainly(
    processor: ProcessorMixin, text: str, images: Sequence[Image.Image], question: str
) -> Tensors:
    """The processor's own tensors: (1, T) for tokens, with images in front for the others."""
    added = adds_special_tokens(processor.tokenizer, text)
    batch = processor(
        text=[text], images=[list(images)], add_special_tokens=added, return_tensors="pt"
    )
    # PaliGemma's makes labels of its own, which say nothing here.
    return {name: value for name, value in batch.items() if name != "labels"}


def process_with_line_break(
    processor: ProcessorMixin, text: str, images: Sequence[Image.Image], question: str
) -> Tensors:
    """PaliGemma's processor puts a line break behind every text: one is taken away, before where
    the text ends with one, else after."""
    if text.endswith("\n"):
        return process_plainly(processor, text[:-1], images, question)
    batch = process_plainly(processor, text, images, question)
    surplus = len(processor.tokenizer("\n", add_special_tokens=False)["input_ids"])
    return {
        name: value[:, :-surplus] if name in ("input_ids", *TOKEN_PAD_VALUES) else value
        for name, value in batch.items()
    }


def process_for_qformer(
    processor: ProcessorMixin, text: str, images: Sequence[Image.Image], question: str
) -> Tensors:
    """InstructBLIP's processor knows one image, and hands the whole text to the Q-Former.

    That would show the Q-Former the answers in training. It gets the first question instead, for
    each image, without placeholders. As in the processor, an image at the beginning of the text
    stands before the beginning-of-text token.
    """
    tokenizer = processor.tokenizer
    ids = tokenizer(text, add_special_tokens=adds_special_tokens(tokenizer, text))["input_ids"]
    image = tokenizer.convert_tokens_to_ids(str(processor.image_token))
    if ids[0] == tokenizer.bos_token_id and ids[1] == image:
        ids[:2] = [image, ids[0]]
    counts = [processor.num_query_tokens if i == image else 1 for i in ids]
    input_ids = torch.tensor(ids).repeat_interleave(torch.tensor(counts))[None]
    asked = processor.qformer_tokenizer([question] * len(images), return_tensors="pt")
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "qformer_input_ids": asked["input_ids"],
        "qformer_attention_mask": asked["attention_mask"],
        **processor.image_processor(list(images), return_tensors="pt"),
    }


@dataclass(frozen=True)
class Conventions:
    """What rendering must know of a processor."""

    chat_template: str | None = None
    """For checkpoints that bring none."""
    process: Callable[[ProcessorMixin, str, Sequence[Image.Image], str], Tensors] = process_plainly
    """Text, images and the first question to tensors."""
    answers_are_suffix: bool = False
    """``token_type_ids`` are 0 where tokens see each other in both directions, and must be 1 from
    the first answer on, or each token of it would see the next."""
    takes_text_alone: bool = True
    """Whether the host answers prompts that show no image."""


# By the processor's class name; subclasses inherit.
_CONVENTIONS = {
    "PaliGemmaProcessor": Conventions(PLAIN_TEMPLATE, process_with_line_break, True),
    "InstructBlipProcessor": Conventions(
        PLAIN_TEMPLATE, process_for_qformer, takes_text_alone=False
    ),
}


def conventions_of(processor: ProcessorMixin | PreTrainedTokenizerBase) -> Conventions:
    """The conventions of a processor; nothing special for most."""
    names = (kind.__name__ for kind in type(processor).__mro__)
    return next((_CONVENTIONS[name] for name in names if name in _CONVENTIONS), Conventions())


def adds_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether tokenising adds them; not where the template has written the first one already."""
    return not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


def join(name: str, values: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensors of several samples as one, along the first dimension.

    Raises:
        ValueError: They differ in other dimensions and may not; the message has the shapes.
    """
    shapes = [tuple(value.shape) for value in values]
    rest = {shape[1:] for shape in shapes}
    if len(rest) == 1:
        return torch.cat(list(values))
    if any(len(shape) != PADDED_TENSORS.get(name) for shape in shapes):
        raise ValueError(f"{name} differs in shape: {shapes}")
    largest = [max(sizes) for sizes in zip(*rest, strict=True)]
    padded = []
    for value in values:
        whole = value.new_zeros(len(value), *largest)
        whole[tuple(slice(size) for size in value.shape)] = value
        padded.append(whole)
    return torch.cat(padded)
