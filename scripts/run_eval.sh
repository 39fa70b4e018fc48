#!/usr/bin/env bash
# Score two checkpoints on the Test part of a NYU folder. The log is ./eval.log.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 1 ]] || usage "DATASET_PATH [COARSE_CKPT] [FINE_CKPT] [further arguments of eval.py]"
require_python
arguments=(--test_data "$1")
shift
for option in --coarse_ckpt_model --fine_ckpt_model; do
    if [[ $# -gt 0 && $1 != --* ]]; then
        arguments+=("$option" "$1")
        shift
    fi
done
run_logged eval.log "$PYTHON" "$ROOT/eval.py" "${arguments[@]}" --device_target "$DEVICE_TARGET" "$@"
