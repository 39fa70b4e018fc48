"""What users and file systems do to the commands: full disks, odd names, closed pipes, values that are not finite."""

import csv
import os
import pty
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from src import metrics
from src.base.errors import CheckFailed, NotFinite, UserError
from src.data import image, listing, plain, sampling
from src.net import FineNet, PaperCoarseNet
from src.nets import checkpoint
from src.prediction import depth_files
from src.prediction.job import Job
from src.prediction.predict import DepthPredictor
from src.scoring import baselines, visual
from tests.conftest import ROOT
from tests.test_commands import one_line
from tests.test_image import exif_of
from tests.test_predict import as_it_is, red_is_depth
from tests.tiny import NOBODY_STOPS, TinyCoarse
from tools import check_nyu, prepare_nyu

ODD = os.fsdecode(b"a$_$ \xff\xfe caf\xc3\xa9")  # mathematics for matplotlib, and not UTF-8


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Untrained PaperCoarseNet and FineNet; and a PaperCoarseNet that predicts NaN for bright pictures only."""
    folder = tmp_path_factory.mktemp("weights")
    ms.set_seed(0)
    net = PaperCoarseNet()
    ms.save_checkpoint(net, str(folder / "coarse.ckpt"))
    ms.save_checkpoint(FineNet(), str(folder / "fine.ckpt"))
    net.fc7.bias.set_data(ms.Tensor(np.full(4070, np.nan, np.float32)))
    ms.save_checkpoint(net, str(folder / "nan.ckpt"))
    return folder


def nets(weights, coarse="coarse.ckpt"):
    return ["--coarse_ckpt_model", weights / coarse, "--fine_ckpt_model", weights / "fine.ckpt"]


def onnx_nets(red_onnx):
    """For what has nothing to do with the runtime: a process without MindSpore starts in a fifth of the time."""
    return ["--coarse_onnx", red_onnx[0], "--fine_onnx", red_onnx[1]]


def video(path, frames, size=(160, 120)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12, size)
    rng = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    writer.release()
    return path


@pytest.fixture
def tiny_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_video_on_a_full_disk_is_no_success(red_onnx, forked, tiny_disk, tmp_path):
    path = video(tmp_path / "clip.avi", 60, (640, 480))
    result = forked(
        "predict.py", "--input", path, "--output_dir", tiny_disk, "--save", "side", *onnx_nets(red_onnx), cwd=tmp_path
    )
    assert result.returncode == 1 and "clip" in result.stdout and "0 predicted" in result.stdout, result.stdout
    assert "1 of 1 failed" in result.stderr and not list(tiny_disk.iterdir())


def test_pictures_on_a_full_disk_fail_by_name_and_the_rest_is_tried(red_onnx, forked, tiny_disk, tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (480, 640, 3), np.uint8)).save(tmp_path / f"{name}.png")
    result = forked(
        "predict.py",
        "--input",
        *tmp_path.glob("?.png"),
        "--output_dir",
        tiny_disk,
        "--save",
        "npy",
        *onnx_nets(red_onnx),
        cwd=tmp_path,
    )
    assert result.returncode == 1 and result.stdout.count("No space left on device") == 3, result.stdout
    assert not list(tiny_disk.iterdir())


def test_a_video_that_was_cut_off_is_said(red_onnx, forked, tmp_path):
    whole = video(tmp_path / "whole.avi", 10, (320, 240)).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: int(len(whole) * 0.6)])
    result = forked("predict.py", "--input", "cut.avi", "--save", "color", *onnx_nets(red_onnx), cwd=tmp_path)
    assert result.returncode == 1, result.stdout
    assert "cut.avi: cut off: " in result.stdout and " of its 10 frames could be read" in result.stdout


def test_frames_and_pictures_do_not_share_a_folder(red_onnx, forked, tmp_path):
    video(tmp_path / "in.avi", 3)
    (tmp_path / "all").mkdir()
    shutil.move(tmp_path / "in.avi", tmp_path / "all" / "x.avi")
    (tmp_path / "all" / "x_frames").mkdir()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "all" / "x_frames" / "000000.jpg")
    line = one_line(forked("predict.py", "--input", "all", "--save", "npy", *onnx_nets(red_onnx), cwd=tmp_path))
    assert "would both go into predictions/x_frames" in line


def test_a_shorter_video_leaves_no_stale_frames(red_onnx, forked, tmp_path):
    arguments = ["--save", "npy", "--overwrite", *onnx_nets(red_onnx)]
    for frames in (5, 3):
        video(tmp_path / "clip.avi", frames)
        assert forked("predict.py", "--input", "clip.avi", *arguments, cwd=tmp_path).returncode == 0
        (tmp_path / "predictions" / "clip_frames" / "mine.txt").write_text("mine")
    names = sorted(path.name for path in (tmp_path / "predictions" / "clip_frames").iterdir())
    assert names == ["000000_depth.npy", "000001_depth.npy", "000002_depth.npy", "mine.txt"]


def test_names_that_are_not_utf_8_go_through_predict(red_onnx, run, tmp_path):
    folder = tmp_path / ODD
    folder.mkdir()
    video(tmp_path / "clip.avi", 3).rename(folder / f"{ODD}.avi")
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "p.png")
    (tmp_path / "p.png").rename(folder / f"{ODD}.png")
    (folder / f"{ODD} broken.jpg").write_bytes(b"no picture")
    result = run(
        "predict.py",
        "--input",
        folder,
        "--output_dir",
        tmp_path / "out",
        "--save",
        "side",
        "npy",
        *onnx_nets(red_onnx),
        cwd=tmp_path,
    )
    assert result.returncode == 1 and "a$_$ \\xff\\xfe café broken.jpg: broken image" in result.stdout, result.stderr
    made = {os.fsencode(path.name) for path in (tmp_path / "out").iterdir()}
    stem = os.fsencode(ODD)
    assert made == {stem + b"_avi_side.mp4", stem + b"_avi_frames", stem + b"_png_side.png", stem + b"_png_depth.npy"}


def test_names_that_are_not_utf_8_or_look_like_mathematics_go_through_training_and_evaluation(
    nyu, weights, fine_stage, forked, tmp_path
):
    data = shutil.copytree(nyu, tmp_path / ODD)
    for path in list((data / "Test").glob("00001_*")):
        path.rename(path.with_name(path.name.replace("00001", ODD)))
    (data / "Train" / "sample_0001_out").rename(data / "Train" / f"{ODD}_out")
    result = forked(
        "train.py",
        "--data_url",
        data,
        "--val_data",
        data,
        *fine_stage,
        "--batch_size",
        8,
        "--epochs_fine",
        1,
        "--tensorboard",
        cwd=tmp_path,
    )
    assert result.returncode == 0 and "warning" not in result.stdout, result.stdout + result.stderr
    result = forked("eval.py", "--test_data", data, "--output_dir", "report", *nets(weights), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    with open(tmp_path / "report" / "per_image.csv", encoding="utf-8", newline="") as file:
        assert "a$_$ \\udcff\\udcfe café" in {row["image"] for row in csv.DictReader(file)}
    assert forked("tools/check_nyu.py", data, "--output_dir", "check", cwd=tmp_path).returncode == 0


def test_a_picture_whose_prediction_is_not_finite_is_named(nyu, weights, forked, tmp_path):
    result = forked("eval.py", "--test_data", nyu, "--output_dir", "report", *nets(weights, "nan.ckpt"), cwd=tmp_path)
    assert "00000_colors.png (CoarseNet)" in one_line(result, 1) and "not finite" in result.stderr
    assert not (tmp_path / "report" / "metrics.json").exists()
    result = forked("predict.py", "--input", nyu / "Test", "--save", "npy", *nets(weights, "nan.ckpt"), cwd=tmp_path)
    assert result.returncode == 1 and result.stdout.count("prediction is not finite") == 4
    assert not list((tmp_path / "predictions").iterdir())


def test_one_picture_that_is_not_finite_does_not_take_the_others_with_it(tmp_path):
    def coarse(rgb):
        log_depth = red_is_depth(rgb)
        log_depth[rgb.mean((1, 2, 3)) > 0.9] = np.inf
        return log_depth

    paths = []
    for name, level in (("dark", 10), ("bright", 255), ("grey", 100)):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(np.full((48, 64, 3), level, np.uint8)).save(paths[-1])
    with pytest.raises(NotFinite, match=r"bright\.png"):
        DepthPredictor(coarse, as_it_is).predict(paths)
    writer = depth_files.Writer(("npy",), "viridis", 10.0, None)
    jobs = [Job(path, tmp_path / path.stem) for path in paths]
    bar = type("Bar", (), {"update": lambda self, count=1: None})()
    assert depth_files.predict_all(jobs, DepthPredictor(coarse, as_it_is), writer, 8, bar) == 1
    assert {path.name for path in tmp_path.glob("*.npy")} == {"dark_depth.npy", "grey_depth.npy"}


def test_a_mean_over_nothing_is_no_number():
    nothing = metrics.evaluate(np.zeros((2, 1, 55, 74), np.float32), np.zeros((2, 1, 55, 74), np.float32))
    with pytest.raises(CheckFailed, match="no measured pixel"):
        metrics.means(nothing)


def test_targets_without_a_measured_pixel_end_an_evaluation(nyu, weights, forked, tmp_path):
    data = shutil.copytree(nyu, tmp_path / "NYU")
    for path in (data / "Test").glob("*_depth.png"):
        cv2.imwrite(str(path), np.zeros((480, 640), np.uint16))
    assert "no measured pixel" in one_line(forked("eval.py", "--test_data", data, *nets(weights), cwd=tmp_path), 1)


def damaged(nyu, folder, damage):
    data = shutil.copytree(nyu, folder / "NYU")
    if damage == "empty":
        shutil.rmtree(data / "Train")
        (data / "Train").mkdir()
    elif damage == "partner":
        next((data / "Train").glob("*/*.png")).unlink()
    else:
        next((data / "Train").glob("*/*.jpg")).write_bytes(b"no picture")
    return data


@pytest.mark.parametrize(
    ("damage", "named"), [("empty", "no image pairs"), ("partner", "has no "), ("broken picture", "broken image")]
)
def test_baselines_that_cannot_be_fitted_are_a_mistake(nyu, tmp_path, damage, named):
    data = damaged(nyu, tmp_path, damage)
    if damage == "broken picture":
        next((data / "Train").glob("*/*.png")).write_bytes(b"no picture")
    with pytest.raises(UserError, match=named):
        baselines.Baselines(data, listing.list_test(data), 1)


def test_eval_does_not_read_the_train_folder_unless_asked(nyu, weights, forked, tmp_path):
    data = damaged(nyu, tmp_path, "empty")
    result = forked("eval.py", "--test_data", data, *nets(weights), cwd=tmp_path)
    assert result.returncode == 0 and "CoarseNet: delta1_loss" in result.stdout, result.stderr
    result = forked("eval.py", "--test_data", data, *nets(weights), "--baselines", cwd=tmp_path)
    assert result.returncode == 2 and "no image pairs" in result.stderr


def test_predictions_may_go_beside_their_pictures_again_and_again(red_onnx, forked, tmp_path):
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    for source, more in (("photo.png", []), (".", ["--overwrite"]), (".", ["--overwrite"])):
        result = forked(
            "predict.py",
            "--input",
            source,
            "--output_dir",
            ".",
            "--save",
            "color",
            "side",
            *more,
            *onnx_nets(red_onnx),
            cwd=tmp_path,
        )
        assert result.returncode == 0 and "1 predicted" in result.stdout, result.stdout + result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "photo_depth.png", "photo_side.png"}


def test_an_output_that_cannot_be_written_does_not_stop_the_rest(red_onnx, forked, tmp_path):
    for name in ("n" * 250, "m" * 245, "short"):  # with _depth.npy: too long; as long as it may be; short
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / f"{name}.png")
    pictures = tmp_path.glob("*.png")
    result = forked("predict.py", "--input", *pictures, "--save", "npy", *onnx_nets(red_onnx), cwd=tmp_path)
    assert result.returncode == 1 and "File name too long" in result.stdout and "2 predicted" in result.stdout
    assert len(list((tmp_path / "predictions").iterdir())) == 2


def test_a_strip_of_pixels_is_refused_and_a_wide_picture_takes_its_own_memory(weights, forked, tmp_path):
    Image.fromarray(np.zeros((1, 65500), np.uint8)).save(tmp_path / "strip.png")
    Image.fromarray(np.zeros((200, 9000, 3), np.uint8)).save(tmp_path / "wide.png")
    code = f"""
