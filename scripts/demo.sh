#!/usr/bin/env bash
# From faces to an answer: install, forge, train, evaluate, and print a table.
#
#   bash scripts/demo.sh [--faces DIR] [--out DIR] [--identity-pattern REGEX] [--reduced] [--resume]
#
# Without --faces it takes the photographs in samples/. See `scripts/demo.py --help`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
install_venv "$DEMO_EXTRAS"
# Huge pages for torch's tensors where Linux offers them: a tenth off a training step on the CPU.
export THP_MEM_ALLOC_ENABLE="${THP_MEM_ALLOC_ENABLE:-1}"
exec "$VENV/bin/python" "$ROOT/scripts/demo.py" "$@"
