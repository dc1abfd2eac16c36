import json

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file

from llava_forgery.constants import FORGERY_TOKEN
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.lora import LoraSettings, lora_config
from llava_forgery.hosts.transformers.loading import load_adapter, load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.prompts import collate, encode
from llava_forgery.qa.build import build_prompt
from tests import tiny

LORA = LoraSettings(r=2, alpha=4, dropout=0.0)


def _vlm(lora=LORA, seed=0, **options):
    host, processor = tiny.llava()
    return attach_forgery(host, processor, tiny.kfd(), lora=lora, seed=seed, **options).eval()


def _inputs(vlm, count=2):
    samples = [
        encode(
            build_prompt(0.1 + 0.35 * i, question=None if i else "Fake?"),
            vlm.processor,
            images=[Image.fromarray(tiny.picture(i, 32))],
            n_forgery_tokens=vlm.n_forgery,
        )
        for i in range(count)
    ]
    batch = collate(samples, vlm.processor.tokenizer.pad_token_id, padding_side="left")
    batch.pop("labels", None)
    images = torch.stack([torch.from_numpy(tiny.picture(i)) for i in range(count)])
    return {**batch, "forgery_images": images.permute(0, 3, 1, 2).float() / 255}


def test_logits_equal_those_of_embeddings_put_in_by_hand():
    vlm = _vlm()
    inputs = _inputs(vlm)
    images = inputs.pop("forgery_images")
    with torch.no_grad():
        found = vlm(**inputs, forgery_images=images).logits
        vectors = vlm.fpl(vlm.detect(images))
        host = vlm.detach()
        ids = inputs["input_ids"]
        places = ids == vlm.token_id
        embedded = host.get_input_embeddings()(ids.masked_fill(places, 0))
        embedded[places] = vectors.flatten(0, 1)
        # The image's features go in at its own tokens.
        features = host.get_image_features(inputs["pixel_values"]).pooler_output
        embedded[ids == host.config.image_token_id] = torch.cat(list(features))
        expected = host(inputs_embeds=embedded, attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_sample_in_a_padded_batch_equals_the_sample_alone():
    vlm = _vlm()
    inputs = _inputs(vlm)
    with torch.no_grad():
        both = vlm(**inputs).logits
        lengths = inputs["attention_mask"].sum(dim=1)
        assert lengths[0] != lengths[1]
        for i, length in enumerate(lengths.tolist()):
            alone = {name: value[i : i + 1] for name, value in inputs.items()}
            for name in ("input_ids", "attention_mask"):
                alone[name] = alone[name][:, -length:]
            torch.testing.assert_close(
                vlm(**alone).logits[0], both[i, -length:], atol=1e-4, rtol=1e-4
            )


def test_the_face_decides_the_logits():
    vlm = _vlm()
    inputs = _inputs(vlm)
    with torch.no_grad():
        first = vlm(**inputs).logits
        inputs["forgery_images"] = inputs["forgery_images"].flip(-1)
        assert not torch.allclose(first, vlm(**inputs).logits)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2,
                                                            "num_beams": 2}])  # fmt: skip
def test_generate_never_emits_a_placeholder(options):
    vlm = _vlm()
    # A host whose vocabulary has spare rows could emit the placeholder's id.
    vlm.host.resize_token_embeddings(vlm.token_id + 8)
    with torch.no_grad():
        # The largest possible pull towards the placeholder.
        vlm.host.get_output_embeddings().weight[vlm.token_id] = 100.0
    inputs = _inputs(vlm)
    length = inputs["input_ids"].shape[1]
    ids = vlm.generate(**inputs, max_new_tokens=6, do_sample=False, **options)
    assert not bool((ids[:, length:] == vlm.token_id).any())
    assert len(ids) == 2 * options.get("num_return_sequences", 1)


def test_generate_equals_a_greedy_loop_over_forward():
    vlm = _vlm()
    inputs = _inputs(vlm, count=1)
    ids = vlm.generate(**inputs, max_new_tokens=4, do_sample=False)
    length = inputs["input_ids"].shape[1]
    current = dict(inputs)
    for step in range(ids.shape[1] - length):
        with torch.no_grad():
            following = vlm(**current).logits[:, -1].argmax(dim=-1, keepdim=True)
        assert int(following) == int(ids[0, length + step])
        current["input_ids"] = torch.cat([current["input_ids"], following], dim=1)
        current["attention_mask"] = torch.ones_like(current["input_ids"])


