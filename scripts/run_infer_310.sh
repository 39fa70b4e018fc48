#!/usr/bin/env bash
# Preprocess the test set, build the C++ program if needed, run it, and score the results. All files are written to the
# current folder; those of an earlier run are renamed. DEVICE_TARGET is Ascend or CPU; default: Ascend if present.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ $# -eq 4 ]] || usage "MINDIR1_PATH MINDIR2_PATH DATA_PATH DEVICE_ID (CoarseNet's and FineNet's MindIR, NYU/Test)"
coarse_mindir=$1 fine_mindir=$2 data_path=$3 device_id=$4
[[ -f $coarse_mindir ]] || fail "$coarse_mindir: no such file; expected CoarseNet's MindIR"
[[ -f $fine_mindir ]] || fail "$fine_mindir: no such file; expected FineNet's MindIR"
[[ -d $data_path ]] || fail "$data_path: no such folder; expected NYU/Test"
[[ $device_id =~ ^[0-9]+$ ]] || fail "DEVICE_ID $device_id: expected a whole number"
require_python

if [[ $DEVICE_TARGET == auto ]]; then
    DEVICE_TARGET=CPU
    for device in /dev/davinci[0-9]*; do
        [[ -e $device ]] && DEVICE_TARGET=Ascend
    done
fi
echo "device: $DEVICE_TARGET"

# move_aside NAME...: rename an existing NAME to NAME.1, or the first of NAME.2, NAME.3, ... that is free.
move_aside() {
    local name number
    for name in "$@"; do
        [[ -e $name ]] || continue
        number=1
        while [[ -e $name.$number ]]; do number=$((number + 1)); done
        mv -- "$name" "$name.$number"
    done
}

# stage NAME LOG COMMAND...: run a command with its output in LOG. If it fails, print the last lines of LOG and exit
# with the command's exit code.
stage() {
    local name=$1 log=$2 code=0
    shift 2
    echo "$name"
    "$@" >>"$log" 2>&1 || code=$?
    if [[ $code -ne 0 ]]; then
        tail -n 15 -- "$log" >&2
        echo "$name failed with exit code $code: $log" >&2
        exit "$code"
    fi
}

move_aside preprocess_Result result_Files time_Result preprocess.log build.log infer.log acc.log
program=${BUILD_DIR:-$ROOT/ascend310_infer/build}/depthnet_infer
stage preprocess preprocess.log "$PYTHON" "$ROOT/preprocess.py" --dataset_path "$data_path" \
    --output_path preprocess_Result
stage build build.log env PYTHON="$PYTHON" DEVICE_TARGET="$DEVICE_TARGET" bash "$ROOT/ascend310_infer/build.sh"
stage infer infer.log "$program" --coarse_mindir "$coarse_mindir" --fine_mindir "$fine_mindir" \
    --dataset_path preprocess_Result/img_data --result_path result_Files --time_path time_Result \
    --device_type "$DEVICE_TARGET" --device_id "$device_id"
stage postprocess acc.log "$PYTHON" "$ROOT/postprocess.py" --result_path result_Files \
    --label_file preprocess_Result/label
cat time_Result/test_perform_static.txt acc.log
