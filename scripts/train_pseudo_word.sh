#!/usr/bin/env bash
# AntifakePrompt: train the pseudo-word of a host on real and fake photos, then judge others.
#
#   bash scripts/train_pseudo_word.sh HOST TRAIN TEST OUT [options of train pseudo-word]
#
# TRAIN and TEST are folders with real/ and fake/, or CSV files. The defaults are the paper's:
# learning rate 1e-5 (cosine), weight decay 0.05, batches of 6, 10 epochs.
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n '2,7p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
host="$1" train="$2" test="$3" out="$4"
shift 4
llava-forgery train pseudo-word --base-model "$host" --data "$train" --out "$out" "$@"
llava-forgery eval pseudo-word --word "$out" --base-model "$host" --data "$test" \
    --out "$out-evaluation"
