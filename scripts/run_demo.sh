#!/usr/bin/env bash
# Train both nets briefly and evaluate them, from nothing: on a NYU folder, or on rooms that are rendered here.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ $# -le 1 ]] || usage "[NYU_FOLDER]"
[[ $# -eq 0 || -d $1 ]] || fail "$1: no such folder"
make_environment "$ROOT/requirements.txt"
demo=$ROOT/demo
data=${1:-$demo/NYU}
mkdir -p -- "$demo"
if [[ $# -eq 0 && ! -e $demo/NYU.made ]]; then
    rm -rf -- "$demo/NYU"
    "$VENV_PYTHON" "$ROOT/tools/make_sample_nyu.py" "$demo/NYU"
    touch -- "$demo/NYU.made"
fi

"$VENV_PYTHON" "$ROOT/train.py" --data_url "$data" --val_data "$data" --train_url "$demo/Model" --overwrite \
    --batch_size 4 --epochs_coarse 2 --epochs_fine 1 --learning_rate_fine 1e-3 --max_steps 60
"$VENV_PYTHON" "$ROOT/eval.py" --test_data "$data" --output_dir "$demo/report" \
    --coarse_ckpt_model "$demo/Model/Ckpt/FinalCoarseNet.ckpt" --fine_ckpt_model "$demo/Model/Ckpt/FinalFineNet.ckpt"
echo "curves:      $demo/Model/Log/curves.png"
echo "predictions: $demo/report/panels.png"
