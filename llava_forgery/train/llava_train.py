"""Train the forgery skill on a LLaVA checkpoint, with LLaVA's own flags.

    deepspeed --module llava_forgery.train.llava_train --deepspeed scripts/zero2.json \\
        --model_name_or_path liuhaotian/llava-v1.5-7b --version v1 --lora_enable True \\
        --forgery_tower KFD --data_path QA --output_dir checkpoints/llava-v1.5-7b-forgery-lora ...

``scripts/finetune_lora.sh`` and ``scripts/finetune_fpl.sh`` give all flags;
:mod:`llava_forgery.train.llava_flags` documents them. The training is that of
:mod:`llava_forgery.train.stage2`; LLaVA's ``load_pretrained_model`` reads the result after
``register()``.
"""

import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from llava_forgery.downloads import allow_downloads
from llava_forgery.files import apply_umask, check_output, naming, sentence, temporary_path
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.llava import compat as llava_compat
from llava_forgery.hosts.llava.checkpoint import CONFIG, FILES, write_llava_adapter
from llava_forgery.hosts.llava.encoder import LlavaEncoder
from llava_forgery.hosts.llava.host import SPARED, load_llava_host, read_checkpoint
from llava_forgery.hosts.llava.names import PLACEMENT_KEY, TEMPLATE_KEY
from llava_forgery.hosts.llava.register import register
from llava_forgery.hosts.llava.tower import KFDVisionTower
from llava_forgery.hosts.llava.vlm import LlavaForgeryVLM, attach_llava
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.noise import quiet
from llava_forgery.optional import require
from llava_forgery.train.deepspeed import without_zero3_init
from llava_forgery.train.dialogues import DialogueSource, open_source
from llava_forgery.train.dialogues import open_sources as read_sources
from llava_forgery.train.llava_flags import (
    LlavaArguments,
    LlavaTrainingArguments,
    parse_arguments,
)
from llava_forgery.train.run_record import check_training_folder
from llava_forgery.train.samplers import AlternatingSampler, EpochSampler, ModalitySampler
from llava_forgery.train.samples import TrainingSamples, valid_dialogues
from llava_forgery.train.stage2 import Stage2, run_stage2, training_samples
from llava_forgery.train.warmup import WarmUp

logger = logging.getLogger(__name__)

# Our fields and LLaVA's that determine the result, besides the Trainer's and stage 2's record.
_DECIDING = (
    "bits",
    "double_quant",
    "freeze_mm_mlp_adapter",
    "group_by_modality_length",
    "model_max_length",
    "quant_type",
)


class LlavaStage2(Stage2):
    """Stage 2 whose output folder also holds its checkpoints, as in LLaVA."""

    def save_checkpoint(self, directory: Path) -> None:
        """Write the adapter in LLaVA's layout into a folder that may hold other files."""
        vlm = self.vlm
        directory.mkdir(parents=True, exist_ok=True)
        with temporary_path(directory) as temporary:
            with naming(directory, temporary):
                trained = vlm.projector and vlm.projector.state()
                write_llava_adapter(vlm.host, temporary, directory, trained)
            apply_umask(temporary)
            # A folder without the configuration is not an adapter, so it is removed first and
            # written last. Files that only an earlier training wrote are removed as well.
            for name in FILES:
                (directory / name).unlink(missing_ok=True)
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == CONFIG):
                target = directory / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                path.replace(target)


def llava_order(samples: TrainingSamples, arguments: LlavaTrainingArguments) -> Sampler[int]:
    """LLaVA's order: all samples shuffled, or batches of one modality; general data alternate."""
    # Data and weights have separate seeds in transformers.
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    if arguments.group_by_modality_length:
        parts = arguments.world_size * arguments.gradient_accumulation_steps
        return ModalitySampler(samples.lengths, arguments.train_batch_size, parts, seed)
    kinds = samples.is_skill
    return EpochSampler(len(kinds), seed) if all(kinds) else AlternatingSampler(kinds, seed)


@quiet()
def run(arguments: LlavaArguments) -> LlavaForgeryVLM:
    """Run the training from the flags to the written adapter.

    If ``--output_dir`` holds checkpoints of this training, it resumes from the last one, as in
    LLaVA; if it holds the result, nothing is trained.

    Returns:
        The trained model, in eval mode.

    Raises:
        FileNotFoundError: A checkpoint, a detector or data do not exist.
        ImportError: A package is not installed; the message names it.
        OSError: ``--output_dir`` is not writable.
        ValueError: A flag contradicts the checkpoint, data are invalid, or ``--output_dir`` holds
            another training or results from elsewhere.
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
        vlm = attach_skill(*load_host(arguments), arguments)
        samples = open_samples(vlm, arguments, sources)
    steps = arguments.forgery.fpl_warmup_steps
    config = vlm.prompts.config
    run_stage2(
        make_stage(vlm, arguments),
        samples,
        flags,
        flags.output_dir,
        command="llava_train",
        result=CONFIG,
        order=llava_order,
        settings={
            **{name: getattr(flags, name) for name in _DECIDING},
            "image_aspect_ratio": getattr(config, "image_aspect_ratio", None),
            "version": getattr(config, TEMPLATE_KEY, None),
        },
        resume=None,
        warm_up=WarmUp(steps, flags.seed) if steps else None,
        validation=training_samples(vlm, sources["validation"], max_length=flags.model_max_length)
        if "validation" in sources
        else None,
    )
    return vlm


def make_stage(vlm: LlavaForgeryVLM, arguments: LlavaArguments) -> LlavaStage2:
    """The stage with the learning rates of the flags."""
    forgery, flags = arguments.forgery, arguments.training
    rate = forgery.fpl_lr
    if rate is None and forgery.fpl_warmup_steps:
        # The host's first gradients would undo the warm start.
        rate = flags.learning_rate / 10
    return LlavaStage2(vlm, rate, flags.mm_projector_lr)


def load_host(arguments: LlavaArguments) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The checkpoint as LLaVA's training loads it, checked against the flags that describe it.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It is not a LLaVA checkpoint, already has the skill, or contradicts a flag.
    """
    _read_checkpoint(arguments)
    flags = arguments.training
    dtype = torch.bfloat16 if flags.bf16 else torch.float16 if flags.fp16 else torch.float32
    return load_llava_host(
        arguments.model.model_name_or_path,
        dtype=dtype,
        quantization=None if flags.bits == 16 else _quantization(flags, dtype),
        device=flags.device,
        aspect=arguments.data.image_aspect_ratio,
        max_length=flags.model_max_length,
        cache_dir=arguments.model.cache_dir,
    )