def test_exactly_fpl_and_lora_are_trained():
    names = set(_vlm().trainable_names())
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    lora = {
        f"host.base_model.model.model.language_model.layers.{layer}.self_attn.{name}"
        f".lora_{part}.default.weight"
        for layer in range(2)
        for name in projections
        for part in "AB"
    }
    fpl = {f"fpl.{name}" for name, _ in _vlm().fpl.named_parameters()}
    assert names == lora | fpl
    assert set(_vlm(lora=None).trainable_names()) == fpl


@pytest.mark.parametrize("lora", [LORA, None])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_all_of_them_and_nothing_else(lora, checkpointing):
    vlm = _vlm(lora=lora)
    vlm.train()
    if checkpointing:
        vlm.host.gradient_checkpointing_enable()
    inputs = _inputs(vlm)
    labels = inputs["input_ids"].clone()
    labels[:, :-5] = -100
    vlm(**inputs, labels=labels).loss.backward()
    with_gradient = {n for n, p in vlm.named_parameters() if p.grad is not None}
    assert with_gradient == set(vlm.trainable_names())
    assert not vlm.kfd.training


def test_detach_gives_the_bare_host_back():
    host, processor = tiny.llava()
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    vlm = attach_forgery(host, processor, tiny.kfd(), lora=LORA)
    bare = vlm.detach()
    assert bare is host
    after = bare.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    ids = torch.tensor([[5, 6, 7]])
    assert bare(input_ids=ids).logits.shape == (1, 3, len(before["lm_head.weight"]))


def _perturbed(lora=LORA):
    """A model whose trained weights all differ from a new one's."""
    vlm = _vlm(lora=lora)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return vlm


@pytest.mark.parametrize("lora", [LORA, None])
def test_saved_and_loaded_adapter_gives_the_same_logits(tmp_path, lora):
    vlm = _perturbed(lora)
    inputs = _inputs(vlm)
    with torch.no_grad():
        expected = vlm(**inputs).logits
    vlm.save_pretrained(tmp_path / "adapter")
    host, processor = tiny.llava()
    loaded = load_adapter(tmp_path / "adapter", host, processor)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert not loaded.training
    assert loaded.trainable_names() == []


def test_adapter_holds_neither_host_nor_text_encoder_at_inference(tmp_path):
    vlm = _perturbed()
    vlm.save_pretrained(tmp_path / "adapter")
    files = {str(p.relative_to(tmp_path / "adapter")) for p in (tmp_path / "adapter").rglob("*")}
    assert files == {
        "forgery_config.json", "fpl.safetensors", "kfd", "kfd/kfd_config.json",
        "kfd/kfd.safetensors", "kfd/knowledge.safetensors", "adapter_config.json",
        "adapter_model.safetensors", "README.md",
    }  # fmt: skip
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert all(".lora_A." in name or ".lora_B." in name for name in tensors)
    host_names = set(tiny.llava()[0].state_dict())
    assert not host_names & set(load_file(tmp_path / "adapter/fpl.safetensors"))


def test_another_host_is_refused(tmp_path):
    _vlm().save_pretrained(tmp_path / "adapter")
    host, processor = tiny.llava(seed=1)
    with pytest.raises(ValueError, match="other weights"):
        load_adapter(tmp_path / "adapter", host, processor)
    config = json.loads((tmp_path / "adapter/forgery_config.json").read_text())
    config["host"]["hidden_size"] = 4096
    (tmp_path / "adapter/forgery_config.json").write_text(json.dumps(config))
    host, processor = tiny.llava()
    with pytest.raises(ValueError, match="hidden_size 4096, this one has 32"):
        load_adapter(tmp_path / "adapter", host, processor)


