#!/usr/bin/env bash
# Runs the forgery tasks of lmms-eval on local data, offline.
#
#   bash eval/run_lmms_eval.sh DATA OUT --model llava_forgery --model_args adapter=ADAPTER [...]
#
# DATA is what `llava-forgery data export-eval` wrote, or a manifest; results go to OUT. What follows
# goes to lmms-eval (--tasks is forgery unless it is among it). PYTHON names the interpreter,
# PROCESSES a number of ranks. Fails where lmms-eval writes no results, which itself exits with 0.
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
data="$(realpath "$1")"
out="$2"
shift 2
mkdir -p "$out"
started="$(mktemp)"
trap 'rm -f "$started"' EXIT

tasks=(--tasks forgery)
for argument in "$@"; do
    case "$argument" in --tasks | --tasks=*) tasks=() ;; esac
done
launch=("${PYTHON:-python}")
if [ "${PROCESSES:-1}" -gt 1 ]; then
    launch+=(-m torch.distributed.run --standalone --nproc_per_node "$PROCESSES")
fi

export LLAVA_FORGERY_EVAL_DATA="$data"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
"${launch[@]}" -m lmms_eval eval --include_path "$here/lmms_tasks" --output_path "$out" \
    "${tasks[@]}" "$@"

results="$(find "$out" -name '*_results.json' -newer "$started" | head -n 1)"
if [ -z "$results" ]; then
    echo "error: lmms-eval wrote no results into $out; what it printed above says why" >&2
    exit 1
fi
echo "$results"
