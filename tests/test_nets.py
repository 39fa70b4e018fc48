"""The weights of this repo: found in a fresh clone, the same figures through all runtimes, and those of their card."""

import functools
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from src import metrics
from src.base import cli
from src.data import image, listing
from src.net import FineNet
from src.nets import checkpoint
from src.nets.nets import Nets
from src.prediction.predict import DepthPredictor
from src.scoring import evaluation
from tests.conftest import NEEDS_CPP, ROOT
from tests.test_commands import one_line

COARSE, FINE = cli.SHIPPED.values()
TOLERANCE = 1e-4
REAL = os.environ.get("DEPTHNET_NYU")
FOLDERS = ["rendered", pytest.param("real", marks=pytest.mark.skipif(not REAL, reason="DEPTHNET_NYU is not set"))]


@pytest.fixture(scope="module")
def evaluated(forked, tmp_path_factory):
    """evaluated(data, protocol): both nets' metrics as eval.py has them."""

    @functools.cache
    def evaluate(data, protocol):
        folder = tmp_path_factory.mktemp("evaluated")
        result = forked(
            f"eval.py --test_data {data}",
            "--coarse_ckpt_model",
            COARSE,
            "--fine_ckpt_model",
            FINE,
            "--protocol",
            protocol,
            "--output_dir",
            "report",
            cwd=folder,
        )
        assert result.returncode == 0, result.stderr
        return json.loads((folder / "report" / "metrics.json").read_text())["metrics"]

    return evaluate


@pytest.fixture(scope="module")
def models(forked, tmp_path_factory):
    """The Model folder with both nets exported in both formats."""
    folder = tmp_path_factory.mktemp("shipped")
    for net, path in (("coarse", COARSE), ("fine", FINE)):
        result = forked(f"export.py --coarse_or_fine {net} --ckpt_file {path} --file_format MINDIR ONNX", cwd=folder)
        assert result.returncode == 0, result.stderr
    return folder / "Model"


@pytest.fixture(params=FOLDERS)
def data(request, nyu):
    return nyu if request.param == "rendered" else REAL


def test_onnx_gives_the_same_figures(models, evaluated, data):
    expected = evaluated(data, "depthnet")["FineNet"]
    nets = Nets(*(models / "ONNX" / f"Final{net}Net.onnx" for net in ("Coarse", "Fine")))
    scores = evaluation.score(listing.list_test(data), nets, "depthnet", 4, 2)["FineNet"].means()
    for name in metrics.METRICS:
        assert scores[name] == pytest.approx(expected[name], abs=TOLERANCE), name


@NEEDS_CPP
def test_the_cpp_program_gives_the_same_figures(models, evaluated, data, lite, run, tmp_path):
    expected = evaluated(data, "depthnet")["FineNet"]
    mindir = [models / "MindIR" / f"Final{net}Net.mindir" for net in ("Coarse", "Fine")]
    result = run("scripts/run_infer_310.sh", *mindir, data, 0, cwd=tmp_path, DEVICE_TARGET="CPU", MS_LITE_HOME=lite)
    assert result.returncode == 0, result.stdout + result.stderr
    line = (tmp_path / "acc.log").read_text().strip().splitlines()[-1]
    labels = {
        "delta1": "delta1_loss",
        "delta2": "delta2_loss",
        "delta3": "delta3_loss",
        "abs_rel": "abs_relative_loss",
        "sq_rel": "sqr_relative_loss",
        "rmse": "rmse_linear_loss",
        "rmse_log": "rmse_log_loss",
    }
    for name, label in labels.items():
        found = float(re.search(rf"{label}: ([\d.]+)", line)[1])
        assert found == pytest.approx(expected[name], abs=TOLERANCE), name


@pytest.mark.skipif(not REAL, reason="DEPTHNET_NYU is not set")
@pytest.mark.parametrize("protocol", ["depthnet", "eigen"])
def test_the_card_s_figures_are_these(evaluated, protocol):
    found = evaluated(REAL, protocol)
    card = (ROOT / "weights" / "README.md").read_text()
    rows = re.findall(rf"^\| (CoarseNet|FineNet) \| {protocol} \| (.*) \|$", card, re.MULTILINE)
    assert {net for net, _ in rows} == {"CoarseNet", "FineNet"}
    for net, row in rows:
        for name, figure in zip(metrics.METRICS, row.split(" | "), strict=True):
            assert found[net][name] == pytest.approx(float(figure), abs=0.0006), (net, name)


def test_they_are_small_and_of_the_nets_that_they_are_named_after():
    assert COARSE.stat().st_size + FINE.stat().st_size < 16e6
    assert type(checkpoint.load_coarse(COARSE)).__name__ == COARSE.stem
    assert isinstance(checkpoint.load_fine(FINE), FineNet)


