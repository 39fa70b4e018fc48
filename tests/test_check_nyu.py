"""tools/check_nyu.py on a good folder, and on copies that are damaged in every way that it looks for."""

import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from src.data import image
from tools import check_nyu


def test_a_good_folder_is_described(nyu, run, tmp_path):
    result = run(f"tools/check_nyu.py {nyu} --output_dir report", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing is wrong" in result.stdout
    found = json.loads((tmp_path / "report" / "check.json").read_text())
    assert found["Train"] | {"depth_m": 0} == {
        "pairs": 8,
        "good_pairs": 8,
        "scenes": 2,
        "sizes": {"480x640": 8},
        "depth_bits": 8,
        "depth_m": 0,
        "unmeasured_share": 0.0,
        "problems": [],
    }
    depths = [image.load_test_depth(path) for path in (nyu / "Test").glob("*_depth.png")]
    assert found["Test"]["depth_m"] == pytest.approx([np.min(depths), np.max(depths)], abs=1e-3)
    assert cv2.imread(str(tmp_path / "report" / "check.png")).shape[1] > 800


def to_16_bit(folder):
    path = folder / "Train" / "sample_0001_out" / "2.png"
    Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 39).save(path)


def to_8_bit(folder):
    path = folder / "Test" / "00001_depth.png"
    Image.fromarray((np.asarray(Image.open(path)) / 39).astype(np.uint8)).save(path)


def small_unit(folder):
    path = folder / "Test" / "00001_depth.png"
    Image.fromarray((np.asarray(Image.open(path)) // 40).astype(np.uint16)).save(path)


def cut(folder):
    path = folder / "Train" / "sample_0001_out" / "2.jpg"
    path.write_bytes(path.read_bytes()[:5000])


def resized(folder):
    path = folder / "Train" / "sample_0001_out" / "2.jpg"
    Image.open(path).resize((600, 480)).save(path)


def unmeasured(folder):
    Image.fromarray(np.zeros((480, 640), np.uint8)).save(folder / "Train" / "sample_0001_out" / "2.png")


def leaked(folder):
    """A training picture in Test, as PNG."""
    Image.open(folder / "Train" / "sample_0001_out" / "2.jpg").save(folder / "Test" / "00001_colors.png")


@pytest.mark.parametrize(
    ("damage", "split", "kind", "text"),
    [
        (to_16_bit, "Train", "bit depth", "0001_out/2.png: 16-bit grey, expected 8-bit"),
        (to_8_bit, "Test", "bit depth", "00001_depth.png: 8-bit grey, expected 16-bit"),
        (small_unit, "Test", "unit", "00001_depth.png: 16-bit, but no pixel is over 255"),
        (cut, "Train", "broken file", "0001_out/2.jpg: broken image"),
        (resized, "Train", "size", "2.jpg is 480x600 but"),
        (unmeasured, "Train", "no depth", "0001_out/2.png: no measured pixel"),
        (leaked, "Test", "duplicate", "00001_colors.png is the picture"),
        (
            lambda folder: (folder / "Test" / "00002_depth.png").unlink(),
            "Test",
            "missing partner",
            "00002_colors.png has",
        ),
        (
            lambda folder: shutil.rmtree(folder / "Train"),
            "Train",
            "missing folder",
            "no Train folder in it (found: Test)",
        ),
    ],
)
def test_each_kind_of_damage_is_named(nyu, tmp_path, damage, split, kind, text):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    damage(folder)
    splits = check_nyu.check(folder, 2)
    ((found_kind, found_text),) = splits[split].problems
    assert found_kind == kind and text in found_text
    assert not splits["Test" if split == "Train" else "Train"].problems
    assert check_nyu.present(splits, tmp_path / "report") == 1
    assert f"! {kind}" in check_nyu.table(splits)


def test_no_such_folder_is_the_user_s_mistake(run, tmp_path):
    result = run("tools/check_nyu.py absent", cwd=tmp_path)
    assert result.returncode == 2 and "absent: no such folder" in result.stderr


def test_holes_are_counted(nyu, tmp_path):
    folder = shutil.copytree(nyu, tmp_path / "NYU")
    for path in (folder / "Train").glob("*/*.png"):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[:120] = 0
        Image.fromarray(pixels).save(path)
    assert check_nyu.check(folder, 2)["Train"].summary()["unmeasured_share"] == 0.25


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
