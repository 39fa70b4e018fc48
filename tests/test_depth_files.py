"""The outputs of a prediction: each form, and disks and names that refuse them."""

import os

import cv2
import numpy as np
import pytest

from src.base import cli
from src.base.errors import NotFinite
from src.prediction import depth_files
from src.prediction.job import Job
from src.prediction.pointcloud import Intrinsics
from src.prediction.predict import DepthPredictor
from tests.conftest import as_it_is, paint, red_is_depth, taken_by, write_video
from tests.test_image import exif_of


def test_pictures_on_a_full_disk_fail_by_name_and_the_rest_is_tried(predict, tiny_disk, tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        paint(tmp_path / f"{name}.png", rng.integers(0, 256, (480, 640, 3), np.uint8))
    result = predict("--input a.png b.png c.png --output_dir disk --save npy")
    assert result.returncode == 1 and result.stdout.count("No space left on device") == 3, result.stdout
    assert not list(tiny_disk.iterdir())


def test_one_picture_that_is_not_finite_does_not_take_the_others_with_it(tmp_path):
    def coarse(rgb):
        log_depth = red_is_depth(rgb)
        log_depth[rgb.mean((1, 2, 3)) > 0.9] = np.inf
        return log_depth

    levels = (("dark", 10), ("bright", 255), ("grey", 100))
    paths = [paint(tmp_path / f"{name}.png", level) for name, level in levels]
    with pytest.raises(NotFinite, match=r"bright\.png"):
        DepthPredictor(coarse, as_it_is).predict(paths)
    writer = depth_files.Writer(("npy",), "viridis", 10.0, None)
    jobs = [Job(path, tmp_path / path.stem) for path in paths]
    with cli.progress(3, "predicting", "file") as bar:
        assert depth_files.predict_all(jobs, DepthPredictor(coarse, as_it_is), writer, 8, bar) == 1
    assert {path.name for path in tmp_path.glob("*.npy")} == {"dark_depth.npy", "grey_depth.npy"}


def test_predictions_may_go_beside_their_pictures_again_and_again(predict, tmp_path):
    paint(tmp_path / "photo.png")
    for inputs in ("photo.png", ". --overwrite", ". --overwrite"):
        result = predict(f"--input {inputs} --output_dir . --save color side")
        assert result.returncode == 0 and "1 predicted" in result.stdout, result.stdout + result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "photo_depth.png", "photo_side.png"}


def test_an_output_that_cannot_be_written_does_not_stop_the_rest(predict, tmp_path):
    for name in ("n" * 250, "m" * 245, "short"):  # with _depth.npy: too long; as long as it may be; short
        paint(tmp_path / f"{name}.png")
    result = predict("--input . --save npy")
    assert result.returncode == 1 and "File name too long" in result.stdout and "2 predicted" in result.stdout
    assert len(list((tmp_path / "predictions").iterdir())) == 2


def test_photographs_whose_metadata_are_absurd(predict, tmp_path):
    """A lens of 600 mm takes the depth beyond what 16 bits hold; a rational of -1/0."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, 40:] = 200, 0, 0
    for name, exif in (("tele", taken_by(600)), ("absurd", taken_by(65535)), ("turned", exif_of(6))):
        paint(tmp_path / f"{name}.jpg", pixels, exif=exif)
    result = predict("--input . --save npy png16")
    assert result.returncode == 0, result.stdout + result.stderr
    out = tmp_path / "predictions"
    depth_m = np.load(out / "tele_depth.npy")
    millimetres = cv2.imread(str(out / "tele_depth16.png"), cv2.IMREAD_UNCHANGED)
    assert depth_m.min() < 30 and depth_m.max() > 65.536
    np.testing.assert_allclose(millimetres / 1000, depth_m.clip(0, 65.535), atol=0.00051)
    assert result.stdout.count("tele_depth16.png: what is deeper is written as 65.535 m") == 1
    assert "absurd_depth16.png: what is deeper" not in result.stdout and np.load(out / "absurd_depth.npy").max() < 10
    turned = np.load(out / "turned_depth.npy")
    assert turned.shape == (80, 60) and turned[70:].min() > turned[:10].max()  # its right side is below


def test_exr_holds_what_npy_holds(predict, tmp_path, monkeypatch):
    """One channel Y of 32-bit floats, by the format's own header."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    paint(tmp_path / "a.png", cv2.GaussianBlur(pixels, (9, 9), 0))
    result = predict("--input a.png --save npy exr")
    assert result.returncode == 0, result.stderr
    content = (tmp_path / "predictions" / "a_depth.exr").read_bytes()
    assert content[:4] == b"\x76\x2f\x31\x01" and b"channels\0chlist\0\x13\0\0\0Y\0\x02\0\0\0" in content
    monkeypatch.setitem(os.environ, "OPENCV_IO_ENABLE_OPENEXR", "1")
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, np.load(tmp_path / "predictions" / "a_depth.npy"))


def by_brightness(seen, factor=1.0):
    """A DepthPredictor without a net: a picture of grey level g is 1 + g / 10 metres deep, but for a speck."""

    def coarse(rgb):
        seen.extend(np.rint(rgb[:, 0, 100, 100] * 255).astype(int).tolist())
        return np.log((1 + np.rint(rgb[:, :1, :55, :74] * 255) / 10) * factor)

    def fine(rgb, log_depth):
        log_depth[:, :, 0, 0] = np.log(9.5)
        return log_depth

    return DepthPredictor(coarse, fine)


def test_one_range_of_colours_covers_all_that_is_there(tmp_path):
    writer = depth_files.Writer(("npy",), "viridis", "auto", Intrinsics.kinect)
    jobs = [Job(paint(tmp_path / f"{number}.png", number), tmp_path / str(number)) for number in range(40)]
    seen = []
    deepest, known = depth_files.depth_range(jobs, by_brightness(seen), writer)
    assert deepest == 5.0  # the deepest that was looked at: 4.9 m
    assert 10 < len(seen) <= depth_files.SAMPLED and max(seen) >= 36
    with cli.progress(40, "predicting", "file") as bar:
        assert depth_files.predict_all(jobs, by_brightness(seen), writer, 8, bar, known) == 0
    assert sorted(seen) == list(range(40))  # none twice
    for number in (0, 17, 39):
        np.testing.assert_allclose(np.load(tmp_path / f"{number}_depth.npy")[24:], 1 + number / 10, rtol=1e-5)
    (tmp_path / "39.png").write_bytes(b"no picture")
    assert depth_files.depth_range(jobs[39:], by_brightness(seen), writer) == (10.0, {})
    write_video(tmp_path / "v.mp4", range(0, 240, 6), (64, 48), "mp4v", 10)
    seen.clear()
    deepest, _ = depth_files.depth_range([Job(tmp_path / "v.mp4", tmp_path / "v")], by_brightness(seen, 1 / 4), writer)
    assert 6.0 <= deepest <= 7.0 and 10 < len(seen) <= depth_files.SAMPLED  # 1/4 of 1 m + 23 m
