"""The estimate's counts against what really lies in memory, on tiny hosts."""

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model

from llava_forgery.hosts.lora import LoraSettings, lora_config
from llava_forgery.hosts.memory import (
    MemorySettings,
    activation_bytes,
    build_on_meta,
    estimate_memory,
    kept_storages,
    lora_parameters,
    weight_bytes,
)
from llava_forgery.hosts.transformers.loading import load_host
from tests import tiny

LORA = LoraSettings(r=4, alpha=4, dropout=0.0)
SETTINGS = MemorySettings(
    dtype=torch.float32, lora=LORA, batch_size=2, tokens=24, supervised=8, allowance=0.0,
    gradient_checkpointing=False,
)  # fmt: skip


def _bytes(tensors):
    """Of the storages, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def test_weights_are_those_of_the_loaded_host():
    host, _ = tiny.llava()
    counted, _ = weight_bytes(build_on_meta(host.config, torch.float32), None)
    assert counted == pytest.approx(_bytes([*host.parameters(), *host.buffers()]), rel=0.01)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_quantised_weights_are_those_of_the_loaded_host(kind, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra quantization")
    host, processor = tiny.llava()
    host.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_host(tmp_path, str(tmp_path), kind, dtype=torch.float32)
    tensors = [*loaded.parameters(), *loaded.buffers()]
    for parameter in loaded.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.state2.absmax]
        if getattr(parameter, "SCB", None) is not None:
            tensors.append(parameter.SCB)
    counted, largest = weight_bytes(build_on_meta(host.config, torch.float32), kind)
    # Blocks of 256 scales are padded where a layer has fewer of them.
    assert counted == pytest.approx(_bytes(tensors), rel=0.03)
    assert largest == 4 * 64 * 32


def test_trained_gradients_and_optimiser_are_those_of_a_step():
    host, _ = tiny.llava()
    adapted = get_peft_model(host, lora_config(host, LORA))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    estimate = estimate_memory(tiny.llava()[0].config, SETTINGS)
    assert estimate.trained == _bytes(trained)
    assert estimate.gradients == _bytes([p.grad for p in trained])
    moments = [s[k] for s in optimiser.state.values() for k in ("exp_avg", "exp_avg_sq")]
    assert estimate.optimiser == _bytes(moments)


def test_activations_are_what_a_real_pass_keeps():
    host, _ = tiny.llava()
    config = host.config
    host.set_attn_implementation("eager")
    adapted = get_peft_model(host.requires_grad_(False), lora_config(host, LORA)).train()
    embedded = torch.randn(2, 24, 32, requires_grad=True)
    mask = torch.zeros(2, 1, 24, 24)
    with kept_storages(adapted) as kept:
        adapted.get_decoder()(inputs_embeds=embedded, attention_mask=mask, use_cache=False)
    assert activation_bytes(config, SETTINGS) == pytest.approx(sum(kept.values()), rel=0.02)


def test_checkpointing_batches_and_bits_change_what_they_should():
    config = tiny.llava()[0].config
    config.text_config.num_hidden_layers = 12
    whole = estimate_memory(config, SETTINGS)
    small = estimate_memory(config, replace(SETTINGS, gradient_checkpointing=True))
    assert small.activations < whole.activations / 3
    assert replace(small, activations=0) == replace(whole, activations=0)
    double = estimate_memory(config, replace(SETTINGS, batch_size=4))
    assert double.logits == 2 * whole.logits
    four = estimate_memory(config, replace(SETTINGS, quantization="4bit"))
    assert four.weights < whole.weights
    assert whole.total == sum(getattr(whole, name) for name in whole.__dataclass_fields__)


def test_the_size_of_llava_1_5_7b():
    """7.06 billion parameters; nothing is allocated."""
    config = tiny.llava()[0].config
    text, vision = config.text_config, config.vision_config
    text.vocab_size, text.hidden_size, text.intermediate_size = 32064, 4096, 11008
    text.num_hidden_layers, text.num_attention_heads = 32, 32
    text.num_key_value_heads, text.head_dim, text.tie_word_embeddings = 32, 128, False
    config.tie_word_embeddings = False
    vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers = 1024, 4096, 24
    vision.num_attention_heads, vision.image_size, vision.patch_size = 16, 336, 14
    host = build_on_meta(config, torch.bfloat16)
    assert sum(p.numel() for p in host.parameters()) == pytest.approx(7.06e9, rel=0.002)
    # q, k, v and o of 32 layers, two matrices of 32 x 4096 each.
    assert lora_parameters(host, LoraSettings(r=32)) == 32 * 4 * 2 * 32 * 4096


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": "2bit"}, "quantization must be"),
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"supervised": 2000}, "supervised 2000 is more than tokens 1024"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        MemorySettings(**changes)
