#!/usr/bin/env bash
# Train the shipped detector's adapter for the small host; about 15 minutes on two cores.
#
#   FACES=default-out/faces OUT=default-out bash scripts/train_default_adapter.sh
#
# FACES     prepared faces, such as train_default.sh's
# OUT       gets host/, qa/ and adapter/; after an interruption the same command resumes
#
# Then: python scripts/ship_default.py adapter OUT/adapter --faces FACES
set -euo pipefail
if [ -z "${FACES:-}" ] || [ -z "${OUT:-}" ]; then
    sed -n '2,9p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
kfd="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/llava_forgery/default/kfd"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
export THP_MEM_ALLOC_ENABLE="${THP_MEM_ALLOC_ENABLE:-1}"
if [ ! -f "$OUT/host/small_llava.json" ]; then
    python -m llava_forgery.cli convert small-llava --out "$OUT/host"
fi
# Mostly short conversations; a quarter do not cite the score, so that the answer is read off the
# detector's maps as well.
if [ ! -d "$OUT/qa" ]; then
    python -m llava_forgery.cli data build-qa --faces "$FACES" --kfd "$kfd" --out "$OUT/qa" \
        --pairs 350 --follow-ups 0.15 --max-turns 3 --task-descriptions 0.25 --kfd-results 0.75
fi
python -m llava_forgery.cli train adapter --base-model "$OUT/host" --kfd "$kfd" --data "$OUT/qa" \
    --out "$OUT/adapter" --lora-alpha 64 --lora-dropout 0 --steps 140 --batch-size 4 \
    --learning-rate 2e-3 --fpl-warmup-steps 900 --fpl-warmup-faces "$FACES" \
    --fpl-warmup-pairs 1800 --resume "$@"
