"""Rendering through chat templates of several kinds, and exact loss masks."""

import random
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from llava_forgery.constants import FAKE, FORGERY_TOKEN, IGNORE_INDEX, IMAGE_TOKEN, REAL
from llava_forgery.hosts import small_llava
from llava_forgery.qa import templates
from llava_forgery.qa.build import build_conversation, build_prompt
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.qa.render import (
    candidate_ids,
    chat_messages,
    collate,
    encode,
    render,
    render_text,
)

# Verbatim from SmolLM2-135M-Instruct: strings only, and a system prompt of its own.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{% if loop.first %}A chat between a human and an assistant. "
    "{% endif %}{% if message['role'] == 'user' %}USER: {{ message['content'] }} "
    "{% else %}ASSISTANT: {{ message['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# As in llava-1.5-7b-hf: content lists, and no token that ends a turn.
LLAVA_15 = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
# The prompt ends with the question; nothing announces the answer.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% else %} {{ message['content'] }}</s>{% endif %}"
    "{% endfor %}"
)
# The last answer carries a block that the generation prompt leaves out.
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def corpus():
    wordings = (*templates.QUESTIONS, *templates.YES_ANSWERS, *templates.NO_ANSWERS)
    return [f"USER: {text} ASSISTANT: Yes. No. assistant Yes, No, Yes No" for text in wordings]


def byte_level(special, **names):
    """As GPT's, Llama 3's and SmolLM2's tokenizers."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, **names)


def word_pieces(add_eos=False):
    """As Llama 2's: the space belongs to the word behind it, and <s> is put in front."""
    model = Tokenizer(models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    model.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=[chr(code) for code in range(33, 127)] + ["\n"],
        show_progress=False,
    )
    model.train_from_iterator(corpus(), trainer)
    single = "<s> $A </s>" if add_eos else "<s> $A"
    model.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
    )


@dataclass(frozen=True)
class Host:
    template: str
    end: str
    """What ends a turn; the last one for llava-1.5-hf."""
    tokenizer: PreTrainedTokenizerFast
    on_processor: bool = True

    def processor(self):
        self.tokenizer.add_tokens([IMAGE_TOKEN, FORGERY_TOKEN], special_tokens=True)
        self.tokenizer.chat_template = None if self.on_processor else self.template
        return LlavaProcessor(
            image_processor=CLIPImageProcessorPil(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            ),
            tokenizer=self.tokenizer,
            patch_size=16,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=self.template if self.on_processor else None,
        )


def chatml():
    return byte_level(["<|im_start|>", "<|im_end|>"], bos_token="<|im_start|>",
                      eos_token="<|im_end|>", pad_token="<|im_end|>")  # fmt: skip


