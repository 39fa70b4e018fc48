"""The weights of this repo: found in a fresh clone, the same figures through all runtimes, and those of their card."""

import functools
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from src import metrics
from src.base import cli
from src.data import image, listing
from src.net import CoarseNet, FineNet
from src.nets import checkpoint
from src.nets.nets import Nets
from src.prediction.predict import DepthPredictor
from src.scoring import evaluation
from tests.conftest import NEEDS_CPP, NEEDS_NYU, REAL_NYU, ROOT
from tests.test_commands import FINAL_LINE, one_line

COARSE, FINE = cli.SHIPPED.values()
TOLERANCE = 1e-4
FOLDERS = ["rendered", pytest.param("real", marks=NEEDS_NYU)]


@pytest.fixture(scope="module")
def figures(nyu, evaluated, forked, tmp_path_factory):
    """figures(data, protocol): both nets' metrics as eval.py has them."""

    @functools.cache
    def figures_on(data, protocol):
        folder = evaluated / ("plain" if protocol == "depthnet" else protocol)
        if data != nyu:
            folder = tmp_path_factory.mktemp("real")
            result = forked(f"eval.py --test_data {data} --protocol {protocol} --output_dir {folder}", cwd=folder)
            assert result.returncode == 0, result.stderr
        return json.loads((folder / "metrics.json").read_text())["metrics"]

    return figures_on


@pytest.fixture(scope="module")
def models(forked, tmp_path_factory):
    """The Model folder with both nets exported in both formats, and none named."""
    folder = tmp_path_factory.mktemp("shipped")
    for net in ("coarse", "fine"):
        result = forked(f"export.py --coarse_or_fine {net} --file_format MINDIR ONNX", cwd=folder)
        assert result.returncode == 0 and "another CoarseNet" not in result.stdout, result.stderr
        assert result.stdout.count("taking the weights of this repo") == 1
    return folder / "Model"


@pytest.fixture(params=FOLDERS)
def data(request, nyu):
    return nyu if request.param == "rendered" else REAL_NYU


def test_onnx_gives_the_same_figures(models, figures, data):
    expected = figures(data, "depthnet")["FineNet"]
    nets = Nets(*(models / "ONNX" / f"Final{net}Net.onnx" for net in ("Coarse", "Fine")))
    scores = evaluation.score(listing.list_test(data), nets, "depthnet", 4, 2)["FineNet"].means()
    for name in metrics.METRICS:
        assert scores[name] == pytest.approx(expected[name], abs=TOLERANCE), name


@NEEDS_CPP
def test_the_cpp_program_gives_the_same_figures(models, figures, data, lite, run, tmp_path):
    expected = figures(data, "depthnet")["FineNet"]
    mindir = [models / "MindIR" / f"Final{net}Net.mindir" for net in ("Coarse", "Fine")]
    result = run("scripts/run_infer_310.sh", *mindir, data, 0, cwd=tmp_path, DEVICE_TARGET="CPU", MS_LITE_HOME=lite)
    assert result.returncode == 0, result.stdout + result.stderr
    line = (tmp_path / "acc.log").read_text().strip().splitlines()[-1]
    printed = list(map(float, FINAL_LINE.search(line).groups()[1:]))
    assert printed == pytest.approx([expected[name] for name in metrics.METRICS[:7]], abs=TOLERANCE)


@NEEDS_NYU
@pytest.mark.parametrize("protocol", ["depthnet", "eigen"])
def test_the_card_s_figures_are_these(figures, protocol):
    found = figures(REAL_NYU, protocol)
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


@pytest.fixture
def other_coarse(tmp_path):
    """A Model/Ckpt with FineNet of this repo and a CoarseNet that is not its own."""
    folder = tmp_path / "Model" / "Ckpt"
    arrays = {parameter.name: parameter for parameter in CoarseNet().get_parameters()}
    checkpoint.save(folder / "FinalCoarseNet.ckpt", arrays, {"stage": "coarse", "coarse_net": "default"})
    shutil.copy(FINE, folder / "FinalFineNet.ckpt")
    return folder


def test_a_fine_net_on_another_coarse_net_is_said(nyu, other_coarse, forked, tmp_path):
    told = (
        "Model/Ckpt/FinalFineNet.ckpt was trained on another CoarseNet than Model/Ckpt/FinalCoarseNet.ckpt: "
        "together they predict worse than with its own"
    )
    picture = next((nyu / "Test").glob("*_colors.png"))
    lines = (f"eval.py --test_data {nyu}", f"predict.py --input {picture}", "export.py --coarse_or_fine fine")
    for line in lines:
        result = forked(line, cwd=tmp_path)
        assert result.returncode == 0 and result.stdout.splitlines().count(told) == 1, result.stdout + result.stderr
    best = shutil.copy(FINE, other_coarse / "BestFineNet.ckpt")
    result = forked(f"export.py --coarse_or_fine fine --ckpt_file {best}", cwd=tmp_path)
    assert result.returncode == 0 and "another CoarseNet than" in result.stdout, result.stdout + result.stderr


def test_a_fine_net_on_its_own_coarse_net_is_nothing_to_tell(other_coarse, tmp_path, caplog):
    coarse, fine = other_coarse / "FinalCoarseNet.ckpt", checkpoint.load(FINE)
    digest = checkpoint.digest(checkpoint.load_coarse(coarse))
    options = {**fine.info["options"], checkpoint.COARSE_SHA256: digest}
    checkpoint.save(tmp_path / "fine.ckpt", fine.arrays, {**fine.info, "options": options})
    DepthPredictor(coarse, tmp_path / "fine.ckpt")
    DepthPredictor(COARSE, FINE)  # compressed: not to be told
    assert "another CoarseNet" not in caplog.text
    whole = checkpoint.load(COARSE).arrays | {"fc6.bias": np.zeros(4096, np.float16)}
    checkpoint.save(tmp_path / "c.ckpt", whole, {"stage": "coarse", checkpoint.WHOLE_SHA256: "of another"})
    DepthPredictor(tmp_path / "c.ckpt", tmp_path / "fine.ckpt")
    assert "another CoarseNet" in caplog.text


def test_evaluation_takes_these_weights_where_nothing_is_named(evaluated):
    printed = (evaluated / "plain" / "stdout.txt").read_text()
    assert printed.count("taking the weights of this repo") == 1 and "another CoarseNet" not in printed
