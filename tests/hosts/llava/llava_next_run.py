"""The skill on LLaVA-NeXT's ``llava``; run in a process of its own, which has one ``llava`` only.

    PYTHONPATH=CHECKOUT:. python -m tests.hosts.llava.llava_next_run OUT

Writes what happened to OUT/result.json; ``test_llava_next.py`` reads it.
"""

import json
import sys
from pathlib import Path

import datasets
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, Qwen2Config

from llava_forgery.data.build_qa import build_conversations
from llava_forgery.faces.records import FEATURES
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.llava import compat as llava_compat
from llava_forgery.hosts.llava.checkpoint import save_llava_adapter
from llava_forgery.hosts.llava.loading import merge_llava
from llava_forgery.hosts.llava.model import attach_to_llava, llava_lora_config
from llava_forgery.hosts.llava.prompts import (
    TEMPLATE,
    forgery_prefix,
    tokenizer_forgery_token,
)
from llava_forgery.hosts.llava.register import register, unregister
from llava_forgery.hosts.llava.skill import has_forgery_adapter
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.placement import PLACEHOLDERS
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.llava_flags import parse_arguments
from llava_forgery.train.llava_train import run
from tests import tiny, tiny_llava


def save_qwen(folder: Path) -> None:
    """A LlavaQwen of the smallest size, as LLaVA-NeXT saves it."""
    from llava.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM

    words = tiny_llava.tokenizer()
    config = LlavaQwenConfig(
        **{
            name: value
            for name, value in Qwen2Config(
                vocab_size=len(words), hidden_size=32, intermediate_size=48,
                num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                max_position_embeddings=2048, tie_word_embeddings=False,
                bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
            ).to_dict().items()
            if name not in ("model_type", "architectures", "transformers_version")
        }
    )  # fmt: skip
    values = tiny_llava.vision_values(tiny_llava.save_clip(folder.parent / "clip"), "anyres")
    for name, value in values.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # The tower's weights lie in its own folder, as those of LLaVA 1.5 do.
        config.delay_load = True
        model = LlavaQwenForCausalLM(config)
        del config.delay_load
        tiny_llava.unit_gain(model)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def load_qwen(folder: Path, **options):
    from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM

    options = {"dtype": torch.float32, **options}
    model = LlavaQwenForCausalLM.from_pretrained(folder, **options).eval()
    if not model.get_vision_tower().is_loaded:
        model.get_vision_tower().load_model()
    model.get_vision_tower().to(model.dtype)
    return model


@torch.no_grad()
def main(out: Path) -> None:
    result = {"changes": llava_compat.patch_llava_next(), "again": llava_compat.patch_llava_next()}
    from llava.conversation import conv_templates

    folder, adapter = out / "tiny-llava-qwen", out / "tiny-llava-qwen-lora"
    save_qwen(folder)
    kfd = tiny_llava.save_kfd(out / "kfd")
    words = tiny_llava.tokenizer()
    texts = (forgery_prefix(2) + "Fake?", forgery_prefix(2) + "Is it real?", "<image>\nWho?")
    ids = [tokenizer_forgery_token(text, words, return_tensors="pt") for text in texts]
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "attention_mask": torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(i)) for i in ids], batch_first=True
        ).bool(),
        "images": torch.rand(3, 3, 3, tiny_llava.SIDE, tiny_llava.SIDE, generator=generator),
        "image_sizes": [(64, 32)] * 3,
        "modalities": ["image"] * 3,
    }
    pictures = torch.rand(2, 3, tiny.SIZE, tiny.SIZE, generator=generator)
    before = load_qwen(folder)
    plain = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == -201, 7)}
    expected = before(**plain).logits
    register()
    model = load_qwen(folder)
    result["bare"] = bool(torch.equal(model(**plain).logits, expected)) and not has_forgery_adapter(
        model
    )
    result["template"] = TEMPLATE in conv_templates
    # The third prompt has none, and is to be the host's own.
    attach_to_llava(model, kfd, FPLConfig(1, 3, n_forgery=2), placement=PLACEHOLDERS)
    torch.manual_seed(0)
    peft = get_peft_model(model, llava_lora_config(model, LoraSettings(r=2))).eval()
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.2, generator=generator)
    logits = peft(**inputs, forgery_images=pictures).logits
    result["one_by_one"] = max(
        float((logits[i, : len(one[0])] - one[0]).abs().max())
        for i, one in enumerate(_alone(peft, inputs, pictures))
    )
    other = peft(**inputs, forgery_images=1 - pictures).logits - logits
    result["changes_by_sample"] = other.abs().amax(dim=(1, 2)).tolist()
    answer = peft.generate(
        inputs["input_ids"][:1, : len(ids[0])], images=inputs["images"][:1],
        image_sizes=[(64, 32)], modalities=["image"], forgery_images=pictures[:1],
        max_new_tokens=3, do_sample=False,
    )  # fmt: skip
    result["answer"] = list(answer.shape)
    save_llava_adapter(peft, adapter)

    loaded = load_qwen(folder, config=AutoConfig.from_pretrained(adapter))
    again = PeftModel.from_pretrained(loaded, adapter).eval()
    result["loaded"] = float((again(**inputs, forgery_images=pictures).logits - logits).abs().max())

    merged = out / "tiny-llava-qwen-merged"
    merge_llava(adapter, merged)
    from llava.model import builder

    _, whole, processor, _ = builder.load_pretrained_model(
        str(merged), None, merged.name, attn_implementation="sdpa", device_map="auto"
    )
    exact = load_qwen(merged)(**inputs, forgery_images=pictures).logits
    result["merged"] = float((exact - logits).abs().max())
    half = {**inputs, "images": inputs["images"].to(whole.dtype)}
    mine = load_qwen(merged, dtype=torch.float16)
    one, two = (m(**half, forgery_images=pictures).logits.float() for m in (whole, mine))
    result["half"] = float((one - two).abs().max())
    result["processor"] = type(processor).__name__
    result["shared"] = _shared(folder, out, inputs)
    result["trained"] = _trained(folder, kfd, out)
    unregister()
    llava_compat.unpatch_llava_next()
    (out / "result.json").write_text(json.dumps(result))


