"""Train the forgery skill on a LLaVA checkpoint, with LLaVA's own flags.

    deepspeed --module llava_forgery.train.llava_train --deepspeed scripts/zero2.json \\
        --model_name_or_path liuhaotian/llava-v1.5-7b --version v1 --lora_enable True \\
        --forgery_tower KFD --data_path QA --output_dir checkpoints/llava-v1.5-7b-forgery-lora ...

``scripts/finetune_lora.sh`` gives all flags; :mod:`llava_forgery.train.llava_flags` says what they
mean. The result is read by LLaVA's ``load_pretrained_model`` after ``register()``.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from llava_forgery.data.validation import (
    LISTED,
    find_invalid,
    fingerprint_of,
    settle_invalid,
)
from llava_forgery.downloads import allow_downloads
from llava_forgery.files import check_output, sentence
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.llava import compat as llava_compat
from llava_forgery.hosts.llava.checkpoint import CONFIG
from llava_forgery.hosts.llava.images import HostImages
from llava_forgery.hosts.llava.model import attach_to_llava
from llava_forgery.hosts.llava.names import PROJECTOR, TEMPLATE_KEY, TOWER
from llava_forgery.hosts.llava.register import register
from llava_forgery.hosts.llava.skill import has_forgery_adapter
from llava_forgery.hosts.llava.text import PromptStyle
from llava_forgery.hosts.llava.tower import KFDVisionTower
from llava_forgery.noise import quiet
from llava_forgery.optional import require
from llava_forgery.train.deepspeed import without_zero3_init
from llava_forgery.train.llava_data import (
    DialogueCheck,
    Encoding,
    Selection,
    Source,
    TrainingSamples,
    open_source,
)
from llava_forgery.train.llava_flags import LlavaArguments, parse_arguments
from llava_forgery.train.llava_stage2 import prepare_model, train_llava
from llava_forgery.train.run_record import check_training_folder

logger = logging.getLogger(__name__)


@quiet()
def run(arguments: LlavaArguments) -> PreTrainedModel:
    """Everything from the flags to the written adapter.

    Returns:
        The trained model, in eval mode; peft's wrapper around it where LoRA was trained.

    Raises:
        FileNotFoundError: A checkpoint, a detector or data are not there.
        ImportError: A package is not installed; the message says which.
        OSError: ``--output_dir`` cannot be written.
        ValueError: A flag contradicts the checkpoint, or data are not valid.
    """
    flags = arguments.training
    check_output(flags.output_dir, inside=True)
    check_training_folder(flags.output_dir, Path(flags.output_dir) / CONFIG)
    if arguments.forgery.llava_next:
        llava_compat.patch_llava_next()
    register()
    set_seed(flags.seed)
    with without_zero3_init(flags), allow_downloads(arguments.forgery.allow_download):
        sources = open_sources(arguments)
        tokenizer, model = load_host(arguments)
        tower = open_vision_tower(model, arguments)
        attach_skill(model, arguments)
        samples = open_samples(model, tokenizer, tower.image_processor, arguments, sources)
        prepared = prepare_model(model, flags)
    return train_llava(prepared, samples, flags, arguments.forgery.fpl_lr, tokenizer.pad_token_id)


def load_host(arguments: LlavaArguments) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The checkpoint as LLaVA's training loads it, checked against the flags that describe it.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It is no LLaVA checkpoint, has the skill already, or contradicts a flag.
    """
    flags, path = arguments.training, arguments.model.model_name_or_path
    tokenizer, _, model_class = _read_checkpoint(arguments)
    options: dict[str, Any] = {"cache_dir": arguments.model.cache_dir}
    half = torch.bfloat16 if flags.bf16 else torch.float16 if flags.fp16 else None
    if flags.bits != 16:
        options["quantization_config"] = _quantization(arguments, half or torch.float32)
        options["device_map"] = {"": flags.device}
    model = model_class.from_pretrained(path, dtype=half or torch.float32, **options)
    # As LLaVA writes them into the configuration that goes with the adapter.
    model.config.tokenizer_padding_side = tokenizer.padding_side
    model.config.tokenizer_model_max_length = tokenizer.model_max_length
    if arguments.data.image_aspect_ratio is not None:
        model.config.image_aspect_ratio = arguments.data.image_aspect_ratio
    if has_forgery_adapter(model):
        raise ValueError(
            f"{path} has the forgery skill already; give the checkpoint it was trained on"
        )
    return tokenizer, model


