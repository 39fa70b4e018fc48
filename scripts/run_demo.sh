#!/usr/bin/env bash
# Train both nets briefly, evaluate them, and run them in the C++ program if a compiler is installed. The data are a NYU
# folder, or rooms that this script renders. All files are written to demo/.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ $# -le 1 ]] || usage "[NYU_FOLDER]"
[[ $# -eq 0 || -d $1 ]] || fail "$1: no such folder"
make_environment "$ROOT/requirements.txt"
missing=
command -v make >/dev/null || command -v ninja >/dev/null || missing="make is missing (on Debian: apt install make)"
command -v "${CXX:-c++}" >/dev/null || missing="${CXX:-c++} is missing (on Debian: apt install g++ make)"
[[ -z $missing ]] || echo "the C++ program will be left out: $missing"
demo=$ROOT/demo
data=$(cd -- "${1:-$ROOT}" && pwd)
mkdir -p -- "$demo"
if [[ $# -eq 0 ]]; then
    data=$demo/NYU
    if [[ ! -e $demo/NYU.made ]]; then
        rm -rf -- "$data"
        "$VENV_PYTHON" "$ROOT/tools/make_sample_nyu.py" "$data" --scenes 4 --test_pairs 12
        touch -- "$demo/NYU.made"
    fi
fi

checkpoints=$demo/Model/Ckpt models=$demo/Model/MindIR
"$VENV_PYTHON" "$ROOT/train.py" --data_url "$data" --val_data "$data" --train_url "$demo/Model" --overwrite \
    --batch_size 4 --max_steps 40 --coarse_net paper --start imagenet --fine_start coarse --learning_rate_coarse 3e-5 \
    --dense_lr_scale 0.1 --learning_rate_fine 1e-4
"$VENV_PYTHON" "$ROOT/eval.py" --test_data "$data" --output_dir "$demo/report" \
    --coarse_ckpt_model "$checkpoints/FinalCoarseNet.ckpt" --fine_ckpt_model "$checkpoints/FinalFineNet.ckpt"
"$VENV_PYTHON" "$ROOT/predict.py" --input "$data/Test" --output_dir "$demo/predictions" --save side --overwrite \
    --coarse_ckpt_model "$checkpoints/FinalCoarseNet.ckpt" --fine_ckpt_model "$checkpoints/FinalFineNet.ckpt"

if [[ -z $missing ]]; then
    for net in coarse fine; do
        "$VENV_PYTHON" "$ROOT/export.py" --coarse_or_fine "$net" --output_dir "$demo/Model" \
            --ckpt_file "$checkpoints/Final${net^}Net.ckpt"
    done
    mkdir -p -- "$demo/inference"
    (cd -- "$demo/inference" && PYTHON=$VENV_PYTHON bash "$ROOT/scripts/run_infer_310.sh" \
        "$models/FinalCoarseNet.mindir" "$models/FinalFineNet.mindir" "$data" 0)
else
    echo "no C++ inference: $missing"
fi
echo "curves:      $demo/Model/Log/curves.png"
echo "report:      $demo/report/report.html"
echo "predictions: $demo/report/panels.png and $demo/predictions"
