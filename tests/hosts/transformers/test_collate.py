"""Samples to batches."""

import pytest
import torch

from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.hosts.transformers.prompts import (
    collate,
    encode,
)
from tests.hosts.transformers.rendering import (
    IMAGE,
    conversation,
    processor_of,
)


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate(side):
    processor = processor_of("small_llava")
    samples = [encode(conversation(follow_ups=n), processor, [IMAGE]) for n in (0, 3)]
    batch = collate(samples, pad_id=7, padding_side=side)
    short, long = (len(sample["input_ids"]) for sample in samples)
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    for name, fill in (("input_ids", 7), ("attention_mask", 0), ("labels", IGNORE_INDEX)):
        assert batch[name].shape == (2, long)
        assert batch[name].dtype == torch.int64
        padding = slice(0, long - short) if side == "left" else slice(short, long)
        content = slice(long - short, long) if side == "left" else slice(0, short)
        assert set(batch[name][0, padding].tolist()) == {fill}
        assert torch.equal(batch[name][0, content], samples[0][name])
        assert torch.equal(batch[name][1], samples[1][name])


def test_images_and_patches_stand_in_a_row():
    """As Qwen packs them: patches of all samples, and a grid for each image."""
    samples = [
        {"pixel_values": torch.full((n, 6), float(n)), "image_grid_thw": torch.full((k, 3), k)}
        for n, k in ((4, 1), (10, 2))
    ]
    batch = collate(samples, pad_id=0)
    assert batch["pixel_values"][:, 0].tolist() == [4.0] * 4 + [10.0] * 10
    assert batch["image_grid_thw"].tolist() == [[1] * 3, [2] * 3, [2] * 3]


def test_tiles_are_filled_up_with_zeros():
    """As LLaVA-NeXT's and Idefics3's processors do within a batch."""
    samples = [{"pixel_values": torch.ones(1, n, 3, 2, 2)} for n in (2, 5)]
    samples[1]["pixel_values"] *= 2
    tiles = collate(samples, pad_id=0)["pixel_values"]
    assert tiles.shape == (2, 5, 3, 2, 2)
    assert tiles.flatten(2).mean(dim=2).tolist() == [[1, 1, 0, 0, 0], [2] * 5]


def test_collate_is_checked():
    sample = {"input_ids": torch.tensor([1, 2]), "pixel_values": torch.zeros(3, 2, 2)}
    other = {"input_ids": torch.tensor([1]), "pixel_values": torch.zeros(3, 4, 4)}
    for samples, options, message in (
        ([], {}, "no sample"),
        ([sample], {"pad_id": None}, "has no pad token"),
        ([sample], {"padding_side": "top"}, 'must be "left" or "right"'),
        ([sample, {"input_ids": sample["input_ids"]}], {}, "sample 1 has the keys"),
        ([sample, other], {}, "pixel_values differs in shape"),
    ):
        with pytest.raises(ValueError, match=message):
            collate(samples, **({"pad_id": 0} | options))
