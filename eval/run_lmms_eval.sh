#!/usr/bin/env bash
# Runs the forgery tasks of lmms-eval on local data, offline.
#
#   bash eval/run_lmms_eval.sh DATA OUT --model llava_forgery --model_args adapter=ADAPTER [...]
#   bash eval/run_lmms_eval.sh DATA OUT --row NAME=MODEL:MODEL_ARGS --row NAME=MODEL:MODEL_ARGS [...]
#
# DATA is what `llava-forgery data export-eval` wrote, or a manifest; results go to OUT. What follows
# goes to lmms-eval (--tasks is forgery unless it is among it). PYTHON names the interpreter,
# PROCESSES a number of ranks. Fails where lmms-eval writes no results, which itself exits with 0.
# With --row, several models are run on the same pictures, and OUT/table.md compares them.
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
data="$(realpath "$1")"
out="$2"
shift 2
for argument in "$@"; do
    case "$argument" in --row | --row=*)
        # Modules of this folder stay out of the way of others' that are called alike.
        export PYTHONSAFEPATH=1
        exec "${PYTHON:-python}" "$here/lmms_table.py" "$data" "$out" "$@"
        ;;
    esac
done
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
if [ -n "${SKILL_NOTE:-}" ]; then
    launch+=("$here/lmms_counted.py" "$SKILL_NOTE")
else
    launch+=(-m lmms_eval)
fi
"${launch[@]}" eval --include_path "$here/lmms_tasks" --output_path "$out" \
    "${tasks[@]}" "$@"

results="$(find "$out" -name '*_results.json' -newer "$started" | head -n 1)"
if [ -z "$results" ]; then
    echo "error: lmms-eval wrote no results into $out; what it printed above says why" >&2
    exit 1
fi
echo "$results"
