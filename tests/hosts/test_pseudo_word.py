"""The pseudo-word's mechanism: hooks, composition with the forgery skill, saving."""

import json

import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizerFast,
    BlipImageProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)
from transformers.tokenization_utils_base import AddedToken

from llava_forgery.constants import PSEUDO_WORD
from llava_forgery.hosts.pseudo_word import (
    PseudoWord,
    PseudoWordConfig,
    attach_pseudo_word,
    load_pseudo_word,
    pseudo_word_embeddings,
    token_id_of,
)
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.prompts import collate, encode
from llava_forgery.qa.conversation import Conversation, Message
from tests import tiny


def instructblip(seed=0):
    """An InstructBLIP with two layers of everything, and its processor."""
    words = tiny.tokenizer()
    words.image_token = AddedToken("<image>", normalized=False, special=True)
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *["is", "this", "photo", "real", "?", "*", "[", "]"],
    ]
    config = InstructBlipConfig(
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                       "num_attention_heads": 2, "image_size": 32, "patch_size": 16},
        qformer_config={"vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 2,
                        "num_attention_heads": 2, "intermediate_size": 32,
                        "encoder_hidden_size": 32, "max_position_embeddings": 64},
        text_config={"model_type": "llama", "vocab_size": len(words), "hidden_size": 32,
                     "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id,
                     "bos_token_id": None},
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        host = InstructBlipForConditionalGeneration(config).eval()
        # Query tokens start at zero, and the projection small: the Q-Former must be heard.
        host.query_tokens.data.normal_()
        host.language_projection.weight.data.normal_()
    processor = InstructBlipProcessor(
        BlipImageProcessor(size={"height": 32, "width": 32}),
        words,
        BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)}),
        num_query_tokens=4,
    )
    return host, processor


def prompts(processor, texts, n_forgery_tokens=0):
    samples = [
        encode(
            Conversation((Message("user", text),), label=None),
            processor,
            images=[Image.fromarray(tiny.picture(i, 32))],
            n_forgery_tokens=n_forgery_tokens,
        )
        for i, text in enumerate(texts)
    ]
    return collate(samples, processor.tokenizer.pad_token_id, padding_side="left")


def by_hand(host, inputs, vectors):
    """Logits from rows that are written into the embedding's output, {id: (n, C)}."""
    ids = inputs["input_ids"]
    places = {token: ids == token for token in vectors}
    plain = ids.clone()
    for where in places.values():
        plain[where] = 0
    embedded = host.get_input_embeddings()(plain)
    for token, where in places.items():
        embedded[where] = vectors[token]
    features = host.get_image_features(inputs["pixel_values"]).pooler_output
    embedded[ids == host.config.image_token_id] = torch.cat(list(features))
    return host(inputs_embeds=embedded, attention_mask=inputs["attention_mask"]).logits


def test_logits_equal_those_of_the_vector_put_in_by_hand():
    host, processor = tiny.llava()
    vlm = attach_pseudo_word(host, processor, seed=3).eval()
    # In different places, twice, and not at all: samples of one batch need not agree.
    texts = ["Is it real [*]?", f"{PSEUDO_WORD} and {PSEUDO_WORD} a face", "Is this photo real?"]
    inputs = prompts(processor, texts)
    token = token_id_of(processor.tokenizer)
    assert (inputs["input_ids"] == token).sum(dim=1).tolist() == [1, 2, 0]
    with torch.no_grad():
        found = vlm(**inputs).logits
        # The hooks hang on the host itself, whoever calls it.
        assert torch.equal(found, host(**inputs).logits)
        bare = vlm.detach()
        expected = by_hand(bare, inputs, {token: vlm.word.vectors["language_model"].weight})
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("word_first", [False, True])
def test_pseudo_word_and_forgery_prompt_on_one_host(word_first):
    host, processor = tiny.llava()
    if word_first:
        word = attach_pseudo_word(host, processor).word
        vlm = attach_forgery(host, processor, tiny.kfd()).eval()
        both = vlm
    else:
        vlm = attach_forgery(host, processor, tiny.kfd()).eval()
        both = attach_pseudo_word(vlm, processor)
        word = both.word
    inputs = prompts(processor, ["Is this photo real [*]?", "Fake [*]?"], vlm.n_forgery)
    images = torch.stack([torch.from_numpy(tiny.picture(i)) for i in range(2)])
    images = images.permute(0, 3, 1, 2).float() / 255
    vector = word.vectors["language_model"].weight
    with torch.no_grad():
        found = both(**inputs, forgery_images=images).logits
        forgery = vlm.fpl(vlm.detect(images)).flatten(0, 1)
        # A vector that no hook knows of, in a host that has none.
        bare, _ = tiny.llava()
        vectors = {vlm.token_id: forgery, token_id_of(processor.tokenizer): vector}
        expected = by_hand(bare, inputs, vectors)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        both.eval()
        length = inputs["input_ids"].shape[1]
        ids = both.generate(**inputs, forgery_images=images, max_new_tokens=3, do_sample=False)
    assert not bool((ids[:, length:] == vlm.token_id).any())


