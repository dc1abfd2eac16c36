"""Adapters of each format, kept as files, and the hosts that they were trained for.

    python -m tests.hosts.stored tests/hosts/formats

writes an adapter of each layout, in the format of the code that runs, and what it said on that day.
Nothing here hangs on the package's wordings, on random generators that may change, or on the
network: the hosts are the same in every release. All weights are of few values, so that an archive
is small.
"""

import argparse
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn

from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.kfd.config import EncoderConfig, KFDConfig
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector

WIDTH, SIDE, PATCH, FACE = 32, 32, 16, 64
QUESTION = "Is this picture forged?"
NEW_TOKENS = 12
LORA = LoraSettings(r=2, alpha=4, dropout=0.0, projections=("q_proj", "v_proj"))
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def words() -> hf.PreTrainedTokenizerFast:
    """Bytes, and Llama's special tokens."""
    model = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []
        )
    )
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<unk>", model_max_length=2048,
    )  # fmt: skip
    fast.add_tokens(["<image>"], special_tokens=True)
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B",
        special_tokens=[("<s>", fast.convert_tokens_to_ids("<s>"))],
    )  # fmt: skip
    return fast


@torch.no_grad()
def coarse(module: nn.Module, seed: int, gain: float = 1.0) -> None:
    """Weights of unit gain: one in eight or more is not zero, each plus or minus the same."""
    # RandomState's stream is frozen, unlike torch's and that of numpy's newer generators.
    rng = np.random.RandomState(seed)
    for name, weight in module.named_parameters():
        if weight.dim() == 1:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        if weight.dim() < 2:
            continue
        fan_in = weight[0].numel()
        kept = min(1.0, 16 / fan_in) if "embed_tokens" not in name else 1.0
        signs = rng.choice([-1.0, 0.0, 1.0], weight.shape, p=[kept / 2, 1 - kept, kept / 2])
        scale = gain / (kept * fan_in) ** 0.5 if "embed_tokens" not in name else 1.0
        weight.copy_(torch.from_numpy(signs * scale))


