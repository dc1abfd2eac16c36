#!/usr/bin/env bash
# Stage 1: train the Knowledge-guided Forgery Detector on forgeries simulated from real faces, and
# make the conversations of stage 2 with it.
#
#   PHOTOS=photos FACES=faces KFD=kfd DATA=qa bash scripts/train_kfd.sh [options of train detector]
#
# PHOTOS  a folder of real faces; left out where FACES was prepared before
# FACES   the prepared crops
# KFD     the detector that is trained
# DATA    conversations for scripts/finetune_lora.sh; left out, none are made
#
# Needs: pip install 'llava-forgery[faces,train]'
set -euo pipefail
if [ -z "${FACES:-}" ] || [ -z "${KFD:-}" ]; then
    sed -n '2,12p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
if [ -n "${PHOTOS:-}" ]; then
    python -m llava_forgery.cli data prepare "$PHOTOS" --out "$FACES"
fi
python -m llava_forgery.cli train detector --faces "$FACES" --out "$KFD" --resume "$@"
if [ -n "${DATA:-}" ]; then
    python -m llava_forgery.cli data build-qa --faces "$FACES" --kfd "$KFD" --out "$DATA"
fi
