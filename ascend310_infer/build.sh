#!/usr/bin/env bash
# Build the inference program into ascend310_infer/build (or BUILD_DIR). MS_LITE_HOME (or LITE_HOME) is an unpacked
# MindSpore Lite. If neither is set, on x86_64, the mindspore-lite wheel for CPU is downloaded once. A missing cmake is
# downloaded once, too. Arguments go to cmake.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh
set -euo pipefail
HERE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
BUILD=${BUILD_DIR:-$HERE/build}
PYTHON=${PYTHON:-python3}

fail() {
    printf 'build.sh: error: %s\n' "$1" >&2
    exit 2
}

command -v "${CXX:-c++}" >/dev/null || fail "a C++17 compiler is missing (on Debian: apt install g++ make)"
printf '#include "inc/utils.h"\n' | "${CXX:-c++}" -std=c++17 -I "$HERE" -x c++ -fsyntax-only - 2>/dev/null ||
    fail "${CXX:-c++} is too old for C++17: expected GCC 7.3 or later"
if ! command -v make >/dev/null; then
    command -v ninja >/dev/null || fail "make is missing (on Debian: apt install make)"
    export CMAKE_GENERATOR=Ninja
fi

# Download cmake as a Python package, which contains the program.
fetch_cmake() {
    local wheel=$BUILD/cmake-wheel
    if [[ ! -e $wheel ]]; then
        echo "fetching cmake into $BUILD"
        rm -rf -- "$wheel.partial"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --target "$wheel.partial" 'cmake>=3.16,<5' \
            2>"$BUILD/cmake.log" || fail "cmake is missing, and cannot be fetched (on Debian: apt install cmake)"
        mv -- "$wheel.partial" "$wheel"
    fi
    CMAKE=$wheel/cmake/data/bin/cmake
}

# Download MindSpore Lite for CPU, and set MS_LITE_HOME.
fetch_lite() {
    local wheel=$BUILD/mindspore_lite-wheel
    if [[ ! -e $wheel/mindspore_lite/include ]]; then
        [[ $(uname -m) == x86_64 ]] || fail "set MS_LITE_HOME to an unpacked MindSpore Lite for $(uname -m)"
        echo "fetching the mindspore-lite wheel (for CPU) into $BUILD"
        rm -rf -- "$wheel.partial"
        mkdir -p -- "$wheel.partial"
        # The wheel is for Python 3.7; only its headers and its C++ library are used.
        "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
            --python-version 3.7 --platform manylinux1_x86_64 -d "$wheel.partial" mindspore-lite==2.0.0 ||
            fail "cannot fetch mindspore-lite: set MS_LITE_HOME to an unpacked MindSpore Lite"
        (cd -- "$wheel.partial" && "$PYTHON" -m zipfile -e ./*.whl . && rm -- ./*.whl)
        mv -- "$wheel.partial" "$wheel"
    fi
    MS_LITE_HOME=$wheel/mindspore_lite
}

MS_LITE_HOME=${MS_LITE_HOME:-${LITE_HOME:-}}
[[ -n $MS_LITE_HOME || ${DEVICE_TARGET:-} != Ascend ]] ||
    fail "set MS_LITE_HOME to an unpacked MindSpore Lite for Ascend: the wheel that is fetched without it is for CPU only"
{ mkdir -p -- "$BUILD" && [[ -w $BUILD ]]; } 2>/dev/null ||
    fail "$BUILD: cannot write there: set BUILD_DIR to a folder of your own"
if command -v flock >/dev/null; then # two runs at once would write the same files
    exec 9>"$BUILD/.lock"
    flock --nonblock 9 || { echo "waiting for another build in $BUILD"; flock 9; }
fi
CMAKE=$(command -v cmake) || fetch_cmake
[[ -n $MS_LITE_HOME ]] || fetch_lite
[[ -d $MS_LITE_HOME ]] || fail "MS_LITE_HOME=$MS_LITE_HOME: no such folder"
"$CMAKE" -S "$HERE" -B "$BUILD" -DMS_LITE_HOME="$(cd -- "$MS_LITE_HOME" && pwd)" "$@" >"$BUILD/cmake.log" 2>&1 ||
    { tail -n 20 "$BUILD/cmake.log" >&2; fail "cmake failed: $BUILD/cmake.log"; }
"$CMAKE" --build "$BUILD" --parallel
echo "built $BUILD/depthnet_infer"
