"""LLaVA's training flags with LLaVA's meanings, and our own in addition.

    --model_name_or_path --version --data_path --image_folder --lora_enable --lora_r --deepspeed ...

The flags of LLaVA's ``scripts/v1_5/finetune_task_lora.sh`` can be given unchanged. A flag whose
meaning cannot be honoured is refused with a reason, never ignored. Flags that describe the
checkpoint (``--mm_projector_type``, ``--mm_vision_select_layer`` ...) are optional; if given, they
must match the checkpoint, since the skill is added to an unchanged host.

Source of names and meanings: haotian-liu/LLaVA at c121f04, ``llava/train/train.py``.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import HfArgumentParser
from transformers.trainer_utils import IntervalStrategy

from llava_forgery.hosts.placement import ALWAYS, FACE, check_crop, check_placement
from llava_forgery.train.deepspeed import deepspeed_file

logger = logging.getLogger(__name__)

# Names that transformers has changed since LLaVA was written.
RENAMED = {"--warmup_ratio": "--warmup_steps", "--evaluation_strategy": "--eval_strategy"}


def _flag(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """The host and LLaVA's flags about it."""

    model_name_or_path: str | None = _flag("LLaVA checkpoint: a folder or a hub name.")
    version: str = _flag("Name in LLaVA's conv_templates, such as v1, mpt or llama_2.", "v1")
    freeze_backbone: bool = _flag("Train no LoRA, only the FPL.", False)
    tune_mm_mlp_adapter: bool = _flag("Refused: LLaVA's first stage belongs to LLaVA.", False)
    pretrain_mm_mlp_adapter: str | None = _flag("Refused: the checkpoint has its projector.")
    vision_tower: str | None = _flag("Of the checkpoint.")
    mm_projector_type: str | None = _flag("Of the checkpoint.")
    mm_vision_select_layer: int | None = _flag("Of the checkpoint.")
    mm_vision_select_feature: str | None = _flag("Of the checkpoint.")
    mm_patch_merge_type: str | None = _flag("Of the checkpoint.")
    mm_use_im_start_end: bool | None = _flag("Of the checkpoint.")
    mm_use_im_patch_token: bool | None = _flag("Of the checkpoint.")
    cache_dir: str | None = _flag("Cache folder of transformers.")

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ValueError("--model_name_or_path is missing: give a LLaVA checkpoint")
        if self.tune_mm_mlp_adapter:
            raise ValueError(
                "--tune_mm_mlp_adapter True trains the host's own projector, LLaVA's first stage: "
                "run it with LLaVA, then give its result as --model_name_or_path"
            )
        if self.pretrain_mm_mlp_adapter:
            raise ValueError(
                f"--pretrain_mm_mlp_adapter {self.pretrain_mm_mlp_adapter} belongs to a language "
                "model without vision; the skill is added to a whole LLaVA checkpoint, which has "
                "its projector: omit the flag"
            )

    def check_checkpoint(self, config: Any) -> None:
        """Compare the flags with the checkpoint's configuration.

        Args:
            config: Configuration of the host.

        Raises:
            ValueError: A flag contradicts the checkpoint; the message names both values.
        """
        # LLaVA's own defaults for what a configuration lacks.
        names = {
            "vision_tower": ("mm_vision_tower", None),
            "mm_projector_type": ("mm_projector_type", "linear"),
            "mm_vision_select_layer": ("mm_vision_select_layer", None),
            "mm_vision_select_feature": ("mm_vision_select_feature", "patch"),
            "mm_patch_merge_type": ("mm_patch_merge_type", "flat"),
            "mm_use_im_start_end": ("mm_use_im_start_end", False),
            "mm_use_im_patch_token": ("mm_use_im_patch_token", True),
        }
        for flag, (key, silent) in names.items():
            given, has = getattr(self, flag), getattr(config, key, silent)
            if given is not None and given != has:
                raise ValueError(
                    f"--{flag} {given} was given, but {self.model_name_or_path} has {key}={has!r}; "
                    "the host is not changed: omit the flag"
                )


