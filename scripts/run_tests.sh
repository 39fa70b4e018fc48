#!/usr/bin/env bash
# Make the environment if need be and run the tests; arguments go to pytest.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

make_environment "$ROOT/tests/requirements.txt"
cd -- "$ROOT"
# One more than there are processors, for a test may wait for a browser or for two workers to find each other.
processors=$(getconf _NPROCESSORS_ONLN 2>/dev/null) || processors=2
exec "$VENV_PYTHON" -m pytest --numprocesses $((processors < 4 ? processors + 1 : 4)) --dist loadfile \
    --no-loadscope-reorder "$@"
