"""Towers."""

from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel


class CLIPVisionTower(nn.Module):
    def __init__(self, name, args, delay_load=False):
        super().__init__()
        self.name, self.is_loaded = name, False
        self.config = CLIPVisionConfig.from_pretrained(name)
        if not delay_load:
            self.load_model()

    def load_model(self, device_map=None):
        self.image_processor = CLIPImageProcessor.from_pretrained(self.name)
        self.vision_tower = CLIPVisionModel.from_pretrained(self.name).requires_grad_(False)
        self.is_loaded = True

    @property
    def num_patches(self):
        return (self.config.image_size // self.config.patch_size) ** 2

    def forward(self, images):
        return self.vision_tower(images, output_hidden_states=True).hidden_states[-2][:, 1:]


def build_vision_tower(vision_tower_cfg, **kwargs):
    return CLIPVisionTower(vision_tower_cfg.mm_vision_tower, args=vision_tower_cfg, **kwargs)
