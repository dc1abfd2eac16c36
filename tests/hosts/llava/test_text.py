"""Loss on LLaVA's prompts: the answers' ids and the marks that end them, nothing else."""

import pytest

from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.hosts.llava.hooks import FORGERY_TOKEN_INDEX
from llava_forgery.hosts.llava.prompts import TEMPLATE, paper_template, tokenizer_forgery_token
from llava_forgery.hosts.llava.text import PromptStyle, encode_turns, render_turns, tokenise
from tests import tiny_llava

TURNS = (
    "<image>\nIs this a deepfake image?",
    "Yes. The artifact is at the nose.",
    "Is the mouth forged?",
    "No, it is untouched.",
)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_llava.tokenizer()


def _style(version, n_forgery=2, **options):
    tiny_llava.require_llava()
    from llava.conversation import conv_templates

    template = paper_template() if version == TEMPLATE else conv_templates[version]
    return PromptStyle(template, n_forgery, **options)


@pytest.mark.parametrize(
    ("version", "ends"),
    [
        ("v1", ("</s>", "</s>")),
        ("vicuna_v1", ("</s>", "</s>")),
        ("v0", ("###", "###")),
        ("v0_mmtag", ("###", "###")),
        ("llava_v1", ("</s>", "</s>")),
        ("llama_2", (" </s>", " </s>")),
        ("mpt", ("<|im_end|>", "<|im_end|>")),
        ("chatml_direct", ("<|im_end|>", "<|im_end|>")),
        (TEMPLATE, ("###", "###")),
    ],
)
@pytest.mark.parametrize("skill", [True, False])
def test_the_answers_and_their_ends_are_supervised_and_nothing_else(
    tokenizer, version, ends, skill
):
    style = _style(version)
    sample = encode_turns(TURNS, tokenizer, style, skill=skill, max_length=2048)
    ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
    said = [label for label in labels if label != IGNORE_INDEX]
    expected = "".join(answer + end for answer, end in zip(TURNS[1::2], ends, strict=True))
    found = tokenizer.decode(said)
    assert found.replace(" ", "") == expected.replace(" ", "")
    assert all(label in (token, IGNORE_INDEX) for token, label in zip(ids, labels, strict=True))
    assert ids.count(-201) == (2 if skill else 0)
    assert ids.count(-200) == 1
    text, _ = render_turns(TURNS, style, skill=skill)
    assert ids == tokenizer_forgery_token(text, tokenizer)


def test_placeholders_stand_behind_their_images():
    text, _ = render_turns(TURNS, _style("v1"), skill=True)
    assert "USER: <image>\n<forgery><forgery>\nIs this a deepfake image? ASSISTANT: Yes." in text
    text, _ = render_turns(TURNS, _style(TEMPLATE), skill=True)
    assert "###Human: <Img><image></Img><forgery><forgery> Is this" in text
    text, _ = render_turns(TURNS, _style("v1", im_start_end=True), skill=True)
    assert "USER: <im_start><image><im_end>\n<forgery><forgery>\nIs" in text
    # As LLaVA shows a single image first, wherever its token stood.
    text, _ = render_turns(("Who is this?\n<image>", "A man."), _style("v1"), skill=False)
    assert "USER: <image>\nWho is this? ASSISTANT: A man.</s>" in text
    several = ("<image>\n<image>\nWhich one is fake?", "The first.")
    text, _ = render_turns(several, _style("v1", 1), skill=True)
    assert "USER: <image>\n<forgery>\n<image>\n<forgery>\nWhich" in text


def test_ids_are_llavas_own(tokenizer):
    tiny_llava.require_llava()
    from llava.mm_utils import tokenizer_image_token

    for version in ("v1", "v0", "mpt"):
        text, _ = render_turns(TURNS, _style(version), skill=False)
        assert tokenise(text, tokenizer)[0] == tokenizer_image_token(text, tokenizer)


def test_labels_are_those_of_llavas_own_preprocess(tokenizer, monkeypatch):
    """Its training modules import once the one name that is gone is there."""
    tiny_llava.require_llava()
    import transformers.trainer

    monkeypatch.setattr(transformers.trainer, "ALL_LAYERNORM_LAYERS", [], raising=False)
    train = pytest.importorskip("llava.train.train")
    from llava import conversation

    monkeypatch.setattr(conversation, "default_conversation", conversation.conv_templates["v1"])
    turns = [
        {"from": who, "value": text} for who, text in zip(("human", "gpt"), TURNS, strict=False)
    ]
    theirs = train.preprocess_v1([turns], tokenizer, has_image=True)
    ours = encode_turns(TURNS[:2], tokenizer, _style("v1"), skill=False, max_length=2048)
    assert ours["input_ids"].tolist() == theirs["input_ids"][0].tolist()
    assert ours["labels"].tolist() == theirs["labels"][0].tolist()


def test_what_is_longer_is_cut_off_but_never_all_that_is_learnt(tokenizer):
    style = _style("v1")
    whole = encode_turns(TURNS, tokenizer, style, skill=True, max_length=2048)
    length = len(whole["labels"])
    cut = encode_turns(TURNS, tokenizer, style, skill=True, max_length=length - 3)
    assert cut["labels"].tolist() == whole["labels"].tolist()[:-3]
    with pytest.raises(ValueError, match="no token is left to learn from"):
        encode_turns(TURNS, tokenizer, style, skill=True, max_length=20)
    last = int((whole["input_ids"] == FORGERY_TOKEN_INDEX).nonzero()[-1])
    with pytest.raises(ValueError, match="end inside the forgery embeddings"):
        encode_turns(TURNS, tokenizer, style, skill=True, max_length=last)
    # LLaVA's model cuts off again once the image has become its tokens.
    answer = int((whole["labels"] != IGNORE_INDEX).nonzero()[0])
    room = length - answer
    fits = {"skill": True, "max_length": length, "image_tokens": room}
    labels = encode_turns(TURNS, tokenizer, style, **fits)["labels"]
    assert labels.tolist() == whole["labels"].tolist()
    with pytest.raises(ValueError, match="no token is left to learn from"):
        encode_turns(TURNS, tokenizer, style, **fits | {"image_tokens": room + 1})


def test_wrong_turns_templates_and_tokenizers_are_refused(tokenizer):
    style = _style("v1")
    with pytest.raises(ValueError, match="got 3 turns"):
        encode_turns(TURNS[:3], tokenizer, style, skill=True, max_length=99)
    with pytest.raises(ValueError, match="--version plain has no questions"):
        _style("plain")
    with pytest.raises(ValueError, match="n_forgery must be at least 1"):
        _style("v1", n_forgery=0)