import pathlib, re, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
sys.argv = ['predict.py', '--input', 'strip.png', 'wide.png', '--save', 'npy', *{[str(x) for x in nets(weights)]}]
try:
    runpy.run_path({str(ROOT / "predict.py")!r}, run_name='__main__')
finally:
    peak = re.search('VmHWM: *(.*) kB', pathlib.Path('/proc/self/status').read_text().replace('\\t', ' '))
    print('peak', int(peak[1]) // 1024)  # ru_maxrss would be that of who started it, where that is larger
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (
        result.returncode == 1
        and "strip.png: 1x65500 (height x width): expected a ratio of at most 50:1" in result.stdout
    )
    assert np.load(tmp_path / "predictions" / "wide_depth.npy").shape == (200, 9000)
    assert int(result.stdout.split("peak ")[1]) < 2500  # MB; MindSpore and the net are 1,100


@pytest.mark.parametrize(
    "content",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"", b"P6 9 9 255\n" + b"\0" * 243],
    ids=["eps", "empty", "ppm"],
)
def test_a_file_of_another_kind_is_no_picture(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(image.ImageError, match=r"a\.jpg: broken image: (not one of JPEG|the file is empty)"):
        image.load_rgb(path)


def test_heic_is_named_and_not_passed_over(red_onnx, forked, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("photo.HEIC", "renamed.jpg"):
        (tmp_path / "in" / name).write_bytes(b"\0\0\0\x18ftypheic")
    result = forked("predict.py", "--input", "in", *onnx_nets(red_onnx), cwd=tmp_path)
    assert result.returncode == 1
    for name in ("photo.HEIC", "renamed.jpg"):
        assert f"{name}: HEIC is not read: save it as JPEG" in result.stdout


def test_photographs_whose_metadata_are_absurd(red_onnx, forked, tmp_path):
    """A lens of 600 mm takes the depth beyond what 16 bits hold; a rational of -1/0; HEIC that is called JPEG."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, 40:] = 200, 0, 0
    for name, focal_mm in (("tele", 600), ("absurd", 65535)):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA405] = focal_mm
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif_of(6))
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic".ljust(99, b"\0"))
    result = forked(
        "predict.py",
        "--input",
        *sorted(tmp_path.glob("*.jpg")),
        "--save",
        "npy",
        "png16",
        *onnx_nets(red_onnx),
        cwd=tmp_path,
    )
    assert result.returncode == 1 and "1 of 4 failed" in result.stderr
    assert "phone.jpg: HEIC is not read: save it as JPEG" in result.stdout
    out = tmp_path / "predictions"
    depth_m = np.load(out / "tele_depth.npy")
    millimetres = cv2.imread(str(out / "tele_depth16.png"), cv2.IMREAD_UNCHANGED)
    assert depth_m.min() < 30 and depth_m.max() > 65.536
    np.testing.assert_allclose(millimetres / 1000, depth_m.clip(0, 65.535), atol=0.00051)
    assert result.stdout.count("tele_depth16.png: what is deeper is written as 65.535 m") == 1
    assert "absurd_depth16.png: what is deeper" not in result.stdout and np.load(out / "absurd_depth.npy").max() < 10
    turned = np.load(out / "turned_depth.npy")
    assert turned.shape == (80, 60) and turned[70:].min() > turned[:10].max()  # its right side is below


def test_a_photograph_of_108_megapixels_takes_the_memory_of_a_quarter(red_onnx, forked, tmp_path):
    """And of 249, as far as it is decoded."""
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    for name, size in (("108", (12000, 9000)), ("249", (18200, 13650))):
        cv2.imwrite(
            str(tmp_path / f"{name}.jpg"),
            cv2.resize(small, size, interpolation=cv2.INTER_NEAREST),
            [cv2.IMWRITE_JPEG_QUALITY, 30],
        )
    result = forked(
        "predict.py", "--input", "108.jpg", "--save", "png16", *onnx_nets(red_onnx), cwd=tmp_path, megabytes=1000
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "108.jpg: 9000x12000 is more than 64,000,000 pixels: read at half its size, 4500x6000" in result.stdout
    with Image.open(tmp_path / "predictions" / "108_depth16.png") as depth:
        assert depth.size == (6000, 4500)
    answer = forked("load_rgb", "249.jpg", cwd=tmp_path, megabytes=800)
    assert answer.returncode == 0 and "(6825, 9100, 3)" in answer.stdout, answer.stderr


def test_exr_holds_what_npy_holds(red_onnx, forked, tmp_path):
    """One channel Y of 32-bit floats, by the format's own header."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    Image.fromarray(cv2.GaussianBlur(pixels, (9, 9), 0)).save(tmp_path / "a.png")
    result = forked("predict.py", "--input", "a.png", "--save", "npy", "exr", *onnx_nets(red_onnx), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    content = (tmp_path / "predictions" / "a_depth.exr").read_bytes()
    assert content[:4] == b"\x76\x2f\x31\x01" and b"channels\0chlist\0\x13\0\0\0Y\0\x02\0\0\0" in content
    os.environ["OPENCV_IO_ENABLE_OPENEXR"] = "1"
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, np.load(tmp_path / "predictions" / "a_depth.npy"))


@pytest.mark.parametrize("name", ["tab10", "viridis", "Set1"])
def test_a_colour_map_of_any_length_is_drawn_as_matplotlib_does(name):
    import matplotlib

    depth_m = np.linspace(0.02, 9.98, 500)[None]
    expected = (matplotlib.colormaps[name](depth_m / 10)[..., :3] * 255).round()
    difference = np.abs(visual.colour(depth_m, 10, name).astype(int) - expected).max(-1)
    assert np.mean(difference > 4) < 0.05 and len(np.unique(visual.colour(depth_m, 10, name), axis=1)[0]) > 5


def test_every_command_sees_a_larger_picture_in_the_same_way(nyu, tmp_path):
    """960x1280: what training, evaluation and prediction give the nets is one thing."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (960, 1280, 3), np.uint8)
    folder = tmp_path / "NYU" / "Train" / "x_out"
    folder.mkdir(parents=True)
    (tmp_path / "NYU" / "Test").mkdir()
    cv2.imwrite(str(folder / "1.jpg"), rgb, [cv2.IMWRITE_JPEG_QUALITY, 95])
    decoded = image.load_rgb(folder / "1.jpg")
    cv2.imwrite(str(folder / "1.png"), np.full((960, 1280), 99, np.uint8))
    Image.fromarray(decoded).save(tmp_path / "NYU" / "Test" / "1_colors.png")
    cv2.imwrite(str(tmp_path / "NYU" / "Test" / "1_depth.png"), np.full((960, 1280), 999, np.uint16))
    trained = plain.PlainPairs(tmp_path / "NYU").load(0)[0].transpose(2, 0, 1)
    evaluated = plain.load_test_pair(listing.list_test(tmp_path / "NYU")[0])[0]
    seen = []
    DepthPredictor(lambda one: seen.append(one) or red_is_depth(one), as_it_is)(decoded)
    np.testing.assert_array_equal(evaluated, seen[0][0])
    assert np.abs(trained / 255 - evaluated).max() < 0.51 / 255
    averaged = decoded.reshape(480, 2, 640, 2, 3).mean((1, 3))[12:468, 16:624].reshape(228, 2, 304, 2, 3).mean((1, 3))
    assert np.abs(averaged.transpose(2, 0, 1) / 255 - evaluated).max() < 1.5 / 255


def test_a_preprocessed_folder_of_other_pictures_is_not_mixed_in(nyu, forked, tmp_path):
    other = tmp_path / "NYU" / "Test"
    other.mkdir(parents=True)
    for part in ("colors", "depth"):
        shutil.copy(nyu / "Test" / f"00000_{part}.png", other / f"77777_{part}.png")
    assert forked("preprocess.py", "--dataset_path", other, cwd=tmp_path).returncode == 0
    assert "77777.bin: of another run" in one_line(forked("preprocess.py", "--dataset_path", nyu, cwd=tmp_path))
    (tmp_path / "preprocess_Result" / "img_data" / ".partial-0123.bin").write_bytes(b"left by a kill")
    assert forked("preprocess.py", "--dataset_path", other, cwd=tmp_path).returncode == 0


@pytest.mark.long
def test_preprocess_needs_no_tqdm_on_a_terminal(nyu, tmp_path):
    (tmp_path / "tqdm.py").write_text("raise ModuleNotFoundError(\"No module named 'tqdm'\", name='tqdm')\n")
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(
            sys.executable,
            [sys.executable, str(ROOT / "preprocess.py"), "--dataset_path", str(nyu)],
            {**os.environ, "PYTHONPATH": str(tmp_path)},
        )
    screen = b""
    try:
        while chunk := os.read(descriptor, 4096):
            screen += chunk
    except OSError:
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, screen
    assert b"4 images in preprocess_Result" in screen


@pytest.mark.parametrize("command", ["train", "predict", "export", "preprocess"])
def test_a_user_s_file_that_has_the_name_of_a_probe_stays(
    nyu, weights, red_onnx, fine_stage, forked, tmp_path, command
):
    folder = {"train": "Model/Ckpt", "predict": "out", "export": "out/MindIR", "preprocess": "out/img_data"}[command]
    probe = tmp_path / folder / ".write-test"
    probe.parent.mkdir(parents=True)
    probe.write_text("mine")
    arguments = {
        "train": ["train.py", "--data_url", nyu, *fine_stage, "--batch_size", 8, "--max_steps", 1],
        "predict": [
            "predict.py",
            "--input",
            nyu / "Test" / "00000_colors.png",
            "--output_dir",
            "out",
            *onnx_nets(red_onnx),
        ],
        "export": [
            "export.py",
            "--coarse_or_fine",
            "fine",
            "--ckpt_file",
            weights / "fine.ckpt",
            "--output_dir",
            "out",
        ],
        "preprocess": ["preprocess.py", "--dataset_path", nyu, "--output_path", "out"],
    }[command]
    result = forked(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert probe.read_text() == "mine"


def test_files_have_the_mode_that_the_user_asks_for(nyu, forked, tmp_path):
    for mask, mode in ((0o077, 0o600), (0o022, 0o644)):
        out = tmp_path / oct(mask)
        command = (
            f"umask {mask:04o} && exec {sys.executable} {ROOT}/preprocess.py --dataset_path {nyu} --output_path {out}"
        )
        subprocess.run(["bash", "-c", command], check=True, capture_output=True)
        assert {path.stat().st_mode & 0o777 for path in out.rglob("*.bin")} == {mode}


@pytest.mark.parametrize("program", ["postprocess.py", "tools/check_nyu.py"])
def test_a_screen_that_cannot_be_written_is_no_success(nyu, forked, tmp_path, program):
    assert forked("preprocess.py", "--dataset_path", nyu, cwd=tmp_path).returncode == 0
    (tmp_path / "result_Files").mkdir()
    for path in (tmp_path / "preprocess_Result" / "label").iterdir():
        np.log(np.fromfile(path, np.float32)).tofile(tmp_path / "result_Files" / f"{path.stem}_0.bin")
    arguments = [str(nyu)] if program.startswith("tools") else []
    for target in ("/dev/full", "closed"):
        with open("/dev/full", "w") as full:
            redirect = full if target == "/dev/full" else subprocess.PIPE
            process = subprocess.Popen(
                [sys.executable, str(ROOT / program), *arguments],
                cwd=tmp_path,
                stdout=redirect,
                stderr=subprocess.PIPE,
                text=True,
            )
            if process.stdout:
                process.stdout.close()
            errors = process.stderr.read()
            assert process.wait() == 1, errors
            assert "standard output could not be written" in errors and "Traceback" not in errors, errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["train.py", "--data_url", "x", "--seed", "4294967296"],
            "4294967296 is not a whole number from 0 to 4294967295",
        ),
        (
            ["predict.py", "--input", "x", "--fx", "0", "--fy", "1", "--cx", "1", "--cy", "1"],
            "0 is not a number above 0",
        ),
        (
            ["predict.py", "--input", "x", "--fx", "1", "--fy", "1", "--cx", "nan", "--cy", "1"],
            "nan is not a finite number",
        ),
    ],
)
def test_numbers_out_of_range_are_said(forked, tmp_path, arguments, text):
    result = forked(*arguments, cwd=tmp_path)
    assert result.returncode == 2 and text in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("program", ["train.py", "eval.py", "predict.py", "export.py", "tools/check_nyu.py"])
def test_help_names_no_default_that_is_none(forked, tmp_path, program):
    text = forked(program, "--help", cwd=tmp_path).stdout
    assert "default: None" not in text and "default: False" not in text and "default:" in text.replace("\n", " ")


def test_scripts_do_not_mind_cdpath_or_a_relative_python(nyu, run, tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "py").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "py").chmod(0o755)
    result = run("scripts/run_eval.sh", nyu, cwd=tmp_path, CDPATH=str(ROOT), PYTHON="bin/py", DEVICE_TARGET="CPU")
    assert result.returncode == 0 and "taking the weights of this repo" in result.stdout, result.stdout + result.stderr


def test_the_demo_says_what_it_leaves_out_without_a_compiler(tmp_path):
    text = (ROOT / "scripts" / "run_demo.sh").read_text()
    check = text[text.index("missing=\n") : text.index("demo=$ROOT/demo")]
    for present in (["c++", "make"], ["c++", "ninja"], ["c++"], ["make"], []):
        folder = tmp_path / "-".join(["bin", *present])
        folder.mkdir()
        for name in present:
            (folder / name).symlink_to("/bin/true")
        result = subprocess.run(
            ["/bin/bash", "-c", check], env={"PATH": str(folder)}, capture_output=True, text=True, check=True
        )
        assert ("will be left out" in result.stdout) == (len(present) < 2), present


# The downloads


def small_zip(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


def png(value=7):
    return cv2.imencode(".png", np.full((4, 4), value, np.uint8))[1].tobytes()


PAIR = {
    "data/nyu2_train/a_out/1.jpg": b"\xff\xd8\xff\xd9",
    "data/nyu2_train/a_out/1.png": png(),
    "data/nyu2_test/00000_colors.png": png(),
    "data/nyu2_test/00000_depth.png": png(),
}
TRAIN_LIST = "data/nyu2_train/a_out/1.jpg,data/nyu2_train/a_out/1.png\r\n"


def test_lists_of_windows_and_a_list_for_one_split_only(tmp_path):
    for name, text in (
        ("utf16", TRAIN_LIST.encode("utf-16")),
        ("backslashes", TRAIN_LIST.replace("/", "\\").encode()),
        ("plain", TRAIN_LIST.encode()),
    ):
        path = small_zip(tmp_path / f"{name}.zip", **PAIR, **{"data/nyu2_train.csv": text})
        items = prepare_nyu.hu_items(path, link=False)
        assert len(items) == 4, name  # Test has no list: all of it
        folder = tmp_path / name / "data"
        for member, content in (PAIR | {"data/nyu2_train.csv": text}).items():
            target = folder.parent / member
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        assert len(prepare_nyu.hu_items(folder.parent, link=False)) == 4, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\x80\x81\xff", "not a text in UTF-8 or UTF-16"),
        (b"nothing,here\n", "names no NYU file"),
        (b"0" * (33 << 20), "a list of 34,603,008 bytes: refused"),
    ],
)
def test_lists_that_cannot_be_right_are_named(forked, tmp_path, text, message):
    path = small_zip(tmp_path / "a.zip", **PAIR, **{"data/nyu2_train.csv": text})
    line = one_line(forked("tools/prepare_nyu.py", "out", "--hu", path, cwd=tmp_path))
    assert "nyu2_train.csv" in line and message in line and not (tmp_path / "out").exists()


def test_damaged_zips_are_named(forked, tmp_path):
    whole = small_zip(tmp_path / "a.zip", **PAIR).read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    line = one_line(forked("tools/prepare_nyu.py", "out", "--hu", "half.zip", cwd=tmp_path))
    assert "half.zip: not a whole zip: download it again" in line
    method = bytearray(whole)
    central = method.index(b"PK\x01\x02")
    method[central + 10] = 99  # a method of compression that nobody has
    (tmp_path / "method.zip").write_bytes(method)
    line = one_line(forked("tools/prepare_nyu.py", "out", "--hu", "method.zip", cwd=tmp_path))
    assert "method.zip: data/nyu2_" in line


def test_a_cut_file_of_the_labelled_set_is_made_again(tmp_path):
    target = prepare_nyu.PurePosixPath("Test/00000_colors.png")
    item = prepare_nyu.Item(target, 999, False, lambda path: path.write_bytes(png()))
    prepare_nyu.make([item], tmp_path)
    assert item.is_done(tmp_path)
    os.truncate(tmp_path / target, 20)
    prepare_nyu.make([item], tmp_path)
    assert (tmp_path / target).read_bytes() == png()


# tools/check_nyu.py


def spread(folder):
    path = folder / "Test" / "00001_depth.png"
    Image.fromarray((np.asarray(Image.open(path)) // 40).astype(np.uint16) * 257).save(path)


def leaked_as_jpeg(folder):
    Image.open(folder / "Test" / "00001_colors.png").save(folder / "Train" / "sample_0001_out" / "2.jpg", quality=70)


def doubled(folder):
    shutil.copy(folder / "Train" / "sample_0001_out" / "1.jpg", folder / "Train" / "sample_0001_out" / "1.jpeg")


def half_empty(folder):
    path = folder / "Train" / "sample_0001_out" / "2.jpg"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\xff\xd9")


@pytest.mark.parametrize(
    ("damage", "split", "kind", "text"),
    [
        (spread, "Test", "unit", "00001_depth.png: every pixel is a multiple of 257"),
        (leaked_as_jpeg, "Test", "duplicate", "00001_colors.png is the picture"),
        (doubled, "Train", "two files", "1.jpg and"),
        (half_empty, "Train", "broken file", "rows are of one colour"),
    ],
)
def test_what_a_check_must_find(nyu, tmp_path, damage, split, kind, text):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    damage(folder)
    (found,) = check_nyu.check(folder, 2)[split].problems
    assert found[0] == kind and text in found[1]


def test_two_files_of_one_name_are_no_training_set(nyu, forked, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    doubled(folder)
    line = one_line(forked("train.py", "--data_url", folder, "--batch_size", 2, cwd=tmp_path))
    assert "two files of one name" in line


def test_bad_samples_are_counted_over_all_ranks(nyu, tmp_path):
    """Each rank is under the limit, both together are not."""
    from src.data.plain import PlainPairs
    from src.data_loader import TrainingData
    from src.training import log, options, run_folder, stage, trainer

    class OfTwoRanks(trainer.Trainer):
        def launch(self, *arrays, votes):
            """A step in which the other rank votes as this one does."""
            return lambda: super(OfTwoRanks, self).launch(*arrays, votes=[2 * vote for vote in votes])()

    data = TrainingData(PlainPairs(nyu), sampling.Schedule(8, 2, 0), skip_bad=True)
    data.bad.add(0)
    run, settings = run_folder.Folder(tmp_path), options.Stage("coarse", 1, 4, None, 3, {})
    with pytest.raises(run_folder.TrainingError, match="2 of 8 samples are bad on all ranks together"):
        stage.StageLoop(
            settings, OfTwoRanks(TinyCoarse(), "composite", 1e-4), data, run, log.StageLog(None), NOBODY_STOPS
        ).run()


def test_a_manifest_or_a_log_of_another_kind_is_named(nyu, fine_stage, forked, tmp_path):
    for content in (
        '{"names": 3, "geometry": {}, "shards": []}',
        '{"names": [1], "geometry": {}, "shards": [{"files": 1}]}',
        "[]",
    ):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / "manifest.json").write_text(content)
        assert "not a manifest" in one_line(forked("train.py", "--data_url", "set", cwd=tmp_path))
    arguments = ["--data_url", nyu, *fine_stage, "--batch_size", 8]
    assert forked("train.py", *arguments, "--max_steps", 1, cwd=tmp_path).returncode == 0
    (tmp_path / "Model" / "Log" / "fine.csv").write_text("a,b\n1,2\n")
    line = one_line(forked("train.py", *arguments, "--max_steps", 2, "--resume", cwd=tmp_path))
    assert "fine.csv: not a training log" in line


def test_checkpoints_of_a_name_too_long_for_a_partial_one_are_saved(tmp_path):
    path = tmp_path / ("c" * 250 + ".ckpt")
    checkpoint.save(path, {"a": np.ones(3, np.float32)}, {})
    assert checkpoint.load(path).arrays["a"].sum() == 3
    with pytest.raises(UserError):
        checkpoint.load(Path("absent"))