def _shared(folder, out, inputs):
    """How far a detector on the model's own tower is from encoding apart; and a control."""
    kfd = tiny_llava.save_tower_kfd(out / "shared", folder.parent / "clip")
    model = load_qwen(folder)
    # The third prompt has none, and is to be the host's own.
    attach_to_llava(model, kfd, FPLConfig(1, 3, n_forgery=2), placement=PLACEHOLDERS)
    detector = KnowledgeGuidedForgeryDetector.from_pretrained(kfd, with_tower=False)
    detector.encoder.adopt(model.get_vision_tower().vision_tower)
    whole = inputs["images"][:2, 0]
    alone = detector.read_features(detector.encoder.features(whole))
    logits = model(**inputs).logits
    changed = {**inputs, "images": 1 - inputs["images"]}
    return [
        float((model(**inputs, detection=alone).logits - logits).abs().max()),
        float((model(**changed).logits - logits).abs().max()),
    ]


def _trained(folder, kfd, out):
    """Train with LLaVA's flags; how far the result is from the model before it."""
    faces = datasets.Dataset.from_list([tiny.face(i).to_row() for i in range(2)], FEATURES)
    build_conversations(FacePairs(faces, 2, size=tiny.SIZE), None, out / "qa", seed=1)
    flags = {
        "model_name_or_path": folder, "forgery_tower": f"kfd:{kfd}", "data_path": out / "qa",
        "output_dir": out / "run-llava-qwen-lora", "version": "llava_v0", "llava_next": True,
        "lora_enable": True, "lora_r": 2, "max_steps": 2, "per_device_train_batch_size": 2,
        "learning_rate": 0.01, "model_max_length": 2048, "report_to": "none",
    }  # fmt: skip
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    with torch.enable_grad():
        peft = run(parse_arguments(words)).host
    adapter = out / "run-llava-qwen-lora"
    loaded = load_qwen(folder, config=AutoConfig.from_pretrained(adapter))
    again = PeftModel.from_pretrained(loaded, adapter).eval()
    learnt = [p.abs().max() for name, p in again.named_parameters() if "lora_B" in name]
    same = {name: p for name, p in again.named_parameters() if "lora_" in name}
    moved = [float((p - same[n]).abs().max()) for n, p in peft.named_parameters() if n in same]
    return [float(min(learnt)), max(moved)]


def _alone(model, inputs, pictures):
    for i in range(3):
        held = inputs["attention_mask"][i]
        one = {
            "input_ids": inputs["input_ids"][i : i + 1, held],
            "images": inputs["images"][i : i + 1],
            "image_sizes": [(64, 32)],
            "modalities": ["image"],
        }
        yield model(**one, forgery_images=pictures[i : i + 1] if i < 2 else None).logits


if __name__ == "__main__":
    main(Path(sys.argv[1]))
