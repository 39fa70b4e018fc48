#!/usr/bin/env bash
# Make the environment if necessary, and run pytest with the given arguments.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

make_environment "$ROOT/tests/requirements.txt"
cd -- "$ROOT"
exec "$VENV_PYTHON" -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder "$@"
