#!/usr/bin/env bash
# Make the environment if necessary, and run benchmarks/suite.py with the given arguments.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

make_environment "$ROOT/benchmarks/requirements.txt"
exec "$VENV_PYTHON" "$ROOT/benchmarks/suite.py" "$@"