def llama_3():
    marks = ["<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(marks, bos_token="<|begin|>", eos_token="<|eot_id|>", pad_token="<|eot_id|>")


HOSTS = {
    "smollm2": lambda: Host(SMOLLM2, "<|im_end|>", chatml(), on_processor=False),
    "small_llava": lambda: Host(small_llava.CHAT_TEMPLATE, "<|im_end|>", chatml()),
    "vicuna": lambda: Host(VICUNA, "</s>", word_pieces()),
    "llava_15": lambda: Host(LLAVA_15, "</s>", word_pieces()),
    "llama_3": lambda: Host(LLAMA_3, "<|eot_id|>", llama_3()),
    "mistral": lambda: Host(MISTRAL, "</s>", word_pieces()),
    "thinking": lambda: Host(THINKING, "<|im_end|>", chatml()),
}
IMAGE = Image.new("RGB", (40, 50), (200, 150, 120))


@pytest.fixture(params=HOSTS, scope="module")
def host(request):
    return HOSTS[request.param]()


def processor_of(name):
    return HOSTS[name]().processor()


def conversation(follow_ups=2, seed=0):
    return build_conversation(
        FAKE, ("nose", "mouth"), rng=random.Random(seed), score=0.93, follow_ups=follow_ups
    )


def answers(item):
    return [message.text for message in item.messages if message.role == "assistant"]


def supervised_runs(sample):
    """Ids of each unbroken run of supervised tokens."""
    runs, open_run = [], False
    for token, label in zip(sample["input_ids"].tolist(), sample["labels"].tolist(), strict=True):
        if label == IGNORE_INDEX:
            open_run = False
            continue
        assert label == token
        if not open_run:
            runs.append([])
        runs[-1].append(token)
        open_run = True
    return runs


def said(tokenizer, ids):
    """Decoded without the space that sentence pieces carry in front of a word."""
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text.removeprefix(" ")


def test_chat_messages():
    prompt = Conversation((Message("user", "Fake?"), Message("assistant", "No.")), REAL)
    assert chat_messages(prompt, 2) == [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "<forgery><forgery>\nFake?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
    ]
    plain = chat_messages(prompt, 0, n_images=0)
    assert plain[0]["content"] == [{"type": "text", "text": "Fake?"}]
    with pytest.raises(ValueError, match="at least 0"):
        chat_messages(prompt, -1)


def test_canonical_prompt_as_text():
    prompt = build_prompt(0.93)
    question = prompt.messages[0].text
    assert render_text(prompt, processor_of("small_llava"), 2) == (
        "<|im_start|>user\n<image>\n<forgery><forgery>\n"
        f"{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_text(prompt, processor_of("vicuna"), 2) == (
        "A chat between a human and an assistant. USER: <image>\n<forgery><forgery>\n"
        f"{question} ASSISTANT:"
    )


def test_lists_and_strings_render_alike():
    """A template for strings gets the text that a processor's template makes of the list."""
    as_list = render_text(conversation(), processor_of("small_llava"), 3)
    as_string = render_text(conversation(), processor_of("smollm2"), 3)
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging"
    assert as_string.startswith(system)
    assert as_string.endswith(as_list)


def test_answer_spans(host):
    item = conversation()
    rendered = render(item, host.processor())
    written = [rendered.text[start:end] for start, end in rendered.answer_spans]
    assert [text.strip() for text in written] == answers(item)
    # The space behind "ASSISTANT:" is the host's to write.
    leading = " " if host.template in (VICUNA, LLAVA_15, MISTRAL) else ""
    assert written == [leading + answer for answer in answers(item)]
    assert rendered.text.count(IMAGE_TOKEN) == 1
    assert rendered.text.count(FORGERY_TOKEN) == 9


def test_spans_of_answers_that_repeat():
    """An answer that stands in the question as well, and twice as an answer."""
    turns = ("Is it No.?", "No.", "No.", "No.")
    roles = ("user", "assistant") * 2
    item = Conversation(tuple(map(Message, roles, turns)), REAL)
    for name in set(HOSTS) - {"thinking"}:
        rendered = render(item, processor_of(name), 1)
        starts = [start for start, _ in rendered.answer_spans]
        assert len(set(starts)) == 2
        assert starts[0] > rendered.text.index("Is it No.?") + len("Is it No.?")
        spans = rendered.answer_spans
        assert [rendered.text[start:end].strip() for start, end in spans] == ["No."] * 2


@pytest.mark.parametrize("images", [[IMAGE], None], ids=["image", "no_image"])
@pytest.mark.parametrize("seed", range(3))
def test_exactly_the_answers_are_supervised(host, images, seed):
    item = conversation(seed=seed)
    processor = host.processor()
    sample = encode(item, processor, images)
    runs = supervised_runs(sample)
    expected = [answer + host.end for answer in answers(item)]
    if host.template == LLAVA_15:
        expected = [*answers(item)[:-1], expected[-1]]
    assert [said(processor.tokenizer, run) for run in runs] == expected
    tokens = sample["input_ids"].tolist()
    assert tokens.count(processor.image_token_id) == (0 if images is None else 4)
    assert tokens.count(processor.tokenizer.convert_tokens_to_ids(FORGERY_TOKEN)) == 9
    assert sample["attention_mask"].tolist() == [1] * len(tokens)


def test_the_image_goes_along():
    sample = encode(conversation(), processor_of("small_llava"), [IMAGE])
    assert set(sample) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    assert sample["pixel_values"].shape == (3, 32, 32)


def test_a_prompt_is_what_training_continues(host):
    """Tokens of the prompt at inference are those before the first answer in training."""
    processor = host.processor()
    item = build_conversation(REAL, (), rng=random.Random(0), score=0.4, vary=False)
    trained = encode(item, processor, [IMAGE])
    prompt = encode(build_prompt(0.4), processor, [IMAGE])
    assert set(prompt) == {"input_ids", "attention_mask", "pixel_values"}
    first = int((trained["labels"] != IGNORE_INDEX).nonzero()[0, 0])
    before = trained["input_ids"][:first].tolist()
    if host.template == THINKING:
        assert before[: len(prompt["input_ids"])] == prompt["input_ids"].tolist()
        assert len(before) > len(prompt["input_ids"])
    else:
        assert prompt["input_ids"].tolist() == before


def test_first_tokens_are_not_doubled():
    for name in ("vicuna", "mistral", "llama_3"):
        processor = processor_of(name)
        tokens = encode(conversation(), processor, [IMAGE])["input_ids"].tolist()
        assert tokens[0] == processor.tokenizer.bos_token_id
        assert tokens.count(processor.tokenizer.bos_token_id) == 1


def test_plain_tokenizer():
    words = HOSTS["smollm2"]().tokenizer
    words.chat_template = SMOLLM2
    item = conversation(follow_ups=1)
    sample = encode(item, words, n_forgery_tokens=0)
    runs = [words.decode(run) for run in supervised_runs(sample)]
    assert runs == [answer + "<|im_end|>" for answer in answers(item)]
    with pytest.raises(ValueError, match="a tokenizer cannot take images"):
        encode(item, words, [IMAGE], n_forgery_tokens=0)


def test_nothing_is_cut():
    processor = processor_of("small_llava")
    length = len(encode(conversation(), processor, [IMAGE])["input_ids"])
    assert len(encode(conversation(), processor, [IMAGE], max_length=length)["input_ids"]) == length
    with pytest.raises(ValueError, match=f"has {length} tokens, more than max_length {length - 1}"):
        encode(conversation(), processor, [IMAGE], max_length=length - 1)


def test_one_image():
    for images in ([], [IMAGE, IMAGE]):
        with pytest.raises(ValueError, match=f"images is empty {len(images)}"):
            encode(conversation(), processor_of("small_llava"), images)


def test_unknown_placeholder():
    words = HOSTS["smollm2"]().tokenizer
    words.chat_template = SMOLLM2
    with pytest.raises(ValueError, match="left 0 of 9 placeholders <forgery>"):
        encode(conversation(), words)


def test_special_tokens_in_what_is_said():
    prompt = build_prompt(0.5, question="Fake?<|im_end|>")
    with pytest.raises(ValueError, match="holds the special tokens"):
        encode(prompt, processor_of("small_llava"), [IMAGE])


def replaced(name, template):
    processor = processor_of(name)
    processor.chat_template = template
    return processor


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "neither the processor nor its tokenizer has a chat template"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "gave 0 times <image>"),
        (
            "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}{{ messages | count }}",
            "holds no special token|does not show where the answer",
        ),
        (
            "{% for m in messages %}{% if loop.first %}{{ m['content'] }}{% else %}"
            "{{ m['content'] | replace('e', 'E') }}{% endif %}<|im_end|>{% endfor %}",
            "does not show where the answer",
        ),
        (
            "{% for m in messages %}{{ m['content'] }}\n{% endfor %}End.",
            "does not show where the answer|holds no special token",
        ),
    ],
    ids=["none", "loses_image", "counts_turns", "changes_answers", "text_behind"],
)
def test_unfit_templates_are_refused(template, message):
    with pytest.raises(ValueError, match=message):
        encode(conversation(), replaced("small_llava", template), [IMAGE])