@dataclass
class DataArguments:
    """Conversations and their images."""

    data_path: str | None = _flag(
        "Conversations of the skill: LLaVA's JSON, LLaVA-NeXT's YAML, or a data set of build-qa."
    )
    image_folder: str | None = _flag("Folder that image paths in JSON and YAML are relative to.")
    allow_absolute_paths: bool = _flag(
        "Let paths of images in JSON lead out of the image folder (absolute, or with ..).",
        False,
    )
    image_aspect_ratio: str | None = _flag("square, pad or anyres; default: the checkpoint's.")
    lazy_preprocess: bool = _flag(
        "Prepare samples when they are needed; LLaVA does so whatever the flag says.", True
    )
    general_data_path: str | None = _flag(
        "General instruction data to mix in, without the skill's placeholders."
    )
    general_image_folder: str | None = _flag(
        "Image folder of the general data; default: --image_folder."
    )
    eval_data_path: str | None = _flag(
        "Conversations about people who are not trained on; with --eval_strategy the state of "
        "the lowest loss on them is written."
    )
    general_ratio: float | None = _flag(
        "Share of the general data; default 0.5, with which the two alternate."
    )
    validate: bool = _flag(
        "Read and tokenise all samples before the host is loaded, and list invalid ones; the "
        "result is kept in --output_dir.",
        True,
    )
    skip_invalid: bool = _flag(
        "Skip invalid samples; they are counted, and listed in --output_dir.", False
    )

    def __post_init__(self) -> None:
        if not self.data_path:
            raise ValueError("--data_path is missing: give LLaVA JSON, YAML or a data set's folder")
        if self.skip_invalid and not self.validate:
            raise ValueError("--skip-invalid needs the check that --no-validate skips")
        if self.image_aspect_ratio not in (None, "square", "pad", "anyres"):
            raise ValueError(
                f"--image_aspect_ratio must be square, pad or anyres, got {self.image_aspect_ratio}"
            )
        if self.general_data_path is None:
            for name in ("general_ratio", "general_image_folder"):
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name} has no effect without --general_data_path")
        if self.general_ratio is None:
            self.general_ratio = 0.5
        if not 0 < self.general_ratio < 1:
            raise ValueError(
                f"--general_ratio is the share of general data, between 0 and 1, got "
                f"{self.general_ratio}; omit --general_data_path to train on the skill only"
            )


@dataclass
class ForgeryArguments:
    """Flags of the skill."""

    forgery_tower: str | None = _flag("Folder of a trained detector, also as kfd:FOLDER.")
    mm_forgery_placement: str = _flag(
        "Position of the FPL's embeddings: always (after every image, also in prompts of programs "
        "unaware of the skill) or placeholders (where a prompt holds <forgery>).",
        ALWAYS,
    )
    mm_forgery_crop: str = _flag(
        "What the detector sees of pictures from such programs: face (found and cut out) or none "
        "(the whole picture).",
        FACE,
    )
    fpl_kind: str = _flag("Sizes of a new FPL: lite or paper.", "lite")
    fpl_n_base: int = _flag("n_1, number of learned base embeddings.", 9)
    fpl_n_forgery: int = _flag("n_f, number of embeddings for the host per image.", 9)
    fpl_lr: float | None = _flag("Peak learning rate of the FPL; default: --learning_rate.")
    fpl_warmup_steps: int = _flag(
        "Steps of the FPL's warm start before the training, without the host; 0: none. --fpl_lr "
        "then defaults to a tenth of --learning_rate.",
        0,
    )
    allow_download: bool = _flag(
        "Download models that the detector's files name, such as its encoder.", False
    )
    llava_next: bool = _flag(
        "Use LLaVA-NeXT's llava from PYTHONPATH: calls llava_forgery.patch_llava_next(), which "
        "logs each change it makes.",
        False,
    )

    def __post_init__(self) -> None:
        if not self.forgery_tower:
            raise ValueError(
                "--forgery_tower is missing: give the folder of a detector, as "
                "scripts/train_kfd.sh writes it"
            )
        check_placement(self.mm_forgery_placement)
        check_crop(self.mm_forgery_crop)
        if self.fpl_lr is not None and self.fpl_lr <= 0:
            raise ValueError(f"--fpl_lr must be greater than 0, got {self.fpl_lr}")
        if self.fpl_warmup_steps < 0:
            raise ValueError(f"--fpl_warmup_steps must be 0 or more, got {self.fpl_warmup_steps}")


