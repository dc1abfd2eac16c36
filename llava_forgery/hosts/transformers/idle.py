"""Training steps that show no face: the modules of the skill run idle, with gradients of zero."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.placeholder import input_embedding
from llava_forgery.hosts.transformers.prompts import ProcessorEncoder
from llava_forgery.qa.conversation import Conversation, Message

# Of the picture that stands in where a step shows none; every processor takes it.
_GREY_SIDE = 64


@contextmanager
def idle_step(
    host: PreTrainedModel,
    prompts: ProcessorEncoder,
    learner: ForgeryPromptLearner,
    shows_images: bool,
    tower_first: bool,
) -> Iterator[None]:
    """Let a training step on general data run what one of the skill runs, with gradients of 0.

    Processes that train together exchange gradients, under ZeRO-3 weights as well, in the order
    in which each computes them, so all must run the same modules in the same order: the FPL
    before the host, and the vision tower behind the input embedding, where hosts run it, also
    for text alone. Both are tied to the embedding's output.

    Args:
        host: Without peft's wrapper; called inside.
        prompts: Its prompts.
        learner: The FPL.
        shows_images: Whether the step shows the host images, so that its tower runs anyway.
        tower_first: Whether the skill's steps run the tower before the host: a detector reads it.
    """
    embedding = input_embedding(host)
    device, zeros = embedding.weight.device, []
    if not shows_images and tower_first:
        zeros.append(_encode_nothing(host, prompts, device))
    zeros.append(learner.idle(device))

    def add(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if not shows_images and not tower_first:
            zeros.append(_encode_nothing(host, prompts, device))
        return output + sum(zero.to(output.device, output.dtype) for zero in zeros)

    handle = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _encode_nothing(
    host: PreTrainedModel, prompts: ProcessorEncoder, device: torch.device
) -> torch.Tensor:
    """Zero, (), from the host's features of a grey picture."""
    grey = Image.new("RGB", (_GREY_SIDE, _GREY_SIDE), "grey")
    question = Conversation((Message("user", "?"),), label=None)
    sample = prompts.encode(question, [grey])
    encode_images: Any = host.base_model.get_image_features
    taken = inspect.signature(encode_images).parameters
    shown = {name: value.to(device) for name, value in sample.items() if name in taken}
    shown["pixel_values"] = shown["pixel_values"].to(host.dtype)
    features = encode_images(**shown, return_dict=True).pooler_output
    parts = [features] if isinstance(features, torch.Tensor) else features
    return torch.stack([part.flatten()[:0].sum() for part in parts]).sum()
