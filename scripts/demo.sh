#!/usr/bin/env bash
# The shipped model on samples, forgeries and videos: install, judge, write a report, print a table.
#
#   bash scripts/demo.sh [--out DIR] [--reduced]
#   bash scripts/demo.sh --train [--faces DIR] [--out DIR] [--identity-pattern REGEX] [--reduced]
#       [--resume]
#
# With --train it trains a detector and an adapter of its own and evaluates them, on the photographs
# in samples/ or in DIR. See `scripts/demo.py --help` and `scripts/demo_train.py --help`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
install_venv "$DEMO_EXTRAS"
# Huge pages for torch's tensors where Linux offers them: a tenth off a training step on the CPU.
export THP_MEM_ALLOC_ENABLE="${THP_MEM_ALLOC_ENABLE:-1}"
script=demo.py
if [ "${1:-}" = --train ]; then
    script=demo_train.py
    shift
fi
exec "$VENV/bin/python" "$ROOT/scripts/$script" "$@"
