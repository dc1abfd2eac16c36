#!/usr/bin/env bash
# The fast tests; arguments go to pytest (`bash scripts/test.sh -m slow` runs the slow ones).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
install_venv "$TEST_EXTRAS"
cd "$ROOT"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
exec "$VENV/bin/python" -m pytest "$@"
