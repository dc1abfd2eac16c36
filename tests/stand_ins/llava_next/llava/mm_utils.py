"""Images for the model."""

import torch


def process_anyres_image(image, processor, grid_pinpoints):
    assert isinstance(processor.size, dict), "LLaVA-NeXT takes what is no dict for a pair"
    whole = image.resize((processor.size["shortest_edge"],) * 2)
    # The whole image, and one tile beside it.
    return processor.preprocess([whole, image], return_tensors="pt")["pixel_values"]


def process_images(images, image_processor, model_cfg):
    assert model_cfg.image_aspect_ratio == "anyres"
    pinpoints = model_cfg.image_grid_pinpoints
    return torch.stack([process_anyres_image(i, image_processor, pinpoints) for i in images])
