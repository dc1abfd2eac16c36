"""What the models share."""

from abc import ABC, abstractmethod
from itertools import pairwise

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

from .multimodal_encoder.builder import build_vision_tower
from .multimodal_projector.builder import build_vision_projector
from .multimodal_resampler import builder  # noqa: F401


class LlavaMetaModel:
    def __init__(self, config):
        super().__init__(config)
        if hasattr(config, "mm_vision_tower"):
            delay_load = getattr(config, "delay_load", False)
            self.vision_tower = build_vision_tower(config, delay_load=delay_load)
            self.mm_projector = build_vision_projector(config, vision_cfg=self.vision_tower.config)

    def get_vision_tower(self):
        return getattr(self, "vision_tower", None)


class LlavaMetaForCausalLM(ABC):
    @abstractmethod
    def get_model(self):
        pass

    def get_vision_tower(self):
        return self.get_model().get_vision_tower()

    def prepare_inputs_labels_for_multimodal(
        self, input_ids, position_ids, attention_mask, past_key_values, labels, images,
        modalities=("image",), image_sizes=None,
    ):  # fmt: skip
        if images is None or input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        assert len(modalities) == len(images), "one modality for each image"
        model = self.get_model()
        tiles = [image if image.ndim == 4 else image[None] for image in images]
        features = [model.mm_projector(model.vision_tower(t)).flatten(0, 1) for t in tiles]
        rows, targets, used = [], [], 0
        for i, ids in enumerate(input_ids):
            held = slice(None) if attention_mask is None else attention_mask[i].bool()
            ids, parts, marks = ids[held], [], []
            wanted = ids if labels is None else labels[i][held]
            places = [-1, *(ids == IMAGE_TOKEN_INDEX).nonzero()[:, 0].tolist(), len(ids)]
            for a, b in pairwise(places):
                if a >= 0:
                    parts.append(features[used])
                    marks.append(ids.new_full((len(features[used]),), IGNORE_INDEX))
                    used += 1
                # Text is embedded in pieces, as some versions do.
                parts.append(model.embed_tokens(ids[a + 1 : b]))
                marks.append(wanted[a + 1 : b])
            rows.append(torch.cat(parts))
            targets.append(torch.cat(marks))
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones(len(row)) for row in rows], batch_first=True).bool()
        labels = None if labels is None else pad(targets, True, IGNORE_INDEX)
        return None, None, mask, past_key_values, pad(rows, batch_first=True), labels
