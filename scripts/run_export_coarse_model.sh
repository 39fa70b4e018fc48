#!/usr/bin/env bash
# Export CoarseNet. Without arguments: Model/Ckpt/FinalCoarseNet.ckpt, into Model/MindIR.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

run_export coarse "$@"