def test_answer_glued_to_the_prompt():
    """A token that writes the end of the prompt and the beginning of the answer."""
    words = byte_level(["<|im_end|>"], eos_token="<|im_end|>")
    # "assistantYes" is one token.
    words.add_tokens(["assistantYes"])
    template = (
        "{% for m in messages %}{{ m['role'] }}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    host = Host(template, "<|im_end|>", words)
    with pytest.raises(ValueError, match="cannot separate the answers"):
        encode(conversation(), host.processor(), [IMAGE])
    with pytest.raises(ValueError, match="does not continue the tokens of the prompt"):
        candidate_ids(build_prompt(0.5), host.processor())


def test_expansion_that_changes_the_answers():
    class Meddling(LlavaProcessor):
        def __call__(self, images=None, text=None, **options):
            return super().__call__(images=images, text=[text[0].replace("Yes", "No")], **options)

    processor = processor_of("small_llava")
    processor.__class__ = Meddling
    with pytest.raises(ValueError, match="expansion of the image changed the tokens"):
        encode(conversation(), processor, [IMAGE])


def test_tokenizer_that_ends_every_text():
    host = Host(VICUNA, "</s>", word_pieces(add_eos=True))
    with pytest.raises(ValueError, match="add_eos_token=False"):
        encode(build_prompt(0.5), host.processor(), [IMAGE])


def test_candidates(host):
    processor = host.processor()
    if host.template == THINKING:
        with pytest.raises(ValueError, match="generation prompt is not what its answers begin"):
            candidate_ids(build_prompt(0.93), processor)
        return
    yes, no = candidate_ids(build_prompt(0.93), processor)
    decode = processor.tokenizer.convert_ids_to_tokens
    assert "Yes".startswith(decode(yes).strip("▁Ġ"))
    assert "No".startswith(decode(no).strip("▁Ġ"))
    assert yes != no
    for seed in range(10):
        for label, expected in ((FAKE, yes), (REAL, no)):
            regions = ("chin",) if label == FAKE else ()
            item = build_conversation(label, regions, rng=random.Random(seed), score=0.4)
            sample = encode(item, processor, [IMAGE])
            assert supervised_runs(sample)[0][0] == expected


def test_candidates_need_a_prompt():
    with pytest.raises(ValueError, match="ends with a question"):
        candidate_ids(conversation(), processor_of("small_llava"))


def test_candidates_that_cannot_be_told_apart():
    """The space is a token of its own, so the words are only the second to be written."""
    words = HOSTS["vicuna"]().tokenizer
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split("▁", "isolated")]
    )
    processor = Host(VICUNA, "</s>", words).processor()
    with pytest.raises(ValueError, match="begin with the same token"):
        candidate_ids(build_prompt(0.5), processor)
    # Training writes that space all the same.
    sample = encode(conversation(), processor, [IMAGE])
    assert words.convert_ids_to_tokens(supervised_runs(sample)[0])[:2] == ["▁", "Yes"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate(side):
    processor = processor_of("small_llava")
    samples = [encode(conversation(follow_ups=n), processor, [IMAGE]) for n in (0, 3)]
    batch = collate(samples, pad_id=7, padding_side=side)
    short, long = (len(sample["input_ids"]) for sample in samples)
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    for name, fill in (("input_ids", 7), ("attention_mask", 0), ("labels", IGNORE_INDEX)):
        assert batch[name].shape == (2, long)
        assert batch[name].dtype == torch.int64
        padding = slice(0, long - short) if side == "left" else slice(short, long)
        content = slice(long - short, long) if side == "left" else slice(0, short)
        assert set(batch[name][0, padding].tolist()) == {fill}
        assert torch.equal(batch[name][0, content], samples[0][name])
        assert torch.equal(batch[name][1], samples[1][name])


def test_collate_is_checked():
    sample = {"input_ids": torch.tensor([1, 2]), "pixel_values": torch.zeros(3, 2, 2)}
    other = {"input_ids": torch.tensor([1]), "pixel_values": torch.zeros(3, 4, 4)}
    for samples, options, message in (
        ([], {}, "no sample"),
        ([sample], {"pad_id": None}, "has no pad token"),
        ([sample], {"padding_side": "top"}, 'must be "left" or "right"'),
        ([sample, {"input_ids": sample["input_ids"]}], {}, "sample 1 has the keys"),
        ([sample, other], {}, "pixel_values differs in shape"),
    ):
        with pytest.raises(ValueError, match=message):
            collate(samples, **({"pad_id": 0} | options))


@pytest.mark.slow
def test_the_real_smollm2():
    """Its own tokenizer and template, from the package that carries the weights."""
    pytest.importorskip("gguf")
    try:
        gguf = small_llava.smollm2_file()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    words = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert words.chat_template == SMOLLM2
    for on_processor in (True, False):
        template = small_llava.CHAT_TEMPLATE if on_processor else SMOLLM2
        processor = Host(template, "<|im_end|>", words, on_processor).processor()
        item = conversation()
        runs = supervised_runs(encode(item, processor, [IMAGE]))
        expected = [answer + "<|im_end|>" for answer in answers(item)]
        assert [words.decode(run) for run in runs] == expected
        yes, no = candidate_ids(build_prompt(0.93), processor)
        assert words.convert_ids_to_tokens([yes, no]) == ["Yes", "No"]
