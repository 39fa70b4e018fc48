"""Prediction with ONNX files where Linux's own calls are absent, as on Windows and macOS, and MindSpore too."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from src.data import image, listing
from tests.conftest import ROOT

# What is not there, or refuses, on one of them; then the command as it is typed.
ELSEWHERE = """
import ctypes, os, runpy, signal, sys
for module in ("fcntl", "resource", "pwd", "mindspore", "scipy", "h5py", "onnx"):
    sys.modules[module] = None
for owner, name in ((os, "sched_getaffinity"), (os, "fork"), (signal, "pthread_sigmask"), (signal, "sigwait"),
                    (signal, "SIGHUP")):
    delattr(owner, name)
sys.path.insert(0, os.path.dirname(sys.argv[1]))
opened = os.open
def of_a_file(path, *rest, **named):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, *rest, **named)
os.open = of_a_file
load = ctypes.CDLL.__init__
def of_a_name(self, name, *rest, **named):
    if name is None:
        raise TypeError("bad argument type for built-in operation")
    load(self, name, *rest, **named)
ctypes.CDLL.__init__ = of_a_name
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_onnx_files_predict_where_linux_is_not(red_onnx, tmp_path):
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[..., 0] = 102
    Image.fromarray(pixels).save(tmp_path / "a picture.png")
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            ELSEWHERE,
            ROOT / "predict.py",
            "--input",
            "a picture.png",
            "--save",
            "npy",
            "color",
            "ply",
            "--coarse_onnx",
            red_onnx[0],
            "--fine_onnx",
            red_onnx[1],
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "predictions" / "a picture_depth.npy"), np.exp(0.8), rtol=1e-4)
    assert (tmp_path / "predictions" / "a picture.ply").exists()


# What OpenCV 4.6 and Pillow 9.4 lack, which Debian 12 has.
DEBIAN_12 = """
import os, runpy, sys
sys.modules["mindspore"] = None
import cv2
from PIL import ImageOps
del cv2.IMREAD_COLOR_RGB
whole = ImageOps.exif_transpose
ImageOps.exif_transpose = lambda image: whole(image)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_310_host_has_the_libraries_of_its_distribution(nyu, tmp_path):
    """PNG and, under the name of one, JPEG."""
    (tmp_path / "Test").mkdir()
    for pair in listing.list_test(nyu):
        shutil.copy(pair.depth, tmp_path / "Test")
        Image.open(pair.rgb).save(tmp_path / "Test" / pair.rgb.name, "JPEG" if pair.name == "00000" else "PNG")
    for name, prefix in (("plain", []), ("old", ["-c", DEBIAN_12])):
        result = subprocess.run(
            [sys.executable, *prefix, ROOT / "preprocess.py", "--dataset_path", "Test", "--output_path", name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    for path in tmp_path.glob("plain/*/*.bin"):
        assert path.read_bytes() == (tmp_path / "old" / path.relative_to(tmp_path / "plain")).read_bytes()
    with Image.open(tmp_path / "Test" / "00000_colors.png") as jpeg:  # red is red
        expected = np.asarray(jpeg)[12:468, 16:624].reshape(228, 2, 304, 2, 3).mean((1, 3)) / 255
    found = np.fromfile(tmp_path / "old" / "img_data" / "00000.bin", np.float32).reshape(3, 228, 304)
    np.testing.assert_allclose(found.transpose(1, 2, 0), expected, atol=1e-5)
    result = subprocess.run(
        [sys.executable, "-c", DEBIAN_12, ROOT / "postprocess.py", "--result_path", "absent"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2 and "no such folder" in result.stderr


def test_onnx_files_are_scored_without_mindspore(red_onnx, nyu, tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            DEBIAN_12,
            ROOT / "eval.py",
            "--test_data",
            nyu,
            "--output_dir",
            "report",
            "--coarse_onnx",
            red_onnx[0],
            "--fine_onnx",
            red_onnx[1],
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
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


def test_the_page_says_what_it_lacks(red_onnx, tmp_path):
    without = (
        'import sys; sys.modules["gradio"] = None; sys.argv = sys.argv[1:]\n'
        "import os, runpy; sys.path.insert(0, os.path.dirname(sys.argv[0]))\n"
        'runpy.run_path(sys.argv[0], run_name="__main__")'
    )
    command = [sys.executable, "-c", without, ROOT / "app.py", "--coarse_onnx", red_onnx[0], "--fine_onnx", red_onnx[1]]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == f"app.py: error: Python has no gradio: pip install -r {ROOT}/requirements-app.txt\n"
