#!/usr/bin/env bash
# Stage 2 on a LLaVA checkpoint with LLaVA's flags: LoRA and the Forgery Prompt Learner.
#
#   MODEL=liuhaotian/llava-v1.5-7b KFD=kfd DATA=qa OUT=checkpoints/llava-v1.5-7b-forgery-lora \
#       bash scripts/finetune_lora.sh [further flags, which win]
#
# MODEL   the checkpoint, a folder or a hub name; it is only read
# KFD     detector, from scripts/train_kfd.sh
# DATA    conversations: a data set of data build-qa, LLaVA's JSON or LLaVA-NeXT's YAML
# OUT     result; its name must hold "llava" and "lora", by which LLaVA's loader goes
# IMAGES  what the images' paths in JSON and YAML are relative to
# GENERAL general instruction data that is mixed in, GENERAL_IMAGES its images
# GPUS    processes (default: all GPUs); ZERO the DeepSpeed file (default: zero2.json); PORT
#
# Needs: pip install 'llava-forgery[deepspeed,llava]' and pip install --no-deps llava-torch
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
if [ -z "${KFD:-}" ] || [ -z "${DATA:-}" ]; then
    sed -n '2,15p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
# Rank, alpha and dropout are the official LVLM-DFD's, the rest LLaVA's finetune_task_lora.sh.
exec deepspeed ${GPUS:+--num_gpus "$GPUS"} ${PORT:+--master_port "$PORT"} --module llava_forgery.train.llava_train \
    --lora_enable True --lora_r 32 --lora_alpha 32 --lora_dropout 0.1 \
    --deepspeed "${ZERO:-$here/zero2.json}" \
    --model_name_or_path "${MODEL:-liuhaotian/llava-v1.5-7b}" \
    --version "${VERSION:-v1}" \
    --forgery_tower "kfd:$KFD" \
    --data_path "$DATA" ${IMAGES:+--image_folder "$IMAGES"} \
    ${GENERAL:+--general_data_path "$GENERAL"} \
    ${GENERAL_IMAGES:+--general_image_folder "$GENERAL_IMAGES"} \
    --group_by_modality_length "${GROUP:-False}" \
    --bf16 "${BF16:-True}" \
    --output_dir "${OUT:-checkpoints/llava-v1.5-7b-forgery-lora}" \
    --num_train_epochs "${EPOCHS:-1}" \
    --per_device_train_batch_size "${BATCH:-4}" \
    --gradient_accumulation_steps "${ACCUMULATE:-4}" \
    --eval_strategy no --save_strategy steps --save_steps 500 --save_total_limit 1 \
    --learning_rate 2e-4 --weight_decay 0. --warmup_steps 0.03 --lr_scheduler_type cosine \
    --logging_steps 1 \
    --model_max_length 2048 \
    --gradient_checkpointing True \
    --dataloader_num_workers "${WORKERS:-4}" \
    --lazy_preprocess True \
    --report_to "${REPORT_TO:-none}" \
    "$@"
