"""Answers to prompts about images, written in one batch, with P(yes) from their first tokens."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.likelihood import first_token_p_yes
from llava_forgery.kfd.detector import KFDOutput
from llava_forgery.qa.conversation import Conversation
from llava_forgery.tensors import to_device


class WrittenAnswer(NamedTuple):
    """What a host says to one prompt."""

    text: str | None
    """None where nothing was asked."""
    p_yes: float | None
    """Probability of "Yes" against "No" as the answer's first word, in [0, 1]; None where it was
    not asked for."""
    truncated: bool
    """Whether it was cut off at the most tokens: what it would have gone on to say is not known."""


@torch.inference_mode()
def write_answers(
    model: ForgeryModel,
    prompts: Sequence[Conversation],
    images: Sequence[Image.Image],
    detection: KFDOutput | None = None,
    *,
    yes_or_no: Sequence[bool] | None = None,
    max_new_tokens: int = 64,
    num_beams: int = 1,
    **options: Any,
) -> list[WrittenAnswer]:
    """Answer prompts in one batch; the first token's likelihoods give P(yes) in the same pass.

    Args:
        model: In eval mode.
        prompts: N conversations that end with a question.
        images: Their N images.
        detection: The detector's output for them, of a model with the skill.
        yes_or_no: Of which prompts P(yes) is wanted; of all by default. These must end alike, as
            training's first question does whatever score it cites.
        max_new_tokens: Most tokens of an answer; 1 for P(yes) without the answer.
        num_beams: Beams; 1 takes the likeliest token.
        options: What else ``generate`` takes.

    Raises:
        ValueError: The host cannot tell "Yes" from "No", or P(yes) is not finite.
    """
    asked = [True] * len(prompts) if yes_or_no is None else list(yes_or_no)
    samples = [
        model.prompts.encode(prompt, [image]) for prompt, image in zip(prompts, images, strict=True)
    ]
    candidates = model.prompts.candidate_ids(prompts[asked.index(True)]) if any(asked) else None
    if candidates is not None and candidates.shared:
        samples = [
            _begun(sample, candidates.shared) if wanted else sample
            for sample, wanted in zip(samples, asked, strict=True)
        ]
    batch = to_device(model.prompts.collate(samples, padding_side="left"), model.device)
    if detection is not None:
        batch["detection"] = detection
    output = model.generate(
        **batch,
        **model.prompts.stopping(),
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        **{"do_sample": False, **options},
        return_dict_in_generate=True,
        output_logits=True,
    )
    said = output.sequences[:, batch["input_ids"].shape[1] :]
    p_yes: list[float | None] = [None] * len(prompts)
    if candidates is not None:
        # Beams stand together, and in the first step all of a sample's are alike.
        places = [i for i, wanted in enumerate(asked) if wanted]
        values = first_token_p_yes(output.logits[0][::num_beams][places], candidates)
        for place, value in zip(places, values, strict=True):
            p_yes[place] = value
    return [
        WrittenAnswer(model.prompts.decode(ids), value, was_cut(model, ids, max_new_tokens))
        for ids, value in zip(said, p_yes, strict=True)
    ]


def was_cut(model: ForgeryModel, ids: torch.Tensor, max_new_tokens: int) -> bool:
    """Whether an answer ended only because no more tokens were allowed.

    Args:
        model: Whose answer it is.
        ids: (T,) new tokens; of a batch, an answer that ended early is padded.
        max_new_tokens: How many were allowed.
    """
    if len(ids) < max_new_tokens:
        return False
    config = model.host.generation_config
    ends = config.eos_token_id
    ends = {config.pad_token_id, *(ends if isinstance(ends, (list, tuple)) else [ends])}
    if int(ids[-1]) in ends:
        return False
    stopping = model.prompts.stopping()
    marks = stopping.get("stop_strings", [])
    return not (marks and stopping["tokenizer"].decode(ids).strip().endswith(tuple(marks)))


def _begun(sample: dict[str, Any], shared: Sequence[int]) -> dict[str, Any]:
    """A prompt with the tokens that both answers begin with."""
    ids = sample["input_ids"]
    longer = {
        name: torch.cat([value, value[-1:].expand(len(shared))])
        for name, value in sample.items()
        if isinstance(value, torch.Tensor) and value.shape == ids.shape
    }
    longer["input_ids"] = torch.cat([ids, ids.new_tensor(shared)])
    return {**sample, **longer}
