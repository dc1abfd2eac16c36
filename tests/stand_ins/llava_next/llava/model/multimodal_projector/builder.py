"""Projectors."""

from torch import nn


def build_vision_projector(config, delay_load=False, **kwargs):
    inside, width = config.mm_hidden_size, config.hidden_size
    return nn.Sequential(nn.Linear(inside, width), nn.GELU(), nn.Linear(width, width))