def test_generate_never_emits_the_word():
    host, processor = tiny.llava()
    vlm = attach_pseudo_word(host, processor).eval()
    token = token_id_of(processor.tokenizer)
    host.resize_token_embeddings(token + 8)
    with torch.no_grad():
        host.get_output_embeddings().weight[token] = 100.0
    inputs = prompts(processor, ["Is this photo real [*]?"])
    ids = vlm.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert not bool((ids[:, inputs["input_ids"].shape[1] :] == token).any())


def test_both_vectors_of_instructblip_are_heard_and_trained():
    host, processor = instructblip()
    vlm = attach_pseudo_word(host, processor)
    names = ["word.vectors.language_model.weight", "word.vectors.qformer.weight"]
    assert vlm.trainable_names() == names
    inputs = processor(
        text="Is this photo real [*]?",
        images=Image.fromarray(tiny.picture(0, 32)),
        return_tensors="pt",
    )
    for tokenizer, key in (
        (processor.tokenizer, "input_ids"),
        (processor.qformer_tokenizer, "qformer_input_ids"),
    ):
        assert int((inputs[key] == token_id_of(tokenizer)).sum()) == 1
    vlm(**inputs).logits[:, -1].pow(2).sum().backward()
    assert all(float(vector.weight.grad.norm()) > 0 for vector in vlm.word.vectors.values())
    assert {n for n, p in vlm.named_parameters() if p.grad is not None} == set(names)


def test_4864_parameters_with_the_sizes_of_vicuna_7b():
    """InstructBLIP's default configuration with Vicuna-7B's width, on the meta device."""
    config = InstructBlipConfig(
        vision_config={"num_hidden_layers": 1},
        qformer_config={"num_hidden_layers": 1},
        text_config={"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096,
                     "intermediate_size": 11008, "num_hidden_layers": 1},
    )  # fmt: skip
    with torch.device("meta"):
        host = InstructBlipForConditionalGeneration(config)
    _, processor = instructblip()
    embeddings = pseudo_word_embeddings(host, processor)
    word = PseudoWord({name: m.weight.shape[1] for name, (m, _) in embeddings.items()})
    assert {n: v.weight.numel() for n, v in word.vectors.items()} == {
        "language_model": 4096,
        "qformer": 768,
    }
    assert sum(parameter.numel() for parameter in word.parameters()) == 4864


def test_a_processor_with_a_qformer_needs_a_host_with_one():
    _, processor = instructblip()
    with pytest.raises(ValueError, match="0 modules named qformer"):
        attach_pseudo_word(tiny.llava()[0], processor)


@pytest.mark.parametrize("make", [tiny.llava, instructblip])
def test_saved_and_loaded_onto_a_copy_of_the_host(make, tmp_path):
    host, processor = make()
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    settings = PseudoWordConfig(placement="prefix", real_answer="Yes", fake_answer="No")
    vlm = attach_pseudo_word(host, processor, settings, seed=5)
    vlm.sources = ("fake/sd2", "real/coco")
    vlm.save_pretrained(tmp_path / "word")
    assert sum(file.stat().st_size for file in (tmp_path / "word").iterdir()) < 8000
    loaded = load_pseudo_word(tmp_path / "word", *make())
    assert loaded.config == settings
    assert loaded.sources == vlm.sources
    assert not loaded.training
    for name, tensor in vlm.word.state_dict().items():
        assert torch.equal(loaded.word.state_dict()[name], tensor)
    # Neither attaching nor saving left anything in the host.
    after = vlm.detach().state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not host.get_input_embeddings()._forward_hooks
    assert not host.get_input_embeddings()._forward_pre_hooks


