"""train.py, eval.py and the scripts as users run them: real processes on a small rendered NYU folder."""

import csv
import json
import os
import re
import shutil
import stat

import cv2
import mindspore as ms
import numpy as np
import pytest

from src import metrics
from src.data import image, listing
from src.net import CoarseNet, FineNet

LOG_LINE = re.compile(r"^training (coarse|fine) net, step: (\d+) loss:\d+\.\d{6}, time cost: \d+\.\d{4}$", re.M)
FINAL_LINE = re.compile(
    r"^(CoarseNet|FineNet): delta1_loss: ([\d.]+), delta2_loss: ([\d.]+), delta3_loss: ([\d.]+), "
    r"abs_relative_loss: ([\d.]+), sqr_relative_loss: ([\d.]+), rmse_linear_loss: ([\d.]+), "
    r"rmse_log_loss: ([\d.]+)$",
    re.M,
)
COARSE, FINE = "Model/Ckpt/FinalCoarseNet.ckpt", "Model/Ckpt/FinalFineNet.ckpt"


def is_picture(path, least=200):
    picture = cv2.imread(str(path))
    return picture is not None and min(picture.shape[:2]) >= least and picture.std() > 5


def one_line(result, code=2):
    """A user's mistake: its exit code, one line on stderr, no traceback. Returns that line."""
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_training_leaves_what_it_promises(trained):
    names = {path.name for path in (trained / "Model" / "Ckpt").iterdir()}
    # 16 and 8 steps in epochs of 8, a state every 6 steps and at an epoch's end, the newest three kept
    assert names == {
        "CoarseNet_8.ckpt",
        "CoarseNet_12.ckpt",
        "CoarseNet_16.ckpt",
        "FineNet_6.ckpt",
        "FineNet_8.ckpt",
        "FinalCoarseNet.ckpt",
        "FinalFineNet.ckpt",
        "BestCoarseNet.ckpt",
        "BestFineNet.ckpt",
    }
    log = trained / "Model" / "Log"
    assert is_picture(log / "curves.png")
    options = json.loads((log / "options.json").read_text())
    assert options["batch_size"] == 1 and options["epochs_coarse"] == 2 and options["seed"] == 0
    steps = [match[2] for match in LOG_LINE.finditer((trained / "stdout.txt").read_text())]
    assert steps == ["1", "10", "1"]
    assert "device: CPU" in (trained / "stdout.txt").read_text()


