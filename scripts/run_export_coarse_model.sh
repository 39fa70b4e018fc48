#!/usr/bin/env bash
# Export CoarseNet. Without arguments Model/Ckpt/FinalCoarseNet.ckpt goes to Model/MindIR.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

run_export coarse "$@"
