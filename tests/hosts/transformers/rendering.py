"""Chat templates and tokenizers of several kinds, for the tests of rendering."""

import random
from dataclasses import dataclass

from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from llava_forgery.constants import FAKE, FORGERY_TOKEN, IGNORE_INDEX, IMAGE_TOKEN
from llava_forgery.hosts import small_llava
from llava_forgery.qa import templates
from llava_forgery.qa.build import build_conversation

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