@dataclass
class LlavaTrainingArguments(transformers.TrainingArguments):
    """transformers' arguments with LLaVA's defaults and additions."""

    # LLaVA's choice; transformers' newer default rounds differently.
    optim: str = _flag("Optimiser.", "adamw_torch")
    remove_unused_columns: bool = _flag("Must be False: the samples are not a table.", False)
    model_max_length: int = _flag("Maximum text tokens of a sample; longer ones are cut.", 512)
    bits: int = _flag("Bits of the language model's linear layers: 16 (not quantised), 8 or 4.", 16)
    double_quant: bool = _flag("With 4 bits: quantise the scales as well.", True)
    quant_type: str = _flag("With 4 bits: nf4 or fp4.", "nf4")
    lora_enable: bool = _flag("Train LoRA on all linear layers of the language model.", False)
    lora_r: int = _flag("LoRA's rank.", 64)
    lora_alpha: int = _flag("LoRA's scale; the update is scaled by alpha / r.", 16)
    lora_dropout: float = _flag("LoRA's dropout.", 0.05)
    lora_bias: str = _flag("Only none: the host's own biases are not changed.", "none")
    lora_weight_path: str = _flag("Refused: LLaVA never reads it.", "")
    freeze_mm_mlp_adapter: bool | None = _flag(
        "False also trains the host's own projector, LLaVA's default; here it is frozen unless "
        "--mm_projector_lr is given."
    )
    mm_projector_lr: float | None = _flag(
        "Also train the host's own projector, with this peak learning rate."
    )
    group_by_modality_length: bool = _flag("Form batches by modality and length.", False)

    def __post_init__(self) -> None:
        # Without it the Trainer counts one process if several run on CPUs.
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        if isinstance(self.deepspeed, str):
            deepspeed_file(self.deepspeed)
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        super().__post_init__()
        if self.load_best_model_at_end:
            raise ValueError(
                "--load_best_model_at_end is not needed: with --eval_strategy the state of the "
                "lowest loss is written anyway"
            )
        if self.remove_unused_columns:
            raise ValueError("--remove_unused_columns must be False: the samples are not a table")
        if self.freeze_mm_mlp_adapter and self.mm_projector_lr is not None:
            raise ValueError(
                f"--mm_projector_lr {self.mm_projector_lr} has no meaning together with "
                "--freeze_mm_mlp_adapter True: omit one (the skill's projector has --fpl_lr)"
            )
        if self.resume_from_checkpoint:
            raise ValueError(
                "--resume_from_checkpoint is not needed: as with LLaVA, training resumes from the "
                "last checkpoint in --output_dir, if training_run.json there is of the same "
                "training"
            )
        if self.lora_bias != "none":
            raise ValueError(
                f"--lora_bias must be none, got {self.lora_bias}: other choices change the host's "
                "own biases"
            )
        if self.lora_weight_path:
            raise ValueError(
                "--lora_weight_path has no meaning in LLaVA; to continue training an adapter, "
                "resume from its checkpoints in --output_dir"
            )
        if self.bits not in (4, 8, 16):
            raise ValueError(f"--bits must be 4, 8 or 16, got {self.bits}")
        if self.quant_type not in ("nf4", "fp4"):
            raise ValueError(f"--quant_type must be nf4 or fp4, got {self.quant_type}")

    @property
    def trains_projector(self) -> bool:
        """Whether the host's own projector is trained."""
        return self.freeze_mm_mlp_adapter is False or self.mm_projector_lr is not None


@dataclass
class LlavaArguments:
    """All flags of one run."""

    model: ModelArguments
    data: DataArguments
    forgery: ForgeryArguments
    training: LlavaTrainingArguments

    def __post_init__(self) -> None:
        if not self.training.lora_enable and not self.model.freeze_backbone:
            raise ValueError(
                "without --lora_enable True LLaVA trains the whole language model, which the "
                "skill does not need: give --lora_enable True for LoRA and FPL, or "
                "--freeze_backbone True for the FPL only"
            )
        evaluates = self.training.eval_strategy != IntervalStrategy.NO
        if evaluates != (self.data.eval_data_path is not None):
            raise ValueError(
                f"--eval_strategy {self.training.eval_strategy.value} and --eval_data_path "
                f"{self.data.eval_data_path} do not match: validation needs both, steps or epoch "
                "and conversations about people who are not trained on"
            )
        if self.training.lora_enable and self.model.freeze_backbone:
            raise ValueError(
                "--lora_enable True and --freeze_backbone True contradict each other: give one"
            )
        folder = self.training.output_dir.rstrip("/").rsplit("/", 1)[-1].lower()
        needed = ["llava", "lora"] if self.training.lora_enable else ["llava"]
        missing = [word for word in needed if word not in folder]
        if missing:
            raise ValueError(
                f"LLaVA's loader recognises models by the name of their folder: --output_dir "
                f"{self.training.output_dir} must end in a name with {' and '.join(missing)} in "
                "it, such as checkpoints/llava-v1.5-7b-forgery-lora"
            )
        if "lora" in folder and not self.training.lora_enable:
            raise ValueError(
                f"LLaVA's loader would look for LoRA in --output_dir {self.training.output_dir}, "
                "which the FPL does not have: choose a name without lora"
            )


def parse_arguments(arguments: Sequence[str]) -> LlavaArguments:
    """Read LLaVA's command line.

    Args:
        arguments: Arguments without the program's name.

    Raises:
        ValueError: A flag is unknown, or its meaning cannot be honoured.
        FileNotFoundError: There is no such DeepSpeed file.
    """
    kinds = (ModelArguments, DataArguments, ForgeryArguments, LlavaTrainingArguments)
    parser = HfArgumentParser(kinds, allow_abbrev=False)
    *parsed, left = parser.parse_args_into_dataclasses(
        _todays_names(arguments), return_remaining_strings=True
    )
    if left:
        raise ValueError(
            f"unknown flags {' '.join(left)}: neither LLaVA's, transformers' nor ours; see --help"
        )
    return LlavaArguments(*parsed)


def _todays_names(arguments: Sequence[str]) -> list[str]:
    """LLaVA's flags under their current names in transformers."""
    split: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        split += [flag, value] if equals and flag in RENAMED else [argument]
    for place, old in enumerate(split):
        if old not in RENAMED:
            continue
        value = split[place + 1] if place + 1 < len(split) else ""
        # From 1, transformers would interpret the number as steps.
        if old == "--warmup_ratio" and not _is_share(value):
            raise ValueError(f"--warmup_ratio must be in [0, 1), got {value!r}")
        split[place] = RENAMED[old]
        logger.warning("%s is called %s in current transformers", old, split[place])
    return split


def _is_share(value: str) -> bool:
    try:
        return 0 <= float(value) < 1
    except ValueError:
        return False