def test_the_csv_has_a_row_an_epoch_with_validation(trained):
    with open(trained / "Model" / "Log" / "coarse.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [row for row in rows if row["mean_loss"]]
    assert [(row["epoch"], row["step"]) for row in epochs] == [("1", "8"), ("2", "16")]
    assert float(epochs[-1]["mean_loss"]) < float(epochs[0]["mean_loss"])
    assert all(float(row["images_per_s"]) > 0 and 0 <= float(row["delta1"]) <= 1 for row in epochs)
    assert [row["step"] for row in rows if row["loss"]] == ["1", "10"]


def test_evaluation_equals_a_loop_of_our_own(trained, nyu, run, tmp_path):
    result = run("eval.py", "--test_data", nyu, "--batch_size", 3, "--output_dir", tmp_path / "report", cwd=trained)
    assert result.returncode == 0, result.stdout + result.stderr
    coarse, fine = CoarseNet(), FineNet()
    for net, path in ((coarse, COARSE), (fine, FINE)):
        ms.load_param_into_net(net, ms.load_checkpoint(str(trained / path)))
    expected = {"CoarseNet": [], "FineNet": []}
    for pair in listing.list_test(nyu):
        rgb = ms.Tensor(image.network_rgb(image.load_rgb(pair.rgb))[None])
        target = image.network_depth(image.load_test_depth(pair.depth))[None]
        coarse_log_depth = coarse(rgb)
        expected["CoarseNet"].append(metrics.evaluate(coarse_log_depth.asnumpy(), target))
        expected["FineNet"].append(metrics.evaluate(fine(rgb, coarse_log_depth).asnumpy(), target))
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    printed = {match[1]: match.groups()[1:] for match in FINAL_LINE.finditer(result.stdout)}
    for net, values in expected.items():
        means = {name: np.mean([value[name][0] for value in values]) for name in metrics.METRICS}
        for name, mean in means.items():
            assert report["metrics"][net][name] == pytest.approx(mean, abs=1e-5), (net, name)
        assert [float(value) for value in printed[net]] == pytest.approx(
            [means[name] for name in metrics.METRICS[:7]], abs=2e-6 + 1e-5
        )


def test_the_paper_net_goes_through_training_and_evaluation_without_being_named_again(nyu, forked, tmp_path):
    result = forked(
        "train.py",
        "--data_url",
        nyu,
        "--coarse_net",
        "paper",
        "--loss",
        "scale_invariant",
        "--batch_size",
        2,
        "--start",
        "imagenet",
        "--dropout",
        0.1,
        "--dense_lr_scale",
        0.02,
        "--max_steps",
        1,
        "--train_url",
        "a run/Model",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    checkpoints = [tmp_path / "a run" / "Model" / "Ckpt" / f"Final{net}Net.ckpt" for net in ("Coarse", "Fine")]
    result = forked(
        "eval.py",
        "--test_data",
        nyu,
        "--coarse_ckpt_model",
        checkpoints[0],
        "--fine_ckpt_model",
        checkpoints[1],
        cwd=tmp_path,
    )
    assert result.returncode == 0 and len(FINAL_LINE.findall(result.stdout)) == 2, result.stdout + result.stderr


def test_mistakes_of_the_user_of_train_get_one_line(nyu, forked, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    for arguments, message in [
        (["--data_url", "absent"], "absent: no such folder; expected NYU/Train/<scene>_out"),
        (["--data_url", "photos"], "no Train folder in it (found: nothing)"),
        (["--data_url", nyu, "--val_data", nyu / "Train"], "no Test folder in it (found: sample_0001_out"),
        (["--data_url", nyu, "--batch_size", 9], "8 training pairs do not fill a batch of 9"),
        (["--data_url", nyu, "--batch_size", 2, "--train_url", "file"], "file: cannot write there"),
        (["--data_url", nyu, "--device_target", "Ascend"], "--device_target Ascend: MindSpore"),
        (["--data_url", nyu, "--batch_size", 2, "--stage", "fine"], "FinalCoarseNet.ckpt: no such checkpoint"),
    ]:
        assert message in one_line(forked("train.py", *arguments, cwd=tmp_path)), arguments


def test_broken_data_is_named_by_file(nyu, forked, tmp_path):
    def damage(name, path, change):
        folder = shutil.copytree(nyu, tmp_path / name)
        change(folder / path)
        return folder

    first = "Train/sample_0001_out/1"
    cases = [
        (damage("truncated", f"{first}.jpg", lambda p: p.write_bytes(p.read_bytes()[:3000])), "1.jpg: broken image"),
        (
            damage("sixteen", f"{first}.png", lambda p: cv2.imwrite(str(p), np.ones((480, 640), np.uint16))),
            "1.png: 16-bit grey, expected 8-bit grey depth",
        ),
        (
            damage("size", f"{first}.png", lambda p: cv2.imwrite(str(p), np.ones((48, 64), np.uint8))),
            "1.jpg is 480x640 but",
        ),
    ]
    for folder, message in cases:
        line = one_line(forked("train.py", "--data_url", folder, "--batch_size", 8, "--max_steps", 1, cwd=tmp_path))
        assert message in line, line
        shutil.rmtree(tmp_path / "Model")


def test_mistakes_of_the_user_of_eval_get_one_line(trained, nyu, forked, tmp_path):
    eight = shutil.copytree(nyu, tmp_path / "eight")
    cv2.imwrite(str(eight / "Test" / "00002_depth.png"), np.ones((480, 640), np.uint8))
    for arguments, message in [
        (["--test_data", nyu, "--coarse_ckpt_model", FINE], "FinalFineNet.ckpt: a checkpoint of FineNet"),
        (["--test_data", nyu, "--fine_ckpt_model", COARSE], "not a checkpoint of FineNet: unexpected conv1.bias"),
        (["--test_data", eight], "00002_depth.png: 8-bit grey, expected 16-bit grey depth"),
        (["--test_data", tmp_path / "absent"], "no such folder"),
    ]:
        assert message in one_line(forked("eval.py", *arguments, cwd=trained)), arguments


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_files(nyu, forked, tmp_path):
    net = CoarseNet()
    net.fc13.bias.set_data(ms.Tensor(np.full(4070, np.nan, np.float32)))
    ms.save_checkpoint(net, str(tmp_path / "nan.ckpt"))
    line = one_line(forked("train.py", "--data_url", nyu, "--batch_size", 2, "--pre_trained", "nan.ckpt", cwd=tmp_path))
    assert "coarse net, step 1: the loss is nan; files of the batch:" in line
    assert len(re.findall(r"sample_000\d_out/\d\.jpg", line)) == 2


def test_a_folder_with_a_run_is_not_overwritten_unasked(trained, nyu, forked):
    before = (trained / COARSE).read_bytes()
    line = one_line(forked("train.py", "--data_url", nyu, "--batch_size", 2, cwd=trained))
    assert "already holds a run of the coarse net" in line and "--resume" in line and "--overwrite" in line
    assert (trained / COARSE).read_bytes() == before


def test_the_scripts_work_from_any_folder_with_relative_paths(nyu, run, tmp_path):
    where = tmp_path / "a folder"
    where.mkdir()
    data = os.path.relpath(nyu, where)
    result = run(
        "scripts/run_standalone_train_ascend.sh",
        data,
        0,
        "--batch_size",
        2,
        "--max_steps",
        1,
        cwd=where,
        DEVICE_TARGET="CPU",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert LOG_LINE.search(result.stdout) and LOG_LINE.search((where / "train.log").read_text())
    result = run("scripts/run_eval.sh", data, COARSE, FINE, "--protocol", "eigen", cwd=where, DEVICE_TARGET="CPU")
    assert result.returncode == 0 and "protocol eigen" in result.stdout, result.stdout + result.stderr
    assert (where / "eval.log").read_text() == result.stdout


def test_the_scripts_hand_on_the_exit_code_and_say_how_they_are_used(nyu, run, tmp_path):
    result = run("scripts/run_standalone_train_ascend.sh", "absent", 0, cwd=tmp_path)
    assert result.returncode == 2 and "absent: no such folder" in (tmp_path / "train.log").read_text()
    result = run("scripts/run_standalone_train_ascend.sh", nyu, cwd=tmp_path)
    assert result.returncode == 2 and "DATASET_PATH DEVICE_ID" in result.stderr
    result = run("scripts/run_eval.sh", nyu, cwd=tmp_path, DEVICE_TARGET="Ascend")
    assert result.returncode == 2 and "--device_target Ascend" in result.stdout
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if not os.access(tmp_path, os.W_OK):  # root may write anywhere
        assert run("scripts/run_eval.sh", nyu, cwd=tmp_path).returncode == 2
    tmp_path.chmod(stat.S_IRWXU)
