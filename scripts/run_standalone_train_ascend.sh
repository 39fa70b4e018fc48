#!/usr/bin/env bash
# Train on one device. Writes ./train.log and the folder ./Model. DEVICE_TARGET: Ascend, GPU, CPU or auto (default).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 2 ]] || usage "DATASET_PATH DEVICE_ID [further arguments of train.py]"
require_python
remember_command "$@"
dataset=$1 device_id=$2
shift 2
run_logged train.log "$PYTHON" "$ROOT/train.py" --data_url "$dataset" --device_id "$device_id" \
    --device_target "$DEVICE_TARGET" "$@"
