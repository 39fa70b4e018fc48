# shellcheck shell=bash
# Sourced by the other scripts. Works with bash 4.2 (CentOS 7), so it must not use "${empty[@]}" under set -u, nor
# wait -n or -p.

set +o posix # on when bash was started as sh
unset CDPATH # with it, cd prints the folder and may enter another
# With RANK_TABLE_FILE set, MindSpore compiles with GE, which this program does not support.
# run_distributed_train_ascend.sh takes the rank table as an argument.
unset RANK_TABLE_FILE
unset PYTHONSAFEPATH # with it, Python does not import modules from the folder of the command
# Open closed standard streams on /dev/null. Otherwise the next file opened would get a stream's descriptor.
[[ -e /dev/fd/0 ]] || exec </dev/null
[[ -e /dev/fd/1 ]] || exec >/dev/null
[[ -e /dev/fd/2 ]] || exec 2>/dev/null
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# If a script is run from scripts/, the commands use Model/ of the repo; else Model/ in the current folder.
[[ $PWD -ef $ROOT/scripts ]] && export DEPTHNET_MODEL=$ROOT/Model
given= # the variables set by the user, in the form that a shell accepts before a command
for name in PYTHON DEVICE_TARGET SERVER_ID MASTER_PORT; do
    [[ -z ${!name:-} ]] || given+=$(printf '%s=%q ' "$name" "${!name}")
done
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python
    command -v python >/dev/null || PYTHON=python3 # Debian
    # The environment that run_demo.sh and run_tests.sh make, unless another environment is active.
    [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x $ROOT/.venv/bin/python ]] && PYTHON=$ROOT/.venv/bin/python
elif [[ $PYTHON == */* && $PYTHON != /* ]]; then
    PYTHON=$PWD/$PYTHON
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

# remember_command ARGUMENTS...: export the command that the user typed. train.py prints it with --resume when it stops.
remember_command() {
    DEPTHNET_COMMAND=$given$(printf '%q ' bash "$0" "$@")
    export DEPTHNET_COMMAND=${DEPTHNET_COMMAND% }
}

# hand_on_and_wait PID FUNCTION: wait for a child of this script and return its exit code. For each signal meanwhile
# (Ctrl-C, a closed terminal), call FUNCTION SIGNAL.
hand_on_and_wait() {
    local pid=$1 signal code signalled=1
    for signal in INT TERM HUP; do
        # shellcheck disable=SC2064  # expand both now: they are this call's
        trap "signalled=1; $2 $signal" "$signal"
    done
    while [[ -n $signalled ]]; do
        signalled='' code=0
        wait "$pid" || code=$?
    done
    trap - INT TERM HUP
    return "$code"
}

# run_logged LOG COMMAND...: run a command, print its output and append it to LOG, and return its exit code. The command
# gets its own process group (set -m), so that a terminal's signal reaches it once, from this script.
run_logged() {
    local log=$1 code=0 tee_pid
    shift
    : >>"$log" 2>/dev/null || fail "$log: cannot write there"
    exec 3> >(trap '' INT TERM HUP PIPE && exec tee -a -- "$log")
    tee_pid=${!:-}
    set -m
    "$@" >&3 2>&1 3>&- &
    set +m
    command_pid=$!
    exec 3>&-
    hand_on_and_wait "$command_pid" signal_command || code=$?
    [[ -z $tee_pid ]] || wait "$tee_pid" 2>/dev/null || true # works in bash 4.4 and later
    return "$code"
}

signal_command() {
    kill -s "$1" "$command_pid" 2>/dev/null || true
}

# make_environment REQUIREMENTS: make .venv and install the requirements, unless that was done before.
# DEPTHNET_MINDSPORE=VERSION: another environment, .venv-VERSION, with that MindSpore.
make_environment() {
    local requirements=$1 version=${DEPTHNET_MINDSPORE:-} venv stamp
    venv=$ROOT/.venv${version:+-$version}
    stamp=$venv/$(cat "$ROOT"/requirements*.txt "$ROOT"/*/requirements.txt - <<<"$requirements" | sha256sum | cut -c1-16).installed
    VENV_PYTHON=$venv/bin/python
    [[ -e $stamp ]] && return
    command -v python3 >/dev/null || fail "python3 is missing: install Python 3.10 to 3.12"
    [[ -w $ROOT ]] || fail "$ROOT: cannot write there: expected a copy of your own"
    echo "making $venv (MindSpore is a download of 800 MB)"
    python3 -m venv "$venv" || fail "cannot make a virtual environment (on Debian: apt install python3-venv)"
    "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check ${version:+"mindspore==$version"} \
        -r "$requirements" ||
        fail "cannot install $requirements"
    touch -- "$stamp"
}

# run_export coarse|fine [CKPT_FILE] [further arguments of export.py]: export a net.
run_export() {
    local net=$1
    shift
    [[ $# -eq 0 || $1 == --* ]] || set -- --ckpt_file "$@"
    require_python
    "$PYTHON" "$ROOT/export.py" --coarse_or_fine "$net" --device_target "$DEVICE_TARGET" "$@"
}