def test_damaged_adapter_is_refused(tmp_path):
    folder = tmp_path / "adapter"
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_adapter(folder, *tiny.llava())
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="not a forgery adapter"):
        load_adapter(folder, *tiny.llava())
    _vlm().save_pretrained(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        load_adapter(folder, *tiny.llava())
    (folder / "fpl.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"fpl\.safetensors is missing"):
        load_adapter(folder, *tiny.llava())


def test_host_is_found_beside_a_moved_adapter(tmp_path):
    host, processor = tiny.llava()
    (tmp_path / "one").mkdir()
    host.save_pretrained(tmp_path / "one/host")
    processor.save_pretrained(tmp_path / "one/host")
    model, processor = load_host(tmp_path, str(tmp_path / "one/host"))
    attach_forgery(model, processor, tiny.kfd()).save_pretrained(tmp_path / "one/adapter")
    text = (tmp_path / "one/adapter/forgery_config.json").read_text()
    assert str(tmp_path) not in text
    (tmp_path / "one").rename(tmp_path / "two")
    name = json.loads(text)["host"]["name_or_path"]
    model, processor = load_host(tmp_path / "two/adapter", name)
    load_adapter(tmp_path / "two/adapter", model, processor)
    # The saved host knows nothing of the placeholder.
    assert FORGERY_TOKEN not in (tmp_path / "two/host/tokenizer.json").read_text()


def test_missing_host_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="'nowhere/at-all' could not be loaded"):
        load_host(tmp_path, "nowhere/at-all")


def test_attaching_twice_is_an_error():
    host, processor = tiny.llava()
    attach_forgery(host, processor, tiny.kfd())
    with pytest.raises(ValueError, match="owns <forgery> already"):
        attach_forgery(host, processor, tiny.kfd())


def test_sizes_that_do_not_fit_are_errors():
    host, processor = tiny.llava()
    with pytest.raises(ValueError, match="width 16, the host's are 32"):
        attach_forgery(host, processor, tiny.kfd(), ForgeryPromptLearner(FPLConfig(16, 3)))
    with pytest.raises(ValueError, match="reads 2 consistency maps, the detector gives 3"):
        attach_forgery(host, processor, tiny.kfd(), ForgeryPromptLearner(FPLConfig(32, 2)))


def test_wrong_calls_are_errors():
    vlm = _vlm()
    inputs = _inputs(vlm)
    images = inputs.pop("forgery_images")
    with pytest.raises(ValueError, match="either forgery_images or detection"):
        vlm(**inputs)
    with pytest.raises(ValueError, match="sample 1 has 1 images .* only 0 of the 1"):
        vlm(**inputs, forgery_images=images[:1])
    cut = dict(inputs)
    keep = cut["input_ids"][0] != vlm.token_id
    keep[keep.logical_not().nonzero()[0]] = True
    cut["input_ids"] = cut["input_ids"].clone()
    cut["input_ids"][0, ~keep] = 5
    with pytest.raises(ValueError, match="sample 0 has 1 forgery placeholders .* 9"):
        vlm(**cut, forgery_images=images)
    with pytest.raises(RuntimeError, match=r"eval\(\)"):
        vlm.train().generate(**inputs, forgery_images=images)


def test_lora_stays_out_of_the_vision_tower():
    host, _ = tiny.llava()
    config = lora_config(host, LORA)
    assert "language_model" in config.target_modules
    with pytest.raises(ValueError, match="no layers named c_attn"):
        lora_config(host, LoraSettings(projections=("c_attn",)))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 3}},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": None, "use_dora": True},
        {"target_modules": r".*language_model.*\.v_proj"},
    ],
)
def test_pefts_own_configuration_is_taken(options, tmp_path):
    """Saved and loaded, whatever of peft it uses."""
    settings = LoraConfig(r=2, lora_alpha=4, **options)
    vlm = _perturbed(settings)
    assert not any("vision" in name for name in vlm.trainable_names())
    inputs = _inputs(vlm)
    vlm.save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter", *tiny.llava())
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, vlm(**inputs).logits, atol=1e-5, rtol=0)
    # The caller's own is as it was.
    assert settings.target_modules == LoraConfig(**options).target_modules


def test_lora_beyond_the_language_model_is_refused():
    host, _ = tiny.llava()
    with pytest.raises(ValueError, match="reaches model.vision_tower.* outside the language model"):
        lora_config(host, LoraConfig(target_modules=r".*\.q_proj"))
