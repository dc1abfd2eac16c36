"""The loader."""

import torch
from transformers import AutoTokenizer

from llava.model import LlavaQwenForCausalLM


def load_pretrained_model(
    model_path, model_base, model_name, load_8bit=False, load_4bit=False, device_map="auto",
    torch_dtype="float16", attn_implementation="flash_attention_2", **kwargs,
):  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = LlavaQwenForCausalLM.from_pretrained(
        model_path, attn_implementation=attn_implementation, dtype=torch.float16, **kwargs
    )
    tower = model.get_vision_tower()
    if not tower.is_loaded:
        tower.load_model(device_map=device_map)
    return tokenizer, model, tower.to(torch.float16).image_processor, 2048