def _read_checkpoint(
    arguments: LlavaArguments,
) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig, type[PreTrainedModel]]:
    """All of the checkpoint but its weights."""
    flags, path = arguments.training, arguments.model.model_name_or_path
    options: dict[str, Any] = {"cache_dir": arguments.model.cache_dir}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path,
            model_max_length=flags.model_max_length,
            padding_side="right",
            trust_remote_code=False,
            **options,
        )
        config, model_class = _model_class(path, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"the checkpoint {path!r} could not be read ({str(error).splitlines()[0]}); give "
            "--model_name_or_path a LLaVA checkpoint's folder or hub name"
        ) from error
    arguments.model.check_checkpoint(config)
    if tokenizer.pad_token is None or tokenizer.unk_token is not None:
        # As LLaVA does; the mask says what is padding, so any token will do.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer, config, model_class


def _model_class(path: str, **options: Any) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    """The configuration and the class that LLaVA has for a checkpoint."""
    import llava.model

    values, _ = PreTrainedConfig.get_config_dict(path, **options)
    names = values.get("architectures") or []
    found = [getattr(llava.model, name, None) for name in names]
    if not found or found[0] is None or "Mpt" in names[0]:
        raise ValueError(
            f"{path} is a {', '.join(names) or 'model of unknown class'}, expected a checkpoint of "
            "the llava package such as LlavaLlamaForCausalLM; for models of transformers "
            "(llava-hf/...) use llava-forgery train adapter"
        )
    if "mm_vision_tower" not in values:
        raise ValueError(
            f"{path} names no mm_vision_tower: it sees no images yet; train it with LLaVA first"
        )
    return found[0].config_class.from_pretrained(path, **options), found[0]


def _quantization(arguments: LlavaArguments, dtype: torch.dtype) -> BitsAndBytesConfig:
    """LLaVA's choice: all linear layers but the projector and the head."""
    flags = arguments.training
    require("bitsandbytes", extra="quantization", feature=f"--bits {flags.bits}")
    return BitsAndBytesConfig(
        load_in_4bit=flags.bits == 4,
        load_in_8bit=flags.bits == 8,
        llm_int8_skip_modules=["model.mm_projector", "model.vision_tower", "lm_head"],
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=flags.double_quant,
        bnb_4bit_quant_type=flags.quant_type,
    )


def open_vision_tower(model: PreTrainedModel, arguments: LlavaArguments) -> Any:
    """The host's own vision tower, loaded and in the host's precision."""
    tower = model.get_vision_tower()
    if not tower.is_loaded:
        tower.load_model()
    half = arguments.training.bf16 or arguments.training.fp16
    tower.to(device=model.device, dtype=model.dtype if half else torch.float32)
    return tower


def attach_skill(model: PreTrainedModel, arguments: LlavaArguments) -> None:
    """The detector and a new FPL, in full precision."""
    flags = arguments.forgery
    # Width and layers are the host's and the detector's: only the kind and the counts are a choice.
    sizes = FPLConfig(
        hidden_size=model.config.hidden_size,
        num_layers=KFDVisionTower(flags.forgery_tower, delay_load=True).config.num_layers,
        kind=flags.fpl_kind,
        n_base=flags.fpl_n_base,
        n_forgery=flags.fpl_n_forgery,
    )
    attach_to_llava(model, flags.forgery_tower, sizes, seed=arguments.training.seed)
    # With which detect, chat and convert adapter then ask.
    setattr(model.config, TEMPLATE_KEY, arguments.model.version)
    inner = model.get_model()
    for name in (TOWER, PROJECTOR):
        getattr(inner, name).float()