def test_fine_net_knows_its_coarse_net():
    assert checkpoint.load(FINE).info["options"]["coarse_sha256"] == checkpoint.digest(checkpoint.load_coarse(COARSE))


def test_a_photo_in_a_fresh_clone(nyu, forked, tmp_path):
    shutil.copy(next((nyu / "Test").glob("*_colors.png")), tmp_path / "photo.png")
    result = forked("predict.py --input photo.png --save color npy", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"no {cli.MODEL}/Ckpt/FinalCoarseNet.ckpt: taking the weights of this repo" in result.stdout
    depth_m = np.load(tmp_path / "predictions" / "photo_depth.npy")
    picture = image.load_rgb(tmp_path / "photo.png")
    assert depth_m.shape == picture.shape[:2] and 0.3 < np.median(depth_m) < 10
    np.testing.assert_allclose(DepthPredictor(COARSE, FINE)(picture), depth_m, rtol=1e-5)
    assert Image.open(tmp_path / "predictions" / "photo_depth.png").width > picture.shape[1]


def test_a_net_of_the_user_s_own_comes_first(nyu, forked, tmp_path):
    """With one of the two in Model/Ckpt the other is asked for: the two of a pair belong together."""
    (tmp_path / "Model" / "Ckpt").mkdir(parents=True)
    shutil.copy(COARSE, tmp_path / "Model" / "Ckpt" / "FinalCoarseNet.ckpt")
    line = one_line(forked(f"predict.py --input {nyu}/Test", cwd=tmp_path))
    assert "FinalFineNet.ckpt: no such checkpoint" in line and "tools/get_weights.py" in line


def other_coarse(folder):
    """FineNet of this repo, and a CoarseNet that differs from its own in one bias."""
    folder.mkdir(parents=True)
    shutil.copy(FINE, folder / "FinalFineNet.ckpt")
    net = checkpoint.load_coarse(COARSE)
    net.fc7.bias.set_data(net.fc7.bias + 0.1)
    checkpoint.save(
        folder / "FinalCoarseNet.ckpt",
        {one.name: one for one in net.get_parameters()},
        {"stage": "coarse", "coarse_net": "paper"},
    )
    return net


def test_a_fine_net_on_another_coarse_net_is_said(nyu, forked, tmp_path):
    other_coarse(tmp_path / "Model" / "Ckpt")
    line = (
        "Model/Ckpt/FinalFineNet.ckpt was trained on another CoarseNet than Model/Ckpt/FinalCoarseNet.ckpt: "
        "together they predict worse than with its own"
    )
    picture = next((nyu / "Test").glob("*_colors.png"))
    for command in (
        ["eval.py", "--test_data", nyu],
        ["predict.py", "--input", picture],
        ["export.py", "--coarse_or_fine", "fine"],
    ):
        result = forked(*command, cwd=tmp_path)
        assert result.returncode == 0 and result.stdout.splitlines().count(line) == 1, result.stdout + result.stderr


def test_a_fine_net_on_its_own_coarse_net_is_nothing_to_tell(tmp_path, caplog):
    net = other_coarse(tmp_path / "a")
    folder = tmp_path / "a"
    fine = checkpoint.load(FINE)
    options = {**fine.info["options"], checkpoint.COARSE_SHA256: checkpoint.digest(net)}
    checkpoint.save(folder / "FinalFineNet.ckpt", fine.arrays, {**fine.info, "options": options})
    DepthPredictor(folder / "FinalCoarseNet.ckpt", folder / "FinalFineNet.ckpt")
    DepthPredictor(COARSE, FINE)  # compressed: not to be told
    assert "another CoarseNet" not in caplog.text
    checkpoint.save(
        tmp_path / "c.ckpt",
        checkpoint.load(COARSE).arrays | {"fc6.bias": np.zeros(4096, np.float16)},
        {"stage": "coarse", checkpoint.WHOLE_SHA256: "of another"},
    )
    DepthPredictor(tmp_path / "c.ckpt", folder / "FinalFineNet.ckpt")
    assert "another CoarseNet" in caplog.text


def test_evaluation_and_export_take_these_weights_where_nothing_is_named(nyu, forked, tmp_path):
    for command in (
        ["eval.py", "--test_data", nyu],
        ["export.py", "--coarse_or_fine", "fine"],
        ["export.py", "--coarse_or_fine", "coarse", "--file_format", "MINDIR"],
    ):
        result = forked(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("taking the weights of this repo") == 1
        assert "another CoarseNet" not in result.stdout
    assert (tmp_path / "Model" / "MindIR" / "FinalCoarseNet.mindir").exists()
    result = forked(f"eval.py --test_data {nyu}", "--fine_ckpt_model", FINE, cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.count("taking the weights of this repo") == 1, result.stderr
