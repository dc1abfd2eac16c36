#!/usr/bin/env bash
# LLaVA-1.5-7B with LoRA of rank 32 on one GPU of 24 GB: the language model in 4 bits.
#
#   bash scripts/finetune_24gb.sh KFD DATA OUT [options of finetune]
#
# Needs: pip install 'llava-forgery[train,quantization]'. `scripts/estimate_memory.py` gives the
# estimate for this recipe; it was not run on such a GPU.
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,7p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
kfd="$1" data="$2" out="$3"
shift 3
llava-forgery train adapter --base-model "${HOST:-llava-hf/llava-1.5-7b-hf}" --kfd "$kfd" --data "$data" \
    --out "$out" --quantization 4bit --dtype bfloat16 --lora-r 32 --lora-alpha 32 \
    --gradient-checkpointing --batch-size 4 --accumulate 4 --learning-rate 2e-4 "$@"