def open_sources(arguments: LlavaArguments) -> tuple[Source, Source | None]:
    """The data of the skill and the general ones, validated unless the flags say otherwise.

    Nothing of the host but its configuration and tokenizer is loaded for it.

    Raises:
        FileNotFoundError: A file or the checkpoint is not there.
        ValueError: A file or samples are not valid; all such samples are listed.
    """
    data, flags = arguments.data, arguments.training
    invalid: list[str] | None = [] if data.validate else None
    options = (flags.seed, invalid, data.allow_absolute_paths)
    sources = {"skill": open_source(data.data_path, data.image_folder, *options)}
    if data.general_data_path is not None:
        folder = data.general_image_folder or data.image_folder
        sources["general"] = open_source(data.general_data_path, folder, *options)
    if invalid is not None:
        tokenizer, config, _ = _read_checkpoint(arguments)
        encoding = _encoding(tokenizer, config, _image_tokens(config), arguments)
        # The others read what the first process found.
        with flags.main_process_first(desc="validation"):
            sources = _validated(sources, encoding, invalid, arguments)
    return sources["skill"], sources.get("general")


def _validated(
    sources: dict[str, Source], encoding: Encoding, invalid: list[str], arguments: LlavaArguments
) -> dict[str, Source]:
    """What is valid of each source.

    Args:
        sources: By "skill" and "general".
        encoding: How dialogues become tokens.
        invalid: What was wrong already with the entries of their files.
        arguments: The flags.
    """
    checks = {
        name: (DialogueCheck(source, name == "skill", encoding), len(source))
        for name, source in sources.items()
    }
    parts = {name: source.fingerprint() for name, source in sources.items()}
    folder = arguments.training.output_dir
    found = find_invalid(checks, fingerprint_of(parts, encoding.fingerprint()), folder)
    listed = invalid + [
        f"{name} data: sample {source.name(row)!r}: {reason}"
        for name, source in sources.items()
        for row, reason in sorted(found[name].items())
    ]
    count = len(invalid) + sum(len(source) for source in sources.values())
    settle_invalid(listed, count, folder, arguments.data.skip_invalid)
    left: dict[str, Source] = {}
    for name, source in sources.items():
        rows = [row for row in range(len(source)) if row not in found[name]]
        if not rows:
            raise ValueError(f"no sample of the {name} data is valid; see {folder}/{LISTED}")
        left[name] = source if len(rows) == len(source) else Selection(source, rows)
    return left


def _image_tokens(config: PreTrainedConfig) -> int:
    """Least tokens that a checkpoint's model makes of an image, from its configuration alone."""
    from llava.model.multimodal_encoder.builder import build_vision_tower

    if getattr(config, "mm_resampler_type", None):
        # LLaVA-NeXT's resamplers make fewer of them than the tower has patches.
        return 1
    return int(build_vision_tower(config, delay_load=True).num_patches)


def _encoding(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    image_tokens: int,
    arguments: LlavaArguments,
) -> Encoding:
    from llava.conversation import conv_templates

    version = arguments.model.version
    if version not in conv_templates:
        raise ValueError(
            f"--version {version} is none of LLaVA's conversation templates: "
            f"{', '.join(conv_templates)}"
        )
    style = PromptStyle(
        conv_templates[version],
        arguments.forgery.fpl_n_forgery,
        bool(getattr(config, "mm_use_im_start_end", False)),
    )
    return Encoding(tokenizer, style, arguments.training.model_max_length, image_tokens)


def open_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: Any,
    arguments: LlavaArguments,
    sources: tuple[Source, Source | None] | None = None,
) -> TrainingSamples:
    """The training data, skill and general.

    Args:
        model: With the skill.
        tokenizer: The checkpoint's.
        image_processor: Of the host's vision tower.
        arguments: The flags.
        sources: From :func:`open_sources`, which is called otherwise.
    """
    skill, general = open_sources(arguments) if sources is None else sources
    detectors = model.get_model().forgery_tower.image_processor
    return TrainingSamples(
        skill,
        general,
        arguments.data.general_ratio,
        encoding=_encoding(tokenizer, model.config, _image_tokens(model.config), arguments),
        images=HostImages(image_processor, model.config),
        forgery_images=detectors if model.takes_forgery_images else None,
        seed=arguments.training.seed,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; a user's mistake is one line and status 2."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        run(parse_arguments(sys.argv[1:] if arguments is None else arguments))
    except (ValueError, OSError, ImportError) as error:
        logger.debug("where it happened", exc_info=True)
        logger.error("%s", sentence(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
