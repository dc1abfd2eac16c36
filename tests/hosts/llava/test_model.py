"""The skill on models of the real ``llava`` package, at the smallest sizes."""

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from transformers import GenerationMixin

from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.llava.hooks import FORGERY_TOKEN_INDEX, IMAGE_TOKEN_INDEX
from llava_forgery.hosts.llava.model import (
    attach_to_llava,
    detach_from_llava,
    has_forgery_adapter,
    llava_lora_config,
)
from llava_forgery.hosts.llava.prompts import forgery_prefix, tokenizer_forgery_token
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.pictures import picture_of
from llava_forgery.hosts.placement import PLACEHOLDERS
from tests import tiny, tiny_llava

tiny_llava.require_llava()
mm_utils = pytest.importorskip("llava.mm_utils")

N = 3
ASPECTS = ("square", "pad", "anyres")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("llava")
    made = {aspect: root / f"tiny-llava-{aspect}" for aspect in ASPECTS}
    for aspect, folder in made.items():
        tiny_llava.save_llava(folder, aspect=aspect)
    made["kfd"] = tiny_llava.save_kfd(root / "kfd")
    return made


def _skilled(folders, aspect="square"):
    words, model, processor = tiny_llava.load_llava(folders[aspect])
    sizes = FPLConfig(hidden_size=1, num_layers=3, n_forgery=N)
    tower = f"kfd:{folders['kfd']}"
    return words, attach_to_llava(model, tower, sizes, placement=PLACEHOLDERS).eval(), processor


@pytest.fixture(scope="module")
def square(folders):
    return _skilled(folders)


def _photo(seed=0, shape=(80, 60)):
    return Image.fromarray(tiny.picture(seed, 80)).resize(shape)


def _inputs(words, model, processor, samples):
    """A batch of (prompt, number of images, has placeholders), with its forgery images."""
    photos = [_photo(i) for i in range(sum(max(1, n) for _, n, _ in samples))]
    images = mm_utils.process_images(photos, processor, model.config)
    seen, first = [], 0
    for _, shown, skilled in samples:
        seen += photos[first : first + shown] if skilled else []
        first += max(1, shown)
    ids = [tokenizer_forgery_token(text, words, return_tensors="pt") for text, *_ in samples]
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=0)
    mask = torch.nn.utils.rnn.pad_sequence(
        [torch.ones(len(i)) for i in ids], batch_first=True
    ).bool()
    tower = model.get_model().forgery_tower
    return {
        "input_ids": batch,
        "attention_mask": mask,
        "images": images,
        "image_sizes": [photo.size for photo in photos],
        "forgery_images": tower.image_processor(seen)["pixel_values"] if seen else None,
    }


def _one(n_images=1, question="Is this fake?"):
    return f"USER: {forgery_prefix(N, n_images)}{question} ASSISTANT:", n_images, True


def _reference(model, inputs):
    """Logits of one sample with E_forgery written into the embeddings by hand."""
    ids, E = inputs["input_ids"], None
    inner = model.get_model()
    E = inner.forgery_projector(inner.forgery_tower(inputs["forgery_images"])).flatten(0, 1)
    places = (ids[0] == FORGERY_TOKEN_INDEX).nonzero()[:, 0]
    plain = ids.masked_fill(ids == FORGERY_TOKEN_INDEX, 7)
    prepared = model.prepare_inputs_labels_for_multimodal(
        plain, None, inputs["attention_mask"], None, None, inputs["images"], inputs["image_sizes"]
    )
    embeds = prepared[4].clone()
    features = embeds.shape[1] - (ids.shape[1] - 1)
    assert (ids == IMAGE_TOKEN_INDEX).sum() == 1
    embeds[0, places + features - 1] = E
    return model(inputs_embeds=embeds).logits, embeds


def test_constants_are_llavas():
    assert mm_utils.IMAGE_TOKEN_INDEX == IMAGE_TOKEN_INDEX
    assert FORGERY_TOKEN_INDEX != IMAGE_TOKEN_INDEX


@pytest.mark.parametrize("aspect", ASPECTS)
def test_forgery_embeddings_stand_at_the_placeholders(folders, aspect):
    words, model, processor = _skilled(folders, aspect)
    inputs = _inputs(words, model, processor, [_one()])
    if aspect == "anyres":
        assert inputs["images"].ndim == 5
    expected, embeds = _reference(model, inputs)
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-5)
    other = {**inputs, "forgery_images": 1 - inputs["forgery_images"]}
    assert not torch.allclose(model(**other).logits, expected, atol=1e-3)
    options = {"max_new_tokens": 5, "do_sample": False}
    by_hand = GenerationMixin.generate(model, inputs_embeds=embeds, **options)
    inputs.pop("attention_mask")
    assert torch.equal(model.generate(inputs.pop("input_ids"), **inputs, **options), by_hand)


