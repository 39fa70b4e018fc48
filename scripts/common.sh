# Sourced by the other scripts.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python
    # What run_demo.sh and run_tests.sh have made, unless another environment is active.
    [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x $ROOT/.venv/bin/python ]] && PYTHON=$ROOT/.venv/bin/python
fi
DEVICE_TARGET=${DEVICE_TARGET:-auto}

fail() {
    printf '%s: error: %s\n' "$(basename -- "$0")" "$1" >&2
    exit 2
}

usage() {
    printf 'usage: bash scripts/%s %s\n' "$(basename -- "$0")" "$1" >&2
    exit 2
}

require_python() {
    command -v "$PYTHON" >/dev/null || fail "no '$PYTHON' on PATH: set PYTHON to the Python that has MindSpore"
}

# run_logged LOG COMMAND...: the command's output on the screen and in LOG, its exit code, SIGTERM handed on.
# (A terminal's Ctrl-C reaches the command by itself.)
run_logged() {
    local log=$1 code=0 pid
    shift
    : >"$log" 2>/dev/null || fail "$log: cannot write there"
    "$@" > >(tee -- "$log") 2>&1 &
    pid=$!
    trap 'kill -TERM "$pid" 2>/dev/null' TERM
    trap ':' INT
    while :; do
        code=0
        wait "$pid" || code=$?
        kill -0 "$pid" 2>/dev/null || break
    done
    trap - TERM INT
    wait # for tee
    return "$code"
}

# make_environment REQUIREMENTS: .venv with these requirements; does nothing when they are already there.
make_environment() {
    local requirements=$1 stamp
    stamp=$ROOT/.venv/$(cat "$ROOT/requirements.txt" "$requirements" | sha256sum | cut -c1-16).installed
    VENV_PYTHON=$ROOT/.venv/bin/python
    [[ -e $stamp ]] && return
    command -v python3 >/dev/null || fail "python3 is missing: install Python 3.10 to 3.12"
    echo "making $ROOT/.venv (MindSpore is a large download)"
    python3 -m venv "$ROOT/.venv" || fail "cannot make a virtual environment (on Debian: apt install python3-venv)"
    "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
        fail "cannot install $requirements"
    touch -- "$stamp"
}

# run_export coarse|fine [CKPT_FILE] [further arguments of export.py]
run_export() {
    local net=$1 checkpoint=()
    shift
    if [[ $# -gt 0 && $1 != --* ]]; then
        checkpoint=(--ckpt_file "$1")
        shift
    fi
    require_python
    "$PYTHON" "$ROOT/export.py" --coarse_or_fine "$net" "${checkpoint[@]}" --device_target "$DEVICE_TARGET" "$@"
}
