#!/usr/bin/env bash
# Export FineNet. Without arguments: Model/Ckpt/FinalFineNet.ckpt, into Model/MindIR.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

run_export fine "$@"
