"""Estimate the GPU memory of training an adapter, without loading the host.

    python scripts/estimate_memory.py                       # LLaVA-1.5-7B, scripts/finetune_24gb.sh
    python scripts/estimate_memory.py --base-model HOST --quantization none --batch-size 1

It is an estimate: llava_forgery/hosts/memory.py documents what is counted and what is allowed for.
"""

import argparse
import json
from dataclasses import asdict

import torch
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig

from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.memory import MemorySettings, estimate_memory

# Names of Llama's and Mistral's layers.
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def llava_1_5_7b() -> LlavaConfig:
    """Sizes of the public checkpoint (llava-hf/llava-1.5-7b-hf), so that the hub is not needed."""
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=LlamaConfig(vocab_size=32064))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-model", help="folder or hub name; default: LLaVA-1.5-7B's sizes")
    parser.add_argument("--quantization", default="4bit", choices=["4bit", "8bit", "none"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--lora-r", type=int, default=32, help="LoRA's rank; 0: no LoRA")
    parser.add_argument(
        "--all-linear", action="store_true", help="LoRA's targets of scripts/finetune_lora.sh"
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument(
        "--tokens", type=int, default=800, help="tokens of a sample, 576 of the image"
    )
    parser.add_argument(
        "--supervised", type=int, default=160, help="tokens from the first answer on"
    )
    parser.add_argument("--no-gradient-checkpointing", action="store_true")
    # The detector of the preset paper in stage 2: the image tower, without the text encoder.
    parser.add_argument(
        "--detector", type=int, default=640_000_000, help="number of its parameters"
    )
    arguments = parser.parse_args()
    config = (
        AutoConfig.from_pretrained(arguments.base_model, trust_remote_code=False)
        if arguments.base_model
        else llava_1_5_7b()
    )
    with torch.device("meta"):
        learner = ForgeryPromptLearner(FPLConfig(config.get_text_config().hidden_size, 3))
    rank = arguments.lora_r
    more = {"projections": ALL_LINEAR} if arguments.all_linear else {}
    settings = MemorySettings(
        quantization=None if arguments.quantization == "none" else arguments.quantization,
        dtype=getattr(torch, arguments.dtype),
        lora=LoraSettings(r=rank, alpha=rank, **more) if rank else None,
        batch_size=arguments.batch_size,
        tokens=arguments.tokens,
        supervised=arguments.supervised,
        gradient_checkpointing=not arguments.no_gradient_checkpointing,
        more_frozen=arguments.detector,
        more_trained=sum(parameter.numel() for parameter in learner.parameters()),
    )
    estimate = estimate_memory(config, settings)
    gib = {name: round(value / 2**30, 2) for name, value in asdict(estimate).items()}
    print(json.dumps({**gib, "total": round(estimate.total / 2**30, 2)}, indent=2))


if __name__ == "__main__":
    main()
