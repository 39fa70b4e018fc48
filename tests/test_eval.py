"""eval.py on sets that are odd, damaged or predicted as no number."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from src.data import image, listing
from tests.conftest import DEBIAN_12, ODD, ckpt_nets, onnx_nets
from tests.test_commands import one_line


def test_names_that_are_not_utf_8_or_look_like_mathematics_go_through_training_and_evaluation(
    nyu, red_onnx, forked, tmp_path
):
    data = shutil.copytree(nyu, tmp_path / ODD)
    for path in list((data / "Test").glob("00001_*")):
        path.rename(path.with_name(path.name.replace("00001", ODD)))
    (data / "Train" / "sample_0001_out").rename(data / "Train" / f"{ODD}_out")
    folders = ["--data_url", data, "--val_data", data]
    result = forked("train_tiny --batch_size 8 --epochs_coarse 1 --epochs_fine 1 --tensorboard", *folders, cwd=tmp_path)
    assert result.returncode == 0 and "warning" not in result.stdout, result.stdout + result.stderr
    result = forked("eval.py --output_dir report --test_data", data, *onnx_nets(red_onnx), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    with open(tmp_path / "report" / "per_image.csv", encoding="utf-8", newline="") as file:
        assert "a$_$ \\udcff\\udcfe café" in {row["image"] for row in csv.DictReader(file)}
    assert forked("tools/check_nyu.py", data, "--output_dir", "check", cwd=tmp_path).returncode == 0


def test_a_picture_whose_prediction_is_not_finite_is_named(nyu, untrained, forked, tmp_path):
    broken = ckpt_nets(untrained, "nan.ckpt")
    result = forked(f"eval.py --test_data {nyu} --output_dir report", *broken, cwd=tmp_path)
    assert "00000_colors.png (CoarseNet)" in one_line(result, 1) and "not finite" in result.stderr
    assert not (tmp_path / "report" / "metrics.json").exists()
    result = forked(f"predict.py --input {nyu}/Test --save npy", *broken, cwd=tmp_path)
    assert result.returncode == 1 and result.stdout.count("prediction is not finite") == 4
    assert not list((tmp_path / "predictions").iterdir())


def test_targets_without_a_measured_pixel_end_an_evaluation(nyu, red_onnx, forked, tmp_path):
    data = shutil.copytree(nyu, tmp_path / "NYU")
    for path in (data / "Test").glob("*_depth.png"):
        cv2.imwrite(str(path), np.zeros((480, 640), np.uint16))
    result = forked(f"eval.py --test_data {data}", *onnx_nets(red_onnx), cwd=tmp_path)
    assert "no measured pixel" in one_line(result, 1)


def test_eval_does_not_read_the_train_folder_unless_asked(nyu, red_onnx, forked, tmp_path):
    (tmp_path / "NYU" / "Train").mkdir(parents=True)
    (tmp_path / "NYU" / "Test").symlink_to(nyu / "Test")
    result = forked("eval.py --test_data NYU", *onnx_nets(red_onnx), cwd=tmp_path)
    assert result.returncode == 0 and "CoarseNet: delta1_loss" in result.stdout, result.stderr
    result = forked("eval.py --test_data NYU --baselines", *onnx_nets(red_onnx), cwd=tmp_path)
    assert "no image pairs" in one_line(result)


def test_onnx_files_are_scored_without_mindspore(red_onnx, nyu, run, tmp_path):
    line = f"eval.py --test_data {nyu} --output_dir report"
    result = run(line, *onnx_nets(red_onnx), cwd=tmp_path, before=DEBIAN_12)
    assert result.returncode == 0, result.stderr
    errors = []
    for pair in listing.list_test(nyu):
        red = torch.from_numpy(image.network_rgb(image.load_rgb(pair.rgb))[:1])
        predicted = torch.nn.functional.avg_pool2d(red, 12, 4).mul(2).exp().numpy().clip(0.1, 10)
        target = image.network_depth(image.load_test_depth(pair.depth))
        true = target[target > 0].clip(0.1, 10)
        errors.append((np.abs(predicted[target > 0] - true) / true).mean())
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert report["metrics"]["FineNet"]["abs_rel"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert report["checkpoints"] == {"CoarseNet": str(red_onnx[0]), "FineNet": str(red_onnx[1])}
    assert "onnxruntime" in report["versions"] and "mindspore" not in report["versions"]