def test_samples_of_a_batch_keep_their_own_embeddings(square):
    words, model, processor = square
    samples = [_one(2), ("USER: <image>\nWho? ASSISTANT:", 1, False), ("USER: Hi", 0, False),
               _one(1, "Is this image a deepfake, and where?")]  # fmt: skip
    batch = _inputs(words, model, processor, samples)
    together = model(**batch).logits
    first = seen = 0
    for row, (_, shown, skilled) in enumerate(samples):
        held = batch["attention_mask"][row]
        alone = {
            "input_ids": batch["input_ids"][row : row + 1, held],
            "images": batch["images"][first : first + max(1, shown)],
        }
        if skilled:
            alone["forgery_images"] = batch["forgery_images"][seen : seen + shown]
            seen += shown
        first += max(1, shown)
        logits = model(**alone).logits
        torch.testing.assert_close(together[row, : logits.shape[1]], logits[0], rtol=0, atol=1e-4)


def test_placeholders_are_never_learnt(square):
    words, model, processor = square
    inputs = _inputs(words, model, processor, [_one(), _one(2)])
    ids = inputs["input_ids"]
    labels = ids.masked_fill(~inputs["attention_mask"], -100)
    masked = labels.masked_fill(ids == FORGERY_TOKEN_INDEX, -100)
    loss = model(**inputs, labels=labels).loss
    assert torch.equal(loss, model(**inputs, labels=masked).loss)
    masked[:, 0] = masked[:, 1] = -100
    assert not torch.equal(loss, model(**inputs, labels=masked).loss)


def test_beams_give_each_sample_its_own_answer(square):
    words, model, processor = square
    inputs = _inputs(words, model, processor, [_one(), _one()])
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    ids = inputs.pop("input_ids")
    both = model.generate(ids, **inputs, **options)
    for row in range(2):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        assert torch.equal(model.generate(ids[row : row + 1], **alone, **options)[0], both[row])


def test_questions_without_placeholders_are_the_hosts_own(folders, square):
    words, skilled, processor = square
    _, bare, _ = tiny_llava.load_llava(folders["square"])
    ids = mm_utils.tokenizer_image_token(
        "USER: <image>\nWho? ASSISTANT:", words, return_tensors="pt"
    )[None]
    images = mm_utils.process_images([_photo()], processor, bare.config)
    assert torch.equal(
        skilled(input_ids=ids, images=images).logits, bare(input_ids=ids, images=images).logits
    )
    text = tokenizer_forgery_token("USER: Hi ASSISTANT:", words, return_tensors="pt")[None]
    assert torch.equal(skilled(input_ids=text).logits, bare(input_ids=text).logits)


def test_lora_and_fpl_learn_and_nothing_else(folders):
    words, model, processor = _skilled(folders)
    peft = get_peft_model(model, llava_lora_config(model, LoraSettings(r=2, dropout=0.0)))
    model.get_model().forgery_projector.requires_grad_(True)
    peft.enable_input_require_grads()
    peft.train()
    assert not model.get_model().forgery_tower.kfd.training
    inputs = _inputs(words, model, processor, [_one(), _one(2)])
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    inputs["labels"] = labels
    targets = [name for name, _ in peft.named_parameters() if "lora_A" in name]
    assert len(targets) == 2 * 4
    assert all(".model.layers." in n and "vision" not in n for n in targets), targets

    def gradients():
        peft.zero_grad()
        peft(**inputs).loss.backward()
        return {n: p.grad.clone() for n, p in peft.named_parameters() if p.grad is not None}

    found = gradients()
    trained = {n for n, p in peft.named_parameters() if p.requires_grad}
    assert set(found) == trained
    assert all("lora_" in n or ".forgery_projector." in n for n in trained)
    assert float(found["base_model.model.model.forgery_projector.base"].abs().sum()) > 0
    peft.gradient_checkpointing_enable()
    again = gradients()
    for name, gradient in found.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6)


def test_embedding_that_is_replaced_afterwards_is_followed(folders):
    words, model, processor = _skilled(folders)
    inputs = _inputs(words, model, processor, [_one()])
    before = model(**inputs).logits
    model.resize_token_embeddings(len(words) + 5)
    torch.testing.assert_close(model(**inputs).logits[..., : len(words)], before)