def test_another_host_is_refused(tmp_path):
    attach_pseudo_word(*tiny.llava()).save_pretrained(tmp_path / "word")
    with pytest.raises(ValueError, match="other weights"):
        load_pseudo_word(tmp_path / "word", *tiny.llava(seed=1))
    attach_pseudo_word(*instructblip()).save_pretrained(tmp_path / "two")
    host, processor = instructblip()
    host.qformer.embeddings.word_embeddings.weight.data.mul_(2)
    with pytest.raises(ValueError, match="another qformer"):
        load_pseudo_word(tmp_path / "two", host, processor)
    with pytest.raises(ValueError, match="InstructBlipForConditionalGeneration"):
        load_pseudo_word(tmp_path / "two", *tiny.llava())


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a pseudo-word"):
        load_pseudo_word(tmp_path, *tiny.llava())
    attach_pseudo_word(*tiny.llava()).save_pretrained(tmp_path / "word")
    path = tmp_path / "word/pseudo_word.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "format": 9}))
    with pytest.raises(ValueError, match="format 9; this version reads 1"):
        load_pseudo_word(tmp_path / "word", *tiny.llava())
    path.write_text(json.dumps(config))
    (tmp_path / "word/pseudo_word.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"pseudo_word\.safetensors is missing"):
        load_pseudo_word(tmp_path / "word", *tiny.llava())


def test_attaching_twice_is_an_error():
    host, processor = tiny.llava()
    attach_pseudo_word(host, processor)
    with pytest.raises(ValueError, match="owns \\[\\*\\] already"):
        attach_pseudo_word(host, processor)


def test_the_vector_starts_from_a_word_or_like_the_vocabulary():
    host, processor = tiny.llava()
    words = host.get_input_embeddings().weight
    ids = processor.tokenizer("fake", add_special_tokens=False)["input_ids"]
    vlm = attach_pseudo_word(host, processor, PseudoWordConfig(initial_word="fake"))
    vector = vlm.word.vectors["language_model"].weight
    torch.testing.assert_close(vector, words[ids].mean(dim=0))
    drawn = [attach_pseudo_word(*tiny.llava(), seed=s).word.state_dict() for s in (0, 0, 1)]
    vectors = [next(iter(state.values())) for state in drawn]
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])
    assert 0.5 < float(vectors[0].std() / words.std()) < 2
    with pytest.raises(ValueError, match="does not know the initial word"):
        attach_pseudo_word(*instructblip(), PseudoWordConfig(initial_word="zebra"))


@pytest.mark.parametrize(
    ("placement", "prompt"),
    [
        ("postfix", "Is this photo real [*]?"),
        ("prefix", "[*] Is this photo real?"),
        ("replace", "Is this photo [*]?"),
    ],
)
def test_placements(placement, prompt):
    assert PseudoWordConfig(placement=placement).prompt == prompt


def test_the_answers_stand_in_the_order_of_the_labels():
    """Yes is real, no is fake: the paper's polarity, the other way round than LVLM-DFD's."""
    assert PseudoWordConfig().answers == ("yes", "no")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"placement": "middle"},
            "placement must be one of postfix, prefix, replace, got 'middle'",
        ),
        ({"question": "Real [*]?"}, "question must be a stripped text"),
        ({"fake_answer": ""}, "fake_answer must be"),
        ({"fake_answer": "yes"}, "real and fake are equal"),
        ({"placement": "replace", "question": "Fake?"}, "one 'real'"),
    ],
)
def test_wrong_configurations(changes, message):
    with pytest.raises(ValueError, match=message.replace("[*]", r"\[\*\]")):
        PseudoWordConfig(**changes)
