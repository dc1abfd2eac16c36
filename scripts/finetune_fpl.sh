#!/usr/bin/env bash
# Stage 2 on a LLaVA checkpoint with LLaVA's flags: prompt tuning, the Forgery Prompt Learner alone.
#
#   MODEL=liuhaotian/llava-v1.5-7b KFD=kfd DATA=qa OUT=checkpoints/llava-v1.5-7b-forgery-fpl \
#       bash scripts/finetune_fpl.sh [further flags, which win]
#
# The variables are those of scripts/finetune_lora.sh. The name of OUT must hold "llava" and must
# not hold "lora". The language model stays as it is, to the bit.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
if [ -z "${KFD:-}" ] || [ -z "${DATA:-}" ]; then
    sed -n '2,8p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
export OUT="${OUT:-checkpoints/llava-v1.5-7b-forgery-fpl}"
# A few million parameters bear, and need, a higher rate than LoRA.
exec bash "$here/finetune_lora.sh" \
    --lora_enable False --freeze_backbone True --learning_rate 1e-3 "$@"
