"""LLaVA's command line: what is taken, under which name, and what is refused."""

import logging

import pytest
from transformers import PreTrainedConfig

from llava_forgery.train.llava_flags import ModelArguments, parse_arguments

# LLaVA's scripts/v1_5/finetune_task_lora.sh, without DeepSpeed, tf32 and bf16, and ours.
LLAVA = {
    "--lora_enable": "True",
    "--lora_r": "128",
    "--lora_alpha": "256",
    "--mm_projector_lr": "2e-5",
    "--model_name_or_path": "liuhaotian/llava-v1.5-13b",
    "--version": "v1",
    "--data_path": "mix.json",
    "--image_folder": "images",
    "--vision_tower": "openai/clip-vit-large-patch14-336",
    "--mm_projector_type": "mlp2x_gelu",
    "--mm_vision_select_layer": "-2",
    "--mm_use_im_start_end": "False",
    "--mm_use_im_patch_token": "False",
    "--image_aspect_ratio": "pad",
    "--group_by_modality_length": "True",
    "--output_dir": "checkpoints/llava-v1.5-13b-task-lora",
    "--num_train_epochs": "1",
    "--per_device_train_batch_size": "16",
    "--per_device_eval_batch_size": "4",
    "--gradient_accumulation_steps": "1",
    "--evaluation_strategy": "no",
    "--save_strategy": "steps",
    "--save_steps": "50000",
    "--save_total_limit": "1",
    "--learning_rate": "2e-4",
    "--weight_decay": "0.",
    "--warmup_ratio": "0.03",
    "--lr_scheduler_type": "cosine",
    "--logging_steps": "1",
    "--model_max_length": "2048",
    "--dataloader_num_workers": "4",
    "--lazy_preprocess": "True",
    "--report_to": "none",
    "--forgery_tower": "kfd:detector",
}


def _parse(without=(), **changes):
    flags = {name: value for name, value in LLAVA.items() if name.strip("-") not in without}
    flags |= {f"--{name}": str(value) for name, value in changes.items()}
    return parse_arguments([word for pair in flags.items() for word in pair])


def test_llavas_command_line_is_taken_as_it_is(caplog):
    with caplog.at_level(logging.WARNING):
        flags = _parse()
    training = flags.training
    assert (training.warmup_steps, training.eval_strategy.value) == (0.03, "no")
    assert "--warmup_ratio is called --warmup_steps" in caplog.text
    assert "--evaluation_strategy is called --eval_strategy" in caplog.text
    assert (training.lora_r, training.lora_alpha, training.lora_dropout) == (128, 256, 0.05)
    assert training.optim == "adamw_torch"
    assert (flags.model.version, flags.model.mm_vision_select_layer) == ("v1", -2)
    assert flags.model.mm_use_im_patch_token is False
    assert flags.data.image_aspect_ratio == "pad"
    assert flags.forgery.forgery_tower == "kfd:detector"


def test_the_later_of_two_values_wins_under_either_name():
    words = [word for pair in LLAVA.items() for word in pair]
    flags = parse_arguments([*words, "--warmup_steps", "0.2", "--lora_r=4", "--warmup_ratio=0.1"])
    assert (flags.training.warmup_steps, flags.training.lora_r) == (0.1, 4)


def test_the_hosts_projector_is_trained_where_llavas_flags_ask_for_it():
    assert _parse().training.trains_projector
    assert not _parse(without=["mm_projector_lr"]).training.trains_projector
    free = _parse(without=["mm_projector_lr"], freeze_mm_mlp_adapter=False)
    assert free.training.trains_projector


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"not_a_flag": 1}, "unknown flags --not_a_flag 1"),
        ({"tune_mm_mlp_adapter": True}, "LLaVA's first stage"),
        ({"pretrain_mm_mlp_adapter": "p.bin"}, "a whole LLaVA checkpoint"),
        ({"freeze_mm_mlp_adapter": True}, "no meaning together with"),
        ({"evaluation_strategy": "steps", "eval_steps": 5}, "validation needs both"),
        ({"eval_data_path": "val.json"}, "validation needs both"),
        (
            {
                "load_best_model_at_end": True,
                "eval_strategy": "steps",
                "eval_data_path": "val.json",
                "save_strategy": "steps",
                "eval_steps": 500,
                "save_steps": 500,
            },
            "lowest loss",
        ),
        ({"warmup_ratio": 3}, r"--warmup_ratio must be in \[0, 1\), got '3'"),
        ({"lora_bias": "all"}, "--lora_bias must be none"),
        ({"lora_weight_path": "x"}, "has no meaning in LLaVA"),
        ({"resume_from_checkpoint": "x"}, "is not needed"),
        ({"bits": 3}, "--bits must be 4, 8 or 16, got 3"),
        ({"bits": 4, "quant_type": "int4"}, "--quant_type must be nf4 or fp4"),
        ({"remove_unused_columns": True}, "--remove_unused_columns must be False"),
        ({"freeze_backbone": True}, "contradict each other"),
        ({"lora_enable": False}, "--freeze_backbone True for the FPL only"),
        ({"lora_enable": False, "freeze_backbone": True}, "a name without lora"),
        ({"output_dir": "checkpoints/mine"}, "with llava and lora in it"),
        ({"image_aspect_ratio": "wide"}, "must be square, pad or anyres"),
        ({"general_ratio": 0.3}, "--general_ratio has no effect without --general_data_path"),
        ({"general_ratio": 1, "general_data_path": "g.json"}, "share of general data, between"),
        ({"fpl_lr": 0}, "--fpl_lr must be greater than 0"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _parse(**changes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model_name_or_path", "give a LLaVA checkpoint"),
        ("data_path", "give LLaVA JSON"),
        ("forgery_tower", "the folder of a detector"),
    ],
)
def test_what_is_missing_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        _parse(without=[name])


def test_flags_that_describe_the_checkpoint_must_agree_with_it():
    config = PreTrainedConfig()
    config.mm_vision_tower, config.mm_projector_type = "clip", "mlp2x_gelu"
    config.mm_vision_select_layer, config.mm_use_im_patch_token = -2, False
    ModelArguments("host").check_checkpoint(config)
    ModelArguments("host", vision_tower="clip", mm_patch_merge_type="flat").check_checkpoint(config)
    with pytest.raises(ValueError, match="--mm_vision_select_layer -1 was given, but host has"):
        ModelArguments("host", mm_vision_select_layer=-1).check_checkpoint(config)
    with pytest.raises(ValueError, match="mm_use_im_start_end=False"):
        ModelArguments("host", mm_use_im_start_end=True).check_checkpoint(config)


def test_a_deepspeed_file_must_be_there():
    with pytest.raises(FileNotFoundError, match="no file nowhere.json"):
        _parse(deepspeed="nowhere.json")