def _read_checkpoint(arguments: LlavaArguments) -> LlavaEncoder:
    """Prompts of the checkpoint, without reading its weights."""
    model = arguments.model
    tokenizer, config, _ = read_checkpoint(
        model.model_name_or_path, arguments.training.model_max_length, model.cache_dir
    )
    model.check_checkpoint(config)
    setattr(config, PLACEMENT_KEY, arguments.forgery.mm_forgery_placement)
    return LlavaEncoder(config, tokenizer, arguments.forgery.fpl_n_forgery, model.version)


def _quantization(flags: LlavaTrainingArguments, dtype: torch.dtype) -> BitsAndBytesConfig:
    """LLaVA's choice: all linear layers except the projector and the head."""
    require("bitsandbytes", extra="quantization", feature=f"--bits {flags.bits}")
    return BitsAndBytesConfig(
        load_in_4bit=flags.bits == 4,
        load_in_8bit=flags.bits == 8,
        llm_int8_skip_modules=SPARED,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=flags.double_quant,
        bnb_4bit_quant_type=flags.quant_type,
    )


def attach_skill(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, arguments: LlavaArguments
) -> LlavaForgeryVLM:
    """Attach the detector, a new FPL and, if the flags ask for it, LoRA on all linear layers."""
    flags, forgery = arguments.training, arguments.forgery
    # Host and detector determine width and layers: only the kind and the counts are a choice.
    sizes = FPLConfig(
        hidden_size=model.config.hidden_size,
        num_layers=KFDVisionTower(forgery.forgery_tower, delay_load=True).config.num_layers,
        kind=forgery.fpl_kind,
        n_base=forgery.fpl_n_base,
        n_forgery=forgery.fpl_n_forgery,
    )
    lora = None
    if flags.lora_enable:
        lora = LoraSettings(flags.lora_r, flags.lora_alpha, flags.lora_dropout, linear_names(model))
    return attach_llava(
        model,
        tokenizer,
        forgery.forgery_tower,
        sizes,
        lora,
        flags.seed,
        flags.trains_projector,
        arguments.model.version,
        forgery.mm_forgery_placement,
        forgery.mm_forgery_crop,
    )


def linear_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the language model's linear layers, LLaVA's targets of LoRA, without those of the
    towers, the projectors and the head.

    Args:
        model: Model of the ``llava`` package.
    """
    layers = model.get_model().layers.named_modules()
    return tuple(
        sorted({name.rsplit(".", 1)[-1] for name, m in layers if isinstance(m, nn.Linear)})
    )


def open_sources(arguments: LlavaArguments) -> dict[str, DialogueSource]:
    """The data by the keys "skill" and, if any, "general" and "validation", checked by default.

    Only the configuration and tokenizer of the host are loaded for it.

    Raises:
        FileNotFoundError: A file or the checkpoint does not exist.
        ValueError: A file or samples are invalid; all such samples are listed.
    """
    data, flags = arguments.data, arguments.training
    invalid: list[str] | None = [] if data.validate else None
    sources = read_sources(
        data.data_path,
        data.general_data_path,
        data.image_folder,
        data.general_image_folder,
        flags.seed,
        invalid,
        data.allow_absolute_paths,
    )
    if data.eval_data_path is not None:
        sources["validation"] = open_source(
            data.eval_data_path, data.image_folder, flags.seed, invalid, data.allow_absolute_paths
        )
    if invalid is None:
        return sources
    prompts = _read_checkpoint(arguments)
    # The other processes read the result of the first.
    with flags.main_process_first(desc="validation"):
        return valid_dialogues(
            sources,
            prompts,
            flags.model_max_length,
            flags.output_dir,
            invalid,
            data.skip_invalid,
        )


def open_samples(
    vlm: LlavaForgeryVLM,
    arguments: LlavaArguments,
    sources: dict[str, DialogueSource] | None = None,
) -> TrainingSamples:
    """The training data, skill and general.

    Args:
        vlm: Model to train.
        arguments: Flags of the run.
        sources: Output of :func:`open_sources`, which is called otherwise.
    """
    sources = open_sources(arguments) if sources is None else sources
    flags = arguments.training
    return training_samples(
        vlm,
        sources["skill"],
        sources.get("general"),
        arguments.data.general_ratio,
        max_length=flags.model_max_length,
        seed=flags.seed,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; a user error prints one line and exits with status 2."""
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
