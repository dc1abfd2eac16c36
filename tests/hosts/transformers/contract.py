"""Hosts with the skill, samples and batches for the contract that every family keeps."""

import torch
from PIL import Image

from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.prompts import collate, encode
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.qa.build import build_prompt
from tests import tiny, tiny_hosts

LORA = LoraSettings(r=2, alpha=4, dropout=0.0)
N_FORGERY = 9


def attach(model_type: str, lora: LoraSettings | None = LORA, seed: int = 0) -> ForgeryVLM:
    host, processor = tiny_hosts.build(model_type)
    return attach_forgery(host, processor, tiny.kfd(), lora=lora, seed=seed).eval()


def perturb(vlm: ForgeryVLM) -> ForgeryVLM:
    """Trained weights that all differ from a new model's."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return vlm


def photograph(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    return Image.fromarray(tiny.picture(seed, 64)).resize((width, height))


# One image and a short question; then two images of other shapes, so of other tiles.
PHOTOGRAPHS = ((photograph(0),), (photograph(1, 64, 32), photograph(2, 40, 64)))
QUESTIONS = ("Fake?", None)


def sample_of(vlm: ForgeryVLM, index: int) -> dict[str, torch.Tensor]:
    return encode(
        build_prompt(0.1 + 0.35 * index, question=QUESTIONS[index]),
        vlm.processor,
        images=PHOTOGRAPHS[index],
        n_forgery_tokens=vlm.n_forgery,
    )


def faces(count: int = 3) -> torch.Tensor:
    images = torch.stack([torch.from_numpy(tiny.picture(i)) for i in range(count)])
    return images.permute(0, 3, 1, 2).float() / 255


def batch_of(vlm: ForgeryVLM) -> dict[str, torch.Tensor]:
    """Both samples, the first padded on the left."""
    samples = [sample_of(vlm, index) for index in range(2)]
    batch = collate(samples, vlm.processor.tokenizer.pad_token_id, padding_side="left")
    return {**batch, "forgery_images": faces(), "images_per_sample": [1, 2]}


def alone(vlm: ForgeryVLM, index: int) -> dict[str, torch.Tensor]:
    batch = collate([sample_of(vlm, index)], vlm.processor.tokenizer.pad_token_id)
    images = faces()[:1] if index == 0 else faces()[1:]
    return {**batch, "forgery_images": images, "images_per_sample": [len(images)]}
