#!/usr/bin/env bash
# The fast tests, two at a time; arguments go to pytest (`bash scripts/test.sh -n 0 -m slow` runs the
# slow ones, one after the other).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
install_venv "$TEST_EXTRAS"
cd "$ROOT"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
# One thread for each process: with more they wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$VENV/bin/python" -m pytest -n 2 "$@"