def test_detaching_leaves_the_host(folders):
    _, model, _ = _skilled(folders)
    _, bare, _ = tiny_llava.load_llava(folders["square"])
    assert has_forgery_adapter(model)
    detached = detach_from_llava(model)
    assert type(detached) is type(bare)
    assert list(detached.state_dict()) == list(bare.state_dict())
    assert detached.config.to_dict() == bare.config.to_dict()
    with pytest.raises(ValueError, match="no forgery skill"):
        detach_from_llava(bare)


def test_a_new_learner_is_not_made_of_garbage(folders, monkeypatch):
    utils = pytest.importorskip("llava.utils")
    _, model, _ = tiny_llava.load_llava(folders["square"])
    for layer in (torch.nn.Linear, torch.nn.LayerNorm):
        monkeypatch.setattr(layer, "reset_parameters", layer.reset_parameters)
    utils.disable_torch_init()
    with pytest.raises(ValueError, match="disable_torch_init"):
        attach_to_llava(model, folders["kfd"])
    assert not has_forgery_adapter(model)


def test_mismatches_name_both_numbers(square):
    words, model, processor = square
    good = _inputs(words, model, processor, [_one(), _one()])

    def call(**changes):
        return model(**{**good, **changes})

    ids = good["input_ids"]
    with pytest.raises(ValueError, match=r"show 2 images, but there are 1 forgery"):
        call(forgery_images=good["forgery_images"][:1])
    with pytest.raises(ValueError, match=r"take 2 images .* but 1 are given"):
        call(images=good["images"][:1])
    with pytest.raises(ValueError, match="no images are given"):
        call(images=None)
    short = ids.clone()
    short[0, (ids[0] == FORGERY_TOKEN_INDEX).nonzero()[0]] = 7
    with pytest.raises(ValueError, match="sample 0 has 2 forgery placeholders, expected 3"):
        call(input_ids=short)
    blind = ids.masked_fill(ids == IMAGE_TOKEN_INDEX, 7)
    with pytest.raises(ValueError, match=r"sample 0 has 3 forgery placeholders but no <image>"):
        call(input_ids=blind)
    plain = ids.masked_fill(ids == FORGERY_TOKEN_INDEX, 7)
    with pytest.raises(ValueError, match="no prompt holds a forgery placeholder"):
        call(input_ids=plain)
    masked = good["attention_mask"] & (ids != FORGERY_TOKEN_INDEX)
    with pytest.raises(ValueError, match="0 of 6 forgery placeholders reached"):
        call(attention_mask=masked)


def test_placeholders_that_are_cut_off_are_an_error(square):
    words, model, processor = square
    inputs = _inputs(words, model, processor, [_one()])
    place = int((inputs["input_ids"][0] == FORGERY_TOKEN_INDEX).nonzero()[-1]) + 3
    model.config.tokenizer_model_max_length = place + 1
    try:
        assert model(**inputs).logits.shape[1] == place + 1
        model.config.tokenizer_model_max_length = place
        with pytest.raises(ValueError, match="tokenizer_model_max_length"):
            model(**inputs)
    finally:
        del model.config.tokenizer_model_max_length


@pytest.mark.parametrize("aspect", ASPECTS)
def test_detectors_picture_from_the_hosts_images(folders, aspect, caplog):
    words, model, processor = _skilled(folders, aspect)
    inputs = _inputs(words, model, processor, [_one()])
    explicit = inputs.pop("forgery_images")
    seen = []
    tower = model.get_model().forgery_tower
    handle = tower.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(**inputs)
    handle.remove()
    assert seen[0].shape == explicit.shape
    if aspect == "square":
        # CLIP's processor has cut the sides off: nothing brings them back.
        return
    assert float((seen[0] - explicit).abs().mean()) < 0.05
    assert "no forgery_images are given" in caplog.text


def test_picture_of_a_padded_image_has_no_padding():
    white = torch.ones(3, 8, 8)
    padded = torch.zeros(3, 16, 16)
    padded[:, 4:12] = 1
    for pixels, aspect, size in ((padded, "pad", (40, 20)), (white, "anyres", (16, 8))):
        picture = picture_of(pixels, (0, 0, 0), (1, 1, 1), aspect, size)
        assert picture.shape[1] == 2 * picture.shape[0]
        assert (picture == 255).all()


def test_prompts_without_placeholders_have_llavas_ids(square):
    words = square[0]
    for text in ("USER: <image>\nWho? ASSISTANT: me</s>", "no image", "<image>", "a<image><image>"):
        assert tokenizer_forgery_token(text, words) == mm_utils.tokenizer_image_token(text, words)
    ids = tokenizer_forgery_token(forgery_prefix(2) + "Why?", words)
    assert ids.count(words.bos_token_id) == 1
    assert [i for i in ids if i < 0] == [IMAGE_TOKEN_INDEX, *[FORGERY_TOKEN_INDEX] * 2]