def text_values(tokenizer: hf.PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 2048, "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip


VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": PATCH, "projection_dim": 16,
}  # fmt: skip
IMAGES = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def transformers_host() -> tuple[hf.PreTrainedModel, hf.ProcessorMixin]:
    """A LLaVA of transformers, the same in every release."""
    tokenizer = words()
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**text_values(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    host = hf.LlavaForConditionalGeneration(config).eval()
    coarse(host, seed=1)
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessorPil(**IMAGES),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return host, processor


def save_llava_host(folder: Path) -> Path:
    """A LLaVA of the ``llava`` package with its tower in it, the same in every release.

    Its configuration names the tower ``clip``, which is written beside ``folder``: the process must
    stand there.
    """
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    clip = hf.CLIPVisionModel(hf.CLIPVisionConfig(**VISION))
    coarse(clip, seed=2)
    clip.save_pretrained(folder.parent / "clip")
    hf.CLIPImageProcessor(**IMAGES).save_pretrained(folder.parent / "clip")
    tokenizer = words()
    config = LlavaConfig(**text_values(tokenizer))
    values = {
        "mm_vision_tower": "clip", "mm_hidden_size": 16, "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch", "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "flat", "image_aspect_ratio": "square",
        "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "use_mm_proj": True,
        "tokenizer_padding_side": "right",
    }  # fmt: skip
    for name, value in values.items():
        setattr(config, name, value)
    model = LlavaLlamaForCausalLM(config)
    coarse(model, seed=3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained_detector() -> KnowledgeGuidedForgeryDetector:
    """A detector of few values."""
    encoder = EncoderConfig("timm", "test_efficientnet", None, (1, 2), 16, FACE)
    config = KFDConfig(encoder, ("real",), ("fake",), context_length=2, temperature=4.0)
    kfd = KnowledgeGuidedForgeryDetector.from_config(config).eval()
    coarse(kfd, seed=4)
    kfd.refresh_text_features()
    return kfd


def trained_learner() -> ForgeryPromptLearner:
    """A learner of few values, for both hosts."""
    fpl = ForgeryPromptLearner.from_config(FPLConfig(WIDTH, num_layers=2, n_base=2, n_forgery=3))
    coarse(fpl, seed=5)
    return fpl


def picture(side: int) -> np.ndarray:
    """(side, side, 3) uint8, by arithmetic alone."""
    y, x = np.mgrid[:side, :side]
    return np.stack([x * 7 % 256, y * 5 % 256, (x * y) % 256], axis=2).astype(np.uint8)


def face() -> torch.Tensor:
    """(1, 3, FACE, FACE) in [0, 1], for the detector."""
    return torch.from_numpy(picture(FACE)).permute(2, 0, 1)[None] / 255


def saw(score: torch.Tensor, output: Any, tokenizer: Any, new: torch.Tensor) -> dict[str, Any]:
    """What is kept of a run: both scores and the answer's tokens."""
    yes, no = (tokenizer.convert_tokens_to_ids(letter) for letter in "YN")
    first = output.logits[0][0].float()
    return {
        "score": float(score[0]),
        "p_yes": float(first[[yes, no]].softmax(0)[0]),
        "answer": new.tolist(),
    }


GREEDY = {
    "max_new_tokens": NEW_TOKENS, "do_sample": False, "return_dict_in_generate": True,
    "output_logits": True,
}  # fmt: skip


@torch.inference_mode()
def run_transformers(vlm: Any) -> dict[str, Any]:
    """What a host of transformers with the skill says of the picture."""
    from llava_forgery.hosts.transformers.prompts import encode
    from llava_forgery.qa.conversation import Conversation, Message

    prompt = Conversation((Message("user", QUESTION),), label=None)
    shown = [Image.fromarray(picture(SIDE))]
    sample = encode(prompt, vlm.processor, shown, n_forgery_tokens=vlm.n_forgery)
    batch = {name: value[None] if value.dim() == 1 else value for name, value in sample.items()}
    output = vlm.generate(**batch, forgery_images=face(), **GREEDY)
    new = output.sequences[0, batch["input_ids"].shape[1] :]
    return saw(vlm.detect(face()).score, output, vlm.processor.tokenizer, new)


@torch.inference_mode()
def run_llava(tokenizer: Any, model: Any) -> dict[str, Any]:
    """What a model of the ``llava`` package with the skill says of the picture."""
    from llava_forgery.hosts.llava.prompts import forgery_prefix, tokenizer_forgery_token

    text = forgery_prefix(model.n_forgery) + QUESTION + " ASSISTANT:"
    ids = tokenizer_forgery_token(text, tokenizer, return_tensors="pt")[None]
    shown = model.get_vision_tower().image_processor(
        Image.fromarray(picture(SIDE)), return_tensors="pt"
    )["pixel_values"]
    output = model.generate(
        ids, images=shown, image_sizes=[(SIDE, SIDE)], forgery_images=face(), **GREEDY
    )
    return saw(model.detect(face()).score, output, tokenizer, output.sequences[0])


def pack(folder: Path, archive: Path) -> None:
    """A folder's files as an archive that is the same each time."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, path.relative_to(folder), recursive=False, filter=plain)


def unpack(archive: Path, folder: Path) -> Path:
    """The inverse of :func:`pack`."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def main() -> None:
    """Write an adapter of each layout."""
    import os
    import tempfile

    from peft import get_peft_model

    from llava_forgery.hosts import adapter as layout
    from llava_forgery.hosts.llava.checkpoint import save_llava_adapter
    from llava_forgery.hosts.llava.model import attach_to_llava, llava_lora_config
    from llava_forgery.hosts.transformers.model import attach_forgery

    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    said = {}
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        host, processor = transformers_host()
        vlm = attach_forgery(host, processor, trained_detector(), trained_learner(), LORA)
        coarse(nn.ModuleDict({"lora": _Lora(vlm.host)}), seed=6, gain=0.5)
        host.name_or_path = "llava-1.5-tiny"
        vlm.host_name = "llava-1.5-tiny"
        said["transformers"] = run_transformers(vlm.eval())
        vlm.save_pretrained("adapter")
        pack(Path("adapter"), out / f"{layout.FORMAT}-transformers.tar.xz")

        trained_detector().save_pretrained("kfd")
        folder = save_llava_host(Path(work) / "llava-tiny")
        from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

        model = LlavaLlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        model.get_vision_tower().load_model()
        attach_to_llava(model, "kfd", trained_learner().eval())
        model.config.mm_forgery_host["name_or_path"] = "llava-tiny"
        peft_model = get_peft_model(model, llava_lora_config(model, LORA))
        coarse(nn.ModuleDict({"lora": _Lora(peft_model)}), seed=7, gain=0.5)
        peft_model.eval()
        said["llava"] = run_llava(words(), model)
        save_llava_adapter(peft_model, "llava-lora")
        pack(Path("llava-lora"), out / f"{layout.FORMAT}-llava.tar.xz")
    for name, values in said.items():
        print(name, values)
    (out / f"{layout.FORMAT}.json").write_text(json.dumps(said, indent=2) + "\n")


class _Lora(nn.Module):
    """LoRA's parameters alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for i, (name, weight) in enumerate(model.named_parameters()):
            if "lora_" in name:
                self.register_parameter(f"p{i}", weight)


if __name__ == "__main__":
    main()
